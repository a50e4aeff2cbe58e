//! One direction of a relay: what the source sends goes to the target in order, at once and in place where
//! possible. Nothing is read while the target has not accepted the earlier bytes.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::proto::watch::CommandWatch;
use crate::tls::stream::Stream;

/// Reads per direction before the other sessions of this thread have their turn.
const READS_PER_TURN: u32 = 2;
/// Pieces below this size are coalesced: copying costs less than a TLS record for each.
const SMALL: usize = 4096;

thread_local! {
    static COALESCED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Which side of a pipe broke.
pub(super) enum PipeError {
    Source,
    Target,
    /// The source sent the forbidden command.
    Forbidden,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Bytes that the target has not accepted yet; without an allocation when empty.
    pub(super) unsent: Vec<u8>,
    unsent_from: usize,
    /// Whether the target may hold unflushed bytes.
    unflushed: bool,
    /// The source has ended.
    ended: bool,
    /// The end was passed on to the target.
    pub(super) closed: bool,
    pub(super) moved: u64,
    /// The last two bytes that came. Initially the end of the login's line.
    pub(super) tail: [u8; 2],
    /// How many unsent bytes are usher's own, which are not counted.
    own: usize,
    sent: IntCounter,
    pub(super) watch: Option<Box<CommandWatch>>,
    /// The watched command was sent: nothing more is passed on.
    forbidden: bool,
}

impl Pipe {
    pub(super) fn new(first: Vec<u8>, own: usize, sent: IntCounter) -> Self {
        let mut pipe = Self {
            unsent: Vec::new(),
            unsent_from: 0,
            unflushed: false,
            ended: false,
            closed: false,
            moved: 0,
            tail: *b"\r\n",
            own,
            sent,
            watch: None,
            forbidden: false,
        };
        pipe.remember_tail(&first);
        pipe.unsent = first;
        pipe
    }

    /// Whether these bytes, and all that follow, must not be passed on.
    pub(super) fn is_forbidden(&mut self, bytes: &[u8]) -> bool {
        if let Some(watch) = &mut self.watch {
            self.forbidden = self.forbidden || watch.contains_verb(bytes);
        }
        self.forbidden
    }

    pub(super) fn remember_tail(&mut self, bytes: &[u8]) {
        match bytes {
            [] => {}
            [one] => self.tail = [self.tail[1], *one],
            [.., last, one] => self.tail = [*last, *one],
        }
    }

    /// Whether everything read was passed on and the source has not ended.
    pub(super) fn is_clear(&self) -> bool {
        !self.is_stalled() && !self.ended
    }

    /// Whether the target has not accepted everything.
    pub(super) fn is_stalled(&self) -> bool {
        !self.unsent.is_empty() || self.unflushed
    }

    /// Moves what can be moved. Ready when the source's end was passed on.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream<T>,
        target: &mut Stream<T>,
    ) -> Poll<Result<(), PipeError>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        if self.forbidden {
            return Poll::Ready(Err(PipeError::Forbidden));
        }
        for _ in 0..READS_PER_TURN {
            ready!(self.poll_deliver(cx, target)).map_err(|_| PipeError::Target)?;
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read(cx, source, target))?;
        }
        ready!(self.poll_deliver(cx, target)).map_err(|_| PipeError::Target)?;
        // More may be waiting: yield to other sessions first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits until the target has accepted all bytes, and the source's end if there was one, in the same
    /// packet.
    fn poll_deliver<T>(&mut self, cx: &mut Context<'_>, target: &mut Stream<T>) -> Poll<io::Result<()>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        ready!(self.poll_unsent(cx, target))?;
        if self.ended && !self.closed {
            let told = ready!(Pin::new(target).poll_shutdown(cx));
            // If the target is gone, an end counts as passed on; unflushed bytes before it are lost.
            if self.unflushed {
                told?;
            }
            self.closed = true;
        } else if self.unflushed {
            ready!(Pin::new(target).poll_flush(cx))?;
        }
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Sends what an earlier turn left over.
    fn poll_unsent<T>(&mut self, cx: &mut Context<'_>, target: &mut Stream<T>) -> Poll<io::Result<()>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        while let Some(rest) = self.unsent.get(self.unsent_from..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut *target).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent_from += written;
            self.count(written);
        }
        if self.unsent.capacity() > 0 {
            self.unsent = Vec::new();
            self.unsent_from = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// One read, passed to the target. Large pieces are passed in place; small ones, of which a read can bring
    /// thousands, are coalesced first into few records and writes.
    fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream<T>,
        target: &mut Stream<T>,
    ) -> Poll<Result<(), PipeError>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        COALESCED.with_borrow_mut(|gathered| {
            gathered.clear();
            let mut passed = Ok(());
            let mut pass = |cx: &mut Context<'_>, bytes: &[u8]| {
                if passed.is_ok() {
                    passed = self.pass(cx, target, bytes);
                }
            };
            let read = source.poll_pieces(cx, &mut |cx, piece| {
                if piece.len() < SMALL {
                    gathered.extend_from_slice(piece);
                } else {
                    pass(cx, gathered);
                    gathered.clear();
                    pass(cx, piece);
                }
            });
            ready!(read).map_err(|_| PipeError::Source)?;
            pass(cx, gathered);
            self.ended = source.has_ended();
            Poll::Ready(passed)
        })
    }

    /// Gives the target what it accepts and keeps the rest, so that the order is preserved.
    fn pass<T>(&mut self, cx: &mut Context<'_>, target: &mut Stream<T>, bytes: &[u8]) -> Result<(), PipeError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        if self.is_forbidden(bytes) {
            return Err(PipeError::Forbidden);
        }
        self.remember_tail(bytes);
        let mut taken = 0;
        if self.unsent.is_empty() && !bytes.is_empty() {
            match target.poll_append(cx, bytes) {
                Poll::Pending => {}
                Poll::Ready(Ok(some)) => taken = some,
                Poll::Ready(Err(_)) => return Err(PipeError::Target),
            }
        }
        self.count(taken);
        self.unsent.extend_from_slice(bytes.get(taken..).unwrap_or_default());
        Ok(())
    }

    fn count(&mut self, bytes: usize) {
        self.unflushed |= bytes > 0;
        let own = self.own.min(bytes);
        self.own -= own;
        let bytes = bytes - own;
        self.moved += bytes as u64;
        self.sent.inc_by(bytes as u64);
    }
}
