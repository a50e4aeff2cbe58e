//! Files that change under a config that does not: a renewed certificate is used without being told.
//!
//! What all files hold is compared by content, since tools that renew certificates move links,
//! write in place or replace folders. What is new is read as at a start; only if all of it is sound
//! does it replace the snapshot in force. Listeners, sessions and the cache stay.

use std::sync::Arc;

use tracing::{error, info};

use super::Server;
use crate::config::Problem;
use crate::files::{Files, Fingerprint};
use crate::snapshot::Snapshot;
use crate::tls::server::Served;

/// What one look at the files came to.
#[derive(Debug)]
enum Look {
    /// They are as they were when the snapshot in force was made.
    Unchanged,
    /// They are as they were when they were refused.
    StillRefused,
    /// They can be used.
    Sound(Box<Files>),
    /// They cannot.
    Unsound(Fingerprint, Vec<Problem>),
}

impl Server {
    /// Takes over what the files of the config in force hold now, if it is new and sound.
    pub(super) async fn refresh(&mut self) {
        let current = self.shared.snapshot.load_full();
        let (old, refused) = (Arc::clone(&current), self.refused);
        // Keys are checked against certificates: milliseconds that no session should wait.
        let looked = tokio::task::spawn_blocking(move || look(&old, refused)).await;
        let metrics = &self.shared.metrics;
        match looked {
            Ok(Look::Unchanged) => {
                // The old content may have come back after a refusal.
                metrics.certificate_last_reload_successful.set(1);
                self.refused = None;
            }
            Ok(Look::Sound(files)) => {
                let snapshot = Snapshot::new(current.config.clone(), *files, metrics, Some(&current));
                self.certificates_in_force(&snapshot);
                metrics.certificate_reloads.with_label_values(&["ok"]).inc();
                self.shared.snapshot.store(Arc::new(snapshot));
                self.refused = None;
                info!("changed certificates or other files are taken over");
            }
            Ok(Look::Unsound(fingerprint, problems)) => {
                metrics.certificate_reloads.with_label_values(&["refused"]).inc();
                metrics.certificate_last_reload_successful.set(0);
                self.refused = Some(fingerprint);
                for problem in problems {
                    error!(%problem, "a changed file is refused; its old content stays in force");
                }
            }
            // A panic was counted and told by its hook; the next look may go better.
            Ok(Look::StillRefused) | Err(_) => {}
        }
    }
}

fn look(current: &Snapshot, refused: Option<Fingerprint>) -> Look {
    let found = Fingerprint::of(&current.config);
    if found == current.fingerprint {
        return Look::Unchanged;
    }
    if refused == Some(found) {
        return Look::StillRefused;
    }
    match Files::read(&current.config) {
        Ok(files) => {
            let expired = newly_expired(current, &files);
            if expired.is_empty() { Look::Sound(Box::new(files)) } else { Look::Unsound(found, expired) }
        }
        Err(problems) => Look::Unsound(found, problems),
    }
}

/// Certificates that are expired and were not in force before: nobody is served by them. One that
/// has expired in service must not keep the others from being renewed.
fn newly_expired(current: &Snapshot, files: &Files) -> Vec<Problem> {
    let in_force = |one: &Served| {
        current.tls.certificates().iter().any(|old| old.chain == one.chain && old.not_after == one.not_after)
    };
    let served = files.tls.certificates().iter().enumerate();
    served
        .filter(|(_, served)| served.expired && !in_force(served))
        .map(|(index, served)| {
            let words = format!("{} has expired already: renew it, then put the new one here", served.chain.display());
            current.config.problem(&format!("tls.certificates[{index}].chain"), words)
        })
        .collect()
}
