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
    Account, Charge, CounterStore, Delays, EntryCharge, EntryGuess, Guess, LaterCharge, Receipt, Receipts,
};
use crate::base::credential::AttemptDigest;
use crate::config::{self, FailedLogins, Mode, PasswordSpraying};

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

    fn fresh(&self) -> SharedBucket {
        SharedBucket(Arc::new(Mutex::new(Bucket::new(self.generation.fetch_add(1, Ordering::Relaxed)))))
    }

    fn prefix(&self, prefix: HashedKey) -> SharedBucket {
        self.prefixes.get_with(prefix, || self.fresh())
    }

    fn user(&self, user: HashedKey) -> SharedBucket {
        self.users.get_with(user, || self.fresh())
    }

    /// Charges a guess; the answer of memory is there at once.
    pub(super) fn charge_now(&self, guess: &Guess) -> Charge {
        let (now, every) = (Instant::now(), self.forget_every);
        let (of_user, of_prefix) = (self.user(guess.account), self.prefix(guess.prefix));
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
                user: Receipt { account: Account::User(guess.account), generation: user.generation },
                prefix: Receipt { account: Account::Prefix(guess.prefix), generation: prefix.generation },
                name: account.map(|account| Receipt { account, generation: 0 }),
            }
        });
        Charge::Counted { at_limit, delays, receipts }
    }

    /// Removes a name from those refused to a prefix.
    fn clear_name(&self, prefix: HashedKey, name: HashedKey) {
        if let Some(names) = self.names.get(&prefix) {
            lock(&names).remove(name);
        }
    }

    /// The bucket of a charge, if it is still the same.
    fn charged(&self, receipt: Receipt) -> Option<SharedBucket> {
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

    fn charge_entry(&self, entry: HashedKey, guess: &EntryGuess) -> EntryCharge {
        let now = Instant::now();
        let of_entry = self.user(entry);
        let mut bucket = of_entry.lock();
        if bucket.tried(guess.password).is_some() {
            return EntryCharge::Repeated;
        }
        let over = bucket.is_over(now, self.forget_every, &guess.rule, guess.waited);
        let receipt = (!over || guess.rule.mode == Mode::DryRun).then(|| {
            bucket.charge_now(now, &guess.rule);
            bucket.try_password(guess.password, now);
            Receipt { account: Account::User(entry), generation: bucket.generation }
        });
        EntryCharge::Counted { over, receipt }
    }

    fn charge_known(&self, account: HashedKey, password: AttemptDigest, rule: &FailedLogins) -> Receipt {
        let now = Instant::now();
        let of_user = self.user(account);
        let mut bucket = of_user.lock();
        bucket.charge(now, Duration::ZERO, rule);
        bucket.try_password(password, now);
        Receipt { account: Account::User(account), generation: bucket.generation }
    }

    fn refund(&self, receipt: Receipt, password: AttemptDigest) {
        if let Account::Name { prefix, name } = receipt.account {
            self.clear_name(prefix, name);
        } else if let Some(bucket) = self.charged(receipt) {
            bucket.lock().refund(password);
        }
    }

    fn withdraw(&self, receipt: Receipt, password: AttemptDigest) {
        let Some(bucket) = self.charged(receipt) else { return };
        let is_blank = {
            let mut bucket = bucket.lock();
            bucket.refund(password);
            bucket.is_blank()
        };
        if let (true, Account::User(user)) = (is_blank, receipt.account) {
            self.users.invalidate(&user);
        }
    }

    fn reset(&self, user: HashedKey, prefix: HashedKey) {
        let Some(of_user) = self.users.remove(&user) else { return };
        let failures = of_user.lock().reset();
        if let Some(of_prefix) = self.prefixes.get(&prefix) {
            of_prefix.lock().subtract(failures);
        }
        // A name that was refused here has an account: without one, as at most cached logins, there is no name.
        self.clear_name(prefix, user);
    }

    fn forget(&self, user: HashedKey) {
        self.users.invalidate(&user);
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
        Guess { account, prefix: 7, password, known: false, user_rule: RULE, prefix_rule: RULE, name: None }
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
        store.refund(of_user, early.password);
        let Charge::Counted { delays, .. } = store.charge_now(&guess(1, "third")) else { panic!("a new guess") };
        assert_eq!(delays.user, RULE.first_delay, "the later charge still counts");
        // The prefix is the same record as before.
        assert_eq!(store.charged(of_prefix).map(|bucket| bucket.lock().generation), Some(of_prefix.generation));
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
        assert!(store.charged(of_other).is_some());
        store.withdraw(of_other, other.password);
        assert!(store.charged(of_other).is_none());
    }
}
