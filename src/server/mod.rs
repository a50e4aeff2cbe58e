//! The running process: start, the main loop with its signals and commands, stop. Wiring only: what it starts is in
//! other modules.

mod bind;
mod changed_config;
mod changed_files;
mod changes;
mod drain;
mod error;
mod file_reader;
mod fleet_brake;
mod handover;
mod listening;
mod loop_check;
mod prepare;
mod previous;
mod reload;
mod socketmap;
mod sockets;
mod start;
mod supervise;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bind::ListenerKey;
use changed_config::ChangedConfig;
use changed_files::PendingFileCheck;
pub(crate) use error::StartError;
use file_reader::FileReader;
#[cfg(any(test, feature = "internals"))]
pub(crate) use fleet_brake::brake_answer;
use futures_util::FutureExt as _;
use handover::{Inherited, UpgradeChannel};
pub(crate) use handover::{detach, report_failure, take_over};
use listening::Listening;
pub(crate) use prepare::{load, prepare};
use socketmap::PostfixListening;
use supervise::Supervisor;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{error, warn};

use crate::admin::control::{Order, Request};
use crate::base::sys::socket_file::SocketFile;
use crate::base::tasks;
use crate::process::Shared;
use crate::telemetry::log;
use crate::telemetry::metrics::Metrics;
use crate::tls;

/// When a test wants the main loop to panic, after its start.
const DEFECT: Duration = Duration::from_millis(500);

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
        warn!("process.debug is set: debuggers and core dumps can read passwords");
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
        socketmap: None,
        control: None,
        orders,
        supervisor,
        refused: None,
        changed_config: ChangedConfig::default(),
        reader: FileReader::default(),
        file_check: None,
    };
    server.start(inherited).await?;
    let served = AssertUnwindSafe(server.serve(stop, hangup, requests)).catch_unwind().await;
    Ok(match served {
        Ok(ended) => ended,
        Err(_) => {
            error!("the main loop panicked; exiting, so that the service manager restarts usher");
            server.finish("defect").await;
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
    /// For this reason.
    Stop(&'static str),
    /// Another process serves.
    Leave(UpgradeChannel),
}

struct Server {
    /// What an upgrade starts.
    program: PathBuf,
    file: PathBuf,
    shared: Arc<Shared>,
    listeners: HashMap<ListenerKey, Listening>,
    side_port: Option<Listening>,
    /// The port for nginx, and its address as configured.
    auth_http: Option<(SocketAddr, Listening)>,
    /// The listener for Postfix.
    socketmap: Option<PostfixListening>,
    /// The control socket; it moves aside for that of a successor.
    control: Option<SocketFile>,
    /// Kept here, so that the channel stays open without a control socket.
    orders: mpsc::Sender<Request>,
    /// The owner of the tasks.
    supervisor: Supervisor,
    /// Why changed files were refused, which is logged once. They are tried again at each check.
    refused: Option<Vec<String>>,
    /// A config file that is not in force.
    changed_config: ChangedConfig,
    /// Reads them.
    reader: FileReader,
    /// A check of them in progress.
    file_check: Option<PendingFileCheck>,
}

impl Server {
    /// Until a signal says stop, and then until the last session has ended or must.
    async fn serve(
        &mut self,
        mut stop: StopSignals,
        mut hangup: Signal,
        mut requests: mpsc::Receiver<Request>,
    ) -> ServerExit {
        let reason = loop {
            let interval = self.shared.snapshot.load().config.tls.reload_interval;
            let next_check = self.changed_config.next_check(interval);
            tokio::select! {
                () = stop.recv() => break "signal",
                () = self.supervisor.lost() => {
                    error!("required task failed; exiting, so that the service manager restarts usher");
                    self.close_listeners();
                    self.finish("defect").await;
                    return ServerExit::Defect;
                }
                () = tasks::defect::of("main", DEFECT) => {}
                _ = hangup.recv() => {
                    // The log has said why if it was refused.
                    let _ = self.reload(false).await;
                }
                Some((order, answer)) = requests.recv() => {
                    let (outcome, next) = match order {
                        Order::Reload { force } => (self.reload(force).await, Next::Serve),
                        Order::Upgrade => self.upgrade(&mut stop).await,
                        Order::Drain => (Ok("shutting down".to_owned()), Next::Stop("command")),
                    };
                    // The caller may have closed its connection.
                    let _ = answer.send(outcome);
                    match next {
                        Next::Serve => {}
                        Next::Stop(reason) => break reason,
                        Next::Leave(way) => {
                            drop(requests);
                            self.leave_to_successor(way, &mut stop).await;
                            return ServerExit::Requested;
                        }
                    }
                }
                () = sleep(next_check), if self.file_check.is_none() => {
                    self.check_files();
                }
                result = PendingFileCheck::done(&mut self.file_check), if self.file_check.is_some() => {
                    self.apply_file_check(result).await;
                }
            }
        };
        // From here on requests for a reload are refused at once.
        drop(requests);
        self.drain(&mut stop, reason).await;
        ServerExit::Requested
    }
}

/// Counts and logs every panic, wherever it is caught. Its message may quote what a peer sent, so
/// only its place is logged.
fn report_panics(metrics: &Metrics) {
    let panics = metrics.panics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panics.inc();
        let place = panic.location().map_or_else(|| "an unknown location".to_owned(), ToString::to_string);
        error!(place, "panic: this is a bug in usher, please report it");
    }));
}

/// A configuration for the tests of the parts.
#[cfg(test)]
const TEST_CONFIG: &str = "listeners:
  - {protocol: imap, address: '127.0.0.1:993', tls: implicit}
  - {protocol: imap, address: '127.0.0.1:143', tls: implicit}
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
routing: {backends: [{name: server3, imap: {address: '192.0.2.3:993', tls: implicit}}]}
limits: {connections: 1000}
";
