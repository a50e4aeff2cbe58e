//! Standard output and standard error of the commands.
//!
//! A reader may stop early (`usher sessions | head`): that is no mistake of the command, which says nothing and ends as
//! other programs do that a closed pipe ends. Output that cannot be written for another reason is a failure.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::{FAILED, fail};

/// As shells report a program that SIGPIPE has ended: 128 and its number.
pub(super) const CLOSED_PIPE: u8 = 141;

/// What became of standard output.
static STATE: AtomicU8 = AtomicU8::new(WRITTEN);
const WRITTEN: u8 = 0;
const CLOSED: u8 = 1;
const LOST: u8 = 2;

/// Whether progress and advice are left out (`--quiet`).
static QUIET: AtomicBool = AtomicBool::new(false);

pub(super) fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes a line of advice to standard error.
pub(super) fn advise(text: impl Display) {
    if !is_quiet() {
        complaint(text);
    }
}

/// Writes to standard output.
pub(super) fn print(text: impl Display) {
    note(write!(io::stdout().lock(), "{text}"));
}

/// Writes a line to standard output.
pub(super) fn line(text: impl Display) {
    note(writeln!(io::stdout().lock(), "{text}"));
}

/// Writes a line to standard error; if its reader is gone, it is lost.
pub(super) fn complaint(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Asks for input on standard error, without a line end.
pub(super) fn prompt(text: impl Display) {
    let mut error = io::stderr().lock();
    let _ = write!(error, "{text}").and_then(|()| error.flush());
}

/// Remembers the outcome of writing to standard output.
pub(super) fn note(written: io::Result<()>) {
    if let Err(error) = written {
        let state = if error.kind() == io::ErrorKind::BrokenPipe { CLOSED } else { LOST };
        STATE.fetch_max(state, Ordering::Relaxed);
        if state == LOST {
            complaint(format_args!("usher: standard output: {error}"));
        }
    }
}

/// The exit code of a command that would end with `code`, as far as its output was written.
pub(super) fn exit_code(code: ExitCode) -> ExitCode {
    note(io::stdout().flush());
    match STATE.load(Ordering::Relaxed) {
        CLOSED => ExitCode::from(CLOSED_PIPE),
        LOST => ExitCode::from(FAILED),
        _ => code,
    }
}

/// The outcome of writing a document to a place: standard output or a folder.
pub(super) fn written(outcome: io::Result<()>, place: &str) -> Result<(), ExitCode> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            note(Err(error));
            Ok(())
        }
        Err(error) => Err(fail(FAILED, format!("{place}: {error}"))),
        Ok(()) => Ok(()),
    }
}
