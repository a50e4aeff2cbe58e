//! `usher explain` says what a login meets, and what its client reads: on a real directory and a real mail server, for
//! everything that keeps a user out though the entry leads to a backend. It changes nothing.

use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use crate::kit::certs::Leaf;
use crate::kit::dovecot::Dovecot;
use crate::kit::process::Output;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, Slapd};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, User, Usher, password_of, shared, slapd};

const HOME: [u8; 4] = [127, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 3];

const POLICY: &str = "dn: cn=policy,ou=services,dc=example,dc=com
objectClass: device
objectClass: pwdPolicy
cn: policy
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 3

";

/// A directory whose policy locks a user after three wrong passwords, with a user `disabled` that an administrator has locked.
fn slapd_with_policy() -> Slapd {
    let locked = User::new("locked", Some("server3")).ldif();
    let disabled = User::new("disabled", Some("server3")).ldif();
    Slapd::with(Options {
        modules: &["ppolicy"],
        database: "lastbind on\noverlay ppolicy\nppolicy_default \"cn=policy,ou=services,dc=example,dc=com\"\n",
        entries: &format!("{POLICY}{locked}{}\npwdAccountLockedTime: 000001010000Z\n\n", disabled.trim_end()),
        ..Options::default()
    })
}

fn explain(usher: &Usher, arguments: &[&str]) -> Output {
    usher.command(&[&["explain"], arguments].concat())
}

/// A login is refused, and `explain` says so before and after, with the same text.
fn is_refused(usher: &Usher, name: &str, result: &str, code: i32) -> String {
    let said = explain(usher, &[name]);
    assert!(said.code == code && said.stdout.contains(&format!("  result       {result}\n")), "{said:?}");
    let reply = Imap::tls(usher.imaps_port()).login(name, &password_of(name)).is("NO").tagged;
    let reads =
        said.stdout.lines().find_map(|line| line.strip_prefix("  client reads ")).expect("what the client reads");
    assert!(reply.contains(reads), "{reply}: {}", said.stdout);
    let shown = explain(usher, &[name, "--json"]);
    let value: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!((shown.code, &value["running"]["reply"]), (code, &json!(reads)), "{value}");
    said.stdout
}

#[test]
fn whatever_keeps_a_user_out_is_the_first_verdict_and_decides_the_exit_code() {
    let (slapd, mut server3) = (slapd_with_policy(), Dovecot::start(&shared().certificates, &shared().server3, false));
    let expired = Leaf { expired: true, ..Leaf::server(&["server4.example.com"]) };
    let expired = shared().certificates.leaf("explained-expired", expired);
    let server4 = Dovecot::start(&shared().certificates, &expired, false);
    let config = Config::with_directory(&slapd)
        .backend("server3", server3.imaps, &["server3"])
        .backend("server4", server4.imaps, &["server4", "server4.example.com"])
        .set("/directory/hold_attribute", "description")
        .set("/directory/hold_timeout", "1s")
        .set("/limits/failed_logins", 100)
        .set("/cache/ttl", "1s");
    let usher = Usher::start(config);
    let alice = User::new("alice", None);

    let said = explain(&usher, &["alice"]);
    assert!(said.code == 0 && !said.stdout.contains("client reads"), "{said:?}");
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();

    (0..3).for_each(|guess| slapd.refuses(&User::new("locked", None).dn(), &format!("guess {guess}")));
    is_refused(&usher, "disabled", "account_disabled", 77);
    let said = is_refused(&usher, "locked", "account_locked", 77);
    assert!(said.contains("client reads Name or password is wrong"), "a client hears no state: {said}");

    usher.command(&["backends", "drain", "server3"]).succeeded();
    let said = is_refused(&usher, "alice", "backend_draining", 69);
    assert!(said.contains("client reads Mail server is under maintenance"), "{said}");
    // The file alone knows nothing of it.
    let said = explain(&usher, &["alice", "--file-only"]);
    assert!(said.code == 0 && !said.stdout.contains("running usher") && said.stderr.is_empty(), "{said:?}");
    let said = explain(&usher, &["--all"]);
    assert!(said.stderr.contains("server3 is out of service now"), "{said:?}");
    usher.command(&["backends", "undrain", "server3"]).succeeded();
    assert_eq!(explain(&usher, &["alice"]).code, 0);

    slapd.set(&alice, "description", Some("moving"));
    // A cached decision does not know of the hold without change notification, and a login neither.
    usher.command(&["cache", "drop", "alice"]).succeeded();
    let said = is_refused(&usher, "alice", "hold", 69);
    assert!(said.contains("client reads Your mailbox is being moved"), "{said}");
    slapd.set(&alice, "description", None);

    // The certificate of a mail server has expired.
    for _ in 0..3 {
        Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).is("NO [UNAVAILABLE]");
    }
    usher.wait_log("backend address marked down", |line| line["backend"] == "server4");
    let said = is_refused(&usher, "bob", "backend_unreachable", 69);
    assert!(said.contains("expired"), "{said}");

    // A mail server does not answer.
    server3.stop();
    for _ in 0..3 {
        Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    }
    usher.wait_log("backend address marked down", |line| line["backend"] == "server3");
    let said = is_refused(&usher, "alice", "backend_unreachable", 69);
    assert!(said.contains("client reads The mail service is not available"), "{said}");
    let said = explain(&usher, &["--all"]);
    assert!(said.stderr.contains("server3 is down now: its users cannot log in"), "{said:?}");

    // Nothing of this is a bind, a decision or a guess.
    let state = || {
        let of = |name: &str, labels: &[(&str, &str)]| usher.metric(name, labels);
        (
            [slapd.binds(&alice.dn()), slapd.binds(&User::new("locked", None).dn())],
            [of("usher_decisions_total", &[]), of("usher_throttle_entries", &[]), of("usher_cache_entries", &[])],
            of("usher_logins_total", &[]),
        )
    };
    let before = state();
    for name in ["alice", "locked", "bob", "nobody"] {
        explain(&usher, &[name]);
        explain(&usher, &[name, "--from", "192.0.2.7"]);
    }
    assert_eq!(state(), before);
}

#[test]
fn limits_of_the_user_are_judged_and_nothing_is_counted() {
    let server = Scripted::accepting();
    let rule = json!({"mode": "enforce", "free_failures": 1, "limit": 3, "first_delay": "100ms", "max_delay": "1s"});
    let config = Config::with_directory(slapd())
        .scripted(&server)
        .set("/limits/failed_logins", 100)
        .set("/throttle/failed_logins_per_user", rule)
        .set("/cache", json!({"ttl": "100ms", "negative_ttl": "100ms"}));
    let usher = Usher::start(config);
    let guess = |name: &str, number: usize| {
        let mut imap = Imap::tls_from(ELSEWHERE, usher.imaps_port());
        imap.login(name, &format!("guess {number}")).is("NO [AUTHENTICATIONFAILED]");
    };
    (0..2).for_each(|number| guess("alice", number));
    let said = explain(&usher, &["alice"]);
    let waits = "limits       throttle.failed_logins_per_user: a login waits 0.2 s before";
    assert!(said.code == 0 && said.stdout.contains(waits), "{said:?}");
    guess("alice", 2);
    let said = is_refused(&usher, "alice", "limit", 77);
    assert!(said.contains("client reads Too many attempts or sessions"), "{said}");
    assert!(said.contains("throttle.failed_logins_per_user: refused"), "{said}");
    let said = explain(&usher, &["alice", "--from", "127.0.0.3", "--running"]);
    assert!(said.code == 77 && said.stdout.contains("client reads Too many attempts"), "{said:?}");

    // Under another of her names it is not said to a client, and is to an administrator.
    let said = explain(&usher, &["a.liddell@example.com"]);
    assert!(said.code == 77 && said.stdout.contains("client reads Name or password is wrong"), "{said:?}");
    let mut imap = Imap::tls(usher.imaps_port());
    let reply = imap.login("a.liddell@example.com", &password_of("alice")).is("NO [AUTHENTICATIONFAILED]").tagged;
    assert!(reply.contains("Name or password is wrong"), "{reply}");

    // A user that has logged in from somewhere is let in from there.
    Imap::tls_from(HOME, usher.imaps_port()).login("anna", &password_of("anna")).ok();
    (0..3).for_each(|number| guess("anna", number));
    let limited = |arguments: &[&str]| {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let said = usher.command(&[&["explain", "anna", "--running", "--json"], arguments].concat());
            let value: Value = serde_json::from_str(&said.stdout).unwrap();
            if value["by"] != "cache" {
                return (said.code, value);
            }
            assert!(std::time::Instant::now() < end, "{value}");
        }
    };
    let (code, value) = limited(&[]);
    let words = value["limited"].as_str().unwrap_or_default();
    assert!(code == 0 && words.contains("but not from networks with an earlier login"), "{value}");
    let (code, value) = limited(&["--from", "127.0.0.3"]);
    assert_eq!((code, &value["result"]), (77, &json!("limit")), "{value}");
    let (code, value) = limited(&["--from", "127.0.0.2"]);
    assert_eq!((code, &value["result"], &value["limited"]), (0, &json!("routed"), &Value::Null), "{value}");
    for _ in 0..10 {
        limited(&["--from", "127.0.0.2"]);
    }
    Imap::tls_from(HOME, usher.imaps_port()).login("anna", &password_of("anna")).ok();
}

#[test]
fn user_with_as_many_sessions_as_are_allowed_is_refused() {
    let server = Scripted::accepting();
    let config = Config::with_directory(slapd())
        .scripted(&server)
        .set("/throttle/sessions_per_user", json!({"mode": "enforce", "limit": 1}));
    let usher = Usher::start(config);
    let mut session = Imap::tls(usher.imaps_port());
    session.login("alice", &password_of("alice")).ok();
    let said = is_refused(&usher, "alice", "limit", 77);
    assert!(said.contains("as many sessions as are allowed"), "{said}");
}

/// Only a process that is not there leaves the decision to the file.
#[test]
fn process_that_does_not_answer_is_no_proof_that_the_user_could_log_in() {
    let mut config = Config::with_directory(slapd()).backend("server3", 1, &["server3"]);
    let path = config.path("mute.sock");
    config.change("/control", json!({"path": path}));
    config.write();
    let listener = UnixListener::bind(&path).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept()));
    let said = command(&config, &["explain", "alice"], b"");
    closing.join().unwrap();
    assert!(said.code == 69 && said.stdout.contains("result       routed"), "{said:?}");
    assert!(said.stderr.contains(" alone: "), "{said:?}");
    // Its listener is gone: usher does not run.
    let said = command(&config, &["explain", "alice"], b"");
    assert!(said.code == 0 && said.stderr.contains("usher is not running"), "{said:?}");
    let config = config.without("/control");
    config.write();
    let said = command(&config, &["explain", "alice"], b"");
    assert!(said.code == 0 && said.stderr.contains("has no control socket"), "{said:?}");
}
