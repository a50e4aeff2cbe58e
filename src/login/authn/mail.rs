//! The entry of a mail address, for Postfix's questions: found as the entry of a token is, by usher's own account.
//!
//! It proves no user. What is remembered of it is apart from logins; only the tracked entries are the same, so that
//! changes are seen and the brake keeps the route of a user that mail was delivered to.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Authenticator, DecidedBy};
use crate::base::credential::Login;
use crate::base::flights::Flights;
use crate::directory::{Availability, DirectoryError, Entry, NameKind, UnavailableCause};

/// Searches for addresses at a time: mail to names that do not exist leaves the directory to logins.
const SEARCHES: usize = 32;
/// How long a search may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses that are looked up or wait for it: more than there may be connections.
const FLIGHTS: usize = 10_000;

/// The answer about an address: its only entry, in the version that is in force.
pub(crate) type FoundAddress = Result<Arc<Entry>, DirectoryError>;

/// Look-ups of addresses in progress.
pub(super) struct MailFlights {
    flights: Flights<Login, FoundAddress>,
    searches: Arc<Semaphore>,
}

impl MailFlights {
    pub(super) fn new() -> Self {
        Self { flights: Flights::new(FLIGHTS), searches: Arc::new(Semaphore::new(SEARCHES)) }
    }
}

impl Authenticator {
    /// Finds the entry of an address, and says where the answer is from.
    pub(crate) async fn find_address(&self, address: &Login) -> (FoundAddress, DecidedBy) {
        if let Some(entry) = self.cache.mail(address) {
            return (Ok(entry), DecidedBy::Cache);
        }
        let stale = || self.cache.mail_stale(address);
        if self.directory.availability() == Availability::Unreachable
            && let Some(entry) = stale()
        {
            return (Ok(entry), DecidedBy::Stale);
        }
        let found = self.mails.flights.join(address.clone(), || self.search_address(address.clone())).await;
        let found = found.unwrap_or(Err(DirectoryError::Unavailable(UnavailableCause::Busy)));
        // The first questions of an outage detect it here.
        if matches!(found, Err(DirectoryError::Unavailable(_)))
            && let Some(entry) = stale()
            && self.directory.settled_availability().await != Availability::Available
        {
            return (Ok(entry), DecidedBy::Stale);
        }
        (found, DecidedBy::Directory)
    }

    /// The search of one flight: it updates the cache even when no connection waits for it any more.
    fn search_address(&self, address: Login) -> impl Future<Output = FoundAddress> + use<> {
        let (directory, cache, entries) =
            (Arc::clone(&self.directory), Arc::clone(&self.cache), Arc::clone(&self.entries));
        let searches = Arc::clone(&self.mails.searches);
        async move {
            let Ok(Ok(_turn)) = timeout(PATIENCE, searches.acquire()).await else {
                return Err(DirectoryError::Unavailable(UnavailableCause::Busy));
            };
            let since = cache.stamp();
            let (found, trace) = directory.find(&address, NameKind::Mail).await;
            let found = found.and_then(|entry| entries.in_force(entry, trace.server.as_ref()));
            let found = match found {
                // The brake keeps a user whose deletion it holds back.
                Err(DirectoryError::NoEntry) => match cache.mail_before(&address) {
                    Some(before) => entries.kept(&before).and_then(|kept| kept.ok_or(DirectoryError::NoEntry)),
                    None => Err(DirectoryError::NoEntry),
                },
                found => found,
            };
            match &found {
                // As with logins: what is wrong with an entry may be mended unseen, and a hold is short.
                Ok(entry) => {
                    let is_followed = entries.record_login(entry);
                    if is_followed && entry.fault.is_none() && !entry.version.held {
                        cache.keep_mail(&address, Arc::clone(entry), since);
                    } else {
                        cache.note_mail(&address, Arc::clone(entry), since);
                    }
                }
                Err(DirectoryError::Unavailable(_)) => {}
                Err(_) => cache.forget_mail(&address),
            }
            found
        }
    }
}
