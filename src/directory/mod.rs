//! The directory: who somebody is, proven by a bind.
//!
//! [`Identity`] can only be made here, from a bind that the directory answered with success, so no
//! path through usher can relay a client who was not bound (promise 1). Everything that is neither
//! success nor invalidCredentials is "cannot tell" and never "wrong" (promise 7), unless the server
//! says more: that the account is locked, or its password too old.
//! RFC 4511 (protocol), 4513 (authentication), 4514 (DN), 4515 (filter).

mod ber;
mod bridge;
mod client;
mod connection;
mod examine;
mod floor;
mod frames;
mod fresh;
mod health;
mod lag;
pub mod ldap;
mod listing;
mod lockout;
mod look;
mod policy;
mod pool;
mod reading;
mod request;
#[cfg(test)]
mod scripted;
mod server;
mod service;
pub mod template;
#[cfg(test)]
mod tests;
mod watch;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::outcome::AccountState;
use crate::secret::Secret;

pub use examine::{Counted, Examined, Sample};
pub use floor::{Floor, Freshness, NoFloor};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use frames::trial as frames_trial;
pub use ldap::Ldap;
pub use listing::Listed;
pub use lockout::Lockout;
pub use policy::Said;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use policy::trial as bind_answer_trial;
pub use reading::Shown;
pub use watch::{Change, Round, Tell};

/// A login name as typed, checked: UTF-8, not empty, no NUL or control character, at most
/// [`Login::MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Login(Arc<str>);

impl Login {
    /// The longest name, in bytes.
    pub const MAX: usize = 512;

    /// Checks a name from the wire; `None` if it cannot be a login name.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let fits = !text.is_empty() && text.len() <= Self::MAX;
        (fits && !text.chars().any(char::is_control)).then(|| Self(text.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Somebody the directory vouched for: the evidence of a successful bind.
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

    /// The same person, with what a newer source shows of the entry.
    #[must_use]
    pub fn with_entry(self, entry: Arc<Entry>) -> Self {
        // Only a question of its own tells about the group.
        let in_group = self.entry.in_group;
        if entry.in_group == in_group {
            Self { entry }
        } else {
            Self { entry: Entry { in_group, ..Entry::clone(&entry) }.into() }
        }
    }

    /// A person for the tests of rooms above, which have no directory to bind to.
    #[cfg(test)]
    pub(crate) fn for_tests(dn: &str, mail_hosts: &[&str]) -> Self {
        Self { entry: Arc::new(Entry::for_tests(dn, mail_hosts)) }
    }
}

/// What usher reads of an entry. Says nothing about a password: see [`Identity`].
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
    /// What else counts when it changes.
    pub marks: Marks,
}

impl Entry {
    /// Whether its mail is elsewhere than another version of it says, or under another name.
    #[must_use]
    pub fn leads_elsewhere(&self, other: &Self) -> bool {
        self.mail_hosts != other.mail_hosts || self.logins != other.logins
    }

    /// This version, with the place of another, and switched off only if that one is.
    #[must_use]
    pub fn with_route_of(&self, other: &Self) -> Self {
        Self {
            mail_hosts: other.mail_hosts.clone(),
            logins: other.logins.clone(),
            marks: Marks { disabled: other.marks.disabled, expires: other.marks.expires, ..self.marks.clone() },
            ..self.clone()
        }
    }

    /// An entry of which nothing is known yet.
    pub(crate) fn named(dn: Arc<str>) -> Self {
        let (mail_hosts, logins, allowed) = Default::default();
        Self { dn, mail_hosts, logins, allowed, in_group: true, marks: Marks::default() }
    }

    /// An entry for tests.
    #[cfg(test)]
    pub(crate) fn for_tests(dn: &str, mail_hosts: &[&str]) -> Self {
        let mail_hosts = mail_hosts.iter().map(|host| (*host).to_owned()).collect();
        Self { mail_hosts, ..Self::named(dn.into()) }
    }
}

/// What an entry keeps when it gets another DN: entryUUID, nsUniqueId or objectGUID.
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

/// What tells one version of an entry from another, besides where it leads: small, because it is kept
/// of every user. Values that are only compared are digests of this process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// What stays when the DN changes.
    pub id: Option<EntryId>,
    /// entryCSN, or modifyTimestamp.
    pub version: Option<Box<str>>,
    /// `hold_attribute` has a value.
    pub held: bool,
    /// Switched off by an administrator, as `disabled_by` says.
    pub disabled: bool,
    /// When the account's own time ends, in Unix seconds: the earliest of those that `disabled_by` lists.
    pub expires: Option<i64>,
    /// When the password was changed; `None` where the server does not show it.
    pub password: Option<u64>,
    /// Locked after wrong passwords, or was until lately.
    pub locked: bool,
    /// Lock-outs.
    pub lockout: u64,
    /// What the policy says of the password itself: that it must be changed, and which policy it is.
    pub policy: u64,
    /// Wrong passwords as the directory counts them; `None` where the entry shows none.
    pub failures: Option<u64>,
    /// The entry shows what a policy of the draft writes, which also writes when the password changes
    /// (draft-behera-ldap-password-policy-10 sections 5.3.2 to 5.3.4).
    pub drafted: bool,
    /// Attributes that decide in some other way.
    pub decides: u64,
    /// What logins, good and bad, change.
    pub noise: u64,
}

impl Marks {
    /// Why the entry shows that it may not log in at this time, in Unix seconds; `None` if it does not.
    #[must_use]
    pub fn closed(&self, now: u64) -> Option<AccountState> {
        let has_expired = |expires: i64| u64::try_from(expires).is_ok_and(|expires| expires <= now) || expires < 0;
        if self.disabled {
            return Some(AccountState::Disabled);
        }
        self.expires.is_some_and(has_expired).then_some(AccountState::AccountExpired)
    }

    /// Whether a change of the password would show.
    #[must_use]
    pub const fn would_show_a_change(&self) -> bool {
        self.password.is_some() || self.version.is_some()
    }

    /// Whether the password may be another by now: its age has changed, or what the policy says of it.
    #[must_use]
    pub fn password_differs(&self, earlier: &Self) -> bool {
        (self.password, self.policy) != (earlier.password, earlier.policy)
    }

    /// Whether a change of the password would show in its age, and nowhere else: a server with a policy
    /// of the draft writes it with the first change, so that an entry without one has had none.
    #[must_use]
    pub const fn is_aged(&self) -> bool {
        self.password.is_some() || self.drafted
    }
}

/// How a question to the directory went, for the log and the metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The URL of the server that was asked last, whether it answered or not.
    pub server: Option<Arc<str>>,
    /// The LDAP result code of its answer; `None` if it did not answer.
    pub code: Option<u32>,
    /// What the server said beside the code of a bind.
    pub said: Option<Said>,
    /// Time spent searching or reading.
    pub search: Option<Duration>,
    /// Time spent binding.
    pub bind: Option<Duration>,
    /// The server whose answer counts had not caught up, when it answered, with what has been shown of the
    /// entry: its verdict on the password is worth nothing later.
    pub behind: bool,
}

/// Why the directory did not vouch for somebody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// invalidCredentials (49) as the answer to a bind as this DN.
    #[error("the directory refused the password")]
    InvalidCredentials {
        /// The DN that was bound.
        dn: Arc<str>,
        /// What the entry showed when it was looked up for this bind. `None`: the refusal may have
        /// another reason than the password, and is not to be remembered.
        seen: Option<Box<Marks>>,
    },
    /// The same password was refused for this DN before, and nothing shows that it may be right by now:
    /// it was not sent.
    #[error("the directory refused the password before")]
    RefusedBefore {
        /// The entry's DN.
        dn: Arc<str>,
    },
    /// The account is not one to log in with, whatever the password.
    #[error("the directory says {}", state.label())]
    Account {
        /// The DN that was bound.
        dn: Arc<str>,
        /// Why.
        state: AccountState,
        /// Whether the directory says so only to who knows the password.
        proven: bool,
    },
    /// The entry is held. The password was not bound: no server has caught up with the hold yet.
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
    /// The directory did not say yes or no.
    #[error("the directory cannot tell: {0}")]
    CannotTell(Trouble),
}

/// Why the directory cannot tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The connection could not be made or broke.
    #[error("{server}: {reason}")]
    Connection {
        /// The server's URL.
        server: Arc<str>,
        /// What happened, without secrets.
        reason: String,
    },
    /// An operation met `attempt_timeout`, or the decision `timeout`.
    #[error("no answer in time")]
    Timeout,
    /// Every bind connection stayed busy until the deadline.
    #[error("no free connection in time")]
    Busy,
    /// The service account's bind was refused.
    #[error("{server}: the service account was refused with result {code}")]
    ServiceBind {
        /// The server's URL.
        server: Arc<str>,
        /// The result code.
        code: u32,
    },
    /// A result code that is neither success nor invalidCredentials.
    #[error("{server}: result {code} to a {operation}")]
    Result {
        /// The server's URL.
        server: Arc<str>,
        /// The operation: `bind`, `search` or `read`.
        operation: &'static str,
        /// The result code.
        code: u32,
    },
    /// What it answered is no LDAP, is not an answer to what was asked, or is out of bounds.
    #[error("{server}: the answer cannot be read")]
    Malformed {
        /// The server's URL.
        server: Arc<str>,
    },
    /// It does not show the canary: it holds another directory, or shows usher less than it must.
    #[error("{server}: does not show the canary as configured")]
    Canary {
        /// The server's URL.
        server: Arc<str>,
    },
    /// No server has caught up in time with what has been shown of the entry.
    #[error("{server}: has not caught up with the last change of the entry, and no other server has")]
    Behind {
        /// The URL of the server that was asked last.
        server: Arc<str>,
    },
    /// It shows no mail host of an entry that has one, although the entry was not changed.
    #[error("{server}: hides the mail host of an entry that has one; see its access rules")]
    Hidden {
        /// The server's URL.
        server: Arc<str>,
    },
    /// `usher explain` asked for what only the user may read.
    #[error("there is no service account to read the entry with")]
    NoServiceAccount,
}

impl Trouble {
    /// The LDAP result code that the server gave, if it is what the trouble is about.
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

/// Whether the directory is there to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// A server is in use.
    There,
    /// None is, but the next question may find one well again.
    Returning,
    /// None is.
    Away,
}

/// An answer of the directory that is still to come.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = (Result<T, DirectoryError>, Trace)> + Send + 'a>>;

/// Whether this password was refused for the entry as it was just found: if so it is not sent again.
pub type RefusedBefore<'a> = &'a (dyn Fn(&Entry) -> bool + Send + Sync);

/// A directory. One implementation speaks LDAP; tests script another.
pub trait Directory: Send + Sync + 'static {
    /// Finds the entry and binds as it, within the configured timeout. The password is UTF-8, not
    /// empty and without NUL: the decision has seen to it. Where the entry is found before the bind,
    /// `refused_before` is asked about it. It is bound at a server that has caught up with `floor`.
    fn authenticate<'a>(
        &'a self,
        login: &'a Login,
        password: &'a Secret,
        refused_before: RefusedBefore<'a>,
        floor: &'a dyn Floor,
    ) -> Answer<'a, Identity>;

    /// Finds the entry without a password, for `usher explain`.
    fn look_up<'a>(&'a self, login: &'a Login) -> Answer<'a, Entry>;

    /// Whether it is there, as far as is known now.
    fn presence(&self) -> Presence {
        Presence::There
    }

    /// As [`Directory::presence`], after a short wait if what is known is not sure.
    fn settled(&self) -> Pin<Box<dyn Future<Output = Presence> + Send + '_>> {
        Box::pin(std::future::ready(self.presence()))
    }

    /// What [`Directory::look_up`] asks for this login, in words: the filter and base, or the DN.
    fn question(&self, login: &Login) -> String;
}
