//! Input from a backend, and the resulting steps.

use super::super::PROTOCOL;
use crate::base::secret::Secret;
use crate::proto::trial::{BackRun, HOST, calling};
use crate::proto::{BackSettings, BackTls, script};

/// The login of a script.
#[derive(Clone, Copy)]
struct Login {
    tls: BackTls,
    password: &'static [u8],
    service: Option<&'static [u8]>,
    /// Forwarded, as `address:port`.
    client: Option<&'static str>,
}

const ALICE: Login = Login { tls: BackTls::Implicit, password: b"secret", service: None, client: None };
const STARTTLS: Login = Login { tls: BackTls::StartTls, ..ALICE };

fn settings(login: Login) -> BackSettings {
    BackSettings {
        tls: login.tls,
        login: b"alice".to_vec(),
        password: Secret::copy_of(login.password),
        token: None,
        service: login.service.map(<[u8]>::to_vec),
        untagged_limit: 2000,
        forward: login.client.map(calling),
        host: HOST.into(),
        initial_response: true,
        ehlo: None,
    }
}

#[track_caller]
fn script(login: Login, text: &str) {
    script::backend(&PROTOCOL, &settings(login), text);
}

/// A script after a greeting and the login that follows it.
#[track_caller]
fn asked(text: &str) {
    let login = "C: AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"";
    script(ALICE, &format!("S: \"SASL\" \"PLAIN\"\nS: OK\n{login}\n{text}"));
}

#[test]
fn pigeonhole_login_succeeds() {
    script(
        STARTTLS,
        r#"
        S: "IMPLEMENTATION" "Dovecot Pigeonhole"
        S: "SIEVE" "fileinto reject envelope"
        S: "NOTIFY" "mailto"
        S: "SASL" ""
        S: "STARTTLS"
        S: "VERSION" "1.0"
        S: OK "Dovecot ready."
        C: STARTTLS
        S: OK "Begin TLS negotiation now."
        => tls
        S: "IMPLEMENTATION" "Dovecot Pigeonhole"
        S: "SIEVE" "fileinto reject envelope"
        S: "NOTIFY" "mailto"
        S: "SASL" "PLAIN LOGIN"
        S: "VERSION" "1.0"
        S: OK "TLS negotiation successful."
        C: AUTHENTICATE "PLAIN" "AGFsaWNlAHNlY3JldA=="
        S: OK "Logged in."
        C: NOOP
        S: OK "NOOP completed."
        => ready [] Logged in.
        "#,
    );
}

#[test]
fn timsieved_login_succeeds() {
    script(
        Login { service: Some(b"proxy"), ..ALICE },
        r#"
        S: "IMPLEMENTATION" "Cyrus timsieved"
        S: "SASL" "PLAIN LOGIN"
        S: "SIEVE" {8}
        S: fileinto
        S: "UNAUTHENTICATE"
        S: OK
        C: AUTHENTICATE "PLAIN" "YWxpY2UAcHJveHkAc2VjcmV0"
        S: OK
        C: NOOP
        S: OK "Done"
        => ready []
        "#,
    );
}

#[test]
fn client_address_is_sent_if_the_backend_supports_it() {
    let known = Login { client: Some("198.51.100.7:4711"), ..ALICE };
    let sent = "C: XCLIENT ADDR=198.51.100.7 PORT=4711 SESSION=S7Q2X";
    let login = "C: AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"";
    let listed = "S: \"SASL\" \"PLAIN\"\nS: \"XCLIENT\"\nS: OK";
    script(known, &format!("{listed}\n{sent}\nS: OK \"Updated\"\n{login}"));
    // Under TLS, and as it is listed there.
    let v6 = Login { tls: BackTls::StartTls, client: Some("[2001:db8::7]:4711"), ..ALICE };
    let clear = "S: \"STARTTLS\"\nS: OK\nC: STARTTLS\nS: OK\n=> tls";
    let sent_v6 = "C: XCLIENT ADDR=2001:db8::7 PORT=4711 SESSION=S7Q2X";
    script(v6, &format!("{clear}\n{listed}\n{sent_v6}\nS: OK\n{login}"));
    let clear = "S: \"STARTTLS\"\nS: \"XCLIENT\"\nS: OK\nC: STARTTLS\nS: OK\n=> tls";
    script(v6, &format!("{clear}\nS: \"SASL\" \"PLAIN\"\nS: OK\n=> fault ForwardingRefused"));
    script(known, "S: \"SASL\" \"PLAIN\"\nS: OK\n=> fault ForwardingRefused");
    for (reply, fault) in [
        ("NO \"You are not from trusted IP\"", "ForwardingRefused"),
        ("BYE \"Too many invalid MANAGESIEVE commands.\"", "Bye"),
        ("\"SIEVE\" \"\"", "ProtocolViolation"),
    ] {
        script(known, &format!("{listed}\n{sent}\nS: {reply}\n=> fault {fault}"));
    }
    script(ALICE, &format!("{listed}\n{login}"));
}

#[test]
fn capability_list_after_the_login_is_consumed() {
    asked(
        r#"
        S: OK "In"
        C: NOOP
        S: "IMPLEMENTATION" "sure of itself"
        S: "SIEVE" {4}
        S: keep
        S: OK "That is all"
        s: OK (TAG {3}\r\nabc) "Done"\r\nmore
        => ready [] In
        => left more
        "#,
    );
    // A server without NOOP.
    asked("S: OK \"In\"\nC: NOOP\nS: NO \"What?\"\n=> ready [] In");
    asked("S: OK \"In\"\nC: NOOP\nS: \"SIEVE\" \"\"\nS: NO \"What?\"\n=> fault ProtocolViolation");
    asked("S: OK \"In\"\nC: NOOP\nS: BYE \"Too many\"\n=> ready [] In\n=> left BYE \"Too many\"\\r\\n");
    asked("S: OK \"In\"\nC: NOOP\nS: BYE (REFERRAL \"sieve://inside/\") \"there\"\n=> fault Referral");
    // Only one of the two lists may be sent, and not before the reply.
    asked("S: \"SIEVE\" \"\"\n=> fault ProtocolViolation");
}

const LIST: &str = "\"IMPLEMENTATION\" \"timsieved\"\r\n\"STARTTLS\"\r\n\"SASL\" \"PLAIN\"\r\nOK\r\n";

/// The transcript after STARTTLS and a silence: what the backend sends then, whole and byte by byte.
#[track_caller]
fn silent_after_tls(sent: &str, expected: &[&str]) {
    for size in [1, sent.len().max(1)] {
        let mut run = BackRun::new(&PROTOCOL, settings(STARTTLS));
        run.feed(LIST.as_bytes());
        run.feed(b"OK\r\n");
        run.stay_silent();
        sent.as_bytes().chunks(size).for_each(|piece| run.feed(piece));
        let transcript = run.finish();
        let start = "STARTTLS\n=> tls\nCAPABILITY\nAUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"\n";
        assert_eq!(transcript, format!("{start}{}\n", expected.join("\n")));
    }
}

#[test]
fn silent_server_is_asked_after_starttls_and_may_list_twice() {
    silent_after_tls(&format!("{LIST}OK \"In\"\r\nOK\r\n"), &["NOOP", "=> ready [] In"]);
    // The list that was only slow, then the requested one.
    silent_after_tls(&format!("{LIST}{LIST}OK \"In\"\r\nOK\r\n"), &["NOOP", "=> ready [] In"]);
    silent_after_tls(&format!("{LIST}{LIST}NO \"No\"\r\n"), &["=> refused [] No"]);
    silent_after_tls(&format!("{LIST}{LIST}{LIST}"), &["=> fault ProtocolViolation"]);
    silent_after_tls(&format!("{LIST}\"IMPLEMENTATION\" \"x\"\r\nNO\r\n"), &["=> fault ProtocolViolation"]);
}

#[test]
fn second_list_may_come_before_the_reply_to_xclient() {
    let list = LIST.replace("OK", "\"XCLIENT\"\r\nOK");
    let mut run = BackRun::new(&PROTOCOL, settings(Login { client: Some("198.51.100.7:4711"), ..STARTTLS }));
    run.feed(format!("{list}OK\r\n").as_bytes());
    run.stay_silent();
    run.feed(format!("{list}{list}OK\r\nOK \"In\"\r\nOK\r\n").as_bytes());
    let transcript = run.finish();
    let expected = "CAPABILITY\nXCLIENT ADDR=198.51.100.7 PORT=4711 SESSION=S7Q2X\nAUTHENTICATE \"PLAIN\" \
                    \"AGFsaWNlAHNlY3JldA==\"\nNOOP\n=> ready [] In\n";
    assert!(transcript.ends_with(expected), "{transcript}");
}

#[test]
fn message_is_sent_again_where_it_was_not_read_with_the_command() {
    for challenge in ["\"\"", "{0}\nS: "] {
        let sent = format!("S: {challenge}\nC: \"AGFsaWNlAHNlY3JldA==\"\n");
        asked(&format!("{sent}S: OK \"In\"\nC: NOOP\nS: OK\n=> ready [] In"));
        asked(&format!("{sent}S: NO \"no\"\n=> refused [] no"));
        asked(&format!("{sent}S: NO \"Expected a command.\"\n=> fault Bad"));
        asked(&format!("{sent}S: \"\"\n=> fault ProtocolViolation"));
    }
    asked("S: \"eyJzdGF0dXMiOiI0MDEifQ==\"\n=> fault ProtocolViolation");
}

#[test]
fn error_about_the_form_leads_to_the_next_way_once() {
    let two_steps = "S: NO \"Expected a command. Got something else.\"\nC: AUTHENTICATE \"PLAIN\"\n";
    let answered = format!("{two_steps}S: \"\"\nC: \"AGFsaWNlAHNlY3JldA==\"\n");
    asked(&format!("{answered}S: OK\nC: NOOP\nS: OK\n=> ready []"));
    asked(&format!("{answered}S: NO \"Authentication Error\"\n=> refused [] Authentication Error"));
    asked(&format!("{two_steps}S: NO \"Expected EOL\"\n=> fault Bad"));
    asked(&format!("{two_steps}S: OK\n=> fault ProtocolViolation"));
    asked("S: NO (TRYLATER) \"syntax\"\n=> refused [TRYLATER] syntax");
}

#[test]
fn mechanism_login_is_the_last_way() {
    let login = r#"
        C: AUTHENTICATE "LOGIN"
        S: "VXNlcm5hbWU6"
        C: "YWxpY2U="
        S: {12}
        S: UGFzc3dvcmQ6
        C: "c2VjcmV0"
        S: OK "In"
        C: NOOP
        S: OK
        => ready [] In
    "#;
    script(ALICE, &format!("S: \"SASL\" \"LOGIN\"\nS: OK\n{login}"));
    script(ALICE, &format!("S: \"SASL\" \"\"\nS: \"SASL\" \"GSSAPI login\"\nS: OK\n{login}"));
    script(
        ALICE,
        "S: \"SASL\" \"LOGIN\"\nS: \"SASL\" \"PLAIN\"\nS: OK\nC: AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"",
    );
    let service = Login { service: Some(b"proxy"), ..ALICE };
    script(service, "S: \"SASL\" \"LOGIN\"\nS: OK\n=> fault NoMechanism");
    script(ALICE, "S: \"SASL\" \"LOGIN\"\nS: OK\nC: AUTHENTICATE \"LOGIN\"\nS: OK\n=> fault ProtocolViolation");
}

#[test]
fn login_is_sent_byte_for_byte() {
    static LONG: [u8; 800] = [b'p'; 800];
    // 807 bytes are 1076 characters of base64: more than a quoted string may contain.
    let coded = format!("AGFsaWNlAHBw{}", "cHBw".repeat(266));
    script(
        Login { password: &LONG, ..ALICE },
        &format!("S: \"SASL\" \"PLAIN\"\nS: OK\nC: AUTHENTICATE \"PLAIN\" {{1076+}}\nC: {coded}\nS: NO\n=> refused []"),
    );
    script(Login { password: b"sec\0ret", ..ALICE }, "S: \"SASL\" \"PLAIN\"\nS: OK\n=> fault NoMechanism");
}

#[test]
fn login_requires_plain() {
    for mechanisms in ["\"SASL\" \"\"", "\"SASL\"", "\"SASL\" \"GSSAPI XPLAIN\"", "\"SIEVE\" \"PLAIN\""] {
        script(ALICE, &format!("S: {mechanisms}\nS: OK\n=> fault NoMechanism"));
    }
    script(ALICE, "S: \"sasl\" \"login plain\"\nS: OK\nC: AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"");
}

#[test]
fn starttls_failure_sends_no_login() {
    script(STARTTLS, "S: \"SASL\" \"PLAIN\"\nS: OK\n=> fault NoStartTls");
    script(STARTTLS, "S: \"STARTTLS\"\nS: OK\nC: STARTTLS\nS: NO\n=> fault NoStartTls");
    script(STARTTLS, "S: \"STARTTLS\"\nS: OK\nC: STARTTLS\nS: \"SASL\" \"PLAIN\"\n=> fault ProtocolViolation");
    // The capabilities before TLS do not apply under TLS.
    script(
        STARTTLS,
        "S: \"STARTTLS\"\nS: \"SASL\" \"PLAIN\"\nS: OK\nC: STARTTLS\nS: OK\n=> tls\nS: OK\n=> fault NoMechanism",
    );
    script(
        Login { tls: BackTls::Plaintext, ..ALICE },
        "S: \"SASL\" \"PLAIN\"\nS: OK\nC: AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"",
    );
}

#[test]
fn refusals_keep_code_and_text() {
    asked("S: NO \"Authentication failed.\"\n=> refused [] Authentication failed.");
    asked("S: no (TRYLATER) {5}\nS: later\n=> refused [TRYLATER] later");
    asked("S: NO (AUTH-TOO-WEAK)\n=> refused [AUTH-TOO-WEAK]");
    asked("S: NO (QUOTA/MAXSIZE \"x\" y) \"a\\x1bb\"\n=> refused [QUOTA/MAXSIZE] a?b");
    asked("S: NO (REFERRAL \"sieve://inside/\") \"inside knows\"\n=> fault Referral");
    asked("S: BYE (referral {15}\nS: sieve://inside/) \"inside knows\"\n=> fault Referral");
    asked("S: OK (REFERRAL \"sieve://inside/\") \"inside knows\"\nC: NOOP\nS: OK\n=> ready []");
    asked("S: BYE\n=> fault Bye");
    script(ALICE, "S: BYE \"Too many\"\n=> fault Bye");
    script(ALICE, "S: NO \"Too many\"\n=> fault ProtocolViolation");
}

#[test]
fn only_ok_is_success() {
    for garbage in [
        "OKAY",
        "OK in",
        "OK  \"in\"",
        "OK(X)",
        "OK (X",
        "OK () x",
        "OK \"in",
        "OK \"in\" \"out\"",
        "OK\\x09",
        "\"OK\"x",
        "+ OK",
        "",
        "(OK)",
        "{2}",
        "OK \"a\\\\bc\"",
        "OK {x3}",
    ] {
        let wait = if garbage == "{2}" { "S: OK" } else { "" };
        asked(&format!("S: {garbage}\n{wait}\n=> fault ProtocolViolation"));
    }
    asked("s: OK\\n\n=> fault ProtocolViolation");
    asked("s: OK\\rX\n=> fault ProtocolViolation");
    asked("s: O\\0\n=> fault ProtocolViolation");
    asked("S: OK\nC: NOOP\nS: ok\n=> ready []");
}

#[test]
fn endless_replies_are_limited() {
    let rest = 2000 - "\"SASL\" \"PLAIN\"\r\nOK\r\n".len();
    asked(&format!("S: NO \"{}\"\n=> refused [] {}", "x".repeat(rest - 5), "x".repeat(512)));
    asked(&format!("S: NO \"{}\"\n=> fault TooLarge", "x".repeat(rest - 4)));
    asked(&format!("S: NO {{{rest}}}\n=> fault TooLarge"));
    asked("S: NO {99999999999999999999999}\n=> fault TooLarge");
    let many = vec!["\"X\" \"y\""; 400].join("\\r\\n");
    script(ALICE, &format!("S: {many}\n=> fault TooLarge"));
}
