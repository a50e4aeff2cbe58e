//! Valid and malformed messages, whole and in pieces.

use proptest::prelude::*;

use super::*;
use crate::proto::ldap::ber::{digits, wrapped};

/// An LDAPMessage around an operation.
fn message(id: u32, operation: &[u8]) -> Vec<u8> {
    wrapped(SEQUENCE, &[&wrapped(INTEGER, &[&digits(id)]), operation])
}

fn done(id: u32, code: &[u8], text: &[u8]) -> Vec<u8> {
    message(id, &wrapped(SEARCH_DONE, &[&wrapped(ENUMERATED, &[code]), b"\x04\x00", &wrapped(OCTET_STRING, &[text])]))
}

/// This many nested constructed elements.
fn nested(levels: usize) -> Vec<u8> {
    (0..levels).fold(Vec::new(), |inner, _| wrapped(SEQUENCE, &[&inner]))
}

fn end_of(bytes: &[u8], most: usize) -> Option<StreamEnd> {
    let mut frames = Frames::new(most);
    frames.push(bytes);
    frames.end()
}

fn violation(bytes: &[u8]) -> Option<Violation> {
    match end_of(bytes, 1 << 20)? {
        StreamEnd::Violation(violation) => Some(violation),
        StreamEnd::Notice(result) => panic!("a notice with {result}"),
    }
}

#[test]
fn messages_are_returned_complete_and_in_order() {
    let mut frames = Frames::new(BEFORE_TLS);
    let (one, two) = (done(1, b"\x00", b"all"), done(2, b"\x10\x00", b""));
    frames.push(&[&one[..], &two[..two.len() - 1]].concat());
    assert_eq!(frames.whole(), one);
    let (first, size) = frames.message().unwrap();
    assert_eq!((first.id, first.tag, size), (1, SEARCH_DONE, one.len()));
    assert_eq!(first.outcome(), Some(LdapResult { code: 0, text: "all" }));
    frames.consume(size);
    assert!(frames.message().is_none() && !frames.is_empty());
    frames.push(&two[two.len() - 1..]);
    let (second, size) = frames.message().unwrap();
    assert_eq!((second.id, second.outcome().map(|outcome| outcome.code)), (2, Some(4096)));
    frames.consume(size);
    assert!(frames.is_empty());
}

#[test]
fn controls_are_found_by_their_name() {
    let control = |parts: &[&[u8]]| wrapped(SEQUENCE, parts);
    let controls = [
        control(&[b"\x04\x03a.b", b"\x01\x01\xff", b"\x04\x01v"]),
        control(&[b"\x04\x01c"]),
        control(&[b"\x04\x01d", b"\x04\x02dd"]),
    ]
    .concat();
    let bytes = message(1, &[&b"\x64\x04\x04\x00\x30\x00"[..], &wrapped(CONTROLS, &[&controls])].concat());
    let mut frames = Frames::new(BEFORE_TLS);
    frames.push(&bytes);
    let (message, _) = frames.message().unwrap();
    let found = ["a.b", "c", "d", "e"].map(|name| message.control(name));
    assert_eq!(found, [Some(&b"v"[..]), Some(b""), Some(b"dd"), None]);
}

#[test]
fn nesting_and_elements_are_bounded() {
    // A message of 20 levels is read, one of 21 is not. As a message is two levels without this:
    let at = |levels: usize| violation(&message(1, &wrapped(SEARCH_ENTRY, &[b"\x04\x00", &nested(levels)])));
    assert_eq!((at(18), at(19)), (None, Some(Violation::TooDeep)));
    // Headers below the deepest allowed level are not read.
    let levels = 20_000_u32;
    let deep: Vec<u8> =
        (0..levels).rev().flat_map(|level| [&[0x30, 0x84][..], &(level * 6).to_be_bytes()].concat()).collect();
    assert_eq!(violation(&deep), Some(Violation::TooDeep));
    let many = |count: usize| {
        let values = b"\x04\x00".repeat(count);
        violation(&message(1, &wrapped(SEARCH_ENTRY, &[b"\x04\x00", &wrapped(SEQUENCE, &[&values])])))
    };
    assert_eq!((many(65_000), many(65_537)), (None, Some(Violation::TooMany)));
}

#[test]
fn contradictory_lengths_are_malformed() {
    for bytes in [
        &b"\x30\x80\x02\x01\x01\x00\x00"[..],                // indefinite
        b"\x30\x85\x00\x00\x00\x00\x05\x02\x01\x01\x64\x00", // more than four digits
        b"\x30\x07\x02\x01\x01\x64\x03\x04\x00",             // one element beyond the message
        b"\x30\x09\x02\x01\x01\x64\x04\x04\x05ab",           // one beyond the element around it
        b"\x30\x08\x02\x01\x01\x64\x03\x04\x82\x00",         // a header that runs out
        b"\x30\x07\x02\x01\x01\x7f\x02\x64\x00",             // a tag of two bytes
        b"\x30\x00",
        b"\x30\x03\x02\x01\x01",
        b"\x30\x06\x02\x00\x64\x02\x04\x00",
        b"\x30\x0b\x02\x05\x00\x00\x00\x00\x01\x64\x02\x04\x00",
        b"\x30\x0a\x02\x04\x80\x00\x00\x01\x64\x02\x04\x00",
        b"\x30\x07\x02\x01\x01\x67\x02\x04\x00", // an operation that a client never requests
        b"\x30\x07\x02\x01\x01\x44\x02\x04\x00", // a primitive entry
        b"\x30\x09\x02\x01\x01\x64\x00\x64\x02\x04\x00", // two operations
        b"\x30\x09\x02\x01\x01\x64\x02\x04\x00\x8a\x00", // a name in the wrong place
        b"\x04\x02ab",
        b"\x04",
        b"HTTP/1.1 400 Bad Request\r\n",
    ] {
        assert_eq!(violation(bytes), Some(Violation::NoMessage), "{}", bytes.escape_ascii());
    }
}

#[test]
fn result_code_has_one_to_four_bytes() {
    for code in [&b""[..], b"\x01\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00", &[0; 260]] {
        assert_eq!(violation(&done(1, code, b"")), Some(Violation::Outcome), "{code:?}");
    }
    for (code, number) in [(&b"\x31"[..], 49), (b"\x00\x31", 49), (b"\x00\x00\x00\x31", 49)] {
        let mut frames = Frames::new(BEFORE_TLS);
        frames.push(&done(1, code, b""));
        assert_eq!(frames.message().unwrap().0.outcome().map(|outcome| outcome.code), Some(number));
    }
    for (tag, body) in [
        (BIND_RESPONSE, &b""[..]),
        (SEARCH_DONE, b"\x0a\x01\x00\x04\x00"),
        (EXTENDED_RESPONSE, b"\x02\x01\x00\x04\x00\x04\x00"),
    ] {
        assert_eq!(violation(&message(1, &wrapped(tag, &[body]))), Some(Violation::Outcome), "{tag:x}");
    }
}

#[test]
fn notice_of_disconnection_ends_the_stream() {
    let notice = message(0, &wrapped(EXTENDED_RESPONSE, &[b"\x0a\x01\x34\x04\x00\x04\x00"]));
    let mut frames = Frames::new(BEFORE_TLS);
    frames.push(&[done(1, b"\x00", b""), notice, done(2, b"\x00", b"")].concat());
    assert_eq!(frames.whole(), done(1, b"\x00", b""));
    assert_eq!(frames.end(), Some(StreamEnd::Notice(52.into())));
    assert_eq!(end_of(&done(0, b"\x00", b""), BEFORE_TLS), Some(StreamEnd::Violation(Violation::Foreign)));
}

#[test]
fn memory_grows_with_received_bytes_and_not_with_announced_lengths() {
    // Refused at the header, and nothing after it is kept.
    let mut frames = Frames::new(1 << 20);
    frames.push(b"\x30\x84\x7f\xff\xff\xff");
    assert_eq!(frames.end(), Some(StreamEnd::Violation(Violation::TooLong(1 << 20))));
    let capacity = frames.capacity();
    for _ in 0..1_000 {
        frames.push(&[0; 65_536]);
    }
    assert_eq!(frames.capacity(), capacity);
    // An announced mebibyte uses only the memory of what has arrived.
    let mut frames = Frames::new(2 << 20);
    frames.push(&[&b"\x30\x83\x10\x00\x00\x02\x01\x01"[..], &[0; 100]].concat());
    assert!(frames.capacity() < 4_096, "{}", frames.capacity());
    for _ in 0..15 {
        frames.push(&[0; 65_536]);
    }
    assert!(frames.capacity() <= (1 << 20) + 8, "{}", frames.capacity());
}

#[test]
fn byte_by_byte_input_is_parsed_in_linear_time() {
    // A mebibyte in pieces of one byte: earlier bytes are not parsed again for each.
    let bytes = message(1, &wrapped(SEARCH_ENTRY, &[b"\x04\x00", &wrapped(OCTET_STRING, &[&vec![b'x'; 1 << 19]])]));
    let mut frames = Frames::new(1 << 20);
    let began = std::time::Instant::now();
    bytes.chunks(1).for_each(|byte| frames.push(byte));
    assert_eq!(frames.whole().len(), bytes.len());
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

/// Bytes that often resemble messages.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let text = || proptest::collection::vec(any::<u8>(), 0..200);
    let one = prop_oneof![
        4 => (1..200_000_u32, any::<[u8; 2]>(), ".{0,60}").prop_map(|(id, code, text)| done(id, &code, text.as_bytes())),
        4 => (1..9_u32, text()).prop_map(|(id, value)| {
            message(id, &wrapped(SEARCH_ENTRY, &[b"\x04\x00", &wrapped(OCTET_STRING, &[&value])]))
        }),
        1 => (0..40_usize).prop_map(|levels| message(1, &wrapped(SEARCH_ENTRY, &[&nested(levels)]))),
        1 => text(),
        1 => Just(message(0, &wrapped(EXTENDED_RESPONSE, &[b"\x0a\x01\x34\x04\x00\x04\x00"]))),
    ];
    proptest::collection::vec(one, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn fragmentation_does_not_change_the_result(bytes in stream(), most in 16_usize..2_000, cuts in any::<[u8; 8]>()) {
        invariants(&[&(most as u16).to_be_bytes()[..], &cuts, &bytes].concat());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        invariants(&bytes);
    }
}
