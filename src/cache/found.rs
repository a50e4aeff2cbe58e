//! Entries that tokens have led to, by the search that found them: an issuer's word is proven by each token anew, and
//! the entry behind it is remembered as long as a decision is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Cache, CacheStamp};
use crate::base::credential::Login;
use crate::directory::Entry;

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
}
