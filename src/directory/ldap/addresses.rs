//! The addresses of a directory server. The last ones stay in use while its name cannot be resolved, so that an outage of
//! DNS is not one of the directory; the certificate shows whether a server is the right one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::directory::ConnectionFault;
use crate::directory::ldap::dns::DnsResolver;
use crate::directory::ldap::tuning::locked;

/// The addresses of one host and port.
#[derive(Debug)]
pub(crate) struct HostAddresses {
    host: String,
    port: u16,
    /// Asks DNS alone; `None`: the system resolves the name, by its files and search list, too.
    resolver: Option<DnsResolver>,
    known: Mutex<Vec<SocketAddr>>,
    /// One look-up at a time where there is an answer already: one that hangs occupies one thread.
    looking: Arc<Semaphore>,
}

impl HostAddresses {
    /// Of a host name or an address without brackets.
    pub(crate) fn new(host: &str, port: u16, resolver: Option<DnsResolver>) -> Self {
        let (known, looking) = (Mutex::default(), Arc::new(Semaphore::new(1)));
        Self { host: host.to_owned(), port, resolver, known, looking }
    }

    /// The addresses, as the name is resolved now. `patience`: how long that may take where they are known from before;
    /// otherwise the caller limits it.
    pub(crate) async fn resolve(self: &Arc<Self>, patience: Duration) -> Result<Vec<SocketAddr>, ConnectionFault> {
        if let Ok(address) = self.host.parse() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let known = self.known();
        if known.is_empty() {
            return self.look_up().await;
        }
        let Ok(turn) = Arc::clone(&self.looking).try_acquire_owned() else { return Ok(known) };
        let host = Arc::clone(self);
        let looking = tokio::spawn(async move {
            let found = host.look_up().await;
            drop(turn);
            found
        });
        match timeout(patience, looking).await {
            Ok(Ok(Ok(found))) if !found.is_empty() => Ok(found),
            Ok(Ok(_) | Err(_)) | Err(_) => Ok(known),
        }
    }

    /// The last ones.
    pub(crate) fn known(&self) -> Vec<SocketAddr> {
        locked(&self.known).clone()
    }

    /// Begins with addresses that were known before.
    pub(crate) fn begin_with(&self, known: &[SocketAddr]) {
        *locked(&self.known) = known.to_vec();
    }

    async fn look_up(&self) -> Result<Vec<SocketAddr>, ConnectionFault> {
        let found = match &self.resolver {
            Some(resolver) => {
                let found = resolver.addresses(&self.host, self.port).await;
                found.map_err(|fault| ConnectionFault::resolve(&fault))?
            }
            None => {
                let found = lookup_host((self.host.as_str(), self.port)).await;
                found.map_err(|error| ConnectionFault::resolve(&error))?.collect()
            }
        };
        if !found.is_empty() {
            locked(&self.known).clone_from(&found);
        }
        Ok(found)
    }
}
