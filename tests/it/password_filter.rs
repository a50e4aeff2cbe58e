//! `directory.password_filter`: which users may log in with a password, whichever way the password comes in; and entries with
//! several passwords.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::client::base64;
use crate::kit::issuer::ScriptedIssuer;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::{SERVICE_DN, SERVICE_PASSWORD, SUFFIX, all_users};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Sieve, User, Usher, dovecot, password_of, relay, wait_limit};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";
const ATTRIBUTE: &str = "employeeType";
const FILTER: &str = "(employeeType=legacy)";
const WRONG: &str = "NO [AUTHENTICATIONFAILED]";

fn config(slapd: &Slapd) -> Config {
    Config::with_directory(slapd)
        .backend("server3", dovecot().imaps, &["server3"])
        .set("/directory/password_filter", FILTER)
        .set("/limits/failed_logins", 50)
        .set("/cache/ttl", "1h")
}

fn provider(modules: &[&str]) -> Slapd {
    let policy = if modules.contains(&"ppolicy") { "overlay ppolicy\n" } else { "" };
    Slapd::with(Options { modules, database: &format!("{SYNCPROV}{policy}"), ..Options::default() })
}

fn start(config: Config) -> Usher {
    let usher = Usher::start(config);
    usher.wait_log("LDAP change notification active", |_| true);
    usher
}

/// The backend is entered by its service account: it knows the main password alone.
fn by_service(config: Config) -> Config {
    config.file("server3.password", SERVICE_PASSWORD);
    config
        .set("/directory/login_attribute", "uid")
        .set("/routing/backends/0/service", json!({"login": "usher", "password_file": "server3.password"}))
}

/// Lets a user log in with a password, or not.
fn allow(slapd: &Slapd, name: &str, is_allowed: bool) {
    slapd.set(&User::new(name, None), ATTRIBUTE, is_allowed.then_some("legacy"));
}

/// One attempt of alice's: the tagged reply and the event.
fn attempt(usher: &Usher, password: &str) -> (String, Value) {
    let is_hers = |line: &&Value| line["message"] == "login" && line["login"] == "alice";
    let before = usher.logged().iter().filter(is_hers).count();
    let reply = Imap::tls(usher.imaps_port()).login("alice", password).tagged;
    (reply, usher.nth_login(before + 1, "alice"))
}

fn accepted(usher: &Usher) -> Value {
    let (reply, event) = attempt(usher, &password_of("alice"));
    assert!(reply.starts_with("OK"), "{reply}: {event}");
    event
}

fn refused(usher: &Usher) -> Value {
    let (reply, event) = attempt(usher, &password_of("alice"));
    let result = event["result"].as_str();
    assert_eq!((reply.starts_with(WRONG), result), (true, Some("password_not_allowed")), "{reply}: {event}");
    event
}

fn plain(user: &str, password: &str) -> String {
    base64(format!("\0{user}\0{password}").as_bytes())
}

#[test]
fn user_that_does_not_match_gets_the_reply_to_a_wrong_password_without_a_bind() {
    relay();
    let slapd = Slapd::private();
    let right = password_of("alice");
    // Each way in by a password; the last line of the reply.
    let said = |peer: &mut Imap, lines: &[String]| {
        let mut last = String::new();
        for line in lines {
            peer.send(format!("{line}\r\n"));
            last = peer.line();
        }
        last
    };
    let imap = |usher: &Usher, user: &str, password: &str, way: usize| {
        let mut peer = Imap::tls(usher.imaps_port());
        let (name, secret) = (base64(user.as_bytes()), base64(password.as_bytes()));
        match way {
            0 => peer.login(user, password).tagged,
            1 => peer.command(&format!("AUTHENTICATE PLAIN {}", plain(user, password))).tagged,
            _ => said(&mut peer, &["b AUTHENTICATE LOGIN".to_owned(), name, secret]).replacen("b ", "", 1),
        }
    };
    let usher = Usher::start(config(&slapd));
    for way in 0..3 {
        let reply = imap(&usher, "alice", &right, way);
        assert!(reply.starts_with(WRONG), "{way}: {reply}");
        assert_eq!([reply.clone(), reply], [imap(&usher, "alice", "x", way), imap(&usher, "missing", "x", way)]);
    }
    let event = usher.login("alice");
    assert_eq!((event["dn"].as_str(), event["level"].as_str()), (Some(ALICE), Some("INFO")), "{event}");
    assert_eq!((&event["result"], &event["by"]), (&json!("password_not_allowed"), &json!("directory")), "{event}");

    let usher = Usher::start(config(&slapd).speaking("pop3", &[dovecot().pop3s]).without("/routing/backends/0/imap"));
    let pop3 = |user: &str, password: &str| {
        let mut peer = Imap::tls(usher.imaps_port());
        let by_user = said(&mut peer, &[format!("USER {user}"), format!("PASS {password}")]);
        (by_user, said(&mut peer, &[format!("AUTH PLAIN {}", plain(user, password))]))
    };
    let reply = pop3("alice", &right);
    assert!(reply.0.starts_with("-ERR [AUTH]") && reply.0 == reply.1, "{reply:?}");
    assert_eq!((reply.clone(), reply), (pop3("alice", "x"), pop3("missing", "x")));

    let config_of = config(&slapd).speaking("submission", &[dovecot().submissions]);
    let usher = Usher::start(config_of.without("/routing/backends/0/imap"));
    let smtp = |user: &str, password: &str| {
        let mut peer = Imap::tls(usher.imaps_port());
        peer.send("EHLO here\r\n");
        while peer.line().as_bytes().get(3) == Some(&b'-') {}
        let by_plain = said(&mut peer, &[format!("AUTH PLAIN {}", plain(user, password))]);
        let (name, secret) = (base64(user.as_bytes()), base64(password.as_bytes()));
        (by_plain, said(&mut peer, &["AUTH LOGIN".to_owned(), name, secret]))
    };
    let reply = smtp("alice", &right);
    assert!(reply.0.starts_with("535 5.7.8 ") && reply.0 == reply.1, "{reply:?}");
    assert_eq!((reply.clone(), reply), (smtp("alice", "x"), smtp("missing", "x")));

    let config_of = config(&slapd).speaking("managesieve", &[dovecot().sieve]).without("/routing/backends/0/imap");
    let usher = Usher::start(config_of.set("/routing/backends/0/managesieve/tls", "starttls"));
    let sieve = |user: &str, password: &str| Sieve::tls(usher.imaps_port()).authenticate(user, password);
    let reply = sieve("alice", &right);
    assert!(reply.starts_with("NO"), "{reply}");
    assert_eq!((reply.clone(), reply), (sieve("alice", "x"), sieve("missing", "x")));

    let config_of = config(&slapd)
        .set("/auth_http", json!({"address": "127.0.0.1:0", "allow": ["127.0.0.1"]}))
        .set("/routing/backends/0/imap/auth_http", json!({"port": dovecot().imap}));
    let usher = Usher::start(config_of);
    let address = usher.wait_log("auth_http listening", |_| true)["address"].as_str().unwrap().to_owned();
    let nginx = |user: &str, password: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(wait_limit(Duration::from_secs(20)))).unwrap();
        let request = format!(
            "GET / HTTP/1.0\r\nHost: 127.0.0.1\r\nAuth-Method: plain\r\nAuth-User: {user}\r\nAuth-Pass: {password}\r\n\
             Auth-Protocol: imap\r\nAuth-Login-Attempt: 1\r\nClient-IP: 192.0.2.7\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let reply = nginx("alice", &right);
    assert!(!reply.contains("Auth-Status: OK"), "{reply}");
    assert_eq!((reply.clone(), reply), (nginx("alice", "x"), nginx("missing", "x")));
    assert!(usher.metric("usher_logins_total", &[("result", "password_not_allowed")]) >= 1.0);
    assert_eq!(slapd.binds(ALICE), 0, "{}", slapd.logged());
    allow(&slapd, "alice", true);
    assert!(nginx("alice", &right).contains("Auth-Status: OK"));
}

#[test]
fn edit_of_the_entry_takes_effect_at_the_next_login() {
    // With a policy the entry shows when its password changes: no other edit is taken for one of the password.
    for (watch, modules) in
        [("sync", &["syncprov"][..]), ("sync", &["syncprov", "ppolicy"]), ("poll", &["syncprov", "ppolicy"])]
    {
        let slapd = provider(modules);
        slapd.set(&User::new("alice", None), "userPassword", Some(&password_of("alice")));
        let config = config(&slapd).set("/directory/watch", watch).set("/directory/poll_interval", "1s");
        let usher = start(config.set("/throttle/failed_logins_per_prefix", json!({"mode": "dry_run"})));
        refused(&usher);
        allow(&slapd, "alice", true);
        assert_eq!(accepted(&usher)["by"], "directory", "a refusal is not remembered");
        let mut open = Imap::tls(usher.imaps_port());
        open.login("alice", &password_of("alice")).ok();
        assert_eq!(accepted(&usher)["by"], "cache");
        let forgotten = |cause: &str| usher.metric("usher_directory_changes_total", &[("kind", cause)]);
        let before = forgotten("other");
        let binds = slapd.binds(ALICE);
        allow(&slapd, "alice", false);
        usher.wait_metric("usher_directory_changes_total", &[("kind", "other")], before + 1.0);
        refused(&usher);
        assert_eq!(slapd.binds(ALICE), binds, "{watch}");
        assert!(open.command("NOOP").is("OK").untagged.is_empty(), "an open session goes on");
        allow(&slapd, "alice", true);
        accepted(&usher);
    }
}

#[test]
fn cached_password_that_may_not_be_used_any_more_lives_no_longer_than_the_cache() {
    const TTL: Duration = Duration::from_secs(1);
    let mut slapd = Slapd::private();
    allow(&slapd, "alice", true);
    let config = config(&slapd).set("/directory/watch", "off").set("/cache/ttl", "1s").set("/cache/stale", "1h");
    let usher = Usher::start(config.set("/directory/timeout", "2s"));
    accepted(&usher);
    allow(&slapd, "alice", false);
    let edited = Instant::now();
    while attempt(&usher, &password_of("alice")).0.starts_with("OK") {
        assert!(edited.elapsed() < TTL * 3, "still accepted after {:?}", edited.elapsed());
    }
    refused(&usher);
    // The directory's last word holds in an outage.
    slapd.stop();
    let (reply, event) = attempt(&usher, &password_of("alice"));
    assert_eq!(event["result"], "directory_unavailable", "{reply}: {event}");
}

#[test]
fn attempts_of_users_that_do_not_match_count_as_guesses() {
    let slapd = Slapd::private();
    let rule = json!({"mode": "enforce", "free_failures": 1, "first_delay": "100ms", "max_delay": "400ms"});
    for key in ["/throttle/failed_logins_per_prefix", "/throttle/failed_logins_per_user"] {
        let usher = Usher::start(config(&slapd).set(key, rule.clone()));
        refused(&usher);
        let delay = |password: &str| attempt(&usher, password).1["delay_ms"].as_f64();
        assert_eq!(delay("guess 1"), Some(100.0), "the refused right password was counted");
        assert_eq!(delay(&password_of("alice")), None, "a repetition is free, as with a wrong one");
        assert_eq!(delay("guess 2"), Some(200.0));
    }
    assert_eq!(slapd.binds(ALICE), 0);
}

#[test]
fn user_that_does_not_match_logs_in_with_a_token() {
    let slapd = provider(&["syncprov"]);
    let issuer = ScriptedIssuer::start();
    let config = issuer.configured(by_service(config(&slapd))).set("/directory/watch", "sync");
    let usher = start(config);
    let by_token = || {
        let message = format!("user=\x01auth=Bearer {}\x01\x01", issuer.token("alice@example.com"));
        let mut client = Imap::tls(usher.imaps_port());
        client.command(&format!("AUTHENTICATE XOAUTH2 {}", base64(message.as_bytes()))).ok();
        client
    };
    let mut open = by_token();
    for _ in 0..2 {
        refused(&usher);
        by_token();
    }
    allow(&slapd, "alice", true);
    accepted(&usher);
    allow(&slapd, "alice", false);
    usher.wait_metric("usher_directory_changes_total", &[("kind", "other")], 2.0);
    refused(&usher);
    by_token();
    assert!(open.command("NOOP").is("OK").untagged.is_empty());
}

#[test]
fn template_of_a_dn_needs_the_service_account_and_binds_no_user_that_does_not_match() {
    let slapd = Slapd::private();
    let template = "uid={login},ou=people,dc=example,dc=com";
    let config = config(&slapd).user_dn(template);
    config.write();
    let checked = command(&config, &["check"], b"");
    let said = format!("{}{}", checked.stdout, checked.stderr);
    assert!(checked.code != 0 && said.contains("directory.password_filter: needs `bind_dn`"), "{checked:?}");
    let account = config.set("/directory/bind_dn", SERVICE_DN).set("/directory/bind_password_file", "ldap.password");
    let usher = Usher::start(account);
    refused(&usher);
    assert_eq!(slapd.binds(ALICE), 0);
    // Neither is a name bound that has no entry, and its reply is the same.
    let wrong = attempt(&usher, "x").0;
    assert_eq!(Imap::tls(usher.imaps_port()).login("missing", "x").tagged, wrong);
    assert_eq!(usher.login("missing")["result"], "unknown_user");
    assert_eq!(slapd.binds("uid=missing,ou=people,dc=example,dc=com"), 0);
    allow(&slapd, "alice", true);
    accepted(&usher);
    assert_eq!(attempt(&usher, "x").1["result"], "wrong_password");
}

#[test]
fn check_counts_the_users_and_explain_names_the_reason() {
    // A group decides whether the attribute may be searched.
    let readers = format!(
        "dn: cn=readers,ou=services,{SUFFIX}\nobjectClass: groupOfNames\ncn: readers\nmember: {SERVICE_DN}\n\n"
    );
    let access = format!(
        "access to dn.subtree=\"ou=people,{SUFFIX}\" attrs={ATTRIBUTE} by \
         group.exact=\"cn=readers,ou=services,{SUFFIX}\" read by * none\n"
    );
    let slapd = Slapd::with(Options { access: &access, entries: &readers, ..Options::default() });
    for name in ["anna", "bob"] {
        allow(&slapd, name, true);
    }
    let config = config(&slapd).set("/limits/refusal_delay", "1s");
    config.write();
    let users = all_users().iter().filter(|user| user.ou != "closed").count();
    let shown = || command(&config, &["check", "--connect"], b"");
    let checked = shown();
    let counted = format!("2 of {users} users match password_filter, {} do not", users - 2);
    assert!(checked.stdout.contains(&counted), "{counted}: {checked:?}");
    let warned = format!("{}{}", checked.stdout, checked.stderr);
    assert!(warned.contains("directory.password_filter") && warned.contains("`tokens` has no issuer"), "{checked:?}");

    let explained = |name: &str, input: &str| {
        let words = if input.is_empty() { vec![] } else { vec!["--password-stdin"] };
        let words = [&["explain", name][..], &words].concat();
        let json = command(&config, &[&words[..], &["--json"]].concat(), input.as_bytes());
        let text = command(&config, &words, input.as_bytes()).stdout;
        let json: Value = serde_json::from_str(&json.stdout).unwrap();
        (json["result"].as_str().unwrap().to_owned(), json["may_use_password"].clone(), text)
    };
    let (result, may, text) = explained("alice", "");
    assert_eq!((result.as_str(), may), ("routed", json!(false)), "{text}");
    assert!(text.contains("refused: the entry does not match password_filter"), "{text}");
    let (result, may, text) = explained("alice", &password_of("alice"));
    assert_eq!((result.as_str(), may), ("password_not_allowed", json!(false)), "{text}");
    assert!(text.contains("its user cannot log in with a password"), "{text}");
    let (result, may, text) = explained("anna", &password_of("anna"));
    assert_eq!((result.as_str(), may), ("routed", json!(true)), "{text}");
    assert!(text.contains("allowed by password_filter"), "{text}");
    assert_eq!(slapd.binds(ALICE), 0);

    // A lost right to search the attribute opens nothing, and is visible.
    slapd.modify(&format!(
        "dn: cn=readers,ou=services,{SUFFIX}\nchangetype: modify\nreplace: member\nmember: cn=other\n"
    ));
    let checked = shown();
    assert!(checked.code != 0 && checked.stdout.contains(&format!("0 of {users} users match")), "{checked:?}");
    assert_eq!(explained("anna", &password_of("anna")).0, "password_not_allowed");
}

/// The attempt with this password.
fn login(usher: &Usher, password: &str) -> String {
    Imap::tls(usher.imaps_port()).login("alice", password).tagged
}

#[test]
fn deleted_app_password_ends_at_once_where_changes_are_followed() {
    for modules in [&["syncprov"][..], &["syncprov", "ppolicy"]] {
        let slapd = provider(modules);
        let config = by_service(config(&slapd)).without("/directory/password_filter").set("/directory/watch", "sync");
        let usher = start(config.set("/throttle/failed_logins_per_prefix", json!({"mode": "dry_run"})));
        let edit = |operation: &str| {
            slapd.modify(&format!(
                "dn: {ALICE}\nchangetype: modify\n{operation}: userPassword\nuserPassword: of the phone\n"
            ));
        };
        edit("add");
        // Both are cached together.
        for password in [&password_of("alice"), "of the phone", &password_of("alice"), "of the phone"] {
            assert!(login(&usher, password).starts_with("OK"), "{modules:?}");
        }
        let binds = slapd.binds(ALICE);
        for password in [&password_of("alice"), "of the phone"] {
            assert!(login(&usher, password).starts_with("OK"), "{modules:?}");
        }
        assert_eq!(slapd.binds(ALICE), binds);
        edit("delete");
        let deadline = Instant::now() + wait_limit(Duration::from_secs(20));
        while login(&usher, "of the phone").starts_with("OK") {
            assert!(Instant::now() < deadline, "{modules:?}: {}", usher.log_text());
        }
        assert!(login(&usher, "of the phone").starts_with(WRONG), "{modules:?}");
        assert!(login(&usher, &password_of("alice")).starts_with("OK"), "the other one stays: {modules:?}");
    }
}

#[test]
fn deleted_app_password_lives_no_longer_than_the_cache_where_changes_are_not_followed() {
    const TTL: Duration = Duration::from_secs(1);
    let slapd = Slapd::private();
    slapd.modify(&format!("dn: {ALICE}\nchangetype: modify\nadd: userPassword\nuserPassword: of the phone\n"));
    let config = by_service(config(&slapd)).without("/directory/password_filter");
    let usher = Usher::start(config.set("/directory/watch", "off").set("/cache/ttl", "1s"));
    for password in [&password_of("alice"), "of the phone"] {
        assert!(login(&usher, password).starts_with("OK"));
    }
    slapd.modify(&format!("dn: {ALICE}\nchangetype: modify\ndelete: userPassword\nuserPassword: of the phone\n"));
    let edited = Instant::now();
    while login(&usher, "of the phone").starts_with("OK") {
        assert!(edited.elapsed() < TTL * 3, "still accepted after {:?}", edited.elapsed());
    }
    assert!(login(&usher, &password_of("alice")).starts_with("OK"));
}
