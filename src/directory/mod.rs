//! The directory seam: authenticates users and finds their entries.
//!
//! Everything above holds an `Arc<dyn Directory>`, built by [`open`], and knows no protocol of a directory. A result that
//! is neither success nor a wrong password is [`DirectoryError::Unavailable`] and never a wrong password (promise 7),
//! unless the directory reports an account state: locked, or password expired. What not every directory can do is a
//! trait of its own: [`ChangeSource`], [`UserListing`], [`Diagnosis`], [`Probes`].

mod changes;
mod connection_fault;
mod diagnosis;
mod diagnostic;
mod entry;
mod error;
mod fault;
mod floor;
mod identity;
mod key;
pub(crate) mod ldap;
#[cfg(test)]
pub(crate) mod memory;
mod named;
mod networks;
mod result;
mod server_tls;
mod users;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::base::credential::{Credential, Login};
use crate::config;
use crate::telemetry::metrics::Metrics;

pub(crate) use changes::{Change, ChangeHandler, ChangeSource, Refresh, ReportedEntry};
pub(crate) use connection_fault::ConnectionFault;
pub(crate) use diagnosis::{Diagnosis, FollowedBy, LockoutPolicy, SampleLookup, ServerDiagnosis, UserCount};
pub(crate) use diagnostic::BindDiagnostic;
pub(crate) use entry::{Entry, EntryVersion};
pub(crate) use error::{DirectoryError, UnavailableCause};
pub(crate) use fault::EntryFault;
pub(crate) use floor::{Floor, Freshness, NoFloor};
pub(crate) use identity::{Authority, Identity, ProvenBy, UserActing};
pub(crate) use key::{EntryId, EntryKey, EntryName, EntryNames, Realm};
pub(crate) use named::{ListedServer, ResolvedName, SrvServer, SrvStanding};
pub(crate) use networks::Networks;
pub(crate) use result::ServerResult;
pub use server_tls::DirectoryTls;
pub(crate) use users::{ListedUser, UserListing};

/// The directory of these settings. Servers that require TLS and have no configuration in `tls` cannot be reached.
/// Connections are opened on demand.
#[must_use]
pub fn open(settings: &config::Directory, tls: DirectoryTls, metrics: Arc<Metrics>) -> Arc<dyn Directory> {
    Arc::new(ldap::Ldap::new(settings, tls, metrics))
}

/// Details of a directory request, for logs and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The URL of the server that was asked last, whether it answered or not.
    pub server: Option<Arc<str>>,
    /// The LDAP result code of its answer; `None` if it did not answer.
    pub code: Option<u32>,
    /// The server's text beside another result than success.
    pub message: Option<Arc<str>>,
    /// The DN of the entry that was found, or is bound.
    pub dn: Option<Arc<str>>,
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

impl Trace {
    /// Records the result of the last operation; `None`: there was no answer.
    pub(crate) fn record(&mut self, result: Option<&ServerResult>) {
        self.code = result.map(|result| result.code);
        self.message = result.and_then(|result| result.message.clone());
    }

    /// The last result, if there was an answer.
    #[must_use]
    pub fn result(&self) -> Option<ServerResult> {
        self.code.map(|code| ServerResult { code, message: self.message.clone() })
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

/// A pending result.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// A name that a user logs in with.
    Login,
    /// A mail address.
    Mail,
}

/// A directory. LDAP is one implementation; unit tests use another.
pub trait Directory: fmt::Debug + Send + Sync + 'static {
    /// Finds the entry and authenticates its user, within the configured timeout. The caller guarantees that a
    /// password is not empty and without NUL, and that a certificate is verified: it is only compared with the entry. If the entry is found before the password is sent, `refused_before`
    /// is asked about it. The password goes to a server that has caught up with `floor`.
    fn authenticate<'a>(
        &'a self,
        credential: &'a Credential,
        refused_before: RefusedBefore<'a>,
        floor: &'a dyn Floor,
    ) -> DirectoryFuture<'a, Identity>;

    /// Finds the entry of a name, without evidence.
    fn find<'a>(&'a self, name: &'a Login, kind: NameKind) -> DirectoryFuture<'a, Entry>;

    /// Finds the one entry that matches a filter, without evidence.
    fn find_by<'a>(&'a self, filter: &'a str) -> DirectoryFuture<'a, Entry>;

    /// Whether the entry with this DN matches a filter, as usher itself may see it.
    fn matches<'a>(&'a self, dn: &'a str, filter: &'a str) -> DirectoryFuture<'a, bool>;

    /// The availability as last observed.
    fn availability(&self) -> Availability;

    /// As [`Directory::availability`], after a short wait for probes of suspect servers.
    fn settled_availability(&self) -> BoxFuture<'_, Availability> {
        Box::pin(std::future::ready(self.availability()))
    }

    /// Change notification.
    fn changes(&self) -> Option<&dyn ChangeSource> {
        None
    }

    /// Listing of all users.
    fn users(&self) -> Option<&dyn UserListing> {
        None
    }

    /// What is known of the names in DNS that stand for servers.
    fn resolved(&self) -> Vec<ResolvedName> {
        Vec::new()
    }

    /// Begins with what was known of names that are the same, by the directory of the configuration before.
    fn begin_with(&self, _known: &[ResolvedName]) {}

    /// Diagnosis.
    fn diagnose(&self) -> Option<&dyn Diagnosis> {
        None
    }

    /// Background probes.
    fn probes(&self) -> Option<&dyn Probes> {
        None
    }
}

/// A directory whose servers are probed in the background.
pub trait Probes: Send + Sync {
    /// Starts the probes that are due; called several times a second.
    fn run_due(&self);

    /// Probes the servers, for readiness, until one succeeds; the failure of the last one, if none does.
    fn probe(&self) -> BoxFuture<'_, Result<(), UnavailableCause>>;

    /// Sets the gauges of the servers at a scrape.
    fn update_gauges(&self);
}
