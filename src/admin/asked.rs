//! The client half of the side port: what `/ready` of a running usher replies.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::http::StatusCode;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The side port replies at once.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// A reply is one line.
const REPLY_LIMIT: usize = 4 * 1024;

/// Why there is no reply.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// No connection.
    #[error("{address} refuses connections or is not there: {source}; is usher running?")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Not in time.
    #[error("no reply from usher within {}s", REPLY_TIMEOUT.as_secs())]
    Timeout,
    /// HTTP failed.
    #[error("invalid reply from usher: {0}")]
    Http(String),
}

impl From<hyper::Error> for AskError {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error.to_string())
    }
}

/// Asks the side port with this configured address whether usher is ready: the status, and the text.
///
/// # Errors
/// Why there is no reply.
pub(crate) async fn ready(configured: SocketAddr) -> Result<(StatusCode, String), AskError> {
    timeout(REPLY_TIMEOUT, async {
        let (address, stream) = connect(configured).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = hyper::Request::get("/ready").header("host", address.to_string()).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| AskError::Http(error.to_string()))?;
        let exchange = async {
            let reply = sender.send_request(request).await?;
            let status = reply.status();
            let body = Limited::new(reply.into_body(), REPLY_LIMIT).collect().await;
            let body = body.map_err(|error| AskError::Http(error.to_string()))?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).trim_end().to_owned()))
        };
        tokio::select! {
            reply = exchange => reply,
            // The driver ends by itself only when the other side has closed: the exchange fails then.
            () = async { let _ = connection.await; std::future::pending::<()>().await } => Err(AskError::Timeout),
        }
    })
    .await
    .map_err(|_| AskError::Timeout)?
}

/// Connects to the address; a wildcard is reached by loopback.
async fn connect(configured: SocketAddr) -> Result<(SocketAddr, TcpStream), AskError> {
    let addresses: Vec<IpAddr> = match configured {
        // A container may have `[::]`, and no IPv6 on loopback.
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()],
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
        SocketAddr::V4(_) | SocketAddr::V6(_) => vec![configured.ip()],
    };
    let mut last = AskError::Timeout;
    for ip in addresses {
        let address = SocketAddr::new(ip, configured.port());
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok((address, stream)),
            Err(source) => last = AskError::Connect { address, source },
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A port that sends this reply to one request.
    fn replying(bind: &str, reply: &'static str) -> SocketAddr {
        let listener = TcpListener::bind(bind).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(reply.as_bytes());
        });
        address
    }

    #[tokio::test]
    async fn wildcard_is_asked_by_loopback() {
        for bind in ["127.0.0.1:0", "0.0.0.0:0"] {
            let address = replying(bind, "HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\ndraining\n");
            let (status, text) = ready(address).await.unwrap();
            assert_eq!((status.as_u16(), &*text), (503, "draining"));
        }
        // As where loopback has no IPv6: the port is that of IPv4 alone.
        let address = replying("127.0.0.1:0", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready\n");
        let wildcard = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        assert_eq!(ready(wildcard).await.unwrap().0, StatusCode::OK);
    }

    #[tokio::test]
    async fn silence_nonsense_and_absence_are_errors() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = ready(silent.local_addr().unwrap()).await.unwrap_err();
        assert!(matches!(error, AskError::Timeout), "{error}");
        let address = silent.local_addr().unwrap();
        drop(silent);
        let error = ready(address).await.unwrap_err();
        assert!(error.to_string().contains("is usher running?"), "{error}");
        let error = ready(replying("127.0.0.1:0", "220 mail.example.com ESMTP\r\n")).await.unwrap_err();
        assert!(matches!(error, AskError::Http(_)), "{error}");
    }
}
