//! The last login attempts of each user, for a helpdesk without access to the log (`usher history`).
//!
//! In memory alone, and bounded in bytes: attempts that are alike follow each other as one with a count, and users that
//! have not logged in for long are forgotten first. Names that lead to no entry have a small room of their own, so that
//! a guesser cannot push users out. No password, no token.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::authn::DecidedBy;
use super::event::{ConnectionInfo, LoginEvent};
use crate::base::clock::unix_now;
use crate::outcome::{Refusal, Reply};
use crate::proto::ClientId;
use crate::sessions::id::SessionId;
use crate::telemetry::client_address::Client;

/// How many attempts are kept of a user.
const ATTEMPTS: usize = 20;
/// Bytes of all users that have an entry.
const USERS: u64 = 32 * 1024 * 1024;
/// Bytes of all names that have none.
const STRANGERS: u64 = 2 * 1024 * 1024;
/// The longest text that is kept of a peer, in bytes.
const TEXT: usize = 128;
/// What a text costs besides its bytes: the allocator's rounding.
const ALLOCATION: usize = 16;
/// What a user costs besides its key and attempts: the cache's nodes, and the allocations that hold them.
const USER: usize = 256;

/// Attempts that are alike: how the last one went, and how many there were. With borrowed texts one that has just ended:
/// most are like the last one, and then no text is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt<T = Box<str>> {
    /// When the first ended, Unix seconds.
    pub first: u64,
    /// When the last ended.
    pub last: u64,
    /// How many there were.
    pub count: u32,
    /// The session of the last, as in the log.
    pub session: SessionId,
    /// The login name as typed.
    pub login: T,
    /// The entry's DN; empty if there was none.
    pub dn: T,
    /// The name of its directory, where there are several.
    pub directory: Option<T>,
    /// The user that has acted for this one.
    pub acting: Option<T>,
    /// The user of the machine that has tried it (`usher try`).
    #[serde(default)]
    pub tried_by_uid: Option<u32>,
    /// The client's address, or its network (`log.client_address`).
    pub client: T,
    /// The protocol's name.
    pub protocol: T,
    /// What the client calls itself; may be empty.
    pub program: T,
    /// `ok`, or the reason of refusal as in the log and the metrics.
    pub result: T,
    /// What decided, as in the log.
    pub by: Option<T>,
    /// What the client has read, without the protocol's code; empty with `ok`.
    pub reply: T,
    /// The backend's name, if there was a route.
    pub backend: Option<T>,
    /// What the backend or the connection to it said, if that is why.
    pub backend_reply: T,
}

impl Attempt {
    fn is_like(&self, other: &Attempt<&str>) -> bool {
        &*self.result == other.result
            && &*self.protocol == other.protocol
            && &*self.reply == other.reply
            && &*self.backend_reply == other.backend_reply
            && &*self.client == other.client
            && &*self.program == other.program
            && self.backend.as_deref() == other.backend
            && self.acting.as_deref() == other.acting
            && self.tried_by_uid == other.tried_by_uid
    }

    /// Takes over what another one that is like it may have in addition; returns whether any text differs.
    fn repeat(&mut self, other: &Attempt<&str>) -> bool {
        (self.last, self.session) = (other.last, other.session);
        self.count = self.count.saturating_add(1);
        let optional = [(&mut self.directory, other.directory), (&mut self.by, other.by)];
        let mut differs = false;
        for (text, new) in [(&mut self.login, other.login), (&mut self.dn, other.dn)] {
            if **text != *new {
                (*text, differs) = (new.into(), true);
            }
        }
        for (text, new) in optional {
            if text.as_deref() != new {
                (*text, differs) = (new.map(Into::into), true);
            }
        }
        differs
    }

    /// Bytes of its texts.
    fn bytes(&self) -> usize {
        let peer = [&self.login, &self.dn, &self.client, &self.program, &self.reply, &self.backend_reply];
        let own = [&self.protocol, &self.result];
        let optional = [&self.directory, &self.acting, &self.by, &self.backend];
        let texts = peer.into_iter().chain(own).chain(optional.into_iter().flatten());
        texts.filter(|text| !text.is_empty()).map(|text| ALLOCATION + text.len()).sum()
    }
}

impl Attempt<&str> {
    fn owned(&self) -> Attempt {
        Attempt {
            first: self.first,
            last: self.last,
            count: self.count,
            session: self.session,
            login: self.login.into(),
            dn: self.dn.into(),
            directory: self.directory.map(Into::into),
            acting: self.acting.map(Into::into),
            tried_by_uid: self.tried_by_uid,
            client: self.client.into(),
            protocol: self.protocol.into(),
            program: self.program.into(),
            result: self.result.into(),
            by: self.by.map(Into::into),
            reply: self.reply.into(),
            backend: self.backend.map(Into::into),
            backend_reply: self.backend_reply.into(),
        }
    }
}

/// The attempts of one user, oldest first.
#[derive(Debug, Default)]
struct Attempts(Mutex<VecDeque<Attempt>>);

impl Attempts {
    fn all(&self) -> MutexGuard<'_, VecDeque<Attempt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; returns whether it needs another room than before.
    fn add(&self, attempt: &Attempt<&str>) -> bool {
        let mut all = self.all();
        if let Some(last) = all.back_mut().filter(|last| last.is_like(attempt)) {
            return last.repeat(attempt);
        }
        if all.len() >= ATTEMPTS {
            // When the user last got in is not lost among the refusals of a guesser.
            let success = all.iter().rposition(|one| &*one.result == "ok");
            let oldest = usize::from(success == Some(0) && attempt.result != "ok");
            all.remove(oldest);
        }
        // Most users have one or two; places in reserve would be most of the memory.
        all.reserve_exact(1);
        all.push_back(attempt.owned());
        true
    }

    fn bytes(&self, key: &str) -> u32 {
        let all = self.all();
        let texts: usize = all.iter().map(Attempt::bytes).sum();
        let bytes = USER + key.len() + all.capacity() * size_of::<Attempt>() + texts;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

type Room = moka::sync::Cache<Arc<str>, Arc<Attempts>>;

/// The attempts of all users.
pub(crate) struct LoginHistory {
    users: Room,
    strangers: Room,
}

impl std::fmt::Debug for LoginHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginHistory").finish_non_exhaustive()
    }
}

impl Default for LoginHistory {
    fn default() -> Self {
        Self::with_room(USERS, STRANGERS)
    }
}

impl LoginHistory {
    fn with_room(users: u64, strangers: u64) -> Self {
        let room = |bytes| {
            let weigh = |key: &Arc<str>, attempts: &Arc<Attempts>| attempts.bytes(key);
            let lru = moka::policy::EvictionPolicy::lru();
            moka::sync::Cache::builder().max_capacity(bytes).weigher(weigh).eviction_policy(lru).build()
        };
        Self { users: room(users), strangers: room(strangers) }
    }

    /// Notes an attempt that has ended.
    pub(crate) fn note(
        &self,
        event: &LoginEvent,
        info: &ConnectionInfo,
        client_id: Option<&ClientId>,
        refused: Option<(&Refusal, &Reply)>,
    ) {
        let typed = String::from_utf8_lossy(&event.typed);
        let client = Client::of(info.client, event.is_acting()).to_string();
        let program = client_id.map(|id| format!("{} {}", id.name, id.version)).unwrap_or_default();
        let backend_reply = event.reply_shown(info.client).unwrap_or_default();
        let now = unix_now();
        let attempt = Attempt {
            first: now,
            last: now,
            count: 1,
            session: info.session,
            login: cut(&typed),
            dn: event.dn.as_deref().map(cut).unwrap_or_default(),
            directory: event.directory,
            acting: event.acting.as_ref().map(|(actor, _)| cut(actor.as_str())),
            tried_by_uid: event.tried_by_uid,
            client: &client,
            protocol: info.protocol,
            program: cut(program.trim()),
            result: refused.map_or("ok", |(refusal, _)| refusal.label()),
            by: event.by.map(DecidedBy::label),
            reply: refused.map(|(_, reply)| cut(reply.text())).unwrap_or_default(),
            backend: event.backend.as_deref(),
            backend_reply: cut(&backend_reply),
        };
        // Only what a search has found, or a login has proven, is an entry: a DN made from a template need not exist.
        let is_entry = refused.is_none() || event.trace.search.is_some();
        match event.dn.as_deref() {
            Some(dn) => {
                let key = key(event.directory, dn);
                if is_entry || self.users.contains_key(&*key) {
                    add(&self.users, &key, &attempt)
                } else {
                    self.note_stranger(&attempt)
                }
            }
            None => self.note_stranger(&attempt),
        }
    }

    fn note_stranger(&self, attempt: &Attempt<&str>) {
        if !attempt.login.is_empty() {
            add(&self.strangers, &attempt.login.to_lowercase(), attempt);
        }
    }

    /// The last attempts of a user, by a name as typed or the DN, oldest first; of every entry that the name led to, or that
    /// has one of these DNs. It looks at every attempt.
    #[must_use]
    pub(crate) fn of(&self, name: &str, dns: &[Arc<str>]) -> Vec<Attempt> {
        let names: Vec<String> =
            std::iter::once(name).chain(dns.iter().map(|dn| &**dn)).map(str::to_lowercase).collect();
        let is_one = |text: &str| names.iter().any(|name| text.to_lowercase() == *name);
        let is_named = |attempt: &Attempt| is_one(&attempt.login) || is_one(&attempt.dn);
        let rooms = self.users.iter().chain(self.strangers.iter());
        let mut found: Vec<Attempt> = rooms
            .filter_map(|(_, attempts)| {
                let all = attempts.all();
                all.iter().any(is_named).then(|| all.iter().cloned().collect::<Vec<_>>())
            })
            .flatten()
            .collect();
        found.sort_by_key(|attempt| attempt.last);
        found.split_off(found.len().saturating_sub(ATTEMPTS))
    }
}

fn add(room: &Room, key: &str, attempt: &Attempt<&str>) {
    if let Some(attempts) = room.get(key) {
        if attempts.add(attempt) {
            // It is weighed again.
            room.insert(key.into(), attempts);
        }
        return;
    }
    let attempts = Attempts::default();
    attempts.add(attempt);
    room.insert(key.into(), Arc::new(attempts));
}

fn key(directory: Option<&str>, dn: &str) -> String {
    let dn = dn.to_lowercase();
    match directory {
        Some(directory) => format!("{directory}\0{dn}"),
        None => dn,
    }
}

/// As much of a peer's text as is kept.
fn cut(text: &str) -> &str {
    let end = if text.len() <= TEXT {
        text.len()
    } else {
        (0..=TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default()
    };
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;

    fn info() -> ConnectionInfo {
        let client = IpAddr::from([192, 0, 2, 7]);
        ConnectionInfo { session: SessionId::FIRST, client, via: None, protocol: "imap" }
    }

    fn event(typed: &str, dn: Option<&str>) -> LoginEvent {
        let mut event = LoginEvent { typed: typed.into(), dn: dn.map(Arc::from), ..LoginEvent::default() };
        event.trace.search = dn.map(|_| Duration::ZERO);
        event
    }

    fn note(history: &LoginHistory, event: &LoginEvent, refusal: Option<Refusal>) {
        let reply = refusal.as_ref().map(|refusal| refusal.reply(false));
        history.note(event, &info(), None, refusal.as_ref().zip(reply.as_ref()));
    }

    #[test]
    fn attempts_that_are_alike_are_one_with_a_count() {
        let history = LoginHistory::default();
        let alice = event("Alice", Some("uid=alice,dc=x"));
        for _ in 0..3 {
            note(&history, &alice, None);
        }
        note(&history, &alice, Some(Refusal::WrongPassword));
        note(&history, &alice, None);
        for name in ["alice", "uid=ALICE,dc=x"] {
            let found = history.of(name, &[]);
            let shown: Vec<_> = found.iter().map(|one| (&*one.result, one.count, &*one.reply)).collect();
            let wrong = ("wrong_password", 1, "Name or password is wrong");
            assert_eq!(shown, [("ok", 3, ""), wrong, ("ok", 1, "")]);
        }
        assert_eq!(history.of("bob", &[]), []);
    }

    #[test]
    fn last_success_is_kept_among_the_refusals_of_a_guesser() {
        let history = LoginHistory::default();
        let mut alice = event("alice", Some("uid=alice,dc=x"));
        note(&history, &alice, None);
        for number in 0..100 {
            alice.reply = Some(format!("{number}"));
            note(&history, &alice, Some(Refusal::BackendUnreachable));
        }
        let found = history.of("alice", &[]);
        assert_eq!((found.len(), &*found[0].result, &*found[19].backend_reply), (ATTEMPTS, "ok", "99"));
    }

    #[test]
    fn weight_covers_the_attempts_themselves_and_all_their_texts() {
        let history = LoginHistory::default();
        let dn = "uid=alice,dc=x";
        let mut alice = event("alice", Some(dn));
        note(&history, &alice, None);
        history.users.run_pending_tasks();
        let one = history.users.weighted_size();
        assert!(one >= (USER + dn.len() + size_of::<Attempt>()) as u64, "{one}");
        // One like the last is weighed again if its texts are longer.
        alice.typed = b"ALICE@example.com".as_slice().into();
        note(&history, &alice, None);
        history.users.run_pending_tasks();
        assert_eq!(history.users.weighted_size(), one + 12);
        for number in 0..ATTEMPTS {
            alice.reply = Some(format!("{number}"));
            note(&history, &alice, Some(Refusal::BackendUnreachable));
        }
        history.users.run_pending_tasks();
        let all = history.users.weighted_size();
        let attempts = history.of("alice", &[]);
        let texts: usize =
            attempts.iter().map(|one| one.reply.len() + one.backend_reply.len() + one.client.len()).sum();
        assert!(all >= (ATTEMPTS * size_of::<Attempt>() + texts) as u64, "{all}");
        assert!(history.users.iter().all(|(_, attempts)| attempts.all().capacity() <= ATTEMPTS + 1));
    }

    #[test]
    fn names_without_an_entry_push_no_user_out_and_memory_is_bounded() {
        let history = LoginHistory::with_room(100_000, 20_000);
        note(&history, &event("alice", Some("uid=alice,dc=x")), None);
        let of_template = |number: usize| {
            let mut event = event(&format!("random{number}"), Some(&format!("uid=random{number},dc=x")));
            event.trace.search = None;
            event
        };
        for number in 0..2_000 {
            note(&history, &event(&format!("{}{number}", "x".repeat(500)), None), Some(Refusal::UnknownUser));
            note(&history, &of_template(number), Some(Refusal::WrongPassword));
        }
        for room in [&history.users, &history.strangers] {
            room.run_pending_tasks();
        }
        assert_eq!(history.of("alice", &[]).len(), 1);
        assert_eq!(history.users.entry_count(), 1);
        assert!(history.strangers.weighted_size() <= 20_000, "{}", history.strangers.weighted_size());
        // A user by template that has logged in once is known.
        note(&history, &of_template(7), None);
        note(&history, &of_template(7), Some(Refusal::WrongPassword));
        assert_eq!(history.users.entry_count().max(1), 1);
        assert_eq!(history.of("uid=random7,dc=x", &[]).iter().filter(|one| &*one.result == "ok").count(), 1);
    }
}
