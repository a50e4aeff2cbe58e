//! What the attempts of one configuration share: rules, keys, counts, and what is known of users.

use std::net::IpAddr;
use std::sync::Arc;

use super::keys::{HashedKey, Keys};
use super::known::KnownUsers;
use super::memory::LocalStore;
use super::rules::Rules;
use super::store::CounterStore;
use crate::base::credential::Login;
use crate::directory::EntryKey;

/// Replaced at a reload. An attempt in progress keeps the one that it began with.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) rules: Rules,
    pub(super) keys: Keys,
    pub(super) store: Arc<dyn CounterStore>,
    /// The counts of this process, which decide if the store cannot.
    pub(super) local: Arc<LocalStore>,
    pub(super) users: Arc<KnownUsers>,
}

/// What is known of a guess on arrival.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptOrigin {
    pub(super) prefix: HashedKey,
    pub(super) name: HashedKey,
    /// The entry that the spelling last led to; the spelling itself if unknown.
    user: HashedKey,
    /// Whether that user has logged in from this prefix before.
    pub(super) known: bool,
}

impl Ledger {
    /// Counts in this process's memory alone.
    pub(super) fn local(rules: Rules, keys: Keys) -> Self {
        let (local, users) = (Arc::new(LocalStore::new(&rules.memory)), Arc::new(KnownUsers::new(&rules.memory)));
        Self { rules, keys, store: Arc::clone(&local) as _, local, users }
    }

    /// The same records under other rules. They are kept unless their own limits have changed.
    pub(super) fn under(&self, rules: Rules) -> Self {
        let keys = self.keys.clone();
        if rules.memory != self.rules.memory {
            return Self::local(rules, keys);
        }
        let (store, local, users) = (Arc::clone(&self.store), Arc::clone(&self.local), Arc::clone(&self.users));
        Self { rules, keys, store, local, users }
    }

    pub(super) fn prefix(&self, client: IpAddr) -> HashedKey {
        self.keys.prefix(self.rules.prefix(client))
    }

    pub(super) fn origin(&self, client: IpAddr, login: &Login) -> AttemptOrigin {
        let (prefix, name) = (self.prefix(client), self.keys.name(login));
        let user = self.users.entry(name);
        AttemptOrigin { prefix, name, user, known: self.users.is_known_prefix(user, prefix) }
    }

    /// Of a token, beside which any name may stand: all of a prefix have one account.
    pub(super) fn token_origin(&self, client: IpAddr) -> AttemptOrigin {
        let prefix = self.prefix(client);
        let tokens = self.keys.user_at(prefix, prefix);
        AttemptOrigin { prefix, name: tokens, user: tokens, known: false }
    }

    /// The account of a spelling: a separate one where the user is known.
    pub(super) fn account(&self, origin: AttemptOrigin) -> HashedKey {
        if origin.known { self.keys.user_at(origin.user, origin.prefix) } else { origin.name }
    }

    /// Records a correct password of the user of this entry: failures are forgotten, and the prefix becomes
    /// known. At a prefix known before, failures from elsewhere stay.
    pub(super) fn succeeded(&self, origin: AttemptOrigin, entry: &EntryKey) {
        let (user, prefix) = (self.keys.entry(entry), origin.prefix);
        self.store.reset(self.account(origin), prefix);
        if self.users.is_known_prefix(user, prefix) {
            self.store.reset(self.keys.user_at(user, prefix), prefix);
        } else {
            self.store.forget(user);
        }
        self.users.name(origin.name, user);
        self.users.add_known_prefix(user, prefix);
    }
}
