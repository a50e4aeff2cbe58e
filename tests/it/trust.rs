//! What backends must know of usher: PROXY headers, trusted networks, and whom they take for the client.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::dovecot::Dovecot;
use crate::kit::nginx::Nginx;
use crate::kit::process::free_port;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, Slapd};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, User, Usher, cyrus, dovecot, password_of, shared, slapd};

/// One backend with this certificate's name, at this port of this protocol.
fn config(protocol: &str, name: &str, port: u16, tls: &str, forward: &str) -> Config {
    with(slapd(), protocol, name, port, tls, forward)
}

/// As [`config`], with this directory.
fn with(slapd: &Slapd, protocol: &str, name: &str, port: u16, tls: &str, forward: &str) -> Config {
    let config = Config::with_directory(slapd).backend(name, port, &["server3"]);
    let config = config.without("/routing/backends/0/imap").speaking(protocol, &[port]);
    let endpoint = json!({
        "address": format!("127.0.0.1:{port}"),
        "tls": tls,
        "server_name": format!("{name}.example.com"),
        "forward": forward,
    });
    config.set(&format!("/routing/backends/0/{protocol}"), endpoint)
}

/// The exit code of `check --connect`, and its findings about the backend.
fn checked(config: &Config) -> (i32, Vec<Value>) {
    config.write();
    let said = command(config, &["check", "--connect", "--json"], b"");
    let report: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    let mut subjects = report["subjects"].as_array().unwrap().iter();
    let backend = subjects.find(|subject| subject["kind"] == "backend").unwrap();
    (said.code, backend["findings"].as_array().unwrap().clone())
}

/// The one finding with this name.
#[track_caller]
fn finding(findings: &[Value], check: &str) -> Value {
    findings
        .iter()
        .find(|finding| finding["check"] == check)
        .unwrap_or_else(|| panic!("{check}: {findings:#?}"))
        .clone()
}

#[track_caller]
fn has(finding: &Value, state: &str, words: &[&str]) {
    assert_eq!(finding["state"], state, "{finding:#}");
    let text = format!("{} -> {}", finding["found"].as_str().unwrap(), finding["advice"].as_str().unwrap_or_default());
    assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
}

/// Dovecot with the penalty that it has by default, and with usher among its trusted networks.
fn punishing() -> Dovecot {
    let more = "login_trusted_networks = 127.0.0.1\nauth_failure_delay = 2 secs\n\
                service anvil {\n  unix_listener anvil-auth-penalty {\n    mode = 0600\n  }\n}\n";
    Dovecot::start_with(&shared().certificates, &shared().server3, false, more)
}

#[test]
fn one_rejection_delays_no_other_user_where_dovecot_sees_the_clients() {
    let dovecot = punishing();
    // The directory accepts a user that Dovecot does not have.
    let entries = User::new("gone", Some("server3")).ldif();
    let slapd = Slapd::with(Options { entries: &entries, ..Options::default() });
    let log_in = |usher: &Usher, from: [u8; 4], uid: &str| {
        let mut imap = Imap::tls_from(from, usher.imaps_port());
        let asked = Instant::now();
        (imap.login(uid, &password_of(uid)).tagged, asked.elapsed())
    };
    // Each client has an address of its own.
    let usher = Usher::start(with(&slapd, "imap", "server3", dovecot.imaps, "implicit", "id"));
    let (rejected, _) = log_in(&usher, [127, 0, 0, 77], "gone");
    assert!(rejected.starts_with("NO [UNAVAILABLE]"), "{rejected}");
    assert_eq!(usher.login("gone")["result"], "backend_rejected");
    let (reply, took) = log_in(&usher, [127, 0, 0, 78], "alice");
    assert!(reply.starts_with("OK"), "{reply}");
    assert!(took < Duration::from_secs(3), "no delay for another client: {took:?}");

    // usher is the client of all users.
    let usher = Usher::start(with(&slapd, "imap", "server3", dovecot.imaps, "implicit", "none"));
    let (rejected, _) = log_in(&usher, [127, 0, 0, 77], "gone");
    assert!(rejected.starts_with("NO [UNAVAILABLE]"), "{rejected}");
    let (reply, took) = log_in(&usher, [127, 0, 0, 79], "alice");
    assert!(reply.starts_with("NO [UNAVAILABLE]") && took >= Duration::from_secs(3), "{reply} after {took:?}");
    let event = usher.login("alice");
    assert_eq!(event["result"], "backend_timeout");
    let said = event["backend_reply"].as_str().unwrap();
    for words in [
        "no reply to the login within 4s",
        "rejected a login",
        "auth penalty",
        "with `forward: none` that is every user's",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn time_out_without_a_rejection_before_names_none() {
    let server = Scripted::tls(|peer| {
        peer.send(crate::kit::scripted::GREETING);
        peer.take_login();
        peer.wait_for_end();
    });
    let config = Config::with_directory(slapd()).scripted(&server).set("/routing/backends/0/timeout", "300ms");
    let usher = Usher::start(config);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    assert_eq!(usher.login("alice")["backend_reply"], "no reply to the login within 300ms");
}

#[test]
fn time_out_after_a_rejection_in_another_protocol_names_it() {
    let (imap, pop3) = (
        Scripted::tls(|peer| {
            peer.send(crate::kit::scripted::GREETING);
            peer.take_login();
            peer.wait_for_end();
        }),
        Scripted::tls(|peer| {
            peer.send("+OK ready\r\n");
            while let Some(line) = peer.line() {
                peer.send(if line == "CAPA" { "+OK\r\nSASL PLAIN\r\n.\r\n" } else { "-ERR [AUTH] no\r\n" });
            }
        }),
    );
    let config = Config::with_directory(slapd()).scripted(&imap).set("/routing/backends/0/timeout", "300ms");
    let endpoint = |port: u16, forward: &str| {
        let address = format!("127.0.0.1:{port}");
        json!({"address": address, "tls": "implicit", "server_name": "server3.example.com", "forward": forward})
    };
    let config = config.set("/routing/backends/0/pop3", endpoint(pop3.port, "none"));
    let config = config.set("/routing/backends/0/imap", endpoint(imap.port, "id"));
    let usher = Usher::start(
        config.set("/listeners/1", json!({"protocol": "pop3", "address": "127.0.0.1:0", "tls": "implicit"})),
    );
    let pop3_port = usher.addresses()[1].rsplit(':').next().unwrap().parse().unwrap();
    let mut client = Imap::tls(pop3_port);
    client.send(format!("USER alice\r\nPASS {}\r\n", password_of("alice")));
    assert!(client.line().starts_with("+OK"));
    assert!(client.line().starts_with("-ERR [SYS/TEMP]"));
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    let event = usher.nth_login(2, "alice");
    let said = event["backend_reply"].as_str().unwrap();
    // The client's address is forwarded, perhaps in vain.
    assert!(said.contains("rejected a login") && said.contains("usher is not in its trusted networks"), "{said}");
}

#[test]
fn check_recognizes_dovecot_without_the_clients_addresses() {
    let dovecot = dovecot();
    for (protocol, port, tls, word) in [
        ("imap", dovecot.imaps, "implicit", "id"),
        ("imap", dovecot.imap, "starttls", "id"),
        ("pop3", dovecot.pop3s, "implicit", "xclient"),
        ("submission", dovecot.submission, "starttls", "xclient"),
        ("managesieve", dovecot.sieve, "starttls", "xclient"),
    ] {
        let (code, findings) = checked(&config(protocol, "server3", port, tls, "none"));
        assert_eq!(code, 0, "a warning is no problem: {findings:#?}");
        let lines = ["this is Dovecot", "auth penalty", "mail_max_userip_connections"];
        has(&finding(&findings, "forward"), "warning", &lines);
        let lines = [
            "`login_trusted_networks = 127.0.0.1` in Dovecot".to_owned(),
            format!("`forward: {word}` in `{protocol}` of server3"),
        ];
        has(&finding(&findings, "forward"), "warning", &lines.each_ref().map(String::as_str));
    }
    // Whether it trusts usher it does not say.
    let (_, findings) = checked(&config("imap", "server3", dovecot.imaps, "implicit", "id"));
    has(&finding(&findings, "forward"), "note", &["only if it trusts 127.0.0.1", "rip=", "login_trusted_networks"]);
    let (_, findings) = checked(&config("imap", "server4", cyrus().imaps, "implicit", "none"));
    assert!(findings.iter().all(|finding| finding["check"] != "forward"), "{findings:#?}");
    let distrusting = Scripted::plain(|peer| {
        peer.send("* OK [CAPABILITY IMAP4rev1 ID STARTTLS LOGINDISABLED] Dovecot ready.\r\n");
        while let Some((tag, command)) = peer.command() {
            peer.send(match command.as_str() {
                "CAPABILITY" => format!("* CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN\r\n{tag} OK done\r\n"),
                _ => format!("{tag} OK done\r\n"),
            });
            if command == "STARTTLS" {
                peer.start_tls();
            }
        }
    });
    let (_, findings) = checked(&config("imap", "server3", distrusting.port, "starttls", "id"));
    has(&finding(&findings, "forward"), "warning", &["seems not to trust 127.0.0.1", "LOGINDISABLED"]);
    // By its name alone, where the greeting is the operator's.
    let named = Scripted::tls(|peer| {
        peer.send("* OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN] Welcome\r\n");
        while let Some((tag, _)) = peer.command() {
            peer.send(format!("* ID (\"name\" \"Dovecot\")\r\n{tag} OK done\r\n"));
        }
    });
    let (_, findings) = checked(&config("imap", "server3", named.port, "implicit", "none"));
    has(&finding(&findings, "forward"), "warning", &["this is Dovecot"]);
    assert!(!named.transcript().contains("AUTHENTICATE"), "{}", named.transcript());
}

/// Dovecot with listeners that require a PROXY header.
fn expecting(trusted: &str) -> (Dovecot, [u16; 5]) {
    let ports: [u16; 5] = std::array::from_fn(|_| free_port());
    let [imaps, imap, pop3s, submission, sieve] = ports;
    let listener = |service: &str, name: &str, port: u16, ssl: &str| {
        format!(
            "service {service}-login {{\n  inet_listener {name}_haproxy {{\n    port = {port}\n    {ssl}\n    haproxy = yes\n  }}\n}}\n"
        )
    };
    let more = [
        format!("haproxy_trusted_networks = {trusted}\n"),
        listener("imap", "imaps", imaps, "ssl = yes"),
        listener("imap", "imap", imap, ""),
        listener("pop3", "pop3s", pop3s, "ssl = yes"),
        listener("submission", "submission", submission, ""),
        listener("managesieve", "sieve", sieve, ""),
    ];
    (Dovecot::start_with(&shared().certificates, &shared().server3, false, &more.concat()), ports)
}

#[test]
fn check_reports_a_proxy_header_that_the_server_misses() {
    let (_dovecot, [imaps, imap, pop3s, submission, sieve]) = expecting("127.0.0.0/8");
    let cases = [
        ("imap", imaps, "implicit", "none"),
        ("imap", imaps, "implicit", "id"),
        ("imap", imap, "starttls", "none"),
        ("pop3", pop3s, "implicit", "xclient"),
        ("submission", submission, "starttls", "none"),
        ("managesieve", sieve, "starttls", "none"),
    ];
    for (protocol, port, tls, forward) in cases {
        let (code, findings) = checked(&config(protocol, "server3", port, tls, forward));
        assert_eq!(code, 69, "{findings:#?}");
        let word = format!("usher sends none (`forward: {forward}`)");
        let words = ["the server expects a PROXY header", &word, "`forward: proxy_v2`", "`haproxy = yes`"];
        has(&finding(&findings, "proxy header"), "problem", &words);
        // As advised.
        let (code, findings) = checked(&config(protocol, "server3", port, tls, "proxy_v2"));
        assert_eq!(code, 0, "{findings:#?}");
    }
    // A second mistake is reported beside it.
    let wrong_ca = config("imap", "server3", imaps, "implicit", "none");
    let (_, findings) = checked(&wrong_ca.set("/routing/backends/0/ca", json!(shared().certificates.wrong_ca())));
    has(&finding(&findings, "proxy header"), "problem", &["the server expects a PROXY header", "it answers in TLS"]);
    has(&finding(&findings, "tls"), "problem", &["no known authority", "`ca` must name"]);
    // nginx waits for the header.
    let [imaps, imap] = [free_port(), free_port()];
    let servers = format!(
        "server {{ listen 127.0.0.1:{imaps} ssl proxy_protocol; protocol imap; imap_auth plain login; }}
         server {{ listen 127.0.0.1:{imap} proxy_protocol; protocol imap; imap_auth plain login; starttls on; }}"
    );
    let _nginx = Nginx::start(1, &servers);
    for (port, tls) in [(imaps, "implicit"), (imap, "starttls")] {
        let (code, findings) = checked(&config("imap", "usher", port, tls, "none"));
        assert_eq!(code, 69, "{findings:#?}");
        has(&finding(&findings, "proxy header"), "problem", &["the server expects a PROXY header"]);
        let (code, findings) = checked(&config("imap", "usher", port, tls, "proxy_v1"));
        assert_eq!(code, 0, "{findings:#?}");
    }
}

#[test]
fn check_reports_a_proxy_header_that_the_server_does_not_expect() {
    let (dovecot, cyrus) = (dovecot(), cyrus());
    let (cyrus_pop3s, _) = cyrus.pop3();
    let nginx = Nginx::start(1, "");
    for (protocol, name, port, tls, own) in [
        ("imap", "server3", dovecot.imaps, "implicit", "`id`"),
        ("imap", "server3", dovecot.imap, "starttls", "`id`"),
        ("pop3", "server3", dovecot.pop3s, "implicit", "`xclient`"),
        ("pop3", "server3", dovecot.pop3, "starttls", "`xclient`"),
        ("submission", "server3", dovecot.submissions, "implicit", "`xclient`"),
        ("submission", "server3", dovecot.submission, "starttls", "`xclient`"),
        ("managesieve", "server3", dovecot.sieve, "starttls", "`xclient`"),
        ("imap", "server4", cyrus.imaps, "implicit", "`id`"),
        ("imap", "server4", cyrus.imap, "starttls", "`id`"),
        ("pop3", "server4", cyrus_pop3s, "implicit", "`xclient`"),
        ("managesieve", "server4", cyrus.sieve, "starttls", "`xclient`"),
        ("imap", "usher", nginx.imaps, "implicit", "`id`"),
        ("pop3", "usher", nginx.pop3s, "implicit", "`xclient`"),
    ] {
        for forward in ["proxy_v1", "proxy_v2"] {
            let (code, findings) = checked(&config(protocol, name, port, tls, forward));
            assert_eq!(code, 69, "{protocol} {tls} {forward}: {findings:#?}");
            let word = format!("`forward: {forward}`");
            let words = ["usher sends a PROXY header", &word, "the server expects none", own, "`none`"];
            has(&finding(&findings, "proxy header"), "problem", &words);
        }
    }
}

#[test]
fn check_sends_no_credentials_the_other_way_and_says_when_both_fail() {
    // It wants a header, and then a login.
    let server = Scripted::plain(|peer| {
        if peer.line().is_some_and(|line| line.is_empty()) {
            peer.bytes(14);
            peer.send(crate::kit::scripted::GREETING);
            peer.wait_for_end();
        }
    });
    let config = config("imap", "server3", server.port, "plaintext-insecure", "none");
    let password = config.file("probe.password", "probe secret");
    let account = json!({"login": "prober", "password_file": password});
    let config = config.set("/routing/backends/0/probe", "login").set("/routing/backends/0/probe_account", account);
    let (_, findings) = checked(&config.set("/routing/backends/0/timeout", "1s"));
    has(&finding(&findings, "proxy header"), "problem", &["the server expects a PROXY header"]);
    assert_eq!(server.connections(), 2, "once each way");
    let transcript = server.transcript();
    assert!(!transcript.contains("AUTHENTICATE") && !transcript.contains("secret"), "{transcript}");

    // A Dovecot that takes headers from others alone.
    let (_dovecot, [imaps, ..]) = expecting("192.0.2.0/24");
    for forward in ["proxy_v2", "none"] {
        let (code, findings) = checked(&self::config("imap", "server3", imaps, "implicit", forward));
        assert_eq!(code, 69, "{findings:#?}");
        let problem = findings.iter().find(|finding| finding["state"] == "problem").unwrap();
        has(problem, "problem", &["with a PROXY header and without", "`haproxy_trusted_networks`"]);
        assert!(problem["advice"].as_str().unwrap().starts_with("it is the same"), "{problem}");
    }
    // Nor is it tried for a fault that no header explains.
    let closed = self::config("imap", "server3", free_port(), "implicit", "none");
    has(&finding(&checked(&closed).1, "tcp"), "problem", &["refused", "is the mail server running"]);
}
