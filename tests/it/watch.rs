//! Live changes: an edit in the directory takes effect at once, for decisions, sessions and holds; and what
//! changes no value has no effect.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kit::process::run;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, ReplicaOf, SYNCPROV, Slapd};
use crate::kit::users::{SUFFIX, all_users};
use crate::kit::{Config, Imap, User, Usher, password_of};

/// The BYE sent to a client between commands.
/// The closing lines of a session, by what has changed.
const CLOSING_LINES: [&str; 3] = [
    "* BYE Your mailbox has moved, please reconnect",
    "* BYE Your password was changed, please log in again",
    "* BYE Your account is no longer available",
];
const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";

/// A followed directory, two mail servers, and usher.
struct Setup {
    slapd: Slapd,
    usher: Usher,
    _servers: [Scripted; 2],
    logins: RefCell<HashMap<String, usize>>,
}

/// A directory with change notification; `more` users as LDIF.
fn provider(entries: &str) -> Slapd {
    Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, entries, ..Options::default() })
}

/// The same with a password policy, and with each successful login recorded.
fn with_policy() -> Slapd {
    Slapd::with(Options {
        modules: &["syncprov", "ppolicy"],
        database: &format!(
            "lastbind on\n{SYNCPROV}overlay ppolicy\nppolicy_default \"cn=policy,ou=services,{SUFFIX}\"\n"
        ),
        entries: &format!(
            "dn: cn=policy,ou=services,{SUFFIX}\nobjectClass: device\nobjectClass: pwdPolicy\ncn: policy\n\
             pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 5\npwdFailureCountInterval: 1\n\n"
        ),
        ..Options::default()
    })
}

impl Setup {
    fn new() -> Self {
        Self::with(provider(""), |config| config)
    }

    fn with(slapd: Slapd, change: impl FnOnce(Config) -> Config) -> Self {
        let servers = [Scripted::accepting(), Scripted::accepting()];
        let config = Config::with_directory(&slapd)
            .backend("server3", servers[0].port, &["server3"])
            .backend("server4", servers[1].port, &["server4", "server4.example.com"])
            .set("/routing/backends/1/imap/server_name", "server3.example.com")
            .set("/directory/watch", "auto")
            .set("/cache/ttl", "1h");
        let usher = Usher::start(change(config));
        usher.wait_log("LDAP change notification active", |_| true);
        Self { slapd, usher, _servers: servers, logins: RefCell::default() }
    }

    /// Logs in and returns the name of the server.
    fn login(&self, name: &str) -> (Imap, String) {
        let mut imap = Imap::tls(self.usher.imaps_port());
        imap.login(name, &password_of(name)).ok();
        let event = self.event(name);
        (imap, event["backend"].as_str().unwrap().to_owned())
    }

    fn refused(&self, name: &str, password: &str, beginning: &str) {
        Imap::tls(self.usher.imaps_port()).login(name, password).is(beginning);
        self.event(name);
    }

    /// The event of the last login.
    fn event(&self, name: &str) -> Value {
        let mut logins = self.logins.borrow_mut();
        let nth = logins.entry(name.to_owned()).or_default();
        *nth += 1;
        self.usher.nth_login(*nth, name)
    }

    fn set(&self, name: &str, attribute: &str, value: Option<&str>) {
        self.slapd.set(&User::new(name, None), attribute, value);
    }

    fn moved(&self, dn: &str, to: &str) -> Value {
        self.usher.wait_log("route changed", |line| line["dn"] == dn && line["new_backend"] == to)
    }

    fn closed(&self, cause: &str, sessions: f64) {
        self.usher.wait_metric("usher_sessions_ended_total", &[("cause", cause)], sessions);
    }
}

fn dn(name: &str) -> String {
    User::new(name, None).dn()
}

/// This session received nothing, and still replies.
fn is_open(imap: &mut Imap) {
    let reply = imap.command("NOOP").is("OK did NOOP");
    assert!(reply.untagged.is_empty(), "{reply:?}");
}

fn has_ended(imap: &mut Imap) {
    let line = imap.line();
    assert!(CLOSING_LINES.contains(&line.as_str()), "{line}");
    imap.expect_clean_end();
}

#[test]
fn move_takes_effect_at_once_and_is_one_log_line() {
    let setup = Setup::new();
    let (mut alice, server) = setup.login("alice");
    let (mut anna, _) = setup.login("anna");
    assert_eq!(server, "server3");
    assert_eq!(setup.usher.metric("usher_directory_watch_connected", &[]), 1.0);
    setup.set("alice", "mailHost", Some("server4"));
    has_ended(&mut alice);
    assert_eq!(setup.login("alice").1, "server4");
    let line = setup.moved(ALICE, "server4");
    assert_eq!(
        (line["old_backend"].as_str(), line["modified_by"].as_str()),
        (Some("server3"), Some("cn=root,dc=example,dc=com")),
        "{line}"
    );
    assert!(line["modified"].as_str().unwrap().ends_with('Z'), "{line}");
    setup.closed("moved", 1.0);
    assert_eq!(setup.usher.metric("usher_directory_changes_total", &[("kind", "move")]), 1.0);
    is_open(&mut anna);
    // Another spelling of the same backend is no move; a removed value is one.
    setup.set("anna", "mailHost", Some("SERVER3."));
    setup.usher.wait_metric("usher_directory_changes_total", &[("kind", "other")], 1.0);
    is_open(&mut anna);
    setup.set("anna", "mailHost", None);
    has_ended(&mut anna);
    setup.moved(&dn("anna"), "none (no_mail_host)");
    setup.refused("anna", &password_of("anna"), "NO [CONTACTADMIN]");
}

#[test]
fn disabled_or_deleted_user_is_logged_out() {
    let setup = Setup::new();
    let (mut alice, _) = setup.login("alice");
    let (mut anna, _) = setup.login("anna");
    let (mut bob, _) = setup.login("bob");
    // Without a policy no schema of slapd has an attribute for it: the entry is an extensibleObject.
    setup.slapd.modify(&format!("dn: {}\nchangetype: delete\n", dn("anna")));
    has_ended(&mut anna);
    setup.refused("anna", &password_of("anna"), "NO [AUTHENTICATIONFAILED]");
    setup.closed("deleted", 1.0);
    setup.usher.wait_log("entry deleted", |line| line["dn"] == dn("anna"));
    is_open(&mut alice);
    is_open(&mut bob);

    let setup = Setup::with(with_policy(), |config| config);
    let (mut alice, _) = setup.login("alice");
    setup.set("alice", "pwdAccountLockedTime", Some("000001010000Z"));
    has_ended(&mut alice);
    setup.closed("disabled", 1.0);
    setup.refused("alice", &password_of("alice"), "NO");
    setup.set("alice", "pwdAccountLockedTime", None);
    setup.usher.wait_metric("usher_directory_changes_total", &[("kind", "enable")], 1.0);
    setup.login("alice");
}

#[test]
fn renamed_entry_keeps_its_sessions() {
    let setup = Setup::new();
    let (mut alice, _) = setup.login("alice");
    setup.slapd.modify(&format!("dn: {ALICE}\nchangetype: modrdn\nnewrdn: cn=alice\ndeleteoldrdn: 0\n"));
    setup.usher.wait_log("entry renamed", |line| line["old"] == ALICE);
    is_open(&mut alice);
    assert_eq!(setup.login("alice").1, "server3");
    // It is still the same user: changes under the new name affect the old session.
    let new = "cn=alice,ou=people,dc=example,dc=com";
    setup.slapd.modify(&format!("dn: {new}\nchangetype: modify\nreplace: mailHost\nmailHost: server4\n"));
    setup.moved(new, "server4");
    has_ended(&mut alice);
    assert_eq!(setup.login("alice").1, "server4");
}

#[test]
fn old_password_is_refused_and_sessions_end_as_configured() {
    for (choice, ends) in [("keep", false), ("close", true)] {
        let setup = Setup::with(with_policy(), |config| config.set("/directory/on_password_change", choice));
        let (mut alice, _) = setup.login("alice");
        setup.set("alice", "userPassword", Some("another"));
        setup.usher.wait_metric("usher_directory_changes_total", &[("kind", "password")], 1.0);
        setup.refused("alice", &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
        if ends {
            has_ended(&mut alice);
            setup.closed("password_changed", 1.0);
        } else {
            is_open(&mut alice);
        }
    }
    // If the directory does not record password changes, every modified user is verified again.
    let setup = Setup::new();
    let (mut alice, _) = setup.login("alice");
    setup.set("alice", "userPassword", Some("another"));
    setup.usher.wait_metric("usher_directory_changes_total", &[("kind", "unexplained")], 1.0);
    setup.refused("alice", &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
    is_open(&mut alice);
}

#[test]
fn sessions_continue_where_configured() {
    let setup = Setup::with(provider(""), |config| {
        config.set("/directory/on_move", "keep").set("/directory/on_disable", "keep")
    });
    let (mut alice, _) = setup.login("alice");
    let (mut anna, _) = setup.login("anna");
    setup.set("alice", "mailHost", Some("server4"));
    setup.slapd.modify(&format!("dn: {}\nchangetype: delete\n", dn("anna")));
    setup.moved(ALICE, "server4");
    setup.usher.wait_log("entry deleted", |_| true);
    assert_eq!(setup.login("alice").1, "server4", "new logins go to the new place");
    is_open(&mut alice);
    is_open(&mut anna);
}

#[test]
fn failed_logins_recorded_in_the_directory_end_no_session() {
    let setup = Setup::with(with_policy(), |config| config);
    let (mut alice, _) = setup.login("alice");
    let (url, before) = (setup.slapd.url(), setup.slapd.binds(ALICE));
    for _ in 0..10 {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let guess = ["-x", "-o", "nettimeout=20", "-H", &url, "-D", ALICE, "-w", "guess"];
                        assert_eq!(run("ldapwhoami", &guess, b"").code, 49);
                    }
                });
            }
        });
        is_open(&mut alice);
    }
    // A change of another user's value arrives after all of them.
    setup.login("anna");
    setup.set("anna", "mailHost", Some("server4"));
    setup.moved(&dn("anna"), "server4");
    assert!(setup.slapd.read(ALICE, &["pwdAccountLockedTime"]).contains("pwdAccountLockedTime: 2"), "locked out");
    assert_eq!(setup.slapd.binds(ALICE), before + 500);
    is_open(&mut alice);
    let mut imap = Imap::tls(setup.usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    assert_eq!(setup.event("alice")["by"], "cache");
    assert_eq!(setup.slapd.binds(ALICE), before + 500);
}

#[test]
fn hold_ends_sessions_and_defers_logins_until_released() {
    let setup = Setup::with(provider(""), |config| {
        config.set("/directory/hold_attribute", "description").set("/directory/hold_timeout", "4s")
    });
    let (mut alice, _) = setup.login("alice");
    setup.set("alice", "description", Some("being moved"));
    has_ended(&mut alice);
    setup.closed("hold", 1.0);
    let shown = setup.usher.command(&["sessions", "--user", "alice"]);
    assert!(shown.stdout.contains("0 sessions"), "{shown:?}");
    let explained = setup.usher.command(&["explain", "alice"]);
    assert!(explained.stdout.contains("held") && explained.stdout.contains("watch following"), "{explained:?}");

    // No login succeeds, and no reply says that the password is wrong.
    let began = Instant::now();
    setup.refused("alice", &password_of("alice"), "NO [UNAVAILABLE]");
    assert!(began.elapsed() >= Duration::from_millis(3_900), "{:?}", began.elapsed());

    let mut waiting = Imap::tls(setup.usher.imaps_port());
    waiting.send(format!("w LOGIN alice {}\r\n", password_of("alice")));
    setup.set("alice", "mailHost", Some("server4"));
    setup.set("alice", "description", None);
    let released = Instant::now();
    waiting.reply("w").ok();
    assert!(released.elapsed() < Duration::from_millis(900), "{:?}", released.elapsed());
    assert_eq!(setup.event("alice")["backend"], "server4");
}

#[test]
fn missed_changes_are_applied_after_reconnecting() {
    let mut setup = Setup::new();
    let (mut alice, _) = setup.login("alice");
    let (mut anna, _) = setup.login("anna");
    let (mut ben, _) = setup.login("ben");
    setup.slapd.stop();
    setup.usher.wait_metric("usher_directory_watch_connected", &[], 0.0);
    setup.slapd.modify_offline(&format!(
        "dn: {ALICE}\nchangetype: modify\nreplace: mailHost\nmailHost: server4\n\n\
         dn: {}\nchangetype: delete\n",
        dn("anna")
    ));
    setup.slapd.start_again();
    has_ended(&mut alice);
    has_ended(&mut anna);
    is_open(&mut ben);
    setup.usher.wait_log("watching the directory for changes", |line| line["resumed"] == true);
    setup.usher.wait_metric("usher_directory_watch_connected", &[], 1.0);
    assert_eq!(setup.login("alice").1, "server4");
    // Without a cookie the server sends a full refresh: a reload begins so.
    setup.set("ben", "mailHost", Some("server3"));
    has_ended(&mut ben);
    let (mut ben, server) = setup.login("ben");
    assert_eq!((server.as_str(), setup.usher.hup()["message"].as_str()), ("server3", Some("reloaded")));
    setup.usher.wait_nth_log(2, "watching the directory for changes", |line| line["resumed"] == false);
    is_open(&mut ben);
}

#[test]
fn changes_are_followed_at_once_and_resumed_after_a_long_outage() {
    let mut setup = Setup::new();
    let (mut alice, _) = setup.login("alice");
    setup.slapd.stop();
    setup.usher.wait_metric("usher_directory_watch_connected", &[], 0.0);
    setup.usher.wait_log("directory server marked down", |_| true);
    // One probe a second, and attempts at growing intervals: by then the next of these is seconds away.
    let url = setup.slapd.tls_url();
    let failed = [("server", &*url), ("operation", "connect"), ("code", "connection")];
    setup.usher.wait_metric_until("usher_directory_operations_total", &failed, |failed| failed >= 12.0);
    setup.slapd.modify_offline(&format!("dn: {ALICE}\nchangetype: modify\nreplace: mailHost\nmailHost: server4\n"));
    setup.slapd.start_again();
    let back = Instant::now();
    has_ended(&mut alice);
    assert!(back.elapsed() < Duration::from_secs(6), "{:?}", back.elapsed());
    setup.usher.wait_log("watching the directory for changes", |line| line["resumed"] == true);
    // Only the first connection has read everything.
    let whole = |log: &str| log.matches("resumed=false").count() + log.matches("\"resumed\":false").count();
    assert_eq!(whole(&setup.usher.log_text()), 1, "{}", setup.usher.log_text());
}

#[test]
fn frozen_directory_is_noticed() {
    let setup = Setup::new();
    setup.slapd.freeze();
    setup.usher.wait_metric("usher_directory_watch_connected", &[], 0.0);
    setup.slapd.thaw();
    setup.usher.wait_metric("usher_directory_watch_connected", &[], 1.0);
}

#[test]
fn lagging_replica_sends_no_user_to_the_old_server() {
    let first = provider("");
    let late = Slapd::with(Options { replica_of: Some(ReplicaOf::Every(5, &first)), ..Options::default() });
    let urls = [late.tls_url(), first.tls_url()];
    // Searches and binds go to the lagging server; only the other can be followed.
    let setup = Setup::with(first, |config| config.set("/directory/servers", urls.to_vec()));
    let (mut alice, _) = setup.login("alice");
    let (mut anna, _) = setup.login("anna");
    late.wait_for(ALICE, "mailHost: server3");
    setup.set("alice", "mailHost", Some("server4"));
    setup.slapd.modify(&format!("dn: {}\nchangetype: delete\n", dn("anna")));
    has_ended(&mut alice);
    has_ended(&mut anna);
    while late.read(ALICE, &["mailHost"]).contains("server3") {
        assert_eq!(setup.login("alice").1, "server4");
        setup.refused("anna", &password_of("anna"), "NO [AUTHENTICATIONFAILED]");
    }
    assert!(late.searches("alice") > 1, "it was asked again");
    // A user that usher has never seen.
    setup.set("bob", "mailHost", Some("server3"));
    setup.login("ben");
    setup.set("ben", "mailHost", Some("server3"));
    setup.moved(&dn("ben"), "server3");
    assert_eq!(setup.login("bob").1, "server3");
}

/// Users of one department.
fn department() -> (Vec<String>, String) {
    let names: Vec<String> = (1..=8).map(|n| format!("dept{n}")).collect();
    let ldif = names.iter().map(|name| User::new(name, Some("server3")).ldif()).collect();
    (names, ldif)
}

fn edit(names: &[String], host: &str) -> String {
    let change =
        |name: &String| format!("dn: {}\nchangetype: modify\nreplace: mailHost\nmailHost: {host}\n\n", dn(name));
    names.iter().map(change).collect()
}

#[test]
fn mass_move_waits_for_confirmation() {
    let (names, ldif) = department();
    let (known, strangers) = names.split_at(6);
    let setup = Setup::with(provider(&ldif), |config| config.set("/directory/brake", 3));
    known.iter().for_each(|name| assert_eq!(setup.login(name).1, "server3"));
    setup.slapd.modify(&edit(&names, "server4"));
    setup.usher.wait_metric("usher_directory_brake", &[], 6.0);
    let line = setup.usher.wait_log("route changed", |line| line["reverted_by_brake"] == true);
    assert_eq!(line["new_backend"], "server3");
    let alarms = setup.usher.logged().iter().filter(|line| line["level"] == "ERROR").count();
    assert_eq!(alarms, 1);
    let mut kept: Vec<Imap> = known
        .iter()
        .map(|name| {
            let (imap, server) = setup.login(name);
            assert_eq!(server, "server3", "{name}");
            imap
        })
        .collect();
    strangers.iter().for_each(|name| assert_eq!(setup.login(name).1, "server4", "{name}"));
    kept.iter_mut().for_each(is_open);
    let explained = setup.usher.command(&["explain", &known[0]]);
    assert!(explained.stdout.contains("stays at server3 until `usher confirm`"), "{explained:?}");
    assert!(explained.code == 0 && explained.stdout.contains("backend      server3\n"), "{explained:?}");

    let confirmed = setup.usher.command(&["confirm"]).succeeded();
    assert_eq!(confirmed.stdout, "6 changes applied\n");
    kept.iter_mut().for_each(has_ended);
    known.iter().for_each(|name| assert_eq!(setup.login(name).1, "server4", "{name}"));
    assert_eq!(setup.usher.metric("usher_directory_brake", &[]), 0.0);
}

#[test]
fn brake_is_released_when_the_values_are_restored() {
    let (names, ldif) = department();
    let setup = Setup::with(provider(&ldif), |config| config.set("/directory/brake", 3));
    let _sessions: Vec<_> = names.iter().map(|name| setup.login(name)).collect();
    setup.slapd.modify(&edit(&names, "server9"));
    setup.usher.wait_metric("usher_directory_brake", &[], 8.0);
    assert_eq!(setup.login("dept1").1, "server3");
    setup.slapd.modify(&edit(&names, "server3"));
    setup.usher.wait_metric("usher_directory_brake", &[], 0.0);
    setup.usher.wait_log("brake released: the directory is back in its previous state", |_| true);
    names.iter().for_each(|name| assert_eq!(setup.login(name).1, "server3", "{name}"));
}

#[test]
fn planned_move_is_confirmed_in_advance() {
    let (names, ldif) = department();
    let setup = Setup::with(provider(&ldif), |config| config.set("/directory/brake", 3));
    let mut sessions: Vec<_> = names.iter().map(|name| setup.login(name).0).collect();
    setup.usher.command(&["confirm", "--for", "30m"]).succeeded();
    setup.slapd.modify(&edit(&names, "server4"));
    sessions.iter_mut().for_each(has_ended);
    names.iter().for_each(|name| assert_eq!(setup.login(name).1, "server4", "{name}"));
    assert_eq!(setup.usher.metric("usher_directory_brake", &[]), 0.0);
}

#[test]
fn directory_without_change_notification_is_polled() {
    let slapd = Slapd::with(Options {
        database: "limits dn.exact=\"cn=usher,ou=services,dc=example,dc=com\" size=unlimited\n",
        ..Options::default()
    });
    let setup = Setup::with(slapd, |config| config.set("/directory/poll_interval", "1s"));
    setup.usher.wait_log("watching the directory for changes", |line| line["mode"] == "poll");
    let (mut alice, _) = setup.login("alice");
    let (mut anna, _) = setup.login("anna");
    let (mut ben, _) = setup.login("ben");
    setup.set("alice", "mailHost", Some("server4"));
    has_ended(&mut alice);
    assert_eq!(setup.login("alice").1, "server4");
    setup.slapd.modify(&format!("dn: {}\nchangetype: delete\n", dn("anna")));
    has_ended(&mut anna);
    is_open(&mut ben);
    assert_eq!(setup.slapd.searches("(uid=ben)"), 1, "no search is by name");
}

#[test]
fn sync_on_a_server_without_syncprov_is_never_reported_as_active() {
    // slapd lists the control as soon as the module is loaded, and refuses it without the overlay.
    for (modules, reason) in [(&[][..], "syncprov"), (&["syncprov"], "add `overlay syncprov`")] {
        let slapd = Slapd::with(Options { modules, ..Options::default() });
        let config = Config::with_directory(&slapd).scripted(&Scripted::accepting());
        let usher = Usher::start(config.set("/directory/watch", "sync"));
        let line = usher.wait_log("LDAP change notification lost", |_| true);
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(usher.metric("usher_directory_watch_connected", &[]), 0.0);
        let status: Value = serde_json::from_str(&usher.command(&["status", "--json"]).stdout).unwrap();
        assert_eq!(status["directories"][0]["watch"], "lost", "{status}");
        for message in ["LDAP change notification active", "watching the directory for changes"] {
            assert!(usher.logged().iter().all(|line| line["message"] != message), "{message}");
        }
        // Logins do not depend on it.
        Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    }
}

/// Stops the clients of a test, also when it fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn logins_go_to_the_new_server_a_second_after_the_edit() {
    let setup = Setup::new();
    let people: Vec<User> =
        all_users().into_iter().filter(|person| person.mail_host == Some("server3")).take(4).collect();
    let (over, mut found) = (AtomicBool::new(false), Vec::new());
    let clients_end = StopOnDrop(&over);
    std::thread::scope(|scope| {
        let _clients_end = clients_end;
        for person in &people {
            let (port, over) = (setup.usher.imaps_port(), &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut imap = Imap::tls(port);
                    imap.login(&person.uid, &person.password).ok();
                    drop(imap.try_send("x LOGOUT\r\n"));
                }
            });
        }
        people.iter().for_each(|person| drop(setup.usher.login(&person.uid)));
        for host in ["server4", "server3", "server4"] {
            for person in &people {
                setup.slapd.set(person, "mailHost", Some(host));
            }
            let edited = Instant::now();
            std::thread::sleep(Duration::from_secs(1).saturating_sub(edited.elapsed()));
            let before = setup.usher.logged().len();
            std::thread::sleep(Duration::from_secs(1));
            let logged = setup.usher.logged();
            let later: Vec<&Value> = logged[before..].iter().filter(|line| line["message"] == "login").collect();
            let late: Vec<_> = later.iter().filter(|line| line["backend"] != host).collect();
            found.push((later.len(), format!("{late:?}")));
        }
    });
    for (logins, late) in found {
        assert!(logins > 0, "no login succeeded");
        assert_eq!(late, "[]");
    }
}
