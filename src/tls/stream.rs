//! A connection to a client or a backend, from its first byte to its last: in the clear, or under TLS
//! from either side.
//!
//! The handshake, the dialogue before the login and the relay behind it all drive the same rustls connection,
//! and this is the only file that does. There are no buffers of its own: one system call fills a buffer of this
//! thread, rustls decrypts what came, and each piece is passed to the caller before the next is decrypted. So
//! an idle connection holds no more than rustls does, a busy one at most a partial record and what the peer has
//! not accepted yet.
//!
//! Writes are sent with the next flush, or when a read waits for the peer: tickets and greeting, the last bytes
//! and close_notify are one packet each. Sets no deadline and no limit: callers do. RFC 8446 sections 4.6
//! (tickets and key updates may come at any time) and 6.1 (closure: a shutdown sends close_notify, then FIN).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, BufRead as _, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use rustls::{CommonState, Connection, HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::TcpStream;
use zeroize::Zeroize;

use super::clients::ClientChain;
use crate::base::secret::SecretBuf;
use crate::base::sys::allocator;
use crate::base::sys::sockets::{self, Transport};
use crate::telemetry::log::Escaped;

/// The most that one system call reads before the login: a login and what is pipelined behind it fit in.
const PRELOGIN_READ: usize = 4096;
/// The most that one reads for the relay: system calls dominate below, caches above.
const RELAY_READ: usize = 64 * 1024;

thread_local! {
    static WIRE: RefCell<Vec<u8>> = RefCell::new(vec![0; RELAY_READ]);
}

/// A connection over a socket `T`.
#[derive(Debug)]
pub struct Stream<T = TcpStream> {
    socket: T,
    /// `None` in the clear: before STARTTLS, or where the config allows it.
    tls: Option<Box<Connection>>,
    /// The peer has ended its side (close_notify or FIN), and everything before was read.
    ended: bool,
    /// rustls may hold bytes of an earlier write.
    unsent: bool,
    /// usher has ended its side.
    closing: bool,
}

/// The negotiated parameters, by their standard names, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiatedTls {
    /// Such as `TLSv1_3`.
    pub version: &'static str,
    /// The cipher suite.
    pub suite: &'static str,
    /// The key exchange group; `None` where a TLS 1.2 session was resumed.
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

    /// Waits until the kernel has sent most of what it was given. A successful write does not imply that: one
    /// packet, which may be of 64 KiB, is filled up whatever waits already.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn sent(&self) -> io::Result<()> {
        let sent = || if sockets::is_writable(&self.socket)? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) };
        self.socket.async_io(Interest::WRITABLE, sent).await
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
    #[cfg(test)]
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether TLS is established and resumed an earlier session.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.state().is_some_and(is_resumed)
    }

    /// The negotiated parameters; `None` in the clear.
    #[must_use]
    pub fn agreed(&self) -> Option<NegotiatedTls> {
        let state = self.state()?;
        Some(NegotiatedTls {
            version: state.protocol_version()?.as_str()?,
            suite: state.negotiated_cipher_suite()?.suite().as_str()?,
            group: state.negotiated_key_exchange_group().and_then(|group| group.name().as_str()),
            resumed: is_resumed(state),
        })
    }

    /// The certificates that a server presented, its own first; none in the clear or from a client.
    #[must_use]
    pub fn server_certificates(&self) -> &[CertificateDer<'static>] {
        match self.tls.as_deref() {
            Some(Connection::Client(connection)) => connection.peer_certificates().unwrap_or_default(),
            Some(Connection::Server(_)) | None => &[],
        }
    }

    /// The certificates that a client presented, in this handshake or in that of the session it resumed; none in the
    /// clear or from a server.
    #[must_use]
    pub(crate) fn client_chain(&self) -> ClientChain {
        match self.tls.as_deref() {
            Some(Connection::Server(connection)) => {
                ClientChain(connection.peer_certificates().unwrap_or_default().to_vec())
            }
            Some(Connection::Client(_)) | None => ClientChain(Vec::new()),
        }
    }

    /// What was agreed, for an administrator: version, suite, group, resumption, the client's SNI and the ALPN id.
    #[must_use]
    pub(crate) fn describe(&self) -> String {
        let Some(NegotiatedTls { version, suite, group, resumed }) = self.agreed() else {
            return "no TLS".to_owned();
        };
        let group = group.map_or_else(String::new, |group| format!(", {group}"));
        let resumed = if resumed { ", session resumed" } else { "" };
        let alpn = self.state().and_then(|state| state.alpn_protocol()).unwrap_or(b"none");
        let alpn = Escaped(alpn);
        let sni = match self.tls.as_deref() {
            Some(Connection::Server(_)) => {
                format!("; SNI {}", Escaped(self.server_name().unwrap_or("none").as_bytes()))
            }
            Some(Connection::Client(_)) | None => String::new(),
        };
        format!("TLS: {version}, {suite}{group}{resumed}{sni}; ALPN {alpn}")
    }

    /// The name that the client asked for (SNI), as it wrote it.
    pub(super) fn server_name(&self) -> Option<&str> {
        match self.tls.as_deref() {
            Some(Connection::Server(connection)) => connection.server_name(),
            Some(Connection::Client(_)) | None => None,
        }
    }

    /// Whether the last read reached the peer's end.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    fn state(&self) -> Option<&CommonState> {
        self.tls.as_deref().map(|connection| &**connection)
    }
}

impl<T: Transport> Stream<T> {
    /// Whether the connection is over before usher ended its side, whatever is still to be read from it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        !self.closing && self.socket.is_broken()
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
            let read = match tls.read_tls(&mut Socket { socket: &mut self.socket, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                read => read.and_then(|_| process(tls)),
            };
            if read.is_err() {
                // The alert, as far as the socket takes it.
                let _ = self.poll_send(cx);
            }
            read?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads some bytes behind what `input` holds; returns how many, 0 at the end. The bytes touch
    /// no memory but the connection's and `input`, except a buffer of this thread that is wiped.
    ///
    /// # Errors
    /// Those of the connection. A peer that ends without close_notify is at its end.
    pub async fn fill(&mut self, input: &mut SecretBuf) -> io::Result<usize> {
        let before = input.len();
        let filled = poll_fn(|cx| {
            let received = self.poll_receive(cx, PRELOGIN_READ, &mut |_, bytes| input.extend(bytes));
            if self.tls.is_none() {
                WIRE.with_borrow_mut(|wire| wire.iter_mut().take(PRELOGIN_READ).for_each(Zeroize::zeroize));
            }
            received
        });
        filled.await?;
        let read = input.len() - before;
        if read > PRELOGIN_READ / 2 {
            self.give_back();
        }
        Ok(read)
    }

    /// Lets rustls give back the buffer of a long record, which may have held a token: too large to be wiped otherwise.
    fn give_back(&mut self) {
        if let Some(tls) = &mut self.tls {
            // It shrinks the buffer before each read, if nothing is left in it.
            let _ = allocator::wiping_all(|| tls.read_tls(&mut Nothing));
        }
    }

    /// Reads for the relay: one system call, of which `take` borrows each piece in place. Ready after some
    /// bytes, or at the peer's end, see [`Self::has_ended`].
    ///
    /// # Errors
    /// Those of the connection. A peer that ends without close_notify is at its end.
    pub fn poll_pieces(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(&mut Context<'_>, &[u8]),
    ) -> Poll<io::Result<()>> {
        self.poll_receive(cx, RELAY_READ, take)
    }

    /// Sends all of `out` and wipes it.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn send(&mut self, out: &mut SecretBuf) -> io::Result<()> {
        if !out.is_empty() {
            self.write_all(out.as_slice()).await?;
            // Now, and not after the flush, which waits for a peer that does not read.
            out.clear();
            self.flush().await?;
        }
        Ok(())
    }

    /// Takes `bytes` behind what was written before, to leave with the next flush: all of them under TLS,
    /// what the socket takes in the clear. For pieces of one read; what bounds them is the caller's.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn poll_append(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(tls) = &mut self.tls else {
            return Pin::new(&mut self.socket).poll_write(cx, bytes);
        };
        self.unsent = true;
        Poll::Ready(tls.writer().write(bytes))
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

    /// One read of the socket, or as many as a record needs.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        take: &mut impl FnMut(&mut Context<'_>, &[u8]),
    ) -> Poll<io::Result<()>> {
        let received = self.poll_wire(cx, most, take);
        // The peer may be waiting for unflushed bytes, and rustls may have an alert to send. They are sent as
        // far as the socket accepts them; the next poll sends the rest.
        let _ = self.poll_send(cx);
        received
    }

    /// Until there was some plaintext, or the end.
    fn poll_wire(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        take: &mut impl FnMut(&mut Context<'_>, &[u8]),
    ) -> Poll<io::Result<()>> {
        // What came with the handshake.
        let mut taken = !self.ended && self.with_plaintext(cx, take)?;
        while !taken && !self.ended {
            taken = ready!(WIRE.with_borrow_mut(|wire| {
                let mut read = ReadBuf::new(wire.get_mut(..most).unwrap_or_default());
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
                Poll::Ready(self.decrypt(read.filled(), cx, take))
            }))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Passes on what one read of the socket brought; an empty read is an end: many clients close TCP without a
    /// close_notify, which for mail is a regular end. Returns whether there was any plaintext.
    fn decrypt(
        &mut self,
        mut came: &[u8],
        cx: &mut Context<'_>,
        take: &mut impl FnMut(&mut Context<'_>, &[u8]),
    ) -> io::Result<bool> {
        self.ended = came.is_empty();
        let mut taken = false;
        while !came.is_empty() && !self.ended {
            let Some(tls) = &mut self.tls else {
                take(cx, came);
                return Ok(true);
            };
            // 0 behind a close_notify: what follows it is nothing (RFC 8446 section 6.1).
            self.ended = tls.read_tls(&mut came)? == 0;
            process(tls)?;
            // Each time: rustls reads no further while it holds a record's plaintext.
            taken |= self.with_plaintext(cx, take)?;
        }
        Ok(taken)
    }

    /// Passes on the plaintext that rustls holds, and checks for the peer's end after it.
    fn with_plaintext(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(&mut Context<'_>, &[u8]),
    ) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(false) };
        let mut reader = tls.reader();
        let mut taken = false;
        loop {
            match reader.fill_buf() {
                Ok([]) => {
                    self.ended = true;
                    return Ok(taken);
                }
                Ok(piece) => {
                    take(cx, piece);
                    let length = piece.len();
                    reader.consume(length);
                    taken = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                Err(error) => return Err(error),
            }
        }
    }
}

fn process(tls: &mut Connection) -> io::Result<()> {
    match tls.process_new_packets() {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    /// Takes all of `bytes` when nothing of an earlier write is left, and nothing otherwise.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        if stream.unsent {
            ready!(stream.poll_send(cx))?;
        }
        stream.poll_append(cx, bytes)
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

/// A source that has nothing yet.
struct Nothing;

impl Read for Nothing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
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
