//! A whole login that an administrator asks for (`usher try`): as one of a client behind TLS, from the client's first
//! command to the backend's OK, with the same limits, log and metrics. Nothing is relayed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::listing::Listing;
use super::{Admitted, Conversation};
use crate::base::secret::{Secret, SecretBuf};
use crate::login::attempt::{self, LoginRequest};
use crate::login::event::{self, ConnectionInfo, LoginEvent};
use crate::outcome::Refusal;
use crate::process::{Shared, Stage};
use crate::proto::{FrontSettings, Origin, PROTOCOLS, SaslOffer, Step};
use crate::telemetry::labels::SessionEnd;
use crate::tls::stream::Stream;
use crate::trace::NewSession;

/// How long a backend may take to end the session.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest reply that is shown, in characters.
const REPLY: usize = 1_024;

/// The login to try.
#[derive(Debug)]
pub(crate) struct TrialRequest {
    /// As a client would type it.
    pub login: String,
    /// The password.
    pub password: Secret,
    /// The protocol's name.
    pub protocol: String,
    /// The client's address: where the login is to come from.
    pub client: IpAddr,
    /// The user of this machine that asks.
    pub uid: Option<u32>,
}

/// A part of a login, and how long it took.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TrialPhase {
    /// `search`, `bind`, `backend_connect` or `backend_login`.
    pub phase: String,
    /// In milliseconds.
    pub ms: f64,
    /// The server.
    pub server: Option<String>,
}

/// How it went.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TrialResult {
    /// The session, as in the log.
    pub session: String,
    /// `ok`, or the reason of refusal as in the log and the metrics.
    pub result: String,
    /// What the client would have read, with line ends as `\n`.
    pub reply: String,
    /// What decided: `cache`, `directory` and so on.
    pub by: Option<String>,
    /// The entry.
    pub dn: Option<String>,
    /// The name of its directory, where there are several.
    pub directory: Option<String>,
    /// The directory's own words, if it refused.
    pub directory_message: Option<String>,
    /// The values of the mail host attribute.
    pub mail_host: Vec<String>,
    /// The backend.
    pub backend: Option<String>,
    /// The name there.
    pub backend_login: Option<String>,
    /// What the backend said, if it refused.
    pub backend_reply: Option<String>,
    /// The limit that refused or delayed it.
    pub limited_by: Option<String>,
    /// Each phase that there was, in order.
    pub phases: Vec<TrialPhase>,
    /// The whole, in milliseconds, with the delay of a refusal.
    pub total_ms: f64,
}

/// Why there was no attempt.
#[derive(Debug)]
pub(crate) enum NotTried {
    /// usher does not listen for this protocol, or does not know it.
    Protocol,
    /// A limit of connections.
    Limit(String),
    /// The process takes no logins any more.
    Draining,
    /// The dialogue did not come to an attempt; what it said.
    Dialogue(String),
}

/// Makes the attempt.
///
/// # Errors
/// Why there was none.
pub(crate) async fn run(shared: &Arc<Shared>, request: TrialRequest) -> Result<TrialResult, NotTried> {
    let TrialRequest { login, password, protocol, client, uid } = request;
    if *shared.stage.borrow() >= Stage::Draining {
        return Err(NotTried::Draining);
    }
    let snapshot = shared.snapshot.load_full();
    let protocol = PROTOCOLS.iter().find(|known| known.name == protocol).ok_or(NotTried::Protocol)?;
    let listener = snapshot.config.listeners.iter().find(|listener| listener.protocol.name == protocol.name);
    let listener = Arc::new(listener.ok_or(NotTried::Protocol)?.clone());
    let permit = shared.enter(&snapshot.config.limits).map_err(|limit| NotTried::Limit(limit.to_owned()))?;
    let connection = shared.throttle.unauthenticated(client, None);
    let connection = connection.map_err(|limited| NotTried::Limit(limited.0.label().to_owned()))?;
    let client = SocketAddr::from((client, 0));
    let info =
        ConnectionInfo { session: shared.registry.next_id(), client: client.ip(), via: None, protocol: protocol.name };
    let origin = Origin { client, local: listener.address, session: info.session.to_string(), greeting: None };
    let began = Instant::now();
    let new = NewSession { id: info.session, client: client.ip(), protocol: protocol.name, since: began };
    let offer = snapshot.offers.of(protocol);
    let front = (protocol.front)(FrontSettings {
        host: &snapshot.host,
        capabilities: Some(&offer),
        session: &origin.session,
        tls: true,
        starttls: false,
        bad_commands: snapshot.config.limits.bad_commands,
        sasl: SaslOffer { mechanisms: super::offered(&snapshot, &listener), hints: Some(&snapshot.token_hints) },
    });
    let mut conversation = Conversation {
        shared: Arc::clone(shared),
        deadline: began + snapshot.config.limits.prelogin_timeout,
        snapshot,
        info,
        caller: client,
        origin,
        protocol,
        listener,
        over_ipv4: false,
        certified: None,
        front,
        input: SecretBuf::new(),
        out: SecretBuf::new(),
        waited: Duration::ZERO,
        failed: 0,
        handshake: None,
        trace: shared.traces.session(new, || false),
    };
    let tried = conversation.try_login(&login, &password, uid).await;
    drop((permit, connection));
    tried
}

/// The client's commands up to the password.
fn commands(protocol: &crate::proto::Protocol, login: &str, password: &Secret) -> SecretBuf {
    let mut message = SecretBuf::with_room(login.len() + password.expose().len() + 2);
    for part in [&b"\0"[..], login.as_bytes(), b"\0", password.expose()] {
        message.extend(part);
    }
    let encoded = Secret::new(STANDARD.encode(message.as_slice()).into_bytes());
    let mut input = SecretBuf::new();
    for part in [protocol.client.before.as_bytes(), encoded.expose(), protocol.client.after.as_bytes()] {
        input.extend(part);
    }
    input
}

impl Conversation {
    async fn try_login(&mut self, login: &str, password: &Secret, uid: Option<u32>) -> Result<TrialResult, NotTried> {
        let began = Instant::now();
        self.front.greet(&mut self.out);
        self.input = commands(self.protocol, login, password);
        let credentials = loop {
            self.out.clear();
            match self.front.step(&mut self.input, &mut self.out) {
                Step::Attempt(credentials) => break credentials,
                Step::Flush => {}
                Step::NeedMore | Step::StartTls | Step::Quit(_) => return Err(NotTried::Dialogue(self.shown())),
            }
        };
        self.out.clear();
        let (credential, acting, mut event) = self.prepare(credentials);
        event.tried_by_uid = uid;
        let client_id = self.front.client_id().cloned();
        let mut request = LoginRequest {
            info: &self.info,
            client_id: client_id.as_ref(),
            protocol: self.protocol,
            connection: None,
            credential,
            acting,
            event,
        };
        let outcome = attempt::attempt(self.shared.login(), &mut request, self).await;
        let mut result = of_event(&request.event);
        match outcome {
            Ok(admitted) => {
                "ok".clone_into(&mut result.result);
                self.front.accepted(&admitted.logged_in.welcome, &mut self.out);
                self.log_out(admitted, began).await;
            }
            Err(refused) => {
                // As in the log; the client hears the reply to a wrong password.
                let refusal = if request.event.withheld { &Refusal::Limit } else { &refused.refusal };
                refusal.label().clone_into(&mut result.result);
                self.front.refused(&refused.reply, &mut self.out);
            }
        }
        result.session = self.info.session.to_string();
        result.reply = self.shown();
        result.total_ms = milliseconds(began.elapsed());
        Ok(result)
    }

    /// What the client would have read.
    fn shown(&self) -> String {
        let text = String::from_utf8_lossy(self.out.as_slice()).replace("\r\n", "\n");
        let text = text.trim_end();
        text.chars().take(REPLY).collect()
    }

    /// Ends the session at the backend, which was a session like any other.
    async fn log_out(&self, admitted: Admitted, began: Instant) {
        let Admitted { mut logged_in, listing, backend, place } = admitted;
        let Listing { listed, stop: _stop } = listing;
        let sessions = self.shared.metrics.sessions.with_label_values(&[self.info.protocol, &*backend]);
        sessions.inc();
        let _ = timeout(LOGOUT_TIMEOUT, leave(&mut logged_in.stream, self.protocol.client.logout)).await;
        sessions.dec();
        let session = listed.session();
        let ended = (&self.info, session.as_deref());
        event::ended(ended, SessionEnd::Closed, None, began.elapsed(), &self.shared.metrics);
        drop((listed, place));
    }
}

/// Says goodbye, and waits until the backend closes.
async fn leave(backend: &mut Stream, logout: &str) -> std::io::Result<()> {
    let mut out = SecretBuf::new();
    out.extend(logout.as_bytes());
    backend.send(&mut out).await?;
    backend.sent().await?;
    let mut rest = SecretBuf::new();
    while backend.fill(&mut rest).await? > 0 {
        rest.clear();
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

/// What the log has of it.
fn of_event(event: &LoginEvent) -> TrialResult {
    let directory = event.trace.server.as_deref();
    let backend = event.backend.as_deref();
    let phases = [
        ("search", event.trace.search, directory),
        ("bind", event.trace.bind, directory),
        ("backend_connect", event.phases.connect, backend),
        ("backend_login", event.phases.login, backend),
    ];
    let phases = phases.into_iter().filter_map(|(phase, took, server)| {
        Some(TrialPhase { phase: phase.to_owned(), ms: milliseconds(took?), server: server.map(str::to_owned) })
    });
    TrialResult {
        by: event.by.map(|by| by.label().to_owned()),
        dn: event.dn.as_deref().map(str::to_owned),
        directory: event.directory.map(str::to_owned),
        directory_message: event.trace.message.as_deref().map(str::to_owned),
        mail_host: event.mail_host.clone(),
        backend: backend.map(str::to_owned),
        backend_login: event.backend_login.clone(),
        backend_reply: event.reply.clone(),
        limited_by: event.limited_by.map(|rule| rule.label().to_owned()),
        phases: phases.collect(),
        ..TrialResult::default()
    }
}
