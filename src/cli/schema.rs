//! `usher schema`: what editors complete and check the configuration by.

use std::process::ExitCode;

use super::{OK, output};
use crate::config;

const HELP: &str = "\
The schema (JSON Schema, draft-07) comes from the reader that `usher check` uses. What it refuses, check refuses; check
finds more: files that are missing, keys that need each other, the syntax of filters and names.

Examples:
  usher schema > /etc/usher/usher.schema.json
with this line at the top of config.yaml, for editors with yaml-language-server:
  # yaml-language-server: $schema=usher.schema.json

Exit codes: 0 written.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {}

pub(super) fn schema() -> ExitCode {
    output::line(format_args!("{:#}", config::schema()));
    ExitCode::from(OK)
}
