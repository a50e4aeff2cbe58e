//! One connection to one directory server: how it is made, and one operation each.
//!
//! The client library is ldap3, held at arm's length: sockets are opened here (it sets neither
//! TCP_NODELAY nor keepalive, which costs 44 ms per new TLS connection), its driver runs in a task
//! whose end is the connection's end, its panics on malformed answers are caught and become
//! [`Fault::Malformed`], and entries are read by a parser (`reading`) that cannot panic. Nothing here knows a
//! deadline: whoever calls limits the wait and drops the connection when the time is over.
//! RFC 4511.

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use ldap3::exop::{Exop, WhoAmI};
use ldap3::{LdapConnAsync, LdapConnSettings, LdapError, SearchOptions, StdStream};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::Entry;
use super::policy::{self, Bound};
use super::reading::{Attributes, read_entry};
use crate::config::LdapScheme;
use crate::tls;

/// RFC 4511 section 4.14.1.
const START_TLS: &str = "1.3.6.1.4.1.1466.20037";
/// Messages that one search may bring: two entries and the references beside them.
const MAX_MESSAGES: usize = 1_000;
/// Bytes of a reason in a log line.
const MAX_REASON: usize = 300;

/// What went wrong with a connection. Each of these ends its use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// It could not be made, or it broke.
    #[error("{0}")]
    Broken(String),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No answer in what was left of the decision's time, which was less than an answer may take.
    #[error("no answer in the time that was left")]
    Cut,
    /// What came is no LDAP.
    #[error("the answer cannot be read")]
    Malformed,
}

impl Fault {
    /// A reason made of our words, the system's and the library's: bounded, without control
    /// characters.
    fn broken(reason: &dyn std::fmt::Display) -> Self {
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
}

/// Which entries a search may see.
pub(super) use ldap3::Scope;

/// A search.
#[derive(Debug)]
pub(super) struct Question {
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

/// The answer to a [`Question`].
#[derive(Debug)]
pub(super) struct Found {
    /// The result code.
    pub(super) code: u32,
    /// How many entries came.
    pub(super) entries: usize,
    /// The first of them; `None` also if it is out of bounds.
    pub(super) first: Option<Entry>,
}

/// An LDAP connection. Dropping it closes the socket at once.
#[derive(Debug)]
pub(super) struct Connection {
    ldap: ldap3::Ldap,
    end: watch::Receiver<Option<Fault>>,
    operations: AtomicU64,
    /// The driver (and the tunnel, if there is one): aborted on drop.
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Connects, with TLS as configured.
    pub(super) async fn open(dial: &Dial) -> Result<Self, Fault> {
        let mut tasks = JoinSet::new();
        // The StartTLS answer is parsed by ldap3 in this very task: it may panic.
        let made = AssertUnwindSafe(dial.connect(&mut tasks)).catch_unwind().await;
        let (driver, ldap) = made.unwrap_or(Err(Fault::Malformed))?;
        let (ended, end) = watch::channel(None);
        tasks.spawn(async move {
            let fault = match AssertUnwindSafe(driver.drive()).catch_unwind().await {
                Ok(Ok(())) => Fault::Broken("connection closed by the server".to_owned()),
                Ok(Err(error)) => told(&error),
                Err(_panic) => Fault::Malformed,
            };
            ended.send_replace(Some(fault));
        });
        Ok(Self { ldap, end, operations: AtomicU64::new(0), _tasks: tasks })
    }

    /// Whether it is known to be dead.
    pub(super) fn is_dead(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// How many operations it was used for.
    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// A simple bind; its answer. Exclusive, because nothing else may be under way on the
    /// connection meanwhile (RFC 4511 section 4.2.1). If the future is dropped before the answer,
    /// the connection must not be used again.
    pub(super) async fn bind(&mut self, dn: &str, password: &str) -> Result<Bound, Fault> {
        // Both empty are anonymous binds in disguise, which succeed (RFC 4513 section 5.1.2).
        if dn.is_empty() || password.is_empty() {
            return Err(Fault::Broken("a bind without name or password is not sent".to_owned()));
        }
        self.operations.fetch_add(1, Ordering::Relaxed);
        let mut ldap = self.ldap.clone();
        let asked = ldap.with_controls(policy::request()).simple_bind(dn, password);
        Ok(Bound::read(&self.contained(asked).await?))
    }

    /// A search; any number of them may be under way.
    pub(super) async fn search(&self, question: &Question, time_limit: Duration) -> Result<Found, Fault> {
        let seconds = i32::try_from(time_limit.as_secs().saturating_add(1)).unwrap_or(i32::MAX);
        // Two are as good as many: one entry is a user, more are a refusal.
        let size = if question.scope == Scope::Base { 1 } else { 2 };
        let options = SearchOptions::new().sizelimit(size).timelimit(seconds);
        let wanted = &question.attributes;
        let names = wanted.names();
        self.operations.fetch_add(1, Ordering::Relaxed);
        let mut ldap = self.ldap.clone();
        let mut found = Found { code: 0, entries: 0, first: None };
        let asked =
            ldap.with_search_options(options).streaming_search(&question.base, question.scope, &question.filter, names);
        let mut answers = self.contained(asked).await?;
        let mut messages = 0;
        while let Some(message) = self.contained(answers.next()).await? {
            messages += 1;
            if messages > MAX_MESSAGES {
                return Err(Fault::Malformed);
            }
            // Continuation references stand beside entries (AD always sends them): not followed.
            if message.is_ref() || message.is_intermediate() {
                continue;
            }
            found.entries += 1;
            if found.entries == 1 {
                found.first = read_entry(message.0, wanted).ok_or(Fault::Malformed)?.map(|shown| shown.entry);
            }
        }
        // Success only if a final result said so: without one, finish() reports 88.
        found.code = answers.finish().await.rc;
        Ok(found)
    }

    /// Asks who this connection is bound as: any answer shows that it lives.
    pub(super) async fn who_am_i(&self) -> Result<(), Fault> {
        let mut ldap = self.ldap.clone();
        self.contained(ldap.extended(WhoAmI)).await.map(drop)
    }

    /// For operations that are made elsewhere, each to be [`Connection::contained`].
    pub(super) fn handle(&self) -> ldap3::Ldap {
        self.ldap.clone()
    }

    /// Runs an operation; a panic within it or the driver's end become faults.
    pub(super) async fn contained<T>(&self, operation: impl Future<Output = Result<T, LdapError>>) -> Result<T, Fault> {
        match AssertUnwindSafe(operation).catch_unwind().await {
            Ok(Ok(answer)) => Ok(answer),
            Err(_panic) => Err(Fault::Malformed),
            Ok(Err(error)) if is_end(&error) => {
                // The driver has dropped our channel; a moment later it says why.
                let mut end = self.end.clone();
                let known = end.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
                Err(known.unwrap_or_else(|| told(&error)))
            }
            Ok(Err(error)) => Err(told(&error)),
        }
    }
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
fn told(error: &LdapError) -> Fault {
    if let LdapError::LdapResult { result } = error {
        return Fault::Broken(format!("StartTLS was refused with result {}", result.rc));
    }
    let LdapError::Io { source } = error else { return Fault::broken(error) };
    // ldap3's own words for BER that it cannot parse.
    if source.to_string() == "decoding error" { Fault::Malformed } else { Fault::broken(&tls::describe(source)) }
}

impl Dial {
    /// A connected socket, secured as configured, in ldap3's hands.
    async fn connect(&self, tasks: &mut JoinSet<()>) -> Result<(LdapConnAsync, ldap3::Ldap), Fault> {
        let settings = LdapConnSettings::new();
        if self.scheme == LdapScheme::Ldapi {
            let stream = UnixStream::connect(&self.host).await.and_then(UnixStream::into_std);
            let stream = stream.map_err(|error| Fault::broken(&error))?;
            return made(settings.set_std_stream(StdStream::Unix(stream)), "ldapi:///").await;
        }
        let stream = self.tcp().await?;
        if self.scheme == LdapScheme::Ldap && !self.starttls {
            // The URL's host is neither resolved nor verified here.
            return made(settings.set_std_stream(StdStream::Tcp(stream)), "ldap://server").await;
        }
        let Some(tls) = self.tls.clone() else {
            return Err(Fault::Broken("TLS is wanted but not set up".to_owned()));
        };
        if let Ok(address) = self.host.parse::<Ipv6Addr>() {
            let near = self.tunnel(stream, address, tls, tasks).await?;
            return made(settings.set_std_stream(StdStream::Unix(near)), "ldapi:///").await;
        }
        // ldap3 verifies the host of this URL, whatever address the socket is connected to.
        let starttls = self.scheme == LdapScheme::Ldap;
        let scheme = if starttls { "ldap" } else { "ldaps" };
        let settings = settings.set_config(tls).set_starttls(starttls).set_std_stream(StdStream::Tcp(stream));
        made(settings, &format!("{scheme}://{}:{}", self.host, self.port)).await
    }

    /// Tries the host's addresses in order; each gets its share of the time that is left.
    async fn tcp(&self) -> Result<std::net::TcpStream, Fault> {
        let until = Instant::now() + self.patience;
        let addresses = lookup_host((self.host.as_str(), self.port)).await.map_err(|error| Fault::broken(&error))?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        let mut fault = Fault::Broken("the name has no address".to_owned());
        for (at, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
            let now = Instant::now();
            let share = until.saturating_duration_since(now) / left;
            fault = match timeout_at(now + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return self.tuned(stream).map_err(|error| Fault::broken(&error)),
                Ok(Err(error)) => Fault::broken(&error),
                Err(_elapsed) => Fault::Timeout,
            };
        }
        Err(fault)
    }

    /// Sends at once, notices a dead peer while waiting (keepalive) and while sending.
    fn tuned(&self, stream: TcpStream) -> std::io::Result<std::net::TcpStream> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
        socket.set_tcp_keepalive(&keepalive.with_retries(3))?;
        socket.set_tcp_user_timeout(Some(self.patience.saturating_mul(2)))?;
        stream.into_std()
    }

    /// TLS to an IPv6 literal. ldap3 would verify the name with the brackets of its URL, which no
    /// certificate has; so TLS is done here, and ldap3 gets a socket pair in the clear.
    async fn tunnel(
        &self,
        stream: std::net::TcpStream,
        address: Ipv6Addr,
        tls: Arc<ClientConfig>,
        tasks: &mut JoinSet<()>,
    ) -> Result<std::os::unix::net::UnixStream, Fault> {
        if self.scheme == LdapScheme::Ldap {
            start_tls(stream.try_clone().map_err(|error| Fault::broken(&error))?).await?;
        }
        let name = ServerName::from(IpAddr::V6(address));
        let joined = async {
            let mut far = TlsConnector::from(tls).connect(name, TcpStream::from_std(stream)?).await?;
            let (near, mut middle) = UnixStream::pair()?;
            tasks.spawn(async move {
                // However it ends, ldap3 sees the end of the pair.
                let _ = tokio::io::copy_bidirectional(&mut middle, &mut far).await;
            });
            near.into_std()
        };
        joined.await.map_err(|error| Fault::broken(&tls::describe(&error)))
    }
}

/// Hands a socket to ldap3.
async fn made(settings: LdapConnSettings, url: &str) -> Result<(LdapConnAsync, ldap3::Ldap), Fault> {
    LdapConnAsync::with_settings(settings, url).await.map_err(|error| told(&error))
}

/// Asks for TLS on a duplicate of the socket; the original goes on behind the answer.
async fn start_tls(stream: std::net::TcpStream) -> Result<(), Fault> {
    let (driver, mut ldap) =
        made(LdapConnSettings::new().set_std_stream(StdStream::Tcp(stream)), "ldap://server").await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = driver.drive().await;
    });
    let request = Exop { name: Some(START_TLS.to_owned()), val: None };
    let answer = ldap.extended(request).await.map_err(|error| told(&error))?;
    answer.success().map(|_| ()).map_err(|error| told(&error))
}
