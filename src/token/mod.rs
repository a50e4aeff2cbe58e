//! Tokens: who an issuer says that a user is.
//!
//! A JWT (RFC 7519) is verified here, by the issuer's keys: an unverified `iss` only selects a configured issuer, byte
//! for byte. An opaque token is introspected (RFC 7662) at the one issuer that has it; a JWT is never sent to an issuer
//! other than its own. Only what was verified becomes a [`VerifiedToken`]; which entry that is, and whether it may log
//! in, the directory decides. No error, log line or metric has a part of a token.

mod claims;
mod fetch;
mod introspect;
#[cfg(any(test, feature = "internals"))]
mod invariants;
mod jwt;
mod keys;
mod remote_keys;
#[cfg(feature = "internals")]
mod sample;
mod strict;
#[cfg(test)]
pub(crate) mod tests;
mod unverified;
mod verified;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::time::Instant;

use crate::base::clock::unix_now;
use crate::base::secret::Secret;
use crate::config::{KeySource, TokenIssuer};
use crate::outcome::TokenError;
use crate::telemetry::metrics::Metrics;
use claims::Source;
use fetch::Client;
pub(crate) use fetch::FetchError;
use introspect::{Answers, Introspector};
#[cfg(any(test, feature = "internals"))]
pub use invariants::invariants;
use jwt::{Form, Jwt};
pub(crate) use keys::{KeySet, LARGEST_SET, SkippedKey};
use remote_keys::{KeyState, Refreshed, RemoteKeys};
#[cfg(feature = "internals")]
pub use sample::TokenVerifier;
pub(crate) use unverified::unverified;
pub(crate) use verified::VerifiedToken;

/// How long a login waits for its issuer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What an issuer's files hold.
#[derive(Debug, Default)]
pub(crate) struct IssuerFiles {
    /// TLS towards its servers, if there are any.
    pub tls: Option<Arc<ClientConfig>>,
    /// Its keys, if they are in a file.
    pub keys: Option<Arc<KeySet>>,
    /// The secret of introspection.
    pub client_secret: Option<Secret>,
}

/// The issuers of one configuration, with their keys.
#[derive(Debug)]
pub(crate) struct Tokens {
    issuers: Vec<Issuer>,
    metrics: Arc<Metrics>,
}

/// An issuer, with its keys.
#[derive(Debug)]
struct Issuer {
    settings: Arc<TokenIssuer>,
    keys: Keys,
    introspector: Option<Arc<Introspector>>,
}

/// The keys of an issuer.
#[derive(Debug)]
enum Keys {
    /// From a file.
    File(Arc<KeySet>),
    /// Fetched.
    Remote(Arc<RemoteKeys>),
    /// Its tokens are introspected.
    None,
}

/// What an issuer's servers answered.
#[derive(Debug)]
pub(crate) struct InspectedIssuer {
    /// The exact value of `iss`.
    pub issuer: String,
    /// How many keys are usable, and why others are not; `None`: its tokens are introspected.
    pub keys: Option<Result<(usize, Vec<SkippedKey>), FetchError>>,
    /// Whether it answers about tokens; `None`: it is not asked.
    pub introspection: Option<Result<(), FetchError>>,
}

impl Issuer {
    async fn inspect(&self) -> InspectedIssuer {
        let summary = |keys: &KeySet| (keys.len(), keys.skipped.clone());
        let keys = async {
            match &self.keys {
                Keys::File(keys) => Some(Ok(summary(keys))),
                Keys::Remote(remote) => Some(remote.fetch_in_time().await.map(|keys| summary(&keys))),
                Keys::None => None,
            }
        };
        let introspection = async {
            match &self.introspector {
                Some(introspector) => Some(introspector.inspect(Instant::now() + PATIENCE).await),
                None => None,
            }
        };
        let (keys, introspection) = tokio::join!(keys, introspection);
        InspectedIssuer { issuer: self.settings.issuer.clone(), keys, introspection }
    }

    fn new(settings: &TokenIssuer, files: IssuerFiles, previous: Option<&Self>) -> Self {
        let IssuerFiles { tls, keys, client_secret } = files;
        let client = Client { tls, proxy: settings.proxy.clone() };
        let keys = match (&settings.keys, keys) {
            (Some(KeySource::File(_)), Some(keys)) => Keys::File(keys),
            (Some(source @ (KeySource::Url(_) | KeySource::Discovery(_))), _) => {
                let state = match previous.map(|old| &old.keys) {
                    Some(Keys::Remote(old)) => Arc::clone(&old.state),
                    Some(Keys::File(_) | Keys::None) | None => Arc::new(KeyState::default()),
                };
                let (issuer, source, client) = (settings.issuer.clone(), source.clone(), client.clone());
                Keys::Remote(Arc::new(RemoteKeys { issuer, source, client, state }))
            }
            (Some(KeySource::File(_)), None) | (None, _) => Keys::None,
        };
        let shared = Arc::new(settings.clone());
        let introspector = settings.introspection.clone().zip(client_secret).map(|(settings, secret)| {
            let answers = previous.and_then(|old| old.introspector.as_ref());
            let answers = answers.map_or_else(|| Arc::new(Answers::default()), |old| Arc::clone(&old.answers));
            Arc::new(Introspector { issuer: Arc::clone(&shared), settings, secret, client, answers })
        });
        Self { settings: shared, keys, introspector }
    }
}

impl Tokens {
    /// The issuers of a configuration, with what their files hold. Keys and answers of `previous` are kept where an
    /// issuer's settings are the same.
    #[must_use]
    pub(crate) fn new(
        issuers: &[TokenIssuer],
        files: Vec<IssuerFiles>,
        metrics: &Arc<Metrics>,
        previous: Option<&Self>,
    ) -> Self {
        let mut files = files.into_iter();
        let issuers = issuers.iter().map(|settings| {
            let is_same = |old: &&Issuer| *old.settings == *settings;
            let previous = previous.and_then(|old| old.issuers.iter().find(is_same));
            Issuer::new(settings, files.next().unwrap_or_default(), previous)
        });
        Self { issuers: issuers.collect(), metrics: Arc::clone(metrics) }
    }

    /// Whether no issuer is configured.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    /// Whether verifying this token asks its issuer, which costs a request: the client's prefix is throttled before.
    #[must_use]
    pub(crate) fn needs_introspection(&self, token: &Secret) -> bool {
        let introspector = jwt::read(token.expose()).ok().and_then(|form| self.introspector(&form));
        introspector.is_some_and(|introspector| introspector.remembered(token).is_none())
    }

    /// Verifies a token, within 3 seconds.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) async fn verify(&self, token: &Secret) -> Result<VerifiedToken, TokenError> {
        let until = Instant::now() + PATIENCE;
        let form = jwt::read(token.expose())?;
        if let Some(introspector) = self.introspector(&form) {
            if let Some(result) = introspector.remembered(token) {
                return result;
            }
            let own = if let Form::Jwt(jwt) = form { Some(jwt.claims) } else { None };
            return introspector.ask(token, own, &self.metrics, until).await;
        }
        let Form::Jwt(jwt) = form else { return Err(TokenError::UnknownIssuer) };
        let issuer = self.issuer_of(&jwt).ok_or(TokenError::UnknownIssuer)?;
        self.verify_signature(issuer, &jwt, until).await?;
        claims::judge(&issuer.settings, jwt.claims, Source::Token, unix_now())
    }

    /// The issuer that a JWT names.
    fn issuer_of(&self, jwt: &Jwt<'_>) -> Option<&Issuer> {
        let named = jwt.claims.get("iss").and_then(Value::as_str)?;
        self.issuers.iter().find(|issuer| issuer.settings.issuer == named)
    }

    /// The introspector for a token: the issuer that has introspection, about opaque tokens and about its own JWTs where
    /// it has no keys.
    fn introspector(&self, form: &Form<'_>) -> Option<&Arc<Introspector>> {
        match form {
            Form::Opaque => self.issuers.iter().find_map(|issuer| issuer.introspector.as_ref()),
            Form::Jwt(jwt) => {
                let issuer = self.issuer_of(jwt).filter(|issuer| matches!(issuer.keys, Keys::None))?;
                issuer.introspector.as_ref()
            }
        }
    }

    async fn verify_signature(&self, issuer: &Issuer, jwt: &Jwt<'_>, until: Instant) -> Result<(), TokenError> {
        let remote = match &issuer.keys {
            Keys::File(keys) => return keys.verify(jwt),
            Keys::Remote(remote) => remote,
            Keys::None => return Err(TokenError::UnknownIssuer),
        };
        let keys = remote.first_keys(until).await.ok_or(TokenError::Unavailable)?;
        let mut verified = keys.verify(jwt);
        // Once more behind a fetch that may have begun too early.
        for _ in 0..2 {
            if verified != Err(TokenError::UnknownKey) {
                break;
            }
            let refreshed = remote.refresh(&self.metrics, until).await;
            match refreshed {
                Refreshed::Fetched | Refreshed::Joined => {
                    verified = remote.state.keys().ok_or(TokenError::Unavailable)?.verify(jwt);
                }
                Refreshed::Recent => {}
                // It may be a new key that could not be fetched: no verdict.
                Refreshed::Failed => return Err(TokenError::Unavailable),
            }
            if refreshed != Refreshed::Joined {
                break;
            }
        }
        verified
    }

    /// The scopes that a client needs, separated by blanks, for a challenge; empty: none in particular.
    #[must_use]
    pub(crate) fn scope(&self) -> String {
        let mut scopes: Vec<&str> = Vec::new();
        for scope in self.issuers.iter().flat_map(|issuer| &issuer.settings.scopes) {
            if !scopes.contains(&scope.as_str()) {
                scopes.push(scope);
            }
        }
        scopes.join(" ")
    }

    /// The URL of the issuer's discovery document, for a challenge (RFC 7628 section 3.2.2); `None`: there are several
    /// issuers, or its document is known by another name inside than outside.
    #[must_use]
    pub(crate) fn discovery(&self) -> Option<&str> {
        let [issuer] = self.issuers.as_slice() else { return None };
        match &issuer.settings.keys {
            Some(KeySource::Discovery(url)) => {
                Some(url.as_str()).filter(|url| url.starts_with(&issuer.settings.issuer))
            }
            Some(KeySource::File(_) | KeySource::Url(_)) | None => None,
        }
    }

    /// Asks every issuer for its keys, and about a token that was made up: for `check --connect`.
    pub(crate) async fn inspect(&self) -> Vec<InspectedIssuer> {
        join_all(self.issuers.iter().map(Issuer::inspect)).await
    }

    /// Forgets what issuers have answered about tokens: each is asked again.
    pub(crate) fn forget_answers(&self) {
        self.issuers.iter().filter_map(|issuer| issuer.introspector.as_ref()).for_each(|asked| asked.answers.forget());
    }

    /// Starts fetching the keys that are due.
    pub(crate) fn run_due(&self) {
        for issuer in &self.issuers {
            if let Keys::Remote(remote) = &issuer.keys {
                remote.run_due(&self.metrics);
            }
        }
    }

    /// Sets the gauges of the keys.
    pub(crate) fn measure(&self, metrics: &Metrics) {
        for issuer in &self.issuers {
            let (keys, is_fetched) = match &issuer.keys {
                Keys::File(keys) => (Some(Arc::clone(keys)), true),
                Keys::Remote(remote) => (remote.state.keys(), !remote.state.has_failed()),
                Keys::None => continue,
            };
            let usable = keys.map_or(0, |keys| keys.len());
            let name = [issuer.settings.issuer.as_str()];
            metrics.token_keys.with_label_values(&name).set(i64::try_from(usable).unwrap_or(i64::MAX));
            metrics.token_keys_last_fetch_successful.with_label_values(&name).set(i64::from(is_fetched));
        }
    }
}
