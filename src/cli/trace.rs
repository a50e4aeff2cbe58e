//! `usher trace`: shows the dialogues of chosen sessions up to the login, as they happen.

use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgGroup;

use super::running::{Running, with_query};
use super::sessions::Selection;
use super::{FAILED, OK, output};
use crate::config;
use crate::diagnose::table::{ShownJson, ShownLines};
use crate::trace::{DEFAULT, LONGEST, TraceMessage};

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("whom").required(true).multiple(true).args(["user", "backend", "client", "protocol"]))]
pub(super) struct Args {
    #[command(flatten)]
    sessions: Selection,
    /// For how long, such as 10m, which is the default; at most 1h
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
    /// One JSON object a line instead of text
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = config::duration(text)?;
    let fits = time >= Duration::from_secs(1) && time <= LONGEST;
    if fits { Ok(time) } else { Err("from 1s to 1h".to_owned()) }
}

pub(super) async fn trace(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let Args { sessions, time, json } = arguments;
    let time = format!("{}s", time.unwrap_or(DEFAULT).as_secs());
    let path = with_query("/trace", sessions.pairs().chain([("for", time.as_str())]));
    let mut is_complete = false;
    let running = Running::of(config)?;
    let shown = running.follow("POST", &path, |message: TraceMessage| {
        is_complete |= matches!(&message, TraceMessage::Ended(summary) if summary.is_complete);
        // A reader that is gone (`| head`) ends the trace.
        let written = write(&message, *json);
        let goes_on = written.is_ok();
        output::note(written);
        if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    tokio::select! {
        ended = shown => ended?,
        // usher notices that the connection is closed.
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(OK)),
    }
    Ok(ExitCode::from(if is_complete { OK } else { FAILED }))
}

/// Lines go to standard output; what is said about the trace itself goes to standard error.
fn write(message: &TraceMessage, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let text = serde_json::to_string(message).map_err(io::Error::other)?;
        return writeln!(out, "{}", ShownJson(&text)).and_then(|()| out.flush());
    }
    match message {
        TraceMessage::Line(line) => writeln!(out, "{}", ShownLines(&line.to_string())).and_then(|()| out.flush()),
        TraceMessage::Started { what, seconds } => {
            writeln!(io::stderr(), "tracing {} for {seconds} s; Ctrl-C ends it", ShownLines(what))
        }
        TraceMessage::Lost(lines) => writeln!(io::stderr(), "{lines} lines lost: the output was too slow"),
        TraceMessage::Ended(summary) => writeln!(io::stderr(), "{}", ShownLines(&summary.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_has_a_limit() {
        assert_eq!(time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(time("1h"), Ok(LONGEST));
        for wrong in ["61m", "10", "0s", "500ms"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
