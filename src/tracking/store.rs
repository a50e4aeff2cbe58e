//! The entries that matter to usher, each with its values in force.
//!
//! An entry is added when a bind has authenticated its user, or when the watch has reported a change; it stays
//! while it has sessions or a cached decision. So memory depends on the active users and not on the size of the
//! directory: about 300 bytes each, bounded by the cache and the connection limits. The watch is the newest
//! source, and a floor under every reply (`known/floor.rs`): what a lagging replica returns is overridden
//! ([`TrackedEntries::reconcile`]). Knows nothing of routes and sessions, and takes no action: see `follow`.

mod floor;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::directory::{Entry, EntryId};

pub use floor::Precedence;

/// How long a change of an entry without logins is kept: the assumed maximum lag of a replica.
const LAG: Duration = Duration::from_secs(10 * 60);

/// A change deferred by the brake.
#[derive(Debug, Clone)]
pub enum DeferredChange {
    /// The entry has these values.
    Entry(Arc<Entry>),
    /// The entry is deleted.
    Deleted,
}

/// A tracked entry.
#[derive(Debug, Clone)]
pub struct TrackedEntry {
    /// The values in force.
    pub entry: Arc<Entry>,
    /// The change that the brake has deferred.
    pub deferred: Option<DeferredChange>,
    /// The watch has reported its deletion.
    pub deleted: bool,
    /// When a bind last authenticated this user; `None`: known from the watch only.
    pub proven_at: Option<Instant>,
    /// When its values last changed, according to the watch.
    pub changed_at: Option<Instant>,
    /// The version of that change. Later versions without changed values, such as those of logins, do not raise
    /// the floor.
    floor: Option<Box<str>>,
    /// The server that reported it.
    reported_by: Option<Arc<str>>,
    /// Since when the watched server, another than the one that reported the change, returns an older version.
    older_since: Option<Instant>,
    /// The watch has reported this version, or that it is unchanged.
    reported: bool,
    /// When it was last used or reported.
    seen_at: Instant,
    round: u32,
}

/// How a server's reply about an entry is to be used.
#[derive(Debug, Clone)]
pub enum Reconciled {
    /// As returned.
    AsReported,
    /// Replaced by these values, which are newer or kept by the brake.
    Replaced(Arc<Entry>),
    /// The entry was deleted; that server does not know it yet.
    Deleted,
}

/// The tracked entries.
#[derive(Debug)]
pub struct TrackedEntries {
    inner: Mutex<TrackedInner>,
    limit: usize,
    life: Duration,
    changed: Notify,
}

#[derive(Debug, Default)]
struct TrackedInner {
    entries: HashMap<TrackingKey, TrackedEntry>,
    keys_by_dn: HashMap<Arc<str>, TrackingKey>,
    /// Entries with a deferred change.
    deferred: HashSet<TrackingKey>,
    /// The last number given to an entry without an id.
    last_dn_number: u64,
    /// Entries known from the watch only, oldest first: they are evicted first.
    changed_only: VecDeque<TrackingKey>,
    round: u32,
    braked: bool,
    source: floor::WatchSource,
    /// When any entry's values last changed, according to the watch.
    last_changed: Option<Instant>,
}

/// Identifies a tracked entry: by its id, or else by its DN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrackingKey {
    /// By the id, which survives a rename.
    Id(EntryId),
    /// By a number assigned to its DN only.
    Dn(u64),
}

impl TrackedEntries {
    /// An empty store for at most `limit` entries, each kept for `life` after its last bind.
    #[must_use]
    pub fn new(limit: usize, life: Duration) -> Self {
        Self { inner: Mutex::default(), limit, life, changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, TrackedInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an entry authenticated by a bind. The values that the watch compares with stay unchanged: these
    /// may be older than what it has reported. Returns whether a change of the entry would be noticed while
    /// changes are reported: it would not without room to track it.
    pub fn record_login(&self, entry: &Arc<Entry>) -> bool {
        let now = Instant::now();
        let mut inner = self.lock();
        let key = inner.find(entry.version.id, Some(&entry.dn)).unwrap_or_else(|| inner.key_for(entry));
        if let Some(tracked) = inner.entries.get_mut(&key) {
            (tracked.proven_at, tracked.seen_at) = (Some(now), now);
            return true;
        }
        if inner.has_room(self.limit) {
            inner.insert(key, Arc::clone(entry), Some(now), None);
            return true;
        }
        inner.source.reporting().is_none()
    }

    /// Records an entry known from the watch only, for replicas that lag.
    pub fn record_change(&self, entry: &Arc<Entry>) {
        let now = Instant::now();
        let mut inner = self.lock();
        let key = inner.key_for(entry);
        if inner.entries.contains_key(&key) || inner.has_room(self.limit) {
            inner.insert(key, Arc::clone(entry), None, Some(now));
            inner.changed_only.push_back(key);
        }
    }

    /// Tracks an entry that has sessions, by the version that a session was logged in with, unless it is
    /// tracked already. It is returned even if there is no room to store it.
    pub fn track(&self, entry: &Arc<Entry>) -> (TrackingKey, TrackedEntry) {
        let now = Instant::now();
        let mut inner = self.lock();
        let key = inner.find(entry.version.id, Some(&entry.dn)).unwrap_or_else(|| inner.key_for(entry));
        if let Some(tracked) = inner.entries.get_mut(&key) {
            tracked.proven_at.get_or_insert(now);
            return (key, tracked.clone());
        }
        if inner.has_room(self.limit) {
            inner.insert(key, Arc::clone(entry), Some(now), None);
        }
        (key, TrackedEntry::new(Arc::clone(entry), Some(now), None, &inner.source, inner.round))
    }

    /// How a server's reply about this entry is to be used.
    #[must_use]
    pub fn reconcile(&self, shown: &Entry) -> Reconciled {
        let inner = self.lock();
        let Some(tracked) = inner.find(shown.version.id, Some(&shown.dn)).and_then(|key| inner.entries.get(&key))
        else {
            return Reconciled::AsReported;
        };
        if tracked.deleted {
            return if tracked.is_recreated(shown) { Reconciled::AsReported } else { Reconciled::Deleted };
        }
        let has_caught_up = inner.is_as_new(tracked, shown, None);
        if inner.braked
            && tracked.proven_at.is_some()
            && (tracked.deferred.is_some() || shown.route_differs(&tracked.entry))
        {
            // A lagging reply must not override what the brake does not cover, such as a hold.
            let newest = if has_caught_up { shown } else { &tracked.entry };
            return Reconciled::Replaced(Arc::new(newest.with_route_of(&tracked.entry)));
        }
        if has_caught_up { Reconciled::AsReported } else { Reconciled::Replaced(Arc::clone(&tracked.entry)) }
    }

    /// An entry by its DN.
    #[must_use]
    pub fn by_dn(&self, dn: &Arc<str>) -> Option<TrackedEntry> {
        let inner = self.lock();
        inner.find(None, Some(dn)).and_then(|key| inner.entries.get(&key)).cloned()
    }

    /// Waits for the next change of any entry. To be created before the state is read.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        let mut notified = Box::pin(self.changed.notified());
        notified.as_mut().enable();
        notified
    }

    // The rest is for `follow`, the only module that changes values.

    /// Marks an entry as reported in the current refresh, and returns it.
    pub fn observe(&self, id: Option<EntryId>, dn: Option<&Arc<str>>) -> Option<(TrackingKey, TrackedEntry)> {
        let mut inner = self.lock();
        let mut key = inner.find(id, dn)?;
        if let (Some(id), TrackingKey::Dn(_)) = (id, key) {
            key = inner.rekey(key, TrackingKey::Id(id));
        }
        let round = inner.round;
        let tracked = inner.entries.get_mut(&key)?;
        tracked.round = round;
        tracked.reported = true;
        Some((key, tracked.clone()))
    }

    /// The same for entries of which only the existence is reported.
    pub fn observe_present(&self, ids: &[EntryId]) {
        let mut inner = self.lock();
        let round = inner.round;
        for id in ids {
            if let Some(tracked) = inner.entries.get_mut(&TrackingKey::Id(*id)) {
                tracked.round = round;
                tracked.reported = true;
            }
        }
    }

    /// Begins a refresh: entries observed from now on exist.
    pub fn begin_round(&self) {
        let mut inner = self.lock();
        inner.round = inner.round.wrapping_add(1);
    }

    /// Entries not observed in this refresh.
    #[must_use]
    pub fn unobserved(&self) -> Vec<(TrackingKey, TrackedEntry)> {
        let inner = self.lock();
        let missing = inner.entries.iter().filter(|(_, tracked)| tracked.round != inner.round && !tracked.deleted);
        missing.map(|(key, tracked)| (*key, tracked.clone())).collect()
    }

    /// Puts values in force.
    pub fn apply(&self, key: TrackingKey, entry: Arc<Entry>, deferred: Option<DeferredChange>) {
        self.change(key, deferred, |tracked| {
            tracked.entry = entry;
            tracked.deleted = false;
        });
    }

    /// Takes over a newer version with the same values.
    pub fn refresh(&self, key: TrackingKey, entry: Arc<Entry>) {
        let mut inner = self.lock();
        if let Some(tracked) = inner.entries.get_mut(&key) {
            tracked.refresh(entry);
        }
        inner.set_deferred(key, None);
    }

    /// Defers a change.
    pub fn defer(&self, key: TrackingKey, deferred: DeferredChange) {
        self.lock().set_deferred(key, Some(deferred));
    }

    /// Marks an entry as deleted.
    pub fn mark_deleted(&self, key: TrackingKey) {
        self.change(key, None, |tracked| tracked.deleted = true);
    }

    fn change(&self, key: TrackingKey, deferred: Option<DeferredChange>, change: impl FnOnce(&mut TrackedEntry)) {
        {
            let inner = &mut *self.lock();
            inner.set_deferred(key, deferred);
            let Some(tracked) = inner.entries.get_mut(&key) else { return };
            let old = Arc::clone(&tracked.entry.dn);
            change(tracked);
            tracked.set_floor(&inner.source);
            inner.last_changed = tracked.changed_at;
            let new = Arc::clone(&tracked.entry.dn);
            if old != new {
                // The old DN may belong to another entry by now.
                if inner.keys_by_dn.get(&old) == Some(&key) {
                    inner.keys_by_dn.remove(&old);
                }
                inner.keys_by_dn.insert(new, key);
            }
        }
        self.changed.notify_waiters();
    }

    /// Whether the brake is on: then [`TrackedEntries::reconcile`] keeps the routes of known users.
    pub fn brake(&self, on: bool) {
        self.lock().braked = on;
    }

    /// All entries with a deferred change.
    #[must_use]
    pub fn deferred(&self) -> Vec<(TrackingKey, TrackedEntry)> {
        let inner = self.lock();
        inner.deferred.iter().filter_map(|key| Some((*key, inner.entries.get(key)?.clone()))).collect()
    }

    /// The number of deferred changes.
    #[must_use]
    pub fn count_deferred(&self) -> usize {
        self.lock().deferred.len()
    }

    /// The number of known users.
    #[must_use]
    pub fn users(&self) -> usize {
        self.lock().entries.values().filter(|tracked| tracked.proven_at.is_some() && !tracked.deleted).count()
    }

    /// Removes entries that are no longer needed.
    pub fn sweep(&self, has_sessions: impl Fn(&Arc<str>) -> bool) {
        // Sessions are looked up without holding this lock.
        let candidates: Vec<(TrackingKey, Arc<str>)> = {
            let inner = self.lock();
            let idle = inner.entries.iter().filter(|(_, tracked)| {
                let proven_at = tracked.proven_at.is_some_and(|at| at.elapsed() < self.life);
                !proven_at && tracked.deferred.is_none() && tracked.seen_at.elapsed() >= LAG.min(self.life)
            });
            idle.map(|(key, tracked)| (*key, Arc::clone(&tracked.entry.dn))).collect()
        };
        let idle: Vec<TrackingKey> =
            candidates.into_iter().filter(|(_, dn)| !has_sessions(dn)).map(|(key, _)| key).collect();
        let mut inner = self.lock();
        idle.into_iter().for_each(|key| inner.remove(key));
        let TrackedInner { changed_only, entries, .. } = &mut *inner;
        changed_only.retain(|key| entries.get(key).is_some_and(|tracked| tracked.proven_at.is_none()));
    }
}

impl TrackedEntry {
    fn new(
        entry: Arc<Entry>,
        proven_at: Option<Instant>,
        changed_at: Option<Instant>,
        source: &floor::WatchSource,
        round: u32,
    ) -> Self {
        let floor = changed_at.and_then(|_| entry.version.revision.clone());
        let reported_by = changed_at.and_then(|_| source.reporting());
        let (seen, reported, older_since) = (Instant::now(), changed_at.is_some(), None);
        Self {
            entry,
            deferred: None,
            deleted: false,
            proven_at,
            changed_at,
            floor,
            reported_by,
            older_since,
            reported,
            seen_at: seen,
            round,
        }
    }
}

impl TrackedInner {
    /// The key of an entry not found by its id. A DN that passes to another entry does not pass on its key.
    fn key_for(&mut self, entry: &Entry) -> TrackingKey {
        match (entry.version.id, self.keys_by_dn.get(&entry.dn)) {
            (Some(id), _) => TrackingKey::Id(id),
            (None, Some(key @ TrackingKey::Dn(_))) => *key,
            (None, Some(TrackingKey::Id(_)) | None) => {
                self.last_dn_number += 1;
                TrackingKey::Dn(self.last_dn_number)
            }
        }
    }

    /// Whether there is room for one more entry; evicts entries known from the watch only.
    fn has_room(&mut self, limit: usize) -> bool {
        while self.entries.len() >= limit {
            let Some(key) = self.changed_only.pop_front() else { return false };
            if self.entries.get(&key).is_some_and(|tracked| tracked.proven_at.is_none() && tracked.deferred.is_none()) {
                self.remove(key);
            }
        }
        true
    }

    fn remove(&mut self, key: TrackingKey) {
        if let Some(tracked) = self.entries.remove(&key)
            && self.keys_by_dn.get(&tracked.entry.dn) == Some(&key)
        {
            self.keys_by_dn.remove(&tracked.entry.dn);
        }
    }

    fn find(&self, id: Option<EntryId>, dn: Option<&Arc<str>>) -> Option<TrackingKey> {
        let by_id = id.map(TrackingKey::Id).filter(|key| self.entries.contains_key(key));
        by_id.or_else(|| {
            let key = dn.and_then(|dn| self.keys_by_dn.get(dn)).copied()?;
            // Another entry with that DN is another user.
            let is_other = matches!((id, key), (Some(id), TrackingKey::Id(other)) if id != other);
            (!is_other).then_some(key)
        })
    }

    fn insert(&mut self, key: TrackingKey, entry: Arc<Entry>, proven_at: Option<Instant>, changed_at: Option<Instant>) {
        self.keys_by_dn.insert(Arc::clone(&entry.dn), key);
        self.deferred.remove(&key);
        let tracked = TrackedEntry::new(entry, proven_at, changed_at, &self.source, self.round);
        self.last_changed = changed_at.or(self.last_changed);
        self.entries.insert(key, tracked);
    }

    fn set_deferred(&mut self, key: TrackingKey, deferred: Option<DeferredChange>) {
        let Some(tracked) = self.entries.get_mut(&key) else { return };
        if deferred.is_some() {
            self.deferred.insert(key);
        } else {
            self.deferred.remove(&key);
        }
        tracked.deferred = deferred;
    }

    /// The id of an entry tracked by its DN became known.
    fn rekey(&mut self, from: TrackingKey, to: TrackingKey) -> TrackingKey {
        if let Some(tracked) = self.entries.remove(&from) {
            self.keys_by_dn.insert(Arc::clone(&tracked.entry.dn), to);
            if self.deferred.remove(&from) {
                self.deferred.insert(to);
            }
            if tracked.proven_at.is_none() {
                self.changed_only.push_back(to);
            }
            self.entries.insert(to, tracked);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::EntryVersion;

    fn entry(id: u8, dn: &str, host: &str, version: &str) -> Arc<Entry> {
        let version = EntryVersion {
            id: EntryId::from_bytes(&[id; 16]),
            revision: (!version.is_empty()).then(|| version.into()),
            ..EntryVersion::default()
        };
        Arc::new(Entry { version, ..Entry::for_tests(dn, &[host]) })
    }

    fn csn(second: u32) -> String {
        format!("202611261400{second:02}.000001Z#000000#000#000000")
    }

    fn entries() -> TrackedEntries {
        TrackedEntries::new(10, Duration::from_secs(300))
    }

    fn host(reconciled: Reconciled) -> String {
        match reconciled {
            Reconciled::AsReported => "as shown".to_owned(),
            Reconciled::Replaced(entry) => entry.mail_hosts[0].clone(),
            Reconciled::Deleted => "gone".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn watch_takes_precedence_until_the_reply_is_current() {
        let entries = entries();
        entries.record_login(&entry(1, "uid=a", "old", &csn(1)));
        let (key, _) = entries.observe(EntryId::from_bytes(&[1; 16]), None).unwrap();
        entries.apply(key, entry(1, "uid=a", "new", &csn(5)), None);
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", &csn(1)))), "new");
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "new", &csn(5)))), "as shown");
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "newer", &csn(6)))), "as shown");
        // By the second, if a server shows no more.
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", "20261126140004Z"))), "new");
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "new", "20261126140005Z"))), "as shown");
        // Without a version, for a while.
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", ""))), "new");
        tokio::time::advance(floor::UNORDERED_PERIOD).await;
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", ""))), "as shown");
        assert_eq!(host(entries.reconcile(&entry(2, "uid=b", "old", &csn(1)))), "as shown");
    }

    #[tokio::test(start_paused = true)]
    async fn entry_is_found_under_its_new_dn_and_not_under_its_old_one() {
        let entries = entries();
        entries.record_login(&entry(1, "uid=a", "old", &csn(1)));
        let (key, _) = entries.observe(EntryId::from_bytes(&[1; 16]), None).unwrap();
        entries.apply(key, entry(1, "uid=b", "old", &csn(2)), None);
        assert!(entries.by_dn(&"uid=a".into()).is_none());
        assert_eq!(entries.by_dn(&"uid=b".into()).unwrap().entry.dn.as_ref(), "uid=b");
        // Another entry gets the old DN.
        entries.record_login(&entry(2, "uid=a", "old", &csn(3)));
        assert_eq!(entries.users(), 2);
        assert!(entries.observe(EntryId::from_bytes(&[3; 16]), Some(&"uid=a".into())).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn entries_without_an_id_never_share_a_key() {
        let unnamed = |dn: &str, host: &str| Arc::new(Entry { ..Entry::for_tests(dn, &[host]) });
        let entries = entries();
        entries.record_login(&unnamed("uid=a", "one"));
        let (renamed, _) = entries.observe(None, Some(&"uid=a".into())).unwrap();
        entries.apply(renamed, unnamed("uid=b", "one"), None);
        // Another entry takes the free DN; both are tracked.
        entries.record_login(&unnamed("uid=a", "two"));
        let (other, _) = entries.observe(None, Some(&"uid=a".into())).unwrap();
        assert_ne!(renamed, other);
        assert_eq!(entries.users(), 2);
        let host = |dn: &str| entries.by_dn(&dn.into()).unwrap().entry.mail_hosts[0].clone();
        assert_eq!((host("uid=a"), host("uid=b")), ("two".to_owned(), "one".to_owned()));
        // A change reported for a known DN replaces its entry, and adds no second one.
        entries.record_change(&unnamed("uid=a", "three"));
        entries.track(&unnamed("uid=a", "three"));
        assert_eq!((entries.users(), host("uid=a")), (2, "three".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn deleted_entry_is_deleted_on_a_lagging_replica_too() {
        let entries = entries();
        entries.record_login(&entry(1, "uid=a", "old", &csn(1)));
        let (key, _) = entries.observe(None, Some(&"uid=a".into())).unwrap();
        entries.mark_deleted(key);
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", &csn(1)))), "gone");
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", &csn(2)))), "as shown");
        // A new entry with the old DN.
        assert_eq!(host(entries.reconcile(&entry(2, "uid=a", "old", &csn(2)))), "as shown");
        assert_eq!(entries.users(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_released() {
        let entries = TrackedEntries::new(2, Duration::from_secs(300));
        for id in 1..=3 {
            entries.record_login(&entry(id, &format!("uid={id}"), "old", &csn(1)));
        }
        assert_eq!(entries.users(), 2);
        entries.sweep(|_| false);
        assert_eq!(entries.users(), 2, "their decisions may be cached");
        tokio::time::advance(LAG).await;
        entries.sweep(|dn| dn.as_ref() == "uid=1");
        assert_eq!(entries.users(), 1, "it has sessions");
        entries.sweep(|_| false);
        assert_eq!((entries.users(), entries.lock().keys_by_dn.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn full_table_evicts_entries_without_sessions() {
        let entries = TrackedEntries::new(3, Duration::from_secs(300));
        let is_tracked = |id: u8| entries.by_dn(&format!("uid={id}").into()).is_some();
        let an_entry = |id: u8| entry(id, &format!("uid={id}"), "old", &csn(1));
        (1..=3).for_each(|id| entries.record_change(&an_entry(id)));
        entries.record_login(&an_entry(4));
        assert_eq!([1, 2, 3, 4].map(is_tracked), [false, true, true, true], "the oldest has gone");
        entries.record_login(&an_entry(2));
        entries.record_change(&an_entry(5));
        assert_eq!([2, 3, 4, 5].map(is_tracked), [true, false, true, true], "a user's entry stays");
        entries.track(&an_entry(6));
        assert_eq!([2, 4, 5, 6].map(is_tracked), [true, true, false, true]);
        let (_, tracked) = entries.track(&an_entry(7));
        assert_eq!((tracked.entry.dn.as_ref(), is_tracked(7)), ("uid=7", false), "users only: there is no room");
        entries.record_login(&an_entry(8));
        assert_eq!((entries.users(), is_tracked(8), entries.lock().changed_only.len()), (3, false, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn entry_not_observed_in_a_refresh_is_missing() {
        let entries = entries();
        for id in 1..=3 {
            entries.record_login(&entry(id, &format!("uid={id}"), "old", &csn(1)));
        }
        entries.begin_round();
        entries.observe_present(&[EntryId::from_bytes(&[1; 16]).unwrap()]);
        entries.observe(None, Some(&"uid=2".into()));
        entries.record_login(&entry(4, "uid=4", "old", &csn(1)));
        let missing: Vec<_> =
            entries.unobserved().into_iter().map(|(_, tracked)| tracked.entry.dn.to_string()).collect();
        assert_eq!(missing, ["uid=3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn brake_keeps_tracked_users_on_their_backends() {
        let entries = entries();
        entries.record_login(&entry(1, "uid=a", "old", &csn(1)));
        entries.brake(true);
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "new", &csn(9)))), "old");
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", &csn(9)))), "as shown");
        assert_eq!(host(entries.reconcile(&entry(2, "uid=b", "new", &csn(9)))), "as shown");
        entries.brake(false);
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "new", &csn(9)))), "as shown");
    }
}
