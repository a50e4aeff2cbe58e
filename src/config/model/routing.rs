//! The backends, and which of them serves whom.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::tls::{CertificateFiles, Group};
use crate::proto::proxy_header::Version;
use crate::proto::{BackTls, Protocol};

/// Backends and who goes where.
#[derive(Debug, Clone)]
pub struct Routing {
    /// The backend (its name) of users without a mailHost; `None`: they are refused.
    pub default: Option<String>,
    /// The backends, in the order of the file.
    pub backends: Vec<Backend>,
}

/// A mail server behind usher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its name: metric label, log word, control name.
    pub name: String,
    /// The mailHost values that mean this backend, lower case without trailing dot.
    pub hosts: Vec<String>,
    /// The CA file; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// A client certificate shown to the backend.
    pub client_certificate: Option<CertificateFiles>,
    /// Base64 SHA-256 of the public key info, instead of chain and name; may be several.
    pub pin_sha256: Vec<[u8; 32]>,
    /// The key exchange groups that it is offered, in order of preference; never empty.
    pub groups: Vec<Group>,
    /// Login by a service account with the user as authzid.
    pub service: Option<BackendService>,
    /// How users with a token log in there.
    pub token: TokenLogin,
    /// The account that logs in for a user that acts for a mailbox; `None`: `service`.
    pub impersonation_service: Option<BackendService>,
    /// The addresses that connections to it come from, in turn; none: as the system chooses.
    pub source: Vec<IpAddr>,
    /// Connect to the answer of the login.
    pub timeout: Duration,
    /// Whether a backend's own words of refusal reach the client.
    pub pass_refusals: bool,
    /// When it counts as down, and how it comes back.
    pub health: Health,
    /// Logins under way there at the most.
    pub logins_in_flight: usize,
    /// Where Postfix delivers mail for its users: transport and next hop.
    pub delivery: Option<String>,
    /// Where each protocol is served: protocol name -> endpoint.
    pub endpoints: Vec<Endpoint>,
}

/// How a user with a token logs in at a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenLogin {
    /// By the service account, if there is one.
    Service,
    /// With the token, by the same mechanism.
    Forward {
        /// The claim with the name there; `None`: the name of a login with a password.
        user_claim: Option<String>,
    },
}

impl Backend {
    /// The account that logs in for a user that acts for a mailbox, if one can.
    #[must_use]
    pub fn acting_account(&self) -> Option<&BackendService> {
        self.impersonation_service.as_ref().or(self.service.as_ref())
    }
}

/// When a backend's address counts as down, and how it comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How it is probed.
    pub probe: Probe,
    /// How often, while it is up.
    pub probe_interval: Duration,
    /// How many faults in a row make an address count as down.
    pub failures: u32,
    /// How long the rate of logins is limited after an outage.
    pub slow_start: Duration,
}

/// How a backend is looked after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Not at all, until a login meets an address that is down.
    Off,
    /// It accepts a connection.
    Tcp,
    /// It does TLS and greets.
    Greeting,
    /// It takes a login of this account.
    Login(BackendService),
}

impl Probe {
    /// The account that logs in, if one does.
    #[must_use]
    pub const fn account(&self) -> Option<&BackendService> {
        match self {
            Self::Login(account) => Some(account),
            Self::Off | Self::Tcp | Self::Greeting => None,
        }
    }
}

/// A service account at a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendService {
    /// Its name (SASL authcid).
    pub login: String,
    /// The file with its password.
    pub password_file: PathBuf,
}

/// Where a backend serves a protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The protocol.
    pub protocol: &'static Protocol,
    /// Where to connect, in order of preference: never empty.
    pub addresses: Vec<Address>,
    /// Which of them serves whom.
    pub balance: AddressBalance,
    /// TLS.
    pub tls: BackTls,
    /// The name to verify and to send as SNI.
    pub server_name: String,
    /// How the client's address is forwarded.
    pub forward: Forward,
    /// Whose name usher sends in EHLO.
    pub ehlo: Ehlo,
    /// Where nginx is sent instead of `addresses`.
    pub auth_http: AuthHttpTarget,
}

/// Which of an endpoint's addresses a login goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressBalance {
    /// The first that is up.
    First,
    /// The one that a hash of the user chooses among those that are up.
    UserHash(OnReturn),
}

impl AddressBalance {
    /// Whether users go to different addresses.
    #[must_use]
    pub const fn is_by_user(self) -> bool {
        matches!(self, Self::UserHash(_))
    }
}

/// What happens, when an address is up again, to the sessions that belong to it and are elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReturn {
    /// They stay.
    Keep,
    /// They are ended at a pace.
    Close,
}

impl Endpoint {
    /// Whether nginx can be sent there.
    #[must_use]
    pub fn takes_nginx(&self) -> bool {
        self.protocol.nginx.is_some() && (self.tls == BackTls::Plaintext || self.auth_http.port.is_some())
    }
}

/// The address and port that nginx connects to, which has no TLS to backends; by default a healthy address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuthHttpTarget {
    /// Another IP address.
    pub address: Option<IpAddr>,
    /// Another port.
    pub port: Option<u16>,
}

/// How the client's address is forwarded to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Not at all.
    Nothing,
    /// By a PROXY header, before TLS.
    Header(Version),
    /// In the protocol's dialogue ([`Protocol::forward_method`]).
    Dialogue,
}

/// Whose name usher sends in EHLO before a login. Probes have usher's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ehlo {
    /// usher's own.
    Own,
    /// The client's, if it can be repeated.
    Client,
}

/// A host and a port to connect to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The host name or IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}
