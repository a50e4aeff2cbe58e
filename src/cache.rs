//! What usher remembers of the directory's answers: bounded, and never a password.
//!
//! Parts, each a moka cache with its own limit: typed name -> DN; DN -> the decision with digests
//! of the passwords that were right; DN -> digests of passwords that were wrong (apart, so that
//! guessing can never push out a right one); and the flights, one per typed name and password.
//!
//! A wrong password is remembered for `negative_ttl` without another question. After that the entry is
//! looked up, and the password is bound again only if something says that it may be right by now: what
//! the entry shows of its password or policy has changed, or `SURE` (12 h) has passed. Where the entry shows
//! no count of wrong passwords, a lock could have hidden that it is right: then it counts for longer
//! each time it is refused, up to `negative_ttl_max` (`refused`).
//! Digests are HMAC-SHA-256 under a random key of this process, compared in constant time.
//! Freshness is judged here, on tokio's clock; moka's own expiry only frees memory.

mod looking;
mod refused;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use moka::ops::compute::Op;
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config;
use crate::directory::{Entry, EntryVersion, Identity, Login};
use crate::secret::Secret;

pub use looking::CacheRecord;
use refused::WrongPasswords;

/// Right passwords kept per entry: a main and some app passwords must not evict each other.
const RIGHT_PER_ENTRY: usize = 4;
/// How long wrong passwords are kept: for longer than they count, so that one that is refused again is
/// known to be the same.
const WRONG_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How many groups of DNs share a generation; a shared one costs a needless bind, no more.
const GENERATION_SLOTS: usize = 1024;

/// A keyed digest of a password: useless without this process' key.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A point in the cache's history: see [`Cache::holds`].
#[derive(Debug, Clone, Copy)]
pub struct CacheStamp(u64);

/// What the cache knows of a name and a password.
#[derive(Debug)]
pub enum CacheAnswer {
    /// A bind within `ttl` proved this password.
    Right(Arc<Identity>),
    /// The directory refused this password for this DN within `negative_ttl`.
    Wrong(Arc<str>),
    /// Ask the directory.
    Unknown,
}

#[derive(Clone)]
struct CachedName {
    dn: Arc<str>,
    at: Instant,
}

#[derive(Clone)]
struct VerifiedPassword {
    digest: Digest,
    /// `None`: another password has become right since; ask again before the next use.
    verified: Option<Instant>,
}

struct CachedUser {
    identity: Arc<Identity>,
    right: Vec<VerifiedPassword>,
}

/// The cache.
pub struct Cache {
    key: hmac::Key,
    ttl: Duration,
    negative_ttl: Duration,
    negative_ttl_max: Duration,
    stale: Duration,
    names: moka::sync::Cache<Login, CachedName>,
    users: moka::sync::Cache<Arc<str>, Arc<CachedUser>>,
    wrong: moka::sync::Cache<Arc<str>, Arc<WrongPasswords>>,
    /// Counts what was forgotten; each slot has the count at its last time.
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
    /// An empty cache under a new random key.
    ///
    /// # Panics
    /// If the operating system has no random numbers: nothing may be decided then.
    #[must_use]
    pub fn new(settings: &config::Cache) -> Self {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the system has random numbers");
        // What is too old to be used now may be all there is in an outage.
        let life = settings.ttl.max(settings.stale);
        Self {
            key,
            ttl: settings.ttl,
            negative_ttl: settings.negative_ttl,
            negative_ttl_max: settings.negative_ttl_max,
            stale: settings.stale,
            names: bounded(settings.capacity, life),
            users: bounded(settings.capacity, life),
            wrong: bounded(settings.capacity, WRONG_KEPT),
            history: AtomicU64::new(0),
            forgotten: (0..GENERATION_SLOTS).map(|_| AtomicU64::new(0)).collect(),
            slots: RandomState::new(),
        }
    }

    /// The digest under which a password is remembered.
    #[must_use]
    pub fn digest(&self, password: &Secret) -> Digest {
        let tag = hmac::sign(&self.key, password.expose());
        let mut digest = [0; 32];
        digest.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Digest(digest)
    }

    /// What is known of this name and password now.
    #[must_use]
    pub fn lookup(&self, login: &Login, digest: &Digest) -> CacheAnswer {
        let now = Instant::now();
        let fresh = |at: Instant, life: Duration| now.saturating_duration_since(at) < life;
        let Some(name) = self.names.get(login).filter(|name| fresh(name.at, self.ttl)) else {
            return CacheAnswer::Unknown;
        };
        if let Some(identity) = self.verified(&name.dn, digest, self.ttl) {
            return CacheAnswer::Right(identity);
        }
        let refused = self.wrong.get(&name.dn).is_some_and(|refused| refused.lately(digest, self.negative_ttl));
        if refused { CacheAnswer::Wrong(Arc::clone(&name.dn)) } else { CacheAnswer::Unknown }
    }

    /// Who this is, if a bind proved the password within `stale`: to be asked while no directory is
    /// there to say otherwise.
    #[must_use]
    pub fn stale(&self, login: &Login, digest: &Digest) -> Option<Arc<Identity>> {
        let name = self.names.get(login)?;
        (name.at.elapsed() < self.stale).then(|| self.verified(&name.dn, digest, self.stale)).flatten()
    }

    /// The entry, if this password of it was verified within so long.
    fn verified(&self, dn: &Arc<str>, digest: &Digest, life: Duration) -> Option<Arc<Identity>> {
        let person = self.users.get(dn)?;
        // Every digest is compared, so that the time tells nothing about which one it was.
        let mut verified = None;
        for right in &person.right {
            if right.digest.matches(digest) {
                verified = right.verified;
            }
        }
        verified.is_some_and(|at| at.elapsed() < life).then(|| Arc::clone(&person.identity))
    }

    /// Remembers that a bind proved this password. When it was not known before, the entry's other
    /// passwords must be verified again at their next use: one of them may have been replaced.
    pub fn right(&self, login: &Login, identity: Arc<Identity>, digest: Digest, since: CacheStamp) {
        let dn = Arc::clone(&identity.entry().dn);
        if !self.holds(&dn, since) {
            return;
        }
        let now = Instant::now();
        self.names.insert(login.clone(), CachedName { dn: Arc::clone(&dn), at: now });
        self.users.entry(Arc::clone(&dn)).and_compute_with(|old| {
            // Asked again where the entry is locked: what was forgotten meanwhile is newer than this answer,
            // which nobody may see then.
            if !self.holds(&dn, since) {
                return Op::Nop;
            }
            let mut right = old.map(|old| old.into_value().right.clone()).unwrap_or_default();
            if let Some(known) = right.iter_mut().find(|known| known.digest.matches(&digest)) {
                known.verified = Some(now);
            } else {
                right.iter_mut().for_each(|other| other.verified = None);
                // The one verified longest ago goes; those to be verified again go first.
                if right.len() >= RIGHT_PER_ENTRY
                    && let Some(oldest) = (0..right.len()).min_by_key(|at| right.get(*at).map(|known| known.verified))
                {
                    right.remove(oldest);
                }
                // Most have one; room for four would be taken otherwise.
                right.reserve_exact(1);
                right.push(VerifiedPassword { digest, verified: Some(now) });
            }
            Op::Put(Arc::new(CachedUser { identity, right }))
        });
        self.drop_wrong(&dn, &digest);
    }

    /// Remembers that the directory refused this password for this DN, whose entry showed these marks.
    /// Touches no other password.
    pub fn wrong(&self, login: &Login, dn: &Arc<str>, seen: &EntryVersion, digest: Digest, since: CacheStamp) {
        // Where a template made the name that was bound, its spelling is the client's; the entry's own
        // is known if somebody got in under this name, and what is known of it must stay in reach. A
        // principal name is no DN at all.
        let known = self.names.get(login).filter(|name| is_respelled(&name.dn, dn) || !dn.contains('='));
        let dn = known.as_ref().map_or(dn, |name| &name.dn);
        if !self.holds(dn, since) {
            return;
        }
        let now = Instant::now();
        self.names.insert(login.clone(), CachedName { dn: Arc::clone(dn), at: now });
        self.drop_right(dn, &digest);
        self.wrong.entry(Arc::clone(dn)).and_compute_with(|old| {
            let mut refused = old.map(|old| WrongPasswords::clone(old.value())).unwrap_or_default();
            refused.add(seen, digest, now, (self.negative_ttl, self.negative_ttl_max));
            Op::Put(Arc::new(refused))
        });
    }

    /// Whether this password was refused for the entry as it was just looked up, and nothing says that it
    /// may be right by now.
    #[must_use]
    pub fn refused_before(&self, entry: &Entry, digest: &Digest) -> bool {
        self.note_entry(&entry.dn, |refused| refused.note_entry(&entry.version));
        self.wrong.get(&entry.dn).is_some_and(|refused| refused.counts(&entry.version, digest))
    }

    /// Takes note of a lock that the watch has told of, or of its end.
    pub fn lock_shown(&self, dn: &Arc<str>, marks: &EntryVersion) {
        self.note_entry(dn, |refused| refused.lock_shown(marks));
    }

    /// Changes what is known of an entry's wrong passwords by what it shows, where that is new.
    fn note_entry(&self, dn: &Arc<str>, look: impl Fn(&mut WrongPasswords) -> bool) {
        let changes = |refused: &Arc<WrongPasswords>| look(&mut WrongPasswords::clone(refused));
        if self.wrong.get(dn).as_ref().is_some_and(changes) {
            self.wrong.entry(Arc::clone(dn)).and_compute_with(|old| match old {
                None => Op::Nop,
                Some(old) => {
                    let mut refused = WrongPasswords::clone(old.value());
                    look(&mut refused);
                    Op::Put(Arc::new(refused))
                }
            });
        }
    }

    /// Forgets that this password was right: the directory did not say so when it was asked again.
    /// Nobody who does not have the password can make this happen.
    pub fn forget_password(&self, login: &Login, digest: &Digest) {
        if let Some(name) = self.names.get(login) {
            self.drop_right(&name.dn, digest);
        }
    }

    fn drop_right(&self, dn: &Arc<str>, digest: &Digest) {
        self.users.entry(Arc::clone(dn)).and_compute_with(|old| match old {
            Some(old) if old.value().right.iter().any(|known| known.digest.matches(digest)) => {
                let person = old.into_value();
                let right = person.right.iter().filter(|known| !known.digest.matches(digest)).cloned().collect();
                Op::Put(Arc::new(CachedUser { identity: Arc::clone(&person.identity), right }))
            }
            Some(_) | None => Op::Nop,
        });
    }

    fn drop_wrong(&self, dn: &Arc<str>, digest: &Digest) {
        self.wrong.entry(Arc::clone(dn)).and_compute_with(|old| match old {
            None => Op::Nop,
            Some(old) => {
                let mut refused = WrongPasswords::clone(old.value());
                refused.drop(digest);
                Op::Put(Arc::new(refused))
            }
        });
    }

    /// Forgets which passwords of an entry were wrong: it was changed in a way that may have made one
    /// right.
    pub fn forget_wrong(&self, dn: &Arc<str>) {
        self.wrong.invalidate(dn);
    }

    /// How long ago a bind last proved a password of this entry, if that is remembered.
    #[must_use]
    pub fn age(&self, dn: &Arc<str>) -> Option<Duration> {
        let person = self.users.get(dn)?;
        person.right.iter().filter_map(|right| right.verified).max().map(|at| at.elapsed())
    }

    /// The DN that a typed name stands for, as remembered.
    #[must_use]
    pub fn dn_of(&self, login: &Login) -> Option<Arc<str>> {
        self.names.get(login).map(|name| Arc::clone(&name.dn))
    }

    /// Forgets an entry: its decision and every password of it, and ends the life of answers that
    /// were on their way.
    pub fn forget(&self, dn: &Arc<str>) {
        // Twice: before, so that no older answer is written after the removal; and behind it, so that no
        // stamp holds that was taken when the decision could still be read.
        self.pass(self.slot(dn));
        self.users.entry(Arc::clone(dn)).and_compute_with(|old| if old.is_some() { Op::Remove } else { Op::Nop });
        self.pass(self.slot(dn));
    }

    /// A new point in history; no earlier stamp holds for these slots.
    fn pass<'a>(&self, slots: impl IntoIterator<Item = &'a AtomicU64>) {
        let now = self.history.fetch_add(1, Ordering::SeqCst) + 1;
        for slot in slots {
            slot.fetch_max(now, Ordering::SeqCst);
        }
    }

    /// The present point in history, to be taken *before* the directory is asked.
    #[must_use]
    pub fn stamp(&self) -> CacheStamp {
        CacheStamp(self.history.load(Ordering::SeqCst))
    }

    /// Whether nothing about this DN was forgotten since the stamp was taken.
    #[must_use]
    pub fn holds(&self, dn: &str, since: CacheStamp) -> bool {
        self.slot(dn).is_some_and(|slot| slot.load(Ordering::SeqCst) <= since.0)
    }

    /// How many entries have a decision, about.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.users.run_pending_tasks();
        self.users.entry_count()
    }

    fn slot(&self, dn: &str) -> Option<&AtomicU64> {
        let hash = usize::try_from(self.slots.hash_one(dn) % (GENERATION_SLOTS as u64)).unwrap_or(0);
        self.forgotten.get(hash)
    }
}

/// Whether two DNs differ in capitals and blanks alone. DNs that are equal in other ways, or unequal
/// where capitals matter, cost a bind more and nothing else: this is never asked about a right password.
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

/// Why a flight brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlightError {
    /// As many questions are under way as may be.
    #[error("too many questions are under way")]
    TooMany,
    /// The task that asked panicked.
    #[error("the question was lost")]
    Lost,
}

/// Questions under way, so that equal ones share an answer. The answer is computed by its own task
/// and goes on when the client who asked is gone: the bind was sent, its answer is worth keeping.
pub struct Flights<T> {
    in_progress: Arc<Mutex<InProgress<T>>>,
    limit: usize,
}

type InProgress<T> = HashMap<(Login, [u8; 32]), watch::Receiver<Option<T>>>;

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// No flight yet, and at most `limit` at a time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { in_progress: Arc::default(), limit }
    }

    /// Joins the flight of this name and password, or starts it.
    ///
    /// # Errors
    /// There are too many, or the answer's task panicked.
    pub async fn join<F>(&self, login: &Login, digest: &Digest, ask: impl FnOnce() -> F) -> Result<T, FlightError>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let key = (login.clone(), digest.0);
        let mut answer = {
            let mut under_way = self.in_progress.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(flight) = under_way.get(&key) {
                flight.clone()
            } else if under_way.len() >= self.limit {
                return Err(FlightError::TooMany);
            } else {
                let (tell, flight) = watch::channel(None);
                under_way.insert(key.clone(), flight.clone());
                let landing = FlightGuard { under_way: Arc::clone(&self.in_progress), key };
                let answer = ask();
                tokio::spawn(async move {
                    let _landing = landing;
                    tell.send_replace(Some(answer.await));
                });
                flight
            }
        };
        let landed = answer.wait_for(Option::is_some).await.map_err(|_| FlightError::Lost)?;
        landed.clone().ok_or(FlightError::Lost)
    }
}

/// Takes the flight off the list when its task ends, however it ends.
struct FlightGuard<T> {
    under_way: Arc<Mutex<InProgress<T>>>,
    key: (Login, [u8; 32]),
}

impl<T> Drop for FlightGuard<T> {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests;
