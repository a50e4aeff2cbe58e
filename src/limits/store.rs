//! The records of the rate limits: wrong passwords by prefix and by user, the entry of each name, and the
//! prefixes from which a user has logged in.
//!
//! Each part is a moka cache with a capacity, its keys are hashes of fixed size, and each value is bounded, so
//! that unauthenticated clients cannot make it grow. moka keeps frequently used keys: a flood of new names does
//! not evict one that is being guessed. Expiry is computed on tokio's clock; moka's own expiry only frees
//! memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use tokio::time::Instant;

use super::HashedKey;
use crate::base::credential::AttemptDigest;
use crate::config::{self, FailedLogins};

/// Tried passwords remembered per user: a few devices with outdated passwords.
const TRIED: usize = 8;
/// Known prefixes per user: home, office, phone, and some hotels.
const KNOWN_PER_USER: usize = 16;
/// The number of counted failures above the free ones is capped at this.
const MOST_ABOVE_FREE: u32 = 16;

/// The wrong passwords of one prefix, or for one user.
#[derive(Debug)]
pub(super) struct Bucket {
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
    fn new() -> Self {
        let now = Instant::now();
        Self { failures: 0, credited_until: now, allowed_at: now, tried: Vec::new() }
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
        rule.first_delay.saturating_mul(1 << above.min(MOST_ABOVE_FREE)).min(rule.max_delay)
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

    /// Subtracts some failures.
    pub(super) fn subtract(&mut self, failures: u32) {
        self.failures = self.failures.saturating_sub(failures);
    }

    /// Resets the bucket; returns the number of failures.
    pub(super) fn reset(&mut self) -> u32 {
        self.tried.clear();
        std::mem::take(&mut self.failures)
    }

    fn is_blank(&self) -> bool {
        self.failures == 0 && self.tried.is_empty()
    }
}

/// A bucket shared by several attempts.
#[derive(Debug, Clone)]
pub(super) struct SharedBucket(Arc<Mutex<Bucket>>);

impl SharedBucket {
    /// Held for a few comparisons, never across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Bucket> {
        // A bucket is consistent even if its holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct KnownPrefix {
    prefix: HashedKey,
    since: Instant,
}

/// All records.
#[derive(Debug)]
pub(super) struct LimitMemory {
    settings: config::Memory,
    prefixes: moka::sync::Cache<HashedKey, SharedBucket>,
    users: moka::sync::Cache<HashedKey, SharedBucket>,
    names: moka::sync::Cache<HashedKey, HashedKey>,
    known: moka::sync::Cache<HashedKey, Arc<Mutex<Vec<KnownPrefix>>>>,
}

impl LimitMemory {
    pub(super) fn new(settings: &config::Memory) -> Self {
        let bounded = || moka::sync::Cache::builder().max_capacity(settings.capacity);
        // A bucket unused for this long has no failures left.
        let life = settings.forget_every.saturating_mul(2 * MOST_ABOVE_FREE);
        Self {
            settings: settings.clone(),
            prefixes: bounded().time_to_idle(life).build(),
            users: bounded().time_to_idle(life).build(),
            names: moka::sync::Cache::builder()
                .max_capacity(settings.capacity)
                .time_to_idle(settings.known_network_ttl)
                .build(),
            // Only a correct password adds an entry here, so that the newest always fits.
            known: moka::sync::Cache::builder()
                .max_capacity(settings.capacity)
                .time_to_idle(settings.known_network_ttl)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
        }
    }

    pub(super) fn settings(&self) -> &config::Memory {
        &self.settings
    }

    pub(super) fn prefix(&self, prefix: HashedKey) -> SharedBucket {
        self.prefixes.get_with(prefix, fresh)
    }

    pub(super) fn user(&self, user: HashedKey) -> SharedBucket {
        self.users.get_with(user, fresh)
    }

    /// Refunds a name that was charged before its entry was known, which is charged instead: the name needs no
    /// record any more, unless other attempts with it are in progress.
    pub(super) fn refund_name(&self, name: HashedKey, shelf: &SharedBucket, password: AttemptDigest) {
        let is_blank = {
            let mut bucket = shelf.lock();
            bucket.refund(password);
            bucket.is_blank()
        };
        if is_blank {
            self.users.invalidate(&name);
        }
    }

    /// Resets a user: the account is removed, so that most users have none for long. The prefix is credited
    /// with this user's failures, not with those of others there: an account of one's own buys no guesses at
    /// others. Attempts in progress are credited, too.
    pub(super) fn reset_user(&self, user: HashedKey, prefix: HashedKey) {
        let Some(of_user) = self.users.remove(&user) else { return };
        let failures = of_user.lock().reset();
        if let Some(of_prefix) = self.prefixes.get(&prefix) {
            of_prefix.lock().subtract(failures);
        }
    }

    /// Resets a user, whatever the spelling of the guesses.
    pub(super) fn forget_user(&self, user: HashedKey) {
        self.users.invalidate(&user);
    }

    /// The entry that a name last led to; the name itself if unknown.
    pub(super) fn entry(&self, name: HashedKey) -> HashedKey {
        self.names.get(&name).unwrap_or(name)
    }

    /// Records the entry of a name.
    pub(super) fn name(&self, name: HashedKey, entry: HashedKey) {
        if self.names.get(&name) != Some(entry) {
            self.names.insert(name, entry);
        }
    }

    /// Whether this user has logged in from this prefix before.
    pub(super) fn is_known_prefix(&self, user: HashedKey, prefix: HashedKey) -> bool {
        let now = Instant::now();
        let fresh = |known: &KnownPrefix| now.saturating_duration_since(known.since) < self.settings.known_network_ttl;
        let Some(list) = self.known.get(&user) else { return false };
        let list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().any(|known| known.prefix == prefix && fresh(known))
    }

    /// Records that this user has logged in from this prefix.
    pub(super) fn add_known_prefix(&self, user: HashedKey, prefix: HashedKey) {
        let list = self.known.get_with(user, Arc::default);
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| known.prefix != prefix);
        if list.len() >= KNOWN_PER_USER {
            list.remove(0);
        }
        // Most users have one prefix; room for four would be allocated otherwise.
        list.reserve_exact(1);
        list.push(KnownPrefix { prefix, since: Instant::now() });
    }

    /// How many there are of each kind, in the order of [`ThrottleRecord`](crate::telemetry::labels::ThrottleRecord).
    pub(super) fn entries(&self) -> [u64; 4] {
        [self.prefixes.entry_count(), self.users.entry_count(), self.names.entry_count(), self.known.entry_count()]
    }

    /// Runs moka's background work now.
    #[cfg(test)]
    pub(super) fn run_pending(&self) {
        self.prefixes.run_pending_tasks();
        self.users.run_pending_tasks();
        self.names.run_pending_tasks();
        self.known.run_pending_tasks();
    }
}

fn fresh() -> SharedBucket {
    SharedBucket(Arc::new(Mutex::new(Bucket::new())))
}
