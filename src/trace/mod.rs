//! `usher trace`: shows the dialogues of chosen sessions, before their logins are done, to an administrator who
//! asks on the control socket.
//!
//! A session has a [`SessionTrace`]; without an active trace that is nothing, and costs one load at accept. Lines
//! arrive masked (`proto/masking.rs`) and are escaped and bounded here. A line never waits: it goes into the queue
//! of its trace, and where that is full it is lost and counted. Nothing is written to a file or to the log.

mod following;
mod line;
mod session;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use thiserror::Error;
use tokio::time::Instant;

use following::Following;
pub(crate) use following::{TraceEnd, TraceReceiver};
pub(crate) use line::{TraceMessage, TraceSummary};
pub(crate) use session::{Fact, SessionTrace};
use session::{Follower, SessionRecorder};

use crate::sessions::filter::Filter;
use crate::sessions::id::SessionId;
use crate::sessions::registry::EntryRef;

/// Traces at a time: each has its queue, and every one looks at each session.
pub(crate) const TRACES: usize = 4;
/// How long a trace may last.
pub(crate) const LONGEST: Duration = Duration::from_secs(60 * 60);
/// How long it lasts where nothing is said.
pub(crate) const DEFAULT: Duration = Duration::from_secs(10 * 60);
/// Sessions whose lines are held until a name is known; sessions beyond are not traced.
const HELD_SESSIONS: usize = 512;

/// Why a trace does not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum TraceRefused {
    /// There are as many as there may be.
    #[error("{TRACES} traces are running already: end one of them first")]
    TooMany,
    /// The process is being stopped or replaced.
    #[error("shutting down: no trace can begin")]
    Stopping,
}

/// The active traces of the process.
#[derive(Debug)]
pub(crate) struct Traces {
    /// How many are active: what a session looks at first.
    active: AtomicUsize,
    list: Mutex<Vec<Arc<Following>>>,
    /// Sessions that may hold lines.
    held: AtomicUsize,
    stopping: AtomicBool,
    gauge: IntGauge,
}

/// What is known of a session at its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// The client's address.
    pub client: IpAddr,
    /// Its protocol.
    pub protocol: &'static str,
    /// When it began.
    pub since: Instant,
}

impl Traces {
    /// None; `gauge` counts them.
    pub(crate) fn new(gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            active: AtomicUsize::new(0),
            list: Mutex::default(),
            held: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            gauge,
        })
    }

    /// Begins a trace of the sessions that match. `dn` is the entry that the user's name is known to lead to.
    ///
    /// # Errors
    /// Why it does not begin.
    pub(crate) fn begin(
        self: &Arc<Self>,
        filter: Filter,
        entries: Vec<EntryRef>,
        time: Duration,
    ) -> Result<TraceReceiver, TraceRefused> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stopping.load(Ordering::Relaxed) {
            return Err(TraceRefused::Stopping);
        }
        if list.len() >= TRACES {
            return Err(TraceRefused::TooMany);
        }
        let (following, receiver) = following::begin(Arc::clone(self), filter, entries, time.min(LONGEST));
        list.push(following);
        self.counted(list.len());
        Ok(receiver)
    }

    /// Ends every trace.
    pub(crate) fn end_all(&self, end: TraceEnd) {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if end.is_of_the_process() {
            self.stopping.store(true, Ordering::Relaxed);
        }
        list.iter().for_each(|following| following.end(end));
    }

    fn remove(&self, gone: &Arc<Following>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|following| !Arc::ptr_eq(following, gone));
        self.counted(list.len());
    }

    fn counted(&self, number: usize) {
        self.active.store(number, Ordering::Relaxed);
        self.gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// The trace of a session that begins. `may_change`: a proxy is trusted to name another client later.
    #[must_use]
    pub(crate) fn session(self: &Arc<Self>, new: NewSession, may_change: impl FnOnce() -> bool) -> SessionTrace {
        if self.active.load(Ordering::Relaxed) == 0 {
            return SessionTrace::default();
        }
        let may_change = may_change();
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let possible = |following: &&Arc<Following>| following.may_match(&new, may_change);
        let followers: Vec<Follower> = list.iter().filter(possible).map(Follower::new).collect();
        drop(list);
        if followers.is_empty() {
            return SessionTrace::default();
        }
        let taken = self.held.fetch_add(1, Ordering::Relaxed);
        if taken >= HELD_SESSIONS {
            self.held.fetch_sub(1, Ordering::Relaxed);
            followers.iter().for_each(Follower::skip_session);
            return SessionTrace::default();
        }
        SessionTrace::new(SessionRecorder::new(Arc::clone(self), new, followers))
    }

    fn session_over(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
