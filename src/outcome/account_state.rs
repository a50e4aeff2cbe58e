//! The states of an account that prevent a login, and what its owner may hear of them.

use super::Reply;

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

    /// The reply to a correct password, where the state may be revealed. A lock has none: directories report it
    /// before they check the password, so an attacker would learn it.
    pub(super) const fn reply(self) -> Reply {
        match self {
            Self::PasswordExpired => Reply::PasswordExpired,
            Self::PasswordMustChange => Reply::PasswordMustChange,
            Self::Locked => Reply::AuthenticationFailed,
            Self::Disabled => Reply::AccountDisabled,
            Self::AccountExpired => Reply::AccountExpired,
            Self::OutsideLogonHours => Reply::OutsideLogonHours,
            Self::WrongWorkstation => Reply::WrongWorkstation,
        }
    }
}
