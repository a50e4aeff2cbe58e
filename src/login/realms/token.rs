//! Which directory has the user of a token.

use std::net::IpAddr;
use std::sync::Arc;

use super::several::Answers;
use super::{RealmCore, Realms, foreign_name};
use crate::base::credential::{BearerToken, Credential, Login};
use crate::cache::TokenSearch;
use crate::directory::{DirectoryError, UnavailableCause};
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
        let mut decision = match self.realm_of(&token, credential.login(), ask).await {
            // In the directory of the token's user, the name might find that user all the same.
            Ok((realm, search)) if self.is_foreign(realm, &search.name, token.claim()) => foreign_name(),
            Ok((realm, search)) => realm.has_decided(realm.authn.decide_claim(search, &token, client, ask).await),
            Err(decision) => *decision,
        };
        if let Ok(proven) = &mut decision.result {
            proven.token = Some(Arc::clone(&token));
        }
        AuthDecision { token: Some(token), ..decision }
    }

    fn is_foreign(&self, realm: &RealmCore, name: &Login, claim: &Login) -> bool {
        !name.is_absent() && name != claim && !self.may_have(realm, name)
    }

    /// The directory that has the user of a token, for `usher explain`.
    ///
    /// # Errors
    /// No directory has it, or several have, or one that may does not answer.
    pub(crate) async fn locate_token(&self, token: &VerifiedToken) -> Result<&RealmCore, DirectoryError> {
        match self.realm_of(token, &Login::absent(), LookupMode::Directory).await {
            Ok((realm, _)) => Ok(realm),
            Err(decision) => Err(match decision.result {
                Err(Refusal::SeveralEntries(proof)) => {
                    let dns = decision.dn.into_iter().chain(decision.other_dn).collect();
                    DirectoryError::SeveralEntries { dns, proof }
                }
                Err(Refusal::DirectoryUnavailable) => DirectoryError::Unavailable(UnavailableCause::Timeout),
                Ok(_) | Err(_) => DirectoryError::NoEntry,
            }),
        }
    }

    /// The directory that has the user of a token: that of its issuer, or by the domain of the claim; and the search for
    /// the user there.
    async fn realm_of(
        &self,
        token: &VerifiedToken,
        name: &Login,
        ask: LookupMode,
    ) -> Result<(&RealmCore, TokenSearch), Box<AuthDecision>> {
        let candidates = match token.directory() {
            Some(directory) => self.named(directory),
            None => self.candidates(token.claim()),
        };
        let search_in = |realm: &RealmCore| {
            let filter = token.filter(realm.settings.find.filter())?;
            Some(TokenSearch { filter, name: name.clone() })
        };
        let several = match candidates {
            Candidates::One(realm) => vec![realm],
            Candidates::None => Vec::new(),
            Candidates::Several(several) => several,
        };
        // Without a search, the claim lacks a part that the filter requires.
        let mut searches = several.into_iter().filter_map(|realm| Some((realm, search_in(realm)?)));
        let searches: Vec<_> = match (searches.next(), searches.next()) {
            (None, _) => return Err(Box::new(AuthDecision::refused(Refusal::UnknownUser, DecidedBy::Usher))),
            (Some(one), None) => return Ok(one),
            (Some(one), Some(other)) => [one, other].into_iter().chain(searches).collect(),
        };
        if ask == LookupMode::Cached {
            let mut known = searches.iter().filter(|(realm, search)| realm.authn.cache().found(search).is_some());
            if let (Some((realm, search)), None) = (known.next(), known.next()) {
                return Ok((realm, search.clone()));
            }
            // None of them had it a moment ago.
            let had_none = |(realm, search): &(&RealmCore, TokenSearch)| {
                realm.authn.cache().refused_lately(&search.filter) == Some(DirectoryError::NoEntry)
            };
            if searches.iter().all(had_none) {
                return Err(Box::new(AuthDecision::refused(Refusal::UnknownUser, DecidedBy::Negative)));
            }
        }
        let of =
            |realm: &RealmCore| searches.iter().find(|(one, _)| one.realm == realm.realm).map(|(_, search)| search);
        let realms: Vec<_> = searches.iter().map(|(realm, _)| *realm).collect();
        let answers = Answers::of(&realms, |realm| {
            let filter = of(realm).map_or("", |search| search.filter.as_str());
            realm.directory().find_by(filter)
        });
        let answers = answers.await;
        answers.with_entry_or_not().for_each(|(realm, has_entry)| {
            let (cache, Some(search)) = (realm.authn.cache(), of(realm)) else { return };
            match has_entry {
                Some(true) => cache.forget_refused(&search.filter),
                Some(false) => cache.refuse_found(search, &DirectoryError::NoEntry),
                None => {}
            }
        });
        let is_stale = |realm: &RealmCore| {
            let stale = || of(realm).and_then(|search| realm.authn.cache().found_stale(search));
            ask == LookupMode::Cached && stale().is_some()
        };
        let realm = answers.deciding(is_stale)?;
        of(realm)
            .map(|search| (realm, search.clone()))
            .ok_or_else(|| Box::new(AuthDecision::refused(Refusal::Internal, DecidedBy::Usher)))
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
