//! A directory with account states: OpenLDAP's password policy. The log has the true
//! reason; the reply reveals only what it may, after a delay that reveals nothing.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, Slapd};
use crate::kit::{Config, Imap, User, Usher, password_of};

/// The default policy locks after three wrong passwords; three more concern password age.
const POLICIES: &str = "dn: ou=policies,dc=example,dc=com
objectClass: organizationalUnit
ou: policies

dn: cn=default,ou=policies,dc=example,dc=com
objectClass: device
objectClass: pwdPolicy
cn: default
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 3
pwdMustChange: TRUE

dn: cn=daily,ou=policies,dc=example,dc=com
objectClass: device
objectClass: pwdPolicy
cn: daily
pwdAttribute: userPassword
pwdMaxAge: 86400

dn: cn=lenient,ou=policies,dc=example,dc=com
objectClass: device
objectClass: pwdPolicy
cn: lenient
pwdAttribute: userPassword
pwdMaxAge: 86400
pwdGraceAuthNLimit: 3

dn: cn=warning,ou=policies,dc=example,dc=com
objectClass: device
objectClass: pwdPolicy
cn: warning
pwdAttribute: userPassword
pwdMaxAge: 2000000000
pwdExpireWarning: 2000000000

";

/// Users with an account state, and the attributes that cause it.
const STATES: [(&str, &str); 5] = [
    ("expired", "pwdChangedTime: 20200101000000Z\npwdPolicySubentry: cn=daily,ou=policies,dc=example,dc=com"),
    ("grace", "pwdChangedTime: 20200101000000Z\npwdPolicySubentry: cn=lenient,ou=policies,dc=example,dc=com"),
    ("expiring", "pwdChangedTime: 20200101000000Z\npwdPolicySubentry: cn=warning,ou=policies,dc=example,dc=com"),
    ("reset", "pwdReset: TRUE"),
    ("locked", "pwdAccountLockedTime: 000001010000Z"),
];

/// `slow-secret`, hashed so that a comparison takes about 50 ms.
const SLOW: &str = "{CRYPT}$6$rounds=100000$usherusher$db/COFdH7zRqXg.7Tv6lNv8PWwTPEum5tfqAK.TniQ3kWiVCc0PkSIXs6cb6rQJTWNU9IPQ/P.AnB82J6flAW.";

/// A directory with a password policy. With `use_lockout` it reports locked accounts.
fn slapd(use_lockout: bool) -> Slapd {
    let mut entries = POLICIES.to_owned();
    for (uid, state) in STATES {
        let person = User::new(uid, Some("server3")).ldif();
        entries.push_str(&format!("{}\n{state}\n\n", person.trim_end()));
    }
    // With a policy that never locks, so that every password is compared.
    let slow = User { password: SLOW.into(), ..User::new("slow", Some("server3")) }.ldif();
    entries.push_str(&format!("{}\npwdPolicySubentry: cn=daily,ou=policies,dc=example,dc=com\n\n", slow.trim_end()));
    let use_lockout = if use_lockout { "ppolicy_use_lockout" } else { "" };
    let database =
        format!("overlay ppolicy\nppolicy_default \"cn=default,ou=policies,dc=example,dc=com\"\n{use_lockout}\n");
    Slapd::with(Options { modules: &["ppolicy"], database: &database, entries: &entries, ..Options::default() })
}

fn config(slapd: &Slapd, backend: &Scripted) -> Config {
    Config::with_directory(slapd).scripted(backend).set("/limits/failed_logins", 100)
}

#[test]
fn account_state_is_logged_and_not_revealed_to_the_client() {
    let (slapd, backend) = (slapd(true), Scripted::accepting());
    let usher = Usher::start(config(&slapd, &backend));
    let mut imap = Imap::tls(usher.imaps_port());
    let wrong = imap.login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
    for (login, result) in
        [("expired", "password_expired"), ("reset", "password_must_change"), ("locked", "account_locked")]
    {
        let reported = imap.login(login, &password_of(login)).is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(reported.tagged, wrong.tagged, "{login}");
        let event = usher.login(login);
        assert_eq!(
            (event["result"].as_str(), event["directory_message"].as_str()),
            (Some(result), Some(result)),
            "{event}"
        );
        assert_eq!(usher.metric("usher_logins_total", &[("result", result)]), 1.0);
    }
    // A wrong password is reported in any account state, unless the lock hides it.
    imap.login("expired", "wrong").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.nth_login(2, "expired")["result"], "wrong_password");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn account_state_is_revealed_only_after_a_valid_password() {
    let (slapd, backend) = (slapd(true), Scripted::accepting());
    let usher = Usher::start(config(&slapd, &backend).set("/directory/reveal_account_state", true));
    let mut imap = Imap::tls(usher.imaps_port());
    for login in ["expired", "reset"] {
        imap.login(login, "wrong").is("NO [AUTHENTICATIONFAILED]");
        imap.login(login, &password_of(login)).is("NO [EXPIRED]");
    }
    // The directory reports a lock without a valid password, so the client never sees it.
    for password in ["wrong", &password_of("locked")] {
        imap.login("locked", password).is("NO [AUTHENTICATIONFAILED]");
    }
    assert_eq!(usher.metric("usher_logins_total", &[("result", "account_locked")]), 2.0);
}

#[test]
fn grace_login_and_expiry_warning_are_successful_logins() {
    let (slapd, backend) = (slapd(true), Scripted::accepting());
    let usher = Usher::start(config(&slapd, &backend));
    for (login, warning, said) in
        [("grace", "grace", "password expired, 2 grace logins left"), ("expiring", "expiring", "password expires in ")]
    {
        Imap::tls(usher.imaps_port()).login(login, &password_of(login)).ok();
        let event = usher.login(login);
        assert!(event["directory_message"].as_str().is_some_and(|words| words.starts_with(said)), "{event}");
        assert_eq!(usher.metric("usher_directory_password_warnings_total", &[("warning", warning)]), 1.0);
    }
    // Cached logins consume no grace logins: the directory counts them.
    Imap::tls(usher.imaps_port()).login("grace", &password_of("grace")).ok();
    let cached = usher.nth_login(2, "grace");
    assert_eq!((cached["by"].as_str(), &cached["directory_message"]), (Some("cache"), &Value::Null), "{cached}");
}

#[test]
fn user_dn_mode_handles_account_states_alike() {
    let (slapd, backend) = (slapd(true), Scripted::accepting());
    let template = "uid={login},ou=people,dc=example,dc=com";
    let config = config(&slapd, &backend).user_dn(template).set("/directory/reveal_account_state", true);
    let usher = Usher::start(config);
    let mut imap = Imap::tls(usher.imaps_port());
    for login in ["expired", "reset"] {
        imap.login(login, &password_of(login)).is("NO [EXPIRED]");
    }
    imap.login("locked", &password_of("locked")).is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.login("locked")["result"], "account_locked");
    imap.login("grace", &password_of("grace")).ok();
}

#[test]
fn cached_wrong_password_does_not_prolong_a_lock() {
    // This directory does not report locked accounts: the valid password is refused like a wrong one.
    let (slapd, backend) = (slapd(false), Scripted::accepting());
    let usher = Usher::start(config(&slapd, &backend).set("/cache/negative_ttl", "1h"));
    let mut imap = Imap::tls(usher.imaps_port());
    let (locked, password) = (User::new("locked", None), password_of("locked"));
    imap.login("locked", &password).is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.login("locked")["result"], "wrong_password");
    slapd.set(&locked, "pwdAccountLockedTime", None);
    imap.login("locked", &password).ok();
}

#[test]
fn repeated_wrong_password_is_searched_and_not_bound_until_the_entry_changes() {
    let (slapd, backend) = (slapd(true), Scripted::accepting());
    let config = config(&slapd, &backend).set("/cache/negative_ttl", "100ms").set("/cache/negative_ttl_max", "1h");
    let usher = Usher::start(config);
    // With a maximum age, and a policy that never locks.
    let (person, dn) = (User::new("expiring", None), "uid=expiring,ou=people,dc=example,dc=com");
    let mut imap = Imap::tls(usher.imaps_port());
    for _ in 0..16 {
        // Each reply takes longer than negative_ttl.
        imap.login("expiring", "next year's").is("NO [AUTHENTICATIONFAILED]");
    }
    let binds = slapd.binds(dn);
    assert!((2..=10).contains(&binds), "{binds} binds, {} searches", slapd.searches("expiring"));
    assert!(usher.metric("usher_decisions_total", &[("by", "negative")]) >= 6.0);
    // The wrong password becomes the valid one, and is accepted at the next search.
    slapd.set(&person, "userPassword", Some("next year's"));
    imap.login("expiring", "next year's").ok();
}

/// The times of refusals of each kind, measured in turn: an unknown name, a wrong password that
/// is slow to compare, and a locked account.
fn refusals_in_time(usher: &Usher, rounds: usize) -> [Vec<Duration>; 3] {
    let mut clients = ["unknown", "slow", "locked"].map(|login| (login, Imap::tls(usher.imaps_port()), Vec::new()));
    for round in 0..rounds {
        for (login, imap, times) in &mut clients {
            let asked = Instant::now();
            imap.login(login, &format!("guess {round}")).is("NO [AUTHENTICATIONFAILED]");
            times.push(asked.elapsed());
        }
    }
    clients.map(|(_, _, times)| times)
}

/// The share of pairs in which one took longer than the other: a half if they are
/// indistinguishable (the Mann-Whitney statistic).
fn longer(one: &[Duration], other: &[Duration]) -> f64 {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| one > other));
    let (longer, all) = pairs.fold((0.0, 0.0), |(longer, all), is| (longer + f64::from(u8::from(is)), all + 1.0));
    longer / all
}

#[test]
fn refusal_time_reveals_nothing() {
    let (slapd, backend) = (slapd(true), Scripted::accepting());
    let config = config(&slapd, &backend).set("/throttle/exempt", serde_json::json!(["127.0.0.0/8"]));
    let at_once = Usher::start(config.clone().set("/limits/refusal_delay", "0s"));
    let [unknown, wrong, locked] = refusals_in_time(&at_once, 8);
    assert!(longer(&wrong, &unknown) > 0.9 && longer(&wrong, &locked) > 0.9, "{unknown:?} {wrong:?} {locked:?}");

    let delay = Duration::from_millis(300);
    let usher = Usher::start(config.set("/limits/refusal_delay", "300ms"));
    let [unknown, wrong, locked] = refusals_in_time(&usher, 16);
    for times in [&unknown, &wrong, &locked] {
        assert!(times.iter().all(|time| *time >= delay), "{times:?}");
    }
    // With 16 of each, chance alone leaves this range once in ten thousand runs.
    for (one, other) in [(&unknown, &wrong), (&unknown, &locked), (&wrong, &locked)] {
        let share = longer(one, other);
        assert!((0.1..0.9).contains(&share), "{share}: {one:?} {other:?}");
    }
}
