//! `usher check`: every mistake of the configuration and of the files it names, before a restart
//! finds the first one; with `--connect` also what is wrong at the servers that it names.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::{FAILED, OK, UNAVAILABLE, USAGE, count, fail, fail_config, progress};
use crate::base::credential::Login;
use crate::diagnose::table::{Shown, ShownJson, ShownLines};
use crate::diagnose::{self, Finding, Report, State, Subject};
use crate::server;
use crate::telemetry::metrics::Metrics;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Connect to every directory server and mail server, and report the state of each
    #[arg(long)]
    connect: bool,
    /// With --connect: a login name to find in the directory; no password is needed
    #[arg(long, value_name = "LOGIN", requires = "connect")]
    sample: Option<String>,
    /// With --connect: one JSON object instead of text
    #[arg(long, requires = "connect")]
    json: bool,
}

pub(super) async fn check(config: &Path, arguments: &Args) -> ExitCode {
    let metrics = Arc::new(Metrics::new());
    let snapshot = match server::prepare(config, &metrics, None) {
        Ok(snapshot) => snapshot,
        Err(problems) => return fail_config(&problems),
    };
    let config = &snapshot.config;
    for warning in &config.warnings {
        eprintln!("warning: {}", ShownLines(&warning.to_string()));
    }
    for Finding { found, .. } in diagnose::served(&snapshot.tls) {
        eprintln!("warning: {}", ShownLines(&found));
    }
    if !arguments.json {
        println!(
            "{}: OK ({}, {}, {})",
            config.file.display(),
            count(config.listeners.len(), "listener"),
            count(config.directories.iter().map(|directory| directory.servers.len()).sum(), "directory server"),
            count(config.routing.backends.len(), "backend"),
        );
    }
    if !arguments.connect {
        return ExitCode::from(OK);
    }
    let sample = match arguments.sample.as_deref().map(|name| Login::parse(name.as_bytes())) {
        Some(None) => return fail(USAGE, "--sample: invalid login name"),
        Some(Some(login)) => Some(login),
        None => None,
    };
    let done = AtomicUsize::new(0);
    let looking = diagnose::inspect(&snapshot, &metrics, sample.as_ref(), &done);
    let of = format!("of {} checked", config.routing.backends.len() + config.directories.len() + 2);
    let report = progress::watched(&done, &of, false, looking).await;
    if arguments.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{}", ShownJson(&text)),
            Err(error) => return fail(FAILED, error),
        }
    } else {
        print!("{}", ShownLines(&text(&report)));
    }
    ExitCode::from(if report.ok { OK } else { UNAVAILABLE })
}

/// A paragraph for each server, a line for each finding, and below it what to do.
fn text(report: &Report) -> String {
    let mut text = String::new();
    for Subject { kind, name, protocol, address, findings } in &report.subjects {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{kind} {}", Shown(name));
        for more in [*protocol, address.as_deref()].into_iter().flatten() {
            let _ = write!(text, " {more}");
        }
        text.push('\n');
        for Finding { check, state, found, advice } in findings {
            let _ = writeln!(text, "  {:<8} {check:<13} {found}", state.word());
            if let Some(advice) = advice {
                let _ = writeln!(text, "  {:<8} {:<13} -> {advice}", "", "");
            }
        }
    }
    let (problems, warnings) = (report.count(State::Problem), report.count(State::Warning));
    let _ = writeln!(text, "\n{}, {}", count(problems, "problem"), count(warnings, "warning"));
    text
}
