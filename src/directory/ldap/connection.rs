//! How a directory server is reached, and the connection that many searches share.
//!
//! Sockets are opened here, TLS and binds are `client.rs`, which hands a connection over that is bound.
//! The searches on it are ldap3's, held at arm's length: it sees what `bridge.rs` lets through, its driver
//! runs in a task whose end is the connection's end, its panics are caught and become
//! [`Fault::Malformed`], and entries are read by a parser (`reading`) that cannot panic. Nothing here knows a
//! deadline: the caller limits the wait and drops the connection on a timeout.
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

use crate::base::sys::sockets;
use crate::config::LdapScheme;
use crate::directory::Entry;
use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::bridge::Bridge;
use crate::directory::ldap::frames::Violation;
use crate::directory::ldap::schema::{Attributes, read_entry};
use crate::tls;

/// Messages that one search may bring: two entries and the references beside them.
pub(crate) const MAX_MESSAGES: usize = 1_000;
/// Bytes of a reason in a log line.
const MAX_REASON: usize = 300;

/// An error of a connection. Each one ends its use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// It could not be opened, or it broke.
    #[error("{0}")]
    Broken(String),
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// No reply in the rest of the login's time, which was shorter than a reply may take.
    #[error("timed out: too little time was left")]
    CutShort,
    /// The message is not a reply to the request.
    #[error("malformed reply")]
    Malformed,
    /// The message violates the protocol, or a limit.
    #[error("malformed reply: {0}")]
    Violation(#[from] Violation),
}

impl ConnectionError {
    /// A reason from our, the system's or the library's text: bounded, without control characters.
    pub(crate) fn broken(reason: &dyn std::fmt::Display) -> Self {
        let text: String = reason.to_string().chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
        Self::Broken(text)
    }
}

/// How to connect to a server.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    /// ldap, ldaps or ldapi.
    pub(crate) scheme: LdapScheme,
    /// Host name, address without brackets, or socket path.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: u16,
    /// StartTLS on ldap: mandatory, there is no fallback to cleartext.
    pub(crate) starttls: bool,
    /// Roots, client certificate, versions.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// How long connecting may take; shared by all addresses of the host.
    pub(crate) patience: Duration,
    /// The longest message, in bytes, after authentication of the server.
    pub(crate) max_message: usize,
}

/// The scope of a search.
pub(crate) use ldap3::Scope;

/// A search request.
#[derive(Debug)]
pub(crate) struct SearchRequest {
    /// `search` or `read`: the metric label.
    pub(crate) operation: &'static str,
    /// The base DN.
    pub(crate) base: String,
    /// The scope.
    pub(crate) scope: Scope,
    /// The filter.
    pub(crate) filter: String,
    /// The attributes to read.
    pub(crate) attributes: Arc<Attributes>,
}

impl SearchRequest {
    /// The requested size limit and time limit in seconds.
    pub(crate) fn limits(&self, time_limit: Duration) -> (u32, u32) {
        let seconds = u32::try_from(time_limit.as_secs().saturating_add(1)).unwrap_or(u32::MAX).min(i32::MAX as u32);
        // Two are enough: one entry is a user, more are an ambiguity.
        (if self.scope == Scope::Base { 1 } else { 2 }, seconds)
    }
}

/// The result of a [`SearchRequest`].
#[derive(Debug)]
pub(crate) struct SearchResult {
    /// The result code.
    pub(crate) code: u32,
    /// The number of entries.
    pub(crate) entries: usize,
    /// The first of them; `None` also if it exceeds a limit.
    pub(crate) first: Option<Entry>,
}

/// A connection shared by searches. Dropping it closes the socket at once.
#[derive(Debug)]
pub(crate) struct Connection {
    ldap: ldap3::Ldap,
    end: watch::Receiver<Option<ConnectionError>>,
    operations: AtomicU64,
    /// The driver and the bridge: aborted on drop.
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Hands a connection to ldap3, with its current identity.
    pub(crate) async fn over(client: BindClient) -> Result<Self, ConnectionError> {
        let (stream, frames, operations) = client.into_parts();
        let (near, far) = UnixStream::pair().map_err(|error| ConnectionError::broken(&error))?;
        let near = near.into_std().map_err(|error| ConnectionError::broken(&error))?;
        // The URL is unused: the socket is given.
        let settings = LdapConnSettings::new().set_std_stream(StdStream::Unix(near));
        let made = LdapConnAsync::with_settings(settings, "ldapi:///").await;
        let (driver, ldap) = made.map_err(|error| from_ldap3(&error))?;
        let (ended, end) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let bridge = Bridge::new(stream, frames, far);
        let why = ended.clone();
        tasks.spawn(async move {
            let (error, far) = bridge.run().await;
            // Before ldap3 sees the end of the pair: the first reason is the actual one.
            if let Some(error) = error {
                record_end(&why, error);
            }
            drop(far);
        });
        tasks.spawn(async move {
            let error = match AssertUnwindSafe(driver.drive()).catch_unwind().await {
                Ok(Ok(())) => ConnectionError::Broken("connection closed by the server".to_owned()),
                Ok(Err(error)) => from_ldap3(&error),
                Err(_panic) => ConnectionError::Malformed,
            };
            record_end(&ended, error);
        });
        Ok(Self { ldap, end, operations: AtomicU64::new(operations), _tasks: tasks })
    }

    /// Whether it is known to be closed.
    pub(crate) fn is_dead(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// The number of its operations.
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// A search; any number may run at the same time.
    pub(crate) async fn search(
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
            // Continuation references accompany entries (AD always sends them): not followed.
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

    /// Sends Who am I?: any reply shows that the connection is alive.
    pub(crate) async fn who_am_i(&self) -> Result<(), ConnectionError> {
        let mut ldap = self.ldap.clone();
        self.contained(ldap.extended(WhoAmI)).await.map(drop)
    }

    /// For operations of other modules, each to be wrapped in [`Connection::contained`].
    pub(crate) fn handle(&self) -> ldap3::Ldap {
        self.ldap.clone()
    }

    /// Runs an operation; a panic within it, or the driver's end, becomes an error.
    pub(crate) async fn contained<T>(
        &self,
        operation: impl Future<Output = Result<T, LdapError>>,
    ) -> Result<T, ConnectionError> {
        match AssertUnwindSafe(operation).catch_unwind().await {
            Ok(Ok(answer)) => Ok(answer),
            Err(_panic) => Err(ConnectionError::Malformed),
            Ok(Err(error)) if is_end(&error) => {
                // The driver has closed its channel; the reason follows shortly.
                let mut end = self.end.clone();
                let known = end.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
                Err(known.unwrap_or_else(|| from_ldap3(&error)))
            }
            Ok(Err(error)) => Err(from_ldap3(&error)),
        }
    }
}

/// Records the reason why a connection ended, unless one is recorded already.
fn record_end(end: &watch::Sender<Option<ConnectionError>>, error: ConnectionError) {
    end.send_if_modified(|known| {
        let is_first = known.is_none();
        known.get_or_insert(error);
        is_first
    });
}

/// Whether an error only means that the driver has ended.
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

/// Converts an error of ldap3. `Display` only: `Debug` may contain requests.
fn from_ldap3(error: &LdapError) -> ConnectionError {
    let LdapError::Io { source } = error else { return ConnectionError::broken(error) };
    // The text of ldap3 for BER that it cannot parse.
    if source.to_string() == "decoding error" {
        ConnectionError::Malformed
    } else {
        ConnectionError::broken(&tls::describe(source))
    }
}

/// A socket to a server.
#[derive(Debug)]
pub(crate) enum LdapSocket {
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
    /// A connected socket, before any data.
    pub(crate) async fn socket(&self) -> Result<LdapSocket, ConnectionError> {
        if self.scheme == LdapScheme::Ldapi {
            return UnixStream::connect(&self.host)
                .await
                .map(LdapSocket::Unix)
                .map_err(|error| ConnectionError::broken(&error));
        }
        self.tcp().await.map(LdapSocket::Tcp)
    }

    /// Tries the host's addresses in order; each gets its share of the remaining time.
    async fn tcp(&self) -> Result<TcpStream, ConnectionError> {
        let until = Instant::now() + self.patience;
        let addresses =
            lookup_host((self.host.as_str(), self.port)).await.map_err(|error| ConnectionError::broken(&error))?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        let mut error = ConnectionError::Broken("host name has no address".to_owned());
        for (at, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
            let now = Instant::now();
            let share = until.saturating_duration_since(now) / left;
            error = match timeout_at(now + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return tuned(stream).map_err(|error| ConnectionError::broken(&error)),
                Ok(Err(error)) => ConnectionError::broken(&error),
                Err(_elapsed) => ConnectionError::Timeout,
            };
        }
        Err(error)
    }
}

/// Disables Nagle's algorithm and enables detection of dead peers.
fn tuned(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    sockets::DIRECTORY.set(&stream)?;
    Ok(stream)
}
