//! Why a login at a backend failed: what it counts as, and what it means for the client.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;

use crate::outcome::{BackendReply, Refusal};
use crate::proto::BackFault;
use crate::telemetry::labels::{BackendResult, ProbeResult};
use crate::tls::HandshakeError;

/// Why a login at a backend failed.
#[derive(Debug, Error)]
pub(crate) enum BackendError {
    /// It does not serve this protocol.
    #[error("the backend does not serve this protocol")]
    NotServed,
    /// Its name has no address.
    #[error("host name cannot be resolved: {source}")]
    Resolve {
        /// The resolver's reason.
        source: Arc<io::Error>,
    },
    /// Its address is one of usher's own listeners.
    #[error("address {address} is one of usher's own listeners")]
    Loop {
        /// The address.
        address: SocketAddr,
    },
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// No configured source address has the family of the address.
    #[error("`source` has no address of the family of {address}: add one")]
    NoSource {
        /// The address.
        address: SocketAddr,
    },
    /// An address that connections are to come from cannot be used.
    #[error("cannot connect from {from}: {source}; `source` must name addresses of this machine")]
    Source {
        /// The address.
        from: IpAddr,
        /// The reason.
        source: io::Error,
    },
    /// All of its addresses are marked down.
    #[error("marked down: {reason}")]
    Down {
        /// The last fault of the first of them.
        reason: Arc<str>,
    },
    /// It answers no login, and enough of them wait for it.
    #[error("the backend answers no login: {reason}")]
    Refusing {
        /// How it was first.
        reason: Arc<str>,
    },
    /// `logins_in_flight` logins are in progress.
    #[error("too many logins in progress")]
    Full,
    /// Slow start after an outage limits the rate of logins.
    #[error("slow start after an outage: too many logins at once")]
    SlowStart,
    /// The handshake failed: a certificate, a name, a version.
    #[error("TLS: {reason}")]
    Tls {
        /// The reason.
        reason: HandshakeError,
    },
    /// The connection ended during the handshake, with no word of TLS: as of a server that is stopping.
    #[error("TLS: {reason}")]
    LostInTls {
        /// The reason.
        reason: String,
    },
    /// The connection broke during the login.
    #[error("connection lost: {source}")]
    Broken {
        /// The reason.
        source: io::Error,
    },
    /// It closed the connection without an answer.
    #[error("connection closed without a reply")]
    Closed,
    /// Its answer did not come in time.
    #[error("{awaited} within {timeout:?}{}", DelayHint(*.rejected))]
    Timeout {
        /// How long it was waited for: the backend's `timeout`, or an inspection's.
        timeout: Duration,
        /// What did not come.
        awaited: Awaited,
        /// The login that the same server has rejected not long before, if that may be the cause.
        rejected: Option<Rejected>,
    },
    /// Its reply makes a login impossible.
    #[error("{0}")]
    Fault(BackFault),
    /// There is no password to log in with: the user has a token or a certificate, and the backend gets neither the
    /// token nor a login by a service account.
    #[error("no login without a password: the backend has no `service`, and gets no token")]
    NoServiceLogin,
    /// The message with a token is longer than a backend reads.
    #[error("the message with the token has {0} bytes in base64, and servers read no more than {max}", max = super::LONGEST_TOKEN)]
    TokenTooLong(usize),
    /// It refused the login.
    #[error("login rejected")]
    Refused(BackendReply),
}

/// What did not come within a backend's `timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Awaited {
    /// An address of its name, or a connection.
    Connection,
    /// The end of the TLS handshake.
    Tls,
    /// The first byte of the greeting.
    Greeting,
    /// The rest of the greeting.
    RestOfGreeting,
    /// The reply to a command before the login.
    Reply,
    /// The reply to the login.
    Login,
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "no connection",
            Self::Tls => "no TLS handshake",
            Self::Greeting => "no greeting",
            Self::RestOfGreeting => "only the beginning of a greeting",
            Self::Reply => "no reply",
            Self::Login => "no reply to the login",
        })
    }
}

/// A login that a server has rejected before another one got no reply in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// How long ago.
    pub ago: Duration,
    /// Whether usher forwards the client's address to that server.
    pub forwarded: bool,
}

/// The likely cause of a time-out after a rejected login: a server that delays its replies to the address which the
/// login came from, for minutes, and takes usher for the client of all users.
struct DelayHint(Option<Rejected>);

impl fmt::Display for DelayHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Rejected { ago, forwarded }) = self.0 else { return Ok(()) };
        let whose = match forwarded {
            false => "usher's address, and with `forward: none` that is every user's",
            true => "the client's address, or to usher's if usher is not in its trusted networks",
        };
        write!(
            f,
            "; the server rejected a login {} s before, and may since delay its replies to {whose} (Dovecot's auth penalty)",
            ago.as_secs()
        )
    }
}

impl BackendError {
    /// What it counts as. A rejection after a bind counts as `backend_rejected`; after a cached decision the
    /// session first binds again.
    #[must_use]
    pub(crate) const fn result(&self) -> BackendResult {
        match self {
            Self::NotServed
            | Self::Resolve { .. }
            | Self::Loop { .. }
            | Self::Connect { .. }
            | Self::NoSource { .. }
            | Self::Source { .. }
            | Self::LostInTls { .. }
            | Self::Broken { .. }
            | Self::Closed
            | Self::Fault(_) => BackendResult::Unreachable,
            Self::NoServiceLogin | Self::TokenTooLong(_) => BackendResult::Unsent,
            Self::Down { .. } => BackendResult::Down,
            Self::Refusing { .. } => BackendResult::Refusing,
            Self::Full => BackendResult::InFlight,
            Self::SlowStart => BackendResult::SlowStart,
            Self::Tls { .. } => BackendResult::Tls,
            Self::Timeout { .. } => BackendResult::Timeout,
            Self::Refused(_) => BackendResult::Rejected,
        }
    }

    /// What it counts as if a probe fails with it. A probe is no login: nothing limits it.
    pub(super) const fn probe_result(&self) -> ProbeResult {
        match self.result() {
            BackendResult::Tls => ProbeResult::Tls,
            BackendResult::Timeout => ProbeResult::Timeout,
            BackendResult::Ok
            | BackendResult::Refused
            | BackendResult::Rejected
            | BackendResult::Unreachable
            | BackendResult::Down
            | BackendResult::Refusing
            | BackendResult::InFlight
            | BackendResult::SlowStart
            | BackendResult::Unsent
            | BackendResult::Draining => ProbeResult::Unreachable,
        }
    }

    /// What it means for the client. A rejection becomes `BackendRejected` (see also `Backend::rejected`): without a
    /// bind the login does not come this far.
    #[must_use]
    pub(crate) fn refusal(&self, pass_refusals: bool) -> Refusal {
        match self {
            Self::NotServed => Refusal::ProtocolNotServed,
            Self::NoServiceLogin => Refusal::NoServiceLogin,
            Self::TokenTooLong(_) => Refusal::TokenTooLong,
            Self::Resolve { .. }
            | Self::Loop { .. }
            | Self::Connect { .. }
            | Self::NoSource { .. }
            | Self::Source { .. }
            | Self::Down { .. }
            | Self::LostInTls { .. }
            | Self::Broken { .. }
            | Self::Closed
            | Self::Fault(BackFault::Bye) => Refusal::BackendUnreachable,
            Self::Refusing { .. } => Refusal::BackendRefusesAll,
            Self::Full | Self::SlowStart => Refusal::BackendBusy,
            Self::Tls { .. } | Self::Fault(BackFault::NoStartTls | BackFault::Injection) => Refusal::BackendTls,
            Self::Timeout { .. } => Refusal::BackendTimeout,
            Self::Fault(
                BackFault::Preauth
                | BackFault::NoMechanism
                | BackFault::ForwardingRefused
                | BackFault::Bad
                | BackFault::Referral
                | BackFault::TooLarge
                | BackFault::ProtocolViolation,
            ) => Refusal::BackendFault,
            Self::Refused(words) => Refusal::BackendRejected(pass_refusals.then(|| words.clone())),
        }
    }

    /// Whether the backend has ended the connection.
    pub(super) const fn is_closed(&self) -> bool {
        matches!(self, Self::Closed | Self::LostInTls { .. } | Self::Broken { .. } | Self::Fault(BackFault::Bye))
    }

    /// Whether the cause is local (no descriptor, port or memory left, or an unusable source address): that
    /// says nothing about the server.
    pub(super) fn is_local_fault(&self) -> bool {
        if matches!(self, Self::NoSource { .. } | Self::Source { .. }) {
            return true;
        }
        let Self::Connect { source, .. } = self else { return false };
        let errno = source.raw_os_error().map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::NOBUFS | Errno::NOMEM))
    }

    /// Whether an error before the login was sent is a fault of the server, and not of what it was asked. An
    /// error after the login was sent never is: it may concern this user only.
    pub(super) const fn is_server_fault(&self) -> bool {
        !matches!(self, Self::Fault(BackFault::NoMechanism))
    }
}
