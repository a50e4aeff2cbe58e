//! The control socket: HTTP and JSON over a Unix socket that only its owner (and a configured
//! group) can open. Both halves are here: the server in the running process, and the client that
//! the commands use.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path as Part, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::error;

use crate::config;
use crate::directory::Login;
use crate::follow::Standing;
use crate::snapshot::Shared;

/// An answer larger than this is no answer: 60,000 sessions take about 15 MiB.
const ANSWER_LIMIT: usize = 256 * 1024 * 1024;
/// A reload reads files and builds everything: seconds at the most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What the main loop can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Take over the configuration file.
    Reload,
    /// Hand the listeners over to a new process.
    Upgrade,
}

/// An order, with the place for its answer: the problems, or none.
pub type Request = (Order, oneshot::Sender<Result<(), Vec<String>>>);

/// What an order came to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it was done: the new configuration is in force, the new process serves.
    pub done: bool,
    /// Why not: lines as `usher check` prints them.
    pub problems: Vec<String>,
}

#[derive(Clone)]
struct Control {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Request>,
}

/// Binds the control socket with its permissions from the first moment, in place of a stale one, or
/// of that of the process whose `successor` this is.
///
/// # Errors
/// The system's reason, or that another usher answers there.
pub fn bind(settings: &config::Control, successor: bool) -> io::Result<UnixListener> {
    let path = &settings.path;
    if !successor && std::os::unix::net::UnixStream::connect(path).is_ok() {
        let words = format!("another process answers on {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
    }
    match fs::symlink_metadata(path) {
        // A path that was meant for something else: replacing it would destroy a file.
        Ok(there) if !there.file_type().is_socket() => {
            let words = format!("{} is there and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, words));
        }
        Ok(_) | Err(_) => {}
    }
    // Bound under another name and moved into place only when its mode is right.
    let mut unready = OsString::from(path);
    unready.push(".new");
    let unready = Path::new(&unready);
    match fs::remove_file(unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Nobody else from its first moment on, whatever the process' own mask is.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(unready);
    rustix::process::umask(mask);
    let listener = bound?;
    let mode = match &settings.group {
        None => 0o600,
        Some(group) => {
            std::os::unix::fs::chown(unready, None, Some(crate::sys::group_id(group)?))?;
            0o660
        }
    };
    fs::set_permissions(unready, Permissions::from_mode(mode))?;
    fs::rename(unready, path)?;
    Ok(listener)
}

/// Serves the control socket until the other end of `until` is dropped, and what is being answered then.
pub async fn serve(
    listener: UnixListener,
    shared: Arc<Shared>,
    orders: mpsc::Sender<Request>,
    until: oneshot::Receiver<Infallible>,
) {
    let router = Router::new()
        .route("/sessions", get(sessions))
        .route("/confirm/{seconds}", post(confirm))
        .route("/users/{login}", get(user))
        .route("/reload", post(|control| order(control, Order::Reload)))
        .route("/upgrade", post(|control| order(control, Order::Upgrade)))
        .with_state(Control { shared, orders });
    let until = until.map(|_| ());
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(until).await {
        error!(%error, "the control socket has ended");
    }
}

async fn sessions(State(control): State<Control>) -> Json<Vec<Arc<crate::registry::Session>>> {
    Json(control.shared.registry.sessions())
}

/// What `usher confirm` did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Confirmed {
    /// How many changes had been held back.
    pub changes: usize,
}

async fn confirm(State(control): State<Control>, Part(seconds): Part<u32>) -> Json<Confirmed> {
    let (shared, time) = (control.shared, Duration::from_secs(seconds.into()));
    let changes = shared.follow.confirm(time, &shared.snapshot.load().setting());
    Json(Confirmed { changes })
}

/// What the running process knows of a user.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct User {
    /// `off`, `lost` or `following`.
    pub watch: String,
    /// Seconds since a bind proved a password of this user, if that is cached.
    pub cached_seconds: Option<u64>,
    /// Whether the directory holds the user, as far as is known.
    pub held: bool,
    /// The mailHost values in force, where the brake holds another back.
    pub kept_by_brake: Option<Vec<String>>,
    /// How many sessions there are.
    pub sessions: usize,
}

async fn user(State(control): State<Control>, Part(login): Part<String>) -> Json<User> {
    let snapshot = control.shared.snapshot.load_full();
    let (cache, known) = (snapshot.authn.cache(), snapshot.authn.entries());
    let standing = match control.shared.follow.standing() {
        _ if !snapshot.config.directory.is_followed() => "off",
        Standing::Lost => "lost",
        Standing::Following => "following",
    };
    let mut user = User { watch: standing.to_owned(), ..User::default() };
    if let Some(dn) = unhex(&login).and_then(|login| cache.meaning(&Login::parse(&login)?)) {
        user.cached_seconds = cache.age(&dn).map(|age| age.as_secs());
        user.sessions = control.shared.registry.of(&dn).len();
        if let Some(one) = known.by_dn(&dn) {
            user.held = one.entry.marks.held;
            user.kept_by_brake = one.pending.is_some().then(|| one.entry.mail_hosts.clone());
        }
    }
    Json(user)
}

/// Any name as a part of a path.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    (0..text.len()).step_by(2).map(digit).collect()
}

async fn order(State(control): State<Control>, order: Order) -> Result<Json<Outcome>, StatusCode> {
    let (answer, answered) = oneshot::channel();
    // The receiver is the main loop: it is gone only while the process ends.
    control.orders.send((order, answer)).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let outcome = answered.await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(Json(match outcome {
        Ok(()) => Outcome { done: true, problems: Vec::new() },
        Err(problems) => Outcome { done: false, problems },
    }))
}

/// Where a process that handed its listeners over still answers for the sessions it has.
#[must_use]
pub fn predecessor_path(path: &Path, process: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{process}"));
    name.into()
}

/// The sockets of all predecessors beside this one, dead ones included.
#[must_use]
pub fn predecessors(path: &Path) -> Vec<PathBuf> {
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let is_one = |other: &PathBuf| {
        let process = other.extension().and_then(|end| end.to_str()).and_then(|end| end.parse().ok());
        process.is_some_and(|process| predecessor_path(path, process) == *other)
    };
    entries.map(|entry| entry.path()).filter(is_one).collect()
}

/// Why the running usher could not be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket cannot be opened.
    #[error("{path} cannot be opened: {source}; is usher running, and may you use its control socket?")]
    Connect {
        /// The socket's path.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The answer did not come in time.
    #[error("usher did not answer in time")]
    Timeout,
    /// HTTP failed.
    #[error("usher's answer broke off: {0}")]
    Http(#[from] hyper::Error),
    /// usher is stopping, or does not know the question.
    #[error("usher answered {0}")]
    Status(StatusCode),
    /// The answer is too large or is no JSON of this version.
    #[error("usher's answer cannot be read: {0}")]
    Unreadable(String),
}

/// Asks the running usher.
///
/// # Errors
/// Why there is no answer.
pub async fn ask<T: DeserializeOwned>(socket: &Path, method: &str, path: &str) -> Result<T, ControlError> {
    timeout(ANSWER_TIMEOUT, request(socket, method, path)).await.map_err(|_| ControlError::Timeout)?
}

async fn request<T: DeserializeOwned>(socket: &Path, method: &str, path: &str) -> Result<T, ControlError> {
    let connect_error = |source| ControlError::Connect { path: socket.display().to_string(), source };
    let stream = UnixStream::connect(socket).await.map_err(connect_error)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        hyper::Request::builder().method(method).uri(path).header("host", "usher").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| ControlError::Unreadable(error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(ControlError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| ControlError::Unreadable(error.to_string()))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| ControlError::Unreadable(error.to_string()))
    };
    tokio::select! {
        answer = exchange => answer,
        // The driver ends by itself only when the other side has closed: the exchange fails then.
        () = async { let _ = connection.await; std::future::pending::<()>().await } => Err(ControlError::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_survives_a_path() {
        for name in ["alice", "a/b?c=%d", "jürgen\0", ""] {
            assert_eq!(unhex(&hex(name.as_bytes())).unwrap(), name.as_bytes());
        }
        assert_eq!(unhex("6"), None);
        assert_eq!(unhex("zz"), None);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let settings = config::Control { path: folder.path().join("control.sock"), group: None };
        fs::write(&settings.path, "precious").unwrap();
        assert_eq!(bind(&settings, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&settings.path).unwrap(), "precious");

        fs::remove_file(&settings.path).unwrap();
        let first = bind(&settings, false).unwrap();
        assert_eq!(bind(&settings, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let _second = bind(&settings, false).unwrap();
        assert_eq!(fs::metadata(&settings.path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
