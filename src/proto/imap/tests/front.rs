//! Input from a client, and the replies.

use super::super::PROTOCOL;
use super::super::front::Imap;
use crate::base::secret::SecretBuf;
use crate::outcome::{AccountState, BackendReply, Proof, Refusal, Reply, TokenError};
use crate::proto::engine::Engine;
use crate::proto::trial::{FrontRun, HOST, SESSION, ScriptedDecision};
use crate::proto::{Front, FrontSettings, Step, Welcome, script};

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

/// The decisions that a script can name.
fn decision(words: &str) -> ScriptedDecision {
    match words {
        "wrong" => ScriptedDecision::Refuse(Refusal::WrongPassword),
        "unavailable" => ScriptedDecision::Refuse(Refusal::DirectoryUnavailable),
        "accept" => ScriptedDecision::Accept(Welcome {
            untagged: Vec::new(),
            capabilities: b"IMAP4rev1 IDLE".to_vec(),
            text: b"User logged in SESSIONID=<cyrus-1>".to_vec(),
        }),
        "accept quietly" => ScriptedDecision::Accept(Welcome::default()),
        "accept with lines" => ScriptedDecision::Accept(Welcome {
            untagged: b"* OK [ALERT] {5}\r\n* CAPABILITY IMAP4rev1\r\n".to_vec(),
            capabilities: b"IMAP4rev1".to_vec(),
            text: b"In\r\n* BYE".to_vec(),
        }),
        other => panic!("no such decision: {other}"),
    }
}

#[track_caller]
fn script(settings: FrontSettings<'_>, text: &str) {
    script::client(&PROTOCOL, settings, decision, text);
}

#[test]
fn greeting_lists_the_current_capabilities() {
    script(TLS, "S: * OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE AUTH=PLAIN AUTH=LOGIN] usher is ready");
    script(CLEAR, "S: * OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE STARTTLS LOGINDISABLED] usher is ready");
    let neither = FrontSettings { starttls: false, ..CLEAR };
    script(neither, "S: * OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE LOGINDISABLED] usher is ready");
}

#[test]
fn commands_valid_in_any_state_are_answered() {
    script(
        TLS,
        r#"
        C: a1 CAPABILITY
        S: * CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE AUTH=PLAIN AUTH=LOGIN
        S: a1 OK Capability completed
        C: a1 nOOp
        S: a1 OK NOOP completed
        C: a2 NOOP\r\na3 NOOP
        S: a2 OK NOOP completed
        S: a3 OK NOOP completed
        C: a4 LOGOUT
        S: * BYE Goodbye
        S: a4 OK Logged out
        => quit Logout
        C: a5 NOOP
        "#,
    );
}

#[test]
fn any_valid_tag_is_echoed() {
    let long = "t".repeat(8000);
    script(TLS, &format!("C: {long} NOOP\nS: {long} OK NOOP completed"));
    script(
        TLS,
        r#"
        C: !#$&',-./:;<=>?@[]^_`|~ NOOP
        S: !#$&',-./:;<=>?@[]^_`|~ OK NOOP completed
        C: *
        S: * BAD Missing or invalid tag
        C: + NOOP
        S: * BAD Missing or invalid tag
        C: a+ NOOP
        S: * BAD Missing or invalid tag
        C:  NOOP
        S: * BAD Missing or invalid tag
        C: \xc3\xa9 NOOP
        S: * BAD Missing or invalid tag
        c: \r\n
        S: * BAD Missing or invalid tag
        C: a
        S: a BAD Unknown command
        "#,
    );
}

#[test]
fn command_in_the_wrong_state_is_bad_and_the_session_continues() {
    script(
        TLS,
        r#"
        C: a SELECT INBOX
        S: a BAD Log in first
        C: a fetch 1 BODY[]
        S: a BAD Log in first
        C: a ENABLE
        S: a BAD Invalid arguments
        C: a UNAUTHENTICATE
        S: a BAD Log in first
        C: a XYZZY
        S: a BAD Unknown command
        C: a NOOP now
        S: a BAD Invalid arguments
        C: a  NOOP
        S: a BAD Unknown command
        C: a STARTTLS
        S: a BAD STARTTLS is not available
        C: a NOOP
        S: a OK NOOP completed
        "#,
    );
}

/// As Dovecot does: a client that sends it too early goes on.
#[test]
fn enable_before_login_has_no_effect() {
    script(
        TLS,
        r#"
        C: a ENABLE UTF8=ACCEPT
        S: * ENABLED
        S: a OK ENABLE is ignored before login
        C: b enable CONDSTORE QRESYNC
        S: * ENABLED
        S: b OK ENABLE is ignored before login
        C: c LOGIN alice "p\xc3\xa4ss"
        => attempt "alice" "p\xc3\xa4ss" ""
        <= wrong
        S: c NO [AUTHENTICATIONFAILED] Name or password is wrong
        "#,
    );
}

/// imaplib sends a name without quotes. What ends or begins something else is still invalid.
#[test]
fn atoms_of_login_may_hold_what_dovecot_takes() {
    for name in ["o*neil", "alice%example.com", r"EXAMPLE\alice", "*", r"\"] {
        let sent = name.replace('\\', r"\\");
        let accepted = format!("C: a LOGIN {sent} {sent}\n=> attempt \"{name}\" \"{name}\" \"\"");
        script(TLS, &format!("{accepted}\n<= wrong\nS: a NO [AUTHENTICATIONFAILED] Name or password is wrong"));
    }
    for invalid in ["pa(ss", "pa)ss", "pa{ss", "pa\"ss", "p{3}x"] {
        script(TLS, &format!("C: a LOGIN alice {invalid}\nS: a BAD Invalid arguments"));
    }
}

#[test]
fn rejected_commands_are_consumed_with_their_literals() {
    script(
        TLS,
        r#"
        C: a APPEND INBOX {5}
        S: a BAD Log in first
        C: b APPEND INBOX {12+}
        c: c NOOP\r\n{5+}
        C:  {3+}
        c: x\r\n
        C:
        S: b BAD Log in first
        C: d XYZZY {2+}
        c: ab
        C:  {7}
        S: d BAD Unknown command
        C: e LOGIN alice {0+} pass {4+}
        c: \r\n\r\n
        C: rest
        S: e BAD Invalid arguments
        C: f NOOP
        S: f OK NOOP completed
        "#,
    );
}

#[test]
fn login_accepts_strings_in_every_form() {
    script(
        TLS,
        r#"
        C: a LOGIN alice secret
        => attempt "alice" "secret" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a login "alice" "se \\"cr\\\\et"
        => attempt "alice" "se "cr\et" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a LOGIN {5}
        S: + Go ahead
        C: alice {6}
        S: + Go ahead
        C: secret
        => attempt "alice" "secret" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a LOGIN {5+}\r\nalice {6+}\r\nsecret
        => attempt "alice" "secret" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a LOGIN {5+}\r\nalice "p\xc3\xa4ss"
        => attempt "alice" "p\xc3\xa4ss" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a LOGIN alice] {4}
        S: + Go ahead
        C: \r\0\n}
        => attempt "alice]" "\r\x00\n}" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a LOGIN "" {0}
        S: + Go ahead
        C:
        => attempt "" "" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a LOGIN {0+}\r\n ""
        => attempt "" "" ""
        <= accept
        S: a OK [CAPABILITY IMAP4rev1 IDLE] User logged in SESSIONID=<cyrus-1>
        "#,
    );
}

#[test]
fn login_refuses_other_arguments() {
    for arguments in [
        "",
        " ",
        " alice",
        " alice ",
        " alice  ",
        " alice\\x09secret",
        " alice secret\\x09",
        " alice secret more",
        " alice secret  more",
        r#" alice "secret"#,
        r#" alice "se\\cret""#,
        r#" alice "secret"x"#,
        r#" "alice""secret""#,
        " alice se(ret",
        " alice s\\xc3\\xa9cret",
        " alice {}",
        " alice {+}",
        " alice {-1}",
        " alice {6",
        " alice {6}x",
        " alice {6} ",
        " alice x{6}",
        " alice NIL{5}",
    ] {
        script(
            TLS,
            &format!(
                "C: a LOGIN{arguments}
                 S: a BAD Invalid arguments
                 C: b NOOP
                 S: b OK NOOP completed"
            ),
        );
    }
}

/// Each is accepted by Dovecot 2.3, but for two blanks behind AUTHENTICATE.
#[test]
fn superfluous_blanks_are_ignored() {
    for login in [
        " alice secret ",
        "  alice  secret",
        "  \"alice\"   \"secret\"  ",
        " alice {6+}\\r\\nsecret ",
        "  {5+}\\r\\nalice  {6+}\\r\\nsecret  ",
    ] {
        script(
            TLS,
            &format!("C: a LOGIN{login}\n=> attempt \"alice\" \"secret\" \"\"\n<= accept quietly\nS: a OK Logged in"),
        );
    }
    for initial in [" PLAIN  AGFsaWNlAHNlY3JldA==", " PLAIN AGFsaWNlAHNlY3JldA==  ", "  PLAIN AGFsaWNlAHNlY3JldA=="] {
        let attempt = "=> attempt \"alice\" \"secret\" \"\"\n<= accept quietly\nS: a OK Logged in";
        script(TLS, &format!("C: a AUTHENTICATE{initial}\n{attempt}"));
    }
    for id in [
        " ( \"name\" \"x\" \"version\" \"1.0\" )",
        "  (\"name\"  \"x\"  \"version\" \"1.0\") ",
        " (\"name\" {1+}\\r\\nx  \"version\" {3+}\\r\\n1.0 )",
    ] {
        script(TLS, &format!("C: a ID{id}\nS: * ID (\"name\" \"usher\")\nS: a OK ID completed\n=> id \"x\" \"1.0\""));
    }
    for id in ["", " ", " NIL ", "  NIL", " ( )", " (  )  ", " ( \"name\" NIL )"] {
        script(TLS, &format!("C: a ID{id}\nS: * ID (\"name\" \"usher\")\nS: a OK ID completed"));
    }
    script(
        CLEAR,
        r#"
        C: a NOOP \x20
        S: a OK NOOP completed
        C: a CAPABILITY\x20
        S: * CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE STARTTLS LOGINDISABLED
        S: a OK Capability completed
        C: a STARTTLS\x20
        S: a OK Begin TLS now
        => tls
        C: a AUTHENTICATE PLAIN\x20
        S: +\x20
        C: AGFsaWNlAHNlY3JldA==\x20
        => attempt "alice" "secret" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a AUTHENTICATE PLAIN
        S: +\x20
        C: *\x20
        S: a BAD Authentication cancelled
        C: a LOGIN alice "secret "\x20
        => attempt "alice" "secret\x20" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: a NOOP\x09
        S: a BAD Unknown command
        C: a NOOP \x09
        S: a BAD Invalid arguments
        C: a LOGOUT\x20
        S: * BYE Goodbye
        S: a OK Logged out
        => quit Logout
        "#,
    );
}

#[test]
fn oversized_input_never_desynchronizes() {
    let full = "p".repeat(4096);
    script(
        TLS,
        &format!(
            "C: a LOGIN alice {{4096}}
             S: + Go ahead
             C: {full}
             => attempt \"alice\" \"{full}\" \"\"
             <= wrong
             S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
             C: a LOGIN alice {{4097}}
             S: a BAD [TOOBIG] Argument too long
             C: a LOGIN alice {{99999999999999999999999}}
             S: a BAD [TOOBIG] Argument too long
             C: a LOGIN alice {{4097+}}
             C: {full}p
             S: a BAD [TOOBIG] Argument too long
             C: a LOGIN alice {full}p
             S: a BAD [TOOBIG] Argument too long
             C: b NOOP
             S: b OK NOOP completed"
        ),
    );
    let (most, more) = ("p".repeat(65_500), "p".repeat(36));
    script(
        TLS,
        &format!(
            "C: a LOGIN {{65500+}}
             c: {most}
             C: {{30+}}
             S: * BYE [TOOBIG] Literal too large
             => quit ProtocolError"
        ),
    );
    script(
        TLS,
        &format!(
            "C: a LOGIN {{65500+}}
             c: {most}
             c: {more}
             S: * BYE Command too long
             => quit ProtocolError"
        ),
    );
    for size in ["65537", "18446744073709551616", "99999999999999999999999999999999999999999999999999"] {
        script(
            TLS,
            &format!(
                "C: a LOGIN {{{size}+}}
                 S: * BYE [TOOBIG] Literal too large
                 => quit ProtocolError
                 C: b NOOP"
            ),
        );
    }
}

#[test]
fn long_lines_are_discarded() {
    let most = "x".repeat(8192 - "a XYZZY ".len());
    script(
        TLS,
        &format!(
            "C: a XYZZY {most}
             S: a BAD Unknown command
             c: b XYZZY {most}x
             S: b BAD [TOOBIG] Line too long
             C: {most} {{6+}}
             C: c NOOP
             C: d NOOP
             S: d OK NOOP completed
             c: {most}xxxxxxxxx
             S: * BAD [TOOBIG] Line too long
             C: more {{6}}
             C: e NOOP
             S: e OK NOOP completed"
        ),
    );
    let endless = "x".repeat(80_000);
    script(
        TLS,
        &format!(
            "c: a {}
             S: a BAD [TOOBIG] Line too long
             c: {endless}
             S: * BYE Command too long
             => quit ProtocolError",
            "x".repeat(8191)
        ),
    );
}

#[test]
fn only_crlf_ends_a_line() {
    script(
        TLS,
        r#"
        c: a NOOP\n
        S: a BAD Line must end with CRLF
        c: b LOGIN alice secret\n
        C: c LOGIN alice secret
        C: d NOOP\r\re NOOP
        S: d BAD Line must end with CRLF
        C: f LOGIN alice "sec\0ret"
        S: f BAD NUL is not allowed
        C: g NOOP
        S: g OK NOOP completed
        C: h LOGIN "al\nh LOGIN eve eve {6+}
        S: h BAD Line must end with CRLF
        C: i NOOP
        C: j NOOP
        S: j OK NOOP completed
        "#,
    );
}

#[test]
fn http_request_is_disconnected() {
    for request in ["GET / HTTP/1.1", "POST /login HTTP/1.1", "OPTIONS *", "PRI * HTTP/2.0", "GET"] {
        script(
            TLS,
            &format!(
                "C: {request}
                 S: * BYE This is a mail server
                 => quit ProtocolError
                 C: a LOGIN alice secret"
            ),
        );
    }
    script(TLS, "C: get NOOP\nS: get OK NOOP completed");
}

#[test]
fn bad_command_limit_is_not_reset_by_tls() {
    script(
        FrontSettings { bad_commands: 4, ..CLEAR },
        r#"
        C: a XYZZY
        S: a BAD Unknown command
        C: b LOGIN alice secret
        S: b NO [PRIVACYREQUIRED] Start TLS before you log in
        C: c STARTTLS
        S: c OK Begin TLS now
        => tls
        C: d AUTHENTICATE XYZZY
        S: d NO Unsupported mechanism
        C: e NOOP
        S: e OK NOOP completed
        C: f AUTHENTICATE PLAIN
        S: +\x20
        C: *
        S: f BAD Authentication cancelled
        S: * BYE Too many bad commands
        => quit ProtocolError
        C: g NOOP
        => refused unasked: tls_required
        "#,
    );
    script(
        FrontSettings { bad_commands: 1, ..TLS },
        r#"
        C: a XYZZY {5+}
        C: 12345
        S: a BAD Unknown command
        S: * BYE Too many bad commands
        => quit ProtocolError
        "#,
    );
}

#[test]
fn cleartext_login_is_refused_before_the_secret_is_requested() {
    script(
        CLEAR,
        r#"
        C: a LOGIN {5}
        S: a NO [PRIVACYREQUIRED] Start TLS before you log in
        C: b LOGIN alice {6}
        S: b NO [PRIVACYREQUIRED] Start TLS before you log in
        C: c LOGIN {5+}
        C: alice {6+}
        C: secret
        S: c NO [PRIVACYREQUIRED] Start TLS before you log in
        C: d AUTHENTICATE PLAIN
        S: d NO [PRIVACYREQUIRED] Start TLS before you log in
        C: e AUTHENTICATE LOGIN YWxpY2U=
        S: e NO [PRIVACYREQUIRED] Start TLS before you log in
        C: f NOOP
        S: f OK NOOP completed
        => refused unasked: tls_required
        => refused unasked: tls_required
        => refused unasked: tls_required
        => refused unasked: tls_required
        => refused unasked: tls_required
        "#,
    );
}

#[test]
fn starttls_discards_earlier_state() {
    script(
        CLEAR,
        r#"
        C: a ID ("name" "Mallory" "version" "1")
        S: * ID ("name" "usher")
        S: a OK ID completed
        C: a CAPABILITY
        S: * CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE STARTTLS LOGINDISABLED
        S: a OK Capability completed
        C: b STARTTLS now
        S: b BAD Invalid arguments
        C: b STARTTLS
        S: b OK Begin TLS now
        => tls
        C: c STARTTLS
        S: c BAD STARTTLS is not available
        C: d LOGIN alice secret
        => attempt "alice" "secret" ""
        <= accept
        S: d OK [CAPABILITY IMAP4rev1 IDLE] User logged in SESSIONID=<cyrus-1>
        "#,
    );
    let mut front = Engine::new(Imap::default(), CLEAR);
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(b"a STARTTLS\r\nb LOGIN eve eve\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::StartTls));
    assert!(!input.is_empty(), "what is left is for the session to drop");
    assert!(matches!(front.step(&mut input, &mut out), Step::StartTls));
    assert!(input.is_empty(), "and is never read even if it does not");
}

#[test]
fn authenticate_is_accepted_in_every_form() {
    script(
        TLS,
        r#"
        C: a AUTHENTICATE PLAIN
        S: +\x20
        C: AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= unavailable
        S: a NO [UNAVAILABLE] The mail service is not available, try again later (session S7Q2X)
        C: b authenticate plain Ym9iAGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" "bob"
        <= wrong
        S: b NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: c AUTHENTICATE PLAIN\r\nAGFsaWNlAHNlY3JldA==\r\nd NOOP
        S: +\x20
        => attempt "alice" "secret" ""
        <= wrong
        S: c NO [AUTHENTICATIONFAILED] Name or password is wrong
        S: d OK NOOP completed
        C: e AUTHENTICATE LOGIN
        S: + VXNlcm5hbWU6
        C: YWxpY2U=
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        => attempt "alice" "secret" ""
        <= wrong
        S: e NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: f AUTHENTICATE LOGIN YWxpY2U=
        S: + UGFzc3dvcmQ6
        C:
        => attempt "alice" "" ""
        <= wrong
        S: f NO [AUTHENTICATIONFAILED] Name or password is wrong
        C: g AUTHENTICATE LOGIN =
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        => attempt "" "secret" ""
        <= accept quietly
        S: g OK Logged in
        "#,
    );
}

#[test]
fn failed_sasl_exchange_ends() {
    script(
        TLS,
        r#"
        C: a AUTHENTICATE PLAIN
        S: +\x20
        C: *
        S: a BAD Authentication cancelled
        C: a AUTHENTICATE LOGIN
        S: + VXNlcm5hbWU6
        C: YWxpY2U=
        S: + UGFzc3dvcmQ6
        C: *
        S: a BAD Authentication cancelled
        C: a AUTHENTICATE PLAIN AGFsaWNl_HNlY3JldA==
        S: a BAD Invalid base64 data
        C: a AUTHENTICATE PLAIN *
        S: a BAD Invalid base64 data
        C: a AUTHENTICATE PLAIN
        S: +\x20
        C: AGFsaWNlAHNlY3JldA=
        S: a BAD Invalid base64 data
        C: a AUTHENTICATE PLAIN
        S: +\x20
        c: AGFs\n
        S: a BAD Line must end with CRLF
        C: aWNl
        C: a AUTHENTICATE PLAIN =
        S: a BAD Invalid SASL response
        C: a AUTHENTICATE PLAIN YWxpY2UAc2VjcmV0
        S: a BAD Invalid SASL response
        C: a AUTHENTICATE PLAIN AGEAYgBj
        S: a BAD Invalid SASL response
        C: a AUTHENTICATE GSSAPI
        S: a NO Unsupported mechanism
        C: a AUTHENTICATE
        S: a BAD Invalid arguments
        C: a AUTHENTICATE PLAIN AGEAYg== AGEAYg==
        S: a BAD Invalid arguments
        C: a AUTHENTICATE {5+}
        C: PLAIN
        S: a BAD Invalid arguments
        C: a NOOP
        S: a OK NOOP completed
        "#,
    );
}

#[test]
fn sasl_lines_have_a_larger_limit() {
    // 12,288 characters of base64, all zero bits: 9,216 NULs.
    let most = "A".repeat(12_288);
    let initial = "A".repeat(12_288 - "a AUTHENTICATE PLAIN ".len() - 3);
    script(
        TLS,
        &format!(
            "C: a AUTHENTICATE PLAIN
             S: +\\x20
             C: {most}
             S: a BAD Invalid SASL response
             C: a AUTHENTICATE PLAIN
             S: +\\x20
             c: {most}A
             S: a BAD [TOOBIG] Line too long
             C: AAA
             C: a AUTHENTICATE PLAIN {initial}
             S: a BAD Invalid SASL response
             c: a AUTHENTICATE PLAIN {initial}AAAA
             S: a BAD [TOOBIG] Line too long
             C:
             C: a NOOP
             S: a OK NOOP completed"
        ),
    );
}

#[test]
fn pipelined_commands_wait_for_the_reply() {
    script(
        TLS,
        r#"
        C: a LOGIN alice secret\r\nb SELECT INBOX\r\nc LOGIN alice better\r\nd SELECT INBOX\r\ne IDL
        => attempt "alice" "secret" ""
        <= wrong
        S: a NO [AUTHENTICATIONFAILED] Name or password is wrong
        S: b BAD Log in first
        => attempt "alice" "better" ""
        <= accept
        S: c OK [CAPABILITY IMAP4rev1 IDLE] User logged in SESSIONID=<cyrus-1>
        => left d SELECT INBOX\r\ne IDL\r\n
        "#,
    );
}

#[test]
fn client_that_requested_capabilities_gets_the_new_ones() {
    let asking = r#"
        C: a CAPABILITY
        S: * CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE AUTH=PLAIN AUTH=LOGIN
        S: a OK Capability completed
        C: b LOGIN alice secret
        => attempt "alice" "secret" ""
    "#;
    script(
        TLS,
        &[
            asking,
            r#"
            <= accept
            S: * CAPABILITY IMAP4rev1 IDLE
            S: b OK [CAPABILITY IMAP4rev1 IDLE] User logged in SESSIONID=<cyrus-1>
            "#,
        ]
        .concat(),
    );
    script(TLS, &[asking, "<= accept quietly\nS: b OK Logged in"].concat());
    script(
        TLS,
        &[
            asking,
            r#"
            <= accept with lines
            S: * OK [ALERT] {5}
            S: * CAPABILITY IMAP4rev1
            S: b OK [CAPABILITY IMAP4rev1] In??* BYE
            "#,
        ]
        .concat(),
    );
}

#[test]
fn id_is_answered_and_stored_within_bounds() {
    script(
        TLS,
        r#"
        C: a ID NIL
        S: * ID ("name" "usher")
        S: a OK ID completed
        C: a ID ()
        S: * ID ("name" "usher")
        S: a OK ID completed
        C: a ID ("Name" {3}
        S: + Go ahead
        C: A\r\n "version" NIL "x-originating-ip" "10.0.0.1")
        S: * ID ("name" "usher")
        S: a OK ID completed
        => id "A??" ""
        "#,
    );
    for wrong in [
        " name",
        " (\"name\")",
        " (\"name\" \"x\"",
        " (\"name\" x)",
        " (name x)",
        " \"NIL\"",
        " ( NIL )",
        " (\"name\"\\x09\"x\")",
        " (\"name\" \"x\"\"version\" \"1\")",
        " (\"name\" \"x\" \"version\" )",
        " (NIL \"x\")",
        " (\"a\" \"b\") more",
        " NIL NIL",
        " (\"a\" \"b\" (\"c\" \"d\"))",
    ] {
        script(TLS, &format!("C: a ID{wrong}\nS: a BAD Invalid arguments"));
    }
    let pairs = |count: usize| vec!["\"a\" \"b\""; count].join(" ");
    let (field, value) = ("f".repeat(30), "v".repeat(1024));
    script(
        TLS,
        &format!(
            "C: a ID ({})
             S: * ID (\"name\" \"usher\")
             S: a OK ID completed
             C: a ID ({})
             S: a BAD [TOOBIG] Argument too long
             C: a ID (\"{field}\" \"{value}\" \"version\" \"{value}\")
             S: * ID (\"name\" \"usher\")
             S: a OK ID completed
             C: a ID (\"{field}f\" \"x\")
             S: a BAD [TOOBIG] Argument too long
             C: a ID (\"name\" \"{value}v\")
             S: a BAD [TOOBIG] Argument too long
             C: a ID (\"name\" {{1025}}
             S: a BAD [TOOBIG] Argument too long
             => id \"\" \"{}\"",
            pairs(30),
            pairs(31),
            "v".repeat(64)
        ),
    );
}

#[test]
fn at_most_one_command_is_buffered() {
    let pair = format!("{{30+}}\r\n{} {{1024+}}\r\n{}", "f".repeat(30), "v".repeat(1024));
    let largest = format!("a ID ({})\r\n", vec![pair.as_str(); 30].join(" "));
    let mut trial = FrontRun::new(&PROTOCOL, TLS, std::iter::empty());
    trial.feed(largest.as_bytes());
    assert!(trial.finish().ends_with("a OK ID completed\n"), "everything that RFC 2971 allows");

    // The same as one line of quoted strings, which is longer than any other command's may be.
    let pair = format!("\"{}\" \"{}\"", "f".repeat(30), "v".repeat(1024));
    let quoted = format!("a ID ({})\r\n", vec![pair.as_str(); 30].join(" "));
    let head = "a ID (\"name\" \"x\")";
    let full = format!("{head}{}\r\n", " ".repeat(32_768 - head.len()));
    for line in [&quoted, &full] {
        for settings in [TLS, CLEAR] {
            for size in [1, 4096, line.len()] {
                let mut trial = FrontRun::new(&PROTOCOL, settings, std::iter::empty());
                line.as_bytes().chunks(size).for_each(|piece| trial.feed(piece));
                let transcript = trial.finish();
                assert!(transcript.contains("\na OK ID completed\n"), "{} bytes: {transcript}", line.len());
            }
        }
    }
    let longer = format!("{head}{}\r\nb NOOP\r\n", " ".repeat(32_769 - head.len()));
    let other = format!("a NOOP{}\r\nb NOOP\r\n", " ".repeat(8192));
    for line in [&longer, &other] {
        let mut trial = FrontRun::new(&PROTOCOL, TLS, std::iter::empty());
        trial.feed(line.as_bytes());
        assert!(trial.finish().ends_with("a BAD [TOOBIG] Line too long\nb OK NOOP completed\n"));
    }

    // As literals with a tag that makes it too long: the oversized literal is discarded.
    let tag = "t".repeat(2000);
    let mut trial = FrontRun::new(&PROTOCOL, TLS, std::iter::empty());
    trial.feed(format!("{tag}{largest}b NOOP\r\n").as_bytes());
    assert!(trial.finish().ends_with("BAD [TOOBIG] Argument too long\nb OK NOOP completed\n"));
}

#[test]
fn buffered_input_is_bounded() {
    let floods: [&[u8]; 7] = [
        b"a ID (\"name\" \"xxxxxxxxxxxxxxxxxxxxxxxx",
        b"x",
        b"a AUTHENTICATE PLAIN\r\nAAAAAAAAAAAAAAAA",
        b"a ID (\"name\" {1024+}\r\n",
        b"a LOGIN {4096+}\r\n",
        b"a XYZZY {60000+}\r\n",
        b"\"name\" {1000}\r\n",
    ];
    for flood in floods {
        let mut front = Engine::new(Imap::default(), FrontSettings { bad_commands: u32::MAX, ..TLS });
        let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
        for _ in 0..200_000 / flood.len() {
            input.extend(flood);
            while let Step::Attempt(_) = front.step(&mut input, &mut out) {
                front.refused(&Reply::AuthenticationFailed, &mut out);
            }
            let kept = front.buffered() + front.dialect().tag_length();
            assert!(kept <= 32_768 + 8_192, "{kept} bytes of {}", flood.escape_ascii());
            out.clear();
            input.clear();
        }
    }
}

#[test]
fn refusals_have_their_replies() {
    let wrong = "NO [AUTHENTICATIONFAILED] Name or password is wrong";
    let unavailable = "NO [UNAVAILABLE] The mail service is not available, try again later";
    let contact = "NO [CONTACTADMIN] Your mailbox cannot be reached, please contact your administrator";
    let backend_rejected = |code: &str, text: &str| {
        Refusal::BackendRejected(Some(BackendReply {
            code: code.to_owned(),
            text: text.to_owned(),
            unavailable: false,
            challenge: None,
        }))
    };
    let state = |state| Refusal::Account { state, proven: true };
    let cases = [
        (Refusal::WrongPassword, wrong),
        (Refusal::UnknownUser, wrong),
        (Refusal::NoPassword, wrong),
        (Refusal::NetworkNotAllowed, wrong),
        (Refusal::ActingNotAllowed(crate::outcome::ActingFault::NotPermitted), wrong),
        (Refusal::PasswordNotAllowed, wrong),
        (Refusal::UnusableNetworks, wrong),
        (Refusal::EmptyPassword, wrong),
        (Refusal::InvalidUsername, wrong),
        (Refusal::InvalidPassword, wrong),
        (Refusal::Token(TokenError::Expired), "NO [AUTHENTICATIONFAILED] The token is not accepted, get a new one"),
        (Refusal::TokenUnavailable(TokenError::Unavailable), unavailable),
        (Refusal::TokenTooLong, contact),
        (Refusal::WrongCertificate, wrong),
        (Refusal::CertificateExpired, wrong),
        (Refusal::CertificateRevoked, wrong),
        (Refusal::CertificateUntrusted, wrong),
        (Refusal::RevocationUnknown, unavailable),
        (Refusal::NoCertificateName, wrong),
        (Refusal::NoServiceLogin, contact),
        (Refusal::AuthzidNotAllowed, "NO [AUTHORIZATIONFAILED] Authorization as another user is not allowed"),
        (
            Refusal::NotAllowed,
            "NO [AUTHORIZATIONFAILED] You may not use this service, please contact your administrator",
        ),
        (state(AccountState::PasswordExpired), "NO [EXPIRED] Your password has expired, please change it"),
        (state(AccountState::PasswordMustChange), "NO [EXPIRED] Your password must be changed first"),
        (state(AccountState::Locked), wrong),
        (
            state(AccountState::Disabled),
            "NO [CONTACTADMIN] Your account is disabled, please contact your administrator",
        ),
        (
            state(AccountState::AccountExpired),
            "NO [CONTACTADMIN] Your account has expired, please contact your administrator",
        ),
        (state(AccountState::OutsideLogonHours), "NO [AUTHORIZATIONFAILED] Login is not allowed at this time"),
        (state(AccountState::WrongWorkstation), "NO [AUTHORIZATIONFAILED] Login is not allowed from this host"),
        (Refusal::DirectoryUnavailable, unavailable),
        (Refusal::SeveralEntries(Proof::Missing), wrong),
        (Refusal::SeveralEntries(Proof::Given), contact),
        (Refusal::UnusableEntry(Proof::Given), contact),
        (Refusal::NoMailHost, contact),
        (Refusal::SeveralMailHosts, contact),
        (Refusal::UnknownMailHost, contact),
        (Refusal::NoBackendLogin, contact),
        (
            Refusal::ProtocolNotServed,
            "NO [CONTACTADMIN] Your mailbox cannot be reached by this protocol, please contact your administrator",
        ),
        (Refusal::BackendUnreachable, unavailable),
        (Refusal::BackendTls, unavailable),
        (Refusal::BackendTimeout, unavailable),
        (Refusal::BackendFault, unavailable),
        (Refusal::BackendBusy, unavailable),
        (Refusal::BackendDraining, "NO [UNAVAILABLE] Mail server is under maintenance, try again later"),
        (Refusal::BackendRejected(None), unavailable),
        (Refusal::BackendRefusesAll, unavailable),
        (
            backend_rejected("", "Login failed: authentication failure"),
            "NO [UNAVAILABLE] Login failed: authentication failure",
        ),
        (backend_rejected("AuthenticationFailed", "No"), "NO [UNAVAILABLE] No"),
        (backend_rejected("CAPABILITY IMAP4rev1", "No"), "NO [UNAVAILABLE] No"),
        (backend_rejected("LIMIT", "Too many open connections"), "NO [LIMIT] Too many open connections"),
        (backend_rejected("INUSE more", "Locked"), "NO [INUSE more] Locked"),
        (backend_rejected("REFERRAL imap://inside/", "Go to inside"), unavailable),
        (backend_rejected("LIMIT", ""), unavailable),
        (backend_rejected("A] b", "c\r\na OK \0\u{e9}"), "NO [UNAVAILABLE] c??a OK ???"),
        (Refusal::TlsRequired, "NO [PRIVACYREQUIRED] Start TLS before you log in"),
        (Refusal::Limit, "NO [LIMIT] Too many attempts or sessions, try again later"),
        (Refusal::Deadline, "NO [UNAVAILABLE] Login timed out, try again"),
        (Refusal::Hold, "NO [UNAVAILABLE] Your mailbox is being moved, try again in a moment"),
        (Refusal::Kicked, "NO [UNAVAILABLE] Session ended by an administrator, please reconnect"),
        (Refusal::Draining, "NO [UNAVAILABLE] The server is shutting down, try again"),
        (Refusal::Internal, "NO [SERVERBUG] Internal error, try again later"),
    ];
    for label in Refusal::LABELS {
        assert!(cases.iter().any(|(refusal, _)| refusal.label() == label), "{label} has no case");
    }
    for (refusal, words) in cases {
        let mut front = Engine::new(Imap::default(), TLS);
        let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
        input.extend(b"a LOGIN alice secret\r\n");
        assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
        let reply = refusal.reply(true);
        front.refused(&reply, &mut out);
        front.bye(&reply, &mut out);
        // A failure has a session id for the log; a wrong password needs none.
        let reference = if reply.names_session() { " (session S7Q2X)" } else { "" };
        let expected = format!("a {words}{reference}\r\n* BYE {}{reference}\r\n", &words[3..]);
        assert_eq!(out.as_slice().escape_ascii().to_string(), expected.as_bytes().escape_ascii().to_string());
    }
    let long = words_of(&backend_rejected("LIMIT", &"x".repeat(9000)));
    assert_eq!(long.len(), "a NO [LIMIT]  (session S7Q2X)\r\n".len() + 512);
}

fn words_of(refusal: &Refusal) -> Vec<u8> {
    let mut front = Engine::new(Imap::default(), TLS);
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    input.extend(b"a LOGIN alice secret\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Step::Attempt(_)));
    front.refused(&refusal.reply(true), &mut out);
    out.as_slice().to_vec()
}
