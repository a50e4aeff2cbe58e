//! Relays bytes both ways after login.
//!
//! What was read before the relay goes first and in order. No buffer of ours is held while a session idles:
//! what was read is passed to the other side at once, and nothing is read from a sender whose receiver has not
//! accepted the earlier bytes. Half-close is carried over. Nothing is parsed here: COMPRESS, IDLE and every
//! later extension pass untouched. Only the last two bytes are stored, so that usher knows where it can insert
//! a line. The one exception: where a server would let its client log in again, the client's lines are scanned
//! for that command ([`CommandWatch`]).

mod pipe;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pipe::{Pipe, PipeError};
use prometheus::IntCounter;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::base::sys::sockets::Transport;
use crate::proto::watch::CommandWatch;
use crate::proto::{ClosingLine, ClosingNotice};
use crate::sessions::registry::TerminationReason;
use crate::telemetry::labels::SessionEnd;
use crate::tls::stream::Stream;

/// How long the open direction of a half-closed session may stand still.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(3);
/// When no byte has moved for this long and a receiver is blocked, its sender, which is not read meanwhile, is
/// checked repeatedly for a reset: no event reports one while its bytes wait.
const STALL_PROBE: Duration = Duration::from_secs(1);
/// How long closing may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// A session without a byte for this long is between two commands, or waits in one (IDLE).
const PAUSE: Duration = Duration::from_secs(1);
/// How long a session that has to end may take to pause.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a relayed session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Both sides closed in order, within [`HALF_CLOSED_IDLE`] of each other: a logout. Which one was first is chance.
    Closed,
    /// The client closed, and the backend did not in time.
    ClientClosed,
    /// The backend closed, and the client did not in time.
    BackendClosed,
    /// The client's connection broke.
    ClientError,
    /// The backend's connection broke.
    BackendError,
    /// No byte in either direction for the idle limit.
    Idle,
    /// The client sent the command that is watched for.
    Forbidden,
    /// usher ended it.
    Terminated(TerminationReason),
}

impl EndReason {
    /// What the client hears, where its protocol has a line for it and usher can insert one.
    const fn notice(self) -> Option<ClosingNotice> {
        match self {
            Self::Idle => Some(ClosingNotice::Inactive),
            Self::Terminated(reason) => Some(reason.notice()),
            Self::Closed
            | Self::ClientClosed
            | Self::BackendClosed
            | Self::ClientError
            | Self::BackendError
            | Self::Forbidden => None,
        }
    }

    /// What it counts as.
    #[must_use]
    pub(crate) const fn counted(self) -> SessionEnd {
        match self {
            Self::Closed => SessionEnd::Closed,
            Self::ClientClosed => SessionEnd::ClientClosed,
            Self::BackendClosed => SessionEnd::BackendClosed,
            Self::ClientError => SessionEnd::ClientError,
            Self::BackendError => SessionEnd::BackendError,
            Self::Idle => SessionEnd::Idle,
            Self::Forbidden => SessionEnd::ForbiddenCommand,
            Self::Terminated(reason) => reason.counted(),
        }
    }
}

/// How a relayed session went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayOutcome {
    /// Why it ended.
    pub cause: EndReason,
    /// Bytes from the client to the backend.
    pub bytes_in: u64,
    /// Bytes from the backend to the client.
    pub bytes_out: u64,
}

/// One side of a relay: its stream, and what goes to it before anything is relayed.
#[derive(Debug)]
pub struct RelaySide<T = TcpStream> {
    /// The stream.
    pub stream: Stream<T>,
    /// Bytes that go to this stream first: usher's own, and what was read from the *other* side before the
    /// relay began.
    pub first: Vec<u8>,
    /// How many of these are usher's own, which are not counted.
    pub own: usize,
    /// Counts what is sent to this stream.
    pub sent: IntCounter,
}

/// Both directions of a session, over sockets `T`.
///
/// [`Relay::run`] borrows it: a future that takes it by value would store it twice for the session's lifetime.
#[derive(Debug)]
pub struct Relay<T = TcpStream> {
    client: Stream<T>,
    backend: Stream<T>,
    up: Pipe,
    down: Pipe,
    /// Which side closed first, and when.
    closed_first: Option<(EndReason, Instant)>,
    idle: Duration,
    last_progress: Instant,
    /// The client has sent bytes since the backend last did.
    unanswered: bool,
    timer: Pin<Box<Sleep>>,
}

impl<T: Transport> Relay<T> {
    /// A session whose both sides are logged in. It ends after `idle` without a byte.
    #[must_use]
    pub fn new(client: RelaySide<T>, backend: RelaySide<T>, idle: Duration) -> Self {
        let now = Instant::now();
        Self {
            up: Pipe::new(backend.first, backend.own, backend.sent),
            down: Pipe::new(client.first, client.own, client.sent),
            client: client.stream,
            backend: backend.stream,
            closed_first: None,
            idle,
            last_progress: now,
            unanswered: false,
            timer: Box::pin(sleep_until(now + idle)),
        }
    }

    /// The same, with a client command that ends it.
    #[must_use]
    pub fn watching(mut self, watch: Option<CommandWatch>) -> Self {
        self.up.watch = watch.map(Box::new);
        let first = std::mem::take(&mut self.up.unsent);
        if !self.up.is_forbidden(&first) {
            self.up.unsent = first;
        }
        self
    }

    /// Relays until both directions are closed, one side breaks, nothing moves for the idle limit, or `stop` is
    /// ready. The latter waits for a pause, three seconds at most, in which the closing line can follow a complete
    /// line of the backend.
    pub async fn run(
        &mut self,
        closing_line: &ClosingLine,
        stop: &mut (impl Future<Output = TerminationReason> + Unpin),
    ) -> RelayOutcome {
        let ended = poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(cause) => Poll::Ready(cause),
            Poll::Pending => Pin::new(&mut *stop).poll(cx).map(EndReason::Terminated),
        });
        let mut cause = ended.await;
        if let EndReason::Terminated(_) = cause {
            // It may end by itself meanwhile.
            cause = self.pause().await.unwrap_or(cause);
        }
        let ended = RelayOutcome { cause, bytes_in: self.up.moved, bytes_out: self.down.moved };
        let line = match (cause.notice(), closing_line) {
            (Some(_), ClosingLine::Reply { .. }) if self.unanswered => None,
            (Some(notice), ClosingLine::Line { prefix, suffix } | ClosingLine::Reply { prefix, suffix })
                if self.can_insert_line() =>
            {
                Some([prefix, notice.text(), suffix].concat().into_bytes())
            }
            // Only behind a complete line, with nothing in transit.
            _ if cause == EndReason::Forbidden && self.down.tail == *b"\r\n" && self.down.is_clear() => {
                self.up.watch.as_ref().map(|watch| watch.reply.to_vec())
            }
            _ => None,
        };
        if matches!(cause, EndReason::Idle | EndReason::Forbidden | EndReason::Terminated(_)) {
            // So that a TLS peer sees a close and not a truncation.
            let farewell = async {
                if let Some(line) = line {
                    self.client.write_all(&line).await?;
                }
                tokio::join!(self.client.shutdown(), self.backend.shutdown()).0
            };
            // Boxed, so that the session's future does not reserve memory for it.
            let _ = Box::pin(timeout(CLOSE_TIMEOUT, farewell)).await;
        }
        ended
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        let (sent, moved) = (self.up.moved, self.up.moved + self.down.moved);
        let up = self.up.poll(cx, &mut self.client, &mut self.backend);
        if let Poll::Ready(Err(broken)) = up {
            // A client that closes before it has read the end of TLS resets the connection: the end of a logout, too.
            if self.down.closed && matches!(broken, PipeError::Source) {
                return Poll::Ready(self.both_closed());
            }
            return Poll::Ready(broken.cause(EndReason::ClientError, EndReason::BackendError));
        }
        let down = self.down.poll(cx, &mut self.backend, &mut self.client);
        if let Poll::Ready(Err(broken)) = down {
            return Poll::Ready(broken.cause(EndReason::BackendError, EndReason::ClientError));
        }
        if self.closed_first.is_none() {
            // Counted from when the end was passed on, so that the last bytes have as long as all others.
            let first = match (self.up.closed, self.down.closed) {
                (true, _) => Some(EndReason::ClientClosed),
                (false, true) => Some(EndReason::BackendClosed),
                (false, false) => None,
            };
            if let Some(first) = first {
                self.last_progress = Instant::now();
                self.closed_first = Some((first, self.last_progress));
                self.timer.as_mut().reset(self.last_progress + HALF_CLOSED_IDLE.min(self.idle));
            }
        }
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(self.both_closed());
        }
        if self.up.moved + self.down.moved != moved {
            self.last_progress = Instant::now();
            self.unanswered = self.down.moved + sent == moved;
        }
        self.poll_idle(cx)
    }

    /// The cause once both sides have closed.
    fn both_closed(&self) -> EndReason {
        match self.closed_first {
            Some((first, at)) if at.elapsed() > HALF_CLOSED_IDLE => first,
            Some(_) | None => EndReason::Closed,
        }
    }

    /// Relays until no byte has moved for [`PAUSE`], or for [`PAUSE_TIMEOUT`] at most; returns the reason if
    /// the session ended by itself.
    async fn pause(&mut self) -> Option<EndReason> {
        let latest = Instant::now() + PAUSE_TIMEOUT;
        let mut timer = Box::pin(sleep_until(latest));
        poll_fn(|cx| {
            if let Poll::Ready(cause) = self.poll(cx) {
                return Poll::Ready(Some(cause));
            }
            loop {
                let due = latest.min(self.last_progress + PAUSE);
                if due <= Instant::now() {
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(due);
                ready!(timer.as_mut().poll(cx));
            }
        })
        .await
    }

    /// Whether usher can insert a line to the client: no byte moves, nothing is in transit, and the backend's
    /// last bytes ended a line.
    fn can_insert_line(&self) -> bool {
        self.last_progress.elapsed() >= PAUSE
            && self.down.tail == *b"\r\n"
            && self.up.is_clear()
            && self.down.is_clear()
    }

    /// The timer is not reset for every byte: when it fires, it checks when the last one was.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        let stalled = self.up.is_stalled() || self.down.is_stalled();
        if stalled && self.timer.deadline() > self.last_progress + STALL_PROBE {
            self.timer.as_mut().reset(self.last_progress + STALL_PROBE);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let limit = if self.closed_first.is_some() { HALF_CLOSED_IDLE.min(self.idle) } else { self.idle };
            let deadline = self.last_progress + limit;
            let now = Instant::now();
            if deadline <= now {
                return Poll::Ready(self.closed_first.map_or(EndReason::Idle, |(first, _)| first));
            }
            let next = match self.last_progress + STALL_PROBE {
                _ if !stalled => deadline,
                due if due > now => due,
                _ => match self.broken_side() {
                    Some(cause) => return Poll::Ready(cause),
                    None => now + STALL_PROBE,
                },
            };
            self.timer.as_mut().reset(next.min(deadline));
        }
    }

    /// Whether a side that is not read, because the other is blocked, has been reset.
    fn broken_side(&self) -> Option<EndReason> {
        if self.up.is_stalled() && self.client.is_broken() {
            Some(EndReason::ClientError)
        } else if self.down.is_stalled() && self.backend.is_broken() {
            Some(EndReason::BackendError)
        } else {
            None
        }
    }
}

impl PipeError {
    fn cause(&self, source: EndReason, target: EndReason) -> EndReason {
        match self {
            Self::Source => source,
            Self::Target => target,
            Self::Forbidden => EndReason::Forbidden,
        }
    }
}

#[cfg(test)]
mod tests;
