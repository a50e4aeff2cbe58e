//! The sessions that are to end: one after another, so that clients do not all come back at once, and
//! those of accounts that must not be used before those of accounts that have only been moved.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::registry::{Registry, SessionId, TerminationReason};

/// The queue.
#[derive(Debug)]
pub(super) struct CloseQueue {
    registry: Arc<Registry>,
    queue: Mutex<RankedSessions>,
    more: Notify,
}

/// As long as there are sessions, at most: each is in it once for each reason.
#[derive(Debug, Default)]
struct RankedSessions {
    /// By rank; each in the order of its changes.
    order: [VecDeque<(SessionId, TerminationReason)>; RANKS],
    queued: HashSet<(SessionId, TerminationReason)>,
}

/// How many ranks there are.
const RANKS: usize = 5;

/// Which endings come first: a session that must not go on does not wait until thousands that have been
/// moved are closed.
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
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, queue: Mutex::default(), more: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, RankedSessions> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, sessions: impl IntoIterator<Item = (SessionId, TerminationReason)>) {
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

    /// Forgets those that the brake is about.
    pub(super) fn withdraw(&self) {
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

    /// Asks one after another to end.
    pub(super) async fn run(&self, rate: impl Fn() -> u32) {
        loop {
            match self.next() {
                // One that has ended meanwhile costs no time.
                Some((session, why)) if self.registry.end(session, why) => {
                    sleep(Duration::from_secs(1) / rate().max(1)).await;
                }
                Some(_) => {}
                None => self.more.notified().await,
            }
        }
    }
}
