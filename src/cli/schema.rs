//! `usher schema`: what editors complete and check the configuration by.

use std::process::ExitCode;

use super::{OK, output};
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn schema() -> ExitCode {
    output::line(format_args!("{:#}", config::schema()));
    ExitCode::from(OK)
}
