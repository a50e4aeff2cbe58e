//! The mechanisms of tokens report a refused login by a challenge: the client answers it with one line, whatever it
//! is, and gets the final reply (RFC 7628 section 3.2.3). An outage has no challenge.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::script;
use super::super::trial::{HOST, SESSION, ScriptedDecision};
use super::super::{FrontSettings, MechanismSet, Protocol, SaslOffer, Step, TokenHints, by_name};
use crate::base::credential::CredentialSecret;
use crate::base::secret::SecretBuf;
use crate::outcome::{BackendReply, Refusal, Reply, TokenChallenge, TokenError};

const TOKENS: SaslOffer<'_> = SaslOffer { mechanisms: MechanismSet::PASSWORDS.or(MechanismSet::TOKENS), hints: None };
const TLS: FrontSettings<'_> = FrontSettings {
    host: HOST,
    session: SESSION,
    capabilities: None,
    tls: true,
    starttls: false,
    bad_commands: 3,
    sasl: TOKENS,
};

fn protocol(name: &str) -> &'static Protocol {
    by_name(name).unwrap()
}

fn decision(words: &str) -> ScriptedDecision {
    match words {
        "wrong" => ScriptedDecision::Refuse(Refusal::Token(TokenError::Expired)),
        "scope" => ScriptedDecision::Refuse(Refusal::Token(TokenError::Scope)),
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
                C: a AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==
                => token attempt "alice" "secret" ""
                <= wrong
                S: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=
                C: {line}
                S: a NO [AUTHENTICATIONFAILED] The token is not accepted, get a new one
                C: b AUTHENTICATE OAUTHBEARER
                S: +\x20
                C: bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==
                => token attempt "alice" "secret" ""
                <= unavailable
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
                C: a AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==
                => token attempt "alice" "secret" ""
                <= wrong
                S: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=
                C: {line}
                S: a NO [AUTHENTICATIONFAILED] The token is not accepted, get a new one
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
        C: AUTH OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==
        => token attempt "alice" "secret" ""
        <= wrong
        S: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=
        C: AQ==
        S: -ERR [AUTH] The token is not accepted, get a new one
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
        S: 250 AUTH PLAIN LOGIN OAUTHBEARER XOAUTH2
        C: AUTH OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==
        => token attempt "alice" "secret" ""
        <= wrong
        S: 334 eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=
        C: AQ==
        S: 535 5.7.8 The token is not accepted, get a new one
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
                C: AUTHENTICATE "OAUTHBEARER" "bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ=="
                => token attempt "alice" "secret" ""
                <= wrong
                S: "eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0="
                C: {answer}
                S: NO "The token is not accepted, get a new one"
                C: NOOP
                S: OK "NOOP completed"
                "#
            ),
        );
    }
}

#[test]
fn errors_of_a_token_have_their_challenges() {
    let decode = |text: &str| String::from_utf8(STANDARD.decode(text).unwrap()).unwrap();
    let hints =
        Arc::new(TokenHints { scope: "mail".to_owned(), discovery: Some("https://idp.example.com/d".to_owned()) });
    let settings = FrontSettings { sasl: SaslOffer { hints: Some(&hints), ..TOKENS }, ..TLS };
    for (mechanism, message, unreadable, scope) in [
        (
            "OAUTHBEARER",
            "bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==",
            r#"{"openid-configuration":"https://idp.example.com/d","scope":"mail","status":"invalid_request"}"#,
            r#"{"openid-configuration":"https://idp.example.com/d","scope":"mail","status":"insufficient_scope"}"#,
        ),
        (
            "XOAUTH2",
            "dXNlcj1hbGljZQFhdXRoPUJlYXJlciBzZWNyZXQBAQ==",
            r#"{"schemes":"bearer","scope":"mail","status":"400"}"#,
            r#"{"schemes":"bearer","scope":"mail","status":"403"}"#,
        ),
    ] {
        let mut front = (protocol("imap").front)(settings);
        let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
        let challenge = |out: &mut SecretBuf| {
            let line = std::str::from_utf8(out.as_slice()).unwrap().to_owned();
            out.clear();
            decode(line.strip_prefix("+ ").unwrap().trim_end())
        };
        input.extend(format!("a AUTHENTICATE {mechanism} dXNlcg==\r\n").as_bytes());
        assert!(matches!(front.step(&mut input, &mut out), Step::NeedMore));
        assert_eq!(challenge(&mut out), unreadable, "no message of it");
        input.extend(format!("\r\nb AUTHENTICATE {mechanism} {message}\r\n").as_bytes());
        assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
        assert_eq!(out.as_slice(), b"a BAD Invalid SASL response\r\n");
        out.clear();
        front.refused(&Refusal::Token(TokenError::Scope).reply(false), &mut out);
        assert_eq!(challenge(&mut out), scope);
    }
}

#[test]
fn challenge_of_a_backend_is_passed_on_and_no_other_reply_has_one() {
    let reply = |challenge| BackendReply {
        code: "UNAVAILABLE".to_owned(),
        text: "Try again".to_owned(),
        unavailable: true,
        challenge,
    };
    let answer = |refusal: Refusal| {
        let mut front = (protocol("imap").front)(TLS);
        let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
        input.extend(b"a AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\r\n");
        assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
        front.refused(&refusal.reply(false), &mut out);
        String::from_utf8(out.as_slice().to_vec()).unwrap()
    };
    let passed = answer(Refusal::BackendRejected(Some(reply(Some(TokenChallenge::InvalidToken)))));
    assert_eq!(passed, "+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\r\n");
    for refusal in [
        Refusal::BackendRejected(Some(reply(None))),
        Refusal::TokenUnavailable(TokenError::Unavailable),
        Refusal::DirectoryUnavailable,
        Refusal::NotAllowed,
        Refusal::Limit,
        Refusal::NoMailHost,
        Refusal::Hold,
    ] {
        assert!(answer(refusal.clone()).starts_with("a NO ["), "{refusal}");
    }
}

#[test]
fn tokens_are_offered_under_tls_where_they_are_configured() {
    for (name, listed) in [
        ("imap", "a CAPABILITY\r\n"),
        ("pop3", "CAPA\r\n"),
        ("submission", "EHLO here\r\n"),
        ("managesieve", "CAPABILITY\r\n"),
    ] {
        let shown = |settings| {
            let mut front = (protocol(name).front)(settings);
            let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
            front.greet(&mut out);
            input.extend(listed.as_bytes());
            front.step(&mut input, &mut out);
            String::from_utf8(out.as_slice().to_vec()).unwrap()
        };
        let all = shown(TLS);
        assert!(["PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"].iter().all(|one| all.contains(one)), "{name}: {all}");
        let clear = shown(FrontSettings { tls: false, starttls: true, ..TLS });
        assert!(!clear.contains("OAUTHBEARER") && !clear.contains("XOAUTH2"), "{name}: {clear}");
        let passwords = shown(FrontSettings { sasl: SaslOffer::PASSWORDS, ..TLS });
        assert!(!passwords.contains("OAUTHBEARER") && passwords.contains("PLAIN"), "{name}: {passwords}");
        let narrowed = SaslOffer { mechanisms: MechanismSet::of("XOAUTH2").unwrap(), hints: None };
        let narrowed = shown(FrontSettings { sasl: narrowed, ..TLS });
        assert!(narrowed.contains("XOAUTH2") && !narrowed.contains("PLAIN"), "{name}: {narrowed}");
        assert!(!narrowed.contains("OAUTHBEARER") && !narrowed.contains("USER\r\n"), "{name}: {narrowed}");
    }
}

#[test]
fn mechanism_that_is_not_offered_is_not_taken() {
    let xoauth2 =
        FrontSettings { sasl: SaslOffer { mechanisms: MechanismSet::of("XOAUTH2").unwrap(), hints: None }, ..TLS };
    let play = |name, text| script::client(protocol(name), xoauth2, decision, text);
    play(
        "imap",
        "C: a AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\nS: a NO Unsupported mechanism\nC: b LOGIN alice secret\n\
         S: b NO Unsupported mechanism\nC: c AUTHENTICATE PLAIN\nS: c NO Unsupported mechanism\n\
         S: * BYE Too many bad commands\n=> quit ProtocolError",
    );
    play("pop3", "C: USER alice\nS: -ERR Unsupported mechanism\nC: PASS secret\nS: -ERR Send USER first");
    let clear = FrontSettings { tls: false, starttls: true, ..TLS };
    script::client(
        protocol("imap"),
        clear,
        decision,
        "C: a AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\nS: a NO [PRIVACYREQUIRED] Start TLS before you log in\n=> refused unasked: tls_required",
    );
}

#[test]
fn longest_token_is_read_by_every_protocol() {
    let token = "x".repeat(9_100);
    let message = STANDARD.encode(format!("user=\x01auth=Bearer {token}\x01\x01"));
    assert!((12_000..12_288 - "a AUTHENTICATE XOAUTH2 ".len()).contains(&message.len()));
    let sent = [
        ("imap", format!("a AUTHENTICATE XOAUTH2 {message}\r\n"), format!("a AUTHENTICATE XOAUTH2\r\n{message}\r\n")),
        ("pop3", format!("AUTH XOAUTH2 {message}\r\n"), format!("AUTH XOAUTH2\r\n{message}\r\n")),
        ("submission", format!("AUTH XOAUTH2 {message}\r\n"), format!("AUTH XOAUTH2\r\n{message}\r\n")),
        (
            "managesieve",
            format!("AUTHENTICATE \"XOAUTH2\" {{{}+}}\r\n{message}\r\n", message.len()),
            format!("AUTHENTICATE \"XOAUTH2\"\r\n{{{}+}}\r\n{message}\r\n", message.len()),
        ),
    ];
    for (name, at_once, after_the_challenge) in sent {
        for sent in [at_once, after_the_challenge] {
            let mut front = (protocol(name).front)(TLS);
            let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
            if name == "submission" {
                input.extend(b"EHLO here\r\n");
            }
            input.extend(sent.as_bytes());
            let step = front.step(&mut input, &mut out);
            let Step::Attempt(credentials) = step else { panic!("{name}: {step:?}") };
            let CredentialSecret::Token(bearer) = credentials.secret else { panic!("{name}: a password") };
            assert_eq!((bearer.token.expose().len(), credentials.login.len()), (9_100, 0), "{name}");
        }
    }
}

#[test]
fn closing_line_follows_the_final_reply_that_was_held_back() {
    let mut front = (protocol("imap").front)(TLS);
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(b"a AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
    front.refused(&Reply::TokenRefused(TokenChallenge::InvalidToken), &mut out);
    front.bye(&Reply::Limit, &mut out);
    let expected = b"+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\r\n\
        a NO [AUTHENTICATIONFAILED] The token is not accepted, get a new one\r\n\
        * BYE [LIMIT] Too many attempts or sessions, try again later (session S7Q2X)\r\n";
    assert_eq!(out.as_slice().escape_ascii().to_string(), expected.escape_ascii().to_string());
}
