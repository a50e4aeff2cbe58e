//! The sessions of a user at all ushers of a fleet: each writes its own count behind, and hears the others' counts by
//! the answer. No login waits for it, so that sessions which begin before the answer may exceed the limit.
//!
//! A count stands in the store for as long as its process lives there; where it is lost, it is written again. So is
//! one whose write got no answer: a session that ended while the store was away must not count without end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::keys::HashedKey;
use super::shared::{ScriptArg, ScriptRunner, SharedKey};
use super::store::SharedId;
use crate::base::clock::jittered;
use crate::directory::EntryKey;
use crate::fleet::FleetScript;

/// How long an answer is used: what it counts may have ended since.
const FRESH: Duration = Duration::from_secs(60);
/// How long users that share a key stay in the store without a new one.
const RECORD: Duration = Duration::from_secs(7 * 86_400);
/// How many pauses a rewriting has.
const STEPS: u32 = 120;
/// How long a write may be without an answer.
const UNANSWERED: Duration = Duration::from_secs(5);
/// How many writes without an answer are repeated at a time.
const REPEATED: usize = 1_000;

/// Writes a member's sessions of a user.
pub(crate) static SESSIONS: FleetScript = FleetScript::new("sessions", include_str!("scripts/sessions.lua"));

/// One user with sessions here.
#[derive(Debug)]
struct User {
    entry: EntryKey,
    here: u32,
    place: Option<Place>,
}

/// A user in the store, and the key: kept, because a keyed digest costs as much as the rest of a write.
type Place = (SharedId, String);

/// What users that share a key have in common: twelve bits. A hash of up to 512 takes little more than what is in it.
const fn shared_part([first, second, ..]: SharedId) -> SharedId {
    let mut part = [0; 16];
    let [one, two, ..] = &mut part;
    (*one, *two) = (first, second & 0xf0);
    part
}

/// A write that has no answer yet.
#[derive(Debug)]
struct Unanswered {
    entry: EntryKey,
    here: u32,
    since: Instant,
}

/// The users with sessions here, as the fleet counts them.
#[derive(Debug)]
pub(super) struct SharedSessions {
    runner: Arc<dyn ScriptRunner>,
    /// Bounded by the sessions. The lock also keeps the writes of a user in order; a write is queued and not awaited.
    users: Mutex<HashMap<HashedKey, User>>,
    /// The users whose record in the store may be another than the last that was written, up to `capacity`.
    unanswered: Arc<Mutex<HashMap<HashedKey, Unanswered>>>,
    capacity: usize,
    /// The sessions at other ushers, if there are any, and when that was heard. Kept when the last session here has ended.
    elsewhere: moka::sync::Cache<HashedKey, (u32, Instant)>,
}

impl SharedSessions {
    /// At most this many answers are kept.
    pub(super) fn new(runner: Arc<dyn ScriptRunner>, capacity: u64) -> Arc<Self> {
        let elsewhere = moka::sync::Cache::builder().max_capacity(capacity).time_to_live(FRESH).build();
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        Arc::new(Self { runner, users: Mutex::default(), unanswered: Arc::default(), capacity, elsewhere })
    }

    /// Counts a session until the guard is dropped. Returns how many the user has elsewhere, as last heard.
    pub(super) fn hold(self: &Arc<Self>, user: HashedKey, entry: &EntryKey) -> (SharedSession, u32) {
        let mut users = self.lock();
        let counted = users.entry(user).or_insert_with(|| User { entry: entry.clone(), here: 0, place: None });
        counted.here = counted.here.saturating_add(1);
        let elsewhere = self.elsewhere(user);
        self.write(user, &counted.entry, counted.here, &mut counted.place);
        (SharedSession { sessions: Arc::clone(self), user }, elsewhere)
    }

    /// How many sessions the user has elsewhere, as last heard.
    pub(super) fn elsewhere(&self, user: HashedKey) -> u32 {
        let heard = self.elsewhere.get(&user).filter(|(_, heard)| heard.elapsed() < FRESH);
        heard.map_or(0, |(count, _)| count)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<HashedKey, User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the count behind.
    fn write(&self, user: HashedKey, entry: &EntryKey, here: u32, place: &mut Option<Place>) {
        {
            let mut unanswered = lock(&self.unanswered);
            if unanswered.len() < self.capacity || unanswered.contains_key(&user) {
                unanswered.insert(user, Unanswered { entry: entry.clone(), here, since: Instant::now() });
            }
        }
        if !self.runner.is_up() {
            return;
        }
        if place.is_none() {
            let id = self.runner.id(SharedKey::Sessions, &[&entry.to_bytes()]);
            *place = id.map(|id| (id, self.runner.key(SharedKey::Sessions, shared_part(id))));
        }
        let Some((id, key)) = place else { return };
        let (member, prefix) = self.runner.member();
        let args = vec![
            ScriptArg::from(member.as_bytes()),
            here.into(),
            prefix.as_bytes().into(),
            ScriptArg::from(RECORD),
            id.first_chunk::<12>().map_or(&[][..], <[u8; 12]>::as_slice).into(),
        ];
        let (elsewhere, unanswered) = (self.elsewhere.clone(), Arc::clone(&self.unanswered));
        let done = move |answer: &[i64]| {
            let mut unanswered = lock(&unanswered);
            if unanswered.get(&user).is_some_and(|last| last.here == here) {
                unanswered.remove(&user);
            }
            drop(unanswered);
            let Some(count) = answer.first().and_then(|count| u32::try_from(*count).ok()) else { return };
            if count > 0 {
                elsewhere.insert(user, (count, Instant::now()));
            } else if elsewhere.contains_key(&user) {
                // Most users have none elsewhere, and nothing is kept for them.
                elsewhere.invalidate(&user);
            }
        };
        self.runner.order(&SESSIONS, vec![key.clone()], args, Some(Box::new(done)));
    }

    /// Writes all counts again over this time: the store has lost them.
    pub(super) async fn rewrite(&self, over: Duration) {
        let users: Vec<_> = self.lock().keys().copied().collect();
        let size = users.len().div_ceil(STEPS as usize).max(1);
        for some in users.chunks(size) {
            // No two ushers write in step.
            sleep(jittered(over / STEPS)).await;
            for user in some {
                if let Some(counted) = self.lock().get_mut(user) {
                    // The names of another store may have another key.
                    counted.place = None;
                    self.write(*user, &counted.entry, counted.here, &mut counted.place);
                }
            }
        }
    }

    /// Repeats writes that have no answer: the store was away, or too many waited. To be called every few seconds.
    pub(super) fn repeat_unanswered(&self) {
        if !self.runner.is_up() {
            return;
        }
        let is_late = |last: &Unanswered| last.since.elapsed() >= UNANSWERED;
        let late: Vec<_> = {
            let unanswered = lock(&self.unanswered);
            let late = unanswered.iter().filter(|(_, last)| is_late(last));
            late.map(|(user, last)| (*user, last.entry.clone())).take(REPEATED).collect()
        };
        for (user, entry) in late {
            let users = self.lock();
            self.write(user, &entry, users.get(&user).map_or(0, |counted| counted.here), &mut None);
        }
    }
}

fn lock(unanswered: &Mutex<HashMap<HashedKey, Unanswered>>) -> MutexGuard<'_, HashMap<HashedKey, Unanswered>> {
    unanswered.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session that is counted.
#[derive(Debug)]
pub(super) struct SharedSession {
    sessions: Arc<SharedSessions>,
    user: HashedKey,
}

impl Drop for SharedSession {
    fn drop(&mut self) {
        let mut users = self.sessions.lock();
        let Some(counted) = users.get_mut(&self.user) else { return };
        counted.here = counted.here.saturating_sub(1);
        self.sessions.write(self.user, &counted.entry, counted.here, &mut counted.place);
        if counted.here == 0 {
            users.remove(&self.user);
        }
    }
}
