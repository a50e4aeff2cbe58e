//! Carries out what follows from changes of the directory: the cache forgets, sessions end, changes are counted, and
//! each route change is logged in one line.

#[cfg(test)]
mod tests;

mod all;
pub(crate) mod held;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use tracing::{error, info, warn};

use crate::base::clock::unix_now;
use crate::cache::Cache;
use crate::config::{self, Routing};
use crate::directory::{Change, Entry, Realm};
use crate::sessions::closer::Closer;
use crate::sessions::registry::{Registry, Session, SessionBasis, TerminationReason, roles};
use crate::telemetry::held_back::{Beginning, HeldBackUsers, Reason, Who};
use crate::telemetry::log::Bounded;
use crate::telemetry::metrics::Metrics;
use crate::tracking::actions::{Action, Modifier, Report};
use crate::tracking::apply::{ChangeState, Inputs};
use crate::tracking::compare::{Newest, RouteTarget, compare, compare_acting, is_wanted};
use crate::tracking::fleet::{BrakeId, BrakeNews, BrakeStatus, FleetNames, HeldSet};
use crate::tracking::store::TrackedEntries;

pub(crate) use all::ChangeTrackers;

/// What a change is evaluated against, and the cache that it may invalidate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrackingContext<'a> {
    /// The directory.
    pub realm: Realm,
    /// Its name, where there are several.
    pub shown: Option<&'static str>,
    /// The cached decisions.
    pub cache: &'a Cache,
    /// The tracked entries.
    pub entries: &'a TrackedEntries,
    /// The routing of mail hosts.
    pub routing: &'a Routing,
    /// The configured reactions to changes.
    pub watch: &'a config::Watch,
}

/// The state of the watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WatchStatus {
    /// Changes are missed.
    Lost,
    /// Every change is reported.
    Following,
}

/// Applies the changes of one directory, one after another, and carries out what follows.
pub(crate) struct ChangeTracker {
    realm: Realm,
    registry: Arc<Registry>,
    closer: Arc<Closer>,
    metrics: Arc<Metrics>,
    /// Held until everything that follows from a change is done, so that no older change is carried out after a
    /// newer one. No login takes this lock.
    state: Mutex<ChangeState>,
    outbox: Mutex<Outbox>,
    told: Arc<Notify>,
    held_back: Arc<HeldBackUsers>,
}

/// The most news that wait; of more, all are sent again.
const MOST_NEWS: usize = 8_192;

/// What waits to be sent to other nodes.
#[derive(Debug, Default)]
struct Outbox {
    news: VecDeque<BrakeNews>,
    overflown: bool,
}

impl std::fmt::Debug for ChangeTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeTracker").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl ChangeTracker {
    /// Nothing is watched yet.
    #[must_use]
    pub(crate) fn new(realm: Realm, registry: Arc<Registry>, closer: Arc<Closer>, metrics: Arc<Metrics>) -> Self {
        let (state, outbox, told, held_back) = Default::default();
        Self { realm, registry, closer, metrics, state, outbox, told, held_back }
    }

    fn lock(&self) -> MutexGuard<'_, ChangeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inputs<'a>(&'a self, context: &TrackingContext<'a>) -> Inputs<'a> {
        let TrackingContext { entries, routing, watch, .. } = *context;
        Inputs { realm: self.realm, entries, sessions: &self.registry, routing, watch }
    }

    fn labels(&self) -> [&'static str; 1] {
        [self.realm.name()]
    }

    /// The state of the watch.
    pub(crate) fn status(&self) -> WatchStatus {
        if self.lock().is_following() { WatchStatus::Following } else { WatchStatus::Lost }
    }

    /// Applies a reported change.
    pub(crate) fn take(&self, change: Change, context: &TrackingContext<'_>) {
        let mut state = self.lock();
        held::note(&self.held_back, &change, context.shown);
        let actions = state.apply(change, &self.inputs(context));
        self.carry_out(actions, context);
        if state.is_current() {
            self.metrics.directory_watch_last_confirmed.with_label_values(&self.labels()).set(unix_now() as f64);
        }
    }

    /// Confirms changes on behalf of the administrator: applies the deferred ones, and for a time all that
    /// follow. Returns how many were deferred.
    pub(crate) fn confirm(&self, time: Duration, context: &TrackingContext<'_>) -> usize {
        let mut state = self.lock();
        let (changes, actions) = state.confirm(time, &self.inputs(context));
        info!(directory = context.shown, changes, allowed_s = time.as_secs(), "held changes confirmed");
        self.carry_out(actions, context);
        changes
    }

    /// The same, for all nodes of a fleet.
    pub(crate) fn confirm_for_all(&self, time: Duration, context: &TrackingContext<'_>) -> usize {
        let changes = self.confirm(time, context);
        self.tell(BrakeNews::Confirmed(time));
        changes
    }

    /// Shares the brake with other nodes from now on: a task takes its [`news`](Self::take_news).
    pub(crate) fn join(&self, names: Arc<dyn FleetNames>) {
        self.lock().join(names);
    }

    fn tell(&self, news: BrakeNews) {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        if outbox.news.len() < MOST_NEWS || matches!(news, BrakeNews::Tripped | BrakeNews::Confirmed(_)) {
            outbox.news.push_back(news);
        } else {
            outbox.overflown = true;
        }
        drop(outbox);
        self.told.notify_one();
    }

    /// What is new for other nodes. After an overflow, [`all_news`](Self::all_news) are to be sent, too.
    pub(crate) fn take_news(&self) -> (Vec<BrakeNews>, bool) {
        let outbox = std::mem::take(&mut *self.outbox.lock().unwrap_or_else(PoisonError::into_inner));
        (outbox.news.into(), outbox.overflown)
    }

    /// Whatever other nodes have to know of this one.
    pub(crate) fn all_news(&self, context: &TrackingContext<'_>) -> Vec<BrakeNews> {
        self.lock().all_news(&self.inputs(context))
    }

    /// How the brake is here.
    pub(crate) fn brake(&self, context: &TrackingContext<'_>) -> BrakeStatus {
        let (state, inputs) = (self.lock(), self.inputs(context));
        // After a reload the entries are others.
        state.restore_brake(&inputs);
        state.brake(&inputs)
    }

    /// All nodes have applied changes of these users, so long ago; `users` is the largest number of users that a node
    /// knows, `turns` what [`brake`](Self::brake) said before they were asked.
    pub(crate) fn heard(
        &self,
        turns: u64,
        changed: (impl IntoIterator<Item = (BrakeId, Duration)>, usize),
        context: &TrackingContext<'_>,
    ) {
        let mut state = self.lock();
        let actions = state.heard(turns, changed, &self.inputs(context));
        self.carry_out(actions, context);
    }

    /// The brake is on at all nodes.
    pub(crate) fn engage_for_fleet(&self, context: &TrackingContext<'_>) {
        let mut state = self.lock();
        let actions = state.engage_for_fleet(&self.inputs(context));
        self.carry_out(actions, context);
    }

    /// What any node holds back.
    pub(crate) fn hold_elsewhere(&self, held: HeldSet, context: &TrackingContext<'_>) {
        let mut state = self.lock();
        let actions = state.hold_elsewhere(Arc::new(held), &self.inputs(context));
        self.carry_out(actions, context);
    }

    /// No node holds anything back any more; returns whether this is so here, and the brake off.
    pub(crate) fn release_for_fleet(&self, context: &TrackingContext<'_>) -> bool {
        let mut state = self.lock();
        let (released, actions) = state.release_for_fleet(&self.inputs(context));
        self.carry_out(actions, context);
        released
    }

    fn carry_out(&self, actions: Vec<Action>, context: &TrackingContext<'_>) {
        for action in actions {
            match action {
                Action::Forget(entry) => context.cache.forget(&entry),
                Action::ForgetWrong(entry) => context.cache.forget_wrong(&entry),
                Action::NoteLock { before, entry } => context.cache.lock_shown(&before.key(), &entry.version),
                Action::Rename { names, dn } => self.registry.rename(&names, &dn),
                Action::Compare { entry, deleted } => self.end_sessions(&entry, deleted, context),
                Action::KeepSessions => self.closer.withdraw_braked(),
                Action::Count(kind) => self.metrics.directory_changes.at(self.realm.name(), kind).inc(),
                Action::Deferred(changes) => {
                    let gauge = self.metrics.directory_brake.with_label_values(&self.labels());
                    gauge.set(i64::try_from(changes).unwrap_or(i64::MAX));
                }
                Action::Tell(news) => self.tell(news),
                Action::Connected(is_connected) => {
                    self.metrics.directory_watch_connected.with_label_values(&self.labels()).set(is_connected.into());
                }
                Action::Report(Report::Locked(dn)) => {
                    let beginning =
                        Beginning { directory: context.shown, lasts: Some(held::LOCK_LASTS), ..Beginning::default() };
                    self.held_back.begin(Reason::Locked, Who::User(&dn), beginning);
                }
                Action::Report(report) => {
                    // A user that is held goes on under the new name.
                    if let Report::Deleted(dn) | Report::Renamed { old: dn, .. } = &report {
                        held::over(&self.held_back, dn, context.shown, None);
                    }
                    log(report, context.shown);
                }
            }
        }
    }

    /// Ends the sessions that a change does not permit any more.
    fn end_sessions(&self, entry: &Entry, deleted: bool, context: &TrackingContext<'_>) {
        let now = unix_now();
        let newest = if deleted { Newest::Deleted } else { Newest::Entry(entry) };
        let sessions = self.registry.of(&entry.names());
        self.closer.close_changed(sessions.iter().filter_map(|(session, basis)| {
            let [is_user, acts] = roles(session, basis, &entry.names());
            let user = is_user.then(|| compare(session, basis, newest, context.routing, now));
            let acting =
                basis.acting.as_ref().filter(|_| acts).map(|acting| compare_acting(session, acting, newest, now));
            let why = user.into_iter().chain(acting).find_map(|found| found.ends(session, context.watch))?;
            Some((session.id, why))
        }));
    }

    /// Ends the sessions of expired accounts: a date passes without a change. Only while changes are reported,
    /// because a later date may be missed otherwise.
    pub(crate) fn end_expired(&self, context: &TrackingContext<'_>) {
        if self.status() != WatchStatus::Following || !is_wanted(TerminationReason::Expired, context.watch) {
            return;
        }
        let now = unix_now();
        let has_expired = |session: &Session, basis: &SessionBasis| {
            let tracked = |entry: &Arc<Entry>, dn| {
                let tracked = context.entries.by_dn(entry.version.realm, dn);
                tracked.map_or_else(|| Arc::clone(entry), |tracked| tracked.entry)
            };
            let is_own = |entry: &Entry| entry.version.realm == self.realm;
            let user = is_own(&basis.entry).then(|| {
                let newest = tracked(&basis.entry, &session.dn);
                compare(session, basis, Newest::Entry(&newest), context.routing, now)
            });
            let acting = basis.acting.as_ref().filter(|acting| is_own(&acting.entry)).map(|acting| {
                let newest = tracked(&acting.entry, &acting.entry.dn);
                compare_acting(session, acting, Newest::Entry(&newest), now)
            });
            [user, acting].iter().flatten().any(|found| found.reasons.contains(&TerminationReason::Expired))
        };
        let expired = self.registry.listed().filter(|(session, basis)| has_expired(session, basis));
        self.closer.close_changed(expired.map(|(session, _)| (session.id, TerminationReason::Expired)));
    }
}

fn log(report: Report, directory: Option<&'static str>) {
    match report {
        Report::Active => info!(directory, "LDAP change notification active"),
        Report::SetBack(entries) => {
            warn!(
                directory,
                entries, "directory returns older versions of entries, as after a restore; they take effect"
            );
        }
        Report::Hidden(entries) => warn!(
            directory,
            entries,
            "entries have no visible mail host or networks any more and were not modified: check the access rules; \
             their previous values are kept"
        ),
        // Listed instead.
        Report::Locked(_) => {}
        Report::Deleted(dn) => info!(directory, dn = %Bounded(dn.as_bytes()), "entry deleted"),
        Report::Renamed { old, new } => {
            info!(directory, old = %Bounded(old.as_bytes()), new = %Bounded(new.as_bytes()), "entry renamed");
        }
        Report::Route { dn, moved, by, reverted } => audit(directory, &dn, &moved, &by, reverted),
        Report::BrakeEngaged { changes, limit, users, missing, without_mail_host } => error!(
            directory,
            changes,
            limit,
            users,
            missing,
            without_mail_host,
            "too many users moved, disabled or deleted at once: their routes and sessions are kept until \
             `usher confirm`, or until the directory is back in its previous state"
        ),
        Report::BrakeJoined { changes } => error!(
            directory,
            changes,
            "too many users moved, disabled or deleted at once, as another node of the fleet has found: routes and \
             sessions are kept until `usher confirm`, or until the directory is back in its previous state"
        ),
        Report::BrakeReleased => info!(directory, "brake released: the directory is back in its previous state"),
    }
}

/// The audit line of a changed route.
fn audit(
    directory: Option<&'static str>,
    dn: &str,
    (old, new): &(RouteTarget, RouteTarget),
    by: &Modifier,
    reverted: bool,
) {
    let word =
        |target: &RouteTarget| target.as_ref().map_or_else(|reason| format!("none ({reason})"), ToString::to_string);
    info!(
        directory,
        dn = %Bounded(dn.as_bytes()),
        old_backend = word(old),
        new_backend = word(new),
        modified_by = by.name.as_deref().map(|name| tracing::field::display(Bounded(name.as_bytes()))),
        modified = by.at.as_deref().map(|at| tracing::field::display(Bounded(at.as_bytes()))),
        reverted_by_brake = reverted.then_some(true),
        "route changed"
    );
}
