//! The entries that matter to usher, each with its values in force.
//!
//! An entry is added when a bind has authenticated its user, or when the watch has reported a change; it stays
//! while it has sessions or a cached decision. So memory depends on the active users and not on the size of the
//! directory: about 300 bytes each, bounded by the cache and the connection limits. The watch is the newest
//! source, and a floor under every reply (`store/floor.rs`): what a lagging replica returns is overridden
//! ([`TrackedEntries::reconcile`]). Knows nothing of routes and sessions, and takes no action: see `apply`.
//!
//! Every login takes the lock. It is held for a bounded number of entries: totals are counted as entries change, and
//! whatever concerns all entries visits them in pieces.

mod floor;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::directory::{DirectoryError, Entry, EntryId, EntryKey, EntryNames, Realm, UnavailableCause};
use crate::tracking::fleet::{HeldSet, HeldValues};

pub(super) use floor::Precedence;

/// How long a change of an entry without logins is kept: the assumed maximum lag of a replica.
const LAG: Duration = Duration::from_secs(10 * 60);
/// Entries visited under one hold of the lock.
const PIECE: usize = 256;

/// A change deferred by the brake.
#[derive(Debug, Clone)]
pub(super) enum DeferredChange {
    /// The entry has these values.
    Entry(Arc<Entry>),
    /// The entry is deleted.
    Deleted,
}

/// A tracked entry.
#[derive(Debug, Clone)]
pub(crate) struct TrackedEntry {
    /// The values in force.
    pub(crate) entry: Arc<Entry>,
    /// The change that the brake has deferred.
    pub(super) deferred: Option<DeferredChange>,
    /// The watch has reported its deletion.
    pub(super) deleted: bool,
    /// When a bind last authenticated this user; `None`: reported by the watch only.
    pub(super) proven_at: Option<Instant>,
    /// When its values last changed, according to the watch.
    pub(super) changed_at: Option<Instant>,
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
    /// Its place in the order of arrival.
    number: u64,
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
    /// The brake of another node keeps the user at a place that is not known here.
    HeldElsewhere,
}

/// The tracked entries.
#[derive(Debug)]
pub struct TrackedEntries {
    realm: Realm,
    inner: Mutex<TrackedInner>,
    limit: usize,
    life: Duration,
    changed: Notify,
}

#[derive(Debug, Default)]
struct TrackedInner {
    /// By id, or by DN where no id is known.
    entries: HashMap<EntryKey, TrackedEntry>,
    /// The key of each entry by its DN.
    keys_by_dn: HashMap<EntryKey, EntryKey>,
    /// All keys in the order of arrival, so that they can be visited in pieces.
    order: BTreeMap<u64, EntryKey>,
    last_number: u64,
    /// Entries reported by the watch only, oldest first: they are evicted first.
    changed_only: BTreeSet<u64>,
    totals: Totals,
    round: u32,
    braked: bool,
    /// What is held back at any node, while the brake is on.
    held: Option<Arc<HeldSet>>,
    source: floor::WatchSource,
    /// When any entry's values last changed, according to the watch.
    last_changed: Option<Instant>,
}

/// What is counted as entries change.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Totals {
    /// Entries of users: authenticated by a bind, and not deleted.
    users: usize,
    /// Entries with a deferred change.
    deferred: usize,
}

impl TrackedEntries {
    /// An empty store for at most `limit` entries, each kept for `life` after its last bind.
    #[must_use]
    pub fn new(limit: usize, life: Duration) -> Self {
        Self { realm: Realm::DEFAULT, inner: Mutex::default(), limit, life, changed: Notify::new() }
    }

    /// The same for this directory.
    #[must_use]
    pub(crate) fn of_realm(self, realm: Realm) -> Self {
        Self { realm, ..self }
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
        let names = entry.names();
        if let Some(key) = inner.find(&names) {
            inner.update(&key, |tracked, _| (tracked.proven_at, tracked.seen_at) = (Some(now), now));
            return true;
        }
        if inner.has_room(self.limit) {
            inner.insert(key_of(entry), Arc::clone(entry), Some(now), None);
            return true;
        }
        inner.source.reporting().is_none()
    }

    /// How a server's reply about this entry is to be used.
    #[must_use]
    pub fn reconcile(&self, shown: &Entry) -> Reconciled {
        let inner = self.lock();
        let Some(held) = inner.held.clone() else { return inner.reconcile(shown) };
        let is_kept_here = inner.get(&shown.names()).is_some_and(TrackedEntry::is_kept_by_brake);
        let reconciled = inner.reconcile(shown);
        drop(inner);
        let used = match &reconciled {
            Reconciled::AsReported => shown,
            Reconciled::Replaced(entry) => entry,
            Reconciled::Deleted | Reconciled::HeldElsewhere => return reconciled,
        };
        // Keys are hashed: not under the lock.
        if !is_kept_here && held.of(used) == HeldValues::Others { Reconciled::HeldElsewhere } else { reconciled }
    }

    /// What the brake keeps of an entry that the directory does not show any more, if it keeps it.
    ///
    /// # Errors
    /// The brake of another node keeps it.
    pub(crate) fn kept(&self, before: &Entry) -> Result<Option<Arc<Entry>>, DirectoryError> {
        let (kept, held) = {
            let inner = self.lock();
            let tracked = inner.get(&before.names()).filter(|tracked| tracked.is_kept_by_brake());
            (tracked.map(|tracked| Arc::clone(&tracked.entry)), inner.held.clone())
        };
        // Keys are hashed: not under the lock.
        match held.filter(|_| kept.is_none()).map(|held| held.of(before)) {
            Some(HeldValues::Kept | HeldValues::Others) => {
                Err(DirectoryError::Unavailable(UnavailableCause::HeldElsewhere))
            }
            Some(HeldValues::No) | None => Ok(kept),
        }
    }

    /// An entry by its DN.
    #[must_use]
    pub(crate) fn by_dn(&self, realm: Realm, dn: &Arc<str>) -> Option<TrackedEntry> {
        self.lock().get(&EntryNames { realm, id: None, dn: Some(Arc::clone(dn)) }).cloned()
    }

    /// Waits for the next change of any entry. To be created before the state is read.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + '_ {
        let mut notified = Box::pin(self.changed.notified());
        notified.as_mut().enable();
        notified
    }

    /// Removes entries that are no longer needed.
    pub(crate) fn sweep(&self, has_sessions: impl Fn(&Entry) -> bool) {
        let is_idle = |tracked: &TrackedEntry| {
            let is_proven = tracked.proven_at.is_some_and(|at| at.elapsed() < self.life);
            !is_proven && tracked.deferred.is_none() && tracked.seen_at.elapsed() >= LAG.min(self.life)
        };
        let mut idle =
            self.in_pieces(|key, tracked| is_idle(tracked).then(|| (key.clone(), Arc::clone(&tracked.entry))));
        // Sessions are looked up without holding this lock.
        idle.retain(|(_, entry)| !has_sessions(entry));
        for piece in idle.chunks(PIECE) {
            let mut inner = self.lock();
            for (key, _) in piece {
                // Its user may have logged in meanwhile.
                if inner.entries.get(key).is_some_and(is_idle) {
                    inner.remove(key);
                }
            }
        }
    }

    /// Visits all entries in pieces, between which logins get the lock, and collects what `visit` returns. An entry
    /// that is added meanwhile is not visited.
    fn in_pieces<T>(&self, mut visit: impl FnMut(&EntryKey, &TrackedEntry) -> Option<T>) -> Vec<T> {
        let (last, mut done, mut found) = (self.lock().last_number, 0, Vec::new());
        while done < last {
            let inner = self.lock();
            let piece = inner.order.range((Bound::Excluded(done), Bound::Included(last))).take(PIECE);
            let mut visited = 0;
            for (number, key) in piece {
                (done, visited) = (*number, visited + 1);
                found.extend(inner.entries.get(key).and_then(|tracked| visit(key, tracked)));
            }
            if visited < PIECE {
                break;
            }
        }
        found
    }
}

// What only `apply` may do: it changes values.
impl TrackedEntries {
    /// Records an entry reported by the watch only, for replicas that lag.
    pub(super) fn record_change(&self, entry: &Arc<Entry>) {
        let now = Instant::now();
        let mut inner = self.lock();
        let key = key_of(entry);
        if inner.entries.contains_key(&key) || inner.has_room(self.limit) {
            inner.insert(key, Arc::clone(entry), None, Some(now));
        }
    }

    /// Tracks an entry that has sessions, by the version that a session was logged in with, unless it is
    /// tracked already. It is returned even if there is no room to store it.
    pub(super) fn track(&self, entry: &Arc<Entry>) -> (EntryKey, TrackedEntry) {
        let now = Instant::now();
        let mut inner = self.lock();
        if let Some(key) = inner.find(&entry.names()) {
            let tracked = inner.update(&key, |tracked, _| {
                tracked.proven_at.get_or_insert(now);
                tracked.clone()
            });
            if let Some(tracked) = tracked {
                return (key, tracked);
            }
        }
        let key = key_of(entry);
        if inner.has_room(self.limit) {
            inner.insert(key.clone(), Arc::clone(entry), Some(now), None);
        }
        let number = inner.last_number;
        (key, TrackedEntry::new(Arc::clone(entry), Some(now), None, (&inner.source, inner.round, number)))
    }

    /// Marks an entry as reported in the current refresh, and returns it.
    pub(super) fn observe(&self, names: &EntryNames) -> Option<(EntryKey, TrackedEntry)> {
        let mut inner = self.lock();
        let mut key = inner.find(names)?;
        if let Some(by_id) = names.by_id().filter(|by_id| key != *by_id) {
            inner.rekey(&key, by_id.clone());
            key = by_id;
        }
        let round = inner.round;
        let tracked = inner.update(&key, |tracked, _| {
            (tracked.round, tracked.reported) = (round, true);
            tracked.clone()
        })?;
        Some((key, tracked))
    }

    /// The same for entries of which only the existence is reported.
    pub(super) fn observe_present(&self, realm: Realm, ids: &[EntryId]) {
        for piece in ids.chunks(PIECE) {
            let mut inner = self.lock();
            let round = inner.round;
            for id in piece {
                if let Some(key) = (EntryNames { realm, id: Some(*id), dn: None }).by_id() {
                    inner.update(&key, |tracked, _| (tracked.round, tracked.reported) = (round, true));
                }
            }
        }
    }

    /// Begins a refresh: entries observed from now on exist.
    pub(super) fn begin_round(&self) {
        let mut inner = self.lock();
        inner.round = inner.round.wrapping_add(1);
    }

    /// Entries of this directory that were not observed in this refresh.
    #[must_use]
    pub(super) fn unobserved(&self, realm: Realm) -> Vec<(EntryKey, TrackedEntry)> {
        let round = self.lock().round;
        self.in_pieces(|key, tracked| {
            let is_missing = tracked.round != round && !tracked.deleted && key.realm == realm;
            is_missing.then(|| (key.clone(), tracked.clone()))
        })
    }

    /// Puts values in force.
    pub(super) fn apply(&self, key: &EntryKey, entry: Arc<Entry>, deferred: Option<DeferredChange>) {
        self.change(key, |tracked| {
            (tracked.entry, tracked.deferred, tracked.deleted) = (entry, deferred, false);
        });
    }

    /// Takes over a newer version with the same values.
    pub(super) fn refresh(&self, key: &EntryKey, entry: Arc<Entry>) {
        self.lock().update(key, |tracked, _| {
            tracked.refresh(entry);
            tracked.deferred = None;
        });
    }

    /// Defers a change.
    pub(super) fn defer(&self, key: &EntryKey, deferred: DeferredChange) {
        self.lock().update(key, |tracked, _| tracked.deferred = Some(deferred));
    }

    /// Marks an entry as deleted.
    pub(super) fn mark_deleted(&self, key: &EntryKey) {
        self.change(key, |tracked| (tracked.deferred, tracked.deleted) = (None, true));
    }

    fn change(&self, key: &EntryKey, change: impl FnOnce(&mut TrackedEntry)) {
        {
            let mut inner = self.lock();
            let changed = inner.update(key, |tracked, source| {
                let before = tracked.entry.names();
                change(tracked);
                tracked.set_floor(source);
                (before, tracked.entry.names(), tracked.changed_at)
            });
            let Some((before, after, changed_at)) = changed else { return };
            inner.last_changed = changed_at;
            if before.dn != after.dn {
                inner.rename(key, &before, &after);
            }
        }
        self.changed.notify_waiters();
    }

    /// Whether the brake is on: then [`TrackedEntries::reconcile`] keeps the routes of known users.
    pub(super) fn brake(&self, on: bool) {
        self.lock().braked = on;
    }

    /// What is held back at any node: then [`TrackedEntries::reconcile`] refuses other values of these users than
    /// the kept ones.
    pub(super) fn hold_elsewhere(&self, held: Option<Arc<HeldSet>>) {
        self.lock().held = held;
    }

    /// Users that another node holds back, and whom this one has met by other values shortly before or since. A user that was
    /// known before has the kept values, or a change deferred here.
    #[must_use]
    pub(super) fn known_otherwise(&self, held: &HeldSet) -> Vec<Arc<Entry>> {
        let users = self.in_pieces(|_, tracked| {
            let is_candidate = tracked.is_user() && tracked.deferred.is_none();
            is_candidate.then(|| Arc::clone(&tracked.entry))
        });
        users.into_iter().filter(|entry| held.of(entry) == HeldValues::Others).collect()
    }

    /// All entries with a deferred change.
    #[must_use]
    pub(super) fn deferred(&self) -> Vec<(EntryKey, TrackedEntry)> {
        self.in_pieces(|key, tracked| tracked.deferred.is_some().then(|| (key.clone(), tracked.clone())))
    }

    /// The number of deferred changes.
    #[must_use]
    pub(super) fn count_deferred(&self) -> usize {
        self.lock().totals.deferred
    }

    /// The number of known users.
    #[must_use]
    pub(crate) fn known_users(&self) -> usize {
        self.users()
    }

    /// The number of known users.
    #[must_use]
    pub(super) fn users(&self) -> usize {
        self.lock().totals.users
    }
}

/// The key of an entry that is not tracked. An id is preferred even where the cache names the entry by its DN:
/// changes are reported by ids.
fn key_of(entry: &Entry) -> EntryKey {
    entry.names().by_id().unwrap_or_else(|| EntryKey::by_dn(entry.version.realm, &entry.dn))
}

impl TrackedEntry {
    fn new(
        entry: Arc<Entry>,
        proven_at: Option<Instant>,
        changed_at: Option<Instant>,
        (source, round, number): (&floor::WatchSource, u32, u64),
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
            number,
        }
    }

    /// Whether the brake has deferred a change.
    pub(crate) const fn is_kept_by_brake(&self) -> bool {
        self.deferred.is_some()
    }

    const fn is_user(&self) -> bool {
        self.proven_at.is_some() && !self.deleted
    }
}

impl TrackedInner {
    /// The key of a tracked entry with one of these names.
    fn find(&self, names: &EntryNames) -> Option<EntryKey> {
        let by_id = names.by_id().filter(|key| self.entries.contains_key(key));
        by_id.or_else(|| {
            let key = self.keys_by_dn.get(&names.by_dn()?)?;
            // Another entry with that DN is another user.
            let is_other = names.by_id().is_some_and(|by_id| key.has_id() && *key != by_id);
            (!is_other).then(|| key.clone())
        })
    }

    fn get(&self, names: &EntryNames) -> Option<&TrackedEntry> {
        self.entries.get(&self.find(names)?)
    }

    fn reconcile(&self, shown: &Entry) -> Reconciled {
        let Some(tracked) = self.get(&shown.names()) else { return Reconciled::AsReported };
        if tracked.deleted {
            return if tracked.is_recreated(shown) { Reconciled::AsReported } else { Reconciled::Deleted };
        }
        let has_caught_up = self.is_as_new(tracked, shown, None);
        if self.braked
            && tracked.proven_at.is_some()
            && (tracked.deferred.is_some() || shown.route_differs(&tracked.entry))
        {
            // A lagging reply must not override what the brake does not cover, such as a hold.
            let newest = if has_caught_up { shown } else { &tracked.entry };
            return Reconciled::Replaced(Arc::new(newest.with_route_of(&tracked.entry)));
        }
        if has_caught_up { Reconciled::AsReported } else { Reconciled::Replaced(Arc::clone(&tracked.entry)) }
    }

    /// Changes an entry. Whatever is counted or listed by what it says is kept up to date here, and nowhere else.
    fn update<T>(
        &mut self,
        key: &EntryKey,
        change: impl FnOnce(&mut TrackedEntry, &floor::WatchSource) -> T,
    ) -> Option<T> {
        let tracked = self.entries.get_mut(key)?;
        let was_proven = tracked.proven_at.is_some();
        self.totals.take(tracked);
        let result = change(tracked, &self.source);
        self.totals.add(tracked);
        if !was_proven && tracked.proven_at.is_some() {
            self.changed_only.remove(&tracked.number);
        }
        Some(result)
    }

    /// Whether there is room for one more entry; evicts entries reported by the watch only.
    fn has_room(&mut self, limit: usize) -> bool {
        while self.entries.len() >= limit {
            let oldest = self.changed_only.first().and_then(|number| self.order.get(number)).cloned();
            let Some(key) = oldest else { return false };
            self.remove(&key);
        }
        true
    }

    fn insert(&mut self, key: EntryKey, entry: Arc<Entry>, proven_at: Option<Instant>, changed_at: Option<Instant>) {
        self.remove(&key);
        self.last_number += 1;
        let number = self.last_number;
        self.keys_by_dn.insert(EntryKey::by_dn(key.realm, &entry.dn), key.clone());
        self.order.insert(number, key.clone());
        if proven_at.is_none() {
            self.changed_only.insert(number);
        }
        let tracked = TrackedEntry::new(entry, proven_at, changed_at, (&self.source, self.round, number));
        self.totals.add(&tracked);
        self.last_changed = changed_at.or(self.last_changed);
        self.entries.insert(key, tracked);
    }

    fn remove(&mut self, key: &EntryKey) {
        let Some(tracked) = self.entries.remove(key) else { return };
        self.totals.take(&tracked);
        self.order.remove(&tracked.number);
        self.changed_only.remove(&tracked.number);
        self.release_dn(key, &tracked.entry.dn);
    }

    /// The DN may belong to another entry by now.
    fn release_dn(&mut self, key: &EntryKey, dn: &Arc<str>) {
        let by_dn = EntryKey::by_dn(key.realm, dn);
        if self.keys_by_dn.get(&by_dn) == Some(key) {
            self.keys_by_dn.remove(&by_dn);
        }
    }

    /// The entry has another DN: what is tracked by the new one is another entry, or was.
    fn rename(&mut self, key: &EntryKey, before: &EntryNames, after: &EntryNames) {
        let (Some(old), Some(new)) = (&before.dn, after.by_dn()) else { return };
        self.release_dn(key, old);
        if key.has_id() {
            self.keys_by_dn.insert(new, key.clone());
        } else {
            self.remove(&new);
            self.rekey(key, new);
        }
    }

    /// The entry is identified by another key from now on.
    fn rekey(&mut self, from: &EntryKey, to: EntryKey) {
        let Some(tracked) = self.entries.remove(from) else { return };
        self.keys_by_dn.insert(EntryKey::by_dn(to.realm, &tracked.entry.dn), to.clone());
        self.order.insert(tracked.number, to.clone());
        self.entries.insert(to, tracked);
    }
}

impl Totals {
    fn add(&mut self, tracked: &TrackedEntry) {
        self.users += usize::from(tracked.is_user());
        self.deferred += usize::from(tracked.deferred.is_some());
    }

    fn take(&mut self, tracked: &TrackedEntry) {
        self.users -= usize::from(tracked.is_user());
        self.deferred -= usize::from(tracked.deferred.is_some());
    }
}

#[cfg(test)]
mod tests;
