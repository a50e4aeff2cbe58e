//! An LDAP client of its own for what touches a password: TLS, StartTLS, the simple bind, and the read
//! behind it as whoever was bound.
//!
//! One operation at a time and no task: what is asked leaves at once, and the next message must be the
//! answer, of that kind and with that message ID, or the server has broken a rule. A password is written into a
//! buffer that is wiped, from there into the record that TLS encrypts in place, and nowhere else. Answers
//! come through `frames.rs`: whole, checked and bounded. Knows no deadline: whoever calls limits the wait
//! and drops the connection when the time is over. RFC 4511 (protocol), 4513 (authentication).

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::connection::{ConnectionError, Dial, LdapSocket, MAX_MESSAGES, SearchRequest, SearchResult};
use super::frames::{self, BEFORE_TLS, Frames, LdapMessage, StreamEnd, Violation};
use super::policy::BindResponse;
use super::reading::read_message;
use super::request;
use crate::config::LdapScheme;
use crate::secret::SecretBuf;
use crate::tls;
use crate::tls::stream::Stream;

/// A connection for one operation at a time. Dropping it closes the socket at once.
#[derive(Debug)]
pub(super) struct BindClient {
    stream: Stream<LdapSocket>,
    frames: Frames,
    /// The message ID of the last request; also how many there were.
    asked: u32,
    operations: u64,
}

impl BindClient {
    /// Connects, with TLS as configured.
    pub(super) async fn open(dial: &Dial) -> Result<Self, ConnectionError> {
        let socket = dial.socket().await?;
        if dial.scheme == LdapScheme::Ldapi || (dial.scheme == LdapScheme::Ldap && !dial.starttls) {
            return Ok(Self::over(socket.into(), dial.max_message));
        }
        let Some(config) = dial.tls.clone() else {
            return Err(ConnectionError::Broken("TLS is wanted but not set up".to_owned()));
        };
        let name = ServerName::try_from(dial.host.clone()).map_err(|error| ConnectionError::broken(&error))?;
        let socket = if dial.starttls { start_tls(socket).await? } else { socket };
        let connection = ClientConnection::new(config, name).map_err(|error| ConnectionError::broken(&error))?;
        let stream = Stream::under_tls(socket, connection.into()).handshake().await;
        Ok(Self::over(stream.map_err(|error| ConnectionError::broken(&tls::describe(&error)))?, dial.max_message))
    }

    const fn over(stream: Stream<LdapSocket>, most: usize) -> Self {
        Self { stream, frames: Frames::new(most), asked: 0, operations: 0 }
    }

    /// The connection, what has come on it, and how many operations it was used for.
    pub(super) fn into_parts(self) -> (Stream<LdapSocket>, Frames, u64) {
        (self.stream, self.frames, self.operations)
    }

    /// How many operations it was used for.
    pub(super) const fn operations(&self) -> u64 {
        self.operations
    }

    /// The certificate that the server showed (DER); none in the clear.
    pub(super) fn certificate(&self) -> Option<Vec<u8>> {
        self.stream.server_certificates().first().map(|certificate| certificate.to_vec())
    }

    /// Whether it can be told that it is of no more use: the server has ended it, or has said something
    /// unasked. To be asked between operations only.
    pub(super) fn is_dead(&mut self) -> bool {
        // What TLS has to say for itself, such as tickets, is taken on the way.
        let came = self.poll_more(&mut Context::from_waker(Waker::noop()));
        came.is_ready() || !self.frames.is_empty()
    }

    /// A simple bind; its answer. If the future is dropped before that, the connection must not be used
    /// again.
    pub(super) async fn bind(&mut self, dn: &str, password: &str) -> Result<BindResponse, ConnectionError> {
        // Both empty are anonymous binds in disguise, which succeed (RFC 4513 section 5.1.2).
        if dn.is_empty() || password.is_empty() {
            return Err(ConnectionError::Broken("a bind without name or password is not sent".to_owned()));
        }
        let id = self.next_id();
        let mut request = request::bind(id, dn, password);
        self.send(&mut request).await?;
        let answer = |message: &LdapMessage<'_>| {
            let bound = (message.tag == frames::BIND_RESPONSE).then(|| BindResponse::read(message))?;
            Some(bound.ok_or(Violation::Outcome))
        };
        Ok(self.answer(id, answer).await??)
    }

    /// A search, by whoever is bound.
    pub(super) async fn search(
        &mut self,
        question: &SearchRequest,
        time_limit: Duration,
    ) -> Result<SearchResult, ConnectionError> {
        let id = self.next_id();
        let request = request::search(id, question, time_limit);
        let mut request = request.ok_or_else(|| ConnectionError::Broken("the filter cannot be parsed".to_owned()))?;
        self.send(&mut request).await?;
        let mut found = SearchResult { code: 0, entries: 0, first: None };
        for _ in 0..=MAX_MESSAGES {
            let take = |message: &LdapMessage<'_>| match message.tag {
                frames::SEARCH_DONE => {
                    Some(message.outcome().map(|outcome| Some(outcome.code)).ok_or(ConnectionError::Malformed))
                }
                frames::SEARCH_ENTRY => {
                    found.entries += 1;
                    if found.entries > 1 {
                        return Some(Ok(None));
                    }
                    Some(read_message(message.body, &question.attributes).ok_or(ConnectionError::Malformed).map(
                        |shown| {
                            found.first = shown.map(|shown| shown.entry);
                            None
                        },
                    ))
                }
                // Continuation references stand beside entries (AD always sends them): not followed.
                frames::SEARCH_REFERENCE | frames::INTERMEDIATE_RESPONSE => Some(Ok(None)),
                _ => None,
            };
            // Success only if a final result says so.
            if let Some(code) = self.answer(id, take).await?? {
                found.code = code;
                return Ok(found);
            }
        }
        Err(ConnectionError::Malformed)
    }

    fn next_id(&mut self) -> u32 {
        self.operations += 1;
        // maxInt is 2^31 - 1; long before that a connection has done its number of operations.
        self.asked = self.asked % 0x7fff_ffff + 1;
        self.asked
    }

    /// Sends a request and wipes it.
    async fn send(&mut self, request: &mut SecretBuf) -> Result<(), ConnectionError> {
        // An answer that is there before the question is none.
        if !self.frames.is_empty() {
            return Err(self.frames.end().map_or(Violation::Foreign.into(), ended));
        }
        self.stream.send(request).await.map_err(|error| reason(&error))
    }

    /// The next message, as `read` reads it: it must be about this request, and of a kind that answers it.
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
                return Err(ended(end));
            }
            poll_fn(|cx| self.poll_more(cx)).await?;
        }
    }

    /// Takes what has arrived; ready when that was something, or the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let Self { stream, frames, .. } = self;
        if stream.has_ended() {
            return Poll::Ready(Err(closed()));
        }
        let came = stream.poll_pieces(cx, &mut |_, piece| frames.push(piece));
        came.map_err(|error| reason(&error))
    }
}

/// Asks for TLS; the socket, on which the server waits for the handshake.
async fn start_tls(socket: LdapSocket) -> Result<LdapSocket, ConnectionError> {
    // Nobody has vouched for this server: its answer is a small one or none.
    let mut clear = BindClient::over(socket.into(), BEFORE_TLS);
    let id = clear.next_id();
    clear.send(&mut request::start_tls(id)).await?;
    let answer = |message: &LdapMessage<'_>| {
        let outcome = (message.tag == frames::EXTENDED_RESPONSE).then(|| message.outcome())?;
        Some(outcome.map(|outcome| outcome.code).ok_or(Violation::Outcome))
    };
    let code = clear.answer(id, answer).await??;
    if code != 0 {
        return Err(ConnectionError::Broken(format!("StartTLS was refused with result {code}")));
    }
    // Whoever can write into the clear must not have a word behind it.
    if !clear.frames.is_empty() {
        return Err(Violation::BeforeTls.into());
    }
    clear.stream.into_plain().ok_or_else(|| ConnectionError::Broken("TLS has begun already".to_owned()))
}

/// Why no more messages come, as a fault.
pub(super) fn ended(end: StreamEnd) -> ConnectionError {
    match end {
        StreamEnd::Violation(violation) => violation.into(),
        StreamEnd::Notice(code) => {
            ConnectionError::Broken(format!("the server ended the connection with result {code}"))
        }
    }
}

/// A reason of the connection.
pub(super) fn reason(error: &io::Error) -> ConnectionError {
    ConnectionError::broken(&tls::describe(error))
}

/// The end of the connection.
pub(super) fn closed() -> ConnectionError {
    ConnectionError::Broken("connection closed by the server".to_owned())
}
