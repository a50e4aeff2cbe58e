//! The compiled configuration: what the rest of usher reads.
//!
//! Each value here has passed its checks: paths are absolute, durations within their ranges, names
//! unique, and what has to exist elsewhere in the file does. Instances come from
//! [`load`](super::load) alone. What each key means to the operator is documented in
//! `config.example.yaml`.

mod directory;
mod fleet;
mod impersonation;
mod limits;
mod listeners;
mod process;
mod routing;
mod socketmap;
mod throttle;
mod tls;
mod tokens;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Place, Problem, TextDigest};
use crate::proto::Protocol;
pub(crate) use directory::{
    Allow, Balance, Canary, Connections, Directory, DirectoryServer, DisabledBy, DomainPattern, Find, LdapScheme,
    OnChange, ServiceAccount, Srv, SrvTarget, Watch, WatchMode, WindowsDomain,
};
pub(crate) use fleet::{Fleet, StoreAddress};
pub(crate) use impersonation::{Administrators, Impersonation};
use ipnet::IpNet;
pub(crate) use limits::{Cache, Drain, Limits, OnUnavailable};
pub(crate) use listeners::{CertificateMatch, ClientLogin, Listener, ListenerTls};
pub(crate) use process::{Admin, AuthHttp, ClientAddress, ConfigReload, Control, Log, LogFormat, LogLevel, Process};
pub(crate) use routing::{
    Address, AddressBalance, AuthHttpTarget, Backend, BackendService, Ehlo, Endpoint, Forward, Health, OnReturn, Probe,
    Routing, TokenLogin,
};
pub(crate) use socketmap::{DeliveryWhenDisabled, Socketmap, SocketmapPlace, UnixPlace};
pub(crate) use throttle::{FailedLogins, Limit, LimitRule, Memory, Mode, PasswordSpraying, Throttle};
pub(crate) use tls::{CertificateFiles, ClientAuth, ClientCertificates, Group, Tls, TlsVersion};
pub(crate) use tokens::{HttpUrl, Introspection, KeySource, TokenIssuer};

/// A whole checked configuration: one immutable snapshot.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from, absolute.
    pub file: PathBuf,
    /// The hash of its text.
    pub digest: TextDigest,
    /// What becomes of a changed file.
    pub config_reload: ConfigReload,
    /// usher's own name in its dialogues; `None`: as its certificate says.
    pub hostname: Option<String>,
    /// Where clients connect.
    pub listeners: Vec<Listener>,
    /// What is advertised before login instead of the backends' own capabilities; per protocol.
    pub capabilities: Vec<(&'static Protocol, Vec<String>)>,
    /// TLS towards clients.
    pub tls: Tls,
    /// The directories, in the order of the file; never empty.
    pub directories: Vec<Directory>,
    /// The issuers of tokens.
    pub tokens: Vec<TokenIssuer>,
    /// Networks whose clients may say, by IMAP's ID, for whom they call: webmail.
    pub trusted: Vec<IpNet>,
    /// Backends and who goes where.
    pub routing: Routing,
    /// Which users may act for a mailbox.
    pub impersonation: Impersonation,
    /// How long decisions are kept.
    pub cache: Cache,
    /// What a client may use.
    pub limits: Limits,
    /// How guessing is slowed, and what a network or a user may hold.
    pub throttle: Throttle,
    /// How to stop.
    pub drain: Drain,
    /// The side port.
    pub admin: Admin,
    /// The control socket, if there is one.
    pub control: Option<Control>,
    /// The listener for nginx's auth requests, if configured.
    pub auth_http: Option<AuthHttp>,
    /// The listener for Postfix, if configured.
    pub socketmap: Option<Socketmap>,
    /// The store that several ushers share, if configured.
    pub fleet: Option<Fleet>,
    /// The process itself.
    pub process: Process,
    /// Logging.
    pub log: Log,
    /// What is allowed but suspicious, in the order of the file; worth a warn line at start.
    pub warnings: Vec<Problem>,
    /// Where each key stands.
    pub place: Arc<Place>,
}

impl Config {
    /// A listener as it is configured now, for a connection that it has accepted under an earlier configuration.
    /// `over_ipv4`: at an IPv6 wildcard.
    #[must_use]
    pub fn listener_now(&self, accepted_by: &Listener, over_ipv4: bool) -> Option<&Listener> {
        let is_alike = |one: &&Listener| (one.protocol, one.tls) == (accepted_by.protocol, accepted_by.tls);
        let at = |address: SocketAddr| self.listeners.iter().filter(is_alike).find(|one| one.address == address);
        let ipv4 = over_ipv4.then(|| at((Ipv4Addr::UNSPECIFIED, accepted_by.address.port()).into())).flatten();
        ipv4.or_else(|| at(accepted_by.address))
    }
}

/// The sections that name files, as far as each is sound: what can still be checked of a config
/// that cannot be used, and where a running usher that still uses the old one can be asked.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Listeners.
    pub listeners: Vec<Listener>,
    /// TLS towards clients.
    pub tls: Option<Tls>,
    /// The directories.
    pub directories: Vec<Directory>,
    /// The issuers of tokens.
    pub tokens: Option<Vec<TokenIssuer>>,
    /// Backends and who goes where.
    pub routing: Option<Routing>,
    /// The side port.
    pub admin: Option<Admin>,
    /// The control socket.
    pub control: Option<Control>,
    /// The listener for nginx's auth requests.
    pub auth_http: Option<AuthHttp>,
    /// The store that several ushers share.
    pub fleet: Option<Fleet>,
    /// Where each key stands.
    pub place: Arc<Place>,
}
