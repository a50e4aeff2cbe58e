//! What the claims of a genuine token must say before it names a user (RFC 7519 section 4, RFC 9068).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::verified::VerifiedToken;
use crate::base::credential::Login;
use crate::config::TokenIssuer;
use crate::outcome::TokenError;

/// How far the clocks of issuer and usher may differ, in seconds.
pub(super) const LEEWAY: u64 = 30;

/// Who says the claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A signed token.
    Token,
    /// An answer of introspection, in which only `active` is required (RFC 7662 section 2.2). Counts until then
    /// where it has no `exp`, in Unix seconds.
    Introspection {
        /// Until when an answer without `exp` counts.
        until: u64,
    },
}

/// Judges the claims at a time, in Unix seconds.
///
/// # Errors
/// Why they name no user.
pub(super) fn judge(
    issuer: &Arc<TokenIssuer>,
    claims: Map<String, Value>,
    source: Source,
    now: u64,
) -> Result<VerifiedToken, TokenError> {
    let found = Claims(&claims);
    let expires = match (found.time("exp")?, source) {
        (Some(expires), _) => expires,
        (None, Source::Introspection { until }) => until,
        (None, Source::Token) => return Err(TokenError::NoExpiry),
    };
    if expires.saturating_add(LEEWAY) <= now {
        return Err(TokenError::Expired);
    }
    if found.time("nbf")?.is_some_and(|begins| begins > now.saturating_add(LEEWAY)) {
        return Err(TokenError::NotYetValid);
    }
    kind(&claims)?;
    audience(issuer, found)?;
    if !scopes(issuer, found)? {
        return Err(TokenError::Scope);
    }
    let login = login(issuer, found)?;
    Ok(VerifiedToken::new(Arc::clone(issuer), login, expires, claims))
}

/// The claims of a token.
#[derive(Clone, Copy)]
struct Claims<'a>(&'a Map<String, Value>);

impl<'a> Claims<'a> {
    /// A text; `None`: absent.
    fn text(self, name: &str) -> Result<Option<&'a str>, TokenError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(TokenError::Claims),
        }
    }

    /// One text or a list of them; absent: none.
    fn texts(self, name: &str) -> Result<Vec<&'a str>, TokenError> {
        match self.0.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(items)) => items.iter().map(|item| item.as_str().ok_or(TokenError::Claims)).collect(),
            Some(_) => Err(TokenError::Claims),
        }
    }

    /// NumericDate (RFC 7519 section 2), in whole Unix seconds; `None`: absent.
    fn time(self, name: &str) -> Result<Option<u64>, TokenError> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let number = value.as_f64().filter(|seconds| (0.0..1e15).contains(seconds)).ok_or(TokenError::Claims)?;
        // Truncated: a token counts a part of a second less.
        Ok(Some(number as u64))
    }
}

/// Refuses what is no access token of a user.
///
/// # Errors
/// What it is instead.
pub(super) fn kind(claims: &Map<String, Value>) -> Result<(), TokenError> {
    let claims = Claims(claims);
    // A token that is bound to a key proves nothing without that key (RFC 7800, RFC 8705, RFC 9449).
    if claims.0.contains_key("cnf") {
        return Err(TokenError::Bound);
    }
    // Keycloak writes the kind of each token into `typ` (Bearer, ID, Refresh, Offline, Logout), Cognito into `token_use`;
    // introspection has `token_type` (RFC 7662 section 2.2). `at_hash` and `c_hash` are the hashes of the access token and
    // of the code beside an ID token (OpenID Connect Core 1.0 sections 3.1.3.6 and 3.3.2.11).
    let kinds = ["typ", "token_type"].into_iter().filter_map(|name| claims.0.get(name));
    let is_bearer = |kind: &Value| kind.as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"));
    if !kinds.into_iter().all(|kind| is_bearer(kind) || kind.as_str().is_some_and(is_jwt))
        || ["at_hash", "c_hash"].iter().any(|name| claims.0.contains_key(*name))
        || claims.0.get("token_use").is_some_and(|purpose| purpose != "access")
    {
        return Err(TokenError::NotAccessToken);
    }
    if is_app_only(claims)? { Err(TokenError::AppOnly) } else { Ok(()) }
}

fn is_jwt(kind: &str) -> bool {
    ["JWT", "at+jwt"].iter().any(|known| known.eq_ignore_ascii_case(kind))
}

/// Whether the token is an application's own, without a user.
fn is_app_only(claims: Claims<'_>) -> Result<bool, TokenError> {
    let is = |name: &str, value: &str| claims.0.get(name).and_then(Value::as_str) == Some(value);
    // RFC 9068 section 2.2: without a user, `sub` names the client. `appid` is Entra ID's name of it, `cid` Okta's.
    let subject = claims.text("sub")?;
    let mut clients = ["azp", "appid", "client_id", "cid"].into_iter().filter_map(|name| claims.0.get(name)?.as_str());
    let names_client = subject.is_some_and(|subject| clients.any(|client| client == subject));
    // Entra ID: `idtyp`, and no scope without a user. Keycloak: the user of a client's service account. Auth0: `gty`.
    let is_entra_app = claims.0.contains_key("tid") && !claims.0.contains_key("scp");
    let of_service = |name: &str| {
        claims.0.get(name).and_then(Value::as_str).is_some_and(|name| name.starts_with("service-account-"))
    };
    Ok(names_client
        || is("idtyp", "app")
        || is_entra_app
        || is("gty", "client-credentials")
        || is("grant_type", "client_credentials")
        || of_service("preferred_username")
        || of_service("username"))
}

/// `aud` has a configured value, and every claim that names the client a configured client.
fn audience(issuer: &TokenIssuer, claims: Claims<'_>) -> Result<(), TokenError> {
    let is_configured = |list: &[String], value: &str| list.iter().any(|configured| configured == value);
    let audience = claims.texts("aud")?;
    if !issuer.audience.is_empty() && !audience.iter().any(|value| is_configured(&issuer.audience, value)) {
        return Err(TokenError::Audience);
    }
    if issuer.clients.is_empty() {
        return Ok(());
    }
    let mut found = false;
    for name in ["azp", "appid", "client_id"] {
        if let Some(client) = claims.text(name)? {
            found = true;
            if !is_configured(&issuer.clients, client) {
                return Err(TokenError::Audience);
            }
        }
    }
    if found { Ok(()) } else { Err(TokenError::Audience) }
}

/// Whether `scope` (RFC 8693 section 4.2) or `scp` (Entra ID, Okta) have every scope that is required.
fn scopes(issuer: &TokenIssuer, claims: Claims<'_>) -> Result<bool, TokenError> {
    if issuer.scopes.is_empty() {
        return Ok(true);
    }
    let mut found = claims.texts("scope")?;
    found.extend(claims.texts("scp")?);
    let found: Vec<&str> = found.iter().flat_map(|list| list.split(' ')).collect();
    Ok(issuer.scopes.iter().all(|scope| found.contains(&scope.as_str())))
}

/// The value of the claim that names the user.
fn login(issuer: &TokenIssuer, claims: Claims<'_>) -> Result<Login, TokenError> {
    let name = issuer.login_claim.as_str();
    let text = claims.0.get(name).and_then(Value::as_str).ok_or(TokenError::NoLogin)?;
    // White space that a login name loses would be another name than the issuer's.
    let login = Login::parse(text.as_bytes()).filter(|login| login.as_str() == text).ok_or(TokenError::NoLogin)?;
    if name == "email" && !issuer.unverified_email && claims.0.get("email_verified") != Some(&Value::Bool(true)) {
        return Err(TokenError::EmailUnverified);
    }
    if let Some((_, domain)) = text.rsplit_once('@')
        && !issuer.domains.is_empty()
        && !issuer.domains.iter().any(|configured| configured.eq_ignore_ascii_case(domain))
    {
        return Err(TokenError::Domain);
    }
    Ok(login)
}
