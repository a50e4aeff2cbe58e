//! Why a directory did not authenticate a user, or did not find an entry.

use std::sync::Arc;

use super::connection_fault::ConnectionFault;
use super::entry::EntryVersion;
use super::fault::EntryFault;
use super::key::EntryKey;
use super::result::ServerResult;
use crate::outcome::{AccountState, Proof};
use crate::telemetry::labels::DirectoryOperation;

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
    /// The entry does not list the client's certificate.
    #[error("the entry does not list the certificate")]
    WrongCertificate {
        /// The entry's DN.
        dn: Arc<str>,
    },
    /// The certificate's entry is not the one that the client asks for (SASL authzid).
    #[error("the certificate is another user's")]
    OtherUser {
        /// The DN of the certificate's entry.
        dn: Arc<str>,
    },
    /// The entry does not match `password_filter`: the password was not sent.
    #[error("the entry does not match password_filter")]
    PasswordNotAllowed {
        /// The entry's DN.
        dn: Arc<str>,
        /// Its key.
        key: EntryKey,
    },
    /// No entry matches.
    #[error("no entry matches")]
    NoEntry,
    /// The entry has no password that a bind could be compared with (results 16 and 48).
    #[error("the entry has no password to compare with")]
    NoPassword {
        /// The DN that was bound.
        dn: Arc<str>,
    },
    /// More than one entry matches.
    #[error("several entries match{}", listed(.dns))]
    SeveralEntries {
        /// The DNs that the server returned: one or two, though there may be more.
        dns: Vec<Arc<str>>,
        /// Whether the password was accepted before.
        proof: Proof,
    },
    /// The entry cannot be used, and was not bound, or not read after the bind.
    #[error("the entry cannot be used: {fault}")]
    UnusableEntry {
        /// The entry's DN.
        dn: Arc<str>,
        /// Why.
        fault: Box<EntryFault>,
        /// Whether the password was accepted before.
        proof: Proof,
    },
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
    /// DNS has named no server yet, or says that no server is there.
    #[error("{name}: {fault}")]
    NoServer {
        /// The name of the records, as configured.
        name: Arc<str>,
        /// Why.
        fault: Arc<str>,
    },
    /// Every bind connection stayed busy until the deadline.
    #[error("all connections are busy")]
    Busy,
    /// The service account's bind was refused.
    #[error("{server}: service account refused with {result}")]
    ServiceBind {
        /// The server's URL.
        server: Arc<str>,
        /// The result.
        result: ServerResult,
    },
    /// A result code that is neither success nor invalidCredentials.
    #[error("{server}: {} failed with {result}", .operation.label())]
    Result {
        /// The server's URL.
        server: Arc<str>,
        /// The operation.
        operation: DirectoryOperation,
        /// The result.
        result: ServerResult,
    },
    /// The reply is not LDAP, does not match the request, or exceeds a limit.
    #[error("{server}: malformed reply")]
    Malformed {
        /// The server's URL.
        server: Arc<str>,
    },
    /// The server does not return the canary: wrong data, or insufficient access rights.
    #[error("{server}: does not return the canary as configured: {fault}")]
    Canary {
        /// The server's URL.
        server: Arc<str>,
        /// What is shown in place of what is configured.
        fault: Arc<str>,
        /// Whether an attribute has no value, and the entry is as configured otherwise.
        lacks: bool,
    },
    /// No server caught up in time with a known change of the entry.
    #[error("{server}: lags behind the last change of the entry, and so do all other servers")]
    Behind {
        /// The URL of the server that was asked last.
        server: Arc<str>,
    },
    /// The server returns no mail host, or no networks, for an entry that has them and was not modified.
    #[error("{server}: returns no mail host or no networks for an entry that has them; check its access rules")]
    Hidden {
        /// The server's URL.
        server: Arc<str>,
    },
    /// The brake of another node of the fleet keeps the user at a backend that this node does not know.
    #[error("the brake of another node keeps this user at a backend that is not known here")]
    HeldElsewhere,
    /// `usher explain` requested attributes that only the user may read.
    #[error("no service account to read the entry with")]
    NoServiceAccount,
}

impl UnavailableCause {
    /// The LDAP result code that caused the failure, if any.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        self.result().map(|result| result.code)
    }

    /// The result that caused the failure, if any.
    #[must_use]
    pub const fn result(&self) -> Option<&ServerResult> {
        match self {
            Self::ServiceBind { result, .. } | Self::Result { result, .. } => Some(result),
            Self::Connection { .. }
            | Self::Timeout
            | Self::Busy
            | Self::NoServer { .. }
            | Self::Malformed { .. }
            | Self::Canary { .. }
            | Self::Behind { .. }
            | Self::Hidden { .. }
            | Self::HeldElsewhere
            | Self::NoServiceAccount => None,
        }
    }
}

/// `: DN and DN`, for a message.
fn listed(dns: &[Arc<str>]) -> String {
    if dns.is_empty() { String::new() } else { format!(": {}", dns.join(" and ")) }
}
