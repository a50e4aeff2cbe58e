//! Files are read in a thread of their own, for a limited time: one may lie on a mount that does not respond, and
//! then nothing ends that thread, not even a signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

/// How long reading all files of a configuration may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Why files were not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    /// The thread has not returned in time.
    #[error("files of the configuration were not read within {}s: is one of them on a mount that does not respond?", READ_TIMEOUT.as_secs())]
    Late,
    /// Reading panicked; the hook has counted and logged it.
    #[error("reading the configuration panicked: please report this")]
    Panicked,
}

/// The thread that reads files. There is one at a time, so that a mount that does not respond blocks one thread only.
#[derive(Debug, Default)]
pub(super) struct FileReader {
    busy: Option<JoinHandle<()>>,
    /// Whether the reading is complete: the thread may be seen to end a little later.
    has_read: Arc<AtomicBool>,
}

/// The result of a reading in progress.
#[derive(Debug)]
pub(super) struct PendingRead<T> {
    answer: Option<oneshot::Receiver<T>>,
    deadline: Instant,
}

impl FileReader {
    /// Begins to read. While another reading is in progress, nothing is begun and the result is [`ReadError::Late`].
    pub(super) fn begin<T: Send + 'static>(&mut self, read: impl FnOnce() -> T + Send + 'static) -> PendingRead<T> {
        let deadline = Instant::now() + READ_TIMEOUT;
        if self.busy.as_ref().is_some_and(|busy| !busy.is_finished()) && !self.has_read.load(Ordering::Acquire) {
            return PendingRead { answer: None, deadline };
        }
        let (sender, result) = oneshot::channel();
        self.has_read = Arc::default();
        let has_read = Arc::clone(&self.has_read);
        self.busy = Some(tokio::task::spawn_blocking(move || {
            let answer = read();
            has_read.store(true, Ordering::Release);
            // The receiver may have given up.
            let _ = sender.send(answer);
        }));
        PendingRead { answer: Some(result), deadline }
    }

    /// Reads, and waits for the result and, within the same time, for the reading before it.
    pub(super) async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        if let Some(busy) = &mut self.busy {
            let _ = timeout_at(Instant::now() + READ_TIMEOUT, busy).await.map_err(|_| ReadError::Late)?;
            self.busy = None;
        }
        self.begin(read).done().await
    }
}

impl<T> PendingRead<T> {
    /// Waits for the end. Nothing is lost if this is dropped and called again.
    pub(super) async fn done(&mut self) -> Result<T, ReadError> {
        let Some(answer) = &mut self.answer else { return Err(ReadError::Late) };
        match timeout_at(self.deadline, answer).await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(_)) => Err(ReadError::Panicked),
            Err(_) => Err(ReadError::Late),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn unreadable_files_are_given_up_and_block_one_thread() {
        let mut reader = FileReader::default();
        assert_eq!(reader.read(|| 1).await, Ok(1));
        let (release, stuck) = mpsc::channel::<()>();
        // As a mount that is gone: nothing ends it from outside.
        let mut reading = reader.begin(move || stuck.recv().is_err());
        let began = Instant::now();
        assert_eq!(reading.done().await, Err(ReadError::Late));
        assert!((READ_TIMEOUT..3 * READ_TIMEOUT).contains(&began.elapsed()), "{:?}", began.elapsed());
        // Nothing else is begun beside it, and nothing is waited for.
        assert_eq!(reader.begin(|| 2).done().await, Err(ReadError::Late));
        assert!(began.elapsed() < 3 * READ_TIMEOUT);
        drop(release);
        assert_eq!(reader.read(|| 3).await, Ok(3));
    }

    #[tokio::test]
    async fn reply_is_kept_while_the_loop_is_busy() {
        let mut reader = FileReader::default();
        let (release, held) = mpsc::channel::<()>();
        let mut reading = reader.begin(move || held.recv().is_err());
        assert!(futures_util::FutureExt::now_or_never(reading.done()).is_none());
        drop(release);
        assert_eq!(reading.done().await, Ok(true));
        let mut reading = reader.begin(|| -> u8 { std::panic::resume_unwind(Box::new(())) });
        assert_eq!(reading.done().await, Err(ReadError::Panicked));
    }

    #[tokio::test]
    async fn next_reply_follows_at_once() {
        let mut reader = FileReader::default();
        for number in 0..2_000 {
            // The thread of the one before may still be on its way out.
            assert_eq!(reader.begin(move || number).done().await, Ok(number));
        }
    }
}
