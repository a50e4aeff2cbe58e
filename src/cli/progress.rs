//! A line that counts on a terminal while a command takes its time; nothing anywhere else.

use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::diagnose::table::thousands;

/// Shorter waits show no progress.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two counts.
const PACE: Duration = Duration::from_millis(200);

/// Waits for `work` and shows on standard error how many of `what` are done. Not where rows go to the same
/// terminal (`rows_are_shown`), which show progress themselves.
pub(super) async fn watched<T>(
    done: &AtomicUsize,
    what: &str,
    rows_are_shown: bool,
    work: impl Future<Output = T>,
) -> T {
    let shown = io::stderr().is_terminal() && !(rows_are_shown && io::stdout().is_terminal());
    let telling = async {
        tokio::time::sleep(PATIENCE).await;
        loop {
            let mut terminal = io::stderr().lock();
            // A terminal that is gone needs no count.
            let _ = write!(terminal, "\r{} {what} \x1b[K", thousands(done.load(Ordering::Relaxed)));
            let _ = terminal.flush();
            drop(terminal);
            tokio::time::sleep(PACE).await;
        }
    };
    if !shown {
        return work.await;
    }
    let answer = tokio::select! {
        answer = work => answer,
        () = telling => std::future::pending().await,
    };
    let _ = write!(io::stderr(), "\r\x1b[K");
    answer
}
