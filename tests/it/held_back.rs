//! Users that are held back by the directory or by a limit: one line at the beginning and one at the end, and the list of
//! `usher status`.

use serde_json::{Value, json};

use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::SUFFIX;
use crate::kit::{Config, Imap, User, Usher, password_of};

const HOME: [u8; 4] = [127, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [127, 55, 66, 77];
const ROOT: &str = "cn=root,dc=example,dc=com";

fn dn(uid: &str) -> String {
    User::new(uid, None).dn()
}

fn set(slapd: &Slapd, uid: &str, attribute: &str, value: Option<&str>) {
    slapd.set(&User::new(uid, None), attribute, value);
}

/// The list of `usher status --json`.
fn listed(usher: &Usher) -> Vec<Value> {
    let status: Value = serde_json::from_str(&usher.command(&["status", "--json"]).succeeded().stdout).unwrap();
    assert_eq!(status["held_back"]["more"], 0);
    status["held_back"]["listed"].as_array().unwrap().clone()
}

fn is_of(line: &Value, uid: &str) -> bool {
    line["dn"] == dn(uid)
}

fn provider() -> Slapd {
    let policy = format!(
        "dn: cn=policy,ou=services,{SUFFIX}\nobjectClass: device\nobjectClass: pwdPolicy\ncn: policy\n\
         pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 2\npwdLockoutDuration: 3600\n\n"
    );
    let database =
        format!("{SYNCPROV}overlay ppolicy\nppolicy_default \"cn=policy,ou=services,{SUFFIX}\"\nppolicy_use_lockout\n");
    Slapd::with(Options {
        modules: &["syncprov", "ppolicy"],
        database: &database,
        entries: &policy,
        ..Options::default()
    })
}

fn config(slapd: &Slapd, backend: &Scripted) -> Config {
    Config::with_directory(slapd).scripted(backend).set("/directory/hold_attribute", "description")
}

#[test]
fn hold_and_lock_are_logged_at_both_ends_and_listed() {
    let (slapd, backend) = (provider(), Scripted::accepting());
    // Held before usher starts.
    set(&slapd, "anna", "description", Some("moving"));
    let usher = Usher::start(config(&slapd, &backend).set("/directory/watch", "auto"));
    usher.wait_log("user is held by the directory", |line| is_of(line, "anna"));
    usher.wait_log("LDAP change notification active", |_| true);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    set(&slapd, "alice", "description", Some("moving"));
    let line = usher.wait_log("user is held by the directory", |line| is_of(line, "alice"));
    assert_eq!(line["modified_by"], ROOT, "{line}");
    let list = listed(&usher);
    let users: Vec<_> = list.iter().map(|one| (&one["reason"], &one["user"], &one["by"])).collect();
    let [anna, alice] = ["anna", "alice"].map(|uid| json!(dn(uid)));
    // Within one second they stand by name.
    let found = |dn: &Value| users.contains(&(&json!("hold"), dn, &json!(ROOT)));
    assert!(users.len() == 2 && found(&anna) && found(&alice), "{list:?}");
    let text = usher.command(&["status"]).succeeded().stdout;
    assert!(text.contains(&format!("held back    {}: held by the directory for", dn("alice"))), "{text}");
    let page = usher.http("/").1;
    assert!(page.contains("Held back now: 2 on hold, 0 locked"), "{page}");
    // Another change of a held user is no other hold.
    set(&slapd, "alice", "title", Some("Dr"));
    for uid in ["alice", "anna"] {
        set(&slapd, uid, "description", None);
        let line = usher.wait_log("user is no longer held by the directory", |line| is_of(line, uid));
        assert!(line["lasted_s"].is_u64() && line["modified_by"] == ROOT, "{line}");
    }
    assert_eq!(listed(&usher), Vec::<Value>::new());
    let held = |line: &&Value| line["message"] == "user is held by the directory" && is_of(line, "alice");
    assert_eq!(usher.logged().iter().filter(held).count(), 1);

    // Locked after wrong passwords.
    let mut guesser = Imap::tls(usher.imaps_port());
    for guess in ["one", "other"] {
        guesser.login("alice", guess).is("NO [AUTHENTICATIONFAILED]");
    }
    usher.wait_log("account is locked by the directory", |line| is_of(line, "alice"));
    assert_eq!((&listed(&usher)[0]["reason"], &listed(&usher)[0]["user"]), (&json!("locked"), &json!(dn("alice"))));
    set(&slapd, "alice", "pwdAccountLockedTime", None);
    usher.wait_log("account is no longer locked by the directory", |line| is_of(line, "alice"));
    assert_eq!(listed(&usher), Vec::<Value>::new());
    // A held user that is deleted is held no longer.
    set(&slapd, "anna", "description", Some("moving"));
    usher.wait_nth_log(2, "user is held by the directory", |line| is_of(line, "anna"));
    slapd.modify(&format!("dn: {}\nchangetype: delete\n", dn("anna")));
    usher.wait_nth_log(2, "user is no longer held by the directory", |line| is_of(line, "anna"));
}

#[test]
fn hold_and_lock_that_only_logins_meet_are_listed_until_a_login_succeeds() {
    let (slapd, backend) = (provider(), Scripted::accepting());
    let config = config(&slapd, &backend).set("/directory/hold_timeout", "1s").set("/directory/watch", "off");
    let usher = Usher::start(config.set("/cache", json!({"ttl": "1s", "negative_ttl": "1s"})));
    set(&slapd, "anna", "description", Some("moving"));
    Imap::tls(usher.imaps_port()).login("anna", &password_of("anna")).is("NO [UNAVAILABLE]");
    usher.wait_log("user is held by the directory", |line| is_of(line, "anna"));
    let list = listed(&usher);
    assert!(list[0]["reason"] == "hold" && list[0]["until"].as_u64() > list[0]["since"].as_u64(), "{list:?}");
    set(&slapd, "anna", "description", None);
    Imap::tls(usher.imaps_port()).login("anna", &password_of("anna")).ok();
    usher.wait_log("user is no longer held by the directory", |line| is_of(line, "anna"));
    let mut guesser = Imap::tls(usher.imaps_port());
    for guess in ["one", "other", "third"] {
        guesser.login("alice", guess).is("NO [AUTHENTICATIONFAILED]");
    }
    usher.wait_log("account is locked by the directory", |line| is_of(line, "alice"));
    set(&slapd, "alice", "pwdAccountLockedTime", None);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    usher.wait_log("account is no longer locked by the directory", |line| is_of(line, "alice"));
    assert_eq!(listed(&usher), Vec::<Value>::new());
}

#[test]
fn users_and_networks_that_a_limit_holds_back_are_listed_and_made_up_names_counted() {
    let rule = json!({"mode": "enforce", "free_failures": 1, "first_delay": "4s", "max_delay": "4s"});
    let per_network = json!({"mode": "enforce", "free_failures": 30, "first_delay": "4s", "max_delay": "4s"});
    let usher = Usher::start(
        Config::shared()
            .set("/limits/failed_logins", 100)
            .set("/log/client_address", "network")
            .set("/throttle/failed_logins_per_user", rule)
            .set("/throttle/failed_logins_per_prefix", per_network),
    );
    // The second guess waits, the third would have to wait too long.
    let guess = |name: &str| {
        let mut guessers = [0, 1, 2].map(|_| Imap::tls_from(HOME, usher.imaps_port()));
        guessers[0].login(name, "first").is("NO [AUTHENTICATIONFAILED]");
        guessers[1].send(format!("a LOGIN {name} second\r\n"));
        guessers[2].send(format!("a LOGIN {name} third\r\n"));
        usher.wait_log("login", |line| line["login"] == name && line["result"] == "limit");
    };
    guess("alice");
    let line = usher.wait_log("logins are held back by a limit", |line| line["user"] == "alice");
    assert_eq!(line["rule"], "failed_logins_per_user", "{line}");
    for number in 0..4 {
        guess(&format!("made-up-{number}"));
    }
    usher.wait_log("logins are held back by a limit", |line| line["unknown_names"] == true);
    let list = listed(&usher);
    assert_eq!(list.len(), 2, "{list:?}");
    assert_eq!((&list[0]["user"], &list[0]["reason"]), (&Value::Null, &json!("failed_logins_per_user")));
    assert!(list[0]["seen"].as_u64() >= Some(4) && list[1]["user"] == "alice", "{list:?}");
    let begun = |line: &&Value| line["message"] == "logins are held back by a limit";
    assert_eq!(usher.logged().iter().filter(begun).count(), 2, "one line for all names without an entry");
    assert!(list.iter().all(|one| one["until"].as_u64() >= one["since"].as_u64()), "{list:?}");

    // A network, by its own limit; of its address nothing more is shown than the log has.
    let mut guesser = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    for number in 0..30 {
        guesser.login(&format!("free-{number}"), "wrong").is("NO [AUTHENTICATIONFAILED]");
    }
    for number in 0..2 {
        Imap::tls_from(ELSEWHERE, usher.imaps_port()).send(format!("a LOGIN late-{number} wrong\r\n"));
    }
    let line = usher.wait_log("logins are held back by a limit", |line| line["network"] == "127.55.66.0/24");
    assert_eq!(line["rule"], "failed_logins_per_prefix", "{line}");
    let text = usher.command(&["status"]).succeeded().stdout;
    assert!(text.contains("held back    127.55.66.0/24: throttle.failed_logins_per_prefix"), "{text}");
    assert!(text.contains("held back    names without an entry: throttle.failed_logins_per_user"), "{text}");
    assert!(!text.contains("127.55.66.77") && !usher.log_text().contains("127.55.66.77"), "{text}");
}
