//! The directory against scripted servers, over real sockets.
#![allow(clippy::wildcard_enum_match_arm)] // a test names what it expects; the rest is a failure

use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ldap3_proto::proto::LdapOp;
use ldap3_proto::{LdapFilter, LdapResultCode as Code, LdapSearchScope};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use super::policy::Said;
use super::scripted::{Reply, Scripted, Seen, alice, bound, bound_with, done, entry, extended, first, reference};
use super::server::{Failure, Tuning};
use super::{Directory, DirectoryError, Entry, Identity, Ldap, Login, Marks, Presence, Trace, Trouble};
use crate::config::{
    self, Balance, Canary, Connections, DirectoryServer, Find, LdapScheme, ServiceAccount, Template, TemplatePart,
};
use crate::metrics::Metrics;
use crate::outcome::AccountState;
use crate::secret::Secret;

/// No test lasts longer.
const TEST_TIME: Duration = Duration::from_secs(20);

fn text(text: &str) -> TemplatePart {
    TemplatePart::Text(text.to_owned())
}

fn searching(service: Option<ServiceAccount>) -> Find {
    let parts = vec![text("(uid="), TemplatePart::Login, text(")")];
    Find::Search { service, base: "dc=x".to_owned(), filter: Template { parts } }
}

fn templated(service: Option<ServiceAccount>) -> Find {
    let parts = vec![text("uid="), TemplatePart::Local, text(",dc=x")];
    Find::UserDn { template: Template { parts }, service }
}

fn settings(servers: Vec<DirectoryServer>, find: Find) -> config::Directory {
    config::Directory {
        servers,
        starttls: false,
        ca: None,
        client_certificate: None,
        plaintext: true,
        find,
        mail_host_attribute: "mailHost".to_owned(),
        login_attribute: Some("uid".to_owned()),
        allow: config::Allow::default(),
        timeout: Duration::from_secs(5),
        attempt_timeout: Duration::from_millis(1_200),
        balance: Balance::First,
        connections: Connections {
            min: 0,
            max: 4,
            idle: Duration::from_secs(30),
            age: Duration::from_secs(1_800),
            operations: 100_000,
        },
        canary: None,
        reveal_account_state: false,
        watch: config::Watch::off(),
        results: [(19, AccountState::Locked)].into(),
    }
}

/// A directory under test, with the numbers it keeps.
struct Under {
    ldap: Ldap,
    metrics: Arc<Metrics>,
}

impl Under {
    fn test(settings: &config::Directory, tuning: Tuning) -> Self {
        let metrics = Arc::new(Metrics::new());
        Self { ldap: Ldap::tuned(settings, None, metrics.clone(), tuning), metrics }
    }

    fn new(servers: &[&Scripted], find: Find) -> Self {
        let servers = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
        Self::test(&settings(servers, find), Tuning::default())
    }

    async fn login(&self, login: &str, password: &str) -> (Result<Identity, DirectoryError>, Trace) {
        let login = Login::parse(login.as_bytes()).unwrap();
        let password = Secret::copy_of(password.as_bytes());
        within(self.ldap.authenticate(&login, &password, &|_| false)).await
    }

    async fn alice(&self) -> Result<Identity, DirectoryError> {
        self.login("alice", "right").await.0
    }

    async fn look_up(&self, login: &str) -> (Result<Entry, DirectoryError>, Trace) {
        let login = Login::parse(login.as_bytes()).unwrap();
        within(self.ldap.look_up(&login)).await
    }

    fn count(&self, server: &Scripted, operation: &str, code: &str) -> u64 {
        let url = format!("ldap://127.0.0.1:{}", server.port);
        self.metrics.directory_operations.with_label_values(&[url.as_str(), operation, code]).get()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIME, future).await.expect("the test's own deadline")
}

/// Waits for an event that has no signal of its own.
async fn until(what: impl Fn() -> bool) {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn trouble(result: Result<impl std::fmt::Debug, DirectoryError>) -> Trouble {
    match result {
        Err(DirectoryError::CannotTell(trouble)) => trouble,
        other => panic!("{other:?}"),
    }
}

fn code(result: Result<impl std::fmt::Debug, DirectoryError>) -> (&'static str, u32) {
    match trouble(result) {
        Trouble::Result { operation, code, .. } => (operation, code),
        other => panic!("{other:?}"),
    }
}

fn is_search(seen: &Seen) -> bool {
    seen.base().is_some()
}

fn is_bind(seen: &Seen) -> bool {
    seen.bind().is_some()
}

fn anything(_: &Seen) -> bool {
    true
}

#[tokio::test]
async fn a_search_and_a_bind_make_an_identity() {
    let server = Scripted::start(alice).await;
    let under = Under::new(&[&server], searching(None));
    let (identity, trace) = under.login("alice", "right").await;
    let identity = identity.unwrap();
    assert_eq!(&*identity.entry().dn, "uid=alice,dc=x");
    assert_eq!(identity.entry().mail_hosts, ["server3"]);
    assert_eq!(identity.entry().logins, ["alice"]);
    assert_eq!(trace.server.as_deref(), Some(&*format!("ldap://127.0.0.1:{}", server.port)));
    assert_eq!(trace.code, Some(0));
    assert!(trace.search.is_some() && trace.bind.is_some());

    let seen = server.seen();
    let LdapOp::SearchRequest(request) = &seen[0].op else { panic!("{seen:?}") };
    assert_eq!(request.base, "dc=x");
    assert_eq!(request.scope, LdapSearchScope::Subtree);
    assert_eq!(request.filter, LdapFilter::Equality("uid".to_owned(), "alice".to_owned()));
    let watched: Vec<String> =
        settings(Vec::new(), searching(None)).watched().into_iter().map(|(name, _)| name).collect();
    assert_eq!(request.attrs, watched);
    assert_eq!((request.sizelimit, request.timelimit, request.typesonly), (2, 2, false));
    // Anonymous: nobody was bound before the search, and the bind has a connection of its own.
    assert_eq!(server.binds(), [(1, "uid=alice,dc=x".to_owned(), "right".to_owned())]);
    assert_eq!(under.count(&server, "search", "0"), 1);
    assert_eq!(under.count(&server, "bind", "0"), 1);
    assert_eq!(under.count(&server, "connect", "0"), 2);
}

#[tokio::test]
async fn a_bind_and_a_read_make_an_identity() {
    let server = Scripted::start(alice).await;
    let under = Under::new(&[&server], templated(None));
    let (identity, trace) = under.login("alice@example.com", "right").await;
    assert_eq!(identity.unwrap().entry().mail_hosts, ["server3"]);
    assert!(trace.search.is_some() && trace.bind.is_some());
    let seen = server.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(seen[0].bind(), Some(("uid=alice,dc=x", "right")));
    let LdapOp::SearchRequest(request) = &seen[1].op else { panic!("{seen:?}") };
    assert_eq!((request.base.as_str(), request.scope.clone()), ("uid=alice,dc=x", LdapSearchScope::Base));
    assert_eq!(request.filter, LdapFilter::Present("objectClass".to_owned()));
    assert_eq!(seen[1].connection, seen[0].connection, "the entry is read as the user");
}

#[tokio::test]
async fn a_wrong_password_is_wrong_and_leaves_the_connection_in_use() {
    let server = Scripted::start(alice).await;
    for find in [searching(None), templated(None)] {
        let under = Under::new(&[&server], find);
        let (result, trace) = under.login("alice", "wrong").await;
        assert_eq!(
            result,
            Err(DirectoryError::InvalidCredentials { dn: "uid=alice,dc=x".into(), seen: Some(Marks::default()) })
        );
        assert_eq!(trace.code, Some(49));
        let before = server.connections();
        under.alice().await.unwrap();
        assert_eq!(server.connections(), before, "no new connection for the next user");
    }
}

#[tokio::test]
async fn one_bind_on_one_server_answers_for_all() {
    let (one, two) = (Scripted::start(alice).await, Scripted::start(alice).await);
    let under = Under::new(&[&one, &two], searching(None));
    under.login("alice", "wrong").await.0.unwrap_err();
    assert_eq!(one.binds().len(), 1);
    assert_eq!(two.connections(), 0);
}

#[tokio::test]
async fn the_number_of_entries_decides() {
    let one = || entry("uid=alice,dc=x", &[("mailHost", &[b"server3"])]);
    let cases: Vec<(Vec<Reply>, Option<DirectoryError>)> = vec![
        (vec![done(Code::Success)], Some(DirectoryError::NoEntry)),
        (vec![reference(), done(Code::Success)], Some(DirectoryError::NoEntry)),
        (vec![one(), one(), done(Code::Success)], Some(DirectoryError::SeveralEntries)),
        (vec![one(), one(), one(), done(Code::Success)], Some(DirectoryError::SeveralEntries)),
        (vec![one(), one(), done(Code::SizeLimitExceeded)], Some(DirectoryError::SeveralEntries)),
        (vec![one(), done(Code::SizeLimitExceeded)], Some(DirectoryError::SeveralEntries)),
        // Active Directory sends references beside every answer under the root.
        (vec![reference(), one(), reference(), done(Code::Success)], None),
    ];
    for (answer, expected) in cases {
        let server = Scripted::start(first(vec![answer.clone(), answer.clone()], is_search)).await;
        let under = Under::new(&[&server], searching(None));
        assert_eq!(under.look_up("alice").await.0.err(), expected, "{answer:?}");
        assert_eq!(under.alice().await.err(), expected, "{answer:?}");
        assert_eq!(server.binds().len(), usize::from(expected.is_none()), "{answer:?}");
    }
}

#[tokio::test]
async fn a_result_that_is_neither_yes_nor_no_is_not_a_no() {
    let codes = [
        (Code::Referral, 10),
        (Code::NoSuchObject, 32),
        (Code::InvalidDNSyntax, 34),
        (Code::InsufficentAccessRights, 50),
        (Code::Busy, 51),
        (Code::Unavailable, 52),
        (Code::UnwillingToPerform, 53),
        (Code::Other, 80),
    ];
    for (name, number) in codes {
        let searched = name.clone();
        let server = Scripted::start(first(vec![vec![done(searched)]], is_search)).await;
        let under = Under::new(&[&server], searching(None));
        let (result, trace) = under.login("alice", "right").await;
        assert_eq!(code(result), ("search", number));
        assert_eq!(trace.code, Some(number));

        let server = Scripted::start(first(vec![bound(name.clone())], is_bind)).await;
        let under = Under::new(&[&server], searching(None));
        assert_eq!(code(under.alice().await), ("bind", number));
        // A referral carries the password nowhere.
        assert_eq!(server.binds().len(), 1);

        let server = Scripted::start(first(vec![vec![done(name)]], is_search)).await;
        let under = Under::new(&[&server], templated(None));
        assert_eq!(code(under.alice().await), ("read", number));
    }
}

#[tokio::test]
async fn an_entry_that_the_user_may_not_read_is_no_refusal() {
    let server = Scripted::start(first(vec![vec![done(Code::Success)]], is_search)).await;
    let under = Under::new(&[&server], templated(None));
    assert_eq!(code(under.alice().await), ("read", 0));
}

#[tokio::test]
async fn busy_and_unavailable_go_to_the_next_server_once() {
    for name in [Code::Busy, Code::Unavailable, Code::Other] {
        let always = vec![vec![done(name)]; 9];
        let servers = [
            Scripted::start(first(always.clone(), is_search)).await,
            Scripted::start(first(always, is_search)).await,
            Scripted::start(alice).await,
        ];
        let under = Under::new(&[&servers[0], &servers[2]], searching(None));
        assert_eq!(&*under.alice().await.unwrap().entry().dn, "uid=alice,dc=x");
        let under = Under::new(&[&servers[0], &servers[1], &servers[2]], searching(None));
        let before = servers[2].searches().len();
        trouble(under.alice().await);
        assert_eq!(servers[2].searches().len(), before, "two servers are asked, not three");
    }
}

#[tokio::test]
async fn a_bind_that_was_answered_is_no_other_server_s_guess() {
    for name in [Code::Busy, Code::Unavailable, Code::Other] {
        let unsure = Scripted::start(first(vec![bound(name)], is_bind)).await;
        let next = Scripted::start(alice).await;
        let under = Under::new(&[&unsure, &next], searching(None));
        assert!(matches!(trouble(under.alice().await), Trouble::Result { operation: "bind", .. }));
        assert_eq!((unsure.binds().len(), next.binds().len()), (1, 0));
    }
}

#[tokio::test]
async fn user_input_stays_data_on_the_wire() {
    let nobody = |seen: &Seen| match seen.bind() {
        Some(_) => bound(Code::InvalidCredentials),
        None => vec![done(Code::Success)],
    };
    for name in ["*", "*)(uid=*", r"a\2a", "(", r"\", "jürgen", "a b ", "{login}", "uid=*"] {
        let server = Scripted::start(nobody).await;
        let under = Under::new(&[&server], searching(None));
        assert_eq!(under.look_up(name).await.0, Err(DirectoryError::NoEntry), "{name}");
        let LdapOp::SearchRequest(request) = server.seen()[0].op.clone() else { panic!() };
        assert_eq!(request.filter, LdapFilter::Equality("uid".to_owned(), name.to_owned()));
    }
    let under_dn = async |name: &str| {
        let server = Scripted::start(nobody).await;
        let under = Under::new(&[&server], templated(None));
        under.login(name, "x").await.0.unwrap_err();
        server.binds()[0].1.clone()
    };
    assert_eq!(under_dn("alice,ou=admins").await, r"uid=alice\2cou\3dadmins,dc=x");
    assert_eq!(under_dn("a+cn=b").await, r"uid=a\2bcn\3db,dc=x");
    assert_eq!(under_dn(" #x ").await, r"uid=\20#x\20,dc=x");
}

#[tokio::test]
async fn nothing_is_bound_without_name_or_password() {
    let nameless = vec![entry("", &[("mailHost", &[b"server3"])]), done(Code::Success)];
    let server = Scripted::start(first(vec![nameless.clone(), nameless], is_search)).await;
    let under = Under::new(&[&server], searching(None));
    assert!(matches!(trouble(under.alice().await), Trouble::Malformed { .. }));
    for password in ["", "a\0b"] {
        assert!(matches!(trouble(under.login("alice", password).await.0), Trouble::Connection { .. }));
    }
    let login = Login::parse(b"alice").unwrap();
    let latin = Secret::copy_of(b"caf\xe9");
    assert!(matches!(trouble(under.ldap.authenticate(&login, &latin, &|_| false).await.0), Trouble::Connection { .. }));
    assert_eq!(server.binds(), []);
}

#[tokio::test]
async fn a_name_without_a_wanted_part_asks_nothing() {
    let server = Scripted::start(alice).await;
    let parts = vec![text("(mail="), TemplatePart::Local, text("@"), TemplatePart::Domain, text(")")];
    let find = Find::Search { service: None, base: "dc=x".to_owned(), filter: Template { parts } };
    let under = Under::new(&[&server], find);
    for name in ["alice", "alice@", "@x"] {
        assert_eq!(under.login(name, "right").await.0, Err(DirectoryError::NoEntry));
        assert_eq!(under.look_up(name).await.0, Err(DirectoryError::NoEntry));
    }
    assert_eq!(server.connections(), 0);
    let question = |name: &str| under.ldap.question(&Login::parse(name.as_bytes()).unwrap());
    assert_eq!(question("a(@b"), r"search for (mail=a\28@b) under dc=x");
    assert!(question("alice").starts_with("nothing:"));
}

#[tokio::test]
async fn attributes_are_found_by_any_spelling_and_bounded() {
    async fn read(attributes: &[(&str, &[&[u8]])]) -> Result<Entry, DirectoryError> {
        let answer = vec![entry("uid=alice,dc=x", attributes), done(Code::Success)];
        let server = Scripted::start(first(vec![answer], is_search)).await;
        Under::new(&[&server], searching(None)).look_up("alice").await.0
    }
    let entry = read(&[("MAILHOST", &[b"a"]), ("mailhost;lang-de", &[b"b"]), ("Uid", &[b"c"]), ("sn", &[b"d"])]).await;
    let entry = entry.unwrap();
    assert_eq!((entry.mail_hosts, entry.logins), (vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]));

    let entry = read(&[("mailHost", &[b"server3\xff"])]).await.unwrap();
    assert_eq!(entry.mail_hosts, ["server3\u{fffd}"], "not UTF-8 matches nothing");
    assert_eq!(read(&[]).await.unwrap().mail_hosts, Vec::<String>::new());

    let long = vec![b'x'; 1_025];
    assert!(matches!(trouble(read(&[("mailHost", &[&long])]).await), Trouble::Malformed { .. }));
    let many = vec![&b"x"[..]; 65];
    assert!(matches!(trouble(read(&[("uid", &many)]).await), Trouble::Malformed { .. }));
    assert_eq!(read(&[("uid", &many[..64]), ("sn", &many)]).await.unwrap().logins.len(), 64);
}

#[tokio::test]
async fn a_silent_server_costs_one_attempt_and_is_put_aside() {
    let (silent, good) = (Scripted::start(|_| Vec::new()).await, Scripted::start(alice).await);
    let servers = vec![silent.server(LdapScheme::Ldap, "127.0.0.1"), good.server(LdapScheme::Ldap, "127.0.0.1")];
    let mut settings = settings(servers, searching(None));
    settings.attempt_timeout = Duration::from_millis(200);
    let under = Under::test(&settings, Tuning { aside: Duration::from_secs(600), ..Tuning::default() });
    let started = Instant::now();
    under.alice().await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200));
    for _ in 0..5 {
        under.ldap.look_after();
        under.alice().await.unwrap();
    }
    assert_eq!(under.count(&silent, "search", "timeout"), 1, "it is aside");
    // The look that decides meets silence as well.
    until(|| under.count(&silent, "read", "timeout") == 1).await;
    until(|| silent.open() == 0).await;
    assert_eq!(under.metrics.directory_failovers.with_label_values(&[&silent.url()]).get(), 1);
}

#[tokio::test]
async fn a_bind_without_an_answer_goes_to_one_other_server() {
    let silent_bind = |seen: &Seen| if is_bind(seen) { Vec::new() } else { alice(seen) };
    let servers =
        [Scripted::start(silent_bind).await, Scripted::start(silent_bind).await, Scripted::start(alice).await];
    let list = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
    let mut settings = settings(list, searching(None));
    settings.attempt_timeout = Duration::from_millis(150);
    let under = Under::test(&settings, Tuning::default());
    let (result, trace) = under.login("alice", "right").await;
    assert_eq!(trouble(result), Trouble::Timeout);
    assert_eq!(trace.code, None);
    assert_eq!(servers.iter().map(|server| server.binds().len()).collect::<Vec<_>>(), [1, 1, 0]);
    // The unanswered connections are gone for good.
    until(|| servers[1].open() == 0).await;
}

#[tokio::test]
async fn a_second_server_has_a_moment_and_is_not_blamed_for_needing_more() {
    let silent_bind = |seen: &Seen| if is_bind(seen) { Vec::new() } else { alice(seen) };
    let servers = [Scripted::start(silent_bind).await, Scripted::start(silent_bind).await];
    let list = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
    // Of the two seconds, 0.4 are left for the second one.
    let mut settings = settings(list, searching(None));
    settings.attempt_timeout = Duration::from_millis(1_500);
    let under = Under::test(&settings, Tuning::default());
    assert_eq!(trouble(under.login("alice", "right").await.0), Trouble::Timeout);
    let suspected = |at: usize| under.ldap.server(at).health.is_suspected();
    assert_eq!((suspected(0), suspected(1)), (true, false));
    assert_eq!(servers.iter().map(|server| server.binds().len()).collect::<Vec<_>>(), [1, 1]);
}

#[tokio::test]
async fn nobody_queues_at_a_dead_server() {
    let silent = Scripted::start(|seen: &Seen| if is_bind(seen) { Vec::new() } else { alice(seen) }).await;
    let good = Scripted::start(alice).await;
    let servers = vec![silent.server(LdapScheme::Ldap, "127.0.0.1"), good.server(LdapScheme::Ldap, "127.0.0.1")];
    let mut settings = settings(servers, searching(None));
    settings.attempt_timeout = Duration::from_millis(400);
    settings.connections.max = 1;
    let under = Under::test(&settings, Tuning { aside: Duration::from_secs(600), ..Tuning::default() });
    let logins = (0..10).map(|_| under.alice());
    for login in within(futures_util::future::join_all(logins)).await {
        login.unwrap();
    }
    // One waited for an answer; those behind it went on when it gave up.
    assert_eq!(silent.binds().len(), 1);
}

#[tokio::test]
async fn an_unreachable_server_costs_nothing() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let good = Scripted::start(alice).await;
    let dead = |name: &str| DirectoryServer {
        url: format!("ldap://{name}"),
        scheme: LdapScheme::Ldap,
        host: "127.0.0.1".to_owned(),
        port: gone,
    };
    let servers = vec![dead("a"), dead("b"), dead("c"), good.server(LdapScheme::Ldap, "127.0.0.1")];
    let under = Under::test(&settings(servers, searching(None)), Tuning::default());
    under.alice().await.unwrap();
    let under = Under::test(&settings(vec![dead("a"), dead("b")], searching(None)), Tuning::default());
    assert!(matches!(trouble(under.alice().await), Trouble::Connection { server, .. } if &*server == "ldap://b"));
}

#[tokio::test]
async fn a_server_that_is_back_is_found_in_the_background() {
    let well = Arc::new(AtomicBool::new(false));
    let switch = well.clone();
    let script = move |seen: &Seen| match switch.load(Ordering::SeqCst) {
        true => alice(seen),
        false => vec![Reply::Close],
    };
    let (flaky, good) = (Scripted::start(script).await, Scripted::start(alice).await);
    let servers = vec![flaky.server(LdapScheme::Ldap, "127.0.0.1"), good.server(LdapScheme::Ldap, "127.0.0.1")];
    let tuning = Tuning { aside: Duration::from_millis(50), ..Tuning::default() };
    let under = Under::test(&settings(servers, searching(None)), tuning);
    under.alice().await.unwrap();
    assert_eq!(flaky.seen().len(), 1);
    well.store(true, Ordering::SeqCst);
    within(async {
        // Logins go on meanwhile; none of them is asked of the flaky one until its probe is answered.
        while flaky.binds().is_empty() {
            under.ldap.look_after();
            under.alice().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let looks = flaky.searches().iter().filter(|base| base.is_empty()).count();
    assert_eq!(looks, 1);
}

/// Servers under these settings, with short times.
fn hurried(servers: &[&Scripted], find: Find) -> config::Directory {
    let servers = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
    config::Directory { attempt_timeout: Duration::from_millis(200), ..settings(servers, find) }
}

/// Finds anybody by `uid`, lets anybody in, and shows no canary.
fn everybody(seen: &Seen) -> Vec<Reply> {
    let name = match &seen.op {
        LdapOp::SearchRequest(request) => match &request.filter {
            LdapFilter::Equality(_, name) => name.clone(),
            _ => "root".to_owned(),
        },
        _ => return bound(Code::Success),
    };
    match name.as_str() {
        "canary" => vec![done(Code::Success)],
        _ => vec![entry(&format!("uid={name},dc=x"), &[("mailHost", &[b"server3"])]), done(Code::Success)],
    }
}

/// As [`everybody`], and shows the canary while the switch is on.
fn with_canary(shown: &Arc<AtomicBool>) -> impl Fn(&Seen) -> Vec<Reply> + Clone + Send + Sync + use<> {
    let shown = shown.clone();
    move |seen| match &seen.op {
        LdapOp::SearchRequest(request) if request.filter == LdapFilter::Equality("uid".into(), "canary".into()) => {
            let canary = entry("uid=canary,dc=x", &[("mailHost", &[b"Server3"])]);
            if shown.load(Ordering::SeqCst) { vec![canary, done(Code::Success)] } else { vec![done(Code::Success)] }
        }
        _ => everybody(seen),
    }
}

fn switch(on: bool) -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(on))
}

fn canary() -> Option<Canary> {
    Some(Canary { login: "canary".to_owned(), mail_host: "server3".to_owned() })
}

#[tokio::test]
async fn one_user_s_slow_bind_puts_no_server_aside() {
    let slow = |seen: &Seen| match seen.bind() {
        Some((dn, _)) if dn.starts_with("uid=slow,") => Vec::new(),
        _ => everybody(seen),
    };
    let (server, standby) = (Scripted::start(slow).await, Scripted::start(everybody).await);
    let under = Under::test(&hurried(&[&server, &standby], searching(None)), Tuning::default());
    for _ in 0..3 {
        let looks = server.searches().iter().filter(|base| base.is_empty()).count();
        // He himself is taken to the other server, once.
        under.login("slow", "x").await.0.unwrap();
        under.ldap.look_after();
        until(|| server.searches().iter().filter(|base| base.is_empty()).count() > looks).await;
        until(|| under.ldap.server(0).health.standing().0 == super::health::Standing::Good).await;
        let before = standby.seen().len();
        under.login("anna", "x").await.0.unwrap();
        assert_eq!(standby.seen().len(), before, "anna is served where everybody is");
    }
    assert_eq!(standby.binds().len(), 3);
}

#[tokio::test]
async fn a_server_whose_binds_hang_returns_by_a_bind() {
    let hangs = switch(true);
    let now = hangs.clone();
    let script = move |seen: &Seen| match (now.load(Ordering::SeqCst), seen.bind()) {
        (true, Some(_)) => Vec::new(),
        _ => everybody(seen),
    };
    let (server, standby) = (Scripted::start(script).await, Scripted::start(everybody).await);
    let tuning = Tuning { aside: Duration::from_millis(50), aside_max: Duration::from_millis(50), ..Tuning::default() };
    let under = Under::test(&hurried(&[&server, &standby], searching(None)), tuning);
    // Two users, and nobody answered between them.
    under.login("anna", "x").await.0.unwrap();
    under.ldap.look_after();
    until(|| !under.ldap.server(0).health.is_suspected()).await;
    under.login("bob", "x").await.0.unwrap();
    assert!(!under.ldap.server(0).health.is_up());
    let binds = server.binds().len();
    within(async {
        // It answers each look; one login after each pause tries it and goes to the other server.
        while server.binds().len() < binds + 2 {
            under.ldap.look_after();
            under.login("clara", "x").await.0.unwrap();
        }
    })
    .await;
    assert!(server.searches().iter().filter(|base| base.is_empty()).count() >= 2);
    assert!(!under.ldap.server(0).health.is_in_use());
    hangs.store(false, Ordering::SeqCst);
    within(async {
        while !under.ldap.server(0).health.is_in_use() {
            under.ldap.look_after();
            under.login("clara", "x").await.0.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_had_too_little_time_is_not_to_blame() {
    // The first server takes all the time there is but a little, in which the second cannot answer.
    let silent = Scripted::start(|_| Vec::new()).await;
    let mute = Scripted::start(|_| Vec::new()).await;
    let mut settings = hurried(&[&silent, &mute], searching(None));
    settings.timeout = Duration::from_millis(250);
    let under = Under::test(&settings, Tuning::default());
    assert_eq!(trouble(under.login("anna", "x").await.0), Trouble::Timeout);
    assert_eq!((under.count(&silent, "search", "timeout"), under.count(&mute, "search", "timeout")), (1, 1));
    let suspected = [0, 1].map(|at| under.ldap.server(at).health.is_suspected());
    assert_eq!(suspected, [true, false]);
}

#[tokio::test]
async fn a_look_keeps_no_more_connections_than_are_wanted() {
    let server = Scripted::start(alice).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], templated(None));
    settings.connections.min = 1;
    let under = Under::test(&settings, Tuning::default());
    for _ in 0..5 {
        under.ldap.probe().await.unwrap();
    }
    until(|| server.open() == 1).await;
    assert_eq!(server.connections(), 5);
}

#[tokio::test]
async fn in_turn_means_a_whole_decision_each() {
    let servers = [Scripted::start(alice).await, Scripted::start(alice).await, Scripted::start(alice).await];
    let mut settings = hurried(&[&servers[0], &servers[1], &servers[2]], searching(None));
    settings.balance = Balance::RoundRobin;
    let under = Under::test(&settings, Tuning::default());
    for _ in 0..9 {
        under.alice().await.unwrap();
    }
    for server in &servers {
        assert_eq!((server.searches().len(), server.binds().len()), (3, 3));
    }
    // With one gone, the others take its turns.
    let [gone, others @ ..] = servers;
    drop(gone);
    for _ in 0..6 {
        under.alice().await.unwrap();
    }
    assert!(others.iter().all(|server| server.binds().len() >= 5));
}

#[tokio::test]
async fn a_server_that_does_not_show_the_canary_is_not_used() {
    let shown = [switch(false), switch(true)];
    let servers = [Scripted::start(with_canary(&shown[0])).await, Scripted::start(with_canary(&shown[1])).await];
    let mut settings = hurried(&[&servers[0], &servers[1]], searching(None));
    settings.canary = canary();
    let under = Under::test(&settings, Tuning { aside: Duration::from_millis(50), ..Tuning::default() });
    for _ in 0..3 {
        under.login("anna", "x").await.0.unwrap();
    }
    assert_eq!(servers[0].binds().len(), 0, "no password for a server that shows no canary");
    under.ldap.show();
    let ok = |server: &Scripted| under.metrics.directory_canary_ok.with_label_values(&[&server.url()]).get();
    let up = |server: &Scripted| under.metrics.directory_up.with_label_values(&[&server.url()]).get();
    assert_eq!((ok(&servers[0]), ok(&servers[1])), (0, 1));
    assert_eq!((up(&servers[0]), up(&servers[1])), (0, 1));
    // Neither shows it: nobody is told anything.
    shown[1].store(false, Ordering::SeqCst);
    let looks = under.ldap.survey().await;
    assert!(looks.iter().all(|(_, look)| matches!(look, Err(Trouble::Canary { .. }))), "{looks:?}");
    assert_eq!(under.ldap.presence(), Presence::Away);
    assert!(matches!(trouble(under.login("anna", "x").await.0), Trouble::Canary { .. }));
    // It is back, and so is the server.
    shown[0].store(true, Ordering::SeqCst);
    under.login("anna", "x").await.0.unwrap();
    assert_eq!(servers[0].binds().len(), 1);
}

#[tokio::test]
async fn nothing_is_believed_of_a_server_that_lost_the_canary() {
    // Empty from one moment to the next: nobody is found, no mail host shown, everybody refused.
    let whole = switch(true);
    let now = whole.clone();
    let good = with_canary(&whole);
    let lost = move |seen: &Seen| match (now.load(Ordering::SeqCst), seen.bind()) {
        (false, Some(_)) => bound(Code::InvalidCredentials),
        (false, None) if seen.base() == Some("uid=canary,dc=x") => vec![done(Code::NoSuchObject)],
        (false, None) => vec![done(Code::Success)],
        _ => good(seen),
    };
    let (_folder, _file, account) = service(b"service");
    for (find, binds) in [(searching(None), 0), (templated(account), 1)] {
        whole.store(true, Ordering::SeqCst);
        let (server, standby) =
            (Scripted::start(lost.clone()).await, Scripted::start(with_canary(&switch(true))).await);
        let mut settings = hurried(&[&server, &standby], find);
        settings.canary = canary();
        let under = Under::test(&settings, Tuning { canary: Duration::ZERO, ..Tuning::default() });
        under.login("anna", "x").await.0.unwrap();
        let before = standby.binds().iter().filter(|(_, dn, _)| dn.starts_with("uid=")).count();
        whole.store(false, Ordering::SeqCst);
        let result = under.login("bob", "x").await.0;
        if binds == 0 {
            // A search may go to the other server in the same breath.
            result.unwrap();
        } else {
            // An answered bind is a guess: "cannot tell", and no second server hears the password.
            assert!(matches!(trouble(result), Trouble::Canary { .. }));
            let after = standby.binds().iter().filter(|(_, dn, _)| dn.starts_with("uid=")).count();
            assert_eq!(after, before);
        }
        under.login("bob", "x").await.0.unwrap();
        assert!(!under.ldap.server(0).health.is_in_use());
    }
}

#[tokio::test]
async fn while_all_are_away_everybody_is_told_quickly_and_the_first_one_back_is_used() {
    let well = switch(true);
    let now = well.clone();
    let script = move |seen: &Seen| match now.load(Ordering::SeqCst) {
        true => everybody(seen),
        false => Vec::new(),
    };
    let servers = [Scripted::start(script.clone()).await, Scripted::start(script).await];
    let under = Under::test(&hurried(&[&servers[0], &servers[1]], searching(None)), Tuning::default());
    under.login("anna", "x").await.0.unwrap();
    well.store(false, Ordering::SeqCst);
    trouble(under.login("anna", "x").await.0);
    // What was only suspected is settled by looks.
    assert_eq!(within(under.ldap.settled()).await, Presence::Away);
    let started = Instant::now();
    let crowd = (0..200).map(|_| under.login("bob", "x"));
    for (result, _) in futures_util::future::join_all(crowd).await {
        assert_eq!(trouble(result), Trouble::Timeout);
    }
    assert!(started.elapsed() < Duration::from_millis(1_900), "{:?}", started.elapsed());
    let names = servers.iter().flat_map(|server| server.seen());
    let asked = names.filter(|seen| matches!(&seen.op, LdapOp::SearchRequest(request) if request.filter == LdapFilter::Equality("uid".into(), "bob".into())));
    assert_eq!(asked.count(), 0, "looks are asked, not questions");
    well.store(true, Ordering::SeqCst);
    let crowd = (0..50).map(|_| under.login("bob", "x"));
    for (result, _) in futures_util::future::join_all(crowd).await {
        result.unwrap();
    }
    assert_eq!(under.ldap.presence(), Presence::There);
}

#[tokio::test]
async fn connections_are_kept_ready_and_recycled() {
    let server = Scripted::start(alice).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.min = 3;
    settings.connections.operations = 5;
    let under = Under::test(&settings, Tuning::default());
    under.ldap.look_after();
    // Three for binds, one for searches.
    until(|| server.open() == 4).await;
    under.ldap.show();
    let count =
        |state: &str| under.metrics.directory_connections.with_label_values(&[server.url().as_str(), state]).get();
    assert_eq!((count("idle"), count("busy"), count("search")), (3, 0, 1));
    for _ in 0..5 {
        under.alice().await.unwrap();
    }
    // The bind connection used last was used each time, and has done its number.
    let used: std::collections::BTreeSet<_> = server.binds().iter().map(|(connection, ..)| *connection).collect();
    assert_eq!(used.len(), 1, "{used:?}");
    under.alice().await.unwrap();
    let used: std::collections::BTreeSet<_> = server.binds().iter().map(|(connection, ..)| *connection).collect();
    assert_eq!(used.len(), 2, "{used:?}");
}

#[tokio::test]
async fn an_overload_is_told_within_one_try() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let script = move |seen: &Seen| match seen.bind() {
        Some(_) => [vec![Reply::Wait(held.clone())], everybody(seen)].concat(),
        None => everybody(seen),
    };
    let server = Scripted::start(script).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.max = 2;
    settings.attempt_timeout = Duration::from_millis(400);
    let under = Under::test(&settings, Tuning::default());
    let started = Instant::now();
    let crowd = (0..30).map(|_| under.login("anna", "x"));
    for (result, _) in futures_util::future::join_all(crowd).await {
        trouble(result);
    }
    assert!(started.elapsed() < Duration::from_millis(1_200), "{:?}", started.elapsed());
    gate.add_permits(1_000);
    within(async { while under.login("anna", "x").await.0.is_err() {} }).await;
}

#[tokio::test]
async fn an_answer_without_end_meets_the_deadline() {
    let endless = [
        // A message that says it has 2 GiB, and drips.
        vec![0x30, 0x84, 0x7f, 0xff, 0xff, 0xff],
        // An entry whose attributes never come to an end.
        vec![0x30, 0x82, 0xff, 0xff, 0x02, 0x01, 0x01, 0x64, 0x82, 0xff, 0xf0, 0x04, 0x01, b'x'],
    ];
    for head in endless {
        let gate = Arc::new(Semaphore::new(0));
        let held = gate.clone();
        let script = move |seen: &Seen| match seen.base() {
            Some("dc=x") => {
                let drip = [Reply::Raw(vec![b'x'; 4_096]), Reply::Wait(held.clone())];
                let drops = std::iter::repeat_n(drip, 50).flatten();
                std::iter::once(Reply::Raw(head.clone())).chain(drops).collect()
            }
            _ => alice(seen),
        };
        gate.add_permits(20);
        let server = Scripted::start(script).await;
        let under = Under::test(&hurried(&[&server], searching(None)), Tuning::default());
        let started = Instant::now();
        assert!(matches!(trouble(under.alice().await), Trouble::Timeout | Trouble::Malformed { .. }));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        gate.add_permits(1_000);
    }
    // Entry after entry, of which two would have been enough.
    let flood = |seen: &Seen| match seen.base() {
        Some("dc=x") => vec![entry("uid=alice,dc=x", &[("mailHost", &[b"server3"])]); 1_001],
        _ => alice(seen),
    };
    let server = Scripted::start(flood).await;
    let under = Under::new(&[&server], searching(None));
    assert!(matches!(trouble(under.alice().await), Trouble::Malformed { .. }));
}

#[tokio::test]
async fn an_odd_answer_to_one_user_is_no_fault_of_the_server() {
    // ldap3 panics at this one, in the task that all searches of the connection share.
    let odd = |seen: &Seen| match &seen.op {
        LdapOp::SearchRequest(request) if request.filter == LdapFilter::Equality("uid".into(), "odd".into()) => {
            vec![Reply::Raw(vec![0x30, 0x05, 0x02, 0x01, u8::try_from(seen.id).unwrap(), 0x65, 0x00])]
        }
        _ => everybody(seen),
    };
    let server = Scripted::start(odd).await;
    let under = Under::test(&hurried(&[&server], searching(None)), Tuning::default());
    for _ in 0..3 {
        let (odd, anna) = tokio::join!(under.login("odd", "x"), under.login("anna", "x"));
        assert!(matches!(trouble(odd.0), Trouble::Malformed { .. }));
        anna.0.unwrap();
        assert_eq!(under.ldap.presence(), Presence::There);
    }
}

#[tokio::test]
async fn the_deadline_ends_everything() {
    let servers = [Scripted::start(|_| Vec::new()).await, Scripted::start(|_| Vec::new()).await];
    let list = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
    for find in [searching(None), templated(None)] {
        let mut settings = settings(Vec::clone(&list), find);
        settings.timeout = Duration::from_millis(300);
        let under = Under::test(&settings, Tuning::default());
        let started = Instant::now();
        assert_eq!(trouble(under.alice().await), Trouble::Timeout);
        assert!(started.elapsed() < Duration::from_millis(1_000), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_dead_connection_is_replaced_unseen() {
    // Both connections work once; the next request on each is met with a hang-up.
    let script = |seen: &Seen| if seen.connection < 2 && seen.id > 1 { vec![Reply::Close] } else { alice(seen) };
    let server = Scripted::start(script).await;
    let under = Under::new(&[&server], searching(None));
    under.alice().await.unwrap();
    assert_eq!(server.connections(), 2);
    under.alice().await.unwrap();
    assert_eq!(server.connections(), 4);
    assert_eq!(under.count(&server, "search", "connection"), 1);
    assert_eq!(under.count(&server, "bind", "connection"), 1);
    under.alice().await.unwrap();
    assert_eq!(server.connections(), 4);
}

#[tokio::test]
async fn a_restarted_server_is_used_at_once() {
    let server = Scripted::start(alice).await;
    let port = server.port;
    let under = Under::new(&[&server], searching(None));
    under.alice().await.unwrap();
    drop(server);
    trouble(under.alice().await);
    let listener = within(async {
        loop {
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
                break listener;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let _server = Scripted::start_on(listener, None, false, alice);
    under.alice().await.unwrap();
}

#[tokio::test]
async fn a_hang_up_during_a_bind_is_not_a_wrong_password() {
    let server = Scripted::start(first(vec![vec![Reply::Close]; 9], is_bind)).await;
    let under = Under::new(&[&server], searching(None));
    assert!(matches!(trouble(under.alice().await), Trouble::Connection { .. }));
    assert_eq!(server.binds().len(), 1, "a fresh connection is not tried twice");
}

#[tokio::test]
async fn what_cannot_be_read_is_an_unavailable_directory() {
    type Bytes = fn(u8) -> Vec<u8>;
    let answers: [(&str, Bytes); 11] = [
        ("not LDAP at all", |_| [&b"HTTP/1.1 400 Bad Request\r\n"[..], &[b'x'; 200]].concat()),
        ("no sequence", |_| vec![0x04, 0x02, 0x61, 0x62]),
        ("an empty sequence (the decoder panics)", |_| vec![0x30, 0x00]),
        ("no message ID (the decoder panics)", |_| vec![0x30, 0x02, 0x65, 0x00]),
        ("a bind response to a search (the driver panics)", |id| {
            vec![0x30, 0x0c, 0x02, 0x01, id, 0x61, 0x07, 0x0a, 0x01, 0x00, 0x04, 0x00, 0x04, 0x00]
        }),
        ("a result without a code (the driver panics)", |id| vec![0x30, 0x05, 0x02, 0x01, id, 0x65, 0x00]),
        ("a primitive result (the driver panics)", |id| vec![0x30, 0x06, 0x02, 0x01, id, 0x45, 0x01, 0x00]),
        ("an entry without anything", |id| vec![0x30, 0x05, 0x02, 0x01, id, 0x64, 0x00]),
        ("an entry whose attributes are a string", |id| {
            vec![0x30, 0x0b, 0x02, 0x01, id, 0x64, 0x06, 0x04, 0x02, b'x', b'=', 0x04, 0x00]
        }),
        ("an entry whose name is not UTF-8", |id| {
            vec![0x30, 0x0a, 0x02, 0x01, id, 0x64, 0x05, 0x04, 0x01, 0xff, 0x30, 0x00]
        }),
        ("a diagnostic that is not UTF-8", |id| {
            vec![0x30, 0x0d, 0x02, 0x01, id, 0x65, 0x08, 0x0a, 0x01, 0x00, 0x04, 0x00, 0x04, 0x01, 0xff]
        }),
    ];
    for (what, bytes) in answers {
        let script = move |seen: &Seen| vec![Reply::Raw(bytes(u8::try_from(seen.id).unwrap())), Reply::Close];
        let bad = Scripted::start(script).await;
        let under = Under::new(&[&bad], searching(None));
        assert!(matches!(trouble(under.alice().await), Trouble::Malformed { .. }), "{what}");
        let good = Scripted::start(alice).await;
        let under = Under::new(&[&bad, &good], searching(None));
        under.alice().await.unwrap();
    }
    for (what, bytes) in &answers[..4] {
        let bytes = *bytes;
        let script = move |seen: &Seen| vec![Reply::Raw(bytes(u8::try_from(seen.id).unwrap())), Reply::Close];
        let bad = Scripted::start(script).await;
        let under = Under::new(&[&bad], templated(None));
        assert!(matches!(trouble(under.alice().await), Trouble::Malformed { .. }), "{what}");
    }
    // A bind's answer is taken apart in the asking task: the panic is contained there as well.
    let answers: [Bytes; 3] = [
        |id| vec![0x30, 0x05, 0x02, 0x01, id, 0x61, 0x00],
        |id| vec![0x30, 0x06, 0x02, 0x01, id, 0x41, 0x01, 0x00],
        |id| vec![0x30, 0x0d, 0x02, 0x01, id, 0x61, 0x08, 0x0a, 0x01, 0x00, 0x04, 0x01, 0xff, 0x04, 0x00],
    ];
    for bytes in answers {
        let script = move |seen: &Seen| vec![Reply::Raw(bytes(u8::try_from(seen.id).unwrap()))];
        let bad = Scripted::start(script).await;
        let under = Under::new(&[&bad], templated(None));
        assert!(matches!(trouble(under.alice().await), Trouble::Malformed { .. }));
        assert_eq!(under.count(&bad, "bind", "malformed"), 1);
    }
}

#[tokio::test]
async fn an_answer_to_another_message_is_no_answer() {
    let success = |id: u8| vec![0x30, 0x0c, 0x02, 0x01, id, 0x61, 0x07, 0x0a, 0x01, 0x00, 0x04, 0x00, 0x04, 0x00];
    let script = move |seen: &Seen| {
        let id = u8::try_from(seen.id).unwrap();
        vec![Reply::Raw(success(id + 1)), Reply::Raw(success(0)), Reply::Raw(success(127))]
    };
    let server = Scripted::start(script).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], templated(None));
    settings.attempt_timeout = Duration::from_millis(200);
    let under = Under::test(&settings, Tuning::default());
    assert_eq!(trouble(under.alice().await), Trouble::Timeout);
}

/// What is logged, at every level.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_line_and_no_error_holds_a_password() {
    meet_the_line(&Scripted::start(|_: &Seen| vec![Reply::Close]).await).await;
    let lines = Lines::default();
    let writer = lines.clone();
    // Of everything but the codec of the scripted server, which shows each message at trace.
    let ours = tracing_subscriber::filter::filter_fn(|meta| !meta.target().starts_with("ldap3_proto"));
    let output = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let subscriber = tracing_subscriber::registry().with(output.with_filter(ours));
    let _guard = tracing::subscriber::set_default(subscriber);

    let (_folder, _file, account) = service(b"service-hunter2");
    let answers = [vec![Reply::Close], vec![Reply::Raw(vec![0x30, 0x00])], bound(Code::Busy), bound(Code::Referral)];
    for answer in answers {
        let server = Scripted::start(first(vec![answer], is_bind)).await;
        for find in [searching(None), searching(account.clone()), templated(None)] {
            let under = Under::new(&[&server], find);
            for _ in 0..2 {
                let told = format!("{:?}", under.login("alice", "hunter2").await);
                assert!(!told.contains("hunter2"), "{told}");
            }
            assert!(!format!("{:?}", under.ldap).contains("hunter2"));
        }
    }
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("directory server failed"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn an_entry_out_of_bounds_is_no_fault_of_the_server() {
    let odd = |seen: &Seen| match seen.base() {
        Some(_) => vec![entry("uid=alice,dc=x", &[("mailHost", &[&[b'x'; 1_025]])]), done(Code::Success)],
        None => alice(seen),
    };
    let (server, standby) = (Scripted::start(odd).await, Scripted::start(alice).await);
    let under = Under::new(&[&server, &standby], searching(None));
    for _ in 0..3 {
        assert!(matches!(trouble(under.alice().await), Trouble::Malformed { .. }));
    }
    assert_eq!(under.count(&server, "connect", "0"), 1, "its connection is as good as before");
    assert_eq!(standby.searches().len(), 0, "nobody else need be asked");
}

/// Has the line "directory server failed" met while somebody listens. tracing computes once, when a
/// line is first met, who wants it, and another test's thread, in which nobody does, may be the first;
/// a listener that comes later has it computed anew.
async fn meet_the_line(failing: &Scripted) {
    let _anybody = tracing::subscriber::set_default(tracing_subscriber::registry());
    trouble(Under::new(&[failing], templated(None)).alice().await);
}

#[tokio::test]
async fn an_outage_is_told_once_in_a_while_and_not_at_each_login() {
    let server = Scripted::start(|_: &Seen| vec![Reply::Close]).await;
    meet_the_line(&server).await;
    let lines = Lines::default();
    let writer = lines.clone();
    let ours = tracing_subscriber::filter::filter_fn(|meta| !meta.target().starts_with("ldap3_proto"));
    let output = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(output.with_filter(ours)));
    let under = Under::new(&[&server], templated(None));
    for _ in 0..20 {
        trouble(under.alice().await);
    }
    drop(under);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    // Of the bind that failed, and of the looks that did.
    let lines = text.lines().filter(|line| line.contains("directory server failed"));
    assert_eq!(lines.count(), 2, "{text}");
}

#[tokio::test]
async fn binds_run_side_by_side_up_to_the_limit() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let script = move |seen: &Seen| match seen.bind() {
        Some(_) => [vec![Reply::Wait(held.clone())], alice(seen)].concat(),
        None => alice(seen),
    };
    let server = Scripted::start(script).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.timeout = Duration::from_millis(1_000);
    let under = Arc::new(Under::test(&settings, Tuning::default()));
    let logins: Vec<_> = (0..4)
        .map(|_| {
            let under = under.clone();
            tokio::spawn(async move { under.alice().await })
        })
        .collect();
    // All four reach the directory while none is answered.
    until(|| server.binds().len() == 4).await;
    let mut connections: Vec<_> = server.binds().into_iter().map(|(connection, ..)| connection).collect();
    connections.dedup();
    assert_eq!(connections.len(), 4, "each on a connection of its own");
    // A fifth finds none free until its deadline.
    let fifth = tokio::spawn({
        let under = under.clone();
        async move { under.alice().await }
    });
    gate.add_permits(1);
    until(|| server.binds().len() == 5).await;
    assert_eq!(server.connections(), 5, "four for binds, re-bound without a new connection");
    gate.add_permits(4);
    fifth.await.unwrap().unwrap();
    for login in logins {
        login.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_wait_for_a_free_connection_ends_with_the_deadline() {
    let scripted = Scripted::start(|_| Vec::new()).await;
    let mut settings = settings(vec![scripted.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.max = 1;
    let ldap = Ldap::new(&settings, None, Arc::new(Metrics::new()));
    let server = ldap.server(0);
    let bind = async |time: u64| {
        let deadline = Instant::now() + Duration::from_millis(time);
        server.bind("uid=alice,dc=x", "right", deadline, &mut Trace::default()).await.map(|(code, _)| code)
    };
    let (first, second) = tokio::join!(bind(1_000), bind(100));
    assert!(matches!(first, Err(Failure::Unsure(Trouble::Timeout))), "{first:?}");
    assert!(matches!(second, Err(Failure::Unasked(Trouble::Busy))), "{second:?}");
    assert_eq!(scripted.binds().len(), 1);
}

#[tokio::test]
async fn a_dropped_login_takes_its_connection_along() {
    let server = Scripted::start(first(vec![Vec::new()], is_bind)).await;
    let under = Under::new(&[&server], searching(None));
    let waiting = tokio::time::timeout(Duration::from_millis(100), under.alice()).await;
    assert!(waiting.is_err());
    let abandoned = server.binds()[0].0;
    under.alice().await.unwrap();
    assert_ne!(server.binds()[1].0, abandoned, "its late answer meets nobody");
    until(|| server.open() == 2).await;
}

#[tokio::test]
async fn unused_connections_are_closed() {
    let server = Scripted::start(alice).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.idle = Duration::from_millis(60);
    let under = Under::test(&settings, Tuning::default());
    under.alice().await.unwrap();
    assert_eq!(server.open(), 2);
    until(|| server.open() == 0).await;
    under.alice().await.unwrap();
    assert_eq!(server.connections(), 4);
    // Together with its directory, as after a reload.
    drop(under);
    until(|| server.open() == 0).await;
}

#[tokio::test]
async fn a_search_connection_is_recycled() {
    let server = Scripted::start(alice).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.operations = 10;
    let under = Under::test(&settings, Tuning::default());
    for _ in 0..30 {
        under.look_up("alice").await.0.unwrap();
    }
    assert_eq!(server.connections(), 3);
    settings.connections.age = Duration::ZERO;
    let under = Under::test(&settings, Tuning::default());
    for _ in 0..3 {
        under.look_up("alice").await.0.unwrap();
    }
    assert_eq!(server.connections(), 6);
}

/// A file with a password, and its service account.
fn service(password: &[u8]) -> (tempfile::TempDir, PathBuf, Option<ServiceAccount>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::File::create(&file).unwrap().write_all(password).unwrap();
    let account = ServiceAccount { dn: "cn=usher".to_owned(), password_file: file.clone() };
    (folder, file, Some(account))
}

#[tokio::test]
async fn the_service_account_is_bound_once_per_connection() {
    for password in [&b"service"[..], b"service\n", b"service\r\n"] {
        let (_folder, _file, account) = service(password);
        let server = Scripted::start(alice).await;
        let under = Under::new(&[&server], searching(account));
        let looks = (0..20).map(|_| under.look_up("alice"));
        for look in futures_util::future::join_all(looks).await {
            look.0.unwrap();
        }
        assert_eq!(server.binds(), [(0, "cn=usher".to_owned(), "service".to_owned())], "{password:?}");
        assert!(under.metrics.render().contains("usher_directory_service_bind_ok{server=\"ldap://127.0.0.1:"));
        let url = format!("ldap://127.0.0.1:{}", server.port);
        assert_eq!(under.metrics.directory_service_bind_ok.with_label_values(&[&url]).get(), 1);
    }
}

#[tokio::test]
async fn a_refused_service_account_is_held_back_and_its_file_read_again() {
    let (_folder, file, account) = service(b"old");
    let server = Scripted::start(alice).await;
    let url = format!("ldap://127.0.0.1:{}", server.port);
    let settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(account));
    let under = Under::test(&settings, Tuning { service_retry: Duration::from_secs(1), ..Tuning::default() });
    assert_eq!(under.metrics.directory_service_bind_ok.with_label_values(&[&url]).get(), 1, "never asked");
    let refused = Trouble::ServiceBind { server: url.as_str().into(), code: 49 };
    for _ in 0..3 {
        let (result, trace) = under.login("alice", "right").await;
        assert_eq!(trouble(result), refused);
        assert_eq!(trace.code, Some(49));
    }
    assert_eq!(server.binds().len(), 1, "one try a minute does not lock the account");
    assert_eq!(under.metrics.directory_service_bind_ok.with_label_values(&[&url]).get(), 0);
    std::fs::write(&file, b"service\n").unwrap();
    within(async {
        while under.alice().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(server.binds().iter().filter(|(_, dn, _)| dn == "cn=usher").count(), 2);
    assert_eq!(under.metrics.directory_service_bind_ok.with_label_values(&[&url]).get(), 1);
}

#[tokio::test]
async fn a_service_account_refused_by_one_server_may_be_known_to_the_next() {
    let (_folder, _file, account) = service(b"service");
    let refusing = Scripted::start(first(vec![bound(Code::InvalidCredentials); 9], is_bind)).await;
    let good = Scripted::start(alice).await;
    let under = Under::new(&[&refusing, &good], searching(account));
    under.look_up("alice").await.0.unwrap();
    under.ldap.probe().await.unwrap();
    assert_eq!(refusing.binds().len(), 1);
}

#[tokio::test]
async fn a_service_password_that_cannot_be_used_is_never_sent() {
    for password in [&b""[..], b"\n", b"caf\xe9"] {
        let (_folder, _file, account) = service(password);
        let server = Scripted::start(alice).await;
        let under = Under::new(&[&server], searching(account));
        assert!(matches!(trouble(under.alice().await), Trouble::Connection { .. }));
        assert_eq!(server.binds(), []);
    }
    let (folder, _file, account) = service(b"service");
    drop(folder);
    let server = Scripted::start(alice).await;
    let under = Under::new(&[&server], searching(account));
    assert!(trouble(under.alice().await).to_string().contains("password: No such file"));
}

#[tokio::test]
async fn explain_reads_as_the_service_account_or_says_that_it_cannot() {
    let server = Scripted::start(alice).await;
    let under = Under::new(&[&server], templated(None));
    assert_eq!(trouble(under.look_up("alice").await.0), Trouble::NoServiceAccount);
    let question = under.ldap.question(&Login::parse(b"a,b").unwrap());
    assert_eq!(question, r"read uid=a\2cb,dc=x");
    assert_eq!(server.connections(), 0);

    let (_folder, _file, account) = service(b"service");
    let under = Under::new(&[&server], templated(account.clone()));
    assert_eq!(under.look_up("alice").await.0.unwrap().mail_hosts, ["server3"]);
    assert_eq!(server.searches(), ["uid=alice,dc=x"]);

    let server = Scripted::start(first(vec![vec![done(Code::NoSuchObject)]], is_search)).await;
    let under = Under::new(&[&server], templated(account));
    assert_eq!(under.look_up("bob").await.0, Err(DirectoryError::NoEntry));
}

#[tokio::test]
async fn the_probe_asks_what_anybody_may_ask() {
    let (_folder, _file, account) = service(b"service");
    let server = Scripted::start(alice).await;
    for (find, binds) in [(searching(account), 1), (searching(None), 0), (templated(None), 0)] {
        let before = server.binds().len();
        let under = Under::new(&[&server], find);
        under.ldap.probe().await.unwrap();
        assert_eq!(server.searches().last().unwrap(), "");
        assert_eq!(server.binds().len() - before, binds);
    }
    // Any answered result will do: the directory is there.
    let server = Scripted::start(first(vec![vec![done(Code::InsufficentAccessRights)]], is_search)).await;
    Under::new(&[&server], templated(None)).ldap.probe().await.unwrap();
    let server = Scripted::start(first(vec![vec![Reply::Close]], anything)).await;
    Under::new(&[&server], templated(None)).ldap.probe().await.unwrap_err();
}

/// Certificates for these names, and the two ends' configurations.
fn tls(names: &[&str]) -> (tokio_rustls::TlsAcceptor, Arc<rustls::ClientConfig>) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server).into(), Arc::new(client))
}

async fn login_over(
    server: &Scripted,
    scheme: LdapScheme,
    host: &str,
    client: Option<Arc<rustls::ClientConfig>>,
) -> Result<Identity, DirectoryError> {
    let mut settings = settings(vec![server.server(scheme, host)], searching(None));
    settings.starttls = scheme == LdapScheme::Ldap;
    let ldap = Ldap::new(&settings, client, Arc::new(Metrics::new()));
    let login = Login::parse(b"alice").unwrap();
    within(ldap.authenticate(&login, &Secret::copy_of(b"right"), &|_| false)).await.0
}

fn start_tls(seen: &Seen) -> Vec<Reply> {
    match &seen.op {
        LdapOp::ExtendedRequest(request) => {
            assert_eq!(request.name, "1.3.6.1.4.1.1466.20037");
            vec![extended(Code::Success), Reply::Tls]
        }
        _ => alice(seen),
    }
}

#[tokio::test]
async fn tls_verifies_the_name_in_the_url() {
    let hosts = [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("[::1]", "::1")];
    for (address, host) in hosts {
        let (right, client) = tls(&[host]);
        let (other, other_client) = tls(&["elsewhere.example", "127.0.0.2", "::2"]);
        for (scheme, implicit) in [(LdapScheme::Ldaps, true), (LdapScheme::Ldap, false)] {
            let listen = async || TcpListener::bind(format!("{address}:0")).await.unwrap();
            let server = Scripted::start_on(listen().await, Some(right.clone()), implicit, start_tls);
            login_over(&server, scheme, host, Some(client.clone())).await.unwrap();

            // An unknown issuer, a wrong name, no TLS settings: no bind and no search.
            let before = server.binds().len() + server.searches().len();
            trouble(login_over(&server, scheme, host, Some(other_client.clone())).await);
            trouble(login_over(&server, scheme, host, None).await);
            assert_eq!(server.binds().len() + server.searches().len(), before);
            let server = Scripted::start_on(listen().await, Some(other.clone()), implicit, start_tls);
            let refused = trouble(login_over(&server, scheme, host, Some(other_client.clone())).await);
            assert!(refused.to_string().contains("certificate"), "{refused}");
            assert_eq!(server.binds().len() + server.searches().len(), 0);
        }
    }
}

#[tokio::test]
async fn refused_starttls_never_falls_back_to_the_clear() {
    let refuse = |seen: &Seen| match &seen.op {
        LdapOp::ExtendedRequest(_) => vec![extended(Code::UnwillingToPerform)],
        _ => alice(seen),
    };
    for (address, host) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
        let (_, client) = tls(&[host]);
        let listener = TcpListener::bind(format!("{address}:0")).await.unwrap();
        let server = Scripted::start_on(listener, None, false, refuse);
        let refused = trouble(login_over(&server, LdapScheme::Ldap, host, Some(client)).await);
        assert!(refused.to_string().contains("StartTLS was refused with result 53"), "{refused}");
        assert_eq!(server.binds().len() + server.searches().len(), 0);
    }
}

#[tokio::test]
async fn plain_ipv6_and_all_addresses_of_a_name_are_tried() {
    let server = Scripted::start_on(TcpListener::bind("[::1]:0").await.unwrap(), None, false, alice);
    for host in ["::1", "localhost"] {
        let settings = settings(vec![server.server(LdapScheme::Ldap, host)], searching(None));
        if host == "localhost" && !tokio::net::lookup_host("localhost:1").await.unwrap().any(|found| found.is_ipv6()) {
            continue;
        }
        Under::test(&settings, Tuning::default()).alice().await.unwrap();
    }
}

/// What alice's bind comes to if it is answered so, in either way of finding her.
async fn answered(code: u8, text: &str, controls: Controls) -> Answered {
    let mut outcomes = Vec::new();
    for find in [searching(None), templated(None)] {
        let text = text.to_owned();
        let server = Scripted::start(move |seen| match seen.bind() {
            Some(("uid=alice,dc=x", _)) => bound_with(seen, code, &text, controls),
            _ => alice(seen),
        })
        .await;
        let under = Under::new(&[&server], find);
        let (result, trace) = under.login("alice", "right").await;
        // The connection is as good as before.
        assert_eq!((under.login("alice", "right").await.0, server.connections() <= 2), (result.clone(), true));
        let warnings = ["grace", "expiring"]
            .map(|word| under.metrics.directory_password_warnings.with_label_values(&[word]).get());
        outcomes.push((result.map(|identity| identity.entry().mail_hosts.clone()), trace.said, warnings));
    }
    let [searched, templated] = outcomes.try_into().unwrap();
    assert_eq!(searched, templated);
    searched
}

/// OIDs and values of controls.
type Controls = &'static [(&'static str, &'static [u8])];

type Answered = (Result<Vec<String>, DirectoryError>, Option<Said>, [u64; 2]);

fn account(state: AccountState, proven: bool) -> DirectoryError {
    DirectoryError::Account { dn: "uid=alice,dc=x".into(), state, proven }
}

const PASSWORD_POLICY: &str = "1.3.6.1.4.1.42.2.27.8.5.1";
const NETSCAPE_EXPIRED: &str = "2.16.840.1.113730.3.4.4";
const NETSCAPE_EXPIRING: &str = "2.16.840.1.113730.3.4.5";

#[tokio::test]
async fn policy_controls_decide_about_an_account() {
    let wrong = DirectoryError::InvalidCredentials { dn: "uid=alice,dc=x".into(), seen: Some(Marks::default()) };
    let refused: [(u8, Controls, DirectoryError); 7] = [
        (49, &[(PASSWORD_POLICY, b"\x30\x00")], wrong),
        (49, &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x01")], account(AccountState::Locked, false)),
        (19, &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x01")], account(AccountState::Locked, false)),
        (49, &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x00")], account(AccountState::PasswordExpired, true)),
        (49, &[(NETSCAPE_EXPIRED, b"0")], account(AccountState::PasswordExpired, true)),
        // Success, and nothing allowed but another password: nobody gets in.
        (0, &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x02")], account(AccountState::PasswordMustChange, true)),
        (0, &[(NETSCAPE_EXPIRED, b"0")], account(AccountState::PasswordMustChange, true)),
    ];
    for (code, controls, expected) in refused {
        let (result, _, warnings) = answered(code, "", controls).await;
        assert_eq!((result, warnings), (Err(expected), [0, 0]), "{code} {controls:?}");
    }
    let accepted: [(Controls, Said); 2] = [
        (&[(PASSWORD_POLICY, b"\x30\x05\xa0\x03\x81\x01\x02"), (NETSCAPE_EXPIRED, b"0")], Said::Grace(2)),
        (&[(NETSCAPE_EXPIRING, b"3600")], Said::Expiring(3_600)),
    ];
    for (controls, said) in accepted {
        let (result, heard, warnings) = answered(0, "", controls).await;
        assert_eq!((result, heard), (Ok(vec!["server3".to_owned()]), Some(said)));
        assert_eq!(warnings.iter().sum::<u64>(), 2, "{said} was said twice");
    }
}

#[tokio::test]
async fn the_sub_codes_of_active_directory_are_read() {
    let text = |code: &str| {
        format!("80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data {code}, v4563\0")
    };
    let wrong = DirectoryError::InvalidCredentials { dn: "uid=alice,dc=x".into(), seen: Some(Marks::default()) };
    for (code, expected) in [
        ("52e", wrong),
        ("525", DirectoryError::NoEntry),
        ("530", account(AccountState::NotNow, true)),
        ("531", account(AccountState::NotHere, true)),
        ("532", account(AccountState::PasswordExpired, true)),
        ("533", account(AccountState::Disabled, true)),
        ("701", account(AccountState::AccountExpired, true)),
        ("773", account(AccountState::PasswordMustChange, true)),
        ("775", account(AccountState::Locked, false)),
    ] {
        assert_eq!(answered(49, &text(code), &[]).await.0, Err(expected), "{code}");
    }
}

#[tokio::test]
async fn a_result_means_what_the_config_says() {
    assert_eq!(answered(19, "", &[]).await.0, Err(account(AccountState::Locked, false)));
}

#[tokio::test]
async fn controls_that_cannot_be_read_lose_no_answer() {
    let spoilt: Controls =
        &[(PASSWORD_POLICY, b"\x30\x84\xff\xff\xff\xff\x81\x01\x01"), (NETSCAPE_EXPIRING, b"soon"), ("1.2.3", b"\xff")];
    assert_eq!(answered(0, "", spoilt).await.0, Ok(vec!["server3".to_owned()]));
}

fn principal() -> Find {
    let parts = vec![TemplatePart::Local, text("@ad.example.com")];
    Find::Principal { template: Template { parts }, base: "dc=ad".to_owned(), service: None }
}

/// Active Directory with one user, who binds as his principal name.
fn active_directory(seen: &Seen, found: &[&str]) -> Vec<Reply> {
    match (&seen.op, seen.bind()) {
        (_, Some(("alice@ad.example.com", "right"))) => bound(Code::Success),
        (_, Some(_)) => bound(Code::InvalidCredentials),
        (LdapOp::SearchRequest(_), None) => {
            let mut replies: Vec<Reply> = found.iter().map(|dn| entry(dn, &[("mailHost", &[b"server3"])])).collect();
            // As a domain controller does, for other partitions.
            replies.extend([reference(), done(Code::Success)]);
            replies
        }
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn a_principal_name_is_bound_and_its_one_entry_read() {
    let server = Scripted::start(|seen| active_directory(seen, &["CN=Alice,DC=ad"])).await;
    let under = Under::new(&[&server], principal());
    let identity = under.alice().await.unwrap();
    assert_eq!(
        (&*identity.entry().dn, identity.entry().mail_hosts.as_slice()),
        ("CN=Alice,DC=ad", &["server3".to_owned()][..])
    );
    let LdapOp::SearchRequest(request) = server.seen()[1].op.clone() else { panic!() };
    assert_eq!((request.base.as_str(), request.scope), ("dc=ad", LdapSearchScope::Subtree));
    assert_eq!(request.filter, LdapFilter::Equality("userPrincipalName".into(), "alice@ad.example.com".into()));

    assert!(matches!(under.login("alice", "wrong").await.0, Err(DirectoryError::InvalidCredentials { .. })));
    // Another domain, another notation, another letter: not asked about.
    for name in ["AD\\alice", "alice@x@y", "al ice", "j\u{fc}rgen"] {
        assert_eq!(under.login(name, "right").await.0, Err(DirectoryError::NoEntry), "{name}");
    }
    assert_eq!(server.binds().len(), 2);
}

#[tokio::test]
async fn a_principal_name_of_no_entry_or_several_is_nobody_and_no_wrong_password() {
    let none = Scripted::start(|seen| active_directory(seen, &[])).await;
    assert!(matches!(trouble(Under::new(&[&none], principal()).alice().await), Trouble::Result { code: 0, .. }));
    let two = Scripted::start(|seen| active_directory(seen, &["CN=Alice,DC=ad", "CN=Alice,DC=other"])).await;
    assert_eq!(Under::new(&[&two], principal()).alice().await, Err(DirectoryError::SeveralEntries));
}

#[tokio::test]
async fn a_password_that_was_refused_before_is_looked_up_and_not_bound() {
    let server = Scripted::start(|seen| match seen.base() {
        Some(_) => vec![entry("uid=alice,dc=x", &[("PwdChangedTime", &[b"20260101000000Z"])]), done(Code::Success)],
        None => alice(seen),
    })
    .await;
    let under = Under::new(&[&server], searching(None));
    let dn: Arc<str> = "uid=alice,dc=x".into();
    let wrong = under.login("alice", "wrong").await.0;
    let Err(DirectoryError::InvalidCredentials { seen: Some(marks), .. }) = wrong else { panic!("{wrong:?}") };
    assert!(marks.would_show_a_change() && !marks.locked && !marks.differ(&marks.clone()));
    assert!(marks.differ(&Marks::default()));

    let (login, password) = (Login::parse(b"alice").unwrap(), Secret::copy_of(b"wrong"));
    let refused_before = move |entry: &Entry| entry.marks == marks;
    let again = within(under.ldap.authenticate(&login, &password, &refused_before)).await.0;
    assert_eq!((again, server.binds().len()), (Err(DirectoryError::RefusedBefore { dn }), 1));
}

#[tokio::test]
async fn a_plain_no_of_a_locked_account_is_not_to_be_remembered() {
    let server = Scripted::start(|seen| match seen.base() {
        Some(_) => vec![entry("uid=alice,dc=x", &[("lockoutTime", &[b"133500000000000000"])]), done(Code::Success)],
        None => alice(seen),
    })
    .await;
    let refused = Under::new(&[&server], searching(None)).login("alice", "wrong").await.0;
    assert_eq!(refused, Err(DirectoryError::InvalidCredentials { dn: "uid=alice,dc=x".into(), seen: None }));
}
