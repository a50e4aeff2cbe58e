//! Input from a client, and the replies.

use super::super::PROTOCOL;
use super::super::front::Sieve;
use crate::base::secret::SecretBuf;
use crate::outcome::{BackendReply, Refusal, Reply};
use crate::proto::engine::Engine;
use crate::proto::trial::{HOST, ScriptedDecision};
use crate::proto::{Front, FrontSettings, Step, Welcome, script};

const TLS: FrontSettings<'_> = FrontSettings {
    host: HOST,
    session: "",
    capabilities: None,
    tls: true,
    starttls: false,
    bad_commands: 50,
    sasl: crate::proto::SaslOffer::PASSWORDS,
};
const CLEAR: FrontSettings<'_> = FrontSettings { tls: false, starttls: true, ..TLS };

/// The decisions that a script can name.
fn decision(words: &str) -> ScriptedDecision {
    let backend_rejected = |code: &str, text: &str| {
        let words = BackendReply { code: code.to_owned(), text: text.to_owned(), unavailable: false, challenge: None };
        ScriptedDecision::Refuse(Refusal::BackendRejected(Some(words)))
    };
    match words {
        "wrong" => ScriptedDecision::Refuse(Refusal::WrongPassword),
        "unavailable" => ScriptedDecision::Refuse(Refusal::DirectoryUnavailable),
        "backend says" => backend_rejected("AUTH-TOO-WEAK", "Your \"script\" \\ moves"),
        "backend says nothing" => backend_rejected("", " "),
        "accept" => ScriptedDecision::Accept(Welcome { text: b"User \"logged\" in".to_vec(), ..Welcome::default() }),
        "accept quietly" => ScriptedDecision::Accept(Welcome::default()),
        other => panic!("no such decision: {other}"),
    }
}

#[track_caller]
fn script(settings: FrontSettings<'_>, text: &str) {
    script::client(&PROTOCOL, settings, decision, text);
}

#[test]
fn greeting_lists_the_current_capabilities() {
    script(
        TLS,
        r#"
        S: "IMPLEMENTATION" "usher"
        S: "SASL" "PLAIN LOGIN"
        S: "SIEVE" ""
        S: "VERSION" "1.0"
        S: OK "usher is ready"
        "#,
    );
    // RFC 5804 section 1.7: no mechanism while no login would be accepted.
    script(
        FrontSettings { starttls: false, ..CLEAR },
        r#"
        S: "IMPLEMENTATION" "usher"
        S: "SASL" ""
        S: "SIEVE" ""
        S: "VERSION" "1.0"
        S: OK "usher is ready"
        "#,
    );
}

#[test]
fn only_capabilities_for_clients_are_offered() {
    let long = format!("SIEVE {}", "x".repeat(1025));
    let learned = [
        "IMPLEMENTATION Dovecot",
        "SIEVE fileinto reject",
        "MAXREDIRECTS 4",
        "NOTIFY mailto",
        "SASL GSSAPI",
        "STARTTLS",
        "UNAUTHENTICATE",
        "OWNER alice",
        "XCLIENT ADDR",
        "X-CYRUS-PROXY",
        "extlists urn:example",
        "RENAME",
        &long,
    ]
    .map(str::to_owned);
    script(
        FrontSettings { capabilities: Some(&learned), ..TLS },
        &format!(
            "S: \"IMPLEMENTATION\" \"usher\"
             S: \"SASL\" \"PLAIN LOGIN\"
             S: \"SIEVE\" \"fileinto reject\"
             S: \"MAXREDIRECTS\" \"4\"
             S: \"NOTIFY\" \"mailto\"
             S: \"extlists\" \"urn:example\"
             S: \"RENAME\"
             S: \"SIEVE\" {{1025}}
             S: {}
             S: OK \"usher is ready\"",
            "x".repeat(1025)
        ),
    );
}

#[test]
fn capability_list_is_sent_again_under_tls() {
    script(
        CLEAR,
        r#"
        S: "IMPLEMENTATION" "usher"
        S: "SASL" ""
        S: "STARTTLS"
        S: "SIEVE" ""
        S: "VERSION" "1.0"
        S: OK "usher is ready"
        C: NOOP
        S: OK "NOOP completed"
        C: STARTTLS
        S: OK "Begin TLS now"
        => tls
        S: "IMPLEMENTATION" "usher"
        S: "SASL" "PLAIN LOGIN"
        S: "SIEVE" ""
        S: "VERSION" "1.0"
        S: OK "TLS is established"
        C: CAPABILITY
        S: "IMPLEMENTATION" "usher"
        S: "SASL" "PLAIN LOGIN"
        S: "SIEVE" ""
        S: "VERSION" "1.0"
        S: OK "Capability completed"
        C: STARTTLS
        S: NO "STARTTLS is not available"
        C: AUTHENTICATE "PLAIN" "AGFsaWNlAHNlY3JldA=="
        => attempt "alice" "secret" ""
        <= accept quietly
        S: OK "Logged in"
        "#,
    );
    script(FrontSettings { starttls: false, ..CLEAR }, "C: STARTTLS\nS: NO \"STARTTLS is not available\"");
}

#[test]
fn commands_valid_in_any_state_are_answered() {
    script(
        TLS,
        r#"
        C: noop
        S: OK "NOOP completed"
        C: NOOP "STARTTLS-SYNC-42"
        S: OK (TAG "STARTTLS-SYNC-42") "NOOP completed"
        C: NOOP {4+}
        C: a\x20"\\
        S: OK (TAG "a \"\\") "NOOP completed"
        C: NOOP "caf\xc3\xa9"
        S: OK (TAG "caf\xc3\xa9") "NOOP completed"
        C: NOOP {0+}
        C:
        S: OK (TAG "") "NOOP completed"
        C: LOGOUT
        S: OK "Goodbye"
        => quit Logout
        C: NOOP
        "#,
    );
    let full = "t".repeat(1024);
    script(TLS, &format!("C: NOOP \"{full}\"\nS: OK (TAG \"{full}\") \"NOOP completed\""));
}

#[test]
fn command_in_the_wrong_state_is_refused_and_the_session_continues() {
    let syntax = "NO \"Invalid arguments\"";
    for wrong in [
        "NOOP x",
        "NOOP\\x09\"x\"",
        "NOOP \"x",
        "NOOP \"x\" \"y\"",
        "NOOP \"x\"y",
        r#"NOOP "\\x""#,
        "NOOP \"a\\x07\"",
        "NOOP \"\\xff\"",
        "NOOP {1+}\\r\\n\\n",
        "NOOP {x1+}",
        "NOOP {1x+",
        "CAPABILITY \"x\"",
        "LOGOUT now",
        "STARTTLS now",
        "AUTHENTICATE",
        "AUTHENTICATE ",
        "AUTHENTICATE PLAIN",
        "AUTHENTICATE \"PLAIN\" AGFsaWNlAHNlY3JldA==",
        "AUTHENTICATE \"PLAIN\" \"AAA=\" \"AAA=\"",
        &format!("NOOP \"{}\"", "t".repeat(1025)),
    ] {
        script(TLS, &format!("C: {wrong}\nS: {syntax}\nC: NOOP\nS: OK \"NOOP completed\""));
    }
    script(
        TLS,
        r#"
        C: LISTSCRIPTS
        S: NO "Log in first"
        C: UNAUTHENTICATE
        S: NO "Log in first"
        C: XYZZY
        S: NO "Unknown command"
        C:
        S: NO "Unknown command"
        C: "NOOP"
        S: NO "Unknown command"
        C: AUTHENTICATE "SCRAM-SHA-256"
        S: NO "Unsupported mechanism"
        C: NOOP
        S: OK "NOOP completed"
        "#,
    );
    script(
        FrontSettings { bad_commands: 2, ..TLS },
        r#"
        C: XYZZY
        S: NO "Unknown command"
        C: XYZZY
        S: NO "Unknown command"
        S: BYE "Too many bad commands"
        => quit ProtocolError
        "#,
    );
    script(TLS, "C: GET / HTTP/1.1\nS: BYE \"This is a mail server\"\n=> quit ProtocolError");
}

#[test]
fn http_request_in_place_of_a_response_is_disconnected() {
    for request in ["C: GET / HTTP/1.1", "c: POST / HTTP/1.1\\n", "C: PUT"] {
        let sent = "C: AUTHENTICATE \"PLAIN\"\nS: \"\"";
        script(TLS, &format!("{sent}\n{request}\nS: BYE \"This is a mail server\"\n=> quit ProtocolError"));
    }
}

#[test]
fn login_is_accepted_in_every_form() {
    script(
        TLS,
        r#"
        C: AUTHENTICATE "PLAIN" "AGFsaWNlAHNlY3JldA=="
        => attempt "alice" "secret" ""
        <= wrong
        S: NO "Name or password is wrong"
        C: Authenticate {5+}
        C: plain {20+}
        C: AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= unavailable
        S: NO (TRYLATER) "The mail service is not available, try again later"
        C: AUTHENTICATE "PLAIN"
        S: ""
        C: "AGFsaWNlAHNlY3JldA=="
        => attempt "alice" "secret" ""
        <= backend says
        S: NO (TRYLATER) "Your \"script\" \\ moves"
        C: AUTHENTICATE "PLAIN"
        S: ""
        C: {20+}
        C: AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= backend says nothing
        S: NO (TRYLATER) "The mail service is not available, try again later"
        C: AUTHENTICATE "LOGIN" "YWxpY2U="
        S: "UGFzc3dvcmQ6"
        C: "c2VjcmV0"
        => attempt "alice" "secret" ""
        <= wrong
        S: NO "Name or password is wrong"
        C: AUTHENTICATE "LOGIN"
        S: "VXNlcm5hbWU6"
        C: "YWxpY2U="
        S: "UGFzc3dvcmQ6"
        C: "c2VjcmV0"
        => attempt "alice" "secret" ""
        <= accept
        S: OK "User \"logged\" in"
        C: LISTSCRIPTS
        => left LISTSCRIPTS\r\n
        "#,
    );
}

/// Each as Dovecot 2.3 does.
#[test]
fn superfluous_blanks_are_ignored() {
    let capabilities = r#"S: "IMPLEMENTATION" "usher"
        S: "SASL" "PLAIN LOGIN"
        S: "SIEVE" ""
        S: "VERSION" "1.0""#;
    script(
        CLEAR,
        &format!(
            r#"
        C: STARTTLS \x20
        S: OK "Begin TLS now"
        => tls
        {capabilities}
        S: OK "TLS is established"
        C: CAPABILITY\x20
        {capabilities}
        S: OK "Capability completed"
        C: NOOP\x20
        S: OK "NOOP completed"
        C: NOOP  "x" \x20
        S: OK (TAG "x") "NOOP completed"
        C: AUTHENTICATE  "PLAIN"  "AGFsaWNlAHNlY3JldA=="\x20
        => attempt "alice" "secret" ""
        <= wrong
        S: NO "Name or password is wrong"
        C: AUTHENTICATE "PLAIN"  {{20+}}\r\nAGFsaWNlAHNlY3JldA==\x20
        => attempt "alice" "secret" ""
        <= wrong
        S: NO "Name or password is wrong"
        C: AUTHENTICATE "PLAIN"\x20
        S: ""
        C:  "AGFsaWNlAHNlY3JldA=="\x20
        => attempt "alice" "secret" ""
        <= wrong
        S: NO "Name or password is wrong"
        C: AUTHENTICATE "PLAIN"
        S: ""
        C: "*"\x20
        S: NO "Authentication cancelled"
        C:  NOOP
        S: NO "Unknown command"
        C: CAPABILITY\x09
        S: NO "Invalid arguments"
        C: LOGOUT\x20
        S: OK "Goodbye"
        => quit Logout
        "#
        ),
    );
}

#[test]
fn failed_sasl_exchange_ends() {
    script(
        TLS,
        r#"
        C: AUTHENTICATE "PLAIN"
        S: ""
        C: "*"
        S: NO "Authentication cancelled"
        C: AUTHENTICATE "LOGIN"
        S: "VXNlcm5hbWU6"
        C: {1+}
        C: *
        S: NO "Authentication cancelled"
        C: AUTHENTICATE "PLAIN" "*"
        S: NO "Invalid base64 data"
        C: AUTHENTICATE "PLAIN" ""
        S: NO "Invalid SASL response"
        C: AUTHENTICATE "PLAIN" "YQ"
        S: NO "Invalid base64 data"
        C: AUTHENTICATE "PLAIN"
        S: ""
        C: *
        S: NO "Response must be a string"
        C: AUTHENTICATE "PLAIN"
        S: ""
        C: NOOP
        S: NO "Response must be a string"
        C: AUTHENTICATE "PLAIN"
        S: ""
        C: {1}
        C: *
        S: NO "Authentication cancelled"
        C: NOOP
        S: OK "NOOP completed"
        "#,
    );
}

/// The form of a server's literal: what follows is data all the same, of a refused command as well.
#[test]
fn literal_without_plus_is_read() {
    script(
        TLS,
        r#"
        C: AUTHENTICATE "PLAIN" {20}
        C: AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= wrong
        S: NO "Name or password is wrong"
        C: AUTHENTICATE "PLAIN"
        S: ""
        C: {20}
        C: AGFsaWNlAHNlY3JldA==
        => attempt "alice" "secret" ""
        <= wrong
        S: NO "Name or password is wrong"
        C: PUTSCRIPT "a" {4}
        C: NOOP
        S: NO "Log in first"
        C: NOOP
        S: OK "NOOP completed"
        "#,
    );
    script(
        CLEAR,
        r#"
        C: AUTHENTICATE "PLAIN" {20}
        C: AGFsaWNlAHNlY3JldA==
        S: NO (ENCRYPT-NEEDED) "Start TLS before you log in"
        C: NOOP
        S: OK "NOOP completed"
        => refused unasked: tls_required
        "#,
    );
}

#[test]
fn cleartext_login_is_refused_with_a_reason() {
    script(
        CLEAR,
        r#"
        C: AUTHENTICATE "PLAIN"
        S: NO (ENCRYPT-NEEDED) "Start TLS before you log in"
        C: AUTHENTICATE "PLAIN" {20+}
        C: AGFsaWNlAHNlY3JldA==
        S: NO (ENCRYPT-NEEDED) "Start TLS before you log in"
        C: NOOP
        S: OK "NOOP completed"
        => refused unasked: tls_required
        => refused unasked: tls_required
        "#,
    );
}

#[test]
fn oversized_input_never_desynchronizes() {
    // The whole command may have 16384 bytes without its last line's end.
    let head = "PUTSCRIPT \"a\" {16360+}\r\n".len();
    let (fits, over) = (16_384 - head, 16_385 - head);
    script(
        TLS,
        &format!(
            "C: PUTSCRIPT \"a\" {{{fits}+}}
             C: {}
             S: NO \"Log in first\"
             C: PUTSCRIPT \"a\" {{{over}+}}
             C: {}
             S: NO \"Command too long\"
             C: PUTSCRIPT {{20000+}}
             c: {}
             C:  {{3+}}
             C: abc
             S: NO \"Command too long\"
             C: PUTSCRIPT \"a\" {{5}}
             C: abcde
             S: NO \"Log in first\"
             C: NOOP
             S: OK \"NOOP completed\"",
            "k".repeat(fits),
            "k".repeat(over),
            "k".repeat(20_000)
        ),
    );
    for size in ["65537", "18446744073709551616"] {
        script(TLS, &format!("C: NOOP {{{size}+}}\nS: BYE \"Literal too large\"\n=> quit ProtocolError\nC: NOOP"));
    }
    let endless = "x".repeat(80_000);
    script(
        TLS,
        &format!(
            "c: {}
             S: NO \"Command too long\"
             C: {{3+}}
             C: NOOP
             C: abNOOP
             S: NO \"Unknown command\"
             c: {endless}
             S: NO \"Command too long\"
             c: {endless}
             S: BYE \"Command too long\"
             => quit ProtocolError",
            "x".repeat(16_385)
        ),
    );
}

#[test]
fn only_crlf_ends_a_line() {
    for (ends, why) in
        [("\\n", "Line must end with CRLF"), ("\\rx", "Line must end with CRLF"), ("\\0", "NUL is not allowed")]
    {
        script(TLS, &format!("c: NOOP{ends}\nS: NO \"{why}\"\nC: LOGOUT\nC: NOOP\nS: OK \"NOOP completed\""));
    }
}

#[test]
fn buffered_input_is_bounded() {
    let mut front = Engine::new(Sieve::new(TLS), TLS);
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    for piece in [&b"NOOP {16000+}\r\n"[..], &[b'x'; 15_999], b"x ", &[b'y'; 9000], &[b'y'; 9000]] {
        input.extend(piece);
        assert!(matches!(front.step(&mut input, &mut out), Step::NeedMore));
        assert!(input.is_empty() && front.buffered() <= 16_384 + 2, "{}", front.buffered());
    }
    front.bye(&Reply::ShuttingDown, &mut out);
    assert!(out.as_slice().ends_with(b"BYE (TRYLATER) \"The server is shutting down, try again\"\r\n"));
}
