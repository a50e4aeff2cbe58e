//! The reply of every protocol to every refusal: one table, a column per protocol.

mod chunks;

use super::trial::{HOST, SESSION};
use super::{FrontSettings, OUTPUT, PROTOCOLS, Protocol, Step, capabilities};
use crate::base::secret::SecretBuf;
use crate::outcome::{AccountState, Refusal};

/// The rows of the table: how a client can react to a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    /// Wrong password, unknown user, and every refusal that must look the same.
    Wrong,
    /// A temporary failure of the directory or a backend.
    Unavailable,
    /// The mailbox has no route, or not with this protocol.
    NoMailbox,
    /// The password must be changed first.
    NewPassword,
    /// The account is disabled or expired.
    Inactive,
    /// Not at this time, or not from this network.
    OutsideLogonHours,
    /// Not as another user, or not by this protocol.
    NotAllowed,
    Limit,
    TlsFirst,
    OurFault,
}

/// One column: the login command of this protocol, and the beginning of each reply.
struct Column {
    protocol: &'static str,
    attempt: &'static [u8],
    answer: fn(Row) -> &'static str,
}

const COLUMNS: &[Column] = &[IMAP, POP3, SUBMISSION, MANAGESIEVE];

const SUBMISSION: Column = Column {
    protocol: "submission",
    attempt: b"EHLO here\r\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
    answer: |row| match row {
        Row::Wrong | Row::NewPassword | Row::Inactive | Row::OutsideLogonHours | Row::NotAllowed => "535 5.7.8 ",
        Row::Unavailable | Row::Limit => "454 4.7.0 ",
        Row::NoMailbox => "554 5.3.5 ",
        Row::TlsFirst => "538 5.7.11 ",
        Row::OurFault => "451 4.3.0 ",
    },
};

const POP3: Column = Column {
    protocol: "pop3",
    attempt: b"USER alice\r\nPASS secret\r\n",
    answer: |row| match row {
        Row::Wrong => "-ERR [AUTH] ",
        Row::Unavailable | Row::Limit | Row::OurFault => "-ERR [SYS/TEMP] ",
        Row::NoMailbox | Row::NewPassword | Row::Inactive | Row::OutsideLogonHours | Row::NotAllowed => {
            "-ERR [SYS/PERM] "
        }
        Row::TlsFirst => "-ERR ",
    },
};

const IMAP: Column = Column {
    protocol: "imap",
    attempt: b"a LOGIN alice secret\r\n",
    answer: |row| match row {
        Row::Wrong => "a NO [AUTHENTICATIONFAILED] ",
        Row::Unavailable => "a NO [UNAVAILABLE] ",
        Row::NoMailbox | Row::Inactive => "a NO [CONTACTADMIN] ",
        Row::NewPassword => "a NO [EXPIRED] ",
        Row::OutsideLogonHours | Row::NotAllowed => "a NO [AUTHORIZATIONFAILED] ",
        Row::Limit => "a NO [LIMIT] ",
        Row::TlsFirst => "a NO [PRIVACYREQUIRED] ",
        Row::OurFault => "a NO [SERVERBUG] ",
    },
};

const MANAGESIEVE: Column = Column {
    protocol: "managesieve",
    attempt: b"AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"\r\n",
    answer: |row| match row {
        Row::Wrong | Row::NoMailbox | Row::NewPassword | Row::Inactive | Row::OutsideLogonHours | Row::NotAllowed => {
            "NO \""
        }
        Row::Unavailable | Row::Limit | Row::OurFault => "NO (TRYLATER) \"",
        Row::TlsFirst => "NO (ENCRYPT-NEEDED) \"",
    },
};

const fn row(refusal: &Refusal) -> Row {
    match refusal {
        Refusal::WrongPassword
        | Refusal::UnknownUser
        | Refusal::EmptyPassword
        | Refusal::InvalidUsername
        | Refusal::InvalidPassword
        | Refusal::Account { state: AccountState::Locked, .. } => Row::Wrong,
        Refusal::DirectoryUnavailable
        | Refusal::SeveralEntries
        | Refusal::BackendUnreachable
        | Refusal::BackendTls
        | Refusal::BackendTimeout
        | Refusal::BackendFault
        | Refusal::BackendBusy
        | Refusal::BackendDraining
        | Refusal::BackendRejected(_)
        | Refusal::Deadline
        | Refusal::Hold
        | Refusal::Kicked
        | Refusal::Draining => Row::Unavailable,
        Refusal::NoMailHost
        | Refusal::SeveralMailHosts
        | Refusal::UnknownMailHost
        | Refusal::NoBackendLogin
        | Refusal::ProtocolNotServed => Row::NoMailbox,
        Refusal::Account { state: AccountState::PasswordExpired | AccountState::PasswordMustChange, .. } => {
            Row::NewPassword
        }
        Refusal::Account { state: AccountState::Disabled | AccountState::AccountExpired, .. } => Row::Inactive,
        Refusal::Account { state: AccountState::OutsideLogonHours | AccountState::WrongWorkstation, .. } => {
            Row::OutsideLogonHours
        }
        Refusal::AuthzidNotAllowed | Refusal::NotAllowed => Row::NotAllowed,
        Refusal::Limit => Row::Limit,
        Refusal::TlsRequired => Row::TlsFirst,
        Refusal::Internal => Row::OurFault,
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
        Refusal::AuthzidNotAllowed,
        Refusal::NotAllowed,
        Refusal::DirectoryUnavailable,
        Refusal::SeveralEntries,
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

/// The reply of this protocol to an attempt with this refusal.
fn answer(protocol: &Protocol, attempt: &[u8], refusal: &Refusal) -> String {
    let mut front = (protocol.front)(FrontSettings {
        host: HOST,
        session: SESSION,
        capabilities: None,
        tls: true,
        starttls: false,
        bad_commands: 1,
    });
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    front.greet(&mut out);
    input.extend(attempt);
    let step = front.step(&mut input, &mut out);
    assert!(matches!(step, Step::Attempt(_)), "{} takes the attempt: {step:?}", protocol.name);
    out.clear();
    front.refused(refusal, &mut out);
    String::from_utf8(out.as_slice().to_vec()).unwrap()
}

#[test]
fn protocols_reply_to_each_refusal_as_tabulated() {
    for protocol in PROTOCOLS {
        let column = COLUMNS.iter().find(|column| column.protocol == protocol.name);
        let Column { attempt, answer: expected, .. } = column.expect("each protocol has its column above");
        let wrong = answer(protocol, attempt, &Refusal::WrongPassword);
        for refusal in every_refusal() {
            let row = row(&refusal);
            let answer = answer(protocol, attempt, &refusal);
            let expected = expected(row);
            assert!(answer.starts_with(expected), "{}: {refusal}: {answer} is not {expected}", protocol.name);
            assert!(answer.ends_with("\r\n") && answer.lines().count() == 1, "{}: {answer}", protocol.name);
            // Refusals that must be indistinguishable have identical replies.
            assert!((row != Row::Wrong) || answer == wrong, "{}: {refusal}: {answer}", protocol.name);
        }
    }
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
