//! What a trace shows of the dialogues of each protocol, and that no form of a password is in it.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::sasl::Account;
use super::super::transcript::{BackScribe, Leg, LineKind, Recorder, Transcript};
use super::super::trial::{HOST, SESSION, calling};
use super::super::{BackSettings, BackStep, BackTls, FrontSettings, MechanismSet, SaslOffer, Step, Welcome, by_name};
use crate::base::credential::TokenForm;
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::{BackendReply, Reply, TokenChallenge};

/// Needs quoting, has a blank, and no part of it is a word.
const PASSWORD: &str = "Zq9#\"xJ\\Wv7 kP2$Ym";
/// The same for a service account.
const SERVICE: &str = "Ht5!uG\"8 cR\\4nBd";

/// Collects the lines of a trace.
#[derive(Debug, Default)]
struct Collected(Mutex<Vec<String>>);

impl Recorder for Collected {
    fn record(&self, _: Leg, kind: LineKind, line: &[u8]) {
        let arrow = match kind {
            LineKind::Received => ">",
            LineKind::Sent => "<",
            LineKind::Note => "-",
        };
        let line = format!("{arrow} {}", String::from_utf8_lossy(line));
        self.0.lock().unwrap().push(line);
    }
}

impl Collected {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Plays a client's bytes in pieces of this size; each attempt gets the next reply, and then a wrong password.
fn front(protocol: &str, tls: bool, bytes: &[u8], size: usize, replies: &[Reply]) -> Vec<String> {
    let row = by_name(protocol).unwrap();
    let settings = FrontSettings {
        host: HOST,
        session: SESSION,
        capabilities: None,
        tls,
        starttls: !tls,
        bad_commands: 1_000,
        sasl: SaslOffer::PASSWORDS,
    };
    let mut front = (row.front)(settings);
    let collected = Arc::new(Collected::default());
    front.transcribe(Transcript::new(row.name, Arc::clone(&collected) as Arc<dyn Recorder>));
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    let mut replies = replies.iter();
    front.greet(&mut out);
    for piece in bytes.chunks(size) {
        input.extend(piece);
        loop {
            out.clear();
            match front.step(&mut input, &mut out) {
                Step::NeedMore | Step::Quit(_) => break,
                Step::Flush => {}
                Step::StartTls => front.tls_started(),
                Step::Attempt(_) => front.refused(replies.next().unwrap_or(&Reply::AuthenticationFailed), &mut out),
            }
        }
    }
    collected.lines()
}

/// Plays a backend's bytes.
fn back(protocol: &str, service: bool, bytes: &[u8], size: usize) -> Vec<String> {
    let row = by_name(protocol).unwrap();
    let settings = BackSettings {
        tls: BackTls::Implicit,
        login: b"alice".to_vec(),
        password: Secret::copy_of(if service { SERVICE } else { PASSWORD }.as_bytes()),
        token: None,
        service: service.then(|| b"proxy".to_vec()),
        untagged_limit: 10_000,
        forward: row.forward_method.map(|_| calling("198.51.100.7:4711")),
        host: HOST.into(),
        initial_response: true,
        ehlo: None,
    };
    let mut back = (row.back)(settings);
    let collected = Arc::new(Collected::default());
    back.transcribe(Transcript::new(row.name, Arc::clone(&collected) as Arc<dyn Recorder>));
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    for piece in [&b""[..]].into_iter().chain(bytes.chunks(size)) {
        input.extend(piece);
        out.clear();
        if !matches!(back.step(&mut input, &mut out), BackStep::NeedMore) {
            break;
        }
    }
    collected.lines()
}

/// Every form in which a secret may be on a wire.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned(), quoted(secret), base64(secret)];
    for before in ["\0alice\0", "alice\0alice\0", "alice\0proxy\0", "a", "ab"] {
        let whole = base64(&format!("{before}{secret}"));
        // What stands before the secret is shown.
        forms.push(whole[(before.len() * 8).div_ceil(6)..].to_owned());
    }
    forms
}

/// No five bytes in a row of any form of a secret are in the lines, nor in the lines one behind the other.
fn shows_no_secret(lines: &[String], what: &str) {
    let mut texts = lines.to_vec();
    texts.push(lines.iter().map(|line| &line[2..]).collect());
    static PARTS: LazyLock<HashSet<Vec<u8>>> = LazyLock::new(|| {
        let forms: Vec<String> = [PASSWORD, SERVICE].into_iter().flat_map(forms).collect();
        forms.iter().flat_map(|form| form.as_bytes().windows(5)).map(<[u8]>::to_ascii_lowercase).collect()
    });
    for text in texts {
        for window in text.to_ascii_lowercase().as_bytes().windows(5) {
            assert!(!PARTS.contains(window), "{what}: {text}\nhas {}", window.escape_ascii());
        }
    }
}

/// What clients send, with the password wherever one could type it, or a program that is out of step.
fn client_lines(protocol: &str) -> Vec<String> {
    let (raw, quoted, size) = (PASSWORD, quoted(PASSWORD), PASSWORD.len());
    let plain = base64(&format!("\0alice\0{PASSWORD}"));
    let (user, pass) = (base64("alice"), base64(PASSWORD));
    let lines: Vec<String> = match protocol {
        "imap" => vec![
            format!("a1 LOGIN alice {quoted}"),
            format!("a2 LOGIN alice {{{size}}}\r\n{raw}"),
            format!("a3 LOGIN {{5+}}\r\nalice {{{size}+}}\r\n{raw}"),
            format!("a4 AUTHENTICATE PLAIN {plain}"),
            format!("a5 authenticate plain\r\n{plain}"),
            format!("a6 AUTHENTICATE LOGIN\r\n{user}\r\n{pass}"),
            format!("a7 LOGIN alice {raw} {raw}"),
            format!("a8 {raw}"),
            format!("{raw} NOOP"),
            format!("{pass} NOOP"),
            format!("a9 NOOP {raw}"),
            format!("a10 ID {quoted}"),
            format!("a11 ID (\"password\" {quoted} {quoted} \"x\" \"name\" \"Mail\")"),
            format!("a12 ID (\"arguments\" {{{size}+}}\r\n{raw})"),
            format!("a13 LOGIN alice {{99999999}}\r\n{raw}"),
            format!("a14 LOGIN alice {raw}\n{raw}"),
            format!("a15 AUTHENTICATE {raw}"),
            format!("a16 AUTHENTICATE PLAIN {plain} {plain}"),
            format!("a17 AUTHENTICATE PLAIN\r\n{raw}"),
            format!("a18 CAPABILITY {raw}"),
            format!("a19 STARTTLS {raw}"),
            format!("a20 LOGOUT {raw}"),
            format!("a21 SELECT {quoted}"),
            format!("a22 LOGIN {{5}}\r\nalice{raw} x"),
        ],
        "pop3" => vec![
            format!("USER alice\r\nPASS {raw}"),
            format!("USER alice\r\nPASS {raw} "),
            format!("user {raw}\r\npass {raw}"),
            format!("AUTH PLAIN {plain}"),
            format!("AUTH PLAIN\r\n{plain}"),
            format!("AUTH LOGIN\r\n{user}\r\n{pass}"),
            format!("AUTH {raw}"),
            format!("AUTH PLAIN {plain} {plain}"),
            format!("APOP alice {raw}"),
            format!("CAPA {raw}"),
            format!("STLS {raw}"),
            format!("QUIT {raw}"),
            format!("RETR {raw}"),
        ],
        "submission" => vec![
            "EHLO laptop.example.net".to_owned(),
            format!("AUTH PLAIN {plain}"),
            format!("auth plain\r\n{plain}"),
            format!("AUTH LOGIN\r\n{user}\r\n{pass}"),
            format!("AUTH LOGIN {user}\r\n{pass}"),
            format!("AUTH {raw}"),
            format!("EHLO {raw}"),
            format!("HELO {raw}"),
            format!("NOOP {raw}"),
            format!("HELP {raw}"),
            format!("VRFY {raw}"),
            format!("MAIL FROM:<{raw}>"),
            format!("BDAT {}\r\n{raw}", size + 2),
            format!("QUIT {raw}"),
        ],
        "managesieve" => vec![
            format!("AUTHENTICATE \"PLAIN\" \"{plain}\""),
            format!("AUTHENTICATE \"PLAIN\" {{{}+}}\r\n{plain}", plain.len()),
            format!("AUTHENTICATE \"PLAIN\"\r\n\"{plain}\""),
            format!("authenticate \"plain\"\r\n{{{}+}}\r\n{plain}", plain.len()),
            format!("AUTHENTICATE \"LOGIN\"\r\n\"{user}\"\r\n\"{pass}\""),
            format!("AUTHENTICATE {quoted}"),
            format!("AUTHENTICATE \"PLAIN\"\r\n{quoted}"),
            format!("NOOP {quoted}"),
            format!("NOOP {{{size}+}}\r\n{raw}"),
            format!("CAPABILITY {quoted}"),
            format!("PUTSCRIPT {quoted} {{{size}+}}\r\n{raw}"),
        ],
        other => panic!("{other} has no lines here"),
    };
    let anywhere = [raw.to_owned(), pass, plain, format!("{raw}\n{raw}"), format!("{}{raw}", "x".repeat(40_000))];
    lines.into_iter().chain(anywhere).collect()
}

const ALL: [&str; 4] = ["imap", "pop3", "submission", "managesieve"];

#[test]
fn no_form_of_a_password_is_shown_of_a_client() {
    for protocol in ALL {
        let lines = client_lines(protocol);
        for tls in [true, false] {
            // Each alone, which keeps the one from hiding in the exchange of another.
            for line in &lines {
                let sizes: &[usize] = if line.len() > 10_000 { &[1_000, usize::MAX] } else { &[1, 3, 7, usize::MAX] };
                for &size in sizes {
                    let start = if protocol == "submission" { "EHLO a.example\r\n" } else { "" };
                    let bytes = format!("{start}{line}\r\n");
                    let shown = front(protocol, tls, bytes.as_bytes(), size.min(bytes.len()), &[]);
                    assert!(shown.len() >= 2, "{protocol}: {line:.60} is not shown at all");
                    shows_no_secret(&shown, &format!("{protocol}, TLS {tls}, {size}: {line:.60}"));
                }
            }
            // All of them pipelined.
            let all: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            for size in [11, 4_096] {
                shows_no_secret(&front(protocol, tls, all.as_bytes(), size, &[]), protocol);
            }
        }
    }
}

#[test]
fn text_of_a_backend_is_not_shown_at_the_client() {
    let text = format!("wrong password {PASSWORD}");
    let codes = [("imap", "LIMIT"), ("pop3", "IN-USE"), ("submission", "454 4.7.1"), ("managesieve", "")];
    for (protocol, code) in codes {
        let reply = Reply::BackendText(BackendReply {
            code: code.to_owned(),
            text: text.clone(),
            unavailable: false,
            challenge: None,
        });
        let login: String = match protocol {
            "imap" => "a1 LOGIN alice x\r\n".to_owned(),
            "pop3" => "USER alice\r\nPASS x\r\n".to_owned(),
            "submission" => format!("EHLO a.example\r\nAUTH PLAIN {}\r\n", base64("\0alice\0x")),
            _ => format!("AUTHENTICATE \"PLAIN\" \"{}\"\r\n", base64("\0alice\0x")),
        };
        let shown = front(protocol, true, login.as_bytes(), 1_000, &[reply]);
        let last = shown.last().unwrap();
        assert!(last.starts_with("< ") && last.ends_with("bytes>") && last.contains(code), "{last}");
        shows_no_secret(&shown, protocol);
    }
}

/// What a backend says up to the login; `#` stands for its reply.
fn backend_script(protocol: &str, service: bool) -> String {
    let text = match protocol {
        "imap" => "* OK [CAPABILITY IMAP4rev1 ID AUTH=PLAIN] ready\r\nu1 OK done\r\n+ \r\n#",
        "pop3" => "+OK ready [XCLIENT]\r\n+OK done\r\n+OK\r\nSASL PLAIN\r\nUSER\r\n.\r\n#",
        "submission" => {
            "220 server3\r\n250-server3\r\n250-XCLIENT ADDR PORT\r\n250 AUTH PLAIN\r\n220 server3\r\n250-server3\r\n\
             250 AUTH PLAIN\r\n#"
        }
        _ => "\"SASL\" \"PLAIN\"\r\n\"XCLIENT\"\r\nOK \"ready\"\r\nOK \"Updated\"\r\n#",
    };
    if !service && protocol == "pop3" {
        text.replace("SASL PLAIN\r\n", "").replace('#', "+OK\r\n#")
    } else {
        text.to_owned()
    }
}

#[test]
fn no_form_of_a_password_is_shown_of_a_backend_that_repeats_it() {
    for (protocol, service) in ALL.into_iter().flat_map(|protocol| [(protocol, false), (protocol, true)]) {
        let secret = if service { SERVICE } else { PASSWORD };
        let (start, end) = match protocol {
            "imap" => ("u2 NO [AUTHENTICATIONFAILED] ", ""),
            "pop3" => ("-ERR [AUTH] ", ""),
            "submission" => ("535 5.7.8 ", ""),
            _ => ("NO \"", "\""),
        };
        for echo in forms(secret).into_iter().chain([secret[..8].to_owned(), secret[4..].to_uppercase()]) {
            let echo = if protocol == "managesieve" { echo.replace('\\', "\\\\").replace('"', "\\\"") } else { echo };
            for reply in [format!("{start}wrong: {echo}{end}\r\n"), format!("{echo}\r\n")] {
                let bytes = backend_script(protocol, service).replace('#', &reply);
                for size in [1, 5, bytes.len()] {
                    let shown = back(protocol, service, bytes.as_bytes(), size);
                    shows_no_secret(&shown, &format!("{protocol}, service {service}: {reply}"));
                    let last = shown.last().unwrap();
                    assert!(last.starts_with("> ") && last.ends_with("bytes>"), "{protocol} {service}: {shown:#?}");
                }
            }
        }
        let harmless = format!("{start}Authentication failed.{end}\r\n");
        let bytes = backend_script(protocol, service).replace('#', &harmless);
        let shown = back(protocol, service, bytes.as_bytes(), 1_000);
        assert_eq!(shown.last().unwrap(), &format!("> {}", harmless.trim_end()), "{protocol}: {shown:#?}");
    }
}

#[test]
fn usual_texts_of_a_backend_say_nothing_about_the_password() {
    let account = |password: &str| Account {
        login: b"alice".to_vec(),
        password: Secret::copy_of(password.as_bytes()),
        token: None,
        service: None,
    };
    for password in ["password", "failed.1", "x"] {
        for text in ["u2 NO [AUTHENTICATIONFAILED] Authentication failed.", "u2 OK Logged in"] {
            let collected = Arc::new(Collected::default());
            let transcript = Transcript::new("imap", Arc::clone(&collected) as Arc<dyn Recorder>);
            let scribe = BackScribe::new(transcript).unwrap();
            scribe.reply(format!("{text}\r\n").as_bytes(), Some(&account(password)));
            let shown = collected.lines();
            assert!(shown[0].ends_with(text.split_once(' ').unwrap().1), "{password}: {shown:?}");
        }
    }
}

#[test]
fn dialogue_with_a_client_is_shown_by_its_verbs() {
    let imap = "1 ID (\"name\" \"Mail\" \"version\" \"1.0\" \"command\" \"--x\")\r\n2 CAPABILITY \r\n3 NOOP\r\nsecret NOOP\r\n\
                4 LOGIN {5}\r\nalice {6+}\r\nsecret\r\n5 AUTHENTICATE PLAIN\r\n*\r\nhello\r\n";
    let shown = front("imap", true, imap.as_bytes(), 3, &[]);
    let received: Vec<&str> = shown.iter().filter_map(|line| line.strip_prefix("> ")).collect();
    assert_eq!(received[0], "1 ID (\"name\" \"Mail\" \"version\" \"1.0\" <field> <3 bytes>)");
    assert!(received[1].starts_with("2 CAPABILITY <1 byte>"), "{received:?}");
    let rest = [
        "3 NOOP",
        "<tag> NOOP",
        "4 LOGIN <3 bytes> {5}",
        "<12 bytes>",
        "<8 bytes>",
        "5 AUTHENTICATE PLAIN",
        "*",
        "<5 bytes>",
    ];
    assert_eq!(received[2..5], rest[..3], "{shown:#?}");
    assert_eq!(received[received.len() - 3..], rest[5..], "{shown:#?}");
    assert!(shown.iter().any(|line| line == "< <tag> OK NOOP completed"), "{shown:#?}");
    assert!(shown.iter().any(|line| line == "< + Go ahead"), "{shown:#?}");
    assert!(shown.iter().any(|line| line == "< 4 NO [AUTHENTICATIONFAILED] Name or password is wrong"), "{shown:#?}");

    let sieve = "NOOP \"tag\"\r\nAUTHENTICATE \"PLAIN\" \"AGE=\"\r\n";
    let shown = front("managesieve", true, sieve.as_bytes(), 100, &[]);
    assert!(shown.iter().any(|line| line == "> NOOP <5 bytes>"), "{shown:#?}");
    assert!(shown.iter().any(|line| line.starts_with("< OK (TAG <")), "{shown:#?}");
    assert!(shown.iter().any(|line| line == "> AUTHENTICATE \"PLAIN\" <6 bytes>"), "{shown:#?}");

    let smtp = "EHLO laptop.example.net\r\nehlo word\r\nAUTH PLAIN AGE=\r\nMAIL FROM:<a@b>\r\nQUIT\r\n";
    let shown = front("submission", true, smtp.as_bytes(), 100, &[]);
    let received: Vec<&str> = shown.iter().filter_map(|line| line.strip_prefix("> ")).collect();
    let expected = ["EHLO laptop.example.net", "ehlo <4 bytes>", "AUTH PLAIN <4 bytes>", "MAIL <10 bytes>", "QUIT"];
    assert_eq!(received, expected, "{shown:#?}");

    let pop3 = "CAPA\r\nUSER alice\r\nPASS secret\r\n";
    let shown = front("pop3", true, pop3.as_bytes(), 1, &[]);
    let received: Vec<&str> = shown.iter().filter_map(|line| line.strip_prefix("> ")).collect();
    assert_eq!(received, ["CAPA", "USER <5 bytes>", "PASS <6 bytes>"]);
}

#[test]
fn login_at_a_backend_is_shown_by_its_commands() {
    let sent = |protocol: &str, service: bool, text: &str| {
        let shown = back(protocol, service, text.as_bytes(), 1_000);
        shown.iter().filter_map(|line| line.strip_prefix("< ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let imap = backend_script("imap", false).replace('#', "u2 OK in\r\n");
    let commands = sent("imap", false, &imap);
    assert!(
        commands[0].starts_with("u1 ID (\"name\" \"usher\" \"x-originating-ip\" \"198.51.100.7\""),
        "{commands:#?}"
    );
    assert_eq!(commands[1], "u2 AUTHENTICATE PLAIN");
    assert!(commands[2].ends_with("bytes>"), "{commands:#?}");
    let pop3 = backend_script("pop3", false).replace('#', "+OK in\r\n");
    let commands = sent("pop3", false, &pop3);
    assert!(commands[0].starts_with("XCLIENT ADDR=198.51.100.7 PORT=4711 SESSION="), "{commands:#?}");
    assert_eq!(commands[1..], ["CAPA", "USER <5 bytes>", &format!("PASS <{} bytes>", PASSWORD.len())]);
}

#[test]
fn accepted_login_shows_no_text_of_the_backend() {
    let row = by_name("imap").unwrap();
    let settings = FrontSettings {
        host: HOST,
        session: SESSION,
        capabilities: None,
        tls: true,
        starttls: false,
        bad_commands: 9,
        sasl: SaslOffer::PASSWORDS,
    };
    let mut front = (row.front)(settings);
    let collected = Arc::new(Collected::default());
    front.transcribe(Transcript::new(row.name, Arc::clone(&collected) as Arc<dyn Recorder>));
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(b"a1 LOGIN alice x\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
    let untagged = format!("* OK [ALERT] {PASSWORD}\r\n").into_bytes();
    let welcome = Welcome { untagged, capabilities: Vec::new(), text: PASSWORD.as_bytes().to_vec() };
    front.accepted(&welcome, &mut out);
    let shown = collected.lines();
    shows_no_secret(&shown, "an accepted login");
    assert_eq!(shown[shown.len() - 2], format!("< * OK [ALERT] <{} bytes>", PASSWORD.len()));
    assert_eq!(shown[shown.len() - 1], format!("< a1 OK <{} bytes>", PASSWORD.len()));
}

#[test]
fn dialogue_without_a_trace_records_nothing() {
    let row = by_name("imap").unwrap();
    let settings = FrontSettings {
        host: HOST,
        session: SESSION,
        capabilities: None,
        tls: true,
        starttls: false,
        bad_commands: 9,
        sasl: SaslOffer::PASSWORDS,
    };
    let mut front = (row.front)(settings);
    front.transcribe(Transcript::default());
    let mut out = SecretBuf::new();
    front.greet(&mut out);
    let mut made = false;
    Transcript::default().note(Leg::Client, || {
        made = true;
        String::new()
    });
    assert!(!out.is_empty() && !made);
}

#[test]
fn token_is_shown_as_a_number_of_bytes_on_both_sides() {
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl";
    let message = base64(&format!("user=alice\x01auth=Bearer {token}\x01\x01"));
    let row = by_name("imap").unwrap();
    let settings = FrontSettings {
        host: HOST,
        session: SESSION,
        capabilities: None,
        tls: true,
        starttls: false,
        bad_commands: 9,
        sasl: SaslOffer { mechanisms: MechanismSet::TOKENS, hints: None },
    };
    let mut front = (row.front)(settings);
    let collected = Arc::new(Collected::default());
    front.transcribe(Transcript::new(row.name, Arc::clone(&collected) as Arc<dyn Recorder>));
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(format!("a1 AUTHENTICATE XOAUTH2 {message}\r\n").as_bytes());
    assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
    front.refused(&Reply::TokenRefused(TokenChallenge::InvalidToken), &mut out);
    input.extend(format!("\r\na2 AUTHENTICATE XOAUTH2\r\n{message}\r\n").as_bytes());
    assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
    let shown = collected.lines();
    let count = format!("<{} bytes>", message.len());
    assert_eq!(shown[0], format!("> a1 AUTHENTICATE XOAUTH2 {count}"));
    assert!(shown.contains(&format!("> {count}")), "{shown:#?}");
    assert!(!shown.concat().contains(&message[20..40]), "{shown:#?}");

    let settings = BackSettings {
        tls: BackTls::Implicit,
        login: b"alice".to_vec(),
        password: Secret::copy_of(token.as_bytes()),
        token: Some(TokenForm::XOAuth2),
        service: None,
        untagged_limit: 10_000,
        forward: None,
        host: HOST.into(),
        initial_response: true,
        ehlo: None,
    };
    let mut back = (row.back)(settings);
    let collected = Arc::new(Collected::default());
    back.transcribe(Transcript::new(row.name, Arc::clone(&collected) as Arc<dyn Recorder>));
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] ready\r\n");
    back.step(&mut input, &mut out);
    input.extend(format!("u1 NO [AUTHENTICATIONFAILED] bad token {token}\r\n").as_bytes());
    back.step(&mut input, &mut out);
    let shown = collected.lines();
    assert_eq!(shown[1], format!("< u1 AUTHENTICATE XOAUTH2 {count}"));
    assert!(shown[2].starts_with("> <tag> NO [AUTHENTICATIONFAILED] <"), "{shown:#?}");
}
