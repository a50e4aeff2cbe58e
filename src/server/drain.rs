//! The end of a process: load balancers look away, accepting ends, sessions are closed one by one at the configured
//! rate, and what is left at the deadline is closed at once. It takes no longer than the sessions need.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};
use tracing::info;

use super::{Server, StopSignals};
use crate::process::Stage;
use crate::trace::TraceEnd;

/// How long closed sessions may take to say goodbye at the end: a pause and the closing line of a relay.
const LAST_FAREWELL: Duration = Duration::from_secs(5);
/// How long an answer on the control socket may take at the end.
const LAST_ANSWER: Duration = Duration::from_secs(1);

impl Server {
    /// Ends the process as `drain` says; a signal meanwhile means now. `reason`: why, for the log.
    pub(super) async fn drain(&mut self, stop: &mut StopSignals, reason: &'static str) {
        let settings = self.shared.snapshot.load().config.drain.clone();
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        info!(reason, sessions = self.shared.registry.count(), delay = ?settings.delay, deadline = ?settings.deadline, "draining");
        self.shared.stage.send_replace(Stage::Leaving);
        self.shared.traces.end_all(TraceEnd::Drain);
        let hurried = tokio::select! {
            () = sleep(settings.delay) => false,
            () = stop.recv() => true,
        };
        self.close_listeners();
        self.shared.stage.send_replace(Stage::Draining);
        if !hurried {
            let pace = (Duration::ZERO, settings.max_closes_per_second);
            self.close_sessions(pace, settings.deadline, stop).await;
        }
        self.finish(reason).await;
    }

    /// Closes sessions, evenly over a time or at a rate, until all are closed or the deadline has come; returns
    /// whether a signal came before.
    pub(super) async fn close_sessions(
        &self,
        (over, rate): (Duration, u32),
        time: Duration,
        stop: &mut StopSignals,
    ) -> bool {
        self.shared.closer.close_all(over, rate);
        tokio::select! {
            () = self.shared.connections_closed() => false,
            () = sleep(time) => false,
            () = stop.recv() => true,
        }
    }

    /// Closes whatever is left, and says that it is done.
    pub(super) async fn finish(&mut self, reason: &'static str) {
        let closed = self.shared.registry.count();
        self.shared.traces.end_all(TraceEnd::Drain);
        self.shared.registry.end_all();
        let _ = timeout(LAST_FAREWELL, self.shared.connections_closed()).await;
        self.shared.postfix.close();
        let _ = timeout(LAST_ANSWER, self.shared.postfix.wait()).await;
        if let Some(file) = &self.control {
            file.remove();
        }
        if let Some(fleet) = &self.shared.fleet {
            fleet.leave().await;
        }
        // The caller of an upgrade gets its reply, even if this process has nothing else to do.
        self.supervisor.end(LAST_ANSWER).await;
        info!(reason, sessions = closed, "stopped");
        self.shared.log.close();
    }
}
