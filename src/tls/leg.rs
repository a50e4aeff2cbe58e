//! One leg of a relayed session: an established TLS connection, driven without buffers of its own.
//!
//! After the login the rustls connection is taken out of tokio-rustls, which reads a socket 4 KiB at
//! a time. Here one system call fills a buffer of this thread, rustls is fed from it, and what came
//! out is handed on before the next read: an idle leg holds no more than rustls does, a busy one at
//! most a partial record and what the peer has not taken yet. This is the only file in which the
//! relay meets rustls. Sets no deadline: the relay does. RFC 8446 sections 4.6 (tickets and key
//! updates may come at any time) and 6.1 (closure).

use std::cell::RefCell;
use std::io::{self, IoSlice, Read as _, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::stream::Stream;

/// One read of a socket: system calls dominate below, caches above.
const WIRE_SIZE: usize = 64 * 1024;
/// The most plaintext that a record which began in an earlier read adds to what this one holds
/// (RFC 8446 section 5.1).
const RECORD_SIZE: usize = 16 * 1024;
/// What a reader should have room for, so that one system call can fill it.
pub const READ_SIZE: usize = WIRE_SIZE + RECORD_SIZE;

thread_local! {
    static WIRE: RefCell<Vec<u8>> = RefCell::new(vec![0; WIRE_SIZE]);
}

/// A connection after its login, over a socket `T`.
#[derive(Debug)]
pub struct Leg<T = TcpStream> {
    socket: T,
    /// `None` where the config allows a backend to be spoken to in the clear.
    tls: Option<Box<Connection>>,
    /// The peer said its end, or its socket did.
    ended: bool,
    /// The peer was told usher's.
    closing: bool,
}

impl From<Stream> for Leg {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Plain(tcp) => Self { socket: tcp, tls: None, ended: false, closing: false },
            Stream::Server(stream) => {
                let (tcp, connection) = stream.into_inner();
                Self::new(tcp, Connection::Server(connection))
            }
            Stream::Client(stream) => {
                let (tcp, connection) = stream.into_inner();
                Self::new(tcp, Connection::Client(connection))
            }
        }
    }
}

impl<T> Leg<T> {
    /// An established connection over its socket.
    pub fn new(socket: T, mut connection: Connection) -> Self {
        // What is written here is at most one read of the other leg, and nothing more is read there
        // until it is sent: that is the limit, and it must not cut a read into two writes.
        connection.set_buffer_limit(None);
        Self { socket, tls: Some(Box::new(connection)), ended: false, closing: false }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Leg<T> {
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
        drain(tls, buf)?;
        WIRE.with_borrow_mut(|wire| {
            while buf.filled().len() == before && !*ended {
                // As much as surely has room once it is decrypted; rustls keeps the rest of a record.
                let room = buf.remaining().saturating_sub(RECORD_SIZE).clamp(1, WIRE_SIZE);
                let mut read = ReadBuf::new(wire.get_mut(..room).unwrap_or_default());
                match ready!(Pin::new(&mut *socket).poll_read(cx, &mut read)) {
                    // Many clients end TCP without a close_notify; for mail that is an end like another.
                    Ok(()) if read.filled().is_empty() => *ended = true,
                    Ok(()) => *ended = feed(tls, read.filled(), buf)?,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

/// Gives rustls what a socket brought and takes the plaintext; whether the peer said its end.
fn feed(tls: &mut Connection, mut wire: &[u8], buf: &mut ReadBuf<'_>) -> io::Result<bool> {
    while !wire.is_empty() {
        // 0 behind a close_notify: what follows it is nothing (RFC 8446 section 6.1).
        if tls.read_tls(&mut wire)? == 0 {
            return Ok(true);
        }
        let state = tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // Each time: rustls takes nothing more while it holds a record's plaintext.
        drain(tls, buf)?;
        if state.peer_has_closed() && state.plaintext_bytes_to_read() == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes the plaintext that rustls holds, as far as there is room.
fn drain(tls: &mut Connection, buf: &mut ReadBuf<'_>) -> io::Result<()> {
    while buf.remaining() > 0 {
        match tls.reader().read(buf.initialize_unfilled()) {
            Ok(0) => break,
            Ok(taken) => buf.advance(taken),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Leg<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let leg = self.get_mut();
        let read = leg.poll_receive(cx, buf);
        // rustls may have something to say to what it read: the answer to a key update, an alert. It
        // is sent as far as the socket takes it; the next turn of the session sends the rest.
        let _ = leg.poll_send(cx);
        read
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Leg<T> {
    /// Takes all of `bytes` when nothing of an earlier write is left, and nothing otherwise.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let leg = self.get_mut();
        ready!(leg.poll_send(cx))?;
        let Some(tls) = &mut leg.tls else {
            return Pin::new(&mut leg.socket).poll_write(cx, bytes);
        };
        let taken = tls.writer().write(bytes)?;
        match leg.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let leg = self.get_mut();
        ready!(leg.poll_send(cx))?;
        Pin::new(&mut leg.socket).poll_flush(cx)
    }

    /// close_notify, then FIN.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let leg = self.get_mut();
        if !std::mem::replace(&mut leg.closing, true)
            && let Some(tls) = &mut leg.tls
        {
            tls.send_close_notify();
        }
        ready!(leg.poll_send(cx))?;
        Pin::new(&mut leg.socket).poll_shutdown(cx)
    }
}

/// A socket as rustls writes it.
struct Socket<'a, 'b, T> {
    socket: &'a mut T,
    cx: &'a mut Context<'b>,
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
