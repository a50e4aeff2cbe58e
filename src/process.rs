//! What lives as long as the process, and the snapshot in force: an immutable view of one configuration. A reload
//! builds a new [`Snapshot`] and swaps it in at one place; sessions that began with the old one end with it.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::backend::capabilities::AdvertisedCapabilities;
use crate::base::credential;
use crate::base::secret::Secret;
use crate::base::sys;
use crate::config::{Config, Limits};
use crate::config_files::{Files, Fingerprint};
use crate::directory::{self, Realm};
use crate::fleet::{Fleet, FleetFiles};
use crate::limits::{self, FleetRunner, Throttle};
use crate::login::core::{BackendParts, InForce, LoginContext, LoginCore};
use crate::login::delivery::RecentAnswers;
use crate::login::history::LoginHistory;
use crate::sessions::closer::Closer;
use crate::sessions::maintenance::Maintenance;
use crate::sessions::previous::PreviousProcesses;
use crate::sessions::registry::Registry;
use crate::telemetry::log;
use crate::telemetry::metrics::Metrics;
use crate::tls::server::ServerTls;
use crate::trace::Traces;
use crate::tracking::ChangeTrackers;

/// Everything that follows from one configuration. What a login needs of it is its core.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The configuration, the decision and the backends.
    pub core: Arc<LoginCore>,
    /// TLS towards clients.
    pub tls: ServerTls,
    /// The capabilities advertised before login.
    pub offers: AdvertisedCapabilities,
    /// usher's own name in its dialogues.
    pub host: Arc<str>,
    /// The key that nginx has to send to `auth_http`, if configured.
    pub auth_http_key: Option<Secret>,
    /// What the fleet's files hold, if configured.
    pub fleet: Option<Arc<FleetFiles>>,
    /// The fingerprint of the files.
    pub fingerprint: Fingerprint,
}

impl Snapshot {
    /// Builds everything from a config and what its files hold. The cache of `previous` is kept if its content
    /// is still valid under this config.
    #[must_use]
    pub(crate) fn new(config: Config, files: Files, metrics: &Arc<Metrics>, previous: Option<&Self>) -> Self {
        let Files { tls, directories, backends: files, issuers, auth_http_key, fleet, fingerprint, warnings: _ } =
            files;
        let opened = config.directories.iter().zip(directories);
        let opened = opened.map(|(settings, tls)| {
            let directory = directory::open(settings, tls, Arc::clone(metrics));
            // What DNS said last holds while it is unreachable, whatever else a reload changes.
            let before = previous.and_then(|old| old.realms.get(Realm::named(&settings.name)));
            before.iter().for_each(|old| directory.begin_with(&old.directory().resolved()));
            directory
        });
        let opened = opened.collect();
        let own = listening(&config);
        let host = host(&config, &tls);
        // Health data depends on usher's own listeners, too: an address among them is never connected to.
        let previous_core = previous.map(|old| &*old.core);
        let kept = previous_core.filter(|old| listening(&old.config) == own);
        let parts = BackendParts { files, host: &host, own: &own, kept };
        let core = Arc::new(LoginCore::new(config, opened, issuers, parts, metrics, previous_core));
        let previous_offers = previous.map(|old| &old.offers);
        let offers =
            AdvertisedCapabilities::new(&core.config.capabilities, core.backends.all(), metrics, previous_offers);
        Self { core, tls, offers, host, auth_http_key, fleet: fleet.map(Arc::new), fingerprint }
    }
}

impl Deref for Snapshot {
    type Target = LoginCore;

    fn deref(&self) -> &LoginCore {
        &self.core
    }
}

impl InForce for ArcSwap<Snapshot> {
    fn core(&self) -> Arc<LoginCore> {
        Arc::clone(&self.load().core)
    }
}

/// usher's own name: as configured, or the first that a certificate has, which is the one that clients
/// connect to (a machine's own may be a container's number); otherwise the machine's.
fn host(config: &Config, tls: &ServerTls) -> Arc<str> {
    let mut names = tls.certificates().iter().flat_map(|served| &served.names);
    let certified = || names.find(|name| !name.starts_with('*')).cloned();
    config.hostname.clone().or_else(certified).unwrap_or_else(sys::host_name).into()
}

/// Becomes a member of a fleet, which its tasks join later.
fn fleet(snapshot: &Snapshot, metrics: &Arc<Metrics>) -> Option<Arc<Fleet>> {
    let (settings, files) = (snapshot.config.fleet.clone()?, Arc::clone(snapshot.fleet.as_ref()?));
    Some(Fleet::new(settings, files, snapshot.config.fleet_digest(), &limits::SCRIPTS, Arc::clone(metrics)))
}

/// usher's own listeners.
fn listening(config: &Config) -> Arc<[SocketAddr]> {
    config.listeners.iter().map(|listener| listener.address).collect()
}

/// The stage of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Accepting and serving.
    Serving,
    /// `/ready` is 503 because an administrator wants it; nothing else has changed.
    Unready,
    /// `/ready` is 503 so that load balancers stop sending connections; still accepting and serving.
    Leaving,
    /// No new connection, no new login; sessions are closed one by one.
    Draining,
}

/// The state shared by all snapshots and sessions.
pub(crate) struct Shared {
    /// The snapshot in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// The relayed sessions.
    pub registry: Arc<Registry>,
    /// Apply changes of the directories.
    pub trackers: ChangeTrackers,
    /// The sessions of the processes before an upgrade.
    pub previous: PreviousProcesses,
    /// When this process closes its last session after an upgrade, Unix seconds.
    pub ends_at: OnceLock<u64>,
    /// Ends sessions at a pace.
    pub closer: Arc<Closer>,
    /// The backends that are out of service.
    pub maintenance: Maintenance,
    /// Limits per client and user.
    pub throttle: Throttle,
    /// The fleet that this process is a member of, if configured.
    pub fleet: Option<Arc<Fleet>>,
    /// The stage of the process' life.
    pub stage: watch::Sender<Stage>,
    /// Whether a directory has answered once since the start.
    pub directory_answered: AtomicBool,
    /// The log, for its level and its losses.
    pub log: log::Guard,
    /// Rate limit of log lines that any client could trigger.
    pub repeats: log::Repeats,
    /// The traces that administrators follow.
    pub traces: Arc<Traces>,
    /// Connections of Postfix.
    pub postfix: TaskTracker,
    /// The last login attempts of each user.
    pub history: LoginHistory,
    /// The last answers to Postfix.
    pub delivered: RecentAnswers,
    connections: watch::Sender<usize>,
    unauthenticated: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("stage", &*self.stage.borrow()).finish_non_exhaustive()
    }
}

impl Shared {
    /// At the start of a process.
    #[must_use]
    pub(crate) fn new(snapshot: Snapshot, metrics: Arc<Metrics>, log: log::Guard) -> Arc<Self> {
        credential::prepare();
        let registry = Arc::<Registry>::default();
        let closer = Arc::new(Closer::new(Arc::clone(&registry)));
        let traces = Traces::new(metrics.traces.clone());
        let throttle = Throttle::new(&snapshot.config.throttle, snapshot.shares.clone(), Arc::clone(&metrics));
        let delivered = RecentAnswers::with_room_for(snapshot.config.cache.capacity);
        let fleet = fleet(&snapshot, &metrics);
        if let Some(fleet) = &fleet {
            throttle.share(Arc::new(FleetRunner::new(fleet)));
            fleet.tell_divisor(snapshot.shares.divisor());
        }
        Arc::new(Self {
            trackers: ChangeTrackers::new(Arc::clone(&registry), Arc::clone(&closer), Arc::clone(&metrics)),
            maintenance: Maintenance::new(Arc::clone(&closer)),
            closer,
            throttle,
            fleet,
            snapshot: ArcSwap::from_pointee(snapshot),
            metrics,
            registry,
            previous: PreviousProcesses::default(),
            ends_at: OnceLock::new(),
            stage: watch::Sender::new(Stage::Serving),
            directory_answered: AtomicBool::new(false),
            log,
            repeats: log::Repeats::default(),
            traces,
            postfix: TaskTracker::new(),
            history: LoginHistory::default(),
            delivered,
            connections: watch::Sender::new(0),
            unauthenticated: AtomicUsize::new(0),
        })
    }

    /// What a login uses of the process.
    #[must_use]
    pub(crate) fn login(&self) -> LoginContext<'_> {
        LoginContext {
            in_force: &self.snapshot,
            limits: &self.throttle,
            tracking: &self.trackers,
            sessions: &self.registry,
            maintenance: &self.maintenance,
            history: &self.history,
            metrics: &self.metrics,
        }
    }

    /// Gives the fleet what a snapshot that comes into force has for it.
    pub(crate) fn update_fleet(&self, snapshot: &Snapshot) {
        if let (Some(fleet), Some(files)) = (&self.fleet, &snapshot.fleet) {
            fleet.update(Arc::clone(files), snapshot.config.fleet_digest());
        }
    }

    /// Waits until the process has come to this stage.
    pub(crate) async fn stage(&self, stage: Stage) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }

    /// Takes one of `limit` allowed connections; `None` if all are taken.
    #[must_use]
    pub(crate) fn permit(self: &Arc<Self>, limit: usize) -> Option<Permit> {
        let taken = self.connections.send_if_modified(|count| {
            let free = *count < limit;
            *count += usize::from(free);
            free
        });
        taken.then(|| {
            self.metrics.connections.inc();
            Permit { shared: Arc::clone(self), unauthenticated: false }
        })
    }

    /// Takes one of the allowed connections for a client that is not logged in.
    ///
    /// # Errors
    /// The key of the limit that is reached.
    pub(crate) fn enter(self: &Arc<Self>, limits: &Limits) -> Result<Permit, &'static str> {
        let mut permit = self.permit(limits.connections).ok_or("limits.connections")?;
        let taken = self.unauthenticated.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < limits.unauthenticated).then_some(count + 1)
        });
        taken.map_err(|_| "limits.unauthenticated")?;
        permit.unauthenticated = true;
        self.metrics.connections_unauthenticated.inc();
        Ok(permit)
    }

    /// How many unauthenticated connections one network may have, once most of their places are taken.
    #[must_use]
    pub(crate) fn per_network_limit(&self, limits: &Limits) -> Option<u32> {
        let taken = self.unauthenticated.load(Ordering::Acquire);
        let nearly_full = taken.saturating_mul(4) >= limits.unauthenticated.saturating_mul(3);
        nearly_full.then(|| u32::try_from(limits.unauthenticated / 4).unwrap_or(u32::MAX).max(1))
    }

    /// Waits until every connection has ended.
    pub(crate) async fn connections_closed(&self) {
        let _ = self.connections.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// One of the allowed connections, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    shared: Arc<Shared>,
    /// Whether it counts as one that is not logged in.
    unauthenticated: bool,
}

impl Permit {
    /// The client is logged in.
    pub(crate) fn logged_in(&mut self) {
        if std::mem::take(&mut self.unauthenticated) {
            self.shared.unauthenticated.fetch_sub(1, Ordering::AcqRel);
            self.shared.metrics.connections_unauthenticated.dec();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.logged_in();
        self.shared.connections.send_modify(|count| *count -= 1);
        self.shared.metrics.connections.dec();
    }
}
