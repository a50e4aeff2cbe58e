//! A mail server that accepts every login and stores nothing, as the backend of a proxy under test.
//!
//! IMAP over implicit TLS 1.3, as far as proxies and this tool need it: LOGIN and AUTHENTICATE PLAIN
//! with any password; `UID FETCH 1 BODY.PEEK[]<0.N>` sends a literal of N bytes; the literal of an APPEND
//! is discarded, whatever its size. It runs as a separate process, so that its CPU time is not counted
//! for another one.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::HandshakeKind;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const GREETING: &[u8] =
    b"* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE AUTH=PLAIN AUTH=LOGIN] stub ready\r\n";
const CAPABILITIES: &[u8] = b"* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE AUTH=PLAIN AUTH=LOGIN\r\n";
const LOGGED_IN: &str = "OK [CAPABILITY IMAP4rev1 LITERAL+ ID ENABLE IDLE UIDPLUS MOVE] Logged in";
/// Size of one write: several records, like a busy server.
const CHUNK: usize = 64 * 1024;
/// A longer line is a protocol error.
const LONGEST_LINE: usize = 16 * 1024;

static FULL: AtomicU64 = AtomicU64::new(0);
static RESUMED: AtomicU64 = AtomicU64::new(0);

/// Serves until the process ends.
pub(crate) fn serve(address: SocketAddr, chain: &Path, key: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = super::client::listen(address)?;
        let acceptor = TlsAcceptor::from(Arc::new(settings(chain, key)?));
        println!("{}", listener.local_addr()?);
        accept(listener, acceptor).await
    })
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor) -> io::Result<()> {
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let acceptor = acceptor.clone();
        // A connection that breaks is not an error of the stub.
        tokio::spawn(async move {
            let _ = session(tcp, acceptor).await;
        });
    }
}

fn settings(chain: &Path, key: &Path) -> io::Result<rustls::ServerConfig> {
    let chain = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(|error| io::Error::other(format!("{}: {error}", chain.display())))?;
    let key =
        PrivateKeyDer::from_pem_file(key).map_err(|error| io::Error::other(format!("{}: {error}", key.display())))?;
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(super::client::provider(None)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(io::Error::other)?;
    // Stateless tickets, like real servers: a proxy can resume with any number of kept tickets.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
    Ok(config)
}

async fn session(tcp: TcpStream, acceptor: TlsAcceptor) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let counter = match stream.get_ref().1.handshake_kind() {
        Some(HandshakeKind::Resumed) => &RESUMED,
        Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => &FULL,
    };
    let mut peer = Peer { stream, input: Vec::new() };
    peer.send(GREETING).await?;
    let mut counted = false;
    while let Some(line) = peer.command().await? {
        let (tag, command) = line.split_once(' ').unwrap_or((&line, ""));
        let verb = command.to_ascii_uppercase();
        let (untagged, reply) = if verb.starts_with("LOGIN") {
            (&b""[..], LOGGED_IN)
        } else if verb.starts_with("AUTHENTICATE") {
            if verb.split(' ').nth(2).is_none() {
                peer.send(b"+ \r\n").await?;
                peer.line().await?;
            }
            (&b""[..], LOGGED_IN)
        } else if verb.starts_with("CAPABILITY") {
            (CAPABILITIES, "OK done")
        } else if verb.starts_with("XHANDSHAKES") {
            let counted = format!("* {} {}\r\n", FULL.load(Ordering::Relaxed), RESUMED.load(Ordering::Relaxed));
            peer.send(counted.as_bytes()).await?;
            (&b""[..], "OK done")
        } else if verb.starts_with("LOGOUT") {
            peer.send(format!("* BYE\r\n{tag} OK done\r\n").as_bytes()).await?;
            return peer.stream.shutdown().await;
        } else {
            if let Some(size) = fetched(&verb) {
                peer.literal(size).await?;
            }
            (&b""[..], "OK done")
        };
        if reply == LOGGED_IN && !std::mem::replace(&mut counted, true) {
            // Only connections that log in count, not probes and requests for these counts.
            counter.fetch_add(1, Ordering::Relaxed);
        }
        peer.send(&[untagged, format!("{tag} {reply}\r\n").as_bytes()].concat()).await?;
    }
    Ok(())
}

/// The size that a `FETCH ... <0.N>` requests.
fn fetched(verb: &str) -> Option<u64> {
    verb.split_once("<0.")?.1.split_once('>')?.0.parse().ok()
}

struct Peer {
    stream: TlsStream<TcpStream>,
    input: Vec<u8>,
}

impl Peer {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// A line without its end, `None` when the peer has closed the connection.
    async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let rest = self.input.split_off(end + 1);
                let line = std::mem::replace(&mut self.input, rest);
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.input.len() > LONGEST_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.input.reserve(1_024);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// A command without its literals, which are discarded.
    async fn command(&mut self) -> io::Result<Option<String>> {
        let mut command = String::new();
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            command.push_str(&line);
            let Some(announced) = line.strip_suffix('}').and_then(|line| line.rsplit_once('{')) else {
                return Ok(Some(command));
            };
            let size = announced.1.trim_end_matches('+');
            if !announced.1.ends_with('+') {
                self.send(b"+ go on\r\n").await?;
            }
            self.discard(size.parse().map_err(|_| io::ErrorKind::InvalidData)?).await?;
        }
    }

    async fn discard(&mut self, mut size: u64) -> io::Result<()> {
        let known = self.input.len().min(usize::try_from(size).unwrap_or(usize::MAX));
        self.input.drain(..known);
        size -= known as u64;
        let mut chunk = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
        while size > 0 {
            let room = chunk.len().min(usize::try_from(size).unwrap_or(CHUNK));
            let read = self.stream.read(&mut chunk[..room]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            size -= read as u64;
        }
        Ok(())
    }

    async fn literal(&mut self, mut size: u64) -> io::Result<()> {
        self.send(format!("* 1 FETCH (UID 1 BODY[]<0> {{{size}}}\r\n").as_bytes()).await?;
        let chunk = vec![b'm'; CHUNK];
        while size > 0 {
            let length = CHUNK.min(usize::try_from(size).unwrap_or(CHUNK));
            self.stream.write_all(&chunk[..length]).await?;
            size -= length as u64;
        }
        self.send(b")\r\n").await
    }
}
