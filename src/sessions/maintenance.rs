//! Administrative actions: sessions that end at a pace, and backends that are being drained.
//!
//! State survives a reload and is handed over in an upgrade; nothing is written to disk. Access is controlled
//! by the control socket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::base::clock::unix_now;
use crate::base::tasks::{self, Task};
use crate::sessions::id::SessionId;
use crate::sessions::registry::{Registry, TerminationReason};
use crate::telemetry::metrics::Metrics;

/// How often a drained backend is checked for sessions that were about to begin.
const SCAN_INTERVAL: Duration = Duration::from_millis(250);

/// A backend that is being drained: it gets no new login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drain {
    /// Since when, Unix seconds.
    pub since: u64,
    /// How many of its sessions are closed in a second; 0: they end by themselves.
    pub rate: u32,
}

/// The actions in progress.
#[derive(Debug)]
pub(crate) struct AdminActions {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    drained: Mutex<BTreeMap<Arc<str>, BackendDrain>>,
}

#[derive(Debug)]
struct BackendDrain {
    drain: Drain,
    task: Option<AbortHandle>,
}

impl Drop for BackendDrain {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl AdminActions {
    /// No action is in progress.
    #[must_use]
    pub(crate) fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self { registry, metrics, drained: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, BackendDrain>> {
        self.drained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends these sessions one after another, evenly over this time; returns at once.
    pub(crate) fn kick(&self, sessions: Vec<SessionId>, over: Duration) {
        let (registry, metrics) = (Arc::clone(&self.registry), Arc::clone(&self.metrics));
        let ending = async move {
            let began = Instant::now();
            let share = over.as_secs_f64() / sessions.len().max(1) as f64;
            for (nth, session) in sessions.into_iter().enumerate() {
                sleep_until(began + Duration::from_secs_f64(share * nth as f64)).await;
                registry.end(session, TerminationReason::Kicked);
            }
        };
        tokio::spawn(async move { tasks::once(Task::Kick, &metrics.task_restarts, ending).await });
    }

    /// Sends no new login to this backend, and closes its sessions, oldest first, `rate` per second. A second
    /// call changes the rate.
    pub(crate) fn drain(&self, backend: &str, rate: u32) -> Drain {
        let mut drained = self.lock();
        let since = drained.get(backend).map_or_else(unix_now, |before| before.drain.since);
        let (registry, name): (_, Arc<str>) = (Arc::clone(&self.registry), backend.into());
        let closing = (rate > 0).then(|| {
            let (name, metrics) = (Arc::clone(&name), Arc::clone(&self.metrics));
            let make = move || close(Arc::clone(&registry), Arc::clone(&name), rate);
            tokio::spawn(async move { tasks::keep(Task::BackendDrain, &metrics.task_restarts, make).await })
        });
        let drain = Drain { since, rate };
        drained.insert(name, BackendDrain { drain, task: closing.map(|task| task.abort_handle()) });
        drain
    }

    /// Sends users to this backend again; whether it was drained.
    pub(crate) fn undrain(&self, backend: &str) -> bool {
        self.lock().remove(backend).is_some()
    }

    /// Whether a backend is drained, and how.
    #[must_use]
    pub(crate) fn drained(&self, backend: &str) -> Option<Drain> {
        self.lock().get(backend).map(|draining| draining.drain)
    }

    /// Every backend that is drained.
    #[must_use]
    pub(crate) fn drains(&self) -> Vec<(Arc<str>, Drain)> {
        self.lock().iter().map(|(backend, draining)| (Arc::clone(backend), draining.drain)).collect()
    }

    /// Forgets backends that are not configured any more; returns their names.
    pub(crate) fn keep(&self, configured: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let mut drained = self.lock();
        let gone: Vec<_> = drained.keys().filter(|backend| !configured(backend)).cloned().collect();
        drained.retain(|backend, _| configured(backend));
        gone
    }
}

/// Closes a backend's sessions, including those of logins already routed. Never returns.
async fn close(registry: Arc<Registry>, backend: Arc<str>, rate: u32) {
    let pause = Duration::from_secs(1) / rate.max(1);
    loop {
        for session in registry.sessions().into_iter().filter(|session| session.backend == backend) {
            if registry.end(session.id, TerminationReason::BackendDrained) {
                sleep(pause).await;
            }
        }
        sleep(SCAN_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::task::JoinSet;

    use super::*;
    use crate::sessions::registry::{Session, SessionBasis};

    fn session(registry: &Registry, backend: &str) -> Session {
        Session {
            id: registry.next_id(),
            login: "alice".into(),
            dn: "uid=alice".into(),
            client: IpAddr::from([127, 0, 0, 1]),
            protocol: "imap".into(),
            backend: backend.into(),
            since: 0,
        }
    }

    /// Lists sessions; each reports when and why it was asked to end.
    fn list(
        registry: &Arc<Registry>,
        backend: &str,
        count: usize,
        ends: &mut JoinSet<(f64, TerminationReason)>,
    ) -> Vec<SessionId> {
        let began = Instant::now();
        let mut ids = Vec::new();
        for _ in 0..count {
            let session = session(registry, backend);
            ids.push(session.id);
            let (listed, asked) = registry.list(session, SessionBasis::for_tests("uid=alice"));
            ends.spawn(async move {
                let why = asked.await;
                drop(listed);
                (began.elapsed().as_secs_f64(), why)
            });
        }
        ids
    }

    #[tokio::test(start_paused = true)]
    async fn kicked_sessions_end_evenly_over_the_time() {
        let registry = Arc::new(Registry::default());
        let steer = AdminActions::new(Arc::clone(&registry), Arc::default());
        let mut ends = JoinSet::new();
        let ids = list(&registry, "server3", 10, &mut ends);
        steer.kick(ids, Duration::from_secs(60));
        let mut ends = ends.join_all().await;
        ends.sort_by(|one, other| one.0.total_cmp(&other.0));
        for (nth, (at, why)) in ends.into_iter().enumerate() {
            assert_eq!(why, TerminationReason::Kicked);
            assert!((at - 6.0 * nth as f64).abs() < 0.1, "number {nth} at {at}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn drained_backend_loses_its_sessions_at_the_rate_and_no_others() {
        let registry = Arc::new(Registry::default());
        let steer = AdminActions::new(Arc::clone(&registry), Arc::default());
        let (mut ends, mut others) = (JoinSet::new(), JoinSet::new());
        list(&registry, "server3", 20, &mut ends);
        list(&registry, "server4", 1, &mut others);
        let drain = steer.drain("server3", 10);
        assert_eq!((steer.drained("server3"), steer.drained("server4")), (Some(drain), None));
        // A login that had passed before the drain began.
        sleep(Duration::from_secs(1)).await;
        list(&registry, "server3", 1, &mut ends);
        let ends = ends.join_all().await;
        assert!(ends.iter().all(|(_, why)| *why == TerminationReason::BackendDrained));
        let latest = ends.iter().map(|(at, _)| *at).fold(0.0, f64::max);
        assert!((1.5..2.5).contains(&latest), "{latest}");
        assert_eq!(registry.count(), 1);
        assert!(others.try_join_next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn undrain_stops_the_task_and_another_rate_starts_another() {
        let registry = Arc::new(Registry::default());
        let steer = AdminActions::new(Arc::clone(&registry), Arc::default());
        let mut ends = JoinSet::new();
        list(&registry, "server3", 3, &mut ends);
        steer.drain("server3", 0);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(registry.count(), 3, "rate 0 closes no session");
        steer.drain("server3", 1);
        sleep(Duration::from_millis(1_500)).await;
        assert_eq!(registry.count(), 1);
        assert!(steer.undrain("server3") && !steer.undrain("server3"));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(registry.count(), 1);
        steer.drain("server3", 1);
        steer.drain("server4", 1);
        assert_eq!(steer.keep(|backend| backend == "server3"), vec![Arc::from("server4")]);
        assert_eq!(steer.drains().len(), 1);
    }
}
