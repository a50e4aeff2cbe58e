//! A replica that lags behind the followed server accepts no user that a change has disabled, and
//! a server that is restored or hides entries causes no wrong decision.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, ReplicaOf, SYNCPROV, Slapd};
use crate::kit::users::{SERVICE_DN, SUFFIX};
use crate::kit::{Config, Imap, User, Usher, password_of, wait_limit};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";
const PERMANENT: &str = "000001010000Z";

/// Enforces pwdAccountLockedTime.
const POLICY: &str = "overlay ppolicy\nppolicy_default \"cn=policy,ou=services,dc=example,dc=com\"\n";

/// A provider with a password policy and additional database settings.
fn provider(access: &str, entries: &str) -> Slapd {
    let database = format!("{SYNCPROV}{POLICY}");
    let policy =
        "objectClass: device\nobjectClass: pwdPolicy\ncn: policy\npwdAttribute: userPassword\npwdLockout: TRUE\n";
    let entries = &format!("dn: cn=policy,ou=services,{SUFFIX}\n{policy}\n{entries}");
    Slapd::with(Options {
        modules: &["syncprov", "ppolicy"],
        database: &database,
        access,
        entries,
        ..Options::default()
    })
}

/// Its replica, which polls once and not again during a test.
fn lagging(provider: &Slapd) -> Slapd {
    let follows = Some(ReplicaOf::Every(59, provider));
    Slapd::with(Options { modules: &["ppolicy"], database: POLICY, replica_of: follows, ..Options::default() })
}

fn dn(name: &str) -> String {
    User::new(name, None).dn()
}

/// usher with these servers.
struct Setup {
    usher: Usher,
    _backends: [Scripted; 2],
}

impl Setup {
    fn new(servers: &[&Slapd], change: impl FnOnce(Config) -> Config) -> Self {
        let backends = [Scripted::accepting(), Scripted::accepting()];
        let urls: Vec<String> = servers.iter().map(|server| server.tls_url()).collect();
        let config = Config::with_directory(servers[0])
            .backend("server3", backends[0].port, &["server3"])
            .backend("server4", backends[1].port, &["server4", "server4.example.com"])
            .set("/routing/backends/1/imap/server_name", "server3.example.com")
            .set("/directory/servers", urls)
            .set("/directory/watch", "auto")
            .set("/cache/ttl", "1h")
            .set("/throttle", json!({"exempt": ["127.0.0.0/8"]}))
            .set("/limits/failed_logins", 100);
        let usher = Usher::start(change(config));
        usher.wait_log("LDAP change notification active", |_| true);
        Self { usher, _backends: backends }
    }

    /// One attempt: the reply and the event.
    fn attempt(&self, name: &str, password: &str) -> (String, Value) {
        let events =
            |lines: &[Value]| lines.iter().filter(|line| line["message"] == "login" && line["login"] == name).count();
        let before = events(&self.usher.logged());
        let mut imap = Imap::tls(self.usher.imaps_port());
        let reply = imap.login(name, password);
        (reply.tagged.clone(), self.usher.nth_login(before + 1, name))
    }

    fn login(&self, name: &str) -> Imap {
        let mut imap = Imap::tls(self.usher.imaps_port());
        imap.login(name, &password_of(name)).ok();
        imap
    }

    fn refused(&self, name: &str, password: &str, beginning: &str) -> Value {
        let (text, event) = self.attempt(name, password);
        assert!(text.starts_with(beginning), "{text}: {event}");
        event
    }

    fn accepted(&self, name: &str, password: &str) -> Value {
        let (text, event) = self.attempt(name, password);
        assert!(text.starts_with("OK"), "{text}: {event}");
        event
    }

    /// Waits until the watch has reported this many changes of a kind.
    fn shown(&self, kind: &str, count: f64) {
        self.usher.wait_metric("usher_directory_changes_total", &[("kind", kind)], count);
    }
}

fn set(slapd: &Slapd, name: &str, attribute: &str, value: Option<&str>) {
    slapd.set(&User::new(name, None), attribute, value);
}

/// How usher comes to query the replica: round robin, or the replica first.
fn balances() -> [(&'static str, bool); 2] {
    [("round_robin", false), ("first", true)]
}

#[test]
fn disabled_user_is_refused_although_a_replica_lags() {
    for (balance, replica_first) in balances() {
        let first = provider("", "");
        let late = lagging(&first);
        let servers = if replica_first { [&late, &first] } else { [&first, &late] };
        let setup = Setup::new(&servers, |config| config.set("/directory/balance", balance));
        let mut alice = setup.login("alice");
        set(&first, "alice", "pwdAccountLockedTime", Some(PERMANENT));
        alice.line();
        setup.shown("disable", 1.0);
        let before = late.binds(ALICE);
        for _ in 0..15 {
            setup.refused("alice", &password_of("alice"), "NO");
        }
        assert!(!late.read(ALICE, &["pwdAccountLockedTime"]).contains(PERMANENT), "it lags");
        assert_eq!(late.binds(ALICE), before, "{balance}: no password goes there");
        // Nothing was cached: once it is undone, she can log in again.
        set(&first, "alice", "pwdAccountLockedTime", None);
        setup.shown("enable", 1.0);
        setup.accepted("alice", &password_of("alice"));
    }
}

#[test]
fn old_password_is_refused_and_not_cached_although_a_replica_lags() {
    for (balance, replica_first) in balances() {
        let first = provider("", "");
        let late = lagging(&first);
        let servers = if replica_first { [&late, &first] } else { [&first, &late] };
        let setup = Setup::new(&servers, |config| config.set("/directory/balance", balance));
        setup.login("alice");
        set(&first, "alice", "userPassword", Some("another"));
        setup.shown("password", 1.0);
        let before = late.binds(ALICE);
        for _ in 0..15 {
            setup.refused("alice", &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
        }
        let event = setup.accepted("alice", "another");
        assert_eq!(event["by"], "directory", "{event}");
        assert_eq!(setup.accepted("alice", "another")["by"], "cache");
        setup.refused("alice", &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
        assert_eq!(late.binds(ALICE), before, "{balance}");
    }
}

#[test]
fn user_first_seen_by_a_change_is_checked_against_it() {
    let first = provider("", "");
    let late = lagging(&first);
    let setup = Setup::new(&[&late, &first], |config| config);
    set(&first, "bob", "pwdAccountLockedTime", Some(PERMANENT));
    set(&first, "ben", "userPassword", Some("another"));
    // Arrives after the others.
    setup.login("anna");
    set(&first, "anna", "mailHost", Some("server4"));
    setup.shown("move", 1.0);
    setup.refused("bob", &password_of("bob"), "NO");
    setup.refused("ben", &password_of("ben"), "NO [AUTHENTICATIONFAILED]");
    setup.accepted("ben", "another");
    assert_eq!((late.binds(&dn("bob")), late.binds(&dn("ben"))), (0, 0));
}

#[test]
fn changed_user_dn_entry_is_bound_on_a_server_with_the_change() {
    let first = provider("", "");
    let late = lagging(&first);
    let setup = Setup::new(&[&late, &first], |config| {
        config
            .without("/directory/base")
            .without("/directory/filter")
            .set("/directory/user_dn", format!("uid={{login}},ou=people,{SUFFIX}"))
    });
    setup.login("alice");
    setup.login("anna");
    assert_eq!((late.binds(ALICE), first.binds(ALICE)), (1, 0));
    set(&first, "alice", "userPassword", Some("another"));
    setup.shown("password", 1.0);
    set(&first, "anna", "pwdAccountLockedTime", Some(PERMANENT));
    setup.shown("disable", 1.0);
    for _ in 0..5 {
        setup.refused("alice", &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
        // Another spelling gives the same entry.
        setup.refused("ALICE", &password_of("alice"), "NO [AUTHENTICATIONFAILED]");
        setup.refused("anna", &password_of("anna"), "NO");
    }
    setup.accepted("ALICE", "another");
    assert_eq!((late.binds(ALICE), late.binds(&dn("anna"))), (1, 1));
    // An unchanged user is bound at the next server in turn.
    setup.login("ben");
    assert_eq!(late.binds(&dn("ben")), 1);
}

#[test]
fn newest_version_decides_when_every_server_lags() {
    let mut first = provider("", "");
    let late = lagging(&first);
    let setup = Setup::new(&[&late, &first], |config| {
        config.set("/directory/timeout", "2s").set("/directory/hold_attribute", "description").set("/cache/stale", "0s")
    });
    for name in ["alice", "anna", "ben"] {
        setup.login(name);
    }
    set(&first, "alice", "userPassword", Some("another"));
    set(&first, "anna", "pwdAccountLockedTime", Some(PERMANENT));
    set(&first, "ben", "description", Some("being moved"));
    setup.shown("hold", 1.0);
    first.stop();
    setup.usher.wait_metric("usher_directory_watch_connected", &[], 0.0);
    let binds = |name: &str| late.binds(&dn(name));
    let before = (binds("alice"), binds("anna"), binds("ben"));
    for password in [&password_of("alice"), "another", "wrong"] {
        let event = setup.refused("alice", password, "NO [UNAVAILABLE]");
        assert_eq!(event["result"], "directory_unavailable", "{event}");
    }
    let event = setup.refused("anna", &password_of("anna"), "NO");
    assert_eq!(event["result"], "account_disabled", "{event}");
    let event = setup.refused("ben", &password_of("ben"), "NO [UNAVAILABLE]");
    assert_eq!(event["result"], "hold", "{event}");
    assert_eq!((binds("alice"), binds("anna"), binds("ben")), before);
    // Other users continue.
    setup.accepted("bob", &password_of("bob"));
    first.start_again();
    setup.usher.wait_metric("usher_directory_watch_connected", &[], 1.0);
    setup.accepted("alice", "another");
}

#[test]
fn hold_counts_during_the_brake_although_a_replica_lags() {
    let names: Vec<String> = (1..=8).map(|n| format!("dept{n}")).collect();
    let ldif: String = names.iter().map(|name| User::new(name, Some("server3")).ldif()).collect();
    let first = provider("", &ldif);
    let late = lagging(&first);
    late.wait_for(&dn("dept8"), "uid: dept8");
    let setup = Setup::new(&[&late, &first], |config| {
        config
            .set("/directory/brake", 3)
            .set("/directory/hold_attribute", "description")
            .set("/directory/hold_timeout", "200ms")
    });
    names.iter().for_each(|name| drop(setup.login(name)));
    for name in &names {
        set(&first, name, "mailHost", Some("server4"));
    }
    setup.usher.wait_metric("usher_directory_brake", &[], 8.0);
    for name in &names {
        set(&first, name, "description", Some("being moved"));
    }
    setup.shown("hold", 8.0);
    for name in &names {
        let event = setup.refused(name, &password_of(name), "NO [UNAVAILABLE]");
        assert_eq!(event["result"], "hold", "{event}");
    }
}

#[test]
fn restored_provider_is_accepted_with_one_warning() {
    let mut first = provider("", "");
    let setup = Setup::new(&[&first], |config| config);
    let names = ["alice", "anna", "quote"];
    names.iter().for_each(|name| drop(setup.login(name)));
    first.stop();
    first.back_up();
    first.start_again();
    setup.usher.wait_metric("usher_directory_watch_connected", &[], 1.0);
    for name in names {
        set(&first, name, "mailHost", Some("server4"));
    }
    first.modify(&format!("dn: {}\nchangetype: delete\n", dn("ben")));
    setup.shown("move", 3.0);
    first.stop();
    first.restore();
    first.start_again();
    // The values are restored.
    setup.shown("move", 6.0);
    let line = "directory returns older versions of entries, as after a restore; they take effect";
    let warning = setup.usher.wait_log(line, |_| true);
    assert_eq!((warning["entries"].as_u64(), warning["level"].as_str()), (Some(3), Some("WARN")), "{warning}");
    for name in names {
        assert_eq!(setup.accepted(name, &password_of(name))["backend"], "server3");
    }
    setup.accepted("ben", &password_of("ben"));
    let warnings = setup.usher.logged().iter().filter(|shown| shown["message"] == line).count();
    assert_eq!(warnings, 1);
    // Later changes are seen.
    set(&first, "alice", "mailHost", Some("server4"));
    setup.shown("move", 7.0);
    assert_eq!(setup.accepted("alice", &password_of("alice"))["backend"], "server4");
}

#[test]
fn lost_access_rule_sends_no_tracked_user_to_the_default() {
    let hosts =
        format!("dn: cn=hosts,ou=services,{SUFFIX}\nobjectClass: groupOfNames\ncn: hosts\nmember: {SERVICE_DN}\n\n");
    let access = format!(
        "access to dn.subtree=\"ou=people,{SUFFIX}\" attrs=mailHost by group=\"cn=hosts,ou=services,{SUFFIX}\" read by * none\n"
    );
    let first = provider(&access, &hosts);
    let setup =
        Setup::new(&[&first], |config| config.set("/routing/default", "server4").set("/directory/timeout", "2s"));
    let names = ["alice", "anna", "quote", "space", "gruen"];
    let mut sessions: Vec<Imap> = names.iter().map(|name| setup.login(name)).collect();
    let member = |dn: &str| {
        first
            .modify(&format!("dn: cn=hosts,ou=services,{SUFFIX}\nchangetype: modify\nreplace: member\nmember: {dn}\n"));
    };
    member("cn=other");
    // Another of their passwords, which is not cached.
    for name in names {
        let event = setup.refused(name, "wrong", "NO [UNAVAILABLE]");
        assert_eq!(event["result"], "directory_unavailable", "{event}");
    }
    let warned = |line: &Value| {
        line["level"] == "WARN" && line["reason"].as_str().is_some_and(|text| text.contains("returns no mail host"))
    };
    setup.usher.wait_log("directory lookup failed", warned);
    // A full refresh is sent, in which nothing was modified.
    assert_eq!(setup.usher.hup()["message"], "reloaded");
    let line = "entries have no visible mail host or networks any more and were not modified: check the access rules; \
                their previous values are kept";
    let warning = setup.usher.wait_log(line, |_| true);
    assert_eq!(warning["entries"].as_u64(), Some(5), "{warning}");
    assert_eq!(setup.usher.metric("usher_directory_changes_total", &[("kind", "move")]), 0.0);
    for imap in &mut sessions {
        assert!(imap.command("NOOP").is("OK did NOOP").untagged.is_empty());
    }
    // Access is restored; and a mail host that is really removed counts as removed.
    member(SERVICE_DN);
    setup.refused("alice", "wrong", "NO [AUTHENTICATIONFAILED]");
    set(&first, "alice", "mailHost", None);
    setup.shown("move", 1.0);
    assert_eq!(setup.accepted("alice", &password_of("alice"))["backend"], "server4");
}

#[test]
fn lag_is_measured_by_each_probe() {
    let first = provider("", "");
    let late = lagging(&first);
    let setup = Setup::new(&[&first, &late], |config| config);
    let lag = |server: &Slapd| setup.usher.metric("usher_directory_lag_seconds", &[("server", &server.tls_url())]);
    let deadline = Instant::now() + wait_limit(Duration::from_secs(60));
    // The first probe of each server makes its series. A metric offers no event to wait for.
    let measured =
        || setup.usher.metrics().keys().filter(|series| series.starts_with("usher_directory_lag_seconds")).count();
    while measured() < 2 {
        assert!(Instant::now() < deadline, "{:?}", setup.usher.metrics());
        std::thread::sleep(Duration::from_millis(100));
    }
    set(&first, "alice", "mailHost", Some("server4"));
    // A metric offers no event to wait for.
    while lag(&late) <= 0.0 {
        assert!(Instant::now() < deadline, "{:?}", setup.usher.metrics());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(lag(&first), 0.0);
    assert!(setup.usher.http("/").1.contains(">Lag</th>"), "{}", setup.usher.http("/").1);
}
