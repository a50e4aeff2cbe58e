//! The compiled configuration: what the rest of usher reads.
//!
//! Each value here has passed its checks: paths are absolute, durations within their ranges, names
//! unique, and what has to exist elsewhere in the file does. Instances come from
//! [`load`](super::load) alone. What each key means to the operator is documented in
//! `config.example.yaml`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{Place, Problem};
use crate::base::labels::labels;
use crate::outcome::AccountState;
use crate::proto::ldap::template::Template;
use crate::proto::proxy_header::Version;
use crate::proto::{BackTls, Protocol};

/// A whole checked configuration: one immutable snapshot.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from, absolute.
    pub file: PathBuf,
    /// usher's own name in its dialogues; `None`: as its certificate says.
    pub hostname: Option<String>,
    /// Where clients connect.
    pub listeners: Vec<Listener>,
    /// What clients are promised before their login, instead of what the backends say; per protocol.
    pub capabilities: Vec<(&'static Protocol, Vec<String>)>,
    /// TLS towards clients.
    pub tls: Tls,
    /// The directory.
    pub directory: Directory,
    /// Networks whose clients may say, by IMAP's ID, for whom they call: webmail.
    pub trusted: Vec<IpNet>,
    /// Backends and who goes where.
    pub routing: Routing,
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
    /// The process itself.
    pub process: Process,
    /// Logging.
    pub log: Log,
    /// What is allowed but suspicious, in the order of the file; worth a warn line at start.
    pub warnings: Vec<Problem>,
    /// Where each key stands.
    pub place: Arc<Place>,
}

/// The sections that name files, as far as each is sound: what can still be checked of a config
/// that cannot be used, and where a running usher that still uses the old one can be asked.
#[derive(Debug, Clone)]
pub struct Draft {
    /// TLS towards clients.
    pub tls: Option<Tls>,
    /// The directory.
    pub directory: Option<Directory>,
    /// Backends and who goes where.
    pub routing: Option<Routing>,
    /// The control socket.
    pub control: Option<Control>,
    /// The listener for nginx's auth requests.
    pub auth_http: Option<AuthHttp>,
    /// Where each key stands.
    pub place: Arc<Place>,
}

/// An address where clients connect.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The protocol spoken there.
    pub protocol: &'static Protocol,
    /// Address and port; an IPv6 wildcard takes IPv4 as well.
    pub address: SocketAddr,
    /// TLS before the greeting or by command.
    pub tls: ListenerTls,
    /// The networks of the proxies that begin every connection with a PROXY header; `None`: there are
    /// no proxies.
    pub proxies: Option<Vec<IpNet>>,
    /// The name of the socket that systemd opens for it, wherever that listens.
    pub socket: Option<String>,
}

/// TLS on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerTls {
    /// From the first byte.
    Implicit,
    /// By the client's command; no login before it.
    StartTls,
}

/// TLS towards clients.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificates with their keys; the first is used for no or an unknown SNI.
    pub certificates: Vec<CertificateFiles>,
    /// The lowest TLS version.
    pub min_version: TlsVersion,
    /// Key exchange groups in order of preference, by their IANA names; never empty.
    pub groups: Vec<Group>,
    /// Cipher suites in order of preference by their IANA names, each known to
    /// [`cipher_suite`](super::cipher_suite); never empty; `None`: the library's.
    pub cipher_suites: Option<Vec<String>>,
    /// The CA of client certificates; when set, a certificate that is shown must be from it.
    pub client_ca: Option<PathBuf>,
    /// Whether clients are asked for a certificate.
    pub client_auth: ClientAuth,
    /// The keys of tickets that other ushers know as well; `None`: each process makes its own.
    pub ticket_keys_file: Option<PathBuf>,
    /// How often the files that the config names are looked at again.
    pub reload_interval: Duration,
}

/// Whether clients are asked for a certificate in the TLS handshake; `client_ca` verifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Not asked for.
    Off,
    /// Asked for; a client without one may go on.
    Optional,
    /// The handshake fails without one.
    Required,
}

/// A certificate chain and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the certificate, then its intermediates.
    pub chain: PathBuf,
    /// PEM: the private key.
    pub key: PathBuf,
}

/// A TLS version usher speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2 (AEAD and ECDHE suites only).
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A key exchange group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Hybrid post-quantum.
    X25519MlKem768,
    /// Curve25519.
    X25519,
    /// NIST P-256.
    Secp256r1,
    /// NIST P-384.
    Secp384r1,
}

/// The directory and how a user is found in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The servers, in order of preference.
    pub servers: Vec<DirectoryServer>,
    /// StartTLS on ldap:// connections; mandatory once set.
    pub starttls: bool,
    /// The CA file; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// A client certificate for the directory.
    pub client_certificate: Option<CertificateFiles>,
    /// Whether unencrypted LDAP to another machine is allowed.
    pub plaintext: bool,
    /// How to get from a login name to an entry.
    pub find: Find,
    /// The attribute with the mail server's name.
    pub mail_host_attribute: String,
    /// The attribute with the name at the backend; `None`: the name as typed.
    pub login_attribute: Option<String>,
    /// The protocols that a user may use.
    pub allow: Allow,
    /// The whole decision.
    pub timeout: Duration,
    /// One operation, one connection set-up.
    pub attempt_timeout: Duration,
    /// The longest message that is taken from a server, in bytes.
    pub max_message: usize,
    /// How a server is chosen among the healthy ones.
    pub balance: Balance,
    /// The connections to each server.
    pub connections: Connections,
    /// What every server has to show.
    pub canary: Option<Canary>,
    /// Whether the reply to a correct password contains the reason why the account may not log in.
    pub reveal_account_state: bool,
    /// The attributes by which an entry shows that it may not log in.
    pub disabled_by: Vec<DisabledBy>,
    /// How it is followed, and what follows from its changes.
    pub watch: Watch,
    /// Result codes of a bind that mean a state of the account; others count as unavailable.
    pub results: BTreeMap<u32, AccountState>,
}

#[cfg(test)]
impl Directory {
    /// One to begin with, for tests.
    pub(crate) fn for_tests() -> Self {
        Self {
            servers: Vec::new(),
            starttls: false,
            ca: None,
            client_certificate: None,
            plaintext: true,
            find: Find::Search { service: None, base: "dc=x".to_owned(), filter: Template { parts: Vec::new() } },
            mail_host_attribute: "mailHost".to_owned(),
            login_attribute: None,
            allow: Allow::default(),
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_millis(1_200),
            max_message: 1 << 20,
            balance: Balance::First,
            connections: Connections {
                min: 0,
                max: 4,
                idle_timeout: Duration::from_secs(30),
                max_age: Duration::from_secs(1_800),
                max_operations: 100_000,
            },
            canary: None,
            reveal_account_state: false,
            disabled_by: DisabledBy::DEFAULT.to_vec(),
            watch: Watch::off(),
            results: BTreeMap::new(),
        }
    }
}

/// An attribute by which an entry shows that it may not log in, whether or not the server lets it bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisabledBy {
    /// nsAccountLock is TRUE.
    NsAccountLock,
    /// userAccountControl has bit 2.
    UserAccountControl,
    /// pwdAccountLockedTime is 000001010000Z: locked permanently by an administrator.
    PwdAccountLockedTime,
    /// accountExpires of Active Directory has passed.
    AccountExpires,
    /// shadowExpire, in days, has passed.
    ShadowExpire,
    /// krbPrincipalExpiration has passed.
    KrbPrincipalExpiration,
}

impl DisabledBy {
    /// Every one, with its attribute.
    pub const ALL: [(&'static str, Self); 6] = [
        ("nsAccountLock", Self::NsAccountLock),
        ("userAccountControl", Self::UserAccountControl),
        ("pwdAccountLockedTime", Self::PwdAccountLockedTime),
        ("accountExpires", Self::AccountExpires),
        ("shadowExpire", Self::ShadowExpire),
        ("krbPrincipalExpiration", Self::KrbPrincipalExpiration),
    ];
    /// What counts by default. Not shadowExpire: many trees hold it from times when something else read it.
    pub const DEFAULT: [Self; 4] =
        [Self::NsAccountLock, Self::UserAccountControl, Self::PwdAccountLockedTime, Self::AccountExpires];
}

/// How the directory is followed, and what follows from its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// In which way.
    pub mode: WatchMode,
    /// The interval of polling, for servers without change notification.
    pub poll_interval: Duration,
    /// Sessions of a user whose mail is elsewhere now.
    pub on_move: OnChange,
    /// What happens to sessions of a user that was disabled or deleted.
    pub on_disable: OnChange,
    /// Sessions of a user whose password was changed.
    pub on_password_change: OnChange,
    /// How many moves and switchings-off a minute are acted on; `None`: the larger of 200 and 2 % of
    /// the known users.
    pub brake: Option<u32>,
    /// The attribute that holds a user while it has a value.
    pub hold_attribute: Option<String>,
    /// How long a login waits for the end of a hold.
    pub hold_timeout: Duration,
}

impl Watch {
    /// Nothing is followed, for tests.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self {
            mode: WatchMode::Off,
            poll_interval: Duration::from_secs(1),
            on_move: OnChange::Close,
            on_disable: OnChange::Close,
            on_password_change: OnChange::Keep,
            brake: None,
            hold_attribute: None,
            hold_timeout: Duration::from_secs(1),
        }
    }
}

/// In which way the directory is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchMode {
    /// Content synchronization where a server has it, else polling.
    Auto,
    /// Content synchronization (RFC 4533).
    Sync,
    /// Polling.
    Poll,
    /// Not at all.
    Off,
}

/// What happens to the sessions of a user that was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// They end.
    Close,
    /// They go on.
    Keep,
}

/// Which of several good servers is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The first in the list.
    First,
    /// Each in its turn.
    RoundRobin,
}

/// How connections to a directory server are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Connections for binds that are kept ready.
    pub min: usize,
    /// Connections for binds at the most.
    pub max: usize,
    /// The longest that one is kept unused.
    pub idle_timeout: Duration,
    /// The longest life of one, give or take a fifth.
    pub max_age: Duration,
    /// How many operations one may do.
    pub max_operations: u64,
}

/// An entry that shows whether a server holds the directory, and shows it to usher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// Its login name.
    pub login: String,
    /// A value of its `mail_host_attribute`.
    pub mail_host: String,
}

/// One LDAP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryServer {
    /// The URL as typed: the metric label.
    pub url: String,
    /// ldap, ldaps or ldapi.
    pub scheme: LdapScheme,
    /// The host to resolve and verify (no brackets), or the socket path of ldapi.
    pub host: String,
    /// The port; 0 for ldapi.
    pub port: u16,
}

/// How an LDAP connection is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LdapScheme {
    /// Clear, or StartTLS when configured.
    Ldap,
    /// TLS from the first byte.
    Ldaps,
    /// A Unix socket.
    Ldapi,
}

/// From a login name to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Find {
    /// Search with the service account, then bind as what was found.
    Search {
        /// The service account; `None`: anonymous.
        service: Option<ServiceAccount>,
        /// Where to search (subtree).
        base: String,
        /// The filter with `{login}`, `{local}`, `{domain}`.
        filter: Template,
    },
    /// Bind as the DN the template gives, then read that entry as the user.
    UserDn {
        /// The DN with `{login}`, `{local}`, `{domain}`.
        template: Template,
        /// A service account for `usher explain`, if there is one.
        service: Option<ServiceAccount>,
    },
    /// Bind as the principal name the template gives (Active Directory), then read the one entry under
    /// `base` whose userPrincipalName it is, as the user.
    Principal {
        /// The principal name with `{login}`, `{local}`, `{domain}`.
        template: Template,
        /// Where to search (subtree).
        base: String,
        /// A service account for `usher explain`, if there is one.
        service: Option<ServiceAccount>,
    },
}

impl Find {
    /// The service account, if there is one.
    #[must_use]
    pub const fn service(&self) -> Option<&ServiceAccount> {
        match self {
            Self::Search { service, .. } | Self::UserDn { service, .. } | Self::Principal { service, .. } => {
                service.as_ref()
            }
        }
    }
}

/// The protocols that a user may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow {
    /// The attribute that lists a user's protocols; `None`: all protocols are allowed.
    pub attribute: Option<String>,
    /// The values that allow a protocol, by its name, in small letters.
    pub values: BTreeMap<&'static str, Vec<String>>,
    /// What an entry must match besides; `None`: nothing.
    pub filter: Option<String>,
}

/// The account usher itself uses at the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its DN.
    pub dn: String,
    /// The file with its password; one trailing line end is ignored.
    pub password_file: PathBuf,
}

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
    /// Login by a service account with the user as authzid.
    pub service: Option<BackendService>,
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
    /// Where each protocol is served: protocol name -> endpoint.
    pub endpoints: Vec<Endpoint>,
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
    /// TLS.
    pub tls: BackTls,
    /// The name to verify and to send as SNI.
    pub server_name: String,
    /// How the client's address is forwarded.
    pub forward: Forward,
    /// Where nginx is sent instead of `addresses`.
    pub auth_http: AuthHttpTarget,
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
    /// In the protocol's dialogue ([`Protocol::introduction`]).
    Dialogue,
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

/// How guessing is slowed, and what a network or a user may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    /// How many leading bits of an IPv4 address are one prefix.
    pub ipv4_prefix: u8,
    /// How many leading bits of an IPv6 address are one prefix.
    pub ipv6_prefix: u8,
    /// Networks to which no rule about prefixes or wrong passwords applies.
    pub exempt: Vec<IpNet>,
    /// What is remembered, how much and how long.
    pub memory: Memory,
    /// Wrong passwords from one prefix.
    pub failed_logins_per_prefix: FailedLogins,
    /// Wrong passwords for one user.
    pub failed_logins_per_user: FailedLogins,
    /// Connections of one prefix, before and after login.
    pub connections_per_prefix: Limit,
    /// TLS handshakes under way in all.
    pub handshakes: Limit,
    /// TLS handshakes under way of one prefix.
    pub handshakes_per_prefix: Limit,
    /// Sessions of one user.
    pub sessions_per_user: Limit,
    /// Sessions of one user from one prefix.
    pub sessions_per_user_and_prefix: Limit,
    /// Right passwords per second in all.
    pub logins_per_second: Limit,
}

/// What the throttle remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// How many prefixes, and how many users.
    pub capacity: u64,
    /// One wrong password is forgotten each time this has passed.
    pub forget_every: Duration,
    /// How long a prefix is known as one from which a user has logged in.
    pub known_network_ttl: Duration,
}

labels! {
    /// Whether a rule acts or only counts.
    pub enum Mode {
        /// It acts.
        Enforce => "enforce",
        /// It counts what it would have done.
        DryRun => "dry_run",
    }
}

labels! {
    /// The rules of the throttle, each named after its key.
    pub(crate) enum LimitRule {
        /// Wrong passwords from one prefix.
        FailedLoginsPerPrefix => "failed_logins_per_prefix",
        /// Wrong passwords for one user.
        FailedLoginsPerUser => "failed_logins_per_user",
        /// Connections of one prefix.
        ConnectionsPerPrefix => "connections_per_prefix",
        /// TLS handshakes in progress in total.
        Handshakes => "handshakes",
        /// TLS handshakes in progress of one prefix.
        HandshakesPerPrefix => "handshakes_per_prefix",
        /// Sessions of one user.
        SessionsPerUser => "sessions_per_user",
        /// Sessions of one user from one prefix.
        SessionsPerUserAndPrefix => "sessions_per_user_and_prefix",
        /// Correct passwords per second.
        LoginsPerSecond => "logins_per_second",
    }
}

impl LimitRule {
    /// Whether it delays before it refuses.
    #[must_use]
    pub(crate) const fn delays(self) -> bool {
        matches!(self, Self::FailedLoginsPerPrefix | Self::FailedLoginsPerUser)
    }
}

/// A delay that grows with wrong passwords.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedLogins {
    /// Whether it acts.
    pub mode: Mode,
    /// Wrong passwords without a delay.
    pub free_failures: u32,
    /// Wrong passwords from unknown networks, beyond which no password is sent to the directory.
    pub limit: Option<u32>,
    /// How long the first one that is not free has to wait; each further one twice as long.
    pub first_delay: Duration,
    /// The longest delay; an attempt that would have to wait longer is refused.
    pub max_delay: Duration,
}

/// A count that must not be exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Whether it acts.
    pub mode: Mode,
    /// The most that is allowed.
    pub limit: u32,
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

/// The side port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Address and port.
    pub address: SocketAddr,
    /// Names of this machine by which it may be asked for, beside those that usher knows.
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
