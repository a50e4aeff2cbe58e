//! TLS session resumption: towards backends, whose handshakes are the most expensive part of a login, and by
//! clients, at any instance.

use std::sync::{Arc, Barrier};

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use serde_json::json;

use crate::kit::client::{Tls, base64};
use crate::kit::scripted::Scripted;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher, password_of, slapd};

fn login(usher: &Usher, uid: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(uid, &password_of(uid)).ok();
    imap
}

#[test]
fn login_burst_resumes_tls_at_a_backend() {
    const BURST: usize = 24;
    let backend = Scripted::accepting();
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend));
    assert_eq!(usher.backend_handshakes("server3"), (0.0, 0.0), "there from the first scrape");
    // Each yields two tickets and uses one: more than the burst needs, and than rustls keeps.
    let mut sessions: Vec<Imap> = (0..BURST).map(|_| login(&usher, "alice")).collect();
    assert_eq!(usher.backend_handshakes("server3"), (1.0, 23.0));
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
    assert_eq!(usher.backend_handshakes("server3"), (1.0, 47.0));
}

#[test]
fn logins_resume_tls_at_dovecot_and_cyrus() {
    let usher = Usher::start(Config::shared());
    for (uid, backend) in [("alice", "server3"), ("bob", "server4")] {
        // Another Dovecot process, with its own keys, may answer the first ones.
        let resumed = (0..20).any(|_| {
            login(&usher, uid).command("LOGOUT").ok();
            usher.backend_handshakes(backend).1 > 0.0
        });
        assert!(resumed, "{backend}: {:?}", usher.backend_handshakes(backend));
    }
}

#[test]
fn connections_to_a_backend_use_the_sources_in_turn() {
    let backend = Scripted::accepting();
    let config = Config::with_directory(slapd()).scripted(&backend);
    let usher = Usher::start(config.clone().set("/routing/backends/0/source", json!(["127.0.0.2", "127.0.0.3"])));
    let _sessions: Vec<Imap> = (0..4).map(|_| login(&usher, "alice")).collect();
    assert_eq!(backend.clients(), ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]);

    // RFC 5737: a documentation address.
    let astray =
        Usher::start(config.set("/routing/backends/0/source", "192.0.2.1").set("/routing/backends/0/probe", "tcp"));
    let mut imap = Imap::tls(astray.imaps_port());
    imap.login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    let reported = |line: &serde_json::Value| line.to_string().contains("cannot connect from 192.0.2.1: Cannot assign");
    astray.wait_log("login", reported);
    astray.wait_log("cannot probe backend: local error", reported);
    assert_eq!(astray.metric("usher_backend_up", &[("backend", "server3")]), 1.0, "not a fault of the backend");
}

/// A line of a file of ticket keys.
pub(crate) fn key(byte: u8) -> String {
    base64(&[byte; 48]) + "\n"
}

/// Connects once and returns the kind of handshake.
pub(crate) fn visit(usher: &Usher, client: &Arc<rustls::ClientConfig>) -> HandshakeKind {
    let mut imap = Imap::try_tls_with(usher.imaps_port(), Arc::clone(client), Tls::default().server_name).unwrap();
    imap.command("NOOP").ok(); // tickets of TLS 1.3 come with the first bytes
    imap.connection().handshake_kind().unwrap()
}

#[test]
fn client_resumes_tls_at_another_instance_and_after_a_restart() {
    let mut config = Config::shared().set("/tls/ticket_keys_file", "ticket.keys");
    config.file("ticket.keys", key(1) + &key(2));
    let (first, second) = (Usher::start(config.clone()), Usher::start(config.clone()));
    let other = Usher::start(config.clone().without("/tls/ticket_keys_file"));
    for version in [&TLS12, &TLS13] {
        let client = Tls { versions: vec![version], ..Tls::default() }.config();
        assert_eq!(visit(&first, &client), HandshakeKind::Full);
        assert_eq!(visit(&second, &client), HandshakeKind::Resumed, "{version:?}");
        assert_eq!(visit(&other, &client), HandshakeKind::Full, "{version:?}");
    }
    let client = Tls::default().config();
    visit(&first, &client);
    drop(first);
    assert_eq!(visit(&Usher::start(config.clone()), &client), HandshakeKind::Resumed);
    let resumed = second.metric("usher_tls_handshakes_total", &[("protocol", "imap"), ("result", "resumed")]);
    assert_eq!(resumed, 2.0);

    config.file("ticket.keys", key(1) + "secret\n");
    config.write();
    let said = command(&config, &["check"], b"");
    let reported = "tls.ticket_keys_file: line 2 of ";
    assert!(said.code == 78 && said.stderr.contains(reported) && !said.stderr.contains("secret"), "{said:#?}");
    config.change("/tls/ticket_keys_file", "absent.keys");
    config.write();
    assert!(command(&config, &["check"], b"").stderr.contains("absent.keys"));
}

#[test]
fn renewed_ticket_keys_are_used_without_a_signal_and_invalid_ones_never() {
    let config = Config::shared().set("/tls/ticket_keys_file", "ticket.keys").set("/tls/reload_interval", "1s");
    config.file("ticket.keys", key(1) + &key(2) + &key(3));
    let usher = Usher::start(config);
    let (client, forgotten) = (Tls::default().config(), Tls::default().config());
    visit(&usher, &client);
    visit(&usher, &forgotten);
    usher.config.file("ticket.keys", key(2) + &key(3) + &key(4));
    usher.wait_metric("usher_certificate_reloads_total", &[("result", "ok")], 1.0);
    assert_eq!(visit(&usher, &client), HandshakeKind::Resumed, "made by the second key");
    usher.config.file("ticket.keys", "nonsense");
    usher.wait_log("a changed file is invalid; its previous content stays active", |line| {
        line["problem"].as_str().is_some_and(|problem| problem.contains("line 1 of"))
    });
    usher.wait_metric("usher_certificate_last_reload_successful", &[], 0.0);
    assert_eq!(visit(&usher, &client), HandshakeKind::Resumed);
    usher.config.file("ticket.keys", key(5) + &key(6) + &key(7));
    usher.wait_metric("usher_certificate_reloads_total", &[("result", "ok")], 2.0);
    assert_eq!(visit(&usher, &forgotten), HandshakeKind::Full, "its key is gone");
}
