//! How a backend stands now, as data for whoever looks: the control socket, a status page. Never
//! anything about a user.

use std::borrow::Cow;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Logins under way there.
    pub logins_in_flight: u64,
    /// How many may be.
    pub logins_in_flight_limit: usize,
    /// Where it speaks which protocol, in usher's order of protocols.
    pub protocols: Vec<ProtocolStatus>,
}

/// A backend's addresses for one protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolStatus {
    /// The protocol's name.
    pub protocol: Cow<'static, str>,
    /// Whether a login would be sent somewhere.
    pub up: bool,
    /// Why there is no address, if the resolver says so.
    pub unresolved: Option<String>,
    /// The addresses in order of preference; none before the resolver has answered.
    pub addresses: Vec<AddressStatus>,
    /// What all of its addresses can do, as clients are told; nothing before one was reached.
    pub capabilities: Option<Vec<String>>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressStatus {
    /// The address.
    pub address: SocketAddr,
    /// How its breaker stands: `closed` (in use), `half_open` (down, somebody is looking) or `open`.
    pub breaker: Cow<'static, str>,
    /// Why it is down, if it is; quotes the server, so escape it where it is shown.
    pub reason: Option<String>,
    /// How long it has been down, if it is.
    pub down_seconds: Option<u64>,
}

impl AddressStatus {
    /// Whether logins go there.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.down_seconds.is_none()
    }
}

impl BackendStatus {
    /// Whether it takes logins of each protocol that it serves.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.protocols.iter().all(|serving| serving.up)
    }
}
