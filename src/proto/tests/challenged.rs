//! A mechanism that reports a refused login by a challenge: the client answers it with one line, whatever it is,
//! and gets the final reply (RFC 7628 section 3.2.3).

use super::super::script;
use super::super::trial::{HOST, SESSION, ScriptedDecision};
use super::super::{FrontSettings, Protocol, Step, by_name};
use crate::base::secret::SecretBuf;
use crate::outcome::{Refusal, Reply};

const TLS: FrontSettings<'_> =
    FrontSettings { host: HOST, session: SESSION, capabilities: None, tls: true, starttls: false, bad_commands: 3 };

fn protocol(name: &str) -> &'static Protocol {
    by_name(name).unwrap()
}

fn decision(words: &str) -> ScriptedDecision {
    match words {
        "wrong" => ScriptedDecision::Refuse(Refusal::WrongPassword),
        "unavailable" => ScriptedDecision::Refuse(Refusal::DirectoryUnavailable),
        other => panic!("no such decision: {other}"),
    }
}

#[track_caller]
fn play(name: &str, text: &str) {
    script::client(protocol(name), TLS, decision, text);
}

#[test]
fn imap_sends_the_final_no_after_one_more_line() {
    // `AQ==` is the dummy response of RFC 7628, `*` cancels, an empty line is allowed, too.
    for line in ["AQ==", "*", "", "not base64 {5+}"] {
        play(
            "imap",
            &format!(
                r#"
                C: a AUTHENTICATE X-CHALLENGING AGFsaWNlAHNlY3JldA==
                => attempt "alice" "secret" ""
                <= wrong
                S: + eyJzdGF0dXMiOiI0MDEifQ==
                C: {line}
                S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
                C: b AUTHENTICATE X-CHALLENGING
                S: +\x20
                C: AGFsaWNlAHNlY3JldA==
                => attempt "alice" "secret" ""
                <= unavailable
                S: + eyJzdGF0dXMiOiI0MDEifQ==
                C: {line}
                S: b NO [UNAVAILABLE] The mail service is not available, try again later (session S7Q2X)
                C: c NOOP
                S: c OK NOOP completed
                "#
            ),
        );
    }
}

#[test]
fn imap_reads_an_invalid_line_as_the_answer_and_discards_it() {
    let long = "x".repeat(20_000);
    for line in ["a\\nb", "a\\0b", "a\\rb", &long] {
        play(
            "imap",
            &format!(
                r#"
                C: a AUTHENTICATE X-CHALLENGING AGFsaWNlAHNlY3JldA==
                => attempt "alice" "secret" ""
                <= wrong
                S: + eyJzdGF0dXMiOiI0MDEifQ==
                C: {line}
                S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
                C: c NOOP
                S: c OK NOOP completed
                "#
            ),
        );
    }
}

#[test]
fn pop3_and_submission_send_the_final_reply_after_one_more_line() {
    play(
        "pop3",
        r#"
        C: AUTH X-CHALLENGING AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= wrong
        S: + eyJzdGF0dXMiOiI0MDEifQ==
        C: AQ==
        S: -ERR [AUTH] Name or password is wrong
        C: QUIT
        S: +OK Goodbye
        => quit Logout
        "#,
    );
    play(
        "submission",
        r#"
        C: EHLO here
        S: 250-usher.example.com
        S: 250-PIPELINING
        S: 250-8BITMIME
        S: 250-ENHANCEDSTATUSCODES
        S: 250 AUTH PLAIN LOGIN
        C: AUTH X-CHALLENGING AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= wrong
        S: 334 eyJzdGF0dXMiOiI0MDEifQ==
        C: AQ==
        S: 535 5.7.8 Name or password is wrong
        C: NOOP
        S: 250 2.0.0 NOOP completed
        "#,
    );
}

#[test]
fn managesieve_sends_the_final_no_after_one_more_string() {
    let large = "x".repeat(20_000);
    for answer in
        ["\"AQ==\"", "\"*\"", "{4+}\\r\\nAQ==", "no string", "{4}\\r\\nAQ==", &format!("{{20000+}}\\r\\n{large}")]
    {
        play(
            "managesieve",
            &format!(
                r#"
                C: AUTHENTICATE "X-CHALLENGING" "AGFsaWNlAHNlY3JldA=="
                => attempt "alice" "secret" ""
                <= wrong
                S: "eyJzdGF0dXMiOiI0MDEifQ=="
                C: {answer}
                S: NO "Name or password is wrong"
                C: NOOP
                S: OK "NOOP completed"
                "#
            ),
        );
    }
}

#[test]
fn mechanism_of_tests_is_not_offered() {
    assert!(super::super::sasl::offered().eq(["PLAIN", "LOGIN"]));
}

#[test]
fn closing_line_follows_the_final_reply_that_was_held_back() {
    let mut front = (protocol("imap").front)(TLS);
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(b"a AUTHENTICATE X-CHALLENGING AGFsaWNlAHNlY3JldA==\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
    front.refused(&Reply::AuthenticationFailed, &mut out);
    front.bye(&Reply::Limit, &mut out);
    let expected = b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n\
        a NO [AUTHENTICATIONFAILED] Name or password is wrong\r\n\
        * BYE [LIMIT] Too many attempts or sessions, try again later (session S7Q2X)\r\n";
    assert_eq!(out.as_slice().escape_ascii().to_string(), expected.escape_ascii().to_string());
}
