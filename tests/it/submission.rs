//! Submission on a real server: dialogue, refusals, and common clients.

use crate::kit::client::{Tls, base64};
use crate::kit::process::{read_text, run};
use crate::kit::scripted::Scripted;
use crate::kit::slapd::Slapd;
use crate::kit::tools::{curl_url, python};
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::{Config, Imap, Usher, dovecot, password_of, relay, shared, slapd};

/// The shared servers, of which only server3 accepts mail.
fn config() -> Config {
    relay();
    Config::shared().speaking("submission", &[dovecot().submissions])
}

/// Sends a command and returns its reply, with multiple lines joined.
fn ask(smtp: &mut Imap, command: &str) -> String {
    smtp.send(format!("{command}\r\n"));
    reply(smtp)
}

fn reply(smtp: &mut Imap) -> String {
    let mut reply = smtp.line();
    let mut last = reply.clone();
    while last.as_bytes().get(3) == Some(&b'-') {
        last = smtp.line();
        reply = format!("{reply}\n{last}");
    }
    reply
}

/// A connection under TLS after EHLO.
fn greeted(port: u16) -> Imap {
    let mut smtp = Imap::tls(port);
    assert!(smtp.greeting.starts_with("220 usher.example.com "), "{}", smtp.greeting);
    let extensions = ask(&mut smtp, "EHLO here");
    let usual = "250-usher.example.com\n250-PIPELINING\n250-8BITMIME\n250-ENHANCEDSTATUSCODES\n250 AUTH PLAIN LOGIN";
    assert_eq!(extensions, usual);
    smtp
}

/// AUTH PLAIN with an initial response.
fn plain(uid: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", base64(format!("\0{uid}\0{password}").as_bytes()))
}

#[test]
fn alice_sends_mail_and_the_server_of_bob_accepts_none() {
    let usher = Usher::start(config());
    let mut smtp = greeted(usher.imaps_port());
    assert!(ask(&mut smtp, "MAIL FROM:<alice@example.com>").starts_with("530 5.7.0"));
    let refused = ask(&mut smtp, &plain("bob", &password_of("bob")));
    let words =
        "554 5.3.5 Your mailbox cannot be reached by this protocol, please contact your administrator (session ";
    assert!(refused.starts_with(words), "{refused}");
    assert_eq!(usher.login("bob")["result"], "protocol_not_served");
    assert_eq!(ask(&mut smtp, &plain("alice", &password_of("alice"))), "235 2.7.0 Logged in.");
    // A second AUTH is refused by the backend.
    assert!(ask(&mut smtp, &plain("alice", &password_of("alice"))).starts_with("503 "));
    assert!(ask(&mut smtp, "MAIL FROM:<alice@example.com>").starts_with("250 "));
    assert!(ask(&mut smtp, "RCPT TO:<carol@example.com>").starts_with("250 "));
    assert!(ask(&mut smtp, "DATA").starts_with("354 "));
    assert!(ask(&mut smtp, "Subject: by hand\r\n\r\n..dots\r\n.").starts_with("250 "));
    assert!(ask(&mut smtp, "QUIT").starts_with("221 "));
    assert!(relay().has("Subject: by hand"));
    let event = usher.login("alice");
    assert_eq!((&event["protocol"], &event["backend"]), (&"submission".into(), &"server3".into()), "{event}");
}

#[test]
fn commands_pipelined_after_auth_wait_for_its_reply() {
    let usher = Usher::start(config());
    for byte_by_byte in [false, true] {
        let mut smtp = greeted(usher.imaps_port());
        let group = "MAIL FROM:<anna@example.com>\r\nRCPT TO:<carol@example.com>\r\nQUIT\r\n";
        let said = format!("{}\r\nNOOP\r\n{}\r\n{group}", plain("anna", "wrong"), plain("anna", &password_of("anna")));
        if byte_by_byte {
            smtp.drip(said);
        } else {
            smtp.send(said);
        }
        let replies: Vec<String> = (0..6).map(|_| reply(&mut smtp)).collect();
        let starts = ["535 5.7.8", "250 2.0.0 NOOP completed", "235 2.7.0", "250 ", "250 ", "221 "];
        assert!(replies.iter().zip(starts).all(|(reply, start)| reply.starts_with(start)), "{replies:?}");
    }
}

#[test]
fn starttls_discards_earlier_state() {
    let usher = Usher::start(config());
    let mut smtp = Imap::plain(usher.imap_port());
    assert!(ask(&mut smtp, "EHLO here").ends_with("250 STARTTLS"));
    assert!(ask(&mut smtp, &plain("alice", "secret")).starts_with("538 5.7.11"));
    // An attacker on the wire injects commands.
    smtp.send("STARTTLS\r\nEHLO mallory\r\nNOOP\r\n");
    assert!(smtp.line().starts_with("220 "));
    smtp.start_tls();
    let auth = plain("alice", &password_of("alice"));
    assert_eq!(ask(&mut smtp, &auth), "503 5.5.1 Send EHLO first");
    assert!(ask(&mut smtp, "EHLO here").ends_with("250 AUTH PLAIN LOGIN"));
    assert!(ask(&mut smtp, &auth).starts_with("235 "));
    assert_eq!(usher.metric("usher_logins_total", &[("result", "tls_required")]), 1.0);
}

#[test]
fn refusals_have_codes_and_leave_the_connection_usable() {
    relay();
    let slapd = Slapd::private();
    let config = Config::with_directory(&slapd).backend("server3", dovecot().imaps, &["server3"]);
    let config = config.speaking("submission", &[dovecot().submissions]).set("/limits/failed_logins", 20);
    let usher = Usher::start(config);
    let mut smtp = greeted(usher.imaps_port());
    let wrong = ask(&mut smtp, &plain("alice", "wrong"));
    assert_eq!(wrong, "535 5.7.8 Name or password is wrong");
    assert_eq!(ask(&mut smtp, &plain("unknown", "wrong")), wrong);
    assert_eq!(ask(&mut smtp, &plain("alice", "")), wrong);
    assert!(ask(&mut smtp, &plain("carol", &password_of("carol"))).starts_with("554 5.3.5 "));
    // Dovecot has no such user: the directory accepts, the backend refuses.
    assert!(ask(&mut smtp, &plain("a.liddell@example.com", &password_of("alice"))).starts_with("454 4.7.0 "));
    drop(slapd);
    assert!(ask(&mut smtp, &plain("anna", &password_of("anna"))).starts_with("454 4.7.0 "));
    assert_eq!(ask(&mut smtp, "QUIT"), "221 2.0.0 Goodbye");
}

#[test]
fn temporary_backend_failures_stay_temporary() {
    for (said, reported) in [
        ("432 4.7.12 A password transition is needed", "432 4.7.12 A password transition is needed"),
        ("454-4.7.0 One line\r\n454 4.7.0 and another", "454 4.7.0 One line"),
        ("535 5.7.8 Error: authentication failed", "454 4.7.0 Error: authentication failed"),
        ("421 4.3.2 Shutting down", "454 4.7.0 The mail service is not available, try again later"),
    ] {
        let backend = Scripted::tls(move |peer| {
            peer.send("220-scripted\r\n220 and ready\r\n");
            assert_eq!(peer.line().as_deref(), Some("EHLO usher.example.com"));
            peer.send("250-scripted\r\n250 AUTH PLAIN\r\n");
            peer.line();
            peer.send(format!("{said}\r\n"));
        });
        let config = Config::with_directory(slapd()).scripted(&backend).speaking("submission", &[backend.port]);
        let usher = Usher::start(config);
        let answer = ask(&mut greeted(usher.imaps_port()), &plain("alice", &password_of("alice")));
        assert!(answer.starts_with(&format!("{reported} (session ")), "{answer}");
    }
}

/// A server that ends the connection over a name is in order: whoever logs in may choose one.
#[test]
fn name_of_one_client_takes_the_backend_from_no_other() {
    for answer in ["421 4.7.1 no\r\n", "521 5.7.1 no\r\n", ""] {
        let backend = Scripted::tls(move |peer| {
            peer.send("220 scripted\r\n");
            if peer.line().as_deref() == Some("EHLO odd.example.net") {
                peer.send(answer);
                return;
            }
            peer.send("250-scripted\r\n250 AUTH PLAIN\r\n");
            if peer.line().is_some() {
                peer.send("235 2.7.0 in\r\n");
                peer.wait_for_end();
            }
        });
        let config = Config::with_directory(slapd()).scripted(&backend).speaking("submission", &[backend.port]);
        let config = config.set("/routing/backends/0/submission/ehlo", "client").set("/routing/backends/0/failures", 1);
        let usher = Usher::start(config.without("/routing/backends/0/imap").set("/routing/backends/0/probe", "off"));
        let log_in = |name: &str| {
            let mut smtp = Imap::tls(usher.imaps_port());
            assert!(ask(&mut smtp, &format!("EHLO {name}")).starts_with("250-"));
            ask(&mut smtp, &plain("alice", &password_of("alice")))
        };
        for _ in 0..2 {
            let refused = log_in("odd.example.net");
            assert!(refused.starts_with("454 4."), "{answer}: {refused}");
        }
        let reply = log_in("here");
        assert!(reply.starts_with("235 "), "{answer}: {reply}");
        usher.nth_login(3, "alice");
        assert!(!usher.log_text().contains("marked down"), "{answer}: {}", usher.log_text());
    }
}

#[test]
fn backend_is_reached_by_starttls_and_by_a_service_account() {
    let config = config().set("/directory/login_attribute", "uid").set("/hostname", "mail.example.com");
    let password = config.file("backend.password", SERVICE_PASSWORD);
    let config = config
        .set("/routing/backends/0/service", serde_json::json!({"login": "usher", "password_file": password}))
        .set("/routing/backends/0/submission/address", format!("127.0.0.1:{}", dovecot().submission))
        .set("/routing/backends/0/submission/tls", "starttls");
    let usher = Usher::start(config);
    let mut smtp = Imap::tls(usher.imaps_port());
    assert!(smtp.greeting.starts_with("220 mail.example.com "), "{}", smtp.greeting);
    assert!(ask(&mut smtp, "EHLO here").starts_with("250-mail.example.com\n"));
    assert_eq!(ask(&mut smtp, "AUTH LOGIN"), format!("334 {}", base64(b"Username:")));
    assert_eq!(ask(&mut smtp, &base64(b"alice")), format!("334 {}", base64(b"Password:")));
    assert!(ask(&mut smtp, &base64(password_of("alice").as_bytes())).starts_with("235 "));
    assert!(ask(&mut smtp, "MAIL FROM:<alice@example.com>").starts_with("250 "));
}

#[test]
fn alpn_smtp_is_selected_and_other_protocols_are_refused() {
    let usher = Usher::start(config());
    let connect =
        |alpn: &[&'static [u8]]| Imap::try_tls(usher.imaps_port(), &Tls { alpn: alpn.to_vec(), ..Tls::default() });
    for offered in [&[&b"smtp"[..]][..], &[b"h2", b"smtp"]] {
        let smtp = connect(offered).unwrap();
        assert_eq!(smtp.connection().alpn_protocol(), Some(&b"smtp"[..]));
        assert!(smtp.greeting.starts_with("220 "), "{}", smtp.greeting);
    }
    for foreign in [&b"http/1.1"[..], b"h2", b"imap", b"pop3", b"managesieve", b"lmtp", b"SMTP"] {
        assert!(connect(&[foreign]).is_err(), "{}", foreign.escape_ascii());
    }
}

#[test]
fn real_clients_send_mail() {
    let usher = Usher::start(config());
    let (implicit, starttls) = (usher.imaps_port().to_string(), usher.imap_port().to_string());
    let (ca, password) = (shared().certificates.ca().display().to_string(), password_of("alice"));
    let message = |client: &str| format!("From: alice@example.com\r\nSubject: sent by {client}\r\n\r\nwords\r\n");

    let file = usher.config.file("message", message("curl")).display().to_string();
    let mail = ["--mail-from", "alice@example.com", "--mail-rcpt", "carol@example.com", "-T", &file];
    curl_url(&format!("smtps://127.0.0.1:{implicit}"), "alice", &mail).succeeded();
    let explicit = [&mail[..], &["--ssl-reqd", "--login-options", "AUTH=LOGIN"]].concat();
    curl_url(&format!("smtp://127.0.0.1:{starttls}"), "alice", &explicit).succeeded();
    let wrong =
        curl_url(&format!("smtps://127.0.0.1:{implicit}"), "alice", &[&mail[..], &["-u", "alice:wrong"]].concat());
    assert_eq!(wrong.code, 67, "curl calls this a denied login: {wrong:#?}");

    let swaks = |port: &str, tls: &str, password: &str| {
        let who = ["--from", "alice@example.com", "--to", "carol@example.com", "--header", "Subject: sent by swaks"];
        let how = ["--server", "127.0.0.1", "--port", port, tls, "--tls-verify", "--tls-ca-path", &ca];
        let auth = ["--auth", "PLAIN", "--auth-user", "alice", "--auth-password", password, "--pipeline"];
        run("swaks", &[&who[..], &how, &auth].concat(), b"")
    };
    swaks(&implicit, "--tls-on-connect", &password).succeeded();
    swaks(&starttls, "--tls", &password).succeeded();
    let wrong = swaks(&implicit, "--tls-on-connect", "wrong");
    assert!(wrong.code == 28 && wrong.stdout.contains("535 5.7.8"), "swaks calls this a failed login: {wrong:#?}");

    for (port, tls_starttls) in [(&implicit, "off"), (&starttls, "on")] {
        let config = format!(
            "account default\nhost localhost\nport {port}\nfrom alice@example.com\nauth plain\nuser alice\n\
             password {password}\ntls on\ntls_starttls {tls_starttls}\ntls_trust_file {ca}\ntimeout 40\n"
        );
        let file = usher.config.file("msmtprc", config).display().to_string();
        run("msmtp", &["-C", &file, "carol@example.com"], message("msmtp").as_bytes()).succeeded();
    }
    let config = read_text(&usher.config.path("msmtprc")).replace(&password, "wrong");
    let file = usher.config.file("msmtprc", config).display().to_string();
    let wrong = run("msmtp", &["-C", &file, "carol@example.com"], message("unknown").as_bytes());
    assert_eq!(wrong.code, 77, "msmtp calls this a denied login: {wrong:#?}");

    let script = format!(
        "import smtplib\nfor explicit in (False, True):\n \
         smtp = smtplib.SMTP('localhost', {starttls}, timeout=40) if explicit else smtplib.SMTP_SSL('localhost', port, context=context, timeout=40)\n \
         if explicit: smtp.starttls(context=context)\n \
         smtp.login('alice', {password:?})\n \
         smtp.sendmail('alice@example.com', ['carol@example.com'], {:?})\n smtp.quit()\n\
         smtp = smtplib.SMTP_SSL('localhost', port, context=context, timeout=40)\n\
         try:\n smtp.login('alice', 'wrong')\nexcept smtplib.SMTPAuthenticationError as error:\n print(error.smtp_code)",
        message("smtplib")
    );
    let said = python(usher.imaps_port(), &script).succeeded();
    assert_eq!(said.stdout, "535\n", "{said:#?}");
    for client in ["curl", "swaks", "msmtp", "smtplib"] {
        assert!(relay().has(&format!("Subject: sent by {client}")), "{client}");
    }
}
