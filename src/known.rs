//! What is known of the entries that usher has to do with: each with the values that are in force.
//!
//! An entry gets here when a bind has proven a user, or when the watch has told of a change; it stays
//! while it has sessions or a cached decision. So memory follows the users of usher and not the size
//! of the directory: about 300 bytes each, as many as the cache and the connections allow. The watch
//! is the newest source, and a floor under every answer (`known/floor.rs`): what a replica shows that lags
//! behind it does not count ([`Known::settle`]).
//! Knows nothing of routes and sessions, and acts on nothing: see `follow`.

mod floor;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::directory::{Entry, EntryId};

pub use floor::Precedence;

/// How long a change is remembered of an entry with which nobody logs in: a replica may lag that far.
const LAG: Duration = Duration::from_secs(10 * 60);

/// What is to come, once the brake is off.
#[derive(Debug, Clone)]
pub enum DeferredChange {
    /// The entry shows this.
    Entry(Arc<Entry>),
    /// It is gone.
    Deleted,
}

/// An entry.
#[derive(Debug, Clone)]
pub struct TrackedEntry {
    /// The values in force.
    pub entry: Arc<Entry>,
    /// What the directory shows instead, held back by the brake.
    pub deferred: Option<DeferredChange>,
    /// It was told to be gone.
    pub deleted: bool,
    /// When a bind last proved this user; `None`: the watch has told of it, no more.
    pub proven_at: Option<Instant>,
    /// When its values last changed, as told.
    pub changed_at: Option<Instant>,
    /// The version that this change made. Later ones that changed no value, as logins do, are no floor.
    floor: Option<Box<str>>,
    /// The server that told of it.
    reported_by: Option<Arc<str>>,
    /// Since when the followed server, which is another than the one that told of the change, shows an
    /// older version.
    older_since: Option<Instant>,
    /// The watch has told of this version, or that it still is in force.
    reported: bool,
    /// When it was last heard of.
    seen_at: Instant,
    round: u32,
}

/// What a server's answer about an entry is worth.
#[derive(Debug, Clone)]
pub enum Reconciled {
    /// It stands.
    AsReported,
    /// These values are newer, or are kept by the brake.
    Replaced(Arc<Entry>),
    /// The entry is gone; that server does not know it yet.
    Gone,
}

/// The entries.
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
    /// Those with something pending.
    deferred: HashSet<TrackingKey>,
    /// The number of the last entry without an id.
    last_dn_number: u64,
    /// Those that only the watch has told of when they came, oldest first: their room is taken first.
    changed_only: VecDeque<TrackingKey>,
    round: u32,
    braked: bool,
    source: floor::WatchSource,
    /// When any entry's values last changed, as told.
    last_changed: Option<Instant>,
}

/// By its id, or else by its DN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrackingKey {
    /// By what survives a rename.
    Id(EntryId),
    /// By a number that was given to its DN, and to no other.
    Dn(u64),
}

impl TrackedEntries {
    /// Nothing yet; at most `limit` entries, each for `life` after its last bind.
    #[must_use]
    pub fn new(limit: usize, life: Duration) -> Self {
        Self { inner: Mutex::default(), limit, life, changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, TrackedInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an entry that a bind has proven. What the watch compares with stays what it was:
    /// these values may be older than what it has told, and what is newer it will tell. Returns whether a
    /// change of the entry would be noticed, if any is told: not where there is no room to track it.
    pub fn record_login(&self, entry: &Arc<Entry>) -> bool {
        let now = Instant::now();
        let mut inner = self.lock();
        let key = inner.find(entry.version.id, Some(&entry.dn)).unwrap_or_else(|| inner.key_for(entry));
        if let Some(one) = inner.entries.get_mut(&key) {
            (one.proven_at, one.seen_at) = (Some(now), now);
            return true;
        }
        if inner.has_room(self.limit) {
            inner.insert(key, Arc::clone(entry), Some(now), None);
            return true;
        }
        inner.source.reporting().is_none()
    }

    /// Remembers an entry that only the watch has told of, for replicas that lag.
    pub fn record_change(&self, entry: &Arc<Entry>) {
        let now = Instant::now();
        let mut inner = self.lock();
        let key = inner.key_for(entry);
        if inner.entries.contains_key(&key) || inner.has_room(self.limit) {
            inner.insert(key, Arc::clone(entry), None, Some(now));
            inner.changed_only.push_back(key);
        }
    }

    /// Tracks an entry that has sessions, by the version that a session was logged in with, unless something
    /// is known of it already. It is returned even if there is no room to keep it.
    pub fn track(&self, entry: &Arc<Entry>) -> (TrackingKey, TrackedEntry) {
        let now = Instant::now();
        let mut inner = self.lock();
        let key = inner.find(entry.version.id, Some(&entry.dn)).unwrap_or_else(|| inner.key_for(entry));
        if let Some(one) = inner.entries.get_mut(&key) {
            one.proven_at.get_or_insert(now);
            return (key, one.clone());
        }
        if inner.has_room(self.limit) {
            inner.insert(key, Arc::clone(entry), Some(now), None);
        }
        (key, TrackedEntry::new(Arc::clone(entry), Some(now), None, &inner.source, inner.round))
    }

    /// What an answer about this entry is worth.
    #[must_use]
    pub fn reconcile(&self, shown: &Entry) -> Reconciled {
        let inner = self.lock();
        let Some(one) = inner.find(shown.version.id, Some(&shown.dn)).and_then(|key| inner.entries.get(&key)) else {
            return Reconciled::AsReported;
        };
        if one.deleted {
            return if one.is_recreated(shown) { Reconciled::AsReported } else { Reconciled::Gone };
        }
        let has_caught_up = inner.is_as_new(one, shown, None);
        if inner.braked && one.proven_at.is_some() && (one.deferred.is_some() || shown.route_differs(&one.entry)) {
            // What lags behind must not override what the brake leaves alone, such as a hold.
            let newest = if has_caught_up { shown } else { &one.entry };
            return Reconciled::Replaced(Arc::new(newest.with_route_of(&one.entry)));
        }
        if has_caught_up { Reconciled::AsReported } else { Reconciled::Replaced(Arc::clone(&one.entry)) }
    }

    /// An entry by its DN.
    #[must_use]
    pub fn by_dn(&self, dn: &Arc<str>) -> Option<TrackedEntry> {
        let inner = self.lock();
        inner.find(None, Some(dn)).and_then(|key| inner.entries.get(&key)).cloned()
    }

    /// Waits for the next change of anything. Ask for it before looking at what may change.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        let mut notified = Box::pin(self.changed.notified());
        notified.as_mut().enable();
        notified
    }

    // What follows is for `follow` alone, which is the only one to change values.

    /// An entry that the watch tells of, and that it was told of in this round.
    pub fn observe(&self, id: Option<EntryId>, dn: Option<&Arc<str>>) -> Option<(TrackingKey, TrackedEntry)> {
        let mut inner = self.lock();
        let mut key = inner.find(id, dn)?;
        if let (Some(id), TrackingKey::Dn(_)) = (id, key) {
            key = inner.rekey(key, TrackingKey::Id(id));
        }
        let round = inner.round;
        let one = inner.entries.get_mut(&key)?;
        one.round = round;
        one.reported = true;
        Some((key, one.clone()))
    }

    /// The same for entries of which nothing but their presence is told.
    pub fn observe_present(&self, ids: &[EntryId]) {
        let mut inner = self.lock();
        let round = inner.round;
        for id in ids {
            if let Some(one) = inner.entries.get_mut(&TrackingKey::Id(*id)) {
                one.round = round;
                one.reported = true;
            }
        }
    }

    /// Begins a round: what is met from here on is there.
    pub fn begin_round(&self) {
        let mut inner = self.lock();
        inner.round = inner.round.wrapping_add(1);
    }

    /// What was not met in this round.
    #[must_use]
    pub fn unobserved(&self) -> Vec<(TrackingKey, TrackedEntry)> {
        let inner = self.lock();
        let missing = inner.entries.iter().filter(|(_, one)| one.round != inner.round && !one.deleted);
        missing.map(|(key, one)| (*key, one.clone())).collect()
    }

    /// Puts values in force.
    pub fn apply(&self, key: TrackingKey, entry: Arc<Entry>, pending: Option<DeferredChange>) {
        self.change(key, pending, |one| {
            one.entry = entry;
            one.deleted = false;
        });
    }

    /// Takes over an entry whose values are the same: its version is newer.
    pub fn refresh(&self, key: TrackingKey, entry: Arc<Entry>) {
        let mut inner = self.lock();
        if let Some(one) = inner.entries.get_mut(&key) {
            one.refresh(entry);
        }
        inner.set_deferred(key, None);
    }

    /// Holds back what is to come.
    pub fn defer(&self, key: TrackingKey, pending: DeferredChange) {
        self.lock().set_deferred(key, Some(pending));
    }

    /// It is gone.
    pub fn mark_deleted(&self, key: TrackingKey) {
        self.change(key, None, |one| one.deleted = true);
    }

    fn change(&self, key: TrackingKey, pending: Option<DeferredChange>, change: impl FnOnce(&mut TrackedEntry)) {
        {
            let inner = &mut *self.lock();
            inner.set_deferred(key, pending);
            let Some(one) = inner.entries.get_mut(&key) else { return };
            let old = Arc::clone(&one.entry.dn);
            change(one);
            one.set_floor(&inner.source);
            inner.last_changed = one.changed_at;
            let new = Arc::clone(&one.entry.dn);
            if old != new {
                // A name that another entry has taken meanwhile is that one's.
                if inner.keys_by_dn.get(&old) == Some(&key) {
                    inner.keys_by_dn.remove(&old);
                }
                inner.keys_by_dn.insert(new, key);
            }
        }
        self.changed.notify_waiters();
    }

    /// Whether the brake is on: then [`Known::settle`] keeps known users where they are.
    pub fn brake(&self, on: bool) {
        self.lock().braked = on;
    }

    /// Everything that is held back.
    #[must_use]
    pub fn deferred(&self) -> Vec<(TrackingKey, TrackedEntry)> {
        let inner = self.lock();
        inner.deferred.iter().filter_map(|key| Some((*key, inner.entries.get(key)?.clone()))).collect()
    }

    /// How many that is.
    #[must_use]
    pub fn count_deferred(&self) -> usize {
        self.lock().deferred.len()
    }

    /// How many users are known.
    #[must_use]
    pub fn users(&self) -> usize {
        self.lock().entries.values().filter(|one| one.proven_at.is_some() && !one.deleted).count()
    }

    /// Forgets those with which nothing is to do any more.
    pub fn sweep(&self, has_sessions: impl Fn(&Arc<str>) -> bool) {
        // What is kept is found without the lock of the sessions under this one.
        let candidates: Vec<(TrackingKey, Arc<str>)> = {
            let inner = self.lock();
            let idle = inner.entries.iter().filter(|(_, one)| {
                let decided = one.proven_at.is_some_and(|at| at.elapsed() < self.life);
                !decided && one.deferred.is_none() && one.seen_at.elapsed() >= LAG.min(self.life)
            });
            idle.map(|(key, one)| (*key, Arc::clone(&one.entry.dn))).collect()
        };
        let idle: Vec<TrackingKey> =
            candidates.into_iter().filter(|(_, dn)| !has_sessions(dn)).map(|(key, _)| key).collect();
        let mut inner = self.lock();
        idle.into_iter().for_each(|key| inner.remove(key));
        let TrackedInner { changed_only: noted, entries: ones, .. } = &mut *inner;
        noted.retain(|key| ones.get(key).is_some_and(|one| one.proven_at.is_none()));
    }
}

impl TrackedEntry {
    fn new(
        entry: Arc<Entry>,
        decided: Option<Instant>,
        told: Option<Instant>,
        source: &floor::WatchSource,
        round: u32,
    ) -> Self {
        let floor = told.and_then(|_| entry.version.revision.clone());
        let told_by = told.and_then(|_| source.reporting());
        let (seen, watched, unmet) = (Instant::now(), told.is_some(), None);
        Self {
            entry,
            deferred: None,
            deleted: false,
            proven_at: decided,
            changed_at: told,
            floor,
            reported_by: told_by,
            older_since: unmet,
            reported: watched,
            seen_at: seen,
            round,
        }
    }
}

impl TrackedInner {
    /// The key of an entry that is not found by its id. A DN that passes to another entry passes no key.
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

    /// Whether there is room for one more entry; if not, one that was merely seen gives up its own.
    fn has_room(&mut self, limit: usize) -> bool {
        while self.entries.len() >= limit {
            let Some(key) = self.changed_only.pop_front() else { return false };
            if self.entries.get(&key).is_some_and(|one| one.proven_at.is_none() && one.deferred.is_none()) {
                self.remove(key);
            }
        }
        true
    }

    fn remove(&mut self, key: TrackingKey) {
        if let Some(one) = self.entries.remove(&key)
            && self.keys_by_dn.get(&one.entry.dn) == Some(&key)
        {
            self.keys_by_dn.remove(&one.entry.dn);
        }
    }

    fn find(&self, id: Option<EntryId>, dn: Option<&Arc<str>>) -> Option<TrackingKey> {
        let by_id = id.map(TrackingKey::Id).filter(|key| self.entries.contains_key(key));
        by_id.or_else(|| {
            let key = dn.and_then(|dn| self.keys_by_dn.get(dn)).copied()?;
            // Another entry of that name is another user.
            let is_other = matches!((id, key), (Some(id), TrackingKey::Id(known)) if id != known);
            (!is_other).then_some(key)
        })
    }

    fn insert(&mut self, key: TrackingKey, entry: Arc<Entry>, decided: Option<Instant>, told: Option<Instant>) {
        self.keys_by_dn.insert(Arc::clone(&entry.dn), key);
        self.deferred.remove(&key);
        let one = TrackedEntry::new(entry, decided, told, &self.source, self.round);
        self.last_changed = told.or(self.last_changed);
        self.entries.insert(key, one);
    }

    fn set_deferred(&mut self, key: TrackingKey, pending: Option<DeferredChange>) {
        let Some(one) = self.entries.get_mut(&key) else { return };
        if pending.is_some() {
            self.deferred.insert(key);
        } else {
            self.deferred.remove(&key);
        }
        one.deferred = pending;
    }

    /// An entry that was known by its DN has told its id.
    fn rekey(&mut self, from: TrackingKey, to: TrackingKey) -> TrackingKey {
        if let Some(one) = self.entries.remove(&from) {
            self.keys_by_dn.insert(Arc::clone(&one.entry.dn), to);
            if self.deferred.remove(&from) {
                self.deferred.insert(to);
            }
            if one.proven_at.is_none() {
                self.changed_only.push_back(to);
            }
            self.entries.insert(to, one);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::EntryVersion;

    fn entry(id: u8, dn: &str, host: &str, version: &str) -> Arc<Entry> {
        let marks = EntryVersion {
            id: EntryId::from_bytes(&[id; 16]),
            revision: (!version.is_empty()).then(|| version.into()),
            ..EntryVersion::default()
        };
        Arc::new(Entry { version: marks, ..Entry::for_tests(dn, &[host]) })
    }

    fn csn(second: u32) -> String {
        format!("202611261400{second:02}.000001Z#000000#000#000000")
    }

    fn known() -> TrackedEntries {
        TrackedEntries::new(10, Duration::from_secs(300))
    }

    fn host(settled: Reconciled) -> String {
        match settled {
            Reconciled::AsReported => "as shown".to_owned(),
            Reconciled::Replaced(entry) => entry.mail_hosts[0].clone(),
            Reconciled::Gone => "gone".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn watch_takes_precedence_until_the_reply_is_current() {
        let known = known();
        known.record_login(&entry(1, "uid=a", "old", &csn(1)));
        let (key, _) = known.observe(EntryId::from_bytes(&[1; 16]), None).unwrap();
        known.apply(key, entry(1, "uid=a", "new", &csn(5)), None);
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "old", &csn(1)))), "new");
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "new", &csn(5)))), "as shown");
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "newer", &csn(6)))), "as shown");
        // By the second, where a server shows no more.
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "old", "20261126140004Z"))), "new");
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "new", "20261126140005Z"))), "as shown");
        // Where it shows nothing, for a while.
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "old", ""))), "new");
        tokio::time::advance(floor::UNORDERED_PERIOD).await;
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "old", ""))), "as shown");
        assert_eq!(host(known.reconcile(&entry(2, "uid=b", "old", &csn(1)))), "as shown");
    }

    #[tokio::test(start_paused = true)]
    async fn entry_is_found_under_its_new_dn_and_not_under_its_old_one() {
        let known = known();
        known.record_login(&entry(1, "uid=a", "old", &csn(1)));
        let (key, _) = known.observe(EntryId::from_bytes(&[1; 16]), None).unwrap();
        known.apply(key, entry(1, "uid=b", "old", &csn(2)), None);
        assert!(known.by_dn(&"uid=a".into()).is_none());
        assert_eq!(known.by_dn(&"uid=b".into()).unwrap().entry.dn.as_ref(), "uid=b");
        // Somebody else gets the old name.
        known.record_login(&entry(2, "uid=a", "old", &csn(3)));
        assert_eq!(known.users(), 2);
        assert!(known.observe(EntryId::from_bytes(&[3; 16]), Some(&"uid=a".into())).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn entries_without_an_id_never_share_a_key() {
        let unnamed = |dn: &str, host: &str| Arc::new(Entry { ..Entry::for_tests(dn, &[host]) });
        let known = known();
        known.record_login(&unnamed("uid=a", "one"));
        let (renamed, _) = known.observe(None, Some(&"uid=a".into())).unwrap();
        known.apply(renamed, unnamed("uid=b", "one"), None);
        // Another entry takes the DN that is free again; both are tracked.
        known.record_login(&unnamed("uid=a", "two"));
        let (other, _) = known.observe(None, Some(&"uid=a".into())).unwrap();
        assert_ne!(renamed, other);
        assert_eq!(known.users(), 2);
        let host = |dn: &str| known.by_dn(&dn.into()).unwrap().entry.mail_hosts[0].clone();
        assert_eq!((host("uid=a"), host("uid=b")), ("two".to_owned(), "one".to_owned()));
        // What the watch tells of a DN that is known replaces it, and leaves no second one.
        known.record_change(&unnamed("uid=a", "three"));
        known.track(&unnamed("uid=a", "three"));
        assert_eq!((known.users(), host("uid=a")), (2, "three".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn deleted_entry_is_deleted_on_a_lagging_replica_too() {
        let known = known();
        known.record_login(&entry(1, "uid=a", "old", &csn(1)));
        let (key, _) = known.observe(None, Some(&"uid=a".into())).unwrap();
        known.mark_deleted(key);
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "old", &csn(1)))), "gone");
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "old", &csn(2)))), "as shown");
        // A new entry of the old name.
        assert_eq!(host(known.reconcile(&entry(2, "uid=a", "old", &csn(2)))), "as shown");
        assert_eq!(known.users(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_released() {
        let known = TrackedEntries::new(2, Duration::from_secs(300));
        for id in 1..=3 {
            known.record_login(&entry(id, &format!("uid={id}"), "old", &csn(1)));
        }
        assert_eq!(known.users(), 2);
        known.sweep(|_| false);
        assert_eq!(known.users(), 2, "their decisions may be cached");
        tokio::time::advance(LAG).await;
        known.sweep(|dn| dn.as_ref() == "uid=1");
        assert_eq!(known.users(), 1, "it has sessions");
        known.sweep(|_| false);
        assert_eq!((known.users(), known.lock().keys_by_dn.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn full_table_evicts_entries_without_sessions() {
        let known = TrackedEntries::new(3, Duration::from_secs(300));
        let is_tracked = |id: u8| known.by_dn(&format!("uid={id}").into()).is_some();
        let an_entry = |id: u8| entry(id, &format!("uid={id}"), "old", &csn(1));
        (1..=3).for_each(|id| known.record_change(&an_entry(id)));
        known.record_login(&an_entry(4));
        assert_eq!([1, 2, 3, 4].map(is_tracked), [false, true, true, true], "the oldest has gone");
        known.record_login(&an_entry(2));
        known.record_change(&an_entry(5));
        assert_eq!([2, 3, 4, 5].map(is_tracked), [true, false, true, true], "a user's entry stays");
        known.track(&an_entry(6));
        assert_eq!([2, 4, 5, 6].map(is_tracked), [true, true, false, true]);
        let (_, one) = known.track(&an_entry(7));
        assert_eq!((one.entry.dn.as_ref(), is_tracked(7)), ("uid=7", false), "users only: there is no room");
        known.record_login(&an_entry(8));
        assert_eq!((known.users(), is_tracked(8), known.lock().changed_only.len()), (3, false, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn entry_not_observed_in_a_refresh_is_missing() {
        let known = known();
        for id in 1..=3 {
            known.record_login(&entry(id, &format!("uid={id}"), "old", &csn(1)));
        }
        known.begin_round();
        known.observe_present(&[EntryId::from_bytes(&[1; 16]).unwrap()]);
        known.observe(None, Some(&"uid=2".into()));
        known.record_login(&entry(4, "uid=4", "old", &csn(1)));
        let missing: Vec<_> = known.unobserved().into_iter().map(|(_, one)| one.entry.dn.to_string()).collect();
        assert_eq!(missing, ["uid=3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn brake_keeps_tracked_users_on_their_backends() {
        let known = known();
        known.record_login(&entry(1, "uid=a", "old", &csn(1)));
        known.brake(true);
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "new", &csn(9)))), "old");
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "old", &csn(9)))), "as shown");
        assert_eq!(host(known.reconcile(&entry(2, "uid=b", "new", &csn(9)))), "as shown");
        known.brake(false);
        assert_eq!(host(known.reconcile(&entry(1, "uid=a", "new", &csn(9)))), "as shown");
    }
}
