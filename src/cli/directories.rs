//! The directories of a configuration, for commands that ask them.

use std::process::ExitCode;
use std::sync::Arc;

use super::fail_config;
use crate::config::Config;
use crate::config_files;
use crate::directory;
use crate::login::realms::Realms;
use crate::telemetry::metrics::Metrics;

/// Opens all of them. Only their own files are read: such a command needs no access to the TLS keys.
pub(super) fn open(config: &Config) -> Result<Realms, ExitCode> {
    let files = config_files::directories(&config.directories, &config.place);
    let files = files.map_err(|problems| fail_config(&problems))?;
    let metrics = Arc::new(Metrics::new());
    let opened = config.directories.iter().zip(files);
    let opened = opened.map(|(settings, tls)| directory::open(settings, tls, Arc::clone(&metrics))).collect();
    Ok(Realms::new(config, opened, None))
}
