//! A mail server behind usher: select a healthy address, verify the server, log in as the user.
//!
//! The backend's dialogue is the protocol's ([`crate::proto::Back`]); here are its sockets, its TLS, its
//! deadline and its health. A rejection is reported unchanged; the session decides what it means: after a
//! successful bind, that directory and backend disagree. Several addresses are tried until one greets; a
//! password is sent again only where the backend has not read it, and never after it has refused it. Never uses
//! cleartext unless the config says so explicitly.

mod acceptance;
mod address_set;
mod addresses;
pub(crate) mod balance;
pub(crate) mod capabilities;
pub(crate) mod diagnose;
mod dialogue;
mod endpoint;
mod error;
mod health;
mod observed;
mod probe;
mod rejections;
mod resolve;
mod slots;
mod source;
pub(crate) mod state;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::time::{Instant, timeout_at};

use crate::base::clock::wait_until;
use crate::base::credential::{Credential, CredentialSecret, Login, TokenForm};
use crate::base::labels::Label as _;
use crate::base::secret::Secret;
use crate::config::{self, Forward, TokenLogin};
use crate::directory::EntryKey;
use crate::limits::Shares;
use crate::outcome::{BackendReply, Refusal};
use crate::proto::transcript::Transcript;
use crate::proto::{self, BackSettings, Origin, PROTOCOLS, Protocol};
use crate::telemetry::metrics::Metrics;
use crate::token::VerifiedToken;
use acceptance::LoginFailure;
use addresses::{Evidence, Pool};
use balance::Affinity;
pub(crate) use dialogue::LoggedIn;
use endpoint::{Endpoint, Handshakes};
pub(crate) use error::{Awaited, BackendError};
use health::BreakerState;
use rejections::Rejections;
use slots::{LoginSlot, LoginSlots};
use state::BackendStatus;

/// How long a login waits for a slot while too many are in progress or after an outage.
const SLOT_WAIT: Duration = Duration::from_secs(1);
/// The longest message with a token that a backend gets, in base64: Dovecot reads no more
/// (`LOGIN_MAX_AUTH_BUF_SIZE`).
const LONGEST_TOKEN: usize = 8_192;

/// A backend, ready to be logged in to.
#[derive(Debug)]
pub(crate) struct Backend {
    /// Its name.
    pub name: Arc<str>,
    /// Whether its own refusal texts may be passed to the client.
    pub pass_refusals: bool,
    /// How users with a token log in.
    token: TokenLogin,
    timeout: Duration,
    service: Option<Service>,
    /// The account that logs in for a user that acts for a mailbox.
    impersonation: Option<Service>,
    slots: Arc<LoginSlots>,
    rejections: Arc<Rejections>,
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

/// What a login at a backend is based on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LoginProof<'a> {
    /// The user's own credential.
    Own(&'a Credential),
    /// Another user acts for this one.
    Acting,
}

/// What a backend's files hold.
#[derive(Debug)]
pub(crate) struct BackendFiles {
    /// The name to verify and the TLS of each endpoint, in their order.
    pub tls: Vec<(ServerName<'static>, Arc<rustls::ClientConfig>)>,
    /// The service account, if there is one.
    pub service: Option<Service>,
    /// The account for users that act for a mailbox, if it is another one.
    pub impersonation: Option<Service>,
    /// The account that probes log in with, if they do.
    pub probe: Option<Service>,
}

/// What all backends have in common.
#[derive(Debug)]
pub(crate) struct BackendContext<'a> {
    /// The most untagged bytes before a reply.
    pub untagged_limit: usize,
    /// usher's own name.
    pub host: &'a Arc<str>,
    /// usher's listeners, to which no backend may lead.
    pub own: &'a Arc<[SocketAddr]>,
    /// By how many ushers what a backend bears is divided.
    pub shares: &'a Shares,
    /// Every metric.
    pub metrics: &'a Arc<Metrics>,
}

/// How long a login at a backend took; filled as far as it came.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Phases {
    /// Slot, name resolution, TCP, TLS and greeting: until the login can be sent.
    pub connect: Option<Duration>,
    /// From there to the answer.
    pub login: Option<Duration>,
}

impl Backend {
    /// A backend as configured, with what its files hold. The health of the addresses is taken over from
    /// `previous`, which was configured alike.
    #[must_use]
    pub(crate) fn new(
        settings: &config::Backend,
        files: BackendFiles,
        context: &BackendContext<'_>,
        previous: Option<&Self>,
    ) -> Self {
        let BackendContext { untagged_limit, host, own, shares, metrics } = *context;
        let name: Arc<str> = settings.name.as_str().into();
        let BackendFiles { tls, service, impersonation, probe } = files;
        let impersonation = impersonation.or_else(|| service.clone());
        let rejections = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.rejections));
        let endpoints = std::iter::zip(&settings.endpoints, tls).map(|(endpoint, (server_name, tls_config))| {
            let kept = previous.and_then(|previous| previous.endpoints.get(endpoint.protocol.name));
            let new = || Arc::new(Pool::new(&name, endpoint, settings, own, shares.clone()));
            let endpoint = Endpoint {
                protocol: endpoint.protocol,
                tls: endpoint.tls,
                forward: endpoint.forward,
                ehlo: endpoint.ehlo,
                nginx: endpoint.takes_nginx().then_some(endpoint.auth_http),
                server_name,
                tls_config,
                timeout: settings.timeout,
                untagged_limit,
                host: Arc::clone(host),
                account: probe.clone(),
                pool: kept.map_or_else(new, |kept| Arc::clone(&kept.pool)),
                rejections: Arc::clone(&rejections),
                metrics: Arc::clone(metrics),
                handshakes: Handshakes::new(metrics, &name, endpoint.protocol.name),
            };
            (endpoint.protocol.name, Arc::new(endpoint))
        });
        let taken = || metrics.backend_logins_in_flight.with_label_values(&[&*name]);
        let new = || LoginSlots::new(settings.logins_in_flight, shares.clone(), taken());
        Self {
            pass_refusals: settings.pass_refusals,
            token: settings.token.clone(),
            timeout: settings.timeout,
            service,
            impersonation,
            slots: previous.map_or_else(new, |previous| Arc::clone(&previous.slots)),
            endpoints: endpoints.collect(),
            rejections,
            name,
        }
    }

    /// The name that a user has there by a claim of the token, where the backend gets the token and names are claims.
    pub(crate) fn token_name(&self, token: &VerifiedToken) -> Option<Result<Login, Refusal>> {
        let TokenLogin::Forward { user_claim: Some(claim) } = &self.token else { return None };
        let name = token.text(claim).and_then(|text| Login::parse(text.as_bytes()));
        Some(name.ok_or(Refusal::NoBackendLogin))
    }

    /// Whether a user with this proof can be logged in.
    #[must_use]
    pub(crate) fn takes(&self, proof: LoginProof<'_>) -> bool {
        self.account(proof).is_some()
    }

    /// What a user with this proof is logged in with: the service account's name, if it logs in, the secret, and the
    /// form of a token. `None`: the user has no password, and the backend no service account.
    fn account<'a>(&'a self, proof: LoginProof<'a>) -> Option<(Option<&'a str>, &'a Secret, Option<TokenForm>)> {
        let by = |service: &'a Service| (Some(service.login.as_str()), &service.password, None);
        let secret = match proof {
            LoginProof::Own(credential) => credential.secret(),
            // The secret is another user's: it is never sent as this one's.
            LoginProof::Acting => return self.impersonation.as_ref().map(by),
        };
        match (secret, &self.service) {
            (CredentialSecret::Token(bearer), _) if matches!(self.token, TokenLogin::Forward { .. }) => {
                Some((None, &bearer.token, Some(bearer.form)))
            }
            (_, Some(service)) => Some(by(service)),
            (CredentialSecret::Password(password), None) => Some((None, password, None)),
            // The key of a certificate stays with the client.
            (CredentialSecret::Token(_) | CredentialSecret::ClientCertificate(_), None) => None,
        }
    }

    /// Logs the user in under this name, within the backend's `timeout`, and forwards the client's address as `forward` says.
    /// `user` is the proven user, whose entry it is. Returns the address as well.
    ///
    /// # Errors
    /// Why not; `phases` says how far it came.
    pub(crate) async fn log_in(
        &self,
        protocol: &Protocol,
        (login, proof, user): (&Login, LoginProof<'_>, &EntryKey),
        affinity: Option<&Affinity>,
        origin: &Origin,
        transcript: &Transcript,
        phases: &mut Phases,
    ) -> Result<(LoggedIn, SocketAddr), BackendError> {
        let endpoint = self.endpoints.get(protocol.name).ok_or(BackendError::NotServed)?;
        let deadline = Instant::now() + self.timeout;
        let login = login.as_str().as_bytes().to_vec();
        let (service, password, token) = self.account(proof).ok_or(BackendError::NoServiceLogin)?;
        let (service, password) = (service.map(|service| service.as_bytes().to_vec()), password.clone());
        if let Some(form) = token {
            let size = proto::token_message_size(form, &login, &password);
            if size > LONGEST_TOKEN {
                return Err(BackendError::TokenTooLong(size));
            }
        }
        let (untagged_limit, host) = (endpoint.untagged_limit, Arc::clone(&endpoint.host));
        let forward = endpoint.forwarded_client(origin);
        let header = endpoint.header(Some(origin));
        let initial_response = endpoint.pool.takes_initial_responses();
        let (tls, ehlo) = (endpoint.tls, endpoint.client_ehlo(origin));
        let mut settings = BackSettings {
            tls,
            login,
            password,
            token,
            service,
            forward,
            untagged_limit,
            host,
            initial_response,
            ehlo,
        };

        let acceptance = &endpoint.pool.acceptance;
        let admitted = acceptance.admit(user, Instant::now()).map_err(|reason| BackendError::Refusing { reason })?;
        let began = Instant::now();
        let approach = async {
            // A backend that is down is reported before waiting for a slot.
            endpoint.candidates(affinity).await?;
            let place = self.login_slot(endpoint).await?;
            Ok((place, endpoint.approach(affinity, deadline, (&settings, &header), transcript).await?))
        };
        let approached = timeout_at(deadline, approach).await.map_err(|_| endpoint.late(Awaited::Connection)).flatten();
        phases.connect = Some(began.elapsed());
        let (_place, (mut address, talk)) = approached?;

        let began = Instant::now();
        let again = async |settings: &BackSettings| {
            let talk;
            (address, talk) = endpoint.approach(affinity, deadline, (settings, &header), transcript).await?;
            Ok(talk)
        };
        let answered = timeout_at(deadline, endpoint.log_in(talk, &mut settings, again)).await;
        let answered = answered.map_err(|_| endpoint.late_login(address)).flatten();
        phases.login = Some(began.elapsed());
        drop(admitted);
        match &answered {
            Ok(_) => {
                endpoint.pool.succeeded(address, Evidence::Login);
                endpoint.pool.login_accepted();
                // Which also ends the delay, where all logins come from one address.
                if endpoint.forward == Forward::Nothing {
                    self.rejections.forget(address.ip());
                }
            }
            Err(BackendError::Refused(reply)) if !reply.unavailable => self.rejections.record(address.ip()),
            // Whether a rejection counts depends on how the login was decided: [`Backend::rejected`].
            Err(BackendError::Refused(_)) => {}
            Err(error) => endpoint.pool.login_failed(user, LoginFailure::of(error), &error.to_string()),
        }
        answered.map(|logged_in| (logged_in, address))
    }

    /// What it means that the backend has rejected the login of this user, whom the directory has just accepted: what
    /// the backend says, unless it rejects every user, which is an outage.
    pub(crate) fn rejected(&self, protocol: &Protocol, user: &EntryKey, reply: BackendReply) -> Refusal {
        if let Some(endpoint) = self.endpoints.get(protocol.name).filter(|_| !reply.concerns_user()) {
            endpoint.pool.login_failed(user, LoginFailure::Refused, &format!("login rejected: {}", reply.text));
            if endpoint.pool.acceptance.refusing().is_some() {
                return Refusal::BackendRefusesAll;
            }
        }
        Refusal::BackendRejected(self.pass_refusals.then_some(reply))
    }

    /// The address that nginx connects to: a healthy one, or the one configured for nginx.
    ///
    /// # Errors
    /// No address is available, or none accepts a login without TLS.
    pub(crate) async fn nginx_address(
        &self,
        protocol: &Protocol,
        affinity: Option<&Affinity>,
    ) -> Result<SocketAddr, BackendError> {
        let endpoint = self.endpoints.get(protocol.name).ok_or(BackendError::NotServed)?;
        let hop = endpoint.nginx.ok_or(BackendError::NotServed)?;
        let candidates = timeout_at(Instant::now() + self.timeout, endpoint.candidates(affinity)).await;
        let well = candidates
            .map_err(|_| endpoint.late(Awaited::Connection))
            .flatten()?
            .pop_front()
            .ok_or(BackendError::NotServed)?;
        Ok(SocketAddr::new(hop.address.unwrap_or_else(|| well.ip()), hop.port.unwrap_or_else(|| well.port())))
    }

    /// Waits for a slot among the logins in progress, and for slow start after an outage.
    async fn login_slot(&self, endpoint: &Endpoint) -> Result<LoginSlot<'_>, BackendError> {
        let patience = Instant::now() + SLOT_WAIT;
        let free = self.slots.acquire(patience).await.ok_or(BackendError::Full)?;
        let left = patience.saturating_duration_since(Instant::now());
        let slot = endpoint.pool.slot(left).ok_or(BackendError::SlowStart)?;
        let place = free.begin();
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
            let accepts = i64::from(endpoint.pool.acceptance.refusing().is_none());
            metrics.backend_accepts_logins.with_label_values(&[&*self.name, *protocol]).set(accepts);
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
            logins_in_flight: self.slots.taken(),
            logins_in_flight_limit: self.slots.limit(),
            protocols: serving.map(|endpoint| endpoint.pool.status()).collect(),
        }
    }
}
