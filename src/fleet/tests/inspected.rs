//! What `usher check --connect` says of a store.

use super::*;

/// The rights in docs/ha.md.
fn documented() -> &'static str {
    let page = include_str!("../../../docs/ha.md");
    let line = page.lines().find_map(|line| line.trim_start().strip_prefix("ACL SETUSER usher "));
    line.expect("docs/ha.md has the line")
}

fn with_rights(rights: &str) -> (Redis, Setting) {
    let store = Redis::with_users(&[&format!("user usher {rights}")]);
    let mut setting = Setting::at(store.port, "mx1");
    setting.settings.user = Some("usher".into());
    setting.password = Some("a-long-random-password");
    (store, setting)
}

async fn facts(setting: &Setting) -> Result<StoreFacts, StoreError> {
    inspect(&setting.settings, &setting.files()).await.pop().unwrap().found
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_rights_are_enough_and_allow_nothing_else() {
    let (store, setting) = with_rights(documented());
    let found = facts(&setting).await.unwrap();
    assert_eq!((found.missing, found.memory.eviction.as_deref()), (Vec::new(), Some("noeviction")));
    let (a, b) = (setting.start(), setting.start());
    a.joined(2).await;
    b.joined(2).await;
    let mut at_b = b.subscribe();
    a.publish(b"hello".to_vec());
    assert_eq!(&*received(&mut at_b).await.body, b"hello");
    a.set_mark(MarkKind::Drain, b"server3", b"on", None);
    until("the mark", || b.marks().borrow().get(MarkKind::Drain, b"server3").is_some()).await;
    for command in
        [&["FLUSHALL"][..], &["CONFIG", "GET", "*"], &["KEYS", "*"], &["SET", "other", "1"], &["ACL", "LIST"]]
    {
        let dry = [&["ACL", "DRYRUN", "usher"], command].concat();
        let reply = store.command(&dry);
        assert!(reply.contains("permission"), "{command:?}: {reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_right_is_named() {
    for (from, to, named) in [
        ("~usher:mail:*", "~usher:other:*", "~usher:mail:*"),
        ("&usher:mail:*", "&usher:other:*", "+publish or &usher:mail:*, +subscribe or &usher:mail:*"),
        ("+time", "", "+time"),
        ("+publish", "", "+publish or &usher:mail:*"),
        ("+script|load", "", "+script|load"),
        ("+pexpire ", "", "+pexpire"),
    ] {
        assert!(documented().contains(from), "{from}");
        let (_store, setting) = with_rights(&documented().replacen(from, to, 1));
        let found = facts(&setting).await.unwrap();
        assert!(found.missing.join(", ").contains(named), "{from}: {:?}", found.missing);
    }
    let (_store, setting) = with_rights(&documented().replace("+evalsha", "").replace("+eval", ""));
    let missing = facts(&setting).await.unwrap().missing;
    assert!(missing.iter().any(|right| right.starts_with("+eval, +evalsha")), "{missing:?}");
    // Without a right that it needs a member stays alone, and nothing else fails.
    assert!(facts(&setting).await.unwrap().members.is_empty());
    let a = setting.start();
    assert_eq!(a.count("bob").await, Err(Unavailable::Down));
    sleep(Duration::from_millis(300)).await;
    assert!(!a.is_up());
    // Also without one that only logins need; and it joins once it has it.
    let (store, setting) = with_rights(&format!("{} -zscore", documented()));
    let a = setting.start();
    until("met the store", || a.store_time().is_some()).await;
    assert!(!a.is_up());
    store.command(&["ACL", "SETUSER", "usher", "+zscore"]);
    a.joined(1).await;
    let (_store, setting) = with_rights(&documented().replace("+info", ""));
    assert_eq!(facts(&setting).await.unwrap().memory.eviction, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_and_latency_are_shown() {
    let store = Redis::start();
    store.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let way = SlowWay::to(store.port);
    way.delay(Duration::from_millis(30));
    let found = facts(&Setting::at(way.port, "mx1")).await.unwrap();
    assert!(found.latency >= Duration::from_millis(30), "{found:?}");
    assert_eq!(found.memory.eviction.as_deref(), Some("allkeys-lru"));
    assert_eq!(store.command(&["EXISTS", "usher:mail:check"]), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn living_members_are_shown_and_those_with_another_secret_counted() {
    let store = Redis::start();
    let (one, two) = (Setting::at(store.port, "mx1"), Setting::at(store.port, "mx2"));
    let seen = async |setting: &Setting| {
        let found = facts(setting).await.unwrap();
        let nodes: Vec<String> = found.members.iter().map(|member| member.node.to_string()).collect();
        (nodes, found.under_another_secret)
    };
    assert_eq!(seen(&one).await, (Vec::new(), 0));
    let (a, b, c) = (one.start(), two.start(), two.start());
    for node in [&a, &b, &c] {
        node.joined(3).await;
    }
    let (mut nodes, others) = seen(&one).await;
    nodes.sort_unstable();
    assert_eq!((nodes, others), (["mx1", "mx2", "mx2"].map(str::to_owned).to_vec(), 0));
    let stranger = Setting { secrets: vec![9], ..one.clone() };
    assert_eq!(seen(&stranger).await, (Vec::new(), 3));
    let mut post = one.clone();
    post.settings.name = "post".into();
    assert_eq!(seen(&post).await, (Vec::new(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_measured_and_a_right_that_a_script_lacks_is_one() {
    let store = Redis::start();
    store.command(&["CONFIG", "SET", "maxmemory", "64mb"]);
    let memory = facts(&Setting::at(store.port, "mx1")).await.unwrap().memory;
    assert!(memory.most == 64 << 20 && memory.used > 1 << 16 && memory.used < memory.most, "{memory:?}");
    let (_store, setting) = with_rights(&documented().replace("+@hash", ""));
    let (connection, driver) =
        Connection::open(&setting.settings.stores[0], &setting.settings, &setting.files(), &[], None).await.unwrap();
    tokio::spawn(driver);
    static HASH: FleetScript = FleetScript::new("test_hash", "return redis.call('HSET', KEYS[1], 'a', 1)");
    let key = StoreKey::plain("mail", "check");
    assert_eq!(connection.eval(&HASH, &[key], &[]).await, Err(StoreError::Rights));
}
