//! Marks: what the fleet remembers although the store may forget it, and though a message may be lost.
//!
//! A standing mark (a drain, the brake, on or off) says how things are: of two for the same thing the later version
//! counts, every member keeps all of them and writes them again when the store has lost them. Whoever owns the
//! store can put an old one back for a process that knows no later one, and no more. An event (a kick, a cache drop) happens once
//! in each process: it is addressed to the processes that live when it is written (those that come within its time
//! are added by its writer), and its number counts once, so that no event can be had again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use super::clock::micros_of;
use super::member::{MemberId, Members};
use super::replay::Replays;
use super::script::Arg;
use super::seal::{Names, Purpose, SealError, Sealer};
use crate::base::labels::{Label as _, labels};

/// The most marks in the store.
pub(super) const MOST: usize = 1_000;
/// Of these, events: many kicks leave places for drains and the brake.
pub(super) const MOST_EVENTS: usize = MOST / 2;
/// The most bytes of a mark's key, and of its body.
pub(crate) const LARGEST_MARK: usize = 4_096;
/// How long an event can be read.
pub(crate) const EVENT: Duration = Duration::from_secs(60);
/// How many events are kept for those who act on them.
const EVENTS: usize = 256;
/// How many marks one script writes.
const BATCH: usize = 64;
/// The end of what has none: the year 9999, in milliseconds.
const NEVER: u64 = 253_402_300_799_000;
/// The field of the fleet's names, which no name is needed for.
pub(super) const NAMES_FIELD: &str = "names";

labels! {
    /// What a mark says.
    pub(crate) enum MarkKind {
        /// The key of the fleet's names; sealed as all are.
        Names => "names",
        /// A backend is out of service, or in service again.
        Drain => "drain",
        /// The brake holds changes back, or no longer.
        Brake => "brake",
        /// Sessions are to end.
        Kick => "kick",
        /// Decisions are to be forgotten.
        CacheDrop => "cache_drop",
    }
}

impl MarkKind {
    /// Whether it happens once in each process.
    #[must_use]
    pub(crate) const fn is_event(self) -> bool {
        match self {
            Self::Kick | Self::CacheDrop => true,
            Self::Names | Self::Drain | Self::Brake => false,
        }
    }
}

/// A mark as its readers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// What it says.
    pub(crate) kind: MarkKind,
    /// Of what: such as the name of a backend; empty for an event.
    pub(crate) key: Box<[u8]>,
    /// More of it.
    pub(crate) body: Box<[u8]>,
    /// When it was set, by the store's clock, in microseconds; of two the higher counts.
    pub(crate) version: u64,
    /// Who set it.
    pub(crate) origin: MemberId,
}

/// The marks in force.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks {
    standing: BTreeMap<(&'static str, Box<[u8]>), Arc<Mark>>,
    events: VecDeque<(u64, Arc<Mark>)>,
}

impl Marks {
    /// The standing mark of this kind and key.
    #[must_use]
    pub(crate) fn get(&self, kind: MarkKind, key: &[u8]) -> Option<&Arc<Mark>> {
        self.standing.get(&(kind.label(), Box::from(key)))
    }

    /// All standing marks of this kind.
    pub(crate) fn all(&self, kind: MarkKind) -> impl Iterator<Item = &Arc<Mark>> {
        self.standing.values().filter(move |mark| mark.kind == kind)
    }

    /// The events of other members after the one with this number (0: all that are kept), each with its number.
    pub(crate) fn events_after(&self, number: u64) -> impl Iterator<Item = (u64, &Arc<Mark>)> {
        self.events.iter().filter(move |(at, _)| *at > number).map(|(at, mark)| (*at, mark))
    }
}

/// A mark with what is needed to write it.
#[derive(Debug)]
struct Entry {
    mark: Arc<Mark>,
    /// Of an event: its number.
    number: u64,
    /// Of an event: for whom.
    addressed: Vec<MemberId>,
    /// Unix milliseconds.
    ends: u64,
    /// It has to be written.
    dirty: bool,
    /// What it replaces.
    replaces: Replaces,
    /// An event ends by this machine's clock as well: the store's may be put back.
    since: Instant,
}

/// What a mark may replace in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Replaces {
    /// A mark with an earlier version.
    #[default]
    Earlier,
    /// Itself too, sealed under another line.
    Itself,
    /// Whatever is there: it is no mark.
    Anything,
}

impl Replaces {
    const fn code(self) -> i64 {
        match self {
            Self::Earlier => 0,
            Self::Itself => 1,
            Self::Anything => 2,
        }
    }
}

/// All marks that this member knows.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<(MarkKind, Box<[u8]>), Entry>,
    replays: Replays,
    next_event: u64,
    read_events: u64,
    marks: Arc<Marks>,
}

/// What reading a mark has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Something that is in force from now on.
    Changed,
    /// Nothing new.
    Known,
    /// It is no mark of this fleet.
    Rejected(SealError),
}

impl Table {
    /// The marks in force.
    pub(super) fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks)
    }

    /// Sets a standing mark, or adds an event. `false`: it has no place.
    pub(super) fn set(
        &mut self,
        (own, members): (MemberId, &Members),
        (kind, key, body): (MarkKind, &[u8], &[u8]),
        (now, lasts): (u64, Option<Duration>),
    ) -> bool {
        let number = if kind.is_event() {
            self.next_event += 1;
            self.next_event
        } else {
            0
        };
        let key: Box<[u8]> =
            if kind.is_event() { [own.0.to_be_bytes(), number.to_be_bytes()].concat().into() } else { key.into() };
        let place = (kind, key);
        let known = self.entries.get(&place).map(|entry| entry.mark.version);
        if known.is_none() && !self.has_place(kind) || place.1.len().max(body.len()) > LARGEST_MARK {
            return false;
        }
        let version = known.map_or(now, |known| now.max(known.saturating_add(1)));
        let lasts = if kind.is_event() { Some(EVENT) } else { lasts };
        let ends = lasts.map_or(NEVER, |lasts| (now / 1_000).saturating_add(micros_of(lasts) / 1_000));
        let addressed = if kind.is_event() { others(own, members).collect() } else { Vec::new() };
        let mark = Arc::new(Mark { kind, key: place.1.clone(), body: body.into(), version, origin: own });
        let entry =
            Entry { mark, number, addressed, ends, dirty: true, replaces: Replaces::Earlier, since: Instant::now() };
        self.entries.insert(place, entry);
        self.publish();
        true
    }

    fn has_place(&self, kind: MarkKind) -> bool {
        let count = self.entries.values().filter(|entry| entry.mark.kind.is_event() == kind.is_event()).count();
        count < if kind.is_event() { MOST_EVENTS } else { MOST }
    }

    /// Reads a mark as the store has it.
    pub(super) fn read(&mut self, own: MemberId, now: u64, sealer: &Sealer, field: &[u8], value: &[u8]) -> Read {
        match Stored::open(sealer, field, value) {
            Ok(stored) => self.take(own, now, stored),
            Err(error) => {
                // Whoever put it there also keeps others from reading the one that belongs there.
                if let Some(entry) = self.of_field(field) {
                    (entry.dirty, entry.replaces) = (true, Replaces::Anything);
                }
                Read::Rejected(error)
            }
        }
    }

    fn of_field(&mut self, field: &[u8]) -> Option<&mut Entry> {
        let names = self.names();
        self.entries.values_mut().find(|entry| field_of(names.as_ref(), &entry.mark).as_bytes() == field)
    }

    fn take(&mut self, own: MemberId, now: u64, stored: Stored) -> Read {
        let Stored { mark, number, addressed, ends } = stored;
        if ends <= now / 1_000 {
            return Read::Known;
        }
        if mark.kind.is_event() {
            if mark.origin == own || !addressed.contains(&own) || !self.replays.is_new(mark.origin, number) {
                return Read::Known;
            }
            self.read_events += 1;
            let mut marks = (*self.marks).clone();
            marks.events.push_back((self.read_events, Arc::new(mark)));
            while marks.events.len() > EVENTS {
                marks.events.pop_front();
            }
            self.marks = Arc::new(marks);
            return Read::Changed;
        }
        let place = (mark.kind, mark.key.clone());
        if let Some(entry) = self.entries.get_mut(&place)
            && entry.mark.version >= mark.version
        {
            // Ours is later: the store has lost it.
            entry.dirty |= entry.mark.version > mark.version;
            return Read::Known;
        }
        if !self.entries.contains_key(&place) && !self.has_place(mark.kind) {
            return Read::Known;
        }
        let mark = Arc::new(mark);
        let (addressed, replaces, since) = (Vec::new(), Replaces::Earlier, Instant::now());
        let entry = Entry { mark, number, addressed, ends, dirty: false, replaces, since };
        self.entries.insert(place, entry);
        self.publish();
        Read::Changed
    }

    /// The store has lost everything, or may have: all standing marks and own events are written again, except for
    /// those with these fields, which it has.
    pub(super) fn write_missing(&mut self, present: &[&[u8]]) {
        let names = self.names();
        for entry in self.entries.values_mut() {
            let field = field_of(names.as_ref(), &entry.mark);
            entry.dirty |= !present.contains(&field.as_bytes());
        }
    }

    /// Ends what has its time behind it, and addresses events to members that have come.
    pub(super) fn refresh(&mut self, own: MemberId, members: &Members, now: u64) -> bool {
        let before = self.entries.len();
        let is_over = |entry: &Entry| entry.mark.kind.is_event() && entry.since.elapsed() >= EVENT;
        self.entries.retain(|_, entry| entry.ends > now / 1_000 && !is_over(entry));
        for entry in self.entries.values_mut().filter(|entry| entry.mark.kind.is_event()) {
            let new: Vec<_> = others(own, members).filter(|member| !entry.addressed.contains(member)).collect();
            if !new.is_empty() {
                entry.addressed.extend(new);
                let version = entry.mark.version.saturating_add(1);
                entry.mark = Arc::new(Mark { version, ..(*entry.mark).clone() });
                entry.dirty = true;
            }
        }
        let ended = self.entries.len() != before;
        if ended {
            self.publish();
        }
        ended
    }

    /// The arguments of the script for marks that have to be written, if any: at most a batch. They count as written.
    pub(super) fn unwritten(&mut self, sealer: &Sealer) -> Option<Vec<Arg>> {
        let names = self.names();
        let mut args = [MOST, MOST_EVENTS].map(|most| Arg::Int(i64::try_from(most).unwrap_or(i64::MAX))).to_vec();
        let empty = args.len();
        for entry in self.entries.values_mut().filter(|entry| entry.dirty).take(BATCH) {
            // Without the fleet's names only they can be written.
            if names.is_none() && entry.mark.kind != MarkKind::Names {
                continue;
            }
            let field = field_of(names.as_ref(), &entry.mark);
            let Some(sealed) = entry.seal(sealer, &field) else { continue };
            let replaces = std::mem::take(&mut entry.replaces).code();
            args.extend([Arg::from(field.as_str()), Arg::from(entry.mark.version.to_string().as_str())]);
            args.extend([Arg::from(entry.ends.to_string().as_str()), Arg::Int(replaces)]);
            args.extend([Arg::Int(entry.mark.kind.is_event().into()), Arg::Bytes(sealed)]);
            entry.dirty = false;
        }
        (args.len() > empty).then_some(args)
    }

    /// The lines of the secret have changed: everything is sealed again, so that the oldest line can be removed.
    pub(super) fn reseal(&mut self) {
        for entry in self.entries.values_mut() {
            entry.dirty = true;
            if entry.replaces == Replaces::Earlier {
                entry.replaces = Replaces::Itself;
            }
        }
    }

    /// What was to be written may not have been.
    pub(super) fn unsure(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.dirty = true);
    }

    /// The fleet's names, once they are known.
    pub(super) fn names(&self) -> Option<Names> {
        Names::read(&self.entries.get(&(MarkKind::Names, Box::default()))?.mark.body)
    }

    fn publish(&mut self) {
        let standing = self.entries.values().filter(|entry| !entry.mark.kind.is_event());
        let standing = standing.filter(|entry| entry.mark.kind != MarkKind::Names);
        let standing =
            standing.map(|entry| ((entry.mark.kind.label(), entry.mark.key.clone()), Arc::clone(&entry.mark)));
        self.marks = Arc::new(Marks { standing: standing.collect(), events: self.marks.events.clone() });
    }
}

fn others(own: MemberId, members: &Members) -> impl Iterator<Item = MemberId> {
    members.iter().map(|member| member.id).filter(move |member| *member != own)
}

/// Where a mark stands in the store: a keyed digest.
fn field_of(names: Option<&Names>, mark: &Mark) -> String {
    match names {
        Some(names) if mark.kind != MarkKind::Names => {
            URL_SAFE_NO_PAD.encode(names.id("mark", &[mark.kind.label().as_bytes(), &mark.key]).0)
        }
        Some(_) | None => NAMES_FIELD.to_owned(),
    }
}

impl Entry {
    fn seal(&self, sealer: &Sealer, field: &str) -> Option<Vec<u8>> {
        let Self { mark, number, addressed, ends, .. } = self;
        let mut text = Vec::with_capacity(64 + mark.key.len() + mark.body.len() + 8 * addressed.len());
        text.extend(mark.origin.0.to_be_bytes());
        text.extend(number.to_be_bytes());
        for part in [mark.kind.label().as_bytes(), &mark.key] {
            text.extend(u16::try_from(part.len()).ok()?.to_be_bytes());
            text.extend(part);
        }
        text.extend(u16::try_from(addressed.len()).ok()?.to_be_bytes());
        addressed.iter().for_each(|member| text.extend(member.0.to_be_bytes()));
        text.extend(&mark.body);
        sealer.seal(Purpose::Mark, &bound(field.as_bytes(), mark.version, *ends), &text)
    }
}

pub(super) fn bound(field: &[u8], version: u64, ends: u64) -> Vec<u8> {
    [field, b"|", version.to_string().as_bytes(), b"|", ends.to_string().as_bytes()].concat()
}

/// A part of a text, behind its length.
fn part(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, text) = text.split_first_chunk()?;
    text.split_at_checked(u16::from_be_bytes(*length).into())
}

/// A mark as it was read.
#[derive(Debug)]
struct Stored {
    mark: Mark,
    number: u64,
    addressed: Vec<MemberId>,
    ends: u64,
}

impl Stored {
    /// `version ends sealed`.
    fn open(sealer: &Sealer, field: &[u8], value: &[u8]) -> Result<Self, SealError> {
        let mut parts = value.splitn(3, |byte| *byte == b' ');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
        let (version, ends) = number().zip(number()).ok_or(SealError::Garbage)?;
        let sealed = parts.next().ok_or(SealError::Garbage)?;
        let text = sealer.open(Purpose::Mark, &bound(field, version, ends), sealed)?;
        // Only a member of another version seals what is not understood.
        Self::decode(&text, version, ends).ok_or(SealError::Garbage)
    }

    fn decode(text: &[u8], version: u64, ends: u64) -> Option<Self> {
        let (origin, text) = text.split_first_chunk()?;
        let (number, text) = text.split_first_chunk()?;
        let (kind, text) = part(text)?;
        let (key, text) = part(text)?;
        let kind = MarkKind::ALL.iter().copied().find(|known| known.label().as_bytes() == kind)?;
        let (count, text) = text.split_first_chunk()?;
        let (ids, body) = text.split_at_checked(8 * usize::from(u16::from_be_bytes(*count)))?;
        let (ids, _) = ids.as_chunks();
        let addressed = ids.iter().map(|id| MemberId(u64::from_be_bytes(*id))).collect();
        let origin = MemberId(u64::from_be_bytes(*origin));
        let mark = Mark { kind, key: key.into(), body: body.into(), version, origin };
        (mark.key.len().max(mark.body.len()) <= LARGEST_MARK).then_some(Self {
            mark,
            number: u64::from_be_bytes(*number),
            addressed,
            ends,
        })
    }
}
