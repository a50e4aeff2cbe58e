//! One directory server and its connections.
//!
//! Searches share one connection (`service.rs`); each bind has a connection of its own, taken from a stack and
//! returned, so that a bind waits for another only when all `connections.max` are busy, and no longer than one
//! attempt may take. A connection that failed, or whose reply was not awaited, is closed and never reused.

use std::future::Future;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use crate::base::tasks::{self, Task};
use crate::config::{self, Connections, Find, ServiceAccount};
use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::connection::{ConnectionError, Dial, SearchRequest, SearchResult};
use crate::directory::ldap::health::{OperationOrigin, ServerHealth};
use crate::directory::ldap::lag::ReplicationLag;
use crate::directory::ldap::policy::BindResponse;
use crate::directory::ldap::probe::ServerProbe;
use crate::directory::ldap::schema;
use crate::directory::ldap::selection::jittered;
use crate::directory::ldap::service_account::Opening;
use crate::directory::{Trace, UnavailableCause};
use crate::telemetry::labels::ConnectionUse;
use crate::telemetry::log::Repeats;
use crate::telemetry::metrics::Metrics;

/// Intervals that are constants in production and adjusted by tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// Between two binds of a service account that was refused.
    pub(crate) service_retry: Duration,
    /// How long a failed server is marked down at first; doubled at each failure.
    pub(crate) down: Duration,
    /// The longest time that a server is marked down.
    pub(crate) down_max: Duration,
    /// Between two probes of a healthy server.
    pub(crate) probe_interval: Duration,
    /// How long a successful canary check is valid for empty results.
    pub(crate) canary_valid: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            service_retry: Duration::from_secs(60),
            down: Duration::from_secs(1),
            down_max: Duration::from_secs(30),
            probe_interval: Duration::from_secs(10),
            canary_valid: Duration::from_secs(1),
        }
    }
}

/// Why a server gave no verdict.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The request was not sent: no connection, or no service bind. Another server may be asked safely.
    NotSent(UnavailableCause),
    /// The request may have been sent, and no conclusive reply came.
    Indeterminate(UnavailableCause),
    /// A bind was answered without a verdict. The guess may have been counted, so no other server gets it: one
    /// guess is one answered bind.
    Answered(UnavailableCause),
}

impl RequestError {
    /// The same, after an earlier attempt that may have reached the directory.
    fn after_sending(self) -> Self {
        match self {
            Self::NotSent(cause) | Self::Indeterminate(cause) => Self::Indeterminate(cause),
            Self::Answered(cause) => Self::Answered(cause),
        }
    }

    pub(crate) fn cause(self) -> UnavailableCause {
        match self {
            Self::NotSent(cause) | Self::Indeterminate(cause) | Self::Answered(cause) => cause,
        }
    }
}

/// Locks a mutex whose holders cannot leave it half-changed, so that poisoning is ignored.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Results that concern the server and not the request: busy, unavailable, other.
const fn is_server_error(code: u32) -> bool {
    matches!(code, 51 | 52 | 80)
}

/// A bind connection waiting for reuse.
#[derive(Debug)]
struct IdleConnection {
    connection: BindClient,
    expires: Instant,
    since: Instant,
}

impl IdleConnection {
    fn is_usable(&mut self, limits: &Connections) -> bool {
        !self.connection.is_dead()
            && self.connection.operations() < limits.max_operations
            && self.expires > Instant::now()
            && self.since.elapsed() < limits.idle_timeout
    }
}

/// A bind connection in exclusive use. Closed when dropped without [`Server::give_back`].
#[derive(Debug)]
pub(crate) struct BindLease {
    connection: BindClient,
    expires: Instant,
    _permit: OwnedSemaphorePermit,
}

/// One directory server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: Arc<str>,
    dial: Dial,
    pub(crate) service: Option<ServiceAccount>,
    /// `attempt_timeout`.
    pub(crate) patience: Duration,
    /// Whether another server could take over.
    replaceable: bool,
    /// Whether it is unusable unless it accepts the service account.
    pub(crate) needs_service: bool,
    pub(crate) limits: Connections,
    pub(crate) tuning: Tuning,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: ServerHealth,
    pub(crate) probe: ServerProbe,
    pub(crate) search: Mutex<Option<Opening>>,
    idle: Mutex<Vec<IdleConnection>>,
    permits: Arc<Semaphore>,
    /// When the service account may be tried again, and the result code of its refusal.
    pub(crate) refused: Mutex<Option<(Instant, u32)>>,
    /// Held while the service account's password is read.
    pub(crate) reading: Arc<tokio::sync::Semaphore>,
    sweeping: AtomicBool,
    pub(crate) repeats: Repeats,
}

impl Server {
    /// A configured server; nothing is connected yet. Health changes are sent to `changed`.
    pub(crate) fn new(
        server: &config::DirectoryServer,
        settings: &config::Directory,
        tls: Option<Arc<rustls::ClientConfig>>,
        metrics: Arc<Metrics>,
        (tuning, changed): (Tuning, watch::Sender<()>),
        look: ServerProbe,
    ) -> Self {
        let (service, searches) = (settings.find.service().cloned(), matches!(settings.find, Find::Search { .. }));
        // A standby that was never asked has refused no bind: an alert on 0 must not fire. Set here and not
        // when the config takes effect: by then a bind may have been refused.
        metrics.directory_service_bind_ok.with_label_values(&[server.url.as_str()]).set(1);
        Self {
            url: server.url.as_str().into(),
            dial: Dial {
                scheme: server.scheme,
                host: server.host.clone(),
                port: server.port,
                starttls: settings.starttls,
                tls,
                patience: settings.attempt_timeout,
                max_message: settings.max_message,
            },
            service,
            patience: settings.attempt_timeout,
            replaceable: settings.servers.len() > 1,
            needs_service: searches || settings.canary.is_some(),
            limits: settings.connections,
            tuning,
            metrics,
            health: ServerHealth::new(tuning, changed),
            probe: look,
            search: Mutex::new(None),
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(settings.connections.max.max(1))),
            refused: Mutex::new(None),
            reading: Arc::new(tokio::sync::Semaphore::new(1)),
            sweeping: AtomicBool::new(false),
            repeats: Repeats::default(),
        }
    }

    /// Whether a request may be sent here now; if it is the trial of a recovering server, no other is sent for
    /// as long as it may take.
    pub(crate) fn enter(&self) -> bool {
        self.health.enter(self.patience.saturating_mul(3))
    }

    /// Counts a request that fails over to another server.
    pub(crate) fn count_failover(&self) {
        if self.replaceable {
            self.metrics.directory_failovers.with_label_values(&[&self.url]).inc();
        }
    }

    /// Sets the gauges that are computed at a scrape.
    pub(crate) fn update_gauges(&self) {
        let metrics = &self.metrics;
        metrics.directory_up.with_label_values(&[&self.url]).set(self.health.is_up().into());
        metrics.directory_canary_ok.with_label_values(&[&self.url]).set((!self.probe.canary_missing()).into());
        // A single server lags behind no other.
        let alone = (!self.replaceable).then_some(0.0);
        if let Some(seconds) = self.probe.lag.as_ref().and_then(ReplicationLag::seconds).or(alone) {
            metrics.directory_lag.with_label_values(&[&self.url]).set(seconds);
        }
        let open = locked(&self.search).as_ref().is_some_and(|opening| matches!(opening.peek(), Some(Ok(_))));
        let uses = [
            (ConnectionUse::Idle, locked(&self.idle).len()),
            (ConnectionUse::Busy, self.leased()),
            (ConnectionUse::Search, open.into()),
        ];
        for (used, count) in uses {
            let gauge = metrics.directory_connections.at(&self.url, used);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Binds on a dedicated connection. The lease stays bound as that user.
    pub(crate) async fn bind(
        self: &Arc<Self>,
        dn: &str,
        password: &str,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<(BindResponse, BindLease), RequestError> {
        let (mut lease, reused) = self.lease(deadline, trace).await?;
        let origin = login_origin("bind", &[dn]);
        let mut asked = Instant::now();
        let mut answer =
            self.timed("bind", deadline, trace, lease.connection.bind(dn, password), |bound| bound.code).await;
        if reused && matches!(answer, Err(ConnectionError::Broken(_) | ConnectionError::Malformed)) {
            // Not answered, so not yet a counted guess: retried once on a fresh connection.
            lease.connection = self.connect(deadline, trace).await.map_err(RequestError::after_sending)?;
            lease.expires = self.expiry();
            asked = Instant::now();
            answer = self.timed("bind", deadline, trace, lease.connection.bind(dn, password), |bound| bound.code).await;
        }
        let bound = answer.map_err(|error| RequestError::Indeterminate(self.note_error("bind", origin, &error)))?;
        self.note_result("bind", origin, bound.code, asked)?;
        Ok((bound, lease))
    }

    /// Reads on a bind connection, as the bound user.
    pub(crate) async fn read(
        &self,
        lease: &mut BindLease,
        question: &SearchRequest,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<SearchResult, UnavailableCause> {
        let (asked, origin) = (Instant::now(), question.origin());
        let answer = lease.connection.search(question, self.patience);
        let answer = self.timed(question.operation, deadline, trace, answer, |found| found.code).await;
        let found = answer.map_err(|error| self.note_error(question.operation, origin, &error))?;
        self.note_result(question.operation, origin, found.code, asked).map_err(RequestError::cause)?;
        Ok(found)
    }

    /// Returns a bind connection for the next user, whose bind replaces the identity.
    pub(crate) fn give_back(self: &Arc<Self>, lease: BindLease) {
        let BindLease { connection, expires, _permit: permit } = lease;
        locked(&self.idle).push(IdleConnection { connection, expires, since: Instant::now() });
        // After the push, so that a waiter that gets the permit finds the connection.
        drop(permit);
        self.sweep();
    }

    /// A bind connection, and whether it was used before.
    async fn lease(self: &Arc<Self>, deadline: Instant, trace: &mut Trace) -> Result<(BindLease, bool), RequestError> {
        let asked = Instant::now();
        // A queue that takes longer than a whole attempt is an overload, reported at once.
        let permit = match timeout_at(deadline.min(asked + self.patience), self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => return Err(RequestError::NotSent(UnavailableCause::Busy)),
        };
        // The server failed while this request was queued: fail over instead of repeating the failure.
        if self.replaceable && self.health.failed_since(asked) {
            return Err(RequestError::NotSent(UnavailableCause::Busy));
        }
        if let Some(IdleConnection { connection, expires, .. }) = self.take_idle() {
            return Ok((BindLease { connection, expires, _permit: permit }, true));
        }
        if self.probe.has_canary() {
            // A different server may answer on a new connection. The canary was read on the search connection,
            // which a restart would have closed as well.
            self.search_connection(deadline, trace).await?;
        }
        let connection = self.connect(deadline, trace).await?;
        Ok((BindLease { connection, expires: self.expiry(), _permit: permit }, false))
    }

    fn leased(&self) -> usize {
        self.limits.max.saturating_sub(self.permits.available_permits())
    }

    /// Whether fewer bind connections are open than `connections.min`.
    fn wants_more(&self) -> bool {
        let mut idle = locked(&self.idle);
        // A dead connection is detected here, at each probe, or when it is taken.
        idle.retain_mut(|one| one.is_usable(&self.limits));
        idle.len() + self.leased() < self.limits.min
    }

    /// Opens bind connections up to `connections.min`.
    pub(crate) async fn top_up(self: &Arc<Self>, deadline: Instant) -> Result<(), UnavailableCause> {
        while self.wants_more() {
            let connection = self.connect(deadline, &mut Trace::default()).await.map_err(RequestError::cause)?;
            self.keep(connection);
        }
        Ok(())
    }

    /// Keeps an unused connection for the next bind, if it is wanted.
    pub(crate) fn keep(self: &Arc<Self>, connection: BindClient) {
        if self.wants_more() {
            locked(&self.idle).push(IdleConnection { connection, expires: self.expiry(), since: Instant::now() });
            self.sweep();
        }
    }

    /// The most recently used connection is the one most likely to be alive.
    fn take_idle(&self) -> Option<IdleConnection> {
        let mut idle = locked(&self.idle);
        std::iter::from_fn(|| idle.pop()).find_map(|mut one| one.is_usable(&self.limits).then_some(one))
    }

    pub(crate) async fn connect(&self, deadline: Instant, trace: &mut Trace) -> Result<BindClient, RequestError> {
        let made = self.timed("connect", deadline, trace, BindClient::open(&self.dial), |_| 0).await;
        trace.code = None;
        made.map_err(|error| RequestError::NotSent(self.note_error("connect", OperationOrigin::Probe, &error)))
    }

    /// Runs one operation with its deadline; counts it and records it in the trace.
    pub(crate) async fn timed<T>(
        &self,
        operation: &'static str,
        deadline: Instant,
        trace: &mut Trace,
        asked: impl Future<Output = Result<T, ConnectionError>>,
        code: impl Fn(&T) -> u32,
    ) -> Result<T, ConnectionError> {
        let began = Instant::now();
        let until = deadline.min(began + self.patience);
        let late = if until.duration_since(began) < self.patience / 2 {
            ConnectionError::CutShort
        } else {
            ConnectionError::Timeout
        };
        let answer = timeout_at(until, asked).await.unwrap_or(Err(late));
        let seconds = self.metrics.directory_seconds.with_label_values(&[&*self.url, operation]);
        seconds.observe(began.elapsed().as_secs_f64());
        trace.server = Some(self.url.clone());
        trace.code = answer.as_ref().ok().map(&code);
        let count = |word| self.metrics.directory_operations.with_label_values(&[&*self.url, operation, word]).inc();
        match &answer {
            Ok(answer) => self.metrics.directory_operation(&self.url, operation, code(answer)),
            Err(ConnectionError::Timeout | ConnectionError::CutShort) => count("timeout"),
            Err(ConnectionError::Broken(_)) => count("connection"),
            Err(ConnectionError::Malformed | ConnectionError::Violation(_)) => count("malformed"),
        }
        answer
    }

    /// Records the result of a request sent at `asked`: a verdict about the request, or a server failure.
    pub(crate) fn note_result(
        &self,
        operation: &'static str,
        origin: OperationOrigin,
        code: u32,
        asked: Instant,
    ) -> Result<(), RequestError> {
        if !is_server_error(code) {
            if origin != OperationOrigin::Probe && self.health.request_answered(operation, asked) {
                info!(server = %self.url, operation, "directory server up again");
            }
            return Ok(());
        }
        if let Some(suppressed) = self.repeats.allow(operation, "unsure") {
            warn!(server = %self.url, operation, code, suppressed, "directory server gave an inconclusive result");
        }
        let cause = UnavailableCause::Result { server: self.url.clone(), operation, code };
        // 80 (other) may concern one entry; busy and unavailable concern the server.
        if code == 80 {
            self.request_failed(origin, &cause);
        } else {
            self.server_failed(origin, &cause);
        }
        Err(if operation == "bind" { RequestError::Answered(cause) } else { RequestError::Indeterminate(cause) })
    }

    /// Records an error. An error of the server itself marks it down and closes its idle connections.
    pub(crate) fn note_error(
        &self,
        operation: &'static str,
        origin: OperationOrigin,
        error: &ConnectionError,
    ) -> UnavailableCause {
        if let Some(suppressed) = self.repeats.allow(operation, "failed") {
            warn!(server = %self.url, operation, reason = %error, suppressed, "directory request failed");
        }
        let server = self.url.clone();
        let cause = match error {
            ConnectionError::Broken(reason) => UnavailableCause::Connection { server, reason: reason.clone() },
            ConnectionError::Timeout | ConnectionError::CutShort => UnavailableCause::Timeout,
            ConnectionError::Malformed | ConnectionError::Violation(_) => UnavailableCause::Malformed { server },
        };
        match (origin, error) {
            // The reply to a bind contains nothing of an entry.
            (OperationOrigin::Login { operation: "bind", .. }, ConnectionError::Violation(_)) => {
                self.server_failed(origin, &cause)
            }
            // The request itself may be what is slow or malformed.
            (
                OperationOrigin::Login { .. },
                ConnectionError::Timeout | ConnectionError::Malformed | ConnectionError::Violation(_),
            ) => {
                self.request_failed(origin, &cause);
            }
            // The time was too short to draw a conclusion.
            (OperationOrigin::Login { .. }, ConnectionError::CutShort) => {}
            (OperationOrigin::Probe, _) | (_, ConnectionError::Broken(_)) => {
                self.server_failed(origin, &cause);
                locked(&self.idle).clear();
            }
        }
        cause
    }

    /// Records a failure of the server.
    pub(crate) fn server_failed(&self, origin: OperationOrigin, cause: &UnavailableCause) {
        self.log_marked_down(self.health.server_failed(origin, cause), cause);
    }

    fn request_failed(&self, origin: OperationOrigin, cause: &UnavailableCause) {
        self.log_marked_down(self.health.request_failed(origin, cause), cause);
    }

    /// One line per change, not per login.
    fn log_marked_down(&self, was_in_use: bool, cause: &UnavailableCause) {
        if was_in_use {
            warn!(server = %self.url, reason = %cause, "directory server marked down");
        }
    }

    pub(crate) fn expiry(&self) -> Instant {
        Instant::now() + jittered(self.limits.max_age)
    }

    /// Starts the task that closes unused connections, also when no user logs in any more.
    pub(crate) fn sweep(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let (server, pause, metrics) = (Arc::downgrade(self), self.limits.idle_timeout, Arc::clone(&self.metrics));
        let make = move || sweep(server.clone(), pause);
        tokio::spawn(async move { tasks::keep(Task::DirectorySweep, &metrics.task_restarts, make).await });
    }

    /// Closes unusable connections; returns whether any are left to be closed later.
    fn close_unused(&self) -> bool {
        let mut idle = locked(&self.idle);
        let before = idle.len();
        idle.retain_mut(|one| one.is_usable(&self.limits));
        let mut search = locked(&self.search);
        let stale = |opening: &Opening| {
            opening.peek().is_some_and(|end| end.as_ref().map_or(true, |shared| !shared.is_usable(&self.limits)))
        };
        if search.as_ref().is_some_and(stale) {
            *search = None;
        }
        debug!(server = %self.url, closed = before - idle.len(), kept = idle.len(), "closed unused directory connections");
        !idle.is_empty() || search.is_some()
    }
}

/// Closes unused connections of a server periodically, until none is left.
async fn sweep(server: Weak<Server>, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        let Some(server) = server.upgrade() else { return };
        if server.close_unused() {
            continue;
        }
        server.sweeping.store(false, Ordering::Release);
        // A connection may have been returned between the check and the store.
        if !server.close_unused() || server.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}

/// The origin of a login's operation on this subject.
fn login_origin(operation: &'static str, about: &[&str]) -> OperationOrigin {
    // A hash collision costs one probe.
    let who = schema::KEY.hash_one(about);
    OperationOrigin::Login { operation, subject: who }
}

impl SearchRequest {
    /// The origin for this request.
    pub(crate) fn origin(&self) -> OperationOrigin {
        login_origin(self.operation, &[&self.base, &self.filter])
    }
}
