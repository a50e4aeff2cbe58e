//! What follows from a change, without a cache and with sessions that nothing ends.

use super::*;
use crate::config::Watch;
use crate::config::{Config, parse};
use crate::directory::{EntryId, EntryVersion, Refresh};

const CONFIG: &str = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})', brake: 2}
routing:
  backends:
    - {name: server3, imap: {address: '192.0.2.3:993', tls: implicit}}
    - {name: server4, imap: {address: '192.0.2.4:993', tls: implicit}}
";

struct Setup {
    config: Config,
    entries: TrackedEntries,
    sessions: Arc<Registry>,
    state: ChangeState,
}

/// Users 1 to 9, authenticated at their first versions; the first refresh is complete.
fn setup() -> Setup {
    let config = parse(std::path::Path::new("/c.yaml"), CONFIG).unwrap();
    let entries = TrackedEntries::new(100, Duration::from_secs(300));
    (1..=9).for_each(|number| assert!(entries.record_login(&Arc::new(entry(number, "server3", 1)))));
    let mut setup = Setup { config, entries, sessions: Arc::default(), state: ChangeState::default() };
    let began = Change::RefreshStarted(Refresh { server: "ldap://one".into(), whole: false, local_timestamps: false });
    assert!(setup.apply(began).is_empty());
    let complete = setup.apply(Change::Complete);
    assert_eq!(complete, ["Deferred(0)", "Report(Active)", "Connected(true)"]);
    setup
}

fn entry(number: u8, host: &str, second: u32) -> Entry {
    let version = EntryVersion {
        id: EntryId::from_bytes(&[number; 16]),
        revision: Some(format!("202611261400{second:02}.000000Z#000000#000#000000").into()),
        password_changed: Some(1),
        ..EntryVersion::default()
    };
    Entry { version, ..Entry::for_tests(&format!("uid={number}"), &[host]) }
}

impl Setup {
    /// The actions in a short form: variants with the DN of their entry.
    fn apply(&mut self, change: Change) -> Vec<String> {
        let watch: &Watch = &self.config.directories[0].watch;
        let inputs = Inputs {
            realm: Realm::DEFAULT,
            entries: &self.entries,
            sessions: &self.sessions,
            routing: &self.config.routing,
            watch,
        };
        let short = |action: Action| match &action {
            Action::Forget(entry) => format!("Forget {}", entry.dn),
            Action::ForgetWrong(entry) => format!("ForgetWrong {}", entry.dn),
            Action::Rename { names, dn } => format!("Rename {} {dn}", names.dn.as_ref().unwrap()),
            Action::Compare { entry, deleted } => format!("Compare {} {deleted}", entry.dn),
            Action::Report(Report::Route { dn, reverted, .. }) => format!("Route {dn} {reverted}"),
            Action::Report(Report::BrakeEngaged { changes, .. }) => format!("BrakeEngaged {changes}"),
            Action::NoteLock { .. }
            | Action::KeepSessions
            | Action::Count(_)
            | Action::Deferred(_)
            | Action::Tell(_)
            | Action::Connected(_)
            | Action::Report(_) => format!("{action:?}"),
        };
        self.state.apply(change, &inputs).into_iter().map(short).collect()
    }

    fn reported(&mut self, entry: Entry) -> Vec<String> {
        self.apply(Change::Entry(Box::new(ReportedEntry { entry, modified: None, modified_by: None })))
    }
}

#[tokio::test(start_paused = true)]
async fn move_forgets_the_decision_before_sessions_are_compared() {
    let mut setup = setup();
    let moved = setup.reported(entry(1, "server4", 2));
    assert_eq!(moved, ["Forget uid=1", "Count(Move)", "Route uid=1 false", "Compare uid=1 false", "Deferred(0)"]);
    assert_eq!(setup.entries.by_dn(Realm::DEFAULT, &"uid=1".into()).unwrap().entry.mail_hosts, ["server4"]);
    assert!(setup.reported(entry(1, "server4", 3)).is_empty(), "the same values once more");
}

#[tokio::test(start_paused = true)]
async fn rename_lists_sessions_under_the_new_dn_and_forgets_both() {
    let mut setup = setup();
    let renamed = setup.reported(Entry { dn: "cn=1".into(), ..entry(1, "server3", 2) });
    let expected = ["Forget uid=1", "Rename uid=1 cn=1", "Forget cn=1", "Compare cn=1 false"];
    let order: Vec<_> = renamed.iter().filter(|action| expected.contains(&action.as_str())).collect();
    assert_eq!(order, expected);
}

#[tokio::test(start_paused = true)]
async fn deletion_forgets_passwords_and_compares_sessions_with_nothing() {
    let mut setup = setup();
    let deleted = setup.apply(Change::Deleted { id: EntryId::from_bytes(&[2; 16]), dn: None });
    assert_eq!(deleted[..3], ["Forget uid=2", "ForgetWrong uid=2", "Count(Delete)"]);
    assert!(deleted.contains(&"Compare uid=2 true".to_owned()));
    assert!(setup.apply(Change::Deleted { id: None, dn: Some("uid=2".into()) }).is_empty(), "once");
    assert!(setup.apply(Change::Deleted { id: None, dn: Some("uid=77".into()) }).is_empty(), "not tracked");
}

#[tokio::test(start_paused = true)]
async fn brake_keeps_sessions_before_it_reverts_what_was_applied() {
    let mut setup = setup();
    setup.reported(entry(1, "server4", 2));
    setup.reported(entry(2, "server4", 2));
    let third = setup.reported(entry(3, "server4", 2));
    let expected =
        ["BrakeEngaged 3", "KeepSessions", "Route uid=2 true", "Forget uid=2", "Route uid=1 true", "Forget uid=1"];
    assert_eq!(third[..6], expected);
    assert_eq!(third.last().unwrap(), "Deferred(3)");
    assert!(!third.contains(&"Forget uid=3".to_owned()), "deferred before it was applied");
    assert!((1..=3).all(|number| setup.reported(entry(number, "server3", 4)).is_empty()), "they are back");
    assert_eq!(setup.apply(Change::Complete), ["Report(BrakeReleased)", "Deferred(0)", "Connected(true)"]);
}

#[tokio::test(start_paused = true)]
async fn incomplete_refresh_has_no_consequence() {
    let mut setup = setup();
    let began = Change::RefreshStarted(Refresh { server: "ldap://one".into(), whole: true, local_timestamps: false });
    assert!(setup.apply(began).is_empty());
    assert!(setup.reported(entry(1, "server4", 2)).is_empty() && !setup.state.is_current());
    assert!(setup.apply(Change::RestDeleted).is_empty());
    assert_eq!(setup.apply(Change::Lost), ["Connected(false)"]);
    assert!(!setup.state.is_following());
}
