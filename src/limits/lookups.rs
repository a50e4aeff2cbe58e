//! How long lookups have taken of late: what a reply from the cache has to be held for, so that its time does not show
//! that the answer was known.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The longest lookup within at least one window, and at most two.
#[derive(Debug, Default)]
pub(crate) struct LookupTimes {
    of_late: Mutex<Option<Longest>>,
}

#[derive(Debug, Clone, Copy)]
struct Longest {
    since: Instant,
    now: Duration,
    before: Duration,
}

impl Longest {
    fn at(self, now: Instant, window: Duration) -> Self {
        match now.saturating_duration_since(self.since) {
            age if age < window => self,
            age if age < window.saturating_mul(2) => Self { since: now, now: Duration::ZERO, before: self.now },
            _ => Self { since: now, now: Duration::ZERO, before: Duration::ZERO },
        }
    }
}

impl LookupTimes {
    /// Records a lookup that has ended.
    pub(crate) fn record(&self, took: Duration, window: Duration) {
        let now = Instant::now();
        let mut of_late = self.of_late.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Longest { since: now, now: Duration::ZERO, before: Duration::ZERO };
        let longest = of_late.map_or(fresh, |longest| longest.at(now, window));
        *of_late = Some(Longest { now: longest.now.max(took), ..longest });
    }

    /// The longest lookup of late.
    pub(crate) fn longest(&self, window: Duration) -> Duration {
        let of_late = *self.of_late.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = of_late.map(|longest| longest.at(Instant::now(), window));
        longest.map_or(Duration::ZERO, |longest| longest.now.max(longest.before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn longest_lookup_is_kept_for_a_window() {
        let (times, window, ms) = (LookupTimes::default(), Duration::from_secs(30), Duration::from_millis);
        assert_eq!(times.longest(window), Duration::ZERO);
        times.record(ms(2_500), window);
        tokio::time::advance(Duration::from_secs(29)).await;
        times.record(ms(2_400), window);
        assert_eq!(times.longest(window), ms(2_500));
        tokio::time::advance(Duration::from_secs(29)).await;
        times.record(ms(10), window);
        assert_eq!(times.longest(window), ms(2_500));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(times.longest(window), ms(10));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(times.longest(window), Duration::ZERO);
    }
}
