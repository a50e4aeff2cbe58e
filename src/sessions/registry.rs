//! The relayed sessions: user, client, backend and start; and the stop handle that ends each, with the reason.
//!
//! A session is listed from before its client is sent OK until its [`ListedSession`] guard is dropped. Its
//! basis is stored with it, so that a later version of the entry can be compared.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::SocketAddr;
use std::ops::{Bound, RangeInclusive};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::base::credential::CertificateDigest;
use crate::config;
use crate::directory::{Entry, EntryKey, EntryNames, UserActing};
use crate::proto::ClosingNotice;
use crate::sessions::id::{self, SessionId};
use crate::telemetry::client_address::ListedClient;
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
    /// The name of its directory, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<Cow<'static, str>>,
    /// The login name of the user who acts for this one, if it does not log in itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting: Option<Arc<str>>,
    /// The DN of that user's entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting_dn: Option<Arc<str>>,
    /// The name of that entry's directory, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting_directory: Option<Cow<'static, str>>,
    /// The client's address.
    pub client: ListedClient,
    /// The protocol's name.
    pub protocol: Cow<'static, str>,
    /// The backend's name.
    pub backend: Arc<str>,
    /// Which of the backend's addresses it is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// When it was logged in, Unix seconds.
    pub since: u64,
}

impl Session {
    fn entry(&self) -> EntryRef {
        EntryRef::new(self.directory.as_deref(), &self.dn)
    }

    /// Whether it began by this second. One that began later than now began before the clock was put back.
    pub(crate) fn has_begun_by(&self, second: u64, now: u64) -> bool {
        self.since <= second || self.since > now
    }

    fn acting_entry(&self) -> Option<EntryRef> {
        self.acting_dn.as_ref().map(|dn| EntryRef::new(self.acting_directory.as_deref(), dn))
    }

    /// The entries of its user and of the user who acts for it.
    pub(crate) fn entries(&self) -> impl Iterator<Item = EntryRef> {
        iter::once(self.entry()).chain(self.acting_entry())
    }

    /// The entries of those of its users that have this login name, in any case.
    pub(crate) fn entries_named(&self, name: &str) -> impl Iterator<Item = EntryRef> + use<> {
        let is_name = |login: &str| login.trim().eq_ignore_ascii_case(name.trim());
        let user = is_name(&self.login).then(|| self.entry());
        let is_acting = self.acting.as_deref().is_some_and(is_name);
        user.into_iter().chain(self.acting_entry().filter(|_| is_acting))
    }
}

/// An entry as administrators see it: its DN, in small letters, and its directory, where there are several. Two
/// directories may have the same DN.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryRef {
    directory: Option<Box<str>>,
    dn: Box<str>,
}

impl EntryRef {
    /// The entry with this DN.
    #[must_use]
    pub(crate) fn new(directory: Option<&str>, dn: &str) -> Self {
        Self { directory: directory.map(Into::into), dn: dn.to_lowercase().into() }
    }

    /// Whether a name that an administrator has given is its DN.
    #[must_use]
    pub(crate) fn is_dn(&self, name: &str) -> bool {
        *self.dn == *name.to_lowercase()
    }

    /// Whether it is in the directory with this name.
    #[must_use]
    pub(crate) fn is_in(&self, directory: &str) -> bool {
        self.directory.as_deref().unwrap_or(config::Directory::DEFAULT_NAME) == directory
    }
}

/// The entry and the backend name that a session was logged in with.
#[derive(Debug, Clone)]
pub(crate) struct SessionBasis {
    /// The version of the entry that the login was decided by.
    pub entry: Arc<Entry>,
    /// The name at the backend.
    pub backend_login: Arc<str>,
    /// The certificate that the entry has to list, if the login was decided by one.
    pub certificate: Option<CertificateDigest>,
    /// The user who acts for this one, in the version that the login was decided by.
    pub acting: Option<Arc<UserActing>>,
}

impl SessionBasis {
    /// The entries of its users: a change of either counts.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        iter::once(&self.entry).chain(self.acting.as_ref().map(|acting| &acting.entry))
    }
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
    /// The entry does not permit the client's address any more.
    Network,
    /// The entry does not list the client's certificate any more.
    CertificateRemoved,
    /// The entry of the mailbox does not name the user who acts for it any more.
    GrantRevoked,
    /// The account is held: no login until the hold ends.
    Hold,
    /// An administrator ended it.
    Kicked,
    /// Its backend is being drained.
    BackendDrained,
    /// The address of the backend that its user belongs to is up again.
    AddressReturned,
}

impl TerminationReason {
    /// The notice for the client.
    #[must_use]
    pub const fn notice(self) -> ClosingNotice {
        match self {
            Self::Moved | Self::Hold | Self::AddressReturned => ClosingNotice::MailboxMoved,
            Self::PasswordChanged => ClosingNotice::PasswordChanged,
            Self::Network => ClosingNotice::NetworkNotAllowed,
            Self::Disabled | Self::Expired | Self::Deleted | Self::CertificateRemoved | Self::GrantRevoked => {
                ClosingNotice::AccountUnavailable
            }
            Self::BackendDrained => ClosingNotice::Maintenance,
            Self::Kicked => ClosingNotice::Administrator,
            Self::Drain => ClosingNotice::Shutdown,
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
            Self::Network => SessionEnd::Network,
            Self::CertificateRemoved => SessionEnd::CertificateRemoved,
            Self::GrantRevoked => SessionEnd::GrantRevoked,
            Self::Hold => SessionEnd::Hold,
            Self::Kicked => SessionEnd::Kicked,
            Self::BackendDrained => SessionEnd::BackendDrained,
            Self::AddressReturned => SessionEnd::AddressReturned,
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
    /// The same by principal: the user's entry, and that of a user who acts for it, by id and by DN.
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
        for names in principals(&session, &basis) {
            self.by_principal.extend(names.keys().map(|key| (key, id)));
        }
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
        for names in principals(&session, &basis) {
            for key in names.keys() {
                self.by_principal.remove(&(key, id));
            }
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

    /// The sessions of an entry with one of these names, and those in which it acts for another one, oldest first,
    /// each with what it was logged in with.
    #[must_use]
    pub(crate) fn of(&self, names: &EntryNames) -> Vec<(Arc<Session>, SessionBasis)> {
        let table = self.lock();
        let ids: BTreeSet<SessionId> = names.keys().flat_map(|key| table.ids(&key).collect::<Vec<_>>()).collect();
        let listed = ids.into_iter().filter_map(|id| table.sessions.get(&id));
        listed.filter(|(session, basis)| has_principal(session, basis, names)).cloned().collect()
    }

    /// The entry with one of these names, the id first, in the version of its latest session; `None` if it has no
    /// session.
    #[must_use]
    pub(crate) fn entry(&self, names: &EntryNames) -> Option<Arc<Entry>> {
        let table = self.lock();
        let latest = names.keys().find_map(|key| table.ids(&key).next_back())?;
        let (session, basis) = table.sessions.get(&latest)?;
        let mut versions = iter::zip(principals(session, basis), basis.entries());
        versions.find(|(known, _)| is_of(known, names)).map(|(_, entry)| Arc::clone(entry))
    }

    /// Whether an entry with one of these names has sessions.
    #[must_use]
    pub(crate) fn has(&self, names: &EntryNames) -> bool {
        let table = self.lock();
        names.keys().any(|key| table.ids(&key).next().is_some())
    }

    /// The addresses of a backend at which a user has sessions that were not asked to end, the latest first: of the
    /// latest sessions, as far as these are enough.
    #[must_use]
    pub(crate) fn addresses_of(&self, user: &EntryKey, backend: &str) -> Vec<SocketAddr> {
        let table = self.lock();
        let open = table.ids(user).rev().filter(|id| table.open.contains_key(id)).take(PAGE);
        let sessions = open.filter_map(|id| table.sessions.get(&id));
        let here = sessions.filter(|(session, basis)| *session.backend == *backend && basis.entry.key() == *user);
        let mut addresses = Vec::new();
        for address in here.filter_map(|(session, _)| session.address) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// The entry with these names has another DN now: its sessions are listed under it.
    pub(crate) fn rename(&self, names: &EntryNames, new: &Arc<str>) {
        let Some(old) = names.by_dn() else { return };
        let mut table = self.lock();
        for id in table.ids(&old).collect::<Vec<_>>() {
            if let Some((session, basis)) = table.sessions.get_mut(&id) {
                if !has_principal(session, basis, names) {
                    continue;
                }
                let renamed = |entry: &Arc<Entry>| Arc::new(Entry { dn: Arc::clone(new), ..Entry::clone(entry) });
                let [is_user, acts] = roles(session, basis, names);
                if is_user {
                    *session = Arc::new(Session { dn: Arc::clone(new), ..Session::clone(session) });
                    basis.entry = renamed(&basis.entry);
                }
                if acts && let Some(user) = &basis.acting {
                    let user = UserActing { entry: renamed(&user.entry), ..UserActing::clone(user) };
                    *session = Arc::new(Session { acting_dn: Some(Arc::clone(new)), ..Session::clone(session) });
                    basis.acting = Some(Arc::new(user));
                }
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

/// The names of a session's user, and of the user who acts for it.
fn principals(session: &Session, basis: &SessionBasis) -> impl Iterator<Item = EntryNames> {
    let user = EntryNames { dn: Some(Arc::clone(&session.dn)), ..basis.entry.names() };
    iter::once(user).chain(basis.acting.as_ref().map(|acting| acting.entry.names()))
}

/// Whether these are names of one entry: they have a name in common, and no other contradicts it.
fn is_of(known: &EntryNames, names: &EntryNames) -> bool {
    !known.is_other(names) && known.keys().any(|key| names.keys().any(|name| name == key))
}

/// Whether the entry with these names is the session's user, and whether it acts for that user.
#[must_use]
pub(crate) fn roles(session: &Session, basis: &SessionBasis, names: &EntryNames) -> [bool; 2] {
    let mut known = principals(session, basis).map(|known| is_of(&known, names));
    [known.next().unwrap_or_default(), known.next().unwrap_or_default()]
}

fn has_principal(session: &Session, basis: &SessionBasis, names: &EntryNames) -> bool {
    roles(session, basis, names).contains(&true)
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

impl ListedSession {
    /// The session.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.registry.lock().sessions.get(&self.id).map(|(session, _)| Arc::clone(session))
    }
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
        let entry = Arc::new(Entry::for_tests(dn, &[]));
        Self { entry, backend_login: "alice".into(), certificate: None, acting: None }
    }
}

#[cfg(test)]
mod tests;
