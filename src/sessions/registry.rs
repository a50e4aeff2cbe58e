//! The relayed sessions: user, client, backend and start; and the stop handle that ends each, with the reason.
//!
//! A session is listed from before its client is sent OK until its [`ListedSession`] guard is dropped. Its
//! basis is stored with it, so that a later version of the entry can be compared.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::IpAddr;
use std::ops::{Bound, RangeInclusive};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::directory::{Entry, EntryKey, EntryNames};
use crate::proto::ClosingNotice;
use crate::sessions::id::{self, SessionId};
use crate::telemetry::labels::SessionEnd;

/// Sessions read under one hold of the lock that every login takes.
const PAGE: usize = 256;

/// A relayed session. Contains no password.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    /// The session id, as in the log.
    pub id: SessionId,
    /// The login name as typed.
    pub login: Arc<str>,
    /// The entry's DN.
    pub dn: Arc<str>,
    /// The client's address.
    pub client: IpAddr,
    /// The protocol's name.
    pub protocol: Cow<'static, str>,
    /// The backend's name.
    pub backend: Arc<str>,
    /// When it was logged in, Unix seconds.
    pub since: u64,
}

/// The entry and the backend name that a session was logged in with.
#[derive(Debug, Clone)]
pub(crate) struct SessionBasis {
    /// The version of the entry that the login was decided by.
    pub entry: Arc<Entry>,
    /// The name at the backend.
    pub backend_login: Arc<str>,
}

/// Why usher ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TerminationReason {
    /// usher is stopping.
    Drain,
    /// The directory names another backend, or another name there.
    Moved,
    /// The account was disabled.
    Disabled,
    /// The account has expired.
    Expired,
    /// The entry is gone.
    Deleted,
    /// The password was changed.
    PasswordChanged,
    /// The account is held: no login until the hold ends.
    Hold,
    /// An administrator ended it.
    Kicked,
    /// Its backend is being drained.
    BackendDrained,
}

impl TerminationReason {
    /// The notice for the client, if any: on shutdown the connection is closed at once.
    #[must_use]
    pub const fn notice(self) -> Option<ClosingNotice> {
        match self {
            Self::Moved | Self::Hold => Some(ClosingNotice::MailboxMoved),
            Self::PasswordChanged => Some(ClosingNotice::PasswordChanged),
            Self::Disabled | Self::Expired | Self::Deleted => Some(ClosingNotice::AccountUnavailable),
            Self::BackendDrained => Some(ClosingNotice::Maintenance),
            Self::Kicked => Some(ClosingNotice::Administrator),
            Self::Drain => None,
        }
    }

    /// What the end of the session counts as.
    #[must_use]
    pub(crate) const fn counted(self) -> SessionEnd {
        match self {
            Self::Drain => SessionEnd::Drain,
            Self::Moved => SessionEnd::Moved,
            Self::Disabled => SessionEnd::Disabled,
            Self::Expired => SessionEnd::Expired,
            Self::Deleted => SessionEnd::Deleted,
            Self::PasswordChanged => SessionEnd::PasswordChanged,
            Self::Hold => SessionEnd::Hold,
            Self::Kicked => SessionEnd::Kicked,
            Self::BackendDrained => SessionEnd::BackendDrained,
        }
    }
}

/// Every relayed session.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    table: Mutex<SessionTable>,
    ids: id::Ids,
}

#[derive(Debug, Default)]
struct SessionTable {
    sessions: BTreeMap<SessionId, (Arc<Session>, SessionBasis)>,
    /// The same by principal: the user's entry, by its id and by its DN.
    by_principal: BTreeSet<(EntryKey, SessionId)>,
    /// How many sessions each backend has, by protocol.
    counts: BTreeMap<Arc<str>, BTreeMap<Cow<'static, str>, usize>>,
    /// The stop channels of sessions that were not asked to end yet; dropping one ends its session, too.
    open: BTreeMap<SessionId, OpenSession>,
    /// The same by backend.
    open_by_backend: BTreeSet<(Arc<str>, SessionId)>,
    /// Whether a session that is listed now is asked to end at once.
    closed: bool,
}

/// A session that was not asked to end yet.
#[derive(Debug)]
struct OpenSession {
    stop: oneshot::Sender<TerminationReason>,
    backend: Arc<str>,
}

impl SessionTable {
    fn insert(&mut self, session: Session, basis: SessionBasis, stop: oneshot::Sender<TerminationReason>) {
        let (id, backend) = (session.id, Arc::clone(&session.backend));
        self.by_principal.extend(principals(&session, &basis).keys().map(|key| (key, id)));
        let protocols = self.counts.entry(Arc::clone(&backend)).or_default();
        *protocols.entry(session.protocol.clone()).or_default() += 1;
        self.sessions.insert(id, (Arc::new(session), basis));
        if !self.closed {
            self.open_by_backend.insert((Arc::clone(&backend), id));
            self.open.insert(id, OpenSession { stop, backend });
        }
    }

    fn remove(&mut self, id: SessionId) {
        self.take_open(id);
        let Some((session, basis)) = self.sessions.remove(&id) else { return };
        for key in principals(&session, &basis).keys() {
            self.by_principal.remove(&(key, id));
        }
        if let Some(protocols) = self.counts.get_mut(&session.backend) {
            if let Some(count) = protocols.get_mut(&session.protocol) {
                *count -= 1;
            }
            protocols.retain(|_, count| *count > 0);
            if protocols.is_empty() {
                self.counts.remove(&session.backend);
            }
        }
    }

    /// The sessions of a principal, oldest first.
    fn ids(&self, principal: &EntryKey) -> impl DoubleEndedIterator<Item = SessionId> + use<'_> {
        self.by_principal.range(every_id(principal)).map(|(_, id)| *id)
    }

    /// Takes the stop channel of a session that was not asked to end yet.
    fn take_open(&mut self, id: SessionId) -> Option<OpenSession> {
        let open = self.open.remove(&id)?;
        self.open_by_backend.remove(&(Arc::clone(&open.backend), id));
        Some(open)
    }
}

impl Registry {
    /// A new session id: made at accept, used in every log event.
    pub(crate) fn next_id(&self) -> SessionId {
        self.ids.next()
    }

    /// Lists a session until the guard is dropped; the future is ready when it is asked to end.
    #[must_use]
    pub(crate) fn list(self: &Arc<Self>, session: Session, basis: SessionBasis) -> (ListedSession, StopHandle) {
        let id = session.id;
        let (stop, requested) = oneshot::channel();
        self.lock().insert(session, basis, stop);
        (ListedSession { registry: Arc::clone(self), id }, StopHandle(requested))
    }

    /// The sessions now, oldest first.
    #[must_use]
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.listed().map(|(session, _)| session).collect()
    }

    /// The same, each with what it was logged in with. They are read in pages, between which logins get the lock:
    /// a session that ends meanwhile may be missing, and one that begins meanwhile may be included.
    pub(crate) fn listed(&self) -> impl Iterator<Item = (Arc<Session>, SessionBasis)> + '_ {
        let mut after = None;
        let pages = iter::from_fn(move || {
            let page: Vec<_> = {
                let table = self.lock();
                let start = after.map_or(Bound::Unbounded, Bound::Excluded);
                table.sessions.range((start, Bound::Unbounded)).take(PAGE).map(|(_, one)| one.clone()).collect()
            };
            after = page.last().map(|(session, _): &(Arc<Session>, _)| session.id);
            after.map(|_| page)
        });
        pages.flatten()
    }

    /// How many sessions each backend has, by protocol.
    #[must_use]
    pub(crate) fn counts(&self) -> BTreeMap<Arc<str>, BTreeMap<Cow<'static, str>, usize>> {
        self.lock().counts.clone()
    }

    /// How many sessions there are.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// The sessions of an entry with one of these names, oldest first, each with what it was logged in with.
    #[must_use]
    pub(crate) fn of(&self, names: &EntryNames) -> Vec<(Arc<Session>, SessionBasis)> {
        let table = self.lock();
        let ids: BTreeSet<SessionId> = names.keys().flat_map(|key| table.ids(&key).collect::<Vec<_>>()).collect();
        let listed = ids.into_iter().filter_map(|id| table.sessions.get(&id));
        listed.filter(|(session, basis)| !principals(session, basis).is_other(names)).cloned().collect()
    }

    /// The entry with one of these names, the id first, in the version of its latest session; `None` if it has no
    /// session.
    #[must_use]
    pub(crate) fn entry(&self, names: &EntryNames) -> Option<Arc<Entry>> {
        let table = self.lock();
        let latest = names.keys().find_map(|key| table.ids(&key).next_back())?;
        let (session, basis) = table.sessions.get(&latest)?;
        (!principals(session, basis).is_other(names)).then(|| Arc::clone(&basis.entry))
    }

    /// Whether an entry with one of these names has sessions.
    #[must_use]
    pub(crate) fn has(&self, names: &EntryNames) -> bool {
        let table = self.lock();
        names.keys().any(|key| table.ids(&key).next().is_some())
    }

    /// The entry with these names has another DN now: its sessions are listed under it.
    pub(crate) fn rename(&self, names: &EntryNames, new: &Arc<str>) {
        let Some(old) = names.by_dn() else { return };
        let mut table = self.lock();
        for id in table.ids(&old).collect::<Vec<_>>() {
            if let Some((session, basis)) = table.sessions.get_mut(&id) {
                if principals(session, basis).is_other(names) {
                    continue;
                }
                *session = Arc::new(Session { dn: Arc::clone(new), ..Session::clone(session) });
                basis.entry = Arc::new(Entry { dn: Arc::clone(new), ..Entry::clone(&basis.entry) });
            }
            table.by_principal.remove(&(old.clone(), id));
            table.by_principal.insert((EntryKey::by_dn(names.realm, new), id));
        }
    }

    /// Ends a session; returns `false` if it has ended or was asked to before.
    pub(crate) fn end(&self, id: SessionId, why: TerminationReason) -> bool {
        let open = self.lock().take_open(id);
        open.is_some_and(|open| open.stop.send(why).is_ok())
    }

    /// Ends the oldest session that was not asked to end yet; `false` if all were.
    pub(crate) fn end_oldest(&self) -> bool {
        let mut table = self.lock();
        let oldest = table.open.first_key_value().map(|(id, _)| *id);
        oldest.is_some_and(|id| table.take_open(id).is_some())
    }

    /// Ends the oldest session of a backend that was not asked to end yet; `false` if all were.
    pub(crate) fn end_oldest_of(&self, backend: &Arc<str>, why: TerminationReason) -> bool {
        loop {
            let open = {
                let mut table = self.lock();
                let oldest = table.open_by_backend.range(every_id(backend)).next().map(|(_, id)| *id);
                oldest.and_then(|id| table.take_open(id))
            };
            let Some(open) = open else { return false };
            // One that has ended just now does not count.
            if open.stop.send(why).is_ok() {
                return true;
            }
        }
    }

    /// Ends all sessions, including those listed later.
    pub(crate) fn end_all(&self) {
        let open = {
            let mut table = self.lock();
            table.closed = true;
            table.open_by_backend.clear();
            std::mem::take(&mut table.open)
        };
        // Outside the lock, which each of these sessions takes when it ends.
        drop(open);
    }

    fn lock(&self) -> MutexGuard<'_, SessionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of a session's user.
fn principals(session: &Session, basis: &SessionBasis) -> EntryNames {
    EntryNames { dn: Some(Arc::clone(&session.dn)), ..basis.entry.names() }
}

/// The range of all sessions of a principal or a backend in an index.
fn every_id<K: Clone>(of: &K) -> RangeInclusive<(K, SessionId)> {
    (of.clone(), SessionId::FIRST)..=(of.clone(), SessionId::LAST)
}

/// Resolves with the reason when the session has to end.
#[derive(Debug)]
pub(crate) struct StopHandle(oneshot::Receiver<TerminationReason>);

impl StopHandle {
    /// The reason, if the session was asked to end already.
    pub(crate) fn requested(&mut self) -> Option<TerminationReason> {
        match self.0.try_recv() {
            Ok(why) => Some(why),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(TerminationReason::Drain),
        }
    }
}

impl Future for StopHandle {
    type Output = TerminationReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TerminationReason> {
        // `end_all` drops the senders.
        Pin::new(&mut self.0).poll(cx).map(|why| why.unwrap_or(TerminationReason::Drain))
    }
}

/// Keeps a session listed.
#[derive(Debug)]
pub(crate) struct ListedSession {
    registry: Arc<Registry>,
    id: SessionId,
}

impl Drop for ListedSession {
    fn drop(&mut self) {
        self.registry.lock().remove(self.id);
    }
}

#[cfg(test)]
impl SessionBasis {
    /// What a session of this DN was logged in with, for tests.
    pub(crate) fn for_tests(dn: &str) -> Self {
        Self { entry: Arc::new(Entry::for_tests(dn, &[])), backend_login: "alice".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::unix_now;
    use crate::directory::{EntryId, EntryVersion, Realm};

    fn names(id: Option<EntryId>, dn: Option<&str>) -> EntryNames {
        EntryNames { realm: Realm::DEFAULT, id, dn: dn.map(Arc::from) }
    }

    fn list(registry: &Arc<Registry>, session: Session) -> (ListedSession, StopHandle) {
        let basis = SessionBasis::for_tests(&session.dn);
        registry.list(session, basis)
    }

    fn session(registry: &Registry) -> Session {
        Session {
            id: registry.next_id(),
            login: "alice".into(),
            dn: "uid=alice".into(),
            client: IpAddr::from([127, 0, 0, 1]),
            protocol: "imap".into(),
            backend: "server3".into(),
            since: unix_now(),
        }
    }

    #[test]
    fn session_is_listed_while_its_guard_lives() {
        let registry = Arc::new(Registry::default());
        let listed = list(&registry, session(&registry));
        assert_eq!(registry.count(), 1);
        assert_eq!(registry.sessions()[0].login.as_ref(), "alice");
        drop(listed);
        assert_eq!(registry.count(), 0);
    }

    #[tokio::test]
    async fn sessions_of_an_entry_are_found_under_its_new_dn() {
        let registry = Arc::new(Registry::default());
        let [one, two] = [(); 2].map(|()| list(&registry, session(&registry)));
        let stranger = Session { dn: "uid=alic".into(), ..session(&registry) };
        let _stranger = list(&registry, stranger);
        let (old, new) = (names(None, Some("uid=alice")), names(None, Some("uid=alicia")));
        assert_eq!((registry.of(&old).len(), registry.of(&new).len()), (2, 0));
        registry.rename(&old, &"uid=alicia".into());
        let ids = [one.0.id, two.0.id];
        assert_eq!(registry.of(&new).iter().map(|(session, _)| session.id).collect::<Vec<_>>(), ids);
        assert!(!registry.has(&old) && registry.has(&names(None, Some("uid=alic"))));
        assert_eq!(registry.sessions()[0].dn.as_ref(), "uid=alicia");
        assert!(registry.end(ids[0], TerminationReason::Moved));
        assert!(!registry.end(ids[0], TerminationReason::Hold), "once is enough");
        assert_eq!(one.1.await, TerminationReason::Moved);
        drop((one.0, two));
        assert!(!registry.has(&new));
        assert!(!registry.end(ids[1], TerminationReason::Moved), "it has ended");
    }

    #[tokio::test]
    async fn entry_of_a_session_is_found_by_its_id_and_by_its_dn() {
        let registry = Arc::new(Registry::default());
        let id = |number: u8| EntryId::from_bytes(&[number; 16]);
        let with_id = |dn: &str, number: u8| {
            let marks = EntryVersion { id: id(number), ..EntryVersion::default() };
            let basis = SessionBasis {
                entry: Arc::new(Entry { version: marks, ..Entry::for_tests(dn, &[]) }),
                ..SessionBasis::for_tests(dn)
            };
            registry.list(Session { dn: dn.into(), ..session(&registry) }, basis)
        };
        let (alice, _asked) = with_id("uid=alice", 1);
        let dn = |id, dn: Option<&str>| Some(registry.entry(&names(id, dn))?.dn.to_string());
        assert_eq!(dn(id(1), None).as_deref(), Some("uid=alice"));
        assert_eq!(dn(None, Some("uid=alice")).as_deref(), Some("uid=alice"));
        assert_eq!(dn(id(1), Some("uid=other")).as_deref(), Some("uid=alice"));
        assert_eq!(dn(id(2), Some("uid=alice")), None, "another entry has taken the name");
        assert_eq!(dn(id(2), None), None);
        registry.rename(&names(id(1), Some("uid=alice")), &Arc::from("uid=alicia"));
        assert_eq!(dn(id(1), None).as_deref(), Some("uid=alicia"));
        drop(alice);
        assert_eq!((dn(id(1), None), dn(None, Some("uid=alicia"))), (None, None));
        let table = registry.lock();
        assert!(table.by_principal.is_empty());
    }

    #[tokio::test]
    async fn stop_request_is_seen_at_once() {
        let registry = Arc::new(Registry::default());
        let (listed, mut asked) = list(&registry, session(&registry));
        assert_eq!(asked.requested(), None);
        registry.end(listed.id, TerminationReason::Kicked);
        assert_eq!(asked.requested(), Some(TerminationReason::Kicked));
        registry.end_all();
        assert_eq!(list(&registry, session(&registry)).1.requested(), Some(TerminationReason::Drain));
    }

    #[tokio::test]
    async fn sessions_are_stopped_oldest_first_and_then_all() {
        let registry = Arc::new(Registry::default());
        let [mut one, mut two, mut three] = [(); 3].map(|()| list(&registry, session(&registry)));
        assert!(registry.end_oldest());
        assert_eq!((&mut one.1).await, TerminationReason::Drain);
        assert_eq!(registry.count(), 3, "listed until it has ended");
        drop(two.0);
        assert!(registry.end_oldest());
        (&mut three.1).await;
        assert!(!registry.end_oldest());
        registry.end_all();
        list(&registry, session(&registry)).1.await;
        (&mut two.1).await;
    }
    #[tokio::test]
    async fn sessions_of_a_backend_are_stopped_oldest_first() {
        let registry = Arc::new(Registry::default());
        let at = |backend: &str| {
            let session = Session { backend: backend.into(), ..session(&registry) };
            list(&registry, session)
        };
        let (mut one, other, mut two) = (at("server3"), at("server4"), at("server3"));
        let (backend, why) = (Arc::from("server3"), TerminationReason::BackendDrained);
        assert!(registry.end_oldest_of(&backend, why));
        assert_eq!((one.1.requested(), two.1.requested()), (Some(why), None));
        assert!(registry.end(two.0.id, TerminationReason::Kicked));
        assert!(!registry.end_oldest_of(&backend, why), "all were asked to end");
        assert_eq!(registry.counts()["server3"]["imap"], 2, "listed until they have ended");
        drop((one, two));
        assert!(!registry.counts().contains_key("server3"));
        drop(other);
        let table = registry.lock();
        assert!(table.counts.is_empty() && table.open.is_empty() && table.open_by_backend.is_empty());
    }

    /// Every index is equal to a recount after any sequence of events.
    #[tokio::test]
    async fn indexes_equal_a_recount() {
        let registry = Arc::new(Registry::default());
        let mut listed = Vec::new();
        for number in 0..2_000_usize {
            let one = Session {
                dn: format!("uid={}", number % 50).into(),
                backend: format!("server{}", number % 7).into(),
                protocol: if number % 3 == 0 { "pop3" } else { "imap" }.into(),
                ..session(&registry)
            };
            listed.push(list(&registry, one));
            match number % 5 {
                0 => drop(listed.swap_remove(number * 31 % listed.len())),
                1 => drop(registry.end(listed[number * 17 % listed.len()].0.id, TerminationReason::Moved)),
                2 => drop(registry.end_oldest()),
                3 => registry.rename(&names(None, Some(&format!("uid={}", number % 50))), &"uid=renamed".into()),
                _ => drop(registry.end_oldest_of(&"server1".into(), TerminationReason::BackendDrained)),
            }
        }
        assert!(listed.len() > 3 * PAGE, "more than some pages: {}", listed.len());
        let ids: BTreeSet<SessionId> = listed.iter().map(|(listed, _)| listed.id).collect();
        assert_eq!(registry.listed().map(|(session, _)| session.id).collect::<BTreeSet<_>>(), ids);
        let mut counts: BTreeMap<Arc<str>, BTreeMap<Cow<'static, str>, usize>> = BTreeMap::new();
        let table = registry.lock();
        for (session, _) in table.sessions.values() {
            let protocols = counts.entry(Arc::clone(&session.backend)).or_default();
            *protocols.entry(session.protocol.clone()).or_default() += 1;
        }
        assert_eq!(table.counts, counts);
        let principals = table.sessions.values().flat_map(|(one, basis)| {
            let keys: Vec<_> = principals(one, basis).keys().collect();
            keys.into_iter().map(|key| (key, one.id))
        });
        assert_eq!(table.by_principal, principals.collect());
        let open: BTreeSet<_> = table.open.iter().map(|(id, open)| (Arc::clone(&open.backend), *id)).collect();
        assert_eq!(table.open_by_backend, open);
    }

    #[tokio::test]
    async fn sessions_of_two_realms_with_the_same_dn_never_meet() {
        let registry = Arc::new(Registry::default());
        let own = list(&registry, session(&registry));
        let mut entry = Entry::for_tests("uid=alice", &[]);
        entry.version.realm = Realm::for_tests(1);
        let basis = SessionBasis { entry: Arc::new(entry), backend_login: "alice".into() };
        let other = registry.list(session(&registry), basis);
        let in_realm = |realm| EntryNames { realm, id: None, dn: Some("uid=alice".into()) };
        for (realm, id) in [(Realm::DEFAULT, own.0.id), (Realm::for_tests(1), other.0.id)] {
            let found: Vec<_> = registry.of(&in_realm(realm)).iter().map(|(session, _)| session.id).collect();
            assert_eq!(found, [id]);
            assert_eq!(registry.entry(&in_realm(realm)).unwrap().version.realm, realm);
        }
        registry.rename(&in_realm(Realm::for_tests(1)), &"uid=alicia".into());
        assert_eq!(registry.of(&in_realm(Realm::DEFAULT))[0].0.dn.as_ref(), "uid=alice");
        assert!(!registry.has(&in_realm(Realm::for_tests(1))));
    }
}
