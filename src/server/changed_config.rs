//! A changed config file that is taken over without a command (`config_reload: auto`), with the checks of a reload.
//!
//! The text is compared, as with the files that it names. A file is taken over once it is the same at two checks:
//! an editor that writes in place must not be met halfway. A refused one is tried again at each check, because what
//! it names may come later (Kubernetes replaces a ConfigMap and a Secret independently); its mistakes are logged
//! once.

use std::time::Duration;

use tracing::{error, info};

use super::Server;
use crate::config::{ConfigReload, TextDigest};
use crate::process::Snapshot;

/// Between the check that finds another text and the one that confirms it.
const SETTLE: Duration = Duration::from_secs(2);

/// The config file, compared with the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConfigCheck {
    /// It is the same, or a change waits for a command.
    InForce,
    /// It has another text; `None`: it cannot be read.
    Changed(Option<TextDigest>),
}

impl ConfigCheck {
    /// Reads the file, if a change is to be found.
    pub(super) fn of(current: &Snapshot) -> Self {
        let config = &current.config;
        match config.config_reload {
            ConfigReload::Manual => Self::InForce,
            ConfigReload::Auto => match TextDigest::of_file(&config.file) {
                Some(digest) if digest == config.digest => Self::InForce,
                found => Self::Changed(found),
            },
        }
    }
}

/// A text, compared with the one at the check before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    /// It is the first of a change.
    New,
    /// It has changed once more.
    Changing,
    /// It is the same, and may be tried.
    Settled,
}

/// What is known of a config file that is not in force.
#[derive(Debug, Default)]
pub(super) struct ChangedConfig {
    /// Its text at the last check.
    seen: Option<Option<TextDigest>>,
    /// Whether that text was tried.
    tried: bool,
    /// Why the last one that was tried was refused.
    refused: Option<Vec<String>>,
}

impl ChangedConfig {
    /// Returns the time until the next check.
    pub(super) fn next_check(&self, interval: Duration) -> Duration {
        if self.seen.is_some() && !self.tried { SETTLE.min(interval) } else { interval }
    }

    /// Notes why a config file was refused; returns whether that is new.
    pub(super) fn refuse(&mut self, problems: &[String]) -> bool {
        let is_new = self.refused.as_deref() != Some(problems);
        self.refused = Some(problems.to_vec());
        is_new
    }

    /// Notes the text.
    fn note(&mut self, found: Option<TextDigest>) -> Noted {
        let is_settled = self.seen == Some(found);
        let is_new = self.seen.is_none() || self.tried;
        self.seen = Some(found);
        self.tried = is_settled;
        match (is_settled, is_new) {
            (true, _) => Noted::Settled,
            (false, true) => Noted::New,
            (false, false) => Noted::Changing,
        }
    }
}

impl Server {
    /// Takes over a changed config file if it is sound; returns whether the files of the one in force are to be left
    /// alone: another is in force now, or is about to be, with which they may have been replaced.
    pub(super) async fn apply_config_check(&mut self, check: ConfigCheck) -> bool {
        let found = match check {
            ConfigCheck::Changed(found) => found,
            ConfigCheck::InForce => {
                let before = std::mem::take(&mut self.changed_config);
                let is_auto = self.shared.snapshot.load().config.config_reload == ConfigReload::Auto;
                if before.refused.is_some() && is_auto {
                    self.shared.metrics.config_last_reload_successful.set(1);
                    info!(config = %self.file.display(), "the configuration file is again the one in force");
                }
                return false;
            }
        };
        match self.changed_config.note(found) {
            Noted::New => return true,
            // Not for long: whatever becomes of the config file, a renewed certificate is used.
            Noted::Changing => return false,
            Noted::Settled => {}
        }
        match self.reload_as(found, false).await {
            Ok(()) => {
                info!(config = %self.file.display(), "reloaded: changed configuration file");
                true
            }
            // It has changed once more.
            Err(problems) if problems.is_empty() => {
                self.changed_config = ChangedConfig::default();
                false
            }
            Err(problems) => {
                self.shared.metrics.config_last_reload_successful.set(0);
                if self.changed_config.refuse(&problems) {
                    for problem in problems {
                        error!(problem, "a changed configuration file is invalid; the previous one stays active");
                    }
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn changed_text_is_tried_once_it_is_the_same_twice() {
        let (one, other) = (Some(TextDigest::default()), None);
        let mut changed = ChangedConfig::default();
        assert_eq!(changed.next_check(MINUTE), MINUTE);
        assert_eq!(changed.note(one), Noted::New);
        assert_eq!(changed.next_check(MINUTE), SETTLE);
        assert_eq!(changed.next_check(SETTLE / 2), SETTLE / 2);
        assert_eq!(changed.note(other), Noted::Changing, "it is still being written");
        assert_eq!(changed.note(other), Noted::Settled);
        // Refused: what it names may come later.
        assert_eq!(changed.next_check(MINUTE), MINUTE);
        assert_eq!(changed.note(other), Noted::Settled);
        assert_eq!(changed.note(one), Noted::New);
    }

    #[test]
    fn same_mistakes_are_new_once() {
        let mut changed = ChangedConfig::default();
        let problems = ["a".to_owned(), "b".to_owned()];
        assert!(changed.refuse(&problems));
        assert!(!changed.refuse(&problems));
        assert_eq!(changed.note(None), Noted::New);
        assert!(!changed.refuse(&problems));
        assert!(changed.refuse(&problems[..1]));
    }
}
