//! The directory's servers: which one is asked, and failover.
//!
//! Requests go to healthy servers (`health.rs`), in order of preference or round robin; if one gives no
//! verdict, the request fails over once at most. A server that is down gets no requests: it is probed in the
//! background, and sooner while a login is waiting. While all servers are down the directory is *unreachable*:
//! a login waits for a probe for a short time at most (promise 19).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use crate::base::tasks::{self, Task};
use crate::config::Balance;
use crate::directory::ldap::error::RequestError;
use crate::directory::ldap::health::ServerRank;
use crate::directory::ldap::server::Server;
use crate::directory::ldap::server_set::ServerSet;
use crate::directory::{Availability, DirectoryError, Trace, UnavailableCause};

/// How long a login may wait for a server to recover; with it, an outage is reported within two seconds.
const RECOVERY_WAIT: Duration = Duration::from_millis(1_500);
/// When an outage must have been reported after a server did not answer in time: promise 19 says two seconds.
const FAILURE_REPLY_TIME: Duration = Duration::from_millis(1_900);
/// How often waiting logins check whether another probe is due.
const PROBE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The time budget of one decision, however many requests it takes.
#[derive(Debug)]
pub(crate) struct DecisionTime {
    began: Instant,
    /// When the budget ends.
    pub(crate) deadline: Instant,
}

impl DecisionTime {
    /// From now on, so long.
    pub(crate) fn new(timeout: Duration) -> Self {
        let began = Instant::now();
        Self { began, deadline: began + timeout }
    }

    /// A server did not answer within `patience`. A healthy server answers soon; if the next one is silent too,
    /// the user must not wait as long a second time.
    fn tighten(&mut self, patience: Duration) {
        let left = (self.began + FAILURE_REPLY_TIME).max(Instant::now() + patience / 4);
        self.deadline = self.deadline.min(left);
    }
}

/// The servers, with their selection state.
#[derive(Debug)]
pub(crate) struct ServerPool {
    server_set: Arc<ServerSet>,
    balance: Balance,
    turn: AtomicUsize,
    changed: watch::Receiver<()>,
    /// The state that was last logged.
    unreachable: AtomicBool,
}

impl ServerPool {
    /// Takes the servers, and the channel that reports changes of them and of their health.
    pub(crate) fn new(server_set: Arc<ServerSet>, balance: Balance, changed: watch::Receiver<()>) -> Self {
        Self { server_set, balance, turn: AtomicUsize::new(0), changed, unreachable: AtomicBool::new(false) }
    }

    /// Waits until a server that is or was down is up again.
    pub(crate) async fn recovery(&self) {
        let (mut changed, mut down) = (self.changed.clone(), Vec::<Arc<Server>>::new());
        loop {
            changed.mark_unchanged();
            if down.iter().any(|server| server.health().is_up()) {
                return;
            }
            down = self.server_set.list().iter().filter(|server| !server.health().is_up()).cloned().collect();
            // Its senders live in the set of servers, which lives in this pool.
            let _ = changed.changed().await;
        }
    }

    /// The servers, and where they are from.
    pub(crate) const fn server_set(&self) -> &Arc<ServerSet> {
        &self.server_set
    }

    /// The servers to ask, in order. `sticky` goes first whatever its health: it has just answered.
    pub(crate) fn candidates(&self, time: &DecisionTime, sticky: Option<&Arc<Server>>) -> ServerCandidates<'_> {
        let turn = match self.balance {
            Balance::First => 0,
            // The second step of a decision goes to the same server, and does not advance the rotation.
            Balance::RoundRobin if sticky.is_some() => 0,
            Balance::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed),
        };
        let list = self.server_set.list();
        let others = list.order(self.balance, turn).into_iter();
        let others = others.filter(|server| sticky.is_none_or(|sticky| !Arc::ptr_eq(sticky, server)));
        let mut order: Vec<_> = others.map(|server| (server.health().rank().0, Arc::clone(server))).collect();
        order.retain(|(standing, _)| *standing != ServerRank::Down);
        // Stable sort: servers of equal rank keep the order of preference or rotation.
        order.sort_by_key(|(standing, _)| *standing);
        ServerCandidates {
            pool: self,
            first: sticky.cloned(),
            order: order.into_iter().map(|(_, server)| server).collect(),
            asked: Vec::new(),
            until: time.deadline.min(Instant::now() + RECOVERY_WAIT),
            may_fail_over: true,
            last: None,
        }
    }

    /// Starts the probes that are due; called periodically. Logs when the directory becomes unreachable and
    /// when it recovers.
    pub(crate) fn run_probes(&self) {
        let away = !self.is_available();
        self.server_set.look_up_due(away, false);
        for server in self.server_set.list().iter() {
            probe_if_due(server, away, false);
        }
        if self.unreachable.swap(away, Ordering::Relaxed) == away {
            return;
        }
        if away {
            warn!(directory = self.shown(), "directory unreachable; serving cached users for up to cache.stale");
        } else {
            info!(directory = self.shown(), "directory reachable again");
        }
    }

    /// The directory's name, where there are several.
    fn shown(&self) -> Option<&'static str> {
        self.server_set.shown()
    }

    /// Whether a server is in use.
    pub(crate) fn is_available(&self) -> bool {
        self.server_set.list().iter().any(|server| server.health().is_in_use())
    }

    /// The availability of the directory.
    pub(crate) fn availability(&self) -> Availability {
        if self.is_available() {
            Availability::Available
        } else if self.server_set.list().iter().any(|server| server.health().rank().0 == ServerRank::Recovering) {
            Availability::Recovering
        } else {
            Availability::Unreachable
        }
    }

    /// As [`ServerPool::availability`], after probes of suspect servers have finished; waits at most
    /// `patience`.
    pub(crate) async fn settled_availability(&self, patience: Duration) -> Availability {
        let mut changed = self.changed.clone();
        let settled = async {
            loop {
                changed.mark_unchanged();
                let list = self.server_set.list();
                let in_use = list.iter().filter(|server| server.health().is_in_use());
                let mut suspected = in_use.clone().filter(|server| server.health().is_suspect());
                if in_use.count() > suspected.clone().count() || suspected.next().is_none() {
                    return;
                }
                list.iter().for_each(|server| probe_if_due(server, false, true));
                // Its senders live in the set of servers, which lives in this pool.
                let _ = changed.changed().await;
            }
        };
        // On timeout the current state is returned.
        let _ = timeout(patience, settled).await;
        self.availability()
    }

    /// The servers in force that are none of these.
    fn others(&self, asked: &[Arc<Server>]) -> Vec<Arc<Server>> {
        let was_asked = |server: &Arc<Server>| asked.iter().any(|asked| Arc::ptr_eq(asked, server));
        self.server_set.list().iter().filter(|server| !was_asked(server)).cloned().collect()
    }

    /// Waits until a server other than these may be asked, and starts probes and look-ups meanwhile.
    async fn wait_for(&self, asked: &[Arc<Server>], until: Instant) -> Option<Arc<Server>> {
        let (mut changed, began) = (self.changed.clone(), Instant::now());
        let waiting = async {
            loop {
                changed.mark_unchanged();
                self.server_set.look_up_due(false, true);
                // Read before the list: the answer of a look-up that ends in between is in the list.
                let is_looking = self.server_set.is_looking();
                let candidates = self.others(asked);
                if let Some(server) = candidates.iter().find(|server| server.enter()) {
                    return Some(server.clone());
                }
                candidates.iter().for_each(|server| probe_if_due(server, false, true));
                // A trial is in progress, or no probe has finished since the wait began.
                let is_open = |server: &Arc<Server>| server.health().is_up() || !server.health().probed_since(began);
                // DNS may name others.
                let is_named = is_looking && (asked.is_empty() || candidates.is_empty());
                if !is_named && !candidates.iter().any(is_open) {
                    return None;
                }
                // Until a change, or until the next probe is due.
                let _ = timeout(PROBE_CHECK_INTERVAL, changed.changed()).await;
            }
        };
        timeout_at(until, waiting).await.ok().flatten()
    }
}

/// Starts a probe in the background if it is due.
pub(crate) fn probe_if_due(server: &Arc<Server>, away: bool, awaited: bool) {
    if server.health().begin_probe(away, awaited) {
        let looking = ProbeGuard(Arc::clone(server));
        tokio::spawn(async move {
            // The result is recorded in `health` by then.
            let _ = tasks::once(Task::DirectoryProbe, &looking.0.endpoint.metrics.task_restarts, looking.0.run_probe())
                .await;
        });
    }
}

/// A probe in progress; ends when dropped.
struct ProbeGuard(Arc<Server>);

impl Drop for ProbeGuard {
    fn drop(&mut self) {
        self.0.health().end_probe();
    }
}

/// The servers that a request may still go to.
#[derive(Debug)]
pub(crate) struct ServerCandidates<'a> {
    pool: &'a ServerPool,
    first: Option<Arc<Server>>,
    order: VecDeque<Arc<Server>>,
    asked: Vec<Arc<Server>>,
    /// How long to wait for a down server.
    until: Instant,
    /// Whether one more server may be asked after an indeterminate result.
    may_fail_over: bool,
    last: Option<UnavailableCause>,
}

impl ServerCandidates<'_> {
    /// The next server, or the last failure.
    pub(crate) async fn next(&mut self, time: &DecisionTime, trace: &mut Trace) -> Result<Arc<Server>, DirectoryError> {
        let mut next = self.first.take();
        while next.is_none()
            && let Some(server) = self.order.pop_front()
        {
            next = server.enter().then_some(server);
        }
        if next.is_none() {
            next = self.pool.wait_for(&self.asked, self.until).await;
            if next.is_none() && self.last.is_none() {
                let cause = match self.pool.others(&self.asked).first() {
                    Some(server) => {
                        trace.server = Some(server.url.clone());
                        server.health().last_cause()
                    }
                    None => self.pool.server_set.cause(),
                };
                trace.record(cause.result());
                self.last = Some(cause);
            }
        }
        match next.filter(|_| Instant::now() < time.deadline) {
            Some(server) => {
                self.asked.push(server.clone());
                Ok(server)
            }
            None => Err(DirectoryError::Unavailable(self.last.clone().unwrap_or(UnavailableCause::Timeout))),
        }
    }

    /// Records that a server is skipped because it has not caught up.
    pub(crate) fn pass_over(&mut self, cause: UnavailableCause) {
        self.last = self.last.take().or(Some(cause));
    }

    /// Records that a server gave no verdict; an error if no other may be asked.
    pub(crate) fn note(&mut self, failure: RequestError, time: &mut DecisionTime) -> Result<(), DirectoryError> {
        match failure {
            RequestError::NotSent(cause) => self.last = Some(cause),
            RequestError::Indeterminate(cause) if self.may_fail_over => {
                self.may_fail_over = false;
                self.last = Some(cause);
            }
            RequestError::Indeterminate(cause) | RequestError::Answered(cause) => {
                return Err(DirectoryError::Unavailable(cause));
            }
        }
        if let Some(server) = self.asked.last() {
            server.endpoint.count_failover();
            if matches!(self.last, Some(UnavailableCause::Timeout)) {
                time.tighten(server.endpoint.patience);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silent_server_leaves_the_remaining_time_to_the_next() {
        let decision = Duration::from_secs(5);
        for (patience, told) in [(1_200, 1_900), (300, 1_900), (1_900, 2_375), (4_000, 5_000), (4_900, 5_000)] {
            let (patience, began) = (Duration::from_millis(patience), Instant::now());
            let mut time = DecisionTime::new(decision);
            tokio::time::advance(patience).await;
            time.tighten(patience);
            assert_eq!(time.deadline - began, Duration::from_millis(told), "{patience:?}");
        }
    }
}
