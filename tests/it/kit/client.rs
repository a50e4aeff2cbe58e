//! An IMAP client that sends the given bytes unchanged and records a transcript.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use socket2::{Domain, Socket, Type};

use super::certs::{Pair, provider};
use super::{shared, wait_limit};

/// The TLS settings of the client.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
    pub(crate) alpn: Vec<&'static [u8]>,
    pub(crate) server_name: &'static str,
    pub(crate) client_certificate: Option<Pair>,
    /// Only these key exchange groups.
    pub(crate) groups: Option<Vec<rustls::NamedGroup>>,
    /// Only these cipher suites.
    pub(crate) suites: Option<Vec<rustls::CipherSuite>>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            versions: rustls::ALL_VERSIONS.to_vec(),
            alpn: vec![],
            server_name: "usher.example.com",
            client_certificate: None,
            groups: None,
            suites: None,
        }
    }
}

impl Tls {
    /// A configuration that trusts the test CA; shared, it resumes sessions.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(shared().certificates.ca()).unwrap()).unwrap();
        let mut provider = rustls::crypto::CryptoProvider::clone(&provider());
        if let Some(groups) = &self.groups {
            provider.kx_groups.retain(|group| groups.contains(&group.name()));
        }
        if let Some(suites) = &self.suites {
            provider.cipher_suites.retain(|suite| suites.contains(&suite.suite()));
        }
        let builder =
            ClientConfig::builder_with_provider(provider.into()).with_protocol_versions(&self.versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match &self.client_certificate {
            Some(pair) => builder.with_client_auth_cert(pair.certificates(), pair.private_key()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Gone,
}

/// A reply: the untagged lines, and the tagged line without its tag.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) untagged: Vec<String>,
    pub(crate) tagged: String,
}

impl Reply {
    /// Panics unless it is OK.
    pub(crate) fn ok(self) -> Self {
        assert!(self.tagged.starts_with("OK "), "{self:?}");
        self
    }

    /// Panics unless it begins with this text, such as `NO [UNAVAILABLE]`.
    pub(crate) fn is(self, beginning: &str) -> Self {
        assert!(self.tagged.starts_with(beginning), "wanted {beginning}, got {self:?}");
        self
    }
}

/// A connection.
pub(crate) struct Imap {
    stream: Stream,
    buffer: Vec<u8>,
    transcript: String,
    tags: u32,
    /// The greeting, if one came.
    pub(crate) greeting: String,
}

impl Imap {
    /// Connects over TLS and reads the greeting.
    pub(crate) fn tls(port: u16) -> Self {
        Self::try_tls(port, &Tls::default()).expect("the handshake succeeds")
    }

    /// As [`Imap::tls`], from this loopback address.
    pub(crate) fn tls_from(address: [u8; 4], port: u16) -> Self {
        Self::try_tls_from(address, port).expect("the handshake succeeds")
    }

    /// As [`Imap::tls_from`]; the error of the handshake, or of the read of the greeting.
    pub(crate) fn try_tls_from(address: [u8; 4], port: u16) -> std::io::Result<Self> {
        let tls = Tls::default();
        Self::silent_from(address, port).handshake(tls.config(), tls.server_name)
    }

    /// Connects over TLS with these settings, from this loopback address.
    pub(crate) fn tls_at(address: [u8; 4], port: u16, tls: &Tls) -> Self {
        let connected = Self::silent_from(address, port).handshake(tls.config(), tls.server_name);
        connected.expect("the handshake succeeds")
    }

    /// Connects without TLS and reads the greeting.
    pub(crate) fn plain(port: u16) -> Self {
        let mut imap = Self::silent(port);
        imap.greeting = imap.line();
        imap
    }

    /// Connects over TLS with these settings; the error of the handshake, or of the read of the greeting.
    pub(crate) fn try_tls(port: u16, tls: &Tls) -> std::io::Result<Self> {
        Self::try_tls_with(port, tls.config(), tls.server_name)
    }

    /// As [`Imap::try_tls`] with a configuration that may hold tickets.
    pub(crate) fn try_tls_with(port: u16, config: Arc<ClientConfig>, server_name: &str) -> std::io::Result<Self> {
        Self::silent(port).handshake(config, server_name)
    }

    fn handshake(mut self, config: Arc<ClientConfig>, server_name: &str) -> std::io::Result<Self> {
        self.start_tls_with(config, server_name)?;
        self.greeting = self.try_line()?.ok_or(ErrorKind::UnexpectedEof)?;
        Ok(self)
    }

    /// Connects; sends and reads nothing.
    pub(crate) fn silent(port: u16) -> Self {
        Self::silent_from([127, 0, 0, 1], port)
    }

    /// As [`Imap::silent`], from this loopback address: loopback networks have many.
    pub(crate) fn silent_from(address: [u8; 4], port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("the port accepts");
        Self::on(TcpStream::from(socket))
    }

    /// Over TLS with a small receive window: unread bytes soon queue in usher.
    pub(crate) fn with_small_window(port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(65_536).unwrap();
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("the port accepts");
        let tls = Tls::default();
        Self::on(TcpStream::from(socket)).handshake(tls.config(), tls.server_name).expect("the handshake succeeds")
    }

    fn on(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let greeting = String::new();
        Self { stream: Stream::Plain(stream), buffer: Vec::new(), transcript: String::new(), tags: 0, greeting }
    }

    /// Connects to any address; sends and reads nothing.
    pub(crate) fn silent_at(address: SocketAddr) -> Self {
        Self::on(TcpStream::connect(address).expect("the port accepts"))
    }

    /// Connects from a loopback address, sends these bytes before TLS, and reads the
    /// greeting.
    pub(crate) fn with_header(from: [u8; 4], port: u16, header: &[u8]) -> Self {
        Self::try_with_header(from, port, header).expect("the handshake succeeds")
    }

    /// As [`Imap::with_header`]; the error of the handshake, or of the read of the greeting.
    pub(crate) fn try_with_header(from: [u8; 4], port: u16, header: &[u8]) -> std::io::Result<Self> {
        let (mut imap, tls) = (Self::silent_from(from, port), Tls::default());
        imap.try_send(header)?;
        imap.handshake(tls.config(), tls.server_name)
    }

    /// The TLS handshake on a plaintext connection.
    pub(crate) fn start_tls(&mut self) {
        self.start_tls_as(&Tls::default());
    }

    /// Starts TLS with these settings, after STARTTLS.
    pub(crate) fn start_tls_as(&mut self, tls: &Tls) {
        self.start_tls_with(tls.config(), tls.server_name).expect("the handshake succeeds");
    }

    fn start_tls_with(&mut self, config: Arc<ClientConfig>, server_name: &str) -> std::io::Result<()> {
        let Stream::Plain(mut socket) = std::mem::replace(&mut self.stream, Stream::Gone) else {
            panic!("TLS twice");
        };
        let name = ServerName::try_from(server_name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(config, name).unwrap();
        socket.set_read_timeout(Some(wait_limit(Duration::from_secs(15))))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        self.note("--", b"TLS");
        self.stream = Stream::Tls(Box::new(StreamOwned::new(connection, socket)));
        Ok(())
    }

    /// The TLS connection, with the negotiated parameters.
    pub(crate) fn connection(&self) -> &ClientConnection {
        match &self.stream {
            Stream::Tls(stream) => &stream.conn,
            Stream::Plain(_) | Stream::Gone => panic!("no TLS"),
        }
    }

    /// The local address of the connection.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.socket().local_addr().unwrap()
    }

    fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Tls(stream) => &stream.sock,
            Stream::Plain(stream) => stream,
            Stream::Gone => panic!("no socket"),
        }
    }

    fn note(&mut self, side: &str, bytes: &[u8]) {
        const SHOWN: usize = 400;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
        let more = if bytes.len() > SHOWN { format!(" .. {} bytes", bytes.len()) } else { String::new() };
        self.transcript.push_str(&format!("{side} {shown:?}{more}\n"));
    }

    /// Sends bytes in one write.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the peer reads the bytes");
    }

    /// Sends bytes; an error if the peer has closed.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        let bytes = bytes.as_ref();
        self.note("C:", bytes);
        let stream: &mut dyn Write = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.as_mut(),
            Stream::Gone => return Err(ErrorKind::NotConnected.into()),
        };
        stream.write_all(bytes)?;
        stream.flush()
    }

    /// Sends each byte in its own TLS record and TCP segment.
    pub(crate) fn drip(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]);
        }
    }

    /// Reads available bytes into the buffer; `false` at the end.
    fn fill(&mut self) -> std::io::Result<bool> {
        let limit = wait_limit(Duration::from_secs(20));
        self.socket().set_read_timeout(Some(limit))?;
        let mut chunk = [0; 65536];
        let stream: &mut dyn Read = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.as_mut(),
            Stream::Gone => return Ok(false),
        };
        let n = stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    /// A line without its line end; `None` if the connection ended.
    fn try_line(&mut self) -> std::io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                self.note("S:", &line);
                assert!(line.ends_with(b"\r\n"), "a line ends without CR: {line:?}");
                return Ok(Some(String::from_utf8_lossy(&line[..end - 1]).into_owned()));
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next line.
    pub(crate) fn line(&mut self) -> String {
        self.try_line().expect("a line comes in time").expect("a line comes before the end")
    }

    /// Reads exactly `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            assert!(self.fill().expect("bytes come in time"), "the connection ended after {} bytes", self.buffer.len());
        }
        let bytes: Vec<u8> = self.buffer.drain(..n).collect();
        self.note("S:", &bytes);
        bytes
    }

    /// Reads up to the tagged reply; literals of untagged replies are kept inside their lines.
    pub(crate) fn reply(&mut self, tag: &str) -> Reply {
        let mut untagged = Vec::new();
        let start = format!("{tag} ");
        loop {
            let mut line = self.line();
            if let Some(tagged) = line.strip_prefix(&start) {
                return Reply { untagged, tagged: tagged.into() };
            }
            while let Some(size) = literal_size(&line) {
                line.push_str(&String::from_utf8_lossy(&self.bytes(size)));
                line.push_str(&self.line());
            }
            untagged.push(line);
        }
    }

    /// Sends a command under a new tag and reads the reply.
    pub(crate) fn command(&mut self, command: &str) -> Reply {
        self.tags += 1;
        let tag = format!("t{}", self.tags);
        self.send(format!("{tag} {command}\r\n"));
        self.reply(&tag)
    }

    /// LOGIN with quoted strings.
    pub(crate) fn login(&mut self, login: &str, password: &str) -> Reply {
        let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        self.command(&format!("LOGIN {} {}", quote(login), quote(password)))
    }

    /// AUTHENTICATE PLAIN with an initial response.
    pub(crate) fn authenticate(&mut self, authzid: &str, login: &str, password: &[u8]) -> Reply {
        let mut message = format!("{authzid}\0{login}\0").into_bytes();
        message.extend_from_slice(password);
        self.command(&format!("AUTHENTICATE PLAIN {}", base64(&message)))
    }

    /// Reads until the connection ends and returns the bytes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                    ) =>
                {
                    break;
                }
                Err(error) => panic!("the connection does not end: {error}"),
            }
        }
        let rest = std::mem::take(&mut self.buffer);
        self.note("S:", &rest);
        rest
    }

    /// Expects a close_notify (or a FIN without TLS) with no bytes before it.
    pub(crate) fn expect_clean_end(&mut self) {
        let more = self.fill().expect("a clean end");
        assert!(!more, "instead of the end: {:?}", String::from_utf8_lossy(&self.buffer));
    }

    /// Closes the sending direction: close_notify, then FIN.
    pub(crate) fn half_close(&mut self) {
        if let Stream::Tls(stream) = &mut self.stream {
            stream.conn.send_close_notify();
            stream.flush().unwrap();
        }
        self.note("C:", b"(end)");
        self.socket().shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Breaks the connection with a RST.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(self.socket()).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

impl Drop for Imap {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- IMAP:\n{}---", self.transcript);
        }
    }
}

/// The size of the literal announced at the end of a line.
pub(crate) fn literal_size(line: &str) -> Option<usize> {
    line.strip_suffix('}')?.rsplit_once('{')?.1.trim_end_matches('+').parse().ok()
}

/// Base64 as in SASL.
pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
