//! What is known of users without a failure: the entry of each name, and the prefixes from which a user has logged
//! in. Bounded like the counts (`memory`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use tokio::time::Instant;

use super::keys::HashedKey;
use crate::config;

/// Known prefixes per user: home, office, phone, and some hotels.
const KNOWN_PER_USER: usize = 16;

#[derive(Debug)]
struct KnownPrefix {
    prefix: HashedKey,
    since: Instant,
}

/// Names and known prefixes.
#[derive(Debug)]
pub(super) struct KnownUsers {
    ttl: Duration,
    names: moka::sync::Cache<HashedKey, HashedKey>,
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

    /// The entry that a name last led to; the name itself if unknown.
    pub(super) fn entry(&self, name: HashedKey) -> HashedKey {
        self.names.get(&name).unwrap_or(name)
    }

    /// Records the entry of a name.
    pub(super) fn name(&self, name: HashedKey, entry: HashedKey) {
        if self.names.get(&name) != Some(entry) {
            self.names.insert(name, entry);
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

    /// Records that this user has logged in from this prefix.
    pub(super) fn add_known_prefix(&self, user: HashedKey, prefix: HashedKey) {
        let list = self.known.get_with(user, Arc::default);
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| known.prefix != prefix);
        if list.len() >= KNOWN_PER_USER {
            list.remove(0);
        }
        // Most users have one prefix; room for four would be allocated otherwise.
        list.reserve_exact(1);
        list.push(KnownPrefix { prefix, since: Instant::now() });
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
