//! An issuer for benches (feature `internals`): not part of the product.

use std::sync::Arc;

use super::{IssuerFiles, KeySet, Tokens};
use crate::base::secret::Secret;
use crate::config::TokenIssuer;
use crate::telemetry::metrics::Metrics;

/// Verifies tokens of `https://idp.example.com` for the audience `mail`, as a login does.
#[derive(Debug)]
pub struct TokenVerifier(Tokens);

impl TokenVerifier {
    /// With this JSON Web Key Set; `None`: it has no usable key.
    #[must_use]
    pub fn new(keys: &[u8]) -> Option<Self> {
        let issuer = TokenIssuer::for_tests("https://idp.example.com");
        let files = IssuerFiles { keys: Some(Arc::new(KeySet::parse(keys).ok()?)), ..IssuerFiles::default() };
        Some(Self(Tokens::new(&[issuer], vec![files], &Arc::new(Metrics::new()), None)))
    }

    /// Whether the token names a user.
    pub async fn verify(&self, token: &Secret) -> bool {
        self.0.verify(token).await.is_ok_and(|verified| verified.filter(None).is_some())
    }
}
