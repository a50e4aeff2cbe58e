//! Following the directory of whatever snapshot is in force, for ever.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{interval, sleep};

use crate::directory::Change;
use crate::snapshot::{Shared, Snapshot};

/// How often it is seen whether another snapshot is in force: its directory is followed then.
const LOOK_AROUND: Duration = Duration::from_millis(250);
/// How often entries are forgotten with which nothing is to do any more.
const SWEEP: Duration = Duration::from_secs(60);
/// Before following again after a defect.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// Follows, and ends sessions that have to end.
pub(super) async fn follow(shared: Arc<Shared>) {
    let rate = || shared.snapshot.load().config.drain.max_closes_per_second;
    tokio::join!(shared.follow.close(rate), follow_each(&shared));
}

async fn follow_each(shared: &Shared) {
    loop {
        let snapshot = shared.snapshot.load_full();
        let tell = |change| shared.follow.take(change, &snapshot.setting());
        tokio::select! {
            // A panic was counted and told by its hook.
            _ = AssertUnwindSafe(snapshot.directory.follow(&tell)).catch_unwind() => sleep(AFTER_PANIC).await,
            () = replaced(shared, &snapshot) => {}
        }
        tell(Change::Lost);
    }
}

/// Waits until another snapshot is in force, and sweeps meanwhile.
async fn replaced(shared: &Shared, snapshot: &Arc<Snapshot>) {
    let (mut look, mut sweep) = (interval(LOOK_AROUND), interval(SWEEP));
    loop {
        tokio::select! {
            _ = look.tick() => {
                if !Arc::ptr_eq(&shared.snapshot.load(), snapshot) {
                    return;
                }
            }
            _ = sweep.tick() => snapshot.authn.entries().sweep(|dn| shared.registry.has(dn)),
        }
    }
}
