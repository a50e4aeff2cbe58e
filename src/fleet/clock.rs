//! The store's clock, as it is known here: by it members agree on how old a message is.
//!
//! Between two beats it goes on by this machine's monotonic clock. Nothing is protected by it alone: whoever owns the
//! store sets it.

use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// What a clock may say, in microseconds: the years 2020 to 2199. Under another one marks would end at once, or be later
/// than all that follow.
pub(super) const POSSIBLE: RangeInclusive<u64> = 1_577_836_800_000_000..=7_258_118_399_999_999;

/// The store's clock.
#[derive(Debug, Default)]
pub(super) struct StoreClock(Mutex<Option<Reading>>);

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    micros: u64,
    /// By how much this machine's clock is ahead, in seconds.
    ahead: f64,
    /// How long the answer took.
    took: Duration,
}

impl StoreClock {
    /// Takes over what the store says between these two moments; returns by how much this machine's clock is
    /// ahead of it, in seconds.
    pub(super) fn set(&self, asked: Instant, answered: Instant, micros: u64) -> f64 {
        let took = answered.saturating_duration_since(asked);
        let micros = micros.saturating_add(micros_of(took) / 2);
        let own = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, micros_of);
        let own = own.saturating_sub(micros_of(answered.elapsed()));
        let skew = Duration::from_micros(own.abs_diff(micros)).as_secs_f64();
        let ahead = if own < micros { -skew } else { skew };
        let reading = Reading { at: answered, micros, ahead, took };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
        ahead
    }

    fn reading(&self) -> Option<Reading> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By how much this machine's clock is ahead, in seconds, and how long the last answer took; `None` before the first.
    pub(super) fn quality(&self) -> Option<(f64, Duration)> {
        self.reading().map(|Reading { ahead, took, .. }| (ahead, took))
    }

    /// Now, in microseconds of Unix time; `None` before the first answer.
    pub(super) fn now(&self) -> Option<u64> {
        let reading = self.reading()?;
        Some(reading.micros.saturating_add(micros_of(reading.at.elapsed())))
    }
}

/// Whole microseconds.
pub(super) fn micros_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clock_goes_on_between_two_readings() {
        let clock = StoreClock::default();
        assert_eq!(clock.now(), None);
        let asked = Instant::now();
        advance(Duration::from_millis(10)).await;
        clock.set(asked, Instant::now(), 1_000_000);
        assert_eq!(clock.now(), Some(1_005_000));
        advance(Duration::from_secs(2)).await;
        assert_eq!(clock.now(), Some(3_005_000));
        // The store was replaced by one whose clock is behind.
        clock.set(Instant::now(), Instant::now(), 500);
        assert_eq!(clock.now(), Some(500));
    }

    #[tokio::test]
    async fn skew_is_how_far_this_machine_is_ahead() {
        let clock = StoreClock::default();
        let own = micros_of(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
        let now = Instant::now();
        assert!((clock.set(now, now, own - 5_000_000) - 5.0).abs() < 1.0);
        assert!((clock.set(now, now, own + 5_000_000) + 5.0).abs() < 1.0);
    }
}
