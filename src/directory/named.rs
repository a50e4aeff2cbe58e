//! Directory servers that DNS names, as they are listed, shown and kept over a reload.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::DirectoryServer;

/// A server that an SRV record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrvServer {
    /// How it is reached.
    pub server: DirectoryServer,
    /// Its priority: lower is tried first.
    pub priority: u16,
    /// Its weight among those of its priority.
    pub weight: u16,
}

/// How DNS ranks a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrvStanding {
    /// The name of the records, as configured.
    pub name: Arc<str>,
    /// The priority.
    pub priority: u16,
    /// The weight.
    pub weight: u16,
}

/// A server in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedServer {
    /// Its URL.
    pub url: Arc<str>,
    /// How DNS ranks it, if it is named there.
    pub srv: Option<SrvStanding>,
}

/// What is known of a name of SRV records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedName {
    /// The name, as configured.
    pub name: Arc<str>,
    /// The servers of the last usable answer; `None`: there was none yet.
    pub servers: Option<Vec<SrvServer>>,
    /// Why the last look-up gave no list.
    pub fault: Option<String>,
    /// The targets that are not used, with the reason.
    pub ignored: Vec<String>,
    /// The last addresses of the servers, by URL.
    pub addresses: Vec<(Arc<str>, Vec<SocketAddr>)>,
}
