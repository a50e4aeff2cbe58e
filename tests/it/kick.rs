//! Listing and ending sessions: `usher sessions` and `usher kick` on real mail servers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::usher::Successor;
use crate::kit::{Config, Imap, Usher, password_of};

const BYE: &str = "* BYE Session ended by an administrator, please reconnect";

/// Dovecot and Cyrus identify users by their uid.
fn config() -> Config {
    Config::shared().set("/directory/login_attribute", "uid")
}

fn login(usher: &Usher, name: &str) -> Imap {
    login_as(usher, name, name)
}

fn login_as(usher: &Usher, name: &str, uid: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(name, &password_of(uid)).ok();
    imap
}

/// The JSON output of a command.
fn json_output(usher: &Usher, arguments: &[&str]) -> Value {
    let said = usher.command(&[arguments, &["--json"]].concat()).succeeded();
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"))
}

fn names(sessions: &Value) -> Vec<&str> {
    sessions.as_array().unwrap().iter().map(|session| session["login"].as_str().unwrap()).collect()
}

fn was_ended(imap: &mut Imap) {
    assert_eq!(imap.line(), BYE);
    imap.expect_clean_end();
}

#[test]
fn sessions_are_found_by_each_filter() {
    let usher = Usher::start(config());
    let _sessions = [
        login(&usher, "alice"),
        login_as(&usher, "alice@example.com", "alice"),
        login(&usher, "anna"),
        login(&usher, "bob"),
    ];
    usher.wait_metric("usher_sessions", &[], 4.0);
    for (filter, expected) in [
        (&[][..], &["alice", "alice@example.com", "anna", "bob"][..]),
        // A user matches under all of her names.
        (&["--user", "ALICE"], &["alice", "alice@example.com"]),
        (&["--user", "uid=alice,ou=people,dc=example,dc=com"], &["alice", "alice@example.com"]),
        (&["--user", "unknown"], &[]),
        (&["--backend", "server4"], &["bob"]),
        (&["--client", "127.0.0.0/8", "--backend", "server3", "--user", "anna"], &["anna"]),
        (&["--client", "192.0.2.1"], &[]),
        (&["--protocol", "imap"], &["alice", "alice@example.com", "anna", "bob"]),
        (&["--protocol", "pop3"], &[]),
        (&["--older-than", "1h"], &[]),
        (&["--younger-than", "1h", "--user", "bob"], &["bob"]),
    ] {
        let sessions = json_output(&usher, &[&["sessions"], filter].concat());
        assert_eq!(names(&sessions), expected, "{filter:?}");
    }
    let said = usher.command(&["sessions", "--backend", "server3"]).succeeded().stdout;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("USER ") && lines[0].contains("CLIENT") && lines[4] == "3 sessions", "{said}");
    assert!(lines[1].starts_with("alice ") && lines[1].contains("server3"), "{said}");
    assert_eq!(usher.command(&["sessions", "--user", "unknown"]).succeeded().stdout, "0 sessions\n");

    let by_backend = usher.command(&["sessions", "--count"]).succeeded().stdout;
    assert_eq!(by_backend, "BACKEND  SESSIONS\nserver3         3\nserver4         1\n4 sessions\n");
    let both = json_output(&usher, &["sessions", "--count=backend,protocol", "--user", "bob"]);
    assert_eq!(both, json!([{"backend": "server4", "protocol": "imap", "sessions": 1}]));
}

#[test]
fn invalid_filter_is_refused_and_never_matches_every_session() {
    let usher = Usher::start(config());
    let mut alice = login(&usher, "alice");
    for (arguments, words) in [
        (&["sessions", "--protocol", "http"][..], "unknown protocol `http`; supported are imap"),
        (&["sessions", "--client", "10.0.0.1/8"], "invalid client"),
        (&["sessions", "--older-than", "5"], "needs a unit"),
        (&["sessions", "--backend", "serv3"], "unknown backend `serv3`; configured backends: server3, server4"),
        (&["sessions", "--count=colour"], "possible values: backend, protocol, user, client"),
        (&["kick"], "--all"),
        (&["kick", "--user", ""], "`user` is empty"),
        (&["kick", "--all", "--user", "alice"], "cannot be used with"),
        (&["kick", "--over", "60s"], "--all"),
        (&["kick", "--user", "alice", "--over", "soon"], "soon"),
        (&["kick", "--user", "alice", "--over", "30h"], "at most 24h"),
        (&["kick", "--backend", "serv3"], "unknown backend"),
    ] {
        let said = usher.command(arguments);
        assert!(said.code == 64 && said.stderr.contains(words), "{arguments:?}: {said:#?}");
    }
    alice.command("NOOP").ok();
}

#[test]
fn kicked_user_is_logged_out_under_every_name_and_no_other_user_is() {
    let usher = Usher::start(config());
    let mut alice = login(&usher, "alice");
    let mut alias = login_as(&usher, "alice@example.com", "alice");
    let (mut anna, mut bob) = (login(&usher, "anna"), login(&usher, "bob"));
    usher.wait_metric("usher_sessions", &[], 4.0);

    let said = usher.command(&["kick", "--user", "alice", "--dry-run"]).succeeded().stdout;
    assert!(said.contains("alice@example.com") && said.ends_with("2 sessions would be ended\n"), "{said}");
    alice.command("NOOP").ok();
    assert!(!usher.log_text().contains("admin command"));

    let said = usher.command(&["kick", "--user", "alice"]).succeeded().stdout;
    assert_eq!(said, "2 sessions are being ended\n");
    was_ended(&mut alice);
    was_ended(&mut alias);
    anna.command("NOOP").ok();
    bob.command("NOOP").ok();
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "kicked")], 2.0);
    assert_eq!(usher.wait_log("end", |_| true)["cause"], "kicked");
    let act = usher.wait_log("admin command", |_| true);
    let uid = u64::from(rustix::process::getuid().as_raw());
    assert_eq!(
        (act["cmd"].as_str(), act["uid"].as_u64(), act["what"].as_str(), act["count"].as_u64()),
        (Some("kick"), Some(uid), Some("user=alice"), Some(2)),
        "{act}"
    );
    // A kicked user may log in again.
    login(&usher, "alice");
    let none = usher.command(&["kick", "--user", "unknown", "--json"]);
    assert_eq!(none.code, 1, "{none:?}");
    let none: Value = serde_json::from_str(&none.stdout).unwrap();
    assert_eq!((none["count"].as_u64(), none["dry_run"].as_bool()), (Some(0), Some(false)));
}

#[test]
fn many_sessions_are_ended_evenly_over_the_time() {
    let usher = Usher::start(config());
    let mut sessions = [login(&usher, "alice"), login(&usher, "anna"), login(&usher, "bob")];
    usher.wait_metric("usher_sessions", &[], 3.0);
    let kicked = json_output(&usher, &["kick", "--all", "--over", "24h"]);
    assert_eq!((kicked["count"].as_u64(), kicked["over_seconds"].as_f64()), (Some(3), Some(86_400.0)));
    // The oldest at once, the next in eight hours.
    was_ended(&mut sessions[0]);
    sessions[1].command("NOOP").ok();
    sessions[2].command("NOOP").ok();
    // Another administrator cancels it meanwhile.
    usher.command(&["kick", "--all", "--over", "0s"]).succeeded();
    was_ended(&mut sessions[1]);
    was_ended(&mut sessions[2]);
}

#[test]
fn both_processes_are_queried_after_an_upgrade() {
    let (config, port) = config().with_ports();
    let usher = Usher::start(config);
    let mut older = login(&usher, "alice");
    usher.command(&["upgrade", "--json"]).succeeded();
    let _successor = Successor::of(&usher, 2);
    let mut newer = Imap::tls(port);
    newer.login("alice", &password_of("alice")).ok();
    let sessions = json_output(&usher, &["sessions", "--user", "alice"]);
    assert_eq!(names(&sessions), ["alice", "alice"]);
    // The new process counts those of the old one: the metrics, the page and `usher status` have no gap.
    let labels = [("protocol", "imap"), ("backend", "server3")];
    usher.wait_metric("usher_sessions", &labels, 2.0);
    let mut status = json_output(&usher, &["status"]);
    // It says so once it has heard that the new process serves.
    let end = Instant::now() + Duration::from_secs(10);
    while status["previous"][0]["ends_at"].is_null() && Instant::now() < end {
        status = json_output(&usher, &["status"]);
    }
    let previous = &status["previous"][0];
    assert_eq!((&previous["pid"], &previous["sessions"]), (&json!(usher.pid()), &json!(1)), "{status}");
    let ends = previous["ends_at"].as_u64().unwrap();
    assert!(ends > status["reloaded_at"].as_u64().unwrap(), "{status}");
    let said = usher.command(&["status"]).succeeded().stdout;
    assert!(said.contains(&format!("process {} still has 1 session, closed in ", usher.pid())), "{said}");
    let page = usher.http("/").1;
    assert!(page.contains("<dt>Sessions</dt><dd>2</dd>") && page.contains("has 1 of the sessions"), "{page}");
    let said = usher.command(&["kick", "--user", "alice"]).succeeded().stdout;
    assert_eq!(said, "2 sessions are being ended\n");
    was_ended(&mut older);
    was_ended(&mut newer);
    // The old process has no sessions left.
    assert_eq!(usher.exit_code(), 0);
    let line = usher.wait_log("stopped", |_| true);
    assert_eq!((&line["reason"], &line["usher_pid"]), (&json!("upgrade"), &json!(usher.pid())), "{line}");
    usher.wait_metric("usher_sessions", &labels, 0.0);
    assert_eq!(json_output(&usher, &["status"])["previous"], json!([]));
}
