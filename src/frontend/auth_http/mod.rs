//! The server of nginx's mail proxy protocol (`auth_http`): whether a client may log in, and where.
//!
//! The decision is that of a session, with its cache, limits and events. nginx logs in to the backend itself,
//! so OK here means only that the directory accepted the password. Each request is one short connection; the
//! peer's address is checked before a byte of it is read.

mod request;

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::base::credential::{Credential, CredentialSecret, Login};
use crate::base::secret::{Secret, SecretBuf};
use crate::config::{AuthHttp, OnUnavailable};
use crate::login::attempt::{
    self, AttemptedLogin, Completion, Frontend, LoginAttempt, LoginRequest, RefusedLogin, RoutedLogin, Target,
};
use crate::login::event::{ConnectionInfo, LoginEvent};
use crate::outcome::Refusal;
use crate::process::{Shared, Snapshot};
use crate::proto::NginxReply;
use crate::proto::transcript::{Leg, LineKind};
use crate::telemetry::client_address::Client;
use crate::telemetry::labels::AuthHttpResult;
use crate::tls::stream::Stream;
use crate::trace::{Fact, NewSession};
use request::{Request, RequestSyntaxError};

#[cfg(any(test, feature = "internals"))]
pub(crate) use request::read as read_request;

/// nginx sends its request immediately.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// nginx reads the reply immediately.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait when the system has no descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How long nginx lets a client wait after a refusal, in seconds. The cost of a guess was already charged here;
/// with no wait nginx would close the connection.
const WAIT: u32 = 1;
/// nginx reads a reply into a buffer of 1024 bytes.
const TEXT: usize = 700;

/// Why a request got no reply for the client.
#[derive(Debug, Error)]
enum NoReply {
    #[error("{0}")]
    Malformed(#[from] RequestSyntaxError),
    #[error("X-Auth-Key does not match auth_http.key_file")]
    Key,
    #[error("no complete request within {READ_TIMEOUT:?}")]
    Timeout,
    #[error("the connection was closed")]
    Closed,
}

impl NoReply {
    /// What it counts as.
    const fn result(&self) -> AuthHttpResult {
        match self {
            Self::Malformed(_) => AuthHttpResult::Malformed,
            Self::Key => AuthHttpResult::Key,
            Self::Timeout => AuthHttpResult::Timeout,
            Self::Closed => AuthHttpResult::Closed,
        }
    }

    /// nginx ignores the status; it helps when testing by hand.
    const fn status(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "400 Bad Request",
            Self::Key => "403 Forbidden",
            Self::Timeout | Self::Closed => "408 Request Timeout",
        }
    }
}

/// The backend address that nginx connects to.
struct NginxTarget {
    address: SocketAddr,
    /// The name at the backend, if it differs from the typed one.
    login: Option<Login>,
}

/// Answers until the task is ended.
pub(crate) async fn serve(listener: Arc<TcpListener>, shared: Arc<Shared>) {
    loop {
        let Ok((tcp, peer)) = listener.accept().await else {
            sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        let (peer, snapshot) = (peer.ip().to_canonical(), shared.snapshot.load_full());
        let allowed = |settings: &AuthHttp| settings.allow.iter().any(|network| network.contains(&peer));
        if !snapshot.config.auth_http.as_ref().is_some_and(allowed) {
            count(&shared, AuthHttpResult::Untrusted);
            if let Some(suppressed) = shared.repeats.allow("auth_http", "untrusted") {
                let peer = Client::Address(peer);
                warn!(%peer, suppressed, "connection closed: address is not in auth_http.allow");
            }
            continue;
        }
        let Some(permit) = shared.permit(snapshot.config.limits.connections) else {
            count(&shared, AuthHttpResult::Limit);
            shared.metrics.connections_refused.inc();
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // The panic hook has counted and logged it; nginx treats the closed connection as an outage.
            let _ = AssertUnwindSafe(exchange(tcp, peer, &shared, &snapshot)).catch_unwind().await;
            drop(permit);
        });
    }
}

fn count(shared: &Shared, result: AuthHttpResult) {
    shared.metrics.auth_http_requests.of(result).inc();
}

/// Serves one request.
async fn exchange(tcp: TcpStream, nginx: IpAddr, shared: &Shared, snapshot: &Snapshot) {
    let mut stream = Stream::from(tcp);
    let request = timeout(READ_TIMEOUT, next_request(&mut stream)).await.unwrap_or(Err(NoReply::Timeout));
    let request = request.and_then(|request| admitted(request, snapshot.auth_http_key.as_ref()));
    let text = match request {
        Ok(request) => answer(request, nginx, shared, snapshot).await,
        Err(unanswered) => {
            count(shared, unanswered.result());
            // A health check, or a client that exited.
            if matches!(unanswered, NoReply::Closed) {
                debug!(%nginx, "closed before an auth_http request");
                return;
            }
            if let Some(suppressed) = shared.repeats.allow("auth_http", unanswered.result().label()) {
                warn!(%nginx, reason = %unanswered, suppressed, "auth_http request rejected");
            }
            head(unanswered.status(), &[])
        }
    };
    let mut out = SecretBuf::new();
    out.extend(text.as_bytes());
    if matches!(timeout(WRITE_TIMEOUT, stream.send(&mut out)).await, Ok(Ok(()))) {
        let _ = timeout(WRITE_TIMEOUT, tokio::io::AsyncWriteExt::shutdown(&mut stream)).await;
    }
}

/// Reads a request into memory that is wiped.
async fn next_request(stream: &mut Stream) -> Result<Request, NoReply> {
    let mut input = SecretBuf::new();
    loop {
        match stream.fill(&mut input).await {
            Ok(0) | Err(_) => return Err(NoReply::Closed),
            Ok(_) => {}
        }
        if let Some(request) = request::read(input.as_slice())? {
            return Ok(request);
        }
    }
}

/// Checks the key of a request, if one is configured.
fn admitted(request: Request, key: Option<&Secret>) -> Result<Request, NoReply> {
    let same = key.is_none_or(|key| request.key.expose().ct_eq(key.expose()).into());
    if same { Ok(request) } else { Err(NoReply::Key) }
}

/// Decides, writes the `login` event and formats the reply for nginx.
async fn answer(request: Request, nginx: IpAddr, shared: &Shared, snapshot: &Snapshot) -> String {
    let Request { login, password, plain, protocol, nginx: row, client, attempts, .. } = request;
    let info = ConnectionInfo { session: shared.registry.next_id(), client, via: Some(nginx), protocol: protocol.name };
    let new = NewSession { id: info.session, client, protocol: protocol.name, since: Instant::now() };
    let trace = shared.traces.session(new, || false);
    let secret = password.expose().len();
    trace.line(Leg::Client, LineKind::Received, || {
        let (user, method) = (login.len(), if plain { "plain" } else { "unsupported" });
        format!(
            "auth_http of nginx at {nginx}: Auth-Protocol {}, Auth-Method {method}, Auth-User <{user} bytes>, Auth-Pass \
             <{secret} bytes>, Client-IP {client}, Auth-Login-Attempt {attempts}",
            row.name
        )
    });
    let answer = |text: String| {
        for line in text.lines().filter(|line| line.starts_with("Auth-")) {
            trace.line(Leg::Client, LineKind::Sent, || line.to_owned());
        }
        text
    };
    if !plain {
        count(shared, AuthHttpResult::Method);
        let code = Some("504 5.5.4".to_owned());
        return answer(refusal(&NginxReply { code, text: "Use PLAIN or LOGIN under TLS".to_owned() }, true));
    }
    trace.learn(|| Some(Fact::Login(String::from_utf8_lossy(&login).into())));
    trace.note(Leg::Usher, || format!("login attempt as {}", String::from_utf8_lossy(&login)));
    let mut event = LoginEvent { steps: trace.clone(), ..LoginEvent::default() };
    // Held only for this request: nginx counts its own connections.
    let connection = shared.throttle.connection(client);
    let (connection, credential) = match connection {
        Ok(connection) => (Some(connection), credential(&login, password)),
        Err(limited) => (None, Err(event.limited(limited))),
    };
    let frontend = Nginx { typed: login.clone() };
    event.typed = login;
    let mut request =
        LoginRequest { info: &info, client_id: None, protocol, connection, credential, acting: None, event };
    let outcome = attempt::attempt(shared.login(), &mut request, &frontend).await;
    match outcome {
        Ok(granted) => {
            count(shared, AuthHttpResult::Ok);
            answer(acceptance(&granted))
        }
        Err(RefusedLogin { refusal: refused, reply }) => {
            count(shared, AuthHttpResult::Refused);
            let limits = &snapshot.config.limits;
            let guessed = refused.counts_as_failed() && attempts >= limits.failed_logins;
            let away = refused.is_outage() && limits.on_unavailable == OnUnavailable::ReplyAndClose;
            answer(refusal(&(row.reply)(&reply, &info.session.to_string()), !guessed && !away))
        }
    }
}

/// The credential of a request.
fn credential(typed: &[u8], password: Secret) -> Result<Credential, Refusal> {
    let login = Login::parse(typed).ok_or(Refusal::InvalidUsername)?;
    // nginx sends it to the backend unescaped, where a line end begins another command.
    if password.expose().iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        return Err(Refusal::InvalidPassword);
    }
    Ok(Credential::new(login, CredentialSecret::Password(password)))
}

/// nginx logs in to the backend itself: it gets an address and a name.
struct Nginx {
    /// The name that it would use itself.
    typed: Vec<u8>,
}

impl Frontend for Nginx {
    type Accepted = NginxTarget;

    async fn complete(
        &self,
        attempt: &LoginAttempt<'_>,
        _: AttemptedLogin<'_>,
        RoutedLogin { proven, target, .. }: RoutedLogin,
        event: &mut LoginEvent,
    ) -> Result<Completion<NginxTarget>, Refusal> {
        let Target { backend, login, .. } = target;
        let affinity = backend.affinity(attempt.protocol, proven.identity.entry(), attempt.context.sessions);
        let address = backend.nginx_address(attempt.protocol, affinity.as_ref()).await.map_err(|error| {
            attempt.count_backend(&backend, error.result());
            event.failed(&error);
            error.refusal(backend.pass_refusals)
        })?;
        // The entry was invalidated meanwhile: decide again with its current version.
        if !attempt.core.realms.is_current(&proven) {
            return Ok(Completion::Outdated);
        }
        let other = (login.as_str().as_bytes() != self.typed).then_some(login);
        // Headers are trimmed: another user could be meant.
        let whole = other.as_ref().is_none_or(|name| name.as_str().trim() == name.as_str());
        if whole {
            Ok(Completion::Accepted(NginxTarget { address, login: other }))
        } else {
            Err(Refusal::NoBackendLogin)
        }
    }
}

/// The reply of an accepted login.
fn acceptance(granted: &NginxTarget) -> String {
    let NginxTarget { address, login } = granted;
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut headers = vec![("Auth-Status", "OK"), ("Auth-Server", &ip), ("Auth-Port", &port)];
    headers.extend(login.as_ref().map(|login| ("Auth-User", login.as_str())));
    head("200 OK", &headers)
}

/// A refusal; `again` lets the client retry on its connection, which nginx closes otherwise.
fn refusal(reply: &NginxReply, again: bool) -> String {
    let wait = WAIT.to_string();
    let text: String = reply.text.chars().take(TEXT).collect();
    let mut headers = vec![("Auth-Status", text.as_str())];
    headers.extend(reply.code.as_deref().map(|code| ("Auth-Error-Code", code)));
    headers.extend(again.then_some(("Auth-Wait", wait.as_str())));
    head("200 OK", &headers)
}

/// A reply without a body. No value from a peer contains a control character.
fn head(status: &str, headers: &[(&str, &str)]) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.0 {status}\r\n{headers}Content-Length: 0\r\n\r\n")
}
