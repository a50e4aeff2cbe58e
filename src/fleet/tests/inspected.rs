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
    assert_eq!((found.missing, found.eviction.as_deref()), (Vec::new(), Some("noeviction")));
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
    let a = setting.start();
    assert_eq!(a.count("bob").await, Err(Unavailable::Down));
    sleep(Duration::from_millis(300)).await;
    assert!(!a.is_up());
    let (_store, setting) = with_rights(&documented().replace("+info", ""));
    assert_eq!(facts(&setting).await.unwrap().eviction, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_and_latency_are_shown() {
    let store = Redis::start();
    store.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let way = SlowWay::to(store.port);
    way.delay(Duration::from_millis(30));
    let found = facts(&Setting::at(way.port, "mx1")).await.unwrap();
    assert!(found.latency >= Duration::from_millis(30), "{found:?}");
    assert_eq!(found.eviction.as_deref(), Some("allkeys-lru"));
    assert_eq!(store.command(&["EXISTS", "usher:mail:check"]), "0");
}
