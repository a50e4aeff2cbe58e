//! A connection to a client or a backend: in the clear, or under TLS from either side.
//!
//! The session and the relay read and write it without caring which it is. It sets no deadline and
//! no limit: its users do. A shutdown sends close_notify, then FIN (RFC 8446 section 6.1).

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use rustls::{CommonState, HandshakeKind};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};
use zeroize::Zeroize as _;

use crate::secret::SecretBuf;

/// One read before login: a login and what is pipelined behind it fit in.
const READ_SIZE: usize = 4096;

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// In the clear: before STARTTLS, or where the config allows it.
    Plain(TcpStream),
    /// TLS, answered by usher: a client.
    Server(Box<server::TlsStream<TcpStream>>),
    /// TLS, begun by usher: a backend.
    Client(Box<client::TlsStream<TcpStream>>),
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

impl Stream {
    /// The TCP connection underneath.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Server(stream) => stream.get_ref().0,
            Self::Client(stream) => stream.get_ref().0,
        }
    }

    /// The TCP connection, for a handshake after STARTTLS; `None` if TLS is established already.
    #[must_use]
    pub fn into_plain(self) -> Option<TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Server(_) | Self::Client(_) => None,
        }
    }

    /// Whether TLS is established.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.state().is_some()
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
        match self {
            Self::Client(stream) => stream.get_ref().1.peer_certificates().unwrap_or_default(),
            Self::Plain(_) | Self::Server(_) => &[],
        }
    }

    /// The name that the client asked for (SNI), as it wrote it.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        match self {
            Self::Server(stream) => stream.get_ref().1.server_name(),
            Self::Plain(_) | Self::Client(_) => None,
        }
    }

    /// Reads some bytes behind what `input` holds; returns how many, 0 at the end. The bytes touch
    /// no memory but the connection's and `input`, except a place on the stack that is wiped.
    ///
    /// # Errors
    /// Those of the connection. A peer that ends without close_notify is at its end.
    pub async fn fill(&mut self, input: &mut SecretBuf) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut scratch = [0; READ_SIZE];
            let mut read = ReadBuf::new(&mut scratch);
            let outcome = match ready!(Pin::new(&mut *self).poll_read(cx, &mut read)) {
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
                Ok(()) | Err(_) => Ok(read.filled().len()),
            };
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

    fn state(&self) -> Option<&CommonState> {
        match self {
            Self::Plain(_) => None,
            Self::Server(stream) => Some(stream.get_ref().1),
            Self::Client(stream) => Some(stream.get_ref().1),
        }
    }
}

fn is_resumed(state: &CommonState) -> bool {
    state.handshake_kind() == Some(HandshakeKind::Resumed)
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(tcp)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Server(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Client(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Server(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Client(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Server(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Client(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Server(stream) => stream.is_write_vectored(),
            Self::Client(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Server(stream) => Pin::new(stream).poll_flush(cx),
            Self::Client(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Server(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Client(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
