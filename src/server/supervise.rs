//! The owner of the tasks that live as long as the process: awaits each, restarts it after a panic, and ends
//! the process when one that it cannot do without does not stay up.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::base::tasks::{self, Task, TaskExit};
use crate::telemetry::metrics::Metrics;

/// Keeps a task running until this is dropped.
#[derive(Debug)]
pub(super) struct KeptTask {
    guard: DropGuard,
    ended: JoinHandle<()>,
}

impl KeptTask {
    /// Ends the task, and waits so long until everything that it holds is dropped.
    pub(super) async fn end(self, patience: Duration) {
        drop(self.guard);
        let _ = timeout(patience, self.ended).await;
    }
}

/// Every supervised task of the process.
#[derive(Debug)]
pub(super) struct Supervisor {
    tracker: TaskTracker,
    /// Ends all of them.
    stop: CancellationToken,
    /// Set when a vital one was given up.
    lost: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Supervisor {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        let (stop, lost) = (CancellationToken::new(), CancellationToken::new());
        Self { tracker: TaskTracker::new(), stop, lost, metrics: Arc::clone(metrics) }
    }

    /// Keeps a task running until the process ends.
    pub(super) fn keep<F>(&self, task: Task, make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        // Nothing ends it sooner.
        let _ = self.keep_while(task, make).guard.disarm();
    }

    /// Keeps a task running until the result is dropped: what it holds is dropped soon after.
    pub(super) fn keep_while<F>(&self, task: Task, make: impl FnMut() -> F + Send + 'static) -> KeptTask
    where
        F: Future<Output = ()> + Send,
    {
        let stop = self.stop.child_token();
        let (guard, lost, metrics) = (stop.clone().drop_guard(), self.lost.clone(), Arc::clone(&self.metrics));
        let ended = self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                end = tasks::keep(task, &metrics.task_restarts, make) => note(end, &lost),
            }
        });
        KeptTask { guard, ended }
    }

    /// Keeps a task running that ends by itself when its token says so.
    pub(super) fn keep_until_told<F>(&self, task: Task, mut make: impl FnMut(CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let (stop, lost, metrics) = (self.stop.child_token(), self.lost.clone(), Arc::clone(&self.metrics));
        self.tracker.spawn(async move {
            note(tasks::keep(task, &metrics.task_restarts, || make(stop.clone())).await, &lost);
        });
    }

    /// Waits until a vital task was given up.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Ends all tasks, and waits so long for those that end by themselves.
    pub(super) async fn end(&self, patience: Duration) {
        self.stop.cancel();
        self.tracker.close();
        let _ = timeout(patience, self.tracker.wait()).await;
    }
}

fn note(end: TaskExit, lost: &CancellationToken) {
    match end {
        TaskExit::Done => {}
        TaskExit::GivenUp => lost.cancel(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failing_vital_task_ends_the_process_and_another_does_not() {
        let supervisor = Supervisor::new(&Arc::new(Metrics::new()));
        supervisor.keep(Task::Probes, || async { panic!("as wanted") });
        sleep(Duration::from_secs(3_600)).await;
        assert!(supervisor.lost().now_or_never().is_none());
        let _guard = supervisor.keep_while(Task::Listener, || async { panic!("as wanted") });
        timeout(Duration::from_secs(60), supervisor.lost()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn guard_ends_its_task_and_the_supervisor_ends_all_and_waits() {
        struct Held(Arc<AtomicUsize>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let held = Arc::new(AtomicUsize::new(3));
        let hold = || {
            let one = Held(Arc::clone(&held));
            move || {
                let _one = &one;
                std::future::pending()
            }
        };
        let supervisor = Supervisor::new(&Arc::new(Metrics::new()));
        let guard = supervisor.keep_while(Task::Listener, hold());
        supervisor.keep(Task::Probes, hold());
        let last = Arc::new(Held(Arc::clone(&held)));
        supervisor.keep_until_told(Task::Control, move |stop| {
            let last = Arc::clone(&last);
            async move {
                stop.cancelled().await;
                sleep(Duration::from_millis(500)).await;
                drop(last);
            }
        });
        drop(guard);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(held.load(Ordering::Relaxed), 2);
        supervisor.end(Duration::from_secs(1)).await;
        assert_eq!(held.load(Ordering::Relaxed), 0);
    }
}
