//! Connections for libraries with protocols of their own: to a host by name, and then bytes under TLS or not.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::stream::Stream;
use crate::base::secret::SecretBuf;
use crate::base::sys::sockets;

/// How long an address is tried if there are others: less than half of what a login waits for its issuer, so that one
/// address that swallows everything, as IPv6 does where it is not routed, is no outage.
const TRIAL: Duration = Duration::from_secs(1);

/// Why there is no connection. Texts are those of the system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    /// The name has no address.
    #[error("the name cannot be resolved: {0}")]
    Resolve(String),
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// A name that should be this machine's is not.
    #[error("the name leads to another machine")]
    NotLoopback,
}

/// Tries the addresses of a host in order; with `local` those of this machine alone. The caller sets the deadline.
///
/// # Errors
/// The last address is not reached, or there is no address.
pub(crate) async fn tcp(host: &str, port: u16, local: bool) -> Result<TcpStream, DialError> {
    let found = lookup_host((host, port)).await.map_err(|error| DialError::Resolve(error.to_string()))?;
    first_of(found.collect(), local).await
}

async fn first_of(addresses: Vec<SocketAddr>, local: bool) -> Result<TcpStream, DialError> {
    let mut failure = DialError::Resolve("no address".to_owned());
    let last = addresses.len().saturating_sub(1);
    for (number, address) in addresses.into_iter().enumerate() {
        if local && !address.ip().to_canonical().is_loopback() {
            failure = DialError::NotLoopback;
            continue;
        }
        let connect = TcpStream::connect(address);
        // The caller's deadline bounds the last one.
        let connected = if number == last {
            connect.await
        } else {
            timeout(TRIAL, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        match connected {
            Ok(socket) => {
                let tuned = socket.set_nodelay(true).and_then(|()| sockets::DIRECTORY.set(&socket));
                return tuned.map(|()| socket).map_err(|error| DialError::Connect(error.to_string()));
            }
            Err(error) => failure = DialError::Connect(error.to_string()),
        }
    }
    Err(failure)
}

/// A stream as libraries read and write it: bytes of any length.
#[derive(Debug)]
pub(crate) struct ByteStream {
    stream: Stream,
    unread: SecretBuf,
}

impl From<Stream> for ByteStream {
    fn from(stream: Stream) -> Self {
        Self { stream, unread: SecretBuf::new() }
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, unread } = self.get_mut();
        if unread.is_empty() {
            ready!(stream.poll_pieces(cx, &mut |_, piece| unread.extend(piece)))?;
        }
        let length = unread.len().min(buffer.remaining());
        buffer.put_slice(unread.as_slice().get(..length).unwrap_or_default());
        unread.consume(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn address_that_swallows_everything_is_left_for_the_next() {
        // A queue that is full drops whatever comes.
        let swallowing = TcpSocket::new_v4().unwrap();
        swallowing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let swallowing = swallowing.listen(0).unwrap();
        let dead = swallowing.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(dead)).await {
            queued.push(connected.unwrap());
        }
        let answering = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let well = answering.local_addr().unwrap();
        let connected = timeout(3 * TRIAL, first_of(vec![dead, well], true)).await.unwrap().unwrap();
        assert_eq!(connected.peer_addr().unwrap(), well);
        let only = timeout(TRIAL + TRIAL / 2, first_of(vec![dead], true)).await;
        assert!(only.is_err(), "the caller's deadline decides");
    }
}
