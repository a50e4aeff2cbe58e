//! The server of Postfix's socketmap protocol: where mail for an address goes, and whether there is such an address.
//!
//! Postfix keeps a connection for as long as it asks, and asks one question at a time. The peer's address is checked
//! before a byte is read and again at each question, which is answered by the configuration in force then. A connection
//! that usher closes between two questions is opened again by Postfix for the next one.

mod share;

use std::io;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::share::{Connections, Place};
use crate::base::sys::sockets;
use crate::config::Socketmap;
use crate::login::delivery::{self, Delivery, Located, MapAnswer, Meaning};
use crate::process::Shared;
use crate::proto::socketmap::{Question, QuestionReader, SocketmapAnswer, SocketmapError};
use crate::telemetry::client_address::Client;
use crate::telemetry::labels::{SocketmapClosed, SocketmapMap};
use crate::telemetry::log::Escaped;

/// From the first byte of a question to its last.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Postfix reads an answer immediately.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Postfix itself closes a connection without questions after 10 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How much is read at a time.
const READ: usize = 4 * 1024;
/// How long to wait when the system has no descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Where Postfix connects.
#[derive(Debug)]
pub(crate) enum SocketmapListener {
    /// By TCP.
    Tcp(TcpListener),
    /// By a Unix socket.
    Unix(UnixListener),
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
enum End {
    #[error("the peer closed the connection")]
    Closed,
    #[error("{0}")]
    Malformed(#[from] SocketmapError),
    #[error("no complete question within {QUESTION_TIMEOUT:?}, or an answer not taken within {ANSWER_TIMEOUT:?}")]
    Timeout,
    #[error("no question within {IDLE_TIMEOUT:?}")]
    Idle,
    #[error("at the limit another address got the place")]
    Displaced,
    #[error("the address is no longer in socketmap.allow")]
    Untrusted,
    #[error("stopped")]
    Stopped,
}

impl End {
    /// What it counts as, if usher has closed the connection.
    const fn counted(self) -> Option<SocketmapClosed> {
        match self {
            Self::Closed => None,
            Self::Malformed(_) => Some(SocketmapClosed::Malformed),
            Self::Timeout => Some(SocketmapClosed::Timeout),
            Self::Idle => Some(SocketmapClosed::Idle),
            Self::Displaced => Some(SocketmapClosed::Share),
            Self::Untrusted => Some(SocketmapClosed::Untrusted),
            Self::Stopped => Some(SocketmapClosed::Stopped),
        }
    }
}

/// Answers until the task is ended; then its connections end after the question that they are at.
pub(crate) async fn serve(listener: Arc<SocketmapListener>, shared: Arc<Shared>) {
    let stop = CancellationToken::new();
    let _ends_connections = stop.clone().drop_guard();
    let connections = Connections::new();
    loop {
        let accepted = match &*listener {
            SocketmapListener::Tcp(socket) => socket.accept().await.map(|(tcp, peer)| {
                // Without them an answer may take 40 ms longer, or a peer that is gone be noticed later.
                let _ = tcp.set_nodelay(true);
                let _ = sockets::CLIENT.set(&tcp);
                (Either::Left(tcp), Some(peer.ip().to_canonical()))
            }),
            SocketmapListener::Unix(socket) => socket.accept().await.map(|(unix, _)| (Either::Right(unix), None)),
        };
        let Ok((stream, peer)) = accepted else {
            sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        if let Some(refused) = refused(&shared, peer, &connections) {
            close(&shared, refused, peer);
            continue;
        }
        let (shared, stop, place) = (Arc::clone(&shared), stop.clone(), connections.enter(peer));
        let tracker = shared.postfix.clone();
        tracker.spawn(async move {
            let open = OpenConnection::new(&shared);
            let ended = AssertUnwindSafe(converse(stream, (peer, &place), &shared, &stop)).catch_unwind().await;
            drop((open, place));
            // The panic hook has counted and logged it; Postfix asks again.
            let Ok(end) = ended else { return };
            debug!(peer = peer.map(tracing::field::display), reason = %end, "socketmap connection ended");
            if let Some(reason) = end.counted() {
                close(&shared, reason, peer);
            }
        });
    }
}

/// Why a connection is not served, if it is not.
fn refused(shared: &Shared, peer: Option<IpAddr>, connections: &Connections) -> Option<SocketmapClosed> {
    let snapshot = shared.snapshot.load();
    let settings = snapshot.config.socketmap.as_ref()?;
    if !is_allowed(settings, peer) {
        return Some(SocketmapClosed::Untrusted);
    }
    let is_full = shared.postfix.len() >= settings.max_connections;
    (is_full && !connections.displace_for(peer)).then_some(SocketmapClosed::Limit)
}

/// Whether this peer may ask; a Unix socket's file says so itself.
fn is_allowed(settings: &Socketmap, peer: Option<IpAddr>) -> bool {
    peer.is_none_or(|peer| settings.allow.iter().any(|network| network.contains(&peer)))
}

/// Counts a connection that is closed here, and says why.
fn close(shared: &Shared, reason: SocketmapClosed, peer: Option<IpAddr>) {
    shared.metrics.socketmap_closed.of(reason).inc();
    let words = match reason {
        SocketmapClosed::Untrusted => "the address is not in socketmap.allow",
        SocketmapClosed::Limit => "socketmap.max_connections is reached",
        SocketmapClosed::Share => {
            "socketmap.max_connections is reached, and this address has the most: another got a place"
        }
        SocketmapClosed::Malformed => "what was sent is no socketmap question",
        SocketmapClosed::Timeout => "a question was not complete in time, or an answer not taken",
        SocketmapClosed::Idle | SocketmapClosed::Stopped => return,
    };
    if let Some(suppressed) = shared.repeats.allow("socketmap", reason.label()) {
        let peer = peer.map(|peer| Client::of(peer, !matches!(reason, SocketmapClosed::Untrusted)));
        warn!(peer = peer.map(tracing::field::display), reason = words, suppressed, "socketmap connection closed");
    }
}

/// A connection, counted until this is dropped.
struct OpenConnection<'a>(&'a Shared);

impl<'a> OpenConnection<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.metrics.socketmap_connections.inc();
        Self(shared)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.metrics.socketmap_connections.dec();
    }
}

/// Answers the questions of one connection, one after the other.
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    (peer, place): (Option<IpAddr>, &Place),
    shared: &Shared,
    stop: &CancellationToken,
) -> End {
    let mut reader = QuestionReader::new();
    let mut input = vec![0; READ];
    let mut out = Vec::new();
    let mut deadline = Instant::now() + IDLE_TIMEOUT;
    loop {
        let was_within = reader.is_within();
        let read = tokio::select! {
            biased;
            () = place.displaced() => return End::Displaced,
            () = stop.cancelled(), if !was_within => return End::Stopped,
            read = stream.read(&mut input) => read,
            () = sleep_until(deadline) => return if was_within { End::Timeout } else { End::Idle },
        };
        let mut rest = match read.ok().and_then(|length| input.get(..length)) {
            None | Some([]) => return End::Closed,
            Some(read) => read,
        };
        loop {
            match reader.read(&mut rest) {
                Ok(Some(question)) => {
                    place.looks_up();
                    let answered = answer(&question, peer, shared).await;
                    place.waits();
                    match answered {
                        Ok(answer) => {
                            out.clear();
                            answer.write(&mut out);
                        }
                        Err(end) => return end,
                    }
                }
                Ok(None) => break,
                Err(error) => return error.into(),
            }
            let sent = tokio::select! {
                biased;
                sent = timeout(ANSWER_TIMEOUT, send(&mut stream, &out)) => sent,
                () = place.displaced() => return End::Displaced,
            };
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return End::Closed,
                Err(_) => return End::Timeout,
            }
        }
        deadline = match (was_within, reader.is_within()) {
            // Bytes that trickle in give a question no more time.
            (true, true) => deadline,
            (false, true) => Instant::now() + QUESTION_TIMEOUT,
            (_, false) => Instant::now() + IDLE_TIMEOUT,
        };
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// The answer to one question, by the configuration in force.
async fn answer(question: &Question, peer: Option<IpAddr>, shared: &Shared) -> Result<SocketmapAnswer, End> {
    let began = Instant::now();
    let snapshot = shared.snapshot.load_full();
    let Some(delivery) = Delivery::of(&snapshot.config, &snapshot.realms) else { return Err(End::Stopped) };
    if !is_allowed(delivery.settings, peer) {
        return Err(End::Untrusted);
    }
    let map = delivery::map(question.map());
    let located = match (map, question.key()) {
        (SocketmapMap::Other, _) => Located::unasked(),
        (_, key) => delivery.locate(key.unwrap_or_default()).await,
    };
    let told = delivery.answer(map, &located);
    if let (SocketmapMap::Transport, Meaning::Entry(entry), SocketmapAnswer::Ok(_)) =
        (map, &located.meaning, &told.answer)
    {
        shared.delivered.note(&entry.dn);
    }
    shared.metrics.socketmap_requests.at(map.label(), told.result()).inc();
    shared.metrics.socketmap_seconds.observe(began.elapsed().as_secs_f64());
    report(question, shared, (map, &located, &told));
    Ok(told.answer)
}

/// Logs a look-up: each one at debug, and at warn what an administrator has to mend.
fn report(question: &Question, shared: &Shared, (map, located, told): (SocketmapMap, &Located, &MapAnswer)) {
    let key = Escaped(question.key().unwrap_or_default());
    let backend = told.backend.as_deref();
    debug!(map = map.label(), key = %key, result = told.result().label(), reason = told.reason, backend, "lookup");
    let SocketmapAnswer::Temp(reason) = &told.answer else { return };
    let (dns, cause) = located.fault();
    // A held mailbox is what an administrator wants.
    let is_held = matches!(&located.meaning, Meaning::Entry(entry) if entry.version.held);
    if is_held {
        return;
    }
    let directory = located.directory();
    // What is wrong in one directory hides nothing of another.
    let kind = format!("{} {reason}", directory.as_deref().unwrap_or_default());
    if let Some(suppressed) = shared.repeats.allow("lookup", &kind) {
        warn!(map = map.label(), key = %key, directory, dns, cause, reason, suppressed, "mail is deferred");
    }
}
