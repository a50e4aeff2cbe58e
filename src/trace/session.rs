//! The lines of one session: held until it is known whether the session matches, then sent, within bounds.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::following::{Following, Subject};
use super::line::TraceLine;
use super::{NewSession, Traces};
use crate::proto::transcript::{Leg, LineKind, Recorder, Transcript};
use crate::sessions::registry::EntryRef;
use crate::telemetry::client_address::{masked, masked_all};
use crate::telemetry::log::EscapedUpTo;

/// Lines that are held of a session before it matches, and their bytes: a client that does not log in may fill them.
/// Older ones are dropped.
const HELD: usize = 64;
const HELD_BYTES: usize = 32 * 1024;
/// Bytes of a line, before and after it is escaped; one that is longer is cut.
const LINE: usize = 1_024;
/// Lines of a session, and their bytes: enough for any login, and little for a client that never logs in.
const LINES: usize = 1_000;
const BYTES: usize = 128 * 1024;

/// What becomes known of a session.
#[derive(Debug, Clone)]
pub(crate) enum Fact {
    /// The client's address, where a trusted proxy has named another.
    Client(IpAddr),
    /// The login name of a new attempt, as typed.
    Login(Arc<str>),
    /// The name by which the backend knows the user.
    BackendLogin(Arc<str>),
    /// The entry.
    Entry(EntryRef),
    /// The backend's name.
    Backend(Arc<str>),
}

/// The trace of a session; nothing where no trace could match it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionTrace(Option<Arc<SessionRecorder>>);

impl SessionTrace {
    pub(super) fn new(recorder: SessionRecorder) -> Self {
        Self(Some(Arc::new(recorder)))
    }

    /// The transcript for the dialogues of the session.
    #[must_use]
    pub(crate) fn transcript(&self) -> Transcript {
        let Some(recorder) = &self.0 else { return Transcript::default() };
        Transcript::new(recorder.new.protocol, Arc::clone(recorder) as Arc<dyn Recorder>)
    }

    /// Writes a sentence, which is made only if the session is traced.
    pub(crate) fn note(&self, leg: Leg, sentence: impl FnOnce() -> String) {
        if let Some(recorder) = &self.0 {
            recorder.record(leg, LineKind::Note, sentence().as_bytes());
        }
    }

    /// Writes a line, as [`Self::note`]. What of it is secret must be masked already.
    pub(crate) fn line(&self, leg: Leg, kind: LineKind, line: impl FnOnce() -> String) {
        if let Some(recorder) = &self.0 {
            recorder.record(leg, kind, line().as_bytes());
        }
    }

    /// Notes what has become known: it may decide whether the session matches.
    pub(crate) fn learn(&self, fact: impl FnOnce() -> Option<Fact>) {
        if let Some(recorder) = &self.0
            && let Some(fact) = fact()
        {
            recorder.learn(fact);
        }
    }
}

/// A trace that may follow this session, or does.
#[derive(Debug)]
pub(super) struct Follower {
    following: Arc<Following>,
    matched: bool,
}

impl Follower {
    pub(super) fn new(following: &Arc<Following>) -> Self {
        Self { following: Arc::clone(following), matched: false }
    }

    pub(super) fn skip_session(&self) {
        self.following.count_skipped();
    }
}

/// Collects the lines of one session.
#[derive(Debug)]
pub(super) struct SessionRecorder {
    new: NewSession,
    traces: Arc<Traces>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    followers: Vec<Follower>,
    subject: Subject,
    held: VecDeque<Arc<TraceLine>>,
    held_bytes: usize,
    /// Lines that were sent, and their bytes.
    lines: usize,
    bytes: usize,
}

impl SessionRecorder {
    pub(super) fn new(traces: Arc<Traces>, new: NewSession, followers: Vec<Follower>) -> Self {
        let subject = Subject { client: Some(new.client), protocol: new.protocol, ..Subject::default() };
        let state = State { followers, subject, held: VecDeque::new(), held_bytes: 0, lines: 0, bytes: 0 };
        let recorder = Self { new, traces, state: Mutex::new(state) };
        recorder.learn(Fact::Client(new.client));
        recorder
    }

    fn learn(&self, fact: Fact) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { followers, subject, held, .. } = &mut *state;
        match fact {
            Fact::Client(client) => subject.client = Some(client),
            Fact::Login(name) => {
                // What was known of the attempt before says nothing about this one.
                *subject = Subject {
                    client: subject.client,
                    protocol: subject.protocol,
                    login: Some(name),
                    ..Subject::default()
                };
            }
            Fact::BackendLogin(name) => subject.backend_login = Some(name),
            Fact::Entry(entry) => subject.entry = Some(entry),
            Fact::Backend(backend) => subject.backend = Some(backend),
        }
        for follower in followers {
            // Of one that matches already too: it may learn the user's DN.
            if follower.following.matches(subject) && !follower.matched {
                follower.matched = true;
                follower.following.count_session();
                for line in held.iter() {
                    let _ = follower.following.send(line);
                }
            }
        }
        if state.followers.iter().all(|follower| follower.matched) {
            state.held = VecDeque::new();
        }
    }

    fn traced(&self, leg: Leg, kind: LineKind, text: String) -> Arc<TraceLine> {
        // Microseconds are noise here.
        let ms = (self.new.since.elapsed().as_secs_f64() * 10_000.0).round() / 10.0;
        let (leg, direction) = (leg.label().into(), kind.label().into());
        Arc::new(TraceLine { session: self.new.id, ms, leg, direction, text })
    }
}

impl Recorder for SessionRecorder {
    fn record(&self, leg: Leg, kind: LineKind, line: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.followers.is_empty() || state.lines > LINES || state.bytes > BYTES {
            return;
        }
        let text = cut(EscapedUpTo(line, LINE).to_string());
        let text = match state.subject.client {
            Some(client) if leg != Leg::Client => masked(&text, client).into_owned(),
            Some(_) | None => masked_all(&text).into_owned(),
        };
        let length = text.len();
        let line = self.traced(leg, kind, text);
        let State { followers, held, held_bytes, lines, bytes, .. } = &mut *state;
        let is_sent = followers.iter().any(|follower| follower.matched);
        // A trace that is over follows nothing more.
        followers.retain(|follower| !follower.matched || follower.following.send(&line));
        if followers.iter().any(|follower| !follower.matched) {
            held.push_back(line);
            *held_bytes += length;
            while held.len() > HELD || *held_bytes > HELD_BYTES {
                *held_bytes -= held.pop_front().map_or(*held_bytes, |dropped| dropped.text.len());
            }
        }
        if is_sent {
            (*lines, *bytes) = (*lines + 1, *bytes + length);
            if *lines > LINES || *bytes > BYTES {
                let words = "the rest of this session is not shown: it has too many lines".to_owned();
                let last = self.traced(Leg::Usher, LineKind::Note, words);
                for follower in followers.iter().filter(|follower| follower.matched) {
                    let _ = follower.following.send(&last);
                }
            }
        }
    }
}

/// A control character is eight times as long once it is escaped.
fn cut(mut text: String) -> String {
    if text.len() > LINE + '…'.len_utf8() {
        let end = (0..=LINE).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

impl Drop for SessionRecorder {
    fn drop(&mut self) {
        self.traces.session_over();
    }
}
