//! Counts what each key holds now: connections of a prefix, sessions of a user. Each permit is a guard.
//!
//! Exact, never evicted, and bounded by what is counted: a key exists while it is held.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keys::HashedKey;
use super::sessions::SharedSession;
use crate::telemetry::metrics::Metrics;

/// A map this small is not shrunk.
const SMALL: usize = 64;

#[derive(Debug, Default)]
struct KeyCounts {
    keys: HashMap<HashedKey, u32>,
    total: u32,
}

/// Counts by key.
#[derive(Debug, Default)]
pub(super) struct HeldCounts(Mutex<KeyCounts>);

impl HeldCounts {
    /// Adds one for this key, until the guard is dropped.
    pub(super) fn hold(self: &Arc<Self>, key: HashedKey) -> CountGuard {
        let mut counted = self.lock();
        counted.total = counted.total.saturating_add(1);
        let total = counted.total;
        let count = counted.keys.entry(key).or_default();
        *count = count.saturating_add(1);
        CountGuard { count: *count, total, counts: Arc::clone(self), key }
    }

    /// What is held for this key.
    pub(super) fn count(&self, key: HashedKey) -> u32 {
        self.lock().keys.get(&key).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, KeyCounts> {
        // Consistent at every moment: each change affects one of two numbers.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let counted = self.lock();
        counted.keys.is_empty() && counted.total == 0
    }
}

/// One counted item.
#[derive(Debug)]
pub(super) struct CountGuard {
    /// The count of its key on arrival, itself included.
    pub(super) count: u32,
    /// The total on arrival.
    pub(super) total: u32,
    counts: Arc<HeldCounts>,
    key: HashedKey,
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        let mut counted = self.counts.lock();
        counted.total = counted.total.saturating_sub(1);
        let Some(count) = counted.keys.get_mut(&self.key) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            counted.keys.remove(&self.key);
            // Returns the memory of a burst.
            let capacity = counted.keys.capacity();
            if capacity > SMALL && counted.keys.len() < capacity / 4 {
                counted.keys.shrink_to(capacity / 2);
            }
        }
    }
}

/// A counted connection, until dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    pub(super) _held: CountGuard,
    /// While its client is not logged in.
    pub(super) unauthenticated: Option<CountGuard>,
}

impl ConnectionPermit {
    /// The client is logged in.
    pub(crate) fn logged_in(&mut self) {
        self.unauthenticated = None;
    }
}

/// A counted TLS handshake, until dropped.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    pub(super) _held: CountGuard,
    pub(super) metrics: Arc<Metrics>,
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.metrics.handshakes.dec();
    }
}

/// A counted wait for a PROXY header, until dropped.
#[derive(Debug)]
pub(crate) struct AwaitingProxyHeader {
    pub(super) _held: CountGuard,
}

/// A counted session, until dropped.
#[derive(Debug)]
pub(crate) struct SessionPermit {
    pub(super) _held: [CountGuard; 2],
    /// The same session as others count it.
    pub(super) _shared: Option<SharedSession>,
}
