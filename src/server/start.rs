//! The start: sockets and the tasks that live as long as the process; ready once both are there.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::select_ok;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{info, warn};

use super::bind::{OpenedListener, open_all};
use super::handover::Inherited;
use super::listening::Listening;
use super::{Server, StartError, changes, fleet_brake, previous};
use crate::admin::SidePort;
use crate::admin::control;
use crate::base::tasks::Task;
use crate::config::ListenerTls;
use crate::directory::{Probes, UnavailableCause};
use crate::fleet;
use crate::frontend::auth_http;
use crate::frontend::listener;
use crate::process::{Shared, Snapshot};
use crate::sessions::closer;
use crate::telemetry::log;

/// How often the directory is probed until its first answer.
const FIRST_ANSWER_PAUSE: Duration = Duration::from_secs(1);
/// How often due probes are started; each server has an interval of its own.
const PROBE_TICK: Duration = Duration::from_millis(250);
/// How often sessions of which the fleet's store may not have heard are written again.
const REPEAT_SESSIONS: Duration = Duration::from_secs(5);
impl Server {
    /// Binds what it does not inherit, then lets clients in.
    pub(super) async fn start(&mut self, mut inherited: Inherited) -> Result<(), StartError> {
        let snapshot = self.shared.snapshot.load_full();
        let upgrade = inherited.is_upgrade();
        let opened = open_all(&snapshot.config, &mut inherited.sockets, upgrade)?;
        let known = Arc::<control::Known>::default();
        if let Some(settings) = &snapshot.config.control {
            let what = settings.path.display().to_string();
            let bind_error = |source| StartError::Bind { key: "control.path".to_owned(), what: what.clone(), source };
            let (control, file) = control::bind(settings, upgrade).map_err(bind_error)?;
            info!(path = %settings.path.display(), "control socket listening");
            let (control, shared, orders) = (Arc::new(control), Arc::clone(&self.shared), self.orders.clone());
            let known = Arc::clone(&known);
            self.supervisor.keep_until_told(Task::Control, move |stop| {
                let (control, shared, orders) = (Arc::clone(&control), Arc::clone(&shared), orders.clone());
                let known = Arc::clone(&known);
                async move { control::serve(&control, shared, orders, known, stop).await }
            });
            self.control = Some(file);
            let (shared, socket) = (Arc::clone(&self.shared), settings.path.clone());
            let count = move || previous::count_sessions(Arc::clone(&shared), socket.clone());
            self.supervisor.keep(Task::PreviousSessions, count);
        }
        self.keep_tasks(opened.side_port, known);
        self.apply_snapshot(&snapshot);
        self.accept(opened.listeners);
        self.answer_nginx(opened.auth_http);
        self.answer_postfix(opened.socketmap);
        info!(config = %self.file.display(), version = env!("CARGO_PKG_VERSION"), process = std::process::id(), "started");
        if !upgrade {
            // Outside systemd there is no receiver, which is no error.
            let _ = sd_notify::notify(&[NotifyState::Ready]);
        }
        inherited.serving().map_err(StartError::Inherit)
    }

    /// Starts the tasks that live as long as the process.
    fn keep_tasks(&mut self, sockets: Vec<(TcpListener, OwnedFd)>, known: Arc<control::Known>) {
        let (supervisor, shared) = (&self.supervisor, &self.shared);
        let side_port = Arc::new(SidePort::new(shared));
        let sampled = Arc::clone(&side_port);
        supervisor.keep(Task::StatusSamples, move || {
            let sampled = Arc::clone(&sampled);
            async move { sampled.sample().await }
        });
        let mut listening = Listening::default();
        for (listener, socket) in sockets {
            let (side_port, listener) = (Arc::clone(&side_port), Arc::new(listener));
            let accepting = supervisor.keep_while(Task::SidePort, move || {
                let (side_port, listener) = (Arc::clone(&side_port), Arc::clone(&listener));
                async move { side_port.serve(&listener).await }
            });
            listening.add(accepting, socket);
        }
        self.side_port = Some(listening);
        let with_shared = || Arc::clone(shared);
        let awaited = with_shared();
        supervisor.keep(Task::DirectoryAwait, move || await_directory(Arc::clone(&awaited)));
        let probed = with_shared();
        supervisor.keep(Task::Probes, move || run_probes(Arc::clone(&probed)));
        let followed = with_shared();
        supervisor.keep(Task::DirectoryWatch, move || changes::follow(Arc::clone(&followed)));
        if let Some(fleet) = &shared.fleet {
            let (obeying, orders) = (with_shared(), self.orders.clone());
            supervisor.keep(Task::FleetCommands, move || {
                control::obey(Arc::clone(&obeying), orders.clone(), Arc::clone(&known))
            });
            let counting = with_shared();
            supervisor.keep(Task::FleetSessions, move || rewrite_sessions(Arc::clone(&counting)));
            let braking = with_shared();
            supervisor.keep(Task::FleetBrake, move || fleet_brake::share(Arc::clone(&braking)));
            for task in fleet::TASKS {
                let fleet = Arc::clone(fleet);
                supervisor.keep(task, move || Arc::clone(&fleet).run(task));
            }
        }
        for task in closer::TASKS {
            let closed = with_shared();
            supervisor.keep(task, move || changes::close_sessions(Arc::clone(&closed), task));
        }
    }

    pub(super) fn accept(&mut self, opened: Vec<OpenedListener>) {
        for OpenedListener { key, sockets, by_name } in opened {
            let (configured, protocol, tls) = key;
            let tls = match tls {
                ListenerTls::Implicit => "implicit",
                ListenerTls::StartTls => "starttls",
            };
            if sockets.is_empty() {
                let by = SocketAddr::from((Ipv6Addr::UNSPECIFIED, configured.port()));
                info!(protocol, address = %configured, tls, %by, "listening by the socket of another listener");
            }
            let listening = self.listeners.entry(key).or_default();
            listening.by_name |= by_name;
            for (bound, socket) in sockets {
                info!(protocol, address = %bound.address, tls, "listening");
                let (shared, bound) = (Arc::clone(&self.shared), Arc::new(bound));
                let accepting = self
                    .supervisor
                    .keep_while(Task::Listener, move || listener::accept(Arc::clone(&shared), Arc::clone(&bound)));
                listening.add(accepting, socket);
            }
        }
    }

    pub(super) fn answer_nginx(&mut self, opened: Option<(SocketAddr, Vec<(TcpListener, OwnedFd)>)>) {
        let Some((address, sockets)) = opened else { return };
        let mut listening = Listening::default();
        for (listener, socket) in sockets {
            let (shared, listener) = (Arc::clone(&self.shared), Arc::new(listener));
            let accepting = self
                .supervisor
                .keep_while(Task::AuthHttp, move || auth_http::serve(Arc::clone(&listener), Arc::clone(&shared)));
            listening.add(accepting, socket);
        }
        self.auth_http = Some((address, listening));
    }

    /// Stops accepting clients, also by way of nginx, and questions of Postfix.
    pub(super) fn close_listeners(&mut self) {
        self.listeners.clear();
        self.auth_http = None;
        if let Some(mut postfix) = self.socketmap.take() {
            postfix.remove_file();
        }
    }
}

/// Probes the directories until one answers; one without probes always does.
async fn probe(snapshot: &Snapshot) -> Result<(), UnavailableCause> {
    let probes = snapshot.realms.all().iter().map(|realm| {
        Box::pin(async {
            match realm.directory().probes() {
                Some(probes) => probes.probe().await,
                None => Ok(()),
            }
        })
    });
    // Of several, users of one do not wait for another.
    select_ok(probes).await.map(|_| ())
}

/// Queries the directories until the first reply, which `/ready` waits for.
async fn await_directory(shared: Arc<Shared>) {
    let repeats = log::Repeats::default();
    while let Err(error) = probe(&shared.snapshot.load_full()).await {
        if let Some(suppressed) = repeats.allow("first answer", "") {
            warn!(%error, suppressed, "no reply from the directory yet");
        }
        sleep(FIRST_ANSWER_PAUSE).await;
    }
    shared.directory_answered.store(true, Ordering::Relaxed);
    // What /ready says from now on.
    info!("ready");
}

/// Writes the sessions of users again whenever the fleet's store is another, or was emptied, and those of which it may not
/// have heard.
async fn rewrite_sessions(shared: Arc<Shared>) {
    let Some(mut generation) = shared.fleet.as_ref().map(|fleet| fleet.generation()) else { return };
    let rewriting = async {
        while generation.changed().await.is_ok() {
            shared.throttle.rewrite_sessions().await;
        }
    };
    let repeating = async {
        loop {
            sleep(REPEAT_SESSIONS).await;
            shared.throttle.repeat_unanswered_sessions();
        }
    };
    tokio::join!(rewriting, repeating);
}

/// Starts due probes of the directory servers and backends of the current snapshot; never returns.
async fn run_probes(shared: Arc<Shared>) {
    loop {
        let snapshot = shared.snapshot.load_full();
        snapshot.realms.all().iter().filter_map(|realm| realm.directory().probes()).for_each(Probes::run_due);
        snapshot.tokens.run_due();
        snapshot.backends.all().iter().for_each(|backend| backend.run_probes());
        snapshot.offers.refresh(snapshot.backends.all(), &shared.metrics);
        for backend in snapshot.backends.all() {
            backend.rebalance(&shared.registry, &shared.closer).await;
        }
        drop(snapshot);
        sleep(PROBE_TICK).await;
    }
}
