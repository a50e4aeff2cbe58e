//! Cases that no real server produces on demand: defects, deadlines and the shutdown, over real
//! sockets, with a dialogue of one line and a scripted directory.

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{TcpListener, tcp};

use super::*;
use crate::backend::capabilities::AdvertisedCapabilities;
use crate::base::credential::CredentialSecret;
use crate::base::secret::Secret;
use crate::config;
use crate::config_files::Fingerprint;
use crate::directory::memory::{Memory, MemoryFault};
use crate::directory::{Directory, Entry};
use crate::limits::Shares;
use crate::login::attempt::ATTEMPT_TIMEOUT;
use crate::login::core::{Backends, LoginCore};
use crate::login::realms::Realms;
use crate::outcome::AccountState;
use crate::proto::{self, Back, BackSettings, ClientId, Welcome};
use crate::telemetry::metrics::Metrics;
use crate::tls;
use crate::token::Tokens;

/// A protocol in which a line is a login, and the word `defect` causes a defect.
static ONE_LINE: Protocol = Protocol {
    name: "imap",
    alpn: None,
    alpn_to_backends: false,
    implicit_port: 0,
    starttls_port: 0,
    ehlo: false,
    usual: &[],
    advertised: |_| false,
    forward_method: None,
    front: one_line,
    back: no_back,
    client: proto::ClientCommands { before: "", after: "", logout: "" },
    closing_line: proto::ClosingLine::Close,
    follows_moves: true,
    nginx: None,
};

struct OneLine;

fn one_line(_: FrontSettings<'_>) -> Box<dyn Front> {
    Box::new(OneLine)
}

fn no_back(_: BackSettings) -> Box<dyn Back> {
    unreachable!("no login of these tests reaches a backend")
}

impl Front for OneLine {
    fn greet(&mut self, out: &mut SecretBuf) {
        out.extend(b"hello\n");
    }

    fn step(&mut self, input: &mut SecretBuf, _: &mut SecretBuf) -> Step {
        let Some(end) = input.as_slice().iter().position(|byte| *byte == b'\n') else {
            return Step::NeedMore;
        };
        let login = input.as_slice()[..end].to_vec();
        input.consume(end + 1);
        assert_ne!(login, b"defect", "a defect of the dialogue");
        Step::Attempt(Credentials {
            login,
            secret: CredentialSecret::Password(Secret::copy_of(b"sesame")),
            authzid: Vec::new(),
        })
    }

    fn tls_started(&mut self) {}

    fn refused(&mut self, reply: &Reply, out: &mut SecretBuf) {
        out.extend(format!("refused {reply:?}\n").as_bytes());
    }

    fn accepted(&mut self, _: &Welcome, _: &mut SecretBuf) {}

    fn bye(&mut self, reply: &Reply, out: &mut SecretBuf) {
        out.extend(format!("bye {reply:?}\n").as_bytes());
    }

    fn client_id(&self) -> Option<&ClientId> {
        None
    }
}

/// Panics for `panic`, never answers `silence`; `alice` and `locked` have the password that every line sends.
fn users() -> Arc<Memory> {
    let memory = Memory::new();
    for login in ["panic", "silence", "alice", "locked"] {
        memory.add(login, "sesame", Entry::for_tests(&format!("uid={login}"), &["elsewhere"]));
    }
    memory.set_fault("panic", MemoryFault::Panic);
    memory.set_fault("silence", MemoryFault::Silence);
    memory.set_state("locked", AccountState::Locked, false);
    memory
}

struct Door {
    directory: Arc<Memory>,
    shared: Arc<Shared>,
    listener: TcpListener,
}

impl Door {
    async fn open(limits: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(folder.path().join("chain.pem"), certificate.cert.pem()).unwrap();
        let key = folder.path().join("key.pem");
        std::fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let text = format!(
            "listeners: [{{protocol: imap, address: '127.0.0.1:0', tls: starttls}}]
tls: {{certificates: [{{chain: chain.pem, key: key.pem}}]}}
directory: {{servers: ['ldap://127.0.0.1:9'], base: dc=example, filter: '(uid={{login}})'}}
routing: {{backends: [{{name: server3, ca: chain.pem, imap: {{address: '127.0.0.1:9', tls: implicit}}}}]}}
limits: {{{limits}}}
"
        );
        let config = config::parse(&folder.path().join("config.yaml"), &text).unwrap();
        let metrics = Arc::new(Metrics::new());
        let directory = users();
        let realms = Realms::new(&config, vec![Arc::clone(&directory) as Arc<dyn Directory>], None);
        let tokens = Tokens::new(&[], Vec::new(), &metrics, None).into();
        let snapshot = Snapshot {
            host: "usher.example.com".into(),
            tls: tls::server::ServerTls::build(&config.tls, &config.listeners, &config.place).unwrap(),
            offers: AdvertisedCapabilities::new(&[], &[], &metrics, None),
            auth_http_key: None,
            fleet: None,
            fingerprint: Fingerprint::of(&config),
            core: Arc::new(LoginCore {
                config,
                realms,
                tokens,
                token_hints: Arc::default(),
                backends: Backends::default(),
                shares: Shares::default(),
            }),
        };
        let log = crate::telemetry::log::unread();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { directory, shared: Shared::new(snapshot, metrics, log), listener }
    }

    async fn client(&self) -> Client {
        let (client, accepted) =
            tokio::join!(TcpStream::connect(self.listener.local_addr().unwrap()), self.listener.accept());
        let (tcp, address) = accepted.unwrap();
        let permit = self.shared.permit(10).unwrap();
        let listener = Arc::new(config::Listener {
            protocol: &ONE_LINE,
            address,
            tls: ListenerTls::StartTls,
            mechanisms: None,
            proxies: None,
            socket: None,
            clients: self.shared.snapshot.load().config.tls.clients(),
            client_login: None,
        });
        let (local, since) = (self.listener.local_addr().unwrap(), Instant::now());
        let accepted = Accepted { tcp, client: address, local, since, listener, over_ipv4: false, permit };
        let serving = serve(Arc::clone(&self.shared), accepted);
        // Each connection has one, before the login too.
        assert!(size_of_val(&serving) < 8 * 1024, "{} bytes", size_of_val(&serving));
        tokio::spawn(serving);
        let (reader, writer) = client.unwrap().into_split();
        let mut client = Client { reader: BufReader::new(reader), writer };
        client.hears("hello\n").await;
        client
    }

    fn parted(&self, cause: CloseReason) -> u64 {
        self.shared.metrics.prelogin_ended.at("imap", cause).get()
    }
}

struct Client {
    reader: BufReader<tcp::OwnedReadHalf>,
    writer: tcp::OwnedWriteHalf,
}

impl Client {
    async fn says(&mut self, line: &str) {
        self.writer.write_all(line.as_bytes()).await.unwrap();
    }

    async fn hears(&mut self, expected: &str) {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        timeout(Duration::from_secs(20), read).await.expect("an answer in time").unwrap();
        assert_eq!(line, expected);
    }

    /// Nothing more arrives, and nothing more is sent.
    async fn hears_the_end(mut self) {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(20), self.reader.read_to_end(&mut rest)).await.expect("an end in time").unwrap();
        assert_eq!(rest, b"");
    }
}

#[tokio::test]
async fn defect_after_the_dialogue_is_reported_and_the_connection_continues() {
    let door = Door::open("").await;
    let mut client = door.client().await;
    client.says("panic\n").await;
    client.hears("refused ServerBug\n").await;
    client.says("missing\n").await;
    client.hears("refused AuthenticationFailed\n").await;
}

#[tokio::test]
async fn defect_in_the_dialogue_ends_only_its_connection() {
    let door = Door::open("").await;
    let (mut victim, mut neighbour) = (door.client().await, door.client().await);
    victim.says("defect\n").await;
    victim.hears_the_end().await;
    neighbour.says("missing\n").await;
    neighbour.hears("refused AuthenticationFailed\n").await;
    assert_eq!(door.parted(CloseReason::Panic), 1);
    assert_eq!(door.shared.metrics.connections.get(), 1, "its slot is free again");
}

#[tokio::test]
async fn idle_client_gets_a_bye() {
    let door = Door::open("login_timeout: 200ms").await;
    let mut client = door.client().await;
    client.hears("bye TimedOut\n").await;
    client.hears_the_end().await;
    door.shared.connections_closed().await;
    assert_eq!(door.parted(CloseReason::Deadline), 1);
}

#[tokio::test]
async fn slow_bytes_do_not_extend_the_deadline() {
    let door = Door::open("login_timeout: 500ms").await;
    let mut client = door.client().await;
    let began = Instant::now();
    let dripping = async {
        while client.writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), dripping).await.expect("the connection is closed");
    door.shared.connections_closed().await;
    assert!(began.elapsed() >= Duration::from_millis(400));
    assert_eq!(door.parted(CloseReason::Deadline), 1);
}

#[tokio::test(start_paused = true)]
async fn silent_directory_is_an_outage_within_ten_seconds() {
    let door = Door::open("").await;
    let mut client = door.client().await;
    let began = Instant::now();
    client.says("silence\n").await;
    client.hears("refused TimedOut\n").await;
    assert!(began.elapsed() <= ATTEMPT_TIMEOUT + Duration::from_secs(1));
    client.says("missing\n").await;
    client.hears("refused AuthenticationFailed\n").await;
}

#[tokio::test]
async fn guessing_connection_ends_after_the_configured_failures() {
    let door = Door::open("failed_logins: 2, refusal_delay: 50ms").await;
    let mut client = door.client().await;
    let began = Instant::now();
    client.says("missing\n").await;
    client.hears("refused AuthenticationFailed\n").await;
    assert!(began.elapsed() >= Duration::from_millis(50), "the reply for an unknown name must be delayed");
    client.says("missing\n").await;
    client.hears("refused AuthenticationFailed\n").await;
    client.hears("bye Limit\n").await;
    client.hears_the_end().await;
    door.shared.connections_closed().await;
    assert_eq!(door.parted(CloseReason::FailedLogins), 1);
}

#[tokio::test]
async fn invalid_names_and_authzids_are_refused_before_the_directory() {
    let door = Door::open("refusal_delay: 0s").await;
    let mut client = door.client().await;
    for unusable in ["\u{1}\n", "\n"] {
        client.says(unusable).await;
        client.hears("refused AuthenticationFailed\n").await;
    }
}

#[tokio::test]
async fn account_that_is_locked_gets_the_reply_of_a_wrong_password() {
    let door = Door::open("refusal_delay: 0s").await;
    let mut client = door.client().await;
    client.says("locked\n").await;
    client.hears("refused AuthenticationFailed\n").await;
    assert_eq!(door.directory.binds(), 1);
}

#[tokio::test]
async fn user_without_a_backend_is_refused_after_one_bind() {
    let door = Door::open("refusal_delay: 0s").await;
    let mut client = door.client().await;
    for _ in 0..2 {
        client.says("alice\n").await;
        let mut line = String::new();
        timeout(Duration::from_secs(10), client.reader.read_line(&mut line)).await.unwrap().unwrap();
        assert!(line.starts_with("refused ") && line != "refused AuthenticationFailed\n", "{line}");
    }
    assert_eq!(door.directory.binds(), 1, "the second login is served from the cache");
}

#[tokio::test]
async fn outage_of_the_directory_is_a_temporary_failure_for_every_user() {
    let door = Door::open("refusal_delay: 0s").await;
    door.directory.set_outage(true);
    let mut client = door.client().await;
    for login in ["alice\n", "missing\n"] {
        client.says(login).await;
        let mut line = String::new();
        timeout(Duration::from_secs(10), client.reader.read_line(&mut line)).await.unwrap().unwrap();
        assert_ne!(line, "refused AuthenticationFailed\n", "{login}");
    }
}

#[tokio::test]
async fn drain_sends_bye_to_unauthenticated_clients() {
    let door = Door::open("refusal_delay: 0s").await;
    let mut client = door.client().await;
    door.shared.stage.send_replace(Stage::Leaving);
    client.says("missing\n").await;
    client.hears("refused AuthenticationFailed\n").await;
    door.shared.stage.send_replace(Stage::Draining);
    client.hears("bye ShuttingDown\n").await;
    client.hears_the_end().await;
    door.shared.connections_closed().await;
}

#[tokio::test]
async fn connections_over_the_limit_are_refused() {
    let door = Door::open("").await;
    let places: Vec<_> = (0..10).map(|_| door.shared.permit(10)).collect();
    assert!(places.iter().all(Option::is_some));
    assert!(door.shared.permit(10).is_none());
    drop(places);
    assert!(door.shared.permit(10).is_some());
    door.shared.connections_closed().await;
    assert_eq!(door.shared.metrics.connections.get(), 0);
}
