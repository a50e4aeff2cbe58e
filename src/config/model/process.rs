//! The process and its own ports.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// What becomes of a config file that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigReload {
    /// It waits for a reload.
    Manual,
    /// It is taken over, with the checks of a reload.
    Auto,
}

/// The side port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Address and port.
    pub address: SocketAddr,
    /// Names of this machine under which it may be requested, in addition to its own.
    pub hosts: Vec<String>,
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The socket's path.
    pub path: PathBuf,
    /// A group that may use it (0660 instead of 0600).
    pub group: Option<String>,
}

/// The listener for auth requests of nginx's mail proxy (`auth_http`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthHttp {
    /// Address and port.
    pub address: SocketAddr,
    /// The networks that may connect.
    pub allow: Vec<IpNet>,
    /// The file with what must stand in `X-Auth-Key`, if anything must.
    pub key_file: Option<PathBuf>,
}

/// The process itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The user to become when started as root.
    pub user: Option<String>,
    /// The group to become; `None`: the user's own.
    pub group: Option<String>,
    /// Whether debuggers of the same user are let in, and cores may be written.
    pub debug: bool,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// The lowest level written.
    pub level: LogLevel,
    /// What of a client's address is written.
    pub client_address: ClientAddress,
}

/// What of a client's address the log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAddress {
    /// All of it.
    #[default]
    Full,
    /// Its network alone: 24 bits of IPv4, 48 of IPv6.
    Network,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The lowest level that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Own faults.
    Error,
    /// Trouble with directory and backends as well.
    Warn,
    /// Logins and ends as well.
    Info,
    /// Client mistakes as well.
    Debug,
    /// Everything.
    Trace,
}
