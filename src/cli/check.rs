//! `usher check`: every mistake of the configuration and of the files it names, before a restart
//! finds the first one; with `--connect` also what is wrong at the servers that it names.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use serde::Serialize;

use super::running::{age, say_json};
use super::{FAILED, OK, UNAVAILABLE, USAGE, complain, count, fail, fail_config, output, progress};
use crate::admin::control;
use crate::admin::overview::Backend;
use crate::backend::state::{BackendStatus, ProtocolStatus, RefusingStatus};
use crate::base::credential::Login;
use crate::base::privileges;
use crate::base::sys::journal::Priority;
use crate::config::{Config, Problem};
use crate::config_files::{ServiceUser, unreadable};
use crate::diagnose::table::{Shown, ShownJson, ShownLines};
use crate::diagnose::{self, Finding, Report, State, Subject};
use crate::server;
use crate::telemetry::log::Escaped;
use crate::telemetry::metrics::Metrics;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Connect to every directory server and mail server, and report the state of each
    #[arg(long)]
    connect: bool,
    /// With --connect: a login name to find in the directory; no password is needed
    #[arg(long, value_name = "LOGIN", requires = "connect")]
    sample: Option<String>,
    /// As root: whether this user can read every file; without it the user of `process.user`, or of the systemd unit
    #[arg(long = "as", value_name = "USER")]
    as_user: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What is said of the files, as JSON; with `--connect` the report of the servers is said instead.
#[derive(Serialize)]
struct Checked {
    ok: bool,
    problems: Vec<Said>,
    warnings: Vec<Said>,
}

/// A problem or a warning.
#[derive(Serialize)]
struct Said {
    file: String,
    line: Option<u64>,
    key: String,
    message: String,
}

impl Said {
    fn of(problem: &Problem) -> Self {
        let Problem { file, line, key, message } = problem;
        Self { file: file.display().to_string(), line: *line, key: key.clone(), message: message.clone() }
    }
}

/// Says every mistake, as JSON, too, if that is wanted.
fn mistaken(problems: &[Problem], arguments: &Args) -> ExitCode {
    if arguments.json {
        say_json(&Checked { ok: false, problems: problems.iter().map(Said::of).collect(), warnings: Vec::new() });
    }
    fail_config(problems)
}

pub(super) async fn check(config: &Path, arguments: &Args) -> ExitCode {
    let metrics = Arc::new(Metrics::new());
    let snapshot = match server::prepare(config, &metrics, None) {
        Ok(snapshot) => snapshot,
        Err(problems) => return mistaken(&problems, arguments),
    };
    let config = &snapshot.config;
    if arguments.as_user.is_some() && !privileges::is_root() {
        return fail(USAGE, "--as: only root can check what another user can read");
    }
    let for_the_service = match of_the_service(config, arguments.as_user.as_deref()) {
        Ok(warnings) => warnings,
        Err(problems) => return mistaken(&problems, arguments),
    };
    for warning in &for_the_service {
        complain(Priority::Warning, &format!("warning: {warning}"));
    }
    for warning in &config.warnings {
        complain(Priority::Warning, &format!("warning: {warning}"));
    }
    for Finding { found, .. } in diagnose::served(&snapshot.tls) {
        complain(Priority::Warning, &format!("warning: {found}"));
    }
    if !arguments.json {
        output::line(format_args!(
            "{}: OK ({}, {}, {})",
            config.file.display(),
            count(config.listeners.len(), "listener"),
            servers(config),
            count(config.routing.backends.len(), "backend"),
        ));
    }
    if !arguments.connect {
        if arguments.json {
            let warnings = config.warnings.iter().chain(&for_the_service).map(Said::of).collect();
            say_json(&Checked { ok: true, problems: Vec::new(), warnings });
        }
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
    let mut report = progress::watched(&done, &of, false, looking).await;
    add_running(config, &mut report).await;
    if arguments.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => output::line(ShownJson(&text)),
            Err(error) => return fail(FAILED, error),
        }
    } else {
        output::print(ShownLines(&text(&report)));
        let above = config.warnings.len() + for_the_service.len();
        if above > 0 {
            output::line(format_args!("{} of the configuration above", count(above, "warning")));
        }
    }
    ExitCode::from(if report.ok { OK } else { UNAVAILABLE })
}

/// Adds what only logins show, as the usher has seen it that runs with this control socket, if one does.
async fn add_running(config: &Config, report: &mut Report) {
    let Some(control) = &config.control else { return };
    let Ok(backends) = control::ask::<Vec<Backend>>(&control.path, "GET", "/backends").await else { return };
    for BackendStatus { name, protocols, .. } in backends.into_iter().map(|backend| backend.state) {
        for ProtocolStatus { protocol, refusing, .. } in protocols {
            if let Some(RefusingStatus { seconds, reason, .. }) = refusing {
                let reason = Escaped(reason.as_bytes());
                let found = format!("the running usher: no login is accepted for {}: {reason}", age(seconds));
                report.accepts_no_login(&name, &protocol, found);
            }
        }
    }
}

/// How many directory servers there are; those that DNS names are not known here.
fn servers(config: &Config) -> String {
    let all = || config.directories.iter().flat_map(|directory| &directory.servers);
    let names = all().filter(|server| server.srv.is_some()).count();
    let others = all().count().saturating_sub(names);
    let named = || count(names, "name of directory servers");
    match (others, names) {
        (_, 0) => count(others, "directory server"),
        (0, _) => named(),
        (_, _) => format!("{}, {}", count(others, "directory server"), named()),
    }
}

/// What the user that usher runs as cannot read, although root, who checks, can: mistakes if the configuration names the
/// user, otherwise warnings.
fn of_the_service(config: &Config, named: Option<&str>) -> Result<Vec<Problem>, Vec<Problem>> {
    let user = named.map(|user| ServiceUser::Named(user.to_owned())).or_else(|| ServiceUser::of(config));
    let Some(user) = user.filter(|_| privileges::is_root()) else { return Ok(Vec::new()) };
    match (unreadable(config, &user), user) {
        (Ok(problems), ServiceUser::Named(_)) if !problems.is_empty() => Err(problems),
        (Ok(problems), _) => Ok(problems),
        (Err(error), ServiceUser::Named(_)) => {
            let key = if named.is_some() { "" } else { "process.user" };
            Err(vec![config.problem(key, error.to_string())])
        }
        // No unit and no user: nothing says which it will be.
        (Err(_), ServiceUser::Packaged(_)) => Ok(Vec::new()),
    }
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
