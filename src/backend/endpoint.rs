//! Where a backend speaks one protocol: from its addresses to a login that is about to be sent.
//!
//! No password is sent on the way, so that the next address may be tried for whatever goes wrong. A probe takes
//! the same steps, and logs in only with the probe account.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use prometheus::IntCounter;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::warn;

use super::addresses::{Evidence, Pool, RunningProbe, Selection};
use super::diagnose::Observations;
use super::dialogue::BackendDialogue;
use super::health::ConnectAttempt;
use super::{BackendError, Service};
use crate::base::secret::{Secret, SecretBuf};
use crate::base::sys;
use crate::base::tasks::{self, Task};
use crate::config::{AuthHttpTarget, Forward, Probe};
use crate::proto::proxy_header::{self, Header};
use crate::proto::{BackFault, BackSettings, BackStep, BackTls, Origin, Protocol, capabilities};
use crate::telemetry::labels::ProbeResult;
use crate::telemetry::metrics::Metrics;
use crate::tls;
use crate::tls::HandshakeError;
use crate::tls::stream::Stream;

/// How long an address may take to connect before the next is tried beside it (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// A restarting server refuses connections for a moment: the delay before one retry.
const RETRY: Duration = Duration::from_millis(250);
/// More capabilities than any server has.
const CAPABILITIES: usize = 100;
/// The session id that probes forward.
const PROBE_SESSION: &str = "PROBE";
/// How long a probe may take to close its connection.
const PROBE_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a backend speaks one protocol.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) protocol: &'static Protocol,
    pub(super) tls: BackTls,
    /// How the client's address is forwarded to it.
    pub(super) forward: Forward,
    /// Where nginx connects, if `auth_http` may use this endpoint.
    pub(super) nginx: Option<AuthHttpTarget>,
    pub(super) server_name: ServerName<'static>,
    pub(super) tls_config: Arc<rustls::ClientConfig>,
    /// The backend's `timeout`, for logins and for probes.
    pub(super) timeout: Duration,
    pub(super) untagged_limit: usize,
    /// usher's own name.
    pub(super) host: Arc<str>,
    /// The account that probes log in with, if configured.
    pub(super) account: Option<Service>,
    pub(super) pool: Arc<Pool>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) handshakes: Handshakes,
}

/// TLS handshakes with a backend, by what they were.
#[derive(Debug)]
pub(super) struct Handshakes {
    full: IntCounter,
    resumed: IntCounter,
}

impl Handshakes {
    pub(super) fn new(metrics: &Metrics, backend: &str, protocol: &str) -> Self {
        let of = |resumed| metrics.backend_handshakes.with_label_values(&[backend, protocol, resumed]);
        Self { full: of("no"), resumed: of("yes") }
    }
}

/// The outcome of one connection attempt.
struct Connection {
    attempt: ConnectAttempt,
    tcp: Result<TcpStream, BackendError>,
}

impl Endpoint {
    /// The addresses to try, in order. While all of them are down, they are probed for this login, which waits
    /// no longer than a fast refusal may take.
    pub(super) async fn candidates(self: &Arc<Self>) -> Result<VecDeque<SocketAddr>, BackendError> {
        let arrived = Instant::now();
        // Subscribed before the check, so that no change is missed in between.
        let mut changes = self.pool.changed();
        loop {
            self.pool.refresh(&self.metrics);
            self.spawn_probes(self.pool.begin_down_probes());
            let until = match self.pool.select(arrived) {
                Selection::Usable(addresses) => return Ok(addresses.into()),
                Selection::Unavailable(error) => return Err(error),
                Selection::Wait(until) => until,
            };
            match until {
                Some(until) => drop(timeout_at(until, changes.changed()).await),
                None => drop(changes.changed().await),
            }
        }
    }

    /// Probes each address that is due.
    pub(super) fn run_probes(self: &Arc<Self>) {
        if self.pool.settings.probe != Probe::Off {
            self.pool.refresh(&self.metrics);
            self.spawn_probes(self.pool.begin_due_probes());
        }
    }

    fn spawn_probes(self: &Arc<Self>, looks: impl IntoIterator<Item = RunningProbe>) {
        for probe in looks {
            let endpoint = Arc::clone(self);
            tokio::spawn(async move {
                let metrics = Arc::clone(&endpoint.metrics);
                tasks::once(Task::BackendProbe, &metrics.task_restarts, endpoint.run_probe(probe)).await
            });
        }
    }

    /// Connects and goes as far as a login that is about to be sent, at the first address that accepts.
    pub(super) async fn approach(
        self: &Arc<Self>,
        deadline: Instant,
        settings: &BackSettings,
        header: &[u8],
    ) -> Result<(SocketAddr, BackendDialogue), BackendError> {
        let tried = self.try_each(self.candidates().await?, deadline, settings, header).await;
        let again = Instant::now() + RETRY;
        if again >= deadline || !matches!(tried, Err(BackendError::Connect { .. })) {
            return tried;
        }
        sleep_until(again).await;
        self.try_each(self.candidates().await?, deadline, settings, header).await
    }

    /// Tries one address after the other; each fault is recorded.
    async fn try_each(
        self: &Arc<Self>,
        mut candidates: VecDeque<SocketAddr>,
        deadline: Instant,
        settings: &BackSettings,
        header: &[u8],
    ) -> Result<(SocketAddr, BackendDialogue), BackendError> {
        let mut error = self.late();
        while let Some(first) = candidates.pop_front() {
            let Connection { attempt, tcp } = self.dial(first, &mut candidates, deadline).await;
            let now = Instant::now();
            // While others remain, an address that hangs must leave time for them.
            let until =
                if candidates.is_empty() { deadline } else { now + deadline.saturating_duration_since(now) / 2 };
            let approach = async {
                let mut tcp = tcp?;
                send_header(&mut tcp, header).await?;
                self.begin(tcp, settings.clone(), None).await
            };
            error = match timeout_at(until, approach).await.unwrap_or_else(|_| Err(self.late())) {
                Ok(talk) => {
                    self.record_capabilities(attempt.address, &talk);
                    self.pool.succeeded(attempt.address, Evidence::Greeting);
                    return Ok((attempt.address, talk));
                }
                Err(error) => error,
            };
            if error.is_server_fault() {
                self.pool.failed(&attempt, &error);
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(error)
    }

    /// Connects to the first address that answers, or gives the last one's error; those that were
    /// too slow go back to the end of the queue.
    async fn dial(
        self: &Arc<Self>,
        first: SocketAddr,
        candidates: &mut VecDeque<SocketAddr>,
        deadline: Instant,
    ) -> Connection {
        let mut dialling = FuturesUnordered::from_iter([self.connect(first, deadline)]);
        let mut pending = vec![first];
        loop {
            let next =
                if candidates.is_empty() { Ok(dialling.next().await) } else { timeout(STAGGER, dialling.next()).await };
            let failed = match next {
                // No result yet: start another connection in parallel.
                Ok(None) | Err(_) => None,
                Ok(Some(Connection { attempt, tcp: Err(error) })) => Some((attempt, error)),
                Ok(Some(dialled)) => {
                    pending.retain(|address| *address != dialled.attempt.address);
                    // Probes find out whether these are slow or unreachable; this login does not wait for them.
                    self.spawn_probes(pending.iter().filter_map(|address| self.pool.begin_probe(*address)));
                    candidates.extend(pending);
                    return dialled;
                }
            };
            let another = candidates.pop_front();
            if let Some((attempt, error)) = failed {
                pending.retain(|address| *address != attempt.address);
                if another.is_none() && pending.is_empty() {
                    return Connection { attempt, tcp: Err(error) };
                }
                self.pool.failed(&attempt, &error);
            }
            if let Some(address) = another {
                pending.push(address);
                dialling.push(self.connect(address, deadline));
            }
        }
    }

    async fn connect(&self, address: SocketAddr, deadline: Instant) -> Connection {
        let began = Instant::now();
        let tcp = timeout_at(deadline, self.pool.sources.connect(address)).await.unwrap_or_else(|_| Err(self.late()));
        Connection { attempt: ConnectAttempt { address, began, connected: tcp.is_ok() }, tcp }
    }

    /// Records the server's capabilities, as far as clients may be offered them.
    fn record_capabilities(&self, address: SocketAddr, talk: &BackendDialogue) {
        let listed = talk.dialogue.capabilities();
        // A server that lists nothing does not withdraw its previous list.
        if listed.is_empty() {
            return;
        }
        let advertised = |one: &String| (self.protocol.advertised)(capabilities::name(one));
        if self.pool.record_capabilities(
            address,
            capabilities::bounded(listed.into_iter().filter(advertised).take(CAPABILITIES)),
        ) {
            let labels = [&*self.pool.backend, self.protocol.name];
            self.metrics.backend_capability_changes.with_label_values(&labels).inc();
        }
    }

    fn late(&self) -> BackendError {
        BackendError::Timeout { timeout: self.timeout }
    }

    /// The client to forward in the dialogue, if that is the configured method.
    pub(super) fn forwarded_client(&self, origin: &Origin) -> Option<Origin> {
        match self.forward {
            Forward::Dialogue => Some(origin.clone()),
            Forward::Nothing | Forward::Header(_) => None,
        }
    }

    /// The PROXY header to send before TLS and the dialogue, for a client or for none (LOCAL): a server that
    /// requires a header requires it from every connection.
    pub(super) fn header(&self, origin: Option<&Origin>) -> Vec<u8> {
        let header = origin
            .map_or(Header::Local, |Origin { client, local, .. }| Header::Client { client: *client, local: *local });
        match self.forward {
            Forward::Header(version) => proxy_header::write(version, &header),
            Forward::Nothing | Forward::Dialogue => Vec::new(),
        }
    }

    /// TLS as a client.
    pub(super) async fn start_tls(&self, tcp: TcpStream) -> Result<Stream, BackendError> {
        let connecting = tls::client::connect(&self.tls_config, self.server_name.clone(), tcp);
        let stream =
            connecting.await.map_err(|error| BackendError::Tls { reason: HandshakeError::of_stream(&error) })?;
        // Cyrus sends its tickets, then its greeting, which waits until the tickets are acknowledged.
        sys::acknowledge_at_once(stream.tcp());
        let Handshakes { full, resumed } = &self.handshakes;
        if stream.resumed() { resumed } else { full }.inc();
        Ok(stream)
    }

    /// Probes one address and records the result.
    async fn run_probe(self: Arc<Self>, mut probe: RunningProbe) {
        let probed = timeout(self.timeout, self.probe(&mut probe)).await.unwrap_or_else(|_| Err(self.late()));
        let result = match &probed {
            Ok(proof) => {
                if let Some(proof) = proof {
                    self.pool.succeeded(probe.attempt.address, *proof);
                }
                ProbeResult::Ok
            }
            // The server works; a rejected probe account is a matter of configuration.
            Err(BackendError::Refused(words)) if !words.unavailable => {
                self.pool.succeeded(probe.attempt.address, Evidence::Login);
                ProbeResult::Refused
            }
            Err(error) => {
                // Logged here, because there may be no login to report it.
                if error.is_local_fault() {
                    let (backend, address) = (&*self.pool.backend, probe.attempt.address);
                    warn!(backend, protocol = self.protocol.name, %address, %error, "cannot probe backend: local error");
                }
                self.pool.failed(&probe.attempt, error);
                error.probe_result()
            }
        };
        self.metrics.backend_probes.at(&self.pool.backend, result).inc();
        if self.account.is_some() {
            self.pool.account_refused(result == ProbeResult::Refused);
        }
    }

    /// Runs the configured kind of probe. An address is up again only after its greeting.
    async fn probe(self: &Arc<Self>, probe: &mut RunningProbe) -> Result<Option<Evidence>, BackendError> {
        let deadline = Instant::now() + self.timeout;
        let mut tcp = self.connect(probe.attempt.address, deadline).await.tcp?;
        probe.connected();
        send_header(&mut tcp, &self.header(None)).await?;
        if self.pool.settings.probe == Probe::Tcp && !probe.is_recovery() {
            return Ok(None);
        }
        match self.dialogue(probe.attempt.address, tcp, None, None).await {
            // It greets but offers no login without TLS or an account, which this probe does not need.
            Err(BackendError::Fault(BackFault::NoMechanism)) if self.account.is_none() => Ok(Some(Evidence::Greeting)),
            conversed => conversed.map(Some),
        }
    }

    /// Checks one address up to the point where a login would be sent; `observed` collects the observations.
    pub(super) async fn inspect(
        self: &Arc<Self>,
        address: SocketAddr,
        service: Option<&Service>,
        observed: &mut Observations,
    ) -> Result<Evidence, BackendError> {
        let probed = async {
            let mut tcp = self.connect(address, Instant::now() + self.timeout).await.tcp?;
            observed.connected = true;
            send_header(&mut tcp, &self.header(None)).await?;
            self.dialogue(address, tcp, service, Some(observed)).await
        };
        timeout(self.timeout, probed).await.unwrap_or_else(|_| Err(self.late()))
    }

    /// From the connection to a login that is about to be sent, or with the probe's account further. A service
    /// account's name is used as a login would use it; its password is not sent.
    async fn dialogue(
        self: &Arc<Self>,
        address: SocketAddr,
        tcp: TcpStream,
        service: Option<&Service>,
        observed: Option<&mut Observations>,
    ) -> Result<Evidence, BackendError> {
        let (login, password) = match &self.account {
            Some(account) => (account.login.clone().into_bytes(), account.password.clone()),
            None => (Vec::new(), Secret::new(Vec::new())),
        };
        let host = Arc::clone(&self.host);
        // Forwards usher's own address, so that a backend that does not trust usher is detected.
        let own =
            tcp.local_addr().ok().map(|own| Origin { client: own, local: own, session: PROBE_SESSION.to_owned() });
        let forward = own.and_then(|own| self.forwarded_client(&own));
        // The probe account logs in as itself, not for another user.
        let service = service.filter(|_| self.account.is_none()).map(|service| service.login.clone().into_bytes());
        let untagged_limit = self.untagged_limit;
        let settings = BackSettings { tls: self.tls, login, password, service, forward, untagged_limit, host };
        let talk = self.begin(tcp, settings, observed).await?;
        self.record_capabilities(address, &talk);
        let (mut stream, proof) = match self.account {
            Some(_) => (talk.log_in().await?.stream, Evidence::Login),
            None => (talk.into_stream(), Evidence::Greeting),
        };
        let _ = timeout(PROBE_CLOSE_TIMEOUT, stream.shutdown()).await;
        Ok(proof)
    }

    /// From the connection to the login, which is written but not sent: a probe ends here. `observed` collects the
    /// observations of an inspection.
    async fn begin(
        &self,
        tcp: TcpStream,
        settings: BackSettings,
        mut observed: Option<&mut Observations>,
    ) -> Result<BackendDialogue, BackendError> {
        let stream = match self.tls {
            BackTls::Implicit => self.start_tls(tcp).await?,
            BackTls::StartTls | BackTls::Plaintext => Stream::from(tcp),
        };
        let dialogue = (self.protocol.back)(settings);
        let (input, out) = (SecretBuf::new(), SecretBuf::new());
        let mut talk = BackendDialogue { stream, dialogue, input, out, step: BackStep::NeedMore };
        loop {
            if let Some(observed) = &mut observed {
                observed.record(&talk.stream, talk.input.as_slice());
            }
            talk.step = talk.dialogue.step(&mut talk.input, &mut talk.out);
            if let Some(observed) = &mut observed {
                observed.listed = talk.dialogue.capabilities();
                observed.watched = talk.dialogue.watch().is_some();
            }
            if talk.dialogue.login_written() {
                return Ok(talk);
            }
            talk.send().await?;
            match talk.step {
                BackStep::NeedMore => talk.fill().await?,
                BackStep::StartTls => {
                    // Cleartext input must not be taken for a reply under TLS.
                    if !talk.input.is_empty() {
                        return Err(BackendError::Fault(BackFault::Injection));
                    }
                    let tcp = talk.stream.into_plain().ok_or(BackendError::Fault(BackFault::ProtocolViolation))?;
                    talk.stream = self.start_tls(tcp).await?;
                    talk.dialogue.tls_started();
                }
                BackStep::Fault(fault) => return Err(BackendError::Fault(fault)),
                // A reply before the login was sent.
                BackStep::Ready(_) | BackStep::Refused(_) => {
                    return Err(BackendError::Fault(BackFault::ProtocolViolation));
                }
            }
        }
    }
}

/// Sends the PROXY header, if there is one.
async fn send_header(tcp: &mut TcpStream, header: &[u8]) -> Result<(), BackendError> {
    tcp.write_all(header).await.map_err(|source| BackendError::Broken { source })
}
