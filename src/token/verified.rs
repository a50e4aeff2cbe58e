//! What a token has proven: made only where one was verified.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::base::credential::Login;
use crate::config::TokenIssuer;
use crate::proto::ldap::template::{self, Template};

/// What a claim takes besides its name and its text, in bytes, about.
const EACH: usize = 64;

/// The evidence of a verified token.
#[derive(Clone)]
pub(crate) struct VerifiedToken {
    issuer: Arc<TokenIssuer>,
    claim: Login,
    expires: u64,
    claims: Map<String, Value>,
}

impl fmt::Debug for VerifiedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (issuer, claim, expires) = (self.issuer(), &self.claim, self.expires);
        let mut shown = f.debug_struct("VerifiedToken");
        shown.field("issuer", &issuer).field("claim", claim).field("expires", &expires).finish_non_exhaustive()
    }
}

impl VerifiedToken {
    /// Only for the place where a token's claims have been judged.
    pub(super) fn new(issuer: Arc<TokenIssuer>, claim: Login, expires: u64, mut claims: Map<String, Value>) -> Self {
        // Another claim may be a name at a backend: a short text. The others have been judged.
        let is_name = |value: &Value| value.as_str().is_some_and(|text| text.len() <= Login::MAX);
        claims.retain(|_, value| is_name(value));
        Self { issuer, claim, expires, claims }
    }

    /// The memory of its claims, in bytes, about.
    #[must_use]
    pub(super) fn size(&self) -> usize {
        let texts = self.claims.iter().map(|(name, value)| name.len() + value.as_str().map_or(0, str::len));
        texts.map(|text| text + EACH).sum()
    }

    /// The issuer, as configured.
    #[must_use]
    pub(crate) fn issuer(&self) -> &str {
        &self.issuer.issuer
    }

    /// The value of `login_claim`: who the issuer says that the user is.
    #[must_use]
    pub(crate) const fn claim(&self) -> &Login {
        &self.claim
    }

    /// The claim's name.
    #[must_use]
    pub(crate) fn claim_name(&self) -> &str {
        &self.issuer.login_claim
    }

    /// When it expires, in Unix seconds.
    #[must_use]
    pub(crate) const fn expires(&self) -> u64 {
        self.expires
    }

    /// The directory that has the user, if the issuer's users are in one.
    #[must_use]
    pub(crate) fn directory(&self) -> Option<&str> {
        self.issuer.directory.as_deref()
    }

    /// The filter that finds the user's entry, which must match exactly one: the issuer's, or `own`, the directory's, with
    /// the claim as login name. With `domains`, the entry must show one of them. `None`: the claim lacks a part that the
    /// filter requires, and leads to no entry.
    #[must_use]
    pub(crate) fn filter(&self, own: Option<&Template>) -> Option<String> {
        let filter = template::filter(self.issuer.filter.as_ref().or(own)?, &self.claim)?;
        if self.issuer.domains.is_empty() {
            return Some(filter);
        }
        // Whatever the claim matches: an entry of another issuer's users must not be found by it.
        let attribute = &self.issuer.domain_attribute;
        let domains = self.issuer.domains.iter().map(|domain| format!("({attribute}=*@{domain})"));
        Some(format!("(&{filter}(|{}))", domains.collect::<String>()))
    }

    /// The text of another claim, such as the name at a backend; `None`: it is absent, empty, too long for a name, or no
    /// text.
    #[must_use]
    pub(crate) fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str().filter(|text| !text.is_empty())
    }
}
