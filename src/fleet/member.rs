//! The living members as the last beat has shown them, those that have vanished, and the divisor of a share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use tokio::time::Instant;

/// The divisor considers counts for this long.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The divisor falls by one after this long.
const FALL: Duration = Duration::from_secs(60);
/// The most changes of the count that are remembered: one for each beat.
const MOST_COUNTS: usize = 400;
/// The most bytes of a record's text fields.
const LONGEST: usize = 64;
/// The most members.
pub(super) const MOST_MEMBERS: u32 = 512;
/// The most counts of a record.
const MOST_NAMED: usize = 64;
/// The most vanished nodes, and goodbyes, that are remembered.
const MOST_ABSENT: usize = 512;

/// A process: random, so that a restart and an upgrade are other members than the process before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct MemberId(pub(crate) u64);

impl MemberId {
    /// A new one.
    ///
    /// # Panics
    /// If the operating system has no random numbers: nothing may be decided then.
    #[must_use]
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 8];
        rand::fill(&mut bytes).expect("the system has random numbers");
        Self(u64::from_be_bytes(bytes))
    }

    /// As it stands in keys of the store.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 16)?;
        // `from_str_radix` alone would take a sign.
        let text = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A living member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its process.
    pub(crate) id: MemberId,
    /// Its node.
    pub(crate) node: Arc<str>,
    /// Its version of usher.
    pub(crate) version: Arc<str>,
    /// The digest of its configuration, without what differs between nodes.
    pub(crate) config: u64,
    /// What it has counted, by name, such as the users of a directory.
    pub(crate) counts: Counts,
}

/// Counts by name.
pub(crate) type Counts = BTreeMap<Box<str>, u64>;

impl Member {
    /// `time | config | length of node | node | number of counts | each: length of name, name, count | version`. The time is the store's, so that a record that was kept
    /// brings no dead member back.
    pub(super) fn encode(&self, time: u64) -> Vec<u8> {
        let mut record: Vec<u8> = [time, self.config].into_iter().flat_map(u64::to_be_bytes).collect();
        record.push(u8::try_from(self.node.len()).unwrap_or(u8::MAX));
        record.extend_from_slice(self.node.as_bytes());
        let counts = self.counts.iter().filter(|(name, _)| name.len() <= LONGEST).take(MOST_NAMED);
        record.push(u8::try_from(counts.clone().count()).unwrap_or_default());
        for (name, count) in counts {
            record.push(u8::try_from(name.len()).unwrap_or_default());
            record.extend_from_slice(name.as_bytes());
            record.extend(count.to_be_bytes());
        }
        record.extend_from_slice(self.version.as_bytes());
        record
    }

    /// What [`encode`](Self::encode) has made, and when.
    pub(super) fn decode(id: MemberId, record: &[u8]) -> Option<(Self, u64)> {
        let (time, rest) = record.split_first_chunk()?;
        let (config, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first()?;
        let (node, rest) = rest.split_at_checked(usize::from(*length))?;
        let (named, mut rest) = rest.split_first()?;
        let mut counts = Counts::new();
        for _ in 0..*named {
            let (length, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(*length))?;
            let (count, after) = after.split_first_chunk()?;
            counts.insert(std::str::from_utf8(name).ok()?.into(), u64::from_be_bytes(*count));
            rest = after;
        }
        let (time, config) = (u64::from_be_bytes(*time), u64::from_be_bytes(*config));
        let version = rest;
        let text = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).ok()?;
            let is_sound =
                !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic());
            is_sound.then(|| Arc::from(text))
        };
        Some((Self { id, node: text(node)?, version: text(version)?, config, counts }, time))
    }
}

/// The living members, this one included.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members(Vec<Member>);

impl Members {
    /// From a beat.
    pub(super) fn new(mut members: Vec<Member>) -> Self {
        members.sort_by(|one, other| (&one.node, one.id).cmp(&(&other.node, other.id)));
        members.dedup_by_key(|member| member.id);
        Self(members)
    }

    /// By node.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.0.iter()
    }

    /// The member of this id.
    #[must_use]
    pub(crate) fn get(&self, id: MemberId) -> Option<&Member> {
        self.iter().find(|member| member.id == id)
    }

    /// How many processes.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many nodes: during an upgrade a node has two processes, of which one takes logins.
    #[must_use]
    pub(crate) fn nodes(&self) -> u32 {
        let nodes: BTreeSet<&str> = self.iter().map(|member| &*member.node).collect();
        u32::try_from(nodes.len()).unwrap_or(u32::MAX)
    }
}

/// Nodes that have vanished: each may be dead, or cut off from the store and still have sessions.
#[derive(Debug, Default)]
pub(super) struct Absent {
    nodes: BTreeMap<Arc<str>, (MemberId, Instant)>,
    goodbyes: VecDeque<MemberId>,
}

impl Absent {
    /// A member ends, and says so.
    pub(super) fn goodbye(&mut self, id: MemberId) {
        self.nodes.retain(|_, (member, _)| *member != id);
        if self.has_left(id) {
            return;
        }
        if self.goodbyes.len() >= MOST_ABSENT {
            self.goodbyes.pop_front();
        }
        self.goodbyes.push_back(id);
    }

    /// Whether this member has said that it ends.
    pub(super) fn has_left(&self, id: MemberId) -> bool {
        self.goodbyes.contains(&id)
    }

    /// A heartbeat has shown the living members.
    pub(super) fn note_living(&mut self, before: &Members, living: &Members) {
        for member in before.iter().filter(|member| living.get(member.id).is_none()) {
            if !self.has_left(member.id) {
                self.nodes.insert(Arc::clone(&member.node), (member.id, Instant::now()));
            }
        }
        let is_known = |node: &str| living.iter().any(|member| *member.node == *node);
        self.nodes.retain(|node, (_, since)| since.elapsed() < REMEMBERED && !is_known(node));
        while self.nodes.len() > MOST_ABSENT {
            self.nodes.pop_first();
        }
    }

    /// These nodes, and for how long.
    pub(super) fn nodes(&self) -> Vec<(Arc<str>, Duration)> {
        self.nodes.iter().map(|(node, (_, since))| (Arc::clone(node), since.elapsed())).collect()
    }
}

/// By how many nodes a share is divided: the count rises at once, falls by one in 60 s, and is never more than the
/// most nodes of the last 10 minutes. While the store is unavailable it stays.
#[derive(Debug)]
pub(super) struct Divisor {
    value: u32,
    lower_since: Option<Instant>,
    counts: VecDeque<(Instant, u32)>,
}

impl Default for Divisor {
    fn default() -> Self {
        Self { value: 1, lower_since: None, counts: VecDeque::new() }
    }
}

impl Divisor {
    /// A beat has shown this number of nodes; returns the divisor.
    pub(super) fn count(&mut self, nodes: u32) -> u32 {
        let (now, nodes) = (Instant::now(), nodes.max(1));
        let is_old = |first: &(Instant, u32)| now.duration_since(first.0) > REMEMBERED;
        while self.counts.front().is_some_and(is_old) || self.counts.len() >= MOST_COUNTS {
            self.counts.pop_front();
        }
        self.counts.push_back((now, nodes));
        let most = self.counts.iter().map(|(_, count)| *count).max().unwrap_or(nodes);
        if nodes >= self.value {
            (self.value, self.lower_since) = (nodes, None);
        } else if now.duration_since(*self.lower_since.get_or_insert(now)) >= FALL {
            self.value = self.value.saturating_sub(1).max(nodes);
            self.lower_since = Some(now);
        }
        self.value = self.value.min(most);
        self.value
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn member(id: u64, node: &str) -> Member {
        Member {
            id: MemberId(id),
            node: node.into(),
            version: "1.0".into(),
            config: 7,
            counts: Counts::from([("default".into(), 9)]),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn node_that_vanishes_without_a_goodbye_is_absent_until_it_is_back() {
        let members = |ids: &[(u64, &str)]| Members::new(ids.iter().map(|(id, node)| member(*id, node)).collect());
        let (mut absent, all) = (Absent::default(), members(&[(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "d")]));
        // One says goodbye before the beat, one after it, one has another process.
        absent.goodbye(MemberId(2));
        absent.note_living(&all, &members(&[(1, "a"), (5, "d")]));
        let names = |absent: &Absent| absent.nodes().iter().map(|(node, _)| node.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&absent), ["c"]);
        advance(Duration::from_secs(30)).await;
        absent.note_living(&members(&[(1, "a"), (5, "d")]), &members(&[(1, "a")]));
        absent.goodbye(MemberId(5));
        assert_eq!(absent.nodes(), [("c".into(), Duration::from_secs(30))]);
        // It has started again.
        absent.note_living(&members(&[(1, "a")]), &members(&[(1, "a"), (6, "c")]));
        assert!(absent.nodes().is_empty());
        absent.note_living(&members(&[(1, "a"), (6, "c")]), &members(&[(1, "a")]));
        advance(REMEMBERED).await;
        absent.note_living(&members(&[(1, "a")]), &members(&[(1, "a")]));
        assert!(absent.nodes().is_empty());
        for number in 0..2_000 {
            absent.goodbye(MemberId(number));
            absent.note_living(&members(&[(9_000 + number, &number.to_string())]), &members(&[]));
        }
        assert_eq!((absent.nodes.len(), absent.goodbyes.len()), (MOST_ABSENT, MOST_ABSENT));
    }

    #[test]
    fn record_is_read_as_it_was_written() {
        let one = member(3, "mx1");
        assert_eq!(Member::decode(one.id, &one.encode(5)), Some((one.clone(), 5)));
        assert_eq!(MemberId::parse(one.id.to_string().as_bytes()), Some(one.id));
        for text in [&b""[..], b"3", b"000000000000000g", b"+000000000000003", b"00000000000000003"] {
            assert_eq!(MemberId::parse(text), None, "{text:?}");
        }
        let (mut control, mut long) = (one.encode(5), one.encode(5));
        control[17] = b'\n';
        long.extend([b'1'; 70]);
        for record in [&b""[..], &one.encode(5)[..17], &one.encode(5)[..19], &one.encode(5)[..24], &control, &long] {
            assert_eq!(Member::decode(one.id, record), None, "{record:?}");
        }
    }

    #[test]
    fn upgrade_is_one_node() {
        let members = Members::new(vec![member(2, "b"), member(1, "a"), member(3, "a"), member(3, "a")]);
        assert_eq!((members.len(), members.nodes()), (3, 2));
        assert_eq!(members.get(MemberId(2)).map(|member| &*member.node), Some("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn divisor_rises_at_once_and_falls_slowly() {
        let mut divisor = Divisor::default();
        assert_eq!([divisor.count(0), divisor.count(3), divisor.count(2)], [1, 3, 3]);
        advance(Duration::from_secs(59)).await;
        assert_eq!(divisor.count(2), 3);
        advance(Duration::from_secs(1)).await;
        assert_eq!([divisor.count(2), divisor.count(4)], [2, 4]);
        // A node that returns within a minute changes nothing.
        assert_eq!(divisor.count(3), 4);
        advance(Duration::from_secs(40)).await;
        assert_eq!([divisor.count(4), divisor.count(3)], [4, 4]);
        advance(Duration::from_secs(59)).await;
        assert_eq!(divisor.count(3), 4);
        // Most of the nodes are gone: one a minute.
        assert_eq!(divisor.count(50), 50);
        for minutes in 1..10 {
            advance(Duration::from_secs(60)).await;
            let _ = divisor.count(5);
            assert!(divisor.value >= 50 - minutes);
        }
        advance(Duration::from_secs(120)).await;
        assert_eq!(divisor.count(5), 5, "the most of the last ten minutes");
    }
}
