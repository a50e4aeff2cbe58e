//! The issuers of tokens, and which users each may name.

use std::fmt;
use std::path::PathBuf;

use super::routing::Address;
#[cfg(any(test, feature = "internals"))]
use crate::proto::ldap::template;
use crate::proto::ldap::template::Template;

/// An issuer of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIssuer {
    /// The exact value of `iss`.
    pub issuer: String,
    /// Where its keys are; `None`: its tokens are introspected.
    pub keys: Option<KeySource>,
    /// How opaque tokens are introspected.
    pub introspection: Option<Introspection>,
    /// Values of `aud`, one of which a token must have; empty: `clients` are checked alone.
    pub audience: Vec<String>,
    /// The clients whose tokens are accepted; empty: those of every client.
    pub clients: Vec<String>,
    /// The scopes that a token must have.
    pub scopes: Vec<String>,
    /// The claim that names the user.
    pub login_claim: String,
    /// Whether `email` counts without `email_verified`.
    pub unverified_email: bool,
    /// The directory that has its users; `None`: the domain of the claim says which.
    pub directory: Option<String>,
    /// The filter of the user's entry, the claim in place of the login name; `None`: that of its directory.
    pub filter: Option<Template>,
    /// The domains of the users that it may name; empty: all.
    pub domains: Vec<String>,
    /// The attribute of an entry by which `domains` are checked.
    pub domain_attribute: String,
    /// The CA file of its servers; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// The HTTP proxy on the way to them.
    pub proxy: Option<Address>,
}

#[cfg(any(test, feature = "internals"))]
impl TokenIssuer {
    /// One to begin with, for tests and benches: keys in a file, the audience `mail`, `sub` as the claim.
    pub(crate) fn for_tests(issuer: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            keys: Some(KeySource::File("jwks.json".into())),
            introspection: None,
            audience: vec!["mail".to_owned()],
            clients: Vec::new(),
            scopes: Vec::new(),
            login_claim: "sub".to_owned(),
            unverified_email: false,
            directory: None,
            filter: Some(template::parse_claim_filter("(entryUUID={claim})").expect("a filter")),
            domains: Vec::new(),
            domain_attribute: "mail".to_owned(),
            ca: None,
            proxy: None,
        }
    }
}

/// Where the keys of an issuer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A JSON Web Key Set in a file.
    File(PathBuf),
    /// A JSON Web Key Set at a URL.
    Url(HttpUrl),
    /// Where the document at this URL says (OpenID Connect Discovery).
    Discovery(HttpUrl),
}

/// Asking an issuer about a token (RFC 7662).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introspection {
    /// The endpoint.
    pub url: HttpUrl,
    /// The name that usher has there.
    pub client_id: String,
    /// The file with its secret.
    pub client_secret_file: PathBuf,
}

/// A URL that may be fetched: under TLS, or on this machine.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// As it was written.
    pub(in crate::config) text: String,
    /// Under TLS; otherwise on this machine.
    pub encrypted: bool,
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

impl HttpUrl {
    /// As it was written.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Host and port, as a request names them.
    #[must_use]
    pub(crate) fn authority(&self) -> String {
        let standard = if self.encrypted { 443 } else { 80 };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == standard { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
