//! The life of a login, top to bottom: from an accepted connection to a relayed session.
//!
//! The dialogue (`proto/`) returns the next step, and this file performs it: start TLS, decide, connect to the
//! backend, reply, relay. Every wait has a deadline, every exit is counted, and a refused login leaves the
//! connection usable.

mod established;
mod external;
mod handshake;
mod listing;
pub(crate) mod trial;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use crate::backend::{Backend, BackendError, LoggedIn};
use crate::base::clock::unix_now;
use crate::base::credential::{Credential, CredentialKind, CredentialSecret, Login};
use crate::base::secret::SecretBuf;
use crate::base::sys::sockets;
use crate::config::{Config, Listener, ListenerTls, OnUnavailable};
use crate::limits::SessionPermit;
use crate::login::acting::{self, Acting};
use crate::login::attempt::{
    self, AttemptedLogin, Completion, Frontend, LoginAttempt, LoginRequest, RefusedLogin, RoutedLogin, Target,
};
use crate::login::authn::{DecidedBy, Proven};
use crate::login::event::{ConnectionInfo, LoginEvent};
use crate::login::realms::Realms;
use crate::outcome::{Refusal, Reply};
use crate::process::{Permit, Shared, Snapshot, Stage};
use crate::proto::transcript::Leg;
use crate::proto::{Credentials, Front, FrontSettings, MechanismSet, Origin, Protocol, Quit, SaslOffer, Step};
use crate::sessions::registry::Session;
use crate::telemetry::client_address::Client;
use crate::telemetry::labels::{BackendResult, CloseReason};
use crate::telemetry::metrics::Metrics;
use crate::tls::clients::ClientChain;
use crate::tls::stream::Stream;
use crate::trace::{Fact, NewSession, SessionTrace};
use established::Established;
use listing::{Listing, NotListed};

/// How long a client may take to accept a closing line.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket.
    pub tcp: TcpStream,
    /// The client's address, canonical: the peer's, or the one that a trusted proxy names.
    pub client: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
    /// When it was accepted.
    pub since: Instant,
    /// The listener, as it was configured when its socket was opened.
    pub listener: Arc<Listener>,
    /// Whether it came by IPv4 to an IPv6 wildcard.
    pub over_ipv4: bool,
    /// Its permit among the allowed connections.
    pub permit: Permit,
}

/// Serves a connection until its end. A panic ends this session and no other.
pub(crate) async fn serve(shared: Arc<Shared>, accepted: Accepted) {
    let Accepted { tcp, client, local, since, listener, over_ipv4, mut permit } = accepted;
    let (protocol, tls) = (listener.protocol, listener.tls);
    let info =
        ConnectionInfo { session: shared.registry.next_id(), client: client.ip(), via: None, protocol: protocol.name };
    let origin = Origin { client, local, session: info.session.to_string(), greeting: None };
    let snapshot = shared.snapshot.load_full();
    let crowded = shared.per_network_limit(&snapshot.config.limits);
    let Ok(mut connection) = shared.throttle.unauthenticated(client.ip(), crowded) else {
        // Without a reply: before TLS no client would show one.
        return record_close(&info, CloseReason::Limit, &shared.metrics);
    };
    let offer = snapshot.offers.of(protocol);
    // A reload can change the mechanisms.
    let current = snapshot.config.listener_now(&listener, over_ipv4).unwrap_or(&listener);
    let new = NewSession { id: info.session, client: client.ip(), protocol: protocol.name, since };
    let trace = shared.traces.session(new, || is_trusted(&snapshot, client));
    let mut front = (protocol.front)(FrontSettings {
        host: &snapshot.host,
        capabilities: Some(&offer),
        session: &origin.session,
        tls: tls == ListenerTls::Implicit,
        starttls: tls == ListenerTls::StartTls,
        bad_commands: snapshot.config.limits.bad_commands,
        sasl: SaslOffer { mechanisms: offered(&snapshot, current), hints: Some(&snapshot.token_hints) },
    });
    trace.note(Leg::Client, || format!("{client} connected to {local} ({})", protocol.name));
    front.transcribe(trace.transcript());
    let deadline = since + snapshot.config.limits.prelogin_timeout;
    let conversation = Conversation {
        shared: Arc::clone(&shared),
        snapshot,
        info,
        caller: client,
        origin,
        protocol,
        listener,
        over_ipv4,
        certified: None,
        front,
        input: SecretBuf::new(),
        out: SecretBuf::new(),
        deadline,
        waited: Duration::ZERO,
        failed: 0,
        handshake: None,
        trace: trace.clone(),
    };
    let outcome = AssertUnwindSafe(conversation.run(tcp, tls)).catch_unwind().await;
    let reason = match outcome {
        // The relay is a task of its own, so that the login's memory is freed now.
        Ok(Ok(established)) => {
            permit.logged_in();
            connection.logged_in();
            return drop(tokio::spawn(established.relay(&shared, (permit, connection))));
        }
        Ok(Err(reason)) => reason,
        Err(_) => CloseReason::Panic,
    };
    trace.note(Leg::Client, || format!("connection closed without a login: {}", reason.label()));
    record_close(&info, reason, &shared.metrics);
}

/// The mechanisms of a listener that can be used. EXTERNAL comes with the client's certificate.
fn offered(snapshot: &Snapshot, listener: &Listener) -> MechanismSet {
    let tokens = if snapshot.tokens.is_empty() { MechanismSet::NONE } else { MechanismSet::TOKENS };
    listener.narrowed(MechanismSet::PASSWORDS.or(tokens))
}

/// The credential, with the mailbox that its user wants to act for, or why it is not used.
type Named = Result<(Credential, Option<Acting>), Refusal>;

/// The credential of a name and a secret, or why it is unusable.
fn credential(config: &Config, login: &[u8], secret: CredentialSecret, authzid: &[u8]) -> Named {
    let (name, acting) = match secret.kind() {
        CredentialKind::Token => acting::names_beside_token(config, login)?,
        CredentialKind::Password | CredentialKind::Certificate => acting::names(config, login, authzid)?,
    };
    Ok((Credential::new(name, secret), acting))
}

/// Whether the client may name another one for which it connects.
fn is_trusted(snapshot: &Snapshot, caller: SocketAddr) -> bool {
    snapshot.config.trusted.iter().any(|network| network.contains(&caller.ip()))
}

/// Counts and logs a connection that ended before a login.
fn record_close(info: &ConnectionInfo, reason: CloseReason, metrics: &Metrics) {
    let ConnectionInfo { session, client, protocol, .. } = *info;
    metrics.prelogin_ended.at(protocol, reason).inc();
    debug!(%session, client = %Client::Address(client), protocol, cause = reason.label(), "disconnected before login");
}

/// The conversation before login.
struct Conversation {
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    info: ConnectionInfo,
    /// The peer: the client, or a webmail server on behalf of one.
    caller: SocketAddr,
    /// The client as forwarded to the backend.
    origin: Origin,
    protocol: &'static Protocol,
    /// The listener that has accepted it.
    listener: Arc<Listener>,
    over_ipv4: bool,
    /// The certificate that the client has shown, if it may log in with one: verified before each login.
    certified: Option<ClientChain>,
    front: Box<dyn Front>,
    /// Input that the dialogue has not yet consumed.
    input: SecretBuf,
    /// Output for the client.
    out: SecretBuf,
    /// The end of the whole conversation.
    deadline: Instant,
    /// How long usher has waited for this client since the greeting.
    waited: Duration,
    failed: u32,
    handshake: Option<Duration>,
    /// What an administrator sees of it.
    trace: SessionTrace,
}

impl Conversation {
    /// Runs the dialogue until a login or a close.
    async fn run(mut self, tcp: TcpStream, tls: ListenerTls) -> Result<Established, CloseReason> {
        sockets::before_login(&tcp);
        let mut stream = match tls {
            ListenerTls::Implicit => self.start_tls(tcp).await?,
            ListenerTls::StartTls => Stream::from(tcp),
        };
        self.front.greet(&mut self.out);
        loop {
            let step = self.front.step(&mut self.input, &mut self.out);
            self.apply_original_client();
            while let Some(refusal) = self.front.take_local_refusal() {
                let event = LoginEvent { steps: self.trace.clone(), ..LoginEvent::default() };
                event.emit(&self.info, self.front.client_id(), Some(&refusal), &self.shared.metrics);
            }
            self.send(&mut stream).await?;
            match step {
                Step::NeedMore => self.read(&mut stream).await?,
                Step::Flush => {}
                Step::StartTls => {
                    // Cleartext input after the command is dropped, not read as commands under TLS (RFC 3501
                    // section 6.2.1; "NO STARTTLS", 2021).
                    self.input.clear();
                    let tcp = stream.into_plain().ok_or(CloseReason::ProtocolError)?;
                    stream = self.start_tls(tcp).await?;
                    self.front.tls_started();
                }
                Step::Attempt(credentials) => match self.attempt(credentials).await {
                    Ok(admitted) => return Ok(self.establish(stream, admitted)),
                    Err(refused) => self.refuse(&mut stream, &refused).await?,
                },
                Step::Quit(quit) => {
                    lingering_close(&mut stream).await;
                    return Err(match quit {
                        Quit::Logout => CloseReason::Logout,
                        Quit::ProtocolError => CloseReason::ProtocolError,
                    });
                }
            }
        }
    }

    /// Applies the original client that a trusted webmail server has sent: log, limits and backend use its
    /// address from then on. The connection remains the webmail server's.
    fn apply_original_client(&mut self) {
        let claim = self.front.client_id().and_then(|id| id.originating);
        let claim = claim.filter(|_| is_trusted(&self.snapshot, self.caller));
        self.origin.client = claim.unwrap_or(self.caller);
        self.info.client = self.origin.client.ip();
        self.info.via = claim.map(|_| self.caller.ip());
        self.trace.learn(|| claim.map(|client| Fact::Client(client.ip())));
    }

    /// Reads input; the wait counts towards the client's login timeout.
    async fn read(&mut self, stream: &mut Stream) -> Result<(), CloseReason> {
        let began = Instant::now();
        let patience = self.snapshot.config.limits.login_timeout.saturating_sub(self.waited);
        let deadline = self.deadline.min(began + patience);
        let read = tokio::select! {
            read = timeout_at(deadline, stream.fill(&mut self.input)) => read,
            () = self.shared.stage(Stage::Draining) => {
                return Err(self.close_with(stream, &Reply::ShuttingDown, CloseReason::Draining).await);
            }
        };
        self.waited += began.elapsed();
        match read {
            Ok(Ok(0) | Err(_)) => Err(CloseReason::ClientClosed),
            Ok(Ok(_)) => Ok(()),
            Err(_) => Err(self.close_with(stream, &Reply::TimedOut, CloseReason::Deadline).await),
        }
    }

    /// Sends the output. Nothing more is read from a client that has not accepted its replies.
    async fn send(&mut self, stream: &mut Stream) -> Result<(), CloseReason> {
        let sent = async {
            stream.send(&mut self.out).await?;
            stream.sent().await
        };
        match timeout_at(self.deadline, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(CloseReason::ClientClosed),
            Err(_) => Err(CloseReason::Deadline),
        }
    }

    /// Closes the connection with the protocol's closing line.
    async fn close_with(&mut self, stream: &mut Stream, reply: &Reply, reason: CloseReason) -> CloseReason {
        self.front.bye(reply, &mut self.out);
        if matches!(timeout(CLOSE_TIMEOUT, stream.send(&mut self.out)).await, Ok(Ok(()))) {
            lingering_close(stream).await;
        }
        reason
    }

    /// One login attempt. A refusal is returned with the reply to the client.
    async fn attempt(&mut self, credentials: Credentials) -> Result<Admitted, RefusedLogin> {
        let (credential, acting, event) = self.prepare(credentials);
        let mut request = LoginRequest {
            info: &self.info,
            client_id: self.front.client_id(),
            protocol: self.protocol,
            connection: None,
            credential,
            acting,
            event,
        };
        attempt::attempt(self.shared.login(), &mut request, self).await
    }

    /// What an attempt is based on, and its event.
    fn prepare(&mut self, credentials: Credentials) -> (Result<Credential, Refusal>, Option<Acting>, LoginEvent) {
        self.snapshot = self.shared.snapshot.load_full();
        self.origin.greeting = self.front.greeting().cloned();
        let Credentials { login, secret, authzid } = credentials;
        let kind = secret.kind();
        let mechanism = match &secret {
            CredentialSecret::Token(bearer) => Some(bearer.form),
            CredentialSecret::Password(_) | CredentialSecret::ClientCertificate(_) => None,
        };
        let (login, named, certificate) = match secret {
            CredentialSecret::ClientCertificate(_) => self.certificate(authzid),
            secret @ (CredentialSecret::Password(_) | CredentialSecret::Token(_)) => {
                let named = credential(&self.snapshot.config, &login, secret, &authzid);
                (login, named, None)
            }
        };
        let (credential, acting) =
            named.map_or_else(|refusal| (Err(refusal), None), |(credential, acting)| (Ok(credential), acting));
        self.trace.learn(|| Some(Fact::Login(String::from_utf8_lossy(&login).into())));
        self.trace.note(Leg::Usher, || {
            let with = match kind {
                CredentialKind::Password => "",
                CredentialKind::Token => " with a token",
                CredentialKind::Certificate => " with a certificate",
            };
            format!("login attempt as {}{with}", String::from_utf8_lossy(&login))
        });
        if let (Ok(credential), Some(acting)) = (&credential, &acting) {
            self.trace.learn(|| Some(Fact::Login(credential.login().as_str().into())));
            self.trace.learn(|| Some(Fact::Login(acting.target.as_str().into())));
        }
        let (steps, tls) = (self.trace.clone(), self.handshake.take());
        let event = LoginEvent { tls, typed: login, mechanism, certificate, steps, ..LoginEvent::default() };
        (credential, acting, event)
    }

    /// The session of an attempt that backend and directory have accepted.
    fn session(
        &self,
        realms: &Realms,
        name: &Login,
        proven: &Proven,
        (backend, address): (&Backend, SocketAddr),
    ) -> Session {
        let acting = proven.identity.acting();
        Session {
            id: self.info.session,
            login: name.as_str().into(),
            dn: Arc::clone(&proven.identity.entry().dn),
            directory: realms.shown(proven.identity.entry()).map(Cow::Borrowed),
            acting: acting.map(|acting| acting.name.as_str().into()),
            acting_dn: acting.map(|acting| Arc::clone(&acting.entry.dn)),
            acting_directory: acting.and_then(|acting| realms.shown(&acting.entry)).map(Cow::Borrowed),
            client: self.info.client.into(),
            protocol: self.protocol.name.into(),
            backend: Arc::clone(&backend.name),
            address: Some(address),
            since: unix_now(),
        }
    }

    /// Replies with the refusal, and closes the connection after too many failed logins.
    async fn refuse(&mut self, stream: &mut Stream, refused: &RefusedLogin) -> Result<(), CloseReason> {
        let RefusedLogin { refusal, reply } = refused;
        self.front.refused(reply, &mut self.out);
        self.failed += u32::from(refusal.counts_as_failed());
        if self.failed >= self.snapshot.config.limits.failed_logins {
            return Err(self.close_with(stream, &Reply::Limit, CloseReason::FailedLogins).await);
        }
        if refusal.is_outage() && self.snapshot.config.limits.on_unavailable == OnUnavailable::ReplyAndClose {
            return Err(self.close_with(stream, reply, CloseReason::Unavailable).await);
        }
        self.send(stream).await
    }

    /// Builds the established session. Only the relay sends the client its OK, as its first bytes, so that a
    /// session whose client does not accept it is handled like any other.
    fn establish(mut self, stream: Stream, admitted: Admitted) -> Established {
        let Admitted { logged_in, listing, backend, place } = admitted;
        sockets::after_login(stream.tcp());
        self.front.accepted(&logged_in.welcome, &mut self.out);
        self.trace.note(Leg::Usher, || "session is relayed from here on and no longer traced".to_owned());
        let (answer, leftover) = (self.out.as_slice(), logged_in.leftover.as_slice());
        Established {
            info: self.info,
            backend_name: backend,
            listing,
            client: stream,
            backend: logged_in.stream,
            watch: logged_in.watch,
            to_client: [answer, leftover].concat(),
            answer: answer.len(),
            to_backend: self.input.as_slice().to_vec(),
            idle: self.snapshot.config.limits.idle_timeout,
            closing_line: &self.protocol.closing_line,
            place,
        }
    }
}

impl Frontend for Conversation {
    type Accepted = Admitted;

    /// Logs in at the backend, and lists the session before the client gets OK.
    async fn complete(
        &self,
        attempt: &LoginAttempt<'_>,
        attempted: AttemptedLogin<'_>,
        RoutedLogin { proven, by, place, target }: RoutedLogin,
        event: &mut LoginEvent,
    ) -> Result<Completion<Admitted>, Refusal> {
        let Target { backend, login, .. } = &target;
        let transcript = self.trace.transcript();
        let proof = attempted.proof(&proven);
        let affinity = backend.affinity(self.protocol, proven.identity.entry(), attempt.context.sessions);
        let key = proven.identity.proven_entry().key();
        let (user, phases) = ((login, proof, &key), &mut event.phases);
        match backend.log_in(self.protocol, user, affinity.as_ref(), &self.origin, &transcript, phases).await {
            Ok((logged_in, address)) => {
                attempt.count_backend(backend, BackendResult::Ok);
                // A claim may be a number that says nothing to an administrator.
                let name = if proven.token.is_some() { login } else { attempted.name() };
                let session = self.session(&attempt.core.realms, name, &proven, (backend, address));
                match listing::list(attempt.context, attempt.core, &proven, session, login.as_str().into()) {
                    Ok(listing) => {
                        let backend = Arc::clone(&backend.name);
                        Ok(Completion::Accepted(Admitted { logged_in, listing, backend, place }))
                    }
                    Err(NotListed::Reloaded) => Ok(Completion::Reloaded),
                    Err(NotListed::Again) => Ok(Completion::Outdated),
                    Err(NotListed::Refused(refusal)) => Err(refusal),
                }
            }
            // Password or mail host may have changed since they were cached: bind again.
            Err(BackendError::Refused(words)) if matches!(by, DecidedBy::Cache | DecidedBy::Stale) => {
                event.backend_reply(&words);
                // Kept apart, so that the future of a connection is no larger.
                let decision = Box::pin(attempt.decide_again(attempted, &proven)).await;
                let fresh = decision.result.as_ref().ok();
                let fresh = fresh.and_then(|proven| attempt.target(proven, attempted.name()).ok());
                if fresh.is_some_and(|fresh| fresh.is(&target)) {
                    attempt.count_backend(backend, BackendResult::Rejected);
                    event.decided(&decision, attempt.context.metrics);
                    return Err(backend.rejected(self.protocol, &key, words));
                }
                attempt.count_backend(backend, BackendResult::Refused);
                Ok(Completion::Redecided(Box::new(decision)))
            }
            Err(error) => {
                attempt.count_backend(backend, error.result());
                event.failed(&error);
                if let BackendError::Refused(words) = error {
                    return Err(backend.rejected(self.protocol, &key, words));
                }
                Err(error.refusal(backend.pass_refusals))
            }
        }
    }
}

/// Closes so that the last line arrives: a close with unread input is a reset (RFC 9293 section 3.10.4), which
/// can overtake what was sent. So the client's remaining input is read and discarded.
async fn lingering_close(stream: &mut Stream) {
    let farewell = async {
        stream.shutdown().await?;
        let mut rest = SecretBuf::new();
        while stream.fill(&mut rest).await? > 0 {
            rest.clear();
        }
        std::io::Result::Ok(())
    };
    let _ = timeout(CLOSE_TIMEOUT, farewell).await;
}

/// A login that both directory and backend have accepted, with its listed session.
#[derive(Debug)]
struct Admitted {
    logged_in: LoggedIn,
    listing: Listing,
    backend: Arc<str>,
    place: SessionPermit,
}

#[cfg(test)]
mod tests;
