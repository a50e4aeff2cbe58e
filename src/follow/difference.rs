//! What has changed between two versions of an entry: values of watched attributes, never the mere
//! fact that it was modified. With a password policy each stranger's wrong guess modifies an entry,
//! and with lastbind each good login does.
//!
//! [`Consequence`] is the one place that says what this means for a session: asked when a change is
//! told, when a session is listed, and when a login is about to be answered. Pure: it is told the time.

use std::sync::Arc;

use crate::config::{OnChange, Routing, Watch};
use crate::directory::Entry;
use crate::outcome::{AccountState, Refusal};
use crate::proto;
use crate::registry::{Session, SessionBasis, TerminationReason};
use crate::route;

/// Where an entry leads: a backend, or why nowhere.
pub(super) type RouteTarget = Result<Arc<str>, &'static str>;

/// What has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Another place: the old one and the new.
    pub(super) moved: Option<(RouteTarget, RouteTarget)>,
    /// Another name at the backend.
    pub(super) login: bool,
    /// Switched off (true) or on.
    pub(super) disabled: Option<bool>,
    /// Held (true) or released.
    pub(super) held: Option<bool>,
    pub(super) password: bool,
    pub(super) lockout: bool,
    /// What the policy says of the password.
    pub(super) policy: bool,
    pub(super) renamed: bool,
    /// Another attribute that decides, or another spelling of the same place.
    pub(super) other: bool,
    /// The entry is newer, and nothing that is shown says why: it may have been the password.
    pub(super) unexplained: bool,
}

impl Difference {
    /// Compares. `exact`: every modification is told of by itself, so that an entry of which a failed
    /// or a good login has changed something has been changed in nothing else. `now`: Unix seconds.
    pub(super) fn between(old: &Entry, new: &Entry, routing: &Routing, exact: bool, now: u64) -> Self {
        let (from, to) = (route_target(routing, old), route_target(routing, new));
        let (before, after) = (&old.version, &new.version);
        let mut difference = Self {
            login: old.logins != new.logins,
            disabled: (before.account_state(now).is_some() != after.account_state(now).is_some())
                .then_some(after.account_state(now).is_some()),
            held: (before.held != after.held).then_some(after.held),
            password: before.password_changed != after.password_changed,
            lockout: before.lockout != after.lockout,
            policy: before.password_policy != after.password_policy,
            renamed: old.dn != new.dn,
            other: before.policy_digest != after.policy_digest
                || before.expires != after.expires
                || (from == to && old.mail_hosts != new.mail_hosts),
            ..Self::default()
        };
        if from != to {
            difference.moved = Some((from, to));
        }
        let explained = difference.is_some() || (exact && before.login_activity != after.login_activity);
        // Where a policy writes when passwords change, what it does not write was no such change.
        let aged = before.shows_password_age() || after.shows_password_age();
        difference.unexplained = before.revision != after.revision && !aged && !explained;
        difference
    }

    /// Whether anything has changed.
    pub(super) fn is_some(&self) -> bool {
        self.moves() || self.disabled.is_some() || self.held.is_some() || self.lockout || self.policy || self.forgets()
    }

    /// Whether its mail is elsewhere, or under another name.
    pub(super) fn moves(&self) -> bool {
        self.moved.is_some() || self.login
    }

    /// Whether it is one of those of which not too many may come at once.
    pub(super) fn is_braked(&self) -> bool {
        self.moves() || self.disabled == Some(true)
    }

    /// Whether the cached decision is of no more use.
    pub(super) fn forgets(&self) -> bool {
        self.moves()
            || self.disabled.is_some()
            || self.held.is_some()
            || self.password
            || self.renamed
            || self.other
            || self.unexplained
    }

    /// The words for the metric, each once.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        let kinds = [
            (self.moved.is_some(), "move"),
            (self.login, "login"),
            (self.disabled == Some(true), "disable"),
            (self.disabled == Some(false), "enable"),
            (self.held == Some(true), "hold"),
            (self.held == Some(false), "release"),
            (self.password, "password"),
            (self.lockout || self.policy, "lockout"),
            (self.renamed, "rename"),
            (self.other, "other"),
            (self.unexplained, "unexplained"),
        ];
        kinds.into_iter().filter_map(|(is, kind)| is.then_some(kind)).collect()
    }
}

/// What the directory shows of an entry now.
#[derive(Debug, Clone, Copy)]
pub(super) enum Newest<'a> {
    /// This version is in force.
    Entry(&'a Entry),
    /// The entry is gone.
    Deleted,
}

/// What the newest version of an entry means for one of its sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Consequence {
    /// The session has to be listed under another DN.
    pub(super) renamed: bool,
    /// Why the session has no place any more, the gravest reason first; none: it goes on.
    pub(super) reasons: Vec<TerminationReason>,
}

impl Consequence {
    /// Compares the version that a session was logged in with to the newest. `now`: Unix seconds.
    ///
    /// A session whose route changed by a reload alone goes on: its entry leads where it led.
    pub(super) fn of(session: &Session, basis: &SessionBasis, newest: Newest<'_>, routing: &Routing, now: u64) -> Self {
        let Newest::Entry(entry) = newest else {
            return Self { renamed: false, reasons: vec![TerminationReason::Deleted] };
        };
        let closed = entry.version.account_state(now);
        let (led, leads) = (route_target(routing, &basis.entry), route_target(routing, entry));
        let is_elsewhere = led != leads && leads.as_ref().ok() != Some(&session.backend);
        let is_same_login = matches!(entry.logins.as_slice(), [login] if **login == *basis.backend_login);
        let is_renamed_there = basis.entry.logins != entry.logins && !is_same_login;
        let reasons = [
            (entry.version.held, TerminationReason::Hold),
            (closed == Some(AccountState::Disabled), TerminationReason::Disabled),
            (closed == Some(AccountState::AccountExpired), TerminationReason::Expired),
            (is_elsewhere || is_renamed_there, TerminationReason::Moved),
            (basis.entry.version.password_changed != entry.version.password_changed, TerminationReason::PasswordChanged),
        ];
        let reasons = reasons.into_iter().filter_map(|(is, why)| is.then_some(why)).collect();
        Self { renamed: session.dn != entry.dn, reasons }
    }

    /// Why the session is to end, as the operator and its protocol have it.
    pub(super) fn ends(&self, session: &Session, watch: &Watch) -> Option<TerminationReason> {
        let follows_moves = proto::by_name(&session.protocol).is_none_or(|protocol| protocol.follows_moves);
        let is_wanted =
            |why: &TerminationReason| is_wanted(*why, watch) && (*why != TerminationReason::Moved || follows_moves);
        self.reasons.iter().copied().find(is_wanted)
    }
}

/// Whether the operator wants sessions to end for this.
pub(super) fn is_wanted(why: TerminationReason, watch: &Watch) -> bool {
    let choice = match why {
        TerminationReason::Moved => watch.on_move,
        TerminationReason::Disabled | TerminationReason::Expired | TerminationReason::Deleted => watch.on_disable,
        TerminationReason::PasswordChanged => watch.on_password_change,
        TerminationReason::Hold
        | TerminationReason::Drain
        | TerminationReason::Kicked
        | TerminationReason::BackendDrained => OnChange::Close,
    };
    choice == OnChange::Close
}

/// Where an entry leads.
pub(super) fn route_target(routing: &Routing, entry: &Entry) -> RouteTarget {
    let route = route::route(routing, entry);
    route.map(|route| route.backend.name.as_str().into()).map_err(|refusal: Refusal| refusal.label())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::EntryVersion;

    const NOW: u64 = 1_000;

    fn routing() -> Routing {
        Routing { default: None, backends: Vec::new() }
    }

    fn entry(change: impl FnOnce(&mut Entry)) -> Entry {
        let mut entry = Entry::for_tests("uid=a", &["server3"]);
        entry.version = EntryVersion { revision: Some("1".into()), login_activity: 1, ..EntryVersion::default() };
        change(&mut entry);
        entry
    }

    fn difference(exact: bool, change: impl FnOnce(&mut Entry)) -> Difference {
        let changed = entry(|entry| {
            entry.version.revision = Some("2".into());
            change(entry);
        });
        Difference::between(&entry(|_| {}), &changed, &routing(), exact, NOW)
    }

    #[test]
    fn recorded_failed_login_is_no_change() {
        assert!(!difference(true, |entry| entry.version.login_activity = 2).is_some());
        // Where several modifications are told as one, the password may have been among them.
        assert_eq!(difference(false, |entry| entry.version.login_activity = 2).kinds(), ["unexplained"]);
        // A lock-out lets the owner in again, and ends nothing.
        let lockout = difference(true, |entry| (entry.version.login_activity, entry.version.lockout) = (2, 5));
        assert!(lockout.is_some() && !lockout.forgets() && !lockout.is_braked());
    }

    #[test]
    fn unexplained_change_is_read_again() {
        assert_eq!(difference(true, |_| {}).kinds(), ["unexplained"]);
        // A policy that counts failures shows the first change of a password as well.
        assert!(
            !difference(false, |entry| (entry.version.login_activity, entry.version.has_policy_attributes) = (2, true))
                .is_some()
        );
        // Unless the server shows when passwords change.
        let with = |version: &str| {
            entry(|entry| {
                (entry.version.revision, entry.version.password_changed) = (Some(version.into()), Some(7));
            })
        };
        assert!(!Difference::between(&with("1"), &with("2"), &routing(), true, NOW).is_some());
        assert!(!Difference::between(&entry(|_| {}), &entry(|_| {}), &routing(), true, NOW).is_some());
    }

    #[test]
    fn changed_values_are_changes() {
        let kinds = |change: fn(&mut Entry)| difference(true, change).kinds();
        assert_eq!(kinds(|entry| entry.version.password_changed = Some(1)), ["password"]);
        assert_eq!(kinds(|entry| entry.version.disabled = true), ["disable"]);
        assert_eq!(kinds(|entry| entry.version.held = true), ["hold"]);
        assert_eq!(kinds(|entry| entry.version.policy_digest = 1), ["other"]);
        assert_eq!(kinds(|entry| entry.dn = "uid=b".into()), ["rename"]);
        assert_eq!(kinds(|entry| entry.logins.push("b".into())), ["login"]);
        // Without a backend of that name the place is the same: nowhere.
        assert_eq!(kinds(|entry| entry.mail_hosts = vec!["server4".into()]), ["other"]);
        assert_eq!(kinds(|entry| entry.mail_hosts.clear()), ["move"]);
    }
}
