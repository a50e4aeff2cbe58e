//! The sockets around a backend's dialogue: from the connection to the answer to the login.

use std::time::Duration;

use tokio::time::timeout;

use super::BackendError;
use crate::base::secret::SecretBuf;
use crate::proto::watch::CommandWatch;
use crate::proto::{Back, BackFault, BackStep, Welcome};
use crate::tls::stream::Stream;

/// A session at a backend, logged in.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    /// The connection.
    pub stream: Stream,
    /// What the backend sent after its reply: it belongs to the client, in order.
    pub leftover: SecretBuf,
    /// What the backend said to the login.
    pub welcome: Welcome,
    /// The command to watch for in the session, if any.
    pub watch: Option<CommandWatch>,
}

/// A connection to a backend before the login is accepted.
pub(super) struct BackendDialogue {
    pub(super) stream: Stream,
    pub(super) dialogue: Box<dyn Back>,
    pub(super) input: SecretBuf,
    pub(super) out: SecretBuf,
    /// The next step.
    pub(super) step: BackStep,
    /// How long after the connection the greeting was complete.
    pub(super) greeted_after: Duration,
}

/// The longest reply to a question before the login.
const ANSWER: usize = 4 * 1024;

impl BackendDialogue {
    pub(super) fn new(stream: Stream, dialogue: Box<dyn Back>) -> Self {
        let (input, out) = (SecretBuf::new(), SecretBuf::new());
        Self { stream, dialogue, input, out, step: BackStep::NeedMore, greeted_after: Duration::ZERO }
    }

    /// Asks a question that needs no login and is not part of one, before the login is sent. Returns the reply, up to
    /// the line that begins with `end`.
    pub(super) async fn ask(&mut self, question: &[u8], end: &[u8]) -> Result<Vec<u8>, BackendError> {
        let login = std::mem::replace(&mut self.out, SecretBuf::new());
        self.out.extend(question);
        self.send().await?;
        let is_last = |line: &[u8]| line.starts_with(end) && line.ends_with(b"\n");
        while !self.input.as_slice().split_inclusive(|byte| *byte == b'\n').any(is_last) {
            if self.input.len() > ANSWER {
                return Err(BackendError::Fault(BackFault::TooLarge));
            }
            self.fill().await?;
        }
        let answer = self.input.as_slice().to_vec();
        self.input.clear();
        self.out = login;
        Ok(answer)
    }

    /// Sends the login and waits for its answer.
    pub(super) async fn log_in(&mut self) -> Result<Welcome, BackendError> {
        loop {
            self.send().await?;
            match std::mem::replace(&mut self.step, BackStep::NeedMore) {
                BackStep::NeedMore => self.fill().await?,
                BackStep::Ready(welcome) => return Ok(welcome),
                BackStep::Refused(words) => return Err(BackendError::Refused(words)),
                BackStep::Fault(fault) => return Err(BackendError::Fault(fault)),
                // TLS comes before the login.
                BackStep::StartTls => return Err(BackendError::Fault(BackFault::ProtocolViolation)),
            }
            self.step = self.dialogue.step(&mut self.input, &mut self.out);
        }
    }

    /// The session after an accepted login.
    pub(super) fn into_logged_in(self, welcome: Welcome) -> LoggedIn {
        let watch = self.dialogue.watch();
        LoggedIn { stream: self.stream, leftover: self.input, welcome, watch }
    }

    /// Gives up without a login; what was written of it is wiped.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    pub(super) async fn send(&mut self) -> Result<(), BackendError> {
        self.stream.send(&mut self.out).await.map_err(|source| BackendError::Broken { source })
    }

    /// Waits for more, and requests it where the backend is silent although it should send.
    pub(super) async fn fill_or_request(&mut self) -> Result<(), BackendError> {
        let Some(patience) = self.dialogue.patience() else { return self.fill().await };
        if let Ok(filled) = timeout(patience, self.fill()).await {
            return filled;
        }
        self.dialogue.request_after_silence(&mut self.out);
        Ok(())
    }

    async fn fill(&mut self) -> Result<(), BackendError> {
        match self.stream.fill(&mut self.input).await {
            Ok(0) => Err(BackendError::Closed),
            Ok(_) => Ok(()),
            Err(source) => Err(BackendError::Broken { source }),
        }
    }
}
