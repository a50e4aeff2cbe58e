//! The networks that a user may log in from: judged for each client and attempt, whatever is cached, and applied to
//! sessions when an entry changes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::{SERVICE_DN, SUFFIX};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, User, Usher, dovecot, password_of, wait_limit};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";
/// In the networks of the user.
const HOME: [u8; 4] = [127, 0, 0, 1];
/// Not in them.
const AWAY: [u8; 4] = [127, 0, 9, 9];
/// The attribute of these tests: the schema has no better one.
const ATTRIBUTE: &str = "description";
const WRONG: &str = "NO [AUTHENTICATIONFAILED]";

fn provider() -> Slapd {
    Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, ..Options::default() })
}

fn config(slapd: &Slapd) -> Config {
    Config::with_directory(slapd)
        .backend("server3", dovecot().imaps, &["server3"])
        .set("/directory/networks_attribute", ATTRIBUTE)
        .set("/cache/ttl", "1h")
}

fn start(config: Config) -> Usher {
    let usher = Usher::start(config);
    usher.wait_log("LDAP change notification active", |_| true);
    usher
}

/// Replaces the values of a user.
fn set(slapd: &Slapd, name: &str, values: &[&str]) {
    let values: String = values.iter().map(|value| format!("{ATTRIBUTE}: {value}\n")).collect();
    let dn = User::new(name, None).dn();
    slapd.modify(&format!("dn: {dn}\nchangetype: modify\nreplace: {ATTRIBUTE}\n{values}"));
}

/// One attempt of alice's from this address: the tagged reply and the event.
fn attempt(usher: &Usher, from: [u8; 4], password: &str) -> (String, Value) {
    let is_hers = |line: &&Value| line["message"] == "login" && line["login"] == "alice";
    let before = usher.logged().iter().filter(is_hers).count();
    let reply = Imap::tls_from(from, usher.imaps_port()).login("alice", password).tagged;
    (reply, usher.nth_login(before + 1, "alice"))
}

fn accepted(usher: &Usher, from: [u8; 4]) -> Value {
    let (reply, event) = attempt(usher, from, &password_of("alice"));
    assert!(reply.starts_with("OK"), "{reply}: {event}");
    event
}

fn refused(usher: &Usher, from: [u8; 4], reason: &str) -> Value {
    let (reply, event) = attempt(usher, from, &password_of("alice"));
    assert_eq!((reply.starts_with(WRONG), event["result"].as_str()), (true, Some(reason)), "{reply}: {event}");
    event
}

#[test]
fn right_password_from_another_network_gets_the_reply_to_a_wrong_one() {
    let slapd = Slapd::private();
    set(&slapd, "alice", &["192.0.2.0/24", "127.0.0.0/24"]);
    let usher = Usher::start(config(&slapd));
    // Not cached, and cached.
    for by in ["directory", "cache"] {
        assert_eq!(accepted(&usher, HOME)["by"], by);
        let event = refused(&usher, AWAY, "network_not_allowed");
        assert_eq!((event["dn"].as_str(), event["level"].as_str()), (Some(ALICE), Some("INFO")), "{event}");
        assert_eq!(attempt(&usher, AWAY, "wrong").0, attempt(&usher, AWAY, &password_of("alice")).0);
    }
    assert_eq!(accepted(&usher, HOME)["by"], "cache", "never remembered as a wrong password");
    assert_eq!(usher.metric("usher_logins_total", &[("result", "network_not_allowed")]), 4.0);
    // Without a value: from everywhere.
    Imap::tls_from(AWAY, usher.imaps_port()).login("quote", &password_of("quote")).ok();
}

#[test]
fn value_that_is_no_network_keeps_the_user_out_and_is_named() {
    let slapd = Slapd::private();
    set(&slapd, "alice", &["127.0.0.0/8", "local"]);
    let usher = Usher::start(config(&slapd));
    let event = refused(&usher, HOME, "unusable_networks");
    let fault = "description has a value that is no address or network: \"local\"";
    assert_eq!((event["entry_fault"].as_str(), event["dn"].as_str()), (Some(fault), Some(ALICE)), "{event}");
    assert_eq!(event["level"], "WARN", "{event}");
    let explained = usher.command(&["explain", "alice"]);
    assert!(explained.stdout.contains("unusable_networks") && explained.stdout.contains(fault), "{explained:?}");
    let checked = command(&usher.config, &["check", "--connect", "--sample", "alice"], b"");
    assert!(checked.stdout.contains("no login from anywhere"), "{checked:?}");
    assert!(checked.stdout.contains("without `directory.canary`") || checked.stderr.contains("directory.canary"));
}

#[test]
fn explain_says_the_verdict_for_an_address() {
    let slapd = Slapd::private();
    set(&slapd, "alice", &["192.0.2.0/24,2001:db8::/32"]);
    let config = config(&slapd);
    config.write();
    for (from, code, result) in [
        ("192.0.2.9", 0, "routed"),
        ("::ffff:192.0.2.9", 0, "routed"),
        ("2001:db8::9", 0, "routed"),
        ("192.0.3.9", 77, "network_not_allowed"),
        ("::192.0.2.9", 77, "network_not_allowed"),
    ] {
        let said = command(&config, &["explain", "alice", "--from", from, "--json"], b"");
        let shown: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!((said.code, shown["result"].as_str()), (code, Some(result)), "{from}: {said:?}");
        assert_eq!(shown["networks"], json!(["192.0.2.0/24", "2001:db8::/32"]));
    }
    let text = command(&config, &["explain", "alice", "--from", "192.0.3.9"], b"").stdout;
    assert!(text.contains("the entry does not permit logins from 192.0.3.9"), "{text}");
    assert_ne!(command(&config, &["explain", "alice", "--from", "192.0.2.0/24"], b"").code, 0);
}

#[test]
fn narrowed_networks_end_the_sessions_from_elsewhere() {
    for watch in ["sync", "poll"] {
        let slapd = provider();
        let config = config(&slapd).set("/directory/watch", watch).set("/directory/poll_interval", "1s");
        let usher = start(config);
        let mut home = Imap::tls_from(HOME, usher.imaps_port());
        let mut away = Imap::tls_from(AWAY, usher.imaps_port());
        for imap in [&mut home, &mut away] {
            imap.login("alice", &password_of("alice")).ok();
        }
        set(&slapd, "alice", &["127.0.0.0/24"]);
        assert_eq!(away.line(), "* BYE Your account is no longer available from your network", "{watch}");
        away.expect_clean_end();
        usher.wait_metric("usher_sessions_ended_total", &[("cause", "network")], 1.0);
        assert_eq!(usher.metric("usher_directory_changes_total", &[("kind", "networks")]), 1.0);
        assert!(home.command("NOOP").is("OK").untagged.is_empty());
        refused(&usher, AWAY, "network_not_allowed");
        // What cannot be read permits no address.
        set(&slapd, "alice", &["127.0.0.0/24", "10/8"]);
        usher.wait_metric("usher_sessions_ended_total", &[("cause", "network")], 2.0);
        refused(&usher, HOME, "unusable_networks");
        set(&slapd, "alice", &[]);
        usher.wait_metric("usher_directory_changes_total", &[("kind", "networks")], 3.0);
        accepted(&usher, AWAY);
    }
}

#[test]
fn sessions_from_before_the_attribute_was_configured_end_too() {
    let slapd = provider();
    set(&slapd, "alice", &["127.0.0.0/24"]);
    let plain = config(&slapd).set("/directory/watch", "sync").without("/directory/networks_attribute");
    let mut usher = start(plain);
    let mut away = Imap::tls_from(AWAY, usher.imaps_port());
    away.login("alice", &password_of("alice")).ok();
    usher.config.change("/directory/networks_attribute", ATTRIBUTE);
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "network")], 1.0);
    refused(&usher, AWAY, "network_not_allowed");
}

/// A directory in which a group decides who reads the attribute.
fn with_readers(options: Options<'_>) -> Slapd {
    let readers = format!(
        "dn: cn=readers,ou=services,{SUFFIX}\nobjectClass: groupOfNames\ncn: readers\nmember: {SERVICE_DN}\n\n"
    );
    let access = format!(
        "access to dn.subtree=\"ou=people,{SUFFIX}\" attrs={ATTRIBUTE} by \
         group.exact=\"cn=readers,ou=services,{SUFFIX}\" read by * none\n"
    );
    Slapd::with(Options { access: &access, entries: &readers, ..options })
}

fn reads(slapd: &Slapd, member: &str) {
    let change = "changetype: modify\nreplace: member\nmember";
    slapd.modify(&format!("dn: cn=readers,ou=services,{SUFFIX}\n{change}: {member}\n"));
}

#[test]
fn lost_read_right_opens_no_user_where_a_canary_shows_the_attribute() {
    // Both attributes that a canary has to show beside its mail host.
    for (key, attribute) in [("/directory/networks_attribute", ATTRIBUTE), ("/directory/hold_attribute", ATTRIBUTE)] {
        let slapd = with_readers(Options::default());
        let config = config(&slapd)
            .without("/directory/networks_attribute")
            .set(key, attribute)
            .set("/directory/canary", json!({"login": "anna", "mail_host": "server3"}))
            .set("/directory/timeout", "2s");
        config.write();
        let shown = |config: &Config| command(config, &["check", "--connect"], b"");
        let checked = shown(&config);
        assert!(checked.code != 0 && checked.stdout.contains("shows no description"), "{checked:?}");
        set(&slapd, "anna", &["127.0.0.0/24"]);
        assert!(shown(&config).stdout.contains("shown as configured"), "{key}");
        set(&slapd, "alice", &["192.0.2.0/24"]);
        let usher = Usher::start(config.set("/directory/hold_timeout", "100ms"));
        let reason = if key.ends_with("hold_attribute") { "hold" } else { "network_not_allowed" };
        assert_eq!(attempt(&usher, HOME, &password_of("alice")).1["result"], reason);
        reads(&slapd, "cn=other");
        std::thread::sleep(Duration::from_millis(1_100)); // the validity of a canary check
        // The very first login: an answer without the attribute is not used.
        let (reply, event) = attempt(&usher, HOME, &password_of("alice"));
        assert_eq!(event["result"], "directory_unavailable", "{reply}: {event}");
        assert!(reply.starts_with("NO [UNAVAILABLE]"), "{reply}");
        usher.wait_log("directory server does not return the canary; not used", |line| {
            line["reason"] == format!("shows no {attribute}")
        });
        reads(&slapd, SERVICE_DN);
        usher.wait_metric("usher_directory_canary_ok", &[], 1.0);
        assert_eq!(attempt(&usher, HOME, &password_of("alice")).1["result"], reason);
    }
}

#[test]
fn networks_that_vanish_without_an_edit_are_kept() {
    let slapd = with_readers(Options { modules: &["syncprov"], database: SYNCPROV, ..Options::default() });
    set(&slapd, "alice", &["127.0.0.0/24"]);
    let config = config(&slapd).set("/directory/watch", "sync").set("/directory/timeout", "2s");
    let usher = start(config);
    accepted(&usher, HOME);
    reads(&slapd, "cn=other");
    // No canary: the watch has shown the values, and no edit since.
    let (reply, event) = attempt(&usher, AWAY, &password_of("alice"));
    assert_eq!(event["result"], "directory_unavailable", "{reply}: {event}");
    assert_eq!(usher.hup()["message"], "reloaded");
    assert_eq!(accepted(&usher, HOME)["by"], "cache");
    // Another edit while the right is missing changes nothing that could be judged: restored, they hold.
    reads(&slapd, SERVICE_DN);
    refused(&usher, AWAY, "network_not_allowed");
}

#[test]
fn attempts_from_elsewhere_count_as_guesses_and_do_not_slow_the_owner() {
    let slapd = Slapd::private();
    set(&slapd, "alice", &["127.0.0.0/24"]);
    let rule = json!({"mode": "enforce", "free_failures": 1, "first_delay": "100ms", "max_delay": "400ms"});
    let config = config(&slapd).set("/throttle/failed_logins_per_prefix", rule);
    let usher = Usher::start(config);
    accepted(&usher, HOME);
    // Each is a wrong password of another user of this network, by what the throttle sees.
    refused(&usher, AWAY, "network_not_allowed");
    let delay = |password: &str| attempt(&usher, AWAY, password).1["delay_ms"].as_f64();
    assert_eq!(delay("guess 1"), Some(100.0), "the refused right password was counted");
    assert_eq!(delay(&password_of("alice")), None, "a repetition is free, as with a wrong one");
    assert_eq!(delay("guess 2"), Some(200.0));
    let event = accepted(&usher, HOME);
    assert_eq!((event["by"].as_str(), event["delay_ms"].as_f64()), (Some("cache"), None), "{event}");
}

#[test]
fn nginx_clients_are_judged_by_their_own_address() {
    let slapd = Slapd::private();
    set(&slapd, "alice", &["192.0.2.0/24", "2001:db8::/32"]);
    let config = config(&slapd)
        .set("/auth_http", json!({"address": "127.0.0.1:0", "allow": ["127.0.0.1"]}))
        .set("/routing/backends/0/imap/auth_http", json!({"port": dovecot().imap}));
    let usher = Usher::start(config);
    let line = usher.wait_log("auth_http listening", |_| true);
    let address = line["address"].as_str().unwrap().to_owned();
    let ask = |client: &str, password: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(wait_limit(Duration::from_secs(20)))).unwrap();
        let request = format!(
            "GET / HTTP/1.0\r\nHost: 127.0.0.1\r\nAuth-Method: plain\r\nAuth-User: alice\r\nAuth-Pass: {password}\r\n\
             Auth-Protocol: imap\r\nAuth-Login-Attempt: 1\r\nClient-IP: {client}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let password = password_of("alice");
    for client in ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::7", "192.0.2.7"] {
        assert!(ask(client, &password).contains("Auth-Status: OK"), "{client}");
    }
    for client in ["198.51.100.7", "127.0.0.1", "2001:db9::7", "::192.0.2.7"] {
        assert_eq!(ask(client, &password), ask(client, "wrong"), "{client}");
        assert!(!ask(client, &password).contains("Auth-Status: OK"), "{client}");
    }
    let refused = usher.metric("usher_logins_total", &[("result", "network_not_allowed")]);
    assert_eq!(refused, 8.0);
}

#[test]
fn client_behind_a_proxy_is_judged_by_the_address_of_the_header() {
    let slapd = Slapd::private();
    set(&slapd, "alice", &["203.0.113.0/24", "2001:db8::/32"]);
    let config = config(&slapd).set("/listeners/0/proxy_header", "required").set("/listeners/0/trusted", "127.0.0.20");
    let usher = Usher::start(config);
    let login = |client: &str| {
        let (family, local) = if client.contains(':') { ("TCP6", "2001:db8::1") } else { ("TCP4", "192.0.2.1") };
        let header = format!("PROXY {family} {client} {local} 4711 993\r\n");
        let mut imap = Imap::with_header([127, 0, 0, 20], usher.imaps_port(), header.as_bytes());
        imap.login("alice", &password_of("alice")).tagged
    };
    for client in ["203.0.113.7", "2001:db8::7", "::ffff:203.0.113.7"] {
        assert!(login(client).starts_with("OK"), "{client}");
    }
    for client in ["203.0.114.7", "2001:db9::7", "::ffff:203.0.114.7", "::203.0.113.7", "64:ff9b::203.0.113.7"] {
        assert!(login(client).starts_with(WRONG), "{client}");
    }
}

#[test]
fn last_known_networks_hold_while_the_directory_is_down() {
    let mut slapd = Slapd::private();
    set(&slapd, "alice", &["127.0.0.0/24"]);
    let usher = Usher::start(config(&slapd).set("/cache/ttl", "100ms").set("/directory/timeout", "2s"));
    accepted(&usher, HOME);
    slapd.stop();
    std::thread::sleep(Duration::from_millis(150)); // the lifetime of the cached entry
    for _ in 0..2 {
        assert_eq!(accepted(&usher, HOME)["by"], "stale");
        for password in [password_of("alice"), "wrong".to_owned()] {
            let (reply, event) = attempt(&usher, AWAY, &password);
            assert_eq!(event["result"], "directory_unavailable", "{reply}: {event}");
        }
    }
}

#[test]
fn user_that_reads_its_own_entry_is_judged_as_well() {
    let slapd = Slapd::private();
    set(&slapd, "alice", &["127.0.0.0/24"]);
    let usher = Usher::start(config(&slapd).user_dn("uid={login},ou=people,dc=example,dc=com"));
    refused(&usher, AWAY, "network_not_allowed");
    accepted(&usher, HOME);
    refused(&usher, AWAY, "network_not_allowed");
}
