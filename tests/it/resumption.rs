//! Sessions of TLS resumed: towards backends, whose handshakes are the dearest part of a login.

use std::sync::Barrier;

use serde_json::json;

use crate::kit::scripted::Scripted;
use crate::kit::{Config, Imap, Usher, password_of, slapd};

/// How many handshakes with a backend were full, and how many resumed.
fn handshakes(usher: &Usher, backend: &str) -> (f64, f64) {
    let of = |resumed| {
        let labels = [("backend", backend), ("protocol", "imap"), ("resumed", resumed)];
        usher.metric("usher_backend_handshakes_total", &labels)
    };
    (of("no"), of("yes"))
}

fn login(usher: &Usher, uid: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(uid, &password_of(uid)).ok();
    imap
}

#[test]
fn a_burst_of_logins_resumes_at_a_backend() {
    const BURST: usize = 24;
    let backend = Scripted::welcoming();
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend));
    assert_eq!(handshakes(&usher, "server3"), (0.0, 0.0), "there from the first scrape");
    // Each brings two tickets and takes one: more than the burst needs, and than rustls keeps.
    let mut sessions: Vec<Imap> = (0..BURST).map(|_| login(&usher, "alice")).collect();
    assert_eq!(handshakes(&usher, "server3"), (1.0, 23.0));
    let start = Barrier::new(BURST);
    std::thread::scope(|scope| {
        let one = || {
            let mut imap = Imap::tls(usher.imaps_port());
            start.wait();
            imap.login("alice", &password_of("alice")).ok();
            imap
        };
        let burst: Vec<_> = (0..BURST).map(|_| scope.spawn(one)).collect();
        sessions.extend(burst.into_iter().map(|one| one.join().unwrap()));
    });
    assert_eq!(handshakes(&usher, "server3"), (1.0, 47.0));
}

#[test]
fn logins_resume_at_dovecot_and_cyrus() {
    let usher = Usher::start(Config::shared());
    for (uid, backend) in [("alice", "server3"), ("bob", "server4")] {
        // Another process of Dovecot's, with keys of its own, may answer the first ones.
        let met = (0..20).any(|_| {
            login(&usher, uid).command("LOGOUT").ok();
            handshakes(&usher, backend).1 > 0.0
        });
        assert!(met, "{backend}: {:?}", handshakes(&usher, backend));
    }
}

#[test]
fn connections_to_a_backend_come_from_the_sources_in_turn() {
    let backend = Scripted::welcoming();
    let config = Config::with_directory(slapd()).scripted(&backend);
    let usher = Usher::start(config.clone().set("/routing/backends/0/source", json!(["127.0.0.2", "127.0.0.3"])));
    let _sessions: Vec<Imap> = (0..4).map(|_| login(&usher, "alice")).collect();
    assert_eq!(backend.clients(), ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]);

    // RFC 5737: nobody's address.
    let astray =
        Usher::start(config.set("/routing/backends/0/source", "192.0.2.1").set("/routing/backends/0/probe", "tcp"));
    let mut imap = Imap::tls(astray.imaps_port());
    imap.login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    let told = |line: &serde_json::Value| line.to_string().contains("cannot connect from 192.0.2.1: Cannot assign");
    astray.wait_log("login", told);
    astray.wait_log("this machine cannot probe a backend", told);
    assert_eq!(astray.metric("usher_backend_up", &[("backend", "server3")]), 1.0, "it is not the backend's fault");
}
