//! The cache: which logins it answers, for how long, and what it never does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::slapd::Slapd;
use crate::kit::{Config, Imap, User, Usher, password_of};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";

fn private() -> (Slapd, Scripted, Usher) {
    private_with(|config| config)
}

fn private_with(change: impl Fn(Config) -> Config) -> (Slapd, Scripted, Usher) {
    let (slapd, backend) = (Slapd::private(), Scripted::accepting());
    let usher =
        Usher::start(change(Config::with_directory(&slapd).scripted(&backend).set("/limits/failed_logins", 50)));
    (slapd, backend, usher)
}

fn login(usher: &Usher, password: &str, beginning: &str) {
    Imap::tls(usher.imaps_port()).login("alice", password).is(beginning);
}

fn decided(usher: &Usher, by: &str) -> f64 {
    usher.metric("usher_decisions_total", &[("by", by)])
}

#[test]
fn cached_user_and_password_cost_no_bind() {
    let (slapd, _backend, usher) = private();
    for _ in 0..3 {
        login(&usher, &password_of("alice"), "OK");
    }
    assert_eq!((slapd.binds(ALICE), slapd.searches("alice")), (1, 1), "{}", slapd.logged());
    assert_eq!((decided(&usher, "directory"), decided(&usher, "cache")), (1.0, 2.0));
    assert_eq!(usher.metric("usher_cache_entries", &[]), 1.0);
    let event = usher.nth_login(2, "alice");
    assert_eq!((event["by"].as_str(), event["dn"].as_str()), (Some("cache"), Some(ALICE)), "{event}");
}

#[test]
fn other_password_is_always_verified_and_never_evicts_the_valid_one() {
    let (slapd, _backend, usher) = private();
    login(&usher, &password_of("alice"), "OK");
    login(&usher, "first wrong one", "NO [AUTHENTICATIONFAILED]");
    login(&usher, "second wrong one", "NO [AUTHENTICATIONFAILED]");
    assert_eq!(slapd.binds(ALICE), 3);
    login(&usher, &password_of("alice"), "OK");
    assert_eq!(slapd.binds(ALICE), 3, "the valid one is still cached");
}

#[test]
fn repeated_wrong_password_costs_no_further_bind() {
    let (slapd, _backend, usher) = private();
    let mut imap = Imap::tls(usher.imaps_port());
    for _ in 0..10 {
        imap.login("alice", "stale").is("NO [AUTHENTICATIONFAILED]");
    }
    assert_eq!(slapd.binds(ALICE), 1, "a repeated wrong password locks no account");
    assert_eq!(decided(&usher, "negative"), 9.0);
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn wrong_password_expires_from_the_cache() {
    let (slapd, _backend, usher) = private_with(|config| config.set("/cache/negative_ttl", "300ms"));
    login(&usher, "early", "NO [AUTHENTICATIONFAILED]");
    slapd.set(&User::new("alice", None), "userPassword", Some("early"));
    std::thread::sleep(Duration::from_millis(400)); // the lifetime of the entry is what is tested
    login(&usher, "early", "OK");
}

#[test]
fn decision_is_cached_for_its_ttl() {
    let (slapd, _backend, usher) = private_with(|config| config.set("/cache/ttl", "500ms"));
    login(&usher, &password_of("alice"), "OK");
    std::thread::sleep(Duration::from_millis(700)); // the lifetime of the entry is what is tested
    login(&usher, &password_of("alice"), "OK");
    assert_eq!(slapd.binds(ALICE), 2);
}

#[test]
fn changed_password_invalidates_the_old_one() {
    let (slapd, _backend, usher) = private();
    login(&usher, &password_of("alice"), "OK");
    slapd.set(&User::new("alice", None), "userPassword", Some("changed"));
    login(&usher, "changed", "OK");
    // A new password has succeeded: the others are verified at their next use.
    login(&usher, &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
    login(&usher, "changed", "OK");
    assert_eq!(slapd.binds(ALICE), 3, "{}", slapd.logged());
}

#[test]
fn main_and_app_passwords_are_cached_together() {
    let (slapd, _backend, usher) = private();
    let passwords = ["main-password", "phone-password", "tablet-password"];
    let values = passwords.map(|password| format!("userPassword: {password}\n")).concat();
    slapd.modify(&format!("dn: {ALICE}\nchangetype: modify\nreplace: userPassword\n{values}"));
    for _ in 0..4 {
        for password in passwords {
            login(&usher, password, "OK");
        }
    }
    let binds = slapd.binds(ALICE);
    for password in passwords {
        login(&usher, password, "OK");
    }
    assert_eq!(slapd.binds(ALICE), binds, "each is cached and none evicts another");
}

#[test]
fn same_password_of_another_user_is_no_cache_hit() {
    let (slapd, _backend, usher) = private();
    slapd.set(&User::new("anna", None), "userPassword", Some("shared"));
    slapd.set(&User::new("alice", None), "userPassword", Some("sharedx"));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("anna", "shared").ok();
    // Neither the same password nor another split of name and password gives the same key.
    login(&usher, "shared", "NO [AUTHENTICATIONFAILED]");
    Imap::tls(usher.imaps_port()).login("annas", "hared").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(slapd.binds(ALICE), 1);
}

#[test]
fn identical_concurrent_logins_share_one_flight() {
    const CLIENTS: usize = 20;
    let (slapd, _backend, usher) =
        private_with(|config| config.set("/directory/timeout", "6s").set("/directory/attempt_timeout", "6s"));
    let mut clients: Vec<Imap> = (0..CLIENTS).map(|_| Imap::tls(usher.imaps_port())).collect();
    slapd.freeze();
    for client in &mut clients {
        client.send(format!("a LOGIN alice {}\r\n", password_of("alice")));
    }
    slapd.thaw();
    for client in &mut clients {
        client.reply("a").ok();
    }
    assert_eq!((slapd.binds(ALICE), slapd.searches("alice")), (1, 1), "{}", slapd.logged());
}

#[test]
fn recently_seen_users_log_in_while_the_directory_is_down() {
    let (mut slapd, _backend, usher) = private();
    login(&usher, &password_of("alice"), "OK");
    slapd.stop();
    login(&usher, &password_of("alice"), "OK");
    login(&usher, "unknown", "NO [UNAVAILABLE]");
    Imap::tls(usher.imaps_port()).login("anna", &password_of("anna")).is("NO [UNAVAILABLE]");
}

/// A backend that refuses while the flag is set.
fn faulty_backend() -> (Arc<AtomicBool>, Scripted) {
    let refuses = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&refuses);
    let backend = Scripted::tls(move |peer| {
        peer.send(GREETING);
        if let Some(tag) = peer.take_login() {
            if asked.load(Ordering::SeqCst) {
                peer.send(format!("{tag} NO [AUTHENTICATIONFAILED] the backend says no\r\n"));
            } else {
                peer.send(format!("{tag} OK [CAPABILITY IMAP4rev1] welcome\r\n"));
            }
            peer.reply_to_everything();
        }
    });
    (refuses, backend)
}

#[test]
fn cached_login_rejected_by_the_backend_is_verified_again() {
    let slapd = Slapd::private();
    let (refuses, backend) = faulty_backend();
    let usher = Usher::start(Config::with_directory(&slapd).scripted(&backend));
    login(&usher, &password_of("alice"), "OK");
    refuses.store(true, Ordering::SeqCst);
    // The password is still valid in the directory: the servers disagree.
    login(&usher, &password_of("alice"), "NO [UNAVAILABLE] the backend says no");
    assert_eq!(slapd.binds(ALICE), 2, "{}", slapd.logged());
    // Wrong by now: the password was changed on both, and the old one is refused.
    slapd.set(&User::new("alice", None), "userPassword", Some("changed"));
    login(&usher, &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
    assert_eq!(slapd.binds(ALICE), 3, "{}", slapd.logged());
    refuses.store(false, Ordering::SeqCst);
    login(&usher, &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
    login(&usher, "changed", "OK");
}

#[test]
fn route_is_cached_only_as_long_as_the_decision() {
    let (slapd, backend, usher) = private_with(|config| config.set("/cache/ttl", "500ms"));
    login(&usher, &password_of("alice"), "OK");
    slapd.set(&User::new("alice", None), "mailHost", Some("server9"));
    std::thread::sleep(Duration::from_millis(700)); // the lifetime of the entry is what is tested
    login(&usher, &password_of("alice"), "NO [CONTACTADMIN]");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn cache_is_bounded() {
    let (_slapd, _backend, usher) = private_with(|config| config.set("/cache/capacity", 2));
    for uid in ["alice", "anna", "gruen", "quote", "space"] {
        Imap::tls(usher.imaps_port()).authenticate("", uid, password_of(uid).as_bytes()).ok();
    }
    let entries = usher.metric("usher_cache_entries", &[]);
    assert!(entries <= 2.0, "{entries}");
}
