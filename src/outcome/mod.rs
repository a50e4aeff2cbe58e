//! Why a login was refused and which side caused it: the reasons shared by all modules.
//!
//! A [`Refusal`] is turned into a reply in one match per protocol (the front half in `proto/`), into a metric
//! label by [`Refusal::label`] and into a log level by its [`Side`]. No module defines reasons of its own, and
//! no match over a refusal has a wildcard arm.

use std::fmt;

/// The side that caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client: a wrong password, a protocol error. Logged at debug.
    Client,
    /// The directory: unreachable, undecided, or an unusable entry. Logged at warn.
    Directory,
    /// A mail server behind usher. Logged at warn.
    Backend,
    /// usher itself. Logged at error.
    Usher,
}

/// The reply of a backend that refused a login that the directory had accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendReply {
    /// The response code without brackets, such as `LIMIT`, or the reply code of a protocol that has
    /// numbers, such as `454 4.7.0`; empty when there was none.
    pub code: String,
    /// The human-readable text, without CR, LF or NUL; may be empty.
    pub text: String,
    /// Whether it reports a temporary failure of the server, for every user.
    pub unavailable: bool,
}

/// The state of an account that prevents a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccountState {
    /// The password is too old.
    PasswordExpired,
    /// The password was set by an administrator and has to be changed first.
    PasswordMustChange,
    /// Locked after too many wrong passwords, temporarily or until an administrator unlocks it.
    Locked,
    /// Disabled by an administrator.
    Disabled,
    /// The account has expired.
    AccountExpired,
    /// Outside the hours in which the user may log in.
    OutsideLogonHours,
    /// Not allowed from this workstation.
    WrongWorkstation,
}

impl AccountState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::PasswordExpired,
        Self::PasswordMustChange,
        Self::Locked,
        Self::Disabled,
        Self::AccountExpired,
        Self::OutsideLogonHours,
        Self::WrongWorkstation,
    ];

    /// The metric label and the log's `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::PasswordExpired => "password_expired",
            Self::PasswordMustChange => "password_must_change",
            Self::Locked => "account_locked",
            Self::Disabled => "account_disabled",
            Self::AccountExpired => "account_expired",
            Self::OutsideLogonHours => "outside_logon_hours",
            Self::WrongWorkstation => "wrong_workstation",
        }
    }
}

/// Why a client is refused. Log and metrics have the true reason; the protocol decides what the client learns.
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
    InvalidUsername,
    /// The password was not UTF-8 or held NUL: no LDAP simple bind can carry it.
    InvalidPassword,
    /// The client asked to act as another user (SASL authzid).
    AuthzidNotAllowed,
    /// The account must not log in, whatever the password.
    Account {
        /// Why.
        state: AccountState,
        /// Whether the directory reveals this only after a correct password. If not, a client must never learn
        /// it: an attacker would learn it too.
        proven: bool,
    },
    /// The password is right, and this user may not use this protocol, or not use mail at all.
    NotAllowed,
    /// The directory did not decide: unreachable, timed out, busy, or a result other than success and
    /// invalidCredentials.
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
    /// The backend broke the protocol: PREAUTH, BAD, endless lines, an unexpected reply.
    BackendFault,
    /// The backend has its maximum of logins in progress, or is in slow start after an outage.
    BackendBusy,
    /// An administrator has taken the backend out of service for a while.
    BackendDraining,
    /// The directory accepted the password, the backend rejected it. Carries the backend's reply if it may be
    /// passed on.
    BackendRejected(Option<BackendReply>),
    /// Clear-text login before TLS.
    TlsRequired,
    /// A limit was reached: too many sessions, attempts or flights.
    Limit,
    /// The login did not finish within its deadline.
    Deadline,
    /// The directory holds the account: no login while its mail is moved.
    Hold,
    /// An administrator ended the session before its client was sent OK.
    Kicked,
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
            Self::InvalidUsername => "invalid_username",
            Self::InvalidPassword => "unusable_password",
            Self::AuthzidNotAllowed => "authzid_not_allowed",
            Self::Account { state, .. } => state.label(),
            Self::NotAllowed => "not_allowed",
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
            Self::BackendDraining => "backend_draining",
            Self::BackendRejected(_) => "backend_rejected",
            Self::TlsRequired => "tls_required",
            Self::Limit => "limit",
            Self::Deadline => "deadline",
            Self::Hold => "hold",
            Self::Kicked => "kicked",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }

    /// Every label that [`Refusal::label`] can return, for metrics that exist from the start.
    pub const LABELS: [&'static str; 35] = [
        "wrong_password",
        "unknown_user",
        "empty_password",
        "invalid_username",
        "unusable_password",
        "authzid_not_allowed",
        "password_expired",
        "password_must_change",
        "account_locked",
        "account_disabled",
        "account_expired",
        "outside_logon_hours",
        "wrong_workstation",
        "not_allowed",
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
        "backend_draining",
        "backend_rejected",
        "tls_required",
        "limit",
        "deadline",
        "hold",
        "kicked",
        "draining",
        "internal",
    ];

    /// What the client may learn: the state of an account only with `reveal` (`directory.reveal_account_state`)
    /// and only after a correct password. All others get the reply to a wrong password. So does the owner of a
    /// locked account: directories report the lock before they check the password, so an attacker would learn
    /// it.
    #[must_use]
    pub const fn disclosed(&self, reveal: bool) -> &Self {
        static PLAIN: Refusal = Refusal::WrongPassword;
        if let Self::Account { state, proven } = self
            && (matches!(state, AccountState::Locked) || !reveal || !*proven)
        {
            return &PLAIN;
        }
        self
    }

    /// Whether the client's text names the session, so that a user's screenshot finds the line in the log.
    /// Never in the reply to a wrong name or password, which is the same for all.
    #[must_use]
    pub const fn names_session(&self) -> bool {
        match self {
            Self::WrongPassword
            | Self::UnknownUser
            | Self::EmptyPassword
            | Self::InvalidUsername
            | Self::InvalidPassword
            | Self::AuthzidNotAllowed
            | Self::TlsRequired => false,
            Self::Account { state, .. } => !matches!(state, AccountState::Locked),
            Self::Hold
            | Self::NotAllowed
            | Self::DirectoryUnavailable
            | Self::SeveralEntries
            | Self::NoMailHost
            | Self::SeveralMailHosts
            | Self::UnknownMailHost
            | Self::NoBackendLogin
            | Self::ProtocolNotServed
            | Self::BackendUnreachable
            | Self::BackendTls
            | Self::BackendTimeout
            | Self::BackendFault
            | Self::BackendBusy
            | Self::BackendDraining
            | Self::BackendRejected(_)
            | Self::Limit
            | Self::Deadline
            | Self::Kicked
            | Self::Draining
            | Self::Internal => true,
        }
    }

    /// The side that caused it.
    #[must_use]
    pub const fn side(&self) -> Side {
        match self {
            Self::WrongPassword
            | Self::UnknownUser
            | Self::EmptyPassword
            | Self::InvalidUsername
            | Self::InvalidPassword
            | Self::AuthzidNotAllowed
            | Self::Account { .. }
            | Self::NotAllowed
            | Self::TlsRequired
            | Self::Limit
            | Self::Kicked => Side::Client,
            Self::DirectoryUnavailable
            | Self::SeveralEntries
            | Self::NoMailHost
            | Self::SeveralMailHosts
            | Self::UnknownMailHost
            | Self::NoBackendLogin
            | Self::Hold
            | Self::ProtocolNotServed => Side::Directory,
            Self::BackendUnreachable
            | Self::BackendTls
            | Self::BackendTimeout
            | Self::BackendFault
            | Self::BackendBusy
            | Self::BackendDraining
            | Self::BackendRejected(_)
            | Self::Deadline => Side::Backend,
            Self::Draining | Self::Internal => Side::Usher,
        }
    }

    /// Whether the password was right and the user may not log in, or leads to no backend. It counts as a
    /// failed login of the connection: a client that repeats it costs a decision each time.
    #[must_use]
    pub const fn is_without_route(&self) -> bool {
        match self {
            Self::NotAllowed
            | Self::NoMailHost
            | Self::SeveralMailHosts
            | Self::UnknownMailHost
            | Self::NoBackendLogin
            | Self::ProtocolNotServed => true,
            Self::WrongPassword
            | Self::UnknownUser
            | Self::EmptyPassword
            | Self::InvalidUsername
            | Self::InvalidPassword
            | Self::AuthzidNotAllowed
            | Self::Account { .. }
            | Self::DirectoryUnavailable
            | Self::SeveralEntries
            | Self::BackendUnreachable
            | Self::BackendTls
            | Self::BackendTimeout
            | Self::BackendFault
            | Self::BackendBusy
            | Self::BackendDraining
            | Self::BackendRejected(_)
            | Self::TlsRequired
            | Self::Limit
            | Self::Deadline
            | Self::Hold
            | Self::Kicked
            | Self::Draining
            | Self::Internal => false,
        }
    }

    /// Whether it counts as a failed login of its connection (`limits.failed_logins`).
    #[must_use]
    pub fn counts_as_failed(&self) -> bool {
        self.side() == Side::Client || self.is_without_route()
    }

    /// Whether a server behind usher was unavailable, so that the same attempt may succeed later.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        match self {
            Self::DirectoryUnavailable
            | Self::BackendUnreachable
            | Self::BackendTls
            | Self::BackendTimeout
            | Self::BackendFault
            | Self::BackendBusy
            | Self::BackendDraining
            | Self::Hold
            | Self::Deadline => true,
            Self::WrongPassword
            | Self::UnknownUser
            | Self::EmptyPassword
            | Self::InvalidUsername
            | Self::InvalidPassword
            | Self::AuthzidNotAllowed
            | Self::Account { .. }
            | Self::NotAllowed
            | Self::SeveralEntries
            | Self::NoMailHost
            | Self::SeveralMailHosts
            | Self::UnknownMailHost
            | Self::NoBackendLogin
            | Self::ProtocolNotServed
            | Self::BackendRejected(_)
            | Self::TlsRequired
            | Self::Limit
            | Self::Kicked
            | Self::Draining
            | Self::Internal => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_labels() {
        for state in AccountState::ALL {
            let label = Refusal::Account { state, proven: true }.label();
            assert_eq!(Refusal::LABELS.iter().filter(|known| **known == label).count(), 1, "{label}");
        }
    }

    #[test]
    fn wrong_password_reply_contains_no_session_id() {
        for refusal in [Refusal::WrongPassword, Refusal::UnknownUser, Refusal::EmptyPassword, Refusal::InvalidUsername]
        {
            assert!(!refusal.names_session(), "{refusal}");
        }
        let locked = Refusal::Account { state: AccountState::Locked, proven: false };
        assert!(!locked.disclosed(true).names_session());
        assert!(Refusal::BackendTimeout.names_session() && Refusal::NoMailHost.names_session());
    }

    #[test]
    fn account_state_is_revealed_only_when_allowed() {
        for state in AccountState::ALL {
            for (reveal, proven) in [(false, false), (false, true), (true, false)] {
                assert_eq!(Refusal::Account { state, proven }.disclosed(reveal), &Refusal::WrongPassword);
            }
            let proven = Refusal::Account { state, proven: true };
            let told = if state == AccountState::Locked { &Refusal::WrongPassword } else { &proven };
            assert_eq!(proven.disclosed(true), told);
        }
        assert_eq!(Refusal::NotAllowed.disclosed(false), &Refusal::NotAllowed);
    }
}
