//! One directory server and its connections.
//!
//! Searches share one connection (`service.rs`); each bind has a connection of its own, taken from
//! a stack and given back, so that a bind waits for another only when `connections.max` are all
//! busy, and no longer than one try may take. A connection on which anything went wrong, or whose
//! answer nobody waited for, is closed and never used again.

use std::future::Future;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::client::Client;
use super::connection::{Dial, Fault, Found, Question};
use super::health::{Cause, Health};
use super::lag::Lag;
use super::look::Look;
use super::policy::Bound;
use super::pool::jittered;
use super::service::Opening;
use super::{Trace, Trouble, reading};
use crate::config::{self, Connections, Find, ServiceAccount};
use crate::log::Repeats;
use crate::metrics::Metrics;
use crate::tasks::{self, Task};

/// Times that are fixed in production and turned by tests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    /// Between two binds of a service account that was refused.
    pub(super) service_retry: Duration,
    /// How long a failed server is put aside at first; doubled at each failure.
    pub(super) aside: Duration,
    /// The longest that a server is put aside.
    pub(super) aside_max: Duration,
    /// Between two looks at a server that is well.
    pub(super) look: Duration,
    /// How long a canary that was shown vouches for an answer of nothing.
    pub(super) canary: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            service_retry: Duration::from_secs(60),
            aside: Duration::from_secs(1),
            aside_max: Duration::from_secs(30),
            look: Duration::from_secs(10),
            canary: Duration::from_secs(1),
        }
    }
}

/// Why a server gave no verdict.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not asked: no connection, no service bind. Another may be asked without loss.
    Unasked(Trouble),
    /// It may have been asked, and said nothing, or nothing certain.
    Unsure(Trouble),
    /// It answered a bind with nothing certain. The guess may have been counted, so no other server
    /// gets it as well: one guess is one answered bind.
    Answered(Trouble),
}

impl Failure {
    /// The same, where an earlier try may have reached the directory.
    fn after_sending(self) -> Self {
        match self {
            Self::Unasked(trouble) | Self::Unsure(trouble) => Self::Unsure(trouble),
            Self::Answered(trouble) => Self::Answered(trouble),
        }
    }

    pub(super) fn trouble(self) -> Trouble {
        match self {
            Self::Unasked(trouble) | Self::Unsure(trouble) | Self::Answered(trouble) => trouble,
        }
    }
}

/// A lock whose holders cannot leave it half-changed, so that a panic elsewhere means nothing.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Results that tell about the server and not about the question: busy, unavailable, other.
const fn is_unsure(code: u32) -> bool {
    matches!(code, 51 | 52 | 80)
}

/// A bind connection waiting for its next use.
#[derive(Debug)]
struct Idle {
    connection: Client,
    expires: Instant,
    since: Instant,
}

impl Idle {
    fn is_usable(&mut self, limits: &Connections) -> bool {
        !self.connection.is_dead()
            && self.connection.operations() < limits.max_operations
            && self.expires > Instant::now()
            && self.since.elapsed() < limits.idle_timeout
    }
}

/// A bind connection in exclusive use. Dropped without [`Server::give_back`], it is closed.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Client,
    expires: Instant,
    _permit: OwnedSemaphorePermit,
}

/// One directory server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) url: Arc<str>,
    dial: Dial,
    pub(super) service: Option<ServiceAccount>,
    /// `attempt_timeout`.
    pub(super) patience: Duration,
    /// Whether another server could take over.
    replaceable: bool,
    /// Whether it is of no use unless it accepts the service account.
    pub(super) needs_service: bool,
    pub(super) limits: Connections,
    pub(super) tuning: Tuning,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Health,
    pub(super) look: Look,
    pub(super) search: Mutex<Option<Opening>>,
    idle: Mutex<Vec<Idle>>,
    permits: Arc<Semaphore>,
    /// Until when the service account is not tried again, and the code of its refusal.
    pub(super) refused: Mutex<Option<(Instant, u32)>>,
    /// Held while the service account's password is read.
    pub(super) reading: Arc<tokio::sync::Semaphore>,
    sweeping: AtomicBool,
    pub(super) repeats: Repeats,
}

impl Server {
    /// A server of the configuration; nothing is connected yet. It tells `changed` of its health.
    pub(super) fn new(
        server: &config::DirectoryServer,
        settings: &config::Directory,
        tls: Option<Arc<rustls::ClientConfig>>,
        metrics: Arc<Metrics>,
        (tuning, changed): (Tuning, watch::Sender<()>),
        look: Look,
    ) -> Self {
        let (service, searches) = (settings.find.service().cloned(), matches!(settings.find, Find::Search { .. }));
        // A standby that was never asked has refused nobody: an alert on 0 must not ring for it. Here and
        // not when the config is in force: by then a bind may have been refused.
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
            health: Health::new(tuning, changed),
            look,
            search: Mutex::new(None),
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(settings.connections.max.max(1))),
            refused: Mutex::new(None),
            reading: Arc::new(tokio::sync::Semaphore::new(1)),
            sweeping: AtomicBool::new(false),
            repeats: Repeats::default(),
        }
    }

    /// Whether a question may go here now; if this one is to find out whether the server is well
    /// again, no other may for as long as it could take.
    pub(super) fn enter(&self) -> bool {
        self.health.enter(self.patience.saturating_mul(3))
    }

    /// Counts a question that goes on to another server.
    pub(super) fn passed_on(&self) {
        if self.replaceable {
            self.metrics.directory_failovers.with_label_values(&[&self.url]).inc();
        }
    }

    /// Sets the gauges that are known when they are asked for.
    pub(super) fn show(&self) {
        let metrics = &self.metrics;
        metrics.directory_up.with_label_values(&[&self.url]).set(self.health.is_up().into());
        metrics.directory_canary_ok.with_label_values(&[&self.url]).set((!self.look.is_missing()).into());
        // A server that is alone is behind no other.
        let alone = (!self.replaceable).then_some(0.0);
        if let Some(seconds) = self.look.lag.as_ref().and_then(Lag::seconds).or(alone) {
            metrics.directory_lag.with_label_values(&[&self.url]).set(seconds);
        }
        let open = locked(&self.search).as_ref().is_some_and(|opening| matches!(opening.peek(), Some(Ok(_))));
        let states = [("idle", locked(&self.idle).len()), ("busy", self.leased()), ("search", open.into())];
        for (state, count) in states {
            let gauge = metrics.directory_connections.with_label_values(&[&*self.url, state]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Binds on a connection of its own. The lease is still bound as that user.
    pub(super) async fn bind(
        self: &Arc<Self>,
        dn: &str,
        password: &str,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<(Bound, Lease), Failure> {
        let (mut lease, reused) = self.lease(deadline, trace).await?;
        let cause = question("bind", &[dn]);
        let mut asked = Instant::now();
        let mut answer =
            self.observed("bind", deadline, trace, lease.connection.bind(dn, password), |bound| bound.code).await;
        if reused && matches!(answer, Err(Fault::Broken(_) | Fault::Malformed)) {
            // Not answered, so not yet a guess that counts: once more on a fresh connection.
            lease.connection = self.connect(deadline, trace).await.map_err(Failure::after_sending)?;
            lease.expires = self.expiry();
            asked = Instant::now();
            answer =
                self.observed("bind", deadline, trace, lease.connection.bind(dn, password), |bound| bound.code).await;
        }
        let bound = answer.map_err(|fault| Failure::Unsure(self.failed("bind", cause, &fault)))?;
        self.verdict("bind", cause, bound.code, asked)?;
        Ok((bound, lease))
    }

    /// Reads on a bind connection, as the user who was bound.
    pub(super) async fn read(
        &self,
        lease: &mut Lease,
        question: &Question,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Found, Trouble> {
        let (asked, cause) = (Instant::now(), question.cause());
        let answer = lease.connection.search(question, self.patience);
        let answer = self.observed(question.operation, deadline, trace, answer, |found| found.code).await;
        let found = answer.map_err(|fault| self.failed(question.operation, cause, &fault))?;
        self.verdict(question.operation, cause, found.code, asked).map_err(Failure::trouble)?;
        Ok(found)
    }

    /// Puts a bind connection back for the next user, whose bind replaces the identity.
    pub(super) fn give_back(self: &Arc<Self>, lease: Lease) {
        let Lease { connection, expires, _permit: permit } = lease;
        locked(&self.idle).push(Idle { connection, expires, since: Instant::now() });
        // Behind the push, so that who waits for the permit finds the connection.
        drop(permit);
        self.sweep();
    }

    /// A bind connection, and whether it was used before.
    async fn lease(self: &Arc<Self>, deadline: Instant, trace: &mut Trace) -> Result<(Lease, bool), Failure> {
        let asked = Instant::now();
        // A queue that takes longer than a whole try is an overload, which is better told at once.
        let permit = match timeout_at(deadline.min(asked + self.patience), self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            // The semaphore is never closed; if it were, nothing could be bound either.
            Ok(Err(_)) | Err(_) => return Err(Failure::Unasked(Trouble::Busy)),
        };
        // Those before us found it dead while we queued: do not queue at its grave.
        if self.replaceable && self.health.failed_since(asked) {
            return Err(Failure::Unasked(Trouble::Busy));
        }
        if let Some(Idle { connection, expires, .. }) = self.take_idle() {
            return Ok((Lease { connection, expires, _permit: permit }, true));
        }
        if self.look.is_for_canary() {
            // Whatever answers on a new connection may be another than before; what shows the canary
            // lives on the search connection, which a restart would have ended as well.
            self.search_connection(deadline, trace).await?;
        }
        let connection = self.connect(deadline, trace).await?;
        Ok((Lease { connection, expires: self.expiry(), _permit: permit }, false))
    }

    /// How many bind connections are in use.
    fn leased(&self) -> usize {
        self.limits.max.saturating_sub(self.permits.available_permits())
    }

    /// Whether fewer bind connections are there than are to be kept ready.
    fn wants_more(&self) -> bool {
        let mut idle = locked(&self.idle);
        // Of one that has died nobody tells: it is found out here, at each look, or when it is taken.
        idle.retain_mut(|one| one.is_usable(&self.limits));
        idle.len() + self.leased() < self.limits.min
    }

    /// Makes bind connections until as many as are to be kept ready are there.
    pub(super) async fn top_up(self: &Arc<Self>, deadline: Instant) -> Result<(), Trouble> {
        while self.wants_more() {
            let connection = self.connect(deadline, &mut Trace::default()).await.map_err(Failure::trouble)?;
            self.keep(connection);
        }
        Ok(())
    }

    /// Keeps a connection that nobody is using for the next bind, if it is wanted.
    pub(super) fn keep(self: &Arc<Self>, connection: Client) {
        if self.wants_more() {
            locked(&self.idle).push(Idle { connection, expires: self.expiry(), since: Instant::now() });
            self.sweep();
        }
    }

    /// The connection that was used last is the one that most surely lives.
    fn take_idle(&self) -> Option<Idle> {
        let mut idle = locked(&self.idle);
        std::iter::from_fn(|| idle.pop()).find_map(|mut one| one.is_usable(&self.limits).then_some(one))
    }

    /// A new connection, not bound.
    pub(super) async fn connect(&self, deadline: Instant, trace: &mut Trace) -> Result<Client, Failure> {
        let made = self.observed("connect", deadline, trace, Client::open(&self.dial), |_| 0).await;
        trace.code = None;
        made.map_err(|fault| Failure::Unasked(self.failed("connect", Cause::Look, &fault)))
    }

    /// Runs one operation within its time; counts it and notes it for the log.
    pub(super) async fn observed<T>(
        &self,
        operation: &'static str,
        deadline: Instant,
        trace: &mut Trace,
        asked: impl Future<Output = Result<T, Fault>>,
        code: impl Fn(&T) -> u32,
    ) -> Result<T, Fault> {
        let began = Instant::now();
        let until = deadline.min(began + self.patience);
        let late = if until.duration_since(began) < self.patience / 2 { Fault::Cut } else { Fault::Timeout };
        let answer = timeout_at(until, asked).await.unwrap_or(Err(late));
        let seconds = self.metrics.directory_seconds.with_label_values(&[&*self.url, operation]);
        seconds.observe(began.elapsed().as_secs_f64());
        trace.server = Some(self.url.clone());
        trace.code = answer.as_ref().ok().map(&code);
        let count = |word| self.metrics.directory_operations.with_label_values(&[&*self.url, operation, word]).inc();
        match &answer {
            Ok(answer) => self.metrics.directory_operation(&self.url, operation, code(answer)),
            Err(Fault::Timeout | Fault::Cut) => count("timeout"),
            Err(Fault::Broken(_)) => count("connection"),
            Err(Fault::Malformed | Fault::Violation(_)) => count("malformed"),
        }
        answer
    }

    /// Notes an answer to what was asked at `asked`: a verdict about the question, or about the server.
    pub(super) fn verdict(
        &self,
        operation: &'static str,
        cause: Cause,
        code: u32,
        asked: Instant,
    ) -> Result<(), Failure> {
        if !is_unsure(code) {
            if cause != Cause::Look && self.health.answered(operation, asked) {
                info!(server = %self.url, operation, "directory server answers again");
            }
            return Ok(());
        }
        if let Some(suppressed) = self.repeats.allow(operation, "unsure") {
            warn!(server = %self.url, operation, code, suppressed, "directory server is unsure");
        }
        let trouble = Trouble::Result { server: self.url.clone(), operation, code };
        // 80 (other) may be about one entry; busy and unavailable are about the server.
        if code == 80 {
            self.faltered(cause, &trouble);
        } else {
            self.broke(cause, &trouble);
        }
        Err(if operation == "bind" { Failure::Answered(trouble) } else { Failure::Unsure(trouble) })
    }

    /// Notes a fault. What is the server's own puts it aside and closes its idle connections.
    pub(super) fn failed(&self, operation: &'static str, cause: Cause, fault: &Fault) -> Trouble {
        if let Some(suppressed) = self.repeats.allow(operation, "failed") {
            warn!(server = %self.url, operation, reason = %fault, suppressed, "directory server failed");
        }
        let server = self.url.clone();
        let trouble = match fault {
            Fault::Broken(reason) => Trouble::Connection { server, reason: reason.clone() },
            Fault::Timeout | Fault::Cut => Trouble::Timeout,
            Fault::Malformed | Fault::Violation(_) => Trouble::Malformed { server },
        };
        match (cause, fault) {
            // Nothing of an entry is in the answer to a bind.
            (Cause::Question { operation: "bind", .. }, Fault::Violation(_)) => self.broke(cause, &trouble),
            // What was asked may be what is slow or odd.
            (Cause::Question { .. }, Fault::Timeout | Fault::Malformed | Fault::Violation(_)) => {
                self.faltered(cause, &trouble);
            }
            // It had too little time for anything to follow from that.
            (Cause::Question { .. }, Fault::Cut) => {}
            (Cause::Look, _) | (_, Fault::Broken(_)) => {
                self.broke(cause, &trouble);
                locked(&self.idle).clear();
            }
        }
        trouble
    }

    /// The server is at fault.
    pub(super) fn broke(&self, cause: Cause, trouble: &Trouble) {
        self.told(self.health.broke(cause, trouble), trouble);
    }

    fn faltered(&self, cause: Cause, trouble: &Trouble) {
        self.told(self.health.faltered(cause, trouble), trouble);
    }

    /// A line for each change, none for each login.
    fn told(&self, put_aside: bool, trouble: &Trouble) {
        if put_aside {
            warn!(server = %self.url, reason = %trouble, "directory server is put aside");
        }
    }

    pub(super) fn expiry(&self) -> Instant {
        Instant::now() + jittered(self.limits.max_age)
    }

    /// Sees to it that unused connections are closed, also when nobody logs in any more.
    pub(super) fn sweep(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let (server, pause, metrics) = (Arc::downgrade(self), self.limits.idle_timeout, Arc::clone(&self.metrics));
        let make = move || sweep(server.clone(), pause);
        tokio::spawn(async move { tasks::keep(Task::DirectorySweep, &metrics.task_restarts, make).await });
    }

    /// Closes what is past its use; whether anything is left that will have to be closed.
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
        debug!(server = %self.url, closed = before - idle.len(), kept = idle.len(), "unused directory connections");
        !idle.is_empty() || search.is_some()
    }
}

/// Closes unused connections of a server from time to time, until there is none.
async fn sweep(server: Weak<Server>, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        let Some(server) = server.upgrade() else { return };
        if server.close_unused() {
            continue;
        }
        server.sweeping.store(false, Ordering::Release);
        // Something may have been given back between the look and the store.
        if !server.close_unused() || server.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}

/// Somebody's operation, about this.
fn question(operation: &'static str, about: &[&str]) -> Cause {
    // Two that are taken for one cost a look more.
    let who = reading::KEY.hash_one(about);
    Cause::Question { operation, who }
}

impl Question {
    /// The question as a cause of what comes of it.
    pub(super) fn cause(&self) -> Cause {
        question(self.operation, &[&self.base, &self.filter])
    }
}
