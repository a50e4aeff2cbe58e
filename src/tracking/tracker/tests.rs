//! Changes and their actions, without a directory.

mod fleet;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;
use crate::base::credential::Credential;
use crate::base::tasks::Task;
use crate::config::{Config, parse};
use crate::directory::{EntryId, EntryNames, EntryVersion, Identity, Refresh, ReportedEntry};
use crate::sessions::registry::{ListedSession, StopHandle};
use crate::telemetry::labels::DirectoryChange;

struct Setup {
    config: Config,
    cache: Cache,
    entries: TrackedEntries,
    tracker: ChangeTracker,
    closer: Arc<Closer>,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
}

fn setup(keys: &str) -> Setup {
    let text = format!(
        "listeners: [{{protocol: imap, address: '127.0.0.1:993', tls: implicit}}]
tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}
directory: {{servers: ['ldaps://one'], base: dc=x, filter: '(uid={{login}})'{keys}}}
routing:
  backends:
    - {{name: server3, imap: {{address: '192.0.2.3:993', tls: implicit}}}}
    - {{name: server4, imap: {{address: '192.0.2.4:993', tls: implicit}}}}
"
    );
    let config = parse(std::path::Path::new("/c.yaml"), &text).unwrap();
    let (registry, metrics) = (Arc::<Registry>::default(), Arc::new(Metrics::new()));
    let closer = Arc::new(Closer::new(Arc::clone(&registry)));
    Setup {
        cache: Cache::new(&config.cache),
        entries: TrackedEntries::new(100, Duration::from_secs(300)),
        tracker: ChangeTracker::new(Realm::DEFAULT, Arc::clone(&registry), Arc::clone(&closer), Arc::clone(&metrics)),
        closer,
        config,
        registry,
        metrics,
    }
}

fn entry(number: u8, host: &str, second: u32) -> Entry {
    let marks = EntryVersion {
        id: EntryId::from_bytes(&[number; 16]),
        revision: Some(format!("202611261400{second:02}.000000Z#000000#000#000000").into()),
        password_changed: Some(1),
        ..EntryVersion::default()
    };
    Entry { version: marks, ..Entry::for_tests(&format!("uid={number}"), &[host]) }
}

impl Setup {
    fn setting(&self) -> TrackingContext<'_> {
        let (routing, watch) = (&self.config.routing, &self.config.directories[0].watch);
        TrackingContext {
            realm: Realm::DEFAULT,
            shown: None,
            cache: &self.cache,
            entries: &self.entries,
            routing,
            watch,
        }
    }

    fn check_listed(&self, session: &Session, basis: &SessionBasis) -> Result<(), TerminationReason> {
        let (registry, closer) = (Arc::clone(&self.registry), Arc::clone(&self.closer));
        let trackers = ChangeTrackers::new(registry, closer, Arc::clone(&self.metrics));
        trackers.check_listed(session, basis, |_| Some(self.setting()))
    }

    fn take(&self, change: Change) {
        self.tracker.take(change, &self.setting());
    }

    fn shown(&self, entry: Entry) {
        self.take(Change::Entry(Box::new(ReportedEntry { entry, modified: None, modified_by: None })));
    }

    /// The first refresh, without any tracked entry.
    fn following(self) -> Self {
        [began(), Change::RestDeleted, Change::Complete].into_iter().for_each(|change| self.take(change));
        self
    }

    /// A user with a cached decision and a session.
    fn user(&self, entry: &Entry) -> (ListedSession, StopHandle) {
        let identity = Arc::new(Identity::for_tests(&entry.dn, &[]).with_entry(Arc::new(entry.clone())));
        self.entries.record_login(&identity.shared_entry());
        self.cache.right(&Credential::for_tests(&entry.dn, "sesame"), identity, self.cache.stamp());
        self.session("imap", entry)
    }

    /// A session of this protocol, logged in with this version of its entry.
    fn session(&self, protocol: &'static str, entry: &Entry) -> (ListedSession, StopHandle) {
        let session = Session { protocol: protocol.into(), ..session(&self.registry, entry) };
        self.registry.list(session, basis(entry))
    }

    /// The termination reason of a session, with time for the closer.
    async fn asked(&self, asked: &mut StopHandle) -> Option<TerminationReason> {
        tokio::select! {
            () = self.closer.run(Task::SessionCloser, || 100) => None,
            why = asked => Some(why),
            () = tokio::time::sleep(Duration::from_secs(5)) => None,
        }
    }

    fn is_cached(&self, number: u8) -> bool {
        self.cache.age(&entry(number, "", 0).key()).is_some()
    }

    fn host(&self, number: u8) -> String {
        self.entries.by_dn(Realm::DEFAULT, &format!("uid={number}").into()).unwrap().entry.mail_hosts.join(",")
    }

    fn brake(&self) -> i64 {
        self.metrics.brake("default")
    }
}

/// A full refresh begins.
fn began() -> Change {
    Change::RefreshStarted(Refresh { server: "ldap://one".into(), whole: true, local_timestamps: false })
}

fn by_dn(dn: &str) -> EntryNames {
    EntryNames { realm: Realm::DEFAULT, id: None, dn: Some(dn.into()) }
}

fn basis(entry: &Entry) -> SessionBasis {
    SessionBasis { entry: Arc::new(entry.clone()), backend_login: "user".into(), certificate: None, acting: None }
}

fn session(registry: &Registry, entry: &Entry) -> Session {
    Session {
        id: registry.next_id(),
        login: "user".into(),
        dn: Arc::clone(&entry.dn),
        acting: None,
        acting_dn: None,
        directory: None,
        acting_directory: None,
        client: IpAddr::from([127, 0, 0, 1]).into(),
        protocol: "imap".into(),
        backend: entry.mail_hosts.first().map(String::as_str).unwrap_or_default().into(),
        address: None,
        since: 0,
    }
}

#[tokio::test(start_paused = true)]
async fn incomplete_refresh_changes_nothing() {
    let setup = setup("").following();
    let _user = setup.user(&entry(1, "server3", 1));
    setup.take(began());
    setup.shown(entry(1, "server4", 2));
    assert_eq!(setup.host(1), "server3", "until it is complete");
    setup.take(Change::Lost);
    assert_eq!(setup.tracker.status(), WatchStatus::Lost);
    setup.take(began());
    setup.take(Change::Complete);
    assert_eq!((setup.host(1).as_str(), setup.is_cached(1)), ("server3", true));
    setup.take(began());
    setup.shown(entry(1, "server4", 2));
    setup.take(Change::Complete);
    assert_eq!((setup.host(1).as_str(), setup.is_cached(1)), ("server4", false));
}

#[tokio::test(start_paused = true)]
async fn refresh_without_most_users_is_rejected() {
    let setup = setup("").following();
    let users: Vec<_> = (1..=10).map(|number| setup.user(&entry(number, "server3", 1))).collect();
    let present = |setup: &Setup, numbers: std::ops::RangeInclusive<u8>| {
        setup.take(began());
        numbers.for_each(|number| setup.shown(entry(number, "server3", 1)));
        setup.take(Change::RestDeleted);
        setup.take(Change::Complete);
    };
    present(&setup, 1..=8);
    assert_eq!((setup.brake(), setup.is_cached(9), setup.is_cached(1)), (0, false, true), "some may be gone");
    tokio::time::advance(Duration::from_secs(60)).await;
    present(&setup, 1..=2);
    assert_eq!((setup.brake(), setup.is_cached(3)), (6, true));
    assert_eq!(setup.metrics.directory_changes.at("default", DirectoryChange::Delete).get(), 2);
    present(&setup, 1..=8);
    assert_eq!((setup.brake(), setup.is_cached(3)), (0, true), "they are back");
    drop(users);
}

#[tokio::test(start_paused = true)]
async fn password_change_applies_during_the_brake_and_a_move_does_not() {
    let setup = setup(", brake: 1").following();
    let _users: Vec<_> = (1..=3).map(|number| setup.user(&entry(number, "server3", 1))).collect();
    (1..=2).for_each(|number| setup.shown(entry(number, "server4", 2)));
    assert_eq!((setup.brake(), setup.host(1).as_str(), setup.host(2).as_str()), (2, "server3", "server3"));
    assert!(setup.is_cached(2), "held back before it was acted on");
    let mut changed = entry(3, "server4", 3);
    changed.version.password_changed = Some(2);
    setup.shown(changed);
    assert_eq!((setup.brake(), setup.host(3).as_str(), setup.is_cached(3)), (3, "server3", false));
    assert_eq!(setup.tracker.confirm(Duration::ZERO, &setup.setting()), 3);
    assert_eq!((setup.brake(), setup.host(1).as_str(), setup.host(3).as_str()), (0, "server4", "server4"));
    // After that the count restarts.
    (1..=2).for_each(|number| setup.shown(entry(number, "server3", 4)));
    assert_eq!((setup.brake(), setup.host(1).as_str()), (2, "server4"));
}

/// Each change that ends a session, with the reason, and a name for it.
fn changes(version: u32) -> Vec<(Entry, TerminationReason)> {
    let changed = |change: fn(&mut Entry)| {
        let mut entry = entry(1, "server3", version);
        change(&mut entry);
        entry
    };
    vec![
        (changed(|entry| *entry = entry.clone().permitting(&["203.0.113.0/24"])), TerminationReason::Network),
        (changed(|entry| entry.version.held = true), TerminationReason::Hold),
        (changed(|entry| entry.version.disabled = true), TerminationReason::Disabled),
        (changed(|entry| entry.version.expires = Some(1)), TerminationReason::Expired),
        (changed(|entry| entry.mail_hosts = vec!["server4".into()]), TerminationReason::Moved),
        (changed(|entry| entry.mail_hosts.clear()), TerminationReason::Moved),
        (changed(|entry| entry.logins = vec!["other".into()]), TerminationReason::Moved),
        (changed(|entry| entry.version.password_changed = Some(2)), TerminationReason::PasswordChanged),
    ]
}

const CLOSE_ALL: &str = ", on_password_change: close";

#[tokio::test(start_paused = true)]
async fn change_means_the_same_for_a_listed_session_and_for_one_being_listed() {
    for (changed, why) in changes(2) {
        let setup = setup(CLOSE_ALL).following();
        let decided = entry(1, "server3", 1);
        let (_listed, mut asked) = setup.user(&decided);
        setup.shown(changed.clone());
        assert_eq!(setup.asked(&mut asked).await, Some(why), "{changed:?}");
        // Decided before the change arrived, listed after it.
        let late = session(&setup.registry, &decided);
        let (_late, _asked) = setup.registry.list(late.clone(), basis(&decided));
        assert_eq!(setup.check_listed(&late, &basis(&decided)), Err(why), "{changed:?}");
        // Decided after it.
        let is_a_state = matches!(
            why,
            TerminationReason::Network
                | TerminationReason::Hold
                | TerminationReason::Disabled
                | TerminationReason::Expired
        );
        if !is_a_state {
            let new = Session { backend: changed.mail_hosts.concat().into(), ..late };
            assert_eq!(setup.check_listed(&new, &basis(&changed)), Ok(()), "{changed:?}");
        }
    }
    let setup = setup("").following();
    let decided = entry(1, "server3", 1);
    let _user = setup.user(&decided);
    setup.take(Change::Deleted { id: decided.version.id, dn: None });
    let late = session(&setup.registry, &decided);
    assert_eq!(setup.check_listed(&late, &basis(&decided)), Err(TerminationReason::Deleted));
}

#[tokio::test(start_paused = true)]
async fn session_that_is_listed_late_is_listed_under_the_newest_dn() {
    let setup = setup("").following();
    let decided = entry(1, "server3", 1);
    setup.entries.record_login(&Arc::new(decided.clone()));
    setup.shown(Entry { dn: "cn=1".into(), ..entry(1, "server3", 2) });
    let late = session(&setup.registry, &decided);
    let (_late, mut asked) = setup.registry.list(late.clone(), basis(&decided));
    assert_eq!(setup.check_listed(&late, &basis(&decided)), Ok(()));
    assert!(setup.registry.has(&by_dn("cn=1")) && !setup.registry.has(&by_dn(&decided.dn)));
    setup.shown(Entry { dn: "cn=1".into(), ..entry(1, "server4", 3) });
    assert_eq!(setup.asked(&mut asked).await, Some(TerminationReason::Moved));
}

/// After a reload that starts an empty table, and when the table has no room for the session's entry.
#[tokio::test(start_paused = true)]
async fn entry_with_sessions_that_is_not_tracked_is_judged_by_what_they_were_logged_in_with() {
    for is_full in [false, true] {
        for (changed, why) in changes(2) {
            let mut setup = setup(CLOSE_ALL);
            setup.entries = TrackedEntries::new(usize::from(is_full), Duration::from_secs(300));
            let setup = setup.following();
            let (_listed, mut asked) = setup.session("imap", &entry(1, "server3", 1));
            if is_full {
                setup.entries.record_login(&Arc::new(entry(9, "server3", 1)));
            } else {
                setup.entries.record_change(&Arc::new(entry(8, "server3", 1)));
            }
            // Changed operational attributes are no change.
            let mut noise = entry(1, "server3", 1);
            noise.version.login_activity = 7;
            setup.shown(noise);
            assert_eq!(setup.asked(&mut asked).await, None);
            setup.shown(Entry { dn: "cn=1".into(), ..changed.clone() });
            assert_eq!(setup.asked(&mut asked).await, Some(why), "{changed:?} {is_full}");
        }
        let mut setup = setup("");
        setup.entries = TrackedEntries::new(usize::from(is_full), Duration::from_secs(300));
        let setup = setup.following();
        let decided = entry(1, "server3", 1);
        let (_listed, mut asked) = setup.session("imap", &decided);
        setup.take(Change::Deleted { id: decided.version.id, dn: None });
        assert_eq!(setup.asked(&mut asked).await, Some(TerminationReason::Deleted), "{is_full}");
    }
}

#[tokio::test(start_paused = true)]
async fn refresh_after_a_reload_finds_changed_and_missing_entries_of_sessions() {
    let setup = setup("");
    let (_one, mut one) = setup.session("imap", &entry(1, "server3", 1));
    let (_two, mut two) = setup.session("imap", &entry(2, "server3", 1));
    let (_three, mut three) = setup.session("imap", &entry(3, "server3", 1));
    setup.take(began());
    setup.shown(entry(1, "server4", 2));
    setup.shown(entry(3, "server3", 1));
    setup.take(Change::RestDeleted);
    setup.take(Change::Complete);
    assert_eq!(setup.asked(&mut one).await, Some(TerminationReason::Moved));
    assert_eq!(setup.asked(&mut two).await, Some(TerminationReason::Deleted));
    assert_eq!(setup.asked(&mut three).await, None);
}

#[tokio::test(start_paused = true)]
async fn submission_continues_after_a_move_and_ends_for_other_changes() {
    for (changed, why) in changes(2) {
        let setup = setup(CLOSE_ALL).following();
        let decided = entry(1, "server3", 1);
        setup.entries.record_login(&Arc::new(decided.clone()));
        let (_listed, mut asked) = setup.session("submission", &decided);
        setup.shown(changed.clone());
        let expected = (why != TerminationReason::Moved).then_some(why);
        assert_eq!(setup.asked(&mut asked).await, expected, "{changed:?}");
    }
    // A move and a new password at once: the password counts.
    let setup = setup(CLOSE_ALL).following();
    let decided = entry(1, "server3", 1);
    setup.entries.record_login(&Arc::new(decided.clone()));
    let (_listed, mut asked) = setup.session("submission", &decided);
    let mut changed = entry(1, "server4", 2);
    changed.version.password_changed = Some(2);
    setup.shown(changed);
    assert_eq!(setup.asked(&mut asked).await, Some(TerminationReason::PasswordChanged));
}

#[tokio::test(start_paused = true)]
async fn sessions_are_kept_if_configured() {
    let setup = setup(", on_move: keep, on_disable: keep").following();
    for (changed, why) in changes(2) {
        if matches!(why, TerminationReason::Hold | TerminationReason::Network) {
            continue;
        }
        let (_listed, mut asked) = setup.user(&entry(1, "server3", 1));
        setup.shown(changed.clone());
        assert_eq!(setup.asked(&mut asked).await, None, "{changed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn disabled_sessions_end_before_moved_ones() {
    let setup = setup(CLOSE_ALL).following();
    let began = Instant::now();
    let mut waiting = JoinSet::new();
    for number in 1..=100 {
        let (listed, asked) = setup.user(&entry(number, "server3", 1));
        waiting.spawn(async move {
            let why = asked.await;
            drop(listed);
            (began.elapsed(), why)
        });
    }
    (1..=90).for_each(|number| setup.shown(entry(number, "server4", 2)));
    let change = |number: u8, change: fn(&mut EntryVersion)| {
        let mut entry = entry(number, "server3", 2);
        change(&mut entry.version);
        setup.shown(entry);
    };
    change(91, |marks| marks.password_changed = Some(2));
    setup.take(Change::Deleted { id: entry(92, "", 1).version.id, dn: None });
    change(93, |marks| marks.disabled = true);
    change(94, |marks| marks.held = true);
    let ended = async {
        let mut ended = Vec::new();
        while ended.len() < 94
            && let Some(Ok(one)) = waiting.join_next().await
        {
            ended.push(one);
        }
        ended.sort_by_key(|(at, _)| *at);
        ended
    };
    let ended = tokio::select! {
        () = setup.closer.run(Task::SessionCloser, || 10) => Vec::new(),
        ended = ended => ended,
    };
    let first: Vec<TerminationReason> = ended.iter().take(5).map(|(_, why)| *why).collect();
    assert_eq!(
        first,
        [
            TerminationReason::Hold,
            TerminationReason::Disabled,
            TerminationReason::Deleted,
            TerminationReason::PasswordChanged,
            TerminationReason::Moved
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn sessions_of_an_expired_account_end_at_the_sweep() {
    let setup = setup("").following();
    let expiring = |at: i64| {
        let mut entry = entry(1, "server3", 1);
        entry.version.expires = Some(at);
        entry
    };
    let soon = i64::try_from(unix_now()).unwrap();
    let (_listed, mut asked) = setup.user(&expiring(soon + 100_000));
    setup.tracker.end_expired(&setup.setting());
    assert_eq!(setup.asked(&mut asked).await, None);
    // A session whose entry is not tracked, and one whose expiry was postponed.
    let (_other, mut other) = setup.session("submission", &Entry { dn: "uid=7".into(), ..expiring(soon - 1) });
    let (_late, mut late) = setup.session("imap", &expiring(soon - 1));
    setup.tracker.end_expired(&setup.setting());
    assert_eq!(setup.asked(&mut other).await, Some(TerminationReason::Expired));
    assert_eq!(setup.asked(&mut late).await, None, "the newest date counts");
    setup.take(Change::Lost);
    let (_lost, mut lost) = setup.session("imap", &Entry { dn: "uid=8".into(), ..expiring(soon - 1) });
    setup.tracker.end_expired(&setup.setting());
    assert_eq!(setup.asked(&mut lost).await, None, "a later date may have been missed");
}

#[tokio::test(start_paused = true)]
async fn sessions_end_one_after_another() {
    let setup = setup("").following();
    let began = Instant::now();
    let mut waiting = JoinSet::new();
    for number in 1..=50 {
        let (listed, asked) = setup.user(&entry(number, "server3", 1));
        waiting.spawn(async move {
            let why = asked.await;
            drop(listed);
            (why, began.elapsed())
        });
    }
    (1..=50).for_each(|number| setup.shown(entry(number, "server4", 2)));
    let ended = async {
        let mut ended = waiting.join_all().await;
        ended.sort_by_key(|(_, at)| *at);
        ended
    };
    let ended = tokio::select! {
        () = setup.closer.run(Task::SessionCloser, || 10) => Vec::new(),
        ended = ended => ended,
    };
    assert!(ended.iter().all(|(why, _)| *why == TerminationReason::Moved));
    assert!(ended[0].1.is_zero(), "the first at once");
    let last = ended[49].1.as_secs_f64();
    assert!((4.8..5.1).contains(&last), "ten in a second: {last}");
}

#[tokio::test(start_paused = true)]
async fn entry_that_reuses_a_deleted_dn_inherits_neither_password_nor_termination() {
    let setup = setup("").following();
    let (_old, mut old) = setup.user(&entry(1, "server3", 1));
    assert!(setup.is_cached(1));
    // Deleted and recreated between two polls: only the new entry is reported until the next full one.
    let anew = Entry { dn: "uid=1".into(), ..entry(2, "server3", 5) };
    setup.shown(anew.clone());
    assert!(!setup.is_cached(1), "another entry has that DN");
    setup.entries.record_login(&Arc::new(anew.clone()));
    let (_new, mut new) = setup.session("imap", &anew);
    setup.take(began());
    setup.shown(anew);
    setup.take(Change::RestDeleted);
    setup.take(Change::Complete);
    assert_eq!(setup.asked(&mut old).await, Some(TerminationReason::Deleted));
    assert_eq!(setup.asked(&mut new).await, None);
}

#[tokio::test(start_paused = true)]
async fn rename_affects_no_session_of_another_entry() {
    let setup = setup("").following();
    let decided = entry(1, "server3", 1);
    setup.entries.record_login(&Arc::new(decided.clone()));
    setup.shown(Entry { dn: "cn=1".into(), ..entry(1, "server3", 2) });
    let anew = Entry { dn: "uid=1".into(), ..entry(2, "server3", 3) };
    setup.entries.record_login(&Arc::new(anew.clone()));
    let _new = setup.session("imap", &anew);
    let late = session(&setup.registry, &decided);
    let _late = setup.registry.list(late.clone(), basis(&decided));
    assert_eq!(setup.check_listed(&late, &basis(&decided)), Ok(()));
    assert!(setup.registry.has(&by_dn("cn=1")) && setup.registry.has(&by_dn("uid=1")));
}

#[tokio::test(start_paused = true)]
async fn brake_cancels_the_end_of_sessions_of_mass_expired_accounts() {
    let setup = setup(", brake: 2").following();
    let mut users: Vec<_> = (1..=3).map(|number| setup.user(&entry(number, "server3", 1))).collect();
    for number in 1..=3 {
        let mut expired = entry(number, "server3", 2);
        expired.version.expires = Some(1);
        setup.shown(expired);
    }
    assert_eq!(setup.brake(), 3);
    for (_, asked) in &mut users {
        assert_eq!(setup.asked(asked).await, None);
    }
}

/// Users are moved one after another while two clients log in as each of them: decided by what the directory has, and listed
/// as `listing::list` does. Once the changes were reported, every accepted session at the old server has been asked
/// to end.
#[tokio::test]
async fn no_session_at_the_old_server_survives_a_change_that_meets_its_login() {
    const USERS: u8 = 90;
    let setup = setup(", brake: 1000").following();
    let version = |user: u8, is_moved: bool| match is_moved {
        true => entry(user, "server4", 2),
        false => entry(user, "server3", 1),
    };
    assert!((1..=USERS).all(|user| setup.entries.record_login(&Arc::new(version(user, false)))));
    let (current, moved, logins) = (AtomicU8::new(1), AtomicU8::new(0), AtomicUsize::new(0));
    let mut accepted = std::thread::scope(|scope| {
        scope.spawn(|| {
            for user in 1..=USERS {
                current.store(user, Ordering::SeqCst);
                let before = logins.load(Ordering::SeqCst);
                while logins.load(Ordering::SeqCst) < before + 4 {
                    std::thread::yield_now();
                }
                moved.store(user, Ordering::SeqCst);
                setup.shown(version(user, true));
            }
            current.store(0, Ordering::SeqCst);
        });
        let client = || {
            let (mut accepted, mut refused) = (Vec::new(), 0);
            loop {
                let user = current.load(Ordering::SeqCst);
                if user == 0 {
                    return (accepted, refused);
                }
                let decided = version(user, moved.load(Ordering::SeqCst) >= user);
                // The backend accepts the login.
                std::thread::yield_now();
                let (session, basis) = (session(&setup.registry, &decided), basis(&decided));
                let listed = setup.registry.list(session.clone(), basis.clone());
                match setup.check_listed(&session, &basis) {
                    Ok(()) => accepted.push((decided.mail_hosts[0].clone(), listed)),
                    Err(_) => refused += 1,
                }
                logins.fetch_add(1, Ordering::SeqCst);
            }
        };
        let clients = [scope.spawn(client), scope.spawn(client)].map(|client| client.join().unwrap());
        assert!(clients.iter().any(|(_, refused)| *refused > 0), "no change met a login");
        clients.into_iter().flat_map(|(accepted, _)| accepted).collect::<Vec<_>>()
    });
    let closing = async {
        loop {
            accepted.retain_mut(|(host, (_, stop))| host == "server3" && stop.requested().is_none());
            if accepted.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = setup.closer.run(Task::SessionCloser, || 1_000_000) => {}
        closed = tokio::time::timeout(Duration::from_secs(20), closing) => assert!(closed.is_ok(), "sessions survive"),
    }
}
