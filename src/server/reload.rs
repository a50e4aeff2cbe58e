//! Files that change under a config that does not: a renewed certificate is used without a command.
//!
//! What all files hold is compared by content, since tools that renew certificates move links,
//! write in place or replace folders. What is new is read as at a start; only if all of it is sound
//! does it replace the snapshot in force. Listeners, sessions and the cache stay.
//!
//! Files are read in a thread of their own, for so long and no longer: one may lie on a mount that does not
//! answer, and then nothing ends that thread, not even a signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info};

use super::Server;
use crate::base::clock::date;
use crate::config::Problem;
use crate::config_files::{Files, Fingerprint};
use crate::login::core::Snapshot;
use crate::telemetry::labels::ReloadResult;
use crate::tls::server::ServedCertificate;

/// What one look at the files came to.
#[derive(Debug)]
pub(super) enum FileCheck {
    /// They are as they were when the snapshot in force was made.
    Unchanged,
    /// They are as they were when they were refused.
    StillRefused,
    /// They can be used.
    Sound(Box<Files>),
    /// They cannot.
    Unsound(Fingerprint, Vec<Problem>),
}

/// How long reading all files of a configuration may take.
const READING: Duration = Duration::from_secs(5);

/// Why there is nothing to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    /// The thread has not come back.
    #[error("files of the configuration were not read within {}s: is one of them on a mount that does not respond?", READING.as_secs())]
    Late,
    /// It panicked, which its hook has counted and logged.
    #[error("reading the configuration panicked: please report this")]
    Panicked,
}

/// The thread that reads files. There is one at a time: one that never comes back keeps no others company.
#[derive(Debug, Default)]
pub(super) struct Reader {
    busy: Option<JoinHandle<()>>,
    /// It has read all that it was to read, whether its thread is seen to have ended or not.
    has_read: Arc<AtomicBool>,
}

/// What a [`Reader`] was asked for.
#[derive(Debug)]
pub(super) struct Reading<T> {
    answer: Option<oneshot::Receiver<T>>,
    deadline: Instant,
}

impl Reader {
    /// Begins to read. While the last reading goes on, nothing is begun and the answer is [`Unread::Late`].
    pub(super) fn begin<T: Send + 'static>(&mut self, read: impl FnOnce() -> T + Send + 'static) -> Reading<T> {
        let deadline = Instant::now() + READING;
        if self.busy.as_ref().is_some_and(|busy| !busy.is_finished()) && !self.has_read.load(Ordering::Acquire) {
            return Reading { answer: None, deadline };
        }
        let (tell, told) = oneshot::channel();
        self.has_read = Arc::default();
        let has_read = Arc::clone(&self.has_read);
        self.busy = Some(tokio::task::spawn_blocking(move || {
            let answer = read();
            has_read.store(true, Ordering::Release);
            // Who asked may have given up.
            let _ = tell.send(answer);
        }));
        Reading { answer: Some(told), deadline }
    }

    /// Reads, and waits for it. What was begun before is waited for within the same time.
    pub(super) async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unread> {
        if let Some(busy) = &mut self.busy {
            let _ = timeout_at(Instant::now() + READING, busy).await.map_err(|_| Unread::Late)?;
            self.busy = None;
        }
        self.begin(read).done().await
    }
}

impl<T> Reading<T> {
    /// Waits for the end. Nothing is lost if this is dropped and called again.
    pub(super) async fn done(&mut self) -> Result<T, Unread> {
        let Some(answer) = &mut self.answer else { return Err(Unread::Late) };
        match timeout_at(self.deadline, answer).await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(_)) => Err(Unread::Panicked),
            Err(_) => Err(Unread::Late),
        }
    }
}

/// A look at the files that is under way.
#[derive(Debug)]
pub(super) struct PendingFileCheck(Reading<FileCheck>);

impl PendingFileCheck {
    /// Waits for a look, never returns if there is none.
    pub(super) async fn done(file_check: &mut Option<Self>) -> Result<FileCheck, Unread> {
        match file_check {
            Some(Self(reading)) => reading.done().await,
            None => std::future::pending().await,
        }
    }
}

impl Server {
    /// Looks whether the files of the config in force hold something new.
    pub(super) fn check_files(&mut self) {
        let (current, refused) = (self.shared.snapshot.load_full(), self.refused);
        // Keys are checked against certificates: milliseconds that no session should wait.
        self.file_check = Some(PendingFileCheck(self.reader.begin(move || look(&current, refused))));
    }

    /// Takes over what a look has found, if it is new and sound.
    pub(super) fn apply_file_check(&mut self, looked: Result<FileCheck, Unread>) {
        self.file_check = None;
        // A reload forgets a look: this is still about the snapshot in force.
        let current = self.shared.snapshot.load_full();
        let metrics = &self.shared.metrics;
        match looked {
            Ok(FileCheck::Unchanged) => {
                // The old content may have come back after a refusal.
                metrics.certificate_last_reload_successful.set(1);
                self.refused = None;
            }
            Ok(FileCheck::Sound(files)) => {
                let snapshot = Snapshot::new(current.config.clone(), *files, metrics, Some(&current));
                self.certificates_in_force(&snapshot);
                for served in snapshot.tls.certificates() {
                    let is_old =
                        |old: &ServedCertificate| old.chain == served.chain && old.not_after == served.not_after;
                    if !current.tls.certificates().iter().any(is_old) {
                        let chain = served.chain.display();
                        info!("reloaded: {chain} (certificate valid until {})", date(served.not_after));
                    }
                }
                metrics.certificate_reloads.of(ReloadResult::Ok).inc();
                self.shared.snapshot.store(Arc::new(snapshot));
                self.refused = None;
                info!("reloaded: changed files");
            }
            Ok(FileCheck::Unsound(fingerprint, problems)) => {
                metrics.certificate_reloads.of(ReloadResult::Refused).inc();
                metrics.certificate_last_reload_successful.set(0);
                self.refused = Some(fingerprint);
                for problem in problems {
                    error!(%problem, "a changed file is invalid; its previous content stays active");
                }
            }
            Err(unread @ Unread::Late) => {
                metrics.certificate_reloads.of(ReloadResult::Refused).inc();
                metrics.certificate_last_reload_successful.set(0);
                error!(reason = %unread, "files cannot be checked for changes; their previous content stays active");
            }
            // The next look may go better.
            Ok(FileCheck::StillRefused) | Err(Unread::Panicked) => {}
        }
    }
}

fn look(current: &Snapshot, refused: Option<Fingerprint>) -> FileCheck {
    let found = Fingerprint::of(&current.config);
    if found == current.fingerprint {
        return FileCheck::Unchanged;
    }
    if refused == Some(found) {
        return FileCheck::StillRefused;
    }
    match Files::read(&current.config) {
        Ok(files) => {
            let expired = newly_expired(current, &files);
            if expired.is_empty() { FileCheck::Sound(Box::new(files)) } else { FileCheck::Unsound(found, expired) }
        }
        Err(problems) => FileCheck::Unsound(found, problems),
    }
}

/// Certificates that are expired and were not in force before: they are not used. One that
/// has expired in service must not keep the others from being renewed.
fn newly_expired(current: &Snapshot, files: &Files) -> Vec<Problem> {
    let in_force = |one: &ServedCertificate| {
        current.tls.certificates().iter().any(|old| old.chain == one.chain && old.not_after == one.not_after)
    };
    let served = files.tls.certificates().iter().enumerate();
    served
        .filter(|(_, served)| served.expired && !in_force(served))
        .map(|(index, served)| {
            let words = format!("{} has expired: renew it, then install the new one here", served.chain.display());
            current.config.problem(&format!("tls.certificates[{index}].chain"), words)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn unreadable_files_are_given_up_and_block_one_thread() {
        let mut reader = Reader::default();
        assert_eq!(reader.read(|| 1).await, Ok(1));
        let (release, stuck) = mpsc::channel::<()>();
        // As a mount that is gone: nothing ends it from outside.
        let mut reading = reader.begin(move || stuck.recv().is_err());
        let began = Instant::now();
        assert_eq!(reading.done().await, Err(Unread::Late));
        assert!((READING..3 * READING).contains(&began.elapsed()), "{:?}", began.elapsed());
        // Nothing else is begun beside it, and nothing is waited for.
        assert_eq!(reader.begin(|| 2).done().await, Err(Unread::Late));
        assert!(began.elapsed() < 3 * READING);
        drop(release);
        assert_eq!(reader.read(|| 3).await, Ok(3));
    }

    #[tokio::test]
    async fn reply_is_kept_while_the_loop_is_busy() {
        let mut reader = Reader::default();
        let (release, held) = mpsc::channel::<()>();
        let mut reading = reader.begin(move || held.recv().is_err());
        assert!(futures_util::FutureExt::now_or_never(reading.done()).is_none());
        drop(release);
        assert_eq!(reading.done().await, Ok(true));
        let mut reading = reader.begin(|| -> u8 { std::panic::resume_unwind(Box::new(())) });
        assert_eq!(reading.done().await, Err(Unread::Panicked));
    }

    #[tokio::test]
    async fn next_reply_follows_at_once() {
        let mut reader = Reader::default();
        for number in 0..2_000 {
            // The thread of the one before may still be on its way out.
            assert_eq!(reader.begin(move || number).done().await, Ok(number));
        }
    }
}
