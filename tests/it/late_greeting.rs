//! Servers that greet late on purpose, as some do against spam: waited for within `timeout`, and reported.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::client::base64;
use crate::kit::scripted::{Peer, Scripted};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Sieve, Usher, password_of, slapd};

/// What the servers here wait before they greet.
const LATE: Duration = Duration::from_secs(5);

/// A server of this protocol that greets late, offers STARTTLS, and accepts every login. SMTP begins its greeting at
/// once and pauses inside.
fn late(protocol: &'static str, delay: Duration) -> impl Fn(&mut Peer) + Send + Sync + 'static {
    move |peer| {
        if protocol == "submission" {
            peer.send("220-server3.example.com\r\n");
        }
        // The delay is the input under test.
        std::thread::sleep(delay);
        let sieve = "\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"\r\n\"STARTTLS\"\r\nOK\r\n";
        peer.send(match protocol {
            "imap" => "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN STARTTLS] ready\r\n",
            "pop3" => "+OK ready\r\n",
            "submission" => "220 ready\r\n",
            _ => sieve,
        });
        while let Some(line) = peer.line() {
            let (tag, imap) = line.split_once(' ').filter(|_| protocol == "imap").unwrap_or(("", &line));
            let verb = imap.split(' ').next().unwrap_or_default();
            peer.send(match (protocol, verb) {
                ("imap", "CAPABILITY") => format!("* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\n{tag} OK\r\n"),
                ("imap", _) => format!("{tag} OK [CAPABILITY IMAP4rev1] done\r\n"),
                ("pop3", "CAPA") => "+OK\r\nSASL PLAIN\r\nSTLS\r\n.\r\n".to_owned(),
                ("pop3", _) => "+OK done\r\n".to_owned(),
                ("submission", "EHLO") => "250-server3\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n".to_owned(),
                ("submission", "STARTTLS") => "220 go ahead\r\n".to_owned(),
                ("submission", _) => "235 2.7.0 done\r\n".to_owned(),
                (_, _) => "OK\r\n".to_owned(),
            });
            if matches!(verb, "STARTTLS" | "STLS") {
                assert!(peer.start_tls());
                if protocol == "managesieve" {
                    peer.send(sieve);
                }
            }
        }
    }
}

/// One protocol, with this server as server3 and time for its greeting.
fn config(protocol: &str, tls: &str, server: &Scripted) -> Config {
    let config = Config::with_directory(slapd()).scripted(server).speaking(protocol, &[server.port]);
    let config = match protocol {
        "imap" => config,
        _ => config.without("/routing/backends/0/imap"),
    };
    let config = config.set(&format!("/routing/backends/0/{protocol}/tls"), tls);
    config.set("/routing/backends/0/timeout", "8s").set("/directory/timeout", "2s")
}

/// Logs alice in; the reply.
fn log_in(usher: &Usher, protocol: &str) -> String {
    let message = base64(format!("\0alice\0{}", password_of("alice")).as_bytes());
    if protocol == "managesieve" {
        return Sieve::tls(usher.imaps_port()).authenticate("alice", &password_of("alice"));
    }
    let mut client = Imap::tls(usher.imaps_port());
    match protocol {
        "imap" => client.login("alice", &password_of("alice")).tagged,
        "pop3" => {
            client.send(format!("AUTH PLAIN {message}\r\n"));
            client.line()
        }
        _ => {
            client.send("EHLO client.example.com\r\n");
            while !client.line().starts_with("250 ") {}
            client.send(format!("AUTH PLAIN {message}\r\n"));
            client.line()
        }
    }
}

#[test]
fn late_greeting_is_waited_for_in_every_protocol() {
    let cases = ["imap", "pop3", "submission", "managesieve"];
    let cases = cases.into_iter().flat_map(|protocol| ["implicit", "starttls"].map(|tls| (protocol, tls)));
    std::thread::scope(|threads| {
        for (protocol, tls) in cases {
            threads.spawn(move || {
                let server = match tls {
                    "implicit" => Scripted::tls(late(protocol, LATE)),
                    _ => Scripted::plain(late(protocol, LATE)),
                };
                let config = config(protocol, tls, &server).set("/routing/backends/0/probe", "greeting");
                let usher = Usher::start(config.set("/routing/backends/0/probe_interval", "1s"));
                let asked = Instant::now();
                let reply = log_in(&usher, protocol);
                assert!(["OK", "+OK", "235"].iter().any(|ok| reply.starts_with(ok)), "{protocol} {tls}: {reply}");
                assert!(asked.elapsed() >= LATE, "{protocol} {tls}");
                assert_eq!(usher.login("alice")["result"], "ok");
                // Probes are as patient, and say what they have seen.
                usher.wait_metric("usher_backend_probes_total", &[("result", "ok")], 1.0);
                assert_eq!(usher.metric("usher_backend_up", &[("protocol", protocol)]), 1.0);
                let reported = usher.wait_log("backend address greets late; every login waits for it", |_| true);
                assert!(reported["greets_after_ms"].as_u64().unwrap() >= 4_500, "{reported}");
                assert!(!usher.log_text().contains("marked down"), "{}", usher.log_text());
                let said = usher.command(&["backends"]).succeeded().stdout;
                assert!(said.contains("is in use and greets after "), "{said}");
            });
        }
    });
}

#[test]
fn late_greeting_is_waited_for_beside_another_address() {
    let delay = Duration::from_secs(3);
    let first = Scripted::tls(late("imap", delay));
    let silent = Scripted::plain(Peer::wait_for_end);
    let config = config("imap", "implicit", &first).set("/routing/backends/0/timeout", "5s");
    let addresses = [first.port, silent.port].map(|port| format!("127.0.0.1:{port}"));
    let usher = Usher::start(config.set("/routing/backends/0/imap/address", json!(addresses)));
    // Half of the time goes by before the second one is tried, and the first one greets after that.
    assert!(log_in(&usher, "imap").starts_with("OK"));
    assert_eq!((first.connections(), silent.connections()), (1, 1));
    assert_eq!(usher.metric("usher_backend_addresses", &[("state", "closed")]), 2.0);
}

#[test]
fn greeting_later_than_the_timeout_is_told_from_other_silence() {
    let outcome = |script: fn(&mut Peer)| {
        let server = Scripted::tls(script);
        let config = config("imap", "implicit", &server).set("/routing/backends/0/timeout", "300ms");
        let usher = Usher::start(config);
        assert!(log_in(&usher, "imap").starts_with("NO [UNAVAILABLE]"));
        assert_eq!(usher.login("alice")["result"], "backend_timeout");
        usher.login("alice")["backend_reply"].as_str().unwrap().to_owned()
    };
    assert_eq!(outcome(Peer::wait_for_end), "no greeting within 300ms");
    let half = outcome(|peer| {
        peer.send("* OK [CAPABILITY IMAP4rev1 ");
        peer.wait_for_end();
    });
    assert_eq!(half, "only the beginning of a greeting within 300ms");
    let after = outcome(|peer| {
        peer.send("* OK ready\r\n");
        peer.wait_for_end();
    });
    assert_eq!(after, "no reply within 300ms");
    let login = outcome(|peer| {
        peer.send("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready\r\n");
        peer.wait_for_end();
    });
    assert_eq!(login, "no reply to the login within 300ms");
}

/// What `check --connect` finds about the greeting of server3.
fn checked(config: &Config) -> (i32, Value) {
    config.write();
    let said = command(config, &["check", "--connect", "--json"], b"");
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    let mut subjects = report["subjects"].as_array().unwrap().iter();
    let server = subjects.find(|subject| subject["name"] == "server3").unwrap();
    let mut findings = server["findings"].as_array().unwrap().iter();
    let found = findings.find(|finding| finding["check"] == "greeting");
    (said.code, found.unwrap_or_else(|| panic!("{report:#}")).clone())
}

#[test]
fn check_names_both_keys_for_a_late_greeting() {
    let server = Scripted::tls(late("submission", LATE));
    let config = config("submission", "implicit", &server);
    // The defaults.
    let defaults = config.without("/routing/backends/0/timeout").without("/directory/timeout");
    let (code, found) = checked(&defaults);
    assert_eq!((code, &found["state"]), (69, &json!("problem")), "{found}");
    let said = found["found"].as_str().unwrap();
    assert!(said.contains("greets after ") && said.contains("`timeout` is 4s"), "{said}");
    let advice = found["advice"].as_str().unwrap();
    let number = |before: &str| -> u64 {
        let (_, behind) = advice.split_once(before).unwrap_or_else(|| panic!("{before}: {advice}"));
        behind.split_once('s').unwrap().0.parse().unwrap()
    };
    let timeout = number("set `timeout` of server3 to ");
    let directory = number(" and `directory.timeout`, now 5s, to ");
    assert!(timeout > LATE.as_secs() && timeout + directory == 10, "{advice}");
    // As advised.
    let advised = defaults.set("/routing/backends/0/timeout", format!("{timeout}s"));
    let (code, found) = checked(&advised.set("/directory/timeout", format!("{directory}s")));
    assert_eq!((code, &found["state"]), (0, &json!("note")), "{found}");
}
