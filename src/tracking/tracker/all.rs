//! The trackers of all directories: each has its own state, brake and lock, so that the changes of one directory, and its
//! outages, mean nothing for the users of another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{ChangeTracker, TrackingContext};
use crate::base::clock::unix_now;
use crate::directory::{EntryNames, Realm};
use crate::sessions::closer::Closer;
use crate::sessions::registry::{Registry, Session, SessionBasis, TerminationReason};
use crate::telemetry::held_back::HeldBackUsers;
use crate::telemetry::metrics::Metrics;
use crate::tracking::compare::{Newest, compare, compare_acting};
use crate::tracking::fleet::FleetNames;
use crate::tracking::store::Reconciled;

/// The trackers, by directory.
pub(crate) struct ChangeTrackers {
    registry: Arc<Registry>,
    closer: Arc<Closer>,
    metrics: Arc<Metrics>,
    all: Mutex<Trackers>,
    /// One of them has news for other nodes.
    told: Arc<Notify>,
    /// The users that the directories hold or have locked.
    held_back: Arc<HeldBackUsers>,
}

#[derive(Default)]
struct Trackers {
    by_realm: BTreeMap<Realm, Arc<ChangeTracker>>,
    /// What a fleet calls entries, if the brakes are shared with other nodes.
    names: Option<Arc<dyn FleetNames>>,
}

impl std::fmt::Debug for ChangeTrackers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeTrackers").field("all", &self.lock().by_realm).finish_non_exhaustive()
    }
}

impl ChangeTrackers {
    /// Nothing is watched yet.
    #[must_use]
    pub(crate) fn new(registry: Arc<Registry>, closer: Arc<Closer>, metrics: Arc<Metrics>) -> Self {
        let (all, told, held_back) = Default::default();
        Self { registry, closer, metrics, all, told, held_back }
    }

    fn lock(&self) -> MutexGuard<'_, Trackers> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That of a directory. It stays while the directory is configured, whatever its settings are.
    pub(crate) fn of(&self, realm: Realm) -> Arc<ChangeTracker> {
        let mut all = self.lock();
        let names = all.names.clone();
        let tracker = all.by_realm.entry(realm).or_insert_with(|| {
            let (registry, closer) = (Arc::clone(&self.registry), Arc::clone(&self.closer));
            let tracker = ChangeTracker::new(realm, registry, closer, Arc::clone(&self.metrics));
            let tracker =
                ChangeTracker { told: Arc::clone(&self.told), held_back: Arc::clone(&self.held_back), ..tracker };
            names.into_iter().for_each(|names| tracker.join(names));
            Arc::new(tracker)
        });
        Arc::clone(tracker)
    }

    /// The users that the directories hold or have locked, as far as it was noticed.
    pub(crate) fn held_back(&self) -> &HeldBackUsers {
        &self.held_back
    }

    /// Forgets the trackers of directories that are no longer configured.
    pub(crate) fn keep(&self, is_configured: impl Fn(Realm) -> bool) {
        self.lock().by_realm.retain(|realm, _| {
            let kept = is_configured(*realm);
            if !kept {
                self.metrics.forget_directory(realm.name());
            }
            kept
        });
    }

    /// Shares the brakes with other nodes from now on: a task takes their [`news`](ChangeTracker::take_news).
    pub(crate) fn join(&self, names: Arc<dyn FleetNames>) {
        let mut all = self.lock();
        all.by_realm.values().for_each(|tracker| tracker.join(Arc::clone(&names)));
        all.names = Some(names);
    }

    /// Waits for news.
    pub(crate) async fn has_news(&self) {
        self.told.notified().await;
    }

    /// Compares a session that was just listed with the changes reported since its login was decided, when it
    /// could not be found yet. It is listed under the newest DN from now on.
    ///
    /// # Errors
    /// Why it must not begin, the most serious reason first.
    pub(crate) fn check_listed<'a>(
        &self,
        session: &Session,
        basis: &SessionBasis,
        context_of: impl Fn(Realm) -> Option<TrackingContext<'a>>,
    ) -> Result<(), TerminationReason> {
        if let Some(acting) = &basis.acting
            && let Some(context) = context_of(acting.entry.version.realm)
        {
            match context.entries.reconcile(&acting.entry) {
                Reconciled::AsReported => drop(context.entries.track(&acting.entry)),
                Reconciled::Replaced(entry) => {
                    let consequence = compare_acting(session, acting, Newest::Entry(&entry), unix_now());
                    if consequence.renamed {
                        let names = EntryNames { dn: Some(Arc::clone(&acting.entry.dn)), ..entry.names() };
                        self.registry.rename(&names, &entry.dn);
                    }
                    consequence.reasons.first().map_or(Ok(()), |why| Err(*why))?;
                }
                Reconciled::Deleted => return Err(TerminationReason::Deleted),
                // Where its own mail is does not count.
                Reconciled::HeldElsewhere => {}
            }
        }
        let Some(context) = context_of(basis.entry.version.realm) else { return Ok(()) };
        let newest = match context.entries.reconcile(&basis.entry) {
            // From now on a change is compared with the version of this login, or a newer one.
            Reconciled::AsReported => {
                context.entries.track(&basis.entry);
                return Ok(());
            }
            Reconciled::Replaced(entry) => entry,
            Reconciled::Deleted => return Err(TerminationReason::Deleted),
            // A new decision finds that it cannot be made here.
            Reconciled::HeldElsewhere => return Err(TerminationReason::Moved),
        };
        let consequence = compare(session, basis, Newest::Entry(&newest), context.routing, unix_now());
        if consequence.renamed {
            let names = EntryNames { dn: Some(Arc::clone(&session.dn)), ..newest.names() };
            self.registry.rename(&names, &newest.dn);
        }
        consequence.reasons.first().map_or(Ok(()), |why| Err(*why))
    }
}
