//! Text that is rendered on request at a limited rate: requests in between wait for the next rendering and
//! share it. No reply is older than its request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::{Instant, sleep_until};

/// Renders the text: `None` after a panic.
type Rendering = Shared<BoxFuture<'static, Option<Bytes>>>;

/// A text that is rendered at most once in a period.
pub(super) struct RateLimitedText {
    period: Duration,
    render: Box<dyn Fn() -> String + Send + Sync>,
    state: Mutex<RenderState>,
}

#[derive(Default)]
struct RenderState {
    began: Option<Instant>,
    /// Has not begun yet: requests that arrive now share it.
    next: Option<Rendering>,
}

impl RateLimitedText {
    pub(super) fn new(period: Duration, render: impl Fn() -> String + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { period, render: Box::new(render), state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, RenderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text as of now or a little later.
    pub(super) async fn text(self: &Arc<Self>) -> Option<Bytes> {
        let rendering = self.next();
        rendering.await
    }

    fn next(self: &Arc<Self>) -> Rendering {
        let mut state = self.lock();
        if let Some(next) = &state.next {
            return next.clone();
        }
        let (text, due) = (Arc::clone(self), state.began.map(|began| began + self.period));
        let rendering = async move {
            if let Some(due) = due {
                sleep_until(due).await;
            }
            {
                let mut state = text.lock();
                state.began = Some(Instant::now());
                state.next = None;
            }
            // Encoding thousands of series takes milliseconds, which no login should wait for. A panic was
            // counted and located by its hook.
            tokio::task::spawn_blocking(move || Bytes::from((text.render)())).await.ok()
        };
        let rendering = rendering.boxed().shared();
        state.next = Some(rendering.clone());
        rendering
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;

    fn counted(period: u64) -> (Arc<RateLimitedText>, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let text = RateLimitedText::new(Duration::from_millis(period), move || {
            (count.fetch_add(1, Ordering::Relaxed) + 1).to_string()
        });
        (text, made)
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_one_rendering_that_is_never_older_than_a_request() {
        let (text, made) = counted(1_000);
        let began = Instant::now();
        assert_eq!(text.text().await.unwrap(), "1");
        assert_eq!(began.elapsed(), Duration::ZERO, "the first one waits for nothing");
        sleep(Duration::from_millis(300)).await;
        let texts = join_all((0..1_000).map(|_| text.text())).await;
        assert!(texts.iter().all(|text| text.as_deref() == Some(b"2")));
        assert_eq!((began.elapsed(), made.load(Ordering::Relaxed)), (Duration::from_secs(1), 2));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(text.text().await.unwrap(), "3");
        assert_eq!(began.elapsed(), Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_request_and_panic_affect_no_other_request() {
        let (text, made) = counted(1_000);
        text.text().await.unwrap();
        let leaves = text.text();
        assert!(tokio::time::timeout(Duration::from_millis(10), leaves).await.is_err());
        assert_eq!(text.text().await.unwrap(), "2");
        assert_eq!(made.load(Ordering::Relaxed), 2);
        let broken = RateLimitedText::new(Duration::ZERO, || panic!("as wanted"));
        assert_eq!((broken.text().await, broken.text().await), (None, None));
    }
}
