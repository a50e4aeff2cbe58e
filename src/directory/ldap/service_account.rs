//! The service account of a server, and its search connection: shared by all searches, with the identity of the
//! account, or anonymous if none is configured.
//!
//! The account's password is read for each bind, so that a changed file needs no reload and nothing stays in
//! memory; after a refusal the next bind is delayed, so that usher does not lock the account.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error};
use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::base::sys;
use crate::config::{self, Connections, Find};
use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::endpoint::Endpoint;
use crate::directory::ldap::error::{ConnectionError, RequestError};
use crate::directory::ldap::health::OperationOrigin;
use crate::directory::ldap::idle::{HoldsConnections, Sweeper};
use crate::directory::ldap::policy::BindResponse;
use crate::directory::ldap::probe::ServerProbe;
use crate::directory::ldap::query::{SearchRequest, SearchResult};
use crate::directory::ldap::search;
use crate::directory::ldap::tuning::locked;
use crate::directory::{BindDiagnostic, ConnectionFault, ServerResult, Trace, UnavailableCause};
use crate::proto::ldap::result::SUCCESS;
use crate::telemetry::labels::DirectoryOperation;

/// How much of a password file is read. A longer one was refused when the configuration was read.
const LARGEST_PASSWORD: usize = 4_096;

/// The shared connection for searches.
#[derive(Debug)]
pub(crate) struct SearchConnection {
    pub(crate) connection: Connection,
    expires: Instant,
    used: Mutex<Instant>,
    /// Whether it has been used since it was opened.
    is_used: AtomicBool,
}

impl SearchConnection {
    pub(crate) fn is_usable(&self, limits: &Connections) -> bool {
        !self.connection.is_dead()
            && self.connection.operations() < limits.max_operations
            && self.expires > Instant::now()
            && locked(&self.used).elapsed() < limits.idle_timeout
    }

    pub(crate) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    pub(crate) fn mark_used(&self) {
        self.is_used.store(true, Ordering::Relaxed);
        *locked(&self.used) = Instant::now();
    }
}

/// The search connection, open or being opened: all requests wait for the same attempt.
pub(crate) type Opening = Shared<BoxFuture<'static, Result<Arc<SearchConnection>, UnavailableCause>>>;

/// The service account of a server, with the connection that its searches share.
#[derive(Debug)]
pub(crate) struct ServiceAccount {
    endpoint: Arc<Endpoint>,
    /// Anonymous without an account.
    account: Option<config::ServiceAccount>,
    /// Whether the server is unusable unless it accepts the account.
    pub(crate) is_needed: bool,
    probe: Arc<ServerProbe>,
    search: Mutex<Option<Opening>>,
    /// When the account may be tried again, and the result of its refusal.
    refused: Mutex<Option<(Instant, ServerResult)>>,
    /// Held while the password is read.
    reading: Arc<Semaphore>,
    sweeper: Sweeper,
}

impl HoldsConnections for ServiceAccount {
    fn close_unused(&self) -> bool {
        let mut search = locked(&self.search);
        let is_unusable = |opening: &mut Opening| {
            opening.peek().is_some_and(|end| end.as_ref().map_or(true, |one| !one.is_usable(&self.endpoint.limits)))
        };
        let closed = search.take_if(is_unusable).is_some();
        debug!(directory = self.endpoint.shown, server = %self.endpoint.url, closed, "closed the unused search connection");
        search.is_some()
    }

    fn sweeper(&self) -> &Sweeper {
        &self.sweeper
    }
}

impl ServiceAccount {
    pub(crate) fn new(endpoint: Arc<Endpoint>, settings: &config::Directory, probe: Arc<ServerProbe>) -> Self {
        let searches = matches!(settings.find, Find::Search { .. });
        // A standby that was never asked has refused no bind: an alert on 0 must not fire. Set here and not
        // when the config takes effect: by then a bind may have been refused.
        endpoint.metrics.directory_service_bind_ok.with_label_values(&endpoint.names()).set(1);
        Self {
            account: settings.find.service().cloned(),
            is_needed: searches || settings.canary.is_some() || settings.reads_as_service(),
            probe,
            search: Mutex::new(None),
            refused: Mutex::new(None),
            reading: Arc::new(Semaphore::new(1)),
            sweeper: Sweeper::new(settings.connections.idle_timeout, Arc::clone(&endpoint.metrics)),
            endpoint,
        }
    }

    /// Whether the search connection is open.
    pub(crate) fn is_open(&self) -> bool {
        locked(&self.search).as_ref().is_some_and(|opening| matches!(opening.peek(), Some(Ok(_))))
    }

    /// Has the next request open a new search connection.
    pub(crate) fn reset(&self) {
        *locked(&self.search) = None;
    }

    /// Reads the canary before an answer is accepted that lacks what a server may hide.
    pub(crate) async fn confirm(
        self: &Arc<Self>,
        found: &SearchResult,
        deadline: Instant,
    ) -> Result<(), UnavailableCause> {
        if self.probe.may_be_hidden(found) { self.confirm_canary(deadline).await } else { Ok(()) }
    }

    /// Reads the canary, unless that was done just now.
    pub(crate) async fn confirm_canary(self: &Arc<Self>, deadline: Instant) -> Result<(), UnavailableCause> {
        if !self.probe.is_due(&self.endpoint) {
            return Ok(());
        }
        let mut trace = Trace::default();
        let shared = self.search_connection(deadline, &mut trace).await.map_err(RequestError::cause)?;
        self.probe(&shared, deadline, &mut trace).await
    }

    /// Sends the probe's request on the search connection.
    pub(crate) async fn probe(
        &self,
        shared: &Arc<SearchConnection>,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<(), UnavailableCause> {
        let request = &self.probe.request;
        let answer = self.ask(shared, request, deadline, trace).await;
        let endpoint = &self.endpoint;
        let found = answer.map_err(|error| endpoint.note_error(request.operation, OperationOrigin::Probe, &error))?;
        self.probe.check(endpoint, &found)
    }

    /// Searches on the search connection, as the service account.
    pub(crate) async fn search(
        self: &Arc<Self>,
        query: &SearchRequest,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<SearchResult, RequestError> {
        let mut shared = self.search_connection(deadline, trace).await?;
        let (mut asked, reused) = (Instant::now(), shared.is_used());
        let mut answer = self.ask(&shared, query, deadline, trace).await;
        if reused
            && matches!(
                answer,
                Err(ConnectionError::Broken(_) | ConnectionError::Malformed | ConnectionError::Violation(_))
            )
        {
            // It failed, perhaps because of another request: retried once on a fresh one.
            shared = self.search_connection(deadline, trace).await?;
            asked = Instant::now();
            answer = self.ask(&shared, query, deadline, trace).await;
        }
        let origin = query.origin();
        let found = answer
            .map_err(|error| RequestError::Indeterminate(self.endpoint.note_error(query.operation, origin, &error)))?;
        self.endpoint.note_result(query.operation, origin, &found.result(), asked)?;
        Ok(found)
    }

    async fn ask(
        &self,
        shared: &Arc<SearchConnection>,
        query: &SearchRequest,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<SearchResult, ConnectionError> {
        shared.mark_used();
        let asked = search::one(&shared.connection, query, self.endpoint.patience);
        let answer = self.endpoint.timed(query.operation, deadline, trace, asked, SearchResult::result).await;
        if answer.is_err() {
            // Requests that still wait on it keep it open; no new request gets it.
            let mut slot = locked(&self.search);
            let is_this = |opening: &mut Opening| matches!(opening.peek(), Some(Ok(one)) if Arc::ptr_eq(one, shared));
            slot.take_if(is_this);
        }
        answer
    }

    /// The shared search connection; opened once for all that wait.
    pub(crate) async fn search_connection(
        self: &Arc<Self>,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Arc<SearchConnection>, RequestError> {
        let opening = {
            let mut slot = locked(&self.search);
            let current = slot.as_ref().filter(|opening| match opening.peek() {
                Some(Ok(shared)) => shared.is_usable(&self.endpoint.limits),
                Some(Err(_)) => false,
                None => true,
            });
            match current {
                Some(opening) => opening.clone(),
                None => {
                    let url = self.endpoint.url.clone();
                    // A separate task: the first requester may give up while others still wait.
                    let task = tokio::spawn(self.clone().open_search());
                    let opening = task
                        .map(|end| end.unwrap_or(Err(UnavailableCause::Malformed { server: url })))
                        .boxed()
                        .shared();
                    slot.insert(opening).clone()
                }
            }
        };
        trace.server = Some(self.endpoint.url.clone());
        match timeout_at(deadline, opening).await {
            Ok(Ok(shared)) => Ok(shared),
            Ok(Err(cause)) => {
                trace.record(cause.result());
                Err(RequestError::NotSent(cause))
            }
            Err(_elapsed) => Err(RequestError::NotSent(UnavailableCause::Timeout)),
        }
    }

    /// Opens the search connection.
    async fn open_search(self: Arc<Self>) -> Result<Arc<SearchConnection>, UnavailableCause> {
        let shared = SearchConnection {
            connection: self.open_as_service().await?,
            expires: self.endpoint.expiry(),
            used: Mutex::new(Instant::now()),
            is_used: AtomicBool::new(false),
        };
        self.sweeper.start(&self);
        Ok(Arc::new(shared))
    }

    /// Connects and binds as the service account, or stays anonymous if none is configured; then reads the
    /// canary, if there is one.
    pub(crate) async fn open_as_service(&self) -> Result<Connection, UnavailableCause> {
        let mut client = self.open_bound().await?;
        if self.probe.has_canary() {
            self.probe.send(&self.endpoint, &mut client, Instant::now() + self.endpoint.patience).await?;
        }
        self.shared(client).await
    }

    /// Turns a connection into one that searches share.
    pub(crate) async fn shared(&self, client: BindClient) -> Result<Connection, UnavailableCause> {
        Connection::over(client)
            .await
            .map_err(|error| self.endpoint.note_error(DirectoryOperation::Connect, OperationOrigin::Probe, &error))
    }

    /// The same without the canary.
    pub(crate) async fn open_bound(&self) -> Result<BindClient, UnavailableCause> {
        let mut trace = Trace::default();
        let password = match &self.account {
            Some(account) => Some((account, self.service_password(account).await?)),
            None => None,
        };
        let mut connection = self
            .endpoint
            .connect(Instant::now() + self.endpoint.patience, &mut trace)
            .await
            .map_err(RequestError::cause)?;
        if let Some((account, password)) = password {
            let asked = connection.bind(&account.dn, password.expose());
            let began = Instant::now();
            let bound = self
                .endpoint
                .timed(DirectoryOperation::ServiceBind, began + self.endpoint.patience, &mut trace, asked, |bound| {
                    bound.result.clone()
                })
                .await;
            let bound = bound.map_err(|error| {
                self.endpoint.note_error(DirectoryOperation::ServiceBind, OperationOrigin::Probe, &error)
            })?;
            self.endpoint
                .note_result(DirectoryOperation::ServiceBind, OperationOrigin::Probe, &bound.result, began)
                .map_err(RequestError::cause)?;
            self.service_answer(account, bound)?;
        }
        Ok(connection)
    }

    /// The service account's password, unless the account was refused recently.
    async fn service_password(&self, account: &config::ServiceAccount) -> Result<Secret, UnavailableCause> {
        let refused = locked(&self.refused).clone();
        if let Some((until, result)) = refused
            && Instant::now() < until
        {
            let cause = UnavailableCause::ServiceBind { server: self.endpoint.url.clone(), result };
            self.out_of_use(&cause);
            return Err(cause);
        }
        let file = account.password_file.display();
        let unusable = |reason: String| {
            if let Some(suppressed) = self.endpoint.repeats.allow("password", "") {
                error!(directory = self.endpoint.shown, server = %self.endpoint.url, %file, %reason, suppressed, "service account password unusable");
            }
            let fault = ConnectionFault::PasswordFile { file: file.to_string(), reason };
            let cause = UnavailableCause::Connection { server: self.endpoint.url.clone(), fault };
            self.out_of_use(&cause);
            cause
        };
        let read = tokio::time::timeout(self.endpoint.patience, self.read_file(account.password_file.clone())).await;
        let password = read.map_err(|_| unusable("read timed out".to_owned()))?;
        password.map_err(|error| unusable(error.to_string()))
    }

    /// Reads a small file on a blocking thread; one at a time, so that a hung mount occupies one thread only.
    async fn read_file(&self, path: PathBuf) -> io::Result<Secret> {
        let permit = Arc::clone(&self.reading).acquire_owned().await.map_err(io::Error::other)?;
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let (file, _) = sys::open_regular(&path)?;
            let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST_PASSWORD + 1));
            file.take(LARGEST_PASSWORD as u64).read_to_end(&mut bytes)?;
            Secret::from_file(std::mem::take(&mut bytes)).map_err(io::Error::other)
        });
        read.await.map_err(io::Error::other)?
    }

    /// Records the result of the service account's bind.
    fn service_answer(&self, account: &config::ServiceAccount, bound: BindResponse) -> Result<(), UnavailableCause> {
        let BindResponse { result, diagnostic } = bound;
        let gauge = self.endpoint.metrics.directory_service_bind_ok.with_label_values(&self.endpoint.names());
        // A bound account that must change its password first is refused every search.
        let said = diagnostic.filter(|said| matches!(said, BindDiagnostic::State { .. }));
        if result.code == SUCCESS && said.is_none() {
            gauge.set(1);
            *locked(&self.refused) = None;
            return Ok(());
        }
        gauge.set(0);
        // Delayed: each attempt is one more wrong password towards a lockout.
        *locked(&self.refused) = Some((Instant::now() + self.endpoint.tuning.service_retry, result.clone()));
        let (said, code) = (said.map(tracing::field::display), result.code);
        error!(
            directory = self.endpoint.shown, server = %self.endpoint.url,
            bind_dn = %account.dn,
            code,
            %result,
            said,
            "directory refused the service account"
        );
        let cause = UnavailableCause::ServiceBind { server: self.endpoint.url.clone(), result };
        self.out_of_use(&cause);
        Err(cause)
    }

    /// Marks the server down if it is unusable without the service account.
    fn out_of_use(&self, cause: &UnavailableCause) {
        if self.is_needed {
            self.endpoint.server_failed(OperationOrigin::Probe, cause);
        }
    }
}
