//! The wrong passwords of one account: how many there are, how they expire, and what delay they require.
//!
//! Pure arithmetic on a given time.

use std::time::Duration;

use tokio::time::Instant;

use crate::base::credential::AttemptDigest;
use crate::config::FailedLogins;

/// Tried passwords remembered per user: a few devices with outdated passwords.
const TRIED: usize = 8;
/// The number of counted failures above the free ones is capped at this.
pub(super) const MOST_ABOVE_FREE: u32 = 16;

/// The wrong passwords of one prefix, or for one user.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Distinguishes it from later ones of the same key: a charge is refunded to the bucket that it was made to.
    pub(super) generation: u64,
    failures: u32,
    /// Until when elapsed time has been credited against failures.
    credited_until: Instant,
    /// When the last delayed attempt is due; the next one comes after it.
    allowed_at: Instant,
    tried: Vec<TriedPassword>,
}

#[derive(Debug)]
struct TriedPassword {
    password: AttemptDigest,
    allowed_at: Instant,
}

impl Bucket {
    pub(super) fn new(generation: u64, now: Instant) -> Self {
        Self { generation, failures: 0, credited_until: now, allowed_at: now, tried: Vec::new() }
    }

    /// The delay of an attempt that arrives now.
    pub(super) fn delay(&mut self, now: Instant, every: Duration, rule: &FailedLogins) -> Duration {
        let step = self.step(now, every, rule);
        // Concurrent attempts are serialized: many connections guess no faster than one.
        if step.is_zero() { step } else { (self.allowed_at.max(now) + step).saturating_duration_since(now) }
    }

    /// The required interval between two attempts, given the failures not yet expired.
    fn step(&mut self, now: Instant, every: Duration, rule: &FailedLogins) -> Duration {
        let passed = now.saturating_duration_since(self.credited_until);
        let expired = u32::try_from(passed.as_millis() / every.as_millis().max(1)).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_sub(expired);
        self.credited_until =
            if self.failures == 0 { now } else { self.credited_until + every.saturating_mul(expired) };
        let Some(above) = self.failures.checked_sub(rule.free_failures) else { return Duration::ZERO };
        growing(rule.first_delay, above, rule.max_delay)
    }

    /// Whether an attempt that arrives now is too early: too many failures, and the last one too recent. One
    /// that has `waited` for the delay of its spelling, whose count may be one behind, is granted half of that.
    pub(super) fn is_over(&mut self, now: Instant, every: Duration, rule: &FailedLogins, waited: bool) -> bool {
        let step = self.step(now, every, rule);
        let patience = if waited { step / 2 } else { step };
        self.is_at_limit(rule) || (!step.is_zero() && now < self.allowed_at + patience)
    }

    /// Whether the limit is reached.
    pub(super) fn is_at_limit(&self, rule: &FailedLogins) -> bool {
        rule.limit.is_some_and(|limit| self.failures >= limit)
    }

    /// When this password is due, if it was tried before: the same one again is not a new guess.
    pub(super) fn tried(&self, password: AttemptDigest) -> Option<Instant> {
        self.tried.iter().find(|tried| tried.password == password).map(|tried| tried.allowed_at)
    }

    /// Counts an attempt as a failure until its outcome is known.
    pub(super) fn charge(&mut self, now: Instant, delay: Duration, rule: &FailedLogins) {
        let most = rule.free_failures.saturating_add(MOST_ABOVE_FREE).max(rule.limit.unwrap_or_default());
        self.failures = self.failures.saturating_add(1).min(most);
        if !delay.is_zero() {
            self.allowed_at = now + delay.min(rule.max_delay);
        }
    }

    /// Counts an attempt that is made now.
    pub(super) fn charge_now(&mut self, now: Instant, rule: &FailedLogins) {
        self.charge(now, Duration::ZERO, rule);
        self.allowed_at = now;
    }

    /// Records that a password is being tried.
    pub(super) fn try_password(&mut self, password: AttemptDigest, allowed_at: Instant) {
        if self.tried.len() >= TRIED {
            self.tried.remove(0);
        }
        self.tried.push(TriedPassword { password, allowed_at });
    }

    /// The attempt was not a failure after all.
    pub(super) fn refund(&mut self, password: AttemptDigest) {
        self.tried.retain(|tried| tried.password != password);
        self.subtract(1);
    }

    /// A password that was about to be tried is not.
    pub(super) fn untry(&mut self, password: AttemptDigest) {
        self.tried.retain(|tried| tried.password != password);
    }

    /// Records when a password that is being tried is due.
    pub(super) fn set_due(&mut self, password: AttemptDigest, allowed_at: Instant) {
        if let Some(tried) = self.tried.iter_mut().find(|tried| tried.password == password) {
            tried.allowed_at = allowed_at;
        }
    }

    /// Takes over what a shared store has counted.
    pub(super) fn adopt(&mut self, failures: u32, credited_until: Instant, allowed_at: Instant) {
        (self.failures, self.credited_until, self.allowed_at) = (failures, credited_until, allowed_at);
    }

    /// Subtracts some failures.
    pub(super) fn subtract(&mut self, failures: u32) {
        self.failures = self.failures.saturating_sub(failures);
    }

    /// The counts without the passwords, to see what becomes of an attempt without making it.
    pub(super) fn counts(&self) -> Self {
        let Self { generation, failures, credited_until, allowed_at, .. } = *self;
        Self { generation, failures, credited_until, allowed_at, tried: Vec::new() }
    }

    /// Resets the bucket; returns the number of failures.
    pub(super) fn reset(&mut self) -> u32 {
        self.tried.clear();
        std::mem::take(&mut self.failures)
    }

    pub(super) fn is_blank(&self) -> bool {
        self.failures == 0 && self.tried.is_empty()
    }
}

/// The delay of an attempt with this many failures above the free ones: each doubles it.
pub(super) fn growing(first: Duration, above: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << above.min(MOST_ABOVE_FREE)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;

    const EVERY: Duration = Duration::from_secs(60);
    const RULE: FailedLogins = FailedLogins {
        mode: Mode::Enforce,
        free_failures: 1,
        limit: Some(40),
        first_delay: Duration::from_millis(100),
        max_delay: Duration::from_secs(4),
    };

    #[tokio::test(start_paused = true)]
    async fn failures_are_capped_above_the_free_ones_and_expire_one_by_one() {
        let mut bucket = Bucket::new(0, Instant::now());
        let mut now = Instant::now();
        for _ in 0..100 {
            bucket.charge(now, Duration::ZERO, &FailedLogins { limit: None, ..RULE });
        }
        // 1 free one and 16 above it.
        now += 16 * EVERY;
        assert_eq!(bucket.delay(now, EVERY, &RULE), RULE.first_delay);
        now += EVERY;
        assert_eq!(bucket.delay(now, EVERY, &RULE), Duration::ZERO);
        assert!(bucket.is_blank());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_counted_up_to_a_limit_above_the_cap() {
        let (mut bucket, now) = (Bucket::new(0, Instant::now()), Instant::now());
        for _ in 0..39 {
            bucket.charge(now, Duration::ZERO, &RULE);
        }
        assert!(!bucket.is_at_limit(&RULE));
        bucket.charge(now, Duration::ZERO, &RULE);
        assert!(bucket.is_at_limit(&RULE));
        bucket.subtract(1);
        assert!(!bucket.is_at_limit(&RULE));
    }
}
