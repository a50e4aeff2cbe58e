//! What a session works on: one immutable snapshot of everything the config says, and what all
//! snapshots share. A reload builds a new [`Snapshot`] and swaps it in at one place; sessions that
//! began with the old one end with it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use tokio::sync::watch;

use crate::authn::Authenticator;
use crate::backend::{Backend, Service};
use crate::cache::Cache;
use crate::config::{self, Config, Find, LdapScheme, Problem};
use crate::directory::Directory;
use crate::directory::ldap::Ldap;
use crate::log;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::secret::Secret;
use crate::tls::client::ClientTls;
use crate::tls::server::ServerTls;

/// Everything that follows from one configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// The configuration.
    pub config: Config,
    /// TLS towards clients.
    pub tls: ServerTls,
    /// The decision, with its directory and cache.
    pub authn: Authenticator,
    /// The directory again, for what is not a decision.
    pub directory: Arc<Ldap>,
    /// The backends, in the order of `routing.backends`.
    pub backends: Vec<Backend>,
}

impl Snapshot {
    /// Reads every file that the config names and builds everything. The cache of `previous` is
    /// kept if what it says is still what this config would ask.
    ///
    /// # Errors
    /// Every mistake, with its key and line.
    pub fn build(config: Config, metrics: &Arc<Metrics>, previous: Option<&Self>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let tls = ServerTls::build(&config).map_err(|more| problems.extend(more));
        let backends = build_backends(&config, &mut problems);
        let directory_tls = directory_tls(&config).map_err(|more| problems.extend(more));
        check_password_files(&config, &mut problems);
        let (Ok(tls), Ok(directory_tls), true) = (tls, directory_tls, problems.is_empty()) else {
            return Err(problems);
        };
        let directory = Arc::new(Ldap::new(&config.directory, directory_tls, Arc::clone(metrics)));
        let kept = previous.filter(|old| old.config.directory == config.directory && old.config.cache == config.cache);
        let cache = kept.map_or_else(|| Arc::new(Cache::new(&config.cache)), |old| Arc::clone(old.authn.cache()));
        let authn = Authenticator::new(Arc::clone(&directory) as Arc<dyn Directory>, cache, config.limits.connections);
        Ok(Self { config, tls, authn, directory, backends })
    }
}

fn directory_tls(config: &Config) -> Result<Option<Arc<rustls::ClientConfig>>, Vec<Problem>> {
    let directory = &config.directory;
    if !directory.starttls && !directory.servers.iter().any(|server| server.scheme == LdapScheme::Ldaps) {
        return Ok(None);
    }
    let settings = ClientTls {
        ca: directory.ca.clone(),
        client_certificate: directory.client_certificate.clone(),
        pins: Vec::new(),
        alpn: None,
        key: "directory".to_owned(),
    };
    settings.build(config).map(Some)
}

fn build_backends(config: &Config, problems: &mut Vec<Problem>) -> Vec<Backend> {
    let own: Arc<[SocketAddr]> = config.listeners.iter().map(|listener| listener.address).collect();
    let mut backends = Vec::with_capacity(config.routing.backends.len());
    for (index, settings) in config.routing.backends.iter().enumerate() {
        let key = format!("routing.backends[{index}]");
        match build_backend(config, settings, &key, &own) {
            Ok(backend) => backends.push(backend),
            Err(more) => problems.extend(more),
        }
    }
    backends
}

fn build_backend(
    config: &Config,
    settings: &config::Backend,
    key: &str,
    own: &Arc<[SocketAddr]>,
) -> Result<Backend, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut tls_configs = Vec::with_capacity(settings.endpoints.len());
    for endpoint in &settings.endpoints {
        let tls = ClientTls {
            ca: settings.ca.clone(),
            client_certificate: settings.client_certificate.clone(),
            pins: settings.pin_sha256.clone(),
            alpn: endpoint.protocol.alpn,
            key: key.to_owned(),
        };
        match (ServerName::try_from(endpoint.server_name.clone()), tls.build(config)) {
            (Ok(name), Ok(tls)) => tls_configs.push((name, tls)),
            (Ok(_), Err(more)) => problems.extend(more),
            (Err(_), _) => {
                let key = format!("{key}.{}.server_name", endpoint.protocol.name);
                problems.push(config.problem(&key, "this is neither a DNS name nor an IP address"));
            }
        }
    }
    let service = settings.service.as_ref().map(|service| {
        let password = read_password(&service.password_file);
        password.map(|password| Service { login: service.login.clone(), password })
    });
    match service.transpose() {
        Ok(service) if problems.is_empty() => {
            Ok(Backend::new(settings, tls_configs, service, config.limits.backend_untagged, own))
        }
        Ok(_) => Err(problems),
        Err(message) => {
            problems.push(config.problem(&format!("{key}.service.password_file"), message));
            Err(problems)
        }
    }
}

/// The directory reads its password file when it binds, and again when a bind is refused; here it
/// is only seen to be there, before a restart finds that it is not.
fn check_password_files(config: &Config, problems: &mut Vec<Problem>) {
    let (Find::Search { service, .. } | Find::UserDn { service, .. }) = &config.directory.find;
    if let Some(Err(message)) = service.as_ref().map(|service| read_password(&service.password_file)) {
        problems.push(config.problem("directory.bind_password_file", message));
    }
}

/// A password from a file, without the line end that an editor puts behind it.
fn read_password(path: &Path) -> Result<Secret, String> {
    let bytes = fs::read(path)
        .map_err(|error| format!("{} cannot be read: {error}; create it, readable for usher alone", path.display()))?;
    let password = Secret::from_file(bytes);
    if password.is_empty() {
        return Err(format!("{} is empty; put the password into its first line", path.display()));
    }
    Ok(password)
}

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Accepting and serving.
    Serving,
    /// `/ready` is 503 so that load balancers look away; still accepting and serving.
    Leaving,
    /// No new connection, no new login; sessions go on.
    Draining,
    /// The deadline has come: sessions are closed.
    Closing,
}

/// What every snapshot and session shares.
pub struct Shared {
    /// The snapshot in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// The relayed sessions.
    pub registry: Arc<Registry>,
    /// The stage of the process' life.
    pub stage: watch::Sender<Stage>,
    /// Whether the directory has answered once since the start.
    pub directory_answered: AtomicBool,
    /// The log, for its level and its losses.
    pub log: log::Guard,
    connections: watch::Sender<usize>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("stage", &*self.stage.borrow()).finish_non_exhaustive()
    }
}

impl Shared {
    /// At the start of a process.
    #[must_use]
    pub fn new(snapshot: Snapshot, metrics: Arc<Metrics>, log: log::Guard) -> Arc<Self> {
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            metrics,
            registry: Arc::default(),
            stage: watch::Sender::new(Stage::Serving),
            directory_answered: AtomicBool::new(false),
            log,
            connections: watch::Sender::new(0),
        })
    }

    /// Waits until the process has come to this stage.
    pub async fn stage(&self, stage: Stage) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }

    /// Takes one of `limit` allowed connections; `None` if all are taken.
    #[must_use]
    pub fn permit(self: &Arc<Self>, limit: usize) -> Option<Permit> {
        let taken = self.connections.send_if_modified(|count| {
            let free = *count < limit;
            *count += usize::from(free);
            free
        });
        taken.then(|| {
            self.metrics.connections.inc();
            Permit { shared: Arc::clone(self) }
        })
    }

    /// Waits until every connection has ended.
    pub async fn vacated(&self) {
        let _ = self.connections.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// One of the allowed connections, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.connections.send_modify(|count| *count -= 1);
        self.shared.metrics.connections.dec();
    }
}
