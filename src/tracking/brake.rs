//! The brake: when too many users are moved or disabled at once, an administrator must confirm the changes.
//! Pure: it counts, and takes the time as a parameter.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::directory::Entry;

/// The period that counts as "at once".
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Changes per minute that are always allowed by default.
const FEW: usize = 200;

/// An applied change, with the previous values.
#[derive(Debug, Clone)]
pub(super) struct AppliedChange {
    at: Instant,
    pub(super) before: Arc<Entry>,
}

/// The brake.
#[derive(Debug, Default)]
pub(super) struct Brake {
    on: bool,
    /// It is on at all nodes of a fleet, and goes off at all of them.
    shared: bool,
    confirmed_until: Option<Instant>,
    recent: VecDeque<AppliedChange>,
}

impl Brake {
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// Whether it goes off with the brakes of other nodes only.
    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    /// How many changes are allowed: as configured, or the larger of 200 and 2 % of the known users.
    pub(super) fn limit(configured: Option<u32>, users: usize) -> usize {
        configured.map_or_else(|| FEW.max(users / 50), |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// Whether this many more exceed the limit now.
    pub(super) fn would_trip(&mut self, more: usize, limit: usize, now: Instant) -> bool {
        self.recent.retain(|acted| now.saturating_duration_since(acted.at) < WINDOW);
        more > 0 && !self.is_confirmed(now) && self.recent.len() + more > limit
    }

    /// Whether an administrator has confirmed changes until a later time.
    pub(super) fn is_confirmed(&self, now: Instant) -> bool {
        self.confirmed_until.is_some_and(|until| now < until)
    }

    /// Records an applied change.
    pub(super) fn acted(&mut self, before: Arc<Entry>, limit: usize, now: Instant) {
        if self.is_confirmed(now) {
            return;
        }
        if self.recent.len() >= limit {
            self.recent.pop_front();
        }
        self.recent.push_back(AppliedChange { at: now, before });
    }

    /// Engages; returns the changes applied within the window, so that they can be reverted.
    pub(super) fn trip(&mut self, shared: bool, now: Instant) -> Vec<AppliedChange> {
        (self.on, self.shared) = (true, shared);
        self.recent.retain(|acted| now.saturating_duration_since(acted.at) < WINDOW);
        std::mem::take(&mut self.recent).into()
    }

    /// The changes applied within the window.
    pub(super) fn recent(&self, now: Instant) -> impl Iterator<Item = &AppliedChange> {
        self.recent.iter().filter(move |acted| now.saturating_duration_since(acted.at) < WINDOW)
    }

    /// Releases, for all changes within this time.
    pub(super) fn confirm(&mut self, time: Duration, now: Instant) {
        (self.on, self.shared) = (false, false);
        self.recent.clear();
        self.confirmed_until = (!time.is_zero()).then(|| now + time);
    }

    /// Goes off, because the values are back.
    pub(super) fn release(&mut self) {
        (self.on, self.shared) = (false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_pass_and_large_shares_engage_the_brake() {
        assert_eq!(Brake::limit(None, 10), 200);
        assert_eq!(Brake::limit(None, 10_000), 200);
        assert_eq!(Brake::limit(None, 50_000), 1_000);
        assert_eq!(Brake::limit(Some(3), 50_000), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn brake_counts_over_a_minute() {
        let entry = Arc::new(Entry::for_tests("uid=a", &["old"]));
        let mut brake = Brake::default();
        assert!(!brake.would_trip(3, 3, Instant::now()));
        assert!(brake.would_trip(4, 3, Instant::now()), "all at once");
        for _ in 0..3 {
            assert!(!brake.would_trip(1, 3, Instant::now()));
            brake.acted(Arc::clone(&entry), 3, Instant::now());
        }
        assert!(brake.would_trip(1, 3, Instant::now()));
        assert!(!brake.would_trip(0, 3, Instant::now()), "nothing is not too many");
        tokio::time::advance(WINDOW).await;
        assert!(!brake.would_trip(3, 3, Instant::now()));
        brake.acted(entry, 3, Instant::now());
        assert_eq!(brake.trip(false, Instant::now()).len(), 1);
        assert!(brake.is_on());
        brake.confirm(Duration::from_secs(90), Instant::now());
        assert!(!brake.is_on() && !brake.would_trip(1_000, 3, Instant::now()));
        tokio::time::advance(Duration::from_secs(90)).await;
        assert!(brake.would_trip(1_000, 3, Instant::now()));
    }
}
