//! Servers that DNS names: what stays, what leaves, and what an unusable answer changes.

use tokio::time::advance;

use super::*;
use crate::config::{Srv, SrvTarget};
use crate::directory::Directory as _;
use crate::directory::ldap::dns::{LookupFault, SrvAnswer, SrvRecord};

const NAME: &str = "srv:_ldap._tcp.example.com";

fn named(balance: Balance) -> config::Directory {
    let item = DirectoryServer {
        url: NAME.to_owned(),
        scheme: LdapScheme::Ldap,
        host: "_ldap._tcp.example.com".to_owned(),
        port: 0,
        server_name: None,
        pin_sha256: Vec::new(),
        starttls: true,
        srv: Some(Srv { domain: "example.com".to_owned(), port: None }),
    };
    config::Directory { balance, ..settings(vec![item], searching(None)) }
}

fn answer(ttl: u64, records: &[(u16, u16, &str)]) -> Result<SrvAnswer, LookupFault> {
    let record = |(priority, weight, target): &(u16, u16, &str)| SrvRecord {
        priority: *priority,
        weight: *weight,
        port: 389,
        target: (*target).to_owned(),
    };
    Ok(SrvAnswer { records: records.iter().map(record).collect(), ttl: Duration::from_secs(ttl) })
}

fn urls(under: &Under) -> Vec<String> {
    let host = |url: &str| url.trim_start_matches("ldap://").trim_end_matches(":389").to_owned();
    under.ldap.servers().iter().map(|server| host(&server.url)).collect()
}

#[tokio::test]
async fn servers_that_stay_are_kept_and_others_leave_with_their_series() {
    let under = Under::test(&named(Balance::First), Tuning::default());
    let server_set = under.ldap.server_set();
    assert_eq!(urls(&under), [""; 0]);
    server_set.learn(0, answer(60, &[(0, 0, "a.example.com"), (1, 0, "b.example.com")]));
    assert_eq!(urls(&under), ["a.example.com", "b.example.com"]);
    let (a, b) = (under.ldap.server(0), under.ldap.server(1));
    // `a` is held as by a login in progress.
    under.metrics.directory_operation(["default", &a.url], DirectoryOperation::Bind, 0);
    // Another priority and another server: b is the same.
    server_set.learn(0, answer(60, &[(0, 0, "c.example.com"), (0, 9, "b.example.com")]));
    let again = under.ldap.servers().into_iter().find(|server| server.url == b.url).unwrap();
    assert!(Arc::ptr_eq(&b, &again) && !b.endpoint.retired.is_cancelled());
    assert!(a.endpoint.retired.is_cancelled());
    assert!(under.metrics.render().contains("a.example.com"), "a request may be in progress");
    drop(a);
    assert!(!under.metrics.render().contains("a.example.com"));
    // It comes back as another one, with series from 0.
    server_set.learn(0, answer(60, &[(0, 0, "a.example.com")]));
    assert_eq!(urls(&under), ["a.example.com"]);
    assert!(!under.ldap.server(0).endpoint.retired.is_cancelled());
    let url = Arc::clone(&under.ldap.server(0).url);
    assert_eq!(under.metrics.directory_operations.with_label_values(&["default", &url, "bind", "0"]).get(), 0);
}

#[tokio::test]
async fn last_list_holds_whatever_dns_answers_but_the_absence_of_the_service() {
    let under = Under::test(&named(Balance::First), Tuning::default());
    let server_set = under.ldap.server_set();
    for fault in [LookupFault::NoName, LookupFault::Timeout] {
        server_set.learn(0, Err(fault));
        assert!(matches!(server_set.cause(), UnavailableCause::NoServer { .. }));
    }
    server_set.learn(0, answer(60, &[(0, 0, "a.example.com")]));
    assert_eq!(server_set.resolved()[0].fault, None);
    for fault in [
        Err(LookupFault::NoName),
        Err(LookupFault::NoRecords),
        Err(LookupFault::Timeout),
        Err(LookupFault::Malformed),
        Err(LookupFault::Server("Server Failure".to_owned())),
        answer(60, &[(0, 0, "evil.example.org")]),
    ] {
        server_set.learn(0, fault);
        assert_eq!(urls(&under), ["a.example.com"]);
        assert!(server_set.resolved()[0].fault.is_some());
    }
    // A record of the domain beside others is enough.
    server_set.learn(0, answer(60, &[(0, 0, "evil.example.org"), (5, 0, "b.example.com")]));
    assert_eq!(urls(&under), ["b.example.com"]);
    assert_eq!(server_set.resolved()[0].ignored.len(), 1);
    server_set.learn(0, answer(3_600, &[(0, 0, "")]));
    assert_eq!(urls(&under), [""; 0]);
    assert_eq!(under.ldap.availability(), Availability::Unreachable);
    assert!(server_set.cause().to_string().contains("not available"));
}

#[tokio::test(start_paused = true)]
async fn answers_hold_for_their_time_within_bounds() {
    let under = Under::test(&named(Balance::First), Tuning::default());
    let server_set = under.ldap.server_set();
    for (ttl, holds) in [(0, 30), (1, 30), (300, 300), (86_400, 3_600), (u64::from(u32::MAX), 3_600)] {
        server_set.learn(0, answer(ttl, &[(0, 0, "a.example.com")]));
        advance(Duration::from_secs(holds - 1)).await;
        assert!(!server_set.is_due(), "{ttl}");
        advance(Duration::from_secs(1)).await;
        assert!(server_set.is_due(), "{ttl}");
    }
    // Failures are repeated soon, and less often the longer they last.
    for (nth, holds) in [2, 4, 8, 16, 30, 30].into_iter().enumerate() {
        server_set.learn(0, Err(LookupFault::Timeout));
        advance(Duration::from_millis(holds * 1_000 - 1)).await;
        assert!(!server_set.is_due(), "{nth}");
        advance(Duration::from_millis(1)).await;
        assert!(server_set.is_due(), "{nth}");
    }
}

#[tokio::test]
async fn priorities_are_kept_and_weights_are_chances() {
    let under = Under::test(&named(Balance::RoundRobin), Tuning::default());
    let records = [(1, 5, "low.example.com"), (0, 90, "often.example.com"), (0, 10, "seldom.example.com")];
    under.ldap.server_set().learn(0, answer(60, &records));
    let list = under.ldap.server_set().list();
    let mut first = std::collections::BTreeMap::<Arc<str>, u32>::new();
    for turn in 0..2_000 {
        let order = list.order(Balance::RoundRobin, turn);
        assert_eq!(&*order[2].url, "ldap://low.example.com:389");
        *first.entry(Arc::clone(&order[0].url)).or_default() += 1;
    }
    let often = first["ldap://often.example.com:389"];
    assert!((1_600..1_960).contains(&often), "{first:?}");
    // Of equal weights each has its turn.
    under.ldap.server_set().learn(0, answer(60, &[(0, 7, "a.example.com"), (0, 7, "b.example.com")]));
    let list = under.ldap.server_set().list();
    let first = |turn| Arc::clone(&list.order(Balance::RoundRobin, turn)[0].url);
    assert!(first(0) != first(1) && first(0) == first(2));
}

#[tokio::test]
async fn list_is_handed_over_at_a_reload_by_the_rules_in_force() {
    let before = Under::test(&named(Balance::First), Tuning::default());
    before.ldap.server_set().learn(0, answer(60, &[(0, 0, "a.example.com"), (3, 0, "b.example.net")]));
    let allowing = |targets: &[SrvTarget]| {
        Under::test(&config::Directory { srv_targets: targets.to_vec(), ..named(Balance::First) }, Tuning::default())
    };
    let both = allowing(&[SrvTarget::Below("example.net".to_owned())]);
    both.ldap.server_set().learn(0, answer(60, &[(0, 0, "a.example.com"), (3, 0, "b.example.net")]));
    let (strict, same) = (allowing(&[]), allowing(&[SrvTarget::Host("b.example.net".to_owned())]));
    for after in [&strict, &same] {
        after.ldap.begin_with(&both.ldap.resolved());
        assert!(after.ldap.server_set().is_due(), "it is looked up all the same");
    }
    assert_eq!(urls(&strict), ["a.example.com"]);
    assert_eq!(urls(&same), ["a.example.com", "b.example.net"]);
}
