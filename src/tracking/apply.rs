//! Determines what follows from a directory change: which values are put in force, and which actions the caller has to
//! carry out. Reads the sessions, and changes neither sessions nor cache.
//!
//! `compare` determines what has changed, `brake` what is too much at once. The order is always the same: the values
//! are put in force in the store, then the cache forgets and sessions are compared; so a concurrent login meets either
//! the new values or the closing. An entry with sessions is tracked by the version they were logged in with.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::clock::unix_now;
use crate::config::{self, Routing};
use crate::directory::{Change, Entry, EntryKey, EntryNames, Realm, ReportedEntry};
use crate::sessions::registry::Registry;
use crate::telemetry::labels::DirectoryChange;
use crate::telemetry::log::Repeats;
use crate::tracking::actions::{Action, Modifier, Report};
use crate::tracking::brake::{AppliedChange, Brake};
use crate::tracking::compare::{Difference, route_target};
use crate::tracking::fleet::{BrakeNews, FleetCount, HeldSet};
use crate::tracking::store::{DeferredChange, Precedence, TrackedEntries, TrackedEntry};

/// A refresh that lacks this many users, or returns this many without a mail host, and more than half of the
/// known ones, is not applied.
const MISSING: usize = 4;

/// What a change is evaluated against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// The directory whose changes are reported.
    pub(super) realm: Realm,
    /// The tracked entries, whose values are put in force.
    pub(super) entries: &'a TrackedEntries,
    /// The sessions, to be read only.
    pub(super) sessions: &'a Registry,
    /// The routing of mail hosts.
    pub(super) routing: &'a Routing,
    /// The configured reactions to changes.
    pub(super) watch: &'a config::Watch,
}

/// What is remembered between changes.
#[derive(Debug, Default)]
pub(super) struct ChangeState {
    brake: Brake,
    /// What other nodes count; `None` without a fleet.
    fleet: Option<FleetCount>,
    /// Counts how often the brake has gone on or off: what is heard of earlier counts no more.
    turns: u64,
    /// What is held back anywhere in the fleet.
    held: Option<Arc<HeldSet>>,
    /// Whether every change is reported.
    following: bool,
    /// The changes of a refresh, until it is complete.
    batch: Option<Vec<EntryChange>>,
    /// Whether it reports every entry.
    whole: bool,
    /// Its entries whose versions are older than before.
    set_back: usize,
    /// Its entries that have no mail host or no networks any more although they were not modified.
    hidden: usize,
    repeats: Repeats,
}

/// A reported change of a tracked entry.
#[derive(Debug)]
struct EntryChange {
    key: EntryKey,
    tracked: TrackedEntry,
    kind: ChangeKind,
}

/// The kind of a change.
#[derive(Debug)]
enum ChangeKind {
    Modified { entry: Arc<Entry>, by: Modifier, difference: Difference },
    Deleted { implied: bool },
}

impl EntryChange {
    /// Whether a user that had a mail host has none any more.
    fn loses_mail_host(&self) -> bool {
        let is_lost = |entry: &Entry| self.tracked.loses_mail_host(entry);
        self.tracked.proven_at.is_some() && matches!(&self.kind, ChangeKind::Modified { entry, .. } if is_lost(entry))
    }

    /// Whether a user is moved, disabled or deleted.
    fn is_braked(&self) -> bool {
        let is_user = self.tracked.proven_at.is_some();
        is_user
            && match &self.kind {
                ChangeKind::Modified { difference, .. } => difference.is_braked(),
                ChangeKind::Deleted { .. } => true,
            }
    }
}

impl ChangeState {
    /// Whether every change is reported.
    pub(super) fn is_following(&self) -> bool {
        self.following
    }

    /// Whether every change reported so far is in force.
    pub(super) fn is_current(&self) -> bool {
        self.following && self.batch.is_none()
    }

    /// Puts the values of a change in force; returns what follows, in order.
    pub(super) fn apply(&mut self, change: Change, inputs: &Inputs<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        let entries = inputs.entries;
        match change {
            Change::RefreshStarted(round) => {
                // After a reload, or when the store is full, a session's entry may not be tracked: a refresh
                // must find it changed, or missing.
                for (_, basis) in inputs.sessions.listed() {
                    let own = basis.entries().filter(|entry| entry.version.realm == inputs.realm);
                    own.for_each(|entry| drop(entries.track(entry)));
                }
                entries.begin_refresh(&round.server, round.local_timestamps);
                entries.begin_round();
                // After a reload the entries are others.
                self.restore_brake(inputs);
                (self.batch, self.whole) = (Some(Vec::new()), round.whole);
                (self.set_back, self.hidden) = (0, 0);
            }
            Change::Entry(shown) => {
                if let Some(seen) = self.compare(*shown, inputs, &mut actions) {
                    self.consider(seen, inputs, &mut actions);
                }
                if self.batch.is_none() && self.hidden > 0 && self.repeats.allow("hidden", "").is_some() {
                    self.report_anomalies(&mut actions);
                }
            }
            Change::Present(ids) => entries.observe_present(inputs.realm, &ids),
            Change::Deleted { id, dn } => {
                let names = EntryNames { realm: inputs.realm, id, dn };
                let tracked = entries.observe(&names).or_else(|| track_session(&names, inputs));
                if let Some((key, tracked)) = tracked.filter(|(_, tracked)| !tracked.deleted) {
                    let seen = EntryChange { key, tracked, kind: ChangeKind::Deleted { implied: false } };
                    self.consider(seen, inputs, &mut actions);
                }
            }
            Change::RestDeleted => {
                let gone = |(key, tracked)| EntryChange { key, tracked, kind: ChangeKind::Deleted { implied: true } };
                let missing = entries.unobserved(inputs.realm).into_iter().map(gone);
                self.batch.get_or_insert_default().extend(missing);
            }
            Change::Complete => {
                let batch = self.batch.take().unwrap_or_default();
                self.decide(batch, inputs, &mut actions);
                self.report_anomalies(&mut actions);
                if !self.following {
                    self.following = true;
                    actions.push(Action::Report(Report::Active));
                }
                entries.mark_live();
                actions.push(Action::Connected(true));
            }
            Change::UpToDate => {}
            Change::Lost => {
                // An incomplete refresh is discarded; the next one reports everything again.
                self.batch = None;
                self.following = false;
                entries.mark_lost();
                actions.push(Action::Connected(false));
            }
        }
        actions
    }

    /// Confirms changes on behalf of the administrator: applies the deferred ones, and for a time all that
    /// follow. Returns how many were deferred.
    pub(super) fn confirm(&mut self, time: Duration, inputs: &Inputs<'_>) -> (usize, Vec<Action>) {
        let mut actions = Vec::new();
        self.brake.confirm(time, Instant::now());
        self.end_brake(inputs);
        let deferred = inputs.entries.deferred();
        let count = deferred.len();
        for (key, tracked) in deferred {
            let kind = match tracked.deferred.clone() {
                Some(DeferredChange::Entry(entry)) => {
                    let difference = Difference::between(&tracked.entry, &entry, inputs.routing, true, unix_now());
                    ChangeKind::Modified { entry, by: Modifier::default(), difference }
                }
                Some(DeferredChange::Deleted) => ChangeKind::Deleted { implied: false },
                None => continue,
            };
            act(EntryChange { key, tracked, kind }, inputs, &mut actions);
        }
        actions.push(Action::Deferred(0));
        (count, actions)
    }

    /// Reports changes that no operator has made entry by entry.
    fn report_anomalies(&mut self, actions: &mut Vec<Action>) {
        let (set_back, hidden) = (std::mem::take(&mut self.set_back), std::mem::take(&mut self.hidden));
        if set_back > 0 {
            actions.push(Action::Report(Report::SetBack(set_back)));
        }
        if hidden > 0 {
            actions.push(Action::Report(Report::Hidden(hidden)));
        }
    }

    /// The change of an entry, if it matters.
    fn compare(&mut self, shown: ReportedEntry, inputs: &Inputs<'_>, actions: &mut Vec<Action>) -> Option<EntryChange> {
        let ReportedEntry { mut entry, modified, modified_by } = shown;
        let (entries, names) = (inputs.entries, entry.names());
        let is_single = self.batch.is_none();
        let is_whole = !is_single && self.whole;
        let observed = entries.observe(&names);
        match observed.as_ref().map_or(Precedence::Newest, |(key, _)| entries.precedence(key, &entry, is_whole)) {
            Precedence::Newest => {}
            Precedence::SetBack => self.set_back += 1,
            Precedence::Older => return None,
        }
        if observed.as_ref().is_some_and(|(_, tracked)| tracked.deleted) {
            let entry = Arc::new(entry);
            entries.record_change(&entry);
            if inputs.sessions.has(&names) {
                entries.track(&entry);
            }
            return None;
        }
        // Between a login and this report there may have been more than one modification.
        let exact = is_single && observed.is_some();
        let Some((key, tracked)) = observed.or_else(|| track_session(&names, inputs)) else {
            if let Some(earlier) = entries.by_dn(names.realm, &entry.dn) {
                // Another entry had this DN until now, to which the cached data belongs.
                actions.extend([Action::Forget(Arc::clone(&earlier.entry)), Action::ForgetWrong(earlier.entry)]);
            }
            // An entry in a full refresh is not a change.
            if !is_whole {
                entries.record_change(&Arc::new(entry));
            }
            return None;
        };
        // A successful or failed login modifies only these attributes.
        let is_unedited =
            tracked.is_same(&entry) || (exact && tracked.entry.version.login_activity != entry.version.login_activity);
        let (hides_host, hides_networks) = (tracked.loses_mail_host(&entry), tracked.loses_networks(&entry));
        if (hides_host || hides_networks) && is_unedited {
            if hides_host {
                entry.mail_hosts.clone_from(&tracked.entry.mail_hosts);
            }
            if hides_networks {
                entry.networks.clone_from(&tracked.entry.networks);
            }
            self.hidden += 1;
        }
        let entry = Arc::new(entry);
        let difference = Difference::between(&tracked.entry, &entry, inputs.routing, exact, unix_now());
        if !difference.is_some() {
            // The values are back, if they had been different.
            if self.fleet.is_some() && tracked.deferred.is_some() {
                actions.push(Action::Tell(BrakeNews::Back(tracked.entry)));
            }
            entries.refresh(&key, entry);
            return None;
        }
        let by = Modifier { name: modified_by, at: modified };
        Some(EntryChange { key, tracked, kind: ChangeKind::Modified { entry, by, difference } })
    }

    fn consider(&mut self, seen: EntryChange, inputs: &Inputs<'_>, actions: &mut Vec<Action>) {
        match &mut self.batch {
            Some(batch) => batch.push(seen),
            None => self.decide(vec![seen], inputs, actions),
        }
    }

    /// Applies changes that belong together, or engages the brake.
    fn decide(&mut self, batch: Vec<EntryChange>, inputs: &Inputs<'_>, actions: &mut Vec<Action>) {
        let now = Instant::now();
        let braked = batch.iter().filter(|seen| seen.is_braked()).count();
        let is_judged = braked > 0 && !self.brake.is_on() && !self.brake.is_confirmed(now);
        let users = if is_judged { inputs.entries.users() } else { 0 };
        let limit = Brake::limit(inputs.watch.brake, users.max(self.fleet.as_ref().map_or(0, FleetCount::users)));
        let implied =
            |seen: &&EntryChange| seen.is_braked() && matches!(seen.kind, ChangeKind::Deleted { implied: true });
        let missing = batch.iter().filter(implied).count();
        let without_mail_host = batch.iter().filter(|seen| seen.loses_mail_host()).count();
        let unbelievable = [missing, without_mail_host].into_iter().any(|count| count >= MISSING && count > users / 2);
        let is_too_much = self.brake.would_trip(braked, limit, now);
        if is_judged && (unbelievable || is_too_much || self.would_trip_fleet(&batch, limit, now)) {
            let recent = self.brake.recent(now).count();
            let engaged = Report::BrakeEngaged { changes: braked + recent, limit, users, missing, without_mail_host };
            self.engage(engaged, inputs, actions);
            self.tell(BrakeNews::Tripped, actions);
        }
        for seen in batch {
            if seen.is_braked() && self.brake.is_on() && !self.is_unknown(&seen) {
                self.tell(BrakeNews::Held(Arc::clone(&seen.tracked.entry)), actions);
                defer(seen, inputs, actions);
            } else {
                if seen.tracked.deferred.is_some() && !seen.is_braked() {
                    // Another change, with the kept values.
                    self.tell(BrakeNews::Back(Arc::clone(&seen.tracked.entry)), actions);
                }
                if seen.is_braked() && !self.brake.is_on() && !self.brake.is_confirmed(now) {
                    let before = Arc::clone(&seen.tracked.entry);
                    if let Some(fleet) = &mut self.fleet {
                        fleet.changed(&before, now);
                    }
                    self.tell(BrakeNews::Changed(Arc::clone(&before)), actions);
                    self.brake.acted(before, limit, now);
                }
                act(seen, inputs, actions);
            }
        }
        self.show_brake(inputs, actions);
    }

    /// Reports the brake, and releases it when no change is deferred any more.
    fn show_brake(&mut self, inputs: &Inputs<'_>, actions: &mut Vec<Action>) {
        let mut deferred = 0;
        if self.brake.is_on() {
            deferred = inputs.entries.count_deferred();
            if deferred == 0 && !self.brake.is_shared() {
                self.brake.release();
                self.end_brake(inputs);
                actions.push(Action::Report(Report::BrakeReleased));
            }
        }
        actions.push(Action::Deferred(deferred));
    }
}

/// Tracks an entry that has sessions and was not tracked, by the version of one of them.
fn track_session(names: &EntryNames, inputs: &Inputs<'_>) -> Option<(EntryKey, TrackedEntry)> {
    let entry = inputs.sessions.entry(names)?;
    let tracked = inputs.entries.track(&entry);
    // Under the reported id, if the login did not have one.
    let names = EntryNames { dn: Some(Arc::clone(&entry.dn)), ..names.clone() };
    Some(inputs.entries.observe(&names).unwrap_or(tracked))
}

/// Restores the previous values of a change applied just before the brake; returns them.
fn take_back(acted: AppliedChange, inputs: &Inputs<'_>, actions: &mut Vec<Action>) -> Option<Arc<Entry>> {
    let before = acted.before;
    let (key, tracked) = inputs.entries.observe(&before.names())?;
    let deferred =
        if tracked.deleted { DeferredChange::Deleted } else { DeferredChange::Entry(Arc::clone(&tracked.entry)) };
    if !tracked.deleted {
        let moved = (route_target(inputs.routing, &tracked.entry), route_target(inputs.routing, &before));
        let (dn, by) = (Arc::clone(&before.dn), Modifier::default());
        actions.push(Action::Report(Report::Route { dn, moved, by, reverted: true }));
    }
    let kept = if tracked.deleted { before } else { Arc::new(tracked.entry.with_route_of(&before)) };
    inputs.entries.apply(&key, Arc::clone(&kept), Some(deferred));
    actions.push(Action::Forget(tracked.entry));
    Some(kept)
}

/// Keeps a user's route, and applies the rest of the change.
fn defer(seen: EntryChange, inputs: &Inputs<'_>, actions: &mut Vec<Action>) {
    let EntryChange { key, tracked, kind } = seen;
    match kind {
        ChangeKind::Deleted { .. } => inputs.entries.defer(&key, DeferredChange::Deleted),
        ChangeKind::Modified { entry, by, difference } => {
            let kept = Arc::new(entry.with_route_of(&tracked.entry));
            let rest = Difference { moved: None, login: false, ..difference };
            let rest = Difference { disabled: rest.disabled.filter(|disabled| !disabled), ..rest };
            let kind = ChangeKind::Modified { entry: kept, by, difference: rest };
            act(EntryChange { key: key.clone(), tracked, kind }, inputs, actions);
            inputs.entries.defer(&key, DeferredChange::Entry(entry));
        }
    }
}

/// Applies a change of one entry.
fn act(seen: EntryChange, inputs: &Inputs<'_>, actions: &mut Vec<Action>) {
    let EntryChange { key, tracked, kind } = seen;
    let before = tracked.entry;
    match kind {
        ChangeKind::Deleted { .. } => {
            inputs.entries.mark_deleted(&key);
            actions.extend([
                Action::Forget(Arc::clone(&before)),
                Action::ForgetWrong(Arc::clone(&before)),
                Action::Count(DirectoryChange::Delete),
                Action::Report(Report::Deleted(Arc::clone(&before.dn))),
                Action::Compare { entry: before, deleted: true },
            ]);
        }
        ChangeKind::Modified { entry, by, difference } => {
            inputs.entries.apply(&key, Arc::clone(&entry), None);
            if difference.forgets() {
                actions.push(Action::Forget(Arc::clone(&before)));
            }
            let may_be_right = difference.password
                || difference.policy
                || difference.unexplained
                || difference.disabled == Some(false);
            if may_be_right {
                actions.push(Action::ForgetWrong(Arc::clone(&before)));
            } else if difference.lockout {
                // A lock makes no password valid, but may have hidden that one is.
                actions.push(Action::NoteLock { before: Arc::clone(&before), entry: Arc::clone(&entry) });
            }
            if difference.lockout && entry.version.locked && !entry.version.disabled {
                actions.push(Action::Report(Report::Locked(Arc::clone(&entry.dn))));
            }
            if difference.renamed {
                let (old, new) = (Arc::clone(&before.dn), Arc::clone(&entry.dn));
                // By the new id: sessions of another entry keep the old DN.
                let names = EntryNames { dn: Some(Arc::clone(&old)), ..entry.names() };
                actions.extend([
                    Action::Rename { names, dn: Arc::clone(&new) },
                    Action::Forget(Arc::clone(&entry)),
                    Action::Report(Report::Renamed { old, new }),
                ]);
            }
            actions.extend(difference.kinds().into_iter().map(Action::Count));
            if let Some(moved) = difference.moved {
                let dn = Arc::clone(&entry.dn);
                actions.push(Action::Report(Report::Route { dn, moved, by, reverted: false }));
            }
            actions.push(Action::Compare { entry, deleted: false });
        }
    }
}

mod shared;
#[cfg(test)]
mod tests;
