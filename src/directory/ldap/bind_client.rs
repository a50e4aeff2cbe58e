//! The LDAP client for everything that touches a password: TLS, StartTLS, the simple bind, and the read that
//! follows as the bound user.
//!
//! One operation at a time and no task: a request is sent at once, and the next message must be its reply, with
//! the expected type and message ID, or it is a protocol violation. A password is written into a buffer that is
//! wiped, from there into the record that TLS encrypts in place, and nowhere else. Replies pass through
//! `frames.rs`: complete, checked and bounded. The caller enforces deadlines and drops the connection when one
//! expires. RFC 4511 (protocol), 4513 (authentication).

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::base::secret::SecretBuf;
use crate::config::LdapScheme;
use crate::directory::ldap::dial::{Dial, LdapSocket};
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::frames::{self, BEFORE_TLS, Frames, LdapMessage, Violation};
use crate::directory::ldap::policy::BindResponse;
use crate::directory::ldap::query::{MAX_MESSAGES, SearchRequest, SearchResult};
use crate::directory::ldap::request;
use crate::directory::ldap::schema::read_message;
use crate::directory::{ConnectionFault, ServerResult};
use crate::proto::ldap::result::SUCCESS;
use crate::tls::HandshakeError;
use crate::tls::stream::Stream;

/// A connection for one operation at a time. Dropping it closes the socket at once.
#[derive(Debug)]
pub(crate) struct BindClient {
    stream: Stream<LdapSocket>,
    frames: Frames,
    /// The message ID of the last request.
    asked: u32,
    operations: u64,
}

impl BindClient {
    /// Connects, with TLS as configured.
    pub(crate) async fn open(dial: &Dial) -> Result<Self, ConnectionError> {
        let socket = dial.socket().await?;
        if dial.scheme == LdapScheme::Ldapi || (dial.scheme == LdapScheme::Ldap && !dial.starttls) {
            return Ok(Self::over(socket.into(), dial.max_message));
        }
        let Some(config) = dial.tls.clone() else {
            return Err(ConnectionFault::NoTls.into());
        };
        let name =
            ServerName::try_from(dial.server_name.clone()).map_err(|error| ConnectionFault::invalid_name(&error))?;
        let socket = if dial.starttls { start_tls(socket).await? } else { socket };
        let connection =
            ClientConnection::new(config, name).map_err(|error| ConnectionFault::Tls(HandshakeError::from(&error)))?;
        let stream = Stream::under_tls(socket, connection.into()).handshake().await;
        Ok(Self::over(stream.map_err(|error| ConnectionError::io(&error))?, dial.max_message))
    }

    const fn over(stream: Stream<LdapSocket>, most: usize) -> Self {
        Self { stream, frames: Frames::new(most), asked: 0, operations: 0 }
    }

    /// The connection, its unread input, and the number of its operations.
    pub(crate) fn into_parts(self) -> (Stream<LdapSocket>, Frames, u64) {
        (self.stream, self.frames, self.operations)
    }

    /// The number of its operations.
    pub(crate) const fn operations(&self) -> u64 {
        self.operations
    }

    /// The server's certificate (DER); `None` without TLS.
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        self.stream.server_certificates().first().map(|certificate| certificate.to_vec())
    }

    /// Whether the connection is known to be unusable: closed by the server, or unsolicited data arrived. Only
    /// to be called between operations.
    pub(crate) fn is_dead(&mut self) -> bool {
        // TLS messages such as session tickets are processed on the way.
        let came = self.poll_more(&mut Context::from_waker(Waker::noop()));
        came.is_ready() || !self.frames.is_empty()
    }

    /// A simple bind. If the future is dropped before the reply, the connection must not be reused.
    pub(crate) async fn bind(&mut self, dn: &str, password: &[u8]) -> Result<BindResponse, ConnectionError> {
        // Either empty is an anonymous bind in disguise, which succeeds (RFC 4513 section 5.1.2).
        if dn.is_empty() || password.is_empty() {
            return Err(ConnectionFault::AnonymousBind.into());
        }
        let id = self.next_id();
        let mut request = request::bind(id, dn, password);
        self.send(&mut request).await?;
        let answer = |message: &LdapMessage<'_>| {
            let bound = (message.tag == frames::BIND_RESPONSE).then(|| BindResponse::read(message, password))?;
            Some(bound.ok_or(Violation::Outcome))
        };
        let bound = self.answer(id, answer).await.map_err(|error| error.answering(password))?;
        Ok(bound?)
    }

    /// A search as the bound identity, with all pieces of the entry.
    pub(crate) async fn search(
        &mut self,
        query: &SearchRequest,
        time_limit: Duration,
    ) -> Result<SearchResult, ConnectionError> {
        let mut found = self.answered(query, time_limit).await?;
        while let Some(next) = found.rest_request(query.operation, &query.attributes) {
            found.append(self.answered(&next, time_limit).await?)?;
        }
        Ok(found)
    }

    /// The answer to one request.
    async fn answered(&mut self, query: &SearchRequest, time_limit: Duration) -> Result<SearchResult, ConnectionError> {
        let id = self.next_id();
        let request = request::search(id, query, time_limit);
        let mut request = request.ok_or(ConnectionFault::InvalidFilter)?;
        self.send(&mut request).await?;
        let mut found = SearchResult::of(query);
        for _ in 0..=MAX_MESSAGES {
            let take = |message: &LdapMessage<'_>| match message.tag {
                frames::SEARCH_DONE => {
                    let result = message.outcome().map(|outcome| Some(ServerResult::from(outcome)));
                    Some(result.ok_or(ConnectionError::Malformed))
                }
                frames::SEARCH_ENTRY => {
                    Some(found.count(|| read_message(message.body, &query.attributes)).map(|()| None))
                }
                // Continuation references accompany entries (AD always sends them): not followed.
                frames::SEARCH_REFERENCE | frames::INTERMEDIATE_RESPONSE => Some(Ok(None)),
                _ => None,
            };
            // Success only if a final result says so.
            if let Some(result) = self.answer(id, take).await?? {
                found.end(result);
                return Ok(found);
            }
        }
        Err(ConnectionError::Malformed)
    }

    fn next_id(&mut self) -> u32 {
        self.operations += 1;
        // maxInt is 2^31 - 1; a connection reaches its limit of operations long before.
        self.asked = self.asked % 0x7fff_ffff + 1;
        self.asked
    }

    /// Sends a request and wipes it.
    async fn send(&mut self, request: &mut SecretBuf) -> Result<(), ConnectionError> {
        // A reply that precedes its request is a violation.
        if !self.frames.is_empty() {
            return Err(self.frames.end().map_or(Violation::Foreign.into(), ConnectionError::from));
        }
        self.stream.send(request).await.map_err(|error| ConnectionError::io(&error))
    }

    /// The next message, as parsed by `read`: its ID and type must match the request.
    async fn answer<T>(
        &mut self,
        id: u32,
        read: impl FnOnce(&LdapMessage<'_>) -> Option<T>,
    ) -> Result<T, ConnectionError> {
        loop {
            if let Some((message, size)) = self.frames.message() {
                let answer = if message.id == id { read(&message) } else { None };
                self.frames.consume(size);
                return Ok(answer.ok_or(Violation::Foreign)?);
            }
            if let Some(end) = self.frames.end() {
                return Err(end.into());
            }
            poll_fn(|cx| self.poll_more(cx)).await?;
        }
    }

    /// Reads what has arrived; ready on data or at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let Self { stream, frames, .. } = self;
        if stream.has_ended() {
            return Poll::Ready(Err(ConnectionError::closed()));
        }
        let came = stream.poll_pieces(cx, &mut |_, piece| frames.push(piece));
        came.map_err(|error| ConnectionError::io(&error))
    }
}

/// Requests StartTLS; returns the socket, ready for the handshake.
async fn start_tls(socket: LdapSocket) -> Result<LdapSocket, ConnectionError> {
    // The server is not authenticated yet: its reply is limited to a small size.
    let mut clear = BindClient::over(socket.into(), BEFORE_TLS);
    let id = clear.next_id();
    clear.send(&mut request::start_tls(id)).await?;
    let answer = |message: &LdapMessage<'_>| {
        let outcome = (message.tag == frames::EXTENDED_RESPONSE).then(|| message.outcome())?;
        Some(outcome.map(ServerResult::from).ok_or(Violation::Outcome))
    };
    let result = clear.answer(id, answer).await??;
    if result.code != SUCCESS {
        return Err(ConnectionFault::StartTls(result).into());
    }
    // Cleartext injected before the handshake must not be taken for server data.
    if !clear.frames.is_empty() {
        return Err(Violation::BeforeTls.into());
    }
    clear.stream.into_plain().ok_or(ConnectionError::Malformed)
}
