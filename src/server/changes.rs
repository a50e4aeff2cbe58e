//! Change notification of the current snapshot's directory.

use std::future::pending;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::interval;

use crate::base::tasks::Task;
use crate::directory::{Change, ChangeHandler, Directory};
use crate::process::{Shared, Snapshot};

/// How often it is seen whether another snapshot is in force: its directory is followed then.
const SNAPSHOT_CHECK: Duration = Duration::from_millis(250);
/// How often entries are forgotten with which nothing is to do any more, and sessions are looked for whose
/// account has expired.
const SWEEP: Duration = Duration::from_secs(60);

/// Ends sessions that have to end, one after another.
pub(super) async fn close_sessions(shared: Arc<Shared>, task: Task) {
    shared.closer.run(task, || shared.snapshot.load().config.drain.max_closes_per_second).await;
}

/// Follows.
pub(super) async fn follow(shared: Arc<Shared>) {
    loop {
        let snapshot = shared.snapshot.load_full();
        let tell = |change| shared.tracker.take(change, &snapshot.setting());
        let followed = tokio::select! {
            end = AssertUnwindSafe(watch(&*snapshot.directory, &tell)).catch_unwind() => end.map(drop),
            () = replaced(&shared, &snapshot) => Ok(()),
        };
        tell(Change::Lost);
        if let Err(panic) = followed {
            // The task's owner counts it and starts it again.
            resume_unwind(panic);
        }
    }
}

/// Reports changes, if the directory does; never returns.
async fn watch(directory: &dyn Directory, report: ChangeHandler<'_>) {
    match directory.changes() {
        Some(changes) => changes.watch(report).await,
        None => pending().await,
    }
}

/// Waits until another snapshot is in force, and sweeps meanwhile.
async fn replaced(shared: &Shared, snapshot: &Arc<Snapshot>) {
    let (mut look, mut sweep) = (interval(SNAPSHOT_CHECK), interval(SWEEP));
    loop {
        tokio::select! {
            _ = look.tick() => {
                if !Arc::ptr_eq(&shared.snapshot.load(), snapshot) {
                    return;
                }
            }
            _ = sweep.tick() => {
                shared.tracker.end_expired(&snapshot.setting());
                snapshot.authn.entries().sweep(|entry| shared.registry.has(&entry.names()));
            }
        }
    }
}
