//! The same behaviour with 389 Directory Server, whose password policy uses other attributes and controls.

use crate::kit::dirsrv::DirSrv;
use crate::kit::scripted::Scripted;
use crate::kit::{Config, Imap, User, Usher, password_of};

/// A policy with every account state enabled.
const POLICY: [(&str, &str); 7] = [
    ("passwordLockout", "on"),
    ("passwordMaxFailure", "3"),
    ("passwordMustChange", "on"),
    ("passwordExp", "on"),
    ("passwordMaxAge", "8640000"),
    ("passwordWarning", "86400"),
    ("passwordGraceLimit", "3"),
];

#[test]
fn account_states_of_389_ds_are_recognized() {
    let people = ["alice", "disabled", "expired", "grace", "reset", "locked"];
    let people = people.map(|uid| User::new(uid, Some("server3")));
    let directory = DirSrv::start(&POLICY, &people);
    let [_, disabled, expired, grace, reset, locked] = &people;
    directory.set(disabled, "nsAccountLock", Some("true"));
    for (person, used) in [(expired, "3"), (grace, "0")] {
        directory.set(person, "passwordExpirationTime", Some("20200101000000Z"));
        directory.set(person, "passwordGraceUserTime", Some(used));
    }
    // A password set by the administrator.
    directory.set(reset, "userPassword", Some(&password_of("reset")));

    let backend = Scripted::accepting();
    let config = Config::with_url(&directory.url()).scripted(&backend).set("/limits/failed_logins", 100);
    let usher = Usher::start(config.set("/directory/reveal_account_state", true));
    let mut imap = Imap::tls(usher.imaps_port());
    for (person, result, reported) in [
        (disabled, "account_disabled", "NO [AUTHENTICATIONFAILED]"),
        (expired, "password_expired", "NO [EXPIRED]"),
        (reset, "password_must_change", "NO [EXPIRED]"),
    ] {
        imap.login(&person.uid, &person.password).is(reported);
        assert_eq!(usher.login(&person.uid)["result"], result);
    }
    imap.login("expired", "wrong").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.nth_login(2, "expired")["result"], "wrong_password");

    // Three wrong passwords lock; the valid one then gets the same reply, and works once unlocked.
    for n in 0..3 {
        imap.login("locked", &format!("guess {n}")).is("NO [AUTHENTICATIONFAILED]");
    }
    imap.login("locked", &locked.password).is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.nth_login(4, "locked")["result"], "account_locked");
    for attribute in ["accountUnlockTime", "passwordRetryCount"] {
        directory.set(locked, attribute, None);
    }
    imap.login("locked", &locked.password).ok();

    Imap::tls(usher.imaps_port()).login("grace", &grace.password).ok();
    assert_eq!(usher.metric("usher_directory_password_warnings_total", &[("warning", "grace")]), 1.0);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    assert_eq!(usher.login("alice")["directory_message"].as_str(), None);
}

/// The plugins that 389-DS needs for content synchronization: one records the changes that the other sends.
const SYNC: [&str; 2] = ["Content Synchronization", "Retro Changelog Plugin"];

#[test]
fn changes_in_389_ds_are_followed_with_and_without_its_plugin() {
    let alice = User::new("alice", Some("server3"));
    for (plugins, way) in [(&SYNC[..], "sync"), (&[], "poll")] {
        let directory = DirSrv::with_plugins(plugins, &[], std::slice::from_ref(&alice));
        let servers = [Scripted::accepting(), Scripted::accepting()];
        let config = Config::with_url(&directory.url())
            .backend("server3", servers[0].port, &["server3"])
            .backend("server4", servers[1].port, &["server4"])
            .set("/routing/backends/1/imap/server_name", "server3.example.com")
            .set("/directory/watch", "auto")
            .set("/directory/poll_interval", "1s")
            .set("/cache/ttl", "1h");
        let usher = Usher::start(config);
        usher.wait_log("watching the directory for changes", |line| line["mode"] == way);
        usher.wait_log("LDAP change notification active", |_| true);
        let mut session = Imap::tls(usher.imaps_port());
        session.login("alice", &alice.password).ok();
        assert_eq!(usher.login("alice")["backend"], "server3");
        let edited = std::time::Instant::now();
        directory.set(&alice, "mailHost", Some("server4"));
        usher.wait_log("route changed", |line| line["new_backend"] == "server4");
        println!("{way}: {:?} from the edit to the new route", edited.elapsed());
        usher.wait_metric("usher_sessions_ended_total", &[("cause", "moved")], 1.0);
        Imap::tls(usher.imaps_port()).login("alice", &alice.password).ok();
        assert_eq!(usher.nth_login(2, "alice")["backend"], "server4");
        directory.set(&alice, "nsAccountLock", Some("true"));
        usher.wait_metric("usher_directory_changes_total", &[("kind", "disable")], 1.0);
    }
}
