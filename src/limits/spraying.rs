//! The names refused at one prefix within a minute: a few passwords tried under many names (password spraying) show
//! as many names, where the mistakes of a user or of a device show as one.
//!
//! Names are counted as typed, so that the count does not reveal whether two of them lead to one entry. Pure
//! arithmetic on a given time.

use std::time::Duration;

use tokio::time::Instant;

use super::bucket::growing;
use super::keys::HashedKey;
use crate::config::PasswordSpraying;

/// How long a refused name counts.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Names kept per prefix. More than any `names_per_minute`, so that the delay reaches its maximum first.
pub(super) const KEPT: usize = 256;

/// The names refused at one prefix.
#[derive(Debug)]
pub(super) struct RefusedNames {
    /// The one refused last is at the end.
    names: Vec<RefusedName>,
    /// When the last delayed attempt is due; the next one comes after it.
    allowed_at: Instant,
}

#[derive(Debug)]
struct RefusedName {
    name: HashedKey,
    since: Instant,
}

impl RefusedNames {
    pub(super) fn new() -> Self {
        Self { names: Vec::new(), allowed_at: Instant::now() }
    }

    /// The delay of an attempt with this name that arrives now.
    pub(super) fn delay(&mut self, name: HashedKey, now: Instant, rule: &PasswordSpraying) -> Duration {
        self.names.retain(|refused| now.saturating_duration_since(refused.since) < WINDOW);
        let others = self.names.iter().filter(|refused| refused.name != name).count();
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        let Some(above) = others.checked_sub(rule.names_per_minute) else { return Duration::ZERO };
        // Concurrent attempts are serialized, as those of a bucket are.
        let step = growing(rule.first_delay, above, rule.max_delay);
        (self.allowed_at.max(now) + step).saturating_duration_since(now)
    }

    /// Counts a name as refused until its outcome is known. Returns whether it was not counted before.
    pub(super) fn charge(&mut self, name: HashedKey, now: Instant, delay: Duration, rule: &PasswordSpraying) -> bool {
        let is_new = !self.remove(name);
        if self.names.len() >= KEPT {
            self.names.remove(0);
        }
        self.names.push(RefusedName { name, since: now });
        if !delay.is_zero() {
            self.allowed_at = now + delay.min(rule.max_delay);
        }
        is_new
    }

    /// The name was not refused after all, or has logged in since. Returns whether it was counted.
    pub(super) fn remove(&mut self, name: HashedKey) -> bool {
        let found = self.names.iter().position(|refused| refused.name == name);
        found.map(|at| self.names.remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;

    const RULE: PasswordSpraying = PasswordSpraying {
        mode: Mode::Enforce,
        names_per_minute: 3,
        first_delay: Duration::from_millis(300),
        max_delay: Duration::from_secs(4),
    };

    fn try_name(names: &mut RefusedNames, name: HashedKey, now: Instant) -> u128 {
        let delay = names.delay(name, now, &RULE);
        names.charge(name, now, delay, &RULE);
        delay.as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn names_above_the_limit_are_delayed_one_after_another() {
        let (mut names, now) = (RefusedNames::new(), Instant::now());
        let delays: Vec<_> = (0..8).map(|name| try_name(&mut names, name, now)).collect();
        assert_eq!(delays, [0, 0, 0, 300, 900, 2_100, 4_500, 8_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_name_counts_once_and_for_a_minute() {
        let (mut names, mut now) = (RefusedNames::new(), Instant::now());
        for _ in 0..50 {
            assert_eq!(try_name(&mut names, 1, now), 0);
        }
        now += WINDOW / 2;
        assert_eq!([2, 3, 1].map(|name| try_name(&mut names, name, now)), [0; 3]);
        assert_eq!(try_name(&mut names, 4, now), 300);
        assert_eq!(try_name(&mut names, 1, now + Duration::from_secs(1)), 300, "an old name waits, too");
        now += WINDOW;
        assert_eq!(try_name(&mut names, 5, now), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn names_kept_are_bounded() {
        let (mut names, now) = (RefusedNames::new(), Instant::now());
        for name in 0..2_000 {
            names.charge(name, now, Duration::ZERO, &RULE);
        }
        assert_eq!(names.names.len(), KEPT);
        assert!(names.remove(1_999) && !names.remove(0), "the newest are kept");
    }
}
