//! The dialogue before login over real sockets; the details are scripts beside `proto/imap`.

use std::time::{Duration, Instant};

use crate::kit::client::{Tls, base64};
use crate::kit::scripted::Scripted;
use crate::kit::slapd::Slapd;
use crate::kit::{Config, Imap, Usher, dovecot, password_of, relay, slapd};

fn usher() -> Usher {
    Usher::start(Config::shared())
}

#[test]
fn commands_are_accepted_byte_by_byte() {
    let usher = usher();
    let mut imap = Imap::tls(usher.imaps_port());
    imap.drip("a CAPABILITY\r\n");
    assert!(imap.reply("a").ok().untagged[0].starts_with("* CAPABILITY IMAP4rev1"));
    let password = password_of("bytes3");
    imap.drip("b LOGIN {6}\r\n");
    assert!(imap.line().starts_with("+ "));
    imap.drip(format!("bytes3 {{{}+}}\r\n{password}\r\n", password.len()));
    imap.reply("b").ok();
    imap.drip("c SELECT INBOX\r\n");
    imap.reply("c").ok();
}

/// The word or the code's class by which the reply to a command begins.
fn verdict(port: u16, server: &str, protocol: &str, command: &str) -> String {
    let mut client = Imap::try_tls_with(port, Tls::default().config(), server).expect("the handshake succeeds");
    if protocol == "submission" {
        client.send("EHLO here\r\n");
        while client.line().starts_with("250-") {}
    }
    client.send(format!("{command}\r\n"));
    let mut line = client.line();
    while protocol == "imap" && line.starts_with("* ") && !line.starts_with("* BAD") {
        line = client.line();
    }
    let words: Vec<&str> = line.split(' ').collect();
    match protocol {
        "imap" => words[..2.min(words.len())].join(" "),
        "submission" => line[..1].to_owned(),
        _ => words[0].to_owned(),
    }
}

/// Dovecot 2.3 is the measure of which superfluous blanks are ignored.
#[test]
fn superfluous_blanks_are_treated_as_by_dovecot() {
    relay();
    let password = password_of("alice");
    let plain = base64(format!("\0alice\0{password}").as_bytes());
    let imap = [
        "a NOOP ".to_owned(),
        "a CAPABILITY  ".to_owned(),
        "a LOGOUT ".to_owned(),
        format!("a LOGIN alice {password} "),
        format!("a LOGIN  alice  {password}"),
        format!("a LOGIN alice \"{password}\"  "),
        format!("a LOGIN alice  {{{}+}}\r\n{password} ", password.len()),
        format!("a LOGIN alice {password} x"),
        format!("a LOGIN\talice {password}"),
        format!("a LOGIN alice {password}\t"),
        format!("a AUTHENTICATE PLAIN  {plain}"),
        format!("a AUTHENTICATE PLAIN {plain} "),
        "a AUTHENTICATE PLAIN ".to_owned(),
        "a ID ( \"name\" \"x\" \"version\" \"1.0\" )".to_owned(),
        "a ID  (\"name\"  \"x\") ".to_owned(),
        "a ID NIL ".to_owned(),
        "a ID ( )".to_owned(),
        "a ID ".to_owned(),
        "a ID ( NIL )".to_owned(),
        "a ID (name x)".to_owned(),
        "a ID \"NIL\"".to_owned(),
        "a ID (\"name\"\t\"x\")".to_owned(),
        "a  NOOP".to_owned(),
        " a NOOP".to_owned(),
        "a NOOP\t".to_owned(),
    ];
    let pop3 = [
        "CAPA ".to_owned(),
        "QUIT  ".to_owned(),
        "AUTH ".to_owned(),
        "AUTH PLAIN ".to_owned(),
        format!("AUTH PLAIN  {plain}"),
        format!("AUTH PLAIN {plain} "),
        format!("AUTH PLAIN {plain}\t"),
        format!("AUTH PLAIN\t{plain}"),
        "CAPA\t".to_owned(),
        " CAPA".to_owned(),
    ];
    let submission = [
        "NOOP ".to_owned(),
        "RSET  ".to_owned(),
        "QUIT ".to_owned(),
        "EHLO here  ".to_owned(),
        "EHLO  ".to_owned(),
        format!("AUTH PLAIN {plain}  "),
        format!("AUTH PLAIN {plain}\t"),
        "AUTH PLAIN  ".to_owned(),
        format!("AUTH PLAIN {plain} x"),
        " NOOP".to_owned(),
    ];
    let dovecot = dovecot();
    for (protocol, port, commands) in [
        ("imap", dovecot.imaps, &imap[..]),
        ("pop3", dovecot.pop3s, &pop3[..]),
        ("submission", dovecot.submissions, &submission[..]),
    ] {
        let config = Config::shared();
        let usher = Usher::start(if protocol == "imap" { config } else { config.speaking(protocol, &[port]) });
        for command in commands {
            let ours = verdict(usher.imaps_port(), "usher.example.com", protocol, command);
            assert_eq!(ours, verdict(port, "server3.example.com", protocol, command), "{protocol}: {command:?}");
        }
    }
}

/// The largest ID of RFC 2971 as quoted strings, which Dovecot's own tests send.
#[test]
fn largest_id_is_accepted_before_and_after_tls() {
    let usher = usher();
    let pair = format!("\"{}\" \"{}\"", "f".repeat(30), "v".repeat(1024));
    let id = format!("ID ({})", vec![pair.as_str(); 30].join(" "));
    let mut imap = Imap::plain(usher.imap_port());
    imap.command(&id).ok();
    imap.command("STARTTLS").ok();
    imap.start_tls();
    imap.command(&id).ok();
    imap.command(&format!("NOOP{}", " ".repeat(9000))).is("BAD [TOOBIG]");
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn commands_pipelined_after_a_login_arrive_in_order() {
    let backend = Scripted::accepting();
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend));
    let mut imap = Imap::tls(usher.imaps_port());
    let many: String = (0..500).map(|n| format!("p{n} NOOP {n}\r\n")).collect();
    imap.send(format!("a LOGIN alice {}\r\n{many}", password_of("alice")));
    imap.reply("a").ok();
    for n in 0..500 {
        let reply = imap.reply(&format!("p{n}")).is(&format!("OK did NOOP {n}"));
        assert!(reply.untagged.is_empty(), "{reply:?}");
    }
}

#[test]
fn commands_pipelined_after_a_refusal_are_still_commands() {
    let usher = usher();
    let mut imap = Imap::tls(usher.imaps_port());
    let good = password_of("alice");
    imap.send(format!("a LOGIN alice wrong\r\nb NOOP\r\nc LOGIN alice {good}\r\nd SELECT INBOX\r\ne LOGOUT\r\n"));
    imap.reply("a").is("NO [AUTHENTICATIONFAILED]");
    imap.reply("b").ok();
    imap.reply("c").ok();
    imap.reply("d").ok();
    imap.reply("e").ok();
}

#[test]
fn cleartext_login_is_refused_before_the_secret_and_without_the_directory() {
    let slapd = Slapd::private();
    let usher = Usher::start(Config::with_directory(&slapd).scripted(&Scripted::accepting()));
    let mut imap = Imap::plain(usher.imap_port());
    assert!(imap.greeting.contains("STARTTLS") && imap.greeting.contains("LOGINDISABLED"), "{}", imap.greeting);
    assert!(!imap.greeting.contains("AUTH="), "{}", imap.greeting);
    imap.login("alice", &password_of("alice")).is("NO [PRIVACYREQUIRED]");
    // No continuation for the literal that would contain the secret.
    imap.command("LOGIN alice {12}").is("NO [PRIVACYREQUIRED]");
    imap.command("AUTHENTICATE PLAIN").is("NO [PRIVACYREQUIRED]");
    assert_eq!(slapd.searches("alice"), 0, "{}", slapd.logged());
    assert_eq!(usher.metric("usher_logins_total", &[("result", "tls_required")]), 3.0);
    imap.command("STARTTLS").ok();
    imap.start_tls();
    let reply = imap.command("CAPABILITY").ok();
    assert!(!reply.untagged[0].contains("LOGINDISABLED") && !reply.untagged[0].contains("STARTTLS"), "{reply:?}");
    imap.command("STARTTLS").is("BAD");
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn starttls_discards_earlier_state() {
    let usher = usher();
    let mut imap = Imap::plain(usher.imap_port());
    imap.command(r#"ID ("name" "before")"#).ok();
    // The second command arrives as plaintext in the same packet: it must not run under TLS.
    imap.send("a STARTTLS\r\nb NOOP\r\nc LOGIN alice injected\r\n");
    imap.reply("a").ok();
    imap.start_tls();
    let reply = imap.command("NOOP").ok();
    assert!(reply.untagged.is_empty(), "{reply:?}");
    imap.login("alice", &password_of("alice")).ok();
    let event = usher.login("alice");
    assert_eq!(event["result"], "ok", "the injected login was tried: {event}");
    assert_ne!(event["client_name"], "before", "{event}");
}

#[test]
fn client_id_is_logged() {
    let usher = usher();
    let mut imap = Imap::tls(usher.imaps_port());
    let reply = imap.command(r#"ID ("name" "Testclient" "version" "4.2" "x-originating-ip" "1.2.3.4")"#).ok();
    assert!(reply.untagged[0].starts_with("* ID ("), "{reply:?}");
    imap.login("alice", &password_of("alice")).ok();
    let event = usher.login("alice");
    assert_eq!((event["client_name"].as_str(), event["client_version"].as_str()), (Some("Testclient"), Some("4.2")));
    assert!(event["client"].as_str().unwrap().starts_with("127.0.0.1"), "{event}");
}

#[test]
fn oversized_input_does_not_desynchronize() {
    let usher = Usher::start(Config::shared().set("/limits/bad_commands", 100));
    let mut imap = Imap::tls(usher.imaps_port());
    for size in ["100000", "4294967295", "18446744073709551616", "99999999999999999999999999"] {
        let reply = imap.command(&format!("LOGIN {{{size}}}"));
        assert!(reply.tagged.starts_with("BAD") || reply.tagged.starts_with("NO"), "{reply:?}");
    }
    imap.send(format!("a LOGIN {{20000+}}\r\n{}\r\n", "x NOOP\r\n".repeat(2_500)));
    let reply = imap.reply("a");
    assert!(reply.tagged.starts_with("BAD") || reply.tagged.starts_with("NO"), "{reply:?}");
    imap.send(format!("b {}\r\n", "x".repeat(60_000)));
    let line = imap.line();
    assert!(line.starts_with("b BAD") || line.starts_with("* BAD"), "{line}");
    imap.command("NOOP").ok();
    imap.login("alice", &password_of("alice")).ok();
    // An endless line is not waited for.
    let mut imap = Imap::tls(usher.imaps_port());
    while imap.try_send("x".repeat(10_000)).is_ok() {}
}

#[test]
fn invalid_commands_are_limited() {
    let usher = Usher::start(Config::shared().set("/limits/bad_commands", 5));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.send("x FROBNICATE\r\n".repeat(20));
    let said = String::from_utf8(imap.rest()).unwrap();
    assert_eq!(said.matches("x BAD").count(), 5, "{said}");
    assert!(said.contains("* BYE"), "{said}");
    for verb in ["GET / HTTP/1.1", "POST / HTTP/1.1"] {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.send(format!("{verb}\r\nHost: x\r\n\r\n"));
        let said = String::from_utf8(imap.rest()).unwrap();
        assert!(!said.contains("OK"), "{said}");
    }
}

#[test]
fn logout_gets_a_bye() {
    let usher = usher();
    let mut imap = Imap::tls(usher.imaps_port());
    let reply = imap.command("LOGOUT").ok();
    assert!(reply.untagged[0].starts_with("* BYE"), "{reply:?}");
    imap.expect_clean_end();
}

#[test]
fn dripping_client_is_closed_at_the_login_deadline() {
    let config = Config::shared().set("/limits/login_timeout", "1s").set("/limits/prelogin_timeout", "2s");
    let usher = Usher::start(config);
    let started = Instant::now();
    let mut silent = Imap::tls(usher.imaps_port());
    let mut busy = Imap::tls(usher.imaps_port());
    // Each byte would restart a deadline per read, each NOOP one per command.
    while busy.try_send("x NOOP\r\n").is_ok() && started.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(50)); // the pace of the dripping
    }
    silent.rest();
    busy.rest();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    usher.wait_metric("usher_connections", &[], 0.0);
}

#[test]
fn sasl_exchange_can_be_cancelled_and_retried() {
    let usher = usher();
    let mut imap = Imap::tls(usher.imaps_port());
    imap.send("a AUTHENTICATE PLAIN\r\n");
    assert_eq!(imap.line(), "+ ");
    imap.send("*\r\n");
    imap.reply("a").is("BAD");
    imap.command("AUTHENTICATE PLAIN !!!").is("BAD");
    imap.command("AUTHENTICATE GSSAPI").is("NO");
    imap.send("b AUTHENTICATE LOGIN\r\n");
    assert!(imap.line().starts_with("+ "));
    imap.send("YWxpY2U=\r\n");
    assert!(imap.line().starts_with("+ "));
    imap.send(format!("{}\r\n", crate::kit::client::base64(password_of("alice").as_bytes())));
    imap.reply("b").ok();
}
