//! What an administrator sees of the cache and may take out of it. Counts and times only: no
//! password, and nothing that is made of one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Cache;
use crate::directory::Entry;

/// What is remembered of one entry.
#[derive(Debug)]
pub struct CacheRecord {
    /// Its DN, or what stands for it where only wrong passwords are known.
    pub dn: Arc<str>,
    /// The names under which it was typed, sorted.
    pub names: Vec<String>,
    /// The entry, if there is a decision.
    pub entry: Option<Arc<Entry>>,
    /// How many right passwords are known.
    pub right: usize,
    /// How many wrong ones.
    pub wrong: usize,
    /// How long ago a bind last proved a password.
    pub age: Option<Duration>,
    /// How long that is used without another question.
    pub left: Option<Duration>,
    /// How long it would be used while no directory answers.
    pub stale_left: Option<Duration>,
}

impl Cache {
    /// What is remembered of whoever this name, in any capitals, or DN stands for: one entry, or none,
    /// or several where spellings of a name meant different entries.
    #[must_use]
    pub fn remembered(&self, name: &str) -> Vec<CacheRecord> {
        let mut names: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
        for (login, meaning) in &self.names {
            names.entry(Arc::clone(&meaning.dn)).or_default().push(login.as_str().to_owned());
        }
        let is_meant = |dn: &str, names: &[String]| {
            dn.eq_ignore_ascii_case(name) || names.iter().any(|one| one.eq_ignore_ascii_case(name))
        };
        let meant = names.into_iter().filter(|(dn, names)| is_meant(dn, names));
        let found: Vec<CacheRecord> = meant.filter_map(|(dn, names)| self.of_entry(dn, names)).collect();
        if !found.is_empty() {
            return found;
        }
        // Its names may have been pushed out.
        self.of_entry(name.into(), Vec::new()).into_iter().collect()
    }

    fn of_entry(&self, dn: Arc<str>, mut names: Vec<String>) -> Option<CacheRecord> {
        let person = self.users.get(&dn);
        let wrong = self.wrong.get(&dn).map_or(0, |refused| refused.count());
        // A name whose decision was forgotten says nothing any more.
        if person.is_none() && wrong == 0 {
            return None;
        }
        names.sort_unstable();
        let age = self.age(&dn);
        let left = |life: Duration| age.and_then(|age| life.checked_sub(age));
        Some(CacheRecord {
            names,
            entry: person.as_ref().map(|person| person.identity.shared_entry()),
            right: person.as_ref().map_or(0, |person| person.right.len()),
            wrong,
            age,
            left: left(self.ttl),
            stale_left: left(self.stale),
            dn,
        })
    }

    /// Forgets all that is remembered of an entry, wrong passwords too.
    pub fn drop_entry(&self, dn: &Arc<str>) {
        self.forget(dn);
        self.forget_wrong(dn);
        for (login, name) in &self.names {
            if name.dn == *dn {
                self.names.invalidate(&*login);
            }
        }
    }

    /// Forgets everything, and ends the life of answers that are on their way.
    pub fn drop_all(&self) {
        self.pass(&self.forgotten);
        self.names.invalidate_all();
        self.users.invalidate_all();
        self.wrong.invalidate_all();
        self.pass(&self.forgotten);
    }
}
