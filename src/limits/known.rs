//! What is known of users without a failure: the entry of each name, and the prefixes from which a user has logged
//! in. Bounded like the counts (`memory`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use tokio::time::Instant;

use super::keys::HashedKey;
use super::store::SharedId;
use crate::config;

/// Known prefixes per user: home, office, phone, and some hotels.
const KNOWN_PER_USER: usize = 16;

/// A known prefix is refreshed, and sent to others, this many times while it lasts.
const REFRESHES: u32 = 30;

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NamedEntry {
    entry: HashedKey,
    shared: Option<SharedId>,
}

#[derive(Debug)]
struct KnownPrefix {
    prefix: HashedKey,
    since: Instant,
}

/// Names and known prefixes.
#[derive(Debug)]
pub(super) struct KnownUsers {
    ttl: Duration,
    names: moka::sync::Cache<HashedKey, NamedEntry>,
    known: moka::sync::Cache<HashedKey, Arc<Mutex<Vec<KnownPrefix>>>>,
}

impl KnownUsers {
    pub(super) fn new(settings: &config::Memory) -> Self {
        let ttl = settings.known_network_ttl;
        Self {
            ttl,
            names: moka::sync::Cache::builder().max_capacity(settings.capacity).time_to_idle(ttl).build(),
            // Only a correct password adds an entry here, so that the newest always fits.
            known: moka::sync::Cache::builder()
                .max_capacity(settings.capacity)
                .time_to_idle(ttl)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
        }
    }

    /// The entry that a name last led to, the name itself if unknown; and how a shared store calls it.
    pub(super) fn entry(&self, name: HashedKey) -> (HashedKey, Option<SharedId>) {
        self.names.get(&name).map_or((name, None), |named| (named.entry, named.shared))
    }

    /// Records the entry of a name.
    pub(super) fn name(&self, name: HashedKey, entry: HashedKey, shared: impl FnOnce() -> Option<SharedId>) {
        if self.names.get(&name).is_none_or(|named| named.entry != entry) {
            self.names.insert(name, NamedEntry { entry, shared: shared() });
        }
    }

    /// Whether this user has logged in from this prefix before.
    pub(super) fn is_known_prefix(&self, user: HashedKey, prefix: HashedKey) -> bool {
        let now = Instant::now();
        let fresh = |known: &KnownPrefix| now.saturating_duration_since(known.since) < self.ttl;
        let Some(list) = self.known.get(&user) else { return false };
        let list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().any(|known| known.prefix == prefix && fresh(known))
    }

    /// Whether any prefix is known of this user.
    pub(super) fn has_known_prefix(&self, user: HashedKey) -> bool {
        let now = Instant::now();
        let Some(list) = self.known.get(&user) else { return false };
        let list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().any(|known| now.saturating_duration_since(known.since) < self.ttl)
    }

    /// Records that this user has logged in from this prefix. Returns whether that was not known, or not for long.
    pub(super) fn add_known_prefix(&self, user: HashedKey, prefix: HashedKey) -> bool {
        let now = Instant::now();
        let list = self.known.get_with(user, Arc::default);
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |known: &KnownPrefix| now.saturating_duration_since(known.since) < self.ttl / REFRESHES;
        if list.iter().any(|known| known.prefix == prefix && is_recent(known)) {
            return false;
        }
        list.retain(|known| known.prefix != prefix);
        if list.len() >= KNOWN_PER_USER {
            list.remove(0);
        }
        // Most users have one prefix; room for four would be allocated otherwise.
        list.reserve_exact(1);
        list.push(KnownPrefix { prefix, since: now });
        true
    }

    /// How many names and users have a record.
    pub(super) fn entries(&self) -> [u64; 2] {
        [self.names.entry_count(), self.known.entry_count()]
    }

    /// Runs moka's background work now.
    #[cfg(test)]
    pub(super) fn run_pending(&self) {
        self.names.run_pending_tasks();
        self.known.run_pending_tasks();
    }
}
