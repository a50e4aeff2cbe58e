//! Tasks of the whole process, as distinct from those of one session: each is run by an owner that awaits it.
//!
//! A task that panics is counted (`usher_task_restarts_total`), logged and started again after a pause. One
//! that ends by itself, such as a probe, is not repeated here: its next turn is the restart. The text of a
//! panic is never logged; the process's hook counts and locates it.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use prometheus::IntCounterVec;
use tokio::time::{Instant, sleep};
use tracing::error;

use crate::base::labels::labels;

/// Before the first restart; twice as long before each that follows soon.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A task that has run for this long did not fail at start.
const SOUND: Duration = Duration::from_secs(60);
/// How often in a row a vital task may fail soon after its start.
const VITAL_RESTARTS: u32 = 5;

labels! {
    /// A task of the process, by what it does.
    pub(crate) enum Task {
        /// Accepts clients at one listener.
        Listener => "listener",
        /// Accepts nginx' requests.
        AuthHttp => "auth_http",
        /// Accepts connections of Postfix.
        Socketmap => "socketmap",
        /// Accepts connections at the side port.
        SidePort => "side_port",
        /// Accepts connections at the control socket.
        Control => "control",
        /// Samples counters for the status page.
        StatusSamples => "status_samples",
        /// Waits for the directory's first reply.
        DirectoryAwait => "directory_await",
        /// Follows changes of the directory.
        DirectoryWatch => "directory_watch",
        /// Ends sessions that a directory change invalidates, and all when the process stops.
        SessionCloser => "session_closer",
        /// Starts the probes of directory servers and backends when they are due.
        Probes => "probes",
        /// Counts the sessions of the processes before an upgrade.
        PreviousSessions => "previous_sessions",
        /// One probe of a directory server.
        DirectoryProbe => "directory_probe",
        /// Closes unused connections to a directory server.
        DirectorySweep => "directory_sweep",
        /// One probe of a backend's address.
        BackendProbe => "backend_probe",
        /// One look-up of the names of a backend, or of directory servers.
        Resolver => "resolver",
        /// One fetch of the keys of a token issuer.
        TokenKeys => "token_keys",
        /// Keeps the connection to the fleet's store.
        FleetLink => "fleet_link",
        /// Receives and sends the fleet's messages.
        FleetChannel => "fleet_channel",
        /// Carries out commands of other nodes of the fleet.
        FleetCommands => "fleet_commands",
        /// Shares the brake with other nodes of the fleet.
        FleetBrake => "fleet_brake",
        /// Writes to the fleet's store what no login waits for.
        FleetWrites => "fleet_writes",
        /// Writes the sessions of users to the fleet's store again where they are lost.
        FleetSessions => "fleet_sessions",
        /// Ends the sessions of a backend that is out of service.
        BackendDrain => "backend_drain",
        /// Ends the sessions that an administrator named.
        Kick => "kick",
    }
}

impl Task {
    /// Whether the process is useless without it: its socket would be open, but not served.
    const fn is_vital(self) -> bool {
        match self {
            Self::Listener | Self::AuthHttp | Self::Socketmap | Self::SidePort | Self::Control => true,
            Self::StatusSamples
            | Self::DirectoryAwait
            | Self::DirectoryWatch
            | Self::PreviousSessions
            | Self::SessionCloser
            | Self::Probes
            | Self::DirectoryProbe
            | Self::DirectorySweep
            | Self::BackendProbe
            | Self::Resolver
            | Self::TokenKeys
            | Self::FleetLink
            | Self::FleetChannel
            | Self::FleetCommands
            | Self::FleetBrake
            | Self::FleetWrites
            | Self::FleetSessions
            | Self::BackendDrain
            | Self::Kick => false,
        }
    }
}

/// How a supervised task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskExit {
    /// By itself.
    Done,
    /// It is vital, and panics again and again.
    GivenUp,
}

/// Runs a task until it ends by itself; after a panic `make` makes it anew.
pub(crate) async fn keep<F: Future<Output = ()>>(
    task: Task,
    restarts: &IntCounterVec,
    mut make: impl FnMut() -> F,
) -> TaskExit {
    let (mut pause, mut in_a_row) = (FIRST_PAUSE, 0);
    let is_short = matches!(task, Task::DirectoryAwait | Task::PreviousSessions);
    loop {
        let began = Instant::now();
        let run = async {
            tokio::select! {
                biased;
                () = defect::of(task.label(), if is_short { Duration::ZERO } else { defect::LATER }) => {}
                () = make() => {}
            }
        };
        if AssertUnwindSafe(run).catch_unwind().await.is_ok() {
            return TaskExit::Done;
        }
        if began.elapsed() >= SOUND {
            (pause, in_a_row) = (FIRST_PAUSE, 0);
        }
        restarts.with_label_values(&[task.label()]).inc();
        in_a_row += 1;
        if task.is_vital() && in_a_row > VITAL_RESTARTS {
            error!(task = task.label(), "task panicked repeatedly; giving up");
            return TaskExit::GivenUp;
        }
        error!(task = task.label(), ?pause, "task panicked; restarting");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Runs a task once; `None` after a panic. It runs again by its own schedule.
pub(crate) async fn once<T>(task: Task, restarts: &IntCounterVec, run: impl Future<Output = T>) -> Option<T> {
    let run = async {
        tokio::select! {
            biased;
            () = defect::of(task.label(), Duration::ZERO) => None,
            output = run => Some(output),
        }
    };
    let output = AssertUnwindSafe(run).catch_unwind().await.ok().flatten();
    if output.is_none() {
        restarts.with_label_values(&[task.label()]).inc();
        error!(task = task.label(), "task panicked; it runs again when it is due");
    }
    output
}

/// Panics that the tests ask for, in builds with debug assertions alone: `USHER_PANIC=task=2,other=1` makes
/// the first runs of these tasks panic.
#[cfg(debug_assertions)]
pub(crate) mod defect {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::Duration;

    use tokio::time::sleep;

    /// When a task has begun in earnest.
    pub(crate) const LATER: Duration = Duration::from_millis(200);

    static ASKED: LazyLock<Mutex<HashMap<String, u32>>> = LazyLock::new(|| {
        let asked = std::env::var("USHER_PANIC").unwrap_or_default();
        let pairs = asked.split(',').filter_map(|pair| {
            let (task, times) = pair.split_once('=')?;
            Some((task.to_owned(), times.parse().ok()?))
        });
        Mutex::new(pairs.collect())
    });

    /// Panics after this time if a test wants this task to, else never ends.
    ///
    /// # Panics
    /// Always, if so configured.
    #[expect(clippy::panic, reason = "what the tests ask for; not in release builds")]
    pub(crate) async fn of(task: &str, after: Duration) {
        let left = ASKED.lock().unwrap_or_else(PoisonError::into_inner).get_mut(task).map(|left| {
            let now = *left;
            *left = now.saturating_sub(1);
            now
        });
        if left.is_some_and(|left| left > 0) {
            if !after.is_zero() {
                sleep(after).await;
            }
            panic!("a test wants {task} to panic");
        }
        std::future::pending::<()>().await;
    }
}

/// In release builds no panic can be asked for.
#[cfg(not(debug_assertions))]
pub mod defect {
    use std::time::Duration;

    pub(crate) const LATER: Duration = Duration::ZERO;

    /// Never ends.
    pub async fn of(_task: &str, _after: Duration) {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use prometheus::Opts;

    use super::*;

    fn counter() -> IntCounterVec {
        IntCounterVec::new(Opts::new("restarts", "by task"), &["task"]).unwrap()
    }

    fn restarts(counter: &IntCounterVec, task: Task) -> u64 {
        counter.with_label_values(&[task.label()]).get()
    }

    #[tokio::test(start_paused = true)]
    async fn panicked_task_is_restarted_with_growing_pauses() {
        let (counter, runs, began) = (counter(), Cell::new(0), Instant::now());
        let make = || async {
            runs.set(runs.get() + 1);
            assert!(runs.get() > 12, "as wanted");
        };
        assert_eq!(keep(Task::Probes, &counter, make).await, TaskExit::Done);
        assert_eq!((runs.get(), restarts(&counter, Task::Probes)), (13, 12));
        // 0.1 s, doubled ten times and then as long as it gets.
        assert_eq!(began.elapsed(), Duration::from_millis(222_300));
    }

    #[tokio::test(start_paused = true)]
    async fn vital_task_that_keeps_panicking_is_given_up() {
        let (counter, runs) = (counter(), Cell::new(0));
        let make = || async {
            runs.set(runs.get() + 1);
            panic!("as wanted");
        };
        assert_eq!(keep(Task::Listener, &counter, make).await, TaskExit::GivenUp);
        assert_eq!((runs.get(), restarts(&counter, Task::Listener)), (6, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn vital_task_that_panics_occasionally_is_restarted() {
        let (counter, runs) = (counter(), Cell::new(0));
        let make = || async {
            runs.set(runs.get() + 1);
            sleep(SOUND).await;
            assert!(runs.get() > 20, "as wanted");
        };
        assert_eq!(keep(Task::Listener, &counter, make).await, TaskExit::Done);
        assert_eq!(restarts(&counter, Task::Listener), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn panic_before_the_first_await_is_caught() {
        let (counter, mut runs) = (counter(), 0);
        let make = || {
            runs += 1;
            assert!(runs > 1, "as wanted");
            std::future::ready(())
        };
        assert_eq!(keep(Task::Probes, &counter, make).await, TaskExit::Done);
        let once = once(Task::Kick, &counter, async { panic!("as wanted") });
        assert_eq!(once.await, None::<()>);
        assert_eq!((restarts(&counter, Task::Probes), restarts(&counter, Task::Kick)), (1, 1));
    }
}
