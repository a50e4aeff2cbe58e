//! What the brakes of several nodes share, as plain values: the users whose changes were applied in the last minute,
//! the users whose changes are held back, and whether the brake is on. How they come and go is not known here.
//!
//! No route comes from another node: of a user that another node holds back this node learns a digest of the values
//! that are kept. Values of its own, or of the directory, that have the digest are used; any others are not.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::directory::Entry;

/// The most users of other nodes that are counted; more than any brake permits.
const MOST_RECENT: usize = 100_000;

/// A user among all nodes: nothing to others.
pub(crate) type BrakeId = [u8; 16];

/// A user with the values that the brake keeps: an id, then a digest of the values.
pub(crate) type KeptValues = [u8; 24];

/// How entries are named among nodes.
pub(crate) trait FleetNames: Send + Sync {
    /// Its id and its values; `None` as long as no names are known.
    fn name(&self, entry: &Entry) -> Option<KeptValues>;
}

/// The id in a name.
#[must_use]
pub(crate) fn id_of(name: &KeptValues) -> BrakeId {
    let mut id = BrakeId::default();
    id.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    id
}

/// What this node has for others.
#[derive(Debug, Clone)]
pub(crate) enum BrakeNews {
    /// A change that counts was applied; the values before.
    Changed(Arc<Entry>),
    /// A change is held back; the values that are kept.
    Held(Arc<Entry>),
    /// The kept values are the directory's again.
    Back(Arc<Entry>),
    /// Too many users have changed: all are to hold back.
    Tripped,
    /// An administrator has confirmed the changes, and those within this time.
    Confirmed(Duration),
}

/// How the brake is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BrakeStatus {
    /// Whether it is on.
    pub(crate) on: bool,
    /// How many changes it defers.
    pub(crate) deferred: usize,
    /// How often it has gone on or off.
    pub(crate) turns: u64,
}

/// What is held back anywhere.
pub(crate) struct HeldSet {
    names: Arc<dyn FleetNames>,
    kept: BTreeSet<KeptValues>,
}

/// What is held back of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeldValues {
    /// Nothing.
    No,
    /// A change of these values: they stay.
    Kept,
    /// These values, or others that are not the kept ones.
    Others,
}

impl HeldSet {
    /// These.
    #[must_use]
    pub(crate) fn new(names: Arc<dyn FleetNames>, kept: BTreeSet<KeptValues>) -> Self {
        Self { names, kept }
    }

    /// What is held back of this entry.
    pub(super) fn of(&self, entry: &Entry) -> HeldValues {
        if self.kept.is_empty() {
            return HeldValues::No;
        }
        let Some(name) = self.names.name(entry) else { return HeldValues::No };
        let (mut first, mut last) = ([0; 24], [u8::MAX; 24]);
        for end in [&mut first, &mut last] {
            end.iter_mut().zip(id_of(&name)).for_each(|(to, from)| *to = from);
        }
        if self.kept.contains(&name) {
            HeldValues::Kept
        } else if self.kept.range(first..=last).next().is_some() {
            HeldValues::Others
        } else {
            HeldValues::No
        }
    }
}

impl fmt::Debug for HeldSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldSet({})", self.kept.len())
    }
}

/// The changes of the last minute at all nodes, as far as they are known here.
pub(super) struct FleetCount {
    names: Arc<dyn FleetNames>,
    recent: HashMap<BrakeId, Instant>,
    /// The largest number of users that a node knows.
    users: usize,
}

impl fmt::Debug for FleetCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FleetCount({} of {})", self.recent.len(), self.users)
    }
}

impl FleetCount {
    pub(super) fn new(names: Arc<dyn FleetNames>) -> Self {
        Self { names, recent: HashMap::new(), users: 0 }
    }

    /// The largest number of users that a node knows.
    pub(super) fn users(&self) -> usize {
        self.users
    }

    /// A change was applied here.
    pub(super) fn changed(&mut self, before: &Entry, now: Instant) {
        if let Some(name) = self.names.name(before) {
            self.recent.insert(id_of(&name), now);
        }
    }

    /// What is known of all nodes: users, and how long ago they were changed.
    pub(super) fn heard(&mut self, ids: impl IntoIterator<Item = (BrakeId, Duration)>, users: usize, now: Instant) {
        self.users = users;
        let room = MOST_RECENT.saturating_sub(self.recent.len());
        for (id, age) in ids.into_iter().take(room) {
            self.recent.entry(id).or_insert(now.checked_sub(age).unwrap_or(now));
        }
    }

    /// How many users have changed within this time, with these.
    pub(super) fn count<'a>(&mut self, more: impl Iterator<Item = &'a Entry>, within: Duration, now: Instant) -> usize {
        self.recent.retain(|_, at| now.saturating_duration_since(*at) < within);
        let more: BTreeSet<_> = more.filter_map(|entry| self.names.name(entry)).map(|name| id_of(&name)).collect();
        self.recent.len() + more.iter().filter(|id| !self.recent.contains_key(*id)).count()
    }

    /// The count begins anew.
    pub(super) fn clear(&mut self) {
        self.recent.clear();
    }
}
