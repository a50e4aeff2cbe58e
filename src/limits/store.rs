//! Where wrong passwords are counted: what the limits require of a store.
//!
//! Keys are opaque hashes, values are counters that expire. The store of a process is its own memory (`memory`),
//! which answers every request at once. A store that several processes share may have to wait for an answer to a
//! charge, and for nothing else: what it does not know is decided by the caller, and all other requests are orders.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use super::keys::HashedKey;
use crate::base::credential::AttemptDigest;
use crate::config::{FailedLogins, Mode};

/// A charge whose answer must be awaited. An error: the store is unavailable.
pub(crate) type LaterCharge = Pin<Box<dyn Future<Output = io::Result<Charge>> + Send>>;

/// A store of counters.
pub(crate) trait CounterStore: fmt::Debug + Send + Sync {
    /// Charges a guess to its user and its prefix, both or none: concurrent guesses are no faster than sequential
    /// ones. `Ok`: the answer; `Err`: the answer comes later.
    fn charge(&self, guess: &Guess) -> Result<Charge, LaterCharge>;

    /// Charges an entry before the bind.
    fn charge_entry(&self, entry: HashedKey, guess: &EntryGuess) -> EntryCharge;

    /// Charges a user at a prefix with earlier logins, without a delay.
    fn charge_known(&self, account: HashedKey, password: AttemptDigest, rule: &FailedLogins) -> Receipt;

    /// Refunds a charge: it was not a wrong password.
    fn refund(&self, receipt: Receipt, password: AttemptDigest);

    /// Refunds a charge whose account needs no record any more, unless other attempts with it are in progress.
    fn withdraw(&self, receipt: Receipt, password: AttemptDigest);

    /// Resets a user: the account is removed, so that most users have none for long. The prefix is credited
    /// with this user's failures, not with those of others there: an account of one's own buys no guesses at
    /// others. Attempts in progress are credited, too.
    fn reset(&self, user: HashedKey, prefix: HashedKey);

    /// Resets a user, whatever the spelling of the guesses.
    fn forget(&self, user: HashedKey);
}

/// A guess on its arrival.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guess {
    /// Its spelling, or the user at a prefix with earlier logins.
    pub(super) account: HashedKey,
    /// The client's prefix.
    pub(super) prefix: HashedKey,
    pub(super) password: AttemptDigest,
    /// Whether the user has logged in from this prefix before: neither the prefix nor the limit counts.
    pub(super) known: bool,
    pub(super) user_rule: FailedLogins,
    pub(super) prefix_rule: FailedLogins,
}

impl Guess {
    /// How long the guess has to wait, by these delays of user and prefix.
    pub(super) fn delay(&self, user: Duration, prefix: Duration) -> Duration {
        enforced(&self.user_rule, user).max(enforced(&self.prefix_rule, prefix))
    }

    /// Whether the guess is refused, and not charged then.
    pub(super) fn is_refused(&self, at_limit: bool, user: Duration, prefix: Duration) -> bool {
        let is_over = |rule: &FailedLogins, delay| rule.mode == Mode::Enforce && delay > rule.max_delay;
        at_limit && self.user_rule.mode == Mode::Enforce
            || is_over(&self.user_rule, user)
            || is_over(&self.prefix_rule, prefix)
    }
}

/// A delay if its rule is enforced.
pub(super) fn enforced(rule: &FailedLogins, delay: Duration) -> Duration {
    match rule.mode {
        Mode::Enforce => delay,
        Mode::DryRun => Duration::ZERO,
    }
}

/// The answer to a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charge {
    /// The same password was tried before: it is not a new guess, and not charged. It is due after this time.
    Repeated(Duration),
    /// A new guess.
    Counted {
        /// Whether the user's limit is reached.
        at_limit: bool,
        /// The delay that the user's failures require, whatever the rule's mode.
        user: Duration,
        /// The delay that the prefix's failures require, whatever the rule's mode.
        prefix: Duration,
        /// The charges of user and prefix; `None`: it is refused.
        receipts: Option<[Receipt; 2]>,
    },
}

/// A guess at an entry, before the bind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntryGuess {
    pub(super) password: AttemptDigest,
    pub(super) rule: FailedLogins,
    /// Whether it has waited for the delay of its spelling.
    pub(super) waited: bool,
}

/// The answer to a guess at an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryCharge {
    /// The same password was tried before.
    Repeated,
    /// A new guess.
    Counted {
        /// Whether the entry's delay had not passed, in either mode.
        over: bool,
        /// The charge; `None`: it is refused.
        receipt: Option<Receipt>,
    },
}

/// An account with wrong passwords.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    /// A spelling, an entry, or a user at a prefix.
    User(HashedKey),
    /// A prefix.
    Prefix(HashedKey),
}

/// A charge that may be refunded. After a reset of the account a refund has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(super) account: Account,
    pub(super) generation: u64,
}
