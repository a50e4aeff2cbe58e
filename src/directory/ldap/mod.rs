//! The LDAP directory: finds the entry of a login name and binds as it.
//!
//! There are two ways: a search as the service account followed by a bind as the DN found, or a bind as a DN
//! (or an Active Directory principal name) built from the name, followed by a read of that entry as the user, or as the
//! service account if an attribute restricts the login.
//! A client with a certificate is found by the service account in either. Each has one deadline for all attempts. Only
//! result 0 of a bind authenticates and only 49 is a wrong password; an account state that accompanies either takes
//! precedence, and a name that a server does not know is no wrong password but sounds like one. An answered bind is never
//! repeated on another server (promise 6), referrals are never followed (promise 9), and nothing is ever bound with an
//! empty DN or password (promise 2). RFC 4511, 4513.

mod addresses;
mod bind_client;
mod bind_pool;
mod bridge;
mod changes;
mod connection;
mod diagnose;
mod dial;
mod dns;
mod endpoint;
mod entry_filter;
mod error;
mod find;
pub(crate) mod frames;
mod fresh;
mod health;
mod idle;
mod lag;
mod listing;
mod lockout;
mod lookup;
pub(crate) mod policy;
mod probe;
mod query;
mod ranges;
mod request;
mod schema;
#[cfg(test)]
mod scripted;
mod search;
mod selection;
mod server;
mod server_set;
mod service_account;
mod srv;
#[cfg(test)]
mod tests;
mod tuning;
mod verdict;

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use self::bind_pool::BindLease;
use self::dns::DnsResolver;
use self::error::RequestError;
use self::fresh::{FreshnessCheck, not_caught_up};
use self::query::{SearchRequest, SearchResult};
use self::schema::Attributes;
use self::selection::{DecisionTime, ServerPool};
use self::server::{Server, ServerFactory};
use self::server_set::ServerSet;
use self::tuning::Tuning;
use self::verdict::{BindVerdicts, DnOrigin};
use super::identity::AcceptedBind;
use super::{
    Availability, BoxFuture, ChangeSource, ConnectionFault, Diagnosis, Directory, DirectoryError, DirectoryFuture,
    DirectoryTls, Entry, EntryVersion, Floor, Freshness, Identity, NameKind, Networks, Probes, RefusedBefore,
    ResolvedName, Trace, UnavailableCause, UserListing,
};
use crate::base::credential::{Credential, CredentialSecret, Login};
use crate::base::secret::Secret;
use crate::config::{self, Find};
use crate::proto::ldap::result::INVALID_CREDENTIALS;
use crate::telemetry::metrics::Metrics;

/// What to bind as.
#[derive(Clone, Copy)]
struct BindTarget<'a> {
    name: &'a str,
    /// Where the name is from.
    origin: DnOrigin,
    /// The entry's version at lookup.
    seen: &'a EntryVersion,
    password: &'a [u8],
    /// The server that returned the entry, asked first.
    first: Option<&'a Arc<Server>>,
    /// How to check another server before the password is sent to it.
    check: Option<FreshnessCheck<'a>>,
}

/// The LDAP directory of one configuration. Connections are opened on demand.
#[derive(Debug)]
pub(crate) struct Ldap {
    settings: config::Directory,
    attributes: Arc<Attributes>,
    pool: ServerPool,
    verdicts: BindVerdicts,
}

impl Ldap {
    /// A directory for these settings. `tls` is for ldaps and StartTLS; without it such servers cannot be reached.
    #[must_use]
    pub(crate) fn new(settings: &config::Directory, tls: DirectoryTls, metrics: Arc<Metrics>) -> Self {
        Self::tuned(settings, tls, metrics, Tuning::default())
    }

    pub(super) fn tuned(
        settings: &config::Directory,
        tls: DirectoryTls,
        metrics: Arc<Metrics>,
        tuning: Tuning,
    ) -> Self {
        let attributes = Arc::new(lookup::wanted(settings));
        let (changes, changed) = watch::channel(());
        let how = (tuning, changes.clone());
        let factory = ServerFactory::new(settings, Arc::clone(&attributes), tls, Arc::clone(&metrics), how);
        let server_set = ServerSet::new(factory, DnsResolver::new(settings.resolver.clone()), changes);
        let pool = ServerPool::new(Arc::new(server_set), settings.balance, changed);
        let verdicts = BindVerdicts::new(settings, metrics);
        Self { pool, attributes, settings: settings.clone(), verdicts }
    }

    pub(super) fn settings(&self) -> &config::Directory {
        &self.settings
    }

    pub(super) fn attributes(&self) -> &Arc<Attributes> {
        &self.attributes
    }

    /// The servers in force, in order of preference.
    pub(super) fn servers(&self) -> Vec<Arc<Server>> {
        self.pool.server_set().list().iter().cloned().collect()
    }

    pub(super) fn server_set(&self) -> &Arc<ServerSet> {
        self.pool.server_set()
    }

    /// Waits until a server that is or was down is up again.
    pub(super) async fn recovery(&self) {
        self.pool.recovery().await;
    }

    #[cfg(test)]
    pub(super) fn server(&self, at: usize) -> Arc<Server> {
        Arc::clone(&self.servers()[at])
    }

    async fn decide(
        &self,
        credential: &Credential,
        refused_before: RefusedBefore<'_>,
        floor: &dyn Floor,
        trace: &mut Trace,
    ) -> Result<Identity, DirectoryError> {
        let mut time = DecisionTime::new(self.settings.timeout);
        let login = credential.login();
        let password = match credential.secret() {
            CredentialSecret::Password(password) => self.sendable(password)?,
            // A token names its entry by a filter of its own (`find_by`), and is never bound with.
            CredentialSecret::Token(_) => return Err(DirectoryError::NoEntry),
            CredentialSecret::ClientCertificate(certificate) => {
                return self.decide_by_certificate(login, certificate, floor, trace).await;
            }
        };
        match &self.settings.find {
            Find::Search { base, filter, .. } => {
                let query = self
                    .search(base, lookup::search_filter(&self.settings, filter, login).ok_or(DirectoryError::NoEntry)?);
                let started = Instant::now();
                let found = self.ask(&query, &mut time, trace).await;
                trace.search = Some(started.elapsed());
                let (found, server) = found?;
                trace.dn = found.first.as_ref().map(|entry| Arc::clone(&entry.dn));
                let (check, shown) = (FreshnessCheck { query: &query, floor }, verdict::single_entry(found, trace)?);
                let found = self.caught_up(check, (shown, server), &time, trace).await;
                trace.search = Some(started.elapsed());
                let (mut entry, server) = found?;
                if refused_before(&entry) {
                    return Err(DirectoryError::RefusedBefore { dn: entry.dn });
                }
                let check = floor.concerns(&entry.dn).then_some(check);
                let asked =
                    self.require_password_login(&entry, check.map(|check| (&server, check)), &mut time, trace).await;
                trace.search = Some(started.elapsed());
                asked?;

                let started = Instant::now();
                let whom = BindTarget {
                    name: &entry.dn,
                    origin: DnOrigin::Directory,
                    seen: &entry.version,
                    password,
                    first: Some(&server),
                    check,
                };
                let bound = self.bind(whom, &mut time, trace).await;
                trace.bind = Some(started.elapsed());
                // The watch may have reported another change meanwhile.
                let answered = trace.server.as_deref().unwrap_or_default();
                trace.behind = !matches!(floor.freshness(&entry, answered), Freshness::CaughtUp);
                let (server, lease, accepted) = bound?;
                server.binds.give_back(lease);
                if let Some(filter) = &self.settings.allow.filter {
                    let at = check.map(|check| (&server, check));
                    entry.in_group = self.entry_matches(&entry.dn, filter, at, &mut time, trace).await?;
                }
                Ok(Identity::from_bind(accepted, entry))
            }
            Find::UserDn { .. } | Find::Principal { .. } => {
                let (name, query) = self.request_by_name(login).ok_or(DirectoryError::NoEntry)?;
                let networks = self.settings.networks_attribute.as_ref().map(|_| Arc::new(Networks::Unread));
                let named = Entry { networks, ..Entry::unread(self.attributes.realm, name.as_str().into()) };
                trace.dn = Some(Arc::clone(&named.dn));
                if refused_before(&named) {
                    return Err(DirectoryError::RefusedBefore { dn: named.dn });
                }
                let check = (floor.concerns(&name) && self.settings.find.service().is_some())
                    .then_some(FreshnessCheck { query: &query, floor });
                // An entry without a recent change is bound without a lookup.
                let found = match check {
                    Some(check) => self.find_before_bind(check, &mut time, trace).await?,
                    None => None,
                };
                if self.settings.password_filter.is_some() {
                    let (entry, server) = match &found {
                        Some(found) => found.clone(),
                        None => self.find_named(&query, &mut time, trace).await?,
                    };
                    let at = (&server, FreshnessCheck { query: &query, floor });
                    self.require_password_login(&entry, Some(at), &mut time, trace).await?;
                }
                // If no server returns the entry, none can lag behind with it.
                let check = check.filter(|_| found.is_some());
                let started = Instant::now();
                let version = EntryVersion { realm: self.attributes.realm, ..EntryVersion::default() };
                let first = found.as_ref().map(|(_, server)| server);
                let origin = DnOrigin::Template;
                let whom = BindTarget { name: &name, origin, seen: &version, password, first, check };
                let bound = self.bind(whom, &mut time, trace).await;
                trace.bind = Some(started.elapsed());
                let answered = trace.server.clone().unwrap_or_default();
                trace.behind = match &found {
                    Some((entry, _)) => !matches!(floor.freshness(entry, &answered), Freshness::CaughtUp),
                    None => floor.concerns(&name),
                };
                let (server, mut lease, accepted) = bound?;

                let started = Instant::now();
                // A user may be unable to read what restricts the login, and the canary does not show it.
                let by_service = self.settings.reads_as_service();
                let found = if by_service {
                    let found = server.service.search(&query, time.deadline, trace).await;
                    found.map_err(RequestError::cause)
                } else {
                    server.binds.read(&mut lease, &query, time.deadline, trace).await
                };
                trace.search = Some(started.elapsed());
                // The bind was answered: whatever the read returns, no other server gets the password.
                let found = found.map_err(DirectoryError::Unavailable)?;
                if by_service || self.settings.networks_attribute.is_some() {
                    server.service.confirm(&found, time.deadline).await.map_err(DirectoryError::Unavailable)?;
                }
                let mut entry = verdict::read_entry(found, trace)?;
                if let Some(filter) = &self.settings.allow.filter {
                    let query = self.filter_request(&entry.dn, filter);
                    let found = server.binds.read(&mut lease, &query, time.deadline, trace).await;
                    entry.in_group = verdict::matches(&found.map_err(DirectoryError::Unavailable)?, trace)?;
                }
                server.binds.give_back(lease);
                match floor.freshness(&entry, &server.url) {
                    Freshness::CaughtUp => Ok(Identity::from_bind(accepted, entry)),
                    // Already bound, so that no other server can be asked.
                    newest @ (Freshness::Behind(_) | Freshness::Hidden(_) | Freshness::Deleted) => {
                        trace.behind = true;
                        Err(not_caught_up(newest, &server.url))
                    }
                }
            }
        }
    }

    fn request_by_name(&self, login: &Login) -> Option<(String, SearchRequest)> {
        lookup::request_by_name(&self.settings.find, login, &self.attributes)
    }

    /// Asks as the service account, on the first server that gives a verdict.
    pub(super) async fn ask(
        &self,
        query: &SearchRequest,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<(SearchResult, Arc<Server>), DirectoryError> {
        let mut tries = self.pool.candidates(time, None);
        loop {
            let server = tries.next(time, trace).await?;
            let mut answer = server.service.search(query, time.deadline, trace).await;
            // No entry, or one without what may be hidden: only accepted from a server that returns the canary.
            if let Ok(found) = &answer
                && let Err(cause) = server.service.confirm(found, time.deadline).await
            {
                answer = Err(RequestError::Indeterminate(cause));
            }
            match answer {
                Ok(found) => return Ok((found, server)),
                Err(failure) => tries.note(failure, time)?,
            }
        }
    }

    /// Binds on the first server that gives a verdict; returns its bound connection on success.
    async fn bind(
        &self,
        BindTarget { name: dn, origin, seen, password, first, check }: BindTarget<'_>,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<(Arc<Server>, BindLease, AcceptedBind), DirectoryError> {
        let mut tries = self.pool.candidates(time, first);
        loop {
            let server = tries.next(time, trace).await?;
            // Another server than the one that returned the entry may lag behind with it.
            if let Some(check) = check
                && first.is_none_or(|first| !Arc::ptr_eq(first, &server))
                && !self.has_caught_up(&server, check, time.deadline, trace).await
            {
                tries.pass_over(UnavailableCause::Behind { server: server.url.clone() });
                continue;
            }
            match server.binds.bind(dn, password, time.deadline, trace).await {
                Ok((bound, lease)) => {
                    let judged = self.verdicts.judge(&bound, (dn, origin), seen, trace);
                    let refused = match judged {
                        Ok(accepted) => return Ok((server, lease, accepted)),
                        Err(refused) => refused,
                    };
                    server.binds.give_back(lease);
                    // An empty server refuses every password, or knows no name. Its answer was one guess: no
                    // other server gets it.
                    let is_about_user = matches!(
                        refused,
                        DirectoryError::InvalidCredentials { .. }
                            | DirectoryError::NoEntry
                            | DirectoryError::NoPassword { .. }
                    );
                    if is_about_user || bound.result.code == INVALID_CREDENTIALS {
                        server.service.confirm_canary(time.deadline).await.map_err(DirectoryError::Unavailable)?;
                    }
                    return Err(refused);
                }
                Err(failure) => tries.note(failure, time)?,
            }
        }
    }

    /// The password as a simple bind takes it. The caller has checked it already; this is the last guard.
    fn sendable<'p>(&self, password: &'p Secret) -> Result<&'p [u8], DirectoryError> {
        let bytes = Some(password.expose()).filter(|bytes| !bytes.is_empty() && !bytes.contains(&0));
        bytes.ok_or_else(|| {
            let server = self.settings.servers.first().map(|server| server.url.as_str()).unwrap_or_default();
            let fault = ConnectionFault::UnsendablePassword;
            DirectoryError::Unavailable(UnavailableCause::Connection { server: server.into(), fault })
        })
    }

    fn search(&self, base: &str, filter: String) -> SearchRequest {
        lookup::search(base, filter, &self.attributes)
    }
}

impl Directory for Ldap {
    fn authenticate<'a>(
        &'a self,
        credential: &'a Credential,
        refused_before: RefusedBefore<'a>,
        floor: &'a dyn Floor,
    ) -> DirectoryFuture<'a, Identity> {
        Box::pin(async move {
            let mut trace = Trace::default();
            (self.decide(credential, refused_before, floor, &mut trace).await, trace)
        })
    }

    fn find<'a>(&'a self, name: &'a Login, kind: NameKind) -> DirectoryFuture<'a, Entry> {
        Box::pin(async move {
            let mut trace = Trace::default();
            let found = match kind {
                NameKind::Login => self.find_entry(name, &mut trace).await,
                NameKind::Mail => self.find_by_mail(name, &mut trace).await,
            };
            (found, trace)
        })
    }

    fn find_by<'a>(&'a self, filter: &'a str) -> DirectoryFuture<'a, Entry> {
        Box::pin(async move {
            let mut trace = Trace::default();
            (self.find_match(filter, &mut trace).await, trace)
        })
    }

    fn matches<'a>(&'a self, dn: &'a str, filter: &'a str) -> DirectoryFuture<'a, bool> {
        Box::pin(async move {
            let mut trace = Trace::default();
            let mut time = DecisionTime::new(self.settings.timeout);
            (self.entry_matches(dn, filter, None, &mut time, &mut trace).await, trace)
        })
    }

    fn availability(&self) -> Availability {
        self.pool.availability()
    }

    fn settled_availability(&self) -> BoxFuture<'_, Availability> {
        // The longest duration of an unsuccessful probe.
        Box::pin(self.pool.settled_availability(self.settings.attempt_timeout.saturating_mul(2)))
    }

    fn changes(&self) -> Option<&dyn ChangeSource> {
        Some(self)
    }

    fn resolved(&self) -> Vec<ResolvedName> {
        self.server_set().resolved()
    }

    fn begin_with(&self, known: &[ResolvedName]) {
        self.server_set().begin_with(known);
    }

    fn users(&self) -> Option<&dyn UserListing> {
        Some(self)
    }

    fn diagnose(&self) -> Option<&dyn Diagnosis> {
        Some(self)
    }

    fn probes(&self) -> Option<&dyn Probes> {
        Some(self)
    }
}

impl Probes for Ldap {
    fn run_due(&self) {
        self.pool.run_probes();
    }

    /// Until a server answers, accepts the service account and returns the canary.
    fn probe(&self) -> BoxFuture<'_, Result<(), UnavailableCause>> {
        Box::pin(async move {
            self.server_set().look_up(false).await;
            let servers = self.servers();
            let probes: Vec<_> = servers.iter().map(|server| Box::pin(server.run_probe())).collect();
            if probes.is_empty() {
                return Err(self.server_set().cause());
            }
            futures_util::future::select_ok(probes).await.map(|_| ())
        })
    }

    fn update_gauges(&self) {
        let servers = self.servers();
        servers.iter().for_each(|server| server.update_gauges(servers.len() == 1));
        self.server_set().update_gauges();
    }
}
