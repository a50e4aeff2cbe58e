//! The administrative commands for mail servers, for the cached data of a user, and for the
//! shutdown of the process: `usher backends`, `usher cache`, `usher drain`.

use serde_json::{Value, json};

use crate::kit::slapd::Slapd;
use crate::kit::users::all_users;
use crate::kit::usher::Successor;
use crate::kit::{Config, Imap, Usher, cyrus, dovecot, password_of};

const BYE: &str = "* BYE Mail server going down for maintenance, try again later";
const IN_MAINTENANCE: &str = "NO [UNAVAILABLE] Mail server is under maintenance, try again later";
const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";

fn login(usher: &Usher, name: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(name, &password_of(name)).ok();
    imap
}

fn refused(port: u16, name: &str, words: &str) {
    Imap::tls(port).login(name, &password_of(name)).is(words);
}

fn was_ended(imap: &mut Imap) {
    ends_with(imap, BYE);
}

fn ends_with(imap: &mut Imap, closing_line: &str) {
    assert_eq!(imap.line(), closing_line);
    imap.expect_clean_end();
}

fn json_output(usher: &Usher, arguments: &[&str]) -> Value {
    let said = usher.command(&[arguments, &["--json"]].concat());
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"))
}

#[test]
fn backends_command_reports_the_state_of_each_backend() {
    let usher = Usher::start(Config::shared().backend("server5", 1, &["server5"]));
    let _session = login(&usher, "alice");
    let said = usher.command(&["backends"]).succeeded().stdout;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "no backend has a recorded fault: {said}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[0]), ["BACKEND", "PROTOCOL", "STATE", "SESSIONS", "LOGINS", "ADDRESSES"]);
    assert_eq!(words(lines[1]), ["server3", "imap", "up", "1", "0/200", "1/1"]);
    assert_eq!(words(lines[2]), ["server4", "imap", "up", "0", "0/200", "1/1"]);
    let backends = json_output(&usher, &["backends"]);
    assert_eq!(backends[0]["protocols"][0]["capabilities"], json!([]), "no IMAP capability is advertised: {backends}");
    assert_eq!(backends[0]["sessions"], json!({"imap": 1}));
}

#[test]
fn down_backend_is_reported_with_the_reason() {
    let usher = Usher::start(Config::with_directory(crate::kit::slapd()).backend("server3", 1, &["server3"]));
    let down = "NO [UNAVAILABLE]";
    // As many faults as mark the backend down.
    (0..3).for_each(|_| refused(usher.imaps_port(), "alice", down));
    let said = usher.command(&["backends"]);
    assert_eq!(said.code, 1, "{said:#?}");
    let line = said.stdout.lines().last().unwrap();
    assert!(
        line.starts_with("server3 imap: 127.0.0.1:1 is down for ") && line.contains("Connection refused"),
        "{line}"
    );
    let at = &json_output(&usher, &["backends"])[0]["protocols"][0]["addresses"][0];
    assert!(at["breaker"] != "closed" && at["down_seconds"].is_u64(), "{at}");
}

#[test]
fn drained_backend_gets_no_logins_and_loses_its_sessions_until_undrained() {
    let (config, port) = Config::shared().with_ports();
    let mut usher = Usher::start(config);
    let (mut alice, mut bob) = (login(&usher, "alice"), login(&usher, "bob"));
    usher.wait_metric("usher_sessions", &[], 2.0);
    assert_eq!(usher.metric("usher_backend_draining", &[("backend", "server3")]), 0.0);

    let said = usher.command(&["backends", "drain", "server3", "--rate", "50"]).succeeded().stdout;
    assert_eq!(said, "server3 gets no new logins; its 1 session is being ended, 50 a second\n");
    was_ended(&mut alice);
    refused(port, "alice", IN_MAINTENANCE);
    let event = usher.nth_login(2, "alice");
    assert_eq!((event["result"].as_str(), event["backend"].as_str()), (Some("backend_draining"), Some("server3")));
    bob.command("NOOP").ok();
    login(&usher, "bob");
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "backend_drained")], 1.0);
    assert_eq!(usher.metric("usher_backend_draining", &[("backend", "server3")]), 1.0);
    assert_eq!(usher.metric("usher_backend_draining", &[("backend", "server4")]), 0.0);
    assert_eq!(usher.metric("usher_logins_total", &[("result", "backend_draining")]), 1.0);
    let logged = usher.wait_log("admin command", |_| true);
    assert_eq!(
        (logged["cmd"].as_str(), logged["what"].as_str()),
        (Some("backend drain"), Some("backend=server3 rate=50"))
    );
    assert!(logged["uid"].is_u64(), "{logged}");

    // Neither a reload nor an upgrade ends the drain.
    usher.config.change("/limits/refusal_delay", "200ms");
    usher.config.write();
    usher.command(&["reload"]).succeeded();
    refused(port, "alice", IN_MAINTENANCE);
    usher.command(&["upgrade"]).succeeded();
    let _successor = Successor::of(&usher, 2);
    refused(port, "alice", IN_MAINTENANCE);
    let said = usher.command(&["backends"]).succeeded().stdout;
    assert!(said.contains("server3  imap      draining") && said.contains("usher backends undrain server3"), "{said}");

    let said = usher.command(&["backends", "undrain", "server3"]).succeeded().stdout;
    assert_eq!(said, "server3 gets logins again\n");
    let none = usher.command(&["kick", "--user", "no such user"]);
    assert_eq!((none.code, none.stdout.as_str()), (1, ""), "{none:?}");
    assert!(none.stderr.contains("no session of no such user"), "{none:?}");
    let mut alice = login(&usher, "alice");
    alice.command("NOOP").ok();
    assert_eq!(usher.metric("usher_backend_draining", &[("backend", "server3")]), 0.0);
}

#[test]
fn drain_with_rate_0_keeps_sessions_and_an_unknown_name_is_an_error() {
    let usher = Usher::start(Config::shared());
    let mut alice = login(&usher, "alice");
    let said = usher.command(&["backends", "drain", "serv3"]);
    assert!(
        said.code == 64 && said.stderr.contains("unknown backend `serv3`; configured backends: server3"),
        "{said:#?}"
    );
    let drained = json_output(&usher, &["backends", "drain", "server3", "--rate", "0"]);
    assert_eq!((drained["name"].as_str(), drained["draining"]["rate"].as_u64()), (Some("server3"), Some(0)));
    refused(usher.imaps_port(), "anna", IN_MAINTENANCE);
    alice.command("NOOP").ok();
    assert_eq!(usher.metric("usher_backend_draining", &[("backend", "server3")]), 1.0);
}

#[test]
fn cached_user_data_is_shown_without_secrets_and_can_be_dropped() {
    let usher = Usher::start(Config::shared().set("/directory/login_attribute", "uid"));
    let said = usher.command(&["cache", "show", "alice"]);
    assert!(said.code == 67 && said.stderr.contains("nothing is cached for alice"), "{said:#?}");
    login(&usher, "alice");
    Imap::tls(usher.imaps_port()).login("alice", "a wrong one").is("NO [AUTHENTICATIONFAILED]");
    Imap::tls(usher.imaps_port()).login("alice@example.com", &password_of("alice")).ok();
    for name in ["alice", "Alice@Example.com", ALICE] {
        let said = usher.command(&["cache", "show", name]).succeeded().stdout;
        for words in
            [ALICE, "alice, alice@example.com", "server3 (mailHost: server3)", "1 right, 1 wrong", "cached for"]
        {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert!(!said.contains("a wrong one") && !said.contains(&password_of("alice")), "{said}");
    }
    let cached = json_output(&usher, &["cache", "show", "alice"]);
    assert_eq!((cached[0]["right"].as_u64(), cached[0]["backend"].as_str()), (Some(1), Some("server3")));
    login(&usher, "alice");
    assert_eq!(usher.nth_login(3, "alice")["by"], "cache");

    for arguments in [&["cache", "drop"][..], &["cache", "drop", "alice", "--all"], &["cache", "drop", ""]] {
        assert_eq!(usher.command(arguments).code, 64, "{arguments:?}");
    }
    let said = usher.command(&["cache", "drop", "alice@example.com"]).succeeded().stdout;
    assert_eq!(said, format!("{ALICE}\n1 user dropped\n"));
    login(&usher, "alice");
    assert_eq!(usher.nth_login(4, "alice")["by"], "directory");
    login(&usher, "bob");
    assert_eq!(json_output(&usher, &["cache", "drop", "--all"])["entries"], 2);
    assert_eq!(usher.command(&["cache", "show", "bob"]).code, 67);
    login(&usher, "bob");
    assert_eq!(usher.nth_login(2, "bob")["by"], "directory");
    usher.wait_log("admin command", |line| line["cmd"] == "cache drop" && line["what"] == "all");
}

/// As in docs/operations.md: disabled in the directory, dropped from the cache, logged out.
#[test]
fn departed_user_is_locked_out_at_once() {
    let slapd = Slapd::private();
    let config = Config::with_directory(&slapd).backend("server3", dovecot().imaps, &["server3"]);
    let usher = Usher::start(config.backend("server4", cyrus().imaps, &["server4"]));
    let mut alice = login(&usher, "alice");
    let person = all_users().into_iter().find(|person| person.uid == "alice").unwrap();
    slapd.set(&person, "userPassword", Some("lost password"));
    // Change notification is off here: the cache would accept her until `cache.ttl` is over.
    login(&usher, "alice");
    usher.command(&["cache", "drop", "alice"]).succeeded();
    usher.command(&["kick", "--user", "alice"]).succeeded();
    ends_with(&mut alice, "* BYE Session ended by an administrator, please reconnect");
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [AUTHENTICATIONFAILED]");
}

#[test]
fn process_leaves_the_load_balancer_and_returns_or_ends() {
    let usher = Usher::start(Config::shared().set("/drain", json!({"delay": "0s", "deadline": "5s"})));
    let mut alice = login(&usher, "alice");
    assert_eq!(usher.http("/ready").0, 200);
    let said = usher.command(&["drain", "--ready-only"]).succeeded().stdout;
    assert!(said.starts_with("/ready replies 503"), "{said}");
    let (status, body) = usher.http("/ready");
    assert!(status == 503 && body.contains("usher drain --undo"), "{status} {body}");
    alice.command("NOOP").ok();
    login(&usher, "bob");
    assert_eq!(json_output(&usher, &["drain", "--undo"])["ready"], true);
    assert_eq!(usher.http("/ready").0, 200);

    let leaving = json_output(&usher, &["drain"]);
    assert_eq!((leaving["ends"].as_bool(), leaving["deadline_seconds"].as_u64()), (Some(true), Some(5)), "{leaving}");
    usher.wait_log("draining", |_| true);
    alice.rest();
    assert_eq!(usher.exit_code(), 0);
    let logged = usher.wait_log("admin command", |line| line["cmd"] == "drain");
    assert!(logged["uid"].is_u64(), "{logged}");
}
