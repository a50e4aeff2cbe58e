//! What must hold for anything that the store may hold or send, also if a member of the fleet has sealed it.
//!
//! Not part of the product: built for tests and with the feature `internals` alone. Panics when an invariant is
//! violated.
#![allow(clippy::panic, reason = "a violated invariant is reported by a panic")]

use std::sync::LazyLock;

use super::link::Shown;
use super::marks::{MOST, Read, Table, bound};
use super::member::{Counts, Member, MemberId, Members};
use super::messages::{Envelope, Inbox, Judged};
use super::seal::{Purpose, Sealer};
use super::{Arg, LARGEST_MARK, MarkKind, Value};
use crate::base::labels::Label as _;

/// The members that live, the first of which is this process.
const LIVING: [MemberId; 2] = [MemberId(1), MemberId(2)];
/// The store's clock, in microseconds.
const NOW: u64 = 1_800_000_000_000_000;
/// Where a message comes.
const CHANNEL: &str = "usher:mail:c";

static SEALER: LazyLock<Sealer> = LazyLock::new(|| Sealer::for_tests(&[1], "mail"));

fn members() -> Members {
    let member = |id| Member { id, node: "mx1".into(), version: "1".into(), config: 1, counts: Counts::new() };
    Members::new(LIVING.map(member).to_vec())
}

/// A fuzz target. The first byte says what the rest is: the record of a member, a message or marks, each as it was
/// before it was sealed; a script's answer; or a sealed text. What is read has one spelling, is bounded, and is not taken
/// twice; what is not sealed is never read.
pub(crate) fn invariants(data: &[u8]) {
    let [what, rest @ ..] = data else { return };
    match what % 5 {
        0 => record(rest),
        1 => message(rest),
        2 => marks(rest),
        3 => answer(rest),
        _ => unsealed(rest),
    }
}

fn record(text: &[u8]) {
    let Some((member, time)) = Member::decode(MemberId(1), text) else { return };
    if member.counts.is_empty() {
        assert_eq!(member.encode(time), text, "a second spelling");
    }
    for shown in [&member.node, &member.version] {
        assert!(shown.len() <= 64 && shown.bytes().all(|byte| byte.is_ascii_graphic()), "{shown:?} is shown");
    }
}

fn message(text: &[u8]) {
    let Some(sealed) = SEALER.seal(Purpose::Message, CHANNEL.as_bytes(), text) else { return };
    let Ok(read) = Envelope::open(&SEALER, CHANNEL.as_bytes(), &sealed) else { return };
    let again = read.seal(&SEALER, CHANNEL).expect("it is sealed again");
    assert_eq!(SEALER.open(Purpose::Message, CHANNEL.as_bytes(), &again).as_deref(), Ok(text), "a second spelling");
    assert!(Envelope::open(&SEALER, b"another", &sealed).is_err(), "a message of another channel");
    let (inbox, members, own) = (Inbox::default(), members(), LIVING[0]);
    for _ in 0..100 {
        match inbox.judge(own, &members, NOW, read.clone(), false) {
            Judged::Taken(taken, from) => {
                assert!(from.id == LIVING[1] && taken.addressed.contains(&own), "not for this process");
                assert!(taken.time.abs_diff(NOW) <= 30_000_000, "stale");
                let second = inbox.judge(own, &members, NOW, read.clone(), false);
                assert!(matches!(second, Judged::Rejected(_)), "taken twice");
                return;
            }
            Judged::Held => assert!(members.get(read.from).is_none(), "a known member waits"),
            Judged::Left(id) => return assert!(members.get(id).is_none(), "a living member has left"),
            Judged::Own | Judged::Rejected(_) => break,
        }
    }
    assert!(inbox.held().len() <= 64, "too many wait");
}

/// Marks one after the other: two bytes of length, version, end, text.
fn marks(mut data: &[u8]) {
    let (own, members) = (LIVING[0], members());
    let mut table = Table::default();
    table.set((own, &members), (MarkKind::Names, &[], &[7; 32]), (1, None));
    while let Some((length, rest)) = data.split_first_chunk() {
        let (one, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        data = rest;
        let Some((numbers, text)) = one.split_first_chunk::<16>() else { continue };
        let [version, ends] = numbers.as_chunks().0 else { continue };
        let (version, ends) = (u64::from_be_bytes(*version), u64::from_be_bytes(*ends));
        let Some(sealed) = SEALER.seal(Purpose::Mark, &bound(b"field", version, ends), text) else { continue };
        let value = [format!("{version} {ends} ").as_bytes(), &sealed].concat();
        let first = table.read(own, NOW, &SEALER, b"field", &value);
        let second = table.read(own, NOW, &SEALER, b"field", &value);
        assert!(first == second || (first, second) == (Read::Changed, Read::Known), "read twice: {first:?} {second:?}");
        for (version, ends) in [(version ^ 1, ends), (version, ends ^ 1)] {
            let value = [format!("{version} {ends} ").as_bytes(), &sealed].concat();
            let read = table.read(own, NOW, &SEALER, b"field", &value);
            assert!(matches!(read, Read::Rejected(_)), "another version or end");
        }
    }
    let shown = table.marks();
    let standing = || MarkKind::ALL.iter().flat_map(|kind| shown.all(*kind));
    assert!(standing().count() <= MOST && shown.events_after(0).count() <= 256, "too many");
    for mark in standing().chain(shown.events_after(0).map(|(_, mark)| mark)) {
        assert!(mark.key.len().max(mark.body.len()) <= LARGEST_MARK, "too large");
    }
    // Whoever reads what this process writes knows the same.
    if table.names().is_none() {
        return;
    }
    table.reseal();
    let mut other = Table::default();
    while let Some(args) = table.unwritten(&SEALER) {
        let (marks, _) = args.get(2..).unwrap_or_default().as_chunks::<6>();
        for [field, version, ends, _, _, sealed] in marks {
            let [Arg::Bytes(field), Arg::Bytes(version), Arg::Bytes(ends), Arg::Bytes(sealed)] =
                [field, version, ends, sealed]
            else {
                panic!("not what the script takes")
            };
            let value = [version, b" ".as_slice(), ends, b" ", sealed].concat();
            assert_eq!(other.read(LIVING[1], NOW, &SEALER, field, &value), Read::Changed, "it is not read");
        }
    }
    let theirs = other.marks();
    assert!(standing().eq(MarkKind::ALL.iter().flat_map(|kind| theirs.all(*kind))), "another mark");
}

/// A value: nothing, a number, a text, or a list of values, by its first byte.
pub(crate) fn value(data: &mut &[u8], depth: u8) -> Option<Value> {
    let (kind, rest) = data.split_first()?;
    *data = rest;
    Some(match kind % 4 {
        0 => Value::Nil,
        1 => {
            let (number, rest) = data.split_first_chunk()?;
            *data = rest;
            Value::Int(i64::from_be_bytes(*number))
        }
        3 if depth > 0 => {
            let (count, rest) = data.split_first()?;
            *data = rest;
            Value::Array((0..*count).map_while(|_| value(data, depth - 1)).collect())
        }
        _ => {
            let (length, rest) = data.split_first()?;
            let (text, rest) = rest.split_at_checked(usize::from(*length))?;
            *data = rest;
            Value::Bytes(text.to_vec())
        }
    })
}

fn answer(mut data: &[u8]) {
    let Some(answer) = value(&mut data, 4) else { return };
    let Some(shown) = Shown::read(&answer) else { return };
    let mut table = Table::default();
    for (field, value) in &shown.marks {
        let read = table.read(LIVING[0], shown.time, &SEALER, field, value);
        assert!(matches!(read, Read::Rejected(_)), "a mark without a seal");
    }
    for (id, record) in &shown.members {
        if let Some(member) = MemberId::parse(id) {
            assert_eq!(member.to_string().as_bytes(), id.to_ascii_lowercase(), "a second spelling");
        }
        assert!(SEALER.open(Purpose::Member, id, record).is_err(), "a member without a seal");
    }
}

fn unsealed(data: &[u8]) {
    for purpose in [Purpose::Member, Purpose::Mark, Purpose::Message] {
        assert!(SEALER.open(purpose, b"", data).is_err(), "a record without a seal");
    }
    assert!(Envelope::open(&SEALER, CHANNEL.as_bytes(), data).is_err());
    let mut table = Table::default();
    assert!(matches!(table.read(LIVING[0], NOW, &SEALER, b"field", data), Read::Rejected(_)));
}
