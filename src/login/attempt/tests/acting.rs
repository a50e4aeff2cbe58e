//! Attempts of users that act for a mailbox: what they cost, when and how they are answered, and that nothing about the
//! mailbox is remembered.

use super::*;
use crate::login::acting;
use crate::outcome::ActingFault;

const ADMIN: &str = "uid=admin,dc=example";

fn acting_config() -> Config {
    let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})', login_attribute: uid, watch: off}
routing: {backends: [{name: server3, impersonation_service: {login: acting, password_file: p}, imap: {address: '192.0.2.3:993', tls: implicit}}]}
limits: {refusal_delay: 2s}
impersonation: {admins: ['uid=admin,dc=example'], networks: [192.0.2.0/24]}
";
    config::parse(Path::new("/c.yaml"), text).unwrap()
}

fn named(name: &str, dn: &str) -> Entry {
    Entry { logins: vec![name.to_owned()], ..Entry::for_tests(dn, &["server3"]) }
}

fn process() -> Process {
    let process = Process::of(acting_config());
    process.directory.modify("alice", |entry| entry.logins = vec!["alice".to_owned()]);
    process.directory.add("admin", "right", named("admin", ADMIN));
    process.directory.add("mallory", "secret", named("mallory", "uid=mallory,dc=example"));
    process
}

impl Process {
    async fn typed(&self, login: &str, authzid: &str, password: &str) -> Result<usize, RefusedLogin> {
        let config = &self.core.load_full().config;
        let (name, acting) = acting::names(config, login.as_bytes(), authzid.as_bytes()).unwrap();
        self.attempt(Ok(Credential::for_tests(name.as_str(), password)), acting, &Scripted::accepting()).await
    }
}

#[tokio::test(start_paused = true)]
async fn administrator_acts_by_both_forms_and_the_cached_password_is_judged_for_each_mailbox() {
    let process = process();
    for (login, authzid) in [("admin", "alice"), ("alice*admin", "")] {
        assert_eq!(process.typed(login, authzid, "right").await.unwrap(), 0, "{login}");
    }
    assert_eq!((process.directory.binds(), process.events("ok")), (1, 2), "one bind, by the administrator");
    // The password of the administrator is in the cache, the mailbox is judged anew.
    let refused = process.typed("admin", "missing", "right").await.unwrap_err();
    assert_eq!(refused.refusal, Refusal::ActingNotAllowed(ActingFault::UnknownTarget));
    process.directory.modify("alice", |entry| entry.version.disabled = true);
    let refused = process.typed("admin", "alice", "right").await.unwrap_err();
    assert_eq!(refused.refusal, Refusal::ActingNotAllowed(ActingFault::Disabled));
    // Neither has the mailbox's own user a password in the cache by that.
    process.directory.modify("alice", |entry| entry.version.disabled = false);
    assert!(process.alice("right", &Scripted::accepting()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn refusals_are_those_of_a_wrong_password_for_everybody() {
    // Right and wrong passwords, administrators and other users, existing and missing mailboxes.
    for (login, authzid, password) in [
        ("admin", "alice", "wrong"),
        ("admin", "missing", "wrong"),
        ("admin", "missing", "right"),
        ("mallory", "alice", "wrong"),
        ("mallory", "alice", "secret"),
        ("mallory", "missing", "secret"),
        ("missing", "alice", "secret"),
        ("alice*mallory", "", "secret"),
        ("missing*admin", "", "right"),
    ] {
        for cached in [false, true] {
            let process = process();
            if cached {
                let _ = process.typed("mallory", "", "secret").await;
                let _ = process.typed("admin", "", "right").await;
            }
            let began = Instant::now();
            let refused = process.typed(login, authzid, password).await.unwrap_err();
            let seen = (refused.reply, began.elapsed());
            assert_eq!(seen, (Reply::AuthenticationFailed, REFUSAL_DELAY), "{login} {authzid} {password} {cached}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn right_password_that_is_refused_is_charged_as_a_wrong_one() {
    let delays = |passwords: Vec<String>, cached: bool| async move {
        let process = process();
        if cached {
            process.typed("mallory", "", "secret").await.unwrap();
        }
        let mut times = Vec::new();
        for password in passwords {
            let began = Instant::now();
            process.typed("mallory", "alice", &password).await.unwrap_err();
            times.push(began.elapsed());
        }
        times
    };
    let guesses = || (0..12).map(|number| format!("guess{number}"));
    let right_last = || guesses().chain(["secret".to_owned(), "next".to_owned()]).collect::<Vec<_>>();
    let wrong_last = || guesses().chain(["last".to_owned(), "next".to_owned()]).collect::<Vec<_>>();
    let wrong = delays(wrong_last(), false).await;
    assert_eq!(delays(right_last(), false).await, wrong);
    assert!(wrong.iter().any(|time| *time > REFUSAL_DELAY), "guesses are delayed: {wrong:?}");
}

#[tokio::test(start_paused = true)]
async fn name_with_the_separator_is_its_own_where_an_entry_has_it() {
    let process = process();
    process.directory.add("o*brien", "harp", named("o*brien", "uid=o\\2abrien,dc=example"));
    process.directory.add("brien", "drum", named("brien", "uid=brien,dc=example"));
    for _ in 0..2 {
        let mut frontend = Scripted::accepting();
        frontend.login = "o*brien";
        let name = acting::names(&process.core.load_full().config, b"o*brien", b"").unwrap();
        let credential = Credential::for_tests(name.0.as_str(), "harp");
        assert!(process.attempt(Ok(credential), name.1, &frontend).await.is_ok());
    }
    assert_eq!(process.directory.binds(), 1, "the second one is cached, and brien was never bound");
    assert!(process.typed("o*brien", "", "drum").await.is_err(), "the password of brien opens nothing");
    assert_eq!(process.typed("alice*admin", "", "right").await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn own_mailbox_under_another_name_is_an_ordinary_login() {
    let process = process();
    process.directory.add("alias", "sesame", named("alice", DN));
    let config = &process.core.load_full().config;
    let (name, acting) = acting::names(config, b"alice", b"alias").unwrap();
    let frontend = Scripted { acts: Some(false), ..Scripted::accepting() };
    process.attempt(Ok(Credential::for_tests(name.as_str(), "sesame")), acting, &frontend).await.unwrap();
    let (name, acting) = acting::names(config, b"admin", b"alice").unwrap();
    let frontend = Scripted { acts: Some(true), ..Scripted::accepting() };
    process.attempt(Ok(Credential::for_tests(name.as_str(), "right")), acting, &frontend).await.unwrap();
}

/// A frontend whose backend refuses each decision that was cached; something changes meanwhile.
struct RefusesCached<F>(F);

impl<F: Fn() + Sync> Frontend for RefusesCached<F> {
    type Accepted = usize;

    async fn complete(
        &self,
        attempt: &LoginAttempt<'_>,
        login: AttemptedLogin<'_>,
        routed: RoutedLogin,
        _: &mut LoginEvent,
    ) -> Result<Completion<usize>, Refusal> {
        if routed.by != DecidedBy::Cache {
            return Ok(Completion::Accepted(0));
        }
        let Self(change) = self;
        change();
        Ok(Completion::Redecided(Box::new(attempt.decide_again(login, &routed.proven).await)))
    }
}

#[tokio::test(start_paused = true)]
async fn other_name_that_meanwhile_is_another_users_opens_nothing_after_a_refusal_by_the_backend() {
    let process = process();
    process.directory.add("alias", "drum", named("alice", DN));
    let config = &process.core.load_full().config;
    let attempt = async |change: &(dyn Fn() + Sync)| {
        let (name, acting) = acting::names(config, b"alice", b"alias").unwrap();
        process.attempt(Ok(Credential::for_tests(name.as_str(), "sesame")), acting, &RefusesCached(change)).await
    };
    for _ in 0..2 {
        attempt(&|| ()).await.unwrap();
    }
    assert_eq!(process.directory.binds(), 2, "the second one is cached, refused and decided again");
    // The name moves to another user.
    let moves = || process.directory.modify("alias", |entry| *entry = named("alias", "uid=alias,dc=example"));
    let refused = attempt(&moves).await.unwrap_err();
    assert!(matches!(refused.refusal, Refusal::ActingNotAllowed(_)), "{:?}", refused.refusal);
    assert_eq!(refused.reply, Reply::AuthenticationFailed);
    // The password is right all the same, and stays in the cache; one that is wrong by now does not.
    let binds = process.directory.binds();
    process.alice("sesame", &Scripted::accepting()).await.unwrap();
    assert_eq!(process.directory.binds(), binds);
    process.directory.modify("alias", |entry| *entry = named("alice", DN));
    let refused = attempt(&|| process.directory.set_password("alice", "changed")).await.unwrap_err();
    assert_eq!(refused.refusal, Refusal::WrongPassword);
    assert!(process.alice("sesame", &Scripted::accepting()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn outage_is_no_wrong_password_for_a_user_who_acts() {
    let process = process();
    process.typed("admin", "", "right").await.ok();
    process.directory.set_outage(true);
    let refused = process.typed("admin", "alice", "right").await.unwrap_err();
    assert_eq!((refused.refusal, refused.reply), (Refusal::DirectoryUnavailable, Reply::Unavailable));
}

#[tokio::test(start_paused = true)]
async fn mailbox_that_is_held_is_waited_for_and_judged_again() {
    let process = process();
    process.directory.modify("alice", |entry| entry.version.held = true);
    let refused = process.typed("admin", "alice", "right").await.unwrap_err();
    assert_eq!(refused.refusal, Refusal::Hold);
    process.directory.modify("alice", |entry| entry.version.held = false);
    assert!(process.typed("admin", "alice", "right").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn rights_lost_between_decision_and_reply_count() {
    let process = Arc::new(process());
    let other = Arc::clone(&process);
    let frontend = Scripted::new(move |_| {
        other.directory.modify("alice", |entry| entry.version.disabled = true);
        Ok(Completion::Outdated)
    });
    let config = &process.core.load_full().config;
    let (name, acting) = acting::names(config, b"admin", b"alice").unwrap();
    let refused =
        process.attempt(Ok(Credential::for_tests(name.as_str(), "right")), acting, &frontend).await.unwrap_err();
    assert_eq!(refused.refusal, Refusal::ActingNotAllowed(ActingFault::Disabled));
}

#[tokio::test(start_paused = true)]
async fn mailbox_whose_mail_host_vanishes_without_an_edit_is_not_entered() {
    let process = process();
    let revision = |edit: u8| Some(format!("2026112614000{edit}.000001Z#000000#001#000000").into());
    process.directory.modify("alice", |entry| entry.version.revision = revision(1));
    assert!(process.typed("admin", "alice", "right").await.is_ok());
    process.directory.modify("alice", |entry| entry.mail_hosts.clear());
    let refused = process.typed("admin", "alice", "right").await.unwrap_err();
    assert_eq!(refused.refusal, Refusal::DirectoryUnavailable, "a server hides it");
    process.directory.modify("alice", |entry| entry.version.revision = revision(2));
    let refused = process.typed("admin", "alice", "right").await.unwrap_err();
    assert_eq!(refused.refusal, Refusal::NoMailHost, "an edit has taken it away");
}

#[tokio::test(start_paused = true)]
async fn guesses_count_against_the_user_who_acts_and_never_against_the_mailbox() {
    let process = process();
    let mut slowest = Duration::ZERO;
    for number in 0..12 {
        let began = Instant::now();
        process.typed("alice*admin", "", &format!("guess{number}")).await.unwrap_err();
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest > REFUSAL_DELAY, "the user who acts is delayed");
    let began = Instant::now();
    process.alice("sesame", &Scripted::accepting()).await.unwrap();
    let first_delay = Duration::from_millis(300);
    assert!(began.elapsed() < first_delay, "not the mailbox's own user: {:?}", began.elapsed());
}
