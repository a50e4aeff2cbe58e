//! A backend's current status, as data for the control socket and the status page. Contains nothing about
//! users.

use std::borrow::Cow;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Logins in progress.
    pub logins_in_flight: u64,
    /// Their limit.
    pub logins_in_flight_limit: usize,
    /// Its protocols, in usher's order.
    pub protocols: Vec<ProtocolStatus>,
}

/// A backend's addresses for one protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProtocolStatus {
    /// The protocol's name.
    pub protocol: Cow<'static, str>,
    /// Whether logins are sent to an address.
    pub up: bool,
    /// Why the name has no address, if resolution failed.
    pub unresolved: Option<String>,
    /// Since when and why no login is accepted, if none is although an address is up.
    #[serde(default)]
    pub refusing: Option<RefusingStatus>,
    /// The addresses in order of preference; none before the name is resolved.
    pub addresses: Vec<AddressStatus>,
    /// The capabilities of all of its addresses, as advertised; none before one was reached.
    pub capabilities: Option<Vec<String>>,
}

/// A backend that accepts no login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefusingStatus {
    /// For how long.
    pub seconds: u64,
    /// Whether the probe account has shown it, and not users.
    pub by_probe: bool,
    /// What it said, or how it was silent; quotes the server, so escape it where it is shown.
    pub reason: String,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddressStatus {
    /// The address.
    pub address: SocketAddr,
    /// Its breaker's state: `closed` (in use), `half_open` (down, a probe is running) or `open` (down).
    pub breaker: Cow<'static, str>,
    /// Why it is down, if it is; quotes the server, so escape it where it is shown.
    pub reason: Option<String>,
    /// How long it has been down, if it is.
    pub down_seconds: Option<u64>,
    /// How long after the connection it greets, in milliseconds, if that is late.
    #[serde(default)]
    pub greets_after_ms: Option<u64>,
}

impl AddressStatus {
    /// Whether it is in use.
    #[must_use]
    pub(crate) fn is_used(&self) -> bool {
        self.down_seconds.is_none()
    }
}

impl BackendStatus {
    /// Whether it takes logins of each protocol that it serves.
    #[must_use]
    pub(crate) fn is_up(&self) -> bool {
        self.protocols.iter().all(|serving| serving.up && serving.refusing.is_none())
    }
}
