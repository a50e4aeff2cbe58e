//! The directory seam: authenticates a user by a bind and reads entries.
//!
//! [`Identity`] can only be made here, from a bind that the directory answered with success, so no path through
//! usher can relay a client that was not bound (promise 1). A result that is neither success nor
//! invalidCredentials is [`DirectoryError::Unavailable`] and never a wrong password (promise 7), unless the
//! server reports an account state: locked, or password expired. RFC 4511 (protocol), 4513 (authentication),
//! 4514 (DN), 4515 (filter).

mod connection_fault;
mod floor;
mod key;
pub(crate) mod ldap;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::base::credential::{Credential, Login};
use crate::outcome::AccountState;

pub(crate) use connection_fault::ConnectionFault;
pub(crate) use floor::{Floor, Freshness, NoFloor};
pub(crate) use key::{EntryKey, EntryName, Realm};
pub(crate) use ldap::Ldap;
pub(crate) use ldap::changes::Change;
#[cfg(test)]
pub(crate) use ldap::changes::Refresh;
pub(crate) use ldap::diagnose::{SampleLookup, ServerDiagnosis, UserCount};
#[cfg(any(test, feature = "internals"))]
pub(crate) use ldap::frames::invariants as frames_trial;
pub(crate) use ldap::listing::ListedUser;
pub(crate) use ldap::lockout::LockoutPolicy;
pub(crate) use ldap::policy::BindDiagnostic;
#[cfg(any(test, feature = "internals"))]
pub(crate) use ldap::policy::invariants as bind_answer_trial;
pub(crate) use ldap::schema::ReportedEntry;

/// A user authenticated by the directory: the evidence of a successful bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    entry: Arc<Entry>,
}

impl Identity {
    /// The entry, as read together with the bind.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The entry, to be kept.
    #[must_use]
    pub fn shared_entry(&self) -> Arc<Entry> {
        Arc::clone(&self.entry)
    }

    /// The same identity, with a newer version of its entry.
    #[must_use]
    pub fn with_entry(self, entry: Arc<Entry>) -> Self {
        // Only a separate group search sets `in_group`.
        let in_group = self.entry.in_group;
        if entry.in_group == in_group {
            Self { entry }
        } else {
            Self { entry: Entry { in_group, ..Entry::clone(&entry) }.into() }
        }
    }

    /// An identity for unit tests of modules that have no directory.
    #[cfg(test)]
    pub(crate) fn for_tests(dn: &str, mail_hosts: &[&str]) -> Self {
        Self { entry: Arc::new(Entry::for_tests(dn, mail_hosts)) }
    }
}

/// The part of an entry that usher reads. It says nothing about a password: see [`Identity`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The DN as the directory spells it.
    pub dn: Arc<str>,
    /// The values of `mail_host_attribute`.
    pub mail_hosts: Vec<String>,
    /// The values of `login_attribute`; empty when none is configured.
    pub logins: Vec<String>,
    /// The values of `allow_attribute`; empty when none is configured.
    pub allowed: Vec<String>,
    /// Whether it matches `allow_filter`; true when none is configured.
    pub in_group: bool,
    /// The version, compared to detect changes.
    pub version: EntryVersion,
}

impl Entry {
    /// The key of this entry.
    #[must_use]
    pub fn key(&self) -> EntryKey {
        self.version.key(&self.dn)
    }

    /// Whether this version routes to another mail host or login than `other`.
    #[must_use]
    pub fn route_differs(&self, other: &Self) -> bool {
        self.mail_hosts != other.mail_hosts || self.logins != other.logins
    }

    /// This version with the route of another; disabled only if the other one is.
    #[must_use]
    pub fn with_route_of(&self, other: &Self) -> Self {
        Self {
            mail_hosts: other.mail_hosts.clone(),
            logins: other.logins.clone(),
            version: EntryVersion {
                disabled: other.version.disabled,
                expires: other.version.expires,
                ..self.version.clone()
            },
            ..self.clone()
        }
    }

    /// An entry of which only the DN is known.
    pub(crate) fn unread(dn: Arc<str>) -> Self {
        let (mail_hosts, logins, allowed) = Default::default();
        Self { dn, mail_hosts, logins, allowed, in_group: true, version: EntryVersion::default() }
    }

    /// An entry for tests.
    #[cfg(test)]
    pub(crate) fn for_tests(dn: &str, mail_hosts: &[&str]) -> Self {
        let mail_hosts = mail_hosts.iter().map(|host| (*host).to_owned()).collect();
        Self { mail_hosts, ..Self::unread(dn.into()) }
    }
}

/// The identifier that survives a change of DN: entryUUID, nsUniqueId or objectGUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId([u8; 16]);

impl EntryId {
    /// The 16 bytes of an id.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The text of an id: 32 hexadecimal digits, with dashes anywhere.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut digits = text.iter().filter(|byte| **byte != b'-').map(|byte| char::from(*byte).to_digit(16));
        let mut id = [0; 16];
        for byte in &mut id {
            *byte = u8::try_from(digits.next()?? << 4 | digits.next()??).ok()?;
        }
        digits.next().is_none().then_some(Self(id))
    }
}

/// The attributes that distinguish one version of an entry from another, besides its route. Kept small, because
/// one is stored per user; values that are only compared are digests keyed with this process's key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EntryVersion {
    /// The directory of the entry.
    pub realm: Realm,
    /// The identifier that survives a rename.
    pub id: Option<EntryId>,
    /// The directory binds a DN that a template makes, and reads the entry afterwards: it is named by its DN
    /// before and after the bind, or what is counted before would not be found after it.
    pub named_by_dn: bool,
    /// entryCSN, or modifyTimestamp.
    pub revision: Option<Box<str>>,
    /// `hold_attribute` has a value.
    pub held: bool,
    /// Disabled by an administrator, according to `disabled_by`.
    pub disabled: bool,
    /// When the account expires, in Unix seconds: the earliest of the attributes listed in `disabled_by`.
    pub expires: Option<i64>,
    /// When the password was changed; `None` if the server does not expose it.
    pub password_changed: Option<u64>,
    /// Locked after failed binds, now or recently.
    pub locked: bool,
    /// Digest of the lockout attributes.
    pub lockout: u64,
    /// Digest of the password policy attributes: must-change flag and the policy's DN.
    pub password_policy: u64,
    /// Failed binds counted by the directory; `None` if the entry does not expose the count.
    pub failures: Option<u64>,
    /// The entry has attributes of the password policy draft, whose implementations also record password
    /// changes (draft-behera-ldap-password-policy-10 sections 5.3.2 to 5.3.4).
    pub has_policy_attributes: bool,
    /// Digest of other attributes that affect the decision.
    pub policy_digest: u64,
    /// Digest of attributes that successful and failed logins modify.
    pub login_activity: u64,
}

impl EntryVersion {
    /// The key of the entry with this DN.
    #[must_use]
    pub fn key(&self, dn: &Arc<str>) -> EntryKey {
        let name = match self.id {
            Some(id) if !self.named_by_dn => EntryName::Id(id),
            Some(_) | None => EntryName::Dn(Arc::clone(dn)),
        };
        EntryKey { realm: self.realm, name }
    }

    /// The state that prevents logins at this time, in Unix seconds; `None` if the account is usable.
    #[must_use]
    pub fn account_state(&self, now: u64) -> Option<AccountState> {
        let has_expired = |expires: i64| u64::try_from(expires).is_ok_and(|expires| expires <= now) || expires < 0;
        if self.disabled {
            return Some(AccountState::Disabled);
        }
        self.expires.is_some_and(has_expired).then_some(AccountState::AccountExpired)
    }

    /// Whether a password change would be visible.
    #[must_use]
    pub const fn shows_password_changes(&self) -> bool {
        self.password_changed.is_some() || self.revision.is_some()
    }

    /// Whether the password may have changed: its change time differs, or its policy attributes do.
    #[must_use]
    pub fn password_differs(&self, earlier: &Self) -> bool {
        (self.password_changed, self.password_policy) != (earlier.password_changed, earlier.password_policy)
    }

    /// Whether a password change would always update the change time. A server with the draft's policy writes
    /// it at the first change, so an entry without one has had none.
    #[must_use]
    pub const fn shows_password_age(&self) -> bool {
        self.password_changed.is_some() || self.has_policy_attributes
    }
}

/// Details of a directory request, for logs and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The URL of the server that was asked last, whether it answered or not.
    pub server: Option<Arc<str>>,
    /// The LDAP result code of its answer; `None` if it did not answer.
    pub code: Option<u32>,
    /// The diagnostic that accompanied a bind result.
    pub diagnostic: Option<BindDiagnostic>,
    /// Time spent searching or reading.
    pub search: Option<Duration>,
    /// Time spent binding.
    pub bind: Option<Duration>,
    /// The server that answered had not caught up with a known change of the entry: its verdict on the password
    /// is not cached.
    pub behind: bool,
}

/// Why the directory did not authenticate a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// invalidCredentials (49) as the answer to a bind as this DN.
    #[error("directory refused the password")]
    InvalidCredentials {
        /// The DN that was bound.
        dn: Arc<str>,
        /// The entry's version when it was looked up for this bind. `None`: the refusal may have another reason
        /// than the password, and is not cached.
        seen: Option<Box<EntryVersion>>,
    },
    /// The same password was refused for this DN before, and nothing indicates that it has become valid: it was
    /// not sent.
    #[error("password refused before")]
    RefusedBefore {
        /// The entry's DN.
        dn: Arc<str>,
    },
    /// The account must not be used to log in, whatever the password.
    #[error("account state: {}", state.label())]
    Account {
        /// The DN that was bound.
        dn: Arc<str>,
        /// Why.
        state: AccountState,
        /// Whether the directory reports the state only after a correct password.
        proven: bool,
    },
    /// The entry is held. The password was not sent: no server has caught up with the hold yet.
    #[error("the entry is held")]
    Held {
        /// The entry's DN.
        dn: Arc<str>,
    },
    /// No entry matches.
    #[error("no entry matches")]
    NoEntry,
    /// More than one entry matches.
    #[error("several entries match")]
    SeveralEntries,
    /// The directory gave no verdict.
    #[error("directory lookup failed: {0}")]
    Unavailable(UnavailableCause),
}

/// Why a directory lookup failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnavailableCause {
    /// The connection could not be made or broke.
    #[error("{server}: {fault}")]
    Connection {
        /// The server's URL.
        server: Arc<str>,
        /// What happened.
        fault: ConnectionFault,
    },
    /// An operation exceeded `attempt_timeout`, or the login `timeout`.
    #[error("timed out")]
    Timeout,
    /// Every bind connection stayed busy until the deadline.
    #[error("all connections are busy")]
    Busy,
    /// The service account's bind was refused.
    #[error("{server}: service account refused with result {code}")]
    ServiceBind {
        /// The server's URL.
        server: Arc<str>,
        /// The result code.
        code: u32,
    },
    /// A result code that is neither success nor invalidCredentials.
    #[error("{server}: {operation} failed with result {code}")]
    Result {
        /// The server's URL.
        server: Arc<str>,
        /// The operation: `bind`, `search` or `read`.
        operation: &'static str,
        /// The result code.
        code: u32,
    },
    /// The reply is not LDAP, does not match the request, or exceeds a limit.
    #[error("{server}: malformed reply")]
    Malformed {
        /// The server's URL.
        server: Arc<str>,
    },
    /// The server does not return the canary: wrong data, or insufficient access rights.
    #[error("{server}: does not return the canary as configured")]
    Canary {
        /// The server's URL.
        server: Arc<str>,
    },
    /// No server caught up in time with a known change of the entry.
    #[error("{server}: lags behind the last change of the entry, and so do all other servers")]
    Behind {
        /// The URL of the server that was asked last.
        server: Arc<str>,
    },
    /// The server returns no mail host for an entry that has one and was not modified.
    #[error("{server}: returns no mail host for an entry that has one; check its access rules")]
    Hidden {
        /// The server's URL.
        server: Arc<str>,
    },
    /// `usher explain` requested attributes that only the user may read.
    #[error("no service account to read the entry with")]
    NoServiceAccount,
}

impl UnavailableCause {
    /// The LDAP result code that caused the failure, if any.
    #[must_use]
    pub const fn code(&self) -> Option<u32> {
        match self {
            Self::ServiceBind { code, .. } | Self::Result { code, .. } => Some(*code),
            Self::Connection { .. }
            | Self::Timeout
            | Self::Busy
            | Self::Malformed { .. }
            | Self::Canary { .. }
            | Self::Behind { .. }
            | Self::Hidden { .. }
            | Self::NoServiceAccount => None,
        }
    }
}

/// Whether the directory can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// At least one server is in use.
    Available,
    /// No server is in use, but one may be tried again.
    Recovering,
    /// No server is in use.
    Unreachable,
}

/// A pending reply of the directory.
pub(crate) type DirectoryFuture<'a, T> = Pin<Box<dyn Future<Output = (Result<T, DirectoryError>, Trace)> + Send + 'a>>;

/// Whether this password was refused for the entry just found: if so, it is not sent again.
pub(crate) type RefusedBefore<'a> = &'a (dyn Fn(&Entry) -> bool + Send + Sync);

/// A directory. LDAP is one implementation; tests use another.
pub trait Directory: Send + Sync + 'static {
    /// Finds the entry and binds as it, within the configured timeout. The caller guarantees that a password is
    /// UTF-8, not empty and without NUL. If the entry is found before the bind, `refused_before` is asked
    /// about it. The bind goes to a server that has caught up with `floor`.
    fn authenticate<'a>(
        &'a self,
        credential: &'a Credential,
        refused_before: RefusedBefore<'a>,
        floor: &'a dyn Floor,
    ) -> DirectoryFuture<'a, Identity>;

    /// Finds the entry without a password, for `usher explain`.
    fn find_entry<'a>(&'a self, login: &'a Login) -> DirectoryFuture<'a, Entry>;

    /// The availability as last observed.
    fn availability(&self) -> Availability {
        Availability::Available
    }

    /// As [`Directory::availability`], after a short wait for probes of suspect servers.
    fn settled_availability(&self) -> Pin<Box<dyn Future<Output = Availability> + Send + '_>> {
        Box::pin(std::future::ready(self.availability()))
    }

    /// Describes what [`Directory::find_entry`] asks for this login: the filter and base, or the DN.
    fn describe_lookup(&self, login: &Login) -> String;
}
