//! The sessions that are to end: one after another, so that clients do not all come back at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::registry::{Registry, SessionId, Why};

/// The queue. As long as there are sessions, at most: each is in it once for each reason.
#[derive(Debug)]
pub(super) struct Closing {
    registry: Arc<Registry>,
    queue: Mutex<VecDeque<(SessionId, Why)>>,
    more: Notify,
}

impl Closing {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, queue: Mutex::default(), more: Notify::new() }
    }

    pub(super) fn add(&self, sessions: impl IntoIterator<Item = (SessionId, Why)>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let before = queue.len();
        queue.extend(sessions);
        if queue.len() > before {
            self.more.notify_one();
        }
    }

    /// Forgets those that the brake is about.
    pub(super) fn withdraw(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|(_, why)| !matches!(why, Why::Moved | Why::Disabled | Why::Deleted));
    }

    /// Asks one after another to end.
    pub(super) async fn run(&self, rate: impl Fn() -> u32) {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
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
