//! The store in this process's memory.
//!
//! Each part is a moka cache with a capacity, its keys are hashes of fixed size, and each value is bounded, so
//! that unauthenticated clients cannot make it grow. moka keeps frequently used keys: a flood of new names does
//! not evict one that is being guessed. Expiry is computed on tokio's clock; moka's own expiry only frees
//! memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::bucket::{Bucket, MOST_ABOVE_FREE};
use super::keys::HashedKey;
use super::spraying::{RefusedNames, WINDOW};
use super::store::{
    Account, Charge, CounterStore, Delays, EntryCharge, EntryGuess, Guess, LaterCharge, Receipt, Receipts, Subject,
    Success,
};
use crate::base::credential::AttemptDigest;
use crate::config::{self, FailedLogins, Mode, PasswordSpraying};
use crate::directory::EntryKey;

/// Prefixes with refused names take up to 6 KiB each: one for this many of `throttle.capacity`.
const NAMES_SHARE: u64 = 16;

/// A bucket shared by several attempts.
#[derive(Debug, Clone)]
struct SharedBucket(Arc<Mutex<Bucket>>);

impl SharedBucket {
    /// Held for a few comparisons, never across an await.
    fn lock(&self) -> MutexGuard<'_, Bucket> {
        // A bucket is consistent even if its holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a user stands with an attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// How long the attempt would wait.
    pub(super) delay: Duration,
    /// Whether the user's limit is reached.
    pub(super) is_at_limit: bool,
    /// Whether the attempt is too early.
    pub(super) is_over: bool,
}

/// The refused names of a prefix, shared like a bucket.
type SharedNames = Arc<Mutex<RefusedNames>>;

fn lock(names: &SharedNames) -> MutexGuard<'_, RefusedNames> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wrong passwords by prefix and by user, and the names refused to each prefix.
#[derive(Debug)]
pub(super) struct LocalStore {
    forget_every: Duration,
    prefixes: moka::sync::Cache<HashedKey, SharedBucket>,
    users: moka::sync::Cache<HashedKey, SharedBucket>,
    names: moka::sync::Cache<HashedKey, SharedNames>,
    generation: AtomicU64,
}

impl LocalStore {
    pub(super) fn new(settings: &config::Memory) -> Self {
        // A bucket unused for this long has no failures left.
        let life = settings.forget_every.saturating_mul(2 * MOST_ABOVE_FREE);
        let bounded = || moka::sync::Cache::builder().max_capacity(settings.capacity).time_to_idle(life).build();
        let names =
            moka::sync::Cache::builder().max_capacity(settings.capacity / NAMES_SHARE).time_to_idle(WINDOW).build();
        let generation = AtomicU64::new(0);
        Self { forget_every: settings.forget_every, prefixes: bounded(), users: bounded(), names, generation }
    }

    fn fresh(&self, now: Instant) -> SharedBucket {
        SharedBucket(Arc::new(Mutex::new(Bucket::new(self.generation.fetch_add(1, Ordering::Relaxed), now))))
    }

    fn prefix(&self, prefix: HashedKey, now: Instant) -> SharedBucket {
        self.prefixes.get_with(prefix, || self.fresh(now))
    }

    fn user(&self, user: HashedKey, now: Instant) -> SharedBucket {
        self.users.get_with(user, || self.fresh(now))
    }

    /// Charges a guess; the answer of memory is there at once.
    pub(super) fn charge_now(&self, guess: &Guess) -> Charge {
        self.charge_at(guess, Instant::now())
    }

    /// Charges a guess that arrives at this time.
    pub(super) fn charge_at(&self, guess: &Guess, now: Instant) -> Charge {
        let every = self.forget_every;
        let (of_user, of_prefix) = (self.user(guess.account, now), self.prefix(guess.prefix, now));
        let mut user = of_user.lock();
        if let Some(at) = user.tried(guess.password) {
            return Charge::Repeated(at.saturating_duration_since(now));
        }
        let mut delays = Delays { user: user.delay(now, every, &guess.user_rule), ..Delays::default() };
        let at_limit = !guess.known && user.is_at_limit(&guess.user_rule);
        let mut prefix = of_prefix.lock();
        if !guess.known {
            delays.prefix = prefix.delay(now, every, &guess.prefix_rule);
        }
        let of_names = guess.name.map(|name| (name, self.names.get_with(guess.prefix, fresh_names)));
        let mut names = of_names.as_ref().map(|((name, rule), names)| (*name, rule, lock(names)));
        if let Some((name, rule, names)) = &mut names {
            delays.names = names.delay(*name, now, rule);
        }
        let receipts = (!guess.is_refused(at_limit, &delays)).then(|| {
            user.charge(now, delays.user, &guess.user_rule);
            user.try_password(guess.password, now + guess.delay(&delays));
            prefix.charge(now, delays.prefix, &guess.prefix_rule);
            let is_new = |(name, rule, names): (HashedKey, &PasswordSpraying, MutexGuard<'_, RefusedNames>)| {
                let mut names = names;
                names.charge(name, now, delays.names, rule).then_some(name)
            };
            let account = names.and_then(is_new).map(|name| Account::Name { prefix: guess.prefix, name });
            Receipts {
                user: Receipt::here(Account::User(guess.account), user.generation),
                prefix: Receipt::here(Account::Prefix(guess.prefix), prefix.generation),
                name: account.map(|account| Receipt::here(account, 0)),
            }
        });
        Charge::Counted { known: guess.known, at_limit, delays, receipts }
    }

    /// Records that a password is being tried whose charge is asked for elsewhere. Until the answer, the same one waits
    /// as long as it may have to. Returns how long a repeated one waits.
    pub(super) fn announce(&self, guess: &Guess) -> Option<Duration> {
        let now = Instant::now();
        let of_user = self.user(guess.account, now);
        let mut user = of_user.lock();
        if let Some(at) = user.tried(guess.password) {
            return Some(at.saturating_duration_since(now));
        }
        user.try_password(guess.password, now + guess.longest_delay());
        None
    }

    /// How this user stands with an attempt that arrives at this time, or has `waited` until then. No record is made.
    pub(super) fn standing(&self, user: HashedKey, at: Instant, waited: bool, rule: &FailedLogins) -> Standing {
        let Some(bucket) = self.users.get(&user) else { return Standing::default() };
        let mut bucket = bucket.lock().counts();
        Standing {
            delay: bucket.delay(at, self.forget_every, rule),
            is_at_limit: bucket.is_at_limit(rule),
            is_over: bucket.is_over(at, self.forget_every, rule, waited),
        }
    }

    /// The delay of an attempt from this prefix.
    pub(super) fn prefix_delay(&self, prefix: HashedKey, now: Instant, rule: &FailedLogins) -> Duration {
        let bucket = self.prefixes.get(&prefix);
        bucket.map_or(Duration::ZERO, |bucket| bucket.lock().counts().delay(now, self.forget_every, rule))
    }

    /// The delay of an attempt with this name by the other names refused to the prefix.
    pub(super) fn names_delay(
        &self,
        prefix: HashedKey,
        name: HashedKey,
        now: Instant,
        rule: &PasswordSpraying,
    ) -> Duration {
        self.names.get(&prefix).map_or(Duration::ZERO, |names| lock(&names).delay(name, now, rule))
    }

    /// The password was not tried after all.
    pub(super) fn retract(&self, account: HashedKey, password: AttemptDigest) {
        if let Some(user) = self.users.get(&account) {
            user.lock().untry(password);
        }
    }

    /// Takes over that a guess was charged elsewhere: when it is due, and its name. Returns the generations of user and
    /// prefix.
    pub(super) fn mirror(&self, guess: &Guess, delay: Duration, delays: &Delays, known: bool) -> [u64; 2] {
        let now = Instant::now();
        if let Some((name, rule)) = guess.name.as_ref().filter(|_| !known) {
            lock(&self.names.get_with(guess.prefix, fresh_names)).charge(*name, now, delays.names, rule);
        }
        let of_user = self.user(guess.account, now);
        let mut user = of_user.lock();
        user.set_due(guess.password, now + delay);
        [user.generation, self.prefix(guess.prefix, now).lock().generation]
    }

    /// Takes over what was counted elsewhere: how long ago time was credited and the last attempt was due, or how far
    /// that is ahead.
    pub(super) fn adopt(&self, account: Account, failures: u32, ago: [Duration; 2], ahead: Duration) {
        let now = Instant::now();
        let [credited, due] = ago.map(|time| now.checked_sub(time).unwrap_or(now));
        let bucket = match account {
            Account::User(user) => self.user(user, now),
            Account::Prefix(prefix) => self.prefix(prefix, now),
            Account::Name { .. } => return,
        };
        bucket.lock().adopt(failures, credited, due + ahead);
    }

    /// Refunds one charge.
    pub(super) fn refund_one(&self, receipt: &Receipt, password: AttemptDigest) {
        if let Account::Name { prefix, name } = receipt.account {
            self.clear_name(prefix, name);
        } else if let Some(bucket) = self.charged(receipt) {
            bucket.lock().refund(password);
        }
    }

    fn reset(&self, user: HashedKey, prefix: HashedKey) -> bool {
        let Some(of_user) = self.users.remove(&user) else { return false };
        let failures = of_user.lock().reset();
        if let Some(of_prefix) = self.prefixes.get(&prefix) {
            of_prefix.lock().subtract(failures);
        }
        // A name that was refused here has an account: without one, as at most cached logins, there is no name.
        self.clear_name(prefix, user);
        true
    }

    /// Resets a user that has shown a right password. Returns whether there was an account.
    pub(super) fn reset_user(&self, success: &Success<'_>) -> bool {
        let spelled = self.reset(success.account, success.prefix);
        let other = match success.home {
            Some(home) => self.reset(home, success.prefix),
            None => self.users.remove(&success.user).is_some(),
        };
        spelled || other
    }

    /// Removes a name from those refused to a prefix.
    fn clear_name(&self, prefix: HashedKey, name: HashedKey) {
        if let Some(names) = self.names.get(&prefix) {
            lock(&names).remove(name);
        }
    }

    /// The bucket of a charge, if it is still the same.
    fn charged(&self, receipt: &Receipt) -> Option<SharedBucket> {
        let bucket = match receipt.account {
            Account::User(user) => self.users.get(&user),
            Account::Prefix(prefix) => self.prefixes.get(&prefix),
            Account::Name { .. } => None,
        }?;
        let same = bucket.lock().generation == receipt.generation;
        same.then_some(bucket)
    }

    /// How many prefixes and users have a record, and how many prefixes have refused names.
    pub(super) fn entries(&self) -> [u64; 3] {
        [self.prefixes.entry_count(), self.users.entry_count(), self.names.entry_count()]
    }

    /// Runs moka's background work now.
    #[cfg(test)]
    pub(super) fn run_pending(&self) {
        self.prefixes.run_pending_tasks();
        self.users.run_pending_tasks();
        self.names.run_pending_tasks();
    }
}

fn fresh_names() -> SharedNames {
    Arc::new(Mutex::new(RefusedNames::new()))
}

impl CounterStore for LocalStore {
    fn charge(&self, guess: &Guess) -> Result<Charge, LaterCharge> {
        Ok(self.charge_now(guess))
    }

    fn charge_entry(&self, entry: HashedKey, _: &EntryKey, guess: &EntryGuess) -> EntryCharge {
        let now = Instant::now();
        let of_entry = self.user(entry, now);
        let mut bucket = of_entry.lock();
        if bucket.tried(guess.password).is_some() {
            return EntryCharge::Repeated;
        }
        let over = bucket.is_over(now, self.forget_every, &guess.rule, guess.waited);
        let receipt = (!over || guess.rule.mode == Mode::DryRun).then(|| {
            bucket.charge_now(now, &guess.rule);
            bucket.try_password(guess.password, now);
            Receipt::here(Account::User(entry), bucket.generation)
        });
        EntryCharge::Counted { over, receipt }
    }

    fn charge_known(&self, account: HashedKey, _: &Subject, password: AttemptDigest, rule: &FailedLogins) -> Receipt {
        let now = Instant::now();
        let of_user = self.user(account, now);
        let mut bucket = of_user.lock();
        bucket.charge(now, Duration::ZERO, rule);
        bucket.try_password(password, now);
        Receipt::here(Account::User(account), bucket.generation)
    }

    fn refund(&self, receipts: Vec<Receipt>, password: AttemptDigest) {
        receipts.iter().for_each(|receipt| self.refund_one(receipt, password));
    }

    fn withdraw(&self, receipt: Receipt, password: AttemptDigest) {
        let Some(bucket) = self.charged(&receipt) else { return };
        let is_blank = {
            let mut bucket = bucket.lock();
            bucket.refund(password);
            bucket.is_blank()
        };
        if let (true, Account::User(user)) = (is_blank, receipt.account) {
            self.users.invalidate(&user);
        }
    }

    fn succeeded(&self, charged: Option<(Vec<Receipt>, AttemptDigest)>, success: &Success<'_>) {
        if let Some((receipts, password)) = charged {
            self.refund(receipts, password);
        }
        self.reset_user(success);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::credential::Credential;

    const RULE: FailedLogins = FailedLogins {
        mode: Mode::Enforce,
        free_failures: 1,
        limit: None,
        first_delay: Duration::from_millis(300),
        max_delay: Duration::from_secs(4),
    };

    fn store() -> LocalStore {
        let day = Duration::from_secs(86_400);
        LocalStore::new(&config::Memory { capacity: 1_000, forget_every: day, known_network_ttl: day })
    }

    fn guess(account: HashedKey, password: &str) -> Guess {
        let password = Credential::for_tests("alice", password).digest().narrow();
        Guess {
            account,
            prefix: 7,
            password,
            known: false,
            user_rule: RULE,
            prefix_rule: RULE,
            name: None,
            subject: subject(),
            entry: None,
        }
    }

    fn subject() -> Subject {
        Subject { login: None, network: "192.0.2.0/24".parse().unwrap() }
    }

    fn receipts(store: &LocalStore, guess: &Guess) -> Receipts {
        let Charge::Counted { receipts: Some(receipts), .. } = store.charge_now(guess) else { panic!("not charged") };
        receipts
    }

    #[tokio::test(start_paused = true)]
    async fn refund_after_a_reset_has_no_effect_on_later_charges() {
        let store = store();
        let early = guess(1, "early");
        let Receipts { user: of_user, prefix: of_prefix, .. } = receipts(&store, &early);
        store.reset(1, 7);
        assert_ne!(of_user, receipts(&store, &guess(1, "later")).user);
        store.refund(vec![of_user], early.password);
        let Charge::Counted { delays, .. } = store.charge_now(&guess(1, "third")) else { panic!("a new guess") };
        assert_eq!(delays.user, RULE.first_delay, "the later charge still counts");
        // The prefix is the same record as before.
        assert_eq!(store.charged(&of_prefix).map(|bucket| bucket.lock().generation), Some(of_prefix.generation));
    }

    #[tokio::test(start_paused = true)]
    async fn refused_guess_is_charged_to_neither_account() {
        let store = store();
        let mut guess = guess(1, "first");
        guess.prefix_rule = FailedLogins { max_delay: Duration::from_millis(100), ..RULE };
        receipts(&store, &guess);
        let password = |text: &str| Credential::for_tests("alice", text).digest().narrow();
        guess.password = password("second");
        receipts(&store, &guess);
        guess.password = password("third");
        for _ in 0..3 {
            let Charge::Counted { delays, receipts, .. } = store.charge_now(&guess) else { panic!("a new guess") };
            // The prefix refuses. The delay behind the second guess stays the same: the user is not charged.
            assert_eq!((delays.user, receipts), (Duration::from_millis(900), None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn withdrawn_charge_leaves_no_record_unless_others_are_in_progress() {
        let store = store();
        let (one, other) = (guess(1, "one"), guess(1, "other"));
        let [of_one, of_other] = [&one, &other].map(|guess| receipts(&store, guess).user);
        store.withdraw(of_one, one.password);
        assert!(store.charged(&of_other).is_some());
        store.withdraw(of_other.clone(), other.password);
        assert!(store.charged(&of_other).is_none());
    }
}
