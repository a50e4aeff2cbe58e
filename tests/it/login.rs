//! A login on real servers: routing, clients, and the ways to look up a user in the directory.

use crate::kit::tools::{Mbsync, curl, imaplib};
use crate::kit::users::{METACHARACTERS, SERVICE_PASSWORD, all_users};
use crate::kit::{Config, Imap, Usher, cyrus, dovecot, password_of};

fn usher() -> Usher {
    Usher::start(Config::shared())
}

#[test]
fn alice_lands_on_dovecot_and_bob_on_cyrus() {
    let usher = usher();
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", &password_of("alice")).ok();
    // Dovecot returns its name by ID, Cyrus its name and a session.
    let said = alice.command("ID NIL").ok();
    assert!(said.untagged[0].contains("\"server3\""), "{said:?}");
    let mut bob = Imap::tls(usher.imaps_port());
    let welcome = bob.login("bob", &password_of("bob")).ok();
    assert!(welcome.tagged.contains("SESSIONID=<"), "{welcome:?}");
    let said = bob.command("ID NIL").ok();
    assert!(said.untagged[0].contains("Cyrus"), "{said:?}");

    for (login, mail_host, backend) in [("alice", "server3", "server3"), ("bob", "Server4.Example.COM.", "server4")] {
        let event = usher.login(login);
        assert_eq!(event["result"], "ok", "{event}");
        assert_eq!(event["protocol"], "imap");
        assert_eq!(event["dn"], format!("uid={login},ou=people,dc=example,dc=com"));
        assert_eq!(event["mail_host"], mail_host);
        assert_eq!(event["backend"], backend);
        assert_eq!(event["by"], "directory");
        assert_eq!(event["directory_code"].to_string().trim_matches('"'), "0");
        assert!(event["directory_server"].as_str().unwrap().starts_with("ldaps://127.0.0.1:"), "{event}");
        assert!(event["client"].as_str().unwrap().starts_with("127.0.0.1"), "{event}");
        assert_eq!(usher.metric("usher_sessions", &[("backend", backend), ("protocol", "imap")]), 1.0);
        assert_eq!(usher.metric("usher_backend_logins_total", &[("backend", backend), ("result", "ok")]), 1.0);
    }
    assert_eq!(usher.metric("usher_logins_total", &[("result", "ok")]), 2.0);
    assert_eq!(usher.metric("usher_decisions_total", &[("by", "directory")]), 2.0);
}

#[test]
fn starttls_reaches_the_same_servers() {
    let usher = usher();
    let mut imap = Imap::plain(usher.imap_port());
    imap.command("STARTTLS").ok();
    imap.start_tls();
    let reply = imap.authenticate("", "bob", password_of("bob").as_bytes()).ok();
    assert!(reply.tagged.contains("SESSIONID=<"), "{reply:?}");
}

#[test]
fn curl_appends_and_reads() {
    let usher = usher();
    for uid in ["anna", "ben"] {
        let message = format!("Subject: for {uid}\r\n\r\nwritten by curl\r\n");
        let file = usher.config.file("message", &message);
        curl(usher.imaps_port(), uid, "INBOX", &["-T", &file.display().to_string()]).succeeded();
        let read = curl(usher.imaps_port(), uid, "INBOX;MAILINDEX=1", &[]).succeeded();
        assert_eq!(read.stdout, message);
        let wrong = format!("{uid}:wrong");
        let refused = curl(usher.imaps_port(), uid, "INBOX", &["-u", &wrong]);
        assert_eq!(refused.code, 67, "curl calls this a denied login: {refused:#?}");
    }
}

#[test]
fn imaplib_logs_in_by_both_commands() {
    let usher = usher();
    let script = |uid: &str, login: &str| {
        let password = password_of(uid);
        let head = format!("uid, password = {uid:?}, {password:?}\n{login}\n");
        head + "print(connection.select('INBOX'))\nprint(connection.xatom('ID', 'NIL'), connection.response('ID'))\n\
                print(connection.logout())"
    };
    let authenticate = "connection.authenticate('PLAIN', lambda _: b'\\0%s\\0%s' % (uid.encode(), password.encode()))";
    for (uid, server) in [("alice", "server3"), ("bob", "Cyrus")] {
        for login in ["connection.login(uid, password)", authenticate] {
            let said = imaplib(usher.imaps_port(), &script(uid, login)).succeeded();
            assert!(said.stdout.contains("('OK'") && said.stdout.contains(server), "{said:#?}");
        }
    }
    let wrong = "try:\n connection.login('alice', 'wrong')\nexcept imaplib.IMAP4.error as error:\n print(error)";
    let said = imaplib(usher.imaps_port(), wrong).succeeded();
    assert!(said.stdout.contains("[AUTHENTICATIONFAILED]"), "{said:#?}");
}

/// Fills a mailbox through usher, syncs all of it, and syncs a new message back.
fn sync(uid: &str) {
    const MESSAGES: usize = 300;
    let usher = usher();
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(uid, &password_of(uid)).ok();
    let message =
        |n: usize| format!("Subject: number {n}\r\nX-Number: <{n}>\r\n\r\n{}", "words to sync\r\n".repeat(n % 50));
    for first in (0..MESSAGES).step_by(50) {
        let appends = (first..first + 50).map(message).enumerate();
        let commands: String =
            appends.map(|(i, text)| format!("m{} APPEND INBOX {{{}+}}\r\n{text}\r\n", first + i, text.len())).collect();
        imap.send(commands);
        for n in first..first + 50 {
            imap.reply(&format!("m{n}")).ok();
        }
    }
    let mbsync = Mbsync::new(usher.imaps_port(), uid);
    mbsync.sync();
    let mut subjects: Vec<String> = mbsync
        .messages()
        .iter()
        .filter_map(|text| {
            String::from_utf8_lossy(text).lines().find(|line| line.starts_with("X-Number:")).map(Into::into)
        })
        .collect();
    subjects.sort_unstable();
    subjects.dedup();
    assert_eq!(subjects.len(), MESSAGES);
    mbsync.deliver("one-more", b"Subject: from below\n\nsent up by mbsync\n");
    mbsync.sync();
    let reply = imap.command("STATUS INBOX (MESSAGES)").ok();
    assert!(reply.untagged.iter().any(|line| line.contains(&format!("MESSAGES {}", MESSAGES + 1))), "{reply:?}");
}

#[test]
fn mbsync_syncs_hundreds_of_messages_with_dovecot() {
    sync("sync3");
}

#[test]
fn mbsync_syncs_hundreds_of_messages_with_cyrus() {
    sync("sync4");
}

#[test]
fn user_dn_mode_needs_no_service_account() {
    let config =
        Config::shared().user_dn("uid={local},ou=people,dc=example,dc=com").set("/directory/login_attribute", "uid");
    let usher = Usher::start(config);
    for (login, uid) in [("alice", "alice"), ("bob@example.com", "bob"), (METACHARACTERS, METACHARACTERS)] {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.authenticate("", login, b"wrong").is("NO [AUTHENTICATIONFAILED]");
        imap.authenticate("", login, password_of(uid).as_bytes()).ok();
        let event = usher.nth_login(2, login);
        assert_eq!(event["login_backend"], uid, "{event}");
    }
}

#[test]
fn metacharacters_are_escaped_in_a_filter() {
    // Unescaped, an asterisk would match users, a parenthesis would end the filter.
    let usher = Usher::start(Config::shared().set("/limits/failed_logins", 50));
    let mut imap = Imap::tls(usher.imaps_port());
    let alice = password_of("alice");
    for name in [
        "*",
        "al*",
        "alic?",
        "*)(uid=alice",
        "alice)(|(uid=*",
        "alice))(&(uid=*",
        r"al\69ce",
        r"\61lice",
        "a\u{130}ice",
    ] {
        imap.authenticate("", name, alice.as_bytes()).is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(usher.login(name)["result"], "unknown_user", "{name}");
    }
    imap.authenticate("", METACHARACTERS, password_of(METACHARACTERS).as_bytes()).ok();
}

#[test]
fn metacharacters_are_escaped_in_a_dn() {
    let config = Config::shared().user_dn("uid={login},ou=people,dc=example,dc=com").set("/limits/failed_logins", 50);
    let usher = Usher::start(config);
    let mut imap = Imap::tls(usher.imaps_port());
    let alice = password_of("alice");
    for name in
        ["alice,ou=people", r"alice\", "alice+cn=alice", r"\61lice", "#616c696365", "alice,ou=people,dc=example,dc=com"]
    {
        imap.authenticate("", name, alice.as_bytes()).is("NO [AUTHENTICATIONFAILED]");
    }
    imap.authenticate("", METACHARACTERS, password_of(METACHARACTERS).as_bytes()).ok();
}

#[test]
fn passwords_of_any_text_arrive_byte_for_byte() {
    let usher = usher();
    for uid in ["gruen", "long", "quote", "space"] {
        let password = password_of(uid);
        let mut imap = Imap::tls(usher.imaps_port());
        imap.authenticate("", uid, password.as_bytes()).ok();
        let mut imap = Imap::tls(usher.imaps_port());
        imap.send(format!("a LOGIN {uid} {{{}}}\r\n", password.len()));
        assert!(imap.line().starts_with("+ "));
        imap.send(format!("{password}\r\n"));
        imap.reply("a").ok();
        // One byte less is another password.
        let mut imap = Imap::tls(usher.imaps_port());
        imap.authenticate("", uid, &password.as_bytes()[..password.len() - 1]).is("NO [AUTHENTICATIONFAILED]");
    }
}

#[test]
fn spellings_of_a_name_are_one_entry() {
    let usher = Usher::start(Config::shared().set("/directory/login_attribute", "uid"));
    for login in ["ALICE", "A.Liddell@example.com", "alice@EXAMPLE.com"] {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login(login, &password_of("alice")).ok();
        let event = usher.login(login);
        assert_eq!(event["dn"], "uid=alice,ou=people,dc=example,dc=com", "{event}");
        assert_eq!(event["login_backend"], "alice", "{event}");
    }
    assert_eq!(usher.metric("usher_cache_entries", &[]), 1.0, "one user is one cache entry");
}

#[test]
fn backend_gets_the_typed_name_without_login_attribute() {
    let usher = usher();
    let mut imap = Imap::tls(usher.imaps_port());
    // Dovecot has no such user: the directory accepts, the backend refuses.
    imap.login("a.liddell@example.com", &password_of("alice")).is("NO [UNAVAILABLE]");
    let event = usher.login("a.liddell@example.com");
    assert_eq!(event["result"], "backend_rejected", "{event}");
    assert_eq!(event["login_backend"], "a.liddell@example.com", "{event}");
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn proxy_authorization_reaches_cyrus_and_dovecot() {
    let config = Config::shared().set("/directory/login_attribute", "uid");
    let password = config.file("backend.password", SERVICE_PASSWORD);
    let service = serde_json::json!({"login": "usher", "password_file": password});
    let config = config.set("/routing/backends/0/service", service.clone()).set("/routing/backends/1/service", service);
    let usher = Usher::start(config);
    for uid in ["alice", "bob"] {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login(uid, "wrong").is("NO [AUTHENTICATIONFAILED]");
        imap.login(uid, &password_of(uid)).ok();
        imap.command("SELECT INBOX").ok();
    }
    // Dovecot's log names the service account and the user.
    let logged = dovecot().logged();
    assert!(logged.contains("user=<alice>") && logged.contains("master"), "{logged}");
}

#[test]
fn backends_are_reached_by_starttls() {
    let config = Config::shared()
        .set("/routing/backends/0/imap/address", format!("127.0.0.1:{}", dovecot().imap))
        .set("/routing/backends/0/imap/tls", "starttls")
        .set("/routing/backends/1/imap/address", format!("127.0.0.1:{}", cyrus().imap))
        .set("/routing/backends/1/imap/tls", "starttls");
    let usher = Usher::start(config);
    for uid in ["alice", "bob"] {
        Imap::tls(usher.imaps_port()).login(uid, &password_of(uid)).ok();
    }
    let logged = dovecot().logged();
    let secure = |line: &str| line.contains("Login: user=<alice>") && line.contains(", TLS,");
    assert!(logged.lines().any(secure), "{logged}");
}

#[test]
fn every_user_with_a_route_logs_in() {
    let usher = usher();
    for person in all_users().iter().filter(|person| person.mail_host == Some("server3") && person.ou != "closed") {
        Imap::tls(usher.imaps_port()).authenticate("", &person.uid, person.password.as_bytes()).ok();
    }
}
