//! The client half: what the commands ask the running process, and the one before it after an upgrade.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::ErrorReply;
use crate::base::sys::socket_file;

/// An answer larger than this is no answer: 60,000 sessions take about 15 MiB.
const ANSWER_LIMIT: usize = 256 * 1024 * 1024;
/// A line of a response that goes on.
const LINE_LIMIT: usize = 64 * 1024;
/// A reload reads files and builds everything: seconds at the most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A process with only its last sessions replies at once; a stopped one never does.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(2);
/// Before another try to connect to a socket whose queue is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Why a request to the running usher failed.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    /// The socket cannot be opened.
    #[error("{path} cannot be opened: {source}; {}", way_out(.source))]
    Connect {
        /// The socket's path.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The answer did not come in time.
    #[error("no reply from usher in time")]
    Timeout,
    /// The socket of a predecessor is another process'.
    #[error("the socket belongs to process {} of user {uid}, not to the process in its name; no request is sent", .pid.unwrap_or(0))]
    Foreign {
        /// The user it belongs to.
        uid: u32,
        /// The process.
        pid: Option<i32>,
    },
    /// HTTP failed.
    #[error("incomplete reply from usher: {0}")]
    Http(#[from] hyper::Error),
    /// It refused the request, with this text.
    #[error("{words}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The sentence.
        words: String,
    },
    /// The answer is too large or is no JSON of this version.
    #[error("invalid reply from usher: {0}")]
    Unreadable(String),
}

/// The reply to a request for a path that does not exist.
pub(super) const NO_SUCH_PATH: &str = "no such path";

/// What to do when the socket cannot be opened.
fn way_out(error: &io::Error) -> &'static str {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        "usher is not running; start it, or give its configuration with --config"
    } else if kind == io::ErrorKind::PermissionDenied {
        "only usher's user, root and members of `control.group` may use it: try sudo"
    } else {
        "is usher running, and may you use its control socket?"
    }
}

impl ControlError {
    /// Whether the caller may not use the socket.
    #[must_use]
    pub(crate) fn is_permission(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether the request is wrong, as distinct from a process that cannot answer it now.
    #[must_use]
    pub(crate) fn is_mistake(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.is_client_error())
    }

    /// Whether the process refuses this argument: one of an earlier version, which does not know it.
    #[must_use]
    pub(crate) fn refuses_argument(&self, name: &str) -> bool {
        let named = |words: &str| words.strip_prefix('`').and_then(|rest| rest.strip_prefix(name)).is_some();
        matches!(self, Self::Refused { status: StatusCode::BAD_REQUEST, words } if named(words))
    }

    /// Whether the process does not know the command: one of an earlier version. The second text is that of 0.1.0.
    #[must_use]
    pub(crate) fn is_unknown_path(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, words }
            if words == NO_SUCH_PATH || words == "there is nothing by this path")
    }

    /// Whether there is no process.
    #[must_use]
    pub(crate) fn is_absence(&self) -> bool {
        let kinds = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        matches!(self, Self::Connect { source, .. } if kinds.contains(&source.kind()))
    }
}

/// Asks the running usher.
///
/// # Errors
/// Why there is no answer.
pub(crate) async fn ask<T: DeserializeOwned>(socket: &Path, method: &str, path: &str) -> Result<T, ControlError> {
    send(socket, method, path, Bytes::new()).await
}

/// The same with a body.
///
/// # Errors
/// As [`ask`].
pub(crate) async fn send<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    path: &str,
    body: Bytes,
) -> Result<T, ControlError> {
    let asked = async { request_with(connect(socket).await?, method, path, body).await };
    timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| ControlError::Timeout)?
}

/// What the process that serves answers, and those before it.
pub(crate) struct Answers<T> {
    /// The process that serves.
    pub serving: T,
    /// Each that has handed its listeners over and still has sessions, by its socket.
    pub before: Vec<(PathBuf, Result<T, ControlError>)>,
}

/// Asks the process that serves, then all at once those that have handed their listeners over and still have
/// sessions; those that have ended meanwhile say nothing. A predecessor is believed if the kernel says that
/// its socket belongs to the process in its name, run by the user of the one that serves, or by root.
///
/// # Errors
/// Why the process that serves does not answer.
pub(crate) async fn ask_all<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    path: &str,
) -> Result<Answers<T>, ControlError> {
    let asked = async {
        let stream = connect(socket).await?;
        let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
        Ok::<_, ControlError>((user, request(stream, method, path).await?))
    };
    let (user, serving) = timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| ControlError::Timeout)??;
    let before = ask_predecessors(socket, user, method, path).await;
    Ok(Answers { serving, before: before.into_iter().map(|(_, its_socket, answer)| (its_socket, answer)).collect() })
}

/// A process before an upgrade, its socket, and what it answers.
pub(crate) type Predecessor<T> = (u32, PathBuf, Result<T, ControlError>);

/// Asks those that have handed their listeners over and still have sessions, all at once; believed as in [`ask_all`].
pub(crate) async fn ask_predecessors<T: DeserializeOwned>(
    socket: &Path,
    user: Option<u32>,
    method: &str,
    path: &str,
) -> Vec<Predecessor<T>> {
    let requests = socket_file::predecessors(socket).into_iter().map(|(process, its_socket)| async move {
        let asked = async {
            let stream = connect(&its_socket).await?;
            believe(&stream, process, user)?;
            request(stream, method, path).await
        };
        let answer = timeout(PREDECESSOR_TIMEOUT, asked).await.unwrap_or(Err(ControlError::Timeout));
        (process, its_socket, answer)
    });
    let answers = join_all(requests).await.into_iter();
    answers.filter(|(.., answer)| !answer.as_ref().is_err_and(ControlError::is_absence)).collect()
}

/// Whether this socket is that of the process, run by this user or by root (SO_PEERCRED, unix(7)).
fn believe(stream: &UnixStream, process: u32, user: Option<u32>) -> Result<(), ControlError> {
    let credentials = stream.peer_cred().map_err(|error| ControlError::Unreadable(error.to_string()))?;
    let (uid, pid) = (credentials.uid(), credentials.pid());
    let is_user = uid == 0 || Some(uid) == user;
    let is_process = pid.and_then(|pid| u32::try_from(pid).ok()) == Some(process);
    if is_user && is_process { Ok(()) } else { Err(ControlError::Foreign { uid, pid }) }
}

async fn connect(socket: &Path) -> Result<UnixStream, ControlError> {
    let connect_error = |source| ControlError::Connect { path: socket.display().to_string(), source };
    loop {
        match UnixStream::connect(socket).await {
            // Its queue is full for the moment (connect(2)); the caller's deadline ends the wait.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_PAUSE).await,
            connected => return connected.map_err(connect_error),
        }
    }
}

/// Asks the running usher for a response that goes on, and passes each line of it on as it comes, until it ends or
/// `each` breaks off.
///
/// # Errors
/// Why there is no response, or why it broke off.
pub(crate) async fn follow<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    path: &str,
    mut each: impl FnMut(T) -> ControlFlow<()>,
) -> Result<(), ControlError> {
    let stream = timeout(ANSWER_TIMEOUT, connect(socket)).await.map_err(|_| ControlError::Timeout)??;
    exchange(stream, method, path, Bytes::new(), async |answer| {
        let (mut body, mut input) = (answer.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            input.extend_from_slice(frame?.data_ref().map(AsRef::as_ref).unwrap_or_default());
            while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = input.drain(..=end).collect();
                let message = serde_json::from_slice(&line);
                if each(message.map_err(|error| ControlError::Unreadable(error.to_string()))?).is_break() {
                    return Ok(());
                }
            }
            if input.len() > LINE_LIMIT {
                return Err(ControlError::Unreadable("a line is too long".to_owned()));
            }
        }
        Ok(())
    })
    .await
}

async fn request<T: DeserializeOwned>(stream: UnixStream, method: &str, path: &str) -> Result<T, ControlError> {
    request_with(stream, method, path, Bytes::new()).await
}

async fn request_with<T: DeserializeOwned>(
    stream: UnixStream,
    method: &str,
    path: &str,
    body: Bytes,
) -> Result<T, ControlError> {
    exchange(stream, method, path, body, async |answer| {
        let body = whole(answer).await?;
        serde_json::from_slice(&body).map_err(|error| ControlError::Unreadable(error.to_string()))
    })
    .await
}

/// Sends a request, and lets `read` take a response that is a success.
async fn exchange<T>(
    stream: UnixStream,
    method: &str,
    path: &str,
    body: Bytes,
    read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::builder().method(method).uri(path).header("host", "usher").body(Full::new(body));
    let request = request.map_err(|error| ControlError::Unreadable(error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status.is_success() {
            return read(answer).await;
        }
        let words = serde_json::from_slice::<ErrorReply>(&whole(answer).await?).map(|problem| problem.error);
        let words = words.unwrap_or_else(|_| format!("usher replied {status}"));
        Err(ControlError::Refused { status, words })
    };
    tokio::select! {
        answer = exchange => answer,
        // The driver ends by itself only when the other side has closed: the exchange fails then.
        () = async { let _ = connection.await; std::future::pending::<()>().await } => Err(ControlError::Timeout),
    }
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, ControlError> {
    let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
    Ok(body.map_err(|error| ControlError::Unreadable(error.to_string()))?.to_bytes())
}

/// Everything but the unreserved characters of RFC 3986 section 2.3.
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A word of a path or a query: everything but letters, digits and `-._~` is escaped (RFC 3986).
#[must_use]
pub(crate) fn encode(word: &str) -> String {
    utf8_percent_encode(word, &RESERVED).to_string()
}
