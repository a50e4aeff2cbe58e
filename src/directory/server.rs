//! One directory server and its connections.
//!
//! Searches share one connection (`service.rs`); each bind has a connection of its own, taken from
//! a stack and given back, so that a bind waits for another only when `bind_connections` are all
//! busy. A connection on which anything went wrong, or whose answer nobody waited for, is closed
//! and never used again.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::connection::{Connection, Dial, Fault, Found, Question};
use super::policy::Bound;
use super::pool::{Health, jittered};
use super::service::Opening;
use super::{Trace, Trouble};
use crate::config::{self, ServiceAccount};
use crate::log::Repeats;
use crate::metrics::Metrics;

/// How connections are kept; fixed in production, turned by tests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    /// A connection unused for this long may have died unseen (a firewall's forgetting, a peer's
    /// power): it is replaced.
    pub(super) idle: Duration,
    /// The longest life of a connection, give or take a fifth.
    pub(super) age: Duration,
    /// Operations on a search connection: ldap3 may keep a few bytes of each.
    pub(super) searches: u64,
    /// Between two binds of a service account that was refused.
    pub(super) service_retry: Duration,
    /// How long a failed server is put aside at first; doubled at each failure.
    pub(super) aside: Duration,
    /// The longest that a server is put aside.
    pub(super) aside_max: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(30),
            age: Duration::from_secs(30 * 60),
            searches: 100_000,
            service_retry: Duration::from_secs(60),
            aside: Duration::from_secs(1),
            aside_max: Duration::from_secs(30),
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
    connection: Connection,
    expires: Instant,
    since: Instant,
}

impl Idle {
    fn is_usable(&self, tuning: &Tuning) -> bool {
        !self.connection.is_dead() && self.expires > Instant::now() && self.since.elapsed() < tuning.idle
    }
}

/// A bind connection in exclusive use. Dropped without [`Server::give_back`], it is closed.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Connection,
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
    pub(super) tuning: Tuning,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Health,
    pub(super) search: Mutex<Option<Opening>>,
    idle: Mutex<Vec<Idle>>,
    permits: Arc<Semaphore>,
    /// Until when the service account is not tried again, and the code of its refusal.
    pub(super) refused: Mutex<Option<(Instant, u32)>>,
    sweeping: AtomicBool,
    pub(super) repeats: Repeats,
}

impl Server {
    /// A server of the configuration; nothing is connected yet.
    pub(super) fn new(
        server: &config::DirectoryServer,
        settings: &config::Directory,
        tls: Option<Arc<rustls::ClientConfig>>,
        metrics: Arc<Metrics>,
        tuning: Tuning,
    ) -> Self {
        let service = settings.find.service().cloned();
        Self {
            url: server.url.as_str().into(),
            dial: Dial {
                scheme: server.scheme,
                host: server.host.clone(),
                port: server.port,
                starttls: settings.starttls,
                tls,
                patience: settings.attempt_timeout,
            },
            service,
            patience: settings.attempt_timeout,
            replaceable: settings.servers.len() > 1,
            tuning,
            metrics,
            health: Health::default(),
            search: Mutex::new(None),
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(settings.bind_connections.max(1) as usize)),
            refused: Mutex::new(None),
            sweeping: AtomicBool::new(false),
            repeats: Repeats::default(),
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
        let mut answer =
            self.observed("bind", deadline, trace, lease.connection.bind(dn, password), |bound| bound.code).await;
        if reused && matches!(answer, Err(Fault::Broken(_) | Fault::Malformed)) {
            // Not answered, so not yet a guess that counts: once more on a fresh connection.
            lease.connection = self.connect(deadline, trace).await.map_err(Failure::after_sending)?;
            lease.expires = self.expiry();
            answer =
                self.observed("bind", deadline, trace, lease.connection.bind(dn, password), |bound| bound.code).await;
        }
        let bound = answer.map_err(|fault| Failure::Unsure(self.failed("bind", &fault)))?;
        self.verdict("bind", bound.code)?;
        Ok((bound, lease))
    }

    /// Reads on a bind connection, as the user who was bound.
    pub(super) async fn read(
        &self,
        lease: &Lease,
        question: &Question,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Found, Trouble> {
        let asked = lease.connection.search(question, self.patience);
        let answer = self.observed(question.operation, deadline, trace, asked, |found| found.code).await;
        answer.map_err(|fault| self.failed(question.operation, &fault))
    }

    /// Reads on a bind connection, whoever was bound there last.
    pub(super) async fn read_alone(
        self: &Arc<Self>,
        question: &Question,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Found, Failure> {
        let (lease, _reused) = self.lease(deadline, trace).await?;
        let found = self.read(&lease, question, deadline, trace).await.map_err(Failure::Unsure)?;
        self.verdict(question.operation, found.code)?;
        self.give_back(lease);
        Ok(found)
    }

    /// Asks a server that was put aside, with nobody waiting, whether it is well again.
    pub(super) async fn look_after(self: Arc<Self>, question: Question) {
        let deadline = Instant::now() + self.patience.saturating_mul(2);
        // A fresh connection: an old one would tell about the past.
        let asked = async {
            let connection = self.connect(deadline, &mut Trace::default()).await?;
            let asked = connection.search(&question, self.patience);
            let code = |found: &Found| found.code;
            let found = self.observed(question.operation, deadline, &mut Trace::default(), asked, code).await;
            let found = found.map_err(|fault| Failure::Unsure(self.failed(question.operation, &fault)))?;
            self.verdict(question.operation, found.code)
        };
        // Either outcome is in `health` by now.
        let _: Result<(), Failure> = asked.await;
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
        let permit = match timeout_at(deadline, self.permits.clone().acquire_owned()).await {
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
        let connection = self.connect(deadline, trace).await?;
        Ok((Lease { connection, expires: self.expiry(), _permit: permit }, false))
    }

    /// The connection that was used last is the one that most surely lives.
    fn take_idle(&self) -> Option<Idle> {
        let mut idle = locked(&self.idle);
        std::iter::from_fn(|| idle.pop()).find(|one| one.is_usable(&self.tuning))
    }

    /// A new connection, not bound.
    pub(super) async fn connect(&self, deadline: Instant, trace: &mut Trace) -> Result<Connection, Failure> {
        let made = self.observed("connect", deadline, trace, Connection::open(&self.dial), |_| 0).await;
        trace.code = None;
        made.map_err(|fault| Failure::Unasked(self.failed("connect", &fault)))
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
        let until = deadline.min(Instant::now() + self.patience);
        let answer = timeout_at(until, asked).await.unwrap_or(Err(Fault::Timeout));
        trace.server = Some(self.url.clone());
        trace.code = answer.as_ref().ok().map(&code);
        let count = |word| self.metrics.directory_operations.with_label_values(&[&*self.url, operation, word]).inc();
        match &answer {
            Ok(answer) => self.metrics.directory_operation(&self.url, operation, code(answer)),
            Err(Fault::Timeout) => count("timeout"),
            Err(Fault::Broken(_)) => count("connection"),
            Err(Fault::Malformed) => count("malformed"),
        }
        answer
    }

    /// Notes an answer: a verdict about the question, or about the server.
    pub(super) fn verdict(&self, operation: &'static str, code: u32) -> Result<(), Failure> {
        if !is_unsure(code) {
            if self.health.well() {
                info!(server = %self.url, "directory server answers again");
            }
            return Ok(());
        }
        if let Some(suppressed) = self.repeats.allow(operation, "unsure") {
            warn!(server = %self.url, operation, code, suppressed, "directory server is unsure");
        }
        // 80 (other) may be about one entry; the whole server is put aside for 51 and 52 only.
        if code != 80 {
            self.health.failed(&self.tuning);
        }
        let trouble = Trouble::Result { server: self.url.clone(), operation, code };
        Err(if operation == "bind" { Failure::Answered(trouble) } else { Failure::Unsure(trouble) })
    }

    /// Notes a fault, puts the server aside and closes its idle connections.
    pub(super) fn failed(&self, operation: &'static str, fault: &Fault) -> Trouble {
        if let Some(suppressed) = self.repeats.allow(operation, "failed") {
            warn!(server = %self.url, operation, reason = %fault, suppressed, "directory server failed");
        }
        self.health.failed(&self.tuning);
        locked(&self.idle).clear();
        let server = self.url.clone();
        match fault {
            Fault::Broken(reason) => Trouble::Connection { server, reason: reason.clone() },
            Fault::Timeout => Trouble::Timeout,
            Fault::Malformed => Trouble::Malformed { server },
        }
    }

    pub(super) fn expiry(&self) -> Instant {
        Instant::now() + jittered(self.tuning.age)
    }

    /// Sees to it that unused connections are closed, also when nobody logs in any more.
    pub(super) fn sweep(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let (server, pause) = (Arc::downgrade(self), self.tuning.idle);
        tokio::spawn(async move {
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
        });
    }

    /// Closes what is past its use; whether anything is left that will have to be closed.
    fn close_unused(&self) -> bool {
        let mut idle = locked(&self.idle);
        let before = idle.len();
        idle.retain(|one| one.is_usable(&self.tuning));
        let mut search = locked(&self.search);
        let stale = |opening: &Opening| {
            opening.peek().is_some_and(|end| end.as_ref().map_or(true, |shared| !shared.is_usable(&self.tuning)))
        };
        if search.as_ref().is_some_and(stale) {
            *search = None;
        }
        debug!(server = %self.url, closed = before - idle.len(), kept = idle.len(), "unused directory connections");
        !idle.is_empty() || search.is_some()
    }
}
