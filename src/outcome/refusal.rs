//! Why a login was refused and which side caused it: one table.
//!
//! The label is for log and metrics, the [`Side`] decides the log level. No match over a refusal has a wildcard
//! arm.

use std::fmt;

use super::{AccountState, ActingFault, BackendReply, Reply, TokenError};

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

impl Side {
    /// The word for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Directory => "directory",
            Self::Backend => "backend",
            Self::Usher => "usher",
        }
    }
}

/// Whether the client has proven the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Not yet: it must not learn that the name exists.
    Missing,
    /// The directory has accepted it.
    Given,
}

/// How a refusal counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A server behind usher was unavailable: the same attempt may succeed later.
    Outage,
    /// The user may not log in, or leads to no backend, whatever the password: the same attempt fails again.
    NoRoute,
    /// Neither.
    Other,
}

/// What is known of a refusal.
struct Facts {
    label: &'static str,
    side: Side,
    kind: Kind,
    /// The reply, unless it depends on what the refusal carries.
    reply: Reply,
}

/// Defines the refusals: a row has a variant, its label, side, kind and reply.
macro_rules! refusals {
    ($($(#[$doc:meta])+ $variant:ident $(($data:ty))? = $label:literal, $side:ident, $kind:ident, $reply:ident;)+) => {
        /// Why a client is refused. Log and metrics have the true reason; [`Refusal::reply`] is what the client
        /// learns.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[$doc])+ $variant $(($data))?,)+
            /// The account must not log in, whatever the password.
            Account {
                /// Why.
                state: AccountState,
                /// Whether the directory reveals this only after a correct password. If not, a client must never
                /// learn it: an attacker would learn it too.
                proven: bool,
            },
        }

        /// How many labels there are.
        const LABELS: usize = [$($label),+].len() + AccountState::ALL.len();

        impl Refusal {
            /// Every label that [`Refusal::label`] can return, for metrics that exist from the start.
            pub const LABELS: [&'static str; LABELS] = {
                let [a, b, c, d, e, f, g] = AccountState::ALL;
                [$($label,)+ a.label(), b.label(), c.label(), d.label(), e.label(), f.label(), g.label()]
            };

            /// The kind of a label.
            fn kind_of(label: &str) -> Kind {
                match label {
                    $($label => Kind::$kind,)+
                    _ => Kind::Other,
                }
            }

            const fn facts(&self) -> &'static Facts {
                match self {
                    $(Self::$variant { .. } => const {
                        &Facts { label: $label, side: Side::$side, kind: Kind::$kind, reply: Reply::$reply }
                    },)+
                    // Its label is the state's, and so is its reply where it may be revealed.
                    Self::Account { .. } => const {
                        let reply = Reply::AuthenticationFailed;
                        &Facts { label: "", side: Side::Client, kind: Kind::Other, reply }
                    },
                }
            }
        }
    };
}

refusals! {
    /// The directory answered invalidCredentials (49) for an entry, or had done so for the same
    /// password within `cache.negative_ttl`.
    WrongPassword = "wrong_password", Client, Other, AuthenticationFailed;
    /// The directory has no such entry.
    UnknownUser = "unknown_user", Client, Other, AuthenticationFailed;
    /// The password was empty: never sent to a directory (RFC 4513 section 5.1.2).
    EmptyPassword = "empty_password", Client, Other, AuthenticationFailed;
    /// The name was empty, too long, not UTF-8, or held NUL or another control character.
    InvalidUsername = "invalid_username", Client, Other, AuthenticationFailed;
    /// The password held NUL, or a line end for nginx: it is never sent.
    InvalidPassword = "unusable_password", Client, Other, AuthenticationFailed;
    /// The token is refused; the log has why.
    Token(TokenError) = "token_refused", Client, Other, AuthenticationFailed;
    /// The issuer of the token cannot be asked: neither its keys nor its answer are there.
    TokenUnavailable(TokenError) = "token_unavailable", Directory, Outage, Unavailable;
    /// The token is accepted, and too long for a backend that is to get it.
    TokenTooLong = "token_too_long", Backend, NoRoute, NoMailbox;
    /// The entry does not list the client's certificate.
    WrongCertificate = "wrong_certificate", Client, Other, AuthenticationFailed;
    /// The client's certificate has expired since the handshake, or since that of the session that was resumed.
    CertificateExpired = "certificate_expired", Client, Other, AuthenticationFailed;
    /// The client's certificate is on a revocation list by now.
    CertificateRevoked = "certificate_revoked", Client, Other, AuthenticationFailed;
    /// The client's certificate is not of the CA in force by now, or its listener takes no login by certificate any more.
    CertificateUntrusted = "certificate_untrusted", Client, Other, AuthenticationFailed;
    /// Whether the client's certificate is revoked is unknown: no list is its CA's, or the list is no longer valid.
    RevocationUnknown = "revocation_unknown", Usher, Outage, Unavailable;
    /// The client's certificate does not have the name that the login goes by.
    NoCertificateName = "no_certificate_name", Client, Other, AuthenticationFailed;
    /// The client's certificate or token is accepted, and there is no password to log in with: the backend has no
    /// `service`, and gets no token.
    NoServiceLogin = "no_service_login", Backend, NoRoute, NoMailbox;
    /// The client asked to act as another user (SASL authzid), or its token is another user's.
    AuthzidNotAllowed = "authzid_not_allowed", Client, Other, AuthzidNotAllowed;
    /// The password is right, and this user may not act for this mailbox. What the client hears is a wrong password:
    /// another reply would show which users are administrators, and which passwords are right.
    ActingNotAllowed(ActingFault) = "acting_not_allowed", Client, Other, AuthenticationFailed;
    /// The password is right, and this user may not use this protocol, or not use mail at all.
    NotAllowed = "not_allowed", Client, NoRoute, NotPermitted;
    /// The password is right, and the entry does not permit the client's address. The reply is that to a wrong one.
    NetworkNotAllowed = "network_not_allowed", Client, Other, AuthenticationFailed;
    /// The same, from everywhere: a value of `networks_attribute` is no network.
    UnusableNetworks = "unusable_networks", Directory, NoRoute, AuthenticationFailed;
    /// The entry does not match `password_filter`: its user logs in without one. The password was not sent to the
    /// directory, and the reply is that to a wrong one.
    PasswordNotAllowed = "password_not_allowed", Client, Other, AuthenticationFailed;
    /// The directory did not decide: unreachable, timed out, busy, or a result other than success and
    /// invalidCredentials.
    DirectoryUnavailable = "directory_unavailable", Directory, Outage, Unavailable;
    /// The entry has no password that a bind could be compared with.
    NoPassword = "no_password", Client, Other, AuthenticationFailed;
    /// More than one entry matches the name.
    SeveralEntries(Proof) = "several_entries", Directory, NoRoute, NoMailbox;
    /// The entry has more values, or longer ones, than are read.
    UnusableEntry(Proof) = "unusable_entry", Directory, NoRoute, NoMailbox;
    /// The entry has no mailHost and no default is configured.
    NoMailHost = "no_mail_host", Directory, NoRoute, NoMailbox;
    /// The entry has several mailHost values that name different backends.
    SeveralMailHosts = "several_mail_hosts", Directory, NoRoute, NoMailbox;
    /// The entry's mailHost names no configured backend.
    UnknownMailHost = "unknown_mail_host", Directory, NoRoute, NoMailbox;
    /// `login_attribute` is configured and the entry has no value, or several.
    NoBackendLogin = "no_backend_login", Directory, NoRoute, NoMailbox;
    /// The user's backend does not serve this protocol.
    ProtocolNotServed = "protocol_not_served", Directory, NoRoute, ProtocolNotServed;
    /// The backend could not be reached: refused, reset, no such name, closed with BYE.
    BackendUnreachable = "backend_unreachable", Backend, Outage, Unavailable;
    /// The backend's TLS handshake, certificate or name is not as configured.
    BackendTls = "backend_tls", Backend, Outage, Unavailable;
    /// The backend did not answer in time.
    BackendTimeout = "backend_timeout", Backend, Outage, Unavailable;
    /// The backend broke the protocol: PREAUTH, BAD, endless lines, an unexpected reply.
    BackendFault = "backend_fault", Backend, Outage, Unavailable;
    /// The backend has its maximum of logins in progress, or is in slow start after an outage.
    BackendBusy = "backend_busy", Backend, Outage, Unavailable;
    /// An administrator has taken the backend out of service for a while.
    BackendDraining = "backend_draining", Backend, Outage, Maintenance;
    /// The directory accepted the password, the backend rejected it. Carries the backend's reply if it may be
    /// passed on.
    BackendRejected(Option<BackendReply>) = "backend_rejected", Backend, Other, Unavailable;
    /// The backend rejects every user that the directory accepts, or answers none: its authentication is broken.
    BackendRefusesAll = "backend_refuses_all", Backend, Outage, Unavailable;
    /// Clear-text login before TLS.
    TlsRequired = "tls_required", Client, Other, TlsRequired;
    /// A limit was reached: too many sessions, attempts or flights.
    Limit = "limit", Client, Other, Limit;
    /// The login did not finish within its deadline.
    Deadline = "deadline", Backend, Outage, TimedOut;
    /// The directory holds the account: no login while its mail is moved.
    Hold = "hold", Directory, Outage, MailboxMoving;
    /// An administrator ended the session before its client was sent OK.
    Kicked = "kicked", Client, Other, Kicked;
    /// usher is shutting down.
    Draining = "draining", Usher, Other, ShuttingDown;
    /// A defect of usher.
    Internal = "internal", Usher, Other, ServerBug;
}

impl Refusal {
    /// The metric label and the log's `reason`: a closed set of words.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        if let Self::Account { state, .. } = self { state.label() } else { self.facts().label }
    }

    /// The reply that the client may receive: the state of an account only with `reveal`
    /// (`directory.reveal_account_state`) and only after a correct password. All others get the reply to a wrong
    /// password.
    #[must_use]
    pub fn reply(&self, reveal: bool) -> Reply {
        if let Self::Account { state, proven: true } = self
            && reveal
        {
            return state.reply();
        }
        if let Self::Token(error) = self {
            return error.challenge().map_or(Reply::Unavailable, Reply::TokenRefused);
        }
        if let Self::SeveralEntries(Proof::Missing) | Self::UnusableEntry(Proof::Missing) = self {
            return Reply::AuthenticationFailed;
        }
        if let Self::BackendRejected(Some(reply)) = self {
            return Reply::of_backend(reply);
        }
        self.facts().reply.clone()
    }

    /// Whether it reveals that the password is right.
    #[must_use]
    pub const fn is_proven(&self) -> bool {
        matches!(
            self,
            Self::Account { proven: true, .. } | Self::SeveralEntries(Proof::Given) | Self::UnusableEntry(Proof::Given)
        )
    }

    /// The same for a client that must not learn whether the password is right.
    #[must_use]
    pub fn unproven(self) -> Self {
        if let Self::Account { state, .. } = self {
            return Self::Account { state, proven: false };
        }
        if let Self::SeveralEntries(_) = self {
            return Self::SeveralEntries(Proof::Missing);
        }
        if let Self::UnusableEntry(_) = self { Self::UnusableEntry(Proof::Missing) } else { self }
    }

    /// The error of a token, if that is why.
    #[must_use]
    pub(crate) const fn token_error(&self) -> Option<TokenError> {
        if let Self::Token(error) | Self::TokenUnavailable(error) = self { Some(*error) } else { None }
    }

    /// Why a token is not accepted.
    #[must_use]
    pub(crate) const fn of_token(error: TokenError) -> Self {
        if error.is_outage() { Self::TokenUnavailable(error) } else { Self::Token(error) }
    }

    /// The side that caused it.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.facts().side
    }

    /// Whether the user may not log in, or leads to no backend, whatever the password. It counts as a failed login
    /// of the connection: a client that repeats it costs a decision each time.
    #[must_use]
    pub fn is_without_route(&self) -> bool {
        self.facts().kind == Kind::NoRoute
    }

    /// Whether a refusal with this label may be none later, because a server was unavailable.
    #[must_use]
    pub(crate) fn is_outage_label(label: &str) -> bool {
        Self::kind_of(label) == Kind::Outage
    }

    /// Whether a refusal with this label has its reason in the entry or the configuration.
    #[must_use]
    pub(crate) fn is_without_route_label(label: &str) -> bool {
        Self::kind_of(label) == Kind::NoRoute
    }

    /// Whether it counts as a failed login of its connection (`limits.failed_logins`).
    #[must_use]
    pub fn counts_as_failed(&self) -> bool {
        self.side() == Side::Client || self.is_without_route()
    }

    /// Whether a server behind usher was unavailable, so that the same attempt may succeed later.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        self.facts().kind == Kind::Outage
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
    fn labels_are_distinct() {
        let mut labels = Refusal::LABELS.to_vec();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Refusal::LABELS.len());
        assert!(labels.iter().all(|label| !label.is_empty()));
    }

    #[test]
    fn wrong_password_reply_contains_no_session_id() {
        for refusal in [Refusal::WrongPassword, Refusal::UnknownUser, Refusal::EmptyPassword, Refusal::InvalidUsername]
        {
            assert!(!refusal.reply(true).names_session(), "{refusal}");
        }
        let locked = Refusal::Account { state: AccountState::Locked, proven: false };
        assert!(!locked.reply(true).names_session());
        assert!(
            Refusal::BackendTimeout.reply(false).names_session() && Refusal::NoMailHost.reply(false).names_session()
        );
    }

    #[test]
    fn account_state_is_revealed_only_when_allowed() {
        for state in AccountState::ALL {
            for (reveal, proven) in [(false, false), (false, true), (true, false)] {
                assert_eq!(Refusal::Account { state, proven }.reply(reveal), Reply::AuthenticationFailed);
            }
            let revealed = Refusal::Account { state, proven: true }.reply(true);
            assert_eq!(revealed == Reply::AuthenticationFailed, state == AccountState::Locked, "{state:?}");
        }
        assert_eq!(Refusal::NotAllowed.reply(false), Reply::NotPermitted);
    }

    #[test]
    fn backend_text_is_passed_on_only_if_it_says_something() {
        let reply = |code: &str, text: &str| {
            let reply =
                BackendReply { code: code.to_owned(), text: text.to_owned(), unavailable: false, challenge: None };
            Refusal::BackendRejected(Some(reply)).reply(false)
        };
        assert_eq!(reply("LIMIT", "Too many").text(), "Too many");
        for (code, text) in [("LIMIT", ""), ("", " "), ("Referral imap://inside/", "Go to inside")] {
            assert_eq!(reply(code, text), Reply::Unavailable, "{code} {text}");
        }
        assert_eq!(Refusal::BackendRejected(None).reply(true), Reply::Unavailable);
    }
}
