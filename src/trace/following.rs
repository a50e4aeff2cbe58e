//! One trace: which sessions it follows, its queue, and its end.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::line::{TraceLine, TraceMessage, TraceSummary};
use super::{NewSession, Traces};
use crate::sessions::filter::Filter;
use crate::sessions::registry::EntryRef;

/// Lines that wait for the reader, of at most a kibibyte each.
const QUEUE: usize = 1_024;
/// Lines of a whole trace.
const LINES: u64 = 200_000;
/// DNs by which a user is recognized: a name leads to one entry, a deleted one may come back.
const DNS: usize = 8;

/// Why a trace ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TraceEnd {
    /// The configuration was reloaded.
    Reload,
    /// The process shuts down.
    Drain,
    /// Another process serves.
    Upgrade,
    /// It has as many lines as it may have.
    Full,
}

impl TraceEnd {
    /// The sentence for the reader.
    const fn sentence(self) -> &'static str {
        match self {
            Self::Reload => "the configuration was reloaded; start the trace again",
            Self::Drain => "usher is shutting down",
            Self::Upgrade => "another process serves now; start the trace again",
            Self::Full => "it has as many lines as a trace may have",
        }
    }

    /// Whether no other trace can begin.
    pub(super) const fn is_of_the_process(self) -> bool {
        match self {
            Self::Drain | Self::Upgrade => true,
            Self::Reload | Self::Full => false,
        }
    }
}

/// What is known of a session so far.
#[derive(Debug, Default)]
pub(super) struct Subject {
    pub(super) client: Option<IpAddr>,
    pub(super) protocol: &'static str,
    /// The login name of the attempt, as typed.
    pub(super) login: Option<Arc<str>>,
    /// The name by which the backend knows the user.
    pub(super) backend_login: Option<Arc<str>>,
    /// The entry.
    pub(super) entry: Option<EntryRef>,
    pub(super) backend: Option<Arc<str>>,
}

/// A message in the queue.
enum Queued {
    Line(Arc<TraceLine>),
    Lost(u64),
}

/// A trace, as sessions see it.
#[derive(Debug)]
pub(super) struct Following {
    filter: Filter,
    /// Entries of the user that is followed.
    entries: Mutex<Vec<EntryRef>>,
    queue: mpsc::Sender<Queued>,
    /// Lines that were lost since the last one that found room.
    missing: Mutex<u64>,
    sessions: AtomicU64,
    lines: AtomicU64,
    lost: AtomicU64,
    skipped: AtomicU64,
    end: OnceLock<TraceEnd>,
    ended: CancellationToken,
}

pub(super) fn begin(
    traces: Arc<Traces>,
    filter: Filter,
    entries: Vec<EntryRef>,
    time: Duration,
) -> (Arc<Following>, TraceReceiver) {
    let (queue, lines) = mpsc::channel(QUEUE);
    let what = filter.to_string();
    let following = Arc::new(Following {
        filter,
        entries: Mutex::new(entries.into_iter().take(DNS).collect()),
        queue,
        missing: Mutex::default(),
        sessions: AtomicU64::new(0),
        lines: AtomicU64::new(0),
        lost: AtomicU64::new(0),
        skipped: AtomicU64::new(0),
        end: OnceLock::new(),
        ended: CancellationToken::new(),
    });
    let until = Instant::now() + time;
    let phase = Phase::New { what, seconds: time.as_secs() };
    let receiver = TraceReceiver { following: Arc::clone(&following), lines, until, time, traces, phase };
    (following, receiver)
}

impl Following {
    /// Whether a session that begins can match at all.
    pub(super) fn may_match(&self, new: &NewSession, may_change: bool) -> bool {
        let client = self.filter.client.is_none_or(|network| network.contains(&new.client));
        let protocol = self.filter.protocol.as_ref().is_none_or(|protocol| protocol == new.protocol);
        (client || may_change) && protocol && !self.ended.is_cancelled()
    }

    /// Whether a session matches by what is known of it.
    pub(super) fn matches(&self, subject: &Subject) -> bool {
        let Filter { user, backend, client, protocol, directory, .. } = &self.filter;
        let is_in = |directory: &String| subject.entry.as_ref().is_some_and(|entry| entry.is_in(directory));
        client.is_none_or(|network| subject.client.is_some_and(|client| network.contains(&client)))
            && protocol.as_ref().is_none_or(|protocol| protocol == subject.protocol)
            && directory.as_ref().is_none_or(is_in)
            && backend.as_ref().is_none_or(|backend| subject.backend.as_deref() == Some(backend))
            && user.as_ref().is_none_or(|user| self.is_user(user, subject))
    }

    /// Whether it is the user, under any name: by the login, by the DN, and by the entry that the name has led to.
    fn is_user(&self, user: &str, subject: &Subject) -> bool {
        let mut known = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = [&subject.login, &subject.backend_login].into_iter().flatten();
        let is_named = names.any(|name| Filter::is_name(user, name));
        let Some(entry) = &subject.entry else { return is_named };
        let is_known = known.contains(entry);
        if is_named && !is_known && known.len() < DNS {
            known.push(entry.clone());
        }
        is_named || is_known || entry.is_dn(user)
    }

    pub(super) fn count_session(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_skipped(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Queues a line, or loses it. Returns whether the trace goes on.
    pub(super) fn send(&self, line: &Arc<TraceLine>) -> bool {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ended.is_cancelled() {
            return false;
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) >= LINES {
            self.end(TraceEnd::Full);
            return false;
        }
        if *missing > 0 && self.queue.try_send(Queued::Lost(*missing)).is_ok() {
            *missing = 0;
        }
        let sent = if *missing > 0 { Err(()) } else { Ok(()) };
        let sent = sent.and_then(|()| match self.queue.try_send(Queued::Line(Arc::clone(line))) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => Err(()),
        });
        if sent.is_err() {
            *missing += 1;
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        !self.queue.is_closed()
    }

    pub(super) fn end(&self, end: TraceEnd) {
        let _ = self.end.set(end);
        self.ended.cancel();
    }

    fn take_missing(&self) -> u64 {
        std::mem::take(&mut *self.missing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn summary(&self, reason: String) -> TraceSummary {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TraceSummary {
            reason,
            is_complete: self.end.get().is_none(),
            sessions: of(&self.sessions),
            lines: of(&self.lines),
            lost: of(&self.lost),
            skipped: of(&self.skipped),
        }
    }
}

#[derive(Debug)]
enum Phase {
    New {
        what: String,
        seconds: u64,
    },
    Running,
    /// What is queued is still sent.
    Ending(String),
    Over,
}

/// The reading end of a trace, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct TraceReceiver {
    following: Arc<Following>,
    lines: mpsc::Receiver<Queued>,
    until: Instant,
    time: Duration,
    traces: Arc<Traces>,
    phase: Phase,
}

impl TraceReceiver {
    /// The next message; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<TraceMessage> {
        loop {
            match &mut self.phase {
                Phase::New { what, seconds } => {
                    let started = TraceMessage::Started { what: std::mem::take(what), seconds: *seconds };
                    self.phase = Phase::Running;
                    return Some(started);
                }
                Phase::Running => {
                    // Where nothing is queued, what is missing comes next.
                    if self.lines.is_empty() {
                        let missing = self.following.take_missing();
                        if missing > 0 {
                            return Some(TraceMessage::Lost(missing));
                        }
                    }
                    let reason = tokio::select! {
                        biased;
                        () = self.following.ended.cancelled() => {
                            self.following.end.get().map_or("it was ended", |end| end.sentence()).to_owned()
                        }
                        () = sleep_until(self.until) => format!("{} s are over", self.time.as_secs()),
                        Some(queued) = self.lines.recv() => return Some(message(queued)),
                    };
                    self.following.ended.cancel();
                    self.lines.close();
                    self.phase = Phase::Ending(reason);
                }
                Phase::Ending(reason) => {
                    if let Some(queued) = self.lines.recv().await {
                        return Some(message(queued));
                    }
                    let summary = self.following.summary(std::mem::take(reason));
                    self.phase = Phase::Over;
                    return Some(TraceMessage::Ended(summary));
                }
                Phase::Over => return None,
            }
        }
    }

    /// The counts so far, for the log.
    pub(crate) fn summary(&self) -> TraceSummary {
        let reason = match (&self.phase, self.following.end.get()) {
            (Phase::New { .. } | Phase::Running, _) => "the reader is gone",
            (Phase::Ending(_) | Phase::Over, Some(end)) => end.sentence(),
            (Phase::Ending(_) | Phase::Over, None) => "its time is over",
        };
        self.following.summary(reason.to_owned())
    }
}

impl Drop for TraceReceiver {
    fn drop(&mut self) {
        self.following.ended.cancel();
        self.traces.remove(&self.following);
    }
}

fn message(queued: Queued) -> TraceMessage {
    match queued {
        Queued::Line(line) => TraceMessage::Line(Arc::unwrap_or_clone(line)),
        Queued::Lost(lines) => TraceMessage::Lost(lines),
    }
}

#[cfg(test)]
pub(super) const QUEUED: usize = QUEUE;
