//! Input from a backend, and the resulting steps.

use super::super::PROTOCOL;
use crate::base::secret::Secret;
use crate::proto::trial::{HOST, calling};
use crate::proto::{BackSettings, BackTls, script};

/// The login of a script.
#[derive(Clone, Copy)]
struct Login {
    tls: BackTls,
    login: &'static [u8],
    password: &'static [u8],
    service: Option<&'static [u8]>,
    untagged_limit: usize,
    /// The client address, if it is forwarded.
    client: Option<&'static str>,
    initial_response: bool,
}

const ALICE: Login = Login {
    tls: BackTls::Implicit,
    login: b"alice",
    password: b"secret",
    service: None,
    untagged_limit: 2000,
    client: None,
    initial_response: true,
};
const STARTTLS: Login = Login { tls: BackTls::StartTls, ..ALICE };
const PROXY: Login = Login { service: Some(b"proxy"), ..ALICE };

impl Login {
    fn settings(self) -> BackSettings {
        BackSettings {
            tls: self.tls,
            login: self.login.to_vec(),
            password: Secret::copy_of(self.password),
            token: None,
            service: self.service.map(<[u8]>::to_vec),
            untagged_limit: self.untagged_limit,
            forward: self.client.map(calling),
            host: HOST.into(),
            initial_response: self.initial_response,
            ehlo: None,
        }
    }
}

#[track_caller]
fn script(login: Login, text: &str) {
    script::backend(&PROTOCOL, &login.settings(), text);
}

/// A script after a greeting with these capabilities.
#[track_caller]
fn greeted(login: Login, capabilities: &str, text: &str) {
    script(login, &format!("S: * OK [CAPABILITY {capabilities}] ready\n{text}"));
}

/// A script after a login command.
#[track_caller]
fn logged_in(text: &str) {
    let sent = "C: u1 AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==\n";
    greeted(ALICE, "IMAP4rev1 SASL-IR AUTH=PLAIN", &format!("{sent}{text}"));
}

#[test]
fn dovecot_login_succeeds() {
    greeted(
        ALICE,
        "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN AUTH=LOGIN",
        "
        C: u1 AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==
        S: * CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE SORT NAMESPACE COMPRESS=DEFLATE
        S: u1 OK Logged in
        => ready [IMAP4rev1 SASL-IR ID ENABLE IDLE SORT NAMESPACE COMPRESS=DEFLATE] Logged in
        ",
    );
}

#[test]
fn cyrus_login_succeeds() {
    greeted(
        PROXY,
        "IMAP4rev1 LITERAL+ ID ENABLE AUTH=PLAIN SASL-IR",
        "
        C: u1 AUTHENTICATE PLAIN YWxpY2UAcHJveHkAc2VjcmV0
        S: u1 OK [CAPABILITY IMAP4rev1 LITERAL+ UNAUTHENTICATE IDLE] Success (tls protection) SESSIONID=<cyrus-1>
        => ready [IMAP4rev1 LITERAL+ IDLE] Success (tls protection) SESSIONID=<cyrus-1>
        ",
    );
    logged_in(
        "
        S: u1 NO Login failed: authentication failure
        => refused [] Login failed: authentication failure
        ",
    );
}

#[test]
fn client_address_is_sent_under_tls_and_before_the_login() {
    let reported = |client| Login { client: Some(client), ..STARTTLS };
    let fields = r#""x-connected-ip" "192.0.2.1" "x-connected-port" "993" "x-session-id" "S7Q2X")"#;
    for (client, ip, port) in [("198.51.100.7:4711", "198.51.100.7", 4711), ("[2001:db8::7]:1", "2001:db8::7", 1)] {
        greeted(
            reported(client),
            "IMAP4rev1 ID STARTTLS",
            &format!(
                r#"
                C: u1 STARTTLS
                S: u1 OK go
                => tls
                C: u2 CAPABILITY
                S: * CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN
                S: u2 OK done
                C: u3 ID ("name" "usher" "x-originating-ip" "{ip}" "x-originating-port" "{port}" {fields}
                S: * ID ("name" {{7}}
                S: Dovecot)
                S: u3 OK ID completed.
                C: u4 AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==
                S: u4 OK [CAPABILITY IMAP4rev1] in
                => ready [IMAP4rev1] in
                "#
            ),
        );
    }
    // No login without it: the backend's log and limits would see usher's address for every user.
    let id = format!(r#"C: u1 ID ("name" "usher" "x-originating-ip" "::1" "x-originating-port" "9" {fields}"#);
    for refusal in ["NO not from you", "BAD what"] {
        let login = Login { client: Some("[::1]:9"), ..ALICE };
        greeted(login, "IMAP4rev1 AUTH=PLAIN", &format!("{id}\nS: u1 {refusal}\n=> fault ForwardingRefused"));
    }
}

#[test]
fn greetings_are_classified() {
    script(ALICE, "S: * BYE Too many connections\n=> fault Bye");
    script(ALICE, "S: * PREAUTH welcome back\n=> fault Preauth");
    script(STARTTLS, "S: * PREAUTH welcome back\n=> fault Preauth");
    for garbage in [
        "HTTP/1.1 400 Bad Request",
        "220 smtp ESMTP",
        "+OK pop3",
        "* OKAY",
        "* NO not now",
        "* CAPABILITY IMAP4rev1 AUTH=PLAIN",
        "+ go ahead",
        "u0 OK hm",
        "*",
        "",
    ] {
        script(ALICE, &format!("S: {garbage}\n=> fault ProtocolViolation"));
    }
    script(ALICE, "s: * OK ready\\n\n=> fault ProtocolViolation");
}

#[test]
fn capabilities_are_requested_when_not_announced() {
    script(
        ALICE,
        "
        S: * OK ready
        C: u1 CAPABILITY
        S: * ID (\"name\" \"old\")
        S: * CAPABILITY imap4rev1 sasl-ir auth=plain
        S: u1 OK done
        C: u2 AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==
        S: u2 OK in
        => ready [] in
        ",
    );
    script(ALICE, "S: * OK\nC: u1 CAPABILITY\nS: u1 OK but nothing\n=> fault ProtocolViolation");
    script(ALICE, "S: * OK\nC: u1 CAPABILITY\nS: u1 NO\n=> fault Bad");
    script(ALICE, "S: * OK\nC: u1 CAPABILITY\nS: u1 BAD what?\n=> fault Bad");
}

/// The capabilities of RFC 9051 section 6.2.3 are optional: their absence is no question.
#[test]
fn tagged_ok_is_success_whatever_follows() {
    logged_in("S: u1 OK in\n=> ready [] in");
    logged_in(
        r"
        S: u1 OK [ALERT] Enable IMAP first\r\n* BYE [ALERT] moved
        => untagged * OK [ALERT] Enable IMAP first\r\n
        => ready [] Enable IMAP first
        => left * BYE [ALERT] moved\r\n
        ",
    );
    logged_in(
        r"
        S: * OK [ALERT] mind the gap
        S: u1 OK in\r\n* CAPABILITY IMAP4rev1\r\n
        => untagged * OK [ALERT] mind the gap\r\n
        => ready [] in
        => left * CAPABILITY IMAP4rev1\r\n\r\n
        ",
    );
    // Not before the backend has seen the login.
    let early = "S: u1 OK in\n=> fault ProtocolViolation";
    greeted(ALICE, "IMAP4rev1 AUTH=PLAIN", &format!("C: u1 AUTHENTICATE PLAIN\n{early}"));
    greeted(Login { password: b"p\xc3\xa4ss", ..ALICE }, "IMAP4rev1", &format!("C: u1 LOGIN \"alice\" {{5}}\n{early}"));
}

#[test]
fn message_is_sent_again_where_it_was_not_read_with_the_command() {
    for challenge in ["+", "+\\x20", "+ \\x20"] {
        logged_in(&format!(
            "
            S: {challenge}
            C: AGFsaWNlAHNlY3JldA==
            S: u1 OK [CAPABILITY IMAP4rev1] in
            => ready [IMAP4rev1] in
            "
        ));
    }
    logged_in(
        "S: +\nC: AGFsaWNlAHNlY3JldA==\nS: u1 NO [AUTHENTICATIONFAILED] no\n=> refused [AUTHENTICATIONFAILED] no",
    );
    // Once, and not after a challenge that says something.
    logged_in("S: +\nC: AGFsaWNlAHNlY3JldA==\nS: +\n=> fault ProtocolViolation");
    logged_in("S: + eyJzdGF0dXMiOiI0MDEifQ==\n=> fault ProtocolViolation");
}

#[test]
fn bad_to_the_command_leads_to_the_next_way_once() {
    let two_steps = "S: u1 BAD Too many arguments\nC: u2 AUTHENTICATE PLAIN\n";
    let answered = format!("{two_steps}S: +\nC: AGFsaWNlAHNlY3JldA==\n");
    logged_in(&format!("{answered}S: u2 OK [CAPABILITY IMAP4rev1] in\n=> ready [IMAP4rev1] in"));
    logged_in(&format!("{answered}S: u2 NO no\n=> refused [] no"));
    // The backend has requested the message and got it: LOGIN would be the same password again.
    logged_in(&format!("{answered}S: u2 BAD what?\n=> fault Bad"));
    let login = format!("{two_steps}S: u2 BAD what?\nC: u3 LOGIN \"alice\" \"secret\"\n");
    logged_in(&format!("{login}S: u3 OK in\n=> ready [] in"));
    logged_in(&format!("{login}S: u3 NO no\n=> refused [] no"));
    logged_in(&format!("{login}S: u3 BAD what?\n=> fault Bad"));
    // A code about the account is no question of form.
    logged_in("S: u1 BAD [AUTHENTICATIONFAILED] no\n=> fault Bad");
    logged_in("S: u1 NO [AUTHENTICATIONFAILED] no\n=> refused [AUTHENTICATIONFAILED] no");
    // Nothing was sent that could be wrong, whatever the code; a limit is one.
    let two_steps = "C: u1 AUTHENTICATE PLAIN\nS: u1 NO [AUTHENTICATIONFAILED] no\n";
    greeted(ALICE, "IMAP4rev1 AUTH=PLAIN", &format!("{two_steps}C: u2 LOGIN \"alice\" \"secret\""));
    greeted(
        PROXY,
        "IMAP4rev1 AUTH=PLAIN",
        "C: u1 AUTHENTICATE PLAIN\nS: u1 NO [AUTHENTICATIONFAILED] no\n=> fault Bad",
    );
    greeted(ALICE, "IMAP4rev1 AUTH=PLAIN", "C: u1 AUTHENTICATE PLAIN\nS: u1 NO [LIMIT] no\n=> refused [LIMIT] no");
    // A service account has no LOGIN.
    greeted(
        PROXY,
        "IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=LOGIN",
        "
        C: u1 AUTHENTICATE PLAIN YWxpY2UAcHJveHkAc2VjcmV0
        S: u1 BAD what?
        C: u2 AUTHENTICATE PLAIN
        S: u2 BAD what?
        => fault Bad
        ",
    );
    greeted(Login { initial_response: false, ..ALICE }, "IMAP4rev1 SASL-IR AUTH=PLAIN", "C: u1 AUTHENTICATE PLAIN");
}

#[test]
fn text_that_repeats_the_secret_is_withheld() {
    let withheld = "(text withheld: it repeats the password)";
    for echo in ["LOGIN alice Secret", "AGFsaWNlAHNlY3JldA== is wrong", "c2VjcmV0", "736563726574"] {
        logged_in(&format!("S: u1 NO [X] no: {echo}\n=> refused [X] {withheld}"));
    }
    logged_in("S: u1 NO [X] no: sec ret\n=> refused [X] no: sec ret");
    // A password as short may be in any word.
    let short = "C: u1 AUTHENTICATE PLAIN AGFsaWNlAHg=\nS: u1 NO [X] next\n=> refused [X] next";
    greeted(Login { password: b"x", ..ALICE }, "IMAP4rev1 SASL-IR AUTH=PLAIN", short);
}

#[test]
fn mechanism_login_is_the_last_way() {
    let login = "
        C: u1 AUTHENTICATE LOGIN
        S: + VXNlcm5hbWU6
        C: YWxpY2U=
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        S: u1 OK in
        => ready [] in
    ";
    greeted(ALICE, "IMAP4rev1 LOGINDISABLED AUTH=LOGIN", login);
    greeted(ALICE, "IMAP4rev1 SASL-IR LOGINDISABLED AUTH=GSSAPI AUTH=login", login);
    greeted(ALICE, "IMAP4rev1 AUTH=LOGIN", "C: u1 LOGIN \"alice\" \"secret\"");
    greeted(ALICE, "IMAP4rev1 AUTH=LOGIN AUTH=PLAIN", "C: u1 AUTHENTICATE PLAIN");
    greeted(PROXY, "IMAP4rev1 AUTH=LOGIN", "=> fault NoMechanism");
    greeted(
        ALICE,
        "IMAP4rev1 LOGINDISABLED AUTH=LOGIN",
        "C: u1 AUTHENTICATE LOGIN\nS: +\nC: YWxpY2U=\nS: u1 OK early\n=> fault ProtocolViolation",
    );
}

#[test]
fn capabilities_in_several_lines_are_all_there() {
    script(
        ALICE,
        "
        S: * OK ready
        C: u1 CAPABILITY
        S: * CAPABILITY IMAP4rev1 LOGINDISABLED
        S: * CAPABILITY AUTH=GSSAPI
        S: * CAPABILITY SASL-IR AUTH=PLAIN
        S: * CAPABILITY
        S: u1 OK done
        C: u2 AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==
        ",
    );
}

#[test]
fn starttls_discards_earlier_state() {
    greeted(
        STARTTLS,
        "IMAP4rev1 STARTTLS SASL-IR AUTH=PLAIN",
        "
        C: u1 STARTTLS
        S: * CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR
        S: u1 OK begin
        => tls
        C: u2 CAPABILITY
        S: * CAPABILITY IMAP4rev1 LOGINDISABLED
        S: u2 OK done
        => fault NoMechanism
        ",
    );
    script(
        STARTTLS,
        "
        S: * OK ready
        C: u1 CAPABILITY
        S: * CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED
        S: u1 OK done
        C: u2 STARTTLS
        S: u2 OK begin
        => tls
        C: u3 CAPABILITY
        S: * CAPABILITY IMAP4rev1 AUTH=PLAIN
        S: u3 OK done
        C: u4 AUTHENTICATE PLAIN
        S: +
        C: AGFsaWNlAHNlY3JldA==
        S: u4 OK [CAPABILITY IMAP4rev1] in
        => ready [IMAP4rev1] in
        ",
    );
    greeted(STARTTLS, "IMAP4rev1 AUTH=PLAIN", "=> fault NoStartTls");
    greeted(STARTTLS, "IMAP4rev1 STARTTLS", "C: u1 STARTTLS\nS: u1 NO later\n=> fault NoStartTls");
    greeted(STARTTLS, "IMAP4rev1 STARTTLS", "C: u1 STARTTLS\nS: u1 BAD what?\n=> fault Bad");
    greeted(STARTTLS, "IMAP4rev1 STARTTLS", "C: u1 STARTTLS\nS: * BYE\n=> fault Bye");
    greeted(STARTTLS, "IMAP4rev1 STARTTLS", "C: u1 STARTTLS\nS: u1 OKAY\n=> fault ProtocolViolation");
}

#[test]
fn login_uses_an_advertised_mechanism() {
    greeted(ALICE, "IMAP4rev1 AUTH=PLAIN LITERAL+", "C: u1 AUTHENTICATE PLAIN\nS: + \nC: AGFsaWNlAHNlY3JldA==");
    greeted(
        ALICE,
        "IMAP4rev1 AUTH=PLAIN",
        "C: u1 AUTHENTICATE PLAIN\nS: u1 NO [LIMIT] no more\n=> refused [LIMIT] no more",
    );
    // Nothing of the account was sent: the mechanism is refused.
    let unavailable = "C: u1 AUTHENTICATE PLAIN\nS: u1 NO no mechanism\n";
    greeted(ALICE, "IMAP4rev1 AUTH=PLAIN", &format!("{unavailable}C: u2 LOGIN \"alice\" \"secret\""));
    greeted(PROXY, "IMAP4rev1 AUTH=PLAIN", &format!("{unavailable}=> fault Bad"));
    greeted(ALICE, "IMAP4rev1 LOGINDISABLED AUTH=PLAIN SASL-IR", "C: u1 AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==");
    greeted(ALICE, "IMAP4rev1 AUTH=PLAIN-CLIENTTOKEN", "C: u1 LOGIN \"alice\" \"secret\"");
    greeted(ALICE, "IMAP4rev1 LOGINDISABLED AUTH=GSSAPI", "=> fault NoMechanism");
    let clear = Login { tls: BackTls::Plaintext, ..ALICE };
    greeted(clear, "IMAP4rev1 STARTTLS", "C: u1 LOGIN \"alice\" \"secret\"");
    greeted(clear, "IMAP4rev1 STARTTLS LOGINDISABLED", "=> fault NoMechanism");
    greeted(PROXY, "IMAP4rev1", "=> fault NoMechanism");
    greeted(PROXY, "IMAP4rev1 AUTH=PLAIN", "C: u1 AUTHENTICATE PLAIN\nS: + \nC: YWxpY2UAcHJveHkAc2VjcmV0");
}

#[test]
fn login_arguments_are_sent_byte_for_byte() {
    let quoted = Login { login: b"al ice", password: br#"a"b\c"#, ..ALICE };
    greeted(quoted, "IMAP4rev1", r#"C: u1 LOGIN "al ice" "a\"b\\c""#);
    greeted(Login { password: b"", ..ALICE }, "IMAP4rev1", r#"C: u1 LOGIN "alice" """#);

    let latin = Login { login: b"\xe9ve", password: b"p\r\nu2 OK", ..ALICE };
    greeted(
        latin,
        "IMAP4rev1",
        r"
        C: u1 LOGIN {3}
        S: + go on
        C: \xe9ve {8}
        S: + go on
        C: p
        C: u2 OK
        S: u1 NO [AUTHENTICATIONFAILED] no
        => refused [AUTHENTICATIONFAILED] no
        ",
    );
    greeted(latin, "IMAP4rev1", "C: u1 LOGIN {3}\nS: u1 NO no literals\n=> refused [] no literals");
    greeted(latin, "IMAP4rev1 LITERAL+", "C: u1 LOGIN {3+}\nC: \\xe9ve {8+}\nC: p\nC: u2 OK");
    let half = Login { password: b"p\xc3\xa4ss", ..ALICE };
    greeted(half, "IMAP4rev1 literal-", "C: u1 LOGIN \"alice\" {5+}\nC: p\\xc3\\xa4ss");
    greeted(
        half,
        "IMAP4rev1",
        "C: u1 LOGIN \"alice\" {5}\nS: +\nC: p\\xc3\\xa4ss\nS: + more\n=> fault ProtocolViolation",
    );

    static LONG: [u8; 4097] = [b'p'; 4097];
    let long = Login { password: &LONG, ..ALICE };
    greeted(long, "IMAP4rev1 LITERAL-", "C: u1 LOGIN \"alice\" {4097}");
    let most = Login { password: &LONG[1..], ..ALICE };
    greeted(most, "IMAP4rev1 LITERAL-", &format!("C: u1 LOGIN \"alice\" {{4096+}}\nC: {}", "p".repeat(4096)));

    // No login command can carry a NUL; in PLAIN it would even shift the fields.
    for nul in [
        Login { login: b"ali\0ce", ..ALICE },
        Login { password: b"sec\0ret", ..ALICE },
        Login { service: Some(b"pro\0xy"), ..ALICE },
    ] {
        greeted(nul, "IMAP4rev1 AUTH=PLAIN SASL-IR", "=> fault NoMechanism");
    }
}

#[test]
fn only_ok_with_the_sent_tag_is_success() {
    for garbage in [
        "u1 OKAY",
        "u1 OK\\tin",
        "u1  OK in",
        "u1OK",
        "u10 OK in",
        "u2 OK in",
        "U1 OK in",
        "a OK in",
        "OK in",
        "u1 PREAUTH in",
        "u1 BYE",
        "u1",
        "+ go on",
        "+go on",
        "*OK",
        "",
    ] {
        logged_in(&format!("S: {}\n=> fault ProtocolViolation", garbage.replace("\\t", "\\x09")));
    }
    logged_in("S: u1 ok\n=> ready []");
    logged_in("S: * OK in\nS: * u1 OK in\nS: u1 BAD [X] what?\n=> fault Bad");
    logged_in("S: * PREAUTH in\n=> fault Preauth");
    logged_in("s: u1 OK in\\n\n=> fault ProtocolViolation");
    logged_in("s: u1 OK\\rin\n=> fault ProtocolViolation");
    logged_in("S: u1 OK in\\0\n=> fault ProtocolViolation");
}

#[test]
fn refusals_keep_code_and_text() {
    logged_in("S: u1 NO\n=> refused []");
    logged_in("S: u1 no [limit] Too many\n=> refused [limit] Too many");
    logged_in("S: u1 NO [INUSE 3 more]Locked\n=> refused [INUSE 3 more] Locked");
    logged_in("S: u1 NO [BROKEN text\n=> refused [] [BROKEN text");
    logged_in("S: u1 NO [X\\x1b] caf\\xc3\\xa9\\x07\n=> refused [X?] caf???");
    logged_in("S: u1 NO [REFERRAL imap://inside/] go there\n=> fault Referral");
    logged_in("S: u1 NO [referral imap://inside/]\n=> fault Referral");
    logged_in(&format!("S: u1 NO {}\n=> refused [] {}", "x".repeat(1000), "x".repeat(512)));
}

#[test]
fn lines_before_the_reply_reach_the_client_in_order() {
    logged_in(
        r#"
        S: * OK [ALERT] mail system {5}
        S: * NO quota
        S: * CAPABILITY IMAP4rev1 AUTH=PLAIN
        S: * ok [capability IMAP4rev1 IDLE STARTTLS] reported twice
        S: * XTRA {7}
        s: u1 OK\r\n
        S:  "and" {0}
        S: {2+}
        S: ab
        S: u1 OK in\r\n* 1 EXISTS\r\nu2 B
        => untagged * OK [ALERT] mail system {5}\r\n* NO quota\r\n* XTRA {7}\r\nu1 OK\r\n "and" {0}\r\n{2+}\r\nab\r\n
        => ready [IMAP4rev1 IDLE] in
        => left * 1 EXISTS\r\nu2 B\r\n
        "#,
    );
    logged_in("S: * BYE bye\n=> fault Bye");
    logged_in("S: * BYEBYE\nS: u1 OK [CAPABILITY IMAP4rev1] in\n=> untagged * BYEBYE\\r\\n\n=> ready [IMAP4rev1] in");
}

#[test]
fn other_response_codes_reach_the_client_before_the_reply() {
    logged_in(
        r"
        S: * CAPABILITY IMAP4rev1
        S: u1 OK [ALERT] Change your password
        => untagged * OK [ALERT] Change your password\r\n
        => ready [IMAP4rev1] Change your password
        ",
    );
    logged_in(
        r"
        S: * CAPABILITY IMAP4rev1
        S: u1 OK [REFERRAL imap://inside/] better go there
        => ready [IMAP4rev1]
        ",
    );
}

#[test]
fn capabilities_are_filtered() {
    logged_in(
        r#"
        S: u1 OK [CAPABILITY IMAP4rev1  auth=plain Auth=X StartTls LOGINDISABLED SASL-IR unauthenticate LOGIN-REFERRALS MAILBOX-REFERRALS COMPRESS=DEFLATE X"\xe9 UNAUTHENTICATED] in
        => ready [IMAP4rev1 SASL-IR COMPRESS=DEFLATE UNAUTHENTICATED] in
        "#,
    );
}

#[test]
fn endless_lines_are_limited() {
    // The limit of 2000 bytes, less the greeting.
    let greeting = "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready\r\n".len();
    let rest = 2000 - greeting;
    let line = format!("* {}", "x".repeat(rest - 4));
    logged_in(&format!(
        "S: {line}
         S: u1 OK [CAPABILITY IMAP4rev1] in
         => untagged {line}\\r\\n
         => ready [IMAP4rev1] in"
    ));
    logged_in(&format!("S: {line}x\n=> fault TooLarge"));
    logged_in(&format!("S: * {}\n=> fault TooLarge", vec!["x"; 90].join("\\r\\n* 123456789012345678")));
    logged_in(&format!("S: * LIST {{{}}}\n=> fault TooLarge", rest));
    logged_in("S: * LIST {99999999999999999999999}\n=> fault TooLarge");
    logged_in(&format!("S: {}\n=> fault TooLarge", "x".repeat(8193)));
    logged_in(&format!("S: u1 OK [CAPABILITY IMAP4rev1] {}\n=> fault TooLarge", "x".repeat(8193)));
    logged_in(&format!("S: u1 OK [X {}] in\n=> fault TooLarge", "x".repeat(2000)));
    // Lines that are not forwarded count too.
    script(ALICE, &format!("S: * OK\nC: u1 CAPABILITY\nS: * {}\n=> fault TooLarge", "x".repeat(2000)));
}
