//! Filters that an entry has to match besides the one that finds it: `allow_filter` after the bind, `password_filter`
//! before it.
//!
//! Only the server can evaluate a filter: each costs one read of the entry. A read that fails is no mismatch. If the
//! server that has returned the entry does not answer, another one is asked, as long as it is not behind with the entry.

use std::sync::Arc;

use crate::directory::ldap::Ldap;
use crate::directory::ldap::fresh::FreshnessCheck;
use crate::directory::ldap::lookup;
use crate::directory::ldap::query::SearchRequest;
use crate::directory::ldap::schema::Attributes;
use crate::directory::ldap::selection::DecisionTime;
use crate::directory::ldap::server::Server;
use crate::directory::ldap::verdict;
use crate::directory::{DirectoryError, Entry, Floor, Freshness, Trace, UnavailableCause};

/// The server that has returned an entry, and how to check another one.
pub(super) type ReturnedBy<'a> = (&'a Arc<Server>, FreshnessCheck<'a>);

/// What a server has returned, as the version that others must have.
pub(super) struct AsReturned<'a>(pub(super) &'a Entry);

impl Floor for AsReturned<'_> {
    fn freshness(&self, shown: &Entry, _: &str) -> Freshness {
        let Self(entry) = self;
        if shown.key() == entry.key() && shown.version == entry.version && shown.mail_hosts == entry.mail_hosts {
            return Freshness::CaughtUp;
        }
        Freshness::Behind(Arc::new(Entry::clone(entry)))
    }

    fn concerns(&self, _: &str) -> bool {
        true
    }

    fn followed(&self) -> Option<Arc<str>> {
        None
    }
}

impl Ldap {
    /// The request that checks whether the entry with this DN matches a filter.
    pub(super) fn filter_request(&self, dn: &str, filter: &str) -> SearchRequest {
        SearchRequest { filter: filter.to_owned(), ..lookup::read(dn.to_owned(), &Arc::new(Attributes::none())) }
    }

    /// Whether the entry with this DN matches a filter. `at`: the server that is asked first, and others only if they have
    /// caught up.
    pub(super) async fn entry_matches(
        &self,
        dn: &str,
        filter: &str,
        at: Option<ReturnedBy<'_>>,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<bool, DirectoryError> {
        let query = self.filter_request(dn, filter);
        let Some((first, check)) = at else {
            let (found, _) = self.ask(&query, time, trace).await?;
            return verdict::matches(&found, trace);
        };
        let mut tries = self.pool.candidates(time, Some(first));
        loop {
            let server = tries.next(time, trace).await?;
            // Another server might not have received this change yet.
            if !Arc::ptr_eq(first, &server) && !self.has_caught_up(&server, check, time.deadline, trace).await {
                tries.pass_over(UnavailableCause::Behind { server: Arc::clone(&server.url) });
                continue;
            }
            match server.service.search(&query, time.deadline, trace).await {
                Ok(found) => return verdict::matches(&found, trace),
                Err(failure) => tries.note(failure, time)?,
            }
        }
    }

    /// Sets whether an entry matches `allow_filter`.
    pub(super) async fn set_group(
        &self,
        entry: &mut Entry,
        at: ReturnedBy<'_>,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<(), DirectoryError> {
        if let Some(filter) = &self.settings().allow.filter {
            entry.in_group = self.entry_matches(&entry.dn, filter, Some(at), time, trace).await?;
        }
        Ok(())
    }

    /// Refuses an entry that does not match `password_filter`, before its password is sent.
    pub(super) async fn require_password_login(
        &self,
        entry: &Entry,
        at: Option<ReturnedBy<'_>>,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<(), DirectoryError> {
        let Some(filter) = &self.settings().password_filter else { return Ok(()) };
        if self.entry_matches(&entry.dn, filter, at, time, trace).await? {
            return Ok(());
        }
        Err(DirectoryError::PasswordNotAllowed { dn: Arc::clone(&entry.dn), key: entry.key() })
    }
}
