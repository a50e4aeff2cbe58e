//! What a real backend does for a user with a token: Dovecot of both versions, which gets the token and verifies it
//! itself, and Cyrus, which is entered by the service account.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::kit::dovecot_versions::{VERSIONS, Version, VersionedDovecot};
use crate::kit::issuer::ScriptedIssuer;
use crate::kit::signer::Signer;
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::{Config, Imap, Sieve, Usher, cyrus, password_of, slapd};
use crate::snippets::{of_language, with_line};
use crate::token_login::{ALICE, oauthbearer, xoauth2};

const PROTOCOLS: [&str; 4] = ["imap", "pop3", "submission", "managesieve"];

/// The public key of ES256 in PEM.
fn pem(jwk: &Value) -> String {
    const HEAD: &[u8] = &[
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
    ];
    let part = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let der = [HEAD, &part("x"), &part("y")].concat();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

/// A Dovecot with the documented lines, which has this key of this issuer.
pub(crate) fn verifying(version: Version, issuer: &ScriptedIssuer, signer: &Signer) -> VersionedDovecot {
    let documented = |text: String| text.replace("https://idp.example.com/realms/corp", &issuer.issuer());
    let lines = documented(with_line(version, "oauthbearer"));
    // A refusal delays no other login.
    let more = "auth_failure_delay = 0\nservice anvil {\n  unix_listener anvil-auth-penalty {\n    mode = 0\n  }\n}\n";
    let file = documented(of_language("oauth2.conf.ext").remove(0).text);
    let files = [("oauth2.conf.ext", &*file), ("keys/mail-client/ES256/dovecot", &pem(&signer.jwk()))];
    let lines = lines + more;
    VersionedDovecot::start_with(version, &lines, &files)
}

/// usher before it, with a listener for each of [`PROTOCOLS`].
fn forwarding(server: &VersionedDovecot, issuer: &ScriptedIssuer) -> Usher {
    let config = issuer.configured(server.config_of_all());
    let config = config
        .set("/directory/login_attribute", "uid")
        .set("/routing/backends/0/token", "forward")
        .set("/routing/backends/0/user_claim", "email");
    Usher::start(config)
}

/// Sends a message with a token; the challenge, if one came, and the reply without its tag.
fn send(usher: &Usher, protocol: usize, mechanism: &str, message: &str) -> (Option<Value>, String) {
    let address = usher.addresses()[protocol].clone();
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap();
    let read = |challenge: &str| serde_json::from_slice(&STANDARD.decode(challenge.trim_end()).unwrap()).unwrap();
    if PROTOCOLS[protocol] == "managesieve" {
        let mut client = Sieve::tls(port);
        // The answer to a challenge is there before it: a reply without one leaves it as an invalid command.
        client.send(format!("AUTHENTICATE \"{mechanism}\" {{{}+}}\r\n{message}\r\n\"AQ==\"\r\n", message.len()));
        let mut lines = client.answer();
        let reply = lines.pop().unwrap();
        let challenge = lines.first().map(|line| line.trim_start_matches(|byte| byte != '\n'));
        let quoted = lines.first().map(|line| line.trim_matches('"'));
        let challenge = challenge.filter(|text| !text.trim().is_empty()).or(quoted);
        return (challenge.map(|text| read(text.trim())), reply);
    }
    let mut client = Imap::tls(port);
    let command = if PROTOCOLS[protocol] == "imap" { "a AUTHENTICATE" } else { "AUTH" };
    if PROTOCOLS[protocol] == "submission" {
        client.send("EHLO here\r\n");
        while client.line().as_bytes().get(3) == Some(&b'-') {}
    }
    client.send(format!("{command} {mechanism} {message}\r\n"));
    let mut challenge = None;
    loop {
        let line = client.line();
        match line.split_once(' ') {
            Some(("*", _)) => {}
            Some(("+" | "334", text)) => {
                challenge = Some(read(text));
                client.send("AQ==\r\n");
            }
            Some(("a", reply)) => return (challenge, reply.to_owned()),
            _ => return (challenge, line.replace("+OK", "OK").replace("235 ", "OK ")),
        }
    }
}

#[test]
fn dovecot_gets_the_token_and_verifies_it_itself() {
    for version in VERSIONS {
        let issuer = ScriptedIssuer::start();
        let signer = Signer::new("ES256", "dovecot");
        let server = verifying(version, &issuer, &signer);
        let _relay = server.relay();
        // The issuer publishes the key that Dovecot has.
        issuer.rotate(signer);
        let claims = |padding: usize| {
            let mut claims = issuer.claims(ALICE);
            claims["padding"] = json!("x".repeat(padding));
            claims
        };
        let sign = |claims: &Value| issuer.sign_as("JWT", "dovecot", claims);
        let usher = forwarding(&server, &issuer);
        for (index, protocol) in PROTOCOLS.iter().enumerate() {
            for padding in [0, 1_000, 4_000] {
                let token = sign(&claims(padding));
                // A client without a name, and one that names the entry: Dovecot hears `user_claim` in `a=`.
                for (mechanism, message) in
                    [("OAUTHBEARER", oauthbearer("", &token)), ("XOAUTH2", xoauth2("alice", &token))]
                {
                    let (_, reply) = send(&usher, index, mechanism, &message);
                    let logged = || format!("{}\n{}", server.logged(), usher.log_text());
                    assert!(
                        reply.starts_with("OK"),
                        "{version:?} {protocol} {mechanism} {padding}: {reply}\n{}",
                        logged()
                    );
                }
            }
            let event = usher.wait_log("login", |line| line["login"] == "alice" && line["protocol"] == *protocol);
            assert_eq!(event["login_backend"], ALICE);
            // Longer than Dovecot reads: said, and not tried.
            let (challenge, reply) = send(&usher, index, "OAUTHBEARER", &oauthbearer("", &sign(&claims(5_000))));
            assert!(challenge.is_none() && !reply.starts_with("OK"), "{challenge:?} {reply}");
            usher.wait_log("login", |line| line["result"] == "token_too_long" && line["protocol"] == *protocol);
        }
        server.wait_logged(&[&format!("user=<{ALICE}>"), "method=OAUTHBEARER"]);
        // As documented: 2.4 takes the type of RFC 9068 as well.
        let (_, reply) = send(&usher, 0, "XOAUTH2", &xoauth2("", &issuer.sign_as("at+jwt", "dovecot", &claims(0))));
        let expected = if version == Version::V23 { "NO [UNAVAILABLE]" } else { "OK" };
        assert!(reply.starts_with(expected), "{version:?} {reply}");
    }
}

#[test]
fn refusal_of_a_backend_that_gets_the_token_is_passed_on() {
    for version in VERSIONS {
        let issuer = ScriptedIssuer::start();
        let server = verifying(version, &issuer, &Signer::new("ES256", "dovecot"));
        let usher = forwarding(&server, &issuer);
        // Dovecot has no key of this issuer.
        let token = issuer.sign_as("JWT", "first", &issuer.claims(ALICE));
        let reply = ["NO [UNAVAILABLE]", "-ERR [SYS/TEMP]", "454 4.7.0", "NO (TRYLATER)"];
        for (index, expected) in reply.iter().enumerate() {
            for (mechanism, message) in [("OAUTHBEARER", oauthbearer("", &token)), ("XOAUTH2", xoauth2("", &token))] {
                let (challenge, reply) = send(&usher, index, mechanism, &message);
                let shown = format!("{version:?} {} {mechanism} {challenge:?} {reply}", PROTOCOLS[index]);
                let status = challenge.unwrap_or_else(|| panic!("{shown}"))["status"].clone();
                assert!(status == "invalid_token" || status == "401", "{shown}");
                assert!(reply.starts_with(expected), "{shown}");
            }
        }
        let rejected = |line: &Value| line["result"] == "backend_rejected";
        usher.wait_nth_log(8, "login", rejected);
    }
}

#[test]
fn user_with_a_token_reaches_the_own_mailbox_on_cyrus() {
    let issuer = ScriptedIssuer::start();
    let config = Config::with_directory(slapd()).backend("server4", cyrus().imaps, &["server4", "server4.example.com"]);
    config.file("server4.password", SERVICE_PASSWORD);
    let endpoint = |port: u16, tls: &str| json!({"address": format!("127.0.0.1:{port}"), "tls": tls, "server_name": "server4.example.com"});
    let listeners = ["imap", "pop3", "managesieve"]
        .map(|name| json!({"protocol": name, "address": "127.0.0.1:0", "tls": "implicit"}));
    let config = issuer
        .configured(config)
        .set("/tokens/0/login_claim", "sub")
        .set("/tokens/0/filter", "(uid={claim})")
        .set("/directory/login_attribute", "uid")
        .set("/listeners", json!(listeners))
        .set("/routing/backends/0/pop3", endpoint(cyrus().pop3().0, "implicit"))
        .set("/routing/backends/0/managesieve", endpoint(cyrus().sieve, "starttls"))
        .set("/routing/backends/0/service", json!({"login": "usher", "password_file": "server4.password"}));
    let usher = Usher::start(config);
    let mut claims = issuer.claims("ben@example.com");
    claims["sub"] = json!("ben");
    let token = issuer.sign(&claims);
    let mut client = Imap::tls(usher.imaps_port());
    client.command(&format!("AUTHENTICATE OAUTHBEARER {}", oauthbearer("ben", &token))).ok();
    client.command("CREATE by-token").ok();
    // It is the mailbox that the password leads to.
    let mut other = Imap::tls(usher.imaps_port());
    other.login("ben", &password_of("ben")).ok();
    other.command("STATUS by-token (MESSAGES)").ok();
    other.command("DELETE by-token").ok();
    let port = |nth: usize| usher.addresses()[nth].rsplit(':').next().and_then(|port| port.parse().ok()).unwrap();
    let mut pop3 = Imap::tls(port(1));
    pop3.send(format!("AUTH XOAUTH2 {}\r\n", xoauth2("", &token)));
    let reply = pop3.line();
    assert!(reply.starts_with("+OK"), "{reply}");
    let mut sieve = Sieve::tls(port(2));
    let message = oauthbearer("", &token);
    sieve.send(format!("AUTHENTICATE \"OAUTHBEARER\" {{{}+}}\r\n{message}\r\n", message.len()));
    assert!(sieve.answer().last().unwrap().starts_with("OK"));
    let answer = sieve.command("LISTSCRIPTS");
    assert!(answer.last().unwrap().starts_with("OK"), "{answer:?}");
    let event = usher.wait_log("login", |line| line["protocol"] == "managesieve");
    assert_eq!((&event["login_backend"], &event["backend"]), (&json!("ben"), &json!("server4")));
}
