//! Authentication by a token: its issuer says who the user is, and the directory which entry that is.
//!
//! The token is verified at each attempt; only the entry is remembered. The entry is the one that the token's claim
//! finds, whatever name the client writes beside the token: that name has to lead to the same entry. No password is
//! involved, so that the states of an account are those that the entry shows. Equal questions to the directory share a
//! flight.

use std::net::IpAddr;
use std::sync::Arc;

use super::{AuthDecision, Authenticator, DecidedBy, EntryCheck, FlightResult, LookupMode, require_usable};
use crate::base::clock::unix_now;
use crate::base::credential::Login;
use crate::cache::{CacheStamp, TokenSearch};
use crate::directory::{Availability, Directory, DirectoryError, Entry, Identity, NameKind, Trace};
use crate::outcome::Refusal;
use crate::proto::ldap::template::Template;
use crate::token::VerifiedToken;

/// The search for the user of a token, and the claim: the name beside the token is compared with both.
pub(super) type ClaimKey = (TokenSearch, Login);

/// What the directory says about it.
#[derive(Debug)]
pub(super) struct ClaimAnswer {
    entry: Result<Arc<Entry>, DirectoryError>,
    /// Whether the name beside the token is that of this entry.
    is_same: Result<(), Refusal>,
    trace: Trace,
    since: CacheStamp,
}

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
            let is_usable = |entry: &Arc<Entry>| is_open(entry) && entry.permits(client);
            let entry = entry.filter(is_usable)?;
            Some(AuthDecision::remembered(Arc::new(Identity::from_token(token, entry)), since, by))
        };
        if ask == LookupMode::Cached {
            if let Some(cached) = remembered(self.cache.found(&search), DecidedBy::Cache) {
                return cached;
            }
            if let Some(refused) = self.refused_lately(&search, token, client, since) {
                return refused;
            }
            if self.directory.availability() == Availability::Unreachable
                && let Some(stale) = remembered(self.cache.found_stale(&search), DecidedBy::Stale)
            {
                return stale;
            }
        }
        let key = (search.clone(), token.claim().clone());
        let answer = match self.claims.join(key, || self.look_up_claim(&search, token.claim())).await {
            Ok(answer) => answer,
            Err(error) => return AuthDecision::without_answer(error),
        };
        let ClaimAnswer { entry, is_same, trace, since } = &*answer;
        let result = identified(token, entry.clone(), trace.clone(), *since);
        let is_outage = matches!(result.0, Err(DirectoryError::Unavailable(_)));
        if ask == LookupMode::Cached
            && is_outage
            && let Some(stale) = remembered(self.cache.found_stale(&search), DecidedBy::Stale)
            && self.directory.settled_availability().await != Availability::Available
        {
            return stale;
        }
        let mut decision = self.judge(&result, client);
        let identity = match &result.0 {
            Ok(identity) => identity,
            Err(DirectoryError::Unavailable(_)) => return decision,
            Err(error) => {
                self.cache.refuse_found(&search, error);
                return decision;
            }
        };
        self.cache.forget_refused(&search.filter);
        // Also for a client that is refused for its network: the answer is remembered for others.
        if let Err(refusal) = is_same {
            decision.result = decision.result.and(Err(refusal.clone()));
            return decision;
        }
        let entry = identity.shared_entry();
        // As with passwords: what is wrong with an entry may be mended unseen, and a hold is short.
        let is_followed = self.entries.record_login(&entry);
        if is_followed && entry.fault.is_none() && !entry.version.held {
            self.cache.keep_found(search, token.claim(), entry, *since);
        } else {
            self.cache.forget_found(&search);
        }
        decision
    }

    /// The refusal of a moment ago. A good token is not charged, so that each would cost a search.
    fn refused_lately(
        &self,
        search: &TokenSearch,
        token: &VerifiedToken,
        client: IpAddr,
        since: CacheStamp,
    ) -> Option<AuthDecision> {
        let answer = match self.cache.refused_lately(&search.filter) {
            Some(error) => Err(error),
            // It is another answer for a client elsewhere.
            None => Ok(self.cache.found_lately(search).filter(|entry| !entry.permits(client))?),
        };
        let decision = self.judge(&identified(token, answer, Trace::default(), since), client);
        decision.result.is_err().then_some(AuthDecision { by: DecidedBy::Negative, ..decision })
    }

    /// The lookup of one flight.
    fn look_up_claim(
        &self,
        search: &TokenSearch,
        claim: &Login,
    ) -> impl Future<Output = Arc<ClaimAnswer>> + Send + use<> {
        let (directory, entries, since) = (Arc::clone(&self.directory), Arc::clone(&self.entries), self.cache.stamp());
        let (search, claim) = (search.clone(), claim.clone());
        async move {
            let (found, trace) = directory.find_by(&search.filter).await;
            let entry = found.and_then(|entry| entries.in_force(entry, trace.server.as_ref()));
            let is_same = match &entry {
                Ok(entry) if is_open(entry) => require_same_entry(&*directory, &search.name, &claim, entry).await,
                Ok(_) | Err(_) => Ok(()),
            };
            Arc::new(ClaimAnswer { entry, is_same, trace, since })
        }
    }

    /// Whether the entry of a verified token is held; `None` if unknown.
    pub(super) async fn is_claim_held(&self, token: &VerifiedToken, own: Option<&Template>) -> Option<bool> {
        self.is_entry_held(self.directory.find_by(&token.filter(own)?).await.0.ok()?)
    }
}

/// Checks that the name beside a token, if there is one, is that of the token's entry.
async fn require_same_entry(
    directory: &dyn Directory,
    name: &Login,
    claim: &Login,
    entry: &Entry,
) -> Result<(), Refusal> {
    if name.is_absent() || name == claim {
        return Ok(());
    }
    match directory.find(name, NameKind::Login).await.0 {
        Ok(named) if is_same(&named, entry) => Ok(()),
        Err(DirectoryError::Unavailable(_)) => Err(Refusal::DirectoryUnavailable),
        // Whether there is such a user is not said.
        Ok(_) | Err(_) => Err(Refusal::AuthzidNotAllowed),
    }
}

/// An answer as the identity of the user whose token this is.
fn identified(
    token: &VerifiedToken,
    answer: Result<Arc<Entry>, DirectoryError>,
    trace: Trace,
    since: CacheStamp,
) -> FlightResult {
    let identity = answer.map(|entry| Identity::from_token(token, entry));
    let networks = identity.as_ref().ok().and_then(|identity| identity.entry().networks.clone());
    let check = EntryCheck { networks, ..EntryCheck::default() };
    Arc::new((identity.and_then(require_usable).map(Arc::new), trace, since, check))
}

/// Whether no state of the entry prevents a login now.
fn is_open(entry: &Entry) -> bool {
    entry.version.account_state(unix_now()).is_none()
}

/// Whether two answers show the same entry: a server may hide the id that another one shows.
fn is_same(one: &Entry, other: &Entry) -> bool {
    (one.key() == other.key() || one.dn == other.dn) && !one.names().is_other(&other.names())
}
