//! The cache of the directory's answers: bounded, and without passwords.
//!
//! Parts, each a moka cache with its own limit: typed name -> entry; the search of a token -> entry, or why it leads to
//! none; mail address -> entry; entry -> the decision with digests of correct passwords; entry -> digests of wrong
//! passwords (separate, so that guessing can never evict a correct one).
//!
//! A wrong password is refused for `negative_ttl` without a lookup. After that the entry is looked up, and the
//! password is bound again only if it may be valid by now: the entry's password or policy attributes have
//! changed, or `SURE` (12 h) has passed. If the entry exposes no count of wrong passwords, a lock could have
//! hidden that the password is correct: then it counts for longer each time it is refused, up to
//! `negative_ttl_max` (`refused`). Digests are keyed (`base/credential`), compared in
//! constant time. Freshness is computed on tokio's clock; moka's own expiry only frees memory.

mod admin;
mod found;
mod mails;
mod refused;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use moka::ops::compute::Op;
use tokio::time::Instant;

use crate::base::credential::{AnswerDigest, Credential, Login};
use crate::config;
use crate::directory::{Entry, EntryKey, EntryVersion, Identity, ProvenBy, Realm};

pub(crate) use admin::CacheRecord;
pub(crate) use found::TokenSearch;
use found::{FoundEntry, REFUSED, RefusedSearch};
use mails::FoundMail;
use refused::WrongPasswords;

/// Correct passwords kept per entry: a main and some app passwords must not evict each other.
const RIGHT_PER_ENTRY: usize = 4;
/// How long wrong passwords are kept: longer than they count, so that a repeated one is recognized.
const WRONG_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// The number of DN groups that share a generation; sharing costs an unneeded bind, no more.
const GENERATION_SLOTS: usize = 1024;

/// A point in the cache's history: see [`Cache::holds`].
#[derive(Debug, Clone, Copy)]
pub struct CacheStamp(u64);

/// The cached answer for a name and password.
#[derive(Debug)]
pub enum CacheAnswer {
    /// A bind within `ttl` proved this password.
    Right(Arc<Identity>),
    /// The directory refused this password for this DN within `negative_ttl`.
    Wrong(Arc<str>),
    /// Nothing: ask the directory.
    Unknown,
}

#[derive(Clone)]
struct CachedName {
    key: EntryKey,
    /// The DN by which it was last found.
    dn: Arc<str>,
    at: Instant,
}

#[derive(Clone)]
struct VerifiedPassword {
    digest: AnswerDigest,
    /// `None`: another password was stored since; verify again before the next use.
    verified: Option<Instant>,
    /// What it has proven the user by: an entry may have passwords and certificates.
    proven_by: ProvenBy,
}

struct CachedUser {
    /// As last proven, by whichever of them.
    identity: Arc<Identity>,
    right: Vec<VerifiedPassword>,
}

/// The cache.
pub struct Cache {
    realm: Realm,
    ttl: Duration,
    negative_ttl: Duration,
    negative_ttl_max: Duration,
    stale: Duration,
    names: moka::sync::Cache<Login, CachedName>,
    users: moka::sync::Cache<EntryKey, Arc<CachedUser>>,
    wrong: moka::sync::Cache<EntryKey, Arc<WrongPasswords>>,
    found: moka::sync::Cache<TokenSearch, FoundEntry>,
    /// By filter: whoever has a token may write any name beside it.
    refused: moka::sync::Cache<String, RefusedSearch>,
    mails: moka::sync::Cache<Login, FoundMail>,
    /// Whether an entry with an id was ever cached.
    has_ids: AtomicBool,
    /// Counts invalidations; each slot has the count of its last one.
    history: AtomicU64,
    forgotten: Box<[AtomicU64]>,
    slots: RandomState,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(settings: &config::Cache) -> Self {
        // Data that is too old for normal use may be all there is in an outage.
        let life = settings.ttl.max(settings.stale);
        Self {
            realm: Realm::DEFAULT,
            ttl: settings.ttl,
            negative_ttl: settings.negative_ttl,
            negative_ttl_max: settings.negative_ttl_max,
            stale: settings.stale,
            names: bounded(settings.capacity, life),
            users: bounded(settings.capacity, life),
            wrong: bounded(settings.capacity, WRONG_KEPT),
            found: bounded(settings.capacity, life),
            refused: bounded(settings.capacity, REFUSED),
            mails: bounded(settings.capacity, life),
            has_ids: AtomicBool::new(false),
            history: AtomicU64::new(0),
            forgotten: (0..GENERATION_SLOTS).map(|_| AtomicU64::new(0)).collect(),
            slots: RandomState::new(),
        }
    }

    /// The same for this directory.
    #[must_use]
    pub(crate) fn of_realm(self, realm: Realm) -> Self {
        Self { realm, ..self }
    }

    /// The cached answer for this name and password now.
    #[must_use]
    pub fn lookup(&self, credential: &Credential) -> CacheAnswer {
        let digest = &credential.digest().narrow();
        let now = Instant::now();
        let fresh = |at: Instant, life: Duration| now.saturating_duration_since(at) < life;
        let Some(name) = self.names.get(credential.login()).filter(|name| fresh(name.at, self.ttl)) else {
            return CacheAnswer::Unknown;
        };
        if let Some(identity) = self.verified(&name.key, digest, self.ttl) {
            return CacheAnswer::Right(identity);
        }
        let refused = self.wrong.get(&name.key).is_some_and(|refused| refused.lately(digest, self.negative_ttl));
        if refused { CacheAnswer::Wrong(Arc::clone(&name.dn)) } else { CacheAnswer::Unknown }
    }

    /// The user, if a bind proved the password within `stale`: for use while no directory server is available.
    #[must_use]
    pub fn stale(&self, credential: &Credential) -> Option<Arc<Identity>> {
        let name = self.names.get(credential.login())?;
        let verified = || self.verified(&name.key, &credential.digest().narrow(), self.stale);
        (name.at.elapsed() < self.stale).then(verified).flatten()
    }

    /// The entry, if this password was verified within `life`.
    fn verified(&self, key: &EntryKey, digest: &AnswerDigest, life: Duration) -> Option<Arc<Identity>> {
        let user = self.users.get(key)?;
        // Every digest is compared, so that timing does not reveal which one matched.
        let mut known = None;
        for right in &user.right {
            if right.digest.matches(digest) {
                known = Some(right);
            }
        }
        let known = known.filter(|known| known.verified.is_some_and(|at| at.elapsed() < life))?;
        if user.identity.is_proven_by(&known.proven_by) {
            return Some(Arc::clone(&user.identity));
        }
        // A session has to end with its own certificate, and with no other.
        user.identity.proven_again(&known.proven_by).map(Arc::new)
    }

    /// Stores that a bind proved this password. If it is new, the entry's other passwords must be verified
    /// again at their next use: one of them may have been replaced.
    pub fn right(&self, credential: &Credential, identity: Arc<Identity>, since: CacheStamp) {
        let (login, digest) = (credential.login(), credential.digest().narrow::<AnswerDigest>());
        let entry = identity.shared_entry();
        let (key, dn) = (entry.key(), Arc::clone(&entry.dn));
        if !self.holds(&entry, since) {
            return;
        }
        let others = self.other_keys(login, &key, &dn);
        let now = Instant::now();
        self.names.insert(login.clone(), CachedName { key: key.clone(), dn, at: now });
        if key.has_id() {
            self.has_ids.store(true, Ordering::SeqCst);
        }
        self.users.entry(key.clone()).and_compute_with(|old| {
            // Checked again under the lock: an invalidation meanwhile is newer than this answer.
            if !self.holds(&entry, since) {
                return Op::Nop;
            }
            let mut right = old.map(|old| old.into_value().right.clone()).unwrap_or_default();
            if let Some(known) = right.iter_mut().find(|known| known.digest.matches(&digest)) {
                (known.verified, known.proven_by) = (Some(now), identity.proven_by());
            } else {
                right.iter_mut().for_each(|other| other.verified = None);
                // The least recently verified one is evicted; those to be verified again first.
                if right.len() >= RIGHT_PER_ENTRY
                    && let Some(oldest) = (0..right.len()).min_by_key(|at| right.get(*at).map(|known| known.verified))
                {
                    right.remove(oldest);
                }
                // Most have one; room for four would be allocated otherwise.
                right.reserve_exact(1);
                right.push(VerifiedPassword { digest, verified: Some(now), proven_by: identity.proven_by() });
            }
            Op::Put(Arc::new(CachedUser { identity, right }))
        });
        if !self.holds(&entry, since) {
            // An invalidation of an entry whose id is hidden searches without the lock of this key: it may have
            // passed before the answer was stored.
            return self.remove(&key);
        }
        self.drop_wrong(&key, &digest);
        for other in others.into_iter().flatten() {
            self.remove(&other);
            self.drop_wrong(&other, &digest);
        }
    }

    /// The other keys under which the entry with this DN may be cached: not every server shows its id, and the DN
    /// may have belonged to another entry. Without the id, the one to which this name has led.
    fn other_keys(&self, login: &Login, key: &EntryKey, dn: &Arc<str>) -> [Option<EntryKey>; 2] {
        let by_dn = key.has_id().then(|| EntryKey::by_dn(key.realm, dn));
        let before = self.names.get(login).filter(|name| name.key.realm == key.realm && name.dn == *dn);
        [by_dn, before.map(|name| name.key).filter(|before| before != key)]
    }

    /// Stores that the directory refused this password for this DN, whose entry had this version. Does not
    /// affect other passwords.
    pub fn wrong(&self, credential: &Credential, dn: &Arc<str>, seen: &EntryVersion, since: CacheStamp) {
        let (login, digest) = (credential.login(), credential.digest().narrow());
        let key = seen.key(dn);
        // A DN built by a template has the client's spelling; the entry's own DN is known if a user has logged
        // in under this name, and its data must stay reachable. A principal name is not a DN. An id is the
        // entry's own in any case: its DN may have belonged to another entry.
        let is_same = |name: &CachedName| is_respelled(&name.dn, dn) || !key.identifies_entry();
        let known = self.names.get(login).filter(|name| !key.has_id() && is_same(name));
        let (key, dn) = known.map_or_else(|| (key.clone(), Arc::clone(dn)), |name| (name.key, name.dn));
        if !self.holds_dn(key.realm, &dn, since) {
            return;
        }
        let others = self.other_keys(login, &key, &dn);
        let now = Instant::now();
        self.names.insert(login.clone(), CachedName { key: key.clone(), dn, at: now });
        self.drop_right(&key, &digest);
        others.iter().flatten().for_each(|other| self.drop_right(other, &digest));
        self.wrong.entry(key).and_compute_with(|old| {
            let mut refused = old.map(|old| WrongPasswords::clone(old.value())).unwrap_or_default();
            refused.add(seen, digest, now, (self.negative_ttl, self.negative_ttl_max));
            Op::Put(Arc::new(refused))
        });
    }

    /// Whether this password was refused for the entry as just looked up, and nothing indicates that it may be
    /// valid by now.
    #[must_use]
    pub fn refused_before(&self, credential: &Credential, entry: &Entry) -> bool {
        let digest = &credential.digest().narrow();
        let key = entry.key();
        self.note_entry(&key, |refused| refused.note_entry(&entry.version));
        self.wrong.get(&key).is_some_and(|refused| refused.counts(&entry.version, digest))
    }

    /// Records a lock reported by the watch, or its end.
    pub fn lock_shown(&self, key: &EntryKey, version: &EntryVersion) {
        self.note_entry(key, |refused| refused.lock_shown(version));
    }

    /// Updates an entry's wrong passwords from its attributes, if these are new.
    fn note_entry(&self, key: &EntryKey, look: impl Fn(&mut WrongPasswords) -> bool) {
        let changes = |refused: &Arc<WrongPasswords>| look(&mut WrongPasswords::clone(refused));
        if self.wrong.get(key).as_ref().is_some_and(changes) {
            self.wrong.entry(key.clone()).and_compute_with(|old| match old {
                None => Op::Nop,
                Some(old) => {
                    let mut refused = WrongPasswords::clone(old.value());
                    look(&mut refused);
                    Op::Put(Arc::new(refused))
                }
            });
        }
    }

    /// Forgets that this password was correct: the directory did not confirm it. Only a client that has the
    /// password can cause this.
    pub fn forget_password(&self, credential: &Credential) {
        if let Some(name) = self.names.get(credential.login()) {
            self.drop_right(&name.key, &credential.digest().narrow());
        }
    }

    /// Forgets every correct password of an entry, and nothing else: an attempt with any password can cause this, and
    /// must not disturb other logins of its user.
    pub(crate) fn forget_passwords(&self, key: &EntryKey, dn: &Arc<str>) {
        for key in [key, &EntryKey::by_dn(key.realm, dn)] {
            self.drop_verified(key, |known| known.proven_by.is_password());
        }
    }

    fn drop_right(&self, key: &EntryKey, digest: &AnswerDigest) {
        self.drop_verified(key, |known| known.digest.matches(digest));
    }

    fn drop_verified(&self, key: &EntryKey, is_meant: impl Fn(&VerifiedPassword) -> bool) {
        self.users.entry(key.clone()).and_compute_with(|old| match old {
            Some(old) if old.value().right.iter().any(&is_meant) => {
                let user = old.into_value();
                let right = user.right.iter().filter(|known| !is_meant(known)).cloned().collect();
                Op::Put(Arc::new(CachedUser { identity: Arc::clone(&user.identity), right }))
            }
            Some(_) | None => Op::Nop,
        });
    }

    fn drop_wrong(&self, key: &EntryKey, digest: &AnswerDigest) {
        self.wrong.entry(key.clone()).and_compute_with(|old| match old {
            None => Op::Nop,
            Some(old) => {
                let mut refused = WrongPasswords::clone(old.value());
                refused.drop(digest);
                Op::Put(Arc::new(refused))
            }
        });
    }

    /// Forgets the wrong passwords of an entry: a change may have made one valid.
    pub fn forget_wrong(&self, entry: &Entry) {
        self.wrong.invalidate(&entry.key());
        self.wrong.invalidate(&EntryKey::by_dn(entry.version.realm, &entry.dn));
    }

    /// How long ago a bind last proved a password of this entry, if cached.
    #[must_use]
    pub fn age(&self, key: &EntryKey) -> Option<Duration> {
        let user = self.users.get(key)?;
        user.right.iter().filter_map(|right| right.verified).max().map(|at| at.elapsed())
    }

    /// The entry that a typed name leads to, and its DN, if cached.
    #[must_use]
    pub fn entry_of(&self, login: &Login) -> Option<(EntryKey, Arc<str>)> {
        self.names.get(login).map(|name| (name.key, name.dn))
    }

    /// Forgets an entry: its decision and its passwords, and invalidates answers in progress.
    ///
    /// It is found whichever of id and DN the change and the decision were reported with: a server may hide the
    /// id of an entry that another one shows.
    pub fn forget(&self, entry: &Entry) {
        self.forget_keys(&entry.key(), &entry.dn);
    }

    pub(super) fn forget_keys(&self, key: &EntryKey, dn: &Arc<str>) {
        let (realm, by_dn) = (key.realm, EntryKey::by_dn(key.realm, dn));
        // Twice: before, so that no older answer is written after the removal; and after it, so that no stamp
        // is valid that was taken when the decision could still be read.
        self.pass(self.slot(realm, dn));
        self.remove(key);
        if key.has_id() {
            self.remove(&by_dn);
        } else if self.has_ids.load(Ordering::SeqCst) {
            let is_meant = |user: &CachedUser| {
                let cached = user.identity.entry();
                cached.version.realm == realm && cached.dn == *dn
            };
            let hidden = self.users.iter().filter(|(_, user)| is_meant(user));
            hidden.for_each(|(key, _)| self.remove(&key));
        }
        self.pass(self.slot(realm, dn));
    }

    fn remove(&self, key: &EntryKey) {
        self.users.entry(key.clone()).and_compute_with(|old| if old.is_some() { Op::Remove } else { Op::Nop });
    }

    /// Advances the history; earlier stamps become invalid for these slots.
    fn pass<'a>(&self, slots: impl IntoIterator<Item = &'a AtomicU64>) {
        let now = self.history.fetch_add(1, Ordering::SeqCst) + 1;
        for slot in slots {
            slot.fetch_max(now, Ordering::SeqCst);
        }
    }

    /// The current point in history, to be taken *before* the directory is asked.
    #[must_use]
    pub fn stamp(&self) -> CacheStamp {
        CacheStamp(self.history.load(Ordering::SeqCst))
    }

    /// Whether nothing about this entry was forgotten since the stamp was taken. By its DN, which every change
    /// has, unlike an id.
    #[must_use]
    pub fn holds(&self, entry: &Entry, since: CacheStamp) -> bool {
        self.holds_dn(entry.version.realm, &entry.dn, since)
    }

    fn holds_dn(&self, realm: Realm, dn: &str, since: CacheStamp) -> bool {
        self.slot(realm, dn).is_some_and(|slot| slot.load(Ordering::SeqCst) <= since.0)
    }

    /// The approximate number of entries with a decision.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.users.run_pending_tasks();
        self.users.entry_count()
    }

    fn slot(&self, realm: Realm, dn: &str) -> Option<&AtomicU64> {
        let hash = usize::try_from(self.slots.hash_one((realm, dn)) % (GENERATION_SLOTS as u64)).unwrap_or(0);
        self.forgotten.get(hash)
    }
}

/// Whether two DNs differ in case and spaces only. DNs that are equal in other ways, or differ where case
/// matters, cost one more bind: this is never used for a correct password.
fn is_respelled(one: &str, other: &str) -> bool {
    let letters =
        |dn: &str| dn.chars().filter(|letter| *letter != ' ').flat_map(char::to_lowercase).collect::<String>();
    letters(one) == letters(other)
}

fn bounded<K, V>(capacity: u64, life: Duration) -> moka::sync::Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    moka::sync::Cache::builder().max_capacity(capacity).time_to_live(life).build()
}

#[cfg(test)]
mod tests;
