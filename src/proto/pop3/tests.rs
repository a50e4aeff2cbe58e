//! Known-answer scripts of POP3 (`proto/script.rs` says how to read them).

use base64::Engine as _;

use super::super::engine::Engine;
use super::front::Pop3;
use super::{COMMAND, PROTOCOL};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::{BackendReply, Refusal, Reply};
use crate::proto::trial::{HOST, SESSION, ScriptedDecision, calling};
use crate::proto::{BackSettings, BackTls, Front as _, FrontSettings, Step, Welcome, script};

const TLS: FrontSettings<'_> = FrontSettings {
    host: HOST,
    session: SESSION,
    capabilities: None,
    tls: true,
    starttls: false,
    bad_commands: 50,
    sasl: crate::proto::SaslOffer::PASSWORDS,
};
const CLEAR: FrontSettings<'_> = FrontSettings { tls: false, starttls: true, ..TLS };

fn decision(words: &str) -> ScriptedDecision {
    match words {
        "wrong" => ScriptedDecision::Refuse(Refusal::WrongPassword),
        "unavailable" => ScriptedDecision::Refuse(Refusal::DirectoryUnavailable),
        "accept" => ScriptedDecision::Accept(Welcome { text: b"In <5>\r\n-ERR".to_vec(), ..Welcome::default() }),
        "accept quietly" => ScriptedDecision::Accept(Welcome::default()),
        other => panic!("no such decision: {other}"),
    }
}

#[track_caller]
fn client(settings: FrontSettings<'_>, text: &str) {
    script::client(&PROTOCOL, settings, decision, text);
}

#[test]
fn apop_is_not_offered() {
    client(TLS, "S: +OK usher is ready\nC: APOP alice c4c9334bac560ecc979e58001b3e22fb\nS: -ERR Unknown command");
}

#[test]
fn capabilities_follow_tls() {
    client(
        CLEAR,
        "
        C: CAPA
        S: +OK Capability list follows
        S: TOP
        S: UIDL
        S: RESP-CODES
        S: PIPELINING
        S: AUTH-RESP-CODE
        S: STLS
        S: .
        C: AUTH
        S: +OK Mechanism list follows
        S: .
        C: stls
        S: +OK Begin TLS now
        => tls
        C: capa
        S: +OK Capability list follows
        S: TOP
        S: UIDL
        S: RESP-CODES
        S: PIPELINING
        S: AUTH-RESP-CODE
        S: USER
        S: SASL PLAIN LOGIN
        S: .
        C: AUTH
        S: +OK Mechanism list follows
        S: PLAIN
        S: LOGIN
        S: .
        C: STLS
        S: -ERR STARTTLS is not available
        ",
    );
    client(FrontSettings { starttls: false, ..CLEAR }, "C: STLS\nS: -ERR STARTTLS is not available");
}

#[test]
fn only_common_and_lasting_capabilities_are_advertised() {
    let listed = ["uidl", "UTF8", "SASL CRAM-MD5", "STLS", "LOGIN-DELAY 900", "APOP", "XCLIENT"].map(String::from);
    client(
        FrontSettings { capabilities: Some(&listed), ..TLS },
        "
        C: CAPA
        S: +OK Capability list follows
        S: UIDL
        S: AUTH-RESP-CODE
        S: USER
        S: SASL PLAIN LOGIN
        S: .
        ",
    );
}

#[test]
fn user_and_pass_log_in() {
    client(
        TLS,
        r#"
        C: PASS secret
        S: -ERR Send USER first
        C: USER missing at all
        S: +OK Send the password
        C: PASS  two blanks, and one \x20
        => attempt "missing at all" " two blanks, and one \x20" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: PASS again
        S: -ERR Send USER first
        C: user alice
        S: +OK Send the password
        C: USER bob
        S: +OK Send the password
        C: CAPA me
        S: -ERR Invalid arguments
        C: pass p\xc3\xa4ss
        => attempt "bob" "p\xc3\xa4ss" ""
        <= unavailable
        S: -ERR [SYS/TEMP] The mail service is not available, try again later (session S7Q2X)
        C: USER\x20
        S: +OK Send the password
        C: PASS\x20
        => attempt "" "" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: USER
        S: -ERR Invalid arguments
        C: PASS
        S: -ERR Invalid arguments
        "#,
    );
}

#[test]
fn auth_is_accepted_with_and_without_an_initial_response() {
    client(
        TLS,
        r#"
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: auth plain
        S: +\x20
        C: Ym9iAGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" "bob"
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: AUTH LOGIN
        S: + VXNlcm5hbWU6
        C: YWxpY2U=
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        => attempt "alice" "secret" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: AUTH LOGIN YWxpY2U=
        S: + UGFzc3dvcmQ6
        C:
        => attempt "alice" "" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: AUTH LOGIN =
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        => attempt "" "secret" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: AUTH PLAIN =
        S: -ERR Invalid SASL response
        "#,
    );
}

#[test]
fn failed_exchanges_leave_the_connection_usable() {
    client(
        TLS,
        r"
        C: AUTH PLAIN
        S: +\x20
        C: *
        S: -ERR Authentication cancelled
        C: AUTH LOGIN
        S: + VXNlcm5hbWU6
        C: USER alice
        S: -ERR Invalid base64 data
        C: AUTH PLAIN AGFsaWNl
        S: -ERR Invalid SASL response
        C: AUTH CRAM-MD5
        S: -ERR Unsupported mechanism
        C: AUTH PLAIN AGFs aWNl
        S: -ERR Invalid arguments
        C: AUTH PLAIN\x09AGFsaWNlAHNlY3JldA==
        S: -ERR Unsupported mechanism
        ",
    );
}

/// As Dovecot 2.3 does, except that it lists the mechanisms for two blanks behind AUTH and takes blanks as part of
/// a name.
#[test]
fn superfluous_blanks_are_ignored_except_in_a_password() {
    client(
        CLEAR,
        r#"
        C: STLS\x20
        S: +OK Begin TLS now
        => tls
        C: CAPA \x20
        S: +OK Capability list follows
        S: TOP
        S: UIDL
        S: RESP-CODES
        S: PIPELINING
        S: AUTH-RESP-CODE
        S: USER
        S: SASL PLAIN LOGIN
        S: .
        C: AUTH\x20
        S: +OK Mechanism list follows
        S: PLAIN
        S: LOGIN
        S: .
        C: USER  alice\x20
        S: +OK Send the password
        C: PASS  secret\x20
        => attempt "alice" " secret\x20" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: AUTH  PLAIN  AGFsaWNlAHNlY3JldA==\x20
        => attempt "alice" "secret" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\x09
        => attempt "alice" "secret" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: AUTH PLAIN \x20
        S: +\x20
        C: AGFsaWNlAHNlY3JldA==\x20
        => attempt "alice" "secret" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        C: CAPA\x09
        S: -ERR Unknown command
        C: QUIT\x20
        S: +OK Goodbye
        => quit Logout
        "#,
    );
}

#[test]
fn cleartext_login_is_refused_before_the_secret() {
    client(
        CLEAR,
        "
        C: USER alice
        S: -ERR Start TLS before you log in
        C: PASS secret
        S: -ERR Send USER first
        C: AUTH PLAIN
        S: -ERR Start TLS before you log in
        C: AUTH CRAM-MD5
        S: -ERR Start TLS before you log in
        => refused unasked: tls_required
        => refused unasked: tls_required
        => refused unasked: tls_required
        ",
    );
}

#[test]
fn tls_start_discards_earlier_state() {
    // The test driver passes on pipelined input; the session discards it.
    let mut front = Engine::new(Pop3::new(CLEAR), CLEAR);
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(b"STLS\r\nUSER mallory\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::StartTls));
    assert!(matches!(front.step(&mut input, &mut out), Step::StartTls));
    assert!(input.is_empty(), "what came in the clear is dropped");
    front.tls_started();
    input.extend(b"PASS secret\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::NeedMore));
    assert_eq!(out.as_slice(), b"+OK Begin TLS now\r\n-ERR Send USER first\r\n");
}

#[test]
fn pipelined_commands_wait_for_the_decision() {
    client(
        TLS,
        r#"
        C: USER alice\r\nPASS wrong\r\nSTAT\r\nUSER alice\r\nPASS secret\r\nSTAT\r\nQUIT
        S: +OK Send the password
        => attempt "alice" "wrong" ""
        <= wrong
        S: -ERR [AUTH] Name or password is wrong
        S: -ERR Log in first
        S: +OK Send the password
        => attempt "alice" "secret" ""
        <= accept
        S: +OK In <5>??-ERR
        => left STAT\r\nQUIT\r\n
        "#,
    );
    client(
        TLS,
        "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\n=> attempt \"alice\" \"secret\" \"\"\n<= accept quietly\nS: +OK Logged in",
    );
}

#[test]
fn other_commands_are_answered() {
    client(
        TLS,
        r"
        C: NOOP
        S: -ERR Log in first
        C: retr 1
        S: -ERR Log in first
        C: UTF8
        S: -ERR Log in first
        C: XYZZY
        S: -ERR Unknown command
        C:
        S: -ERR Unknown command
        C:  CAPA
        S: -ERR Unknown command
        C: QUIT now
        S: -ERR Invalid arguments
        C: QUIT
        S: +OK Goodbye
        => quit Logout
        C: CAPA
        ",
    );
    client(TLS, "C: GET / HTTP/1.1\nS: -ERR This is a mail server\n=> quit ProtocolError\nC: USER alice");
}

#[test]
fn lines_are_limited_and_end_with_crlf_only() {
    let name = "n".repeat(COMMAND - 5);
    client(TLS, &format!("C: USER {name}\nS: +OK Send the password\nC: USER {name}n\nS: -ERR Line too long"));
    let response = "A".repeat(12_288);
    client(
        TLS,
        &format!(
            "
            C: AUTH PLAIN {}
            S: -ERR Invalid SASL response
            C: AUTH PLAIN
            S: +\\x20
            C: {response}
            S: -ERR Invalid SASL response
            C: AUTH PLAIN
            S: +\\x20
            C: {response}A
            S: -ERR Line too long
            C: STAT
            S: -ERR Log in first
            c: PASS secret\\n
            S: -ERR Line must end with CRLF
            C: STAT
            c: QU\\rIT
            S: -ERR Line must end with CRLF
            C: STAT
            c: QU\\0
            S: -ERR NUL is not allowed
            C: STAT
            C: STAT
            S: -ERR Log in first
            ",
            &response[..12_276]
        ),
    );
    let mut front = Engine::new(Pop3::new(TLS), FrontSettings { bad_commands: u32::MAX, ..TLS });
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    for flood in [&b"AUTH PLAIN\r\nAAAAAAAAAAAAAAAA"[..], b"x", b"USER "] {
        for _ in 0..100_000 / flood.len() {
            input.extend(flood);
            while let Step::Attempt(_) = front.step(&mut input, &mut out) {
                front.refused(&Reply::AuthenticationFailed, &mut out);
            }
            assert!(front.buffered() <= 12_288 + 1, "{} bytes are kept", front.buffered());
            out.clear();
            input.clear();
        }
    }
}

#[test]
fn bad_commands_are_limited() {
    client(
        FrontSettings { bad_commands: 2, ..TLS },
        "
        C: XYZZY
        S: -ERR Unknown command
        C: CAPA 1
        S: -ERR Too many bad commands
        => quit ProtocolError
        C: QUIT
        ",
    );
    let endless = "x".repeat(70_000);
    client(
        TLS,
        &format!("C: {endless}\nS: -ERR Line too long\nS: -ERR Too many bad commands\n=> quit ProtocolError")
            .replace("C:", "c:"),
    );
}

#[test]
fn backend_texts_are_forwarded_where_useful() {
    let words = |code: &str, text: &str| {
        let words = BackendReply { code: code.to_owned(), text: text.to_owned(), unavailable: false, challenge: None };
        let mut front = Engine::new(Pop3::new(TLS), TLS);
        let mut out = SecretBuf::new();
        front.refused(&Refusal::BackendRejected(Some(words)).reply(true), &mut out);
        let answer = out.as_slice().escape_ascii().to_string();
        answer.strip_suffix(r" (session S7Q2X)\r\n").expect("the session is named").to_owned()
    };
    assert_eq!(words("", "Invalid login"), r"-ERR [SYS/TEMP] Invalid login");
    assert_eq!(words("AUTH", "Invalid login"), r"-ERR [SYS/TEMP] Invalid login");
    assert_eq!(words("in-use", "Unable to lock maildrop"), r"-ERR [IN-USE] Unable to lock maildrop");
    assert_eq!(words("LOGIN-DELAY", "Wait"), r"-ERR [LOGIN-DELAY] Wait");
    assert_eq!(words("SYS/PERM", "Closed"), r"-ERR [SYS/PERM] Closed");
    assert_eq!(words("SYS/TEMP", "a\r\n+OK"), r"-ERR [SYS/TEMP] a??+OK");
    let unavailable = r"-ERR [SYS/TEMP] The mail service is not available, try again later";
    assert_eq!(words("IN-USE", " "), unavailable);
    assert!(words("IN-USE", &"x".repeat(9000)).len() <= 512 - " (session 0123456789ABC)\r\n".len());
}

/// The login of a script.
#[derive(Clone, Copy)]
struct Login {
    tls: BackTls,
    password: &'static [u8],
    service: Option<&'static [u8]>,
    client: Option<&'static str>,
    initial_response: bool,
}

const ALICE: Login =
    Login { tls: BackTls::Implicit, password: b"secret", service: None, client: None, initial_response: true };
const STARTTLS: Login = Login { tls: BackTls::StartTls, ..ALICE };
const PROXY: Login = Login { service: Some(b"proxy"), ..ALICE };

#[track_caller]
fn backend(login: Login, text: &str) {
    let settings = BackSettings {
        tls: login.tls,
        login: b"alice".to_vec(),
        password: Secret::copy_of(login.password),
        token: None,
        service: login.service.map(<[u8]>::to_vec),
        untagged_limit: 2000,
        forward: login.client.map(calling),
        host: HOST.into(),
        initial_response: login.initial_response,
        ehlo: None,
    };
    script::backend(&PROTOCOL, &settings, text);
}

#[track_caller]
fn greeted(login: Login, capabilities: &str, text: &str) {
    let listed: String = capabilities.split(',').map(|line| format!("S: {line}\n")).collect();
    backend(login, &format!("S: +OK ready\nC: CAPA\nS: +OK Capability list follows\n{listed}S: .\n{text}"));
}

#[test]
fn dovecot_and_cyrus_logins_succeed() {
    backend(
        STARTTLS,
        "
        S: +OK server3 is Dovecot <1b74.1.65648c7e.x@server3>
        C: STLS
        S: +OK Begin TLS negotiation now.
        => tls
        C: CAPA
        S: +OK
        S: CAPA
        S: TOP
        S: SASL PLAIN LOGIN
        S: .
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
        S: +OK Logged in.
        => ready [] Logged in.
        ",
    );
    greeted(
        PROXY,
        "SASL LOGIN PLAIN,USER",
        "
        C: AUTH PLAIN YWxpY2UAcHJveHkAc2VjcmV0
        S: -ERR [AUTH] authenticating: authentication failure
        => refused [AUTH] authenticating: authentication failure
        ",
    );
    greeted(
        ALICE,
        "SASL PLAIN",
        r"
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
        S: +OK Mailbox locked and ready SESSIONID=<cyrus-1>\r\n+OK 0 0
        => ready [] Mailbox locked and ready SESSIONID=<cyrus-1>
        => left +OK 0 0\r\n
        ",
    );
}

#[test]
fn client_address_is_sent_if_the_backend_supports_it() {
    let text = Login { client: Some("198.51.100.7:4711"), ..ALICE };
    let asked = "
        S: +OK Updated
        C: CAPA
        S: +OK
        S: SASL PLAIN
        S: .
        C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
        S: +OK
        => ready []
    ";
    backend(
        text,
        &format!("S: +OK [XCLIENT] Dovecot ready.\nC: XCLIENT ADDR=198.51.100.7 PORT=4711 SESSION=S7Q2X\n{asked}"),
    );
    backend(
        Login { tls: BackTls::StartTls, client: Some("[2001:db8::7]:4711"), ..ALICE },
        &format!(
            "S: +OK ready [XCLIENT]\nC: STLS\nS: +OK\n=> tls\nC: XCLIENT ADDR=2001:db8::7 PORT=4711 SESSION=S7Q2X\n{asked}"
        ),
    );
    backend(text, "S: +OK ready\n=> fault ForwardingRefused");
    let refused =
        "S: +OK [XCLIENT]\nC: XCLIENT ADDR=198.51.100.7 PORT=4711 SESSION=S7Q2X\nS: -ERR You are not from trusted IP";
    backend(text, &format!("{refused}\n=> fault ForwardingRefused"));
}

#[test]
fn plain_response_follows_the_challenge_when_the_line_is_too_long() {
    let message = [&b"\0alice\0"[..], &[b'x'; 190]].concat();
    let message = base64::engine::general_purpose::STANDARD.encode(message);
    greeted(
        Login { password: &[b'x'; 190], ..ALICE },
        "SASL PLAIN",
        &format!("C: AUTH PLAIN\nS: +\\x20\nC: {message}\nS: +OK\n=> ready []"),
    );
}

#[test]
fn user_and_pass_replace_plain_except_for_proxy_authorization() {
    let text = "
        C: USER alice
        S: +OK
        C: PASS secret
        S: -ERR [IN-USE] Do you have another POP session running?
        => refused [IN-USE] Do you have another POP session running?
    ";
    greeted(ALICE, "USER,SASL CRAM-MD5", text);
    backend(ALICE, &format!("S: +OK ready\nC: CAPA\nS: -ERR what?\n{text}"));
    greeted(ALICE, "USER", "C: USER alice\nS: -ERR [SYS/TEMP] later\n=> refused [SYS/TEMP] later");
    greeted(ALICE, "SASL CRAM-MD5", "=> fault NoMechanism");
    greeted(PROXY, "USER", "=> fault NoMechanism");
    greeted(Login { password: b"a\r\nDELE 1", ..ALICE }, "USER", "=> fault NoMechanism");
    greeted(Login { password: b"a\0b", ..ALICE }, "USER,SASL PLAIN", "=> fault NoMechanism");
    greeted(Login { password: &[b'x'; 249], ..ALICE }, "USER", "=> fault NoMechanism");
}

#[test]
fn message_is_sent_again_where_it_was_not_read_with_the_command() {
    for challenge in ["+", "+\\x20"] {
        let sent = format!("C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: {challenge}\nC: AGFsaWNlAHNlY3JldA==\n");
        greeted(ALICE, "SASL PLAIN", &format!("{sent}S: +OK in\n=> ready [] in"));
        greeted(ALICE, "SASL PLAIN,USER", &format!("{sent}S: -ERR [AUTH] no\n=> refused [AUTH] no"));
        greeted(ALICE, "SASL PLAIN,USER", &format!("{sent}S: -ERR Invalid login\n=> refused [] Invalid login"));
        greeted(ALICE, "SASL PLAIN,USER", &format!("{sent}S: -ERR Protocol error. 17\n=> fault Bad"));
    }
}

#[test]
fn error_about_the_form_leads_to_the_next_way_once() {
    let sent = "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\n";
    for form in ["-ERR Protocol error. 17", "-ERR Unknown command: \"auth\".", "-ERR Invalid command."] {
        let two_steps = format!("{sent}S: {form}\nC: AUTH PLAIN\n");
        let answered = format!("{two_steps}S: +\nC: AGFsaWNlAHNlY3JldA==\n");
        greeted(ALICE, "SASL PLAIN,USER", &format!("{answered}S: +OK in\n=> ready [] in"));
        greeted(ALICE, "SASL PLAIN,USER", &format!("{answered}S: -ERR no\n=> refused [] no"));
        greeted(ALICE, "SASL PLAIN,USER", &format!("{answered}S: {form}\n=> fault Bad"));
        let user = format!("{two_steps}S: {form}\nC: USER alice\n");
        greeted(ALICE, "SASL PLAIN,USER", &format!("{user}S: +OK\nC: PASS secret\nS: +OK in\n=> ready [] in"));
        greeted(ALICE, "SASL PLAIN,USER", &format!("{user}S: +OK\nC: PASS secret\nS: -ERR no\n=> refused [] no"));
        greeted(ALICE, "SASL PLAIN,USER", &format!("{user}S: {form}\n=> fault Bad"));
        greeted(ALICE, "SASL PLAIN", &format!("{two_steps}S: {form}\n=> fault Bad"));
    }
    // Nothing of the account was sent: whatever the text says, the password is not wrong.
    let two_steps = "C: AUTH PLAIN\nS: -ERR no\n";
    let later = Login { initial_response: false, ..ALICE };
    greeted(later, "SASL PLAIN,USER", &format!("{two_steps}C: USER alice"));
    greeted(later, "SASL PLAIN", &format!("{two_steps}=> fault Bad"));
    greeted(later, "SASL PLAIN", "C: AUTH PLAIN\nS: -ERR [AUTH] no\n=> fault Bad");
    greeted(later, "SASL PLAIN", "C: AUTH PLAIN\nS: -ERR [SYS/TEMP] later\n=> refused [SYS/TEMP] later");
}

/// A server locks accounts: what it has refused is not sent again in another form.
#[test]
fn refused_password_is_sent_once() {
    for refusal in ["[AUTH] Protocol error", "Authentication failed.", "Invalid login or password", "[SYS/TEMP] syntax"]
    {
        let (code, text) = refusal.strip_prefix('[').and_then(|code| code.split_once("] ")).unwrap_or(("", refusal));
        let step = format!("S: -ERR {refusal}\n=> refused [{code}] {text}");
        greeted(ALICE, "SASL PLAIN LOGIN,USER", &format!("C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\n{step}"));
    }
}

#[test]
fn ok_counts_as_a_challenge_before_the_last_response() {
    let later = Login { initial_response: false, ..ALICE };
    for challenge in ["+OK", "+OK go on"] {
        let sent = format!("C: AUTH PLAIN\nS: {challenge}\nC: AGFsaWNlAHNlY3JldA==\n");
        greeted(later, "SASL PLAIN", &format!("{sent}S: +OK in\n=> ready [] in"));
        greeted(later, "SASL PLAIN", &format!("{sent}S: -ERR no\n=> refused [] no"));
    }
    let login =
        "C: AUTH LOGIN\nS: +OK VXNlcm5hbWU6\nC: YWxpY2U=\nS: +OK UGFzc3dvcmQ6\nC: c2VjcmV0\nS: +OK in\n=> ready [] in";
    greeted(ALICE, "SASL LOGIN", login);
}

#[test]
fn mechanism_login_is_the_last_way() {
    let login = "C: AUTH LOGIN\nS: + VXNlcm5hbWU6\nC: YWxpY2U=\nS: + UGFzc3dvcmQ6\nC: c2VjcmV0\n";
    greeted(ALICE, "SASL LOGIN", &format!("{login}S: +OK in\n=> ready [] in"));
    greeted(ALICE, "SASL GSSAPI,TOP,sasl login", &format!("{login}S: -ERR no\n=> refused [] no"));
    greeted(ALICE, "SASL LOGIN,USER", "C: USER alice");
    greeted(ALICE, "SASL LOGIN,SASL PLAIN", "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==");
    greeted(PROXY, "SASL LOGIN,USER", "=> fault NoMechanism");
    // As Dovecot with `auth_mechanisms = login`.
    let user = "C: USER alice\nS: +OK\nC: PASS secret\nS: -ERR [AUTH] Unsupported authentication mechanism.\n";
    greeted(ALICE, "SASL LOGIN,USER", &format!("{user}{login}S: +OK in\n=> ready [] in"));
    greeted(ALICE, "USER", &format!("{user}=> fault Bad"));
    // USER and PASS cannot carry a line end, a base64 line can.
    greeted(Login { password: b"a\r\nb", ..ALICE }, "USER,SASL LOGIN", "C: AUTH LOGIN");
}

#[test]
fn protocol_violation_is_a_fault() {
    backend(ALICE, "S: -ERR [SYS/TEMP] too many connections\n=> fault Bye");
    backend(STARTTLS, "S: +OK\nC: STLS\nS: -ERR no\n=> fault NoStartTls");
    for garbage in ["+OKAY", "* OK imap", "220 smtp", "+ ", "", " +OK", "+ok ready"] {
        backend(ALICE, &format!("S: {}\n=> fault ProtocolViolation", garbage.replace("+ ", "+\\x20")));
    }
    backend(ALICE, "s: +OK ready\\n\n=> fault ProtocolViolation");
    backend(ALICE, &format!("s: +OK {}\n=> fault TooLarge", "x".repeat(2050)));
    let endless = "UIDL\\r\\n".repeat(400);
    backend(ALICE, &format!("S: +OK\nC: CAPA\nS: +OK\ns: {endless}\n=> fault TooLarge"));
    greeted(ALICE, "SASL PLAIN", "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: + go on\n=> fault ProtocolViolation");
    let again = "C: AUTH PLAIN AGFsaWNlAHNlY3JldA==\nS: +\nC: AGFsaWNlAHNlY3JldA==\n";
    greeted(ALICE, "SASL PLAIN", &format!("{again}S: +\n=> fault ProtocolViolation"));
    greeted(ALICE, "USER", "C: USER alice\nS: + go on\n=> fault ProtocolViolation");
}
