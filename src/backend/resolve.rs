//! A backend's addresses, asked of the resolver now and then instead of at every login.
//!
//! An address that is one of usher's own listeners is refused here, whatever name led to it: a
//! login would go round until the descriptors are used up.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::Instant;

use super::BackendError;
use crate::sys;

/// How long an answer of the resolver is used. The system's resolver tells no time to live; this is
/// short enough for a move by DNS and long enough to keep it out of a busy login path.
const LIFE: Duration = Duration::from_secs(30);

type Answer = Arc<[SocketAddr]>;

/// A host and port, and what they resolved to.
#[derive(Debug)]
pub(super) struct Addresses {
    host: String,
    port: u16,
    own: Arc<[SocketAddr]>,
    known: Mutex<Option<(Instant, Answer)>>,
}

impl Addresses {
    pub(super) fn new(host: &str, port: u16, own: Arc<[SocketAddr]>) -> Self {
        Self { host: host.to_owned(), port, own, known: Mutex::default() }
    }

    /// As if the resolver had just said so.
    #[cfg(test)]
    pub(super) fn known(host: &str, addresses: &[SocketAddr]) -> Self {
        let known = Self::new(host, 0, Arc::new([]));
        *known.known.lock().unwrap() = Some((Instant::now(), addresses.into()));
        known
    }

    /// The addresses to try, in order.
    pub(super) async fn resolve(&self) -> Result<Answer, BackendError> {
        if let Some(known) = self.fresh() {
            return Ok(known);
        }
        let answer: Answer = match self.host.parse::<IpAddr>() {
            Ok(ip) => Arc::new([SocketAddr::new(ip, self.port)]),
            Err(_) => match lookup_host((self.host.as_str(), self.port)).await {
                Ok(found) => found.collect(),
                Err(source) => return Err(BackendError::Resolve { source }),
            },
        };
        if answer.is_empty() {
            return Err(BackendError::Resolve { source: io::ErrorKind::NotFound.into() });
        }
        if let Some(address) = answer.iter().find(|address| sys::is_own(**address, &self.own)) {
            return Err(BackendError::Loop { address: *address });
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&answer)));
        Ok(answer)
    }

    /// Asks the resolver at the next use.
    pub(super) fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn fresh(&self) -> Option<Answer> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(at, _)| at.elapsed() < LIFE).map(|(_, answer)| Arc::clone(answer))
    }
}
