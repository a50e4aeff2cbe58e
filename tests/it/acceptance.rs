//! A backend whose authentication is broken: it greets and refuses every user, or answers none. Its users get the reply of
//! an outage and not of a wrong password, and no single user can bring a backend into that state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::kit::client::Reply;
use crate::kit::dovecot::Dovecot;
use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::{Config, Imap, Usher, password_of, shared, slapd};

const OUTAGE: &str = "NO [UNAVAILABLE] The mail service is not available";

fn login(usher: &Usher, name: &str) -> Reply {
    Imap::tls(usher.imaps_port()).login(name, &password_of(name))
}

fn accepts(usher: &Usher, expected: f64) {
    usher.wait_metric("usher_backend_accepts_logins", &[("backend", "server3"), ("protocol", "imap")], expected);
}

/// A server that greets, and answers logins by OK or as `answer` says while it is broken.
fn broken(answer: &'static str) -> (Scripted, Arc<AtomicBool>) {
    let is_broken = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&is_broken);
    let server = Scripted::tls(move |peer| {
        peer.send(GREETING);
        let Some(tag) = peer.take_login() else { return };
        if !state.load(Ordering::SeqCst) {
            peer.send(format!("{tag} OK [CAPABILITY IMAP4rev1] welcome\r\n"));
            peer.reply_to_everything();
        } else if answer.is_empty() {
            peer.wait_for_end();
        } else {
            peer.send(format!("{tag} {answer}\r\n"));
        }
    });
    (server, is_broken)
}

#[test]
fn dovecot_that_refuses_every_user_is_an_outage_everywhere() {
    let mut dovecot = Dovecot::start(&shared().certificates, &shared().server3, false);
    dovecot.lose_passwords();
    let config = Config::with_directory(slapd()).backend("server3", dovecot.imaps, &["server3"]);
    let usher = Usher::start(config);
    accepts(&usher, 1.0);
    for name in ["alice", "anna"] {
        login(&usher, name).is("NO");
        assert_eq!(usher.login(name)["result"], "backend_rejected");
    }
    accepts(&usher, 1.0);
    login(&usher, "sync3").is(OUTAGE);
    assert_eq!(usher.login("sync3")["result"], "backend_refuses_all");
    accepts(&usher, 0.0);
    let line = usher.wait_log("backend accepts no login; its users get the reply of an outage", |_| true);
    assert_eq!((line["backend"].as_str(), line["seen_by"].as_str()), (Some("server3"), Some("users")), "{line}");
    login(&usher, "alice").is(OUTAGE);
    // Its address is up: what is broken is behind it.
    assert_eq!(usher.metric("usher_backend_up", &[("backend", "server3"), ("protocol", "imap")]), 1.0);
    let shown = usher.command(&["backends"]);
    assert!(shown.code == 1 && shown.stdout.contains("refusing"), "{shown:#?}");
    assert!(shown.stdout.contains("server3 imap: accepts no login for"), "{shown:#?}");
    let checked = usher.command(&["check", "--connect"]);
    assert!(checked.code == 69 && checked.stdout.contains("no login is accepted for"), "{checked:#?}");
    assert!(usher.http("/").1.contains("accepts no login (imap)"), "{}", usher.http("/").1);
    dovecot.stop();
    dovecot.restore_passwords();
    dovecot.start_again();
    login(&usher, "alice").ok();
    accepts(&usher, 1.0);
    usher.wait_log("backend accepts logins again", |_| true);
    usher.command(&["check", "--connect"]).succeeded();
}

#[test]
fn one_user_cannot_bring_a_backend_into_that_state() {
    let (server, is_broken) = broken("NO [AUTHENTICATIONFAILED] Authentication failed.");
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&server));
    for name in ["alice", "ALICE", "alice", "Alice", " alice", "anna", "alice", "anna"] {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login(name, &password_of(&name.trim().to_lowercase())).is("NO [UNAVAILABLE] Authentication failed.");
    }
    // Whose limit it is says the code.
    let (limited, _) = broken("NO [LIMIT] Maximum number of connections from user+IP exceeded");
    let other = Usher::start(Config::with_directory(slapd()).scripted(&limited));
    for name in ["alice", "anna", "sync3", "big3", "gruen"] {
        login(&other, name).is("NO [LIMIT] Maximum");
    }
    // Nor several just after a login that succeeded.
    is_broken.store(false, Ordering::SeqCst);
    login(&usher, "anna").ok();
    is_broken.store(true, Ordering::SeqCst);
    for name in ["alice", "sync3", "big3"] {
        login(&usher, name).is("NO [UNAVAILABLE] Authentication failed.");
    }
    accepts(&usher, 1.0);
    accepts(&other, 1.0);
}

#[test]
fn users_do_not_wait_for_a_silent_authentication_each_time() {
    let (server, is_broken) = broken("");
    let config = Config::with_directory(slapd()).scripted(&server);
    let usher = Usher::start(config.set("/routing/backends/0/timeout", "2s"));
    let slow: Vec<_> = ["alice", "anna", "sync3"]
        .map(|name| {
            let mut imap = Imap::tls(usher.imaps_port());
            imap.send(format!("t1 LOGIN {name} {}\r\n", password_of(name)));
            imap
        })
        .into();
    for mut imap in slow {
        assert!(imap.line().starts_with(&format!("t1 {OUTAGE}")));
    }
    accepts(&usher, 0.0);
    for _ in 0..10 {
        let asked = Instant::now();
        login(&usher, "alice").is(OUTAGE);
        // A promise of 50 ms, three times, and the handshake.
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    assert_eq!(usher.nth_login(11, "alice")["result"], "backend_refuses_all");
    // A user that has not waited yet shows that the server is back.
    is_broken.store(false, Ordering::SeqCst);
    login(&usher, "big3").ok();
    accepts(&usher, 1.0);
    login(&usher, "alice").ok();
}

#[test]
fn wrong_password_is_never_an_outage() {
    let (server, _) = broken("NO [AUTHENTICATIONFAILED] Authentication failed.");
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&server));
    for name in ["alice", "anna", "sync3"] {
        login(&usher, name).is("NO");
    }
    accepts(&usher, 0.0);
    Imap::tls(usher.imaps_port()).login("big3", "wrong").is("NO [AUTHENTICATIONFAILED]");
    Imap::tls(usher.imaps_port()).login("nobody-at-all", "wrong").is("NO [AUTHENTICATIONFAILED]");
}
