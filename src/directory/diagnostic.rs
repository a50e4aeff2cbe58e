//! What a directory reports about the account with its answer to a bind.

use std::fmt;

use crate::outcome::AccountState;
use crate::telemetry::labels::PasswordWarning;

/// What a server reports about the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindDiagnostic {
    /// The account may not log in.
    State {
        /// Why.
        state: AccountState,
        /// Whether the state is reported only after a correct password.
        proven: bool,
    },
    /// There is no such account.
    NoAccount,
    /// An unknown sub-code beside invalidCredentials.
    SubCode(u32),
    /// The password has expired; this many grace logins are left.
    Grace(u32),
    /// The password expires in this many seconds.
    Expiring(u32),
}

impl BindDiagnostic {
    /// The warning beside a successful bind.
    pub(crate) const fn warning(self) -> Option<PasswordWarning> {
        match self {
            Self::Grace(_) => Some(PasswordWarning::Grace),
            Self::Expiring(_) => Some(PasswordWarning::Expiring),
            Self::State { .. } | Self::NoAccount | Self::SubCode(_) => None,
        }
    }
}

/// For logs: the server's own number where it is one.
impl fmt::Display for BindDiagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State { state, .. } => f.write_str(state.label()),
            Self::NoAccount => f.write_str("no such account"),
            Self::SubCode(code) => write!(f, "data {code:x}"),
            Self::Grace(left) => write!(f, "password expired, {left} grace logins left"),
            Self::Expiring(seconds) => write!(f, "password expires in {seconds} s"),
        }
    }
}
