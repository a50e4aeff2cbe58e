//! A line on a terminal while a command takes its time; nothing anywhere else, and nothing with `--quiet`.

use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::output;
use crate::diagnose::table::{ShownLines, thousands};

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
    let are_rows_there = rows_are_shown && io::stdout().is_terminal();
    shown(are_rows_there, |_| format!("{} {what} ", thousands(done.load(Ordering::Relaxed))), work).await
}

/// Waits for `work`, and shows what is waited for and for how long.
pub(super) async fn waiting<T>(what: &str, work: impl Future<Output = T>) -> T {
    shown(false, |seconds| format!("{what}, {seconds} s "), work).await
}

async fn shown<T>(is_shown_otherwise: bool, text: impl Fn(u64) -> String, work: impl Future<Output = T>) -> T {
    if is_shown_otherwise || output::is_quiet() || !io::stderr().is_terminal() {
        return work.await;
    }
    let began = Instant::now();
    let told = AtomicBool::new(false);
    let telling = async {
        sleep(PATIENCE).await;
        loop {
            told.store(true, Ordering::Relaxed);
            let mut terminal = io::stderr().lock();
            // A terminal that is gone needs no count.
            let _ = write!(terminal, "\r{}\x1b[K", ShownLines(&text(began.elapsed().as_secs())));
            let _ = terminal.flush();
            drop(terminal);
            sleep(PACE).await;
        }
    };
    let answer = tokio::select! {
        answer = work => answer,
        () = telling => std::future::pending().await,
    };
    if told.load(Ordering::Relaxed) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    answer
}

/// Shows how a wait stands, over what was shown before.
pub(super) fn note(text: &str) {
    if !output::is_quiet() && io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r{}\x1b[K\r", ShownLines(text));
    }
}
