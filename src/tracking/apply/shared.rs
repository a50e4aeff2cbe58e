//! The brake as all nodes of a fleet have it: what this one hears of the others, and passes on to them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{ChangeState, EntryChange, Inputs, take_back};
use crate::tracking::actions::{Action, Report};
use crate::tracking::brake::{Brake, WINDOW};
use crate::tracking::fleet::{BrakeId, BrakeNews, BrakeStatus, FleetCount, FleetNames, HeldSet, HeldValues};

impl ChangeState {
    /// Whether the values of a user that another node holds back are others than the kept ones: they are not to be
    /// kept, and those of the directory are used only if they are the kept ones.
    pub(super) fn is_unknown(&self, seen: &EntryChange) -> bool {
        self.held.as_ref().is_some_and(|held| held.of(&seen.tracked.entry) == HeldValues::Others)
            && seen.tracked.deferred.is_none()
    }

    pub(super) fn tell(&self, news: BrakeNews, actions: &mut Vec<Action>) {
        if self.fleet.is_some() {
            actions.push(Action::Tell(news));
        }
    }

    /// Whether these changes, with those of all nodes, are too many.
    pub(super) fn would_trip_fleet(&mut self, batch: &[EntryChange], limit: usize, now: Instant) -> bool {
        let braked = batch.iter().filter(|seen| seen.is_braked()).map(|seen| &*seen.tracked.entry);
        let fleet = self.fleet.as_mut().filter(|_| !self.brake.is_on() && !self.brake.is_confirmed(now));
        fleet.is_some_and(|fleet| fleet.count(braked, WINDOW, now) > limit)
    }

    /// Engages the brake: keeps sessions, and takes back what was applied within the last minute.
    pub(super) fn engage(&mut self, report: Report, inputs: &Inputs<'_>, actions: &mut Vec<Action>) {
        self.turns += 1;
        let taken_back = self.brake.trip(self.fleet.is_some(), Instant::now());
        inputs.entries.brake(true);
        actions.extend([Action::Report(report), Action::KeepSessions]);
        for acted in taken_back.into_iter().rev() {
            if let Some(kept) = take_back(acted, inputs, actions) {
                self.tell(BrakeNews::Held(kept), actions);
            }
        }
    }

    pub(super) fn end_brake(&mut self, inputs: &Inputs<'_>) {
        self.held = None;
        self.turns += 1;
        if let Some(fleet) = &mut self.fleet {
            fleet.clear();
        }
        self.restore_brake(inputs);
    }

    /// Logins see the brake as it is.
    pub(in crate::tracking) fn restore_brake(&self, inputs: &Inputs<'_>) {
        inputs.entries.brake(self.brake.is_on());
        inputs.entries.hold_elsewhere(self.held.clone());
    }

    /// Shares the brake with other nodes from now on.
    pub(in crate::tracking) fn join(&mut self, names: Arc<dyn FleetNames>) {
        self.fleet = Some(FleetCount::new(names));
    }

    /// All nodes have applied changes of these users, so long ago; the largest number of users that one knows. `turns`:
    /// as [`Self::brake`] said before the question.
    pub(in crate::tracking) fn heard(
        &mut self,
        turns: u64,
        (ids, users): (impl IntoIterator<Item = (BrakeId, Duration)>, usize),
        inputs: &Inputs<'_>,
    ) -> Vec<Action> {
        let (now, mut actions) = (Instant::now(), Vec::new());
        let Some(fleet) = self.fleet.as_mut().filter(|_| turns == self.turns) else { return actions };
        fleet.heard(ids, users, now);
        if self.brake.is_on() || self.brake.is_confirmed(now) {
            return actions;
        }
        let changes = fleet.count(std::iter::empty(), WINDOW, now);
        let users = fleet.users().max(inputs.entries.users());
        let limit = Brake::limit(inputs.watch.brake, users);
        if changes > limit {
            let engaged = Report::BrakeEngaged { changes, limit, users, missing: 0, without_mail_host: 0 };
            self.engage(engaged, inputs, &mut actions);
            self.tell(BrakeNews::Tripped, &mut actions);
            self.show_brake(inputs, &mut actions);
        }
        actions
    }

    /// Another node has engaged the brake of all.
    pub(in crate::tracking) fn engage_for_fleet(&mut self, inputs: &Inputs<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.brake.is_on() {
            let changes = self.brake.recent(Instant::now()).count();
            self.engage(Report::BrakeJoined { changes }, inputs, &mut actions);
            self.show_brake(inputs, &mut actions);
        }
        actions
    }

    /// What is held back anywhere, while the brake is on: what this node knows by other values than the kept ones is
    /// forgotten.
    pub(in crate::tracking) fn hold_elsewhere(&mut self, held: Arc<HeldSet>, inputs: &Inputs<'_>) -> Vec<Action> {
        if !self.brake.is_on() {
            return Vec::new();
        }
        inputs.entries.hold_elsewhere(Some(Arc::clone(&held)));
        let unusable = inputs.entries.known_otherwise(&held);
        self.held = Some(held);
        unusable.into_iter().map(Action::Forget).collect()
    }

    /// No node holds anything back any more. Returns whether that is so here.
    pub(in crate::tracking) fn release_for_fleet(&mut self, inputs: &Inputs<'_>) -> (bool, Vec<Action>) {
        if !self.brake.is_on() {
            return (true, Vec::new());
        }
        if inputs.entries.count_deferred() > 0 {
            return (false, Vec::new());
        }
        self.brake.release();
        self.end_brake(inputs);
        (true, vec![Action::Report(Report::BrakeReleased), Action::Deferred(0)])
    }

    /// How the brake is here.
    pub(in crate::tracking) fn brake(&self, inputs: &Inputs<'_>) -> BrakeStatus {
        BrakeStatus { on: self.brake.is_on(), deferred: inputs.entries.count_deferred(), turns: self.turns }
    }

    /// What other nodes have to know of this one, all of it.
    pub(in crate::tracking) fn all_news(&self, inputs: &Inputs<'_>) -> Vec<BrakeNews> {
        if self.brake.is_on() {
            let deferred = inputs.entries.deferred();
            return deferred.into_iter().map(|(_, tracked)| BrakeNews::Held(tracked.entry)).collect();
        }
        let now = Instant::now();
        self.brake.recent(now).map(|acted| BrakeNews::Changed(Arc::clone(&acted.before))).collect()
    }
}
