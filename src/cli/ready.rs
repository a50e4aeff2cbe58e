//! `usher ready`: whether the running usher takes logins, for the health check of a container.

use std::path::Path;
use std::process::ExitCode;

use super::running::say;
use super::{FAILED, OK, UNAVAILABLE, fail, fail_config};
use crate::admin::asked;
use crate::config::{self, Mistakes};

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn ready(config: &Path) -> Result<ExitCode, ExitCode> {
    // Mistakes elsewhere in the file do not matter: the running usher has another one in force.
    let admin = match config::load(config) {
        Ok(config) => config.admin,
        Err(Mistakes { problems, draft }) => {
            draft.and_then(|draft| draft.admin).ok_or_else(|| fail_config(&problems))?
        }
    };
    let (status, text) = asked::ready(admin.address).await.map_err(|error| fail(UNAVAILABLE, error))?;
    say(text);
    Ok(ExitCode::from(if status.is_success() { OK } else { FAILED }))
}
