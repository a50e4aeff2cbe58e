//! Memory goes back to the system after a burst, and a trickle costs nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::snapshot::Shared;
use crate::sys;

/// How often it is looked whether there is something to give back.
const PAUSE: Duration = Duration::from_secs(5);
/// So many connections must have gone since the last time: about 5 MiB.
const BURST: i64 = 100;

/// Gives memory back whenever many connections have ended.
pub(super) async fn give_back(shared: Arc<Shared>) {
    let mut tide = Tide::default();
    loop {
        sleep(PAUSE).await;
        if tide.has_gone_out(shared.metrics.connections.get()) {
            // A panic there was told by its hook.
            let _ = tokio::task::spawn_blocking(sys::give_memory_back).await;
        }
    }
}

/// The most connections since memory was given back.
#[derive(Debug, Default)]
struct Tide {
    high: i64,
}

impl Tide {
    fn has_gone_out(&mut self, connections: i64) -> bool {
        self.high = self.high.max(connections);
        let gone_out = self.high - connections >= BURST;
        if gone_out {
            self.high = connections;
        }
        gone_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_after_bursts_only() {
        let mut tide = Tide::default();
        let seen = [0, 50, 0, 99, 0, 2_000, 1_950, 1_899, 1_850, 1_700, 0, 0, 90, 0];
        let given: Vec<usize> = (0..seen.len()).filter(|at| tide.has_gone_out(seen[*at])).collect();
        assert_eq!(given, [7, 9, 10]);
        sys::give_memory_back();
    }
}
