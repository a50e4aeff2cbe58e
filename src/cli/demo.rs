//! `usher demo`: the guided tour (feature `demo`).

use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Exit after the tour, with 0 if everything went as it should
    #[arg(long)]
    once: bool,
}

pub(super) async fn demo(arguments: &Args) -> ExitCode {
    crate::demo::run(crate::demo::Options { once: arguments.once }).await
}
