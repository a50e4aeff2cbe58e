//! HTTP to an issuer: one request on one connection, under TLS with its name verified (RFC 9112, RFC 9110).
//!
//! No redirect is followed: an answer that points elsewhere is a fault. Without TLS only this machine is called. The
//! caller sets the deadline. The request may hold a token and a secret: no error has a part of it, and what hyper
//! copies of it is wiped by the allocator.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::base::secret::{Secret, SecretBuf};
use crate::config::{Address, HttpUrl};
use crate::tls::HandshakeError;
use crate::tls::client;
use crate::tls::dial::{ByteStream, DialError, tcp};
use crate::tls::stream::Stream;

/// The largest head of an answer, in bytes.
const LARGEST_HEAD: usize = 32 * 1024;
/// The largest head of a proxy's answer, in bytes.
const LARGEST_PROXY_HEAD: usize = 4 * 1024;
/// Everything but the unreserved characters of RFC 3986 section 2.3, for a form.
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How the servers of an issuer are reached.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// TLS towards them.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The HTTP proxy on the way.
    pub(super) proxy: Option<Address>,
}

/// Why there is no answer. Texts are those of the system and of the peer: a log escapes and bounds them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    /// The name has no address.
    #[error("the name cannot be resolved: {0}")]
    Resolve(String),
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// http:// leads off this machine.
    #[error("the name leads to another machine, and http:// is for this one alone")]
    NotLoopback,
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(HandshakeError),
    /// The proxy does not connect.
    #[error("the proxy answered {0}")]
    Proxy(String),
    /// The connection broke, or it is no HTTP.
    #[error("HTTP: {0}")]
    Http(String),
    /// The discovery document names another issuer.
    #[error("the discovery document is of another issuer: {0}")]
    AnotherIssuer(String),
    /// A redirect, which is not followed.
    #[error("the answer is a redirect ({0}): write the URL that it leads to")]
    Redirect(u16),
    /// Another status than 200.
    #[error("the answer has status {0}")]
    Status(u16),
    /// The answer is too large.
    #[error("the answer is larger than 256 KiB")]
    TooLarge,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The content is not as expected.
    #[error("{0}")]
    Content(String),
}

impl From<DialError> for FetchError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Resolve(reason) => Self::Resolve(reason),
            DialError::Connect(reason) => Self::Connect(reason),
            DialError::NotLoopback => Self::NotLoopback,
        }
    }
}

impl Client {
    /// Fetches a document of at most `most` bytes.
    ///
    /// # Errors
    /// No answer.
    pub(super) async fn get(&self, url: &HttpUrl, most: usize) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let request = request(Method::GET, url).body(Full::default()).map_err(http)?;
        self.exchange(url, request, most).await
    }

    /// Posts one field of a form, as the client with this name and secret (RFC 6749 section 2.3.1).
    ///
    /// # Errors
    /// There is no answer.
    pub(super) async fn post(
        &self,
        url: &HttpUrl,
        (id, secret): (&str, &Secret),
        (field, value): (&str, &Secret),
        most: usize,
    ) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        // Each has its room from the start, so that no copy is left where one grew.
        let mut pair = SecretBuf::with_room(3 * (id.len() + secret.expose().len()) + 1);
        pair.extend(utf8_percent_encode(id, &RESERVED).to_string().as_bytes());
        pair.extend(b":");
        encoded(secret, &mut pair);
        let mut basic = Zeroizing::new(String::with_capacity(8 + pair.len().div_ceil(3) * 4));
        basic.push_str("Basic ");
        STANDARD.encode_string(pair.as_slice(), &mut basic);
        let mut credential = HeaderValue::from_str(&basic).map_err(|_| FetchError::Http("credential".to_owned()))?;
        credential.set_sensitive(true);
        let mut form = SecretBuf::with_room(field.len() + 3 * value.expose().len() + 1);
        form.extend(field.as_bytes());
        form.extend(b"=");
        encoded(value, &mut form);
        let request = request(Method::POST, url)
            .header(AUTHORIZATION, credential)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
            .body(Full::new(Bytes::from_owner(Form(form))))
            .map_err(http)?;
        self.exchange(url, request, most).await
    }

    async fn exchange(
        &self,
        url: &HttpUrl,
        request: Request<Full<Bytes>>,
        most: usize,
    ) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let stream = self.connect(url).await?;
        let io = TokioIo::new(ByteStream::from(stream));
        // The body is written from where it is: behind the head it would be copied into a block that may be too large to
        // be wiped.
        let mut builder = hyper::client::conn::http1::Builder::new();
        let handshake = builder.max_buf_size(LARGEST_HEAD).writev(true).handshake(io).await;
        let (mut sender, connection) = handshake.map_err(http)?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(http)?;
            match answer.status() {
                StatusCode::OK => {}
                status if status.is_redirection() => return Err(FetchError::Redirect(status.as_u16())),
                status => return Err(FetchError::Status(status.as_u16())),
            }
            let body = Limited::new(answer.into_body(), most).collect().await;
            let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
                Some(_) => FetchError::TooLarge,
                None => FetchError::Http(error.to_string()),
            })?;
            Ok(Zeroizing::new(body.to_bytes().to_vec()))
        };
        tokio::select! {
            answer = exchange => answer,
            // Ends by itself only when the other side has closed: the exchange fails then.
            () = async { let _ = connection.await; std::future::pending::<()>().await } => Err(FetchError::Timeout),
        }
    }

    async fn connect(&self, url: &HttpUrl) -> Result<Stream, FetchError> {
        if !url.encrypted {
            return Ok(tcp(&url.host, url.port, true).await?.into());
        }
        let socket = match &self.proxy {
            Some(proxy) => tunnel(tcp(&proxy.host, proxy.port, false).await?, &url.host, url.port).await?,
            None => tcp(&url.host, url.port, false).await?,
        };
        let name = ServerName::try_from(url.host.clone()).map_err(|error| FetchError::Resolve(error.to_string()))?;
        let tls = self.tls.as_ref().ok_or_else(|| FetchError::Tls(HandshakeError::without_configuration()))?;
        client::connect(tls, name, socket).await.map_err(|error| FetchError::Tls(HandshakeError::of_stream(&error)))
    }
}

fn request(method: Method, url: &HttpUrl) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(&url.path)
        .header(HOST, url.authority())
        .header(ACCEPT, HeaderValue::from_static("application/json"))
        .header(CONNECTION, HeaderValue::from_static("close"))
        .header(USER_AGENT, HeaderValue::from_static("usher"))
}

/// hyper's own words have no part of a message.
fn http(error: impl std::error::Error) -> FetchError {
    let source = error.source().map(|source| format!(" ({source})")).unwrap_or_default();
    FetchError::Http(format!("{error}{source}"))
}

fn encoded(secret: &Secret, out: &mut SecretBuf) {
    // Piece by piece: the pieces are borrowed, and no text of all of it is made.
    percent_encoding::percent_encode(secret.expose(), &RESERVED).for_each(|piece| out.extend(piece.as_bytes()));
}

/// Lets a proxy connect to a host (RFC 9110 section 9.3.6).
async fn tunnel(mut socket: TcpStream, host: &str, port: u16) -> Result<TcpStream, FetchError> {
    let broken = |error: io::Error| FetchError::Proxy(error.to_string());
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut head = Vec::with_capacity(256);
    // Byte by byte: what follows the head is TLS.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= LARGEST_PROXY_HEAD {
            return Err(FetchError::Proxy("with an endless head".to_owned()));
        }
        head.push(socket.read_u8().await.map_err(broken)?);
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let is_http = words.next().is_some_and(|version| version.starts_with(b"HTTP/1."));
    let status = words.next().unwrap_or_default();
    if is_http && status.len() == 3 && status.starts_with(b"2") {
        return Ok(socket);
    }
    Err(FetchError::Proxy(String::from_utf8_lossy(line).into_owned()))
}

/// A form with a token, wiped when hyper has sent it.
struct Form(SecretBuf);

impl AsRef<[u8]> for Form {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}
