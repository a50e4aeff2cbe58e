//! Writes that no login waits for.

use std::fmt;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Arg, Fleet, FleetScript, StoreError, StoreKey, Value};

/// How many are sent together.
const BATCH: usize = 128;
/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is done with what a script has returned.
pub(crate) type Done = Box<dyn FnOnce(&Value) + Send>;

/// A script that is to run.
pub(super) struct Write {
    pub(super) script: &'static FleetScript,
    pub(super) keys: Vec<StoreKey>,
    pub(super) args: Vec<Arg>,
    pub(super) done: Option<Done>,
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Write({})", self.script.name())
    }
}

/// Writes until the process ends.
pub(super) async fn run(fleet: &Fleet) {
    // A restarted task goes on where the one before has panicked.
    let mut writes = fleet.writes_out.lock().await;
    let mut batch = Vec::with_capacity(BATCH);
    while writes.recv_many(&mut batch, BATCH).await > 0 {
        let all = batch.drain(..).map(|write| one(fleet, write));
        join_all(all).await;
    }
}

async fn one(fleet: &Fleet, write: Write) {
    let Write { script, keys, args, done } = write;
    let link = if fleet.breaker.is_closed() { fleet.link.load_full() } else { None };
    let answer = match link {
        Some(link) => timeout(PATIENCE, link.eval(script, &keys, &args)).await.unwrap_or(Err(StoreError::Late)),
        None => Err(StoreError::Lost),
    };
    match answer {
        Ok(value) => {
            if let Some(done) = done {
                done(&value);
            }
        }
        Err(error) => {
            fleet.metrics.fleet_writes_dropped.inc();
            if !matches!(error, StoreError::Lost) {
                fleet.refused(script, &error);
            }
        }
    }
}
