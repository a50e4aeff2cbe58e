//! The end of a process: load balancers look away, accepting ends, sessions are closed one by one,
//! and what is left at the deadline is closed at once.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use super::{Server, StopSignals};
use crate::login::core::Stage;
use crate::sessions::registry::Registry;

/// How long closed sessions may take to say goodbye at the end.
const LAST_FAREWELL: Duration = Duration::from_secs(3);
/// How long an answer on the control socket may take at the end.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// Sessions are closed in groups no further apart than this.
const STEP: Duration = Duration::from_millis(20);

impl Server {
    /// Ends the process as `drain` says; a signal meanwhile means now.
    pub(super) async fn drain(&mut self, stop: &mut StopSignals) {
        let settings = self.shared.snapshot.load().config.drain.clone();
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        info!(sessions = self.shared.registry.count(), delay = ?settings.delay, deadline = ?settings.deadline, "draining");
        self.shared.stage.send_replace(Stage::Leaving);
        let hurried = tokio::select! {
            () = sleep(settings.delay) => false,
            () = stop.recv() => true,
        };
        self.close_listeners();
        self.shared.stage.send_replace(Stage::Draining);
        if !hurried {
            self.close_sessions(settings.deadline, settings.max_closes_per_second, stop).await;
        }
        self.finish().await;
    }

    /// Closes sessions until all are closed or the time is over; returns whether a signal came before.
    pub(super) async fn close_sessions(&self, time: Duration, rate: u32, stop: &mut StopSignals) -> bool {
        tokio::select! {
            () = self.shared.connections_closed() => false,
            () = close_evenly(&self.shared.registry, time, rate) => false,
            () = stop.recv() => true,
        }
    }

    /// Closes whatever is left, and says that it is done.
    pub(super) async fn finish(&mut self) {
        self.shared.registry.end_all();
        let _ = timeout(LAST_FAREWELL, self.shared.connections_closed()).await;
        if let Some(file) = &self.control {
            file.remove();
        }
        // The caller of an upgrade gets its reply, even if this process has nothing else to do.
        self.supervisor.end(LAST_ANSWER).await;
        info!("stopped");
        self.shared.log.close();
    }
}

/// Closes the sessions of now evenly over `time`, oldest first, at most `rate` in a second. Whoever
/// logs out meanwhile spares the last ones. Ends with the time.
async fn close_evenly(registry: &Registry, time: Duration, rate: u32) {
    let began = Instant::now();
    let pace = (registry.count() as f64 / time.as_secs_f64()).min(f64::from(rate));
    let mut closed = 0.0;
    loop {
        let elapsed = began.elapsed();
        if elapsed >= time {
            return;
        }
        while closed + 1.0 <= pace * elapsed.as_secs_f64() && registry.end_oldest() {
            closed += 1.0;
        }
        sleep(STEP.min(time - elapsed)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;
    use crate::sessions::registry::{Session, SessionBasis};

    /// When, after the start, each of these sessions is asked to end, in seconds.
    async fn ends(sessions: u32, time: u64, rate: u32) -> Vec<f64> {
        let registry = Arc::new(Registry::default());
        let mut waiting = JoinSet::new();
        let began = Instant::now();
        for _ in 0..sessions {
            let session = Session {
                id: registry.next_id(),
                login: "alice".into(),
                dn: "uid=alice".into(),
                client: IpAddr::from([127, 0, 0, 1]),
                protocol: "imap".into(),
                backend: "server3".into(),
                since: 0,
            };
            let (listed, asked) = registry.list(session, SessionBasis::for_tests("uid=alice"));
            waiting.spawn(async move {
                asked.await;
                drop(listed);
                began.elapsed().as_secs_f64()
            });
        }
        close_evenly(&registry, Duration::from_secs(time), rate).await;
        registry.end_all();
        let mut ends = waiting.join_all().await;
        ends.sort_by(f64::total_cmp);
        ends
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_closed_evenly_until_the_deadline() {
        let ends = ends(10, 30, 100).await;
        for (index, end) in ends.iter().enumerate() {
            let due = 3.0 * (index + 1) as f64;
            assert!((end - due).abs() < 0.1, "{ends:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn drain_rate_is_bounded_until_the_deadline() {
        let ends = ends(1_000, 5, 100).await;
        let before = |second: f64| ends.iter().filter(|end| **end < second - 0.01).count();
        for second in 1..=4_u32 {
            let closed = before(f64::from(second));
            assert!((95 * second as usize..=100 * second as usize).contains(&closed), "{closed} in {second}s");
        }
        assert!(before(5.0) <= 500);
        assert!((ends[999] - 5.0).abs() < 0.1, "{}", ends[999]);
    }

    #[tokio::test(start_paused = true)]
    async fn drain_without_time_waits_for_nothing() {
        assert!(ends(3, 0, 100).await.iter().all(|end| *end < 0.1));
    }
}
