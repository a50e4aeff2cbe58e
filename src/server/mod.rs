//! The running process: bind, start, reload, stop. Wiring only; what it starts is in other rooms.

mod changes;
mod drain;
mod handover;
mod loop_check;
mod reload;
mod supervise;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
pub(crate) use handover::detach;
use handover::{Inherited, UpgradeChannel};
use reload::{PendingFileCheck, Reader};
use rustix::io::Errno;
use sd_notify::NotifyState;
use supervise::Supervisor;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::DropGuard;
use tracing::{error, info, warn};

use crate::admin::SidePort;
use crate::admin::control::{self, Order, OrderResult, Request, SocketFile};
use crate::backend::Backend;
use crate::base::clock::{date, unix_now};
use crate::base::sys;
use crate::base::tasks::{self, Task};
use crate::config::{self, Config, ListenerTls, Problem};
use crate::config_files::{self, Files, Fingerprint};
use crate::frontend::auth_http;
use crate::frontend::listener::{self, BoundListener};
use crate::login::core::{Shared, Snapshot};
use crate::sessions::closer;
use crate::telemetry::log;
use crate::telemetry::metrics::Metrics;
use crate::tls;

/// How often the directory is asked until it has answered once.
const FIRST_ANSWER_PAUSE: Duration = Duration::from_secs(1);
/// How often it is seen whether a server is due for a look; each has an interval of its own.
const PROBE_TICK: Duration = Duration::from_millis(250);
/// When a test wants the main loop to panic, after its start.
const DEFECT: Duration = Duration::from_millis(500);
/// Two sockets a session, and some for everything else.
const SPARE_DESCRIPTORS: u64 = 256;

/// Why usher did not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// The configuration has mistakes.
    #[error("the configuration has {} mistake(s)", .0.len())]
    Config(Vec<Problem>),
    /// An address cannot be bound.
    #[error("{key}: {what} cannot be bound: {source}{}", way_out(.source))]
    Bind {
        /// The config key.
        key: String,
        /// The address or path.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The listeners of the process before this one do not arrive.
    #[error("the listeners cannot be taken over: {0}")]
    Inherit(io::Error),
    /// The system does not let usher hear signals.
    #[error("signals cannot be received: {0}")]
    Signals(io::Error),
}

/// What to do when an address cannot be bound.
fn way_out(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => "; another process has it: stop that one, or name another address or port",
        Some(Errno::ADDRNOTAVAIL) => "; it is no address of this machine",
        Some(Errno::ACCESS) => "; ports below 1024 need CAP_NET_BIND_SERVICE, as deploy/usher.service gives",
        Some(Errno::AFNOSUPPORT) => "; this machine has no IPv6: write 0.0.0.0 instead of [::]",
        Some(_) | None => "",
    }
}

/// Loads the config file.
///
/// # Errors
/// Every mistake in it, and those in the files that its sound sections name.
pub(crate) fn load(file: &Path) -> Result<Config, Vec<Problem>> {
    config::load(file).map_err(|mistakes| {
        let in_files = mistakes.draft.iter().flat_map(|draft| config_files::problems(draft));
        mistakes.problems.into_iter().chain(in_files).collect()
    })
}

/// Loads and builds everything the config file says: what `check`, `run` and a reload have in common.
///
/// # Errors
/// Every mistake.
pub(crate) fn prepare(
    file: &Path,
    metrics: &Arc<Metrics>,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Vec<Problem>> {
    let mut config = load(file)?;
    fit_descriptors(&mut config, sys::raise_open_files());
    let mut problems = loop_check::problems(&config);
    match Files::read(&config) {
        Ok(files) if problems.is_empty() => Ok(Snapshot::new(config, files, metrics, previous)),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

/// How usher ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerExit {
    /// By a signal or a command, or after an upgrade.
    Requested,
    /// By a defect that it cannot recover from; the log has it.
    Defect,
}

/// Runs until a signal ends it, or an upgrade. With `take_over` it is the new process of one, where
/// these backends are `drained` at a rate.
///
/// # Errors
/// Why it did not start.
pub(crate) async fn run(file: PathBuf, take_over: bool, drained: &[(String, u32)]) -> Result<ServerExit, StartError> {
    // As it is now: an upgrade puts another file there.
    let program = std::env::current_exe().map_err(StartError::Inherit)?;
    let inherited = Inherited::receive(take_over).map_err(StartError::Inherit)?;
    tls::install_default();
    let metrics = Arc::new(Metrics::new());
    let snapshot = prepare(&file, &metrics, None).map_err(StartError::Config)?;
    let log = log::init(&snapshot.config.log);
    report_panics(&metrics);
    if snapshot.config.process.debug {
        warn!("process.debug is set: debuggers and cores see passwords");
    }

    let stop = StopSignals::new().map_err(StartError::Signals)?;
    let hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let shared = Shared::new(snapshot, metrics, log);
    for (backend, rate) in drained {
        shared.maintenance.drain(backend, *rate);
    }
    let (orders, requests) = mpsc::channel(4);
    let supervisor = Supervisor::new(&shared.metrics);
    let mut server = Server {
        program,
        file,
        shared,
        listeners: HashMap::new(),
        side_port: None,
        auth_http: None,
        control: None,
        orders,
        supervisor,
        refused: None,
        reader: Reader::default(),
        file_check: None,
    };
    server.start(inherited).await?;
    let served = AssertUnwindSafe(server.serve(stop, hangup, requests)).catch_unwind().await;
    Ok(match served {
        Ok(ended) => ended,
        Err(_) => {
            error!("the main loop panicked: the process ends, for the service manager to start it again");
            server.finish().await;
            ServerExit::Defect
        }
    })
}

/// The signals that stop usher.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What the main loop does after an order.
enum Next {
    Serve,
    /// As a signal says that came meanwhile.
    Stop,
    /// Another process serves.
    Leave(UpgradeChannel),
}

/// Identifies a listener.
type ListenerKey = (SocketAddr, &'static str, ListenerTls);

/// A socket in use: whoever accepts from it until this is dropped, and the socket once more for a successor.
struct Listening {
    _accepting: DropGuard,
    socket: OwnedFd,
}

struct Server {
    /// What an upgrade starts.
    program: PathBuf,
    file: PathBuf,
    shared: Arc<Shared>,
    listeners: HashMap<ListenerKey, Listening>,
    side_port: Option<Listening>,
    /// Where nginx asks, and the address as configured.
    auth_http: Option<(SocketAddr, Listening)>,
    /// Where the control socket is; it moves away from a successor's.
    control: Option<SocketFile>,
    /// Kept here as well, so that the channel stays open without a control socket.
    orders: mpsc::Sender<Request>,
    /// Who owns the tasks.
    supervisor: Supervisor,
    /// Changed files that were refused already: their mistakes are logged once.
    refused: Option<Fingerprint>,
    /// What reads them.
    reader: Reader,
    /// A look at them that is under way.
    file_check: Option<PendingFileCheck>,
}

impl Server {
    /// Binds what it does not inherit, then lets clients in.
    async fn start(&mut self, mut inherited: Inherited) -> Result<(), StartError> {
        let snapshot = self.shared.snapshot.load_full();
        let bound = bind_new(&snapshot.config, &self.listeners, &mut inherited)?;
        let admin = snapshot.config.admin.address;
        let (side_port, socket) = bind_http(admin, "admin.address", "side port listening", &mut inherited)?;
        let auth_http = bind_auth_http(&snapshot.config, None, &mut inherited)?;
        if let Some(settings) = &snapshot.config.control {
            let what = settings.path.display().to_string();
            let bind_error = |source| StartError::Bind { key: "control.path".to_owned(), what: what.clone(), source };
            let (control, file) = control::bind(settings, inherited.is_upgrade()).map_err(bind_error)?;
            info!(path = %settings.path.display(), "control socket listening");
            let (control, shared, orders) = (Arc::new(control), Arc::clone(&self.shared), self.orders.clone());
            self.supervisor.keep_until_told(Task::Control, move |stop| {
                let (control, shared, orders) = (Arc::clone(&control), Arc::clone(&shared), orders.clone());
                async move { control::serve(&control, shared, orders, stop).await }
            });
            self.control = Some(file);
        }
        self.keep_tasks(side_port, socket);
        self.in_force(&snapshot);
        self.accept(bound);
        self.answer_nginx(auth_http);
        info!(config = %self.file.display(), version = env!("CARGO_PKG_VERSION"), process = std::process::id(), "ready");
        if !inherited.is_upgrade() {
            // Outside systemd there is no receiver, which is no error.
            let _ = sd_notify::notify(&[NotifyState::Ready]);
        }
        inherited.serving().map_err(StartError::Inherit)
    }

    /// Starts the tasks that live as long as the process.
    fn keep_tasks(&mut self, listener: TcpListener, socket: OwnedFd) {
        let (supervisor, shared) = (&self.supervisor, &self.shared);
        let (side_port, listener) = (Arc::new(SidePort::new(shared)), Arc::new(listener));
        let sampled = Arc::clone(&side_port);
        supervisor.keep(Task::StatusSamples, move || {
            let sampled = Arc::clone(&sampled);
            async move { sampled.sample().await }
        });
        let accepting = supervisor.keep_while(Task::SidePort, move || {
            let (side_port, listener) = (Arc::clone(&side_port), Arc::clone(&listener));
            async move { side_port.serve(&listener).await }
        });
        self.side_port = Some(Listening { _accepting: accepting, socket });
        let with_shared = || Arc::clone(shared);
        let awaited = with_shared();
        supervisor.keep(Task::DirectoryAwait, move || await_directory(Arc::clone(&awaited)));
        let probed = with_shared();
        supervisor.keep(Task::Probes, move || run_probes(Arc::clone(&probed)));
        let followed = with_shared();
        supervisor.keep(Task::DirectoryWatch, move || changes::follow(Arc::clone(&followed)));
        for task in closer::TASKS {
            let closed = with_shared();
            supervisor.keep(task, move || changes::close_sessions(Arc::clone(&closed), task));
        }
    }

    /// Says and counts what a snapshot that is now in force means.
    fn in_force(&self, snapshot: &Snapshot) {
        let metrics = &self.shared.metrics;
        metrics.know(&snapshot.config);
        self.shared.throttle.apply(&snapshot.config.throttle);
        let is_configured = |name: &str| snapshot.backends.iter().any(|backend| *backend.name == *name);
        for backend in self.shared.maintenance.keep(is_configured) {
            info!(backend = &*backend, "this backend is not configured any more, nor drained");
        }
        metrics.config_last_reload_successful.set(1);
        metrics.config_last_reload_success_timestamp.set(unix_now() as f64);
        for warning in &snapshot.config.warnings {
            warn!(%warning, "configuration warning");
        }
        self.certificates_in_force(snapshot);
    }

    /// The part of it that follows from the certificates.
    fn certificates_in_force(&self, snapshot: &Snapshot) {
        let metrics = &self.shared.metrics;
        metrics.certificate_last_reload_successful.set(1);
        metrics.certificate_expiry.reset();
        for served in snapshot.tls.certificates() {
            let chain = served.chain.display().to_string();
            metrics.certificate_expiry.with_label_values(&[&chain]).set(served.not_after as f64);
            if served.expired {
                error!(
                    chain,
                    not_after = served.not_after,
                    "this certificate has expired; it is served all the same, renew it"
                );
            }
        }
    }

    fn accept(&mut self, bound: Vec<(BoundListener, OwnedFd)>) {
        for (bound, socket) in bound {
            let config = &bound.config;
            let key = (config.address, config.protocol.name, config.tls);
            let tls = match config.tls {
                ListenerTls::Implicit => "implicit",
                ListenerTls::StartTls => "starttls",
            };
            info!(protocol = config.protocol.name, address = %bound.address, tls, "listening");
            let (shared, bound) = (Arc::clone(&self.shared), Arc::new(bound));
            let accepting = self
                .supervisor
                .keep_while(Task::Listener, move || listener::accept(Arc::clone(&shared), Arc::clone(&bound)));
            self.listeners.insert(key, Listening { _accepting: accepting, socket });
        }
    }

    fn answer_nginx(&mut self, bound: Option<(SocketAddr, TcpListener, OwnedFd)>) {
        if let Some((address, listener, socket)) = bound {
            let (shared, listener) = (Arc::clone(&self.shared), Arc::new(listener));
            let accepting = self
                .supervisor
                .keep_while(Task::AuthHttp, move || auth_http::serve(Arc::clone(&listener), Arc::clone(&shared)));
            self.auth_http = Some((address, Listening { _accepting: accepting, socket }));
        }
    }

    /// Stops accepting clients, from whatever side.
    fn close_listeners(&mut self) {
        self.listeners.clear();
        self.auth_http = None;
    }

    /// Until a signal says stop, and then until the last session has ended or must.
    async fn serve(
        &mut self,
        mut stop: StopSignals,
        mut hangup: Signal,
        mut requests: mpsc::Receiver<Request>,
    ) -> ServerExit {
        loop {
            tokio::select! {
                () = stop.recv() => break,
                () = self.supervisor.lost() => {
                    error!("the process cannot do without this task and ends, for the service manager to start it again");
                    self.close_listeners();
                    self.finish().await;
                    return ServerExit::Defect;
                }
                () = tasks::defect::of("main", DEFECT) => {}
                _ = hangup.recv() => {
                    // The log has said why if it was refused.
                    let _ = self.reload().await;
                }
                Some((order, answer)) = requests.recv() => {
                    let (outcome, next) = match order {
                        Order::Reload => (self.reload().await, Next::Serve),
                        Order::Upgrade => self.upgrade(&mut stop).await,
                        Order::Drain => (Ok("shutting down".to_owned()), Next::Stop),
                    };
                    // Whoever asked may be gone.
                    let _ = answer.send(outcome);
                    match next {
                        Next::Serve => {}
                        Next::Stop => break,
                        Next::Leave(way) => {
                            drop(requests);
                            self.leave_to_successor(way, &mut stop).await;
                            return ServerExit::Requested;
                        }
                    }
                }
                () = sleep(self.shared.snapshot.load().config.tls.reload_interval), if self.file_check.is_none() => {
                    self.check_files();
                }
                looked = PendingFileCheck::done(&mut self.file_check), if self.file_check.is_some() => self.apply_file_check(looked),
            }
        }
        // From here on requests for a reload are refused at once.
        drop(requests);
        self.drain(&mut stop).await;
        ServerExit::Requested
    }

    /// Takes over the config file as it is now, or leaves everything as it was and says why.
    async fn reload(&mut self) -> OrderResult {
        let _ = sd_notify::notify(&[NotifyState::Reloading, monotonic_now()]);
        let outcome = self.take_over().await;
        match &outcome {
            Ok(()) => info!(config = %self.file.display(), "reloaded"),
            Err(problems) => {
                self.shared.metrics.config_last_reload_successful.set(0);
                for problem in problems {
                    error!(problem, "reload refused; the old configuration stays in force");
                }
            }
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        outcome.map(|()| {
            let snapshot = self.shared.snapshot.load();
            let ends = snapshot.tls.certificates().iter().map(|served| served.not_after).min();
            let ends = ends.map_or_else(String::new, |end| format!(" (certificate valid until {})", date(end)));
            format!("reloaded: {}{ends}", self.file.display())
        })
    }

    async fn take_over(&mut self) -> Result<(), Vec<String>> {
        let (file, metrics) = (self.file.clone(), Arc::clone(&self.shared.metrics));
        let previous = self.shared.snapshot.load_full();
        let old = Arc::clone(&previous);
        // Files and certificates: milliseconds in which the sessions of this thread would wait.
        let prepared = self.reader.read(move || prepare(&file, &metrics, Some(&old))).await;
        // What it would find is about files that may be no longer meant.
        self.file_check = None;
        let snapshot = match prepared {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(problems)) => return Err(problems.iter().map(ToString::to_string).collect()),
            Err(unread) => return Err(vec![unread.to_string()]),
        };
        // What cannot change in a running process is refused with an error, not ignored.
        let fixed = [
            ("admin.address", previous.config.admin.address != snapshot.config.admin.address),
            ("control", previous.config.control != snapshot.config.control),
            ("process", previous.config.process != snapshot.config.process),
            ("log.format", previous.config.log.format != snapshot.config.log.format),
        ];
        let changed = fixed.iter().filter(|(_, changed)| *changed);
        let refused = changed.map(|(key, _)| {
            snapshot.config.problem(key, "this needs a restart; put the old value back to reload the rest").to_string()
        });
        let refused: Vec<String> = refused.chain(rebuilt(&snapshot.config, &self.listeners)).collect();
        if !refused.is_empty() {
            return Err(refused);
        }
        // New listeners are bound before anything changes: if one fails, nothing has.
        let bound = bind_new(&snapshot.config, &self.listeners, &mut Inherited::default())
            .map_err(|error| vec![error.to_string()])?;
        let present = self.auth_http.as_ref().map(|(address, _)| *address);
        let nginx = bind_auth_http(&snapshot.config, present, &mut Inherited::default())
            .map_err(|error| vec![error.to_string()])?;
        let stays = snapshot.config.auth_http.as_ref().map(|settings| settings.address) == present;
        self.in_force(&snapshot);
        self.refused = None;
        self.shared.log.set_level(snapshot.config.log.level);
        let wanted: Vec<ListenerKey> = snapshot.config.listeners.iter().map(listener_key).collect();
        self.shared.snapshot.store(Arc::new(snapshot));
        self.listeners.retain(|key, _| {
            let stays = wanted.contains(key);
            if !stays {
                info!(address = %key.0, protocol = key.1, "no longer listening");
            }
            stays
        });
        self.accept(bound);
        if !stays {
            self.auth_http = None;
        }
        self.answer_nginx(nginx);
        Ok(())
    }
}

fn listener_key(config: &config::Listener) -> ListenerKey {
    (config.address, config.protocol.name, config.tls)
}

/// Listeners that would have to take over an address from one that is there.
fn rebuilt<T>(config: &Config, present: &HashMap<ListenerKey, T>) -> Vec<String> {
    let problem = |(index, listener): (usize, &config::Listener)| {
        let key = listener_key(listener);
        let (open, ..) =
            present.keys().find(|(open, ..)| !present.contains_key(&key) && config::collide(*open, key.0))?;
        let (name, words) = if *open == key.0 {
            let words =
                "a listener's protocol or tls cannot change while it is open: restart, or put the old value back";
            ("tls", words.to_owned())
        } else {
            (
                "address",
                format!("usher itself listens at {open}, which takes this too: restart, or put the old value back"),
            )
        };
        Some(config.problem(&format!("listeners[{index}].{name}"), words).to_string())
    };
    config.listeners.iter().enumerate().filter_map(problem).collect()
}

/// Inherits or binds the listeners that are not there yet; each with its socket once more.
fn bind_new(
    config: &Config,
    present: &HashMap<ListenerKey, Listening>,
    inherited: &mut Inherited,
) -> Result<Vec<(BoundListener, OwnedFd)>, StartError> {
    let missing = |listener: &&config::Listener| !present.contains_key(&listener_key(listener));
    let numbered = config.listeners.iter().enumerate().filter(|(_, listener)| missing(listener));
    let bind = |(index, listener): (usize, &config::Listener)| {
        let bound = match inherited.take(listener.address, listener.socket.as_deref()) {
            Some(socket) => listener::adopt(listener, socket),
            None => listener::bind(listener),
        };
        let both = bound.and_then(|bound| bound.duplicate().map(|socket| (bound, socket)));
        both.map_err(|source| StartError::Bind {
            key: format!("listeners[{index}].address"),
            what: listener.address.to_string(),
            source,
        })
    };
    numbered.map(bind).collect()
}

/// The same for the address where nginx asks, if it is not there yet.
fn bind_auth_http(
    config: &Config,
    present: Option<SocketAddr>,
    inherited: &mut Inherited,
) -> Result<Option<(SocketAddr, TcpListener, OwnedFd)>, StartError> {
    let address = config.auth_http.as_ref().map(|settings| settings.address);
    let bind = |address| {
        let (listener, socket) = bind_http(address, "auth_http.address", "auth_http listening", inherited)?;
        Ok((address, listener, socket))
    };
    address.filter(|address| present != Some(*address)).map(bind).transpose()
}

/// The same for a port that speaks HTTP.
fn bind_http(
    address: SocketAddr,
    key: &str,
    words: &str,
    inherited: &mut Inherited,
) -> Result<(TcpListener, OwnedFd), StartError> {
    let mut bind = || {
        let socket = inherited.take(address, None).map_or_else(|| std::net::TcpListener::bind(address), Ok)?;
        socket.set_nonblocking(true)?;
        info!(address = %socket.local_addr()?, "{words}");
        let once_more = socket.try_clone()?.into();
        Ok((TcpListener::from_std(socket)?, once_more))
    };
    bind().map_err(|source| StartError::Bind { key: key.to_owned(), what: address.to_string(), source })
}

/// Asks the directory until it answers once: what `/ready` waits for.
async fn await_directory(shared: Arc<Shared>) {
    let repeats = log::Repeats::default();
    while let Err(error) = shared.snapshot.load_full().directory.probe().await {
        if let Some(suppressed) = repeats.allow("first answer", "") {
            warn!(%error, suppressed, "the directory has not answered yet");
        }
        sleep(FIRST_ANSWER_PAUSE).await;
    }
    shared.directory_answered.store(true, Ordering::Relaxed);
    info!("the directory answers");
}

/// Starts due probes of the directory servers and backends of the current snapshot; never returns.
async fn run_probes(shared: Arc<Shared>) {
    loop {
        let snapshot = shared.snapshot.load();
        snapshot.directory.run_probes();
        snapshot.backends.iter().for_each(Backend::run_probes);
        snapshot.offers.refresh(&snapshot.backends, &shared.metrics);
        drop(snapshot);
        sleep(PROBE_TICK).await;
    }
}

/// Counts and logs every panic, wherever it is caught. Its message may quote what a peer sent, so
/// only its place is logged.
fn report_panics(metrics: &Metrics) {
    let panics = metrics.panics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panics.inc();
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        error!(place, "panic: this is a defect of usher, please report it");
    }));
}

/// Lowers `limits.connections` to what the system's limit of open files allows, with a warning.
fn fit_descriptors(config: &mut Config, available: u64) {
    let fitting = usize::try_from(available.saturating_sub(SPARE_DESCRIPTORS) / 2).unwrap_or(usize::MAX).max(1);
    let wanted = config.limits.connections;
    if wanted > fitting {
        let needed = (wanted as u64).saturating_mul(2).saturating_add(SPARE_DESCRIPTORS);
        let words = format!(
            "needs {needed} open files, but the system allows {available}: lowered to {fitting} until LimitNOFILE \
             (or `ulimit -n`) is raised"
        );
        config.warnings.push(config.problem("limits.connections", words));
        config.limits.connections = fitting;
    }
}

fn monotonic_now() -> NotifyState<'static> {
    NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Status("reloading"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "listeners:
  - {protocol: imap, address: '127.0.0.1:993', tls: implicit}
  - {protocol: imap, address: '127.0.0.1:143', tls: implicit}
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
routing: {backends: [{name: server3, imap: {address: '192.0.2.3:993', tls: implicit}}]}
limits: {connections: 1000}
";

    #[test]
    fn connection_limit_is_lowered_to_the_available_descriptors() {
        let mut config = config::parse(Path::new("/c.yaml"), CONFIG).unwrap();
        config.warnings.clear();
        fit_descriptors(&mut config, 2_256);
        assert_eq!((config.limits.connections, config.warnings.len()), (1_000, 0));
        fit_descriptors(&mut config, 2_255);
        assert_eq!(config.limits.connections, 999);
        let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
        let words = "needs 2256 open files, but the system allows 2255: lowered to 999";
        assert!(warning.to_string().starts_with(&format!("/c.yaml:7: limits.connections: {words}")), "{warning}");
        fit_descriptors(&mut config, 3);
        assert_eq!(config.limits.connections, 1);
    }

    #[test]
    fn changed_listener_kind_is_distinguished_from_an_address_in_use() {
        let config = config::parse(Path::new("/c.yaml"), CONFIG).unwrap();
        let key = |port, tls| (SocketAddr::from(([127, 0, 0, 1], port)), "imap", tls);
        let present = [key(993, ListenerTls::Implicit), key(143, ListenerTls::StartTls)];
        let present = present.into_iter().map(|key| (key, ())).collect();
        let [problem] = rebuilt(&config, &present).try_into().unwrap();
        assert!(problem.starts_with("/c.yaml:3: listeners[1].tls: "), "{problem}");
        assert!(rebuilt::<()>(&config, &HashMap::new()).is_empty());
        let wildcard = (SocketAddr::from(([0, 0, 0, 0], 143)), "imap", ListenerTls::Implicit);
        let [problem] = rebuilt(&config, &HashMap::from([(wildcard, ())])).try_into().unwrap();
        assert!(
            problem.starts_with("/c.yaml:3: listeners[1].address: usher itself listens at 0.0.0.0:143"),
            "{problem}"
        );
    }
}
