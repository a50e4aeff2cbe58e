//! Time: waiting for a point that may already be past, jitter, and the calendar.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};
use x509_parser::time::ASN1Time;

/// Unix seconds now.
#[must_use]
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// `2026-12-24`, of Unix time.
#[must_use]
pub(crate) fn date(time: i64) -> String {
    let date = ASN1Time::from_timestamp(time).ok().map(|time| {
        let date = time.to_datetime().date();
        format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
    });
    date.unwrap_or_else(|| format!("{time} (Unix time)"))
}

/// Waits until `at`; returns at once if that is now or past. tokio's own timers go by whole milliseconds and
/// round up: a wait of zero would still last until the next one, in every login.
pub(crate) async fn wait_until(at: Instant) {
    if at > Instant::now() {
        sleep_until(at).await;
    }
}

/// A duration with up to 20 % jitter, so that many connections do not expire at once.
pub(crate) fn jittered(duration: Duration) -> Duration {
    let part = u32::try_from(random() % 400).unwrap_or_default();
    duration.saturating_mul(800 + part) / 1_000
}

/// A number from 0 to 1 by which one of several is chosen. No secret depends on it.
pub(crate) fn chance() -> f64 {
    // 2^32 values, each of which a float has exactly.
    let number = u32::try_from(random() >> 32).unwrap_or_default();
    f64::from(number) / f64::from(u32::MAX)
}

/// Each RandomState has its own keys: enough randomness for this, without a dependency.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[test]
    fn jitter_is_at_most_a_fifth() {
        for _ in 0..1_000 {
            let second = jittered(Duration::from_secs(10));
            assert!(second >= Duration::from_secs(8) && second < Duration::from_secs(12));
        }
    }

    /// A paused clock moves as timers fire, and they fire at whole milliseconds: it stands between two.
    #[tokio::test(start_paused = true)]
    async fn due_timer_does_not_wait() {
        advance(Duration::from_micros(300)).await;
        let now = Instant::now();
        wait_until(now).await;
        wait_until(now - Duration::from_micros(1)).await;
        assert_eq!(now, Instant::now());
        wait_until(now + Duration::from_micros(1)).await;
        assert!(Instant::now() > now);
    }
    #[test]
    fn date_of_unix_time_is_the_day_in_utc() {
        assert_eq!(date(1_795_000_000), "2026-11-18");
        assert_eq!(date(i64::MAX), format!("{} (Unix time)", i64::MAX));
    }
}
