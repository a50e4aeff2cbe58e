//! `balance: user_hash`: each user on one of several equal nodes, on whichever usher, and what happens when a node is
//! back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::kit::process::free_port;
use crate::kit::scripted::Scripted;
use crate::kit::{Config, Imap, Usher, password_of, slapd};

/// Enough to be at all nodes: their ids are random.
const USERS: [&str; 20] = [
    "alice",
    "anna",
    "sync3",
    "big3",
    "bytes3",
    "post3",
    "memimap3",
    "memtrace3",
    "mempop3",
    "memsend3",
    "memsieve3",
    "bob",
    "ben",
    "sync4",
    "big4",
    "post4",
    "memimap4",
    "mempop4",
    "memsieve4",
    "castor",
];

/// A configuration with one backend at these ports of this machine.
fn nodes(ports: &[u16], on_return: &str) -> Config {
    let addresses: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let config = Config::with_directory(slapd()).backend("server3", 1, &["server3", "server4", "server4.example.com"]);
    config
        .set("/routing/backends/0/imap/address", json!(addresses))
        .set("/routing/backends/0/imap/balance", "user_hash")
        .set("/routing/backends/0/imap/on_return", on_return)
        .set("/routing/backends/0/probe", "greeting")
        .set("/routing/backends/0/probe_interval", "1s")
        .set("/routing/backends/0/failures", 1)
}

fn log_in(usher: &Usher, user: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(user, &password_of(user)).ok();
    imap
}

/// Where the sessions of now are, by user.
fn places(usher: &Usher) -> BTreeMap<String, BTreeSet<String>> {
    let listed = usher.command(&["sessions", "--json"]).succeeded();
    let sessions: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for session in sessions {
        let word = |key: &str| session[key].as_str().unwrap().to_owned();
        places.entry(word("login")).or_default().insert(word("address"));
    }
    places
}

#[test]
fn user_is_at_the_same_address_over_two_ushers() {
    let servers = [Scripted::accepting(), Scripted::accepting(), Scripted::accepting()];
    let mut ports = servers.each_ref().map(|server| server.port);
    let one = Usher::start(nodes(&ports, "keep"));
    // The order of the list means nothing.
    ports.reverse();
    let other = Usher::start(nodes(&ports, "keep"));
    let _sessions: Vec<_> = USERS.iter().flat_map(|user| [log_in(&one, user), log_in(&other, user)]).collect();
    let found = places(&one);
    assert_eq!(found, places(&other));
    assert!(found.len() == USERS.len() && found.values().all(|places| places.len() == 1), "{found:?}");
    let used: BTreeSet<_> = found.values().flatten().collect();
    assert!(used.len() > 1, "not all users are at one address: {found:?}");
}

/// Logs all users in while the second of two nodes is down, then starts it and waits until it is up.
fn with_returned_node(on_return: &str) -> (Usher, u16, Vec<Imap>, [Scripted; 2]) {
    let (well, port) = (Scripted::accepting(), free_port());
    let usher = Usher::start(nodes(&[well.port, port], on_return));
    usher.wait_log("backend address marked down", |line| line["address"] == format!("127.0.0.1:{port}"));
    let sessions: Vec<_> = USERS.iter().map(|user| log_in(&usher, user)).collect();
    let all: BTreeSet<_> = places(&usher).into_values().flatten().collect();
    assert_eq!(all, BTreeSet::from([format!("127.0.0.1:{}", well.port)]));
    let back = Scripted::accepting_at(port);
    usher.wait_log("backend address up again", |line| line["address"] == format!("127.0.0.1:{port}"));
    (usher, port, sessions, [well, back])
}

#[test]
fn user_with_sessions_stays_with_them_when_a_node_is_back() {
    let (usher, port, sessions, [well, back]) = with_returned_node("keep");
    let seconds: Vec<_> = USERS.iter().map(|user| log_in(&usher, user)).collect();
    let at_well = BTreeSet::from([format!("127.0.0.1:{}", well.port)]);
    for (user, places) in places(&usher) {
        assert_eq!(places, at_well, "{user}");
    }
    assert_eq!(usher.metric("usher_sessions_ended_total", &[("cause", "address_returned")]), 0.0);
    // Without sessions they go where they belong.
    drop((sessions, seconds));
    usher.wait_metric("usher_sessions", &[], 0.0);
    let _sessions: Vec<_> = USERS.iter().map(|user| log_in(&usher, user)).collect();
    let returned = format!("127.0.0.1:{port}");
    assert!(places(&usher).into_values().flatten().any(|place| place == returned));
    drop(back);
}

#[test]
fn sessions_that_belong_to_a_returned_node_are_closed_if_wanted() {
    let (usher, port, sessions, [well, _back]) = with_returned_node("close");
    let returned = format!("127.0.0.1:{port}");
    // The same users as another usher sends there.
    let fresh = Usher::start(nodes(&[well.port, port], "close"));
    let _fresh: Vec<_> = USERS.iter().map(|user| log_in(&fresh, user)).collect();
    let there = |usher: &Usher| -> BTreeSet<String> {
        places(usher).into_iter().filter(|(_, at)| at.contains(&returned)).map(|(user, _)| user).collect()
    };
    let belong = there(&fresh);
    assert!(!belong.is_empty() && belong.len() < USERS.len(), "{belong:?}");
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "address_returned")], belong.len() as f64);
    for (user, mut imap) in std::iter::zip(USERS, sessions) {
        if belong.contains(user) {
            let bye = imap.line();
            assert!(bye.starts_with("* BYE") && bye.contains("reconnect"), "{user}: {bye}");
        } else {
            imap.command("NOOP").ok();
        }
    }
    let _again: Vec<_> = belong.iter().map(|user| log_in(&usher, user)).collect();
    assert_eq!(there(&usher), belong);
}

#[test]
fn user_of_a_node_that_is_down_goes_to_another_one() {
    let (well, port) = (Scripted::accepting(), free_port());
    let usher = Usher::start(nodes(&[well.port, port], "keep").set("/routing/backends/0/probe", "off"));
    // The first login of a user that belongs to it meets the fault and is accepted all the same.
    for user in USERS {
        log_in(&usher, user);
    }
    usher.wait_log("backend address marked down", |line| line["address"] == format!("127.0.0.1:{port}"));
}
