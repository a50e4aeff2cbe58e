//! How a directory server is reached: a socket, before TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use crate::base::sys::sockets;
use crate::config::LdapScheme;
use crate::directory::ConnectionFault;
use crate::directory::ldap::addresses::HostAddresses;
use crate::directory::ldap::error::ConnectionError;

/// How to connect to a server.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    /// ldap, ldaps or ldapi.
    pub(crate) scheme: LdapScheme,
    /// Host name, address without brackets, or socket path.
    pub(crate) host: String,
    /// Where that is.
    pub(crate) addresses: Arc<HostAddresses>,
    /// The name to verify and to send as SNI.
    pub(crate) server_name: String,
    /// StartTLS on ldap: mandatory, there is no fallback to cleartext.
    pub(crate) starttls: bool,
    /// Roots, client certificate, versions.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// How long connecting may take; shared by all addresses of the host.
    pub(crate) patience: Duration,
    /// The longest message, in bytes, after authentication of the server.
    pub(crate) max_message: usize,
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
                .map_err(|error| ConnectionFault::connecting(&error).into());
        }
        self.tcp().await.map(LdapSocket::Tcp)
    }

    /// Tries the host's addresses in order; each gets its share of the remaining time.
    async fn tcp(&self) -> Result<TcpStream, ConnectionError> {
        let until = Instant::now() + self.patience;
        // Where the name was resolved before, that leaves most of the time to the connection.
        let addresses = self.addresses.resolve(self.patience / 4).await?;
        let mut error = ConnectionError::Broken(ConnectionFault::NoAddress);
        for (at, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
            let now = Instant::now();
            let share = until.saturating_duration_since(now) / left;
            error = match timeout_at(now + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return tuned(stream).map_err(|error| ConnectionError::io(&error)),
                Ok(Err(error)) => ConnectionFault::connecting(&error).into(),
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
