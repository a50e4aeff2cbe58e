//! Acts on the directory's changes: the cache forgets, sessions end, routes change, and each change of
//! a route is told in one line.
//!
//! What is a change is for `difference` to say, what is too much at once for `brake`. The order is
//! always the same: first the values are put in force (`known`), then the cache forgets and sessions
//! are looked for; so a login that comes meanwhile meets either the new values or the closing. An entry
//! that has sessions is tracked by what they were logged in with, whatever else is known of it.

mod brake;
mod closing;
mod difference;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::cache::Cache;
use crate::config::{self, Routing};
use crate::directory::{Change, Entry, EntryId, ReportedEntry};
use crate::known::{DeferredChange, Precedence, Reconciled, TrackedEntries, TrackedEntry, TrackingKey};
use crate::log::{Escaped, Repeats};
use crate::metrics::Metrics;
use crate::outcome::AccountState;
use crate::registry::{Registry, Session, SessionBasis, TerminationReason, is_other, unix_now};

use brake::{AppliedChange, Brake};
use closing::CloseQueue;
use difference::{Consequence, Difference, Newest, RouteTarget, is_wanted, route_target};

/// A refresh that misses so many users, or shows so many without a mail host, and more than half of those
/// that are known, is not believed.
const MISSING: usize = 4;

/// What a change is judged by.
#[derive(Debug, Clone, Copy)]
pub struct TrackingContext<'a> {
    /// The decisions.
    pub cache: &'a Cache,
    /// The entries.
    pub known: &'a TrackedEntries,
    /// What a mailHost means.
    pub routing: &'a Routing,
    /// What to do about changes.
    pub watch: &'a config::Watch,
}

/// How the watch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchStatus {
    /// Changes are missed.
    Lost,
    /// Every change is told.
    Following,
}

/// Acts on changes.
pub struct ChangeTracker {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    state: Mutex<TrackerState>,
    closing: CloseQueue,
    repeats: Repeats,
}

struct TrackerState {
    brake: Brake,
    status: WatchStatus,
    /// The changes of a refresh or a round, until it is complete.
    batch: Option<Vec<EntryChange>>,
    /// Whether it tells of every entry.
    whole: bool,
    /// Entries of it whose versions are older than before.
    set_back: usize,
    /// Entries of it that show no mail host any more although they were not modified.
    hidden: usize,
}

impl std::fmt::Debug for ChangeTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("standing", &self.status()).finish_non_exhaustive()
    }
}

/// A known entry of which something new was told.
#[derive(Debug)]
struct EntryChange {
    key: TrackingKey,
    one: TrackedEntry,
    kind: ChangeKind,
}

/// What was told.
#[derive(Debug)]
enum ChangeKind {
    Modified { entry: Arc<Entry>, by: Modifier, difference: Difference },
    Deleted { implied: bool },
}

/// Who has changed an entry, and when.
#[derive(Debug, Default)]
struct Modifier {
    name: Option<String>,
    at: Option<String>,
}

impl EntryChange {
    /// Whether a user that had a mail host has none any more.
    fn loses_mail_host(&self) -> bool {
        let is_lost = |entry: &Entry| self.one.loses_mail_host(entry);
        self.one.proven_at.is_some() && matches!(&self.kind, ChangeKind::Modified { entry, .. } if is_lost(entry))
    }

    /// Whether a user is moved, switched off or gone.
    fn is_braked(&self) -> bool {
        let is_user = self.one.proven_at.is_some();
        is_user
            && match &self.kind {
                ChangeKind::Modified { difference, .. } => difference.is_braked(),
                ChangeKind::Deleted { .. } => true,
            }
    }
}

impl TrackerState {
    /// A line about what an operator did not do to entries one by one.
    fn log_anomalies(&mut self) {
        let (set_back, hidden) = (std::mem::take(&mut self.set_back), std::mem::take(&mut self.hidden));
        if set_back > 0 {
            warn!(
                entries = set_back,
                "the directory shows older versions of entries than before, as after a restore: they are in force"
            );
        }
        if hidden > 0 {
            warn!(
                entries = hidden,
                "entries show no mail host any more and were not modified: an access rule hides it; they stay where \
                 they are"
            );
        }
    }
}

impl ChangeTracker {
    /// Nothing is followed yet.
    #[must_use]
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        let state = TrackerState {
            brake: Brake::default(),
            status: WatchStatus::Lost,
            batch: None,
            whole: false,
            set_back: 0,
            hidden: 0,
        };
        let closing = CloseQueue::new(Arc::clone(&registry));
        Self { closing, registry, metrics, state: Mutex::new(state), repeats: Repeats::default() }
    }

    fn lock(&self) -> MutexGuard<'_, TrackerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the watch stands.
    pub fn status(&self) -> WatchStatus {
        self.lock().status
    }

    /// Ends the sessions that are to end, as fast as `rate` allows: at most so many a second. For ever.
    pub async fn close(&self, rate: impl Fn() -> u32) {
        self.closing.run(rate).await;
    }

    /// Acts on a change.
    pub fn take(&self, change: Change, setting: &TrackingContext<'_>) {
        let mut state = self.lock();
        match change {
            Change::RefreshStarted(round) => {
                // After a reload, or where memory is full, a session's entry may not be tracked: a refresh
                // must find it changed, or missing.
                self.registry.listed().iter().for_each(|(_, basis)| drop(setting.known.track(&basis.entry)));
                setting.known.begin_refresh(&round.server, round.local_timestamps);
                setting.known.begin_round();
                (state.batch, state.whole) = (Some(Vec::new()), round.whole);
                (state.set_back, state.hidden) = (0, 0);
            }
            Change::Entry(shown) => {
                if let Some(seen) = self.compare(*shown, &mut state, setting) {
                    self.consider(&mut state, seen, setting);
                }
                if state.batch.is_none() && state.hidden > 0 && self.repeats.allow("hidden", "").is_some() {
                    state.log_anomalies();
                }
            }
            Change::Present(ids) => setting.known.observe_present(&ids),
            Change::Deleted { id, dn } => {
                let tracked = setting.known.observe(id, dn.as_ref());
                let tracked = tracked.or_else(|| self.track_session(id, dn.as_ref(), setting));
                if let Some((key, one)) = tracked.filter(|(_, one)| !one.deleted) {
                    self.consider(
                        &mut state,
                        EntryChange { key, one, kind: ChangeKind::Deleted { implied: false } },
                        setting,
                    );
                }
            }
            Change::RestDeleted => {
                let gone = |(key, one)| EntryChange { key, one, kind: ChangeKind::Deleted { implied: true } };
                let missing: Vec<EntryChange> = setting.known.unobserved().into_iter().map(gone).collect();
                state.batch.get_or_insert_default().extend(missing);
            }
            Change::Complete => {
                let batch = state.batch.take().unwrap_or_default();
                self.decide(&mut state, batch, setting);
                state.log_anomalies();
                if state.status == WatchStatus::Lost {
                    state.status = WatchStatus::Following;
                    info!("the directory is followed");
                }
                setting.known.mark_live();
                self.metrics.directory_watch_connected.set(1);
            }
            Change::UpToDate => {}
            Change::Lost => {
                // Half a refresh says nothing; the next one tells all of it again.
                state.batch = None;
                state.status = WatchStatus::Lost;
                setting.known.mark_lost();
                self.metrics.directory_watch_connected.set(0);
            }
        }
        if state.status == WatchStatus::Following && state.batch.is_none() {
            self.metrics.directory_watch_last_confirmed.set(unix_now() as f64);
        }
    }

    /// What is new about an entry, if it is one that matters.
    fn compare(
        &self,
        shown: ReportedEntry,
        state: &mut TrackerState,
        setting: &TrackingContext<'_>,
    ) -> Option<EntryChange> {
        let ReportedEntry { mut entry, modified, modified_by } = shown;
        let is_single = state.batch.is_none();
        let is_whole = !is_single && state.whole;
        let id = entry.version.id;
        let met = setting.known.observe(id, Some(&entry.dn));
        match met.as_ref().map_or(Precedence::Newest, |(key, _)| setting.known.precedence(*key, &entry, is_whole)) {
            Precedence::Newest => {}
            Precedence::SetBack => state.set_back += 1,
            Precedence::Older => return None,
        }
        if met.as_ref().is_some_and(|(_, one)| one.deleted) {
            let entry = Arc::new(entry);
            setting.known.record_change(&entry);
            if self.registry.has(&entry.dn) {
                setting.known.track(&entry);
            }
            return None;
        }
        // Between a login and what is told now there may have been more than one modification.
        let exact = is_single && met.is_some();
        let Some((key, one)) = met.or_else(|| self.track_session(id, Some(&entry.dn), setting)) else {
            if setting.known.by_dn(&entry.dn).is_some() {
                // Another entry had this DN until now: what is remembered by it is of that one.
                setting.cache.forget(&entry.dn);
                setting.cache.forget_wrong(&entry.dn);
            }
            // What a whole refresh shows is no change.
            if !is_whole {
                setting.known.record_change(&Arc::new(entry));
            }
            return None;
        };
        // A failed or a good login modifies an entry, and nothing else of it.
        let is_unedited =
            one.is_same(&entry) || (exact && one.entry.version.login_activity != entry.version.login_activity);
        if one.loses_mail_host(&entry) && is_unedited {
            entry.mail_hosts.clone_from(&one.entry.mail_hosts);
            state.hidden += 1;
        }
        let entry = Arc::new(entry);
        let difference = Difference::between(&one.entry, &entry, setting.routing, exact, unix_now());
        if !difference.is_some() {
            // The values are back, if they had been away.
            setting.known.refresh(key, entry);
            return None;
        }
        let by = Modifier { name: modified_by, at: modified };
        Some(EntryChange { key, one, kind: ChangeKind::Modified { entry, by, difference } })
    }

    /// Tracks an entry that has sessions and was not tracked, by what one of them was logged in with.
    fn track_session(
        &self,
        id: Option<EntryId>,
        dn: Option<&Arc<str>>,
        setting: &TrackingContext<'_>,
    ) -> Option<(TrackingKey, TrackedEntry)> {
        let entry = self.registry.entry(id, dn)?;
        let tracked = setting.known.track(&entry);
        // Under the id that the directory tells, if the login did not show one.
        Some(setting.known.observe(id, Some(&entry.dn)).unwrap_or(tracked))
    }

    fn consider(&self, state: &mut TrackerState, seen: EntryChange, setting: &TrackingContext<'_>) {
        match &mut state.batch {
            Some(batch) => batch.push(seen),
            None => self.decide(state, vec![seen], setting),
        }
    }

    /// Acts on changes that belong together, or puts the brake on.
    fn decide(&self, state: &mut TrackerState, batch: Vec<EntryChange>, setting: &TrackingContext<'_>) {
        let now = Instant::now();
        let braked = batch.iter().filter(|seen| seen.is_braked()).count();
        let is_judged = braked > 0 && !state.brake.is_on() && !state.brake.is_confirmed(now);
        let users = if is_judged { setting.known.users() } else { 0 };
        let limit = Brake::limit(setting.watch.brake, users);
        let implied =
            |seen: &&EntryChange| seen.is_braked() && matches!(seen.kind, ChangeKind::Deleted { implied: true });
        let missing = batch.iter().filter(implied).count();
        let lost = batch.iter().filter(|seen| seen.loses_mail_host()).count();
        let unbelievable = [missing, lost].into_iter().any(|count| count >= MISSING && count > users / 2);
        let is_too_much = state.brake.would_trip(braked, limit, now);
        if is_judged && (unbelievable || is_too_much) {
            let taken_back = state.brake.trip();
            setting.known.brake(true);
            error!(
                changes = braked + taken_back.len(),
                limit,
                users,
                missing,
                without_mail_host = lost,
                "too many users are moved, switched off or gone at once: their routes and sessions stay as they are \
                 until `usher confirm`, or until the directory is as it was"
            );
            self.closing.withdraw();
            taken_back.into_iter().rev().for_each(|acted| self.take_back(acted, setting));
        }
        for seen in batch {
            if seen.is_braked() && state.brake.is_on() {
                self.defer(seen, setting);
            } else {
                if seen.is_braked() {
                    state.brake.acted(seen.key, Arc::clone(&seen.one.entry), limit, now);
                }
                self.act(seen, setting);
            }
        }
        self.show_brake(state, setting);
    }

    /// Sets the metric, and lets the brake go when nothing is held back any more.
    fn show_brake(&self, state: &mut TrackerState, setting: &TrackingContext<'_>) {
        if !state.brake.is_on() {
            return self.metrics.directory_brake.set(0);
        }
        let held_back = setting.known.count_deferred();
        if held_back == 0 {
            state.brake.release();
            setting.known.brake(false);
            info!("the directory is as it was before the brake: it is off again");
        }
        self.metrics.directory_brake.set(i64::try_from(held_back).unwrap_or(i64::MAX));
    }

    /// An operator says that it is meant: acts on what is held back, and for a time on whatever comes.
    /// Returns how many changes were held back.
    pub fn confirm(&self, time: Duration, setting: &TrackingContext<'_>) -> usize {
        let mut state = self.lock();
        state.brake.confirm(time, Instant::now());
        setting.known.brake(false);
        let held_back = setting.known.deferred();
        info!(changes = held_back.len(), allowed_s = time.as_secs(), "changes are confirmed");
        let count = held_back.len();
        for (key, one) in held_back {
            let news = match one.deferred.clone() {
                Some(DeferredChange::Entry(entry)) => {
                    let difference = Difference::between(&one.entry, &entry, setting.routing, true, unix_now());
                    ChangeKind::Modified { entry, by: Modifier::default(), difference }
                }
                Some(DeferredChange::Deleted) => ChangeKind::Deleted { implied: false },
                None => continue,
            };
            self.act(EntryChange { key, one, kind: news }, setting);
        }
        self.metrics.directory_brake.set(0);
        count
    }

    /// Puts what was in force back in force: one of those that came just before the brake.
    fn take_back(&self, acted: AppliedChange, setting: &TrackingContext<'_>) {
        let AppliedChange { key, before, .. } = acted;
        let Some((_, one)) = setting.known.observe(before.version.id, Some(&before.dn)) else { return };
        let pending = if one.deleted { DeferredChange::Deleted } else { DeferredChange::Entry(Arc::clone(&one.entry)) };
        if !one.deleted {
            let moved = (route_target(setting.routing, &one.entry), route_target(setting.routing, &before));
            audit(&before.dn, &moved, &Modifier::default(), true);
        }
        let kept = if one.deleted { before } else { Arc::new(one.entry.with_route_of(&before)) };
        setting.known.apply(key, kept, Some(pending));
        setting.cache.forget(&one.entry.dn);
    }

    /// Leaves a user where he is, but for what is no matter of the brake.
    fn defer(&self, seen: EntryChange, setting: &TrackingContext<'_>) {
        let EntryChange { key, one, kind: news } = seen;
        match news {
            ChangeKind::Deleted { .. } => setting.known.defer(key, DeferredChange::Deleted),
            ChangeKind::Modified { entry, by, difference } => {
                let kept = Arc::new(entry.with_route_of(&one.entry));
                let rest = Difference { moved: None, login: false, ..difference };
                let rest = Difference { disabled: rest.disabled.filter(|disabled| !disabled), ..rest };
                let key_kept =
                    EntryChange { key, one, kind: ChangeKind::Modified { entry: kept, by, difference: rest } };
                self.act(key_kept, setting);
                setting.known.defer(key, DeferredChange::Entry(entry));
            }
        }
    }

    /// Acts on what is new about one entry.
    fn act(&self, seen: EntryChange, setting: &TrackingContext<'_>) {
        let EntryChange { key, one, kind: news } = seen;
        let dn = &one.entry.dn;
        let count = |kind: &str| self.metrics.directory_changes.with_label_values(&[kind]).inc();
        match news {
            ChangeKind::Deleted { .. } => {
                setting.known.mark_deleted(key);
                setting.cache.forget(dn);
                setting.cache.forget_wrong(dn);
                count("delete");
                info!(dn = %Escaped(dn.as_bytes()), "an entry is gone from the directory");
                self.end_sessions(&one.entry, Newest::Deleted, setting);
            }
            ChangeKind::Modified { entry, by, difference } => {
                setting.known.apply(key, Arc::clone(&entry), None);
                if difference.forgets() {
                    setting.cache.forget(dn);
                }
                let may_be_right = difference.password
                    || difference.policy
                    || difference.unexplained
                    || difference.disabled == Some(false);
                if may_be_right {
                    setting.cache.forget_wrong(dn);
                } else if difference.lockout {
                    // A lock makes no password right, and may have hidden that one is.
                    setting.cache.lock_shown(dn, &entry.version);
                }
                if difference.renamed {
                    self.registry.rename(entry.version.id, dn, &entry.dn);
                    setting.cache.forget(&entry.dn);
                    info!(old = %Escaped(dn.as_bytes()), new = %Escaped(entry.dn.as_bytes()), "an entry has another DN");
                }
                difference.kinds().into_iter().for_each(count);
                if let Some(moved) = &difference.moved {
                    audit(&entry.dn, moved, &by, false);
                }
                self.end_sessions(&entry, Newest::Entry(&entry), setting);
            }
        }
    }

    /// Ends the sessions that a change leaves no place for.
    fn end_sessions(&self, entry: &Entry, newest: Newest<'_>, setting: &TrackingContext<'_>) {
        let now = unix_now();
        let sessions = self.registry.of(&entry.dn);
        let own = sessions.iter().filter(|(_, basis)| !is_other(entry.version.id, basis.entry.version.id));
        let ending = own.filter_map(|(session, basis)| {
            let consequence = Consequence::of(session, basis, newest, setting.routing, now);
            Some((session.id, consequence.ends(session, setting.watch)?))
        });
        self.closing.add(ending);
    }

    /// Compares a session that was just listed with what has been told since its login was decided, when
    /// nobody could find it yet. It is listed under the newest DN from here on.
    ///
    /// # Errors
    /// Why it must not begin, the gravest reason first.
    pub fn check_listed(
        &self,
        session: &Session,
        basis: &SessionBasis,
        setting: &TrackingContext<'_>,
    ) -> Result<(), TerminationReason> {
        let newest = match setting.known.reconcile(&basis.entry) {
            // From now on a change is compared with what this login was decided by, if with nothing newer.
            Reconciled::AsReported => {
                setting.known.track(&basis.entry);
                return Ok(());
            }
            Reconciled::Replaced(entry) => entry,
            Reconciled::Gone => return Err(TerminationReason::Deleted),
        };
        let consequence = Consequence::of(session, basis, Newest::Entry(&newest), setting.routing, unix_now());
        if consequence.renamed {
            self.registry.rename(newest.version.id, &session.dn, &newest.dn);
        }
        consequence.reasons.first().map_or(Ok(()), |why| Err(*why))
    }

    /// Ends the sessions of accounts whose time is over: a date passes without a change. While changes are
    /// told, because a later date may be missed otherwise.
    pub fn end_expired(&self, setting: &TrackingContext<'_>) {
        if self.status() != WatchStatus::Following || !is_wanted(TerminationReason::Expired, setting.watch) {
            return;
        }
        let now = unix_now();
        let has_expired = |session: &Session, basis: &SessionBasis| {
            let tracked = setting.known.by_dn(&session.dn);
            let marks = tracked.as_ref().map_or(&basis.entry.version, |one| &one.entry.version);
            marks.account_state(now) == Some(AccountState::AccountExpired)
        };
        let sessions = self.registry.listed();
        let expired = sessions.iter().filter(|(session, basis)| has_expired(session, basis));
        self.closing.add(expired.map(|(session, _)| (session.id, TerminationReason::Expired)));
    }
}

/// The line of a changed route.
fn audit(dn: &str, (old, new): &(RouteTarget, RouteTarget), by: &Modifier, taken_back: bool) {
    let word =
        |place: &RouteTarget| place.as_ref().map_or_else(|reason| format!("none ({reason})"), ToString::to_string);
    info!(
        dn = %Escaped(dn.as_bytes()),
        old_backend = word(old),
        new_backend = word(new),
        modified_by = by.name.as_deref().map(|name| tracing::field::display(Escaped(name.as_bytes()))),
        modified = by.at.as_deref().map(|at| tracing::field::display(Escaped(at.as_bytes()))),
        taken_back_by_brake = taken_back.then_some(true),
        "route changed"
    );
}
