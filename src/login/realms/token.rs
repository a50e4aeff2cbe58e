//! Which directory has the user of a token.

use std::net::IpAddr;
use std::sync::Arc;

use super::several::Answers;
use super::{RealmCore, Realms};
use crate::base::credential::{BearerToken, Credential};
use crate::cache::TokenSearch;
use crate::directory::DirectoryError;
use crate::login::authn::{AuthDecision, DecidedBy, LookupMode};
use crate::outcome::{Refusal, TokenError};
use crate::routing::Candidates;
use crate::token::VerifiedToken;

impl Realms {
    /// Whether a decision about this token asks its issuer.
    pub(crate) fn asks_issuer(&self, bearer: &BearerToken) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| tokens.needs_introspection(&bearer.token))
    }

    /// Decides about a token.
    pub(super) async fn decide_by_token(
        &self,
        credential: &Credential,
        bearer: &BearerToken,
        client: IpAddr,
        ask: LookupMode,
    ) -> AuthDecision {
        let verified = match &self.tokens {
            // Without a token the client asks what it needs (RFC 7628 section 4.3).
            _ if bearer.token.is_empty() => Err(TokenError::Malformed),
            Some(tokens) => tokens.verify(&bearer.token).await,
            None => Err(TokenError::UnknownIssuer),
        };
        let token = match verified {
            Ok(token) => Arc::new(token),
            Err(error) => return AuthDecision::refused(Refusal::of_token(error), DecidedBy::Usher),
        };
        let mut decision = match token.filter() {
            Some(filter) => {
                let search = TokenSearch { filter, name: credential.login().clone() };
                match self.realm_of(&token, &search, ask).await {
                    Ok(realm) => realm.has_decided(realm.authn.decide_claim(search, &token, client, ask).await),
                    Err(decision) => *decision,
                }
            }
            // The claim lacks a part that the filter requires.
            None => AuthDecision::refused(Refusal::UnknownUser, DecidedBy::Usher),
        };
        if let Ok(proven) = &mut decision.result {
            proven.token = Some(Arc::clone(&token));
        }
        AuthDecision { token: Some(token), ..decision }
    }

    /// The directory that has the user of a token, by the domain of its claim.
    async fn realm_of(
        &self,
        token: &VerifiedToken,
        search: &TokenSearch,
        ask: LookupMode,
    ) -> Result<&RealmCore, Box<AuthDecision>> {
        let several = match self.candidates(token.claim()) {
            Candidates::One(realm) => return Ok(realm),
            Candidates::None => return Err(Box::new(AuthDecision::refused(Refusal::UnknownUser, DecidedBy::Usher))),
            Candidates::Several(several) => several,
        };
        if ask == LookupMode::Cached {
            let mut known = several.iter().filter(|realm| realm.authn.cache().found(search).is_some());
            if let (Some(one), None) = (known.next(), known.next()) {
                return Ok(one);
            }
            // None of them had it a moment ago.
            let had_none = |realm: &&RealmCore| {
                realm.authn.cache().refused_lately(&search.filter) == Some(DirectoryError::NoEntry)
            };
            if several.iter().all(had_none) {
                return Err(Box::new(AuthDecision::refused(Refusal::UnknownUser, DecidedBy::Negative)));
            }
        }
        let answers = Answers::of(&several, |realm| realm.directory().find_by(&search.filter)).await;
        answers.with_entry_or_not().for_each(|(realm, has_entry)| {
            let cache = realm.authn.cache();
            match has_entry {
                Some(true) => cache.forget_refused(&search.filter),
                Some(false) => cache.refuse_found(search, &DirectoryError::NoEntry),
                None => {}
            }
        });
        answers.deciding(|realm| ask == LookupMode::Cached && realm.authn.cache().found_stale(search).is_some())
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
