//! A mail server behind usher: select a healthy address, verify the server, log in as the user.
//!
//! The backend's dialogue is the protocol's ([`crate::proto::Back`]); here are its sockets, its TLS, its
//! deadline and its health. A rejection is reported unchanged; the session decides what it means: after a
//! successful bind, that directory and backend disagree. Several addresses are tried until one greets; a
//! password is never sent twice. Never uses cleartext unless the config says so explicitly.

mod addresses;
pub(crate) mod capabilities;
pub(crate) mod diagnose;
mod endpoint;
mod health;
mod resolve;
mod source;
pub(crate) mod state;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use rustix::io::Errno;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::base::clock::wait_until;
use crate::base::credential::{Credential, CredentialSecret, Login};
use crate::base::labels::Label as _;
use crate::base::secret::{Secret, SecretBuf};
use crate::config;
use crate::outcome::{BackendReply, Refusal};
use crate::proto::watch::CommandWatch;
use crate::proto::{Back, BackFault, BackSettings, BackStep, BackTls, Origin, PROTOCOLS, Protocol, Welcome};
use crate::telemetry::labels::{BackendResult, ProbeResult};
use crate::telemetry::metrics::Metrics;
use crate::tls::HandshakeError;
use crate::tls::stream::Stream;
use addresses::{Evidence, Pool};
use diagnose::Observations;
use endpoint::{Endpoint, Handshakes};
use health::BreakerState;
use state::BackendStatus;

/// How long a login waits for a slot while too many are in progress or after an outage.
const SLOT_WAIT: Duration = Duration::from_secs(1);

/// A backend, ready to be logged in to.
#[derive(Debug)]
pub(crate) struct Backend {
    /// Its name.
    pub name: Arc<str>,
    /// Whether its own refusal texts may be passed to the client.
    pub pass_refusals: bool,
    timeout: Duration,
    service: Option<Service>,
    /// Slots for logins in progress.
    slots: Arc<Semaphore>,
    logins_in_flight: usize,
    in_flight: IntGauge,
    endpoints: HashMap<&'static str, Arc<Endpoint>>,
}

/// An account of usher's own: for proxy authorization, or for probes.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    /// Its name (SASL authcid).
    pub login: String,
    /// Its password.
    pub password: Secret,
}

/// What a backend's files hold.
#[derive(Debug)]
pub(crate) struct BackendFiles {
    /// The name to verify and the TLS of each endpoint, in their order.
    pub tls: Vec<(ServerName<'static>, Arc<rustls::ClientConfig>)>,
    /// The service account, if there is one.
    pub service: Option<Service>,
    /// The account that probes log in with, if they do.
    pub probe: Option<Service>,
}

/// A session at a backend, logged in.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    /// The connection.
    pub stream: Stream,
    /// What the backend sent after its reply: it belongs to the client, in order.
    pub leftover: SecretBuf,
    /// What the backend said to the login.
    pub welcome: Welcome,
    /// The command to watch for in the session, if any.
    pub watch: Option<CommandWatch>,
}

/// How long a login at a backend took; filled as far as it came.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Phases {
    /// Slot, name resolution, TCP, TLS and greeting: until the login can be sent.
    pub connect: Option<Duration>,
    /// From there to the answer.
    pub login: Option<Duration>,
}

/// Why a login at a backend failed.
#[derive(Debug, Error)]
pub(crate) enum BackendError {
    /// It does not serve this protocol.
    #[error("the backend does not serve this protocol")]
    NotServed,
    /// Its name has no address.
    #[error("host name cannot be resolved: {source}")]
    Resolve {
        /// The resolver's reason.
        source: Arc<io::Error>,
    },
    /// Its address is one of usher's own listeners.
    #[error("address {address} is one of usher's own listeners")]
    Loop {
        /// The address.
        address: SocketAddr,
    },
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// No configured source address has the family of the address.
    #[error("`source` has no address of the family of {address}: add one")]
    NoSource {
        /// The address.
        address: SocketAddr,
    },
    /// An address that connections are to come from cannot be used.
    #[error("cannot connect from {from}: {source}; `source` must name addresses of this machine")]
    Source {
        /// The address.
        from: IpAddr,
        /// The reason.
        source: io::Error,
    },
    /// All of its addresses are marked down.
    #[error("marked down: {reason}")]
    Down {
        /// The last fault of the first of them.
        reason: Arc<str>,
    },
    /// `logins_in_flight` logins are in progress.
    #[error("too many logins in progress")]
    Full,
    /// Slow start after an outage limits the rate of logins.
    #[error("slow start after an outage: too many logins at once")]
    SlowStart,
    /// The handshake failed: a certificate, a name, a version.
    #[error("TLS: {reason}")]
    Tls {
        /// The reason.
        reason: HandshakeError,
    },
    /// The connection broke during the login.
    #[error("connection lost: {source}")]
    Broken {
        /// The reason.
        source: io::Error,
    },
    /// It closed the connection without an answer.
    #[error("connection closed without a reply")]
    Closed,
    /// Its answer did not come in time.
    #[error("no reply within {timeout:?}")]
    Timeout {
        /// The backend's `timeout`.
        timeout: Duration,
    },
    /// Its reply makes a login impossible.
    #[error("{0}")]
    Fault(BackFault),
    /// It refused the login.
    #[error("login rejected")]
    Refused(BackendReply),
}

impl BackendError {
    /// What it counts as. A rejection after a bind counts as `backend_rejected`; after a cached decision the
    /// session first binds again.
    #[must_use]
    pub(crate) const fn result(&self) -> BackendResult {
        match self {
            Self::NotServed
            | Self::Resolve { .. }
            | Self::Loop { .. }
            | Self::Connect { .. }
            | Self::NoSource { .. }
            | Self::Source { .. }
            | Self::Broken { .. }
            | Self::Closed
            | Self::Fault(_) => BackendResult::Unreachable,
            Self::Down { .. } => BackendResult::Down,
            Self::Full => BackendResult::InFlight,
            Self::SlowStart => BackendResult::SlowStart,
            Self::Tls { .. } => BackendResult::Tls,
            Self::Timeout { .. } => BackendResult::Timeout,
            Self::Refused(_) => BackendResult::Rejected,
        }
    }

    /// What it counts as if a probe fails with it. A probe is no login: nothing limits it.
    const fn probe_result(&self) -> ProbeResult {
        match self.result() {
            BackendResult::Tls => ProbeResult::Tls,
            BackendResult::Timeout => ProbeResult::Timeout,
            BackendResult::Ok
            | BackendResult::Refused
            | BackendResult::Rejected
            | BackendResult::Unreachable
            | BackendResult::Down
            | BackendResult::InFlight
            | BackendResult::SlowStart
            | BackendResult::Draining => ProbeResult::Unreachable,
        }
    }

    /// What it means for the client. A rejection becomes `BackendRejected`: without a bind the login does not
    /// come this far.
    #[must_use]
    pub(crate) fn refusal(&self, pass_refusals: bool) -> Refusal {
        match self {
            Self::NotServed => Refusal::ProtocolNotServed,
            Self::Resolve { .. }
            | Self::Loop { .. }
            | Self::Connect { .. }
            | Self::NoSource { .. }
            | Self::Source { .. }
            | Self::Down { .. }
            | Self::Broken { .. }
            | Self::Closed
            | Self::Fault(BackFault::Bye) => Refusal::BackendUnreachable,
            Self::Full | Self::SlowStart => Refusal::BackendBusy,
            Self::Tls { .. } | Self::Fault(BackFault::NoStartTls | BackFault::Injection) => Refusal::BackendTls,
            Self::Timeout { .. } => Refusal::BackendTimeout,
            Self::Fault(
                BackFault::Preauth
                | BackFault::NoMechanism
                | BackFault::ForwardingRefused
                | BackFault::Bad
                | BackFault::Referral
                | BackFault::TooLarge
                | BackFault::ProtocolViolation,
            ) => Refusal::BackendFault,
            Self::Refused(words) => Refusal::BackendRejected(pass_refusals.then(|| words.clone())),
        }
    }

    /// Whether the cause is local (no descriptor, port or memory left, or an unusable source address): that
    /// says nothing about the server.
    fn is_local_fault(&self) -> bool {
        if matches!(self, Self::NoSource { .. } | Self::Source { .. }) {
            return true;
        }
        let Self::Connect { source, .. } = self else { return false };
        let errno = source.raw_os_error().map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::NOBUFS | Errno::NOMEM))
    }

    /// Whether an error before the login was sent is a fault of the server, and not of what it was asked. An
    /// error after the login was sent never is: it may concern this user only.
    const fn is_server_fault(&self) -> bool {
        !matches!(self, Self::Fault(BackFault::NoMechanism))
    }
}

impl Backend {
    /// A backend as configured, with what its files hold. `host` is usher's own name, `own` are its listeners,
    /// to which no backend may lead. The health of the addresses is taken over from `previous`, which was
    /// configured alike.
    #[must_use]
    pub(crate) fn new(
        settings: &config::Backend,
        files: BackendFiles,
        untagged_limit: usize,
        host: &Arc<str>,
        own: &Arc<[SocketAddr]>,
        metrics: &Arc<Metrics>,
        previous: Option<&Self>,
    ) -> Self {
        let name: Arc<str> = settings.name.as_str().into();
        let BackendFiles { tls, service, probe } = files;
        let endpoints = std::iter::zip(&settings.endpoints, tls).map(|(endpoint, (server_name, tls_config))| {
            let kept = previous.and_then(|previous| previous.endpoints.get(endpoint.protocol.name));
            let new = || Arc::new(Pool::new(&name, endpoint, settings, own));
            let endpoint = Endpoint {
                protocol: endpoint.protocol,
                tls: endpoint.tls,
                forward: endpoint.forward,
                nginx: endpoint.takes_nginx().then_some(endpoint.auth_http),
                server_name,
                tls_config,
                timeout: settings.timeout,
                untagged_limit,
                host: Arc::clone(host),
                account: probe.clone(),
                pool: kept.map_or_else(new, |kept| Arc::clone(&kept.pool)),
                metrics: Arc::clone(metrics),
                handshakes: Handshakes::new(metrics, &name, endpoint.protocol.name),
            };
            (endpoint.protocol.name, Arc::new(endpoint))
        });
        let new = || Arc::new(Semaphore::new(settings.logins_in_flight));
        Self {
            pass_refusals: settings.pass_refusals,
            timeout: settings.timeout,
            service,
            slots: previous.map_or_else(new, |previous| Arc::clone(&previous.slots)),
            logins_in_flight: settings.logins_in_flight,
            in_flight: metrics.backend_logins_in_flight.with_label_values(&[&*name]),
            endpoints: endpoints.collect(),
            name,
        }
    }

    /// Logs the user in under this name, within the backend's `timeout`, and forwards the client's address as `forward` says.
    ///
    /// # Errors
    /// Why not; `phases` says how far it came.
    pub(crate) async fn log_in(
        &self,
        protocol: &Protocol,
        login: &Login,
        credential: &Credential,
        origin: &Origin,
        phases: &mut Phases,
    ) -> Result<LoggedIn, BackendError> {
        let endpoint = self.endpoints.get(protocol.name).ok_or(BackendError::NotServed)?;
        let deadline = Instant::now() + self.timeout;
        let late = |_| BackendError::Timeout { timeout: self.timeout };

        let (service, password) = match &self.service {
            Some(service) => (Some(service.login.clone().into_bytes()), service.password.clone()),
            None => {
                let CredentialSecret::Password(password) = credential.secret();
                (None, password.clone())
            }
        };
        let login = login.as_str().as_bytes().to_vec();
        let (untagged_limit, host) = (endpoint.untagged_limit, Arc::clone(&endpoint.host));
        let forward = endpoint.forwarded_client(origin);
        let header = endpoint.header(Some(origin));
        let settings = BackSettings { tls: endpoint.tls, login, password, service, forward, untagged_limit, host };

        let began = Instant::now();
        let approach = async {
            // A backend that is down is reported before waiting for a slot.
            endpoint.candidates().await?;
            let place = self.login_slot(endpoint).await?;
            Ok((place, endpoint.approach(deadline, &settings, &header).await?))
        };
        let approached = timeout_at(deadline, approach).await.map_err(late).flatten();
        phases.connect = Some(began.elapsed());
        let (_place, (address, talk)) = approached?;

        let began = Instant::now();
        let answered = timeout_at(deadline, talk.log_in()).await.map_err(late).flatten();
        phases.login = Some(began.elapsed());
        if answered.is_ok() {
            endpoint.pool.succeeded(address, Evidence::Login);
        }
        answered
    }

    /// The address that nginx connects to: a healthy one, or the one configured for nginx.
    ///
    /// # Errors
    /// No address is available, or none accepts a login without TLS.
    pub(crate) async fn nginx_address(&self, protocol: &Protocol) -> Result<SocketAddr, BackendError> {
        let endpoint = self.endpoints.get(protocol.name).ok_or(BackendError::NotServed)?;
        let hop = endpoint.nginx.ok_or(BackendError::NotServed)?;
        let candidates = timeout_at(Instant::now() + self.timeout, endpoint.candidates()).await;
        let late = |_| BackendError::Timeout { timeout: self.timeout };
        let well = candidates.map_err(late).flatten()?.pop_front().ok_or(BackendError::NotServed)?;
        Ok(SocketAddr::new(hop.address.unwrap_or_else(|| well.ip()), hop.port.unwrap_or_else(|| well.port())))
    }

    /// Waits for a slot among the logins in progress, and for slow start after an outage.
    async fn login_slot(&self, endpoint: &Endpoint) -> Result<LoginSlot<'_>, BackendError> {
        let patience = Instant::now() + SLOT_WAIT;
        let permit = timeout_at(patience, self.slots.acquire()).await.map_err(|_| BackendError::Full)?;
        // The semaphore is never closed.
        let permit = permit.map_err(|_| BackendError::Full)?;
        let left = patience.saturating_duration_since(Instant::now());
        let slot = endpoint.pool.slot(left).ok_or(BackendError::SlowStart)?;
        self.in_flight.inc();
        let place = LoginSlot { _permit: permit, in_flight: &self.in_flight };
        wait_until(slot).await;
        Ok(place)
    }

    /// Starts the probes that are due. To be called several times a second.
    pub(crate) fn run_probes(&self) {
        self.endpoints.values().for_each(Endpoint::run_probes);
    }

    /// Sets the gauges of its health.
    pub(crate) fn update_gauges(&self, metrics: &Metrics) {
        for (protocol, endpoint) in &self.endpoints {
            let up = i64::from(endpoint.pool.is_up());
            metrics.backend_up.with_label_values(&[&*self.name, *protocol]).set(up);
            for standing in BreakerState::ALL.iter().copied() {
                let count = i64::try_from(endpoint.pool.count(standing)).unwrap_or(i64::MAX);
                metrics.backend_addresses.with_label_values(&[&*self.name, *protocol, standing.label()]).set(count);
            }
        }
    }

    /// Its current status.
    #[must_use]
    pub(crate) fn status(&self) -> BackendStatus {
        let serving = PROTOCOLS.iter().filter_map(|protocol| self.endpoints.get(protocol.name));
        BackendStatus {
            name: self.name.to_string(),
            logins_in_flight: u64::try_from(self.in_flight.get()).unwrap_or(0),
            logins_in_flight_limit: self.logins_in_flight,
            protocols: serving.map(|endpoint| endpoint.pool.status()).collect(),
        }
    }
}

/// A slot among the logins in progress, released on drop.
#[derive(Debug)]
struct LoginSlot<'a> {
    _permit: SemaphorePermit<'a>,
    in_flight: &'a IntGauge,
}

impl Drop for LoginSlot<'_> {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

/// A connection to a backend before the login is accepted.
struct BackendDialogue {
    stream: Stream,
    dialogue: Box<dyn Back>,
    input: SecretBuf,
    out: SecretBuf,
    /// The next step.
    step: BackStep,
}

impl BackendDialogue {
    /// From the connection to the login, which is written but not sent: a probe ends here. `observed` collects the
    /// observations of an inspection.
    async fn approach(
        endpoint: &Endpoint,
        tcp: TcpStream,
        settings: BackSettings,
        mut observed: Option<&mut Observations>,
    ) -> Result<Self, BackendError> {
        let stream = match endpoint.tls {
            BackTls::Implicit => endpoint.start_tls(tcp).await?,
            BackTls::StartTls | BackTls::Plaintext => Stream::from(tcp),
        };
        let dialogue = (endpoint.protocol.back)(settings);
        let (input, out) = (SecretBuf::new(), SecretBuf::new());
        let mut talk = Self { stream, dialogue, input, out, step: BackStep::NeedMore };
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
                    talk.stream = endpoint.start_tls(tcp).await?;
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

    /// Sends the login and waits for its answer.
    async fn log_in(mut self) -> Result<LoggedIn, BackendError> {
        loop {
            self.send().await?;
            match self.step {
                BackStep::NeedMore => self.fill().await?,
                BackStep::Ready(welcome) => {
                    let watch = self.dialogue.watch();
                    return Ok(LoggedIn { stream: self.stream, leftover: self.input, welcome, watch });
                }
                BackStep::Refused(words) => return Err(BackendError::Refused(words)),
                BackStep::Fault(fault) => return Err(BackendError::Fault(fault)),
                // TLS comes before the login.
                BackStep::StartTls => return Err(BackendError::Fault(BackFault::ProtocolViolation)),
            }
            self.step = self.dialogue.step(&mut self.input, &mut self.out);
        }
    }

    /// Gives up without a login; what was written of it is wiped.
    fn into_stream(self) -> Stream {
        self.stream
    }

    async fn send(&mut self) -> Result<(), BackendError> {
        self.stream.send(&mut self.out).await.map_err(|source| BackendError::Broken { source })
    }

    async fn fill(&mut self) -> Result<(), BackendError> {
        match self.stream.fill(&mut self.input).await {
            Ok(0) => Err(BackendError::Closed),
            Ok(_) => Ok(()),
            Err(source) => Err(BackendError::Broken { source }),
        }
    }
}
