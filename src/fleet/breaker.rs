//! When the store is not asked at all: so that a slow store delays three logins, and not every login.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// This many late answers ...
const LATE: usize = 3;
/// ... within this time open the breaker.
const WINDOW: Duration = Duration::from_secs(10);

/// Open at first: it closes after the first beat.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    closed: AtomicBool,
    late: Mutex<VecDeque<Instant>>,
}

impl Breaker {
    /// Whether the store is asked.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// An answer was late; returns whether that has opened the breaker.
    pub(super) fn late(&self) -> bool {
        let now = Instant::now();
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        while late.len() >= LATE || late.front().is_some_and(|first| now.duration_since(*first) > WINDOW) {
            late.pop_front();
        }
        late.push_back(now);
        late.len() == LATE && self.open()
    }

    /// Opens it; returns whether it was closed.
    pub(super) fn open(&self) -> bool {
        self.closed.swap(false, Ordering::AcqRel)
    }

    /// Closes it after a beat; returns whether it was open.
    pub(super) fn close(&self) -> bool {
        let was_open = !self.closed.swap(true, Ordering::AcqRel);
        if was_open {
            self.late.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        was_open
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn three_late_answers_within_the_window_open_it() {
        let breaker = Breaker::default();
        assert!(!breaker.is_closed() && breaker.close() && breaker.is_closed() && !breaker.close());
        assert!(!breaker.late());
        advance(Duration::from_secs(6)).await;
        assert!(!breaker.late());
        advance(Duration::from_secs(6)).await;
        assert!(!breaker.late() && breaker.is_closed(), "the first is too old");
        assert!(breaker.late() && !breaker.is_closed());
        assert!(!breaker.late(), "it is open already");
        // What was late before it closed again does not count.
        assert!(breaker.close() && !breaker.late() && !breaker.late() && breaker.late());
    }
}
