//! The sessions that are to end: one after another, so that clients do not all come back at once.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::registry::{Registry, SessionId, Why};

/// The queue.
#[derive(Debug)]
pub(super) struct Closing {
    registry: Arc<Registry>,
    queue: Mutex<Queue>,
    more: Notify,
}

/// As long as there are sessions, at most: each is in it once for each reason.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<(SessionId, Why)>,
    queued: HashSet<(SessionId, Why)>,
}

impl Closing {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, queue: Mutex::default(), more: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, sessions: impl IntoIterator<Item = (SessionId, Why)>) {
        let mut queue = self.lock();
        for ending in sessions {
            if queue.queued.insert(ending) {
                queue.order.push_back(ending);
            }
        }
        self.more.notify_one();
    }

    /// Forgets those that the brake is about.
    pub(super) fn withdraw(&self) {
        let mut queue = self.lock();
        let stays = |(_, why): &(SessionId, Why)| !matches!(why, Why::Moved | Why::Disabled | Why::Deleted);
        queue.order.retain(stays);
        queue.queued.retain(stays);
    }

    fn next(&self) -> Option<(SessionId, Why)> {
        let mut queue = self.lock();
        let next = queue.order.pop_front()?;
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
