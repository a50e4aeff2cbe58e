//! Change notification of the current snapshot's directories.

use std::future::pending;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::interval;

use crate::base::tasks::Task;
use crate::directory::{Change, ChangeHandler, Directory};
use crate::login::realms::RealmCore;
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

/// Follows every directory, each by itself.
pub(super) async fn follow(shared: Arc<Shared>) {
    loop {
        let snapshot = shared.snapshot.load_full();
        shared.trackers.keep(|realm| snapshot.realms.get(realm).is_some());
        let tell = |realm: &RealmCore, change| {
            shared.trackers.of(realm.realm).take(change, &realm.setting(&snapshot.config.routing));
        };
        let all = snapshot.realms.all();
        let watched = join_all(all.iter().map(|realm| async move {
            watch(realm.directory(), &|change| tell(realm, change)).await;
        }));
        let followed = tokio::select! {
            end = AssertUnwindSafe(watched).catch_unwind() => end.map(drop),
            () = replaced(&shared, &snapshot) => Ok(()),
        };
        all.iter().for_each(|realm| tell(realm, Change::Lost));
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
                shared.throttle.held_back.sweep();
                shared.trackers.held_back().sweep();
                if !Arc::ptr_eq(&shared.snapshot.load(), snapshot) {
                    return;
                }
            }
            _ = sweep.tick() => {
                for setting in snapshot.all_settings() {
                    shared.trackers.of(setting.realm).end_expired(&setting);
                    setting.entries.sweep(|entry| shared.registry.has(&entry.names()));
                }
            }
        }
    }
}
