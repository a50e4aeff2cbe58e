//! Administrative access to the cache: counts and times only, never passwords or values derived from them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Cache;
use crate::base::credential::Login;
use crate::directory::{Entry, EntryKey};

/// The cached data of one entry.
#[derive(Debug)]
pub struct CacheRecord {
    /// What identifies it.
    pub key: EntryKey,
    /// Its DN, or the name that was bound if only wrong passwords are cached.
    pub dn: Arc<str>,
    /// The typed names and the claims of tokens that lead to it, sorted.
    pub names: Vec<String>,
    /// The entry, if there is a decision.
    pub entry: Option<Arc<Entry>>,
    /// The number of correct passwords.
    pub right: usize,
    /// The number of wrong passwords.
    pub wrong: usize,
    /// The number of searches by which tokens have led to it.
    pub tokens: usize,
    /// The mail addresses that lead to it, sorted.
    pub addresses: Vec<String>,
    /// How long ago a bind last proved a password, or a search found the entry of a token or an address.
    pub age: Option<Duration>,
    /// How long the decision is used without a lookup.
    pub left: Option<Duration>,
    /// How long it would be used while the directory is unreachable.
    pub stale_left: Option<Duration>,
}

/// By what an entry is known.
#[derive(Default)]
struct KnownBy {
    names: BTreeSet<String>,
    tokens: usize,
    addresses: BTreeSet<String>,
    /// What a token or an address has led to last, and when.
    found: Option<(Arc<Entry>, Instant)>,
}

impl KnownBy {
    fn note(&mut self, entry: Arc<Entry>, at: Instant) {
        if self.found.as_ref().is_none_or(|(_, newest)| *newest < at) {
            self.found = Some((entry, at));
        }
    }
}

impl Cache {
    /// The cached data for this name, in any case, claim of a token, mail address, or DN: one entry, or none, or several if spellings of a name
    /// led to different entries.
    #[must_use]
    pub fn remembered(&self, name: &str) -> Vec<CacheRecord> {
        // By DN, as they are shown; two realms may have the same one.
        let mut known: BTreeMap<(Arc<str>, EntryKey), KnownBy> = BTreeMap::new();
        for (login, meaning) in &self.names {
            let entry = (Arc::clone(&meaning.dn), meaning.key);
            known.entry(entry).or_default().names.insert(login.as_str().to_owned());
        }
        for (search, found) in self.all_found() {
            let by = known.entry((Arc::clone(&found.entry.dn), found.entry.key())).or_default();
            by.names.insert(found.claim.as_str().to_owned());
            if !search.name.is_absent() {
                by.names.insert(search.name.as_str().to_owned());
            }
            by.tokens += 1;
            by.note(found.entry, found.at);
        }
        for (address, found) in self.all_mails() {
            let by = known.entry((Arc::clone(&found.entry.dn), found.entry.key())).or_default();
            by.addresses.insert(address.as_str().to_owned());
            by.note(found.entry, found.at);
        }
        let is_meant = |dn: &str, by: &KnownBy| {
            let mut names = by.names.iter().chain(&by.addresses);
            dn.eq_ignore_ascii_case(name) || names.any(|one| one.eq_ignore_ascii_case(name))
        };
        let meant = known.into_iter().filter(|((dn, _), by)| is_meant(dn, by));
        let found: Vec<CacheRecord> = meant.filter_map(|((dn, key), by)| self.of_entry(key, dn, by)).collect();
        if !found.is_empty() {
            return found;
        }
        // Its names may have been evicted.
        let dn: Arc<str> = name.into();
        let with_id = self.users.iter().filter(|(key, user)| key.has_id() && user.identity.entry().dn == dn);
        let keys = with_id.map(|(key, _)| EntryKey::clone(&key)).chain([EntryKey::by_dn(self.realm, &dn)]);
        keys.filter_map(|key| self.of_entry(key, Arc::clone(&dn), KnownBy::default())).collect()
    }

    /// The cached data that a login with exactly this name would use, with its times.
    #[must_use]
    pub(crate) fn of_login(&self, login: &Login) -> Option<CacheRecord> {
        let name = self.names.get(login)?;
        let mut record = self.of_entry(name.key, name.dn, KnownBy::default())?;
        // The name may be cached for longer than its entry's passwords.
        let age = record.age.map(|age| age.max(name.at.elapsed()));
        let left = |life: Duration| age.and_then(|age| life.checked_sub(age));
        (record.left, record.stale_left) = (left(self.ttl), left(self.stale));
        Some(record)
    }

    fn of_entry(&self, key: EntryKey, dn: Arc<str>, by: KnownBy) -> Option<CacheRecord> {
        let user = self.users.get(&key);
        let wrong = self.wrong.get(&key).map_or(0, |refused| refused.count());
        // A name whose decision was forgotten is ignored.
        if user.is_none() && wrong == 0 && by.found.is_none() {
            return None;
        }
        let by_password = user.as_ref().map(|user| user.identity.shared_entry());
        let (looked_up, found) = by.found.map(|(entry, at)| (entry, at.elapsed())).unzip();
        let age = self.age(&key).into_iter().chain(found).min();
        let left = |life: Duration| age.and_then(|age| life.checked_sub(age));
        Some(CacheRecord {
            names: by.names.into_iter().collect(),
            entry: by_password.or(looked_up),
            right: user.as_ref().map_or(0, |user| user.right.len()),
            wrong,
            tokens: by.tokens,
            addresses: by.addresses.into_iter().collect(),
            age,
            left: left(self.ttl),
            stale_left: left(self.stale),
            dn,
            key,
        })
    }

    /// Forgets everything about an entry, including wrong passwords.
    pub fn drop_entry(&self, CacheRecord { key, dn, .. }: &CacheRecord) {
        self.forget_keys(key, dn);
        self.wrong.invalidate(key);
        // Of no entry, or of one that cannot be used: it may be this one.
        self.refused.invalidate_all();
        for (search, found) in &self.found {
            if found.entry.key() == *key {
                self.found.invalidate(&*search);
            }
        }
        for (address, found) in &self.mails {
            if found.entry.key() == *key {
                self.mails.invalidate(&*address);
            }
        }
        for (login, name) in &self.names {
            if name.key == *key {
                self.names.invalidate(&*login);
            }
        }
    }

    /// The number of entries with a decision, or to which tokens or addresses have led.
    #[must_use]
    pub fn all_entries(&self) -> usize {
        let by_token = self.all_found().map(|(_, found)| found.entry.key());
        let looked_up = by_token.chain(self.all_mails().map(|(_, found)| found.entry.key()));
        let only_looked_up: HashSet<EntryKey> = looked_up.filter(|key| !self.users.contains_key(key)).collect();
        usize::try_from(self.entries()).unwrap_or(usize::MAX).saturating_add(only_looked_up.len())
    }

    /// Forgets everything, and invalidates answers in progress.
    pub fn drop_all(&self) {
        self.pass(&self.forgotten);
        self.names.invalidate_all();
        self.users.invalidate_all();
        self.wrong.invalidate_all();
        self.found.invalidate_all();
        self.refused.invalidate_all();
        self.mails.invalidate_all();
        self.pass(&self.forgotten);
    }
}
