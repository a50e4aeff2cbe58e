//! Intervals, and the lock that all files of this folder use.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Intervals that are constants in production and adjusted by tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// Between two binds of a service account that was refused.
    pub(crate) service_retry: Duration,
    /// How long a failed server is marked down at first; doubled at each failure.
    pub(crate) down: Duration,
    /// The longest time that a server is marked down.
    pub(crate) down_max: Duration,
    /// Between two probes of a healthy server.
    pub(crate) probe_interval: Duration,
    /// How long a successful canary check is valid for empty results.
    pub(crate) canary_valid: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            service_retry: Duration::from_secs(60),
            down: Duration::from_secs(1),
            down_max: Duration::from_secs(30),
            probe_interval: Duration::from_secs(10),
            canary_valid: Duration::from_secs(1),
        }
    }
}

/// Locks a mutex whose holders cannot leave it half-changed, so that poisoning is ignored.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
