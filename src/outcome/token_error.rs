//! Why a token is refused: whether it was a guess, an outage, or a token of the user that cannot be used, and what
//! the client hears of it (RFC 7628 section 3.2.2, RFC 6750 section 3.1).

use crate::base::labels::labels;

labels! {
    /// Why a token is refused.
    pub enum TokenError {
        /// It is no token: neither a JWT in its compact form nor, where introspection is configured, a bearer token.
        Malformed => "malformed_token",
        /// An algorithm that is never used: none, HMAC, or one that is not known.
        Algorithm => "token_algorithm",
        /// A header that forbids its use: encrypted, `crit`, a type that is no access token's.
        Header => "token_header",
        /// Its issuer is not configured, or it is opaque and no issuer has introspection.
        UnknownIssuer => "unknown_issuer",
        /// The issuer has no such key.
        UnknownKey => "unknown_key",
        /// The signature is not the issuer's.
        Signature => "token_signature",
        /// The issuer says that it is not valid.
        Inactive => "inactive_token",
        /// The claims cannot be read: no JSON object, a claim given twice, one of another type.
        Claims => "token_claims",
        /// Genuine, and `exp` has passed.
        Expired => "token_expired",
        /// Genuine, and `nbf` has not come.
        NotYetValid => "token_not_yet_valid",
        /// Genuine, without `exp`.
        NoExpiry => "token_without_expiry",
        /// Genuine, for another audience or client.
        Audience => "token_audience",
        /// Genuine, without a scope that is required.
        Scope => "token_scope",
        /// Genuine, and no access token: an ID token, a refresh token.
        NotAccessToken => "not_an_access_token",
        /// Genuine, bound to a key (`cnf`) that usher cannot see used.
        Bound => "bound_token",
        /// Genuine, of an application without a user.
        AppOnly => "app_only_token",
        /// Genuine, without the claim that names the user, or with one that can be no name.
        NoLogin => "token_without_login",
        /// Genuine, and the address that names the user was not verified by the issuer.
        EmailUnverified => "email_not_verified",
        /// Genuine, and its issuer may not name users of this domain.
        Domain => "token_domain",
        /// The issuer's keys were never received, or introspection has no answer.
        Unavailable => "token_issuer_unavailable",
        /// Too many introspection requests are in progress.
        Busy => "introspection_busy",
    }
}

/// The error that a client hears in a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenChallenge {
    /// The message with the token is malformed.
    InvalidRequest,
    /// Another token is needed: this one is expired, revoked or not for usher.
    InvalidToken,
    /// A token with more scopes is needed.
    InsufficientScope,
}

impl TokenChallenge {
    /// The value of `status` of OAUTHBEARER (RFC 7628 section 3.2.2).
    #[must_use]
    pub(crate) const fn error(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
        }
    }

    /// The value of `status` of XOAUTH2: the code that HTTP has for it (RFC 6750 section 3.1).
    #[must_use]
    pub(crate) const fn status(self) -> &'static str {
        match self {
            Self::InvalidRequest => "400",
            Self::InvalidToken => "401",
            Self::InsufficientScope => "403",
        }
    }
}

impl TokenError {
    /// Whether it counts as a guess against the client's prefix. A genuine token that cannot be used does not: each
    /// device presents one when it has expired.
    #[must_use]
    pub(crate) const fn is_guess(self) -> bool {
        match self {
            Self::Malformed
            | Self::Algorithm
            | Self::Header
            | Self::UnknownIssuer
            | Self::UnknownKey
            | Self::Signature
            | Self::Inactive => true,
            // The claims are read only behind a good signature, or from the issuer's own answer.
            Self::Claims
            | Self::Expired
            | Self::NotYetValid
            | Self::NoExpiry
            | Self::Audience
            | Self::Scope
            | Self::NotAccessToken
            | Self::Bound
            | Self::AppOnly
            | Self::NoLogin
            | Self::EmailUnverified
            | Self::Domain
            | Self::Unavailable
            | Self::Busy => false,
        }
    }

    /// Whether the same token may be accepted later, because the issuer cannot be asked now.
    #[must_use]
    pub(crate) const fn is_outage(self) -> bool {
        self.challenge().is_none()
    }

    /// What the client hears; `None` for an outage, whose reply has no challenge.
    #[must_use]
    pub(crate) const fn challenge(self) -> Option<TokenChallenge> {
        match self {
            Self::Scope => Some(TokenChallenge::InsufficientScope),
            Self::Unavailable | Self::Busy => None,
            Self::Malformed
            | Self::Algorithm
            | Self::Header
            | Self::UnknownIssuer
            | Self::UnknownKey
            | Self::Signature
            | Self::Inactive
            | Self::Claims
            | Self::Expired
            | Self::NotYetValid
            | Self::NoExpiry
            | Self::Audience
            | Self::NotAccessToken
            | Self::Bound
            | Self::AppOnly
            | Self::NoLogin
            | Self::EmailUnverified
            | Self::Domain => Some(TokenChallenge::InvalidToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::labels::Label as _;

    #[test]
    fn outage_is_no_guess_and_has_no_challenge() {
        for error in TokenError::ALL {
            assert!(!(error.is_outage() && error.is_guess()), "{error:?}");
            assert_eq!(error.is_outage(), matches!(error, TokenError::Unavailable | TokenError::Busy), "{error:?}");
        }
    }
}
