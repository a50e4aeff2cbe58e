//! Reloads that drop no session, and shutdowns that let sessions finish.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::kit::certs::Leaf;
use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::{Config, Imap, Usher, password_of, shared, slapd};

/// A backend that sends its name.
pub(crate) fn named(name: &'static str) -> Scripted {
    Scripted::tls(move |peer| {
        peer.send(GREETING);
        if let Some(tag) = peer.take_login() {
            peer.send(format!("{tag} OK [CAPABILITY IMAP4rev1] this is {name}\r\n"));
            peer.reply_to_everything();
        }
    })
}

pub(crate) fn login(usher: &Usher) -> (Imap, String) {
    let mut imap = Imap::tls(usher.imaps_port());
    let reply = imap.login("alice", &password_of("alice")).ok();
    (imap, reply.tagged)
}

#[test]
fn reload_keeps_sessions_and_applies_to_later_logins() {
    let (old, new) = (named("old"), named("new"));
    let mut usher = Usher::start(Config::with_directory(slapd()).scripted(&old));
    let (mut session, said) = login(&usher);
    assert!(said.ends_with("this is old"), "{said}");
    let pair = shared().certificates.leaf("renewed", Leaf::server(&["usher.example.com"]));
    usher.config.change("/routing/backends/0/imap/address", format!("127.0.0.1:{}", new.port));
    usher.config.change("/tls/certificates", json!([pair.yaml()]));
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    session.command("NOOP").is("OK did NOOP");
    let (imap, said) = login(&usher);
    assert!(said.ends_with("this is new"), "{said}");
    assert_eq!(imap.connection().peer_certificates().unwrap()[0], pair.certificates()[0]);
    assert_eq!(usher.metric("usher_config_last_reload_successful", &[]), 1.0);
}

#[test]
fn invalid_file_is_refused_and_the_old_configuration_stays() {
    let backend = named("old");
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend));
    let (mut session, _) = login(&usher);
    let good = std::fs::read(usher.config.path("usher.yaml")).unwrap();
    let broken = usher.config.file("broken.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n");
    let mut with_broken = usher.config.clone();
    with_broken.change("/tls/certificates/0/chain", json!(broken));
    let with_broken = std::fs::read(with_broken.write()).unwrap();
    let bad = [b"listeners: [".to_vec(), b"no_such_key: 1\n".to_vec(), with_broken];
    for text in bad {
        usher.config.file("usher.yaml", text);
        let answer = usher.hup();
        assert!(answer["message"].as_str().unwrap().starts_with("reload failed"), "{answer}");
        assert_eq!(usher.metric("usher_config_last_reload_successful", &[]), 0.0);
        let refused = usher.command(&["reload"]);
        assert_eq!(refused.code, 1, "{refused:#?}");
        assert!(!(refused.stdout + &refused.stderr).is_empty(), "it says why");
        session.command("NOOP").ok();
        assert!(login(&usher).1.ends_with("this is old"));
    }
    usher.config.file("usher.yaml", good);
    usher.command(&["reload"]).succeeded();
    assert_eq!(usher.metric("usher_config_last_reload_successful", &[]), 1.0);
}

#[test]
fn reloads_under_load_fail_no_login() {
    let backend = named("same");
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend));
    let stop = AtomicBool::new(false);
    let logins = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut logins = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let (mut imap, _) = login(&usher);
                        imap.command("NOOP").ok();
                        logins += 1;
                    }
                    logins
                })
            })
            .collect();
        for _ in 0..20 {
            assert_eq!(usher.hup()["message"], "reloaded");
        }
        stop.store(true, Ordering::SeqCst);
        workers.into_iter().map(|worker| worker.join().unwrap()).sum::<usize>()
    });
    assert!(logins >= 4, "{logins}");
    assert_eq!(usher.metric("usher_logins_total", &[("result", "ok")]), logins as f64);
}

#[test]
fn sigterm_lets_sessions_finish_and_exits_with_0() {
    let backend = named("one");
    let config = Config::with_directory(slapd()).scripted(&backend);
    let usher = Usher::start(config.set("/drain", json!({"delay": "2s", "deadline": "20s"})));
    let (mut session, _) = login(&usher);
    let (mut other, _) = login(&usher);
    assert_eq!(usher.http("/ready").0, 200);
    usher.terminate();
    usher.wait_log("draining", |_| true);
    other.command("NOOP").ok();
    let asked = Instant::now();
    session.command("LOGOUT").ok();
    drop(session);
    assert_eq!(other.line(), "* BYE Server shutting down, please reconnect");
    other.expect_clean_end();
    assert_eq!(usher.exit_code(), 0);
    assert!(asked.elapsed() < Duration::from_secs(10), "no session was left to wait for: {:?}", asked.elapsed());
    usher.wait_log("stopped", |_| true);
}

#[test]
fn readiness_fails_before_listeners_close() {
    let backend = named("one");
    let config = Config::with_directory(slapd()).scripted(&backend);
    let usher = Usher::start(config.set("/drain", json!({"delay": "2s", "deadline": "1s"})));
    usher.signal(Signal::INT);
    usher.wait_log("draining", |_| true);
    assert_eq!(usher.http("/ready").0, 503);
    assert_eq!(usher.http("/live").0, 200);
    // During the delay load balancers still send clients here.
    let (mut session, _) = login(&usher);
    session.command("NOOP").ok();
    assert_eq!(session.line(), "* BYE Server shutting down, please reconnect");
    session.expect_clean_end();
    assert_eq!(usher.exit_code(), 0);
    let end = usher.wait_log("end", |_| true);
    assert_eq!(end["cause"], "drain", "{end}");
}

#[test]
fn new_connections_are_refused_after_the_delay() {
    let backend = named("one");
    let config = Config::with_directory(slapd()).scripted(&backend);
    let usher = Usher::start(config.set("/drain", json!({"delay": "0s", "deadline": "10s"})));
    let (session, _) = login(&usher);
    let port = usher.imaps_port();
    usher.terminate();
    usher.wait_log("draining", |_| true);
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(Instant::now() < deadline, "the listener stays open");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(session);
    assert_eq!(usher.exit_code(), 0);
}
