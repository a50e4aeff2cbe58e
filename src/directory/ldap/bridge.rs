//! Connects a directory server with ldap3: replies pass as complete messages that are checked (`frames.rs`),
//! requests unchanged.
//!
//! One task, two independent directions, and a bounded buffer for each: one message towards ldap3, one read
//! towards the server. While one side does not accept data, the other is not read. Sets no deadline: the
//! callers do.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::directory::ldap::dial::LdapSocket;
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::frames::Frames;
use crate::tls::stream::Stream;

/// Bytes of requests read at once.
const REQUESTS: usize = 16 * 1_024;

#[derive(Debug)]
pub(crate) struct Bridge {
    server: Stream<LdapSocket>,
    frames: Frames,
    /// ldap3 has the other end of the pair.
    library: UnixStream,
    /// Requests from ldap3; those from `sent` on are not sent yet.
    requests: Vec<u8>,
    sent: usize,
    /// Whether TLS holds data that the socket has not taken.
    unsent: bool,
}

impl Bridge {
    pub(crate) fn new(server: Stream<LdapSocket>, mut frames: Frames, library: UnixStream) -> Self {
        frames.expect_no_binds();
        Self { server, frames, library, requests: Vec::new(), sent: 0, unsent: false }
    }

    /// Runs until one side ends: returns the error, if it is the server's, and ldap3's end of the pair, to be
    /// closed by the caller.
    pub(crate) async fn run(mut self) -> (Option<ConnectionError>, UnixStream) {
        let error = poll_fn(|cx| match self.poll_answers(cx) {
            Poll::Pending => self.poll_requests(cx),
            error => error,
        })
        .await;
        (error, self.library)
    }

    /// Forwards replies; ready at the end.
    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Poll<Option<ConnectionError>> {
        loop {
            let whole = self.frames.whole();
            if !whole.is_empty() {
                match ready!(Pin::new(&mut self.library).poll_write(cx, whole)) {
                    Ok(n) if n > 0 => self.frames.consume(n),
                    // ldap3 has closed its end, and knows the reason.
                    Ok(_) | Err(_) => return Poll::Ready(None),
                }
                continue;
            }
            if let Some(end) = self.frames.end() {
                return Poll::Ready(Some(end.into()));
            }
            // ldap3 detects this itself, once it has read the preceding data.
            if self.server.has_ended() {
                return Poll::Ready(None);
            }
            let frames = &mut self.frames;
            if let Err(error) = ready!(self.server.poll_pieces(cx, &mut |_, piece| frames.push(piece))) {
                return Poll::Ready(Some(ConnectionError::io(&error)));
            }
        }
    }

    /// Forwards requests; ready at the end.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Option<ConnectionError>> {
        loop {
            let left = self.requests.get(self.sent..).unwrap_or_default();
            if !left.is_empty() {
                match ready!(Pin::new(&mut self.server).poll_write(cx, left)) {
                    Ok(n) if n > 0 => (self.sent, self.unsent) = (self.sent + n, true),
                    Ok(_) => return Poll::Ready(Some(ConnectionError::closed())),
                    Err(error) => return Poll::Ready(Some(ConnectionError::io(&error))),
                }
                continue;
            }
            if self.unsent {
                if let Err(error) = ready!(Pin::new(&mut self.server).poll_flush(cx)) {
                    return Poll::Ready(Some(ConnectionError::io(&error)));
                }
                self.unsent = false;
            }
            self.requests.resize(REQUESTS, 0);
            self.sent = 0;
            let mut read = ReadBuf::new(&mut self.requests);
            let came = Pin::new(&mut self.library).poll_read(cx, &mut read);
            let length = read.filled().len();
            self.requests.truncate(length);
            match ready!(came) {
                Ok(()) if length > 0 => {}
                Ok(()) | Err(_) => return Poll::Ready(None),
            }
        }
    }
}
