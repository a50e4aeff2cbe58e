//! The store is unavailable: nothing waits for it longer than it must.

use super::*;

/// What a login may wait for the store: 25 ms are promised.
const BOUND: Duration = Duration::from_millis(75);

/// How a count ends, which takes no longer than it may.
async fn bounded_count(node: &Node) -> Result<i64, Unavailable> {
    let asked = Instant::now();
    let result = node.count("bob").await;
    assert!(asked.elapsed() < BOUND, "{result:?} after {:?}", asked.elapsed());
    result
}

/// A setting with the timeout that is the default.
fn setting(port: u16) -> Setting {
    let mut setting = Setting::at(port, "mx1");
    setting.settings.timeout = Duration::from_millis(20);
    setting
}

fn up(node: &Node) -> i64 {
    node.metrics.fleet_up.with_label_values(&[] as &[&str]).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_store_delays_nothing_and_is_joined_when_it_comes() {
    let mut store = Redis::start();
    store.stop();
    let a = setting(store.port).start();
    assert_eq!((bounded_count(&a).await, up(&a)), (Err(Unavailable::Down), 0));
    store.start_again();
    a.joined(1).await;
    assert_eq!((bounded_count(&a).await, up(&a)), (Ok(1), 1));
    store.stop();
    until("down", || !a.is_up()).await;
    assert_eq!((bounded_count(&a).await, up(&a), a.most_members()), (Err(Unavailable::Down), 0, 1));
    let generation = *a.generation().borrow();
    store.start_again();
    a.joined(1).await;
    assert_eq!(bounded_count(&a).await, Ok(1), "a new store");
    assert!(*a.generation().borrow() > generation);
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_store_delays_three_logins() {
    let store = Redis::start();
    let a = setting(store.port).start();
    a.joined(1).await;
    store.freeze();
    let mut late = 0;
    while a.is_up() {
        match bounded_count(&a).await {
            Err(Unavailable::Late) => late += 1,
            other => assert_eq!(other, Err(Unavailable::Down)),
        }
    }
    assert!((1..=3).contains(&late), "{late}");
    let asked = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(a.count("bob").await, Err(Unavailable::Down));
    }
    assert!(asked.elapsed() < BOUND, "the store is not asked: {:?}", asked.elapsed());
    // Long enough that the connection counts as broken.
    sleep(Duration::from_secs(6)).await;
    store.thaw();
    a.joined(1).await;
    assert!(bounded_count(&a).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_store_is_not_asked() {
    let store = Redis::start();
    let way = SlowWay::to(store.port);
    let a = setting(way.port).start();
    a.joined(1).await;
    way.delay(Duration::from_millis(60));
    let mut late = 0;
    while a.is_up() {
        late += i32::from(bounded_count(&a).await == Err(Unavailable::Late));
    }
    assert!((1..=3).contains(&late), "{late}");
    for _ in 0..5 {
        assert_eq!(bounded_count(&a).await, Err(Unavailable::Down));
    }
    way.delay(Duration::ZERO);
    a.joined(1).await;
    assert!(bounded_count(&a).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn full_store_is_unavailable_until_it_has_room() {
    let store = Redis::start();
    let a = setting(store.port).start();
    a.joined(1).await;
    store.command(&["CONFIG", "SET", "maxmemory", "1"]);
    until("down", || !a.is_up()).await;
    assert_eq!(bounded_count(&a).await, Err(Unavailable::Down));
    store.command(&["CONFIG", "SET", "maxmemory", "0"]);
    a.joined(1).await;
    assert!(bounded_count(&a).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn second_store_is_used_while_the_first_is_away() {
    let (mut first, second) = (Redis::start(), Redis::start());
    let setting = |node: &str| {
        let mut setting = Setting::at(first.port, node);
        setting.settings.stores.push(address(second.port));
        setting
    };
    let (a, b) = (setting("mx1").start(), setting("mx2").start());
    a.joined(2).await;
    b.joined(2).await;
    assert_eq!(second.command(&["DBSIZE"]), "0");
    a.set_mark(MarkKind::Drain, b"server3", b"on", None);
    first.stop();
    until("away", || !a.is_up() && !b.is_up()).await;
    a.joined(2).await;
    b.joined(2).await;
    let mut at_b = b.subscribe();
    until("messages there", || {
        a.publish(b"hello".to_vec());
        at_b.try_recv().is_ok()
    })
    .await;
    assert_ne!(second.command(&["DBSIZE"]), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_replica_and_wrong_passwords_are_refused_in_words() {
    let open = async |setting: &Setting| {
        let [address] = setting.settings.stores.as_slice() else { panic!("one store") };
        Connection::open(address, &setting.settings, &setting.files(), &[], None).await.map(|_| ()).unwrap_err()
    };
    let cluster = Redis::with(&["--cluster-enabled", "yes"]);
    assert_eq!(open(&Setting::at(cluster.port, "mx1")).await, StoreError::Cluster);
    let replica = Redis::with(&["--replicaof", "127.0.0.1 1"]);
    assert_eq!(open(&Setting::at(replica.port, "mx1")).await, StoreError::Replica);
    let locked = Redis::with_users(&["user usher on >right ~usher:mail:* &usher:mail:* +@all"]);
    let mut setting = Setting::at(locked.port, "mx1");
    assert_eq!(open(&setting).await, StoreError::PasswordNeeded);
    setting.settings.user = Some("usher".into());
    setting.password = Some("wrong");
    assert_eq!(open(&setting).await, StoreError::Credentials);
    setting.password = Some("right");
    setting.start().joined(1).await;
}
