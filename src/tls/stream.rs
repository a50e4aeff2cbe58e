//! A connection to a client or a backend, from its first byte to its last: in the clear, or under TLS
//! from either side.
//!
//! The handshake, the dialogue before the login and the relay behind it all drive the same rustls
//! connection, and this is the only file that does. Nothing is copied into buffers of its own: before the
//! login rustls reads the socket, 4 KiB at a time; the relay, which brings room for it, has one system
//! call fill a buffer of this thread, and what came out is handed on before the next read. So an idle
//! connection holds no more than rustls does, a busy one at most a partial record and what the peer has
//! not taken yet.
//!
//! What is written leaves with the next flush, or when the peer is waited for: tickets and greeting, the
//! last bytes and the goodbye are one packet each. Sets no deadline and no limit: its
//! users do. RFC 8446 sections 4.6 (tickets and key updates may come at any time) and 6.1 (closure: a
//! shutdown sends close_notify, then FIN).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use rustls::{CommonState, Connection, HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use zeroize::Zeroize as _;

use crate::secret::SecretBuf;

/// One read before login: a login and what is pipelined behind it fit in.
const SIP: usize = 4096;
/// One read of a socket for the relay: system calls dominate below, caches above.
const WIRE_SIZE: usize = 64 * 1024;
/// The most plaintext that a record which began in an earlier read adds to what this one holds
/// (RFC 8446 section 5.1).
const RECORD_SIZE: usize = 16 * 1024;
/// What the relay should have room for, so that one system call can fill it.
pub const READ_SIZE: usize = WIRE_SIZE + RECORD_SIZE;

thread_local! {
    static WIRE: RefCell<Vec<u8>> = RefCell::new(vec![0; WIRE_SIZE]);
}

/// A connection over a socket `T`.
#[derive(Debug)]
pub struct Stream<T = TcpStream> {
    socket: T,
    /// `None` in the clear: before STARTTLS, or where the config allows it.
    tls: Option<Box<Connection>>,
    /// The peer said its end, or its socket did, and all that came before was read.
    ended: bool,
    /// Bytes of an earlier write may be with rustls and not yet with the socket.
    unsent: bool,
    /// The peer was told usher's end.
    closing: bool,
}

/// What a handshake agreed on, in the standard's names, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Such as `TLSv1_3`.
    pub version: &'static str,
    /// The cipher suite.
    pub suite: &'static str,
    /// The key exchange group; none where a TLS 1.2 session was resumed.
    pub group: Option<&'static str>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

impl<T> From<T> for Stream<T> {
    /// In the clear.
    fn from(socket: T) -> Self {
        Self { socket, tls: None, ended: false, unsent: false, closing: false }
    }
}

impl Stream {
    /// The TCP connection underneath.
    #[must_use]
    pub const fn tcp(&self) -> &TcpStream {
        &self.socket
    }
}

impl<T> Stream<T> {
    /// Under TLS, at any point of it.
    #[must_use]
    pub fn under_tls(socket: T, mut connection: Connection) -> Self {
        // What is written here is an answer before the login and one read of the other side behind it,
        // and nothing more is read there until it is sent: that is the limit, and it must not cut a read
        // into two writes.
        connection.set_buffer_limit(None);
        Self { socket, tls: Some(Box::new(connection)), ended: false, unsent: false, closing: false }
    }

    /// The socket, for a handshake after STARTTLS; `None` if TLS has begun already.
    #[must_use]
    pub fn into_plain(self) -> Option<T> {
        self.tls.is_none().then_some(self.socket)
    }

    /// Whether it is under TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether TLS is established and resumed an earlier session.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.state().is_some_and(is_resumed)
    }

    /// What the handshake agreed on; `None` in the clear.
    #[must_use]
    pub fn agreed(&self) -> Option<Agreed> {
        let state = self.state()?;
        Some(Agreed {
            version: state.protocol_version()?.as_str()?,
            suite: state.negotiated_cipher_suite()?.suite().as_str()?,
            group: state.negotiated_key_exchange_group().and_then(|group| group.name().as_str()),
            resumed: is_resumed(state),
        })
    }

    /// The certificates that a server showed, its own first; none in the clear or from a client.
    #[must_use]
    pub fn server_certificates(&self) -> &[CertificateDer<'static>] {
        match self.tls.as_deref() {
            Some(Connection::Client(connection)) => connection.peer_certificates().unwrap_or_default(),
            Some(Connection::Server(_)) | None => &[],
        }
    }

    /// The name that the client asked for (SNI), as it wrote it.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        match self.tls.as_deref() {
            Some(Connection::Server(connection)) => connection.server_name(),
            Some(Connection::Client(_)) | None => None,
        }
    }

    /// Whether the peer's end was met by the last read with room for all that it brought.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    fn state(&self) -> Option<&CommonState> {
        self.tls.as_deref().map(|connection| &**connection)
    }
}

fn is_resumed(state: &CommonState) -> bool {
    state.handshake_kind() == Some(HandshakeKind::Resumed)
}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream<T> {
    /// Does the handshake. The tickets of TLS 1.3, for which no client waits, leave with the greeting.
    ///
    /// # Errors
    /// What went wrong, for [`describe`](super::describe); the peer was sent an alert.
    pub async fn handshake(mut self) -> io::Result<Self> {
        poll_fn(|cx| self.poll_handshake(cx)).await?;
        let tickets_only = matches!(self.tls.as_deref(), Some(Connection::Server(connection))
            if connection.protocol_version() == Some(ProtocolVersion::TLSv1_3));
        if !tickets_only {
            self.flush().await?;
        }
        Ok(self)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.state().is_some_and(CommonState::is_handshaking) {
            ready!(self.poll_send(cx))?;
            let Some(tls) = &mut self.tls else { break };
            let outcome = ready!(poll_sip(&mut self.socket, tls, cx));
            if outcome.is_err() {
                // The alert, as far as the socket takes it.
                let _ = self.poll_send(cx);
            }
            if outcome? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads some bytes behind what `input` holds; returns how many, 0 at the end. The bytes touch
    /// no memory but the connection's and `input`, except a place on the stack that is wiped.
    ///
    /// # Errors
    /// Those of the connection. A peer that ends without close_notify is at its end.
    pub async fn fill(&mut self, input: &mut SecretBuf) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut scratch = [0; SIP];
            let mut read = ReadBuf::new(&mut scratch);
            let outcome = ready!(Pin::new(&mut *self).poll_read(cx, &mut read)).map(|()| read.filled().len());
            input.extend(read.filled());
            read.filled_mut().zeroize();
            Poll::Ready(outcome)
        })
        .await
    }

    /// Sends all of `out` and wipes it.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn send(&mut self, out: &mut SecretBuf) -> io::Result<()> {
        if !out.is_empty() {
            self.write_all(out.as_slice()).await?;
            out.clear();
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends what rustls has for the peer; ready when all of it is with the socket.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = &mut self.tls else {
            return Poll::Ready(Ok(()));
        };
        while tls.wants_write() {
            match tls.write_tls(&mut Socket { socket: &mut self.socket, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.unsent = false;
        Poll::Ready(Ok(()))
    }

    /// One read of the socket, or as many as a record needs, decrypted into `buf`.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls, ended, .. } = self;
        let Some(tls) = tls else {
            return Pin::new(socket).poll_read(cx, buf);
        };
        let before = buf.filled().len();
        // What came with the handshake or did not fit in the last time.
        if !*ended {
            *ended = drain(tls, buf)?;
        }
        while buf.filled().len() == before && buf.remaining() > 0 && !*ended {
            if buf.remaining() > RECORD_SIZE {
                *ended = ready!(poll_gulp(socket, tls, cx, buf))?;
            } else {
                // Many clients end TCP without a close_notify; for mail that is an end like another.
                *ended = ready!(poll_sip(socket, tls, cx))? == 0 || drain(tls, buf)?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Lets rustls read the socket: how many bytes, 0 at an end. To be called when its plaintext was taken.
fn poll_sip<T: AsyncRead + Unpin>(
    socket: &mut T,
    tls: &mut Connection,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    match tls.read_tls(&mut Socket { socket, cx }) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        Ok(read @ 1..) => Poll::Ready(process(tls).map(|()| read)),
        outcome => Poll::Ready(outcome),
    }
}

/// Reads the socket into the buffer of this thread, as much as surely has room in `buf` once it is
/// decrypted (rustls keeps the rest of a record), and takes the plaintext; whether the peer is at its end.
fn poll_gulp<T: AsyncRead + Unpin>(
    socket: &mut T,
    tls: &mut Connection,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<bool>> {
    WIRE.with_borrow_mut(|wire| {
        let room = buf.remaining().saturating_sub(RECORD_SIZE).min(WIRE_SIZE);
        let mut read = ReadBuf::new(wire.get_mut(..room).unwrap_or_default());
        ready!(Pin::new(socket).poll_read(cx, &mut read))?;
        let mut came = read.filled();
        let mut ended = came.is_empty();
        while !came.is_empty() && !ended {
            // 0 behind a close_notify: what follows it is nothing (RFC 8446 section 6.1).
            ended = tls.read_tls(&mut came)? == 0;
            process(tls)?;
            // Each time: rustls takes nothing more while it holds a record's plaintext.
            ended |= drain(tls, buf)?;
        }
        Poll::Ready(Ok(ended))
    })
}

fn process(tls: &mut Connection) -> io::Result<()> {
    match tls.process_new_packets() {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// Takes the plaintext that rustls holds, as far as there is room; whether the peer's end is behind it.
fn drain(tls: &mut Connection, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
    while buf.remaining() > 0 {
        match tls.reader().read(buf.initialize_unfilled()) {
            Ok(0) => return Ok(true),
            Ok(taken) => buf.advance(taken),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let read = stream.poll_receive(cx, buf);
        // The peer may be waiting for what was not flushed yet, and rustls may have an alert for what it
        // read. It is sent as far as the socket takes it; the next turn of the session sends the rest.
        let _ = stream.poll_send(cx);
        read
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    /// Takes all of `bytes` when nothing of an earlier write is left, and nothing otherwise.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        if stream.unsent {
            ready!(stream.poll_send(cx))?;
        }
        let Some(tls) = &mut stream.tls else {
            return Pin::new(&mut stream.socket).poll_write(cx, bytes);
        };
        stream.unsent = true;
        Poll::Ready(tls.writer().write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        ready!(stream.poll_send(cx))?;
        Pin::new(&mut stream.socket).poll_flush(cx)
    }

    /// close_notify, then FIN.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if !std::mem::replace(&mut stream.closing, true)
            && let Some(tls) = &mut stream.tls
        {
            tls.send_close_notify();
        }
        ready!(stream.poll_send(cx))?;
        Pin::new(&mut stream.socket).poll_shutdown(cx)
    }
}

/// A socket as rustls reads and writes it.
struct Socket<'a, 'b, T> {
    socket: &'a mut T,
    cx: &'a mut Context<'b>,
}

impl<T: AsyncRead + Unpin> Read for Socket<'_, '_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = ReadBuf::new(buffer);
        now(Pin::new(&mut *self.socket).poll_read(self.cx, &mut read))?;
        Ok(read.filled().len())
    }
}

impl<T: AsyncWrite + Unpin> Write for Socket<'_, '_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        now(Pin::new(&mut *self.socket).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, records: &[IoSlice<'_>]) -> io::Result<usize> {
        now(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, records))
    }

    fn flush(&mut self) -> io::Result<()> {
        now(Pin::new(&mut *self.socket).poll_flush(self.cx))
    }
}

fn now<V>(poll: Poll<io::Result<V>>) -> io::Result<V> {
    match poll {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
