//! Errors of connections and requests.

use std::io;
use std::sync::Arc;

use ldap3::LdapError;

use crate::directory::ldap::frames::{StreamEnd, Violation};
use crate::directory::{ConnectionFault, ServerResult, UnavailableCause};

/// An error of a connection. Each one ends its use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// It could not be opened, or it broke.
    #[error(transparent)]
    Broken(#[from] ConnectionFault),
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// No reply in the rest of the login's time, which was shorter than a reply may take.
    #[error("timed out: too little time was left")]
    CutShort,
    /// The message is not a reply to the request.
    #[error("malformed reply")]
    Malformed,
    /// The message violates the protocol, or a limit.
    #[error("malformed reply: {0}")]
    Violation(#[from] Violation),
}

impl ConnectionError {
    /// An error of an open connection.
    pub(crate) fn io(error: &io::Error) -> Self {
        Self::Broken(ConnectionFault::open(error))
    }

    /// The server has closed the connection.
    pub(crate) const fn closed() -> Self {
        Self::Broken(ConnectionFault::Closed)
    }

    /// The same as the answer to a bind with this password, whose text must not repeat it.
    pub(crate) fn answering(self, password: &[u8]) -> Self {
        if let Self::Broken(ConnectionFault::Notice(ServerResult { code, message })) = self {
            let text = message.as_deref().unwrap_or_default();
            return Self::Broken(ConnectionFault::Notice(ServerResult::answering(password, code, text)));
        }
        self
    }

    /// The reason why this server's reply is missing.
    pub(crate) fn unavailable(&self, server: &Arc<str>) -> UnavailableCause {
        let server = Arc::clone(server);
        match self {
            Self::Broken(fault) => UnavailableCause::Connection { server, fault: fault.clone() },
            Self::Timeout | Self::CutShort => UnavailableCause::Timeout,
            Self::Malformed | Self::Violation(_) => UnavailableCause::Malformed { server },
        }
    }
}

/// The end of the stream.
impl From<StreamEnd> for ConnectionError {
    fn from(end: StreamEnd) -> Self {
        match end {
            StreamEnd::Violation(violation) => violation.into(),
            StreamEnd::Notice(result) => Self::Broken(ConnectionFault::Notice(result)),
        }
    }
}

/// An error of ldap3.
impl From<&LdapError> for ConnectionError {
    fn from(error: &LdapError) -> Self {
        let LdapError::Io { source } = error else {
            // `Display` only: `Debug` may contain requests.
            return Self::Broken(ConnectionFault::other(error));
        };
        // ldap3 reports BER that it cannot parse without an error of the system.
        if source.kind() == io::ErrorKind::Other { Self::Malformed } else { Self::io(source) }
    }
}

/// Why a server gave no verdict.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The request was not sent: no connection, or no service bind. Another server may be asked safely.
    NotSent(UnavailableCause),
    /// The request may have been sent, and no conclusive reply came.
    Indeterminate(UnavailableCause),
    /// A bind was answered without a verdict. The guess may have been counted, so no other server gets it: one
    /// guess is one answered bind.
    Answered(UnavailableCause),
}

impl RequestError {
    /// The same, after an earlier attempt that may have reached the directory.
    pub(crate) fn after_sending(self) -> Self {
        match self {
            Self::NotSent(cause) | Self::Indeterminate(cause) => Self::Indeterminate(cause),
            Self::Answered(cause) => Self::Answered(cause),
        }
    }

    pub(crate) fn cause(self) -> UnavailableCause {
        match self {
            Self::NotSent(cause) | Self::Indeterminate(cause) | Self::Answered(cause) => cause,
        }
    }
}
