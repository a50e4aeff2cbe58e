//! Several directory servers: a failing one is marked down and used again, one with wrong data is not
//! used, and when all are unreachable cached users still log in.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::certs::Leaf;
use crate::kit::client::Reply;
use crate::kit::scripted::{BlackHole, Operation, Scripted, ScriptedLdap, ldap_entry, ldap_result};
use crate::kit::slapd::{Options, Slapd};
use crate::kit::users::{SERVICE_DN, SUFFIX, all_users};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher, password_of, shared};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";
/// The time limit for reporting an outage.
const REPORTED_WITHIN: Duration = Duration::from_secs(2);

/// These servers in this order, over TLS, and a backend that accepts every login.
fn over(servers: &[&Slapd]) -> Config {
    let urls: Vec<String> = servers.iter().map(|server| server.tls_url()).collect();
    Config::with_directory(servers[0])
        .scripted(&Scripted::accepting())
        .set("/directory/servers", json!(urls))
        .set("/directory/attempt_timeout", "700ms")
        .set("/limits", json!({"failed_logins": 100}))
}

fn login_as(usher: &Usher, uid: &str, password: &str) -> (Reply, Duration) {
    let mut imap = Imap::tls(usher.imaps_port());
    let asked = Instant::now();
    (imap.authenticate("", uid, password.as_bytes()), asked.elapsed())
}

fn login(usher: &Usher, uid: &str) -> (Reply, Duration) {
    login_as(usher, uid, &password_of(uid))
}

fn up(usher: &Usher, url: &str, value: f64) {
    usher.wait_metric("usher_directory_up", &[("server", url)], value);
}

/// The number of lines with this message.
fn lines_with(usher: &Usher, message: &str) -> usize {
    usher.logged().iter().filter(|line| line["message"] == message).count()
}

#[test]
fn frozen_server_costs_one_timeout_and_is_used_again() {
    let (first, second) = (Slapd::private(), Slapd::private());
    let usher = Usher::start(over(&[&first, &second]));
    login(&usher, "alice").0.ok();
    assert_eq!((first.binds(ALICE), second.binds(ALICE)), (1, 0));
    first.freeze();
    login(&usher, "anna").0.ok();
    up(&usher, &first.tls_url(), 0.0);
    usher.wait_log("directory server marked down", |line| line["server"] == first.tls_url().as_str());
    for uid in ["gruen", "quote", "space", "long"] {
        login(&usher, uid).0.ok();
    }
    let url = first.tls_url();
    let timed_out = |operation| {
        let labels = [("server", url.as_str()), ("operation", operation), ("code", "timeout")];
        usher.metric("usher_directory_operations_total", &labels)
    };
    // At most one login used it; a probe may have been first.
    assert!(timed_out("search") + timed_out("bind") <= 1.0);
    assert!(usher.metric("usher_directory_failovers_total", &[("server", &url)]) <= 2.0);
    assert_eq!(usher.metric("usher_directory_up", &[("server", &second.tls_url())]), 1.0);
    first.thaw();
    up(&usher, &url, 1.0);
    login(&usher, "olga").0.ok();
    let olga = "uid=olga,ou=open,dc=example,dc=com";
    assert_eq!((first.binds(olga), second.binds(olga)), (1, 0), "the preferred server is used again");
}

#[test]
fn black_hole_dead_server_and_bad_certificate_are_detected_without_a_login() {
    let good = Slapd::private();
    let hole = BlackHole::open();
    let pair = shared().certificates.leaf("ldap-elsewhere", Leaf::server(&["ldap.example.net"]));
    let other_name = Slapd::with(Options { pair: Some(&pair), ..Options::default() });
    let dead = format!("ldaps://127.0.0.1:{}", crate::kit::process::free_port());
    let hole = format!("ldaps://127.0.0.1:{}", hole.port);
    let bad = [hole.clone(), dead.clone(), other_name.tls_url()];
    let servers: Vec<String> = bad.iter().cloned().chain([good.tls_url()]).collect();
    let usher = Usher::start(over(&[&good]).set("/directory/servers", json!(servers)));
    for url in &bad {
        up(&usher, url, 0.0);
    }
    let (reply, took) = login(&usher, "alice");
    reply.ok();
    assert!(took < REPORTED_WITHIN, "{took:?}");
    assert_eq!((other_name.binds(ALICE), other_name.binds(SERVICE_DN)), (0, 0));
    assert_eq!(usher.metric("usher_directory_up", &[("server", &good.tls_url())]), 1.0);
}

#[test]
fn busy_unavailable_and_malformed_servers_are_marked_down() {
    let good = Slapd::private();
    // The reply to every operation except a bind: this result, garbage, or a close.
    for answer in [Some(51), Some(52), Some(80), None] {
        let first = ScriptedLdap::start(move |_, operation, id, _| match (operation, answer) {
            (Operation::Bind, _) => Some(ldap_result(id, 0x61, 0)),
            (_, Some(code)) => Some(ldap_result(id, 0x65, code)),
            (_, None) => Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        });
        let servers = json!([first.url(), good.tls_url()]);
        let usher = Usher::start(over(&[&good]).set("/directory/servers", servers));
        login(&usher, "alice").0.ok();
        up(&usher, &first.url(), 0.0);
        login_as(&usher, "alice", "wrong").0.is("NO [AUTHENTICATIONFAILED]");
    }
}

#[test]
fn server_that_refuses_or_strips_starttls_is_not_used() {
    let good = Slapd::private();
    for code in [2, 0] {
        // 2: refused. 0: accepted without TLS afterwards, as when an attacker strips it.
        let first = ScriptedLdap::start(move |_, operation, id, _| match operation {
            Operation::Other(0x77) => Some(ldap_result(id, 0x78, code)),
            Operation::Bind | Operation::Search => panic!("asked in the clear"),
            Operation::Other(_) => None,
        });
        let config = over(&[&good]).set("/directory/servers", json!([first.url(), good.url()]));
        let usher = Usher::start(config.set("/directory/starttls", true));
        login(&usher, "alice").0.ok();
        up(&usher, &first.url(), 0.0);
    }
}

#[test]
fn round_robin_gives_each_server_its_share() {
    let servers = [Slapd::private(), Slapd::private()];
    let usher = Usher::start(over(&[&servers[0], &servers[1]]).set("/directory/balance", "round_robin"));
    let people = ["alice", "anna", "quote", "space", "bytes3", "big3"];
    for uid in people {
        login(&usher, uid).0.ok();
    }
    let users = |slapd: &Slapd| slapd.logged().matches("BIND dn=\"uid=").count() / 2;
    let searches = |slapd: &Slapd| slapd.searches("base=\"dc=example,dc=com\"");
    for slapd in &servers {
        assert_eq!((searches(slapd), users(slapd)), (3, 3), "{}", slapd.logged());
    }
}

#[test]
fn first_login_succeeds_after_both_servers_restart() {
    let mut servers = [Slapd::private(), Slapd::private()];
    let usher = Usher::start(over(&[&servers[0], &servers[1]]));
    login(&usher, "alice").0.ok();
    servers.iter_mut().for_each(Slapd::stop);
    for uid in ["anna", "quote"] {
        let (reply, took) = login(&usher, uid);
        reply.is("NO [UNAVAILABLE]");
        assert!(took < REPORTED_WITHIN, "{took:?}");
    }
    usher.wait_log("directory unreachable; serving cached users for up to cache.stale", |_| true);
    servers.iter_mut().for_each(Slapd::start_again);
    login(&usher, "anna").0.ok();
    usher.wait_log("directory reachable again", |_| true);
}

/// A slapd whose service account may read the users only as a member of a group.
fn with_readers() -> Slapd {
    let people = format!("dn.subtree=\"ou=people,{SUFFIX}\"");
    let readers = format!("by group.exact=\"cn=readers,ou=services,{SUFFIX}\" read");
    let hosts = format!("by group.exact=\"cn=hosts,ou=services,{SUFFIX}\" read");
    let group = |name: &str| {
        let dn = format!("dn: cn={name},ou=services,{SUFFIX}\nobjectClass: groupOfNames\ncn: {name}\n");
        format!("{dn}member: {SERVICE_DN}\n\n")
    };
    Slapd::with(Options {
        access: &format!(
            "access to {people} attrs=mailHost {hosts} by self read by * none\n\
             access to {people} attrs=userPassword by anonymous auth by * none\n\
             access to {people} {readers} by self read by * none\n"
        ),
        entries: &format!("{}{}", group("readers"), group("hosts")),
        ..Options::default()
    })
}

/// Makes the service account the member of a group of [`with_readers`], or another DN instead.
fn member(slapd: &Slapd, group: &str, is_usher: bool) {
    let member = if is_usher { SERVICE_DN } else { "cn=other" };
    slapd.modify(&format!(
        "dn: cn={group},ou=services,{SUFFIX}\nchangetype: modify\nreplace: member\nmember: {member}\n"
    ));
}

fn empty(slapd: &Slapd) {
    let delete = |dn: String| format!("dn: {dn}\nchangetype: delete\n\n");
    let people = all_users().into_iter().filter(|person| person.ou == "people" && person.dn().is_ascii());
    slapd.modify(&people.map(|person| delete(person.dn())).collect::<String>());
}

fn fill(slapd: &Slapd) {
    all_users().iter().filter(|person| person.ou == "people").for_each(|person| slapd.add(person));
}

#[test]
fn empty_server_and_lost_access_rules_refuse_no_user() {
    let (first, second) = (with_readers(), Slapd::private());
    let canary = json!({"login": "anna", "mail_host": "server3"});
    let config = over(&[&first, &second]).set("/directory/canary", canary).set("/cache/ttl", "100ms");
    let usher = Usher::start(config.set("/cache/negative_ttl", "100ms"));
    let url = first.tls_url();
    type Change<'a> = &'a dyn Fn();
    let cases: [(&str, Change<'_>, Change<'_>); 3] = [
        ("lost access", &|| member(&first, "readers", false), &|| member(&first, "readers", true)),
        ("lost mailHost", &|| member(&first, "hosts", false), &|| member(&first, "hosts", true)),
        ("empty", &|| empty(&first), &|| fill(&first)),
    ];
    for (at, (case, lose, mend)) in cases.into_iter().enumerate() {
        up(&usher, &url, 1.0);
        let before = first.binds(ALICE);
        login(&usher, "alice").0.ok();
        assert_eq!(first.binds(ALICE), before + 1, "{case}: {}", first.logged());
        lose();
        std::thread::sleep(Duration::from_millis(1_100)); // the validity of a canary check
        // The very first login: replies of this server are never used.
        login(&usher, "quote").0.ok();
        up(&usher, &url, 0.0);
        assert_eq!(usher.metric("usher_directory_canary_ok", &[("server", &url)]), 0.0, "{case}");
        login(&usher, "alice").0.ok();
        login_as(&usher, "alice", "wrong").0.is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(first.binds(ALICE), before + 1, "{case}: it is marked down");
        let line = "directory server does not return the canary; not used";
        usher.wait_nth_log(at + 1, line, |line| line["server"] == url.as_str() && line["level"] == "ERROR");
        mend();
    }
    up(&usher, &url, 1.0);
    assert_eq!(usher.metric("usher_directory_canary_ok", &[("server", &url)]), 1.0);
}

#[test]
fn cached_users_log_in_during_an_outage_and_no_reply_says_wrong_password() {
    let servers = [Slapd::private(), Slapd::private()];
    let usher = Usher::start(over(&[&servers[0], &servers[1]]).set("/cache/ttl", "100ms"));
    let urls = servers.each_ref().map(Slapd::tls_url);
    for uid in ["alice", "quote"] {
        login(&usher, uid).0.ok();
    }
    servers.iter().for_each(Slapd::freeze);
    std::thread::sleep(Duration::from_millis(150)); // the lifetime of the entry is what is tested
    // The first of them detects it.
    login(&usher, "alice").0.ok();
    assert_eq!(usher.nth_login(2, "alice")["by"], "stale");
    for url in &urls {
        up(&usher, url, 0.0);
    }
    let mut slowest = [Duration::ZERO; 2];
    for _ in 0..3 {
        for uid in ["alice", "quote"] {
            let (reply, took) = login(&usher, uid);
            reply.ok();
            slowest[0] = slowest[0].max(took);
        }
        for (uid, password) in [("alice", "wrong"), ("bob", "bob-secret"), ("unknown", "x"), ("quote", "alice-secret")]
        {
            let (reply, took) = login_as(&usher, uid, password);
            reply.is("NO [UNAVAILABLE]");
            slowest[1] = slowest[1].max(took);
        }
    }
    println!("both frozen: cached login within {:?}, refusal within {:?}", slowest[0], slowest[1]);
    assert!(slowest.iter().all(|took| *took < REPORTED_WITHIN), "{slowest:?}");
    assert!(usher.metric("usher_decisions_total", &[("by", "stale")]) >= 7.0);
    assert_eq!(usher.http("/ready").0, 200);
    servers.iter().for_each(Slapd::thaw);
    login(&usher, "bob").0.is("NO [CONTACTADMIN]"); // found again, without a configured backend here
    usher.wait_log("directory reachable again", |_| true);
    let anew = usher.metric("usher_decisions_total", &[("by", "directory")]);
    login(&usher, "alice").0.ok();
    assert_eq!(usher.metric("usher_decisions_total", &[("by", "directory")]), anew + 1.0);
    let away = "directory unreachable; serving cached users for up to cache.stale";
    assert_eq!(
        (lines_with(&usher, away), lines_with(&usher, "directory reachable again")),
        (1, 1),
        "a line for each change"
    );
}

#[test]
fn stale_can_be_disabled() {
    let mut slapd = Slapd::private();
    let config = over(&[&slapd]).set("/cache", json!({"ttl": "100ms", "stale": "0s"}));
    let usher = Usher::start(config);
    login(&usher, "alice").0.ok();
    slapd.stop();
    up(&usher, &slapd.tls_url(), 0.0);
    std::thread::sleep(Duration::from_millis(150)); // the lifetime of the entry is what is tested
    login(&usher, "alice").0.is("NO [UNAVAILABLE]");
}

#[test]
fn connection_can_be_closed_when_the_directory_is_unavailable() {
    let mut slapd = Slapd::private();
    for policy in ["reply", "reply_and_close"] {
        let limits = json!({"failed_logins": 100, "on_unavailable": policy});
        let usher = Usher::start(over(&[&slapd]).set("/limits", limits));
        slapd.stop();
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
        if policy == "reply" {
            imap.command("NOOP").ok();
        } else {
            assert!(imap.line().starts_with("* BYE [UNAVAILABLE]"));
            imap.expect_clean_end();
            let labels = [("cause", "unavailable"), ("protocol", "imap")];
            usher.wait_metric("usher_prelogin_connections_ended_total", &labels, 1.0);
        }
        slapd.start_again();
    }
}

#[test]
fn client_that_disconnects_during_its_bind_corrupts_no_connection() {
    let slapd = Slapd::private();
    let config = over(&[&slapd]).set("/directory/timeout", "8s").set("/directory/attempt_timeout", "8s");
    let usher =
        Usher::start(config.set("/routing/backends/0/timeout", "2s").set("/directory/connections", json!({"max": 1})));
    login(&usher, "quote").0.ok();
    slapd.freeze();
    let mut leaving: Vec<Imap> = (0..5).map(|_| Imap::tls(usher.imaps_port())).collect();
    for imap in &mut leaving {
        imap.send(format!("a LOGIN alice {}\r\n", password_of("alice")));
    }
    leaving.into_iter().for_each(Imap::reset);
    slapd.thaw();
    login(&usher, "anna").0.ok();
    login(&usher, "alice").0.ok();
    assert_eq!(slapd.binds(ALICE), 1, "what was asked for is worth keeping: {}", slapd.logged());
}

#[test]
fn logins_beyond_the_connections_are_refused_quickly() {
    // Binds of users are never answered.
    let ldap = ScriptedLdap::start(|_, operation, id, request| {
        let is = |text: &str| request.windows(text.len()).any(|window| window == text.as_bytes());
        match operation {
            Operation::Bind if is(SERVICE_DN) => Some(ldap_result(id, 0x61, 0)),
            Operation::Bind => Some(vec![]),
            Operation::Search | Operation::Other(_) => {
                Some([ldap_entry(id, ALICE, &[("mailHost", "server3")]), ldap_result(id, 0x65, 0)].concat())
            }
        }
    });
    let config = Config::with_url(&ldap.url()).scripted(&Scripted::accepting());
    let config = config.set("/directory/connections", json!({"min": 0, "max": 2}));
    let config = config.set("/throttle", json!({"exempt": ["127.0.0.0/8"]}));
    let usher = Usher::start(config.set("/directory/attempt_timeout", "700ms"));
    let mut clients: Vec<Imap> = (0..20).map(|_| Imap::tls(usher.imaps_port())).collect();
    let asked = Instant::now();
    for (number, imap) in clients.iter_mut().enumerate() {
        imap.send(format!("a LOGIN alice secret-{number}\r\n"));
    }
    for imap in &mut clients {
        imap.reply("a").is("NO [UNAVAILABLE]");
    }
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}

#[test]
fn explain_queries_every_server() {
    let (mut first, second) = (Slapd::private(), Slapd::private());
    first.stop();
    let config = over(&[&first, &second]).set("/directory/canary", json!({"login": "anna", "mail_host": "server3"}));
    config.write();
    let said = command(&config, &["explain", "alice", "--json"], b"").succeeded();
    let value: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(value["servers"][0]["server"], first.tls_url());
    assert!(value["servers"][0]["error"].as_str().unwrap().contains("refused"), "{value}");
    assert!(value["servers"][1]["error"].is_null(), "{value}");
    let config = config.set("/directory/canary/mail_host", "server4");
    config.write();
    let said = command(&config, &["explain", "alice"], b"");
    assert_eq!(said.code, 69, "{said:#?}");
    assert!(said.stdout.contains("does not return the canary as configured"), "{said:#?}");
}
