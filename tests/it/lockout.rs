//! A password policy locks an account after five wrong passwords. usher does not cause that: not by a
//! device that repeats an old one, and within the configured limit not by guesses. Minutes are seconds here.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::{Config, Imap, User, Usher, password_of};

const HOME: [u8; 4] = [127, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 3];

/// Five failures within the window lock for this long, in minutes scaled to seconds.
const WINDOWS: [u32; 3] = [5, 15, 60];

fn dn(uid: &str) -> String {
    User::new(uid, None).dn()
}

/// A provider with a policy for each window, and its users.
fn slapd(users: &[(&str, u32)], use_lockout: bool) -> Slapd {
    let mut entries = "dn: ou=policies,dc=example,dc=com\nobjectClass: organizationalUnit\nou: policies\n\n".to_owned();
    for window in WINDOWS {
        entries.push_str(&format!(
            "dn: cn=w{window},ou=policies,dc=example,dc=com\nobjectClass: device\nobjectClass: pwdPolicy\ncn: w{window}
pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 5\npwdFailureCountInterval: {window}
pwdLockoutDuration: 3600\n\n"
        ));
    }
    for (uid, window) in users {
        let person = User::new(uid, Some("server3")).ldif();
        let policy = format!("pwdPolicySubentry: cn=w{window},ou=policies,dc=example,dc=com");
        entries.push_str(&format!("{}\n{policy}\n\n", person.trim_end()));
    }
    let use_lockout = if use_lockout { "ppolicy_use_lockout" } else { "" };
    let database = format!("lastbind on\n{SYNCPROV}overlay ppolicy\n{use_lockout}\n");
    Slapd::with(Options {
        modules: &["ppolicy", "syncprov"],
        database: &database,
        entries: &entries,
        ..Options::default()
    })
}

/// usher's defaults, scaled 60:1.
fn config(slapd: &Slapd, backend: &Scripted, watch: &str) -> Config {
    Config::with_directory(slapd)
        .scripted(backend)
        .set("/limits/failed_logins", 100)
        .set("/directory/watch", watch)
        .set("/cache", json!({"ttl": "1s", "negative_ttl": "500ms", "negative_ttl_max": "15s", "stale": "60s"}))
}

fn is_locked(slapd: &Slapd, uid: &str) -> bool {
    slapd.read(&dn(uid), &["pwdAccountLockedTime"]).contains("pwdAccountLockedTime:")
}

#[test]
fn device_with_an_old_password_never_locks_its_account() {
    const ROUNDS: usize = 48;
    let users: Vec<(String, u32)> = WINDOWS
        .into_iter()
        .flat_map(|window| ["quiet", "busy", "changes", "fresh"].map(|kind| (format!("{kind}{window}"), window)))
        .flat_map(|(uid, window)| ["off", "auto"].map(|watch| (format!("{uid}{watch}"), window)))
        .collect();
    let named: Vec<(&str, u32)> = users.iter().map(|(uid, window)| (uid.as_str(), *window)).collect();
    let (slapd, backend) = (slapd(&named, true), Scripted::accepting());
    let ushers = ["off", "auto"].map(|watch| (watch, Usher::start(config(&slapd, &backend, watch))));
    ushers[1].1.wait_metric("usher_directory_watch_connected", &[], 1.0);
    let mut phones: Vec<(&str, &Usher, Imap)> = Vec::new();
    for (uid, _) in &users {
        let usher = &ushers.iter().find(|(watch, _)| uid.ends_with(watch)).unwrap().1;
        // The new users are not cached yet.
        if !uid.starts_with("fresh") {
            Imap::tls(usher.imaps_port()).login(uid, &password_of(uid)).ok();
        }
        phones.push((uid, usher, Imap::tls(usher.imaps_port())));
    }
    for (uid, _) in users.iter().filter(|(uid, _)| uid.starts_with("changes")) {
        slapd.set(&User::new(uid, None), "userPassword", Some("this year's"));
    }
    std::thread::sleep(Duration::from_secs(1)); // cache.ttl, without change notification
    // One every quarter of a minute, for twelve minutes: the old schedule binds five times in eight.
    for round in 0..ROUNDS {
        let began = Instant::now();
        for (uid, _, phone) in &mut phones {
            let old = if uid.starts_with("changes") { password_of(uid) } else { "last year's".into() };
            phone.send(format!("a LOGIN {uid} \"{old}\"\r\n"));
        }
        for (uid, usher, phone) in &mut phones {
            phone.reply("a").is("NO [AUTHENTICATIONFAILED]");
            if uid.starts_with("busy") && round % 6 == 5 {
                Imap::tls(usher.imaps_port()).login(uid, &password_of(uid)).ok();
            }
        }
        std::thread::sleep(Duration::from_millis(250).saturating_sub(began.elapsed())); // the pause of the device
    }
    for (uid, _) in &users {
        assert!(!is_locked(&slapd, uid), "{uid} is locked after {} binds", slapd.binds(&dn(uid)));
        if !uid.starts_with("busy") {
            assert!(slapd.binds(&dn(uid)) <= 6, "{uid}: {} binds", slapd.binds(&dn(uid)));
        }
    }
    // Each user can log in.
    for (uid, usher, _) in &phones {
        let password = if uid.starts_with("changes") { "this year's".into() } else { password_of(uid) };
        Imap::tls(usher.imaps_port()).login(uid, &password).ok();
    }
}

#[test]
fn guess_lockout_does_not_affect_networks_the_user_logs_in_from() {
    for use_lockout in [true, false] {
        let users = [("alicia", 60), ("robert", 60), ("carla", 60)];
        let (slapd, backend) = (slapd(&users, use_lockout), Scripted::accepting());
        let usher = Usher::start(config(&slapd, &backend, "off").set("/cache/ttl", "100ms"));
        for uid in ["alicia", "robert", "carla"] {
            Imap::tls_from(HOME, usher.imaps_port()).login(uid, &password_of(uid)).ok();
        }
        slapd.set(&User::new("carla", None), "userPassword", Some("another by now"));
        // An attacker locks the accounts, directly at the directory.
        for uid in ["alicia", "carla"] {
            for guess in 0..5 {
                slapd.refuses(&dn(uid), &format!("guess {guess}"));
            }
            assert!(is_locked(&slapd, uid));
        }
        slapd.set(&User::new("robert", None), "pwdAccountLockedTime", Some("000001010000Z"));
        std::thread::sleep(Duration::from_millis(150)); // cache.ttl
        for _ in 0..3 {
            Imap::tls_from(HOME, usher.imaps_port()).login("alicia", &password_of("alicia")).ok();
            assert_eq!(usher.nth_login(2, "alicia")["by"], "stale");
        }
        // `explain` knows where she is let in.
        for (from, code, by) in [("127.0.0.2", 0, "stale"), ("127.0.0.3", 77, "directory")] {
            let said = usher.command(&["explain", "alicia", "--running", "--json", "--from", from]);
            let value: Value = serde_json::from_str(&said.stdout).unwrap();
            assert_eq!((said.code, value["by"].as_str()), (code, Some(by)), "{value}");
        }
        // Not elsewhere, not with another password, not if an administrator has locked it ..
        let mut elsewhere = Imap::tls_from(ELSEWHERE, usher.imaps_port());
        elsewhere.login("alicia", &password_of("alicia")).is("NO [AUTHENTICATIONFAILED]");
        let mut home = Imap::tls_from(HOME, usher.imaps_port());
        home.login("alicia", "another").is("NO [AUTHENTICATIONFAILED]");
        home.login("robert", &password_of("robert")).is("NO [AUTHENTICATIONFAILED]");
        // .. and not with a password that was changed since.
        home.login("carla", &password_of("carla")).is("NO [AUTHENTICATIONFAILED]");
    }
}

#[test]
fn guesses_beyond_the_limit_never_lock_an_account() {
    let users = [("alicia", 60)];
    let (slapd, backend) = (slapd(&users, true), Scripted::accepting());
    let rule = json!({"mode": "enforce", "limit": 3});
    let config = config(&slapd, &backend, "off").set("/throttle/failed_logins_per_user", rule);
    let usher = Usher::start(config.set("/throttle/forget_every", "1h"));
    let (alicia, password) = (dn("alicia"), password_of("alicia"));
    Imap::tls_from(HOME, usher.imaps_port()).login("alicia", &password).ok();
    let mut guesser = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    let before = slapd.binds(&alicia);
    for guess in 0..12 {
        guesser.login("alicia", &format!("guess {guess}")).is("NO");
    }
    assert_eq!((slapd.binds(&alicia) - before, is_locked(&slapd, "alicia")), (3, false));
    let refused: Value = usher.nth_login(6, "alicia");
    assert_eq!((&refused["result"], &refused["limited_by"]), (&json!("limit"), &json!("failed_logins_per_user")));
    // An unknown name gets the same reply.
    for guess in 0..4 {
        let reported = if guess < 3 { "NO [AUTHENTICATIONFAILED]" } else { "NO [LIMIT]" };
        guesser.login("unknown", &format!("guess {guess}")).is(reported);
    }
    // In a network with earlier logins there is no limit, cached or not.
    usher.command(&["cache", "drop", "alicia"]);
    Imap::tls_from(HOME, usher.imaps_port()).login("alicia", &password).ok();
}
