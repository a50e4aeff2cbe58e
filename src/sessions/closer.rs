//! Ends sessions at a pace, whatever the reason: a change of their entries, the choice of an administrator, a
//! backend taken out of service, the stop of the process. So clients do not all reconnect at once.
//!
//! One engine for all of them: a job names sessions and a pace, and [`Closer::run`] performs the steps of all jobs
//! of a task when they are due. A job is kept here and not in the task, so that it survives a panic of the task.
//! Sessions are found by the indexes of the registry: no step scans all of them.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::base::tasks::Task;
use crate::sessions::id::SessionId;
use crate::sessions::registry::{Registry, TerminationReason};

/// How often a drained backend is checked for sessions that were about to begin.
const LATE_SESSIONS: Duration = Duration::from_millis(250);

/// The tasks that perform the jobs, each by a call of [`Closer::run`].
pub(crate) const TASKS: [Task; 3] = [Task::SessionCloser, Task::BackendDrain, Task::Kick];

/// The jobs in progress.
#[derive(Debug)]
pub(crate) struct Closer {
    registry: Arc<Registry>,
    jobs: Mutex<Jobs>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Jobs {
    by_id: BTreeMap<JobId, Job>,
    /// The last number of a selection.
    last_selection: u64,
}

/// Identifies a job. There is one job at a time for all changes, for each backend, for each of
/// its addresses that is up again, and for the stop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum JobId {
    Changes,
    Stop,
    Backend(Arc<str>),
    Displaced(Arc<str>, IpAddr),
    Selection(u64),
}

impl JobId {
    /// The task that performs the job.
    fn task(&self) -> Task {
        match self {
            Self::Changes | Self::Stop => Task::SessionCloser,
            Self::Backend(_) | Self::Displaced(..) => Task::BackendDrain,
            Self::Selection(_) => Task::Kick,
        }
    }
}

#[derive(Debug)]
struct Job {
    sessions: Sessions,
    /// When the next session may be closed.
    due: Instant,
}

/// The sessions of a job, and its pace.
#[derive(Debug)]
enum Sessions {
    /// Those that a change does not permit any more, the most serious reason first, at the configured rate.
    Ranked(RankedSessions),
    /// These, in this order. One that has ended meanwhile keeps its point in time.
    Listed { sessions: VecDeque<SessionId>, step: Duration },
    /// Those of a backend, oldest first, including those that begin later.
    Backend { step: Duration },
    /// Those of each user together, at the configured rate.
    Displaced(VecDeque<Vec<SessionId>>),
    /// All, oldest first. One that ends by itself spares one of the last.
    All { step: Duration },
}

/// Bounded by the number of sessions: each is queued once for each reason.
#[derive(Debug, Default)]
struct RankedSessions {
    /// By rank; each in order of arrival.
    order: [VecDeque<(SessionId, TerminationReason)>; RANKS],
    queued: HashSet<(SessionId, TerminationReason)>,
}

/// The number of ranks.
const RANKS: usize = 5;

/// The priority of a reason: a session that must not continue does not wait until thousands of moved ones are
/// closed.
const fn rank(why: TerminationReason) -> usize {
    match why {
        TerminationReason::Hold => 0,
        TerminationReason::Network
        | TerminationReason::CertificateRemoved
        | TerminationReason::Disabled
        | TerminationReason::Expired
        | TerminationReason::GrantRevoked
        | TerminationReason::Kicked => 1,
        TerminationReason::Deleted => 2,
        TerminationReason::PasswordChanged => 3,
        TerminationReason::Moved
        | TerminationReason::Drain
        | TerminationReason::BackendDrained
        | TerminationReason::AddressReturned => 4,
    }
}

/// Whether the brake covers a change with this consequence.
const fn is_braked(why: TerminationReason) -> bool {
    matches!(
        why,
        TerminationReason::Moved
            | TerminationReason::Disabled
            | TerminationReason::Expired
            | TerminationReason::Deleted
    )
}

impl RankedSessions {
    fn add(&mut self, session: SessionId, why: TerminationReason) {
        if self.queued.insert((session, why))
            && let Some(order) = self.order.get_mut(rank(why))
        {
            order.push_back((session, why));
        }
    }

    fn next(&mut self) -> Option<(SessionId, TerminationReason)> {
        let next = self.order.iter_mut().find_map(VecDeque::pop_front)?;
        self.queued.remove(&next);
        Some(next)
    }
}

impl Job {
    /// Closes the next session, if there is one, and determines when the one after it is due. `rate`: the
    /// configured closes per second.
    fn step(&mut self, id: &JobId, registry: &Registry, rate: u32, now: Instant) {
        match &mut self.sessions {
            Sessions::Ranked(queue) => {
                // A session that has ended meanwhile takes no time.
                if let Some((session, why)) = queue.next()
                    && registry.end(session, why)
                {
                    self.due = now + Duration::from_secs(1) / rate.max(1);
                }
            }
            Sessions::Listed { sessions, step } => {
                if let Some(session) = sessions.pop_front() {
                    registry.end(session, TerminationReason::Kicked);
                }
                self.due += *step;
            }
            Sessions::Backend { step } => {
                let closed = matches!(id, JobId::Backend(backend)
                    if registry.end_oldest_of(backend, TerminationReason::BackendDrained));
                self.due = now + if closed { *step } else { LATE_SESSIONS };
            }
            Sessions::Displaced(users) => {
                let sessions = users.pop_front().unwrap_or_default();
                let ended = sessions.iter().filter(|id| registry.end(**id, TerminationReason::AddressReturned));
                let ended = u32::try_from(ended.count()).unwrap_or(u32::MAX);
                self.due = now + (Duration::from_secs(1) / rate.max(1)).saturating_mul(ended);
            }
            Sessions::All { step } => {
                registry.end_oldest();
                self.due += *step;
            }
        }
    }

    /// Whether there may be another session to close.
    fn has_more(&self) -> bool {
        match &self.sessions {
            Sessions::Ranked(queue) => !queue.queued.is_empty(),
            Sessions::Listed { sessions, .. } => !sessions.is_empty(),
            Sessions::Displaced(users) => !users.is_empty(),
            Sessions::Backend { .. } | Sessions::All { .. } => true,
        }
    }
}

impl Closer {
    /// No job is in progress.
    #[must_use]
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, jobs: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes sessions that a change of their entries does not permit any more.
    pub(crate) fn close_changed(&self, sessions: impl IntoIterator<Item = (SessionId, TerminationReason)>) {
        {
            let mut jobs = self.lock();
            let none = || Job { sessions: Sessions::Ranked(RankedSessions::default()), due: Instant::now() };
            let job = jobs.by_id.entry(JobId::Changes).or_insert_with(none);
            if let Sessions::Ranked(queue) = &mut job.sessions {
                sessions.into_iter().for_each(|(session, why)| queue.add(session, why));
            }
        }
        self.changed.notify_waiters();
    }

    /// Keeps the sessions that were to be closed for changes that the brake covers.
    pub(crate) fn withdraw_braked(&self) {
        if let Some(Job { sessions: Sessions::Ranked(queue), .. }) = self.lock().by_id.get_mut(&JobId::Changes) {
            let stays = |(_, why): &(SessionId, TerminationReason)| !is_braked(*why);
            queue.order.iter_mut().for_each(|order| order.retain(stays));
            queue.queued.retain(stays);
        }
    }

    /// Closes these sessions one after another, evenly over this time.
    pub(crate) fn kick(&self, sessions: Vec<SessionId>, over: Duration) {
        let step = over / u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
        {
            let mut jobs = self.lock();
            jobs.last_selection += 1;
            let id = JobId::Selection(jobs.last_selection);
            let job = Job { sessions: Sessions::Listed { sessions: sessions.into(), step }, due: Instant::now() };
            jobs.by_id.insert(id, job);
        }
        self.changed.notify_waiters();
    }

    /// Closes the sessions of this backend, `rate` per second, until [`Closer::keep_backend`].
    pub(super) fn close_backend(&self, backend: Arc<str>, rate: u32) {
        let step = Duration::from_secs(1) / rate.max(1);
        let job = Job { sessions: Sessions::Backend { step }, due: Instant::now() };
        self.lock().by_id.insert(JobId::Backend(backend), job);
        self.changed.notify_waiters();
    }

    /// Does not close the sessions of this backend any more.
    pub(super) fn keep_backend(&self, backend: &Arc<str>) {
        self.lock().by_id.remove(&JobId::Backend(Arc::clone(backend)));
    }

    /// Closes sessions that belong to this address of a backend, which is up again, and are elsewhere; those of each
    /// user together. A second call replaces the first.
    pub(crate) fn close_displaced(&self, backend: Arc<str>, address: IpAddr, users: Vec<Vec<SessionId>>) {
        let job = Job { sessions: Sessions::Displaced(users.into()), due: Instant::now() };
        self.lock().by_id.insert(JobId::Displaced(backend, address), job);
        self.changed.notify_waiters();
    }

    /// Does not close them any more: the address is down again.
    pub(crate) fn keep_displaced(&self, backend: &Arc<str>, address: IpAddr) {
        self.lock().by_id.remove(&JobId::Displaced(Arc::clone(backend), address));
    }

    /// Closes the sessions of now evenly over `time`, at most `rate` per second: at that rate where there is no time.
    /// A second call changes both.
    pub(crate) fn close_all(&self, time: Duration, rate: u32) {
        let sessions = u32::try_from(self.registry.count()).unwrap_or(u32::MAX).max(1);
        let step = (time / sessions).max(Duration::from_secs(1) / rate.max(1));
        let job = Job { sessions: Sessions::All { step }, due: Instant::now() + step };
        self.lock().by_id.insert(JobId::Stop, job);
        self.changed.notify_waiters();
    }

    /// Performs the jobs of a task; never returns. `rate`: how many sessions may be closed per second after changes.
    pub(crate) async fn run(&self, task: Task, rate: impl Fn() -> u32) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Before the jobs are read: no later one is missed.
            changed.as_mut().enable();
            match self.step(task, rate()) {
                Some(due) if due <= Instant::now() => yield_now().await,
                Some(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// One step of each job of this task that is due; returns when the next is.
    fn step(&self, task: Task, rate: u32) -> Option<Instant> {
        let now = Instant::now();
        let mut jobs = self.lock();
        let mut next: Option<Instant> = None;
        jobs.by_id.retain(|id, job| {
            if id.task() != task {
                return true;
            }
            if job.due <= now && job.has_more() {
                job.step(id, &self.registry, rate, now);
            }
            let has_more = job.has_more();
            if has_more {
                next = Some(next.map_or(job.due, |next| next.min(job.due)));
            }
            // The pause after the last change counts for those that are reported later.
            has_more || *id == JobId::Changes
        });
        next
    }
}

#[cfg(test)]
mod tests;
