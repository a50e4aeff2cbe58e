//! `usher check`: every mistake of the configuration and of the files it names, before a restart
//! finds the first one.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use super::{OK, count, fail_config};
use crate::metrics::Metrics;
use crate::server;

pub(super) fn check(config: &Path) -> ExitCode {
    let snapshot = match server::prepare(config, &Arc::new(Metrics::new()), None) {
        Ok(snapshot) => snapshot,
        Err(problems) => return fail_config(&problems),
    };
    let config = &snapshot.config;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    for served in snapshot.tls.certificates().iter().filter(|served| served.expired) {
        eprintln!("warning: {} has expired; it would be served all the same", served.chain.display());
    }
    println!(
        "{}: good ({}, {}, {})",
        config.file.display(),
        count(config.listeners.len(), "listener"),
        count(config.directory.servers.len(), "directory server"),
        count(config.routing.backends.len(), "backend"),
    );
    ExitCode::from(OK)
}
