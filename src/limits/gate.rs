//! The charge of one guess, and whether the entry it leads to may be bound.
//!
//! The delay of a guess depends only on what was typed: on its spelling, or on the user's account at a prefix
//! where the user is known. The entry is found later, between the search and the bind, and has an account over
//! all of its spellings. If that one's delay has not passed, the password is not bound, and the client gets at
//! the usual time the reply for an unknown name. So neither timing nor text reveals whether a spelling leads to
//! an entry, and another spelling is no additional guess.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keys::HashedKey;
use super::ledger::{AttemptOrigin, Ledger};
use super::store::{EntryCharge, EntryGuess, Receipt, Receipts, Subject};
use crate::base::credential::AttemptDigest;
use crate::directory::EntryKey;

/// The charges of a guess.
#[derive(Debug, Default)]
struct Charged {
    /// The spelling, or the user's account at a known network.
    name: Option<Receipt>,
    entry: Option<Receipt>,
    prefix: Option<Receipt>,
    /// The spelling among the names refused to the prefix.
    refused_name: Option<Receipt>,
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
    pub(super) ledger: Arc<Ledger>,
    pub(super) origin: AttemptOrigin,
    subject: Subject,
    exempt: bool,
    password: AttemptDigest,
    /// Whether the guess was delayed.
    waited: bool,
    state: Mutex<GateState>,
}

impl BindGate {
    /// A guess of a client that is exempt.
    pub(super) fn exempt(
        ledger: Arc<Ledger>,
        origin: AttemptOrigin,
        subject: Subject,
        password: AttemptDigest,
    ) -> Self {
        Self { ledger, origin, subject, exempt: true, password, waited: false, state: Mutex::default() }
    }

    /// A guess that was charged on arrival, unless it is a repetition.
    pub(super) fn charged(
        ledger: Arc<Ledger>,
        origin: AttemptOrigin,
        (subject, password): (Subject, AttemptDigest),
        waited: bool,
        receipts: Option<Receipts>,
    ) -> Self {
        let charged = receipts.map_or_else(Charged::default, |receipts| Charged {
            name: Some(receipts.user),
            entry: None,
            prefix: Some(receipts.prefix),
            refused_name: receipts.name,
        });
        let state = Mutex::new(GateState { charged, ..GateState::default() });
        Self { ledger, origin, subject, exempt: false, password, waited, state }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        // Consistent at every moment: charges are moved one by one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the entry found by the directory may be bound. Charges it before the bind, so that concurrent
    /// spellings are no more guesses than one.
    #[must_use]
    pub fn may_bind(&self, key: &EntryKey) -> bool {
        let entry = self.ledger.keys.entry(key);
        let mut state = self.lock();
        if let Some((checked, may)) = state.checked
            && checked == entry
        {
            return may;
        }
        let may = self.exempt || self.charge_entry(&mut state, entry, key);
        state.checked = Some((entry, may));
        may
    }

    fn charge_entry(&self, state: &mut GateState, entry: HashedKey, key: &EntryKey) -> bool {
        let Ledger { rules, keys, store, users, .. } = &*self.ledger;
        let rule = rules.failed_logins_per_user;
        // A principal name is not a DN: the spelling keeps its previous entry.
        if key.identifies_entry() {
            users.name(self.origin.name, entry, || store.shared_id(key));
        }
        if self.is_known(key) {
            if !self.origin.known
                && let Some(name) = state.charged.name.take()
            {
                // At a known prefix, guesses from elsewhere do not count, whatever was typed.
                store.withdraw(name, self.password);
                let home = keys.user_at(entry, self.origin.prefix);
                state.charged.name = Some(store.charge_known(home, &self.subject, self.password, &rule));
            }
            return true;
        }
        let guess = EntryGuess { password: self.password, rule, waited: self.waited };
        match store.charge_entry(entry, key, &guess) {
            // The same password again is not a new guess.
            EntryCharge::Repeated => true,
            EntryCharge::Counted { over, receipt } => {
                state.over = over;
                let may = receipt.is_some();
                if may {
                    state.charged.entry = receipt;
                }
                may
            }
        }
    }

    /// Whether the user of this entry has logged in from this prefix before.
    #[must_use]
    pub fn is_known(&self, key: &EntryKey) -> bool {
        let Ledger { keys, users, .. } = &*self.ledger;
        self.origin.known || users.is_known_prefix(keys.entry(key), self.origin.prefix)
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

    fn take(&self) -> Vec<Receipt> {
        let Charged { name, entry, prefix, refused_name } = std::mem::take(&mut self.lock().charged);
        [name, entry, prefix, refused_name].into_iter().flatten().collect()
    }

    /// Refunds the charges: it was not a wrong password.
    pub(super) fn refund(&self) {
        self.ledger.store.refund(self.take(), self.password);
    }

    /// Refunds the charges: it was the right password of this entry.
    pub(super) fn succeed(&self, entry: &EntryKey) {
        self.ledger.succeeded(self.origin, entry, &self.subject, Some((self.take(), self.password)));
    }
}
