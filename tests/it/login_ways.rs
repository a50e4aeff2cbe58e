//! Logins at backends that do not read initial responses, do not list all mechanisms in one line, are silent until
//! asked, or say more than OK.

use crate::kit::client::base64;
use crate::kit::dovecot::Dovecot;
use crate::kit::scripted::{Peer, Scripted};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Sieve, Usher, password_of, shared, slapd};

/// What a server expects and what it answers; of the first line only the answer counts, its greeting. `{PLAIN}`, `{USER}` and `{PASS}` are
/// alice's message and its parts in base64, `{password}` is her password.
type Line = (&'static str, &'static str);

fn filled(line: &str) -> String {
    let password = password_of("alice");
    line.replace("{PLAIN}", &base64(format!("\0alice\0{password}").as_bytes()))
        .replace("{USER}", &base64(b"alice"))
        .replace("{PASS}", &base64(password.as_bytes()))
        .replace("{password}", &password)
}

/// Plays a script as far as the client follows it.
fn play(peer: &mut Peer, script: &[Line]) {
    let (greeting, rest) = script.split_first().unwrap();
    peer.send(greeting.1);
    for (expected, answer) in rest {
        let mut line = peer.line();
        // The question of `check` for the server's name.
        if line.as_deref() == Some("i ID NIL") {
            peer.send("i BAD what?\r\n");
            line = peer.line();
        }
        match line {
            Some(line) if line == filled(expected) => peer.send(answer),
            // The transcript shows it.
            _ => return,
        };
    }
    peer.wait_for_end();
}

fn config(protocol: &str, server: &Scripted) -> Config {
    let config = Config::with_directory(slapd()).scripted(server);
    if protocol == "imap" {
        return config;
    }
    config.speaking(protocol, &[server.port]).without("/routing/backends/0/imap")
}

/// alice's login; the reply, without its tag.
fn log_in(protocol: &str, usher: &Usher) -> String {
    let password = password_of("alice");
    if protocol == "managesieve" {
        return Sieve::tls(usher.imaps_port()).authenticate("alice", &password);
    }
    let mut client = Imap::tls(usher.imaps_port());
    if protocol == "imap" {
        return client.login("alice", &password).tagged;
    }
    if protocol == "submission" {
        client.send("EHLO here\r\n");
        while client.line().as_bytes()[3] == b'-' {}
    }
    client.send(filled("AUTH PLAIN {PLAIN}\r\n"));
    client.line()
}

/// alice logs in, and `check --connect` finds nothing wrong with the login.
#[track_caller]
fn succeeds(protocol: &str, script: &[Line], success: &str) {
    let played = script.to_vec();
    let server = Scripted::tls(move |peer| play(peer, &played));
    let config = config(protocol, &server);
    config.write();
    let checked = command(&config, &["check", "--connect"], b"").stdout;
    assert!(checked.contains("ready to send after"), "{protocol}: {checked}\n{}", server.transcript());
    let usher = Usher::start(config);
    let reply = log_in(protocol, &usher);
    assert!(reply.starts_with(success), "{protocol}: {reply}\n{}", server.transcript());
    assert_eq!(usher.login("alice")["result"], "ok");
}

const IMAP: Line = ("", "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] old\r\n");
const IMAP_PLAIN: &str = "u1 AUTHENTICATE PLAIN {PLAIN}";
const POP3: Line = ("", "+OK old\r\n");
const SMTP: Line = ("", "220 old\r\n");
const EHLO: &str = "EHLO usher.example.com";
const SIEVE: Line = ("", "\"IMPLEMENTATION\" \"old\"\r\n\"SASL\" \"PLAIN\"\r\nOK\r\n");

#[test]
fn message_is_sent_again_where_it_was_not_read_with_the_command() {
    succeeds("imap", &[IMAP, (IMAP_PLAIN, "+ \r\n"), ("{PLAIN}", "u1 OK in\r\n")], "OK in");
    let capa = ("CAPA", "+OK\r\nSASL PLAIN\r\nUSER\r\n.\r\n");
    succeeds("pop3", &[POP3, capa, ("AUTH PLAIN {PLAIN}", "+ \r\n"), ("{PLAIN}", "+OK in\r\n")], "+OK in");
    let ehlo = (EHLO, "250-old\r\n250 AUTH PLAIN LOGIN\r\n");
    let sent = ("AUTH PLAIN {PLAIN}", "334 \r\n");
    succeeds("submission", &[SMTP, ehlo, sent, ("{PLAIN}", "235 2.7.0 in\r\n")], "235 2.7.0 in");
    let sent = ("AUTHENTICATE \"PLAIN\" \"{PLAIN}\"", "\"\"\r\n");
    succeeds("managesieve", &[SIEVE, sent, ("\"{PLAIN}\"", "OK \"in\"\r\n"), ("NOOP", "OK\r\n")], "OK \"in\"");
}

#[test]
fn command_that_is_not_understood_leads_to_the_next_way() {
    let two_steps = ("u2 AUTHENTICATE PLAIN", "+ \r\n");
    succeeds("imap", &[IMAP, (IMAP_PLAIN, "u1 BAD what?\r\n"), two_steps, ("{PLAIN}", "u2 OK in\r\n")], "OK in");
    let capa = ("CAPA", "+OK\r\nSASL PLAIN\r\nUSER\r\n.\r\n");
    let error = ("AUTH PLAIN {PLAIN}", "-ERR Protocol error\r\n");
    let user = ("USER alice", "+OK\r\n");
    let script = &[POP3, capa, error, ("AUTH PLAIN", "+ \r\n"), ("{PLAIN}", "+OK in\r\n")];
    succeeds("pop3", script, "+OK in");
    let script = &[POP3, capa, error, ("AUTH PLAIN", "-ERR what?\r\n"), user, ("PASS {password}", "+OK in\r\n")];
    succeeds("pop3", script, "+OK in");
    let ehlo = (EHLO, "250-old\r\n250 AUTH PLAIN LOGIN\r\n");
    let error = ("AUTH PLAIN {PLAIN}", "501 5.5.4 Syntax error\r\n");
    let script = &[SMTP, ehlo, error, ("AUTH PLAIN", "334 \r\n"), ("{PLAIN}", "235 2.7.0 in\r\n")];
    succeeds("submission", script, "235 2.7.0 in");
    let error = ("AUTHENTICATE \"PLAIN\" \"{PLAIN}\"", "NO \"Expected EOL\"\r\n");
    let two_steps = ("AUTHENTICATE \"PLAIN\"", "\"\"\r\n");
    let script = &[SIEVE, error, two_steps, ("\"{PLAIN}\"", "OK \"in\"\r\n"), ("NOOP", "OK\r\n")];
    succeeds("managesieve", script, "OK \"in\"");
}

#[test]
fn mechanism_login_is_used_where_nothing_else_is_offered() {
    let listed = ("", "* OK [CAPABILITY IMAP4rev1 LOGINDISABLED AUTH=LOGIN] old\r\n");
    let name = ("u1 AUTHENTICATE LOGIN", "+ VXNlcm5hbWU6\r\n");
    succeeds("imap", &[listed, name, ("{USER}", "+ UGFzc3dvcmQ6\r\n"), ("{PASS}", "u1 OK in\r\n")], "OK in");
    let capa = ("CAPA", "+OK\r\nSASL LOGIN\r\n.\r\n");
    let name = ("AUTH LOGIN", "+ VXNlcm5hbWU6\r\n");
    let script = &[POP3, capa, name, ("{USER}", "+ UGFzc3dvcmQ6\r\n"), ("{PASS}", "+OK in\r\n")];
    succeeds("pop3", script, "+OK in");
    let listed = ("", "\"IMPLEMENTATION\" \"old\"\r\n\"SASL\" \"LOGIN\"\r\nOK\r\n");
    let name = ("AUTHENTICATE \"LOGIN\"", "\"VXNlcm5hbWU6\"\r\n");
    let password = ("\"{USER}\"", "{12}\r\nUGFzc3dvcmQ6\r\n");
    let script = &[listed, name, password, ("\"{PASS}\"", "OK \"in\"\r\n"), ("NOOP", "OK\r\n")];
    succeeds("managesieve", script, "OK \"in\"");
}

#[test]
fn dovecot_with_the_mechanism_login_alone_is_logged_in_to() {
    let more = "auth_mechanisms = login\n";
    let dovecot = Dovecot::start_with(&shared().certificates, &shared().server3, false, more);
    let _relay = dovecot.relay();
    for (protocol, port, success) in [
        ("imap", dovecot.imaps, "OK [CAPABILITY "),
        ("pop3", dovecot.pop3s, "+OK Logged in."),
        ("submission", dovecot.submissions, "235 2.7.0 Logged in."),
        ("managesieve", dovecot.sieve, "OK \"Logged in.\""),
    ] {
        let mut config = Config::with_directory(slapd()).backend("server3", port, &["server3"]);
        if protocol != "imap" {
            config = config.speaking(protocol, &[port]).without("/routing/backends/0/imap");
        }
        if protocol == "managesieve" {
            config.change("/routing/backends/0/managesieve/tls", "starttls");
        }
        config.write();
        let checked = command(&config, &["check", "--connect"], b"").stdout;
        assert!(checked.contains("mechanisms    LOGIN") || protocol == "managesieve", "{protocol}: {checked}");
        let usher = Usher::start(config);
        let reply = log_in(protocol, &usher);
        assert!(reply.starts_with(success), "{protocol}: {reply}: {}", usher.login("alice"));
    }
}

#[test]
fn mechanisms_of_all_lines_are_used() {
    let sent = ("AUTH PLAIN {PLAIN}", "235 2.7.0 in\r\n");
    let empty_first = (EHLO, "250-old\r\n250-AUTH\r\n250-SIZE 1000\r\n250 AUTH LOGIN PLAIN\r\n");
    succeeds("submission", &[SMTP, empty_first, sent], "235");
    let old_form = (EHLO, "250-old\r\n250-AUTH GSSAPI NTLM\r\n250-AUTH=PLAIN LOGIN\r\n250 SIZE 1000\r\n");
    succeeds("submission", &[SMTP, old_form, sent], "235");
    let capa = ("CAPA", "+OK\r\nSASL GSSAPI\r\nTOP\r\nSASL PLAIN\r\n.\r\n");
    succeeds("pop3", &[POP3, capa, ("AUTH PLAIN {PLAIN}", "+OK in\r\n")], "+OK in");
    let capability = ("u1 CAPABILITY", "* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n* CAPABILITY AUTH=PLAIN\r\nu1 OK\r\n");
    let name = ("u2 AUTHENTICATE PLAIN", "+ \r\n");
    succeeds("imap", &[("", "* OK old\r\n"), capability, name, ("{PLAIN}", "u2 OK in\r\n")], "OK in");
    let listed = ("", "\"IMPLEMENTATION\" \"old\"\r\n\"SASL\" \"\"\r\n\"SASL\" \"PLAIN\"\r\nOK\r\n");
    let sent = ("AUTHENTICATE \"PLAIN\" \"{PLAIN}\"", "OK \"in\"\r\n");
    succeeds("managesieve", &[listed, sent, ("NOOP", "OK\r\n")], "OK \"in\"");
}

/// LOGIN has no authzid: the service account would be logged in instead of the user.
#[test]
fn service_account_never_uses_login() {
    let server = Scripted::tls(|peer| {
        play(peer, &[("", "* OK [CAPABILITY IMAP4rev1 AUTH=LOGIN] old\r\n")]);
    });
    let config = config("imap", &server).set("/directory/login_attribute", "uid");
    let password = config.file("backend.password", "service secret");
    let service = serde_json::json!({"login": "usher", "password_file": password});
    let config = config.set("/routing/backends/0/service", service);
    config.write();
    let checked = command(&config, &["check", "--connect"], b"").stdout;
    assert!(checked.contains("a `service` needs it"), "{checked}");
    let usher = Usher::start(config);
    assert!(log_in("imap", &usher).starts_with("NO [UNAVAILABLE]"));
    assert!(!server.transcript().contains("LOGIN\\r\\n"), "{}", server.transcript());
}

/// Exchange's POP3: it closes the connection after a message that came with the command.
#[test]
fn backend_that_closes_over_the_message_is_remembered() {
    let server = Scripted::tls(|peer| {
        peer.send("+OK The Microsoft Exchange POP3 service is ready.\r\n");
        while let Some(line) = peer.line() {
            let answer = match line.as_str() {
                "CAPA" => "+OK\r\nSASL PLAIN\r\nUSER\r\n.\r\n",
                "AUTH PLAIN" => "+\r\n",
                line if line == filled("{PLAIN}") => "+OK User successfully logged on.\r\n",
                _ => {
                    peer.send("-ERR Protocol error. Connection is closed. 10\r\n");
                    return;
                }
            };
            peer.send(answer);
        }
    });
    let usher = Usher::start(config("pop3", &server).set("/routing/backends/0/probe", "off"));
    for login in 1..=3 {
        assert!(log_in("pop3", &usher).starts_with("+OK User successfully"), "{}", server.transcript());
        assert_eq!(usher.nth_login(login, "alice")["result"], "ok");
        assert_eq!(server.connections(), login + 1, "{}", server.transcript());
    }
    let initial = server.transcript().matches(&filled("AUTH PLAIN {PLAIN}")).count();
    assert_eq!(initial, 1, "{}", server.transcript());
    usher.wait_log("backend does not read SASL initial responses; logins wait for its challenge", |line| {
        line["backend"] == "server3" && line["protocol"] == "pop3"
    });
}

/// A close in place of a refusal is no question of form once the message was requested.
#[test]
fn message_that_was_requested_is_not_sent_over_another_connection() {
    let server = Scripted::tls(|peer| {
        peer.send("+OK old\r\n");
        while let Some(line) = peer.line() {
            match line.as_str() {
                "CAPA" => peer.send("+OK\r\nSASL PLAIN\r\n.\r\n"),
                line if line == filled("{PLAIN}") => return,
                _ => peer.send("+ \r\n"),
            };
        }
    });
    let usher = Usher::start(config("pop3", &server).set("/routing/backends/0/probe", "off"));
    assert!(log_in("pop3", &usher).starts_with("-ERR [SYS/TEMP]"));
    assert_eq!(usher.login("alice")["result"], "backend_unreachable");
    assert_eq!(server.connections(), 1, "{}", server.transcript());
}

/// Servers lock accounts after a few refusals.
#[test]
fn refused_password_is_sent_once() {
    for (protocol, script) in [
        ("imap", &[IMAP, (IMAP_PLAIN, "u1 NO Login failed\r\n")] as &'static [Line]),
        (
            "pop3",
            &[
                POP3,
                ("CAPA", "+OK\r\nSASL PLAIN LOGIN\r\nUSER\r\n.\r\n"),
                ("AUTH PLAIN {PLAIN}", "-ERR Authentication failed\r\n"),
            ],
        ),
        (
            "submission",
            &[
                SMTP,
                (EHLO, "250-old\r\n250 AUTH PLAIN LOGIN\r\n"),
                ("AUTH PLAIN {PLAIN}", "535 5.7.8 Syntax of the password\r\n"),
            ],
        ),
        ("managesieve", &[SIEVE, ("AUTHENTICATE \"PLAIN\" \"{PLAIN}\"", "NO \"Authentication Error\"\r\n")]),
    ] {
        let server = Scripted::tls(move |peer| play(peer, script));
        let usher = Usher::start(config(protocol, &server));
        log_in(protocol, &usher);
        assert_eq!(usher.login("alice")["result"], "backend_rejected", "{protocol}: {}", server.transcript());
        let transcript = server.transcript();
        let logins = transcript.lines().filter(|line| line.contains(" C: ") && line.contains("AUTH")).count();
        assert_eq!(logins, 1, "{protocol}: {transcript}");
    }
}

/// An error about the form is never a verdict on the password, however often it comes.
#[test]
fn endless_errors_about_the_form_are_a_fault() {
    for (protocol, greeting, answers) in [
        ("imap", IMAP.1, &[("", "BAD what?\r\n")] as &'static [Line]),
        ("pop3", POP3.1, &[("CAPA", "+OK\r\nSASL PLAIN LOGIN\r\nUSER\r\n.\r\n"), ("", "-ERR Protocol error\r\n")]),
        ("submission", SMTP.1, &[(EHLO, "250-old\r\n250 AUTH PLAIN LOGIN\r\n"), ("", "501 5.5.2 what?\r\n")]),
        ("managesieve", SIEVE.1, &[("", "NO \"Unknown command\"\r\n")]),
    ] {
        let server = Scripted::tls(move |peer| {
            peer.send(greeting);
            while let Some(line) = peer.line() {
                let tag = if protocol == "imap" { line.split(' ').next().unwrap().to_owned() + " " } else { "".into() };
                let (_, answer) = answers.iter().find(|(command, _)| command.is_empty() || line == *command).unwrap();
                peer.send(tag + answer);
            }
        });
        let usher = Usher::start(config(protocol, &server));
        log_in(protocol, &usher);
        assert_eq!(usher.login("alice")["result"], "backend_fault", "{protocol}: {}", server.transcript());
        let sent = server.transcript().matches(" C: ").count();
        assert!(sent <= 5, "{protocol}: {}", server.transcript());
    }
}

/// timsieved before RFC 5804 lists nothing after STARTTLS until it is asked.
#[test]
fn silent_sieve_server_is_asked_by_logins_probes_and_checks() {
    for lists in [1, 2] {
        let server = Scripted::plain(move |peer| {
            let list =
                "\"IMPLEMENTATION\" \"Cyrus timsieved v2.1\"\r\n\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"\r\n";
            peer.send(format!("{list}\"STARTTLS\"\r\nOK\r\n"));
            if peer.line().as_deref() != Some("STARTTLS") {
                return;
            }
            peer.send("OK\r\n");
            if !peer.start_tls() || peer.line().as_deref() != Some("CAPABILITY") {
                return;
            }
            // The second is that of a server that is only slow.
            peer.send(format!("{list}OK\r\n").repeat(lists));
            while let Some(line) = peer.line() {
                peer.send(if line.starts_with("AUTH") { "OK \"in\"\r\n" } else { "NO \"what?\"\r\n" });
            }
        });
        let config = config("managesieve", &server)
            .set("/routing/backends/0/managesieve/tls", "starttls")
            .set("/routing/backends/0/probe", "greeting")
            .set("/routing/backends/0/probe_interval", "1h");
        config.write();
        let checked = command(&config, &["check", "--connect"], b"").stdout;
        assert!(checked.contains("ready to send after"), "{checked}\n{}", server.transcript());
        let usher = Usher::start(config);
        let labels = [("backend", "server3"), ("result", "ok")];
        usher.wait_metric("usher_backend_probes_total", &labels, 1.0);
        assert_eq!(log_in("managesieve", &usher), "OK \"in\"", "{}", server.transcript());
    }
}

#[test]
fn what_comes_with_the_ok_reaches_the_client() {
    // Gmail's and other servers' warnings; nothing is asked of the server behind the OK.
    let server = Scripted::tls(|peer| play(peer, &[IMAP, (IMAP_PLAIN, "u1 OK [ALERT] Enable IMAP first\r\n")]));
    let usher = Usher::start(config("imap", &server));
    let mut imap = Imap::tls(usher.imaps_port());
    // A client that has asked before receives nothing that the backend has not sent.
    imap.command("CAPABILITY").ok();
    let reply = imap.login("alice", &password_of("alice")).is("OK Enable IMAP first");
    assert_eq!(reply.untagged, ["* OK [ALERT] Enable IMAP first"]);
    assert!(!server.transcript().contains("CAPABILITY\\r\\n"), "{}", server.transcript());

    let server = Scripted::tls(|peer| {
        peer.send(IMAP.1);
        if peer.line().is_some_and(|line| line == filled(IMAP_PLAIN)) {
            peer.send("u1 OK in\r\n* BYE [ALERT] moved\r\n");
        }
    });
    let usher = Usher::start(config("imap", &server));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).is("OK in");
    assert_eq!(imap.line(), "* BYE [ALERT] moved");

    let accepted = ("AUTHENTICATE \"PLAIN\" \"{PLAIN}\"", "OK \"in\"\r\n");
    let server = Scripted::tls(move |peer| play(peer, &[SIEVE, accepted, ("NOOP", "BYE \"moved\"\r\n")]));
    let usher = Usher::start(config("managesieve", &server));
    let mut sieve = Sieve::tls(usher.imaps_port());
    assert_eq!(sieve.authenticate("alice", &password_of("alice")), "OK \"in\"");
    assert_eq!(sieve.answer(), ["BYE \"moved\""]);
}
