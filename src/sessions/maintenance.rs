//! Backends that an administrator has taken out of service: they get no new login, and their sessions end at a
//! pace.
//!
//! State survives a reload and is handed over in an upgrade; nothing is written to disk. Access is controlled
//! by the control socket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::base::clock::unix_now;
use crate::sessions::closer::Closer;

/// A backend that is being drained: it gets no new login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drain {
    /// Since when, Unix seconds.
    pub since: u64,
    /// How many of its sessions are closed in a second; 0: they end by themselves.
    pub rate: u32,
}

/// The drained backends.
#[derive(Debug)]
pub(crate) struct Maintenance {
    closer: Arc<Closer>,
    drained: Mutex<BTreeMap<Arc<str>, Drain>>,
}

impl Maintenance {
    /// No backend is drained.
    #[must_use]
    pub(crate) fn new(closer: Arc<Closer>) -> Self {
        Self { closer, drained: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Drain>> {
        self.drained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends no new login to this backend, and closes its sessions, oldest first, `rate` per second. A second
    /// call changes the rate.
    pub(crate) fn drain(&self, backend: &str, rate: u32) -> Drain {
        let backend: Arc<str> = backend.into();
        let mut drained = self.lock();
        let since = drained.get(&backend).map_or_else(unix_now, |before| before.since);
        let drain = Drain { since, rate };
        drained.insert(Arc::clone(&backend), drain);
        if rate > 0 {
            self.closer.close_backend(backend, rate);
        } else {
            self.closer.keep_backend(&backend);
        }
        drain
    }

    /// Sends users to this backend again; whether it was drained.
    pub(crate) fn undrain(&self, backend: &str) -> bool {
        let mut drained = self.lock();
        let removed = drained.remove_entry(backend);
        removed.is_some_and(|(backend, _)| {
            self.closer.keep_backend(&backend);
            true
        })
    }

    /// Whether a backend is drained, and how.
    #[must_use]
    pub(crate) fn drained(&self, backend: &str) -> Option<Drain> {
        self.lock().get(backend).copied()
    }

    /// Every backend that is drained.
    #[must_use]
    pub(crate) fn drains(&self) -> Vec<(Arc<str>, Drain)> {
        self.lock().iter().map(|(backend, drain)| (Arc::clone(backend), *drain)).collect()
    }

    /// Forgets backends that are not configured any more; returns their names.
    pub(crate) fn keep(&self, configured: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let mut drained = self.lock();
        let gone: Vec<_> = drained.keys().filter(|backend| !configured(backend)).cloned().collect();
        for backend in &gone {
            drained.remove(backend);
            self.closer.keep_backend(backend);
        }
        gone
    }
}
