//! Known-answer scripts of submission (`proto/script.rs` says how to read them).

use base64::Engine as _;

use super::super::engine::Engine;
use super::PROTOCOL;
use super::front::Submission;
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::{BackendReply, Refusal, Reply};
use crate::proto::trial::{HOST, SESSION, ScriptedDecision, calling};
use crate::proto::{BackSettings, BackTls, ClientGreeting, Front as _, FrontSettings, Origin, Step, Welcome, script};

const TLS: FrontSettings<'_> = FrontSettings {
    host: HOST,
    capabilities: None,
    tls: true,
    starttls: false,
    bad_commands: 50,
    session: SESSION,
    sasl: crate::proto::SaslOffer::PASSWORDS,
};
const CLEAR: FrontSettings<'_> = FrontSettings { tls: false, starttls: true, ..TLS };

fn decision(words: &str) -> ScriptedDecision {
    match words {
        "wrong" => ScriptedDecision::Refuse(Refusal::WrongPassword),
        "unavailable" => ScriptedDecision::Refuse(Refusal::DirectoryUnavailable),
        "accept" => ScriptedDecision::Accept(Welcome { text: b"In\r\n250 ok".to_vec(), ..Welcome::default() }),
        "accept quietly" => ScriptedDecision::Accept(Welcome::default()),
        other => panic!("no such decision: {other}"),
    }
}

#[track_caller]
fn client(settings: FrontSettings<'_>, text: &str) {
    script::client(&PROTOCOL, settings, decision, text);
}

/// A script after EHLO under TLS.
#[track_caller]
fn greeted(text: &str) {
    client(TLS, &format!("C: HELO here\nS: 250 {HOST}\n{text}"));
}

#[test]
fn extensions_follow_tls() {
    client(
        CLEAR,
        "
        S: 220 usher.example.com ESMTP usher is ready
        C: EHLO [192.0.2.7]
        S: 250-usher.example.com
        S: 250-PIPELINING
        S: 250-8BITMIME
        S: 250-ENHANCEDSTATUSCODES
        S: 250 STARTTLS
        C: starttls
        S: 220 2.0.0 Begin TLS now
        => tls
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
        S: 503 5.5.1 Send EHLO first
        C: ehlo here
        S: 250-usher.example.com
        S: 250-PIPELINING
        S: 250-8BITMIME
        S: 250-ENHANCEDSTATUSCODES
        S: 250 AUTH PLAIN LOGIN
        C: STARTTLS
        S: 503 5.5.1 STARTTLS is not available
        C: HELO here
        S: 250 usher.example.com
        ",
    );
    let neither = FrontSettings { starttls: false, capabilities: Some(&[]), ..CLEAR };
    client(neither, "C: EHLO x\nS: 250 usher.example.com\nC: STARTTLS\nS: 503 5.5.1 STARTTLS is not available");
}

#[test]
fn only_extensions_for_clients_are_offered() {
    let listed = [
        "X-EXPS GSSAPI NTLM",
        "X-ANONYMOUSTLS",
        "XRDST",
        "XEXCH50",
        "XSHADOW",
        "XVERP",
        "ETRN",
        "ATRN",
        "x-exps=LOGIN",
        "SIZEX",
        "SMTPUTF8",
        "SIZE 10240000",
        "auth PLAIN",
        "AUTH=LOGIN",
        "STARTTLS",
        "XCLIENT ADDR PORT",
        "XFORWARD NAME",
        "dsn",
        "CHUNKING\r\n250 X",
        "LIMITS A=1\r\n250 X",
    ];
    let listed = listed.map(String::from);
    client(
        FrontSettings { capabilities: Some(&listed), ..TLS },
        "
        C: EHLO here
        S: 250-usher.example.com
        S: 250-SMTPUTF8
        S: 250-SIZE 10240000
        S: 250-dsn
        S: 250-LIMITS A=1??250 X
        S: 250 AUTH PLAIN LOGIN
        ",
    );
}

#[test]
fn mail_is_refused_before_the_login() {
    greeted(
        "
        C: MAIL FROM:<alice@example.com>
        S: 530 5.7.0 Log in first
        C: rcpt to:<bob@example.com>
        S: 530 5.7.0 Log in first
        C: DATA
        S: 530 5.7.0 Log in first
        C: NOOP
        S: 250 2.0.0 NOOP completed
        C: NOOP again
        S: 250 2.0.0 NOOP completed
        C: RSET
        S: 250 2.0.0 Reset completed
        C: HELP
        S: 214 2.0.0 Authenticate before sending mail
        C: VRFY alice
        S: 252 2.1.5 Cannot verify the user, but mail is accepted after login
        C: EXPN all
        S: 530 5.7.0 Log in first
        C: XYZZY
        S: 500 5.5.2 Unknown command
        C: EHLO
        S: 501 5.5.4 Invalid arguments
        C: RSET now
        S: 501 5.5.4 Invalid arguments
        C: QUIT
        S: 221 2.0.0 Goodbye
        => quit Logout
        C: NOOP
        ",
    );
}

#[test]
fn auth_is_accepted_with_and_without_an_initial_response() {
    greeted(
        r#"
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= wrong
        S: 535 5.7.8 Name or password is wrong
        C: auth plain
        S: 334\x20
        C: Ym9iAGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" "bob"
        <= unavailable
        S: 454 4.7.0 The mail service is not available, try again later (session S7Q2X)
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        C: YWxpY2U=
        S: 334 UGFzc3dvcmQ6
        C: c2VjcmV0
        => attempt "alice" "secret" ""
        <= wrong
        S: 535 5.7.8 Name or password is wrong
        C: AUTH LOGIN YWxpY2U=
        S: 334 UGFzc3dvcmQ6
        C:
        => attempt "alice" "" ""
        <= wrong
        S: 535 5.7.8 Name or password is wrong
        C: AUTH PLAIN =
        S: 501 5.5.2 Invalid SASL response
        "#,
    );
}

#[test]
fn failed_exchanges_leave_the_connection_usable() {
    greeted(
        r"
        C: AUTH PLAIN
        S: 334\x20
        C: *
        S: 501 5.7.0 Authentication cancelled
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        C: RSET now
        S: 501 5.5.2 Invalid base64 data
        C: AUTH CRAM-MD5
        S: 504 5.5.4 Unsupported mechanism
        C: AUTH PLAIN AGFs aWNl
        S: 501 5.5.4 Invalid arguments
        C: AUTH
        S: 501 5.5.4 Invalid arguments
        ",
    );
}

/// RFC 5321 section 4.1.1 for white space at the end; between the words as Postfix does.
#[test]
fn superfluous_blanks_are_ignored() {
    client(
        CLEAR,
        r#"
        C: STARTTLS \x20
        S: 220 2.0.0 Begin TLS now
        => tls
        C: HELO  here\x20
        S: 250 usher.example.com
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA== \x09
        => attempt "alice" "secret" ""
        <= wrong
        S: 535 5.7.8 Name or password is wrong
        C: AUTH  PLAIN  AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= wrong
        S: 535 5.7.8 Name or password is wrong
        C: AUTH PLAIN \x20
        S: 334\x20
        C: AGFsaWNlAHNlY3JldA==\x20
        => attempt "alice" "secret" ""
        <= wrong
        S: 535 5.7.8 Name or password is wrong
        C: AUTH PLAIN
        S: 334\x20
        C: *\x20
        S: 501 5.7.0 Authentication cancelled
        C: AUTH PLAIN AGFs aWNl\x20
        S: 501 5.5.4 Invalid arguments
        C: NOOP\x09
        S: 250 2.0.0 NOOP completed
        C: RSET \x20
        S: 250 2.0.0 Reset completed
        C: VRFY  alice\x20
        S: 252 2.1.5 Cannot verify the user, but mail is accepted after login
        C: EHLO \x20
        S: 501 5.5.4 Invalid arguments
        C: BDAT  4  LAST \r\nQUITNOOP
        S: 530 5.7.0 Log in first
        S: 250 2.0.0 NOOP completed
        C:  NOOP
        S: 500 5.5.2 Unknown command
        C: MAIL  FROM:<alice@example.com>\x20
        S: 530 5.7.0 Log in first
        C: QUIT\x20
        S: 221 2.0.0 Goodbye
        => quit Logout
        "#,
    );
}

#[test]
fn cleartext_login_is_refused_before_the_secret() {
    client(
        CLEAR,
        "
        C: EHLO here
        S: 250-usher.example.com
        S: 250-PIPELINING
        S: 250-8BITMIME
        S: 250-ENHANCEDSTATUSCODES
        S: 250 STARTTLS
        C: AUTH PLAIN
        S: 538 5.7.11 Start TLS before you log in
        C: MAIL FROM:<alice@example.com>
        S: 530 5.7.0 Log in first
        => refused unasked: tls_required
        ",
    );
}

#[test]
fn tls_start_discards_earlier_state() {
    let mut front = Engine::new(Submission::new(CLEAR), CLEAR);
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(b"EHLO mallory\r\nSTARTTLS\r\nEHLO mallory\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::StartTls));
    assert!(matches!(front.step(&mut input, &mut out), Step::StartTls));
    assert!(input.is_empty(), "what came in the clear is dropped");
    front.tls_started();
    out.clear();
    input.extend(b"AUTH LOGIN\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::NeedMore));
    assert_eq!(out.as_slice(), b"503 5.5.1 Send EHLO first\r\n");
}

#[test]
fn pipelined_commands_wait_for_the_decision() {
    greeted(
        r#"
        C: AUTH PLAIN AGFsaWNlAHdyb25n\r\nMAIL FROM:<a@b>\r\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>
        => attempt "alice" "wrong" ""
        <= wrong
        S: 535 5.7.8 Name or password is wrong
        S: 530 5.7.0 Log in first
        => attempt "alice" "secret" ""
        <= accept
        S: 235 2.7.0 In??250 ok
        => left MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n
        "#,
    );
    greeted(
        "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\n=> attempt \"alice\" \"secret\" \"\"\n<= accept quietly\nS: 235 2.7.0 \
         Logged in",
    );
}

#[test]
fn lines_are_limited_and_end_with_crlf_only() {
    let name = "n".repeat(505);
    client(TLS, &format!("C: HELO {name}\nS: 250 {HOST}\nC: HELO {name}n\nS: 500 5.5.2 Line too long"));
    let response = "A".repeat(12_288);
    greeted(&format!(
        "
        C: AUTH PLAIN {}
        S: 501 5.5.2 Invalid SASL response
        C: AUTH PLAIN {response}
        S: 500 5.5.6 Line too long
        C: AUTH PLAIN
        S: 334\\x20
        C: {response}
        S: 501 5.5.2 Invalid SASL response
        C: AUTH PLAIN
        S: 334\\x20
        C: {response}A
        S: 500 5.5.6 Line too long
        C: NOOP
        S: 250 2.0.0 NOOP completed
        c: MAIL FROM:<a@b>\\n
        S: 500 5.5.2 Line must end with CRLF
        C: RCPT TO:<c@d>
        c: QU\\0
        S: 500 5.5.2 NUL is not allowed
        C: IT
        C: NOOP
        S: 250 2.0.0 NOOP completed
        ",
        &response[..12_276]
    ));
    client(TLS, "C: GET / HTTP/1.1\nS: 421 4.7.0 This is a mail server\n=> quit ProtocolError\nC: EHLO x");
    client(
        FrontSettings { bad_commands: 2, ..TLS },
        "C: XYZZY\nS: 500 5.5.2 Unknown command\nC: DATA\nS: 421 4.7.0 Too many bad commands\n=> quit \
         ProtocolError\nC: QUIT",
    );
}

#[test]
fn backend_texts_are_forwarded_where_useful() {
    let words = |code: &str, text: &str| {
        let words = BackendReply { code: code.to_owned(), text: text.to_owned(), unavailable: false, challenge: None };
        let mut front = Engine::new(Submission::new(TLS), TLS);
        let mut out = SecretBuf::new();
        front.refused(&Refusal::BackendRejected(Some(words)).reply(true), &mut out);
        let answer = out.as_slice().escape_ascii().to_string();
        answer.strip_suffix(r" (session S7Q2X)\r\n").expect("the session is named").to_owned()
    };
    assert_eq!(words("535 5.7.8", "authentication failed"), r"454 4.7.0 authentication failed");
    assert_eq!(words("535", "authentication failed"), r"454 4.7.0 authentication failed");
    assert_eq!(words("550 5.7.8", "no"), r"454 4.7.0 no");
    assert_eq!(words("454 4.7.0", "Temporary failure"), r"454 4.7.0 Temporary failure");
    assert_eq!(words("432 4.7.12", "Change over"), r"432 4.7.12 Change over");
    assert_eq!(words("450", "Later"), r"450 4.7.0 Later");
    assert_eq!(words("550 5.7.1", "Your account is closed"), r"550 5.7.1 Your account is closed");
    assert_eq!(words("450 5.7.1", "Classes differ"), r"450 4.7.0 Classes differ");
    assert_eq!(words("454 4.7.0", "a\r\n235 ok"), r"454 4.7.0 a??235 ok");
    let unavailable = r"454 4.7.0 The mail service is not available, try again later";
    assert_eq!(
        (words("", "x"), words("235", "x"), words("454", " ")),
        (unavailable.into(), unavailable.into(), unavailable.into())
    );
    assert!(words("454 4.7.0", &"x".repeat(9000)).len() <= 512 - " (session 0123456789ABC)\r\n".len());
    let mut front = Engine::new(Submission::new(TLS), TLS);
    let mut out = SecretBuf::new();
    front.bye(&Reply::ShuttingDown, &mut out);
    assert_eq!(out.as_slice(), b"421 4.3.2 The server is shutting down, try again (session S7Q2X)\r\n");
}

/// The login of a script.
#[derive(Clone, Copy)]
struct Login {
    tls: BackTls,
    password: &'static [u8],
    service: Option<&'static [u8]>,
    client: Option<&'static str>,
    /// The client's name, and whether it is said by EHLO.
    name: Option<(&'static str, bool)>,
    /// Whether usher's own EHLO has it.
    ehlo: bool,
}

const ALICE: Login =
    Login { tls: BackTls::Implicit, password: b"secret", service: None, client: None, name: None, ehlo: false };
const STARTTLS: Login = Login { tls: BackTls::StartTls, ..ALICE };
const PROXY: Login = Login { service: Some(b"proxy"), ..ALICE };

#[track_caller]
fn backend(login: Login, text: &str) {
    let greeting = login.name.map(|(name, extended)| ClientGreeting { name: name.to_owned(), extended });
    let settings = BackSettings {
        tls: login.tls,
        login: b"alice".to_vec(),
        password: Secret::copy_of(login.password),
        token: None,
        service: login.service.map(<[u8]>::to_vec),
        untagged_limit: 2000,
        forward: login.client.map(|client| Origin { greeting: greeting.clone(), ..calling(client) }),
        host: HOST.into(),
        initial_response: true,
        ehlo: greeting.filter(|_| login.ehlo),
    };
    script::backend(&PROTOCOL, &settings, text);
}

/// A script after an EHLO reply with these keywords.
#[track_caller]
fn listing(login: Login, keywords: &str, text: &str) {
    let listed: String = keywords.split(',').map(|line| format!("S: 250-{line}\n")).collect();
    backend(login, &format!("S: 220 ready\nC: EHLO {HOST}\nS: 250-server3\n{listed}S: 250 HELP\n{text}"));
}

#[test]
fn ehlo_is_sent_again_after_starttls() {
    backend(
        STARTTLS,
        r"
        S: 220-server3.example.com
        S: 220 Dovecot ready.
        C: EHLO usher.example.com
        S: 250-server3.example.com
        S: 250-AUTH CRAM-MD5
        S: 250 STARTTLS
        C: STARTTLS
        S: 220 2.0.0 Begin TLS negotiation now.
        => tls
        C: EHLO usher.example.com
        S: 250-server3.example.com
        S: 250-auth=plain LOGIN
        S: 250 SIZE
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
        S: 235 2.7.0 Logged in.\r\n250 early
        => ready [] Logged in.
        => left 250 early\r\n
        ",
    );
    backend(STARTTLS, &format!("S: 220 x\nC: EHLO {HOST}\nS: 250 x\n=> fault NoStartTls"));
    let refused =
        "S: 250 STARTTLS\nC: STARTTLS\nS: 454 4.7.0 TLS not available due to temporary reason\n=> fault NoStartTls";
    backend(STARTTLS, &format!("S: 220 x\nC: EHLO {HOST}\nS: 250-x\n{refused}"));
}

#[test]
fn mechanism_is_one_of_the_advertised() {
    listing(PROXY, "AUTH LOGIN PLAIN", "C: AUTH PLAIN YWxpY2UAcHJveHkAc2VjcmV0\nS: 235 2.7.0\n=> ready []");
    listing(
        ALICE,
        "AUTH LOGIN",
        "
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        C: YWxpY2U=
        S: 334 UGFzc3dvcmQ6
        C: c2VjcmV0
        S: 235 Authentication successful
        => ready [] Authentication successful
        ",
    );
    let message = [&b"\0alice\0"[..], &[b'x'; 400]].concat();
    let message = base64::engine::general_purpose::STANDARD.encode(message);
    listing(
        Login { password: &[b'x'; 400], ..ALICE },
        "AUTH PLAIN",
        &format!("C: AUTH PLAIN\nS: 334\nC: {message}\nS: 235 2.7.0 ok\n=> ready [] ok"),
    );
    listing(ALICE, "AUTH CRAM-MD5", "=> fault NoMechanism");
    listing(ALICE, "SIZE", "=> fault NoMechanism");
    listing(PROXY, "AUTH LOGIN", "=> fault NoMechanism");
}

/// In several lines, in the old form with `=`, or empty.
#[test]
fn mechanisms_of_all_lines_are_used() {
    let plain = "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==";
    for keywords in [
        "AUTH,AUTH LOGIN PLAIN",
        "AUTH GSSAPI NTLM,AUTH=PLAIN LOGIN",
        "AUTH=,AUTH=LOGIN,AUTH  plain",
        "AUTH CRAM-MD5,SIZE,AUTH = PLAIN",
    ] {
        listing(ALICE, keywords, plain);
    }
    listing(ALICE, "AUTH,AUTH=LOGIN", "C: AUTH LOGIN");
    listing(ALICE, "AUTH,AUTH=,AUTHPLAIN", "=> fault NoMechanism");
}

#[test]
fn message_is_sent_again_where_it_was_not_read_with_the_command() {
    for challenge in ["334", "334\\x20"] {
        let sent = format!("C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: {challenge}\nC: AGFsaWNlAHNlY3JldA==\n");
        listing(ALICE, "AUTH PLAIN", &format!("{sent}S: 235 2.7.0 in\n=> ready [] in"));
        listing(ALICE, "AUTH PLAIN LOGIN", &format!("{sent}S: 535 5.7.8 no\n=> refused [535 5.7.8] no"));
        listing(ALICE, "AUTH PLAIN LOGIN", &format!("{sent}S: 501 5.5.2 what?\n=> fault Bad"));
        listing(ALICE, "AUTH PLAIN", &format!("{sent}S: 334\n=> fault ProtocolViolation"));
    }
}

#[test]
fn syntax_error_leads_to_the_next_way_once() {
    let sent = "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\n";
    for error in ["500 5.5.2 what?", "501 5.5.4 Syntax", "502 no", "504 5.7.4 Unrecognized authentication type"] {
        let two_steps = format!("{sent}S: {error}\nC: AUTH PLAIN\n");
        let answered = format!("{two_steps}S: 334\nC: AGFsaWNlAHNlY3JldA==\n");
        listing(ALICE, "AUTH PLAIN", &format!("{answered}S: 235 2.7.0 in\n=> ready [] in"));
        listing(ALICE, "AUTH PLAIN LOGIN", &format!("{answered}S: 535 5.7.8 no\n=> refused [535 5.7.8] no"));
        listing(ALICE, "AUTH PLAIN LOGIN", &format!("{answered}S: {error}\n=> fault Bad"));
        listing(ALICE, "AUTH PLAIN", &format!("{two_steps}S: {error}\n=> fault Bad"));
        listing(ALICE, "AUTH PLAIN LOGIN", &format!("{two_steps}S: {error}\nC: AUTH LOGIN\nS: {error}\n=> fault Bad"));
        listing(
            PROXY,
            "AUTH PLAIN LOGIN",
            &format!("C: AUTH PLAIN YWxpY2UAcHJveHkAc2VjcmV0\nS: {error}\nC: AUTH PLAIN\nS: {error}\n=> fault Bad"),
        );
    }
    // Nothing was sent that could be wrong.
    listing(ALICE, "AUTH LOGIN", "C: AUTH LOGIN\nS: 535 5.7.3 no\n=> fault Bad");
    // Not before the backend has seen the login.
    listing(ALICE, "AUTH LOGIN", "C: AUTH LOGIN\nS: 235 in\n=> fault ProtocolViolation");
}

#[test]
fn refusals_and_faults_of_a_login_are_distinguished() {
    let sent = "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\n";
    for (answer, step) in [
        ("535 5.7.8 Authentication failed", "refused [535 5.7.8] Authentication failed"),
        ("454 4.7.0 Temporary\\xff failure", "refused [454 4.7.0] Temporary? failure"),
        ("550 Mailbox closed", "refused [550] Mailbox closed"),
        ("535-5.7.8 one\\r\\n535 5.7.8 two", "refused [535 5.7.8] one"),
        ("421 4.3.2 Shutting down", "fault Bye"),
        ("421 Shutting down", "fault Bye"),
        (
            "421 4.7.0 Maximum number of connections exceeded",
            "refused [454 4.7.0] Maximum number of connections exceeded",
        ),
        ("530 5.7.0 Must issue a STARTTLS command first", "fault NoMechanism"),
        ("534 5.7.9 Too weak", "fault NoMechanism"),
        ("538 5.7.11 Encryption required", "fault NoMechanism"),
        ("501 5.7.8 wrong", "fault Bad"),
        ("503 5.5.1 already", "fault Bad"),
        ("250 ok", "fault ProtocolViolation"),
        ("2355 ok", "fault ProtocolViolation"),
        ("334 more", "fault ProtocolViolation"),
        ("334 eyJzdGF0dXMiOiI0MDEifQ==", "fault ProtocolViolation"),
        ("235-ok\\r\\n250 ok", "fault ProtocolViolation"),
        ("23", "fault ProtocolViolation"),
    ] {
        let answer = answer.replace("\\r\\n", "\nS: ");
        let mut lines = answer.split("\nS: ");
        let first = lines.next().unwrap_or_default();
        let rest: String = lines.map(|line| format!("S: {line}\n")).collect();
        listing(ALICE, "AUTH PLAIN", &format!("{sent}S: {first}\n{rest}=> {step}"));
    }
}

#[test]
fn protocol_violation_is_a_fault() {
    backend(ALICE, "S: 554 5.3.2 no service\n=> fault Bye");
    backend(ALICE, "S: 421 busy\n=> fault Bye");
    for garbage in ["+OK", "* OK imap", "250 ok", "22", "", "220x", "199 x", "620 x"] {
        backend(ALICE, &format!("S: {garbage}\n=> fault ProtocolViolation"));
    }
    backend(ALICE, "s: 220 ready\\n\n=> fault ProtocolViolation");
    backend(ALICE, &format!("s: 220 {}\n=> fault TooLarge", "x".repeat(2050)));
    let endless = "250-X\\r\\n".repeat(400);
    backend(ALICE, &format!("S: 220 x\nC: EHLO {HOST}\ns: {endless}\n=> fault TooLarge"));
    backend(ALICE, &format!("S: 220 x\nC: EHLO {HOST}\nS: 502 5.5.1 no\n=> fault Bad"));
}

#[test]
fn client_address_is_sent_in_the_supported_attributes() {
    let told = Login { client: Some("198.51.100.7:4711"), ..ALICE };
    let rest = format!(
        "
        S: 220 server3 again
        C: EHLO {HOST}
        S: 250-server3
        S: 250 AUTH PLAIN
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
        S: 235 ok
        => ready [] ok
        "
    );
    let postfix = "C: XCLIENT NAME=[UNAVAILABLE] ADDR=198.51.100.7 PORT=4711 DESTADDR=192.0.2.1 DESTPORT=993";
    listing(told, "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT", &format!("{postfix}\n{rest}"));
    let v6 = Login { client: Some("[2001:db8::7]:4711"), ..ALICE };
    let dovecot = "C: XCLIENT ADDR=IPV6:2001:db8::7 PORT=4711 SESSION=S7Q2X";
    listing(v6, "AUTH PLAIN,XCLIENT ADDR PORT PROTO HELO LOGIN SESSION", &format!("{dovecot}\n{rest}"));
    listing(told, "AUTH PLAIN", "=> fault ForwardingRefused");
    listing(told, "XCLIENT NAME", "=> fault ForwardingRefused");
    listing(told, "XCLIENT ADDR", "C: XCLIENT ADDR=198.51.100.7\nS: 550 5.7.1 no\n=> fault ForwardingRefused");
}

#[test]
fn name_of_the_client_is_kept_if_it_can_be_repeated() {
    let longest = "a".repeat(255);
    let longer = "a".repeat(300);
    let mut front = Engine::new(Submission::new(CLEAR), CLEAR);
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    for (command, name) in [
        ("NOOP", None),
        ("EHLO laptop.example.net", Some(("laptop.example.net", true))),
        ("helo  [192.0.2.7] ", Some(("[192.0.2.7]", false))),
        ("EHLO [IPv6:2001:db8::7]", Some(("[IPv6:2001:db8::7]", true))),
        ("EHLO my_laptop+1=x and more", Some(("my_laptop+1=x", true))),
        (&format!("EHLO {longest}"), Some((&*longest, true))),
        ("RSET", Some((&*longest, true))),
        (&format!("EHLO {longer}"), None),
        ("EHLO caf\u{e9}.example.net", None),
        ("EHLO laptop\tx", None),
        ("EHLO lap\u{7}top", None),
        ("EHLO laptop", Some(("laptop", true))),
        ("EHLO", Some(("laptop", true))),
    ] {
        input.extend(format!("{command}\r\n").as_bytes());
        assert!(matches!(front.step(&mut input, &mut out), Step::NeedMore));
        let kept = front.greeting().map(|greeting| (&*greeting.name, greeting.extended));
        assert_eq!(kept, name, "{command:?}");
    }
    front.tls_started();
    assert_eq!(front.greeting(), None, "it was said in the clear");
}

/// The end of a script in which EHLO is sent with this name.
fn ehlo(name: &str) -> String {
    format!(
        "C: EHLO {name}\nS: 250-server3\nS: 250 AUTH PLAIN\nC: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: 235 ok\n=> ready [] ok"
    )
}

#[test]
fn name_of_the_client_is_sent_by_xclient_and_behind_it() {
    let told = |name: &'static str, extended: bool| Login {
        client: Some("198.51.100.7:4711"),
        name: Some((name, extended)),
        ehlo: true,
        ..ALICE
    };
    let postfix = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT";
    let client = "C: XCLIENT NAME=[UNAVAILABLE] ADDR=198.51.100.7 PORT=4711 DESTADDR=192.0.2.1 DESTPORT=993";
    let many: &'static str = Box::leak("+".repeat(100).into_boxed_str());
    for (name, extended, attributes) in [
        ("laptop.example.net", true, " HELO=laptop.example.net PROTO=ESMTP"),
        ("[192.0.2.7]", false, " HELO=[192.0.2.7] PROTO=SMTP"),
        ("a+b=c", true, " HELO=a+2Bb+3Dc PROTO=ESMTP"),
        // Postfix refuses a longer value.
        (many, true, " PROTO=ESMTP"),
    ] {
        let text = format!("{client}{attributes}\nS: 220 again\n{}", ehlo(name));
        listing(told(name, extended), postfix, &text);
    }
    let laptop = told("laptop", true);
    let address = "C: XCLIENT ADDR=198.51.100.7";
    listing(laptop, "XCLIENT ADDR", &format!("{address}\nS: 220 again\n{}", ehlo("laptop")));
    let own = Login { ehlo: false, ..laptop };
    listing(own, "XCLIENT ADDR HELO", &format!("{address} HELO=laptop\nS: 220 again\n{}", ehlo(HOST)));
    // Before TLS it is not sent.
    let starttls = Login { tls: BackTls::StartTls, ..laptop };
    let secured = format!("C: STARTTLS\nS: 220 go\n=> tls\nC: EHLO {HOST}\nS: 250-x\nS: 250 XCLIENT ADDR HELO");
    let rest = format!("{address} HELO=laptop\nS: 220 again\n{}", ehlo("laptop"));
    listing(starttls, "STARTTLS", &format!("{secured}\n{rest}"));
    // A backend that refuses the name is not at fault, and gets the rest without it.
    let refused = format!("{address} HELO=laptop\nS: 501 5.5.4 Bad HELO syntax: laptop\n{address}");
    listing(laptop, "XCLIENT ADDR HELO", &format!("{refused}\nS: 220 again\n{}", ehlo("laptop")));
    listing(laptop, "XCLIENT ADDR HELO", &format!("{refused}\nS: 550 5.7.1 no\n=> fault ForwardingRefused"));
    listing(laptop, "XCLIENT ADDR", &format!("{address}\nS: 550 5.7.1 no\n=> fault ForwardingRefused"));
    let refused = "S: 220 again\nC: EHLO laptop\nS: 504 5.5.2 <laptop>: need fully-qualified hostname";
    listing(laptop, "XCLIENT ADDR HELO", &format!("{address} HELO=laptop\n{refused}\n{}", ehlo(HOST)));
}

#[test]
fn name_of_the_client_is_sent_without_xclient_if_configured() {
    let laptop = Login { name: Some(("laptop", true)), ehlo: true, ..ALICE };
    backend(laptop, &format!("S: 220 ready\n{}", ehlo("laptop")));
    backend(Login { ehlo: false, ..laptop }, &format!("S: 220 ready\n{}", ehlo(HOST)));
    let starttls = Login { tls: BackTls::StartTls, ..laptop };
    listing(starttls, "STARTTLS", &format!("C: STARTTLS\nS: 220 go\n=> tls\n{}", ehlo("laptop")));
    let refused = "S: 220 ready\nC: EHLO laptop\nS: 550-no\nS: 550 such name";
    backend(laptop, &format!("{refused}\n{}", ehlo(HOST)));
    backend(laptop, &format!("{refused}\nC: EHLO {HOST}\nS: 502 5.5.1 no\n=> fault Bad"));
}

/// RFC 3030 section 2: the bytes after the line belong to the message, whatever the reply.
#[test]
fn bdat_data_is_never_read_as_commands() {
    greeted(
        "
        C: BDAT 21 LAST\\r\\nQUIT\\r\\nAUTH PLAIN AAAANOOP
        S: 530 5.7.0 Log in first
        S: 250 2.0.0 NOOP completed
        C: bdat 0 last
        S: 530 5.7.0 Log in first
        C: BDAT 0000000002\\r\\n\\r\\nNOOP
        S: 530 5.7.0 Log in first
        S: 250 2.0.0 NOOP completed
        C: BDAT
        S: 530 5.7.0 Log in first
        C: BDAT 5 NOW
        S: 501 5.5.4 Invalid arguments
        C: BDAT five
        S: 501 5.5.4 Invalid arguments
        C: BDAT +5
        S: 501 5.5.4 Invalid arguments
        C: NOOP
        S: 250 2.0.0 NOOP completed
        ",
    );
    // It counts as a bad command, with or without TLS.
    client(
        FrontSettings { bad_commands: 2, ..CLEAR },
        "
        C: BDAT 6\\r\\nNOOP\\r\\nBDAT 6 LAST\\r\\nNOOP\\r\\nNOOP
        S: 530 5.7.0 Log in first
        S: 421 4.7.0 Too many bad commands
        => quit ProtocolError
        ",
    );
    // More than the discard limit of a command.
    for size in ["65537", "18446744073709551616", "99999999999999999999999999 LAST"] {
        greeted(&format!("C: BDAT {size}\nS: 421 4.7.0 Log in before you send a message\n=> quit ProtocolError"));
    }
    let mut trial = crate::proto::trial::FrontRun::new(&PROTOCOL, TLS, std::iter::empty());
    trial.feed(b"BDAT 65536\r\n");
    trial.feed(&b"QUIT\r\n".repeat(65_536 / 6));
    trial.feed(b"QUITNOOP\r\n");
    let transcript = trial.finish();
    assert!(transcript.ends_with("530 5.7.0 Log in first\n250 2.0.0 NOOP completed\n"), "{transcript}");
}
