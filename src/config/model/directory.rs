//! The directory: its servers, how entries are found, and what they mean.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::tls::{CertificateFiles, Group};
use crate::outcome::AccountState;
use crate::proto::ldap::template::Template;

/// The directory and how a user is found in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its name: in the log, the metrics and commands, and what identifies it across a reload.
    pub name: String,
    /// The path of its section in the file.
    pub key: String,
    /// The domains of its users; empty: all names.
    pub domains: Vec<DomainPattern>,
    /// The Windows domains of its users, whose names are typed as `DOMAIN\user`.
    pub windows_domains: Vec<WindowsDomain>,
    /// The servers, in order of preference, or the names in DNS that stand for them.
    pub servers: Vec<DirectoryServer>,
    /// The hosts that SRV records may name beside those below the domain that was asked for.
    pub srv_targets: Vec<SrvTarget>,
    /// The DNS servers that are asked for the servers' names; none: those of the system.
    pub resolver: Vec<SocketAddr>,
    /// StartTLS on ldap:// connections; mandatory once set.
    pub starttls: bool,
    /// The CA file; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// A client certificate for the directory.
    pub client_certificate: Option<CertificateFiles>,
    /// The key exchange groups that the servers are offered, in order of preference; never empty.
    pub groups: Vec<Group>,
    /// Whether unencrypted LDAP to another machine is allowed.
    pub plaintext: bool,
    /// How to get from a login name to an entry.
    pub find: Find,
    /// The attribute with the mail server's name.
    pub mail_host_attribute: String,
    /// The attribute with the name at the backend; `None`: the name as typed.
    pub login_attribute: Option<String>,
    /// The attribute with the networks that a user may log in from; `None`: all users from everywhere.
    pub networks_attribute: Option<String>,
    /// The attribute with the users that may act for a mailbox; `None`: it names none.
    pub grant_attribute: Option<String>,
    /// The protocols that a user may use.
    pub allow: Allow,
    /// What an entry must match for a login with a password; `None`: nothing.
    pub password_filter: Option<String>,
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
    /// The filter that finds the entry of a mail address; `None`: no address is looked up.
    pub mail_filter: Option<Template>,
    /// Result codes of a bind that mean a state of the account; others count as unavailable.
    pub results: BTreeMap<u32, AccountState>,
    /// Whether the certificates of entries are read (userCertificate), because a listener logs clients in by them.
    pub reads_certificates: bool,
    /// The attributes by which a token, the address of a certificate or a mail address leads to an entry: which entry that is depends on
    /// nothing else, as no password is verified.
    pub claim_attributes: Vec<String>,
    /// Filters for all entries that tokens and mail addresses lead to, beside those of users: their changes count, too.
    pub other_filters: Vec<String>,
}

impl Directory {
    /// The name of the only directory.
    pub(crate) const DEFAULT_NAME: &'static str = "default";

    /// Whether it answers as `other` does: which names it is asked about does not matter.
    pub(crate) fn answers_like(&self, other: &Self) -> bool {
        Self { key: other.key.clone(), domains: other.domains.clone(), ..self.clone() } == *other
    }

    /// Whether there may be others beside it.
    #[must_use]
    pub(crate) fn is_one_of_several(&self) -> bool {
        !self.domains.is_empty()
    }
}

#[cfg(test)]
impl Directory {
    /// One to begin with, for tests.
    pub(crate) fn for_tests() -> Self {
        Self {
            name: Self::DEFAULT_NAME.to_owned(),
            key: "directory".to_owned(),
            domains: Vec::new(),
            windows_domains: Vec::new(),
            servers: Vec::new(),
            srv_targets: Vec::new(),
            resolver: Vec::new(),
            starttls: false,
            ca: None,
            client_certificate: None,
            groups: vec![Group::X25519],
            plaintext: true,
            find: Find::Search { service: None, base: "dc=x".to_owned(), filter: Template { parts: Vec::new() } },
            mail_host_attribute: "mailHost".to_owned(),
            login_attribute: None,
            networks_attribute: None,
            grant_attribute: None,
            allow: Allow::default(),
            password_filter: None,
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
            mail_filter: None,
            results: BTreeMap::new(),
            reads_certificates: false,
            claim_attributes: Vec::new(),
            other_filters: Vec::new(),
        }
    }
}

/// A domain of login names, in small letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainPattern {
    /// Names without a domain.
    None,
    /// This one.
    Exact(String),
    /// Every one that ends so, with a dot first.
    Suffix(String),
}

/// A Windows domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowsDomain {
    /// Its NetBIOS name, in small letters.
    pub name: String,
    /// The filter of an entry, the name behind the backslash in place of the login name.
    pub filter: Template,
}

impl WindowsDomain {
    /// What is before and behind the backslash of a Windows name.
    #[must_use]
    pub(crate) fn split(name: &str) -> Option<(&str, &str)> {
        name.split_once('\\')
    }

    /// Whether this is its name.
    #[must_use]
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

impl DomainPattern {
    /// Whether a domain in small letters is one of these.
    #[must_use]
    pub fn has(&self, domain: &str) -> bool {
        match self {
            Self::None => domain.is_empty(),
            Self::Exact(exact) => domain == exact,
            // `*.example.org` is below the domain, and not the domain itself.
            Self::Suffix(suffix) => {
                domain.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
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
    /// The name to verify and to send as SNI; `None`: the host.
    pub server_name: Option<String>,
    /// Base64 SHA-256 of the public key info, instead of chain and name; may be several.
    pub pin_sha256: Vec<[u8; 32]>,
    /// StartTLS on ldap:// to this one, whatever [`Directory::starttls`] is.
    pub starttls: bool,
    /// `Some`: the host is a name whose SRV records list the servers.
    pub srv: Option<Srv>,
}

/// What SRV records are used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// The domain that the hosts belong to, in lower case.
    pub domain: String,
    /// The port that replaces that of the records.
    pub port: Option<u16>,
}

/// A host that SRV records may name, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SrvTarget {
    /// This one.
    Host(String),
    /// All below this domain.
    Below(String),
}

impl SrvTarget {
    /// Whether it is this host, in lower case.
    #[must_use]
    pub fn is(&self, host: &str) -> bool {
        match self {
            Self::Host(name) => host == name,
            Self::Below(domain) => {
                host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }
}

impl DirectoryServer {
    /// The name that its certificate is verified for.
    #[must_use]
    pub fn name(&self) -> &str {
        self.server_name.as_deref().unwrap_or(&self.host)
    }

    /// Whether connections to it have TLS, with or without `starttls` for the whole directory.
    #[must_use]
    pub fn has_tls(&self, starttls: bool) -> bool {
        match self.scheme {
            LdapScheme::Ldap => starttls || self.starttls,
            LdapScheme::Ldaps => true,
            LdapScheme::Ldapi => false,
        }
    }
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
    /// The filter by which a login name is searched for.
    #[must_use]
    pub const fn filter(&self) -> Option<&Template> {
        match self {
            Self::Search { filter, .. } => Some(filter),
            Self::UserDn { .. } | Self::Principal { .. } => None,
        }
    }

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
