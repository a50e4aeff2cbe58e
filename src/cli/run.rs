//! `usher run`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{OK, SYSTEM, fail, fail_config};
use crate::server::{self, StartError};

pub(super) async fn run(config: PathBuf) -> ExitCode {
    match server::run(config).await {
        Ok(()) => ExitCode::from(OK),
        Err(StartError::Config(problems)) => fail_config(&problems),
        Err(error @ (StartError::Bind { .. } | StartError::Signals(_))) => fail(SYSTEM, error),
    }
}
