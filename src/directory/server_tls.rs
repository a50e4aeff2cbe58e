//! TLS towards the servers of a directory: one configuration for all of them, but for those with pinned keys.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::ClientConfig;

/// The client configurations of a directory: roots or pins, client certificate, versions.
#[derive(Debug, Clone, Default)]
pub struct DirectoryTls {
    verifying: Option<Arc<ClientConfig>>,
    pinned: HashMap<Vec<[u8; 32]>, Arc<ClientConfig>>,
}

impl DirectoryTls {
    /// Sets the configuration of the servers that are verified by chain and name.
    pub(crate) fn verify(&mut self, config: Arc<ClientConfig>) {
        self.verifying = Some(config);
    }

    /// Adds the configuration of servers with these pins.
    pub(crate) fn pin(&mut self, pins: Vec<[u8; 32]>, config: Arc<ClientConfig>) {
        self.pinned.insert(pins, config);
    }

    /// The configuration of a server with these pins, or of one without any.
    pub(crate) fn of(&self, pins: &[[u8; 32]]) -> Option<Arc<ClientConfig>> {
        if pins.is_empty() { self.verifying.clone() } else { self.pinned.get(pins).cloned() }
    }
}

#[cfg(test)]
impl From<Option<Arc<ClientConfig>>> for DirectoryTls {
    fn from(verifying: Option<Arc<ClientConfig>>) -> Self {
        Self { verifying, pinned: HashMap::new() }
    }
}
