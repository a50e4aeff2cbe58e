//! The directory: who somebody is, proven by a bind.
//!
//! [`Identity`] can only be made here, from a bind that the directory answered with success, so no
//! path through usher can relay a client who was not bound (promise 1). Everything that is neither
//! success nor invalidCredentials is "cannot tell" and never "wrong" (promise 7), unless the server
//! says more: that the account is locked, or its password too old.
//! RFC 4511 (protocol), 4513 (authentication), 4514 (DN), 4515 (filter).

mod connection;
mod health;
pub mod ldap;
mod look;
mod marks;
mod policy;
mod pool;
#[cfg(test)]
mod scripted;
mod server;
mod service;
pub mod template;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::outcome::AccountState;
use crate::secret::Secret;

pub use ldap::Ldap;
pub use marks::Marks;
pub use policy::Said;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use policy::trial as bind_answer_trial;

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
    entry: Entry,
}

impl Identity {
    /// The entry, as read together with the bind.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// A person for the tests of rooms above, which have no directory to bind to.
    #[cfg(test)]
    pub(crate) fn for_tests(dn: &str, mail_hosts: &[&str]) -> Self {
        let mail_hosts = mail_hosts.iter().map(|host| (*host).to_owned()).collect();
        Self { entry: Entry { mail_hosts, ..Entry::named(dn.into()) } }
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
    /// What it shows of a lock and of its password's age.
    pub marks: Marks,
}

impl Entry {
    /// An entry of which nothing is known yet.
    pub(crate) fn named(dn: Arc<str>) -> Self {
        let (mail_hosts, logins, allowed) = Default::default();
        Self { dn, mail_hosts, logins, allowed, in_group: true, marks: Marks::default() }
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
        seen: Option<Marks>,
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
    /// The client library panicked or returned what cannot be read.
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
    /// `refused_before` is asked about it.
    fn authenticate<'a>(
        &'a self,
        login: &'a Login,
        password: &'a Secret,
        refused_before: RefusedBefore<'a>,
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
