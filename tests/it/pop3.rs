//! POP3 on real servers: dialogue, refusals, and common clients.

use crate::kit::client::base64;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::Slapd;
use crate::kit::tools::{curl_url, fetch, python};
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher, cyrus, dovecot, password_of};

/// The shared servers over POP3.
fn config() -> Config {
    Config::shared().speaking("pop3", &[dovecot().pop3s, cyrus().pop3().0])
}

/// Sends a command and returns the first line of its reply.
fn ask(pop3: &mut Imap, command: &str) -> String {
    pop3.send(format!("{command}\r\n"));
    pop3.line()
}

/// The lines of a list, without its dot.
fn list(pop3: &mut Imap) -> Vec<String> {
    std::iter::from_fn(|| Some(pop3.line()).filter(|line| line != ".")).collect()
}

/// USER and PASS; the reply to the latter.
fn log_in(pop3: &mut Imap, uid: &str, password: &str) -> String {
    assert!(ask(pop3, &format!("USER {uid}")).starts_with("+OK"), "USER never reveals whether a user exists");
    ask(pop3, &format!("PASS {password}"))
}

#[test]
fn alice_lands_on_dovecot_and_bob_on_cyrus() {
    let usher = Usher::start(config());
    let mut alice = Imap::tls(usher.imaps_port());
    assert_eq!(alice.greeting, "+OK usher is ready");
    assert_eq!(log_in(&mut alice, "alice", &password_of("alice")), "+OK Logged in.");
    let mut bob = Imap::tls(usher.imaps_port());
    let message = format!("\0bob\0{}", password_of("bob"));
    let welcome = ask(&mut bob, &format!("AUTH PLAIN {}", base64(message.as_bytes())));
    assert!(welcome.starts_with("+OK") && welcome.contains("SESSIONID=<"), "{welcome}");
    // After the login it is the backend's list.
    for (pop3, own) in [(&mut alice, "CAPA"), (&mut bob, "IMPLEMENTATION Cyrus")] {
        assert!(ask(pop3, "STAT").starts_with("+OK "));
        assert!(ask(pop3, "CAPA").starts_with("+OK"));
        let listed = list(pop3);
        assert!(listed.iter().any(|line| line.starts_with(own)), "{listed:?}");
    }
    for (login, backend) in [("alice", "server3"), ("bob", "server4")] {
        let event = usher.login(login);
        assert_eq!((&event["result"], &event["protocol"]), (&"ok".into(), &"pop3".into()), "{event}");
        assert_eq!(event["backend"], backend, "{event}");
        assert_eq!(usher.metric("usher_sessions", &[("backend", backend), ("protocol", "pop3")]), 1.0);
    }
    assert!(ask(&mut alice, "QUIT").starts_with("+OK"));
}

#[test]
fn passwords_with_spaces_and_non_ascii_letters_are_accepted() {
    let usher = Usher::start(config());
    for uid in ["gruen", "quote", "space"] {
        let mut pop3 = Imap::tls(usher.imaps_port());
        assert!(log_in(&mut pop3, uid, &password_of(uid)).starts_with("+OK"), "{uid}");
    }
    // Longer than the limit of a command (RFC 2449 section 4), but not of a response.
    let mut pop3 = Imap::tls(usher.imaps_port());
    assert_eq!(log_in(&mut pop3, "long", &password_of("long")), "-ERR Line too long");
    assert_eq!(ask(&mut pop3, "AUTH PLAIN"), "+ ");
    let message = base64(format!("\0long\0{}", password_of("long")).as_bytes());
    assert!(ask(&mut pop3, &message).starts_with("+OK"));
}

#[test]
fn stls_discards_earlier_state() {
    let usher = Usher::start(config());
    let mut pop3 = Imap::plain(usher.imap_port());
    assert!(ask(&mut pop3, "CAPA").starts_with("+OK"));
    assert_eq!(list(&mut pop3), ["TOP", "UIDL", "RESP-CODES", "PIPELINING", "AUTH-RESP-CODE", "STLS"]);
    assert_eq!(ask(&mut pop3, "USER alice"), "-ERR Start TLS before you log in");
    // An attacker on the wire injects commands.
    pop3.send("STLS\r\nUSER mallory\r\nCAPA\r\n");
    assert_eq!(pop3.line(), "+OK Begin TLS now");
    pop3.start_tls();
    assert_eq!(ask(&mut pop3, "PASS secret"), "-ERR Send USER first");
    assert!(ask(&mut pop3, "CAPA").starts_with("+OK"));
    let listed = list(&mut pop3);
    assert!(listed.contains(&"SASL PLAIN LOGIN".into()) && !listed.contains(&"STLS".into()), "{listed:?}");
    assert!(log_in(&mut pop3, "bob", &password_of("bob")).starts_with("+OK"));
    assert_eq!(usher.metric("usher_logins_total", &[("result", "tls_required")]), 1.0);
}

#[test]
fn pipelined_commands_arrive_in_order_whole_or_byte_by_byte() {
    let usher = Usher::start(config());
    for (uid, byte_by_byte) in [("alice", false), ("alice", true), ("post4", false), ("post4", true)] {
        let mut pop3 = Imap::tls(usher.imaps_port());
        let said = format!(
            "USER {uid}\r\nPASS wrong\r\nSTAT\r\nUSER {uid}\r\nPASS {}\r\nSTAT\r\nNOOP\r\nQUIT\r\n",
            password_of(uid)
        );
        if byte_by_byte {
            pop3.drip(&said)
        } else {
            pop3.send(&said)
        }
        let answers: Vec<String> = (0..8).map(|_| pop3.line()).collect();
        let starts = ["+OK", "-ERR [AUTH]", "-ERR Log in first", "+OK", "+OK", "+OK ", "+OK", "+OK"];
        assert!(answers.iter().zip(starts).all(|(answer, start)| answer.starts_with(start)), "{answers:?}");
    }
}

#[test]
fn refusals_have_codes_and_leave_the_connection_usable() {
    let slapd = Slapd::private();
    let usher = Usher::start(
        Config::with_directory(&slapd)
            .backend("server3", dovecot().imaps, &["server3"])
            .backend("server4", cyrus().imaps, &["server4", "server4.example.com"])
            .speaking("pop3", &[dovecot().pop3s])
            .set("/limits/failed_logins", 20),
    );
    let mut pop3 = Imap::tls(usher.imaps_port());
    let wrong = log_in(&mut pop3, "alice", "wrong");
    assert_eq!(wrong, "-ERR [AUTH] Name or password is wrong");
    assert_eq!(log_in(&mut pop3, "unknown", "wrong"), wrong);
    assert_eq!(log_in(&mut pop3, "alice", ""), wrong);
    assert!(log_in(&mut pop3, "carol", &password_of("carol")).starts_with("-ERR [SYS/PERM] Your mailbox cannot"));
    let not_served = log_in(&mut pop3, "bob", &password_of("bob"));
    let words =
        "-ERR [SYS/PERM] Your mailbox cannot be reached by this protocol, please contact your administrator (session ";
    assert!(not_served.starts_with(words), "{not_served}");
    assert_eq!(usher.login("bob")["result"], "protocol_not_served");
    let message = base64(format!("bob\0alice\0{}", password_of("alice")).as_bytes());
    assert!(ask(&mut pop3, &format!("AUTH PLAIN {message}")).starts_with("-ERR [SYS/PERM]"));
    drop(slapd);
    assert!(log_in(&mut pop3, "anna", &password_of("anna")).starts_with("-ERR [SYS/TEMP]"));
    assert_eq!(ask(&mut pop3, "QUIT"), "+OK Goodbye");
}

#[test]
fn backend_response_codes_are_forwarded_and_its_rejection_is_not_a_wrong_password() {
    let strict = Scripted::tls(|peer| {
        peer.send("+OK ready <1@strict>\r\n");
        assert_eq!(peer.line().as_deref(), Some("CAPA"));
        peer.send("+OK\r\nSASL PLAIN\r\n.\r\n");
        peer.line();
        peer.send("-ERR [IN-USE] The mailbox is open elsewhere\r\n");
    });
    let config = Config::shared().speaking("pop3", &[dovecot().pop3s, strict.port]);
    let usher = Usher::start(config.set("/routing/backends/1/pop3/server_name", "server3.example.com"));
    let mut pop3 = Imap::tls(usher.imaps_port());
    let in_use = log_in(&mut pop3, "bob", &password_of("bob"));
    assert!(in_use.starts_with("-ERR [IN-USE] The mailbox is open elsewhere (session "), "{in_use}");
    let event = usher.login("bob");
    assert_eq!(
        (&event["result"], &event["backend_reply"]),
        (&"backend_rejected".into(), &"[IN-USE] The mailbox is open elsewhere".into())
    );
    // Dovecot has no such user: the directory accepts, the backend refuses.
    let refused = log_in(&mut pop3, "a.liddell@example.com", &password_of("alice"));
    assert!(refused.starts_with("-ERR [SYS/TEMP] "), "{refused}");
}

#[test]
fn backends_that_break_the_protocol_are_unavailable() {
    for script in ["-ERR [SYS/TEMP] go away\r\n", "* OK IMAP\r\n", "+OK\n", ""] {
        let backend = Scripted::tls(move |peer| {
            peer.send(script);
        });
        let config = Config::with_directory(crate::kit::slapd()).scripted(&backend).speaking("pop3", &[backend.port]);
        let usher = Usher::start(config);
        let mut pop3 = Imap::tls(usher.imaps_port());
        let refused = log_in(&mut pop3, "alice", &password_of("alice"));
        assert!(refused.starts_with("-ERR [SYS/TEMP] "), "{script:?}: {refused}");
    }
}

#[test]
fn backends_are_reached_by_stls_and_by_a_service_account() {
    let config = config().set("/directory/login_attribute", "uid");
    let password = config.file("backend.password", SERVICE_PASSWORD);
    let service = serde_json::json!({"login": "usher", "password_file": password});
    let mut config = config;
    for (index, port) in [dovecot().pop3, cyrus().pop3().1].iter().enumerate() {
        let backend = format!("/routing/backends/{index}");
        config.change(&format!("{backend}/service"), service.clone());
        config.change(&format!("{backend}/pop3/address"), format!("127.0.0.1:{port}"));
        config.change(&format!("{backend}/pop3/tls"), "starttls");
    }
    let usher = Usher::start(config);
    for uid in ["alice", "sync4"] {
        let mut pop3 = Imap::tls(usher.imaps_port());
        assert!(log_in(&mut pop3, uid, &password_of(uid)).starts_with("+OK"), "{uid}");
        assert!(ask(&mut pop3, "STAT").starts_with("+OK"), "{uid}");
    }
}

#[test]
fn real_clients_fetch_mail() {
    let usher = Usher::start(config());
    for (uid, port, name) in
        [("post3", dovecot().imaps, "server3.example.com"), ("post4", cyrus().imaps, "server4.example.com")]
    {
        let tls = crate::kit::client::Tls { server_name: name, ..Default::default() };
        let mut imap = Imap::try_tls(port, &tls).unwrap();
        imap.login(uid, &password_of(uid)).ok();
        let message = format!("From: a@example.com\r\nSubject: for {uid}\r\n\r\n.to be fetched\r\n");
        imap.send(format!("a APPEND INBOX {{{}+}}\r\n{message}\r\n", message.len()));
        imap.reply("a").ok();
        drop(imap);

        let port = usher.imaps_port();
        let read = curl_url(&format!("pop3s://127.0.0.1:{port}/1"), uid, &[]).succeeded();
        assert_eq!(read.stdout, message);
        let starttls = format!("pop3://127.0.0.1:{}/1", usher.imap_port());
        let read = curl_url(&starttls, uid, &["--ssl-reqd", "--login-options", "AUTH=LOGIN"]).succeeded();
        assert_eq!(read.stdout, message);
        let wrong = curl_url(&format!("pop3s://127.0.0.1:{port}/"), uid, &["-u", &format!("{uid}:wrong")]);
        assert_eq!(wrong.code, 67, "curl calls this a denied login: {wrong:#?}");

        let script = format!(
            "import poplib\nfor stls in (False, True):\n \
             pop3 = poplib.POP3('localhost', {}, timeout=40) if stls else poplib.POP3_SSL('localhost', port, context=context, timeout=40)\n \
             if stls: pop3.stls(context)\n print(pop3.capa())\n pop3.user({uid:?})\n pop3.pass_({:?})\n \
             print(pop3.retr(1)[1], pop3.uidl()[1])\n pop3.quit()",
            usher.imap_port(),
            password_of(uid)
        );
        let said = python(port, &script).succeeded();
        assert_eq!(said.stdout.matches("b'.to be fetched'").count(), 2, "{said:#?}");

        for client in ["fetchmail", "mpop"] {
            let mail = fetch(client, port, uid);
            assert!(mail.len() == 1 && mail[0].contains("to be fetched"), "{client}: {mail:?}");
        }
    }
}

#[test]
fn listener_requires_a_backend_with_its_protocol() {
    let config = Config::shared().speaking("pop3", &[]);
    config.write();
    let said = command(&config, &["check"], b"");
    assert_eq!(said.code, 78, "{said:#?}");
    let reported = said.stdout + &said.stderr;
    assert!(
        reported.contains("listeners[0].protocol: no backend serves it: add `pop3: {address: .., tls: ..}`"),
        "{reported}"
    );
}
