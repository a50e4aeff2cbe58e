//! Closes sessions one after another, so that clients do not all reconnect at once, and those of unusable
//! accounts before those of moved accounts.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::sessions::id::SessionId;
use crate::sessions::registry::{Registry, TerminationReason};

/// The sessions to be closed.
#[derive(Debug)]
pub(crate) struct CloseQueue {
    registry: Arc<Registry>,
    queue: Mutex<RankedSessions>,
    more: Notify,
}

/// Bounded by the number of sessions: each is queued once for each reason.
#[derive(Debug, Default)]
struct RankedSessions {
    /// By rank; each in order of arrival.
    order: [VecDeque<(SessionId, TerminationReason)>; RANKS],
    queued: HashSet<(SessionId, TerminationReason)>,
}

/// The number of ranks.
const RANKS: usize = 5;

/// The priority of a reason: a session that must not continue does not wait until thousands of moved ones are
/// closed.
const fn rank(why: TerminationReason) -> usize {
    match why {
        TerminationReason::Hold => 0,
        TerminationReason::Disabled | TerminationReason::Expired | TerminationReason::Kicked => 1,
        TerminationReason::Deleted => 2,
        TerminationReason::PasswordChanged => 3,
        TerminationReason::Moved | TerminationReason::Drain | TerminationReason::BackendDrained => 4,
    }
}

impl CloseQueue {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, queue: Mutex::default(), more: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, RankedSessions> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, sessions: impl IntoIterator<Item = (SessionId, TerminationReason)>) {
        let mut queue = self.lock();
        for ending in sessions {
            if queue.queued.insert(ending)
                && let Some(order) = queue.order.get_mut(rank(ending.1))
            {
                order.push_back(ending);
            }
        }
        self.more.notify_one();
    }

    /// Removes the sessions queued for changes that the brake covers.
    pub(crate) fn withdraw(&self) {
        let mut queue = self.lock();
        let stays = |(_, why): &(SessionId, TerminationReason)| {
            !matches!(
                why,
                TerminationReason::Moved
                    | TerminationReason::Disabled
                    | TerminationReason::Expired
                    | TerminationReason::Deleted
            )
        };
        queue.order.iter_mut().for_each(|order| order.retain(stays));
        queue.queued.retain(stays);
    }

    fn next(&self) -> Option<(SessionId, TerminationReason)> {
        let mut queue = self.lock();
        let next = queue.order.iter_mut().find_map(VecDeque::pop_front)?;
        queue.queued.remove(&next);
        Some(next)
    }

    /// Closes the queued sessions at this rate.
    pub(crate) async fn run(&self, rate: impl Fn() -> u32) {
        loop {
            match self.next() {
                // A session that has ended meanwhile takes no time.
                Some((session, why)) if self.registry.end(session, why) => {
                    sleep(Duration::from_secs(1) / rate().max(1)).await;
                }
                Some(_) => {}
                None => self.more.notified().await,
            }
        }
    }
}
