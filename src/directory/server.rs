//! One directory server and its connections.
//!
//! Searches share one connection that carries the service account's identity; each bind has a
//! connection of its own, taken from a stack and given back, so that a bind waits for another only
//! when `bind_connections` are all busy. A connection on which anything went wrong, or whose
//! answer nobody waited for, is closed and never used again.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info, warn};

use super::connection::{Connection, Dial, Fault, Found, Question};
use super::pool::{Health, jittered};
use super::{Trace, Trouble};
use crate::config::{self, ServiceAccount};
use crate::metrics::Metrics;
use crate::secret::Secret;

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
}

impl Failure {
    /// The same, where an earlier try may have reached the directory.
    fn after_sending(self) -> Self {
        match self {
            Self::Unasked(trouble) | Self::Unsure(trouble) => Self::Unsure(trouble),
        }
    }

    fn trouble(self) -> Trouble {
        match self {
            Self::Unasked(trouble) | Self::Unsure(trouble) => trouble,
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

/// The shared connection that carries searches.
#[derive(Debug)]
struct SearchConnection {
    connection: Connection,
    expires: Instant,
    used: Mutex<Instant>,
    searches: AtomicU64,
    retired: AtomicBool,
}

impl SearchConnection {
    fn is_usable(&self, tuning: &Tuning) -> bool {
        !self.retired.load(Ordering::Relaxed)
            && !self.connection.is_dead()
            && self.searches.load(Ordering::Relaxed) < tuning.searches
            && self.expires > Instant::now()
            && locked(&self.used).elapsed() < tuning.idle
    }
}

/// The search connection, made or being made: all who need it wait for the same attempt.
type Opening = Shared<BoxFuture<'static, Result<Arc<SearchConnection>, Trouble>>>;

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
    url: Arc<str>,
    dial: Dial,
    service: Option<ServiceAccount>,
    /// `attempt_timeout`.
    patience: Duration,
    /// Whether another server could take over.
    replaceable: bool,
    tuning: Tuning,
    metrics: Arc<Metrics>,
    pub(super) health: Health,
    search: Mutex<Option<Opening>>,
    idle: Mutex<Vec<Idle>>,
    permits: Arc<Semaphore>,
    /// Until when the service account is not tried again, and the code of its refusal.
    refused: Mutex<Option<(Instant, u32)>>,
    sweeping: AtomicBool,
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
        let service = match &settings.find {
            config::Find::Search { service, .. } | config::Find::UserDn { service, .. } => service.clone(),
        };
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
        }
    }

    /// The URL.
    pub(super) fn url(&self) -> &Arc<str> {
        &self.url
    }

    /// Asks on the search connection, as the service account.
    pub(super) async fn search(
        self: &Arc<Self>,
        question: &Question,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Found, Failure> {
        let mut shared = self.search_connection(deadline, trace).await?;
        let reused = shared.searches.load(Ordering::Relaxed) > 0;
        let mut answer = self.ask(&shared, question, deadline, trace).await;
        if reused && matches!(answer, Err(Fault::Broken(_) | Fault::Malformed)) {
            // It died under us, perhaps of another's question: once more on a fresh one.
            shared = self.search_connection(deadline, trace).await?;
            answer = self.ask(&shared, question, deadline, trace).await;
        }
        let found = answer.map_err(|fault| Failure::Unsure(self.failed(question.operation, &fault)))?;
        self.verdict(question.operation, found.code)?;
        Ok(found)
    }

    async fn ask(
        &self,
        shared: &SearchConnection,
        question: &Question,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Found, Fault> {
        shared.searches.fetch_add(1, Ordering::Relaxed);
        *locked(&shared.used) = Instant::now();
        let asked = shared.connection.search(question, self.patience);
        let answer = self.observed(question.operation, deadline, trace, asked, |found| found.code).await;
        if answer.is_err() {
            shared.retired.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Binds on a connection of its own. The code is the directory's answer; the lease is still
    /// bound as that user.
    pub(super) async fn bind(
        self: &Arc<Self>,
        dn: &str,
        password: &str,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<(u32, Lease), Failure> {
        let (mut lease, reused) = self.lease(deadline, trace).await?;
        let mut answer =
            self.observed("bind", deadline, trace, lease.connection.bind(dn, password), |code| *code).await;
        if reused && matches!(answer, Err(Fault::Broken(_) | Fault::Malformed)) {
            // Not answered, so not yet a guess that counts: once more on a fresh connection.
            lease.connection = self.connect(deadline, trace).await.map_err(Failure::after_sending)?;
            lease.expires = self.expiry();
            answer = self.observed("bind", deadline, trace, lease.connection.bind(dn, password), |code| *code).await;
        }
        let code = answer.map_err(|fault| Failure::Unsure(self.failed("bind", &fault)))?;
        self.verdict("bind", code)?;
        Ok((code, lease))
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
    async fn connect(&self, deadline: Instant, trace: &mut Trace) -> Result<Connection, Failure> {
        let made = self.observed("connect", deadline, trace, Connection::open(&self.dial), |_| 0).await;
        trace.code = None;
        made.map_err(|fault| Failure::Unasked(self.failed("connect", &fault)))
    }

    /// The shared search connection; made once for all who wait.
    async fn search_connection(
        self: &Arc<Self>,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Arc<SearchConnection>, Failure> {
        let opening = {
            let mut slot = locked(&self.search);
            let current = slot.as_ref().filter(|opening| match opening.peek() {
                Some(Ok(shared)) => shared.is_usable(&self.tuning),
                Some(Err(_)) => false,
                None => true,
            });
            match current {
                Some(opening) => opening.clone(),
                None => {
                    let url = self.url.clone();
                    // A task of its own: whoever asked first may give up, the others still wait.
                    let task = tokio::spawn(self.clone().open_search());
                    let opening =
                        task.map(|end| end.unwrap_or(Err(Trouble::Malformed { server: url }))).boxed().shared();
                    slot.insert(opening).clone()
                }
            }
        };
        trace.server = Some(self.url.clone());
        match timeout_at(deadline, opening).await {
            Ok(Ok(shared)) => Ok(shared),
            Ok(Err(trouble)) => {
                trace.code = match &trouble {
                    Trouble::ServiceBind { code, .. } | Trouble::Result { code, .. } => Some(*code),
                    Trouble::Connection { .. }
                    | Trouble::Timeout
                    | Trouble::Busy
                    | Trouble::Malformed { .. }
                    | Trouble::NoServiceAccount => None,
                };
                Err(Failure::Unasked(trouble))
            }
            Err(_elapsed) => Err(Failure::Unasked(Trouble::Timeout)),
        }
    }

    /// Connects and binds as the service account, or stays anonymous where there is none.
    async fn open_search(self: Arc<Self>) -> Result<Arc<SearchConnection>, Trouble> {
        let mut trace = Trace::default();
        let password = match &self.service {
            Some(account) => Some((account, self.service_password(account).await?)),
            None => None,
        };
        let mut connection =
            self.connect(Instant::now() + self.patience, &mut trace).await.map_err(Failure::trouble)?;
        if let Some((account, password)) = password {
            let text = std::str::from_utf8(password.expose()).unwrap_or_default();
            let asked = connection.bind(&account.dn, text);
            let until = Instant::now() + self.patience;
            let code = self.observed("bind", until, &mut trace, asked, |code| *code).await;
            let code = code.map_err(|fault| self.failed("bind", &fault))?;
            self.verdict("bind", code).map_err(Failure::trouble)?;
            self.service_answer(account, code)?;
        }
        let shared = SearchConnection {
            connection,
            expires: self.expiry(),
            used: Mutex::new(Instant::now()),
            searches: AtomicU64::new(0),
            retired: AtomicBool::new(false),
        };
        self.sweep();
        Ok(Arc::new(shared))
    }

    /// Reads the service account's password anew for each bind, so that a changed file needs no
    /// reload and the password does not stay in memory.
    async fn service_password(&self, account: &ServiceAccount) -> Result<Secret, Trouble> {
        if let Some((until, code)) = *locked(&self.refused)
            && Instant::now() < until
        {
            return Err(Trouble::ServiceBind { server: self.url.clone(), code });
        }
        let file = account.password_file.display();
        let unusable = |reason: String| {
            error!(server = %self.url, %file, %reason, "the service account's password cannot be used");
            Trouble::Connection { server: self.url.clone(), reason: format!("{file}: {reason}") }
        };
        let read = tokio::time::timeout(self.patience, tokio::fs::read(&account.password_file)).await;
        let bytes = read.map_err(|_| unusable("reading takes too long".to_owned()))?;
        let bytes = bytes.map_err(|error| unusable(error.to_string()))?;
        let password = without_line_end(Secret::new(bytes));
        if password.is_empty() || std::str::from_utf8(password.expose()).is_err() {
            return Err(unusable("it is empty or not UTF-8".to_owned()));
        }
        Ok(password)
    }

    /// Notes what became of the service account's bind.
    fn service_answer(&self, account: &ServiceAccount, code: u32) -> Result<(), Trouble> {
        let gauge = self.metrics.directory_service_bind_ok.with_label_values(&[&self.url]);
        if code == 0 {
            gauge.set(1);
            *locked(&self.refused) = None;
            return Ok(());
        }
        gauge.set(0);
        // Held back: each try is one more wrong password towards a lock-out of the account.
        *locked(&self.refused) = Some((Instant::now() + self.tuning.service_retry, code));
        error!(server = %self.url, bind_dn = %account.dn, code, "the directory refuses usher's service account");
        Err(Trouble::ServiceBind { server: self.url.clone(), code })
    }

    /// Runs one operation within its time; counts it and notes it for the log.
    async fn observed<T>(
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
    fn verdict(&self, operation: &'static str, code: u32) -> Result<(), Failure> {
        if !is_unsure(code) {
            if self.health.well() {
                info!(server = %self.url, "directory server answers again");
            }
            return Ok(());
        }
        warn!(server = %self.url, operation, code, "directory server is unsure");
        // 80 (other) may be about one entry; the whole server is put aside for 51 and 52 only.
        if code != 80 {
            self.health.failed(&self.tuning);
        }
        Err(Failure::Unsure(Trouble::Result { server: self.url.clone(), operation, code }))
    }

    /// Notes a fault, puts the server aside and closes its idle connections.
    fn failed(&self, operation: &'static str, fault: &Fault) -> Trouble {
        warn!(server = %self.url, operation, reason = %fault, "directory server failed");
        self.health.failed(&self.tuning);
        locked(&self.idle).clear();
        let server = self.url.clone();
        match fault {
            Fault::Broken(reason) => Trouble::Connection { server, reason: reason.clone() },
            Fault::Timeout => Trouble::Timeout,
            Fault::Malformed => Trouble::Malformed { server },
        }
    }

    fn expiry(&self) -> Instant {
        Instant::now() + jittered(self.tuning.age)
    }

    /// Sees to it that unused connections are closed, also when nobody logs in any more.
    fn sweep(self: &Arc<Self>) {
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

/// Drops one line end, as an editor leaves it.
fn without_line_end(secret: Secret) -> Secret {
    let bytes = secret.expose();
    match bytes.strip_suffix(b"\n") {
        Some(line) => Secret::copy_of(line.strip_suffix(b"\r").unwrap_or(line)),
        None => secret,
    }
}
