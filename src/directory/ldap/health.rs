//! The health of a directory server, as a state machine without sockets.
//!
//! Its inputs are *requests*, which are operations of logins, and *probes*, which run in the background. A
//! failure of the server itself (no connection, TLS error, reset, busy, unavailable) marks it down at once.
//! A request that times out, or whose reply is malformed, may be caused by one user's entry: a probe
//! decides, and until then other servers are preferred. If requests of two users fail with no success in
//! between, the server is marked down whatever the probe finds.
//!
//! A server that is down is probed again after a growing pause. If a probe had failed, a successful probe is
//! enough; if a request had failed, one request of that kind must succeed first, and only one is sent.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::clock::jittered;
use crate::directory::UnavailableCause;
use crate::directory::ldap::tuning::{Tuning, locked};
use crate::telemetry::labels::DirectoryOperation;

/// A server that fails again within this time after recovery is marked down for longer than before.
const PROBATION: Duration = Duration::from_secs(60);
/// Interval between probes of a down server while no server is in use.
const OUTAGE_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between probes triggered by waiting logins.
const MIN_PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// What an operation was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperationOrigin {
    /// No login: connection setup, the service account's bind, or a probe.
    Probe,
    /// A login.
    Login {
        /// The operation.
        operation: DirectoryOperation,
        /// A hash of the subject of the request.
        subject: u64,
    },
}

#[derive(Debug, Clone, Copy)]
enum ServerState {
    /// In use. `slow`: the last failed request, if none of its kind has succeeded since.
    Healthy { slow: Option<(DirectoryOperation, u64)> },
    /// A request failed, and no probe has finished yet.
    Suspect { slow: (DirectoryOperation, u64) },
    /// Out of use. `needs`: the kind of request that must succeed before the server is healthy.
    Down { needs: Option<DirectoryOperation>, until: Instant },
    /// A probe succeeded; one request may be tried.
    Recovering { needs: DirectoryOperation, taken_until: Option<Instant> },
}

/// The rank of a server for selection, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ServerRank {
    /// One request may be tried.
    Recovering,
    /// In use.
    Healthy,
    /// Used only if no better server is available.
    Suspect,
    /// Not used.
    Down,
}

#[derive(Debug)]
struct HealthInner {
    state: ServerState,
    /// Consecutive times it was marked down.
    failures: u32,
    failed_at: Option<Instant>,
    returned_at: Option<Instant>,
    /// Why it was last marked down.
    cause: UnavailableCause,
    probing: bool,
    probed_at: Option<Instant>,
}

/// The health of one server.
#[derive(Debug)]
pub(crate) struct ServerHealth {
    inner: Mutex<HealthInner>,
    tuning: Tuning,
    /// Notified of every change, for logins that wait for a server to recover.
    changed: watch::Sender<()>,
}

impl ServerHealth {
    /// Healthy until a failure is observed.
    pub(crate) fn new(tuning: Tuning, changed: watch::Sender<()>) -> Self {
        let inner = HealthInner {
            state: ServerState::Healthy { slow: None },
            failures: 0,
            failed_at: None,
            returned_at: None,
            cause: UnavailableCause::Timeout,
            probing: false,
            probed_at: None,
        };
        Self { inner: Mutex::new(inner), tuning, changed }
    }

    /// Records a failure of the server; returns whether it was in use until now.
    pub(crate) fn server_failed(&self, origin: OperationOrigin, cause: &UnavailableCause) -> bool {
        let needs = match origin {
            OperationOrigin::Probe => None,
            OperationOrigin::Login { operation, .. } => Some(operation),
        };
        self.change(|inner| inner.mark_down(needs, cause, &self.tuning))
    }

    /// Records a failed request whose cause may be the request itself; returns whether that marks down a server
    /// that was in use.
    pub(crate) fn request_failed(&self, origin: OperationOrigin, cause: &UnavailableCause) -> bool {
        let OperationOrigin::Login { operation, subject: who } = origin else {
            return self.server_failed(origin, cause);
        };
        self.change(|inner| {
            inner.failed_at = Some(Instant::now());
            let is_other = |slow: (DirectoryOperation, u64)| slow.0 == operation && slow.1 != who;
            match inner.state {
                ServerState::Healthy { slow: Some(slow) } | ServerState::Suspect { slow } if is_other(slow) => {
                    inner.mark_down(Some(operation), cause, &self.tuning)
                }
                ServerState::Healthy { .. } => {
                    inner.state = ServerState::Suspect { slow: (operation, who) };
                    false
                }
                ServerState::Suspect { .. } => false,
                ServerState::Down { .. } | ServerState::Recovering { .. } => {
                    inner.mark_down(Some(operation), cause, &self.tuning)
                }
            }
        })
    }

    /// Records a reply to a request sent at `asked`; returns whether the server recovered.
    pub(crate) fn request_answered(&self, operation: DirectoryOperation, asked: Instant) -> bool {
        if matches!(locked(&self.inner).state, ServerState::Healthy { slow: None }) {
            return false;
        }
        self.change(|inner| match inner.state {
            ServerState::Healthy { slow: Some(slow) } | ServerState::Suspect { slow } if slow.0 == operation => {
                inner.state = ServerState::Healthy { slow: None };
                false
            }
            // A reply to a request sent before the failure says nothing about the time after it.
            ServerState::Down { needs: Some(needs), .. } | ServerState::Recovering { needs, .. }
                if needs == operation && inner.failed_at.is_none_or(|failed| failed <= asked) =>
            {
                inner.mark_up();
                true
            }
            ServerState::Healthy { .. }
            | ServerState::Suspect { .. }
            | ServerState::Down { .. }
            | ServerState::Recovering { .. } => false,
        })
    }

    /// Records a successful probe; returns whether the server recovered.
    pub(crate) fn probe_succeeded(&self) -> bool {
        self.change(|inner| {
            match inner.state {
                ServerState::Down { needs: None, .. } => {
                    inner.mark_up();
                    return true;
                }
                ServerState::Down { needs: Some(needs), .. } => {
                    inner.state = ServerState::Recovering { needs, taken_until: None }
                }
                ServerState::Suspect { slow } => inner.state = ServerState::Healthy { slow: Some(slow) },
                ServerState::Healthy { .. } | ServerState::Recovering { .. } => {}
            }
            false
        })
    }

    /// Whether it failed at or after this moment.
    pub(crate) fn failed_since(&self, moment: Instant) -> bool {
        locked(&self.inner).failed_at.is_some_and(|failed| failed >= moment)
    }

    /// The rank, and when it last failed.
    pub(crate) fn rank(&self) -> (ServerRank, Option<Instant>) {
        let inner = locked(&self.inner);
        let standing = match inner.state {
            ServerState::Healthy { .. } => ServerRank::Healthy,
            ServerState::Suspect { .. } => ServerRank::Suspect,
            ServerState::Recovering { taken_until, .. } if is_over(taken_until) => ServerRank::Recovering,
            ServerState::Recovering { .. } | ServerState::Down { .. } => ServerRank::Down,
        };
        (standing, inner.failed_at)
    }

    /// Whether it is in use: neither down nor recovering.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(locked(&self.inner).state, ServerState::Healthy { .. } | ServerState::Suspect { .. })
    }

    /// Whether a probe is needed to decide.
    pub(crate) fn is_suspect(&self) -> bool {
        matches!(locked(&self.inner).state, ServerState::Suspect { .. })
    }

    /// Whether it is up: 0 in `usher_directory_up` only while it is down.
    pub(crate) fn is_up(&self) -> bool {
        !matches!(locked(&self.inner).state, ServerState::Down { .. })
    }

    /// Why it was last marked down.
    pub(crate) fn last_cause(&self) -> UnavailableCause {
        locked(&self.inner).cause.clone()
    }

    /// Whether a request may be sent now; takes the single trial slot of a recovering server.
    pub(crate) fn enter(&self, trial: Duration) -> bool {
        let mut inner = locked(&self.inner);
        match &mut inner.state {
            ServerState::Healthy { .. } | ServerState::Suspect { .. } => true,
            ServerState::Recovering { taken_until, .. } if is_over(*taken_until) => {
                *taken_until = Some(Instant::now() + trial);
                true
            }
            ServerState::Recovering { .. } | ServerState::Down { .. } => false,
        }
    }

    /// Whether a probe is due; if so, marks it as started. `away`: no server is in use; `awaited`: a login is
    /// waiting.
    pub(crate) fn begin_probe(&self, away: bool, awaited: bool) -> bool {
        let mut inner = locked(&self.inner);
        let now = Instant::now();
        let rested = |pause: Duration| inner.probed_at.is_none_or(|looked| now.duration_since(looked) >= pause);
        let due = match inner.state {
            ServerState::Suspect { .. } => true,
            ServerState::Down { .. } if awaited => rested(MIN_PROBE_INTERVAL),
            ServerState::Down { .. } if away && rested(OUTAGE_PROBE_INTERVAL) => true,
            ServerState::Down { until, .. } => until <= now,
            ServerState::Healthy { .. } | ServerState::Recovering { .. } => rested(self.tuning.probe_interval),
        };
        if inner.probing || !due {
            return false;
        }
        inner.probing = true;
        true
    }

    /// Ends the current probe.
    pub(crate) fn end_probe(&self) {
        self.change(|inner| {
            inner.probing = false;
            inner.probed_at = Some(Instant::now());
        });
    }

    /// Whether a probe has finished since this moment.
    pub(crate) fn probed_since(&self, since: Instant) -> bool {
        locked(&self.inner).probed_at.is_some_and(|looked| looked >= since)
    }

    fn change<T>(&self, change: impl FnOnce(&mut HealthInner) -> T) -> T {
        let told = change(&mut locked(&self.inner));
        self.changed.send_replace(());
        told
    }
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_none_or(|until| until <= Instant::now())
}

impl HealthInner {
    /// Returns whether it was in use until now.
    fn mark_down(&mut self, needs: Option<DirectoryOperation>, cause: &UnavailableCause, tuning: &Tuning) -> bool {
        let was_in_use = matches!(self.state, ServerState::Healthy { .. } | ServerState::Suspect { .. });
        let now = Instant::now();
        self.failed_at = Some(now);
        self.cause = cause.clone();
        let needs = match self.state {
            // Requests in flight when it failed report the same failure.
            ServerState::Down { needs: earlier, until } if now < until => {
                self.state = ServerState::Down { needs: earlier.or(needs), until };
                return false;
            }
            ServerState::Down { needs: earlier, .. } => {
                self.failures = self.failures.saturating_add(1);
                earlier.or(needs)
            }
            ServerState::Recovering { needs: earlier, .. } => {
                self.failures = self.failures.saturating_add(1);
                Some(earlier)
            }
            ServerState::Healthy { .. } | ServerState::Suspect { .. } => {
                let is_early = self.returned_at.is_some_and(|back| now.duration_since(back) < PROBATION);
                self.failures = if is_early { self.failures.saturating_add(1) } else { 1 };
                needs
            }
        };
        let doubled = 1 << self.failures.saturating_sub(1).min(16);
        let pause = tuning.down.saturating_mul(doubled).min(tuning.down_max);
        self.state = ServerState::Down { needs, until: now + jittered(pause) };
        was_in_use
    }

    fn mark_up(&mut self) {
        self.state = ServerState::Healthy { slow: None };
        self.returned_at = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: OperationOrigin = OperationOrigin::Login { operation: DirectoryOperation::Bind, subject: 1 };
    const BOB: OperationOrigin = OperationOrigin::Login { operation: DirectoryOperation::Bind, subject: 2 };
    const SECOND: Duration = Duration::from_secs(1);

    fn health() -> ServerHealth {
        ServerHealth::new(Tuning::default(), watch::Sender::new(()))
    }

    fn rank(health: &ServerHealth) -> ServerRank {
        health.rank().0
    }

    /// A probe that succeeds.
    fn successful_probe(health: &ServerHealth) -> bool {
        let back = health.probe_succeeded();
        health.end_probe();
        back
    }

    #[tokio::test(start_paused = true)]
    async fn failing_server_is_marked_down_for_growing_times() {
        let health = health();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let failed = Instant::now();
            health.server_failed(OperationOrigin::Probe, &UnavailableCause::Timeout);
            health.server_failed(ALICE, &UnavailableCause::Timeout);
            health.request_failed(BOB, &UnavailableCause::Timeout);
            assert!(health.failed_since(failed));
            assert_eq!((rank(&health), health.is_up(), health.enter(SECOND)), (ServerRank::Down, false, false));
            while !health.begin_probe(false, false) {
                tokio::time::advance(Duration::from_millis(100)).await;
            }
            pauses.push(failed.elapsed().as_secs_f64());
            assert!(!health.begin_probe(false, false), "one probe at a time");
            health.end_probe();
        }
        assert!(pauses[0] < 1.4, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause < 36.5), "{pauses:?}");
        assert!(pauses[7] > 23.0, "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_slow_user_is_no_slow_server_and_two_are() {
        let health = health();
        for _ in 0..5 {
            health.request_failed(ALICE, &UnavailableCause::Timeout);
            assert_eq!(rank(&health), ServerRank::Suspect);
            assert!(health.begin_probe(false, false), "a probe decides, at once");
            assert!(!successful_probe(&health));
            assert_eq!(rank(&health), ServerRank::Healthy);
        }
        // A success of another user shows that only alice is affected.
        health.request_answered(DirectoryOperation::Bind, Instant::now());
        health.request_failed(BOB, &UnavailableCause::Timeout);
        assert_eq!(rank(&health), ServerRank::Suspect);
        // A successful search says nothing about binds.
        health.request_answered(DirectoryOperation::Search, Instant::now());
        health.request_failed(ALICE, &UnavailableCause::Timeout);
        assert_eq!(rank(&health), ServerRank::Down);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_operation_must_succeed_for_recovery() {
        let health = health();
        health.server_failed(ALICE, &UnavailableCause::Timeout);
        let before = Instant::now();
        tokio::time::advance(SECOND).await;
        assert!(!health.request_answered(DirectoryOperation::Search, Instant::now()));
        assert!(!successful_probe(&health), "a probe binds no user");
        assert!(!health.is_in_use() && health.is_up());
        assert_eq!(rank(&health), ServerRank::Recovering);
        // One request is tried, no other.
        assert!(health.enter(SECOND));
        assert_eq!((rank(&health), health.enter(SECOND)), (ServerRank::Down, false));
        health.request_failed(BOB, &UnavailableCause::Timeout);
        assert!(!health.is_up());
        assert!(!health.request_answered(DirectoryOperation::Bind, before), "an answer from before the fault");
        successful_probe(&health);
        assert!(health.enter(SECOND));
        // A trial that never reached its bind does not occupy the slot indefinitely.
        tokio::time::advance(SECOND).await;
        assert!(health.enter(SECOND));
        assert!(health.request_answered(DirectoryOperation::Bind, Instant::now()));
        assert!(health.is_in_use());
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_fails_after_recovery_keeps_its_backoff() {
        let health = health();
        let mut pause = Duration::ZERO;
        for _ in 0..5 {
            health.server_failed(OperationOrigin::Probe, &UnavailableCause::Timeout);
            let failed = Instant::now();
            while !health.begin_probe(false, false) {
                tokio::time::advance(Duration::from_millis(50)).await;
            }
            assert!(successful_probe(&health));
            assert!(failed.elapsed() > pause, "{pause:?}");
            pause = failed.elapsed();
        }
        tokio::time::advance(PROBATION).await;
        health.server_failed(OperationOrigin::Probe, &UnavailableCause::Timeout);
        tokio::time::advance(SECOND * 2).await;
        assert!(health.begin_probe(false, false));
    }

    #[tokio::test(start_paused = true)]
    async fn probes_are_sooner_when_fewer_servers_are_healthy() {
        let health = health();
        assert!(health.begin_probe(false, false), "at the start");
        successful_probe(&health);
        assert!(!health.begin_probe(false, false));
        tokio::time::advance(Tuning::default().probe_interval).await;
        assert!(health.begin_probe(false, false));
        successful_probe(&health);
        for _ in 0..9 {
            health.server_failed(OperationOrigin::Probe, &UnavailableCause::Timeout);
            tokio::time::advance(Duration::from_secs(40)).await;
        }
        health.server_failed(OperationOrigin::Probe, &UnavailableCause::Timeout);
        health.end_probe();
        tokio::time::advance(MIN_PROBE_INTERVAL).await;
        assert!(!health.begin_probe(false, false) && !health.begin_probe(true, false));
        assert!(health.begin_probe(false, true), "a login is waiting");
        health.end_probe();
        tokio::time::advance(SECOND).await;
        assert!(!health.begin_probe(false, false));
        assert!(health.begin_probe(true, false), "no other server is in use");
    }
}
