//! Tokens are secrets: none stays in memory after its login, and none is shown anywhere. What is forgotten of them by
//! `usher cache drop`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::kit::client::base64;
use crate::kit::dovecot_versions::Version;
use crate::kit::issuer::{Conduct, INTROSPECTION, ScriptedIssuer, in_seconds};
use crate::kit::signer::{Signer, base64url};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher, slapd};
use crate::memory::{gone, watched};
use crate::token_backends::verifying;
use crate::token_login::{ALICE, config, log_in, oauthbearer, xoauth2};

/// The secret of introspection.
const CLIENT_SECRET: &str = "Ck7vQ9zT2xLm5Rb8Yd3Wn6Hs1Pf4Jg0";
/// About the longest token that a command of 12,288 octets holds.
const LONG: usize = 9_000;

/// Parts of a text of which none may be found: from everywhere in it, as it is and in base64 at each alignment.
fn parts(name: &str, text: &str) -> Vec<(String, Vec<u8>)> {
    // What tokens of one issuer have in common stands at the beginning.
    let offsets = (0..=text.len() - 60).filter(|at| at % 700 == 100.min(text.len() - 60)).chain([text.len() - 60]);
    let part = |at: usize| {
        let bytes = &text.as_bytes()[at..at + 60];
        let name = name.replace(' ', "_");
        let mut found = vec![(format!("{name}:{at}"), bytes[..24].to_vec())];
        for alignment in 0..3 {
            let encoded = base64(&[&vec![0; alignment], bytes].concat());
            found.push((format!("{name}:{at}:base64-{alignment}"), encoded.as_bytes()[8..32].to_vec()));
        }
        found
    };
    offsets.flat_map(part).collect()
}

/// As many characters that no other test has.
fn random_text(length: usize) -> String {
    let mut bytes = vec![0; length];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    base64url(bytes)[..length].to_owned()
}

/// A token of at least this many bytes, with these claims.
fn token(issuer: &ScriptedIssuer, length: usize, change: impl Fn(&mut Value)) -> String {
    let mut claims = issuer.claims(ALICE);
    claims["padding"] = random_text(length * 3 / 4).into();
    change(&mut claims);
    issuer.sign(&claims)
}

fn introspecting(issuer: &ScriptedIssuer, mut config: Config) -> Config {
    config.file("idp.secret", CLIENT_SECRET);
    let url = issuer.url(INTROSPECTION);
    let settings = json!({"url": url, "client_id": "usher", "client_secret_file": "idp.secret"});
    config.change("/tokens/0/introspection", settings);
    // JWTs are verified by keys all the same.
    config.change("/tokens/0/discovery", json!(issuer.issuer()));
    config
}

/// Logs in, and out again.
fn visit(usher: &Usher, mechanism: &str, message: &str) -> bool {
    let mut client = Imap::tls(usher.imaps_port());
    client.send(format!("a AUTHENTICATE {mechanism} {message}\r\n"));
    let mut line = client.line();
    if line.starts_with("+ ") {
        client.send("AQ==\r\n");
        line = client.line();
    }
    while !line.starts_with("a ") {
        line = client.line();
    }
    let accepted = line.starts_with("a OK");
    client.send("b LOGOUT\r\n");
    client.rest();
    accepted
}

#[test]
fn tokens_stay_in_no_memory_page() {
    let issuer = ScriptedIssuer::start();
    let usher = watched(introspecting(&issuer, config(&issuer)));
    let mut all = parts("client secret", &base64(format!("usher:{CLIENT_SECRET}{}", " ".repeat(60)).as_bytes())[8..68]);
    let mut check = |name: &str, token: &str, accepted: bool| {
        for (mechanism, message) in [("OAUTHBEARER", oauthbearer("", token)), ("XOAUTH2", xoauth2("", token))] {
            assert_eq!(visit(&usher, mechanism, &message), accepted, "{name} by {mechanism}");
            let parts = parts(name, token);
            gone(&usher, &format!("{name} by {mechanism}"), &parts);
            all.extend(parts);
        }
    };
    for length in [10, LONG - 900] {
        check(&format!("token of {length}"), &token(&issuer, length, |_| ()), true);
        let expired = token(&issuer, length, |claims| claims["exp"] = json!(in_seconds(-300)));
        check(&format!("expired token of {length}"), &expired, false);
    }
    let mut answer = issuer.claims(ALICE);
    answer["active"] = json!(true);
    for length in [200, LONG] {
        let opaque = random_text(length);
        check(&format!("unknown opaque token of {length}"), &opaque, false);
        let opaque = random_text(length);
        issuer.introspects(&opaque, answer.clone());
        check(&format!("opaque token of {length}"), &opaque, true);
    }
    gone(&usher, "after all", &all);
}

#[test]
fn forwarded_and_traced_tokens_stay_in_no_memory_page() {
    let issuer = ScriptedIssuer::start();
    let signer = Signer::new("ES256", "dovecot");
    let server = verifying(Version::V23, &issuer, &signer);
    issuer.rotate(signer);
    let config = Config::with_directory(slapd()).backend("server3", server.imaps, &["server3"]);
    let config = issuer
        .configured(config)
        .set("/routing/backends/0/token", "forward")
        .set("/routing/backends/0/user_claim", "email");
    let usher = watched(config);
    let mut reader = UnixStream::connect(usher.config.path("control.sock")).unwrap();
    reader.write_all(b"POST /trace?client=127.0.0.1&for=1h HTTP/1.1\r\nHost: usher\r\n\r\n").unwrap();
    usher.wait_metric("usher_traces", &[], 1.0);
    for length in [10, 5_000] {
        let mut claims = issuer.claims(ALICE);
        claims["padding"] = random_text(length * 3 / 4).into();
        let token = issuer.sign_as("JWT", "dovecot", &claims);
        for (mechanism, message) in [("OAUTHBEARER", oauthbearer("", &token)), ("XOAUTH2", xoauth2("", &token))] {
            assert!(visit(&usher, mechanism, &message), "{length} by {mechanism}: {}", server.logged());
            gone(&usher, &format!("a token of {length} by {mechanism}"), &parts("token", &token));
        }
    }
    drop(reader);
}

#[test]
fn tokens_are_shown_nowhere() {
    let issuer = ScriptedIssuer::start();
    let config = introspecting(&issuer, config(&issuer)).set("/log", json!({"format": "json", "level": "trace"}));
    let usher = Usher::start(config);
    let mut reader = UnixStream::connect(usher.config.path("control.sock")).unwrap();
    reader.write_all(b"POST /trace?client=127.0.0.1&for=1h HTTP/1.1\r\nHost: usher\r\n\r\n").unwrap();
    usher.wait_metric("usher_traces", &[], 1.0);
    let traced = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = reader.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let good = token(&issuer, 100, |_| ());
    let expired = token(&issuer, 100, |claims| claims["exp"] = json!(in_seconds(-300)));
    let forged = Signer::new("ES256", "first").token(&issuer.claims(ALICE));
    let stranger = Signer::new("ES256", "no-such-key").token(&issuer.claims(ALICE));
    let (opaque, unknown) = (random_text(100), random_text(100));
    let mut answer = issuer.claims(ALICE);
    answer["active"] = json!(true);
    issuer.introspects(&opaque, answer);
    let mut open = Vec::new();
    let all = [&good, &opaque, &expired, &forged, &stranger, &unknown];
    for token in all {
        let mut client = Imap::tls(usher.imaps_port());
        client.send(format!("a AUTHENTICATE OAUTHBEARER {}\r\n", oauthbearer("", token)));
        client.line();
        assert_eq!(visit(&usher, "XOAUTH2", &xoauth2("", token)), token == &good || token == &opaque);
        // A command with a token that is malformed, or does not belong to a command.
        let _ = visit(&usher, "OAUTHBEARER", &base64(format!("n,,\x01auth=Basic {token}\x01\x01").as_bytes()));
        let _ = visit(&usher, "OAUTHBEARER", token);
        let mut other = Imap::tls(usher.imaps_port());
        other.send(format!("b {token}\r\nc AUTHENTICATE {token}\r\nd LOGOUT\r\n"));
        other.rest();
        open.push(client);
    }
    issuer.set_conduct(INTROSPECTION, Conduct::Status(500, ""));
    let outage = random_text(100);
    assert!(!visit(&usher, "OAUTHBEARER", &oauthbearer("", &outage)));
    let mut shown = vec![usher.http("/metrics").1];
    for arguments in [&["sessions", "--json"][..], &["cache", "show", ALICE, "--json"], &["cache", "show", ALICE]] {
        let said = usher.command(arguments);
        assert!(said.stdout.contains("alice"), "{said:?}");
        shown.push(said.stdout + &said.stderr);
    }
    for token in all {
        let said = command(&usher.config, &["explain", "--token-stdin", "--json"], token.as_bytes());
        shown.push(said.stdout + &said.stderr);
    }
    drop(open);
    usher.wait_log("end", |_| true);
    usher.terminate();
    usher.exit_code();
    let traced = traced.join().unwrap();
    assert!(traced.contains("AUTHENTICATE"), "{traced}");
    shown.extend([traced, usher.log_text()]);
    let secrets = all.into_iter().chain([&outage]).map(String::as_str).chain([CLIENT_SECRET]);
    for secret in secrets {
        for needle in [&secret[secret.len() - 24..], &base64(&secret.as_bytes()[secret.len() - 24..])] {
            let found = shown.iter().flat_map(|text| text.lines()).find(|line| line.contains(needle));
            assert_eq!(found, None, "{secret} is shown");
        }
    }
}

#[test]
fn cache_drop_forgets_what_tokens_have_led_to_and_what_their_issuer_has_said() {
    let issuer = ScriptedIssuer::start();
    let usher = Usher::start(introspecting(&issuer, config(&issuer)));
    let mut answer = issuer.claims(ALICE);
    answer["active"] = json!(true);
    issuer.introspects("opaque", answer);
    let decided = |by: &str| usher.metric("usher_decisions_total", &[("by", by)]);
    let asked = || issuer.requests(INTROSPECTION).len();
    assert!(log_in(&usher, "", "opaque").1.starts_with("OK "));
    assert!(log_in(&usher, "", "opaque").1.starts_with("OK "));
    assert_eq!((asked(), decided("directory"), decided("cache")), (1, 1.0, 1.0));
    let shown: Value = serde_json::from_str(&usher.command(&["cache", "show", ALICE, "--json"]).stdout).unwrap();
    assert_eq!((&shown[0]["names"], &shown[0]["tokens"], &shown[0]["right"]), (&json!([ALICE]), &json!(1), &json!(0)));
    // By the claim, by the DN, and all.
    let dn = shown[0]["dn"].as_str().unwrap().to_owned();
    for (round, whom) in [ALICE, &dn, "--all"].into_iter().enumerate() {
        let dropped = usher.command(&["cache", "drop", whom]);
        assert!(dropped.stdout.contains("1 user dropped"), "{dropped:?}");
        assert!(!usher.command(&["cache", "show", ALICE]).stdout.contains("alice"));
        assert!(log_in(&usher, "", "opaque").1.starts_with("OK "));
        assert_eq!((asked(), decided("directory")), (2 + round, 2.0 + round as f64), "{whom}");
    }
    // Revoked at the issuer: the next login hears of it, whoever was dropped, and it is no guess.
    issuer.introspects("opaque", json!({"active": false}));
    assert!(log_in(&usher, "", "opaque").1.starts_with("OK "), "remembered");
    usher.command(&["cache", "drop", "missing"]);
    assert_eq!(log_in(&usher, "", "opaque").0.unwrap()["status"], "invalid_token");
    usher.wait_log("login", |line| line["token_error"] == "token_expired");
}
