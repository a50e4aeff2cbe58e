//! Files that change under a config that does not: a renewed certificate is used without a command. The config file
//! itself: `changed_config`.
//!
//! What all files hold is compared by content, since tools that renew certificates move links,
//! write in place or replace folders. What is new is read as at a start; only if all of it is sound
//! does it replace the snapshot in force. Listeners, sessions and the cache stay.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::Server;
use super::changed_config::ConfigCheck;
use super::file_reader::{PendingRead, ReadError};
use crate::base::clock::date;
use crate::config::Problem;
use crate::config_files::{Files, Fingerprint};
use crate::process::Snapshot;
use crate::telemetry::labels::ReloadResult;
use crate::tls::server::ServedCertificate;

/// The result of one check of the files.
#[derive(Debug)]
pub(super) enum FileCheck {
    /// They are as they were when the snapshot in force was made.
    Unchanged,
    /// They are as they were when they were refused.
    StillRefused,
    /// They are valid.
    Valid(Box<Files>),
    /// They have problems.
    Invalid(Fingerprint, Vec<Problem>),
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
        let (current, refused) = (self.shared.snapshot.load_full(), self.refused);
        // Keys are checked against certificates: milliseconds that no session should wait.
        self.file_check =
            Some(PendingFileCheck(self.reader.begin(move || (ConfigCheck::of(&current), check(&current, refused)))));
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
            Ok(FileCheck::Invalid(fingerprint, problems)) => {
                metrics.certificate_reloads.of(ReloadResult::Refused).inc();
                metrics.certificate_last_reload_successful.set(0);
                self.refused = Some(fingerprint);
                for problem in problems {
                    error!(%problem, "a changed file is invalid; its previous content stays active");
                }
            }
            Err(unread @ ReadError::Late) => {
                metrics.certificate_reloads.of(ReloadResult::Refused).inc();
                metrics.certificate_last_reload_successful.set(0);
                error!(reason = %unread, "files cannot be checked for changes; their previous content stays active");
            }
            // The next check may succeed.
            Ok(FileCheck::StillRefused) | Err(ReadError::Panicked) => {}
        }
    }
}

fn check(current: &Snapshot, refused: Option<Fingerprint>) -> FileCheck {
    let found = Fingerprint::of(&current.config);
    if found == current.fingerprint {
        return FileCheck::Unchanged;
    }
    if refused == Some(found) {
        return FileCheck::StillRefused;
    }
    match Files::read(&current.config) {
        Ok(files) => {
            let expired = newly_expired(current, &files);
            if expired.is_empty() { FileCheck::Valid(Box::new(files)) } else { FileCheck::Invalid(found, expired) }
        }
        Err(problems) => FileCheck::Invalid(found, problems),
    }
}

/// Certificates that are expired and were not in force before: they are not used. One that
/// has expired in service must not keep the others from being renewed.
fn newly_expired(current: &Snapshot, files: &Files) -> Vec<Problem> {
    let in_force = |one: &ServedCertificate| {
        current.tls.certificates().iter().any(|old| old.chain == one.chain && old.not_after == one.not_after)
    };
    let served = files.tls.certificates().iter().enumerate();
    served
        .filter(|(_, served)| served.expired && !in_force(served))
        .map(|(index, served)| {
            let words = format!("{} has expired: renew it, then install the new one here", served.chain.display());
            current.config.problem(&format!("tls.certificates[{index}].chain"), words)
        })
        .collect()
}
