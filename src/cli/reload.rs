//! `usher reload` and `usher upgrade`: the running usher reloads its configuration file, or hands over
//! to a new process; or the reason why it cannot.

use std::path::Path;
use std::process::ExitCode;

use super::running::{Running, say, say_json};
use super::{FAILED, OK, fail, output};
use crate::admin::control::Outcome;
use crate::diagnose::table::ShownLines;

#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    /// Also take a certificate that has expired
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    shown: Args,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn reload(config: &Path, arguments: &ReloadArgs) -> Result<ExitCode, ExitCode> {
    let refused = "reload failed; the previous configuration stays active";
    let force = arguments.force.then_some(("force", "true"));
    request(config, ("/reload", force), "reloaded", refused, arguments.shown.json).await
}

pub(super) async fn upgrade(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let refused = "upgrade failed; the old process continues";
    request(config, ("/upgrade", None), "upgraded", refused, arguments.json).await
}

async fn request(
    config: &Path,
    (path, option): (&str, Option<(&str, &str)>),
    done: &str,
    refused: &str,
    json: bool,
) -> Result<ExitCode, ExitCode> {
    // The mistakes of the file were printed; for systemd it is a failed reload.
    let running = Running::of(config).map_err(|_| ExitCode::from(FAILED))?;
    // A process has one file: whoever names another must not read "reloaded".
    let own = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    let outcome: Outcome = running.act_on(&own.to_string_lossy(), path, option).await?;
    if json {
        say_json(&outcome);
    }
    if outcome.done {
        if !json {
            say(outcome.message.as_deref().unwrap_or(done));
        }
        return Ok(ExitCode::from(OK));
    }
    if !json {
        outcome.problems.iter().for_each(|problem| output::complaint(ShownLines(problem)));
    }
    Err(fail(FAILED, refused))
}
