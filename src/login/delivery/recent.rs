//! When Postfix last got a server for the mailbox of an entry: until Postfix has delivered by such an answer, a
//! mailbox that moves still gets mail at its old place (`usher wait --age`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::notification::RemovalCause;
use tokio::time::Instant;

/// How long an answer is remembered: Postfix's queue is asked about anything older.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The last answer for each entry, by its DN in small letters: entries of two directories share it, which makes an
/// answer younger than it is at the most.
pub(crate) struct RecentAnswers {
    answers: moka::sync::Cache<Box<str>, Instant>,
    /// The youngest answer that was forgotten for want of room.
    forgotten: Arc<Mutex<Option<Instant>>>,
    /// Since when answers are remembered.
    since: Instant,
}

impl std::fmt::Debug for RecentAnswers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecentAnswers").field("since", &self.since).finish_non_exhaustive()
    }
}

impl RecentAnswers {
    /// None yet, and room for those of this number of entries.
    #[must_use]
    pub(crate) fn with_room_for(capacity: u64) -> Self {
        let forgotten: Arc<Mutex<Option<Instant>>> = Arc::default();
        let noted = Arc::clone(&forgotten);
        let listener = move |_: Arc<Box<str>>, at: Instant, cause: RemovalCause| {
            if cause == RemovalCause::Size {
                let mut youngest = noted.lock().unwrap_or_else(PoisonError::into_inner);
                *youngest = youngest.max(Some(at));
            }
        };
        let answers = moka::sync::Cache::builder()
            .max_capacity(capacity)
            .time_to_live(KEPT)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .eviction_listener(listener)
            .build();
        Self { answers, forgotten, since: Instant::now() }
    }

    /// Notes an answer that is about to be given.
    pub(crate) fn note(&self, dn: &str) {
        self.answers.insert(key(dn), Instant::now());
    }

    /// How long ago an answer for this entry may have been given last; `None`: not by this process. What was forgotten
    /// may have been for this entry.
    #[must_use]
    pub(crate) fn age(&self, dn: &str) -> Option<Duration> {
        self.answers.run_pending_tasks();
        let forgotten = *self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        self.answers.get(&key(dn)).max(forgotten).map(|at| at.elapsed())
    }

    /// For how long answers have been remembered.
    #[must_use]
    pub(crate) fn remembered_for(&self) -> Duration {
        self.since.elapsed()
    }
}

fn key(dn: &str) -> Box<str> {
    dn.to_lowercase().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn last_answer_counts_whatever_the_case_of_the_dn() {
        let recent = RecentAnswers::with_room_for(10);
        assert_eq!(recent.age("uid=bob,dc=x"), None);
        recent.note("uid=bob,dc=x");
        tokio::time::advance(Duration::from_secs(7)).await;
        recent.note("uid=alice,dc=x");
        assert_eq!(recent.age("UID=Bob,dc=X"), Some(Duration::from_secs(7)));
        recent.note("uid=BOB,dc=x");
        assert_eq!(recent.age("uid=bob,dc=x"), Some(Duration::ZERO));
        assert_eq!((recent.age("uid=carol,dc=x"), recent.remembered_for()), (None, Duration::from_secs(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn answer_that_had_no_room_counts_for_every_entry() {
        let recent = RecentAnswers::with_room_for(2);
        for name in ["a", "b"] {
            recent.note(name);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(recent.age("carol"), None);
        recent.note("c");
        let age = recent.age("carol").expect("one of them was forgotten");
        assert!(age <= Duration::from_secs(2), "{age:?}");
    }
}
