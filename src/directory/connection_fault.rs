//! Why a connection to a directory server could not be made, or broke.

use std::fmt::Display;
use std::io;

use super::result::ServerResult;
use crate::tls::HandshakeError;

/// Bytes of a text from the system, or from a library.
const MAX_TEXT: usize = 300;

/// Why a connection could not be made, or broke. Texts are those of the system: bounded, without control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionFault {
    /// The host name cannot be resolved, or is not a host name.
    #[error("{0}")]
    Resolve(String),
    /// The host name has no address.
    #[error("host name has no address")]
    NoAddress,
    /// No server listens at this port.
    #[error("{0}")]
    Refused(String),
    /// There is no route to the server.
    #[error("{0}")]
    Unreachable(String),
    /// TLS failed.
    #[error("{0}")]
    Tls(HandshakeError),
    /// The settings require TLS without a configuration for it.
    #[error("TLS required but not configured")]
    NoTls,
    /// The server refused StartTLS with this result.
    #[error("StartTLS refused with {0}")]
    StartTls(ServerResult),
    /// The server closed the connection with this result.
    #[error("server closed the connection with {0}")]
    Notice(ServerResult),
    /// The server closed the connection.
    #[error("connection closed by the server")]
    Closed,
    /// Another error of the system.
    #[error("{0}")]
    Io(String),
    /// The file with the service account's password cannot be used.
    #[error("{file}: {reason}")]
    PasswordFile {
        /// Its path.
        file: String,
        /// Why.
        reason: String,
    },
    /// A bind without DN or password is anonymous, whatever the user's password (RFC 4513 section 5.1.2).
    #[error("bind without DN or password refused")]
    AnonymousBind,
    /// The password is empty or contains NUL.
    #[error("this password cannot be sent in a simple bind")]
    UnsendablePassword,
    /// The filter cannot be sent.
    #[error("the filter cannot be parsed")]
    InvalidFilter,
}

impl ConnectionFault {
    /// The name of a server cannot be resolved.
    pub(crate) fn resolve(error: &dyn Display) -> Self {
        Self::Resolve(bounded(error))
    }

    /// The name of a server is not a host name.
    pub(crate) fn invalid_name(error: &dyn Display) -> Self {
        Self::Resolve(bounded(error))
    }

    /// An error of connecting.
    pub(crate) fn connecting(error: &io::Error) -> Self {
        let text = bounded(error);
        let kind = error.kind();
        if kind == io::ErrorKind::ConnectionRefused {
            Self::Refused(text)
        } else if matches!(kind, io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) {
            Self::Unreachable(text)
        } else {
            Self::Io(text)
        }
    }

    /// An error of an open connection, or of its TLS handshake.
    pub(crate) fn open(error: &io::Error) -> Self {
        HandshakeError::find(error).map_or_else(|| Self::other(&crate::tls::describe(error)), Self::Tls)
    }

    /// An error that nothing more is known about.
    pub(crate) fn other(error: &dyn Display) -> Self {
        Self::Io(bounded(error))
    }
}

fn bounded(text: &dyn Display) -> String {
    text.to_string().chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}
