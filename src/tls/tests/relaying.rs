//! TLS after the login: records in any fragmentation, key updates, late tickets, data sent
//! with the handshake, every kind of close; against rustls and against openssl's own tools.

use rustls::sign::SingleCertAndKey;
use rustls::{ClientConnection, Connection, ServerConfig, ServerConnection, SupportedProtocolVersion, version};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream, duplex};
use tokio::process::{Child, Command};

use super::*;
use crate::tls::{certificate, provider};

const NAME: &str = "server3.example.com";
const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

/// Moves pending output of one side to the other, in memory.
fn carry(from: &mut Connection, to: &mut Connection) -> usize {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().unwrap();
    }
    wire.len()
}

/// Two ends of a connection, before the handshake.
struct Ends {
    client: Connection,
    server: Connection,
}

impl Ends {
    fn new(desk: &Desk, config: &Arc<ClientConfig>, version: &'static SupportedProtocolVersion) -> Self {
        let loaded = certificate::load(&desk.ecdsa("one", &[NAME]), "tls").unwrap();
        let builder = ServerConfig::builder_with_provider(provider(&DEFAULT_GROUPS, None));
        let builder = builder.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
        let server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(loaded.certified)));
        Self {
            client: ClientConnection::new(Arc::clone(config), NAME.try_into().unwrap()).unwrap().into(),
            server: ServerConnection::new(Arc::new(server)).unwrap().into(),
        }
    }

    /// A finished handshake.
    fn shaken(version: &'static SupportedProtocolVersion) -> Self {
        let desk = Desk::new();
        let mut ends = Self::new(&desk, &desk.client().prepare().unwrap(), version);
        while carry(&mut ends.client, &mut ends.server) + carry(&mut ends.server, &mut ends.client) > 0 {}
        assert!(!ends.client.is_handshaking() && !ends.server.is_handshaking());
        ends
    }

    /// Both as streams over a pipe of this size.
    fn streams(self, pipe: usize) -> (Reading<DuplexStream>, Reading<DuplexStream>) {
        let (near, far) = duplex(pipe);
        (Stream::under_tls(near, self.client).into(), Stream::under_tls(far, self.server).into())
    }
}

fn pattern(seed: u32, length: u32) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(seed) >> 13) as u8).collect()
}

/// Sends `words` and reads everything from the other side.
async fn speak(stream: impl AsyncRead + AsyncWrite, words: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut heard = Vec::new();
    let say = async {
        writer.write_all(words).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (_, heard_all) = tokio::join!(say, reader.read_to_end(&mut heard));
    heard_all.unwrap();
    heard
}

#[tokio::test]
async fn records_split_at_any_byte_and_many_in_one_read_arrive_whole() {
    for version in VERSIONS {
        for (pipe, length) in [(1, 3_000), (7, 20_000), (4_097, 300_000), (1 << 20, 1_000_000)] {
            let (near, far) = Ends::shaken(version).streams(pipe);
            let (up, down) = (pattern(77_777, length), pattern(99_991, length));
            let (at_client, at_server) = tokio::join!(speak(near, &up), speak(far, &down));
            assert!(at_client == down && at_server == up, "{version:?} in pieces of {pipe}");
        }
    }
}

#[tokio::test]
async fn data_sent_with_the_handshake_is_read_first() {
    for version in VERSIONS {
        let mut ends = Ends::shaken(version);
        std::io::Write::write_all(&mut ends.client.writer(), b"a1 LOGIN").unwrap();
        carry(&mut ends.client, &mut ends.server);
        let (mut near, mut far) = ends.streams(4_096);
        let mut heard = [0; 8];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"a1 LOGIN");
        tell(&mut near, b"a2 NOOP").await;
        far.read_exact(&mut heard[..7]).await.unwrap();
        assert_eq!(&heard[..7], b"a2 NOOP");
    }
}

#[tokio::test]
async fn key_update_is_followed_and_answered_with_the_next_bytes() {
    let mut ends = Ends::shaken(&version::TLS13);
    let (mut wire, far) = duplex(4_096);
    let mut stream = Reading::from(Stream::under_tls(far, ends.server));
    for word in [b"one", b"two", b"six"] {
        // It requests an update in return; rustls answers before its next data (RFC 8446 section 4.6.3).
        ends.client.refresh_traffic_keys().unwrap();
        let mut asked = Vec::new();
        ends.client.write_tls(&mut asked).unwrap();
        wire.write_all(&asked).await.unwrap();
        let early = timeout(Duration::from_millis(10), stream.read_u8()).await;
        assert!(early.is_err(), "it is no data");
        // Both directions continue under the new keys.
        std::io::Write::write_all(&mut ends.client.writer(), word).unwrap();
        let mut said = Vec::new();
        ends.client.write_tls(&mut said).unwrap();
        wire.write_all(&said).await.unwrap();
        let mut heard = [0; 3];
        stream.read_exact(&mut heard).await.unwrap();
        tell(&mut stream, &heard).await;
        let mut echo = vec![0; 4_096];
        let taken = wire.read(&mut echo).await.unwrap();
        ends.client.read_tls(&mut &echo[..taken]).unwrap();
        ends.client.process_new_packets().unwrap();
        std::io::Read::read_exact(&mut ends.client.reader(), &mut heard).unwrap();
        assert_eq!(&heard, word);
    }
}

#[tokio::test]
async fn late_tickets_are_kept_for_the_next_handshake() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![desk.ecdsa("one", &[NAME])]));
    let client = desk.client().prepare().unwrap();
    let (near, far) = shake(&server, &client, NAME).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    // The client has read nothing before, so the tickets are still unread.
    tell(&mut far, b"* OK\r\n").await;
    assert_eq!(hear(&mut near).await.unwrap(), b"* OK\r\n");
    assert!(shake(&server, &client, NAME).await.0.unwrap().resumed());
}

#[tokio::test]
async fn directions_close_separately_and_a_missing_close_notify_is_a_close() {
    for version in VERSIONS {
        let (mut near, mut far) = Ends::shaken(version).streams(4_096);
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "close_notify is an end");
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "and stays one");
        tell(&mut far, b"* BYE\r\n").await;
        let mut last = [0; 7];
        near.read_exact(&mut last).await.unwrap();
        assert_eq!(&last, b"* BYE\r\n");
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);

        let (near, mut far) = Ends::shaken(version).streams(4_096);
        drop(near);
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "so is a FIN without it");
    }
}

#[tokio::test]
async fn data_after_a_close_is_ignored_and_a_forged_record_is_reported_and_refused() {
    for version in VERSIONS {
        let mut ends = Ends::shaken(version);
        std::io::Write::write_all(&mut ends.client.writer(), b"first").unwrap();
        ends.client.send_close_notify();
        let mut wire = Vec::new();
        while ends.client.wants_write() {
            ends.client.write_tls(&mut wire).unwrap();
        }
        wire.extend_from_slice(b"\x17\x03\x03\x00\x05forge");
        let (mut near, far) = duplex(4_096);
        near.write_all(&wire).await.unwrap();
        let mut heard = Vec::new();
        Reading::from(Stream::under_tls(far, ends.server)).read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"first");

        let mut ends = Ends::shaken(version);
        let (mut near, far) = duplex(4_096);
        near.write_all(b"\x17\x03\x03\x00\x20forged forged forged forged forge").await.unwrap();
        let mut stream = Reading::from(Stream::under_tls(far, ends.server));
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut alert = vec![0; 4_096];
        let taken = near.read(&mut alert).await.unwrap();
        ends.client.read_tls(&mut &alert[..taken]).unwrap();
        let text = ends.client.process_new_packets().unwrap_err().to_string();
        assert!(text.contains("BadRecordMac"), "{text}");
    }
}

#[tokio::test]
async fn peer_that_reads_nothing_blocks_the_writer() {
    let (mut near, mut far) = Ends::shaken(&version::TLS13).streams(1_000);
    let words = pattern(31, 50_000);
    // The first write is accepted completely; only what fits into the pipe has been sent.
    assert_eq!(near.write(&words).await.unwrap(), words.len());
    let second = timeout(Duration::from_millis(50), near.write(b"more")).await;
    assert!(second.is_err(), "nothing more is taken until the first is sent");
    let mut heard = vec![0; words.len()];
    let (read, sent) = tokio::join!(far.read_exact(&mut heard), near.flush());
    assert!(read.is_ok() && sent.is_ok() && heard == words);
}

fn openssl(desk: &Desk, arguments: &str) -> Child {
    let mut openssl = Command::new("openssl");
    openssl.args(arguments.split_whitespace()).current_dir(desk.dir.path()).kill_on_drop(true);
    openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads until this line has arrived.
async fn wait_for(reader: &mut (impl tokio::io::AsyncBufRead + Unpin), expected: &str) {
    let mut line = Vec::new();
    let find = async {
        while !String::from_utf8_lossy(&line).contains(expected) {
            line.clear();
            let taken = tokio::io::AsyncBufReadExt::read_until(reader, b'\n', &mut line).await.unwrap();
            assert!(taken > 0, "{expected:?} never came");
        }
    };
    timeout(DEADLINE, find).await.unwrap_or_else(|_| panic!("{expected:?} did not come in time"));
}

#[tokio::test]
async fn openssl_client_updates_its_keys_and_closes() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![desk.ecdsa("one", &[NAME])]));
    for version in ["-tls1_3", "-tls1_2"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = openssl(&desk, &format!("s_client -CAfile ca.pem {version} -connect {address}"));
        let (mut say, hear) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let mut hear = BufReader::new(hear);
        let mut text = BufReader::new(client.stderr.take().unwrap());
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(Reading::from(server.accept(tcp).await.unwrap()));
        // `K` updates its keys and requests the same from usher (TLS 1.3).
        let commands: &[&str] = if version == "-tls1_3" { &["K\n", "k\n", "K\n"] } else { &[""] };
        for (round, command) in commands.iter().enumerate() {
            say.write_all(format!("line {round}\n").as_bytes()).await.unwrap();
            wait_for(&mut stream, &format!("line {round}")).await;
            say.write_all(command.as_bytes()).await.unwrap();
            if !command.is_empty() {
                // Before the next line is written: a command is recognized only at the start of a read.
                wait_for(&mut text, "KEYUPDATE").await;
            }
            tell(&mut stream, format!("echo {round}\n").as_bytes()).await;
            wait_for(&mut hear, &format!("echo {round}")).await;
        }
        say.write_all(b"Q\n").await.unwrap();
        let mut rest = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "", "its end is an end");
    }
}

#[tokio::test]
async fn openssl_server_sends_late_tickets_and_accepts_bulk_data() {
    let desk = Desk::new();
    desk.ecdsa("one", &[NAME]);
    for version in ["-tls1_3", "-tls1_2"] {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Echoes each line reversed.
        let mut server = openssl(&desk, &format!("s_server -rev -cert one.pem -key one.key {version} -accept {port}"));
        wait_for(&mut BufReader::new(server.stdout.take().unwrap()), "ACCEPT").await;
        let client = desk.client().prepare().unwrap();
        for resumed in [false, true] {
            let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let stream = connect(&client, NAME.try_into().unwrap(), tcp).await.unwrap();
            assert_eq!(stream.resumed(), resumed, "{version}");
            let mut stream = BufReader::new(Reading::from(stream));
            for length in [1, 100, 12_000] {
                let line = "x".repeat(length) + "y";
                tell(&mut stream, format!("{line}\n").as_bytes()).await;
                wait_for(&mut stream, &format!("y{}", "x".repeat(length))).await;
            }
            stream.shutdown().await.unwrap();
        }
    }
}
