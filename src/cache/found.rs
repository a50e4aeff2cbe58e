//! Entries that tokens have led to, by the search that found them: an issuer's word is proven by each token anew, and
//! the entry behind it is remembered as long as a decision is.
//!
//! That a search leads to no user is remembered for a moment only, so that a new mailbox is found soon: whoever has a
//! good token of a user without one cannot have the directory searched at will.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Cache, CacheStamp};
use crate::base::credential::Login;
use crate::directory::{DirectoryError, Entry};

/// How long a search that leads to no user is not repeated, and `negative_ttl` at most.
pub(super) const REFUSED: Duration = Duration::from_secs(5);

/// The search for an entry: its filter, and the name beside the token, which has been found to be the same entry's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenSearch {
    /// The filter.
    pub filter: String,
    /// The name, or its absence.
    pub name: Login,
}

/// The answer to it.
#[derive(Debug, Clone)]
pub(super) struct FoundEntry {
    pub(super) entry: Arc<Entry>,
    /// The token's claim, by which an administrator may name the user.
    pub(super) claim: Login,
    since: CacheStamp,
    pub(super) at: Instant,
}

/// Why a search leads to no user.
#[derive(Debug, Clone)]
pub(super) struct RefusedSearch {
    error: DirectoryError,
    at: Instant,
}

impl Cache {
    /// The entry that this search has found within `ttl`, unless a change of it was seen since.
    #[must_use]
    pub(crate) fn found(&self, search: &TokenSearch) -> Option<Arc<Entry>> {
        self.found_within(search, self.ttl)
    }

    /// The same within `stale`: for use while no directory server is available.
    #[must_use]
    pub(crate) fn found_stale(&self, search: &TokenSearch) -> Option<Arc<Entry>> {
        self.found_within(search, self.stale)
    }

    /// The same within the time for which a refusal is remembered.
    #[must_use]
    pub(crate) fn found_lately(&self, search: &TokenSearch) -> Option<Arc<Entry>> {
        self.found_within(search, self.refused_life())
    }

    /// Why a search by this filter has led to no user a moment ago.
    #[must_use]
    pub(crate) fn refused_lately(&self, filter: &str) -> Option<DirectoryError> {
        let refused = self.refused.get(filter).filter(|refused| refused.at.elapsed() < self.refused_life());
        refused.map(|refused| refused.error)
    }

    fn refused_life(&self) -> Duration {
        REFUSED.min(self.negative_ttl)
    }

    fn found_within(&self, search: &TokenSearch, life: Duration) -> Option<Arc<Entry>> {
        let found = self.found.get(search).filter(|found| found.at.elapsed() < life)?;
        self.holds(&found.entry, found.since).then_some(found.entry)
    }

    /// Stores what a search for the entry of this claim has found that began at this stamp.
    pub(crate) fn keep_found(&self, search: TokenSearch, claim: &Login, entry: Arc<Entry>, since: CacheStamp) {
        // Of no use otherwise, as what is stored is compared at each use.
        if self.holds(&entry, since) {
            self.found.insert(search, FoundEntry { entry, claim: claim.clone(), since, at: Instant::now() });
        }
    }

    /// Everything that tokens have led to and that still counts, with the names beside them.
    pub(super) fn all_found(&self) -> impl Iterator<Item = (Arc<TokenSearch>, FoundEntry)> {
        self.found.iter().filter(|(_, found)| self.holds(&found.entry, found.since))
    }

    /// Forgets it: the directory did not confirm it.
    pub(crate) fn forget_found(&self, search: &TokenSearch) {
        self.found.invalidate(search);
    }

    /// Forgets it, and stores why it leads to no user.
    pub(crate) fn refuse_found(&self, search: &TokenSearch, error: &DirectoryError) {
        self.forget_found(search);
        self.refused.insert(search.filter.clone(), RefusedSearch { error: error.clone(), at: Instant::now() });
    }

    /// Forgets why a search by this filter has led to no user: it does.
    pub(crate) fn forget_refused(&self, filter: &str) {
        self.refused.invalidate(filter);
    }
}
