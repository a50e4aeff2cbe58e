//! The search connection of a server: shared by all searches, with the identity of the service account, or
//! anonymous if none is configured.
//!
//! The account's password is read for each bind, so that a changed file needs no reload and nothing stays in
//! memory; after a refusal the next bind is delayed, so that usher does not lock the account.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::{Instant, timeout_at};
use tracing::error;
use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::base::sys;
use crate::config::{Connections, ServiceAccount};
use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::bind_pool::{RequestError, Server, locked};
use crate::directory::ldap::connection::{Connection, ConnectionError, SearchRequest, SearchResult};
use crate::directory::ldap::health::OperationOrigin;
use crate::directory::ldap::policy::{BindDiagnostic, BindResponse};
use crate::directory::{Trace, UnavailableCause};

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

impl Server {
    /// Searches on the search connection, as the service account.
    pub(crate) async fn search(
        self: &Arc<Self>,
        question: &SearchRequest,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<SearchResult, RequestError> {
        let mut shared = self.search_connection(deadline, trace).await?;
        let (mut asked, reused) = (Instant::now(), shared.is_used());
        let mut answer = self.ask(&shared, question, deadline, trace).await;
        if reused
            && matches!(
                answer,
                Err(ConnectionError::Broken(_) | ConnectionError::Malformed | ConnectionError::Violation(_))
            )
        {
            // It failed, perhaps because of another request: retried once on a fresh one.
            shared = self.search_connection(deadline, trace).await?;
            asked = Instant::now();
            answer = self.ask(&shared, question, deadline, trace).await;
        }
        let origin = question.origin();
        let found =
            answer.map_err(|error| RequestError::Indeterminate(self.note_error(question.operation, origin, &error)))?;
        self.note_result(question.operation, origin, found.code, asked)?;
        Ok(found)
    }

    pub(crate) async fn ask(
        &self,
        shared: &Arc<SearchConnection>,
        question: &SearchRequest,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<SearchResult, ConnectionError> {
        shared.mark_used();
        let asked = shared.connection.search(question, self.patience);
        let answer = self.timed(question.operation, deadline, trace, asked, |found| found.code).await;
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
                Some(Ok(shared)) => shared.is_usable(&self.limits),
                Some(Err(_)) => false,
                None => true,
            });
            match current {
                Some(opening) => opening.clone(),
                None => {
                    let url = self.url.clone();
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
        trace.server = Some(self.url.clone());
        match timeout_at(deadline, opening).await {
            Ok(Ok(shared)) => Ok(shared),
            Ok(Err(cause)) => {
                trace.code = cause.code();
                Err(RequestError::NotSent(cause))
            }
            Err(_elapsed) => Err(RequestError::NotSent(UnavailableCause::Timeout)),
        }
    }

    /// Opens the search connection.
    async fn open_search(self: Arc<Self>) -> Result<Arc<SearchConnection>, UnavailableCause> {
        let shared = SearchConnection {
            connection: self.open_as_service().await?,
            expires: self.expiry(),
            used: Mutex::new(Instant::now()),
            is_used: AtomicBool::new(false),
        };
        self.sweep();
        Ok(Arc::new(shared))
    }

    /// Connects and binds as the service account, or stays anonymous if none is configured; then reads the
    /// canary, if there is one.
    pub(crate) async fn open_as_service(&self) -> Result<Connection, UnavailableCause> {
        let mut client = self.open_bound().await?;
        if self.probe.has_canary() {
            self.probe_connection(&mut client, Instant::now() + self.patience).await?;
        }
        self.shared(client).await
    }

    /// Turns a connection into one that searches share.
    pub(crate) async fn shared(&self, client: BindClient) -> Result<Connection, UnavailableCause> {
        Connection::over(client).await.map_err(|error| self.note_error("connect", OperationOrigin::Probe, &error))
    }

    /// The same without the canary.
    pub(crate) async fn open_bound(&self) -> Result<BindClient, UnavailableCause> {
        let mut trace = Trace::default();
        let password = match &self.service {
            Some(account) => Some((account, self.service_password(account).await?)),
            None => None,
        };
        let mut connection =
            self.connect(Instant::now() + self.patience, &mut trace).await.map_err(RequestError::cause)?;
        if let Some((account, password)) = password {
            let text = std::str::from_utf8(password.expose()).unwrap_or_default();
            let asked = connection.bind(&account.dn, text);
            let began = Instant::now();
            let bound = self.timed("service_bind", began + self.patience, &mut trace, asked, |bound| bound.code).await;
            let bound = bound.map_err(|error| self.note_error("bind", OperationOrigin::Probe, &error))?;
            self.note_result("service_bind", OperationOrigin::Probe, bound.code, began).map_err(RequestError::cause)?;
            self.service_answer(account, bound)?;
        }
        Ok(connection)
    }

    /// The service account's password, unless the account was refused recently.
    async fn service_password(&self, account: &ServiceAccount) -> Result<Secret, UnavailableCause> {
        if let Some((until, code)) = *locked(&self.refused)
            && Instant::now() < until
        {
            let cause = UnavailableCause::ServiceBind { server: self.url.clone(), code };
            self.out_of_use(&cause);
            return Err(cause);
        }
        let file = account.password_file.display();
        let unusable = |reason: String| {
            if let Some(suppressed) = self.repeats.allow("password", "") {
                error!(server = %self.url, %file, %reason, suppressed, "service account password unusable");
            }
            let cause = UnavailableCause::Connection { server: self.url.clone(), reason: format!("{file}: {reason}") };
            self.out_of_use(&cause);
            cause
        };
        let read = tokio::time::timeout(self.patience, self.read_file(account.password_file.clone())).await;
        let bytes = read.map_err(|_| unusable("read timed out".to_owned()))?;
        let bytes = bytes.map_err(|error| unusable(error.to_string()))?;
        let password = without_line_end(bytes);
        if password.is_empty() || std::str::from_utf8(password.expose()).is_err() {
            return Err(unusable("empty or not UTF-8".to_owned()));
        }
        Ok(password)
    }

    /// Reads a small file on a blocking thread; one at a time, so that a hung mount occupies one thread only.
    async fn read_file(&self, path: PathBuf) -> io::Result<Secret> {
        let permit = Arc::clone(&self.reading).acquire_owned().await.map_err(io::Error::other)?;
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let (file, _) = sys::open_regular(&path)?;
            let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST_PASSWORD + 1));
            file.take(LARGEST_PASSWORD as u64).read_to_end(&mut bytes)?;
            Ok(Secret::new(std::mem::take(&mut bytes)))
        });
        read.await.map_err(io::Error::other)?
    }

    /// Records the result of the service account's bind.
    fn service_answer(&self, account: &ServiceAccount, bound: BindResponse) -> Result<(), UnavailableCause> {
        let code = bound.code;
        let gauge = self.metrics.directory_service_bind_ok.with_label_values(&[&self.url]);
        // A bound account that must change its password first is refused every search.
        let said = bound.diagnostic.filter(|said| matches!(said, BindDiagnostic::State { .. }));
        if code == 0 && said.is_none() {
            gauge.set(1);
            *locked(&self.refused) = None;
            return Ok(());
        }
        gauge.set(0);
        // Delayed: each attempt is one more wrong password towards a lockout.
        *locked(&self.refused) = Some((Instant::now() + self.tuning.service_retry, code));
        let said = said.map(tracing::field::display);
        error!(server = %self.url, bind_dn = %account.dn, code, said, "directory refused the service account");
        let cause = UnavailableCause::ServiceBind { server: self.url.clone(), code };
        self.out_of_use(&cause);
        Err(cause)
    }

    /// Marks the server down if it is unusable without the service account.
    fn out_of_use(&self, cause: &UnavailableCause) {
        if self.needs_service {
            self.server_failed(OperationOrigin::Probe, cause);
        }
    }
}

/// Removes one trailing line end, as editors add it.
fn without_line_end(secret: Secret) -> Secret {
    let bytes = secret.expose();
    match bytes.strip_suffix(b"\n") {
        Some(line) => Secret::copy_of(line.strip_suffix(b"\r").unwrap_or(line)),
        None => secret,
    }
}
