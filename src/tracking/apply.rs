//! Applies directory changes: the cache forgets, sessions end, routes change, and each route change is logged
//! in one line.
//!
//! `difference` determines what has changed, `brake` what is too much at once. The order is always the same:
//! the values are put in force (`known`), then the cache forgets and sessions are searched; so a concurrent
//! login meets either the new values or the closing. An entry with sessions is tracked by the version they were
//! logged in with.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::base::clock::unix_now;
use crate::cache::Cache;
use crate::config::{self, Routing};
use crate::directory::{Change, Entry, EntryId, ReportedEntry};
use crate::outcome::AccountState;
use crate::sessions::registry::{Registry, Session, SessionBasis, TerminationReason, is_other};
use crate::telemetry::labels::DirectoryChange;
use crate::telemetry::log::{Escaped, Repeats};
use crate::telemetry::metrics::Metrics;
use crate::tracking::store::{DeferredChange, Precedence, Reconciled, TrackedEntries, TrackedEntry, TrackingKey};

use crate::sessions::closer::Closer;
use crate::tracking::brake::{AppliedChange, Brake};
use crate::tracking::compare::{Consequence, Difference, Newest, RouteTarget, is_wanted, route_target};

/// A refresh that lacks this many users, or returns this many without a mail host, and more than half of the
/// known ones, is not applied.
const MISSING: usize = 4;

/// What a change is evaluated against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrackingContext<'a> {
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

/// Applies changes.
pub(crate) struct ChangeTracker {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    state: Mutex<TrackerState>,
    closer: Arc<Closer>,
    repeats: Repeats,
}

struct TrackerState {
    brake: Brake,
    status: WatchStatus,
    /// The changes of a refresh, until it is complete.
    batch: Option<Vec<EntryChange>>,
    /// Whether it reports every entry.
    whole: bool,
    /// Its entries whose versions are older than before.
    set_back: usize,
    /// Its entries that have no mail host any more although they were not modified.
    hidden: usize,
}

impl std::fmt::Debug for ChangeTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("standing", &self.status()).finish_non_exhaustive()
    }
}

/// A reported change of a tracked entry.
#[derive(Debug)]
struct EntryChange {
    key: TrackingKey,
    tracked: TrackedEntry,
    kind: ChangeKind,
}

/// The kind of a change.
#[derive(Debug)]
enum ChangeKind {
    Modified { entry: Arc<Entry>, by: Modifier, difference: Difference },
    Deleted { implied: bool },
}

/// The modifier of an entry, and the time.
#[derive(Debug, Default)]
struct Modifier {
    name: Option<String>,
    at: Option<String>,
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

impl TrackerState {
    /// Logs changes that no operator has made entry by entry.
    fn log_anomalies(&mut self) {
        let (set_back, hidden) = (std::mem::take(&mut self.set_back), std::mem::take(&mut self.hidden));
        if set_back > 0 {
            warn!(
                entries = set_back,
                "directory returns older versions of entries, as after a restore; they take effect"
            );
        }
        if hidden > 0 {
            warn!(
                entries = hidden,
                "entries have no visible mail host any more and were not modified: check the access rules; their \
                 routes are kept"
            );
        }
    }
}

impl ChangeTracker {
    /// Nothing is watched yet.
    #[must_use]
    pub(crate) fn new(registry: Arc<Registry>, closer: Arc<Closer>, metrics: Arc<Metrics>) -> Self {
        let state = TrackerState {
            brake: Brake::default(),
            status: WatchStatus::Lost,
            batch: None,
            whole: false,
            set_back: 0,
            hidden: 0,
        };
        Self { closer, registry, metrics, state: Mutex::new(state), repeats: Repeats::default() }
    }

    fn lock(&self) -> MutexGuard<'_, TrackerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of the watch.
    pub(crate) fn status(&self) -> WatchStatus {
        self.lock().status
    }

    /// Applies a change.
    pub(crate) fn take(&self, change: Change, context: &TrackingContext<'_>) {
        let mut state = self.lock();
        match change {
            Change::RefreshStarted(round) => {
                // After a reload, or when the store is full, a session's entry may not be tracked: a refresh
                // must find it changed, or missing.
                self.registry.listed().for_each(|(_, basis)| drop(context.entries.track(&basis.entry)));
                context.entries.begin_refresh(&round.server, round.local_timestamps);
                context.entries.begin_round();
                (state.batch, state.whole) = (Some(Vec::new()), round.whole);
                (state.set_back, state.hidden) = (0, 0);
            }
            Change::Entry(shown) => {
                if let Some(seen) = self.compare(*shown, &mut state, context) {
                    self.consider(&mut state, seen, context);
                }
                if state.batch.is_none() && state.hidden > 0 && self.repeats.allow("hidden", "").is_some() {
                    state.log_anomalies();
                }
            }
            Change::Present(ids) => context.entries.observe_present(&ids),
            Change::Deleted { id, dn } => {
                let tracked = context.entries.observe(id, dn.as_ref());
                let tracked = tracked.or_else(|| self.track_session(id, dn.as_ref(), context));
                if let Some((key, tracked)) = tracked.filter(|(_, tracked)| !tracked.deleted) {
                    self.consider(
                        &mut state,
                        EntryChange { key, tracked, kind: ChangeKind::Deleted { implied: false } },
                        context,
                    );
                }
            }
            Change::RestDeleted => {
                let gone = |(key, tracked)| EntryChange { key, tracked, kind: ChangeKind::Deleted { implied: true } };
                let missing: Vec<EntryChange> = context.entries.unobserved().into_iter().map(gone).collect();
                state.batch.get_or_insert_default().extend(missing);
            }
            Change::Complete => {
                let batch = state.batch.take().unwrap_or_default();
                self.decide(&mut state, batch, context);
                state.log_anomalies();
                if state.status == WatchStatus::Lost {
                    state.status = WatchStatus::Following;
                    info!("LDAP change notification active");
                }
                context.entries.mark_live();
                self.metrics.directory_watch_connected.set(1);
            }
            Change::UpToDate => {}
            Change::Lost => {
                // An incomplete refresh is discarded; the next one reports everything again.
                state.batch = None;
                state.status = WatchStatus::Lost;
                context.entries.mark_lost();
                self.metrics.directory_watch_connected.set(0);
            }
        }
        if state.status == WatchStatus::Following && state.batch.is_none() {
            self.metrics.directory_watch_last_confirmed.set(unix_now() as f64);
        }
    }

    /// The change of an entry, if it matters.
    fn compare(
        &self,
        shown: ReportedEntry,
        state: &mut TrackerState,
        context: &TrackingContext<'_>,
    ) -> Option<EntryChange> {
        let ReportedEntry { mut entry, modified, modified_by } = shown;
        let is_single = state.batch.is_none();
        let is_whole = !is_single && state.whole;
        let id = entry.version.id;
        let observed = context.entries.observe(id, Some(&entry.dn));
        match observed
            .as_ref()
            .map_or(Precedence::Newest, |(key, _)| context.entries.precedence(*key, &entry, is_whole))
        {
            Precedence::Newest => {}
            Precedence::SetBack => state.set_back += 1,
            Precedence::Older => return None,
        }
        if observed.as_ref().is_some_and(|(_, tracked)| tracked.deleted) {
            let entry = Arc::new(entry);
            context.entries.record_change(&entry);
            if self.registry.has(&entry.dn) {
                context.entries.track(&entry);
            }
            return None;
        }
        // Between a login and this report there may have been more than one modification.
        let exact = is_single && observed.is_some();
        let Some((key, tracked)) = observed.or_else(|| self.track_session(id, Some(&entry.dn), context)) else {
            if let Some(earlier) = context.entries.by_dn(&entry.dn) {
                // Another entry had this DN until now, to which the cached data belongs.
                context.cache.forget(&earlier.entry);
                context.cache.forget_wrong(&earlier.entry);
            }
            // An entry in a full refresh is not a change.
            if !is_whole {
                context.entries.record_change(&Arc::new(entry));
            }
            return None;
        };
        // A successful or failed login modifies only these attributes.
        let is_unedited =
            tracked.is_same(&entry) || (exact && tracked.entry.version.login_activity != entry.version.login_activity);
        if tracked.loses_mail_host(&entry) && is_unedited {
            entry.mail_hosts.clone_from(&tracked.entry.mail_hosts);
            state.hidden += 1;
        }
        let entry = Arc::new(entry);
        let difference = Difference::between(&tracked.entry, &entry, context.routing, exact, unix_now());
        if !difference.is_some() {
            // The values are back, if they had been different.
            context.entries.refresh(key, entry);
            return None;
        }
        let by = Modifier { name: modified_by, at: modified };
        Some(EntryChange { key, tracked, kind: ChangeKind::Modified { entry, by, difference } })
    }

    /// Tracks an entry that has sessions and was not tracked, by the version of one of them.
    fn track_session(
        &self,
        id: Option<EntryId>,
        dn: Option<&Arc<str>>,
        context: &TrackingContext<'_>,
    ) -> Option<(TrackingKey, TrackedEntry)> {
        let entry = self.registry.entry(id, dn)?;
        let tracked = context.entries.track(&entry);
        // Under the reported id, if the login did not have one.
        Some(context.entries.observe(id, Some(&entry.dn)).unwrap_or(tracked))
    }

    fn consider(&self, state: &mut TrackerState, seen: EntryChange, context: &TrackingContext<'_>) {
        match &mut state.batch {
            Some(batch) => batch.push(seen),
            None => self.decide(state, vec![seen], context),
        }
    }

    /// Applies changes that belong together, or engages the brake.
    fn decide(&self, state: &mut TrackerState, batch: Vec<EntryChange>, context: &TrackingContext<'_>) {
        let now = Instant::now();
        let braked = batch.iter().filter(|seen| seen.is_braked()).count();
        let is_judged = braked > 0 && !state.brake.is_on() && !state.brake.is_confirmed(now);
        let users = if is_judged { context.entries.users() } else { 0 };
        let limit = Brake::limit(context.watch.brake, users);
        let implied =
            |seen: &&EntryChange| seen.is_braked() && matches!(seen.kind, ChangeKind::Deleted { implied: true });
        let missing = batch.iter().filter(implied).count();
        let without_mail_host = batch.iter().filter(|seen| seen.loses_mail_host()).count();
        let unbelievable = [missing, without_mail_host].into_iter().any(|count| count >= MISSING && count > users / 2);
        let is_too_much = state.brake.would_trip(braked, limit, now);
        if is_judged && (unbelievable || is_too_much) {
            let taken_back = state.brake.trip();
            context.entries.brake(true);
            error!(
                changes = braked + taken_back.len(),
                limit,
                users,
                missing,
                without_mail_host,
                "too many users moved, disabled or deleted at once: their routes and sessions are kept until \
                 `usher confirm`, or until the directory is back in its previous state"
            );
            self.closer.withdraw_braked();
            taken_back.into_iter().rev().for_each(|acted| self.take_back(acted, context));
        }
        for seen in batch {
            if seen.is_braked() && state.brake.is_on() {
                self.defer(seen, context);
            } else {
                if seen.is_braked() {
                    state.brake.acted(seen.key, Arc::clone(&seen.tracked.entry), limit, now);
                }
                self.act(seen, context);
            }
        }
        self.show_brake(state, context);
    }

    /// Sets the metric, and releases the brake when no change is deferred any more.
    fn show_brake(&self, state: &mut TrackerState, context: &TrackingContext<'_>) {
        if !state.brake.is_on() {
            return self.metrics.directory_brake.set(0);
        }
        let deferred = context.entries.count_deferred();
        if deferred == 0 {
            state.brake.release();
            context.entries.brake(false);
            info!("brake released: the directory is back in its previous state");
        }
        self.metrics.directory_brake.set(i64::try_from(deferred).unwrap_or(i64::MAX));
    }

    /// Confirms changes on behalf of the administrator: applies the deferred ones, and for a time all that
    /// follow. Returns how many were deferred.
    pub(crate) fn confirm(&self, time: Duration, context: &TrackingContext<'_>) -> usize {
        let mut state = self.lock();
        state.brake.confirm(time, Instant::now());
        context.entries.brake(false);
        let deferred = context.entries.deferred();
        info!(changes = deferred.len(), allowed_s = time.as_secs(), "held changes confirmed");
        let count = deferred.len();
        for (key, tracked) in deferred {
            let kind = match tracked.deferred.clone() {
                Some(DeferredChange::Entry(entry)) => {
                    let difference = Difference::between(&tracked.entry, &entry, context.routing, true, unix_now());
                    ChangeKind::Modified { entry, by: Modifier::default(), difference }
                }
                Some(DeferredChange::Deleted) => ChangeKind::Deleted { implied: false },
                None => continue,
            };
            self.act(EntryChange { key, tracked, kind }, context);
        }
        self.metrics.directory_brake.set(0);
        count
    }

    /// Restores the previous values of a change applied just before the brake.
    fn take_back(&self, acted: AppliedChange, context: &TrackingContext<'_>) {
        let AppliedChange { key, before, .. } = acted;
        let Some((_, tracked)) = context.entries.observe(before.version.id, Some(&before.dn)) else { return };
        let deferred =
            if tracked.deleted { DeferredChange::Deleted } else { DeferredChange::Entry(Arc::clone(&tracked.entry)) };
        if !tracked.deleted {
            let moved = (route_target(context.routing, &tracked.entry), route_target(context.routing, &before));
            audit(&before.dn, &moved, &Modifier::default(), true);
        }
        let kept = if tracked.deleted { before } else { Arc::new(tracked.entry.with_route_of(&before)) };
        context.entries.apply(key, kept, Some(deferred));
        context.cache.forget(&tracked.entry);
    }

    /// Keeps a user's route, and applies the rest of the change.
    fn defer(&self, seen: EntryChange, context: &TrackingContext<'_>) {
        let EntryChange { key, tracked, kind } = seen;
        match kind {
            ChangeKind::Deleted { .. } => context.entries.defer(key, DeferredChange::Deleted),
            ChangeKind::Modified { entry, by, difference } => {
                let kept = Arc::new(entry.with_route_of(&tracked.entry));
                let rest = Difference { moved: None, login: false, ..difference };
                let rest = Difference { disabled: rest.disabled.filter(|disabled| !disabled), ..rest };
                let key_kept =
                    EntryChange { key, tracked, kind: ChangeKind::Modified { entry: kept, by, difference: rest } };
                self.act(key_kept, context);
                context.entries.defer(key, DeferredChange::Entry(entry));
            }
        }
    }

    /// Applies a change of one entry.
    fn act(&self, seen: EntryChange, context: &TrackingContext<'_>) {
        let EntryChange { key, tracked, kind } = seen;
        let dn = &tracked.entry.dn;
        let count = |kind| self.metrics.directory_changes.of(kind).inc();
        match kind {
            ChangeKind::Deleted { .. } => {
                context.entries.mark_deleted(key);
                context.cache.forget(&tracked.entry);
                context.cache.forget_wrong(&tracked.entry);
                count(DirectoryChange::Delete);
                info!(dn = %Escaped(dn.as_bytes()), "entry deleted");
                self.end_sessions(&tracked.entry, Newest::Deleted, context);
            }
            ChangeKind::Modified { entry, by, difference } => {
                context.entries.apply(key, Arc::clone(&entry), None);
                if difference.forgets() {
                    context.cache.forget(&tracked.entry);
                }
                let may_be_right = difference.password
                    || difference.policy
                    || difference.unexplained
                    || difference.disabled == Some(false);
                if may_be_right {
                    context.cache.forget_wrong(&tracked.entry);
                } else if difference.lockout {
                    // A lock makes no password valid, but may have hidden that one is.
                    context.cache.lock_shown(&tracked.entry.key(), &entry.version);
                }
                if difference.renamed {
                    self.registry.rename(entry.version.id, dn, &entry.dn);
                    context.cache.forget(&entry);
                    info!(old = %Escaped(dn.as_bytes()), new = %Escaped(entry.dn.as_bytes()), "entry renamed");
                }
                difference.kinds().into_iter().for_each(count);
                if let Some(moved) = &difference.moved {
                    audit(&entry.dn, moved, &by, false);
                }
                self.end_sessions(&entry, Newest::Entry(&entry), context);
            }
        }
    }

    /// Ends the sessions that a change does not permit any more.
    fn end_sessions(&self, entry: &Entry, newest: Newest<'_>, context: &TrackingContext<'_>) {
        let now = unix_now();
        let sessions = self.registry.of(&entry.dn);
        let own = sessions.iter().filter(|(_, basis)| !is_other(entry.version.id, basis.entry.version.id));
        let ending = own.filter_map(|(session, basis)| {
            let consequence = Consequence::of(session, basis, newest, context.routing, now);
            Some((session.id, consequence.ends(session, context.watch)?))
        });
        self.closer.close_changed(ending);
    }

    /// Compares a session that was just listed with the changes reported since its login was decided, when it
    /// could not be found yet. It is listed under the newest DN from now on.
    ///
    /// # Errors
    /// Why it must not begin, the most serious reason first.
    pub(crate) fn check_listed(
        &self,
        session: &Session,
        basis: &SessionBasis,
        context: &TrackingContext<'_>,
    ) -> Result<(), TerminationReason> {
        let newest = match context.entries.reconcile(&basis.entry) {
            // From now on a change is compared with the version of this login, or a newer one.
            Reconciled::AsReported => {
                context.entries.track(&basis.entry);
                return Ok(());
            }
            Reconciled::Replaced(entry) => entry,
            Reconciled::Deleted => return Err(TerminationReason::Deleted),
        };
        let consequence = Consequence::of(session, basis, Newest::Entry(&newest), context.routing, unix_now());
        if consequence.renamed {
            self.registry.rename(newest.version.id, &session.dn, &newest.dn);
        }
        consequence.reasons.first().map_or(Ok(()), |why| Err(*why))
    }

    /// Ends the sessions of expired accounts: a date passes without a change. Only while changes are reported,
    /// because a later date may be missed otherwise.
    pub(crate) fn end_expired(&self, context: &TrackingContext<'_>) {
        if self.status() != WatchStatus::Following || !is_wanted(TerminationReason::Expired, context.watch) {
            return;
        }
        let now = unix_now();
        let has_expired = |session: &Session, basis: &SessionBasis| {
            let tracked = context.entries.by_dn(&session.dn);
            let version = tracked.as_ref().map_or(&basis.entry.version, |tracked| &tracked.entry.version);
            version.account_state(now) == Some(AccountState::AccountExpired)
        };
        let expired = self.registry.listed().filter(|(session, basis)| has_expired(session, basis));
        self.closer.close_changed(expired.map(|(session, _)| (session.id, TerminationReason::Expired)));
    }
}

/// The audit line of a changed route.
fn audit(dn: &str, (old, new): &(RouteTarget, RouteTarget), by: &Modifier, taken_back: bool) {
    let word =
        |place: &RouteTarget| place.as_ref().map_or_else(|reason| format!("none ({reason})"), ToString::to_string);
    info!(
        dn = %Escaped(dn.as_bytes()),
        old_backend = word(old),
        new_backend = word(new),
        modified_by = by.name.as_deref().map(|name| tracing::field::display(Escaped(name.as_bytes()))),
        modified = by.at.as_deref().map(|at| tracing::field::display(Escaped(at.as_bytes()))),
        reverted_by_brake = taken_back.then_some(true),
        "route changed"
    );
}
