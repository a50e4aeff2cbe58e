//! Selection of servers: marked down, probed, recovered, logged; and the duration of waits.

use super::*;

#[tokio::test]
async fn unanswered_bind_is_retried_on_one_other_server() {
    let silent_bind = |seen: &Recorded| if is_bind(seen) { Vec::new() } else { alice(seen) };
    let servers =
        [Scripted::start(silent_bind).await, Scripted::start(silent_bind).await, Scripted::start(alice).await];
    let list = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
    let mut settings = settings(list, searching(None));
    settings.attempt_timeout = Duration::from_millis(150);
    let under = Under::test(&settings, Tuning::default());
    let (result, trace) = under.login("alice", "right").await;
    assert_eq!(cause(result), UnavailableCause::Timeout);
    assert_eq!(trace.code, None);
    assert_eq!(servers.iter().map(|server| server.binds().len()).collect::<Vec<_>>(), [1, 1, 0]);
    // The unanswered connections are not used again.
    until(|| servers[1].open() == 0).await;
}

#[tokio::test]
async fn second_server_gets_a_minimum_time_and_no_fault_for_exceeding_it() {
    let silent_bind = |seen: &Recorded| if is_bind(seen) { Vec::new() } else { alice(seen) };
    let servers = [Scripted::start(silent_bind).await, Scripted::start(silent_bind).await];
    let list = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
    // Of the two seconds, 0.4 are left for the second one.
    let mut settings = settings(list, searching(None));
    settings.attempt_timeout = Duration::from_millis(1_500);
    let under = Under::test(&settings, Tuning::default());
    assert_eq!(cause(under.login("alice", "right").await.0), UnavailableCause::Timeout);
    let suspected = |at: usize| under.ldap.server(at).health().is_suspect();
    assert_eq!((suspected(0), suspected(1)), (true, false));
    assert_eq!(servers.iter().map(|server| server.binds().len()).collect::<Vec<_>>(), [1, 1]);
}

#[tokio::test]
async fn logins_do_not_queue_at_a_dead_server() {
    let silent = Scripted::start(|seen: &Recorded| if is_bind(seen) { Vec::new() } else { alice(seen) }).await;
    let good = Scripted::start(alice).await;
    let servers = vec![silent.server(LdapScheme::Ldap, "127.0.0.1"), good.server(LdapScheme::Ldap, "127.0.0.1")];
    let mut settings = settings(servers, searching(None));
    settings.attempt_timeout = Duration::from_millis(400);
    settings.connections.max = 1;
    let under = Under::test(&settings, Tuning { down: Duration::from_secs(600), ..Tuning::default() });
    let logins = (0..10).map(|_| under.alice());
    for login in within(futures_util::future::join_all(logins)).await {
        login.unwrap();
    }
    // One waited for a reply; those queued behind it continued when it timed out.
    assert_eq!(silent.binds().len(), 1);
}

#[tokio::test]
async fn unreachable_server_costs_nothing() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let good = Scripted::start(alice).await;
    let dead = |name: &str| DirectoryServer {
        url: format!("ldap://{name}"),
        scheme: LdapScheme::Ldap,
        host: "127.0.0.1".to_owned(),
        port: gone,
        server_name: None,
        pin_sha256: Vec::new(),
        starttls: false,
        srv: None,
    };
    let servers = vec![dead("a"), dead("b"), dead("c"), good.server(LdapScheme::Ldap, "127.0.0.1")];
    let under = Under::test(&settings(servers, searching(None)), Tuning::default());
    under.alice().await.unwrap();
    let under = Under::test(&settings(vec![dead("a"), dead("b")], searching(None)), Tuning::default());
    assert!(
        matches!(cause(under.alice().await), UnavailableCause::Connection { server, .. } if &*server == "ldap://b")
    );
}

#[tokio::test]
async fn recovered_server_is_found_in_the_background() {
    let well = Arc::new(AtomicBool::new(false));
    let switch = well.clone();
    let script = move |seen: &Recorded| match switch.load(Ordering::SeqCst) {
        true => alice(seen),
        false => vec![ScriptedReply::Close],
    };
    let (flaky, good) = (Scripted::start(script).await, Scripted::start(alice).await);
    let servers = vec![flaky.server(LdapScheme::Ldap, "127.0.0.1"), good.server(LdapScheme::Ldap, "127.0.0.1")];
    let tuning = Tuning { down: Duration::from_millis(50), ..Tuning::default() };
    let under = Under::test(&settings(servers, searching(None)), tuning);
    under.alice().await.unwrap();
    assert_eq!(flaky.seen().len(), 1);
    well.store(true, Ordering::SeqCst);
    within(async {
        // Logins continue meanwhile; none is sent to the flaky one until its probe is answered.
        while flaky.binds().is_empty() {
            under.ldap.run_due();
            under.alice().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let looks = flaky.searches().iter().filter(|base| base.is_empty()).count();
    assert_eq!(looks, 1);
}

/// Servers under these settings, with short times.
fn hurried(servers: &[&Scripted], find: Find) -> config::Directory {
    let servers = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
    config::Directory { attempt_timeout: Duration::from_millis(200), ..settings(servers, find) }
}

/// As [`every_user`], and returns the canary while the switch is on.
fn with_canary(shown: &Arc<AtomicBool>) -> impl Fn(&Recorded) -> Vec<ScriptedReply> + Clone + Send + Sync + use<> {
    let shown = shown.clone();
    move |seen| match &seen.op {
        LdapOp::SearchRequest(request) if request.filter == LdapFilter::Equality("uid".into(), "canary".into()) => {
            let canary = entry("uid=canary,dc=x", &[("mailHost", &[b"Server3"])]);
            if shown.load(Ordering::SeqCst) { vec![canary, done(Code::Success)] } else { vec![done(Code::Success)] }
        }
        _ => every_user(seen),
    }
}

fn switch(on: bool) -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(on))
}

fn canary() -> Option<Canary> {
    Some(Canary { login: "canary".to_owned(), mail_host: "server3".to_owned() })
}

#[tokio::test]
async fn slow_bind_of_one_user_marks_no_server_down() {
    let slow = |seen: &Recorded| match seen.bind() {
        Some((dn, _)) if dn.starts_with("uid=slow,") => Vec::new(),
        _ => every_user(seen),
    };
    let (server, standby) = (Scripted::start(slow).await, Scripted::start(every_user).await);
    let under = Under::test(&hurried(&[&server, &standby], searching(None)), Tuning::default());
    for _ in 0..3 {
        let looks = server.searches().iter().filter(|base| base.is_empty()).count();
        // The user's own login is retried at the other server, once.
        under.login("slow", "x").await.0.unwrap();
        under.ldap.run_due();
        until(|| server.searches().iter().filter(|base| base.is_empty()).count() > looks).await;
        until(|| under.ldap.server(0).health().rank().0 == crate::directory::ldap::health::ServerRank::Healthy).await;
        let before = standby.seen().len();
        under.login("anna", "x").await.0.unwrap();
        assert_eq!(standby.seen().len(), before, "anna is served by the same server as the others");
    }
    assert_eq!(standby.binds().len(), 3);
}

#[tokio::test]
async fn server_with_hanging_binds_recovers_by_a_bind() {
    let hangs = switch(true);
    let now = hangs.clone();
    let script = move |seen: &Recorded| match (now.load(Ordering::SeqCst), seen.bind()) {
        (true, Some(_)) => Vec::new(),
        _ => every_user(seen),
    };
    let (server, standby) = (Scripted::start(script).await, Scripted::start(every_user).await);
    let tuning = Tuning { down: Duration::from_millis(50), down_max: Duration::from_millis(50), ..Tuning::default() };
    let under = Under::test(&hurried(&[&server, &standby], searching(None)), tuning);
    // Two users, without a reply between them.
    under.login("anna", "x").await.0.unwrap();
    under.ldap.run_due();
    until(|| !under.ldap.server(0).health().is_suspect()).await;
    under.login("bob", "x").await.0.unwrap();
    assert!(!under.ldap.server(0).health().is_up());
    let binds = server.binds().len();
    within(async {
        // It answers each probe; one login after each pause tries it and moves to the other server.
        while server.binds().len() < binds + 2 {
            under.ldap.run_due();
            under.login("clara", "x").await.0.unwrap();
        }
    })
    .await;
    assert!(server.searches().iter().filter(|base| base.is_empty()).count() >= 2);
    assert!(!under.ldap.server(0).health().is_in_use());
    hangs.store(false, Ordering::SeqCst);
    within(async {
        while !under.ldap.server(0).health().is_in_use() {
            under.ldap.run_due();
            under.login("clara", "x").await.0.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn attempt_with_too_little_time_is_no_fault() {
    // The first server uses almost all the time, and the rest is too short for the second.
    let silent = Scripted::start(|_| Vec::new()).await;
    let mute = Scripted::start(|_| Vec::new()).await;
    let mut settings = hurried(&[&silent, &mute], searching(None));
    settings.timeout = Duration::from_millis(250);
    let under = Under::test(&settings, Tuning::default());
    assert_eq!(cause(under.login("anna", "x").await.0), UnavailableCause::Timeout);
    assert_eq!((under.count(&silent, "search", "timeout"), under.count(&mute, "search", "timeout")), (1, 1));
    let suspected = [0, 1].map(|at| under.ldap.server(at).health().is_suspect());
    assert_eq!(suspected, [true, false]);
}

#[tokio::test]
async fn probe_keeps_no_more_connections_than_configured() {
    let server = Scripted::start(alice).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], templated(None));
    settings.connections.min = 1;
    let under = Under::test(&settings, Tuning::default());
    for _ in 0..5 {
        under.ldap.probe().await.unwrap();
    }
    until(|| server.open() == 1).await;
    assert_eq!(server.connections(), 5);
}

#[tokio::test]
async fn round_robin_assigns_whole_decisions() {
    let servers = [Scripted::start(alice).await, Scripted::start(alice).await, Scripted::start(alice).await];
    let mut settings = hurried(&[&servers[0], &servers[1], &servers[2]], searching(None));
    settings.balance = Balance::RoundRobin;
    let under = Under::test(&settings, Tuning::default());
    for _ in 0..9 {
        under.alice().await.unwrap();
    }
    for server in &servers {
        assert_eq!((server.searches().len(), server.binds().len()), (3, 3));
    }
    // With one down, the others take its share.
    let [gone, others @ ..] = servers;
    drop(gone);
    for _ in 0..6 {
        under.alice().await.unwrap();
    }
    assert!(others.iter().all(|server| server.binds().len() >= 5));
}

#[tokio::test]
async fn server_without_the_canary_is_not_used() {
    let shown = [switch(false), switch(true)];
    let servers = [Scripted::start(with_canary(&shown[0])).await, Scripted::start(with_canary(&shown[1])).await];
    let mut settings = hurried(&[&servers[0], &servers[1]], searching(None));
    settings.canary = canary();
    let under = Under::test(&settings, Tuning { down: Duration::from_millis(50), ..Tuning::default() });
    for _ in 0..3 {
        under.login("anna", "x").await.0.unwrap();
    }
    assert_eq!(servers[0].binds().len(), 0, "no password for a server that shows no canary");
    under.ldap.update_gauges();
    let ok = |server: &Scripted| under.metrics.directory_canary_ok.with_label_values(&["default", &server.url()]).get();
    let up = |server: &Scripted| under.metrics.directory_up.with_label_values(&["default", &server.url()]).get();
    assert_eq!((ok(&servers[0]), ok(&servers[1])), (0, 1));
    assert_eq!((up(&servers[0]), up(&servers[1])), (0, 1));
    // Neither shows it: no reply is used.
    shown[1].store(false, Ordering::SeqCst);
    let looks = under.ldap.probe_all().await;
    assert!(looks.iter().all(|(_, look)| matches!(look, Err(UnavailableCause::Canary { .. }))), "{looks:?}");
    assert_eq!(under.ldap.availability(), Availability::Unreachable);
    assert!(matches!(cause(under.login("anna", "x").await.0), UnavailableCause::Canary { .. }));
    // The canary is back, and so is the server.
    shown[0].store(true, Ordering::SeqCst);
    under.login("anna", "x").await.0.unwrap();
    assert_eq!(servers[0].binds().len(), 1);
}

#[tokio::test]
async fn replies_of_a_server_that_lost_the_canary_are_discarded() {
    // Suddenly empty: no user is found, no mail host shown, every bind refused.
    let whole = switch(true);
    let now = whole.clone();
    let good = with_canary(&whole);
    let lost = move |seen: &Recorded| match (now.load(Ordering::SeqCst), seen.bind()) {
        (false, Some(_)) => bound(Code::InvalidCredentials),
        (false, None) if seen.base() == Some("uid=canary,dc=x") => vec![done(Code::NoSuchObject)],
        (false, None) => vec![done(Code::Success)],
        _ => good(seen),
    };
    let (_folder, _file, account) = service(b"service");
    for (find, binds) in [(searching(None), 0), (templated(account), 1)] {
        whole.store(true, Ordering::SeqCst);
        let (server, standby) =
            (Scripted::start(lost.clone()).await, Scripted::start(with_canary(&switch(true))).await);
        let mut settings = hurried(&[&server, &standby], find);
        settings.canary = canary();
        let under = Under::test(&settings, Tuning { canary_valid: Duration::ZERO, ..Tuning::default() });
        under.login("anna", "x").await.0.unwrap();
        let before = standby.binds().iter().filter(|(_, dn, _)| dn.starts_with("uid=")).count();
        whole.store(false, Ordering::SeqCst);
        let result = under.login("bob", "x").await.0;
        if binds == 0 {
            // A search may be retried on the other server at once.
            result.unwrap();
        } else {
            // An answered bind is an attempt: "unavailable", and no second server receives the password.
            assert!(matches!(cause(result), UnavailableCause::Canary { .. }));
            let after = standby.binds().iter().filter(|(_, dn, _)| dn.starts_with("uid=")).count();
            assert_eq!(after, before);
        }
        under.login("bob", "x").await.0.unwrap();
        assert!(!under.ldap.server(0).health().is_in_use());
    }
}

#[tokio::test]
async fn unknown_name_is_believed_from_a_server_that_returns_the_canary() {
    for unknown in [Code::NoSuchObject, Code::InvalidDNSyntax, Code::InappropriateAuthentication] {
        let shown = switch(true);
        let now = shown.clone();
        let of_unknown = unknown.clone();
        let script = move |seen: &Recorded| match (seen.bind(), seen.base()) {
            (Some((dn, _)), _) if dn.starts_with("uid=bob,") => bound(of_unknown.clone()),
            // The canary is read by its DN here.
            (None, Some("uid=canary,dc=x")) if now.load(Ordering::SeqCst) => {
                vec![entry("uid=canary,dc=x", &[("mailHost", &[b"Server3"])]), done(Code::Success)]
            }
            (None, Some("uid=canary,dc=x")) => vec![done(Code::NoSuchObject)],
            _ => every_user(seen),
        };
        let server = Scripted::start(script).await;
        let (_folder, _file, account) = service(b"service");
        let mut settings = hurried(&[&server], templated(account));
        settings.canary = canary();
        let under = Under::test(&settings, Tuning { canary_valid: Duration::ZERO, ..Tuning::default() });
        let is_about_bob = |error: &DirectoryError| match unknown {
            Code::InappropriateAuthentication => matches!(error, DirectoryError::NoPassword { .. }),
            _ => *error == DirectoryError::NoEntry,
        };
        let refused = under.login("bob", "x").await.0.unwrap_err();
        assert!(is_about_bob(&refused), "{refused}");
        shown.store(false, Ordering::SeqCst);
        assert!(matches!(cause(under.login("bob", "x").await.0), UnavailableCause::Canary { .. }), "{unknown:?}");
    }
}

#[tokio::test]
async fn logins_fail_quickly_while_all_servers_are_down_and_the_first_recovered_is_used() {
    let well = switch(true);
    let now = well.clone();
    let script = move |seen: &Recorded| match now.load(Ordering::SeqCst) {
        true => every_user(seen),
        false => Vec::new(),
    };
    let servers = [Scripted::start(script.clone()).await, Scripted::start(script).await];
    let under = Under::test(&hurried(&[&servers[0], &servers[1]], searching(None)), Tuning::default());
    under.login("anna", "x").await.0.unwrap();
    well.store(false, Ordering::SeqCst);
    cause(under.login("anna", "x").await.0);
    // A suspicion is resolved by probes.
    assert_eq!(within(under.ldap.settled_availability()).await, Availability::Unreachable);
    let started = Instant::now();
    let crowd = (0..200).map(|_| under.login("bob", "x"));
    for (result, _) in futures_util::future::join_all(crowd).await {
        assert_eq!(cause(result), UnavailableCause::Timeout);
    }
    assert!(started.elapsed() < Duration::from_millis(1_900), "{:?}", started.elapsed());
    let names = servers.iter().flat_map(|server| server.seen());
    let asked = names.filter(|seen| matches!(&seen.op, LdapOp::SearchRequest(request) if request.filter == LdapFilter::Equality("uid".into(), "bob".into())));
    assert_eq!(asked.count(), 0, "only probes are sent, no searches");
    well.store(true, Ordering::SeqCst);
    let crowd = (0..50).map(|_| under.login("bob", "x"));
    for (result, _) in futures_util::future::join_all(crowd).await {
        result.unwrap();
    }
    assert_eq!(under.ldap.availability(), Availability::Available);
}

#[tokio::test]
async fn endless_reply_is_ended_by_the_deadline() {
    let endless = [
        // A message that announces 2 GiB, and drips.
        vec![0x30, 0x84, 0x7f, 0xff, 0xff, 0xff],
        // An entry with endless attributes.
        vec![0x30, 0x82, 0xff, 0xff, 0x02, 0x01, 0x01, 0x64, 0x82, 0xff, 0xf0, 0x04, 0x01, b'x'],
    ];
    for head in endless {
        let gate = Arc::new(Semaphore::new(0));
        let held = gate.clone();
        let script = move |seen: &Recorded| match seen.base() {
            Some("dc=x") => {
                let drip = [ScriptedReply::Raw(vec![b'x'; 4_096]), ScriptedReply::Wait(held.clone())];
                let drops = std::iter::repeat_n(drip, 50).flatten();
                std::iter::once(ScriptedReply::Raw(head.clone())).chain(drops).collect()
            }
            _ => alice(seen),
        };
        gate.add_permits(20);
        let server = Scripted::start(script).await;
        let under = Under::test(&hurried(&[&server], searching(None)), Tuning::default());
        let started = Instant::now();
        assert!(matches!(cause(under.alice().await), UnavailableCause::Timeout | UnavailableCause::Malformed { .. }));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        gate.add_permits(1_000);
    }
    // Endless entries, of which two would have been enough.
    let flood = |seen: &Recorded| match seen.base() {
        Some("dc=x") => vec![entry("uid=alice,dc=x", &[("mailHost", &[b"server3"])]); 1_001],
        _ => alice(seen),
    };
    let server = Scripted::start(flood).await;
    let under = Under::new(&[&server], searching(None));
    assert!(matches!(cause(under.alice().await), UnavailableCause::Malformed { .. }));
}

#[tokio::test]
async fn unusual_result_for_one_user_is_no_fault_of_the_server() {
    // ldap3 panics at this one, in the task that all searches of the connection share.
    let odd = |seen: &Recorded| match &seen.op {
        LdapOp::SearchRequest(request) if request.filter == LdapFilter::Equality("uid".into(), "odd".into()) => {
            vec![ScriptedReply::Raw(vec![0x30, 0x05, 0x02, 0x01, u8::try_from(seen.id).unwrap(), 0x65, 0x00])]
        }
        _ => every_user(seen),
    };
    let server = Scripted::start(odd).await;
    let under = Under::test(&hurried(&[&server], searching(None)), Tuning::default());
    for _ in 0..3 {
        let (odd, anna) = tokio::join!(under.login("odd", "x"), under.login("anna", "x"));
        assert!(matches!(cause(odd.0), UnavailableCause::Malformed { .. }));
        anna.0.unwrap();
        assert_eq!(under.ldap.availability(), Availability::Available);
    }
}

#[tokio::test]
async fn deadline_ends_every_operation() {
    let servers = [Scripted::start(|_| Vec::new()).await, Scripted::start(|_| Vec::new()).await];
    let list = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
    for find in [searching(None), templated(None)] {
        let mut settings = settings(Vec::clone(&list), find);
        settings.timeout = Duration::from_millis(300);
        let under = Under::test(&settings, Tuning::default());
        let started = Instant::now();
        assert_eq!(cause(under.alice().await), UnavailableCause::Timeout);
        assert!(started.elapsed() < Duration::from_millis(1_000), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn outage_is_logged_at_intervals_and_not_per_login() {
    let server = Scripted::start(|_: &Recorded| vec![ScriptedReply::Close]).await;
    meet_the_line(&server).await;
    let lines = Lines::default();
    let writer = lines.clone();
    let ours = tracing_subscriber::filter::filter_fn(|meta| !meta.target().starts_with("ldap3_proto"));
    let output = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(output.with_filter(ours)));
    let under = Under::new(&[&server], templated(None));
    for _ in 0..20 {
        cause(under.alice().await);
    }
    drop(under);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    // Of the failed bind, and of the failed probes.
    let lines = text.lines().filter(|line| line.contains("directory request failed"));
    assert_eq!(lines.count(), 2, "{text}");
}
