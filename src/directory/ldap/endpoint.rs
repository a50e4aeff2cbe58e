//! One directory server as it is reached: connects, counts and judges operations, and keeps its health.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::base::clock::jittered;
use crate::config::{self, Connections, LdapScheme};
use crate::directory::ldap::addresses::HostAddresses;
use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::dial::Dial;
use crate::directory::ldap::dns::DnsResolver;
use crate::directory::ldap::error::{ConnectionError, RequestError};
use crate::directory::ldap::health::{OperationOrigin, ServerHealth};
use crate::directory::ldap::idle::IdleConnections;
use crate::directory::ldap::tuning::Tuning;
use crate::directory::{Realm, ServerResult, Trace, UnavailableCause};
use crate::proto::ldap::result::{self, BindMeaning, OTHER, SUCCESS};
use crate::telemetry::labels::DirectoryOperation;
use crate::telemetry::log::Repeats;
use crate::telemetry::metrics::{Metrics, ServerSeries};

/// One directory server.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Its directory.
    pub(crate) realm: Realm,
    /// The directory's name, where there are several.
    pub(crate) shown: Option<&'static str>,
    pub(crate) url: Arc<str>,
    dial: Dial,
    /// `attempt_timeout`.
    pub(crate) patience: Duration,
    /// Whether another server could take over.
    pub(crate) replaceable: bool,
    pub(crate) limits: Connections,
    pub(crate) tuning: Tuning,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: ServerHealth,
    /// Bind connections for reuse: closed when the server fails.
    pub(crate) idle: IdleConnections,
    pub(crate) repeats: Repeats,
    /// DNS no longer names it: nothing new is to begin here.
    pub(crate) retired: CancellationToken,
    _series: ServerSeries,
}

impl Endpoint {
    /// A configured server; nothing is connected yet. Health changes are sent to `changed`.
    pub(crate) fn new(
        server: &config::DirectoryServer,
        settings: &config::Directory,
        tls: Option<Arc<rustls::ClientConfig>>,
        metrics: Arc<Metrics>,
        (tuning, changed): (Tuning, watch::Sender<()>),
    ) -> Self {
        let realm = Realm::named(&settings.name);
        // A target of SRV records is a whole name: the system would try it with its search list.
        let is_target = !settings.servers.contains(server);
        let resolver = DnsResolver::new(settings.resolver.clone());
        let resolver = (resolver.is_configured() || is_target).then_some(resolver);
        Self {
            realm,
            shown: realm.shown(settings),
            url: server.url.as_str().into(),
            dial: Dial {
                scheme: server.scheme,
                host: server.host.clone(),
                server_name: server.name().to_owned(),
                starttls: server.scheme == LdapScheme::Ldap && server.has_tls(settings.starttls),
                addresses: Arc::new(HostAddresses::new(&server.host, server.port, resolver)),
                tls,
                patience: settings.attempt_timeout,
                max_message: settings.max_message,
            },
            patience: settings.attempt_timeout,
            replaceable: settings.servers.len() > 1 || settings.servers.iter().any(|server| server.srv.is_some()),
            retired: CancellationToken::new(),
            _series: ServerSeries::new(&metrics, realm.name(), &server.url),
            limits: settings.connections,
            tuning,
            metrics,
            health: ServerHealth::new(tuning, changed),
            idle: IdleConnections::new(settings.connections),
            repeats: Repeats::default(),
        }
    }

    /// Its labels in metrics: the directory and the server.
    pub(crate) fn names(&self) -> [&str; 2] {
        [self.realm.name(), &self.url]
    }

    /// The addresses of its host.
    pub(crate) const fn addresses(&self) -> &Arc<HostAddresses> {
        &self.dial.addresses
    }

    /// Whether a request may be sent here now; if it is the trial of a recovering server, no other is sent for
    /// as long as it may take.
    pub(crate) fn enter(&self) -> bool {
        self.health.enter(self.patience.saturating_mul(3))
    }

    /// Counts a request that fails over to another server.
    pub(crate) fn count_failover(&self) {
        if self.replaceable {
            self.metrics.directory_failovers.with_label_values(&self.names()).inc();
        }
    }

    pub(crate) async fn connect(&self, deadline: Instant, trace: &mut Trace) -> Result<BindClient, RequestError> {
        let made = self
            .timed(DirectoryOperation::Connect, deadline, trace, BindClient::open(&self.dial), |_| SUCCESS.into())
            .await;
        trace.record(None);
        made.map_err(|error| {
            RequestError::NotSent(self.note_error(DirectoryOperation::Connect, OperationOrigin::Probe, &error))
        })
    }

    /// Runs one operation with its deadline; counts it and records it in the trace.
    pub(crate) async fn timed<T>(
        &self,
        operation: DirectoryOperation,
        deadline: Instant,
        trace: &mut Trace,
        asked: impl Future<Output = Result<T, ConnectionError>>,
        result: impl Fn(&T) -> ServerResult,
    ) -> Result<T, ConnectionError> {
        let began = Instant::now();
        let until = deadline.min(began + self.patience);
        let late = if until.duration_since(began) < self.patience / 2 {
            ConnectionError::CutShort
        } else {
            ConnectionError::Timeout
        };
        let answer = timeout_at(until, asked).await.unwrap_or(Err(late));
        let [directory, url] = self.names();
        let seconds = self.metrics.directory_seconds.with_label_values(&[directory, url, operation.label()]);
        seconds.observe(began.elapsed().as_secs_f64());
        trace.server = Some(self.url.clone());
        let result = answer.as_ref().ok().map(&result);
        trace.record(result.as_ref());
        let count = |word| {
            let labels = [directory, url, operation.label(), word];
            self.metrics.directory_operations.with_label_values(&labels).inc();
        };
        match &answer {
            Ok(_) => self.metrics.directory_operation([directory, url], operation, result.unwrap_or_default().code),
            Err(ConnectionError::Timeout | ConnectionError::CutShort) => count("timeout"),
            Err(ConnectionError::Broken(_)) => count("connection"),
            Err(ConnectionError::Malformed | ConnectionError::Violation(_)) => count("malformed"),
        }
        answer
    }

    /// Records the result of a request sent at `asked`: a verdict about the request, or a server failure.
    pub(crate) fn note_result(
        &self,
        operation: DirectoryOperation,
        origin: OperationOrigin,
        result: &ServerResult,
        asked: Instant,
    ) -> Result<(), RequestError> {
        // A code that concerns the server does so whatever the operation.
        if result::of(result.code).bind != BindMeaning::ServerFailed {
            if origin != OperationOrigin::Probe && self.health.request_answered(operation, asked) {
                info!(directory = self.shown, server = %self.url, operation = operation.label(), "directory server up again");
            }
            return Ok(());
        }
        if let Some(suppressed) = self.repeats.allow(operation.label(), "unsure") {
            let (operation, code) = (operation.label(), result.code);
            warn!(directory = self.shown, server = %self.url, operation, code, %result, suppressed, "directory server gave an inconclusive result");
        }
        let cause = UnavailableCause::Result { server: self.url.clone(), operation, result: result.clone() };
        // Other (80) may concern one entry; busy and unavailable concern the server.
        if result.code == OTHER {
            self.request_failed(origin, &cause);
        } else {
            self.server_failed(origin, &cause);
        }
        Err(if operation == DirectoryOperation::Bind {
            RequestError::Answered(cause)
        } else {
            RequestError::Indeterminate(cause)
        })
    }

    /// Records an error. An error of the server itself marks it down and closes its idle connections.
    pub(crate) fn note_error(
        &self,
        operation: DirectoryOperation,
        origin: OperationOrigin,
        error: &ConnectionError,
    ) -> UnavailableCause {
        if let Some(suppressed) = self.repeats.allow(operation.label(), "failed") {
            warn!(directory = self.shown, server = %self.url, operation = operation.label(), reason = %error, suppressed, "directory request failed");
        }
        let cause = error.unavailable(&self.url);
        match (origin, error) {
            // The reply to a bind contains nothing of an entry.
            (OperationOrigin::Login { operation: DirectoryOperation::Bind, .. }, ConnectionError::Violation(_)) => {
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
                self.idle.clear();
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
            warn!(directory = self.shown, server = %self.url, reason = %cause, "directory server marked down");
        }
    }

    pub(crate) fn expiry(&self) -> Instant {
        Instant::now() + jittered(self.limits.max_age)
    }
}
