//! Files that change under a config that does not: a renewed certificate is used without a command. The config file
//! itself: `changed_config`.
//!
//! What all files hold is compared by content, since tools that renew certificates move links,
//! write in place or replace folders, and with it their owner and mode: the remedy for a file that others can read
//! changes nothing else. What is new is read as at a start, again at each check while it is refused; only if all of it
//! is sound does it replace the snapshot in force. Listeners, sessions and the cache stay.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::Server;
use super::changed_config::ConfigCheck;
use super::file_reader::{PendingRead, ReadError};
use crate::base::clock::date;
use crate::config::{Config, Problem};
use crate::config_files::{Files, Fingerprint};
use crate::process::Snapshot;
use crate::telemetry::labels::ReloadResult;
use crate::tls::server::{ServedCertificate, ServerTls};

/// The result of one check of the files.
#[derive(Debug)]
pub(super) enum FileCheck {
    /// They are as they were when the snapshot in force was made.
    Unchanged,
    /// They are valid.
    Valid(Box<Files>),
    /// They have problems.
    Invalid(Vec<Problem>),
}

/// A check of the files in progress.
#[derive(Debug)]
pub(super) struct PendingFileCheck(PendingRead<(ConfigCheck, FileCheck)>);

impl PendingFileCheck {
    /// Waits for the result; never returns without a check.
    pub(super) async fn done(file_check: &mut Option<Self>) -> Result<(ConfigCheck, FileCheck), ReadError> {
        match file_check {
            Some(Self(reading)) => reading.done().await,
            None => std::future::pending().await,
        }
    }
}

impl Server {
    /// Begins to check whether the files of the configuration in force have changed.
    pub(super) fn check_files(&mut self) {
        let current = self.shared.snapshot.load_full();
        // Keys are checked against certificates: milliseconds that no session should wait.
        self.file_check =
            Some(PendingFileCheck(self.reader.begin(move || (ConfigCheck::of(&current), check(&current)))));
    }

    /// Applies the result of a check, if the files are new and valid.
    pub(super) async fn apply_file_check(&mut self, result: Result<(ConfigCheck, FileCheck), ReadError>) {
        self.file_check = None;
        let result = match result {
            // Another configuration brings its own files.
            Ok((config, _)) if self.apply_config_check(config).await => return,
            Ok((_, files)) => Ok(files),
            Err(error) => Err(error),
        };
        // A reload discards a check: this one is still about the snapshot in force.
        let current = self.shared.snapshot.load_full();
        let metrics = &self.shared.metrics;
        match result {
            Ok(FileCheck::Unchanged) => {
                // The old content may have come back after a refusal.
                metrics.certificate_last_reload_successful.set(1);
                self.refused = None;
            }
            Ok(FileCheck::Valid(files)) => {
                for warning in &files.warnings {
                    warn!(%warning, "configuration warning");
                }
                let snapshot = Snapshot::new(current.config.clone(), *files, metrics, Some(&current));
                self.report_certificates(&snapshot);
                self.shared.update_fleet(&snapshot);
                for served in snapshot.tls.certificates() {
                    let is_old =
                        |old: &ServedCertificate| old.chain == served.chain && old.not_after == served.not_after;
                    if !current.tls.certificates().iter().any(is_old) {
                        let chain = served.chain.display();
                        info!("reloaded: {chain} (certificate valid until {})", date(served.not_after));
                    }
                }
                metrics.certificate_reloads.of(ReloadResult::Ok).inc();
                self.shared.snapshot.store(Arc::new(snapshot));
                self.refused = None;
                info!("reloaded: changed files");
            }
            Ok(FileCheck::Invalid(problems)) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                if self.refused.as_ref() == Some(&problems) {
                    return;
                }
                metrics.certificate_reloads.of(ReloadResult::Refused).inc();
                metrics.certificate_last_reload_successful.set(0);
                for problem in &problems {
                    error!(problem, "a changed file is invalid; its previous content stays active");
                }
                self.refused = Some(problems);
            }
            Err(unread @ ReadError::Late) => {
                metrics.certificate_reloads.of(ReloadResult::Refused).inc();
                metrics.certificate_last_reload_successful.set(0);
                error!(reason = %unread, "files cannot be checked for changes; their previous content stays active");
            }
            // The next check may succeed.
            Err(ReadError::Panicked) => {}
        }
    }
}

fn check(current: &Snapshot) -> FileCheck {
    if Fingerprint::of(&current.config) == current.fingerprint {
        return FileCheck::Unchanged;
    }
    match Files::read(&current.config) {
        Ok(files) => {
            let expired = newly_expired(current, (&current.config, &files.tls));
            if expired.is_empty() { FileCheck::Valid(Box::new(files)) } else { FileCheck::Invalid(expired) }
        }
        Err(problems) => FileCheck::Invalid(problems),
    }
}

/// The same for the files as they are now.
pub(super) fn newly_expired_files(current: &Snapshot) -> Vec<Problem> {
    let files = Files::read(&current.config);
    files.map(|files| newly_expired(current, (&current.config, &files.tls))).unwrap_or_default()
}

/// Certificates that have expired and were not in force before: they are not taken, by whatever way they come. One that
/// has expired in service must not keep the others from being renewed.
pub(super) fn newly_expired(current: &Snapshot, (config, tls): (&Config, &ServerTls)) -> Vec<Problem> {
    let in_force = |one: &ServedCertificate| {
        current.tls.certificates().iter().any(|old| old.chain == one.chain && old.not_after == one.not_after)
    };
    let served = tls.certificates().iter().enumerate();
    served
        .filter(|(_, served)| served.expired && !in_force(served))
        .map(|(index, served)| {
            let words = format!(
                "{} has expired: renew it, then install the new one here (`usher reload --force` takes it nevertheless)",
                served.chain.display()
            );
            config.problem(&format!("tls.certificates[{index}].chain"), words)
        })
        .collect()
}
