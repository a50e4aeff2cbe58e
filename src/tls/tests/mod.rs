//! TLS over loopback sockets: rustls against rustls, and against openssl's own tools.

mod calling;
mod files;
mod names;
mod pem;
mod pinning;
mod refused;
mod relaying;
mod serving;
mod sharing;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::client::{ClientTls, connect};
use super::server::{Acceptor, ServerTls};
use super::stream::Stream;
use super::{DEFAULT_GROUPS, TlsProblem};
use crate::base::secret::SecretBuf;
use crate::config::{CertificateFiles, ClientAuth, Group, Tls, TlsVersion};
use crate::proto::{PROTOCOLS, Protocol};

const DEADLINE: Duration = Duration::from_secs(20);

/// A certificate authority with a folder for its certificates.
struct Desk {
    dir: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Desk {
    fn new() -> Self {
        Self::named("Test CA")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let desk = Self { dir: tempfile::tempdir().unwrap(), ca };
        // Whatever the umask: a closed folder makes readable keys acceptable.
        std::fs::set_permissions(desk.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        desk.write("ca.pem", &desk.ca.pem());
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        std::fs::set_permissions(self.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        self.path(name)
    }

    fn ca_file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    fn files(&self, name: &str) -> CertificateFiles {
        CertificateFiles { chain: self.path(&format!("{name}.pem")), key: self.path(&format!("{name}.key")) }
    }

    /// Issues an ECDSA P-256 certificate.
    fn ecdsa(&self, file: &str, names: &[&str]) -> CertificateFiles {
        self.issue(file, names, &KeyPair::generate().unwrap(), |_| ())
    }

    fn rsa(&self, file: &str, names: &[&str]) -> CertificateFiles {
        self.issue(file, names, &KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap(), |_| ())
    }

    fn expired(&self, file: &str, names: &[&str]) -> CertificateFiles {
        self.issue(file, names, &KeyPair::generate().unwrap(), |params| {
            params.not_before = rcgen::date_time_ymd(2019, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 3);
        })
    }

    fn issue(
        &self,
        file: &str,
        names: &[&str],
        key: &KeyPair,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> CertificateFiles {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        edit(&mut params);
        let certificate = params.signed_by(key, &self.ca).unwrap();
        self.write(&format!("{file}.pem"), &certificate.pem());
        self.write(&format!("{file}.key"), &key.serialize_pem());
        self.files(file)
    }

    /// The client configuration that trusts this authority.
    fn client(&self) -> ClientTls {
        ClientTls { ca: Some(self.ca_file()), key: "backend".to_owned(), ..ClientTls::default() }
    }

    fn openssl(&self, arguments: &str) {
        let output = std::process::Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn settings(certificates: Vec<CertificateFiles>) -> Tls {
    Tls {
        certificates,
        min_version: TlsVersion::V1_2,
        groups: DEFAULT_GROUPS.to_vec(),
        cipher_suites: None,
        client_ca: None,
        client_auth: ClientAuth::Optional,
        crl: None,
        ticket_keys_file: None,
        reload_interval: std::time::Duration::from_secs(60),
    }
}

fn imap() -> &'static Protocol {
    &PROTOCOLS[0]
}

fn acceptor(tls: &Tls) -> Arc<Acceptor> {
    ServerTls::from_settings(tls).unwrap().common_acceptor(imap())
}

/// A TCP connection to itself.
async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A handshake; the client's side, then the server's.
async fn shake(
    acceptor: &Acceptor,
    client: &Arc<ClientConfig>,
    name: &str,
) -> (io::Result<Stream>, io::Result<Stream>) {
    let (near, far) = tcp_pair().await;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    timeout(DEADLINE, async { tokio::join!(connect(client, name, near), acceptor.accept(far)) }).await.unwrap()
}

/// A stream that is read through the plaintext pieces that a relay uses.
struct Reading<T = TcpStream> {
    stream: Stream<T>,
    rest: Vec<u8>,
}

impl<T> From<Stream<T>> for Reading<T> {
    fn from(stream: Stream<T>) -> Self {
        Self { stream, rest: Vec::new() }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Reading<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, rest } = self.get_mut();
        if rest.is_empty() {
            ready!(stream.poll_pieces(cx, &mut |_, piece| rest.extend_from_slice(piece)))?;
        }
        let taken = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..taken]);
        rest.drain(..taken);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Reading<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Sends bytes at once.
async fn tell(stream: &mut (impl AsyncWrite + Unpin), words: &[u8]) {
    stream.write_all(words).await.unwrap();
    stream.flush().await.unwrap();
}

/// Reads bytes.
async fn hear(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let mut heard = SecretBuf::new();
    stream.fill(&mut heard).await?;
    Ok(heard.as_slice().to_vec())
}

/// The names in the server's certificate.
fn shown(stream: &Stream) -> Vec<String> {
    super::certificate::CertificateInfo::read(&peer(stream)).unwrap().names
}

fn peer(stream: &Stream) -> Vec<u8> {
    stream.server_certificates()[0].to_vec()
}

fn words(mistakes: &[TlsProblem]) -> Vec<String> {
    mistakes.iter().map(|mistake| format!("{}: {}", mistake.key, mistake.error)).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
