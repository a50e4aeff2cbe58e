//! After an upgrade: asks the processes before this one, over their control sockets, which sessions they still have.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::admin::control::{self, Status};
use crate::base::clock::unix_now;
use crate::base::sys;
use crate::process::{Shared, Stage};
use crate::proto::PROTOCOLS;
use crate::sessions::previous::PreviousProcess;

/// Between two requests.
const PACE: Duration = Duration::from_secs(2);
/// Between the first requests: an old process knows when it ends only once this one serves.
const FIRST_PACE: Duration = Duration::from_millis(100);
/// How many those are.
const FIRST: u32 = 10;
/// How long one that does not answer is believed to live beyond its own end.
const GRACE: Duration = Duration::from_secs(60);

/// Counts their sessions until the last of them has ended.
pub(super) async fn count_sessions(shared: Arc<Shared>, socket: PathBuf) {
    let mut asked = 0;
    // That after the next upgrade counts them itself.
    while *shared.stage.borrow() < Stage::Leaving {
        let answers = control::ask_predecessors::<Status>(&socket, Some(sys::own_user()), "GET", "/status").await;
        if answers.is_empty() {
            break;
        }
        let known = shared.previous.all();
        let now = unix_now();
        let has_time = |process: &&PreviousProcess| process.ends_at.is_none_or(|end| now < end + GRACE.as_secs());
        let before = |pid| known.iter().find(|process| process.pid == pid).filter(has_time).cloned();
        // One that is late has not lost its sessions.
        let found = answers
            .into_iter()
            .filter_map(|(pid, _, answer)| answer.map_or_else(|_| before(pid), |found| Some(process(pid, found))));
        shared.previous.replace(found.collect(), &shared.metrics.sessions);
        asked += 1;
        sleep(if asked <= FIRST { FIRST_PACE } else { PACE }).await;
    }
    shared.previous.replace(Vec::new(), &shared.metrics.sessions);
}

fn process(pid: u32, status: Status) -> PreviousProcess {
    let by_backend = status.backends.into_iter().flat_map(|backend| {
        let name = backend.name;
        backend.by_protocol.into_iter().map(move |(protocol, count)| ((protocol, name.clone()), count))
    });
    // Only what is a label of the metric.
    let by_backend = by_backend.filter(|((protocol, _), _)| PROTOCOLS.iter().any(|known| known.name == protocol));
    let by_backend = by_backend.map(|(key, count)| (key, i64::try_from(count).unwrap_or_default())).collect();
    PreviousProcess { pid, sessions: status.sessions, ends_at: status.ends_at, by_backend }
}
