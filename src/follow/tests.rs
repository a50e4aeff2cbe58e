//! Changes and what follows from them, without a directory.

use std::net::IpAddr;

use tokio::task::JoinSet;

use super::*;
use crate::config::{Config, parse};
use crate::directory::{EntryId, Identity, Login, Marks, Round};
use crate::registry::{AskedToEnd, Listed};
use crate::secret::Secret;

struct Setup {
    config: Config,
    cache: Cache,
    known: Known,
    follow: Follow,
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
    Setup {
        cache: Cache::new(&config.cache),
        known: Known::new(100, Duration::from_secs(300)),
        follow: Follow::new(Arc::clone(&registry), Arc::clone(&metrics)),
        config,
        registry,
        metrics,
    }
}

fn entry(number: u8, host: &str, second: u32) -> Entry {
    let marks = Marks {
        id: EntryId::from_bytes(&[number; 16]),
        version: Some(format!("202611261400{second:02}.000000Z#000000#000#000000").into()),
        password: Some(1),
        ..Marks::default()
    };
    Entry { marks, ..Entry::for_tests(&format!("uid={number}"), &[host]) }
}

impl Setup {
    fn setting(&self) -> Setting<'_> {
        let (routing, watch) = (&self.config.routing, &self.config.directory.watch);
        Setting { cache: &self.cache, known: &self.known, routing, watch }
    }

    fn take(&self, change: Change) {
        self.follow.take(change, &self.setting());
    }

    fn shown(&self, entry: Entry) {
        self.take(Change::Entry(Box::new(Shown { entry, modified: None, modified_by: None })));
    }

    /// The first refresh, which shows nobody who is known.
    fn following(self) -> Self {
        [began(), Change::OnlyThese, Change::Complete].into_iter().for_each(|change| self.take(change));
        self
    }

    /// A user who has logged in: his decision is cached, and he has a session.
    fn user(&self, entry: &Entry) -> (Listed, AskedToEnd) {
        let identity = Arc::new(Identity::for_tests(&entry.dn, &[]).with_entry(Arc::new(entry.clone())));
        self.known.record(&identity.shared_entry());
        let digest = self.cache.digest(&Secret::copy_of(b"sesame"));
        self.cache.right(&Login::parse(entry.dn.as_bytes()).unwrap(), identity, digest, self.cache.stamp());
        self.registry.list(session(&self.registry, entry))
    }

    fn is_cached(&self, number: u8) -> bool {
        self.cache.age(&format!("uid={number}").into()).is_some()
    }

    fn host(&self, number: u8) -> String {
        self.known.by_dn(&format!("uid={number}").into()).unwrap().entry.mail_hosts.join(",")
    }

    fn brake(&self) -> i64 {
        self.metrics.directory_brake.get()
    }
}

/// A whole refresh begins.
fn began() -> Change {
    Change::Began(Round { server: "ldap://one".into(), whole: true, own_times: false })
}

fn session(registry: &Registry, entry: &Entry) -> Session {
    Session {
        id: registry.next_id(),
        login: "user".into(),
        dn: Arc::clone(&entry.dn),
        client: IpAddr::from([127, 0, 0, 1]),
        protocol: "imap".into(),
        backend: entry.mail_hosts.first().map(String::as_str).unwrap_or_default().into(),
        since: 0,
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_refresh_changes_nothing() {
    let setup = setup("").following();
    let _user = setup.user(&entry(1, "server3", 1));
    setup.take(began());
    setup.shown(entry(1, "server4", 2));
    assert_eq!(setup.host(1), "server3", "until it is complete");
    setup.take(Change::Lost);
    assert_eq!(setup.follow.standing(), Standing::Lost);
    setup.take(began());
    setup.take(Change::Complete);
    assert_eq!((setup.host(1).as_str(), setup.is_cached(1)), ("server3", true));
    setup.take(began());
    setup.shown(entry(1, "server4", 2));
    setup.take(Change::Complete);
    assert_eq!((setup.host(1).as_str(), setup.is_cached(1)), ("server4", false));
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_lacks_most_users_is_not_believed() {
    let setup = setup("").following();
    let users: Vec<_> = (1..=10).map(|number| setup.user(&entry(number, "server3", 1))).collect();
    let present = |setup: &Setup, numbers: std::ops::RangeInclusive<u8>| {
        setup.take(began());
        numbers.for_each(|number| setup.shown(entry(number, "server3", 1)));
        setup.take(Change::OnlyThese);
        setup.take(Change::Complete);
    };
    present(&setup, 1..=8);
    assert_eq!((setup.brake(), setup.is_cached(9), setup.is_cached(1)), (0, false, true), "some may be gone");
    tokio::time::advance(Duration::from_secs(60)).await;
    present(&setup, 1..=2);
    assert_eq!((setup.brake(), setup.is_cached(3)), (6, true));
    assert_eq!(setup.metrics.directory_changes.with_label_values(&["delete"]).get(), 2);
    present(&setup, 1..=8);
    assert_eq!((setup.brake(), setup.is_cached(3)), (0, true), "they are back");
    drop(users);
}

#[tokio::test(start_paused = true)]
async fn under_the_brake_a_password_still_counts_and_a_place_does_not() {
    let setup = setup(", brake: 1").following();
    let _users: Vec<_> = (1..=3).map(|number| setup.user(&entry(number, "server3", 1))).collect();
    (1..=2).for_each(|number| setup.shown(entry(number, "server4", 2)));
    assert_eq!((setup.brake(), setup.host(1).as_str(), setup.host(2).as_str()), (2, "server3", "server3"));
    assert!(setup.is_cached(2), "held back before it was acted on");
    let mut changed = entry(3, "server4", 3);
    changed.marks.password = Some(2);
    setup.shown(changed);
    assert_eq!((setup.brake(), setup.host(3).as_str(), setup.is_cached(3)), (3, "server3", false));
    assert_eq!(setup.follow.confirm(Duration::ZERO, &setup.setting()), 3);
    assert_eq!((setup.brake(), setup.host(1).as_str(), setup.host(3).as_str()), (0, "server4", "server4"));
    // After that it counts anew.
    (1..=2).for_each(|number| setup.shown(entry(number, "server3", 4)));
    assert_eq!((setup.brake(), setup.host(1).as_str()), (2, "server4"));
}

#[tokio::test(start_paused = true)]
async fn who_was_listed_too_late_to_be_found_is_found_when_he_is_listed() {
    let setup = setup(", hold_attribute: hold").following();
    let decided = entry(1, "server3", 1);
    setup.known.record(&Arc::new(decided.clone()));
    let (_listed, asked) = setup.registry.list(session(&setup.registry, &decided));
    let closing = setup.follow.close(|| 100);
    tokio::pin!(closing);
    // Nothing was told: the session stays.
    setup.follow.look_at(&setup.registry.sessions()[0], &decided, &setup.setting());
    tokio::select! {
        () = &mut closing => {}
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    assert!(setup.registry.end(setup.registry.sessions()[0].id, Why::Drain), "nobody has asked it yet");
    assert_eq!(asked.await, Why::Drain);

    setup.known.record(&Arc::new(decided.clone()));
    let held = Entry { marks: Marks { held: true, ..entry(1, "server3", 2).marks }, ..decided.clone() };
    setup.shown(held);
    let (_listed, asked) = setup.registry.list(session(&setup.registry, &decided));
    setup.follow.look_at(&setup.registry.sessions()[1], &decided, &setup.setting());
    tokio::select! {
        () = &mut closing => {}
        why = asked => assert_eq!(why, Why::Hold),
    }
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
        () = setup.follow.close(|| 10) => Vec::new(),
        ended = ended => ended,
    };
    assert!(ended.iter().all(|(why, _)| *why == Why::Moved));
    assert!(ended[0].1.is_zero(), "the first at once");
    let last = ended[49].1.as_secs_f64();
    assert!((4.8..5.1).contains(&last), "ten in a second: {last}");
}
