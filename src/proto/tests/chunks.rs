//! Property: the dialogue sends and does the same for any fragmentation of its input.
//!
//! The inputs consist of fragments that drive the state machines (commands, literals, line ends, base64) in any
//! order, with any bytes between; proptest shrinks failures.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::trial::{BackRun, FrontRun, HOST, SESSION, ScriptedDecision};
use crate::base::secret::Secret;
use crate::outcome::Refusal;
use crate::proto::{BackSettings, BackTls, FrontSettings, PROTOCOLS, Protocol, Welcome};

/// Valid and invalid fragments of clients and backends of a protocol.
#[derive(Debug)]
struct Talk {
    protocol: &'static str,
    client: &'static [&'static str],
    backend: &'static [&'static str],
}

const TALKS: &[Talk] = &[IMAP, POP3, SUBMISSION, MANAGESIEVE];

const SUBMISSION: Talk = Talk {
    protocol: "submission",
    client: &[
        "\r\n",
        "\n",
        "\r",
        "EHLO here\r\n",
        "HELO here\r\n",
        "AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
        "AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\nMAIL FROM:<a@b>\r\n",
        "AUTH PLAIN\r\nAGFsaWNlAHNlY3JldA==\r\n",
        "AUTH LOGIN =\r\nc2VjcmV0\r\n",
        "AUTH LOGIN\r\n*\r\n",
        "STARTTLS\r\n",
        "RSET\r\n",
        "NOOP\r\n",
        "VRFY alice\r\n",
        "QUIT\r\n",
        "POST / HTTP/1.1\r\n",
        "AUTH ",
        "DATA",
        " ",
        "AGFsaWNl",
    ],
    backend: &[
        "\r\n",
        "\n",
        "\r",
        "220 ready\r\n",
        "220-more\r\n",
        "250 server3\r\n",
        "250-server3\r\n",
        "250-AUTH PLAIN LOGIN\r\n250 SIZE\r\n",
        "250-AUTH LOGIN\r\n",
        "250 STARTTLS\r\n",
        "250-XCLIENT NAME ADDR PORT\r\n",
        "334 \r\n",
        "334 VXNlcm5hbWU6\r\n",
        "235 2.7.0 in\r\n",
        "235\r\n",
        "235-2.7.0 in\r\n",
        "454 4.7.0 later\r\n",
        "535 5.7.8 no\r\n",
        "421 bye\r\n",
        "2350\r\n",
        "25",
        "-",
        " ",
    ],
};

const POP3: Talk = Talk {
    protocol: "pop3",
    client: &[
        "\r\n",
        "\n",
        "\r",
        "CAPA\r\n",
        "USER alice\r\n",
        "PASS  se cret \r\n",
        "PASS secret\r\nSTAT\r\n",
        "AUTH\r\n",
        "AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
        "AUTH PLAIN\r\nAGFsaWNlAHNlY3JldA==\r\n",
        "AUTH LOGIN =\r\nc2VjcmV0\r\n",
        "AUTH LOGIN\r\n*\r\n",
        "STLS\r\n",
        "QUIT\r\n",
        "APOP alice 0123\r\n",
        "PUT / HTTP/1.1\r\n",
        "AUTH ",
        "PASS ",
        " ",
        "AGFsaWNl",
    ],
    backend: &[
        "\r\n",
        "\n",
        "\r",
        "+OK ready <1896.697170952@dbc.mtview.ca.us> [XCLIENT]\r\n",
        "+OK done\r\n",
        "+OK\r\n",
        "-ERR [SYS/TEMP] later\r\n",
        "-ERR no\r\n",
        "-ERR Protocol error\r\n",
        "SASL LOGIN\r\n",
        "SASL PLAIN LOGIN\r\n",
        "USER\r\n",
        "STLS\r\n",
        "UIDL\r\n",
        "..\r\n",
        ".\r\n",
        "+ \r\n",
        "+ VXNlcm5hbWU6\r\n",
        "+OKAY\r\n",
        "-",
        "+",
    ],
};

const IMAP: Talk = Talk {
    protocol: "imap",
    client: &[
        "\r\n",
        "\n",
        "\r",
        "a ",
        "b2 CAPABILITY\r\n",
        "c NOOP\r\n",
        "d ID (\"name\" \"x\" \"version\" NIL)\r\n",
        "e LOGIN alice secret\r\n",
        "f LOGIN \"al\\\"ice\" \"s ecret\"\r\n",
        "g LOGIN {5}\r\nalice {6+}\r\nsecret\r\n",
        "h AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==\r\n",
        "i AUTHENTICATE PLAIN\r\nAGFsaWNlAHNlY3JldA==\r\n",
        "j AUTHENTICATE LOGIN\r\nYWxpY2U=\r\nc2VjcmV0\r\n",
        "k AUTHENTICATE PLAIN\r\n*\r\n",
        "l STARTTLS\r\n",
        "m LOGOUT\r\n",
        "GET / HTTP/1.1\r\n",
        "LOGIN",
        "{3}\r\n",
        "{3+}\r\n",
        "{99999}\r\n",
        "{99999+}\r\n",
        "\"",
        "\\",
        " ",
        "(",
        "*",
        "+",
        "AGFsaWNl",
    ],
    backend: &[
        "\r\n",
        "\n",
        "\r",
        "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN LITERAL+] ready\r\n",
        "* OK ready\r\n",
        "* PREAUTH in\r\n",
        "* BYE no\r\n",
        "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\n",
        "* CAPABILITY IMAP4rev1 LITERAL+ ID\r\n",
        "* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n",
        "* CAPABILITY LOGINDISABLED AUTH=LOGIN\r\n",
        "u1 BAD what\r\n",
        "+\r\n",
        "* ID (\"name\" {4}\r\nx\r\ny)\r\n",
        "+ go on\r\n",
        "+ \r\n",
        "u1 OK done\r\n",
        "u2 OK done\r\n",
        "u3 OK [CAPABILITY IMAP4rev1 IDLE] in\r\n",
        "u1 NO [UNAVAILABLE] later\r\n",
        "u2 BAD what\r\n",
        "u1 OKAY\r\n",
        "* 1 EXISTS\r\n",
        "{5}\r\n",
        "{5+}\r\n",
        "{4294967295}\r\n",
        "u1 ",
        "* ",
        "[",
        "]",
    ],
};

const MANAGESIEVE: Talk = Talk {
    protocol: "managesieve",
    client: &[
        "\r\n",
        "\n",
        "\r",
        "CAPABILITY\r\n",
        "NOOP\r\n",
        "NOOP \"sync\"\r\n",
        "NOOP {4+}\r\nsync\r\n",
        "AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"\r\n",
        "AUTHENTICATE \"PLAIN\" {20+}\r\nAGFsaWNlAHNlY3JldA==\r\n",
        "AUTHENTICATE \"PLAIN\"\r\n",
        "\"AGFsaWNlAHNlY3JldA==\"\r\n",
        "AUTHENTICATE {5+}\r\nLOGIN\r\n\"YWxpY2U=\"\r\n\"c2VjcmV0\"\r\n",
        "\"*\"\r\n",
        "STARTTLS\r\n",
        "LOGOUT\r\n",
        "PUTSCRIPT \"a\" {5+}\r\nkeep;\r\n",
        "POST / HTTP/1.1\r\n",
        "{3}\r\n",
        "{3+}\r\n",
        "{99999+}\r\n",
        "\"",
        "\\",
        " ",
        "*",
    ],
    backend: &[
        "\r\n",
        "\n",
        "\r",
        "\"IMPLEMENTATION\" \"a server\"\r\n",
        "\"SASL\" \"PLAIN LOGIN\"\r\n",
        "\"SASL\" \"LOGIN\"\r\n",
        "\"\"\r\n",
        "NO \"Expected a command\"\r\n",
        "\"SIEVE\" {8}\r\nfileinto\r\n",
        "\"STARTTLS\"\r\n",
        "\"XCLIENT\"\r\n",
        "OK \"ready\"\r\n",
        "OK\r\n",
        "OK (TAG {4}\r\nsync) \"done\"\r\n",
        "NO (TRYLATER) \"later\"\r\n",
        "NO {5}\r\nwrong\r\n",
        "BYE (REFERRAL \"sieve://inside\") \"go\"\r\n",
        "BYE\r\n",
        "OKAY\r\n",
        "{3}\r\n",
        "{4294967295}\r\n",
        "\"",
        "(",
        " ",
    ],
};

/// Any protocol, with its fragments.
fn protocol() -> impl Strategy<Value = (&'static Protocol, &'static Talk)> {
    select(PROTOCOLS.iter().collect::<Vec<_>>()).prop_map(|protocol| {
        let talk = TALKS.iter().find(|talk| talk.protocol == protocol.name);
        (protocol, talk.expect("each protocol has fragments above"))
    })
}

/// Bytes composed of these fragments and any others.
fn input(fragments: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        8 => select(fragments).prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..6),
        // Long enough to reach the limits of lines and literals.
        1 => (select(&b"ax \""[..]), 0..20_000_usize).prop_map(|(byte, n)| vec![byte; n]),
    ];
    vec(fragment, 0..24).prop_map(|fragments| fragments.concat())
}

/// These bytes, cut at these positions.
fn pieces<'b>(bytes: &'b [u8], cuts: &[Index]) -> Vec<&'b [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|piece| &bytes[piece[0]..piece[1]]).collect()
}

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    vec(any::<Index>(), 0..40)
}

fn decision() -> impl Strategy<Value = ScriptedDecision> {
    let refused = select(vec![Refusal::WrongPassword, Refusal::NoMailHost, Refusal::UnknownMailHost]);
    let welcome = Welcome { capabilities: b"IMAP4rev1 IDLE".to_vec(), ..Welcome::default() };
    prop_oneof![3 => refused.prop_map(ScriptedDecision::Refuse), 1 => Just(ScriptedDecision::Accept(welcome))]
}

proptest! {
    #[test]
    fn client_bytes_get_the_same_replies_in_any_chunking(
        (protocol, sent) in protocol().prop_flat_map(|(protocol, talk)| (Just(protocol), input(talk.client))),
        cuts in cuts(),
        (tls, starttls) in any::<(bool, bool)>(),
        bad_commands in 0..10_u32,
        decisions in vec(decision(), 0..6),
    ) {
        let said = |pieces: &[&[u8]]| {
            let settings = FrontSettings { host: HOST, session: SESSION, capabilities: None, tls, starttls, bad_commands, sasl: crate::proto::SaslOffer::PASSWORDS };
            let mut trial = FrontRun::new(protocol, settings, decisions.clone().into_iter());
            pieces.iter().for_each(|piece| trial.feed(piece));
            trial.finish()
        };
        prop_assert_eq!(said(&pieces(&sent, &cuts)), said(&[&sent]));
    }

    #[test]
    fn backend_bytes_give_the_same_steps_in_any_chunking(
        (protocol, sent) in protocol().prop_flat_map(|(protocol, talk)| (Just(protocol), input(talk.backend))),
        cuts in cuts(),
        (starttls, by_service) in any::<(bool, bool)>(),
        password in select(&["pass", "p\u{e4}ss", "\"\\"][..]),
        untagged_limit in 0..2000_usize,
    ) {
        let said = |pieces: &[&[u8]]| {
            let mut trial = BackRun::new(protocol, BackSettings {
                tls: if starttls { BackTls::StartTls } else { BackTls::Implicit },
                login: b"alice".to_vec(),
                password: Secret::copy_of(password.as_bytes()),
                token: None,
                service: by_service.then(|| b"proxy".to_vec()),
                untagged_limit,
                forward: None,
                host: HOST.into(),
            initial_response: true,
                ehlo: None,
            });
            pieces.iter().for_each(|piece| trial.feed(piece));
            trial.finish()
        };
        prop_assert_eq!(said(&pieces(&sent, &cuts)), said(&[&sent]));
    }
}
