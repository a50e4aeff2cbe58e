//! Connections: kept idle, replaced, recycled, limited.

use super::*;
use crate::telemetry::labels::ConnectionUse;

#[tokio::test]
async fn idle_connections_are_kept_and_recycled() {
    let server = Scripted::start(alice).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.min = 3;
    settings.connections.max_operations = 5;
    let under = Under::test(&settings, Tuning::default());
    under.ldap.run_due();
    // Three for binds, one for searches.
    until(|| server.open() == 4).await;
    under.ldap.update_gauges();
    let count = |used| under.metrics.directory_connections.at_server(["default", &server.url()], used).get();
    assert_eq!((count(ConnectionUse::Idle), count(ConnectionUse::Busy), count(ConnectionUse::Search)), (3, 0, 1));
    for _ in 0..5 {
        under.alice().await.unwrap();
    }
    // The bind connection used last was used each time, and has reached its limit.
    let used: std::collections::BTreeSet<_> = server.binds().iter().map(|(connection, ..)| *connection).collect();
    assert_eq!(used.len(), 1, "{used:?}");
    under.alice().await.unwrap();
    let used: std::collections::BTreeSet<_> = server.binds().iter().map(|(connection, ..)| *connection).collect();
    assert_eq!(used.len(), 2, "{used:?}");
}

#[tokio::test]
async fn overload_is_reported_within_one_attempt() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let script = move |seen: &Recorded| match seen.bind() {
        Some(_) => [vec![ScriptedReply::Wait(held.clone())], every_user(seen)].concat(),
        None => every_user(seen),
    };
    let server = Scripted::start(script).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.max = 2;
    settings.attempt_timeout = Duration::from_millis(400);
    let under = Under::test(&settings, Tuning::default());
    let started = Instant::now();
    let crowd = (0..30).map(|_| under.login("anna", "x"));
    for (result, _) in futures_util::future::join_all(crowd).await {
        cause(result);
    }
    assert!(started.elapsed() < Duration::from_millis(1_200), "{:?}", started.elapsed());
    gate.add_permits(1_000);
    within(async { while under.login("anna", "x").await.0.is_err() {} }).await;
}

#[tokio::test]
async fn dead_connection_is_replaced_transparently() {
    // Both connections work once; the next request on each is answered by a close.
    let script =
        |seen: &Recorded| if seen.connection < 2 && seen.id > 1 { vec![ScriptedReply::Close] } else { alice(seen) };
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
async fn restarted_server_is_used_at_once() {
    let server = Scripted::start(alice).await;
    let port = server.port;
    let under = Under::new(&[&server], searching(None));
    under.alice().await.unwrap();
    drop(server);
    cause(under.alice().await);
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
async fn disconnect_during_a_bind_is_not_a_wrong_password() {
    let server = Scripted::start(first(vec![vec![ScriptedReply::Close]; 9], is_bind)).await;
    let under = Under::new(&[&server], searching(None));
    assert!(matches!(cause(under.alice().await), UnavailableCause::Connection { .. }));
    assert_eq!(server.binds().len(), 1, "a fresh connection is not tried twice");
}

#[tokio::test]
async fn binds_run_concurrently_up_to_the_limit() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let script = move |seen: &Recorded| match seen.bind() {
        Some(_) => [vec![ScriptedReply::Wait(held.clone())], alice(seen)].concat(),
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
async fn wait_for_a_free_connection_ends_at_the_deadline() {
    let scripted = Scripted::start(|_| Vec::new()).await;
    let mut settings = settings(vec![scripted.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.max = 1;
    let ldap = Ldap::new(&settings, None.into(), Arc::new(Metrics::new()));
    let server = ldap.server(0);
    let bind = async |time: u64| {
        let deadline = Instant::now() + Duration::from_millis(time);
        server.binds.bind("uid=alice,dc=x", b"right", deadline, &mut Trace::default()).await.map(|(code, _)| code)
    };
    let (first, second) = tokio::join!(bind(1_000), bind(100));
    assert!(matches!(first, Err(RequestError::Indeterminate(UnavailableCause::Timeout))), "{first:?}");
    assert!(matches!(second, Err(RequestError::NotSent(UnavailableCause::Busy))), "{second:?}");
    assert_eq!(scripted.binds().len(), 1);
}

#[tokio::test]
async fn dropped_login_closes_its_connection() {
    let server = Scripted::start(first(vec![Vec::new()], is_bind)).await;
    let under = Under::new(&[&server], searching(None));
    let waiting = tokio::time::timeout(Duration::from_millis(100), under.alice()).await;
    assert!(waiting.is_err());
    let abandoned = server.binds()[0].0;
    under.alice().await.unwrap();
    assert_ne!(server.binds()[1].0, abandoned, "its late reply is discarded");
    until(|| server.open() == 2).await;
}

#[tokio::test]
async fn unused_connections_are_closed() {
    let server = Scripted::start(alice).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.idle_timeout = Duration::from_millis(60);
    let under = Under::test(&settings, Tuning::default());
    under.alice().await.unwrap();
    assert_eq!(server.open(), 2);
    until(|| server.open() == 0).await;
    under.alice().await.unwrap();
    assert_eq!(server.connections(), 4);
    // With its directory, as after a reload.
    drop(under);
    until(|| server.open() == 0).await;
}

#[tokio::test]
async fn search_connection_is_recycled() {
    let server = Scripted::start(alice).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    settings.connections.max_operations = 10;
    let under = Under::test(&settings, Tuning::default());
    for _ in 0..30 {
        under.look_up("alice").await.0.unwrap();
    }
    assert_eq!(server.connections(), 3);
    settings.connections.max_age = Duration::ZERO;
    let under = Under::test(&settings, Tuning::default());
    for _ in 0..3 {
        under.look_up("alice").await.0.unwrap();
    }
    assert_eq!(server.connections(), 6);
}

#[tokio::test]
async fn searches_and_large_replies_share_a_connection() {
    // More than the buffers between the server and its reader, in both directions at once.
    let large = vec![b'x'; 60_000];
    let script = move |seen: &Recorded| match &seen.op {
        LdapOp::SearchRequest(request) => {
            let LdapFilter::Equality(_, name) = &request.filter else { return every_user(seen) };
            let attributes: [(&str, &[&[u8]]); 2] = [("sn", &[&large]), ("mailHost", &[b"server3"])];
            vec![entry(&format!("uid={name},dc=x"), &attributes), done(Code::Success)]
        }
        _ => every_user(seen),
    };
    let server = Scripted::start(script).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
    (settings.timeout, settings.attempt_timeout) = (Duration::from_secs(15), Duration::from_secs(15));
    let under = Under::test(&settings, Tuning::default());
    let names: Vec<String> = (0..300).map(|n| format!("user{n}{}", "y".repeat(400))).collect();
    let found = futures_util::future::join_all(names.iter().map(|name| under.look_up(name))).await;
    for (name, (found, _)) in names.iter().zip(found) {
        assert_eq!(&*found.unwrap().dn, format!("uid={name},dc=x"));
    }
    assert_eq!(server.connections(), 1);
}
