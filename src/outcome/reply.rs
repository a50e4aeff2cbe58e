//! The replies to a refused login or a closed connection: each text is defined once, here.
//!
//! Each protocol adds its codes (`code` in its front half). There is no reply for a locked account, so none can
//! reveal it.

use super::TokenChallenge;

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
    /// The error that it reported of a token, before it refused the login.
    pub challenge: Option<TokenChallenge>,
}

impl BackendReply {
    /// Whether it says that the reason is this user's: a limit, or a state of the mailbox or account (RFC 5530, RFC 2449,
    /// RFC 3206).
    #[must_use]
    pub(crate) fn concerns_user(&self) -> bool {
        let code = self.code.split(' ').next().unwrap_or_default();
        let of_user = ["LIMIT", "INUSE", "IN-USE", "OVERQUOTA", "EXPIRED", "SYS/PERM", "LOGIN-DELAY"];
        of_user.iter().any(|known| code.eq_ignore_ascii_case(known))
    }
}

/// A reply that a client may receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A wrong name or password, and everything that must look the same.
    AuthenticationFailed,
    /// The token is not accepted, or nothing may be said of the account that it names.
    TokenRefused(TokenChallenge),
    /// Acting as another user was requested.
    AuthzidNotAllowed,
    /// The password is right, and this user may not use this service.
    NotPermitted,
    /// The password is too old.
    PasswordExpired,
    /// The password has to be changed first.
    PasswordMustChange,
    /// The account is disabled.
    AccountDisabled,
    /// The account has expired.
    AccountExpired,
    /// Not at this time.
    OutsideLogonHours,
    /// Not from this host.
    WrongWorkstation,
    /// The directory or the backend cannot be used now.
    Unavailable,
    /// The backend is out of service for a while.
    Maintenance,
    /// The mailbox is being moved.
    MailboxMoving,
    /// The login, or the client, took too long.
    TimedOut,
    /// An administrator ended the session.
    Kicked,
    /// usher is shutting down.
    ShuttingDown,
    /// The entry leads to no backend.
    NoMailbox,
    /// The user's backend does not serve this protocol.
    ProtocolNotServed,
    /// The backend's own words.
    BackendText(BackendReply),
    /// A limit was reached.
    Limit,
    /// TLS is required first.
    TlsRequired,
    /// A defect of usher.
    ServerBug,
}

impl Reply {
    /// The text behind the protocol's code. A backend's text is a peer's: to be made printable and bounded.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::AuthenticationFailed => "Name or password is wrong",
            Self::TokenRefused(_) => "The token is not accepted, get a new one",
            Self::AuthzidNotAllowed => "Authorization as another user is not allowed",
            Self::NotPermitted => "You may not use this service, please contact your administrator",
            Self::PasswordExpired => "Your password has expired, please change it",
            Self::PasswordMustChange => "Your password must be changed first",
            Self::AccountDisabled => "Your account is disabled, please contact your administrator",
            Self::AccountExpired => "Your account has expired, please contact your administrator",
            Self::OutsideLogonHours => "Login is not allowed at this time",
            Self::WrongWorkstation => "Login is not allowed from this host",
            Self::Unavailable => "The mail service is not available, try again later",
            Self::Maintenance => "Mail server is under maintenance, try again later",
            Self::MailboxMoving => "Your mailbox is being moved, try again in a moment",
            Self::TimedOut => "Login timed out, try again",
            Self::Kicked => "Session ended by an administrator, please reconnect",
            Self::ShuttingDown => "The server is shutting down, try again",
            Self::NoMailbox => "Your mailbox cannot be reached, please contact your administrator",
            Self::ProtocolNotServed => {
                "Your mailbox cannot be reached by this protocol, please contact your administrator"
            }
            Self::BackendText(reply) => &reply.text,
            Self::Limit => "Too many attempts or sessions, try again later",
            Self::TlsRequired => "Start TLS before you log in",
            Self::ServerBug => "Internal error, try again later",
        }
    }

    /// Whether the client's text names the session, so that a user's screenshot finds the line in the log. Not
    /// where the client is at fault: the reply to a wrong name or password is the same for all.
    #[must_use]
    pub const fn names_session(&self) -> bool {
        !matches!(
            self,
            Self::AuthenticationFailed | Self::TokenRefused(_) | Self::AuthzidNotAllowed | Self::TlsRequired
        )
    }

    /// The error to report of a token before this reply (RFC 7628 section 3.2.3); `None` where another token would not
    /// help, so that no client discards a good one.
    #[must_use]
    pub(crate) const fn token_challenge(&self) -> Option<TokenChallenge> {
        match self {
            Self::TokenRefused(challenge) => Some(*challenge),
            Self::AuthenticationFailed | Self::AuthzidNotAllowed => Some(TokenChallenge::InvalidToken),
            Self::BackendText(reply) => reply.challenge,
            Self::NotPermitted
            | Self::PasswordExpired
            | Self::PasswordMustChange
            | Self::AccountDisabled
            | Self::AccountExpired
            | Self::OutsideLogonHours
            | Self::WrongWorkstation
            | Self::Unavailable
            | Self::Maintenance
            | Self::MailboxMoving
            | Self::TimedOut
            | Self::Kicked
            | Self::ShuttingDown
            | Self::NoMailbox
            | Self::ProtocolNotServed
            | Self::Limit
            | Self::TlsRequired
            | Self::ServerBug => None,
        }
    }

    /// The same reply to a client that has sent a token: nothing is said of a password.
    #[must_use]
    pub(crate) fn for_token(self) -> Self {
        if self == Self::AuthenticationFailed { Self::TokenRefused(TokenChallenge::InvalidToken) } else { self }
    }

    /// A backend's reply, if it is of use to a client.
    pub(super) fn of_backend(reply: &BackendReply) -> Self {
        // A referral names internal servers, in its text too.
        let referral = reply.code.split(' ').next().is_some_and(|kind| kind.eq_ignore_ascii_case("REFERRAL"));
        let empty = reply.text.bytes().all(|byte| byte == b' ');
        if referral || empty { Self::Unavailable } else { Self::BackendText(reply.clone()) }
    }
}
