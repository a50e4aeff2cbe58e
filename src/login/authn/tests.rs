//! The decision with a directory in memory: requests, avoided requests, results.

const STALE: Duration = Duration::from_secs(3_600);
use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::base::credential::{CertificateDigest, CertificateProof, ClientCertificate};
use crate::config;
use crate::directory::EntryFault;
use crate::directory::memory::Memory;
use crate::directory::{EntryId, EntryVersion, NameKind};
use crate::outcome::{AccountState, Proof};
use crate::sessions::closer::Closer;
use crate::sessions::registry::Registry;
use crate::telemetry::metrics::Metrics;
use crate::tracking::{ChangeTracker, TrackingContext};

const DN: &str = "uid=alice,ou=people";
/// Where the client is.
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// In another network.
const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

struct Setup {
    directory: Arc<Memory>,
    authn: Authenticator,
}

fn setup() -> Setup {
    let directory = Memory::with_user("alice", "sesame", Entry::for_tests(DN, &["server3"]));
    let settings = config::Cache {
        ttl: Duration::from_secs(300),
        negative_ttl: Duration::from_secs(30),
        negative_ttl_max: Duration::from_secs(900),
        stale: STALE,
        capacity: 100,
    };
    let authn = Authenticator::new(
        Arc::clone(&directory) as Arc<dyn Directory>,
        Arc::new(Cache::new(&settings)),
        Arc::new(TrackedEntries::new(10, Duration::ZERO)),
        10,
    );
    Setup { directory, authn }
}

impl Setup {
    async fn decide(&self, name: &str, password: &[u8]) -> (Option<Refusal>, DecidedBy) {
        self.decide_at(HOME, name, password).await
    }

    async fn decide_at(&self, client: IpAddr, name: &str, password: &[u8]) -> (Option<Refusal>, DecidedBy) {
        let decision = self.authn.decide(&Credential::for_tests(name, password), client, LookupMode::Cached).await;
        (decision.result.err(), decision.by)
    }

    async fn decide_again(&self, credential: &Credential, client: IpAddr, cached: &Entry) -> AuthDecision {
        let decision = self.authn.decide(credential, client, LookupMode::Directory).await;
        self.authn.decided_again(&decision, cached);
        decision
    }

    fn is_current(&self, proven: &Proven) -> bool {
        self.authn.cache().holds(proven.identity.entry(), proven.since)
    }

    fn binds(&self) -> usize {
        self.directory.binds()
    }
}

#[tokio::test(start_paused = true)]
async fn second_login_is_served_from_the_cache() {
    let setup = setup();
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Cache));
    assert_eq!(setup.binds(), 1);
}

#[tokio::test(start_paused = true)]
async fn certificate_is_right_where_the_newest_entry_lists_it() {
    let setup = setup();
    let (one, other) = (CertificateDigest::of(b"one"), CertificateDigest::of(b"other"));
    let listing =
        |all: &[CertificateDigest]| Entry { certificates: all.to_vec(), ..Entry::for_tests(DN, &["server3"]) };
    let decide = async |login: &str, digest, proof| {
        let certificate = ClientCertificate::new(digest, proof, None);
        let login = Login::parse(login.as_bytes()).unwrap();
        let credential = Credential::new(login, CredentialSecret::ClientCertificate(certificate));
        let decision = setup.authn.decide(&credential, HOME, LookupMode::Cached).await;
        (decision.result.err(), decision.by)
    };
    let wrong = (Some(Refusal::WrongCertificate), DecidedBy::Directory);
    assert_eq!(decide("alice", one, CertificateProof::Key).await, wrong);
    setup.directory.modify("alice", |entry| *entry = listing(&[other, one]));
    assert_eq!(decide("alice", one, CertificateProof::Key).await, (None, DecidedBy::Directory), "no refusal is cached");
    assert_eq!(decide("alice", one, CertificateProof::Key).await, (None, DecidedBy::Cache));
    let third = CertificateDigest::of(b"third");
    assert_eq!(decide("alice", third, CertificateProof::Key).await, wrong);
    assert_eq!(decide("bob", one, CertificateProof::Key).await, (Some(Refusal::UnknownUser), DecidedBy::Directory));
    // What proves by key is no proof by address, nor the reverse.
    assert_eq!(decide("alice", third, CertificateProof::Address).await, (None, DecidedBy::Directory));
    assert_eq!(decide("alice", third, CertificateProof::Key).await, wrong);
    let claimed = ClientCertificate::claimed();
    assert_eq!(decide("alice", claimed.digest(), claimed.proof()).await, wrong);
    assert_eq!(setup.binds(), 0);
}

#[tokio::test(start_paused = true)]
async fn cached_decision_is_proven_by_its_own_password_or_certificate() {
    let setup = setup();
    let (one, other) = (CertificateDigest::of(b"one"), CertificateDigest::of(b"other"));
    let lists = |all: &[CertificateDigest]| setup.directory.modify("alice", |entry| entry.certificates = all.to_vec());
    let by = |secret| Credential::new(Login::parse(b"alice").unwrap(), secret);
    let certificate = |digest| {
        let certificate = ClientCertificate::new(digest, CertificateProof::Key, None);
        by(CredentialSecret::ClientCertificate(certificate))
    };
    let decide = async |credential: &Credential| {
        let decision = setup.authn.decide(credential, HOME, LookupMode::Cached).await;
        (decision.result.map(|proven| proven.identity.certificate()), decision.by)
    };
    lists(&[one, other]);
    let password = Credential::for_tests("alice", "sesame");
    // What is new has the others verified again.
    let all = [(&password, None), (&certificate(one), Some(one)), (&certificate(other), Some(other))];
    for by in [DecidedBy::Directory, DecidedBy::Directory, DecidedBy::Cache, DecidedBy::Cache] {
        for (credential, evidence) in all {
            let decided = decide(credential).await;
            assert_eq!(decided.0, Ok(evidence));
            assert!(by == DecidedBy::Directory || decided.1 == by);
        }
    }
    // The entry lists one of them no longer, as a bind has just shown.
    lists(&[one]);
    setup.authn.decide(&password, HOME, LookupMode::Directory).await.result.unwrap();
    assert_eq!(decide(&certificate(one)).await, (Ok(Some(one)), DecidedBy::Cache));
    assert_eq!(decide(&certificate(other)).await, (Err(Refusal::WrongCertificate), DecidedBy::Directory));
    // No password may be used: certificates may.
    setup.directory.refuse_passwords("alice", true);
    assert_eq!(decide(&Credential::for_tests("alice", "guess")).await.0, Err(Refusal::PasswordNotAllowed));
    assert_eq!(decide(&certificate(one)).await, (Ok(Some(one)), DecidedBy::Cache));
    assert_eq!(decide(&password).await, (Err(Refusal::PasswordNotAllowed), DecidedBy::Directory));
}

#[tokio::test(start_paused = true)]
async fn invalid_credentials_never_reach_the_directory() {
    let setup = setup();
    assert_eq!(setup.decide("alice", b"").await, (Some(Refusal::EmptyPassword), DecidedBy::Usher));
    for unusable in [&b"se\0same"[..], b"\0"] {
        assert_eq!(setup.decide("alice", unusable).await, (Some(Refusal::InvalidPassword), DecidedBy::Usher));
    }
    assert_eq!(setup.binds(), 0);
}

#[tokio::test(start_paused = true)]
async fn repeated_wrong_password_is_one_bind_and_a_new_one_another() {
    let setup = setup();
    let wrong = Some(Refusal::WrongPassword);
    assert_eq!(setup.decide("alice", b"stale").await, (wrong.clone(), DecidedBy::Directory));
    for _ in 0..20 {
        assert_eq!(setup.decide("alice", b"stale").await, (wrong.clone(), DecidedBy::Negative));
    }
    assert_eq!(setup.decide("alice", b"other").await, (wrong, DecidedBy::Directory));
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    assert_eq!(setup.binds(), 3);
}

fn show(setup: &Setup, marks: EntryVersion) {
    setup.directory.set_version("alice", marks);
}

fn aged(password: u64) -> EntryVersion {
    EntryVersion { password_changed: Some(password), ..EntryVersion::default() }
}

#[tokio::test(start_paused = true)]
async fn device_that_retries_each_minute_for_a_day_costs_few_binds() {
    let setup = setup();
    show(&setup, aged(1));
    for _ in 0..24 * 60 {
        assert_eq!(setup.decide("alice", b"stale").await.0, Some(Refusal::WrongPassword));
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    assert!(setup.binds() <= 24 * 4 + 8, "{} binds", setup.binds());
    // When it becomes valid again, a search detects it.
    setup.directory.set_password("alice", "stale");
    show(&setup, aged(2));
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(setup.decide("alice", b"stale").await, (None, DecidedBy::Directory));
}

#[tokio::test(start_paused = true)]
async fn wrong_password_is_cached_for_its_ttl_when_changes_are_not_visible() {
    let setup = setup();
    for _ in 0..10 {
        assert_eq!(setup.decide("alice", b"stale").await, (Some(Refusal::WrongPassword), DecidedBy::Directory));
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    assert_eq!(setup.binds(), 10);
}

#[tokio::test(start_paused = true)]
async fn refusal_of_a_locked_account_is_not_cached() {
    let setup = setup();
    setup.directory.set_password("alice", "none while it is locked");
    show(&setup, EntryVersion { locked: true, ..EntryVersion::default() });
    assert_eq!(setup.decide("alice", b"sesame").await, (Some(Refusal::WrongPassword), DecidedBy::Directory));
    setup.directory.set_password("alice", "sesame");
    show(&setup, aged(1));
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory), "at once");
}

#[tokio::test(start_paused = true)]
async fn outage_is_never_a_wrong_password_and_never_cached() {
    let setup = setup();
    setup.directory.set_outage(true);
    assert_eq!(setup.decide("alice", b"sesame").await, (Some(Refusal::DirectoryUnavailable), DecidedBy::Directory));
    setup.directory.set_outage(false);
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    setup.directory.set_outage(true);
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Cache), "seen a minute ago");
}

#[tokio::test(start_paused = true)]
async fn decision_revoked_by_the_directory_is_not_served_stale() {
    let setup = setup();
    setup.decide("alice", b"sesame").await;
    tokio::time::advance(Duration::from_secs(301)).await;
    setup.directory.remove("alice");
    assert_eq!(setup.decide("alice", b"sesame").await, (Some(Refusal::UnknownUser), DecidedBy::Directory));
    setup.directory.set_outage(true);
    setup.directory.set_availability(Availability::Unreachable);
    let unavailable = Some(Refusal::DirectoryUnavailable);
    assert_eq!(setup.decide("alice", b"sesame").await, (unavailable, DecidedBy::Directory));
}

#[tokio::test(start_paused = true)]
async fn cached_user_logs_in_while_the_directory_is_unreachable_and_no_password_is_wrong() {
    let setup = setup();
    let unavailable = Some(Refusal::DirectoryUnavailable);
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    tokio::time::advance(Duration::from_secs(301)).await;
    setup.directory.set_outage(true);
    // A slow reply for one user is no outage.
    assert_eq!(setup.decide("alice", b"sesame").await, (unavailable.clone(), DecidedBy::Directory));
    setup.directory.set_availability(Availability::Recovering);
    let binds = setup.binds();
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Stale));
    assert_eq!(setup.binds(), binds + 1, "one login must find out whether it is up again");
    setup.directory.set_availability(Availability::Unreachable);
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Stale));
    let credential = Credential::for_tests("alice", "sesame");
    let recalled = setup.authn.recall(&credential, HOME).unwrap();
    assert_eq!(recalled.by, DecidedBy::Stale, "and costs no guess");
    assert_eq!(setup.binds(), binds + 1, "no lookup");
    // Another password, another name, a revalidation: only the directory can decide.
    assert_eq!(setup.decide("alice", b"other").await, (unavailable.clone(), DecidedBy::Directory));
    assert_eq!(setup.decide("bob", b"sesame").await, (unavailable.clone(), DecidedBy::Directory));
    let again = setup.decide_again(&credential, HOME, &Entry::for_tests(DN, &[])).await;
    assert_eq!(again.result.unwrap_err(), Refusal::DirectoryUnavailable);
    tokio::time::advance(STALE - Duration::from_secs(302)).await;
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Stale), "nothing was evicted");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(setup.decide("alice", b"sesame").await, (unavailable, DecidedBy::Directory));
}

#[tokio::test(start_paused = true)]
async fn password_refused_on_revalidation_is_removed() {
    let setup = setup();
    let credential = Credential::for_tests("alice", "sesame");
    let decision = setup.authn.decide(&credential, HOME, LookupMode::Cached).await;
    let proven = decision.result.unwrap();
    assert!(setup.is_current(&proven));
    setup.directory.set_password("alice", "changed");
    let again = setup.decide_again(&credential, HOME, &Entry::for_tests(DN, &[])).await;
    assert_eq!(again.result.unwrap_err(), Refusal::WrongPassword);
    assert!(!setup.is_current(&proven), "a login that is under way with the old decision must not end in OK");
    assert_eq!(setup.decide("alice", b"sesame").await, (Some(Refusal::WrongPassword), DecidedBy::Negative));
}

#[tokio::test(start_paused = true)]
async fn entry_missing_on_revalidation_is_removed() {
    let setup = setup();
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    setup.directory.remove("alice");
    let credential = Credential::for_tests("alice", "sesame");
    let again = setup.decide_again(&credential, HOME, &Entry::for_tests(DN, &[])).await;
    assert_eq!(again.result.unwrap_err(), Refusal::UnknownUser);
    assert_eq!(setup.decide("alice", b"sesame").await, (Some(Refusal::UnknownUser), DecidedBy::Directory));
}

#[tokio::test(start_paused = true)]
async fn hundred_identical_concurrent_logins_are_one_bind() {
    let setup = Arc::new(setup());
    let logins: Vec<_> = (0..100)
        .map(|_| {
            let setup = Arc::clone(&setup);
            tokio::spawn(async move { setup.decide("alice", b"sesame").await.0 })
        })
        .collect();
    for login in logins {
        assert_eq!(login.await.unwrap(), None);
    }
    assert_eq!(setup.binds(), 1);
}

#[tokio::test(start_paused = true)]
async fn entry_outside_change_tracking_is_not_cached() {
    let directory = setup().directory;
    let settings = config::Cache {
        ttl: Duration::from_secs(300),
        negative_ttl: Duration::from_secs(30),
        negative_ttl_max: Duration::from_secs(900),
        stale: STALE,
        capacity: 100,
    };
    // The table is full.
    let known = Arc::new(TrackedEntries::new(0, Duration::from_secs(300)));
    let asked = Arc::clone(&directory) as Arc<dyn Directory>;
    let authn = Authenticator::new(asked, Arc::new(Cache::new(&settings)), Arc::clone(&known), 10);
    let setup = Setup { directory, authn };
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Cache), "nothing is followed");
    known.report_for_tests();
    setup.authn.cache().drop_all();
    for _ in 0..2 {
        assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    }
}

#[tokio::test(start_paused = true)]
async fn locked_account_accepts_only_the_password_verified_before() {
    let settings = config::Cache {
        ttl: Duration::from_secs(300),
        negative_ttl: Duration::from_secs(30),
        negative_ttl_max: Duration::from_secs(900),
        stale: STALE,
        capacity: 100,
    };
    let cache = Cache::new(&settings);
    let credential = Credential::for_tests("alice", "sesame");
    let locked = |marks: EntryVersion| Entry {
        version: EntryVersion { locked: true, ..marks },
        ..Entry::for_tests(DN, &["server3"])
    };
    for (before, after, is_same) in [
        (aged(1), aged(1), true),
        (aged(1), aged(2), false),
        (EntryVersion::default(), aged(2), false),
        (EntryVersion::default(), EntryVersion { has_policy_attributes: true, ..EntryVersion::default() }, true),
        // No change would reveal another password.
        (EntryVersion::default(), EntryVersion { revision: Some("2".into()), ..EntryVersion::default() }, false),
    ] {
        let entry = Arc::new(Entry { version: before, ..Entry::for_tests(DN, &["server3"]) });
        let identity = Arc::new(Identity::for_tests(DN, &[]).with_entry(entry));
        cache.right(&credential, identity, cache.stamp());
        assert_eq!(unchanged(&cache, &credential, &locked(after.clone())).is_some(), is_same, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn account_state_is_never_cached() {
    let setup = setup();
    setup.directory.set_state("alice", AccountState::PasswordExpired, true);
    let refused = Refusal::Account { state: AccountState::PasswordExpired, proven: true };
    for bind in 1..=3 {
        assert_eq!(setup.decide("alice", b"sesame").await, (Some(refused.clone()), DecidedBy::Directory));
        assert_eq!(setup.binds(), bind);
    }
    assert_eq!(setup.decide("alice", b"stale").await.0, Some(Refusal::WrongPassword), "reported to its owner only");
}

#[tokio::test(start_paused = true)]
async fn mail_address_is_no_login_name() {
    let setup = setup();
    setup.directory.set_mail("alice", "alice@example.com");
    let address = Login::parse(b"alice@example.com").unwrap();
    let found = setup.directory.find(&address, NameKind::Mail).await.0.unwrap();
    assert_eq!(&*found.dn, DN);
    assert_eq!(setup.decide("alice@example.com", b"sesame").await.0, Some(Refusal::UnknownUser));
}

#[tokio::test(start_paused = true)]
async fn two_entries_with_one_login_name_are_refused_without_a_bind() {
    let setup = setup();
    setup.directory.add("alice", "sesame", Entry::for_tests("uid=alice,ou=former", &["server4"]));
    assert_eq!(setup.decide("alice", b"sesame").await.0, Some(Refusal::SeveralEntries(Proof::Missing)));
    assert_eq!(setup.binds(), 0);
}

#[tokio::test(start_paused = true)]
async fn entry_that_cannot_be_used_is_not_cached() {
    let setup = setup();
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    setup.directory.modify("alice", |entry| {
        entry.fault = Some(Box::new(EntryFault::TooManyValues("memberOf".into())));
    });
    setup.authn.cache().drop_all();
    for binds in 2..4 {
        // The password is right: routing refuses the entry.
        let decision = setup.authn.decide(&Credential::for_tests("alice", "sesame"), HOME, LookupMode::Cached).await;
        assert_eq!((decision.by, decision.result.is_ok()), (DecidedBy::Directory, true));
        assert_eq!(decision.fault.unwrap().to_string(), "memberOf has more than 64 values");
        assert_eq!(setup.binds(), binds, "it is looked up each time");
    }
    assert_eq!(setup.decide("alice", b"guess").await.0, Some(Refusal::WrongPassword));
    // Mended: nothing of the fault is remembered, and neither is a wrong password.
    setup.directory.modify("alice", |entry| entry.fault = None);
    assert_eq!(setup.decide("alice", b"sesame").await.0, None);
    setup.directory.set_outage(true);
    setup.directory.set_availability(Availability::Unreachable);
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Cache));
}

/// Applies what the directory reports to the tracked entries of the decision.
async fn watch(setup: &Setup, tracker: &ChangeTracker, config: &config::Config, changes: impl AsyncFnOnce()) {
    let context = TrackingContext {
        realm: Realm::DEFAULT,
        shown: None,
        cache: setup.authn.cache(),
        entries: setup.authn.entries(),
        routing: &config.routing,
        watch: &config.directories[0].watch,
    };
    let report = |change| tracker.take(change, &context);
    let source = setup.directory.changes().expect("it reports changes");
    tokio::select! {
        // The watch reports a change before the other branch ends.
        biased;
        () = source.watch(&report) => {}
        () = async {
            tokio::task::yield_now().await;
            changes().await;
            tokio::task::yield_now().await;
        } => {}
    }
}

fn tracker() -> ChangeTracker {
    let registry = Arc::<Registry>::default();
    let closer = Arc::new(Closer::new(Arc::clone(&registry)));
    ChangeTracker::new(Realm::DEFAULT, registry, closer, Arc::new(Metrics::new()))
}

fn watched(number: u8, change: impl FnOnce(&mut Entry)) -> Entry {
    let mut entry = Entry::for_tests(DN, &["server3"]);
    entry.version = EntryVersion {
        id: EntryId::from_bytes(&[1; 16]),
        revision: Some(format!("202611261400{number:02}.000000Z#000000#000#000000").into()),
        password_changed: Some(1),
        ..EntryVersion::default()
    };
    change(&mut entry);
    entry
}

#[tokio::test(start_paused = true)]
async fn reported_change_of_password_or_account_ends_the_cached_decision() {
    let changes: [fn(&mut Entry); 3] = [
        |entry| entry.version.password_changed = Some(2),
        |entry| entry.version.disabled = true,
        |entry| entry.version.held = true,
    ];
    for change in changes {
        let (setup, tracker, config) = (setup(), tracker(), config_for_tests());
        setup.directory.modify("alice", |entry| *entry = watched(1, |_| {}));
        watch(&setup, &tracker, &config, async || {
            assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
            assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Cache));
            setup.directory.modify("alice", |entry| *entry = watched(2, change));
        })
        .await;
        assert!(setup.authn.recall(&Credential::for_tests("alice", "sesame"), HOME).is_none());
        assert_eq!(setup.binds(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn deleted_user_is_refused_although_its_decision_was_cached() {
    let (setup, tracker, config) = (setup(), tracker(), config_for_tests());
    setup.directory.modify("alice", |entry| *entry = watched(1, |_| {}));
    watch(&setup, &tracker, &config, async || {
        assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
        setup.directory.remove("alice");
    })
    .await;
    assert_eq!(setup.decide("alice", b"sesame").await.0, Some(Refusal::UnknownUser));
}

#[tokio::test(start_paused = true)]
async fn change_that_matters_to_no_login_keeps_the_cached_decision() {
    let (setup, tracker, config) = (setup(), tracker(), config_for_tests());
    setup.directory.modify("alice", |entry| *entry = watched(1, |_| {}));
    watch(&setup, &tracker, &config, async || {
        assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
        setup.directory.modify("alice", |entry| *entry = watched(2, |entry| entry.version.login_activity = 7));
    })
    .await;
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Cache));
}

fn config_for_tests() -> config::Config {
    let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
routing: {backends: [{name: server3, imap: {address: '192.0.2.3:993', tls: implicit}}]}
";
    config::parse(std::path::Path::new("/c.yaml"), text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn networks_are_judged_for_each_client_whatever_is_cached() {
    let setup = setup();
    setup.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["192.0.2.0/24"]));
    let elsewhere = (Some(Refusal::NetworkNotAllowed), DecidedBy::Directory);
    // The same flight: one bind, a decision for each.
    let (home, away) = tokio::join!(setup.decide("alice", b"sesame"), setup.decide_at(AWAY, "alice", b"sesame"));
    assert_eq!((home.0, away, setup.binds()), (None, elsewhere.clone(), 1));
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Cache), "not remembered as a wrong one");
    assert_eq!(setup.decide_at(AWAY, "alice", b"sesame").await, elsewhere);
    assert!(setup.authn.recall(&Credential::for_tests("alice", "sesame"), AWAY).is_none());
    assert_eq!(setup.decide_at(AWAY, "alice", b"guess").await.0, Some(Refusal::WrongPassword));
    let decision = setup.authn.decide(&Credential::for_tests("alice", "sesame"), AWAY, LookupMode::Cached).await;
    assert_eq!((decision.dn.as_deref(), decision.fault), (Some(DN), None));
    // Widened: at once, without waiting for the end of `cache.ttl`.
    setup.directory.modify("alice", |entry| *entry = entry.clone().permitting(&[]));
    assert_eq!(setup.decide_at(AWAY, "alice", b"sesame").await, (None, DecidedBy::Directory));
    assert_eq!(setup.decide_at(AWAY, "alice", b"sesame").await, (None, DecidedBy::Cache));
    setup.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["local"]));
    tokio::time::advance(Duration::from_secs(301)).await;
    let decision = setup.authn.decide(&Credential::for_tests("alice", "sesame"), HOME, LookupMode::Cached).await;
    assert_eq!(decision.result.err(), Some(Refusal::UnusableNetworks));
    assert!(matches!(decision.fault.as_deref(), Some(EntryFault::NoNetwork { .. })), "{:?}", decision.fault);
}

#[tokio::test(start_paused = true)]
async fn last_known_networks_hold_in_an_outage() {
    let setup = setup();
    setup.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["192.0.2.0/24"]));
    assert_eq!(setup.decide("alice", b"sesame").await.0, None);
    setup.directory.set_outage(true);
    setup.directory.set_availability(Availability::Unreachable);
    // Fresh or stale: the reply is that to a wrong password in an outage.
    for wait in [0, 301] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        assert_eq!(setup.decide("alice", b"sesame").await.0, None, "{wait}");
        let unavailable = (Some(Refusal::DirectoryUnavailable), DecidedBy::Directory);
        assert_eq!(setup.decide_at(AWAY, "alice", b"sesame").await, unavailable, "{wait}");
        assert_eq!(setup.decide_at(AWAY, "alice", b"guess").await, unavailable, "{wait}");
    }
}

#[tokio::test(start_paused = true)]
async fn state_of_an_account_is_hidden_from_other_networks() {
    for (state, proven) in [(AccountState::PasswordExpired, true), (AccountState::Locked, false)] {
        let setup = setup();
        setup.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["192.0.2.0/24"]));
        setup.directory.set_state("alice", state, proven);
        assert_eq!(setup.decide("alice", b"sesame").await.0, Some(Refusal::Account { state, proven }));
        let away = setup.decide_at(AWAY, "alice", b"sesame").await.0.unwrap();
        let expected = if proven { Refusal::NetworkNotAllowed } else { Refusal::Account { state, proven } };
        assert_eq!(away, expected);
        assert_eq!(away.reply(true), Refusal::WrongPassword.reply(true));
    }
    // Expired by its own attribute, which the server does not enforce.
    let setup = setup();
    setup.directory.modify("alice", |entry| {
        *entry = entry.clone().permitting(&["192.0.2.0/24"]);
        entry.version.expires = Some(1);
    });
    let expired = Refusal::Account { state: AccountState::AccountExpired, proven: true };
    assert_eq!(setup.decide("alice", b"sesame").await.0, Some(expired));
    assert_eq!(setup.decide_at(AWAY, "alice", b"sesame").await.0, Some(Refusal::NetworkNotAllowed));
}

#[tokio::test(start_paused = true)]
async fn entry_that_may_not_use_passwords_loses_the_cached_ones_alone() {
    let setup = setup();
    let not_allowed = (Some(Refusal::PasswordNotAllowed), DecidedBy::Directory);
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    let credential = Credential::for_tests("alice", "sesame");
    let proven = setup.authn.decide(&credential, HOME, LookupMode::Cached).await.result.unwrap();
    setup.directory.refuse_passwords("alice", true);
    // Any attempt shows it, and disturbs no login in progress.
    assert_eq!(setup.decide("alice", b"guess").await, not_allowed);
    assert!(setup.is_current(&proven));
    assert_eq!((setup.decide("alice", b"sesame").await, setup.binds()), (not_allowed, 1));
    // Nothing is left for an outage, nor remembered as wrong.
    setup.directory.set_outage(true);
    setup.directory.set_availability(Availability::Unreachable);
    assert_eq!(setup.decide("alice", b"sesame").await.0, Some(Refusal::DirectoryUnavailable));
    setup.directory.set_outage(false);
    setup.directory.set_availability(Availability::Available);
    setup.directory.refuse_passwords("alice", false);
    assert_eq!(setup.decide("alice", b"sesame").await, (None, DecidedBy::Directory));
    // A backend that refuses a cached password has the filter judged again.
    setup.directory.refuse_passwords("alice", true);
    let cached = setup.authn.decide(&credential, HOME, LookupMode::Cached).await.result.unwrap();
    let again = setup.decide_again(&credential, HOME, cached.identity.entry()).await;
    assert_eq!(again.result.err(), Some(Refusal::PasswordNotAllowed));
    assert_eq!(setup.decide("alice", b"sesame").await.0, Some(Refusal::PasswordNotAllowed));
}
