//! Questions in progress: equal ones share an answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Why a flight brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FlightError {
    /// The limit of concurrent questions is reached.
    #[error("too many lookups in progress")]
    TooMany,
    /// The task of the question panicked.
    #[error("lookup aborted")]
    Lost,
}

/// Questions in progress, by what is asked. A separate task computes the answer, and continues when the client is gone:
/// the question was sent, and its answer is worth keeping.
pub(crate) struct Flights<K: Hash + Eq, T> {
    in_progress: Arc<Mutex<InProgress<K, T>>>,
    limit: usize,
}

type InProgress<K, T> = HashMap<K, watch::Receiver<Option<T>>>;

impl<K, T> Flights<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// No flight yet, and at most `limit` at a time.
    #[must_use]
    pub(crate) fn new(limit: usize) -> Self {
        Self { in_progress: Arc::default(), limit }
    }

    /// Joins the flight of this key, or starts it.
    ///
    /// # Errors
    /// There are too many, or the question's task panicked.
    pub(crate) async fn join<F>(&self, key: K, ask: impl FnOnce() -> F) -> Result<T, FlightError>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answer = {
            let mut under_way = self.in_progress.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(flight) = under_way.get(&key) {
                flight.clone()
            } else if under_way.len() >= self.limit {
                return Err(FlightError::TooMany);
            } else {
                let (tell, flight) = watch::channel(None);
                under_way.insert(key.clone(), flight.clone());
                let landing = FlightGuard { under_way: Arc::clone(&self.in_progress), key };
                let answer = ask();
                tokio::spawn(async move {
                    let _landing = landing;
                    tell.send_replace(Some(answer.await));
                });
                flight
            }
        };
        let landed = answer.wait_for(Option::is_some).await.map_err(|_| FlightError::Lost)?;
        landed.clone().ok_or(FlightError::Lost)
    }
}

/// Removes the flight when its task ends, however it ends.
struct FlightGuard<K: Hash + Eq, T> {
    under_way: Arc<Mutex<InProgress<K, T>>>,
    key: K,
}

impl<K: Hash + Eq, T> Drop for FlightGuard<K, T> {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn identical_requests_share_one_flight_that_outlives_its_callers() {
        let flights = Arc::new(Flights::new(10));
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = |name: &'static str, password: &'static str| {
            let (flights, asked) = (Arc::clone(&flights), Arc::clone(&asked));
            tokio::spawn(async move {
                let answer = || async move {
                    asked.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    password.len()
                };
                flights.join((name, password), answer).await
            })
        };
        let first = ask("alice", "sesame");
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..20).map(|_| ask("alice", "sesame")).collect();
        let different = ask("alice", "another");
        tokio::task::yield_now().await;
        first.abort();
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(6));
        }
        assert_eq!(different.await.unwrap(), Ok(7));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert!(flights.in_progress.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn flights_are_bounded_and_a_panic_affects_no_other() {
        let flights: Flights<&str, ()> = Flights::new(1);
        assert_eq!(flights.join("alice", || async { panic!("on purpose") }).await, Err(FlightError::Lost));
        tokio::task::yield_now().await;
        let slow = flights.join("alice", || tokio::time::sleep(Duration::from_secs(1)));
        tokio::pin!(slow);
        assert!(futures_util::poll!(&mut slow).is_pending());
        assert_eq!(flights.join("bob", || async {}).await, Err(FlightError::TooMany), "over the limit");
        assert_eq!(slow.await, Ok(()));
    }
}
