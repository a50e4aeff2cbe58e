//! The sessions that are being relayed: who, from where, to which backend, since when; and the
//! string by which each can be asked to end.
//!
//! A session is listed while its [`Listed`] guard lives, however it ends.

mod id;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

pub use id::SessionId;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// What is known of a relayed session. Never a password.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
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

/// Every relayed session.
#[derive(Debug, Default)]
pub struct Registry {
    relayed: Mutex<Relayed>,
    ids: id::Ids,
}

#[derive(Debug, Default)]
struct Relayed {
    sessions: BTreeMap<SessionId, Arc<Session>>,
    /// Those that nobody has asked to end yet; dropping one of these asks.
    open: BTreeMap<SessionId, oneshot::Sender<Infallible>>,
    /// Whether a session that is listed now is asked to end at once.
    closed: bool,
}

impl Registry {
    /// A new session id: made at accept, used in every log event.
    pub fn next_id(&self) -> SessionId {
        self.ids.next()
    }

    /// Lists a session until the guard is dropped; the future is ready when it is asked to end.
    #[must_use]
    pub fn list(self: &Arc<Self>, session: Session) -> (Listed, AskedToEnd) {
        let id = session.id;
        let (string, asked) = oneshot::channel();
        let mut relayed = self.lock();
        relayed.sessions.insert(id, Arc::new(session));
        if !relayed.closed {
            relayed.open.insert(id, string);
        }
        (Listed { registry: Arc::clone(self), id }, AskedToEnd(asked))
    }

    /// The sessions now, oldest first.
    #[must_use]
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Asks the oldest session that was not asked yet to end; `false` if there is none.
    pub fn end_oldest(&self) -> bool {
        self.lock().open.pop_first().is_some()
    }

    /// Asks all sessions to end, those that are listed later too.
    pub fn end_all(&self) {
        let mut relayed = self.lock();
        relayed.closed = true;
        relayed.open.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Relayed> {
        self.relayed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ready when the session is asked to end.
#[derive(Debug)]
pub struct AskedToEnd(oneshot::Receiver<Infallible>);

impl Future for AskedToEnd {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Nothing can be sent: the other end is dropped.
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}

/// Keeps a session listed.
#[derive(Debug)]
pub struct Listed {
    registry: Arc<Registry>,
    id: SessionId,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut relayed = self.registry.lock();
        relayed.sessions.remove(&self.id);
        relayed.open.remove(&self.id);
    }
}

/// Unix seconds now.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_session_is_listed_while_its_guard_lives() {
        let registry = Arc::new(Registry::default());
        let listed = registry.list(session(&registry));
        assert_eq!(registry.count(), 1);
        assert_eq!(registry.sessions()[0].login.as_ref(), "alice");
        drop(listed);
        assert_eq!(registry.count(), 0);
    }

    #[tokio::test]
    async fn sessions_are_asked_to_end_oldest_first_and_then_all() {
        let registry = Arc::new(Registry::default());
        let [mut one, mut two, mut three] = [(); 3].map(|()| registry.list(session(&registry)));
        assert!(registry.end_oldest());
        (&mut one.1).await;
        assert_eq!(registry.count(), 3, "listed until it has ended");
        drop(two.0);
        assert!(registry.end_oldest());
        (&mut three.1).await;
        assert!(!registry.end_oldest());
        registry.end_all();
        registry.list(session(&registry)).1.await;
        (&mut two.1).await;
    }
}
