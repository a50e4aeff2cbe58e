//! The relayed sessions: user, client, backend and start; and the stop handle that ends each, with the reason.
//!
//! A session is listed from before its client is sent OK until its [`ListedSession`] guard is dropped. Its
//! basis is stored with it, so that a later version of the entry can be compared.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::directory::{Entry, EntryId};
use crate::proto::ClosingNotice;
use crate::sessions::id::{self, SessionId};
use crate::telemetry::labels::SessionEnd;

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
    /// The same by DN.
    by_dn: BTreeSet<(Arc<str>, SessionId)>,
    /// The same by the entry's immutable id.
    by_id: BTreeSet<(EntryId, SessionId)>,
    /// The senders of sessions that were not asked to end yet; dropping one ends its session, too.
    open: BTreeMap<SessionId, oneshot::Sender<TerminationReason>>,
    /// Whether a session that is listed now is asked to end at once.
    closed: bool,
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
        let (string, asked) = oneshot::channel();
        let mut relayed = self.lock();
        relayed.by_dn.insert((Arc::clone(&session.dn), id));
        relayed.by_id.extend(basis.entry.version.id.map(|entry| (entry, id)));
        relayed.sessions.insert(id, (Arc::new(session), basis));
        if !relayed.closed {
            relayed.open.insert(id, string);
        }
        (ListedSession { registry: Arc::clone(self), id }, StopHandle(asked))
    }

    /// The sessions now, oldest first.
    #[must_use]
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().map(|(session, _)| Arc::clone(session)).collect()
    }

    /// The same, each with what it was logged in with.
    #[must_use]
    pub(crate) fn listed(&self) -> Vec<(Arc<Session>, SessionBasis)> {
        self.lock().sessions.values().cloned().collect()
    }

    /// How many sessions there are.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// The sessions of an entry, oldest first, each with what it was logged in with.
    #[must_use]
    pub(crate) fn of(&self, dn: &Arc<str>) -> Vec<(Arc<Session>, SessionBasis)> {
        let relayed = self.lock();
        let ids = relayed.by_dn.range(every_id(dn));
        ids.filter_map(|(_, id)| relayed.sessions.get(id).cloned()).collect()
    }

    /// The entry of this id, or else of this DN, in the version of its latest session; `None` if it has no
    /// session.
    #[must_use]
    pub(crate) fn entry(&self, id: Option<EntryId>, dn: Option<&Arc<str>>) -> Option<Arc<Entry>> {
        let relayed = self.lock();
        let by_id = id.and_then(|id| relayed.by_id.range((id, SessionId::FIRST)..=(id, SessionId::LAST)).next_back());
        let by_id = by_id.map(|(_, session)| *session);
        let session = by_id.or_else(|| {
            let (_, session) = relayed.by_dn.range(every_id(dn?)).next_back()?;
            Some(*session)
        })?;
        let entry = &relayed.sessions.get(&session)?.1.entry;
        (!is_other(id, entry.version.id)).then(|| Arc::clone(entry))
    }

    /// Whether an entry has sessions.
    #[must_use]
    pub(crate) fn has(&self, dn: &Arc<str>) -> bool {
        self.lock().by_dn.range(every_id(dn)).next().is_some()
    }

    /// The entry with this id has another DN now: its sessions are listed under it.
    pub(crate) fn rename(&self, entry: Option<EntryId>, old: &Arc<str>, new: &Arc<str>) {
        let mut relayed = self.lock();
        let ids = relayed.by_dn.range(every_id(old));
        for (_, id) in ids.cloned().collect::<Vec<_>>() {
            if let Some((session, basis)) = relayed.sessions.get_mut(&id) {
                if is_other(entry, basis.entry.version.id) {
                    continue;
                }
                *session = Arc::new(Session { dn: Arc::clone(new), ..Session::clone(session) });
                basis.entry = Arc::new(Entry { dn: Arc::clone(new), ..Entry::clone(&basis.entry) });
            }
            relayed.by_dn.remove(&(Arc::clone(old), id));
            relayed.by_dn.insert((Arc::clone(new), id));
        }
    }

    /// Ends a session; returns `false` if it has ended or was asked to before.
    pub(crate) fn end(&self, id: SessionId, why: TerminationReason) -> bool {
        let asked = self.lock().open.remove(&id);
        asked.is_some_and(|string| string.send(why).is_ok())
    }

    /// Ends the oldest session that was not asked to end yet; `false` if all were.
    pub(crate) fn end_oldest(&self) -> bool {
        self.lock().open.pop_first().is_some()
    }

    /// Ends all sessions, including those listed later.
    pub(crate) fn end_all(&self) {
        let mut relayed = self.lock();
        relayed.closed = true;
        relayed.open.clear();
    }

    fn lock(&self) -> MutexGuard<'_, SessionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two ids are known to be those of two entries: another entry of a DN is another user.
pub(crate) fn is_other(one: Option<EntryId>, other: Option<EntryId>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

/// The range of an entry's sessions in the order of DN.
fn every_id(dn: &Arc<str>) -> RangeInclusive<(Arc<str>, SessionId)> {
    (Arc::clone(dn), SessionId::FIRST)..=(Arc::clone(dn), SessionId::LAST)
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
        let mut relayed = self.registry.lock();
        if let Some((session, basis)) = relayed.sessions.remove(&self.id) {
            relayed.by_dn.remove(&(Arc::clone(&session.dn), self.id));
            if let Some(entry) = basis.entry.version.id {
                relayed.by_id.remove(&(entry, self.id));
            }
        }
        relayed.open.remove(&self.id);
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
    use crate::directory::EntryVersion;

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
        let (old, new) = (Arc::from("uid=alice"), Arc::from("uid=alicia"));
        assert_eq!((registry.of(&old).len(), registry.of(&new).len()), (2, 0));
        registry.rename(None, &old, &new);
        let ids = [one.0.id, two.0.id];
        assert_eq!(registry.of(&new).iter().map(|(session, _)| session.id).collect::<Vec<_>>(), ids);
        assert!(!registry.has(&old) && registry.has(&Arc::from("uid=alic")));
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
        let dn = |id, dn: Option<&str>| Some(registry.entry(id, dn.map(Arc::from).as_ref())?.dn.to_string());
        assert_eq!(dn(id(1), None).as_deref(), Some("uid=alice"));
        assert_eq!(dn(None, Some("uid=alice")).as_deref(), Some("uid=alice"));
        assert_eq!(dn(id(1), Some("uid=other")).as_deref(), Some("uid=alice"));
        assert_eq!(dn(id(2), Some("uid=alice")), None, "another entry has taken the name");
        assert_eq!(dn(id(2), None), None);
        registry.rename(id(1), &Arc::from("uid=alice"), &Arc::from("uid=alicia"));
        assert_eq!(dn(id(1), None).as_deref(), Some("uid=alicia"));
        drop(alice);
        assert_eq!((dn(id(1), None), dn(None, Some("uid=alicia"))), (None, None));
        let relayed = registry.lock();
        assert!(relayed.by_id.is_empty() && relayed.by_dn.is_empty());
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
}
