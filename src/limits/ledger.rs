//! What the attempts of one configuration share: rules, keys, counts, and what is known of users.

use std::net::IpAddr;
use std::sync::Arc;

use super::keys::{HashedKey, Keys};
use super::known::KnownUsers;
use super::memory::LocalStore;
use super::rules::Rules;
use super::shared::{ScriptRunner, SharedStore};
use super::store::{CounterStore, Receipt, SharedId, Subject, Success};
use crate::base::credential::{AttemptDigest, Login};
use crate::directory::EntryKey;

/// Replaced at a reload. An attempt in progress keeps the one that it began with.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) rules: Rules,
    pub(super) keys: Keys,
    pub(super) store: Arc<dyn CounterStore>,
    /// What runs scripts in a store that several processes share, if there is one.
    pub(super) runner: Option<Arc<dyn ScriptRunner>>,
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
    /// That entry, as a shared store calls it.
    pub(super) entry: Option<(HashedKey, SharedId)>,
    /// Whether that user has logged in from this prefix before.
    pub(super) known: bool,
}

impl Ledger {
    /// Counts in this process's memory alone.
    pub(super) fn local(rules: Rules, keys: Keys) -> Self {
        let (local, users) = (Arc::new(LocalStore::new(&rules.memory)), Arc::new(KnownUsers::new(&rules.memory)));
        Self { rules, keys, store: Arc::clone(&local) as _, runner: None, local, users }
    }

    /// The same records under other rules. They are kept unless their own limits have changed.
    pub(super) fn under(&self, rules: Rules) -> Self {
        let keys = self.keys.clone();
        if rules.memory != self.rules.memory {
            return Self::local(rules, keys).shared(self.runner.clone());
        }
        let (store, local, users) = (Arc::clone(&self.store), Arc::clone(&self.local), Arc::clone(&self.users));
        Self { rules, keys, store, runner: self.runner.clone(), local, users }
    }

    /// The same records, counted in a store that several processes share while it is there.
    pub(super) fn shared(self, runner: Option<Arc<dyn ScriptRunner>>) -> Self {
        let Some(shared) = runner.clone() else { return self };
        let store = Arc::new(SharedStore::new(&self.rules.memory, Arc::clone(&self.local), shared));
        Self { store, runner, ..self }
    }

    pub(super) fn prefix(&self, client: IpAddr) -> HashedKey {
        self.keys.prefix(self.rules.prefix(client))
    }

    pub(super) fn origin(&self, client: IpAddr, login: &Login) -> AttemptOrigin {
        let (prefix, name) = (self.prefix(client), self.keys.name(login));
        let (user, shared) = self.users.entry(name);
        let entry = shared.map(|shared| (user, shared));
        AttemptOrigin { prefix, name, user, entry, known: self.users.is_known_prefix(user, prefix) }
    }

    /// Of a token, beside which any name may stand: all of a prefix have one account.
    pub(super) fn token_origin(&self, client: IpAddr) -> AttemptOrigin {
        let prefix = self.prefix(client);
        let tokens = self.keys.user_at(prefix, prefix);
        AttemptOrigin { prefix, name: tokens, user: tokens, entry: None, known: false }
    }

    /// The account of a spelling: a separate one where the user is known.
    pub(super) fn account(&self, origin: AttemptOrigin) -> HashedKey {
        if origin.known { self.keys.user_at(origin.user, origin.prefix) } else { origin.name }
    }

    /// Records a correct password of the user of this entry: failures are forgotten, and the prefix becomes
    /// known. At a prefix known before, failures from elsewhere stay.
    pub(super) fn succeeded(
        &self,
        origin: AttemptOrigin,
        entry: &EntryKey,
        subject: &Subject,
        charged: Option<(Vec<Receipt>, AttemptDigest)>,
    ) {
        let (user, prefix) = (self.keys.entry(entry), origin.prefix);
        let home = self.users.is_known_prefix(user, prefix).then(|| self.keys.user_at(user, prefix));
        self.users.name(origin.name, user, || self.store.shared_id(entry));
        let is_news = self.users.add_known_prefix(user, prefix);
        let (account, known) = (self.account(origin), origin.known);
        self.store.succeeded(charged, &Success { account, prefix, user, home, known, is_news, key: entry, subject });
    }
}
