//! Refused logins, their replies, and what never reaches the directory.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::client::base64;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::Slapd;
use crate::kit::{Config, Imap, User, Usher, password_of};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";

#[test]
fn wrong_passwords_and_unknown_users_get_the_same_reply() {
    let usher = Usher::start(Config::shared().set("/limits/failed_logins", 20));
    let mut imap = Imap::tls(usher.imaps_port());
    let attempts = [
        ("alice", "wrong", "wrong_password"),
        ("unknown", "wrong", "unknown_user"),
        ("alice", "", "empty_password"),
        ("", "wrong", "invalid_username"),
    ];
    let replies = attempts.map(|(login, password, result)| {
        let reply = imap.login(login, password).is("NO [AUTHENTICATIONFAILED]");
        assert!(reply.untagged.is_empty(), "{reply:?}");
        assert_eq!(usher.login(login)["result"], if login == "alice" { "wrong_password" } else { result });
        assert_eq!(usher.metric("usher_logins_total", &[("result", result)]), 1.0, "{result}");
        reply.tagged
    });
    assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:?}");
    // The connection stays usable after any number of refusals.
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn empty_password_never_reaches_the_directory() {
    // This slapd accepts an empty password, as RFC 4513 section 5.1.2 allows.
    let (slapd, backend) = (Slapd::private(), Scripted::accepting());
    let usher = Usher::start(Config::with_directory(&slapd).scripted(&backend).set("/limits/failed_logins", 20));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.command("LOGIN alice \"\"").is("NO [AUTHENTICATIONFAILED]");
    imap.send("a LOGIN alice {0+}\r\n\r\n");
    imap.reply("a").is("NO [AUTHENTICATIONFAILED]");
    imap.authenticate("", "alice", b"").is("NO [AUTHENTICATIONFAILED]");
    imap.send(format!("b AUTHENTICATE LOGIN {}\r\n", base64(b"alice")));
    assert!(imap.line().starts_with("+ "));
    imap.send("\r\n");
    imap.reply("b").is("NO [AUTHENTICATIONFAILED]");
    imap.command("LOGIN \"\" \"\"").is("NO [AUTHENTICATIONFAILED]");
    imap.command("LOGIN \"\" secret").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(slapd.binds(ALICE), 0, "{}", slapd.logged());
    assert_eq!(slapd.searches("alice"), 0, "{}", slapd.logged());
    imap.login("alice", &password_of("alice")).ok();
    assert_eq!(slapd.binds(ALICE), 1, "{}", slapd.logged());
    assert_eq!(backend.connections(), 1);
}

#[test]
fn credentials_that_no_bind_can_carry_are_refused_before_it() {
    let (slapd, backend) = (Slapd::private(), Scripted::accepting());
    let usher = Usher::start(Config::with_directory(&slapd).scripted(&backend).set("/limits/failed_logins", 50));
    let mut imap = Imap::tls(usher.imaps_port());
    for password in [&b"alice-secret\0"[..], b"\0alice-secret", b"\xff\0"] {
        imap.send([format!("a LOGIN alice {{{}+}}\r\n", password.len()).as_bytes(), password, b"\r\n"].concat());
        imap.reply("a").is("NO [AUTHENTICATIONFAILED]");
    }
    assert_eq!(usher.metric("usher_logins_total", &[("result", "unusable_password")]), 3.0);
    for name in [&b"alice\0"[..], b"\0", b"alice\r\n", b"ali\x01ce", b"alice\x7f", b"alice\xff", &[b'a'; 2_000]] {
        imap.send([format!("a LOGIN {{{}+}}\r\n", name.len()).as_bytes(), name, b" secret\r\n"].concat());
        imap.reply("a").is("NO [AUTHENTICATIONFAILED]");
    }
    assert_eq!(usher.metric("usher_logins_total", &[("result", "invalid_username")]), 7.0);
    assert_eq!((slapd.binds(ALICE), slapd.searches("uid")), (0, 0), "{}", slapd.logged());
}

#[test]
fn acting_as_another_user_is_refused() {
    let usher = Usher::start(Config::shared());
    let mut imap = Imap::tls(usher.imaps_port());
    imap.authenticate("bob", "alice", password_of("alice").as_bytes()).is("NO [AUTHORIZATIONFAILED]");
    assert_eq!(usher.login("alice")["result"], "authzid_not_allowed");
    imap.authenticate("alice", "alice", password_of("alice").as_bytes()).ok();
}

#[test]
fn user_without_a_usable_mail_host_gets_a_clear_refusal() {
    let usher = Usher::start(Config::shared());
    for (login, result, mail_host) in [("carol", "no_mail_host", None), ("dave", "unknown_mail_host", Some("server9"))]
    {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login(login, "wrong").is("NO [AUTHENTICATIONFAILED]");
        imap.login(login, &password_of(login)).is("NO [CONTACTADMIN]");
        let event = usher.nth_login(2, login);
        assert_eq!(event["result"], result, "{event}");
        assert_eq!(event["mail_host"].as_str(), mail_host, "{event}");
        assert_eq!(usher.metric("usher_logins_total", &[("result", result)]), 1.0);
        imap.login("alice", &password_of("alice")).ok();
    }
}

#[test]
fn several_mail_hosts_are_no_route_unless_they_are_one_backend() {
    let usher = Usher::start(Config::shared().set("/directory/mail_host_attribute", "host"));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("erin", &password_of("erin")).is("NO [CONTACTADMIN]");
    assert_eq!(usher.login("erin")["result"], "several_mail_hosts");
    imap.login("frank", &password_of("frank")).ok();
    assert_eq!(usher.login("frank")["backend"], "server3");
}

#[test]
fn default_backend_applies_only_without_the_attribute() {
    let usher = Usher::start(Config::shared().set("/routing/default", "server3"));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("dave", &password_of("dave")).is("NO [CONTACTADMIN]");
    imap.login("carol", &password_of("carol")).ok();
    assert_eq!(usher.login("carol")["backend"], "server3");
    assert_eq!(usher.metric("usher_decisions_total", &[("by", "default")]), 1.0);
}

#[test]
fn login_attribute_without_exactly_one_value_is_a_refusal() {
    let (slapd, backend) = (Slapd::private(), Scripted::accepting());
    slapd.add(&User { mails: &["one@example.com", "two@example.com"], ..User::new("zoe", Some("server3")) });
    slapd.add(&User { mails: &["max@example.com"], ..User::new("max", Some("server3")) });
    let config = Config::with_directory(&slapd).scripted(&backend).set("/directory/login_attribute", "mail");
    let usher = Usher::start(config);
    let mut imap = Imap::tls(usher.imaps_port());
    for login in ["zoe", "bob"] {
        // bob has no mail attribute; server4 is added as a backend, so that only that attribute matters.
        slapd.set(&User::new(login, None), "mailHost", Some("server3"));
        imap.login(login, &password_of(login)).is("NO [CONTACTADMIN]");
        assert_eq!(usher.login(login)["result"], "no_backend_login");
    }
    imap.login("max", &password_of("max")).ok();
    assert_eq!(backend.next_login(), format!("\0max@example.com\0{}", password_of("max")));
}

#[test]
fn protocol_permission_is_revealed_only_after_a_valid_password() {
    let (slapd, backend) = (Slapd::private(), Scripted::accepting());
    for (uid, access, kind) in [
        ("both", Some("IMAP"), Some("mail")),
        ("pop", Some("pop3"), Some("mail")),
        ("none", None, Some("mail")),
        ("other", Some("imap"), Some("guest")),
    ] {
        let person = User::new(uid, Some("server3"));
        slapd.add(&person);
        slapd.set(&person, "description", access);
        slapd.set(&person, "employeeType", kind);
    }
    let config = Config::with_directory(&slapd).scripted(&backend).set("/limits/failed_logins", 50);
    let config = config.set("/directory/allow_attribute", "description");
    let allowing = |config: Config| {
        let usher = Usher::start(config.set("/directory/allow_filter", "(employeeType=mail)"));
        let mut imap = Imap::tls(usher.imaps_port());
        for uid in ["pop", "none", "other"] {
            imap.login(uid, "wrong").is("NO [AUTHENTICATIONFAILED]");
            for _ in 0..2 {
                // From the directory, then from the cache.
                imap.login(uid, &password_of(uid)).is("NO [AUTHORIZATIONFAILED]");
            }
            assert_eq!(usher.nth_login(3, uid)["result"], "not_allowed");
        }
        assert_eq!(usher.metric("usher_logins_total", &[("result", "not_allowed")]), 6.0);
        imap.login("both", &password_of("both")).ok();
    };
    allowing(config.clone());
    allowing(config.user_dn("uid={login},ou=people,dc=example,dc=com"));
    assert_eq!(backend.connections(), 2, "those who may");
}

#[test]
fn name_that_matches_several_entries_is_refused() {
    let usher = Usher::start(Config::shared());
    let mut imap = Imap::tls(usher.imaps_port());
    for uid in ["castor", "pollux"] {
        // Whether this password is right is not known, and no client learns that the name exists.
        imap.login("twin@example.com", &password_of(uid)).is("NO [AUTHENTICATIONFAILED]");
    }
    let event = usher.login("twin@example.com");
    assert_eq!(event["result"], "several_entries", "{event}");
    assert!(event["dn"].is_string() && event["other_dn"].is_string(), "{event}");
    imap.login("castor", &password_of("castor")).ok();
}

#[test]
fn refusal_is_delayed_equally_for_every_name() {
    let delay = Duration::from_millis(700);
    let usher = Usher::start(Config::shared().set("/limits/refusal_delay", "700ms"));
    let timed = |login: &str, password: &str| {
        let mut imap = Imap::tls(usher.imaps_port());
        let asked = Instant::now();
        (imap.login(login, password), asked.elapsed())
    };
    for (login, password) in [("alice", "wrong"), ("alice", "wrong"), ("unknown", "wrong"), ("alice", "")] {
        let (reply, taken) = timed(login, password);
        reply.is("NO [AUTHENTICATIONFAILED]");
        // The cached wrong password, the unknown user and the empty password need no bind, and are delayed too.
        assert!(taken >= delay, "{login} {password}: {taken:?}");
    }
    let (reply, taken) = timed("alice", &password_of("alice"));
    reply.ok();
    assert!(taken < delay, "{taken:?}");
}

#[test]
fn failed_logins_are_limited_per_connection() {
    let usher = Usher::start(Config::shared().set("/limits/failed_logins", 3));
    let mut imap = Imap::tls(usher.imaps_port());
    for _ in 0..2 {
        imap.login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
    }
    imap.send("z LOGIN alice wrong\r\n");
    let rest = String::from_utf8(imap.rest()).unwrap();
    assert!(rest.contains("z NO [AUTHENTICATIONFAILED]"), "the third is answered too: {rest}");
    assert!(rest.contains("* BYE"), "and the end is announced: {rest}");
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
}

#[test]
fn client_never_chooses_a_protocol_or_backend() {
    // An entry may name a listener of usher or any host: only configured names are routes.
    let (slapd, backend) = (Slapd::private(), Scripted::accepting());
    let usher = Usher::start(Config::with_directory(&slapd).scripted(&backend));
    let own = format!("127.0.0.1:{}", usher.imaps_port());
    let person = User::new("alice", None);
    for host in [own.as_str(), "127.0.0.1", "server3:993", "server3 server4", "imaps://server3", "*"] {
        slapd.set(&person, "mailHost", Some(host));
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login("alice", &password_of("alice")).is("NO [CONTACTADMIN]");
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn hostile_names_cannot_forge_log_lines() {
    let usher = Usher::start(Config::shared().set("/limits/failed_logins", 50));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.command(r#"ID ("name" "evil{\"x\":1}" "version" "1")"#).ok();
    let forged = "x\",\"result\":\"ok\",\"y\":\"\u{2028}\u{202e}";
    imap.authenticate("", forged, b"wrong").is("NO [AUTHENTICATIONFAILED]");
    let name = "mallory\r\n{\"message\":\"login\",\"login\":\"alice\",\"result\":\"ok\"}";
    imap.send(format!("a LOGIN {{{}+}}\r\n{name} secret\r\n", name.len()));
    imap.reply("a").is("NO [AUTHENTICATIONFAILED]");
    usher.wait_log("login", |line| line["login"].as_str().is_some_and(|login| login.starts_with("mallory")));
    let logged = usher.logged();
    assert!(logged.iter().all(serde_json::Value::is_object), "each line is one event: {logged:#?}");
    assert!(logged.iter().all(|line| line["result"] != "ok"), "{logged:#?}");
}

#[test]
fn passwords_are_never_logged_at_any_level() {
    let backend = Scripted::tls(|peer| {
        peer.send(crate::kit::scripted::GREETING);
        if let Some(tag) = peer.take_login() {
            // A backend may even echo the password.
            peer.send(format!("{tag} NO [LIMIT] too many sessions\r\n"));
        }
    });
    let config = Config::shared().set("/log", json!({"format": "json", "level": "trace"}));
    let config = config.set("/routing/backends/0/imap/address", format!("127.0.0.1:{}", backend.port));
    let usher = Usher::start(config);
    let bob = password_of("bob");
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).is("NO [LIMIT]");
    imap.login("alice", "this-is-wrong").is("NO [AUTHENTICATIONFAILED]");
    imap.authenticate("", "bob", bob.as_bytes()).ok();
    drop(imap);
    usher.wait_log("end", |_| true);
    let log = usher.log_text();
    let alice = password_of("alice");
    let plain = base64(format!("\0bob\0{bob}").as_bytes());
    for secret in [&alice, &bob, "this-is-wrong", &plain, "service secret"] {
        assert!(!log.contains(secret), "the log has {secret}");
    }
}
