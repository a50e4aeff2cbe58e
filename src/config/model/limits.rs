//! What usher bears: the cache, connections before and after login, the end.

use std::time::Duration;

/// The decision cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// How long a successful decision is used.
    pub ttl: Duration,
    /// How long a wrong password is remembered as wrong at first, and without another look-up.
    pub negative_ttl: Duration,
    /// How long one is remembered that is refused again and again, while nothing about it changes.
    pub negative_ttl_max: Duration,
    /// How long it is used while no directory server is; zero: not at all.
    pub stale: Duration,
    /// How many users are kept.
    pub capacity: u64,
}

/// What a client may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections that are not logged in.
    pub unauthenticated: usize,
    /// The wait for a PROXY header.
    pub proxy_header_timeout: Duration,
    /// One TLS handshake with a client.
    pub handshake_timeout: Duration,
    /// Waiting for a client between the greeting and its successful login, in all.
    pub login_timeout: Duration,
    /// The whole conversation before login, directory and backend included.
    pub prelogin_timeout: Duration,
    /// Wrong names and passwords, and what must look like them, are answered at whole multiples of this.
    pub refusal_delay: Duration,
    /// Refused logins per connection.
    pub failed_logins: u32,
    /// Bad commands per connection before login.
    pub bad_commands: u32,
    /// Bytes of untagged lines that a backend's login may bring.
    pub max_backend_greeting: usize,
    /// A session without a byte in either direction.
    pub idle_timeout: Duration,
    /// What becomes of a connection whose login could not be decided or carried out.
    pub on_unavailable: OnUnavailable,
}

/// What a client gets when the directory or its mail server is unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// The refusal, and the connection stays.
    Reply,
    /// The refusal and the end of the connection: for clients that ask for a new password at any NO.
    ReplyAndClose,
}

/// How to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Between `/ready` turning 503 and the end of accepting.
    pub delay: Duration,
    /// How long sessions may go on after that.
    pub deadline: Duration,
    /// How fast they are closed until then, at the most.
    pub max_closes_per_second: u32,
    /// How long sessions may go on after an upgrade.
    pub upgrade_deadline: Duration,
}
