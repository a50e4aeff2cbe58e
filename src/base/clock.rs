//! Waiting for a point in time that may already be past.

use tokio::time::{Instant, sleep_until};

/// Waits until `at`; returns at once if that is now or past. tokio's own timers go by whole milliseconds and
/// round up: a wait of zero would still last until the next one, in every login.
pub(crate) async fn wait_until(at: Instant) {
    if at > Instant::now() {
        sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

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
}
