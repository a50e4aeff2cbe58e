//! Why a login did not happen, and whose fault it is: the words that every room shares.
//!
//! A [`Refusal`] is turned into protocol words in one match per protocol (the front half in
//! `proto/`), into a metric label by [`Refusal::label`] and into a log level by its [`Side`].
//! No room invents its own reasons, and no match over a refusal has a wildcard arm.

use std::fmt;

/// Whose mistake or trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client: a wrong password, nonsense on the wire. Logged at debug.
    Client,
    /// The directory: unreachable, unsure, or an entry that cannot be used. Logged at warn.
    Directory,
    /// A mail server behind usher. Logged at warn.
    Backend,
    /// usher itself. Logged at error.
    Usher,
}

/// What a backend said when it refused a login that the directory had accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendWords {
    /// The response code without brackets, such as `LIMIT`; empty when there was none.
    pub code: String,
    /// The human-readable text, without CR, LF or NUL; may be empty.
    pub text: String,
}

/// Why a client does not get in. The log and the metrics have the true reason; what the client is
/// told is the protocol's matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The directory answered invalidCredentials (49) for an entry, or had done so for the same
    /// password within `cache.negative_ttl`.
    WrongPassword,
    /// The directory has no such entry.
    UnknownUser,
    /// The password was empty: never sent to a directory (RFC 4513 section 5.1.2).
    EmptyPassword,
    /// The name was empty, too long, not UTF-8, or held NUL or another control character.
    UnusableName,
    /// The password was not UTF-8 or held NUL: no LDAP simple bind can carry it.
    UnusablePassword,
    /// The client asked to act as somebody else (SASL authzid).
    ForeignAuthzid,
    /// The directory did not say yes or no: unreachable, timed out, busy, or a result other than
    /// success and invalidCredentials.
    DirectoryUnavailable,
    /// More than one entry matches the name.
    SeveralEntries,
    /// The entry has no mailHost and no default is configured.
    NoMailHost,
    /// The entry has several mailHost values that name different backends.
    SeveralMailHosts,
    /// The entry's mailHost names no configured backend.
    UnknownMailHost,
    /// `login_attribute` is configured and the entry has no value, or several.
    NoBackendLogin,
    /// The user's backend does not serve this protocol.
    ProtocolNotServed,
    /// The backend could not be reached: refused, reset, no such name, closed with BYE.
    BackendUnreachable,
    /// The backend's TLS handshake, certificate or name is not as configured.
    BackendTls,
    /// The backend did not answer in time.
    BackendTimeout,
    /// The backend broke the protocol: PREAUTH, BAD, endless lines, an answer out of turn.
    BackendFault,
    /// The backend has as many logins under way as it may, or is coming back from an outage.
    BackendBusy,
    /// The directory accepted the password, the backend did not: the servers disagree.
    /// Carries the backend's words if they may be passed on.
    Disagrees(Option<BackendWords>),
    /// Clear-text login before TLS.
    TlsRequired,
    /// A limit was met: too many sessions, attempts or flights.
    Limit,
    /// The login did not finish within its deadline.
    Deadline,
    /// usher is shutting down.
    Draining,
    /// A defect of usher.
    Internal,
}

impl Refusal {
    /// The metric label and the log's `reason`: a closed set of words.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::WrongPassword => "wrong_password",
            Self::UnknownUser => "unknown_user",
            Self::EmptyPassword => "empty_password",
            Self::UnusableName => "unusable_name",
            Self::UnusablePassword => "unusable_password",
            Self::ForeignAuthzid => "foreign_authzid",
            Self::DirectoryUnavailable => "directory_unavailable",
            Self::SeveralEntries => "several_entries",
            Self::NoMailHost => "no_mail_host",
            Self::SeveralMailHosts => "several_mail_hosts",
            Self::UnknownMailHost => "unknown_mail_host",
            Self::NoBackendLogin => "no_backend_login",
            Self::ProtocolNotServed => "protocol_not_served",
            Self::BackendUnreachable => "backend_unreachable",
            Self::BackendTls => "backend_tls",
            Self::BackendTimeout => "backend_timeout",
            Self::BackendFault => "backend_fault",
            Self::BackendBusy => "backend_busy",
            Self::Disagrees(_) => "disagrees",
            Self::TlsRequired => "tls_required",
            Self::Limit => "limit",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }

    /// Every label that [`Refusal::label`] can return, for metrics that exist from the start.
    pub const LABELS: [&'static str; 24] = [
        "wrong_password",
        "unknown_user",
        "empty_password",
        "unusable_name",
        "unusable_password",
        "foreign_authzid",
        "directory_unavailable",
        "several_entries",
        "no_mail_host",
        "several_mail_hosts",
        "unknown_mail_host",
        "no_backend_login",
        "protocol_not_served",
        "backend_unreachable",
        "backend_tls",
        "backend_timeout",
        "backend_fault",
        "backend_busy",
        "disagrees",
        "tls_required",
        "limit",
        "deadline",
        "draining",
        "internal",
    ];

    /// Whose fault it is.
    #[must_use]
    pub const fn side(&self) -> Side {
        match self {
            Self::WrongPassword
            | Self::UnknownUser
            | Self::EmptyPassword
            | Self::UnusableName
            | Self::UnusablePassword
            | Self::ForeignAuthzid
            | Self::TlsRequired
            | Self::Limit => Side::Client,
            Self::DirectoryUnavailable
            | Self::SeveralEntries
            | Self::NoMailHost
            | Self::SeveralMailHosts
            | Self::UnknownMailHost
            | Self::NoBackendLogin
            | Self::ProtocolNotServed => Side::Directory,
            Self::BackendUnreachable
            | Self::BackendTls
            | Self::BackendTimeout
            | Self::BackendFault
            | Self::BackendBusy
            | Self::Disagrees(_)
            | Self::Deadline => Side::Backend,
            Self::Draining | Self::Internal => Side::Usher,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
