//! Authentication by a token: its issuer says who the user is, and the directory which entry that is.
//!
//! The token is verified at each attempt; only the entry is remembered. The entry is the one that the token's claim
//! finds, whatever name the client writes beside the token: that name has to lead to the same entry. No password is
//! involved, so that the states of an account are those that the entry shows.

use std::net::IpAddr;
use std::sync::Arc;

use super::{AuthDecision, Authenticator, DecidedBy, EntryCheck, FlightResult, LookupMode, require_usable};
use crate::base::clock::unix_now;
use crate::base::credential::Login;
use crate::cache::{CacheStamp, TokenSearch};
use crate::directory::{Availability, DirectoryError, Entry, Identity, NameKind};
use crate::outcome::Refusal;
use crate::token::VerifiedToken;

impl Authenticator {
    /// Decides about the user of a verified token.
    pub(in crate::login) async fn decide_claim(
        &self,
        search: TokenSearch,
        token: &Arc<VerifiedToken>,
        client: IpAddr,
        ask: LookupMode,
    ) -> AuthDecision {
        let since = self.cache.stamp();
        let remembered = |entry: Option<Arc<Entry>>, by| {
            // It may have expired since, or permit other networks by now: the directory is asked again.
            let is_usable =
                |entry: &Arc<Entry>| entry.version.account_state(unix_now()).is_none() && entry.permits(client);
            let entry = entry.filter(is_usable)?;
            Some(AuthDecision::remembered(Arc::new(Identity::from_token(token, entry)), since, by))
        };
        if ask == LookupMode::Cached {
            if let Some(cached) = remembered(self.cache.found(&search), DecidedBy::Cache) {
                return cached;
            }
            if self.directory.availability() == Availability::Unreachable
                && let Some(stale) = remembered(self.cache.found_stale(&search), DecidedBy::Stale)
            {
                return stale;
            }
        }
        let result = self.look_up_claim(&search, token, since).await;
        let is_outage = matches!(result.0, Err(DirectoryError::Unavailable(_)));
        if ask == LookupMode::Cached
            && is_outage
            && let Some(stale) = remembered(self.cache.found_stale(&search), DecidedBy::Stale)
            && self.directory.settled_availability().await != Availability::Available
        {
            return stale;
        }
        let mut decision = self.judge(&result, client);
        let Ok(identity) = &result.0 else {
            if !is_outage {
                self.cache.forget_found(&search);
            }
            return decision;
        };
        let entry = identity.shared_entry();
        // Also for a client that is refused for its network: the answer is remembered for others.
        if let Err(refusal) = self.require_same_entry(&search.name, token.claim(), &entry).await {
            decision.result = decision.result.and(Err(refusal));
            return decision;
        }
        // As with passwords: what is wrong with an entry may be mended unseen, and a hold is short.
        let is_followed = self.entries.record_login(&entry);
        if is_followed && entry.fault.is_none() && !entry.version.held {
            self.cache.keep_found(search, token.claim(), entry, since);
        } else {
            self.cache.forget_found(&search);
        }
        decision
    }

    async fn look_up_claim(&self, search: &TokenSearch, token: &VerifiedToken, since: CacheStamp) -> FlightResult {
        let (found, trace) = self.directory.find_by(&search.filter).await;
        let found = found.and_then(|entry| self.entries.in_force(entry, trace.server.as_ref()));
        let identity = found.map(|entry| Identity::from_token(token, entry));
        let networks = identity.as_ref().ok().and_then(|identity| identity.entry().networks.clone());
        let check = EntryCheck { networks, ..EntryCheck::default() };
        Arc::new((identity.and_then(require_usable).map(Arc::new), trace, since, check))
    }

    /// Checks that the name beside a token, if there is one, is that of the token's entry.
    async fn require_same_entry(&self, name: &Login, claim: &Login, entry: &Entry) -> Result<(), Refusal> {
        if name.is_absent() || name == claim {
            return Ok(());
        }
        match self.directory.find(name, NameKind::Login).await.0 {
            Ok(named) if is_same(&named, entry) => Ok(()),
            Err(DirectoryError::Unavailable(_)) => Err(Refusal::DirectoryUnavailable),
            // Whether there is such a user is not said.
            Ok(_) | Err(_) => Err(Refusal::AuthzidNotAllowed),
        }
    }

    /// Whether the entry of a verified token is held; `None` if unknown.
    pub(super) async fn is_claim_held(&self, token: &VerifiedToken) -> Option<bool> {
        self.is_entry_held(self.directory.find_by(&token.filter()?).await.0.ok()?)
    }
}

/// Whether two answers show the same entry: a server may hide the id that another one shows.
fn is_same(one: &Entry, other: &Entry) -> bool {
    (one.key() == other.key() || one.dn == other.dn) && !one.names().is_other(&other.names())
}
