//! The client half: what the commands ask the running process, and the one before it after an upgrade.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::StatusCode;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Problem, socket};

/// An answer larger than this is no answer: 60,000 sessions take about 15 MiB.
const ANSWER_LIMIT: usize = 256 * 1024 * 1024;
/// A reload reads files and builds everything: seconds at the most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the running usher could not be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket cannot be opened.
    #[error("{path} cannot be opened: {source}; {}", way_out(.source))]
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
    /// It does not do what it was asked for, in its own words.
    #[error("{words}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The sentence.
        words: String,
    },
    /// The answer is too large or is no JSON of this version.
    #[error("usher's answer cannot be read: {0}")]
    Unreadable(String),
}

/// What to do when the socket cannot be opened.
fn way_out(error: &io::Error) -> &'static str {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        "usher does not run there; start it, or name its configuration with --config"
    } else if kind == io::ErrorKind::PermissionDenied {
        "only usher's own user may use it, root, and who is in `control.group`: try sudo"
    } else {
        "is usher running, and may you use its control socket?"
    }
}

impl ControlError {
    /// Whether the caller may not use the socket.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether the request is wrong, as distinct from a process that cannot answer it now.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.is_client_error())
    }

    /// Whether there is no process.
    fn is_absence(&self) -> bool {
        let kinds = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        matches!(self, Self::Connect { source, .. } if kinds.contains(&source.kind()))
    }
}

/// Asks the running usher.
///
/// # Errors
/// Why there is no answer.
pub async fn ask<T: DeserializeOwned>(socket: &Path, method: &str, path: &str) -> Result<T, ControlError> {
    timeout(ANSWER_TIMEOUT, request(socket, method, path)).await.map_err(|_| ControlError::Timeout)?
}

/// Asks each process that has handed its listeners over and still has sessions; those that have ended
/// meanwhile say nothing.
pub async fn ask_predecessors<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    path: &str,
) -> Vec<(PathBuf, Result<T, ControlError>)> {
    let mut answers = Vec::new();
    for predecessor in socket::predecessors(socket) {
        let answer = ask(&predecessor, method, path).await;
        if !answer.as_ref().is_err_and(ControlError::is_absence) {
            answers.push((predecessor, answer));
        }
    }
    answers
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
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| ControlError::Unreadable(error.to_string()))?.to_bytes();
        if !status.is_success() {
            let words = serde_json::from_slice::<Problem>(&body).map(|problem| problem.error);
            let words = words.unwrap_or_else(|_| format!("usher answered {status}"));
            return Err(ControlError::Refused { status, words });
        }
        serde_json::from_slice(&body).map_err(|error| ControlError::Unreadable(error.to_string()))
    };
    tokio::select! {
        answer = exchange => answer,
        // The driver ends by itself only when the other side has closed: the exchange fails then.
        () = async { let _ = connection.await; std::future::pending::<()>().await } => Err(ControlError::Timeout),
    }
}

/// A word of a path or a query: everything but letters, digits and `-._~` is escaped (RFC 3986).
#[must_use]
pub fn encode(word: &str) -> String {
    let mut encoded = String::with_capacity(word.len());
    for byte in word.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
