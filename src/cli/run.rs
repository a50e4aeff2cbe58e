//! `usher run`: give up what is not needed, then serve.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{CONFIG, OK, SOFTWARE, SYSTEM, fail, fail_config};
use crate::base::privileges::{self, User};
use crate::config::Problem;
use crate::server::{self, ServerExit, StartError};

#[derive(Debug, Default, clap::Args)]
pub(super) struct Args {
    /// Allow running as root if `process.user` is not set
    #[arg(long)]
    allow_root: bool,
    /// Take over the listeners of the parent process (set by `usher upgrade`)
    #[arg(long, hide = true)]
    take_over: bool,
    /// A backend that the parent process drains, and its rate (set by `usher upgrade`)
    #[arg(long, hide = true, value_name = "NAME=RATE", value_parser = drained)]
    drained: Vec<(String, u32)>,
    /// Start this command again without this option, and exit (set by `usher upgrade`)
    #[arg(long, hide = true)]
    pub(super) detach: bool,
}

impl Args {
    /// What the process that started this one to take over says of it.
    pub(super) fn inherit(&mut self) {
        let Some(backends) = server::take_over() else { return };
        (self.take_over, self.allow_root) = (true, true);
        self.drained.extend(backends.iter().filter_map(|text| drained(text).ok()));
    }

    /// Says why this process does not serve to the one that it was to replace.
    fn report(&self, is_known: bool, why: &str) {
        if self.take_over {
            server::report_failure(is_known, why);
        }
    }

    fn report_config(&self, is_known: bool, problems: &[Problem]) -> ExitCode {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        self.report(is_known, &lines.join("\n"));
        fail_config(problems)
    }
}

/// Gives up root, new privileges and cores. Must be called before there is a second thread; no
/// secret is read before, unless the config has mistakes: then nothing is started.
///
/// # Errors
/// The exit code, after the reason was printed.
pub(super) fn give_up_privileges(file: &Path, arguments: &Args) -> Result<(), ExitCode> {
    // The server reads it again: what is sound only then would run with what was not given up here.
    let config = server::load(file).map_err(|problems| arguments.report_config(false, &problems))?;
    if privileges::is_root() {
        match &config.process.user {
            Some(name) => {
                let user = User::find(name, config.process.group.as_deref());
                let became = user.and_then(|user| user.switch_to());
                became.map_err(|error| fail(SYSTEM, config.problem("process.user", error.to_string())))?;
            }
            None if arguments.allow_root => {}
            None => {
                return Err(fail(CONFIG, "refusing to run as root: use the systemd unit or process.user"));
            }
        }
    }
    let forbidden = privileges::forbid_new_privileges();
    let hidden = if config.process.debug { privileges::allow_debugging() } else { privileges::forbid_cores() };
    forbidden.and(hidden).map_err(|error| fail(SYSTEM, format!("cannot drop privileges: {error}")))
}

fn drained(text: &str) -> Result<(String, u32), String> {
    let (name, rate) = text.rsplit_once('=').ok_or("expected NAME=RATE")?;
    Ok((name.to_owned(), rate.parse::<u32>().map_err(|error| format!("{error}"))?))
}

pub(super) fn detach(file: &Path, arguments: &Args) -> ExitCode {
    server::detach(file, &arguments.drained).map_or_else(|error| fail(SYSTEM, error), |()| ExitCode::from(OK))
}

pub(super) async fn run(config: PathBuf, arguments: &Args) -> ExitCode {
    match server::run(config, arguments.take_over, &arguments.drained).await {
        Ok(ServerExit::Requested) => ExitCode::from(OK),
        Ok(ServerExit::Defect) => ExitCode::from(SOFTWARE),
        Err(StartError::Config(problems)) => arguments.report_config(true, &problems),
        Err(error @ (StartError::Bind { .. } | StartError::Signals(_))) => {
            arguments.report(true, &error.to_string());
            fail(SYSTEM, error)
        }
        Err(error @ StartError::Inherit(_)) => fail(SYSTEM, error),
    }
}
