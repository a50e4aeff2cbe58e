//! How a directory server is reached, and the connection that many searches share.
//!
//! Sockets are opened here, TLS and binds are `client.rs`, which hands a connection over that is bound.
//! The searches on it are ldap3's, held at arm's length: it sees what `bridge.rs` lets through, its driver
//! runs in a task whose end is the connection's end, its panics are caught and become
//! [`Fault::Malformed`], and entries are read by a parser (`reading`) that cannot panic. Nothing here knows a
//! deadline: whoever calls limits the wait and drops the connection when the time is over.
//! RFC 4511.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use ldap3::exop::WhoAmI;
use ldap3::{LdapConnAsync, LdapConnSettings, LdapError, SearchOptions, StdStream};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Entry;
use super::bridge::Bridge;
use super::client::BindClient;
use super::frames::Violation;
use super::reading::{Attributes, read_entry};
use crate::config::LdapScheme;
use crate::sys::sockets;
use crate::tls;

/// Messages that one search may bring: two entries and the references beside them.
pub(super) const MAX_MESSAGES: usize = 1_000;
/// Bytes of a reason in a log line.
const MAX_REASON: usize = 300;

/// What went wrong with a connection. Each of these ends its use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConnectionError {
    /// It could not be made, or it broke.
    #[error("{0}")]
    Broken(String),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No answer in what was left of the decision's time, which was less than an answer may take.
    #[error("no answer in the time that was left")]
    CutShort,
    /// What came is no answer to what was asked.
    #[error("the answer cannot be read")]
    Malformed,
    /// What came broke a rule of the protocol, or a limit.
    #[error("the answer cannot be read: {0}")]
    Violation(#[from] Violation),
}

impl ConnectionError {
    /// A reason made of our words, the system's and the library's: bounded, without control
    /// characters.
    pub(super) fn broken(reason: &dyn std::fmt::Display) -> Self {
        let text: String = reason.to_string().chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
        Self::Broken(text)
    }
}

/// How to reach a server.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    /// ldap, ldaps or ldapi.
    pub(super) scheme: LdapScheme,
    /// Host name, address without brackets, or socket path.
    pub(super) host: String,
    /// The port.
    pub(super) port: u16,
    /// StartTLS on ldap: mandatory, there is no way back to the clear.
    pub(super) starttls: bool,
    /// Roots, client certificate, versions.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// How long making the connection may take; shared by all addresses of the host.
    pub(super) patience: Duration,
    /// The longest message under TLS, or where there is none, in bytes.
    pub(super) max_message: usize,
}

/// Which entries a search may see.
pub(super) use ldap3::Scope;

/// A search.
#[derive(Debug)]
pub(super) struct SearchRequest {
    /// `search` or `read`: the metric label.
    pub(super) operation: &'static str,
    /// Where.
    pub(super) base: String,
    /// The entry itself or all below.
    pub(super) scope: Scope,
    /// Which.
    pub(super) filter: String,
    /// What is read of them.
    pub(super) attributes: Arc<Attributes>,
}

impl SearchRequest {
    /// How many entries and seconds it asks for at most.
    pub(super) fn limits(&self, time_limit: Duration) -> (u32, u32) {
        let seconds = u32::try_from(time_limit.as_secs().saturating_add(1)).unwrap_or(u32::MAX).min(i32::MAX as u32);
        // Two are as good as many: one entry is a user, more are a refusal.
        (if self.scope == Scope::Base { 1 } else { 2 }, seconds)
    }
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub(super) struct SearchResult {
    /// The result code.
    pub(super) code: u32,
    /// How many entries came.
    pub(super) entries: usize,
    /// The first of them; `None` also if it is out of bounds.
    pub(super) first: Option<Entry>,
}

/// A connection that searches share. Dropping it closes the socket at once.
#[derive(Debug)]
pub(super) struct Connection {
    ldap: ldap3::Ldap,
    end: watch::Receiver<Option<ConnectionError>>,
    operations: AtomicU64,
    /// The driver and the bridge: aborted on drop.
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Gives a connection to ldap3, with the identity that it has.
    pub(super) async fn over(client: BindClient) -> Result<Self, ConnectionError> {
        let (stream, frames, operations) = client.into_parts();
        let (near, far) = UnixStream::pair().map_err(|error| ConnectionError::broken(&error))?;
        let near = near.into_std().map_err(|error| ConnectionError::broken(&error))?;
        // The URL names nothing: the socket is given.
        let settings = LdapConnSettings::new().set_std_stream(StdStream::Unix(near));
        let made = LdapConnAsync::with_settings(settings, "ldapi:///").await;
        let (driver, ldap) = made.map_err(|error| from_ldap3(&error))?;
        let (ended, end) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let bridge = Bridge::new(stream, frames, far);
        let why = ended.clone();
        tasks.spawn(async move {
            let (fault, far) = bridge.run().await;
            // Before ldap3 sees the end of the pair: the first reason is the true one.
            if let Some(fault) = fault {
                record_end(&why, fault);
            }
            drop(far);
        });
        tasks.spawn(async move {
            let fault = match AssertUnwindSafe(driver.drive()).catch_unwind().await {
                Ok(Ok(())) => ConnectionError::Broken("connection closed by the server".to_owned()),
                Ok(Err(error)) => from_ldap3(&error),
                Err(_panic) => ConnectionError::Malformed,
            };
            record_end(&ended, fault);
        });
        Ok(Self { ldap, end, operations: AtomicU64::new(operations), _tasks: tasks })
    }

    /// Whether it is known to be dead.
    pub(super) fn is_dead(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// How many operations it was used for.
    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// A search; any number of them may be under way.
    pub(super) async fn search(
        &self,
        question: &SearchRequest,
        time_limit: Duration,
    ) -> Result<SearchResult, ConnectionError> {
        let (size, seconds) = question.limits(time_limit);
        let limit = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let options = SearchOptions::new().sizelimit(limit(size)).timelimit(limit(seconds));
        let wanted = &question.attributes;
        let names = wanted.names();
        self.operations.fetch_add(1, Ordering::Relaxed);
        let mut ldap = self.ldap.clone();
        let mut found = SearchResult { code: 0, entries: 0, first: None };
        let asked =
            ldap.with_search_options(options).streaming_search(&question.base, question.scope, &question.filter, names);
        let mut answers = self.contained(asked).await?;
        let mut messages = 0;
        while let Some(message) = self.contained(answers.next()).await? {
            messages += 1;
            if messages > MAX_MESSAGES {
                return Err(ConnectionError::Malformed);
            }
            // Continuation references stand beside entries (AD always sends them): not followed.
            if message.is_ref() || message.is_intermediate() {
                continue;
            }
            found.entries += 1;
            if found.entries == 1 {
                found.first = read_entry(message.0, wanted).ok_or(ConnectionError::Malformed)?.map(|shown| shown.entry);
            }
        }
        // Success only if a final result said so: without one, finish() reports 88.
        found.code = answers.finish().await.rc;
        Ok(found)
    }

    /// Asks who this connection is bound as: any answer shows that it lives.
    pub(super) async fn who_am_i(&self) -> Result<(), ConnectionError> {
        let mut ldap = self.ldap.clone();
        self.contained(ldap.extended(WhoAmI)).await.map(drop)
    }

    /// For operations that are made elsewhere, each to be [`Connection::contained`].
    pub(super) fn handle(&self) -> ldap3::Ldap {
        self.ldap.clone()
    }

    /// Runs an operation; a panic within it or the driver's end become faults.
    pub(super) async fn contained<T>(
        &self,
        operation: impl Future<Output = Result<T, LdapError>>,
    ) -> Result<T, ConnectionError> {
        match AssertUnwindSafe(operation).catch_unwind().await {
            Ok(Ok(answer)) => Ok(answer),
            Err(_panic) => Err(ConnectionError::Malformed),
            Ok(Err(error)) if is_end(&error) => {
                // The driver has dropped our channel; a moment later it says why.
                let mut end = self.end.clone();
                let known = end.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
                Err(known.unwrap_or_else(|| from_ldap3(&error)))
            }
            Ok(Err(error)) => Err(from_ldap3(&error)),
        }
    }
}

/// Notes why a connection has ended, unless that is known.
fn record_end(end: &watch::Sender<Option<ConnectionError>>, fault: ConnectionError) {
    end.send_if_modified(|known| {
        let is_first = known.is_none();
        known.get_or_insert(fault);
        is_first
    });
}

/// Whether an error says no more than that the driver is gone.
fn is_end(error: &LdapError) -> bool {
    matches!(
        error,
        LdapError::OpSend { .. }
            | LdapError::ResultRecv { .. }
            | LdapError::IdScrubSend { .. }
            | LdapError::MiscSend { .. }
            | LdapError::EndOfStream
    )
}

/// An error of ldap3 as a fault. `Display` only: `Debug` may show requests.
fn from_ldap3(error: &LdapError) -> ConnectionError {
    let LdapError::Io { source } = error else { return ConnectionError::broken(error) };
    // ldap3's own words for BER that it cannot parse.
    if source.to_string() == "decoding error" {
        ConnectionError::Malformed
    } else {
        ConnectionError::broken(&tls::describe(source))
    }
}

/// A socket to a server.
#[derive(Debug)]
pub(super) enum LdapSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for LdapSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for LdapSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, pieces),
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, pieces),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

impl Dial {
    /// A connected socket, on which nothing was said.
    pub(super) async fn socket(&self) -> Result<LdapSocket, ConnectionError> {
        if self.scheme == LdapScheme::Ldapi {
            return UnixStream::connect(&self.host)
                .await
                .map(LdapSocket::Unix)
                .map_err(|error| ConnectionError::broken(&error));
        }
        self.tcp().await.map(LdapSocket::Tcp)
    }

    /// Tries the host's addresses in order; each gets its share of the time that is left.
    async fn tcp(&self) -> Result<TcpStream, ConnectionError> {
        let until = Instant::now() + self.patience;
        let addresses =
            lookup_host((self.host.as_str(), self.port)).await.map_err(|error| ConnectionError::broken(&error))?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        let mut fault = ConnectionError::Broken("the name has no address".to_owned());
        for (at, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
            let now = Instant::now();
            let share = until.saturating_duration_since(now) / left;
            fault = match timeout_at(now + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return tuned(stream).map_err(|error| ConnectionError::broken(&error)),
                Ok(Err(error)) => ConnectionError::broken(&error),
                Err(_elapsed) => ConnectionError::Timeout,
            };
        }
        Err(fault)
    }
}

/// Sends at once, notices a dead peer while waiting and while sending.
fn tuned(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    sockets::DIRECTORY.set(&stream)?;
    Ok(stream)
}
