//! Commands for all nodes of a fleet: what one administrator says at one node.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fleet::{member, url, with_store};
use crate::kit::redis::Redis;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::{Config, Imap, User, Usher, dovecot, password_of};

/// Ushers that know each other.
fn fleet<const N: usize>(store: &Redis, nodes: [&str; N]) -> [Usher; N] {
    let ushers = nodes.map(|node| Usher::start(member(&url(store.port), node)));
    for usher in &ushers {
        usher.wait_metric("usher_fleet_members", &[], N as f64);
    }
    ushers
}

fn logged_in(usher: &Usher, user: &str) -> Imap {
    let mut client = Imap::tls(usher.imaps_port());
    client.login(user, &password_of(user)).ok();
    usher.wait_metric("usher_sessions", &[], 1.0);
    client
}

#[test]
fn kick_at_one_node_ends_sessions_at_another_once() {
    let store = Redis::start();
    let [one, _two, three] = fleet(&store, ["mx1", "mx2", "mx3"]);
    let _alice = logged_in(&three, "alice");
    let _bob = {
        let mut client = Imap::tls(three.imaps_port());
        client.login("bob", &password_of("bob")).ok();
        client
    };
    let listed = one.command(&["sessions", "--fleet", "--user", "alice"]).succeeded();
    assert!(listed.stdout.contains("mx1\n  0 sessions\nmx2\n  0 sessions\nmx3\n  USER"), "{}", listed.stdout);
    let asked = Instant::now();
    let said = one.command(&["kick", "--user", "alice", "--fleet"]).succeeded();
    assert!(said.stdout.contains("mx3\n  1 session is being ended"), "{}", said.stdout);
    three.wait_metric("usher_sessions", &[], 1.0);
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    let line = three.wait_log("admin command", |line| line["cmd"] == "kick");
    assert_eq!((&line["node"], &line["count"]), (&json!("mx1"), &json!(1)), "{line}");
    // The mark that follows is for processes that missed the question: the new session is not ended.
    let _again = {
        let mut client = Imap::tls(three.imaps_port());
        client.login("alice", &password_of("alice")).ok();
        client
    };
    three.wait_log("command of the fleet is not carried out", |line| line["path"] == "/kick");
    assert_eq!(three.metric("usher_sessions", &[]), 2.0);
    assert_eq!(three.log_text().matches("\"cmd\":\"kick\"").count(), 1);
    // What is stored names no user.
    let content = store.content();
    assert!(!content.contains("alice") && !content.contains("kick"), "{content}");
}

#[test]
fn process_that_misses_a_command_is_named_and_carries_it_out_later() {
    let store = Redis::start();
    let [one, two] = fleet(&store, ["mx1", "mx2"]);
    let _alice = logged_in(&two, "alice");
    two.signal(Signal::STOP);
    let said = one.command(&["kick", "--user", "alice", "--fleet"]);
    assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
    assert!(said.stderr.contains("mx2: no answer"), "{}", said.stderr);
    two.signal(Signal::CONT);
    two.wait_metric("usher_sessions", &[], 0.0);
}

#[test]
fn drain_of_a_backend_stands_until_it_is_reverted() {
    let store = Redis::start();
    let [one, two] = fleet(&store, ["mx1", "mx2"]);
    let said = one.command(&["backends", "drain", "server3", "--rate", "10", "--fleet"]).succeeded();
    assert!(said.stdout.contains("mx1\n  server3 gets no new logins"), "{}", said.stdout);
    let refused = |usher: &Usher| {
        let mut client = Imap::tls(usher.imaps_port());
        client.login("alice", &password_of("alice")).tagged.contains("maintenance")
    };
    assert!(refused(&one) && refused(&two));
    // A process that starts later, and the node itself after a restart.
    let later = Usher::start(member(&url(store.port), "mx3"));
    later.wait_log("backend set by the fleet", |line| line["backend"] == "server3");
    assert!(refused(&later));
    two.terminate();
    assert_eq!(two.exit_code(), 0);
    let again = Usher::start(member(&url(store.port), "mx2"));
    again.wait_log("backend set by the fleet", |line| line["backend"] == "server3");
    store.command(&["FLUSHALL"]);
    let newest = Usher::start(member(&url(store.port), "mx4"));
    newest.wait_log("backend set by the fleet", |line| line["backend"] == "server3");
    // The one that has ended is remembered for a moment when the store is emptied.
    for usher in [&one, &later, &again, &newest] {
        usher.wait_metric("usher_fleet_members", &[], 4.0);
    }
    later.command(&["backends", "undrain", "server3", "--fleet"]).succeeded();
    for usher in [&one, &later, &again, &newest] {
        drop(logged_in(usher, "alice"));
    }
    let unknown = one.command(&["backends", "drain", "server9", "--fleet"]);
    assert!(unknown.code == 64 && unknown.stderr.contains("unknown backend `server9`"), "{}", unknown.stderr);
}

#[test]
fn one_node_is_drained_by_its_name() {
    let store = Redis::start();
    let [one, two] = fleet(&store, ["mx1", "mx2"]);
    let unknown = one.command(&["drain", "--node", "mx9"]);
    assert_eq!(unknown.code, 64, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("no node `mx9` lives in this fleet; living nodes: mx1, mx2"), "{}", unknown.stderr);
    let said = one.command(&["drain", "--node", "mx2"]).succeeded();
    assert!(said.stdout.starts_with("mx2\n  draining"), "{}", said.stdout);
    assert_eq!(two.exit_code(), 0);
    assert_eq!(one.http("/ready").0, 200);
}

#[test]
fn status_cache_and_confirm_are_told_by_node() {
    let store = Redis::start();
    let [one, two] = fleet(&store, ["mx1", "mx2"]);
    drop(logged_in(&two, "alice"));
    let said = one.command(&["status", "--fleet"]).succeeded();
    for words in ["mx1\n  usher", "mx2\n  usher", "certificate  ends in", "store        in use, answers after"] {
        assert!(said.stdout.contains(words), "{words}: {}", said.stdout);
    }
    let said = one.command(&["status", "--fleet", "--json"]);
    let nodes: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(nodes[0]["answer"]["config"], nodes[1]["answer"]["config"], "{nodes}");
    assert_eq!(nodes[1]["node"], "mx2");
    let said = one.command(&["cache", "show", "alice", "--fleet"]);
    assert!(said.stdout.contains("mx1\n  nothing is cached\nmx2\n  uid=alice"), "{}", said.stdout);
    one.command(&["cache", "drop", "alice", "--fleet"]).succeeded();
    let said = two.command(&["cache", "show", "alice"]);
    assert_eq!(said.code, 67, "{}", said.stdout);
    let said = one.command(&["confirm", "--fleet"]).succeeded();
    assert!(said.stdout.contains("mx2\n  0 changes applied"), "{}", said.stdout);
    let mut store = store;
    store.stop();
    one.wait_metric("usher_fleet_up", &[], 0.0);
    let said = one.command(&["status", "--fleet"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("others: the store is unavailable: other nodes were not asked"), "{}", said.stderr);
}

#[test]
fn explain_says_what_a_login_meets_at_each_node() {
    let store = Redis::start();
    let [one, two] = fleet(&store, ["mx1", "mx2"]);
    drop(logged_in(&two, "alice"));
    let explain = |more: &[&str]| one.command(&[&["explain", "alice", "--running", "--fleet"], more].concat());
    let said = explain(&[]).succeeded();
    for words in ["mx1\n  alice\n", "available, asked now", "mx2\n  alice\n", "used for", "routed"] {
        assert!(said.stdout.contains(words), "{words}: {}", said.stdout);
    }
    let nodes: Value = serde_json::from_str(&explain(&["--json"]).succeeded().stdout).unwrap();
    assert_eq!((&nodes[0]["answer"]["by"], &nodes[1]["answer"]["by"]), (&json!("directory"), &json!("cache")));
    // One node that would refuse it is a no.
    two.command(&["backends", "drain", "server3"]).succeeded();
    let said = explain(&[]);
    assert!(said.code == 1 && said.stdout.contains("backend_draining"), "{}", said.stdout);
    assert_eq!(explain(&["--json"]).code, 1);
    two.command(&["backends", "undrain", "server3"]).succeeded();
    two.signal(Signal::STOP);
    let said = explain(&[]);
    assert!(said.code == 1 && said.stderr.contains("mx2: no answer"), "{}", said.stderr);
    two.signal(Signal::CONT);
}

#[test]
fn without_a_fleet_the_option_is_a_mistake() {
    let usher = Usher::start(Config::shared());
    let said = usher.command(&["explain", "alice", "--fleet"]);
    assert!(said.code == 64 && said.stderr.contains("--running"), "{}", said.stderr);
    let said = usher.command(&["explain", "alice", "--running", "--fleet"]);
    assert!(said.code == 64 && said.stderr.contains("no fleet is configured"), "{}", said.stderr);
    let said = usher.command(&["sessions", "--fleet"]);
    assert!(said.code == 64 && said.stderr.contains("no fleet is configured"), "{}", said.stderr);
    usher.command(&["status"]).succeeded();
}

#[test]
fn held_user_without_sessions_ends_the_wait() {
    let store = Redis::start();
    let slapd = Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, ..Options::default() });
    let alice = User::new("alice", None);
    let held = |node: &str| {
        let config = with_store(Config::with_directory(&slapd), &url(store.port), node);
        Usher::start(
            config
                .backend("server3", dovecot().imaps, &["server3"])
                .set("/directory/hold_attribute", "description")
                .set("/directory/watch", "auto"),
        )
    };
    let (one, two) = (held("mx1"), held("mx2"));
    one.wait_metric("usher_fleet_members", &[], 2.0);
    two.wait_metric("usher_directory_watch_connected", &[], 1.0);
    let session = logged_in(&two, "alice");
    let said = one.command(&["wait", "alice", "--fleet"]);
    assert_eq!(said.code, 65, "{}", said.stderr);
    assert!(said.stderr.contains("alice is not held: set description of uid=alice"), "{}", said.stderr);
    let said = one.command(&["wait", "noone", "--fleet"]);
    assert_eq!(said.code, 67, "{}", said.stderr);
    two.signal(Signal::STOP);
    slapd.set(&alice, "description", Some("moving"));
    let said = one.command(&["wait", "alice", "--fleet", "--timeout", "1s", "--json"]);
    let value: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((said.code, &value["done"], &value["without_answer"]), (1, &json!(false), &json!(["mx2"])), "{said:?}");
    let said = one.command(&["wait", "alice", "--fleet", "--timeout", "1s"]);
    assert!(said.code == 1 && said.stderr.contains("no answer of mx2"), "{}", said.stderr);
    // Nor once it counts as dead: it may be cut off from the store alone.
    one.wait_metric("usher_fleet_members", &[], 1.0);
    let said = one.command(&["wait", "alice", "--fleet", "--timeout", "1s"]);
    assert!(said.code == 1 && said.stderr.contains("no answer of mx2"), "{}", said.stderr);
    let said = one.command(&["kick", "--user", "alice", "--fleet"]);
    assert!(said.code == 1 && said.stderr.contains("mx2: it vanished from the store"), "{}", said.stderr);
    two.signal(Signal::CONT);
    let said = one.command(&["wait", "alice", "--fleet"]).succeeded();
    assert!(said.stdout.contains("alice has no session"), "{}", said.stdout);
    // No process of it answers Postfix.
    one.command(&["wait", "alice", "--fleet", "--age", "1h"]).succeeded();
    drop(session);
}

#[test]
fn node_that_has_not_heard_of_a_hold_lets_nobody_in_after_the_wait() {
    let store = Redis::start();
    let slapd = Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, ..Options::default() });
    let alice = User::new("alice", None);
    let polling = |node: &str| {
        let config = with_store(Config::with_directory(&slapd), &url(store.port), node);
        Usher::start(
            config
                .backend("server3", dovecot().imaps, &["server3"])
                .set("/directory/hold_attribute", "description")
                .set("/directory/hold_timeout", "100ms")
                .set("/directory/watch", "poll")
                .set("/directory/poll_interval", "1h"),
        )
    };
    let (one, two) = (polling("mx1"), polling("mx2"));
    one.wait_metric("usher_fleet_members", &[], 2.0);
    two.wait_metric("usher_fleet_members", &[], 2.0);
    drop(logged_in(&two, "alice"));
    two.wait_metric("usher_sessions", &[], 0.0);
    slapd.set(&alice, "description", Some("moving"));
    one.command(&["wait", "alice", "--fleet"]).succeeded();
    Imap::tls(two.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
}
