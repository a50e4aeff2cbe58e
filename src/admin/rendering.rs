//! Text that is made on request, but only so often: requests in between wait for the next one and share
//! it. No reply is older than its request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::{Instant, sleep_until};

/// What makes the text: `None` after a panic.
type Making = Shared<BoxFuture<'static, Option<Bytes>>>;

/// A text and its pace.
pub(super) struct Paced {
    pace: Duration,
    make: Box<dyn Fn() -> String + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    began: Option<Instant>,
    /// Has not begun yet: whoever asks now gets it.
    next: Option<Making>,
}

impl Paced {
    pub(super) fn new(pace: Duration, make: impl Fn() -> String + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { pace, make: Box::new(make), state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A text of now or a little later.
    pub(super) async fn text(self: &Arc<Self>) -> Option<Bytes> {
        let making = self.next();
        making.await
    }

    fn next(self: &Arc<Self>) -> Making {
        let mut state = self.lock();
        if let Some(next) = &state.next {
            return next.clone();
        }
        let (paced, due) = (Arc::clone(self), state.began.map(|began| began + self.pace));
        let making = async move {
            if let Some(due) = due {
                sleep_until(due).await;
            }
            {
                let mut state = paced.lock();
                state.began = Some(Instant::now());
                state.next = None;
            }
            // Encoding thousands of series takes milliseconds, which no login should wait for. A panic was
            // counted and located by its hook.
            tokio::task::spawn_blocking(move || Bytes::from((paced.make)())).await.ok()
        };
        let making = making.boxed().shared();
        state.next = Some(making.clone());
        making
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;

    fn counted(pace: u64) -> (Arc<Paced>, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let paced =
            Paced::new(Duration::from_millis(pace), move || (count.fetch_add(1, Ordering::Relaxed) + 1).to_string());
        (paced, made)
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_one_rendering_that_is_never_older_than_a_request() {
        let (paced, made) = counted(1_000);
        let began = Instant::now();
        assert_eq!(paced.text().await.unwrap(), "1");
        assert_eq!(began.elapsed(), Duration::ZERO, "the first one waits for nothing");
        sleep(Duration::from_millis(300)).await;
        let texts = join_all((0..1_000).map(|_| paced.text())).await;
        assert!(texts.iter().all(|text| text.as_deref() == Some(b"2")));
        assert_eq!((began.elapsed(), made.load(Ordering::Relaxed)), (Duration::from_secs(1), 2));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(paced.text().await.unwrap(), "3");
        assert_eq!(began.elapsed(), Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_request_and_panic_affect_no_other_request() {
        let (paced, made) = counted(1_000);
        paced.text().await.unwrap();
        let leaves = paced.text();
        assert!(tokio::time::timeout(Duration::from_millis(10), leaves).await.is_err());
        assert_eq!(paced.text().await.unwrap(), "2");
        assert_eq!(made.load(Ordering::Relaxed), 2);
        let broken = Paced::new(Duration::ZERO, || panic!("as wanted"));
        assert_eq!((broken.text().await, broken.text().await), (None, None));
    }
}
