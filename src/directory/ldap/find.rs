//! What the service account finds without a user's password: the entry of a name, of a filter, and of a client whose
//! certificate is verified.
//!
//! Nothing is sent that a directory could count as a guess.

use std::sync::Arc;

use tokio::time::Instant;

use super::Ldap;
use super::entry_filter::AsReturned;
use super::fresh::FreshnessCheck;
use super::lookup;
use super::query::SearchRequest;
use super::selection::DecisionTime;
use super::server::Server;
use super::verdict;
use crate::base::credential::{ClientCertificate, Login};
use crate::config::Find;
use crate::directory::identity::AcceptedCertificate;
use crate::directory::{DirectoryError, Entry, Floor, Identity, Trace, UnavailableCause};
use crate::proto::ldap::result::{self, BindMeaning, SearchMeaning};
use crate::proto::ldap::template;

impl Ldap {
    /// Decides about a client whose certificate is verified.
    pub(super) async fn decide_by_certificate(
        &self,
        login: &Login,
        certificate: &ClientCertificate,
        floor: &dyn Floor,
        trace: &mut Trace,
    ) -> Result<Identity, DirectoryError> {
        let mut time = DecisionTime::new(self.settings.timeout);
        let entry = self.find_newest(login, Some(floor), &mut time, trace).await?;
        if let Some(other) = certificate.authzid() {
            let mut aside = Trace::default();
            let other = match self.find_newest(other, None, &mut time, &mut aside).await {
                Ok(other) => Some(other.key()),
                Err(DirectoryError::Unavailable(cause)) => return Err(DirectoryError::Unavailable(cause)),
                Err(_) => None,
            };
            if other != Some(entry.key()) {
                return Err(DirectoryError::OtherUser { dn: entry.dn });
            }
        }
        match AcceptedCertificate::compare(certificate, &entry) {
            Some(accepted) => Ok(Identity::from_certificate(accepted, entry)),
            None => Err(DirectoryError::WrongCertificate { dn: entry.dn }),
        }
    }

    pub(super) async fn find_entry(&self, login: &Login, trace: &mut Trace) -> Result<Entry, DirectoryError> {
        let mut time = DecisionTime::new(self.settings.timeout);
        self.find_newest(login, None, &mut time, trace).await
    }

    /// Finds an entry as the service account, at a server that has caught up with `floor` if there is one.
    async fn find_newest(
        &self,
        login: &Login,
        floor: Option<&dyn Floor>,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<Entry, DirectoryError> {
        let started = Instant::now();
        let (query, found, server) = match &self.settings.find {
            Find::Search { base, filter, .. } => {
                let query = self
                    .search(base, lookup::search_filter(&self.settings, filter, login).ok_or(DirectoryError::NoEntry)?);
                let found = self.ask(&query, time, trace).await;
                trace.search = Some(started.elapsed());
                let (found, server) = found?;
                trace.dn = found.first.as_ref().map(|entry| Arc::clone(&entry.dn));
                (query, verdict::single_entry(found, trace)?, server)
            }
            Find::UserDn { service: None, .. } | Find::Principal { service: None, .. } => {
                return Err(DirectoryError::Unavailable(UnavailableCause::NoServiceAccount));
            }
            Find::UserDn { .. } | Find::Principal { .. } => {
                let (_, query) = self.request_by_name(login).ok_or(DirectoryError::NoEntry)?;
                let (found, server) = self.find_named(&query, time, trace).await?;
                (query, found, server)
            }
        };
        let (mut entry, server) = match floor {
            Some(floor) => {
                let check = FreshnessCheck { query: &query, floor };
                self.caught_up(check, (found, server), time, trace).await?
            }
            None => (found, server),
        };
        let shown = entry.clone();
        let returned = AsReturned(&shown);
        let check = FreshnessCheck { query: &query, floor: floor.unwrap_or(&returned) };
        self.set_group(&mut entry, (&server, check), time, trace).await?;
        Ok(entry)
    }

    /// The entry of a request that was made of a name, as the service account sees it.
    pub(super) async fn find_named(
        &self,
        query: &SearchRequest,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<(Entry, Arc<Server>), DirectoryError> {
        let started = Instant::now();
        let found = self.ask(query, time, trace).await;
        trace.search = Some(started.elapsed());
        let (found, server) = found?;
        // The DN was made of the name.
        if found.is_read && result::of(found.code).bind == BindMeaning::Alias {
            return Err(verdict::alias(&query.base));
        }
        if found.is_read && result::of(found.code).search == SearchMeaning::NoSuchName {
            return Err(DirectoryError::NoEntry);
        }
        trace.dn = found.first.as_ref().map(|entry| Arc::clone(&entry.dn));
        Ok((verdict::read_as_service(found, trace)?, server))
    }

    /// The entry of a mail address.
    pub(super) async fn find_by_mail(&self, address: &Login, trace: &mut Trace) -> Result<Entry, DirectoryError> {
        let filter = self.settings.mail_filter.as_ref().and_then(|filter| template::filter(filter, address));
        let base = lookup::users_base(&self.settings.find);
        self.find_below(&base, filter.ok_or(DirectoryError::NoEntry)?, trace).await
    }

    pub(super) async fn find_match(&self, filter: &str, trace: &mut Trace) -> Result<Entry, DirectoryError> {
        let Find::Search { base, .. } = &self.settings.find else {
            return Err(DirectoryError::Unavailable(UnavailableCause::NoServiceAccount));
        };
        self.find_below(base, filter.to_owned(), trace).await
    }

    /// The one entry below a base that matches a filter.
    async fn find_below(&self, base: &str, filter: String, trace: &mut Trace) -> Result<Entry, DirectoryError> {
        let mut time = DecisionTime::new(self.settings.timeout);
        let started = Instant::now();
        let query = self.search(base, filter);
        let found = self.ask(&query, &mut time, trace).await;
        trace.search = Some(started.elapsed());
        let (found, server) = found?;
        let mut entry = verdict::single_entry(found, trace)?;
        trace.dn = Some(Arc::clone(&entry.dn));
        // The same version: the caller compares it with what is known.
        let shown = entry.clone();
        let returned = AsReturned(&shown);
        let check = FreshnessCheck { query: &query, floor: &returned };
        self.set_group(&mut entry, (&server, check), &mut time, trace).await?;
        Ok(entry)
    }
}
