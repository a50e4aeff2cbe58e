//! Several ushers that act as one.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The store that they share, and what this one is called in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// The fleet's name, a part of every key.
    pub name: String,
    /// This machine's name in it.
    pub node: String,
    /// The stores, in order of preference.
    pub stores: Vec<StoreAddress>,
    /// The user at the store; `None`: its default user.
    pub user: Option<String>,
    /// The file with the user's password; `None`: the store asks for none.
    pub password_file: Option<PathBuf>,
    /// The CA file of the stores; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// The file with the fleet's secrets.
    pub secret_file: PathBuf,
    /// How long a login waits for the store.
    pub timeout: Duration,
}

impl Fleet {
    /// Whether a store is reached by TLS.
    #[must_use]
    pub fn uses_tls(&self) -> bool {
        self.stores.iter().any(|store| store.encrypted)
    }
}

/// Where a store is.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreAddress {
    /// Under TLS.
    pub encrypted: bool,
    /// In the clear, and on this machine alone.
    pub local: bool,
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.encrypted { "rediss" } else { "redis" };
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
    }
}

impl fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
