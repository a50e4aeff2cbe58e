//! A mail server behind usher: dial it, verify it, log in as the user.
//!
//! The backend's dialogue is the protocol's ([`crate::proto::Back`]); here are its socket, its TLS
//! and its deadline. A refusal is reported as what it is, and judged by the session: after a good
//! bind it means that two servers disagree. Never retries with a password, never speaks in the
//! clear unless the config says so in so many words.

mod resolve;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::config;
use crate::directory::Login;
use crate::outcome::{BackendWords, Refusal};
use crate::proto::{BackFault, BackSettings, BackStep, BackTls, Protocol, Welcome};
use crate::secret::{Secret, SecretBuf};
use crate::sys;
use crate::tls;
use crate::tls::stream::Stream;
use resolve::Addresses;

/// A backend, ready to be logged in to.
#[derive(Debug)]
pub struct Backend {
    /// Its name.
    pub name: Arc<str>,
    /// Whether its own words of refusal may reach the client.
    pub pass_refusals: bool,
    timeout: Duration,
    untagged_limit: usize,
    service: Option<Service>,
    endpoints: HashMap<&'static str, Endpoint>,
}

/// The service account for proxy authorization.
#[derive(Debug)]
pub struct Service {
    /// Its name (SASL authcid).
    pub login: String,
    /// Its password.
    pub password: Secret,
}

#[derive(Debug)]
struct Endpoint {
    tls: BackTls,
    server_name: ServerName<'static>,
    tls_config: Arc<rustls::ClientConfig>,
    addresses: Addresses,
}

/// A session at a backend, logged in.
#[derive(Debug)]
pub struct LoggedIn {
    /// The connection.
    pub stream: Stream,
    /// What the backend said behind its answer: the client's, in order.
    pub leftover: SecretBuf,
    /// What the backend said to the login.
    pub welcome: Welcome,
}

/// How long a login at a backend took; filled as far as it came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Name, TCP and implicit TLS.
    pub connect: Option<Duration>,
    /// From the greeting to the answer, STARTTLS included.
    pub login: Option<Duration>,
}

/// Why a login at a backend failed.
#[derive(Debug, Error)]
pub enum BackendError {
    /// It does not serve this protocol.
    #[error("the backend does not serve this protocol")]
    NotServed,
    /// Its name has no address.
    #[error("its name cannot be resolved: {source}")]
    Resolve {
        /// The resolver's reason.
        source: io::Error,
    },
    /// Its address is one of usher's own listeners.
    #[error("its address {address} is one of usher's own listeners")]
    Loop {
        /// The address.
        address: SocketAddr,
    },
    /// No connection.
    #[error("no connection to {address}: {source}")]
    Connect {
        /// The last address tried.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// The handshake failed: a certificate, a name, a version.
    #[error("TLS: {reason}")]
    Tls {
        /// The reason in an operator's words.
        reason: String,
    },
    /// The connection broke during the login.
    #[error("the connection broke: {source}")]
    Broken {
        /// The reason.
        source: io::Error,
    },
    /// It closed the connection without an answer.
    #[error("it closed the connection without an answer")]
    Closed,
    /// Its answer did not come in time.
    #[error("no answer within {timeout:?}")]
    Timeout {
        /// The backend's `timeout`.
        timeout: Duration,
    },
    /// It said something that no login may be built on.
    #[error("{0}")]
    Fault(BackFault),
    /// It refused the login.
    #[error("it refused the login")]
    Refused(BackendWords),
}

impl BackendError {
    /// The label of `usher_backend_logins_total`. A refusal right after a bind is a disagreement;
    /// after a cached decision the session first asks again.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotServed
            | Self::Resolve { .. }
            | Self::Loop { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Closed
            | Self::Fault(_) => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Timeout { .. } => "timeout",
            Self::Refused(_) => "disagrees",
        }
    }

    /// What it means for the client. A refusal is passed as a disagreement: whoever was not bound
    /// never comes this far.
    #[must_use]
    pub fn refusal(&self, pass_refusals: bool) -> Refusal {
        match self {
            Self::NotServed => Refusal::ProtocolNotServed,
            Self::Resolve { .. }
            | Self::Loop { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Closed
            | Self::Fault(BackFault::Bye) => Refusal::BackendUnreachable,
            Self::Tls { .. } | Self::Fault(BackFault::NoStartTls | BackFault::Injection) => Refusal::BackendTls,
            Self::Timeout { .. } => Refusal::BackendTimeout,
            Self::Fault(
                BackFault::Preauth
                | BackFault::NoMechanism
                | BackFault::Bad
                | BackFault::Referral
                | BackFault::TooMuch
                | BackFault::Garbage,
            ) => Refusal::BackendFault,
            Self::Refused(words) => Refusal::Disagrees(pass_refusals.then(|| words.clone())),
        }
    }
}

impl Backend {
    /// A backend as configured. `tls_configs` has the verified TLS of each endpoint, in their
    /// order; `own` are usher's listeners, to which no backend may lead.
    #[must_use]
    pub fn new(
        settings: &config::Backend,
        tls_configs: Vec<(ServerName<'static>, Arc<rustls::ClientConfig>)>,
        service: Option<Service>,
        untagged_limit: usize,
        own: &Arc<[SocketAddr]>,
    ) -> Self {
        let endpoints = std::iter::zip(&settings.endpoints, tls_configs)
            .map(|(endpoint, (server_name, tls_config))| {
                let addresses = Addresses::new(&endpoint.host, endpoint.port, Arc::clone(own));
                (endpoint.protocol.name, Endpoint { tls: endpoint.tls, server_name, tls_config, addresses })
            })
            .collect();
        Self {
            name: settings.name.as_str().into(),
            pass_refusals: settings.pass_refusals,
            timeout: settings.timeout,
            untagged_limit,
            service,
            endpoints,
        }
    }

    /// Logs the user in, within the backend's `timeout`.
    ///
    /// # Errors
    /// Why not; `phases` says how far it came.
    pub async fn log_in(
        &self,
        protocol: &Protocol,
        login: &Login,
        password: &Secret,
        phases: &mut Phases,
    ) -> Result<LoggedIn, BackendError> {
        let endpoint = self.endpoints.get(protocol.name).ok_or(BackendError::NotServed)?;
        let deadline = Instant::now() + self.timeout;
        let late = |_| BackendError::Timeout { timeout: self.timeout };

        let began = Instant::now();
        let connected = timeout_at(deadline, endpoint.connect(deadline)).await.map_err(late).flatten();
        phases.connect = Some(began.elapsed());
        let stream = connected?;

        let began = Instant::now();
        let (service, password) = match &self.service {
            Some(service) => (Some(service.login.clone().into_bytes()), service.password.clone()),
            None => (None, password.clone()),
        };
        let login = login.as_str().as_bytes().to_vec();
        let untagged_limit = self.untagged_limit;
        let settings = BackSettings { tls: endpoint.tls, login, password, service, untagged_limit };
        let conversation = endpoint.converse(stream, protocol, settings);
        let answered = timeout_at(deadline, conversation).await.map_err(late).flatten();
        phases.login = Some(began.elapsed());
        answered
    }
}

impl Endpoint {
    /// TCP, and TLS where it comes first. An address that does not answer may not use up the time of
    /// the others: each has its share of what is left, and the login itself has one.
    async fn connect(&self, deadline: Instant) -> Result<Stream, BackendError> {
        let addresses = self.addresses.resolve().await?;
        let mut last = None;
        for (at, address) in addresses.iter().copied().enumerate() {
            let now = Instant::now();
            let shares = u32::try_from(addresses.len() - at + 1).unwrap_or(u32::MAX);
            let until = now + deadline.saturating_duration_since(now) / shares;
            let until = if addresses.len() == 1 { deadline } else { until };
            let connected = timeout_at(until, TcpStream::connect(address)).await;
            match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(tcp) => {
                    // Options that cannot be set cost speed or a late end, not the login.
                    let _ = sys::tune(&tcp);
                    return match self.tls {
                        BackTls::Implicit => self.start_tls(tcp).await,
                        BackTls::StartTls | BackTls::Plaintext => Ok(Stream::Plain(tcp)),
                    };
                }
                Err(source) => last = Some(BackendError::Connect { address, source }),
            }
        }
        // An address that no longer answers may have moved: ask the resolver again next time.
        self.addresses.forget();
        Err(last.unwrap_or_else(|| BackendError::Resolve { source: io::ErrorKind::NotFound.into() }))
    }

    async fn start_tls(&self, tcp: TcpStream) -> Result<Stream, BackendError> {
        let connecting = tls::client::connect(&self.tls_config, self.server_name.clone(), tcp);
        connecting.await.map_err(|error| BackendError::Tls { reason: tls::describe(&error) })
    }

    /// The dialogue from the greeting to the answer.
    async fn converse(
        &self,
        mut stream: Stream,
        protocol: &Protocol,
        settings: BackSettings,
    ) -> Result<LoggedIn, BackendError> {
        let broken = |source| BackendError::Broken { source };
        let mut dialogue = (protocol.back)(settings);
        let (mut input, mut out) = (SecretBuf::new(), SecretBuf::new());
        loop {
            let step = dialogue.step(&mut input, &mut out);
            stream.send(&mut out).await.map_err(broken)?;
            match step {
                BackStep::NeedMore => {
                    if stream.fill(&mut input).await.map_err(broken)? == 0 {
                        return Err(BackendError::Closed);
                    }
                }
                BackStep::StartTls => {
                    // Nothing said in the clear may be taken for an answer under TLS.
                    if !input.is_empty() {
                        return Err(BackendError::Fault(BackFault::Injection));
                    }
                    let tcp = stream.into_plain().ok_or(BackendError::Fault(BackFault::Garbage))?;
                    stream = self.start_tls(tcp).await?;
                    dialogue.tls_started();
                }
                BackStep::Ready(welcome) => return Ok(LoggedIn { stream, leftover: input, welcome }),
                BackStep::Refused(words) => return Err(BackendError::Refused(words)),
                BackStep::Fault(fault) => return Err(BackendError::Fault(fault)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    /// A listener whose queue is full: the system drops what else comes, as a dead host would.
    async fn silent() -> (tokio::net::TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        let connect = async || {
            let connect = TcpStream::connect(listener.local_addr().unwrap());
            tokio::time::timeout(Duration::from_millis(300), connect).await
        };
        while let Ok(stream) = connect().await {
            waiting.push(stream.unwrap());
        }
        (listener, waiting)
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_leaves_time_for_the_next() {
        let (dead, _waiting) = silent().await;
        let alive = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [dead.local_addr().unwrap(), alive.local_addr().unwrap()];
        let roots = rustls::RootCertStore::empty();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let endpoint = Endpoint {
            tls: BackTls::StartTls,
            server_name: ServerName::try_from("server3").unwrap(),
            tls_config: Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth()),
            addresses: Addresses::known("server3", &addresses),
        };
        let deadline = Instant::now() + Duration::from_millis(1_500);
        let stream = timeout_at(deadline, endpoint.connect(deadline)).await.expect("time is left").unwrap();
        assert_eq!(stream.tcp().peer_addr().unwrap(), addresses[1]);
    }
}
