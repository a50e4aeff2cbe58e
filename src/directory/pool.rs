//! The directory's servers: which of them is asked, and what happens when none is of use.
//!
//! Questions go to servers that are well (`health.rs`), in order of preference or in turn; one that
//! gives no verdict passes its question on, once at most. A server that is aside is asked nothing:
//! it is looked at in the background, and sooner while somebody waits. While all are aside the
//! directory is *away*: a login waits for a look, a short time at most (promise 19).

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::health::Standing;
use super::server::{Failure, Server};
use super::{DirectoryError, Presence, Trace, Trouble};
use crate::config::Balance;
use crate::tasks::{self, Task};

/// How long a login may wait for a server to come back; with it, an outage is told within two seconds.
const AWAY_PATIENCE: Duration = Duration::from_millis(1_500);
/// When an outage has been told, once a server did not answer in time: promise 19 says two seconds.
const TOLD: Duration = Duration::from_millis(1_900);
/// How often those who wait for a look see whether another is due.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// A duration give or take a fifth, so that many connections do not end at once.
pub(super) fn jittered(duration: Duration) -> Duration {
    // Each RandomState has keys of its own: chance enough for this, without a dependency.
    let chance = u32::try_from(RandomState::new().hash_one(0) % 400).unwrap_or_default();
    duration.saturating_mul(800 + chance) / 1_000
}

/// The time of one decision, whatever number of questions it takes.
#[derive(Debug)]
pub(super) struct Time {
    began: Instant,
    /// When it is over.
    pub(super) deadline: Instant,
}

impl Time {
    /// From now on, so long.
    pub(super) fn new(timeout: Duration) -> Self {
        let began = Instant::now();
        Self { began, deadline: began + timeout }
    }

    /// A server did not answer within `patience`. What the next one has to tell, it tells soon if it
    /// is well; if it has fallen silent too, the user is not to wait as long a second time.
    fn tighten(&mut self, patience: Duration) {
        let left = (self.began + TOLD).max(Instant::now() + patience / 4);
        self.deadline = self.deadline.min(left);
    }
}

/// The servers.
#[derive(Debug)]
pub(super) struct Pool {
    servers: Vec<Arc<Server>>,
    balance: Balance,
    turn: AtomicUsize,
    changed: watch::Receiver<()>,
    /// As it was told last.
    away: AtomicBool,
}

impl Pool {
    /// Takes the servers in order of preference, and where they tell of changes in their health.
    pub(super) fn new(servers: Vec<Arc<Server>>, balance: Balance, changed: watch::Receiver<()>) -> Self {
        Self { servers, balance, turn: AtomicUsize::new(0), changed, away: AtomicBool::new(false) }
    }

    /// The servers, in order of preference.
    pub(super) fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }

    /// The order in which to ask now. `sticky` goes first whatever its health: it has just answered.
    pub(super) fn tries(&self, time: &Time, sticky: Option<&Arc<Server>>) -> Tries<'_> {
        let turn = match self.balance {
            Balance::First => 0,
            // The second half of a decision goes where the first one went, and takes no turn.
            Balance::RoundRobin if sticky.is_some() => 0,
            Balance::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed) % self.servers.len().max(1),
        };
        let (before, after) = self.servers.split_at_checked(turn).unwrap_or((&self.servers, &[]));
        let others =
            after.iter().chain(before).filter(|server| sticky.is_none_or(|sticky| !Arc::ptr_eq(sticky, server)));
        let mut order: Vec<_> = others.map(|server| (server.health.standing().0, server.clone())).collect();
        order.retain(|(standing, _)| *standing != Standing::Out);
        // Stable: among equals it is the order of preference, or the turn.
        order.sort_by_key(|(standing, _)| *standing);
        Tries {
            pool: self,
            first: sticky.cloned(),
            order: order.into_iter().map(|(_, server)| server).collect(),
            asked: Vec::new(),
            until: time.deadline.min(Instant::now() + AWAY_PATIENCE),
            spare: true,
            last: None,
        }
    }

    /// Has every server looked at that is due for it; to be called again and again. Says when the
    /// directory goes away and when it is back.
    pub(super) fn look_after(&self) {
        let away = !self.is_there();
        for server in &self.servers {
            look_if_due(server, away, false);
        }
        if self.away.swap(away, Ordering::Relaxed) == away {
            return;
        }
        if away {
            warn!("the directory is away: no server is in use; who is known within cache.stale still gets in");
        } else {
            info!("the directory is back");
        }
    }

    /// Whether a server is in use.
    pub(super) fn is_there(&self) -> bool {
        self.servers.iter().any(|server| server.health.is_in_use())
    }

    /// What may be expected of the servers.
    pub(super) fn presence(&self) -> Presence {
        if self.is_there() {
            Presence::There
        } else if self.servers.iter().any(|server| server.health.standing().0 == Standing::OnTrial) {
            Presence::Returning
        } else {
            Presence::Away
        }
    }

    /// As [`Pool::presence`], once looks have told what there is to suspect; waits for them for so long.
    pub(super) async fn settled(&self, patience: Duration) -> Presence {
        let mut changed = self.changed.clone();
        let settled = async {
            loop {
                changed.mark_unchanged();
                let in_use = self.servers.iter().filter(|server| server.health.is_in_use());
                let mut suspected = in_use.clone().filter(|server| server.health.is_suspected());
                if in_use.count() > suspected.clone().count() || suspected.next().is_none() {
                    return;
                }
                self.servers.iter().for_each(|server| look_if_due(server, false, true));
                // Its senders live in the servers, which live in this pool.
                let _ = changed.changed().await;
            }
        };
        // If it takes too long, it is what it is.
        let _ = timeout(patience, settled).await;
        self.presence()
    }

    /// Waits until one of these may be asked, and has them looked at meanwhile.
    async fn wait_for(&self, candidates: &[Arc<Server>], until: Instant) -> Option<Arc<Server>> {
        let (mut changed, began) = (self.changed.clone(), Instant::now());
        let waiting = async {
            loop {
                changed.mark_unchanged();
                if let Some(server) = candidates.iter().find(|server| server.enter()) {
                    return Some(server.clone());
                }
                candidates.iter().for_each(|server| look_if_due(server, false, true));
                // Somebody tries it right now, or nobody has looked since we came.
                let is_open = |server: &Arc<Server>| server.health.is_up() || !server.health.was_looked_at(began);
                if !candidates.iter().any(is_open) {
                    return None;
                }
                // A change, or the time for the next look.
                let _ = timeout(LOOK_AROUND, changed.changed()).await;
            }
        };
        timeout_at(until, waiting).await.ok().flatten()
    }
}

/// Starts a look in the background if it is time for one.
pub(super) fn look_if_due(server: &Arc<Server>, away: bool, awaited: bool) {
    if server.health.begin_look(away, awaited) {
        let looking = Looking(Arc::clone(server));
        tokio::spawn(async move {
            // What it finds is in `health` by then.
            let _ = tasks::once(Task::DirectoryProbe, &looking.0.metrics.task_restarts, looking.0.look()).await;
        });
    }
}

/// A look under way; over when dropped, however it ends.
struct Looking(Arc<Server>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.health.end_look();
    }
}

/// The servers that one question may still go to.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    pool: &'a Pool,
    first: Option<Arc<Server>>,
    order: VecDeque<Arc<Server>>,
    asked: Vec<Arc<Server>>,
    /// How long to wait for one that is aside.
    until: Instant,
    /// Whether one more server may be asked after one that gave no verdict.
    spare: bool,
    last: Option<Trouble>,
}

impl Tries<'_> {
    /// The next server, or the last one's trouble.
    pub(super) async fn next(&mut self, time: &Time, trace: &mut Trace) -> Result<Arc<Server>, DirectoryError> {
        let mut next = self.first.take();
        while next.is_none()
            && let Some(server) = self.order.pop_front()
        {
            next = server.enter().then_some(server);
        }
        if next.is_none() {
            let was_asked = |server: &Arc<Server>| self.asked.iter().any(|asked| Arc::ptr_eq(asked, server));
            let left: Vec<_> = self.pool.servers.iter().filter(|server| !was_asked(server)).cloned().collect();
            next = self.pool.wait_for(&left, self.until).await;
            if let (None, None, Some(server)) = (&next, &self.last, left.first()) {
                let trouble = server.health.trouble();
                (trace.server, trace.code) = (Some(server.url.clone()), trouble.code());
                self.last = Some(trouble);
            }
        }
        match next.filter(|_| Instant::now() < time.deadline) {
            Some(server) => {
                self.asked.push(server.clone());
                Ok(server)
            }
            None => Err(DirectoryError::CannotTell(self.last.clone().unwrap_or(Trouble::Timeout))),
        }
    }

    /// Notes that a server is not asked, because another would know more.
    pub(super) fn pass_over(&mut self, trouble: Trouble) {
        self.last = self.last.take().or(Some(trouble));
    }

    /// Notes that a server gave no verdict; an error if no other may be asked.
    pub(super) fn note(&mut self, failure: Failure, time: &mut Time) -> Result<(), DirectoryError> {
        match failure {
            Failure::Unasked(trouble) => self.last = Some(trouble),
            Failure::Unsure(trouble) if self.spare => {
                self.spare = false;
                self.last = Some(trouble);
            }
            Failure::Unsure(trouble) | Failure::Answered(trouble) => return Err(DirectoryError::CannotTell(trouble)),
        }
        if let Some(server) = self.asked.last() {
            server.passed_on();
            if matches!(self.last, Some(Trouble::Timeout)) {
                time.tighten(server.patience);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_at_most_a_fifth() {
        for _ in 0..1_000 {
            let second = jittered(Duration::from_secs(10));
            assert!(second >= Duration::from_secs(8) && second < Duration::from_secs(12));
        }
    }
    #[tokio::test(start_paused = true)]
    async fn silent_server_leaves_the_remaining_time_to_the_next() {
        let decision = Duration::from_secs(5);
        for (patience, told) in [(1_200, 1_900), (300, 1_900), (1_900, 2_375), (4_000, 5_000), (4_900, 5_000)] {
            let (patience, began) = (Duration::from_millis(patience), Instant::now());
            let mut time = Time::new(decision);
            tokio::time::advance(patience).await;
            time.tighten(patience);
            assert_eq!(time.deadline - began, Duration::from_millis(told), "{patience:?}");
        }
    }
}
