//! This process's share of a limit that is meant for all ushers together: of what a mail server bears, not of what one
//! client may.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// By how many ushers such a limit is divided: 1 without a fleet, which keeps the number up to date.
#[derive(Debug, Clone)]
pub(crate) struct Shares(Arc<AtomicU32>);

impl Default for Shares {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(1)))
    }
}

impl Shares {
    /// Where the fleet writes the divisor.
    #[must_use]
    pub(crate) fn divisor(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.0)
    }

    /// How many ushers share.
    #[must_use]
    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed).max(1)
    }

    /// The share of a limit, rounded up, so that no usher has none.
    #[must_use]
    pub(crate) fn of(&self, limit: u32) -> u32 {
        limit.div_ceil(self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_together_are_the_limit_and_none_is_zero() {
        let shares = Shares::default();
        assert_eq!(shares.of(200), 200);
        for (count, share) in [(0, 200), (2, 100), (3, 67), (150, 2), (1_000, 1)] {
            shares.divisor().store(count, Ordering::Relaxed);
            assert_eq!(shares.of(200), share, "{count}");
        }
        assert_eq!(shares.of(1), 1);
    }
}
