//! `usher reload` and `usher upgrade`: the running usher takes over its configuration file, or hands
//! over to a new process, or says why not.

use std::path::Path;
use std::process::ExitCode;

use super::running::{Running, say, say_json};
use super::{FAILED, OK, fail};
use crate::admin::control::Outcome;
use crate::cutover::sheet::ShownLines;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn reload(config: &Path, arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let refused = "the reload was refused; the old configuration stays in force";
    order(config, "/reload", "reloaded", refused, arguments.json).await
}

pub(super) async fn upgrade(config: &Path, arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let refused = "the upgrade failed; the old process goes on";
    order(config, "/upgrade", "a new process serves", refused, arguments.json).await
}

async fn order(config: &Path, path: &str, done: &str, refused: &str, json: bool) -> Result<ExitCode, ExitCode> {
    // What is wrong with the file was told; to systemd it is a refused reload like another.
    let running = Running::of(config).map_err(|_| ExitCode::from(FAILED))?;
    let outcome: Outcome = running.ask("POST", path).await?;
    if json {
        say_json(&outcome);
    }
    if outcome.done {
        if !json {
            say(done);
        }
        return Ok(ExitCode::from(OK));
    }
    if !json {
        outcome.problems.iter().for_each(|problem| eprintln!("{}", ShownLines(problem)));
    }
    Err(fail(FAILED, refused))
}
