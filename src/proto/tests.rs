//! The reply of every protocol to every refusal: ARCHITECTURE.md's table, a column per protocol.

mod challenged;
mod chunks;
mod tokens;
mod traced;

use super::trial::{HOST, SESSION};
use super::{Credentials, FrontSettings, OUTPUT, PROTOCOLS, Protocol, SaslOffer, Step, by_name, capabilities};
use crate::base::credential::CredentialSecret;
use crate::base::secret::SecretBuf;
use crate::outcome::{AccountState, ActingFault, BackendReply, Proof, Refusal, Reply, TokenError};

/// The documentation that holds the table.
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");

/// A row of the table: a reply, the labels of the refusals that lead to it, and how each protocol begins it.
struct Row {
    reply: &'static str,
    refusals: Vec<&'static str>,
    /// A protocol's name in capitals or not, and the beginning.
    starts: Vec<(&'static str, &'static str)>,
}

/// The table under its heading in ARCHITECTURE.md.
fn table() -> Vec<Row> {
    let (_, section) = ARCHITECTURE.split_once("## What each refusal replies\n").expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let mut lines = section.lines().filter(|line| line.starts_with('|')).map(cells);
    let protocols = lines.next().expect("the table has a head").split_off(2);
    let protocols = protocols.into_iter().map(|head| head.split(' ').next().unwrap_or_default());
    let row = |cells: Vec<&'static str>| {
        let [reply, refusals, starts @ ..] = cells.as_slice() else { panic!("{cells:?} is no row") };
        let starts = protocols.clone().zip(starts.iter().map(|start| start.trim_matches('`'))).collect();
        Row {
            reply: reply.trim_matches('`'),
            refusals: refusals.split(' ').map(|label| label.trim_matches('`')).collect(),
            starts,
        }
    };
    lines.skip(1).map(row).collect()
}

/// The login command of each protocol.
fn attempt(protocol: &str) -> &'static [u8] {
    match protocol {
        "imap" => b"a LOGIN alice secret\r\n",
        "pop3" => b"USER alice\r\nPASS secret\r\n",
        "submission" => b"EHLO here\r\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
        "managesieve" => b"AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"\r\n",
        other => panic!("{other} has no login here"),
    }
}

#[test]
fn external_is_taken_from_clients_with_a_certificate_alone() {
    for (name, begin, list, response) in [
        ("imap", "", "a CAPABILITY\r\n", "a AUTHENTICATE EXTERNAL YWxpY2U=\r\n"),
        ("imap", "", "a CAPABILITY\r\n", "a AUTHENTICATE EXTERNAL\r\nYWxpY2U=\r\n"),
        ("pop3", "", "CAPA\r\n", "AUTH EXTERNAL YWxpY2U=\r\n"),
        ("pop3", "", "AUTH\r\n", "AUTH EXTERNAL\r\nYWxpY2U=\r\n"),
        ("submission", "EHLO here\r\n", "EHLO here\r\n", "AUTH EXTERNAL YWxpY2U=\r\n"),
        ("managesieve", "", "CAPABILITY\r\n", "AUTHENTICATE \"EXTERNAL\" \"YWxpY2U=\"\r\n"),
        ("managesieve", "", "CAPABILITY\r\n", "AUTHENTICATE \"EXTERNAL\"\r\n\"YWxpY2U=\"\r\n"),
    ] {
        for verified in [false, true] {
            let mut front = (by_name(name).unwrap().front)(FrontSettings {
                host: HOST,
                session: SESSION,
                capabilities: None,
                tls: true,
                starttls: false,
                bad_commands: 50,
                sasl: SaslOffer::PASSWORDS,
            });
            if verified {
                front.certificate_verified();
            }
            let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
            front.greet(&mut out);
            input.extend([begin, list].concat().as_bytes());
            while !matches!(front.step(&mut input, &mut out), Step::NeedMore) {}
            let listed = out.as_slice().windows(8).any(|bytes| bytes == b"EXTERNAL");
            assert_eq!(listed, verified, "{name}");
            input.extend(response.as_bytes());
            let step = front.step(&mut input, &mut out);
            if let Step::Attempt(Credentials { login, secret: CredentialSecret::ClientCertificate(_), authzid }) = &step
            {
                assert!(verified && login.is_empty() && authzid == b"alice", "{name}");
            } else {
                assert!(!verified, "{name}: {step:?}");
            }
        }
    }
}

/// Every refusal; the test checks that none is missing.
fn every_refusal() -> Vec<Refusal> {
    let states = AccountState::ALL.map(|state| Refusal::Account { state, proven: true });
    let mut all = vec![
        Refusal::WrongPassword,
        Refusal::UnknownUser,
        Refusal::EmptyPassword,
        Refusal::InvalidUsername,
        Refusal::InvalidPassword,
        Refusal::Token(TokenError::Expired),
        Refusal::TokenUnavailable(TokenError::Unavailable),
        Refusal::TokenTooLong,
        Refusal::WrongCertificate,
        Refusal::CertificateExpired,
        Refusal::CertificateRevoked,
        Refusal::CertificateUntrusted,
        Refusal::RevocationUnknown,
        Refusal::NoCertificateName,
        Refusal::NoServiceLogin,
        Refusal::AuthzidNotAllowed,
        Refusal::NotAllowed,
        Refusal::DirectoryUnavailable,
        Refusal::SeveralEntries(Proof::Missing),
        Refusal::NoPassword,
        Refusal::NetworkNotAllowed,
        Refusal::PasswordNotAllowed,
        Refusal::UnusableNetworks,
        Refusal::ActingNotAllowed(ActingFault::NotPermitted),
        Refusal::UnusableEntry(Proof::Missing),
        Refusal::NoMailHost,
        Refusal::SeveralMailHosts,
        Refusal::UnknownMailHost,
        Refusal::NoBackendLogin,
        Refusal::ProtocolNotServed,
        Refusal::BackendUnreachable,
        Refusal::BackendTls,
        Refusal::BackendTimeout,
        Refusal::BackendFault,
        Refusal::BackendBusy,
        Refusal::BackendDraining,
        Refusal::BackendRejected(None),
        Refusal::BackendRefusesAll,
        Refusal::TlsRequired,
        Refusal::Limit,
        Refusal::Deadline,
        Refusal::Hold,
        Refusal::Kicked,
        Refusal::Draining,
        Refusal::Internal,
    ];
    all.extend(states);
    let mut labels: Vec<_> = all.iter().map(Refusal::label).collect();
    let mut known = Refusal::LABELS.to_vec();
    labels.sort_unstable();
    known.sort_unstable();
    assert_eq!(labels, known, "each is here once, and has its label in the list");
    all
}

/// What this protocol answers to a login with this reply.
fn answer(protocol: &Protocol, reply: &Reply) -> String {
    let mut front = (protocol.front)(FrontSettings {
        host: HOST,
        session: SESSION,
        capabilities: None,
        tls: true,
        starttls: false,
        bad_commands: 1,
        sasl: SaslOffer::PASSWORDS,
    });
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    front.greet(&mut out);
    input.extend(attempt(protocol.name));
    let step = front.step(&mut input, &mut out);
    assert!(matches!(step, Step::Attempt(_)), "{} takes the attempt: {step:?}", protocol.name);
    out.clear();
    front.refused(reply, &mut out);
    String::from_utf8(out.as_slice().to_vec()).unwrap()
}

#[test]
fn protocols_reply_to_each_refusal_as_tabulated() {
    let table = table();
    let backend =
        BackendReply { code: String::new(), text: "Try again".to_owned(), unavailable: false, challenge: None };
    let mut left: Vec<_> = table.iter().flat_map(|row| row.refusals.iter().map(|label| (row.reply, *label))).collect();
    // Those that have another reply after the password.
    let others = [
        Refusal::BackendRejected(Some(backend)),
        Refusal::SeveralEntries(Proof::Given),
        Refusal::UnusableEntry(Proof::Given),
    ];
    for refusal in every_refusal().into_iter().chain(others) {
        let reply = refusal.reply(true);
        let name = format!("{reply:?}");
        let name = name.split('(').next().unwrap_or_default();
        let row = table.iter().find(|row| row.reply == name).unwrap_or_else(|| panic!("{name} is not in the table"));
        assert!(row.refusals.contains(&refusal.label()), "{refusal} is not in the row of {name}");
        left.retain(|pair| *pair != (name, refusal.label()));
        for protocol in PROTOCOLS {
            let start = row.starts.iter().find(|(column, _)| column.eq_ignore_ascii_case(protocol.name));
            let (_, start) = start.unwrap_or_else(|| panic!("{} has no column", protocol.name));
            let answer = answer(protocol, &reply);
            let untagged = answer.strip_prefix("a ").unwrap_or(&answer);
            let text = untagged.strip_prefix(start).and_then(|rest| rest.strip_prefix(' '));
            let text = text.unwrap_or_else(|| panic!("{}: {refusal}: {answer} is not {start}", protocol.name));
            assert!(!text.starts_with(['[', '(']), "{}: {refusal}: {answer} has a code besides {start}", protocol.name);
            // Submission passes no text without a code on.
            let same = text.trim_start_matches('"').starts_with(reply.text())
                || protocol.name == "submission" && name == "BackendText";
            assert!(same, "{}: {refusal}: {answer}", protocol.name);
            assert!(answer.ends_with("\r\n") && answer.lines().count() == 1, "{}: {answer}", protocol.name);
        }
    }
    assert!(left.is_empty(), "in the table, not in the code: {left:?}");
}

#[test]
fn refusals_that_must_be_indistinguishable_have_one_reply() {
    let hidden = AccountState::ALL.map(|state| Refusal::Account { state, proven: false });
    let locked = Refusal::Account { state: AccountState::Locked, proven: true };
    let equal =
        [Refusal::UnknownUser, Refusal::EmptyPassword, Refusal::InvalidUsername, Refusal::InvalidPassword, locked];
    for refusal in equal.into_iter().chain(hidden) {
        assert_eq!(refusal.reply(true), Refusal::WrongPassword.reply(false), "{refusal}");
    }
}

#[test]
fn alpn_ids_are_offered_to_backends_if_they_are_registered() {
    let ids = PROTOCOLS.iter().map(|row| (row.alpn, row.alpn_to_backends));
    let expected: [(Option<&[u8]>, bool); 4] =
        [(Some(b"imap"), true), (Some(b"pop3"), true), (Some(b"smtp"), false), (Some(b"managesieve"), true)];
    assert!(ids.eq(expected));
}

/// A client that pipelines small commands with long replies, and does not read, fills only a bounded buffer.
#[test]
fn step_buffer_is_bounded() {
    let longest = |n: usize| format!("X{n}{}", "x".repeat(capabilities::LONGEST - 2));
    let listed: Vec<String> = capabilities::bounded((0..9).map(longest));
    assert_eq!(listed.iter().map(String::len).sum::<usize>(), capabilities::WHOLE);
    for protocol in PROTOCOLS {
        let (command, last) = match protocol.name {
            "imap" => ("a CAPABILITY\r\n", "a OK Capability completed\r\n"),
            "pop3" => ("CAPA\r\n", "\r\n.\r\n"),
            "submission" => ("EHLO x\r\n", "250 AUTH PLAIN LOGIN\r\n"),
            "managesieve" => ("CAPABILITY\r\n", "OK \"Capability completed\"\r\n"),
            other => panic!("{other} has no command here"),
        };
        let settings = FrontSettings {
            host: HOST,
            session: SESSION,
            capabilities: Some(&listed),
            tls: true,
            starttls: false,
            bad_commands: 1,
            sasl: SaslOffer::PASSWORDS,
        };
        let mut front = (protocol.front)(settings);
        let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
        const ASKED: usize = 300;
        input.extend(command.repeat(ASKED).as_bytes());
        let (mut answered, mut flushes) = (0, 0);
        loop {
            let step = front.step(&mut input, &mut out);
            assert!(out.len() <= OUTPUT + capabilities::WHOLE + 1024, "{}: {} bytes", protocol.name, out.len());
            answered += std::str::from_utf8(out.as_slice()).unwrap().matches(last).count();
            if !matches!(step, Step::Flush) {
                break assert!(matches!(step, Step::NeedMore), "{}: {step:?}", protocol.name);
            }
            assert!(out.len() >= OUTPUT, "{}: for {} bytes", protocol.name, out.len());
            flushes += 1;
            out.clear();
        }
        assert!(input.is_empty() && flushes > 0, "{}: {flushes}", protocol.name);
        assert_eq!(answered, ASKED, "{}: each is answered once and whole", protocol.name);
    }
}
