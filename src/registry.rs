//! The sessions that are being relayed: who, from where, to which backend, since when.
//!
//! A session is listed while its [`Listed`] guard lives, however it ends.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// What is known of a relayed session. Never a password.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// The session id of the log.
    pub id: u64,
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
#[derive(Debug)]
pub struct Registry {
    sessions: Mutex<BTreeMap<u64, Arc<Session>>>,
    next_id: AtomicU64,
}

impl Default for Registry {
    fn default() -> Self {
        Self { sessions: Mutex::default(), next_id: AtomicU64::new(1) }
    }
}

impl Registry {
    /// A new session id, unique in this process: made at accept, used in every log event.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Lists a session until the guard is dropped.
    #[must_use]
    pub fn list(self: &Arc<Self>, session: Session) -> Listed {
        let id = session.id;
        self.lock().insert(id, Arc::new(session));
        Listed { registry: Arc::clone(self), id }
    }

    /// The sessions now, oldest first.
    #[must_use]
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().values().cloned().collect()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a session listed.
#[derive(Debug)]
pub struct Listed {
    registry: Arc<Registry>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.id);
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

    #[test]
    fn a_session_is_listed_while_its_guard_lives() {
        let registry = Arc::new(Registry::default());
        let session = Session {
            id: registry.next_id(),
            login: "alice".into(),
            dn: "uid=alice".into(),
            client: IpAddr::from([127, 0, 0, 1]),
            protocol: "imap".into(),
            backend: "server3".into(),
            since: unix_now(),
        };
        let listed = registry.list(session);
        assert_eq!(registry.count(), 1);
        assert_eq!(registry.sessions()[0].login.as_ref(), "alice");
        drop(listed);
        assert_eq!(registry.count(), 0);
        assert_eq!(registry.next_id(), 2);
    }
}
