//! The keys of the `directory` section that say how it is watched, and what follows from a change.

use super::model::{Directory, Find, OnChange, Watch, WatchMode};
use super::names;
use super::raw::Section;
use super::units::{HOUR, SECOND};

/// Reads the keys.
pub(super) fn read(directory: &Section<'_>, service: Option<bool>) -> Option<Watch> {
    let modes =
        [("auto", WatchMode::Auto), ("sync", WatchMode::Sync), ("poll", WatchMode::Poll), ("off", WatchMode::Off)];
    let mode = directory.get("watch").map_or(Some(WatchMode::Auto), |node| {
        let mode = node.word(&modes);
        if matches!(mode, Some(WatchMode::Sync | WatchMode::Poll)) && service == Some(false) {
            node.problem(
                "with `user_dn` alone no account may read the directory: add `bind_dn` and `bind_password_file`",
            );
        }
        mode
    });
    let poll_interval = directory.duration("poll_interval", 30 * SECOND, SECOND..=HOUR);
    let words = [("close", OnChange::Close), ("keep", OnChange::Keep)];
    let choice = |key, default| directory.get(key).map_or(Some(default), |node| node.word(&words));
    let on_move = choice("on_move", OnChange::Close);
    let on_disable = choice("on_disable", OnChange::Close);
    let on_password_change = choice("on_password_change", OnChange::Keep);
    // One word only: whoever guesses a password five times must not end its owner's sessions.
    let on_lockout = directory.get("on_lockout").map_or(Some(()), |node| node.word(&[("keep", ())]));
    let brake = directory.get("brake").is_some().then(|| directory.integer("brake", 200, 1..=1_000_000));
    let hold_attribute = directory.get("hold_attribute").map(|node| node.parsed(names::attribute));
    let hold_timeout = directory.duration("hold_timeout", 8 * SECOND, SECOND / 10..=9 * SECOND);
    on_lockout?;
    Some(Watch {
        mode: mode?,
        poll_interval: poll_interval?,
        on_move: on_move?,
        on_disable: on_disable?,
        on_password_change: on_password_change?,
        brake: match brake {
            Some(limit) => Some(limit?),
            None => None,
        },
        hold_attribute: match hold_attribute {
            Some(name) => Some(name?),
            None => None,
        },
        hold_timeout: hold_timeout?,
    })
}

impl Directory {
    /// Whether the directory is followed: wanted, and possible with an account that may read.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        let may_read = match &self.find {
            Find::Search { .. } => true,
            Find::UserDn { service, .. } | Find::Principal { service, .. } => service.is_some(),
        };
        self.watch.mode != WatchMode::Off && may_read
    }

    /// Whether the service account reads the entry of a user that was bound by a DN made of the name: a user that cannot
    /// read what restricts the login would be let in.
    #[must_use]
    pub(crate) fn reads_as_service(&self) -> bool {
        let is_restricted = self.networks_attribute.is_some() || self.watch.hold_attribute.is_some();
        is_restricted && self.find.service().is_some()
    }
}
