//! Where a backend speaks one protocol: from its addresses to a login that is about to be sent.
//!
//! No password is sent on the way, so that the next address may be tried for whatever goes wrong. A probe (`probe`) takes
//! the same steps.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use prometheus::IntCounter;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::Service;
use super::addresses::{Evidence, Pool, RunningProbe, Selection};
use super::balance::Affinity;
use super::dialogue::{BackendDialogue, LoggedIn};
use super::error::{Awaited, BackendError, Rejected};
use super::health::ConnectAttempt;
use super::observed::Observations;
use super::rejections::Rejections;
use crate::base::sys;
use crate::base::tasks::{self, Task};
use crate::config::{AuthHttpTarget, Ehlo, Forward, Probe};
use crate::proto::proxy_header::{self, Header};
use crate::proto::transcript::{Leg, Transcript};
use crate::proto::{BackFault, BackSettings, BackStep, BackTls, ClientGreeting, Origin, Protocol, capabilities};
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

/// Where a backend speaks one protocol.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) protocol: &'static Protocol,
    pub(super) tls: BackTls,
    /// How the client's address is forwarded to it.
    pub(super) forward: Forward,
    pub(super) ehlo: Ehlo,
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
    /// The backend's rejections, whatever the protocol.
    pub(super) rejections: Arc<Rejections>,
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

/// A connection on the way to a login.
struct Greeting {
    attempt: ConnectAttempt,
    /// Whether the server was sent a name that the client has chosen: what it does from then on may concern that name
    /// only, and one client must not take the server from all others.
    names_client: Arc<AtomicBool>,
}

impl Greeting {
    fn names_client(&self) -> bool {
        self.names_client.load(Ordering::Relaxed)
    }
}

/// The outcome of one connection attempt.
pub(super) struct Connection {
    attempt: ConnectAttempt,
    pub(super) tcp: Result<TcpStream, BackendError>,
}

impl Endpoint {
    /// The addresses to try, in order. While all of them are down, they are probed for this login, which waits
    /// no longer than a fast refusal may take.
    pub(super) async fn candidates(
        self: &Arc<Self>,
        affinity: Option<&Affinity>,
    ) -> Result<VecDeque<SocketAddr>, BackendError> {
        let arrived = Instant::now();
        // Subscribed before the check, so that no change is missed in between.
        let mut changes = self.pool.changed();
        loop {
            self.pool.refresh(&self.metrics);
            self.spawn_probes(self.pool.begin_down_probes());
            let until = match self.pool.select(arrived, self.timeout) {
                Selection::Usable(mut addresses) => {
                    if let Some(affinity) = affinity {
                        affinity.sort(&mut addresses);
                    }
                    return Ok(addresses.into());
                }
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
        affinity: Option<&Affinity>,
        deadline: Instant,
        (settings, header): (&BackSettings, &[u8]),
        transcript: &Transcript,
    ) -> Result<(SocketAddr, BackendDialogue), BackendError> {
        let tried = self.try_each(self.candidates(affinity).await?, deadline, settings, header, transcript).await;
        let again = Instant::now() + RETRY;
        if again >= deadline || !matches!(tried, Err(BackendError::Connect { .. })) {
            return tried;
        }
        sleep_until(again).await;
        transcript.note(Leg::Backend, || format!("connecting again after {RETRY:?}"));
        self.try_each(self.candidates(affinity).await?, deadline, settings, header, transcript).await
    }

    /// Tries one address after the other until one is ready for the login; each fault is recorded. While others remain,
    /// an address that hangs must leave time for them: the next one is tried beside it, and a server that greets late
    /// is still waited for.
    async fn try_each(
        self: &Arc<Self>,
        mut candidates: VecDeque<SocketAddr>,
        deadline: Instant,
        settings: &BackSettings,
        header: &[u8],
        transcript: &Transcript,
    ) -> Result<(SocketAddr, BackendDialogue), BackendError> {
        let mut error = self.late(Awaited::Connection);
        let mut greeting = FuturesUnordered::new();
        let mut pending: Vec<Greeting> = Vec::new();
        loop {
            if let Some(first) = candidates.pop_front() {
                let mut dialling = pin!(self.dial(first, &mut candidates, deadline));
                let Connection { attempt, tcp } = loop {
                    tokio::select! {
                        Some(greeted) = greeting.next() => match self.settle(greeted, &mut pending) {
                            Ok(ready) => return Ok(ready),
                            Err(fault) => error = fault,
                        },
                        dialled = &mut dialling => break dialled,
                    }
                };
                match tcp {
                    Ok(tcp) => {
                        let names_client = Arc::new(AtomicBool::new(false));
                        pending.push(Greeting { attempt, names_client: Arc::clone(&names_client) });
                        greeting.push(self.greet(attempt, tcp, deadline, (settings, header), transcript, names_client));
                    }
                    Err(fault) => {
                        transcript.note(Leg::Backend, || format!("no connection to {}: {fault}", attempt.address));
                        self.pool.failed(&attempt, &fault);
                        error = fault;
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let until = if candidates.is_empty() { deadline } else { deadline - left / 2 };
            match timeout_at(until, greeting.next()).await {
                Ok(Some(greeted)) => match self.settle(greeted, &mut pending) {
                    Ok(ready) => return Ok(ready),
                    Err(fault) => error = fault,
                },
                // It greets late or never: the next one is tried beside it.
                Err(_) if Instant::now() < deadline => {
                    transcript.note(Leg::Backend, || "not ready yet; the next address is tried beside it".to_owned());
                }
                Ok(None) if !candidates.is_empty() && Instant::now() < deadline => {}
                Ok(None) | Err(_) => return Err(error),
            }
        }
    }

    /// An address is ready for the login, or has a fault, which is recorded.
    fn settle(
        &self,
        (attempt, greeted): (ConnectAttempt, Result<BackendDialogue, BackendError>),
        pending: &mut Vec<Greeting>,
    ) -> Result<(SocketAddr, BackendDialogue), BackendError> {
        let own = |other: &Greeting| other.attempt.address == attempt.address;
        let names_client = pending.iter().any(|other| own(other) && other.names_client());
        pending.retain(|other| !own(other));
        match greeted {
            Ok(talk) => {
                // These were connected first and are overtaken: a fault, unless they are known to greet late.
                let late = pending.iter().filter(|other| self.pool.is_overdue(&other.attempt) && !other.names_client());
                for late in late {
                    self.pool.failed(&late.attempt, &self.late(Awaited::Greeting));
                }
                self.record_capabilities(attempt.address, &talk);
                self.pool.greeted(attempt.address, talk.greeted_after);
                self.pool.succeeded(attempt.address, Evidence::Greeting);
                Ok((attempt.address, talk))
            }
            Err(fault) => {
                // After a wait for this address there may be too little time for its greeting.
                let is_short = attempt.began.elapsed() < self.timeout / 10 * 9;
                let too_soon = matches!(fault, BackendError::Timeout { .. }) && is_short;
                if fault.is_server_fault() && !names_client && (!too_soon || self.pool.is_overdue(&attempt)) {
                    self.pool.failed(&attempt, &fault);
                }
                Err(fault)
            }
        }
    }

    /// From a connection to a login that is about to be sent.
    async fn greet(
        &self,
        attempt: ConnectAttempt,
        mut tcp: TcpStream,
        deadline: Instant,
        (settings, header): (&BackSettings, &[u8]),
        transcript: &Transcript,
        names_client: Arc<AtomicBool>,
    ) -> (ConnectAttempt, Result<BackendDialogue, BackendError>) {
        let address = attempt.address;
        let greeted = async {
            transcript.note(Leg::Backend, || format!("connected to {address}"));
            if !header.is_empty() {
                transcript.note(Leg::Backend, || format!("PROXY header of {} bytes sent", header.len()));
            }
            send_header(&mut tcp, header).await?;
            self.go_on(tcp, settings.clone(), deadline, transcript, None, &names_client).await
        };
        let greeted = greeted.await;
        if let Err(fault) = &greeted {
            transcript.note(Leg::Backend, || format!("{address} fails: {fault}"));
        }
        (attempt, greeted)
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

    pub(super) async fn connect(&self, address: SocketAddr, deadline: Instant) -> Connection {
        let began = Instant::now();
        let tcp = timeout_at(deadline, self.pool.sources.connect(address)).await;
        let tcp = tcp.unwrap_or_else(|_| Err(self.late(Awaited::Connection)));
        Connection { attempt: ConnectAttempt { address, began, connected: tcp.is_ok() }, tcp }
    }

    /// Records the server's capabilities, as far as clients may be offered them.
    pub(super) fn record_capabilities(&self, address: SocketAddr, talk: &BackendDialogue) {
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

    pub(super) fn late(&self, awaited: Awaited) -> BackendError {
        BackendError::Timeout { timeout: self.timeout, awaited, rejected: None }
    }

    /// As the reply to a login at this address did not come in time.
    pub(super) fn late_login(&self, address: SocketAddr) -> BackendError {
        let forwarded = self.forward != Forward::Nothing;
        let rejected = self.rejections.last(address.ip()).map(|ago| Rejected { ago, forwarded });
        BackendError::Timeout { timeout: self.timeout, awaited: Awaited::Login, rejected }
    }

    /// The client to forward in the dialogue, if that is the configured method.
    pub(super) fn forwarded_client(&self, origin: &Origin) -> Option<Origin> {
        match self.forward {
            Forward::Dialogue => Some(origin.clone()),
            Forward::Nothing | Forward::Header(_) => None,
        }
    }

    /// The client's name, if usher is to send it in place of its own.
    pub(super) fn client_ehlo(&self, origin: &Origin) -> Option<ClientGreeting> {
        match self.ehlo {
            Ehlo::Client => origin.greeting.clone(),
            Ehlo::Own => None,
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
    async fn start_tls(&self, tcp: TcpStream, deadline: Instant) -> Result<Stream, BackendError> {
        let connecting = tls::client::connect(&self.tls_config, self.server_name.clone(), tcp);
        let connected = timeout_at(deadline, connecting).await.map_err(|_| self.late(Awaited::Tls))?;
        let stream = connected.map_err(|error| match HandshakeError::find(&error) {
            Some(reason) => BackendError::Tls { reason },
            // As a server does that is being stopped: no fault of TLS.
            None => BackendError::LostInTls { reason: tls::describe(&error) },
        })?;
        // Cyrus sends its tickets, then its greeting, which waits until the tickets are acknowledged.
        sys::acknowledge_at_once(stream.tcp());
        let Handshakes { full, resumed } = &self.handshakes;
        if stream.resumed() { resumed } else { full }.inc();
        Ok(stream)
    }

    /// Sends the login and waits for its answer. A backend that closes the connection because it does not read the
    /// message with the command (Exchange does) has not refused the login: it is sent over `again` once, in the
    /// other form.
    pub(super) async fn log_in(
        &self,
        mut talk: BackendDialogue,
        settings: &mut BackSettings,
        again: impl AsyncFnOnce(&BackSettings) -> Result<BackendDialogue, BackendError>,
    ) -> Result<LoggedIn, BackendError> {
        let answered = talk.log_in().await;
        if talk.dialogue.ignores_initial_response() {
            self.pool.initial_response_ignored();
        }
        if talk.dialogue.has_refused_nothing() && answered.as_ref().is_err_and(BackendError::is_closed) {
            settings.initial_response = false;
            let mut talk = again(settings).await?;
            let welcome = talk.log_in().await?;
            return Ok(talk.into_logged_in(welcome));
        }
        Ok(talk.into_logged_in(answered?))
    }

    /// From the connection to the login, which is written but not sent: a probe ends here. `observed` collects the
    /// observations of an inspection.
    pub(super) async fn begin(
        &self,
        tcp: TcpStream,
        settings: BackSettings,
        deadline: Instant,
        transcript: &Transcript,
        observed: Option<&mut Observations>,
    ) -> Result<BackendDialogue, BackendError> {
        self.go_on(tcp, settings, deadline, transcript, observed, &AtomicBool::new(false)).await
    }

    /// The same; `names_client` is set once the server is sent a name that the client has chosen.
    async fn go_on(
        &self,
        tcp: TcpStream,
        settings: BackSettings,
        deadline: Instant,
        transcript: &Transcript,
        mut observed: Option<&mut Observations>,
        names_client: &AtomicBool,
    ) -> Result<BackendDialogue, BackendError> {
        let began = Instant::now();
        let verified = |stream: &Stream| format!("{}; verified as {}", stream.describe(), self.server_name.to_str());
        let stream = match self.tls {
            BackTls::Implicit => {
                let stream = self.start_tls(tcp, deadline).await?;
                transcript.note(Leg::Backend, || verified(&stream));
                stream
            }
            BackTls::StartTls | BackTls::Plaintext => Stream::from(tcp),
        };
        let mut dialogue = (self.protocol.back)(settings);
        dialogue.transcribe(transcript.clone());
        let mut talk = BackendDialogue::new(stream, dialogue);
        let mut awaited = Awaited::Greeting;
        loop {
            if let Some(observed) = &mut observed {
                observed.record(&talk.stream, talk.input.as_slice());
            }
            talk.step = talk.dialogue.step(&mut talk.input, &mut talk.out);
            if talk.dialogue.names_client() {
                names_client.store(true, Ordering::Relaxed);
            }
            // usher speaks only after the greeting.
            if awaited < Awaited::Reply && !talk.out.is_empty() {
                (awaited, talk.greeted_after) = (Awaited::Reply, began.elapsed());
            }
            if let Some(observed) = &mut observed {
                observed.greeted_after = (awaited == Awaited::Reply).then_some(talk.greeted_after);
                observed.listed = talk.dialogue.capabilities();
                observed.watched = talk.dialogue.watch().is_some();
            }
            if talk.dialogue.login_written() {
                return Ok(talk);
            }
            let late = |_| self.late(awaited);
            timeout_at(deadline, talk.send()).await.map_err(late).flatten()?;
            match talk.step {
                BackStep::NeedMore => {
                    timeout_at(deadline, talk.fill_or_request()).await.map_err(late).flatten()?;
                    awaited = awaited.max(Awaited::RestOfGreeting);
                }
                BackStep::StartTls => {
                    // Cleartext input must not be taken for a reply under TLS.
                    if !talk.input.is_empty() {
                        return Err(BackendError::Fault(BackFault::Injection));
                    }
                    let tcp = talk.stream.into_plain().ok_or(BackendError::Fault(BackFault::ProtocolViolation))?;
                    talk.stream = self.start_tls(tcp, deadline).await?;
                    transcript.note(Leg::Backend, || verified(&talk.stream));
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
pub(super) async fn send_header(tcp: &mut TcpStream, header: &[u8]) -> Result<(), BackendError> {
    tcp.write_all(header).await.map_err(|source| BackendError::Broken { source })
}
