//! The charge of one guess, and whether the entry it leads to may be bound.
//!
//! The delay of a guess depends only on what was typed: on its spelling, or on the user's account at a prefix
//! where the user is known. The entry is found later, between the search and the bind, and has an account over
//! all of its spellings. If that one's delay has not passed, the password is not bound, and the client gets at
//! the usual time the reply for an unknown name. So neither timing nor text reveals whether a spelling leads to
//! an entry, and another spelling is no additional guess.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::store::{LimitMemory, SharedBucket};
use super::{HashedKey, entry_hash};
use crate::base::credential::AttemptDigest;
use crate::config::{FailedLogins, Mode};
use crate::directory::EntryKey;

/// The buckets charged for a guess.
#[derive(Debug, Default)]
struct Charged {
    /// The spelling, or the user's account at a known network.
    name: Option<SharedBucket>,
    entry: Option<SharedBucket>,
    prefix: Option<SharedBucket>,
}

#[derive(Debug, Default)]
struct GateState {
    charged: Charged,
    /// The entry found, and whether it may be bound.
    checked: Option<(HashedKey, bool)>,
    /// Whether the entry's delay had not passed, in either mode.
    over: bool,
}

/// One guess on its way to the directory. It may outlive its attempt.
#[derive(Debug)]
pub struct BindGate {
    pub(super) memory: Arc<LimitMemory>,
    pub(super) prefix: HashedKey,
    pub(super) name: HashedKey,
    /// The entry that the spelling last led to; the spelling itself if unknown.
    pub(super) user: HashedKey,
    /// Whether that user has logged in from this prefix before.
    pub(super) known: bool,
    pub(super) exempt: bool,
    pub(super) rule: FailedLogins,
    pub(super) password: AttemptDigest,
    /// Whether the guess was delayed.
    pub(super) waited: bool,
    pub(super) keys: RandomState,
    state: Mutex<GateState>,
}

/// What is known of a guess on arrival.
#[derive(Debug)]
pub(super) struct AttemptOrigin {
    pub(super) memory: Arc<LimitMemory>,
    pub(super) prefix: HashedKey,
    pub(super) name: HashedKey,
    pub(super) user: HashedKey,
    pub(super) known: bool,
}

impl AttemptOrigin {
    /// The account of this spelling: a separate one where the user is known.
    pub(super) fn account(&self, keys: &RandomState) -> HashedKey {
        if self.known { keys.hash_one((self.user, self.prefix)) } else { self.name }
    }
}

impl BindGate {
    pub(super) fn new(
        origin: AttemptOrigin,
        exempt: bool,
        rule: FailedLogins,
        password: AttemptDigest,
        keys: &RandomState,
    ) -> Self {
        let AttemptOrigin { memory, prefix, name, user, known } = origin;
        let (keys, state) = (keys.clone(), Mutex::default());
        Self { memory, prefix, name, user, known, exempt, rule, password, waited: false, keys, state }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        // Consistent at every moment: charges are moved one by one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the buckets charged on arrival.
    pub(super) fn charged(&self, name: SharedBucket, prefix: SharedBucket) {
        self.lock().charged = Charged { name: Some(name), entry: None, prefix: Some(prefix) };
    }

    /// Whether the entry found by the directory may be bound. Charges it before the bind, so that concurrent
    /// spellings are no more guesses than one.
    #[must_use]
    pub fn may_bind(&self, key: &EntryKey) -> bool {
        let entry = entry_hash(&self.keys, key);
        let mut state = self.lock();
        if let Some((met, may)) = state.checked
            && met == entry
        {
            return may;
        }
        let may = self.exempt || self.charge_entry(&mut state, entry, key);
        state.checked = Some((entry, may));
        may
    }

    fn charge_entry(&self, state: &mut GateState, entry: HashedKey, key: &EntryKey) -> bool {
        // A principal name is not a DN: the spelling keeps its previous entry.
        if key.identifies_entry() {
            self.memory.name(self.name, entry);
        }
        let now = Instant::now();
        if self.is_known(key) {
            if !self.known
                && let Some(name) = state.charged.name.take()
            {
                // At a known prefix, guesses from elsewhere do not count, whatever was typed.
                self.memory.refund_name(self.name, &name, self.password);
                let home = self.memory.user(self.keys.hash_one((entry, self.prefix)));
                {
                    let mut bucket = home.lock();
                    bucket.charge(now, std::time::Duration::ZERO, &self.rule);
                    bucket.try_password(self.password, now);
                }
                state.charged.name = Some(home);
            }
            return true;
        }
        let of_entry = self.memory.user(entry);
        let mut bucket = of_entry.lock();
        // The same password again is not a new guess.
        if bucket.tried(self.password).is_some() {
            return true;
        }
        state.over = bucket.is_over(now, self.memory.settings().forget_every, &self.rule, self.waited);
        if state.over && self.rule.mode == Mode::Enforce {
            return false;
        }
        bucket.charge_now(now, &self.rule);
        bucket.try_password(self.password, now);
        drop(bucket);
        state.charged.entry = Some(of_entry);
        true
    }

    /// Whether the user of this entry has logged in from this prefix before.
    #[must_use]
    pub fn is_known(&self, key: &EntryKey) -> bool {
        self.known || self.memory.is_known_prefix(entry_hash(&self.keys, key), self.prefix)
    }

    /// Whether the client is exempt from limits on wrong passwords.
    #[must_use]
    pub const fn is_exempt(&self) -> bool {
        self.exempt
    }

    /// Whether the entry's delay had not passed.
    pub(super) fn was_over_limit(&self) -> bool {
        self.lock().over
    }

    /// Keeps the charges.
    pub(super) fn keep(&self) {
        self.lock().charged = Charged::default();
    }

    /// Refunds the charges: it was not a wrong password.
    pub(super) fn refund(&self) {
        let Charged { name, entry, prefix } = std::mem::take(&mut self.lock().charged);
        for shelf in [name, entry].into_iter().flatten() {
            shelf.lock().refund(self.password);
        }
        if let Some(prefix) = prefix {
            prefix.lock().subtract(1);
        }
    }
}
