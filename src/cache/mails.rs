//! Entries of mail addresses, apart from login names: an address may be another user's login name, and what was only
//! looked up proves no user.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Cache, CacheStamp};
use crate::base::credential::Login;
use crate::directory::Entry;

/// What the directory has found for an address.
#[derive(Debug, Clone)]
pub(super) struct FoundMail {
    pub(super) entry: Arc<Entry>,
    since: CacheStamp,
    pub(super) at: Instant,
    /// Whether it answers: otherwise it only says which entry the address led to.
    answers: bool,
}

impl Cache {
    /// The entry that this address has led to within `ttl`, unless a change of it was seen since.
    #[must_use]
    pub(crate) fn mail(&self, address: &Login) -> Option<Arc<Entry>> {
        self.mail_within(address, self.ttl)
    }

    /// The same within `stale`: for use while no directory server is available.
    #[must_use]
    pub(crate) fn mail_stale(&self, address: &Login) -> Option<Arc<Entry>> {
        self.mail_within(address, self.stale)
    }

    fn mail_within(&self, address: &Login, life: Duration) -> Option<Arc<Entry>> {
        let found = self.mails.get(address).filter(|found| found.answers && found.at.elapsed() < life)?;
        self.holds(&found.entry, found.since).then_some(found.entry)
    }

    /// The entry that this address has led to last, whatever has been seen of it since.
    #[must_use]
    pub(crate) fn mail_before(&self, address: &Login) -> Option<Arc<Entry>> {
        self.mails.get(address).map(|found| found.entry)
    }

    /// Stores what a search for this address has found that began at this stamp.
    pub(crate) fn keep_mail(&self, address: &Login, entry: Arc<Entry>, since: CacheStamp) {
        // Of no use otherwise, as what is stored is compared at each use.
        if self.holds(&entry, since) {
            let at = Instant::now();
            self.mails.insert(address.clone(), FoundMail { entry, since, at, answers: true });
        }
    }

    /// Stores that this address leads to an entry that has to be looked up each time.
    pub(crate) fn note_mail(&self, address: &Login, entry: Arc<Entry>, since: CacheStamp) {
        let at = Instant::now();
        self.mails.insert(address.clone(), FoundMail { entry, since, at, answers: false });
    }

    /// Every address with what it has led to and still counts.
    pub(super) fn all_mails(&self) -> impl Iterator<Item = (Arc<Login>, FoundMail)> {
        self.mails.iter().filter(|(_, found)| found.answers && self.holds(&found.entry, found.since))
    }

    /// It answers no more: the directory did not confirm it.
    pub(crate) fn forget_mail(&self, address: &Login) {
        if let Some(found) = self.mails.get(address).filter(|found| found.answers) {
            self.mails.insert(address.clone(), FoundMail { answers: false, ..found });
        }
    }
}
