//! One directory server: its service account, its bind connections, and its probes.
//!
//! A probe checks that the server is reachable, accepts the service account and returns the canary.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use crate::config;
use crate::directory::ldap::bind_pool::BindPool;
use crate::directory::ldap::endpoint::Endpoint;
use crate::directory::ldap::error::RequestError;
use crate::directory::ldap::health::ServerHealth;
use crate::directory::ldap::lag::{ContextCsns, ReplicationLag};
use crate::directory::ldap::lookup;
use crate::directory::ldap::probe::{ExpectedCanary, ServerProbe};
use crate::directory::ldap::schema::Attributes;
use crate::directory::ldap::service_account::ServiceAccount;
use crate::directory::ldap::tuning::Tuning;
use crate::directory::{DirectoryTls, Trace, UnavailableCause};
use crate::telemetry::labels::ConnectionUse;
use crate::telemetry::metrics::Metrics;

/// One directory server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: Arc<str>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) service: Arc<ServiceAccount>,
    pub(crate) binds: Arc<BindPool>,
    pub(crate) probe: Arc<ServerProbe>,
    /// Measured with each probe, if there are several servers to compare.
    pub(crate) lag: Option<ReplicationLag>,
}

impl Server {
    /// A configured server; nothing is connected yet. Health changes are sent to `changed`.
    pub(crate) fn new(
        server: &config::DirectoryServer,
        settings: &config::Directory,
        tls: Option<Arc<rustls::ClientConfig>>,
        metrics: Arc<Metrics>,
        (tuning, changed): (Tuning, watch::Sender<()>),
        (probe, lag): (ServerProbe, Option<ReplicationLag>),
    ) -> Self {
        let endpoint = Arc::new(Endpoint::new(server, settings, tls, metrics, (tuning, changed)));
        let probe = Arc::new(probe);
        let service = Arc::new(ServiceAccount::new(Arc::clone(&endpoint), settings, Arc::clone(&probe)));
        let canary = probe.has_canary().then(|| Arc::clone(&service));
        let binds = Arc::new(BindPool::new(Arc::clone(&endpoint), canary));
        Self { url: Arc::clone(&endpoint.url), endpoint, service, binds, probe, lag }
    }

    /// Its health.
    pub(crate) fn health(&self) -> &ServerHealth {
        &self.endpoint.health
    }

    /// Whether a request may be sent here now; see [`Endpoint::enter`].
    pub(crate) fn enter(&self) -> bool {
        self.endpoint.enter()
    }

    /// Sets the gauges that are computed at a scrape. `is_alone`: no other server is in force.
    pub(crate) fn update_gauges(&self, is_alone: bool) {
        let (metrics, names) = (&self.endpoint.metrics, self.endpoint.names());
        metrics.directory_up.with_label_values(&names).set(self.health().is_up().into());
        metrics.directory_canary_ok.with_label_values(&names).set((!self.probe.canary_missing()).into());
        // A single server lags behind no other.
        let alone = is_alone.then_some(0.0);
        if let Some(seconds) = self.lag.as_ref().and_then(ReplicationLag::seconds).or(alone) {
            metrics.directory_lag.with_label_values(&names).set(seconds);
        }
        let uses = [
            (ConnectionUse::Idle, self.endpoint.idle.len()),
            (ConnectionUse::Busy, self.binds.leased()),
            (ConnectionUse::Search, self.service.is_open().into()),
        ];
        for (used, count) in uses {
            let gauge = metrics.directory_connections.at_server(names, used);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Probes the server; the result is recorded in its health.
    pub(crate) async fn run_probe(&self) -> Result<(), UnavailableCause> {
        let Self { endpoint, service, binds, probe, .. } = self;
        let deadline = Instant::now() + endpoint.patience.saturating_mul(2);
        if !endpoint.health.is_in_use() || endpoint.health.is_suspect() {
            // A fresh connection: an old one would report a past state.
            service.reset();
        }
        if service.is_needed {
            let mut trace = Trace::default();
            let shared = service.search_connection(deadline, &mut trace).await.map_err(RequestError::cause)?;
            // A new connection has returned the canary already.
            if shared.is_used() || !probe.has_canary() {
                service.probe(&shared, deadline, &mut trace).await?;
            } else {
                shared.mark_used();
            }
            if let Some(lag) = &self.lag {
                lag.measure(endpoint, &shared.connection, deadline).await;
            }
        } else {
            let connected = endpoint.connect(deadline, &mut Trace::default()).await;
            let mut connection = connected.map_err(RequestError::cause)?;
            probe.send(endpoint, &mut connection, deadline).await?;
            binds.keep(connection);
        }
        if endpoint.health.probe_succeeded() {
            info!(directory = self.endpoint.shown, server = %self.url, "directory server up again");
        }
        binds.top_up(deadline).await
    }
}

/// Makes the servers of a directory.
#[derive(Debug)]
pub(crate) struct ServerFactory {
    settings: config::Directory,
    attributes: Arc<Attributes>,
    tls: DirectoryTls,
    metrics: Arc<Metrics>,
    how: (Tuning, watch::Sender<()>),
    /// What servers show of their writes; `None`: there is nothing to compare.
    seen: Option<Arc<Mutex<ContextCsns>>>,
}

impl ServerFactory {
    /// For these settings. Health changes are sent to `how.1`.
    pub(crate) fn new(
        settings: &config::Directory,
        attributes: Arc<Attributes>,
        tls: DirectoryTls,
        metrics: Arc<Metrics>,
        how: (Tuning, watch::Sender<()>),
    ) -> Self {
        let several = settings.servers.len() > 1 || settings.servers.iter().any(|server| server.srv.is_some());
        let seen = (settings.is_followed() && several).then(Arc::default);
        Self { settings: settings.clone(), attributes, tls, metrics, how, seen }
    }

    pub(crate) const fn settings(&self) -> &config::Directory {
        &self.settings
    }

    pub(crate) const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A server; nothing is connected yet.
    pub(crate) fn make(&self, server: &config::DirectoryServer) -> Arc<Server> {
        let settings = &self.settings;
        let probe = canary_probe(settings, &self.attributes);
        let lag =
            self.seen.as_ref().map(|seen| ReplicationLag::new(lookup::users_base(&settings.find), Arc::clone(seen)));
        let (tls, metrics) = (self.tls.of(&server.pin_sha256), Arc::clone(&self.metrics));
        Arc::new(Server::new(server, settings, tls, metrics, self.how.clone(), (probe, lag)))
    }
}

/// The request of a probe: the canary, or the root DSE (RFC 4512 section 5.1), which every server has and every
/// client may read.
fn canary_probe(settings: &config::Directory, attributes: &Arc<Attributes>) -> ServerProbe {
    let request = lookup::canary_request(settings, attributes);
    let attribute = |name: &Option<String>| name.as_deref().map(Arc::from);
    let expected = settings.canary.as_ref().map(|canary| ExpectedCanary {
        mail_host: canary.mail_host.clone(),
        networks: attribute(&settings.networks_attribute),
        hold: attribute(&settings.watch.hold_attribute),
        grants: attribute(&settings.grant_attribute),
    });
    ServerProbe::new(Arc::new(request.unwrap_or_else(|| lookup::read(String::new(), attributes))), expected)
}
