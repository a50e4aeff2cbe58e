//! Filters that an entry has to match besides the one that finds it: `allow_filter` after the bind, `password_filter`
//! before it.
//!
//! Only the server can evaluate a filter: each costs one read of the entry. A read that fails is no mismatch.

use std::sync::Arc;

use crate::directory::ldap::Ldap;
use crate::directory::ldap::lookup;
use crate::directory::ldap::query::SearchRequest;
use crate::directory::ldap::selection::DecisionTime;
use crate::directory::ldap::server::Server;
use crate::directory::ldap::verdict;
use crate::directory::{DirectoryError, Entry, Trace};

impl Ldap {
    /// The request that checks whether the entry with this DN matches a filter.
    pub(super) fn filter_request(&self, dn: &str, filter: &str) -> SearchRequest {
        SearchRequest { filter: filter.to_owned(), ..lookup::read(dn.to_owned(), self.attributes()) }
    }

    /// Whether the entry with this DN matches a filter. `at`: the only server that is asked.
    pub(super) async fn entry_matches(
        &self,
        dn: &str,
        filter: &str,
        at: Option<&Arc<Server>>,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<bool, DirectoryError> {
        let query = self.filter_request(dn, filter);
        let found = match at {
            // Another server might not have received this change yet.
            Some(server) => {
                let found = server.service.search(&query, time.deadline, trace).await;
                found.map_err(|failure| DirectoryError::Unavailable(failure.cause()))?
            }
            None => self.ask(&query, time, trace).await?.0,
        };
        verdict::matches(&found, trace)
    }

    /// Sets whether an entry matches `allow_filter`, at the server that has returned it.
    pub(super) async fn set_group(
        &self,
        entry: &mut Entry,
        at: &Arc<Server>,
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
        at: Option<&Arc<Server>>,
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
