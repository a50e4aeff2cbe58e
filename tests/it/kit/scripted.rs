//! Scripted peers that can misbehave: a mail server and a directory.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};

use super::certs::Pair;
use super::client::literal_size;
use super::{shared, wait_limit};

/// A mail server that runs a script on each connection.
pub(crate) struct Scripted {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
    clients: Arc<Mutex<Vec<IpAddr>>>,
    transcript: Arc<Mutex<String>>,
    logins: Mutex<Receiver<String>>,
}

/// One connection of a [`Scripted`] server, in its script.
pub(crate) struct Peer {
    stream: Stream,
    buffer: Vec<u8>,
    transcript: Arc<Mutex<String>>,
    logins: Sender<String>,
    /// The number of this connection, from 1.
    pub(crate) number: usize,
    /// The server name of the client's TLS handshake.
    pub(crate) server_name: Option<String>,
    /// Whether the TLS session was resumed.
    pub(crate) resumed: bool,
    tls: Arc<ServerConfig>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
    Gone,
}

/// The greeting of most scripts.
pub(crate) const GREETING: &str = "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] scripted\r\n";

impl Scripted {
    /// TLS from the first byte with server3's certificate.
    pub(crate) fn tls(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        Self::start(Some(&shared().server3), script)
    }

    /// Without TLS, until the script starts it.
    pub(crate) fn plain(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        Self::start(None, script)
    }

    /// TLS from the first byte with this certificate.
    pub(crate) fn tls_as(pair: &Pair, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        Self::start(Some(pair), script)
    }

    /// TLS, with a script that answers every login and every later command with OK.
    pub(crate) fn accepting() -> Self {
        Self::accepting_at(0)
    }

    /// As [`Scripted::accepting`], at this port.
    pub(crate) fn accepting_at(port: u16) -> Self {
        Self::start_at(port, Some(&shared().server3), |peer| {
            peer.send(GREETING);
            if peer.accept_login().is_some() {
                peer.wait_indefinitely();
                peer.reply_to_everything();
            }
        })
    }

    fn start(pair: Option<&Pair>, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        Self::start_at(0, pair, script)
    }

    fn start_at(port: u16, pair: Option<&Pair>, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let clients = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&clients);
        let transcript = Arc::new(Mutex::new(String::new()));
        let (sender, logins) = channel();
        let state = (Arc::clone(&connections), Arc::clone(&transcript), Arc::new(script));
        let implicit = pair.is_some();
        let tls = pair.unwrap_or(&shared().server3).server_config();
        // These threads live as long as the test process; a script ends when its peer closes.
        std::thread::spawn(move || {
            while let Ok((socket, client)) = listener.accept() {
                seen.lock().unwrap().push(client.ip());
                let (connections, transcript, script) = state.clone();
                let (tls, logins) = (Arc::clone(&tls), sender.clone());
                std::thread::spawn(move || {
                    socket.set_nodelay(true).unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                    socket.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
                    let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
                    let (stream, buffer) = (Stream::Plain(socket), Vec::new());
                    let (server_name, resumed) = (None, false);
                    let mut peer = Peer { stream, buffer, transcript, logins, number, server_name, resumed, tls };
                    if !implicit || peer.start_tls() {
                        script(&mut peer);
                    }
                    peer.note("--", b"(script over)");
                });
            }
        });
        Self { port, connections, clients, transcript, logins: Mutex::new(logins) }
    }

    /// The number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The client addresses of the connections, in order.
    pub(crate) fn clients(&self) -> Vec<String> {
        self.clients.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    /// Waits for the next login command that a script read by [`Peer::accept_login`] or
    /// [`Peer::take_login`]: `authzid NUL authcid NUL password`, or LOGIN's arguments with literals
    /// as quoted strings.
    pub(crate) fn next_login(&self) -> String {
        let limit = wait_limit(Duration::from_secs(20));
        self.logins.lock().unwrap().recv_timeout(limit).expect("a login reaches the scripted server")
    }

    /// The transcript so far.
    pub(crate) fn transcript(&self) -> String {
        self.transcript.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- scripted server:\n{}---", self.transcript());
        }
    }
}

impl Peer {
    fn note(&self, side: &str, bytes: &[u8]) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
        let line = format!("#{} {side} {shown:?}\n", self.number);
        self.transcript.lock().unwrap().push_str(&line);
    }

    /// The TLS handshake; `false` if it fails.
    pub(crate) fn start_tls(&mut self) -> bool {
        let Stream::Plain(mut socket) = std::mem::replace(&mut self.stream, Stream::Gone) else {
            panic!("TLS twice");
        };
        let mut connection = ServerConnection::new(Arc::clone(&self.tls)).unwrap();
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut socket) {
                self.note("--", format!("no TLS: {error}").as_bytes());
                return false;
            }
        }
        self.server_name = connection.server_name().map(ToOwned::to_owned);
        self.resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        self.note("--", b"TLS");
        self.stream = Stream::Tls(Box::new(StreamOwned::new(connection, socket)));
        true
    }

    /// Sends bytes; `false` if the client has closed.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        self.note("S:", bytes);
        let stream: &mut dyn Write = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.as_mut(),
            Stream::Gone => return false,
        };
        stream.write_all(bytes).and_then(|()| stream.flush()).is_ok()
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        let stream: &mut dyn Read = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.as_mut(),
            Stream::Gone => return false,
        };
        let n = stream.read(&mut chunk).unwrap_or(0);
        self.buffer.extend_from_slice(&chunk[..n]);
        n > 0
    }

    /// A line without its line end; `None` if the client has closed.
    pub(crate) fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                self.note("C:", &line);
                return Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Reads exactly `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < n {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buffer.drain(..n).collect())
    }

    /// A command: its tag and the rest, with literals requested and inserted as quoted strings.
    pub(crate) fn command(&mut self) -> Option<(String, String)> {
        let mut line = self.line()?;
        while let Some(size) = literal_size(&line) {
            if !line.ends_with("+}") && !self.send("+ go on\r\n") {
                return None;
            }
            line.truncate(line.rfind('{')?);
            let literal = self.bytes(size)?;
            line.push_str(&format!("\"{}\"", String::from_utf8_lossy(&literal)));
            line.push_str(&self.line()?);
        }
        let (tag, rest) = line.split_once(' ')?;
        Some((tag.to_owned(), rest.to_owned()))
    }

    /// Answers CAPABILITY and ID until a login arrives and returns its tag without answering it.
    pub(crate) fn take_login(&mut self) -> Option<String> {
        use base64::Engine as _;
        loop {
            let (tag, command) = self.command()?;
            let words: Vec<&str> = command.split(' ').collect();
            match words[0].to_ascii_uppercase().as_str() {
                "CAPABILITY" => {
                    self.send(format!("* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\n{tag} OK done\r\n"));
                }
                "AUTHENTICATE" => {
                    let response = match words.get(2) {
                        Some(initial) => (*initial).to_owned(),
                        None => {
                            self.send("+ \r\n");
                            self.line()?
                        }
                    };
                    let message = base64::engine::general_purpose::STANDARD.decode(response).unwrap_or_default();
                    let _ = self.logins.send(String::from_utf8_lossy(&message).into_owned());
                    return Some(tag);
                }
                "LOGIN" => {
                    let _ = self.logins.send(words[1..].join(" "));
                    return Some(tag);
                }
                _ => {
                    self.send(format!("{tag} OK done\r\n"));
                }
            }
        }
    }

    /// As [`Peer::take_login`], answered with OK.
    pub(crate) fn accept_login(&mut self) -> Option<String> {
        let tag = self.take_login()?;
        self.send(format!("{tag} OK [CAPABILITY IMAP4rev1 SCRIPTED] welcome\r\n")).then_some(tag)
    }

    /// Answers every command with OK and its own text, until the client closes.
    pub(crate) fn reply_to_everything(&mut self) {
        while let Some((tag, command)) = self.command() {
            let end = command.eq_ignore_ascii_case("LOGOUT");
            if !self.send(format!("{tag} OK did {command}\r\n")) || end {
                return;
            }
        }
    }

    /// Removes the read timeout: a session may be silent for minutes.
    fn wait_indefinitely(&self) {
        let socket = match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => &stream.sock,
            Stream::Gone => return,
        };
        socket.set_read_timeout(None).unwrap();
    }

    /// Reads until the client closes.
    pub(crate) fn wait_for_end(&mut self) {
        while self.fill() {
            self.buffer.clear();
        }
    }

    /// Closes the sending direction and keeps the other open.
    pub(crate) fn half_close(&mut self) {
        match &mut self.stream {
            Stream::Plain(socket) => drop(socket.shutdown(std::net::Shutdown::Write)),
            Stream::Tls(stream) => {
                stream.conn.send_close_notify();
                let _ = stream.flush();
                let _ = stream.sock.shutdown(std::net::Shutdown::Write);
            }
            Stream::Gone => {}
        }
        self.note("S:", b"(end)");
    }

    /// Breaks the connection with a RST.
    pub(crate) fn reset(&mut self) {
        self.note("S:", b"(reset)");
        let socket = match std::mem::replace(&mut self.stream, Stream::Gone) {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.sock,
            Stream::Gone => return,
        };
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A port where connecting gets no reply: its accept queue is full.
pub(crate) struct BlackHole {
    _socket: socket2::Socket,
    _queue: Vec<TcpStream>,
    pub(crate) port: u16,
}

impl BlackHole {
    pub(crate) fn open() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queue.push(stream);
        }
        Self { _socket: socket, _queue: queue, port: address.port() }
    }
}

/// The operation of a request to a [`ScriptedLdap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A bind.
    Bind,
    /// A search.
    Search,
    /// Any other operation, by its BER tag.
    Other(u8),
}

/// A directory without TLS whose replies come from a script.
pub(crate) struct ScriptedLdap {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl ScriptedLdap {
    /// The script gets each request (the connection's number from 1, the operation, the message
    /// id, the whole request) and returns what to send, or `None` to close.
    pub(crate) fn start(
        script: impl Fn(usize, Operation, u8, &[u8]) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                let script = Arc::clone(&script);
                std::thread::spawn(move || {
                    while let Some(request) = read_message(&mut socket) {
                        let (id, operation) = match request.get(..4) {
                            Some(&[2, 1, id, 0x60]) => (id, Operation::Bind),
                            Some(&[2, 1, id, 0x63]) => (id, Operation::Search),
                            Some(&[2, 1, id, tag]) => (id, Operation::Other(tag)),
                            _ => return,
                        };
                        match script(number, operation, id, &request) {
                            Some(answer) if socket.write_all(&answer).is_ok() => {}
                            _ => return,
                        }
                    }
                });
            }
        });
        Self { port, connections }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    /// The number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads one BER sequence and returns its content.
fn read_message(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = [0; 2];
    socket.read_exact(&mut head).ok()?;
    let mut length = usize::from(head[1]);
    if length > 0x80 {
        let mut bytes = vec![0; length - 0x80];
        socket.read_exact(&mut bytes).ok()?;
        length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    }
    let mut content = vec![0; length];
    socket.read_exact(&mut content).ok()?;
    Some(content)
}

/// BER: a tag, a length and a content.
pub(crate) fn ber(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let mut bytes = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => bytes.push(short),
        _ => {
            bytes.push(0x82);
            bytes.extend(u16::try_from(content.len()).expect("a short answer").to_be_bytes());
        }
    }
    bytes.extend(content);
    bytes
}

/// An LDAPMessage around an operation.
pub(crate) fn ldap_message(id: u8, operation: &[u8]) -> Vec<u8> {
    ber(0x30, &[&[2, 1, id], operation])
}

/// An LDAPResult: 0x61 answers a bind, 0x65 ends a search.
pub(crate) fn ldap_result(id: u8, tag: u8, code: u8) -> Vec<u8> {
    let referral = match code {
        10 => ber(0xa3, &[&ber(4, &[b"ldap://127.0.0.1:1/"])]),
        _ => vec![],
    };
    ldap_message(id, &ber(tag, &[&[10, 1, code, 4, 0, 4, 0], &referral]))
}

/// A SearchResultEntry with one value for each attribute.
pub(crate) fn ldap_entry(id: u8, dn: &str, attributes: &[(&str, &str)]) -> Vec<u8> {
    let attributes: Vec<u8> = attributes
        .iter()
        .flat_map(|(name, value)| {
            ber(0x30, &[&ber(4, &[name.as_bytes()]), &ber(0x31, &[&ber(4, &[value.as_bytes()])])])
        })
        .collect();
    ldap_message(id, &ber(0x64, &[&ber(4, &[dn.as_bytes()]), &ber(0x30, &[&attributes])]))
}

/// A SearchResultReference, as Active Directory sends them with every answer.
pub(crate) fn ldap_reference(id: u8) -> Vec<u8> {
    ldap_message(id, &ber(0x73, &[&ber(4, &[b"ldap://elsewhere.example.com/dc=elsewhere"])]))
}
