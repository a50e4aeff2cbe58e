//! `usher ready`: whether the running usher takes logins, for the health check of a container.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::running::{say, say_json};
use super::{FAILED, OK, UNAVAILABLE, fail, fail_config};
use crate::admin::asked;
use crate::config::{self, Mistakes};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The reply as JSON.
#[derive(Serialize)]
struct Ready<'a> {
    ready: bool,
    /// The HTTP status.
    status: u16,
    text: &'a str,
}

pub(super) async fn ready(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    // Mistakes elsewhere in the file do not matter: the running usher has another one in force.
    let admin = match config::load(config) {
        Ok(config) => config.admin,
        Err(Mistakes { problems, draft }) => {
            draft.and_then(|draft| draft.admin).ok_or_else(|| fail_config(&problems))?
        }
    };
    let (status, text) = asked::ready(admin.address).await.map_err(|error| fail(UNAVAILABLE, error))?;
    if arguments.json {
        say_json(&Ready { ready: status.is_success(), status: status.as_u16(), text: text.trim_end() });
    } else {
        say(text);
    }
    Ok(ExitCode::from(if status.is_success() { OK } else { FAILED }))
}
