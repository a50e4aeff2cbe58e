//! Logins with a token by common clients, a scripted issuer, and each answer that a client has for the challenge after
//! a refusal.

use serde_json::{Value, json};

use crate::kit::issuer::{ScriptedIssuer, in_seconds};
use crate::kit::process::run;
use crate::kit::tools::{Mbsync, python};
use crate::kit::{Imap, Sieve, Usher, dovecot, relay, shared};
use crate::token_login::{ALICE, config, oauthbearer, xoauth2};

/// A token that has expired.
fn expired(issuer: &ScriptedIssuer) -> String {
    let mut claims = issuer.claims(ALICE);
    claims["exp"] = json!(in_seconds(-300));
    issuer.sign(&claims)
}

#[test]
fn python_logs_in_with_a_token_and_survives_a_refusal() {
    let issuer = ScriptedIssuer::start();
    let usher = Usher::start(config(&issuer));
    // imaplib answers each continuation by its function: nothing is an empty line, and None is `*`.
    let script = format!(
        "import imaplib\n\
         good, expired = {:?}, {:?}\n\
         def message(mechanism, token):\n \
         head = 'n,a=alice,\\x01' if mechanism == 'OAUTHBEARER' else 'user=alice\\x01'\n \
         return (head + 'auth=Bearer ' + token + '\\x01\\x01').encode()\n\
         for mechanism in ('OAUTHBEARER', 'XOAUTH2'):\n \
         for answer in (b'\\x01', b'', None, message(mechanism, expired)):\n  \
         connection = imaplib.IMAP4_SSL('localhost', port, ssl_context=context, timeout=40)\n  \
         challenges, answers = [], [message(mechanism, expired), answer]\n  \
         def respond(challenge):\n   \
         challenges.append(challenge.decode())\n   \
         return answers.pop(0)\n  \
         try:\n   connection.authenticate(mechanism, respond)\n  \
         except connection.error as error:\n   print(challenges[-1], error)\n  \
         connection.authenticate(mechanism, lambda challenge: message(mechanism, good))\n  \
         print(connection.select()[0])\n  \
         connection.logout()\n",
        issuer.token(ALICE),
        expired(&issuer)
    );
    let said = python(usher.imaps_port(), &script).succeeded().stdout;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 16, "{said}");
    for (index, pair) in lines.chunks(2).enumerate() {
        let status = if index < 4 { "\"invalid_token\"" } else { "\"401\"" };
        assert!(pair[0].contains(&format!("\"status\":{status}")), "{said}");
        assert!(pair[0].contains("[AUTHENTICATIONFAILED] The token is not accepted"), "{index}: {said}");
        assert_eq!(pair[1], "OK", "{said}");
    }
}

#[test]
fn challenge_is_answered_in_each_way_in_each_protocol() {
    let issuer = ScriptedIssuer::start();
    let _relay = relay();
    let expired = expired(&issuer);
    for protocol in ["imap", "pop3", "submission"] {
        let mut config = config(&issuer);
        if protocol != "imap" {
            let port = if protocol == "pop3" { dovecot().pop3s } else { dovecot().submissions };
            config = config.speaking(protocol, &[port]).without("/routing/backends/0/imap");
        }
        let usher = Usher::start(config);
        let command = |mechanism: &str| {
            let message = if mechanism == "XOAUTH2" { xoauth2("", &expired) } else { oauthbearer("", &expired) };
            match protocol {
                "imap" => format!("a AUTHENTICATE {mechanism} {message}\r\n"),
                _ => format!("AUTH {mechanism} {message}\r\n"),
            }
        };
        let connect = || {
            let mut client = Imap::tls(usher.imaps_port());
            if protocol == "submission" {
                client.send("EHLO here\r\n");
                while client.line().as_bytes().get(3) == Some(&b'-') {}
            }
            client
        };
        let refused = |line: &str| {
            ["a NO [AUTHENTICATIONFAILED]", "-ERR [AUTH]", "535 5.7.8"].iter().any(|reply| line.starts_with(reply))
        };
        for mechanism in ["OAUTHBEARER", "XOAUTH2"] {
            for answer in ["AQ==", "", "*", "AAAA", "not base64"] {
                let mut client = connect();
                client.send(command(mechanism));
                let challenge = client.line();
                assert!(challenge.starts_with("+ ") || challenge.starts_with("334 "), "{challenge}");
                client.send(format!("{answer}\r\n"));
                let line = client.line();
                // `*` as well: the refusal has been decided, and the client only makes room for its reply.
                assert!(refused(&line), "{protocol} {mechanism} {answer:?}: {line}");
                // The connection is still there for another token.
                client.send(command(mechanism));
                let again = client.line();
                assert!(again == challenge, "{protocol} {mechanism} {answer:?}: {again}");
            }
            // A client that leaves instead.
            let mut client = connect();
            client.send(command(mechanism));
            client.line();
            drop(client);
        }
        let count = 2 * (2 * 5 + 1);
        usher.wait_nth_log(count, "login", |line| line["token_error"] == "token_expired");
    }
    let config = config(&issuer).without("/routing/backends/0/imap").speaking("managesieve", &[]);
    let address = format!("127.0.0.1:{}", dovecot().sieve);
    let endpoint = json!({"address": address, "tls": "starttls", "server_name": "server3.example.com"});
    let usher = Usher::start(config.set("/routing/backends/0/managesieve", endpoint));
    for answer in ["\"AQ==\"", "\"\"", "\"*\"", "{4+}\r\nAQ=="] {
        let mut client = Sieve::tls(usher.imaps_port());
        let message = oauthbearer("", &expired);
        client.send(format!("AUTHENTICATE \"OAUTHBEARER\" {{{}+}}\r\n{message}\r\n{answer}\r\n", message.len()));
        let said = client.answer();
        assert!(said.last().unwrap().starts_with("NO"), "{answer}: {said:?}");
        let answer = client.command("NOOP");
        assert!(answer.last().unwrap().starts_with("OK"), "{answer:?}");
    }
}

#[test]
fn msmtp_and_smtplib_send_mail_with_a_token() {
    let issuer = ScriptedIssuer::start();
    let relay = relay();
    let config = config(&issuer).speaking("submission", &[dovecot().submissions]).without("/routing/backends/0/imap");
    let usher = Usher::start(config);
    let port = usher.imaps_port();
    let ca = shared().certificates.ca().display().to_string();
    let message = |client: &str| format!("From: {ALICE}\r\nSubject: sent by {client}\r\n\r\nwords\r\n");
    let msmtp = |mechanism: &str, token: &str| {
        let token = usher.config.file("token", token).display().to_string();
        let config = format!(
            "account default\nhost localhost\nport {port}\nfrom {ALICE}\nauth {mechanism}\nuser alice\n\
             passwordeval \"cat {token}\"\ntls on\ntls_starttls off\ntls_trust_file {ca}\ntimeout 40\n"
        );
        let file = usher.config.file("msmtprc", config).display().to_string();
        let message = message(&format!("msmtp with {mechanism}"));
        run("msmtp", &["-C", &file, "carol@example.com"], message.as_bytes())
    };
    for mechanism in ["oauthbearer", "xoauth2"] {
        msmtp(mechanism, &issuer.token(ALICE)).succeeded();
        assert!(relay.has(&format!("Subject: sent by msmtp with {mechanism}")));
        let refused = msmtp(mechanism, &expired(&issuer));
        assert_eq!(refused.code, 77, "msmtp calls this a denied login: {refused:#?}");
    }
    let script = format!(
        "import smtplib\nfor token in ({:?}, {:?}):\n \
         smtp = smtplib.SMTP_SSL('localhost', port, context=context, timeout=40)\n \
         smtp.ehlo()\n \
         answers = ['user=alice\\x01auth=Bearer ' + token + '\\x01\\x01', '']\n \
         try:\n  print(smtp.auth('XOAUTH2', lambda challenge=None: answers.pop(0))[0])\n \
         except smtplib.SMTPAuthenticationError as error:\n  print(error.smtp_code)\n  continue\n \
         smtp.sendmail({ALICE:?}, ['carol@example.com'], {:?})\n",
        expired(&issuer),
        issuer.token(ALICE),
        message("smtplib with a token")
    );
    let said = python(port, &script).succeeded();
    assert_eq!(said.stdout, "535\n235\n", "{said:#?}");
    assert!(relay.has("Subject: sent by smtplib with a token"));
}

#[test]
fn mbsync_reads_a_mailbox_with_a_token() {
    let issuer = ScriptedIssuer::start();
    let usher = Usher::start(config(&issuer));
    Mbsync::with_token(usher.imaps_port(), "alice", &issuer.token(ALICE)).sync();
    let event: Value = usher.login("alice");
    assert_eq!((&event["result"], &event["mechanism"]), (&json!("ok"), &json!("xoauth2")));
}
