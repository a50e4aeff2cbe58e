//! Where wrong passwords are counted: what the limits require of a store.
//!
//! Keys are opaque hashes, values are counters that expire. The store of a process is its own memory (`memory`),
//! which answers every request at once. A store that several processes share may have to wait for an answer to a
//! charge, and for nothing else: all other requests are orders.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use ipnet::IpNet;

use super::keys::HashedKey;
use crate::base::credential::{AttemptDigest, Login};
use crate::config::{FailedLogins, Mode, PasswordSpraying};
use crate::directory::EntryKey;

/// A charge whose answer must be awaited. A store that gives none in time answers by its local rule.
pub(crate) type LaterCharge = Pin<Box<dyn Future<Output = Charge> + Send>>;

/// A store of counters.
pub(crate) trait CounterStore: fmt::Debug + Send + Sync {
    /// Charges a guess to its user, its prefix and the names refused there, all or none: concurrent guesses are no
    /// faster than sequential ones. `Ok`: the answer; `Err`: the answer comes later.
    fn charge(&self, guess: &Guess) -> Result<Charge, LaterCharge>;

    /// Charges an entry before the bind.
    fn charge_entry(&self, entry: HashedKey, key: &EntryKey, guess: &EntryGuess) -> EntryCharge;

    /// Charges a user at a prefix with earlier logins, without a delay.
    fn charge_known(
        &self,
        account: HashedKey,
        subject: &Subject,
        password: AttemptDigest,
        rule: &FailedLogins,
    ) -> Receipt;

    /// Refunds charges: it was not a wrong password.
    fn refund(&self, receipts: Vec<Receipt>, password: AttemptDigest);

    /// Refunds a charge whose account needs no record any more, unless other attempts with it are in progress.
    fn withdraw(&self, receipt: Receipt, password: AttemptDigest);

    /// Records a right password: refunds its charges, if it had any, and resets the user.
    fn succeeded(&self, charged: Option<(Vec<Receipt>, AttemptDigest)>, success: &Success<'_>);

    /// How a shared store calls an entry. `None`: the store is this process's own.
    fn shared_id(&self, _entry: &EntryKey) -> Option<SharedId> {
        None
    }
}

/// A keyed digest that is the same in every process.
pub(crate) type SharedId = [u8; 16];

/// Whom a guess concerns, for a store whose keys are not those of this process.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The spelling; `None`: the tokens of the network.
    pub(super) login: Option<Login>,
    /// The client's prefix.
    pub(super) network: IpNet,
}

/// A right password.
///
/// The user's accounts are removed, so that most users have none for long. The prefix is credited with this user's
/// failures and loses this name, not those of others there: an account of one's own buys no guesses at others. Attempts in
/// progress are credited, too.
#[derive(Debug)]
pub(crate) struct Success<'a> {
    /// The account of the spelling, or of the user at a prefix known before.
    pub(super) account: HashedKey,
    pub(super) prefix: HashedKey,
    /// The entry, all of whose failures are forgotten unless the prefix was known before.
    pub(super) user: HashedKey,
    /// The user at this prefix, if it was known before.
    pub(super) home: Option<HashedKey>,
    /// Whether the prefix was known for the spelling.
    pub(super) known: bool,
    /// Whether others have yet to hear that the prefix is known.
    pub(super) is_news: bool,
    pub(super) key: &'a EntryKey,
    pub(super) subject: &'a Subject,
}

/// A guess on its arrival.
#[derive(Debug, Clone)]
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
    /// The name that counts among those refused to the prefix, unless the user has logged in from there before.
    pub(super) name: Option<(HashedKey, PasswordSpraying)>,
    pub(super) subject: Subject,
    /// The entry that the spelling last led to, if a shared store has a name for it.
    pub(super) entry: Option<(HashedKey, SharedId)>,
}

/// The delays that a guess requires, whatever the modes of the rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Delays {
    /// By the user's failures.
    pub(super) user: Duration,
    /// By the prefix's failures.
    pub(super) prefix: Duration,
    /// By the names refused to the prefix.
    pub(super) names: Duration,
}

impl Guess {
    /// Mode and longest delay of the rule about names.
    fn names_rule(&self) -> (Mode, Duration) {
        self.name.map_or((Mode::DryRun, Duration::MAX), |(_, rule)| (rule.mode, rule.max_delay))
    }

    /// The longest delay that any of its rules can require.
    pub(super) fn longest_delay(&self) -> Duration {
        let (user, prefix) = (self.user_rule.max_delay, self.prefix_rule.max_delay);
        self.delay(&Delays { user, prefix, names: self.name.map_or(Duration::ZERO, |(_, rule)| rule.max_delay) })
    }

    /// How long the guess has to wait: the longest of the delays, not their sum.
    pub(super) fn delay(&self, delays: &Delays) -> Duration {
        let failures = enforced(self.user_rule.mode, delays.user).max(enforced(self.prefix_rule.mode, delays.prefix));
        failures.max(enforced(self.names_rule().0, delays.names))
    }

    /// Whether the guess is refused, and not charged then.
    pub(super) fn is_refused(&self, at_limit: bool, delays: &Delays) -> bool {
        let (mode, most) = self.names_rule();
        let is_over = |mode, most, delay| mode == Mode::Enforce && delay > most;
        at_limit && self.user_rule.mode == Mode::Enforce
            || is_over(self.user_rule.mode, self.user_rule.max_delay, delays.user)
            || is_over(self.prefix_rule.mode, self.prefix_rule.max_delay, delays.prefix)
            || is_over(mode, most, delays.names)
    }
}

/// A delay if its rule is enforced.
pub(super) fn enforced(mode: Mode, delay: Duration) -> Duration {
    match mode {
        Mode::Enforce => delay,
        Mode::DryRun => Duration::ZERO,
    }
}

/// The answer to a guess.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Charge {
    /// The same password was tried before: it is not a new guess, and not charged. It is due after this time.
    Repeated(Duration),
    /// A new guess.
    Counted {
        /// Whether the user has logged in from this prefix before, as the store knows.
        known: bool,
        /// Whether the user's limit is reached.
        at_limit: bool,
        /// The delays that are required.
        delays: Delays,
        /// The charges; `None`: it is refused.
        receipts: Option<Receipts>,
    },
}

/// The charges of a guess.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Receipts {
    pub(super) user: Receipt,
    pub(super) prefix: Receipt,
    /// `None`: the name had been refused to the prefix before, and stays so whatever comes of this guess.
    pub(super) name: Option<Receipt>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// A name among those refused to a prefix.
    Name {
        /// The prefix.
        prefix: HashedKey,
        /// The name.
        name: HashedKey,
    },
}

/// A charge that may be refunded. After a reset of the account a refund has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(super) account: Account,
    pub(super) generation: u64,
    /// The same charge in a store that several processes share.
    pub(super) shared: Option<Box<SharedReceipt>>,
}

impl Receipt {
    /// A charge in this process.
    pub(super) const fn here(account: Account, generation: u64) -> Self {
        Self { account, generation, shared: None }
    }
}

/// A charge in a store that several processes share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedReceipt {
    /// The key of the account.
    pub(super) key: String,
    /// The account's generation; 0: it is not known, because the charge was written behind.
    pub(super) generation: i64,
    /// The name, if it is one of those refused to a prefix.
    pub(super) name: Option<SharedId>,
}
