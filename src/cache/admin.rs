//! Administrative access to the cache: counts and times only, never passwords or values derived from them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Cache;
use crate::directory::{Entry, EntryKey, Realm};

/// The cached data of one entry.
#[derive(Debug)]
pub struct CacheRecord {
    /// What identifies it.
    pub key: EntryKey,
    /// Its DN, or the name that was bound if only wrong passwords are cached.
    pub dn: Arc<str>,
    /// The typed names that lead to it, sorted.
    pub names: Vec<String>,
    /// The entry, if there is a decision.
    pub entry: Option<Arc<Entry>>,
    /// The number of correct passwords.
    pub right: usize,
    /// The number of wrong passwords.
    pub wrong: usize,
    /// How long ago a bind last proved a password.
    pub age: Option<Duration>,
    /// How long the decision is used without a lookup.
    pub left: Option<Duration>,
    /// How long it would be used while the directory is unreachable.
    pub stale_left: Option<Duration>,
}

impl Cache {
    /// The cached data for this name, in any case, or DN: one entry, or none, or several if spellings of a name
    /// led to different entries.
    #[must_use]
    pub fn remembered(&self, name: &str) -> Vec<CacheRecord> {
        // By DN, as they are shown; two realms may have the same one.
        let mut names: BTreeMap<(Arc<str>, EntryKey), Vec<String>> = BTreeMap::new();
        for (login, meaning) in &self.names {
            let entry = (Arc::clone(&meaning.dn), meaning.key);
            names.entry(entry).or_default().push(login.as_str().to_owned());
        }
        let is_meant = |dn: &str, names: &[String]| {
            dn.eq_ignore_ascii_case(name) || names.iter().any(|one| one.eq_ignore_ascii_case(name))
        };
        let meant = names.into_iter().filter(|((dn, _), names)| is_meant(dn, names));
        let found: Vec<CacheRecord> = meant.filter_map(|((dn, key), names)| self.of_entry(key, dn, names)).collect();
        if !found.is_empty() {
            return found;
        }
        // Its names may have been evicted.
        let dn: Arc<str> = name.into();
        let with_id = self.users.iter().filter(|(key, user)| key.has_id() && user.identity.entry().dn == dn);
        let keys = with_id.map(|(key, _)| EntryKey::clone(&key)).chain([EntryKey::by_dn(Realm::DEFAULT, &dn)]);
        keys.filter_map(|key| self.of_entry(key, Arc::clone(&dn), Vec::new())).collect()
    }

    fn of_entry(&self, key: EntryKey, dn: Arc<str>, mut names: Vec<String>) -> Option<CacheRecord> {
        let user = self.users.get(&key);
        let wrong = self.wrong.get(&key).map_or(0, |refused| refused.count());
        // A name whose decision was forgotten is ignored.
        if user.is_none() && wrong == 0 {
            return None;
        }
        names.sort_unstable();
        let age = self.age(&key);
        let left = |life: Duration| age.and_then(|age| life.checked_sub(age));
        Some(CacheRecord {
            names,
            entry: user.as_ref().map(|user| user.identity.shared_entry()),
            right: user.as_ref().map_or(0, |user| user.right.len()),
            wrong,
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
        for (login, name) in &self.names {
            if name.key == *key {
                self.names.invalidate(&*login);
            }
        }
    }

    /// Forgets everything, and invalidates answers in progress.
    pub fn drop_all(&self) {
        self.pass(&self.forgotten);
        self.names.invalidate_all();
        self.users.invalidate_all();
        self.wrong.invalidate_all();
        self.found.invalidate_all();
        self.pass(&self.forgotten);
    }
}
