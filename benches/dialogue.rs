//! The cost of a login in the dialogues alone, without sockets, TLS and directory.
#![allow(missing_docs, reason = "criterion's macros generate undocumented functions")]

use std::hint::black_box;

use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};
use usher::internals::Reply;
use usher::internals::{BackSettings, BackStep, BackTls, FrontSettings, SaslOffer, Step, Welcome, by_name};
use usher::internals::{Secret, SecretBuf};

const LOGIN: &[u8] = b"a1 ID (\"name\" \"bench\")\r\na2 CAPABILITY\r\na3 LOGIN alice \"secret word\"\r\n";
const LITERALS: &[u8] = b"a1 LOGIN {5+}\r\nalice {6+}\r\nsecret\r\n";
const PLAIN: &[u8] = b"a1 AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==\r\n";
const POP3: &[u8] = b"CAPA\r\nUSER alice\r\nPASS secret word\r\n";
const SUBMISSION: &[u8] = b"EHLO here\r\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n";
const SIEVE: &[u8] = b"CAPABILITY\r\nAUTHENTICATE \"PLAIN\" \"AGFsaWNlAHNlY3JldA==\"\r\n";

/// Replies of a backend like Dovecot to a login.
const BACKENDS: &[(&str, &[u8])] = &[
    (
        "imap",
        b"* OK [CAPABILITY IMAP4rev1 SASL-IR ID ENABLE IDLE LITERAL+ AUTH=PLAIN] ready\r\n\
          * CAPABILITY IMAP4rev1 SASL-IR ID ENABLE IDLE SORT THREAD=REFERENCES NAMESPACE UIDPLUS CONDSTORE QRESYNC\r\n\
          u1 OK Logged in\r\n",
    ),
    (
        "pop3",
        b"+OK Dovecot ready.\r\n\
          +OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE\r\nUSER\r\nSASL PLAIN\r\n.\r\n\
          +OK Logged in.\r\n",
    ),
    (
        "submission",
        b"220 Dovecot ready.\r\n\
          250-server3\r\n250-8BITMIME\r\n250-AUTH PLAIN LOGIN\r\n250-BURL imap\r\n250-CHUNKING\r\n250 SIZE\r\n\
          235 2.7.0 Logged in.\r\n",
    ),
    (
        "managesieve",
        b"\"IMPLEMENTATION\" \"Dovecot Pigeonhole\"\r\n\
          \"SIEVE\" \"fileinto reject envelope encoded-character vacation subaddress relational regex imap4flags\"\r\n\
          \"NOTIFY\" \"mailto\"\r\n\"SASL\" \"PLAIN LOGIN\"\r\n\"VERSION\" \"1.0\"\r\nOK \"ready.\"\r\n\
          OK \"Logged in.\"\r\nOK \"NOOP completed.\"\r\n",
    ),
];

/// A client from the greeting to its login, with its bytes in chunks of `size`. Returns the number of
/// bytes sent to it.
fn front(protocol: &str, sent: &[u8], size: usize, refused: bool) -> usize {
    let protocol = by_name(protocol).expect("it is registered");
    let mut front = (protocol.front)(FrontSettings {
        host: "usher.example.com",
        session: "S7Q2X",
        capabilities: None,
        tls: true,
        starttls: false,
        bad_commands: 20,
        sasl: SaslOffer::PASSWORDS,
    });
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    front.greet(&mut out);
    for chunk in sent.chunks(size) {
        input.extend(chunk);
        while let Step::Attempt(credentials) = front.step(&mut input, &mut out) {
            black_box(credentials);
            if refused {
                front.refused(&Reply::AuthenticationFailed, &mut out);
                continue;
            }
            let welcome =
                Welcome { capabilities: b"IMAP4rev1 IDLE".to_vec(), text: b"in".to_vec(), ..Welcome::default() };
            front.accepted(&welcome, &mut out);
            return out.len();
        }
    }
    out.len()
}

/// A login at a backend.
fn back(protocol: &str, sent: &[u8], size: usize) -> bool {
    let protocol = by_name(protocol).expect("it is registered");
    let mut back = (protocol.back)(BackSettings {
        tls: BackTls::Implicit,
        login: b"alice".to_vec(),
        password: Secret::copy_of(b"secret"),
        token: None,
        service: None,
        untagged_limit: 65_536,
        forward: None,
        host: "usher.example.com".into(),
        initial_response: true,
        ehlo: None,
    });
    let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
    sent.chunks(size).any(|chunk| {
        input.extend(chunk);
        matches!(back.step(&mut input, &mut out), BackStep::Ready(_))
    })
}

fn dialogue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("front");
    group.throughput(Throughput::Elements(1));
    group.bench_function("login", |bencher| bencher.iter(|| front("imap", black_box(LOGIN), LOGIN.len(), false)));
    group.bench_function("login, byte by byte", |bencher| bencher.iter(|| front("imap", black_box(LOGIN), 1, false)));
    group.bench_function("literals", |bencher| {
        bencher.iter(|| front("imap", black_box(LITERALS), LITERALS.len(), false))
    });
    group.bench_function("plain", |bencher| bencher.iter(|| front("imap", black_box(PLAIN), PLAIN.len(), false)));
    group.bench_function("pop3", |bencher| bencher.iter(|| front("pop3", black_box(POP3), POP3.len(), false)));
    let submission = |bencher: &mut Bencher<'_>| {
        bencher.iter(|| front("submission", black_box(SUBMISSION), SUBMISSION.len(), false));
    };
    group.bench_function("submission", submission);
    group.bench_function("managesieve", |bencher| {
        bencher.iter(|| front("managesieve", black_box(SIEVE), SIEVE.len(), false));
    });
    let guesses = PLAIN.repeat(100);
    group.throughput(Throughput::Elements(100));
    group.bench_function("100 refused", |bencher| {
        bencher.iter(|| front("imap", black_box(&guesses), guesses.len(), true))
    });
    group.throughput(Throughput::Bytes(1 << 20));
    let invalid = [b"a1 ".as_slice(), &vec![b'x'; 1 << 20]].concat();
    group.bench_function("a megabyte of invalid data", |bencher| {
        bencher.iter(|| front("imap", black_box(&invalid), 16_384, false))
    });
    group.finish();

    let mut group = criterion.benchmark_group("back");
    group.throughput(Throughput::Elements(1));
    for (protocol, sent) in BACKENDS {
        let whole = |size| assert!(back(protocol, black_box(sent), size));
        group.bench_function(*protocol, |bencher| bencher.iter(|| whole(sent.len())));
        group.bench_function(format!("{protocol}, byte by byte"), |bencher| bencher.iter(|| whole(1)));
    }
    group.finish();
}

criterion_group!(benches, dialogue);
criterion_main!(benches);
