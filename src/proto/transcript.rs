//! The lines of a dialogue for `usher trace`, both halves, without any secret in them.
//!
//! The engines hand over each line where they know what it is: a command with what became of it, a response, a
//! literal, a reply of usher's own or of a backend. [`masking`](super::masking) decides what of it is shown, before
//! it leaves this module; a [`Recorder`] never sees a line as it was on the wire. Without a recorder nothing is
//! looked at.

use std::fmt;
use std::sync::Arc;

use super::dialect::Action;
use super::masking::{self, EchoGuard};
use super::problem::Problem;
use super::sasl::Account;
use super::wire::LineBuffer;
use crate::base::labels::labels;
use crate::outcome::Reply;

labels! {
    /// What a line of a trace belongs to.
    pub(crate) enum Leg {
        /// The connection of the client.
        Client => "client",
        /// The connection to the backend.
        Backend => "backend",
        /// The answer of directory or cache.
        Directory => "directory",
        /// A decision of usher's.
        Usher => "usher",
    }
}

labels! {
    /// What a line of a trace is.
    pub(crate) enum LineKind {
        /// To usher.
        Received => "in",
        /// From usher.
        Sent => "out",
        /// A sentence about what happened.
        Note => "note",
    }
}

/// Takes the lines of one session.
pub(crate) trait Recorder: fmt::Debug + Send + Sync {
    /// Takes one line: masked, not yet escaped.
    fn record(&self, leg: Leg, kind: LineKind, line: &[u8]);
}

/// Where the lines of a session go, if it is traced.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    recorder: Option<Arc<dyn Recorder>>,
    protocol: &'static str,
}

impl Transcript {
    /// The transcript of a session of this protocol.
    pub(crate) fn new(protocol: &'static str, recorder: Arc<dyn Recorder>) -> Self {
        Self { recorder: Some(recorder), protocol }
    }

    /// Writes a sentence, which is made only if the session is traced.
    pub(crate) fn note(&self, leg: Leg, sentence: impl FnOnce() -> String) {
        if let Some(recorder) = &self.recorder {
            recorder.record(leg, LineKind::Note, sentence().as_bytes());
        }
    }

    /// Whether nothing is recorded.
    #[cfg(test)]
    pub(crate) const fn is_off(&self) -> bool {
        !self.is_on()
    }

    const fn is_on(&self) -> bool {
        self.recorder.is_some()
    }

    fn line(&self, leg: Leg, kind: LineKind, line: &str) {
        if let Some(recorder) = &self.recorder {
            recorder.record(leg, kind, line.as_bytes());
        }
    }
}

/// Records the client half.
#[derive(Debug)]
pub(super) struct FrontScribe {
    transcript: Transcript,
    /// How many bytes of the current command or response are recorded: those up to its last literal.
    recorded: usize,
    /// Whether the current command was shown with its tag.
    is_tag_shown: bool,
    /// Whether the reply to come has text of a backend.
    is_foreign: bool,
    /// Bytes of a refused command that were discarded and are not recorded yet.
    discarded: usize,
}

impl FrontScribe {
    pub(super) fn new(transcript: Transcript) -> Option<Box<Self>> {
        let scribe = Self { transcript, recorded: 0, is_tag_shown: false, is_foreign: false, discarded: 0 };
        scribe.transcript.is_on().then(|| Box::new(scribe))
    }

    /// Records a command as far as it has arrived, and what the dialect made of it.
    pub(super) fn command(&mut self, command: &LineBuffer, result: &Result<Action, Problem>) {
        self.record_discarded();
        self.is_foreign = false;
        if before_line(command) > 0 {
            self.rest(command);
        } else {
            let is_carried_out = matches!(result, Ok(Action::Done | Action::StartTls | Action::Quit));
            let masked = masking::command(self.transcript.protocol, command.line(), is_carried_out);
            self.is_tag_shown = masked.is_tag_shown;
            let line = match result {
                Ok(Action::Literal(literal)) => format!("{} {literal}", masked.line),
                _ => masked.line,
            };
            self.transcript.line(Leg::Client, LineKind::Received, &line);
        }
        self.recorded = command.bytes().len();
    }

    /// Records a line that is no command, or the start of one.
    pub(super) fn unreadable(&mut self, line: &LineBuffer) {
        self.record_discarded();
        (self.is_foreign, self.is_tag_shown) = (false, false);
        self.rest(line);
    }

    /// Records a response of an exchange, or a part of it up to a literal.
    pub(super) fn response(&mut self, line: &LineBuffer) {
        self.record_discarded();
        if line.line() == b"*" {
            self.transcript.line(Leg::Client, LineKind::Received, "*");
        } else {
            self.rest(line);
        }
        self.recorded = line.bytes().len();
    }

    /// Records what has arrived since the last line of the same command or response.
    fn rest(&self, line: &LineBuffer) {
        let recorded = if before_line(line) > 0 { self.recorded } else { 0 };
        let bytes = line.bytes().strip_suffix(b"\r\n").unwrap_or(line.bytes());
        let line = masking::bytes(bytes.len().saturating_sub(recorded));
        self.transcript.line(Leg::Client, LineKind::Received, &line);
    }

    /// Counts bytes of a refused command that are discarded, however they arrive.
    pub(super) const fn discarded(&mut self, count: usize) {
        self.discarded += count;
    }

    fn record_discarded(&mut self) {
        let count = std::mem::take(&mut self.discarded);
        if count > 0 {
            let line = format!("{} discarded", masking::bytes(count));
            self.transcript.line(Leg::Client, LineKind::Received, &line);
        }
    }

    /// Whether the reply that comes next, or after a challenge, has text of a backend.
    pub(super) const fn expect(&mut self, reply: &Reply) {
        self.is_foreign |= matches!(reply, Reply::BackendText(_));
    }

    /// The same for the reply to an accepted login.
    pub(super) const fn expect_acceptance(&mut self) {
        self.is_foreign = true;
    }

    /// Records what was written for the client.
    pub(super) fn replies(&mut self, written: &[u8]) {
        if !written.is_empty() {
            self.record_discarded();
        }
        let protocol = self.transcript.protocol;
        for line in lines(written) {
            let line = if self.is_foreign {
                masking::foreign_reply(protocol, line, self.is_tag_shown)
            } else {
                masking::own_reply(protocol, line, self.is_tag_shown)
            };
            self.transcript.line(Leg::Client, LineKind::Sent, &line);
        }
    }
}

/// Records the backend half.
#[derive(Debug)]
pub(super) struct BackScribe(Transcript);

impl BackScribe {
    pub(super) fn new(transcript: Transcript) -> Option<Box<Self>> {
        let scribe = Self(transcript);
        scribe.0.is_on().then(|| Box::new(scribe))
    }

    /// Records a reply. Once the login is sent, the backend may repeat the secret in it.
    pub(super) fn reply(&self, reply: &[u8], login_sent: Option<&Account>) {
        let guard = login_sent.map(EchoGuard::new);
        // A literal belongs to the lines around it: an echo may be split between them.
        let echoes = guard.is_some_and(|guard| guard.finds_echo(reply));
        for line in lines(reply) {
            let line = if echoes {
                masking::foreign_reply(self.0.protocol, line, false)
            } else {
                String::from_utf8_lossy(line).into_owned()
            };
            self.0.line(Leg::Backend, LineKind::Received, &line);
        }
    }

    /// Records a command of usher's without a secret.
    pub(super) fn command(&self, written: &[u8]) {
        self.sent(written, true);
    }

    /// Records the beginning of a login, which may go on behind its first line.
    pub(super) fn login(&self, written: &[u8]) {
        self.sent(written, false);
    }

    fn sent(&self, written: &[u8], is_harmless: bool) {
        if !written.is_empty() {
            let line = written.strip_suffix(b"\r\n").unwrap_or(written);
            let masked = masking::command(self.0.protocol, line, is_harmless);
            self.0.line(Leg::Backend, LineKind::Sent, &masked.line);
        }
    }

    /// Records what was written of a login that had begun.
    pub(super) fn continuation(&self, written: &[u8]) {
        if !written.is_empty() {
            let line = written.strip_suffix(b"\r\n").unwrap_or(written);
            self.0.line(Leg::Backend, LineKind::Sent, &masking::continuation(self.0.protocol, line));
        }
    }
}

/// How many bytes of a command or response stand before its current line.
fn before_line(command: &LineBuffer) -> usize {
    let end = if command.bytes().ends_with(b"\r\n") { 2 } else { 0 };
    command.bytes().len().saturating_sub(command.line().len() + end)
}

/// The lines of complete replies.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.strip_suffix(b"\r\n").unwrap_or(text);
    let all = (!text.is_empty()).then(|| text.split(|byte| *byte == b'\n'));
    all.into_iter().flatten().map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}
