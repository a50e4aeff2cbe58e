//! A minimal IMAP client that logs in, waits and transfers bytes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A login that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Client addresses on loopback: each has its own ports, so that they are never exhausted.
const SOURCES: u32 = 200;
const CHUNK: usize = 64 * 1024;

/// A group for the key exchange.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Group {
    /// Used by most programs.
    X25519,
    /// Post-quantum and classical combined.
    X25519mlkem768,
}

/// aws-lc with one group, or with X25519 alone.
pub(crate) fn provider(group: Option<Group>) -> CryptoProvider {
    let group = match group.unwrap_or(Group::X25519) {
        Group::X25519 => aws_lc_rs::kx_group::X25519,
        Group::X25519mlkem768 => aws_lc_rs::kx_group::X25519MLKEM768,
    };
    CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() }
}

/// A listener with a queue large enough for a burst.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4_096)
}

/// Address and TLS settings of the server, with the tickets of one client.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl Endpoint {
    pub(crate) fn new(address: SocketAddr, name: &str, group: Group, resume: bool) -> io::Result<Self> {
        let mut tls = ClientConfig::builder_with_provider(Arc::new(provider(Some(group))))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate))
            .with_no_client_auth();
        tls.resumption = match resume {
            true => Resumption::store(Arc::new(ClientSessionMemoryCache::new(8))),
            false => Resumption::disabled(),
        };
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        Ok(Self { address, name, tls: Arc::new(tls) })
    }

    /// Connects and reads the greeting.
    pub(crate) async fn open(&self) -> io::Result<Session> {
        let opening = async {
            let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(self.name.clone(), self.dial().await?);
            let mut session = Session { stream: stream.await?, input: Vec::new() };
            session.line().await?;
            Ok(session)
        };
        timeout(TIMEOUT, opening).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tcp = match self.address {
            SocketAddr::V4(address) if address.ip().is_loopback() => {
                let socket = TcpSocket::new_v4()?;
                let n = NEXT.fetch_add(1, Ordering::Relaxed) % SOURCES;
                socket.bind((std::net::Ipv4Addr::from(0x7f00_0101 + n), 0).into())?;
                socket.connect(self.address).await?
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => TcpStream::connect(self.address).await?,
        };
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// A whole login: from connecting to OK.
    pub(crate) async fn login(&self, command: &str) -> io::Result<Session> {
        let mut session = self.open().await?;
        session.command(command).await?;
        Ok(session)
    }
}

/// A connection to a proxy.
pub(crate) struct Session {
    stream: TlsStream<TcpStream>,
    input: Vec<u8>,
}

impl Session {
    /// Whether the TLS handshake resumed an earlier one.
    pub(crate) fn resumed(&self) -> bool {
        self.stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends a command and waits for its OK. Returns the last untagged line.
    pub(crate) async fn command(&mut self, command: &str) -> io::Result<String> {
        let replied = async {
            self.send(format!("a {command}\r\n").as_bytes()).await?;
            self.reply().await
        };
        timeout(TIMEOUT, replied).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    async fn reply(&mut self) -> io::Result<String> {
        let mut untagged = String::new();
        loop {
            let line = self.line().await?;
            if line.starts_with("a OK") {
                return Ok(untagged);
            }
            if line.starts_with("a ") || line.starts_with("* BYE") {
                return Err(io::Error::other(format!("unexpected reply: {:?}", line.trim_end())));
            }
            untagged = line;
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let rest = self.input.split_off(end + 1);
                let line = std::mem::replace(&mut self.input, rest);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.input.reserve(1_024);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
        }
    }

    /// Sends LOGOUT and waits until the server has closed the connection.
    pub(crate) async fn logout(mut self) -> io::Result<()> {
        let logged_out = async {
            self.send(b"a LOGOUT\r\n").await?;
            let mut rest = [0; 1_024];
            while self.stream.read(&mut rest).await.unwrap_or(0) > 0 {}
            let _ = self.stream.shutdown().await;
            Ok(())
        };
        timeout(TIMEOUT, logged_out).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Fetches a literal of `size` bytes and drops it.
    pub(crate) async fn download(&mut self, size: u64) -> io::Result<()> {
        self.send(format!("a UID FETCH 1 BODY.PEEK[]<0.{size}>\r\n").as_bytes()).await?;
        let head = self.line().await?;
        if !head.contains(&format!("{{{size}}}")) {
            return Err(io::Error::other(format!("unexpected reply: {:?}", head.trim_end())));
        }
        let mut rest = size - (self.input.len() as u64).min(size);
        self.input.drain(..usize::try_from(size - rest).unwrap_or(self.input.len()));
        let mut chunk = vec![0; CHUNK];
        while rest > 0 {
            let room = CHUNK.min(usize::try_from(rest).unwrap_or(CHUNK));
            let read = self.stream.read(&mut chunk[..room]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rest -= read as u64;
        }
        self.reply().await.map(drop)
    }

    /// Appends a message of `size` bytes.
    pub(crate) async fn upload(&mut self, size: u64) -> io::Result<()> {
        self.send(format!("a APPEND INBOX {{{size}+}}\r\n").as_bytes()).await?;
        let chunk = vec![b'm'; CHUNK];
        let mut rest = size;
        while rest > 0 {
            let length = CHUNK.min(usize::try_from(rest).unwrap_or(CHUNK));
            self.stream.write_all(&chunk[..length]).await?;
            rest -= length as u64;
        }
        self.send(b"\r\n").await?;
        self.reply().await.map(drop)
    }
}

/// Accepts every certificate: verification would only cost the client CPU time.
#[derive(Debug)]
struct AcceptAnyCertificate;

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
