//! Whether a server has caught up with the reported changes of an entry.
//!
//! Two entryCSN of one server are totally ordered. Nothing else is ordered across servers: entryCSN of two
//! providers, modifyTimestamp (a resolution of one second), Active Directory's whenChanged (local to each
//! controller). For [`UNORDERED_PERIOD`] after a change of an entry with such a version, only the watched
//! server decides about it. An older version is older in any case, except with Active Directory.
//!
//! Reverting: a full refresh from the server that reported the floor replaces it, as after a restore from
//! backup. A refresh from another watched server does not, until [`LAG`] has passed: that server may lag.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{LAG, Reconciled, TrackedEntries, TrackedEntry, TrackedInner};
use crate::directory::{DirectoryError, Entry, EntryKey, Floor, Freshness, UnavailableCause};

/// How long only the watched server decides about a changed entry whose versions are not ordered.
pub(super) const UNORDERED_PERIOD: Duration = Duration::from_secs(60);

/// The source of the floors.
#[derive(Debug, Default)]
pub(super) struct WatchSource {
    /// The URL of the server that is watched, or was watched last.
    server: Option<Arc<str>>,
    /// The same, from the start of its first refresh.
    reporting: Option<Arc<str>>,
    /// Whether all changes are being reported.
    is_live: bool,
    /// Whether timestamps are local to each server (Active Directory).
    local_timestamps: bool,
}

impl WatchSource {
    pub(super) fn reporting(&self) -> Option<Arc<str>> {
        self.reporting.clone()
    }
}

/// How a reported version relates to the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tracking) enum Precedence {
    /// It is the newest.
    Newest,
    /// It is older, and takes effect nevertheless: the directory was restored.
    SetBack,
    /// Another server reported a newer version, which stays in force.
    Older,
}

/// The result of comparing versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VersionAge {
    Older,
    AsNew,
    Unknown,
}

/// Compares the version returned by a server with another.
fn age(shown: Option<&str>, other: Option<&str>, own_times: bool) -> VersionAge {
    let (Some(shown), Some(other)) = (shown, other) else { return VersionAge::Unknown };
    if let (Some(by), Some(other_by)) = (writer(shown), writer(other)) {
        return match shown.cmp(other) {
            Ordering::Less => VersionAge::Older,
            Ordering::Equal => VersionAge::AsNew,
            Ordering::Greater if by == other_by => VersionAge::AsNew,
            // Written by two servers: the later write may not include the earlier one.
            Ordering::Greater => VersionAge::Unknown,
        };
    }
    // A CSN begins with the second, which is all that a modifyTimestamp has.
    if own_times || shown.get(..14) >= other.get(..14) { VersionAge::Unknown } else { VersionAge::Older }
}

/// The server that wrote a version: a CSN is time, count, server and modification, separated by `#`.
fn writer(version: &str) -> Option<&str> {
    version.split('#').nth(2)
}

/// Whether one server has written both versions, so that they are ordered. The clocks of several servers
/// differ, and any clock may be set back.
fn is_ordered(version: Option<&str>, other: Option<&str>) -> bool {
    let writer = |version: Option<&str>| version.and_then(writer).map(str::to_owned);
    writer(version).is_some() && writer(version) == writer(other)
}

fn age_of(shown: &Entry, version: Option<&str>, own_times: bool) -> VersionAge {
    age(shown.version.revision.as_deref(), version, own_times)
}

impl TrackedEntry {
    /// Whether its values changed so recently that a server without ordered versions may not have them.
    fn is_recent(&self) -> bool {
        self.changed_at.is_some_and(|reported| reported.elapsed() < UNORDERED_PERIOD)
    }

    /// Whether a server's version is as new as the one reported by the watch; `decides`: it is the watched
    /// server.
    pub(super) fn is_as_new(&self, shown: &Entry, source: &WatchSource, decides: bool) -> bool {
        if self.changed_at.is_none() {
            return true;
        }
        match age_of(shown, self.floor.as_deref(), source.local_timestamps) {
            VersionAge::AsNew => true,
            // What the watched server never returned was lost with another one.
            VersionAge::Older => self.older_since.is_some_and(|since| since.elapsed() >= LAG),
            VersionAge::Unknown => decides || !self.is_recent(),
        }
    }

    /// An entry recreated under its old id is newer than the deleted one.
    pub(super) fn is_recreated(&self, shown: &Entry) -> bool {
        let gone = self.entry.version.revision.as_deref();
        shown.version.revision.as_deref() != gone
            && match age_of(shown, gone, false) {
                VersionAge::Older => false,
                VersionAge::AsNew => true,
                VersionAge::Unknown => !self.is_recent(),
            }
    }

    /// Whether a server hides the mail host or the networks: it returns none, and the entry was not modified
    /// accordingly.
    fn is_hidden(&self, shown: &Entry, source: &WatchSource) -> bool {
        // While all changes are reported, an unreported one did not happen.
        (self.loses_mail_host(shown) || self.loses_networks(shown))
            && (self.is_same(shown) || (source.is_live && self.reported))
    }

    /// Whether this version has no mail host although the tracked one has.
    #[must_use]
    pub(in crate::tracking) fn loses_mail_host(&self, shown: &Entry) -> bool {
        shown.mail_hosts.is_empty() && !self.entry.mail_hosts.is_empty()
    }

    /// Whether this version has no networks although the tracked one has: its user could log in from everywhere.
    #[must_use]
    pub(in crate::tracking) fn loses_networks(&self, shown: &Entry) -> bool {
        shown.networks.is_none() && self.entry.networks.is_some()
    }

    /// Whether it is the same version, or the server does not expose it.
    #[must_use]
    pub(in crate::tracking) fn is_same(&self, shown: &Entry) -> bool {
        let (shown, current) = (&shown.version.revision, &self.entry.version.revision);
        current.is_some() && (shown == current || shown.is_none())
    }

    /// Raises the floor: its values have changed, as reported by `source`.
    pub(super) fn set_floor(&mut self, source: &WatchSource) {
        let now = Instant::now();
        (self.changed_at, self.seen_at, self.older_since) = (Some(now), now, None);
        self.floor.clone_from(&self.entry.version.revision);
        self.reported_by.clone_from(&source.reporting);
    }

    /// Takes over a version with the same values.
    pub(super) fn refresh(&mut self, entry: Arc<Entry>) {
        self.entry = entry;
        (self.seen_at, self.older_since) = (Instant::now(), None);
        // The directory was restored: the returned version is the floor now.
        if age_of(&self.entry, self.floor.as_deref(), false) == VersionAge::Older {
            self.floor.clone_from(&self.entry.version.revision);
        }
    }
}

impl TrackedInner {
    pub(super) fn is_as_new(&self, tracked: &TrackedEntry, shown: &Entry, server: Option<&str>) -> bool {
        // Without a server, a visible version counts.
        let decides =
            server.map_or(shown.version.revision.is_some(), |server| self.source.server.as_deref() == Some(server));
        tracked.is_as_new(shown, &self.source, decides)
    }
}

impl Floor for TrackedEntries {
    fn freshness(&self, shown: &Entry, server: &str) -> Freshness {
        let inner = self.lock();
        let Some(tracked) = inner.get(&shown.names()) else { return Freshness::CaughtUp };
        if tracked.deleted {
            let is_lost = tracked.older_since.is_some_and(|since| since.elapsed() >= LAG);
            return if is_lost || tracked.is_recreated(shown) { Freshness::CaughtUp } else { Freshness::Deleted };
        }
        if !inner.is_as_new(tracked, shown, Some(server)) {
            return Freshness::Behind(Arc::clone(&tracked.entry));
        }
        if tracked.is_hidden(shown, &inner.source) {
            return Freshness::Hidden(Arc::clone(&tracked.entry));
        }
        Freshness::CaughtUp
    }

    fn concerns(&self, name: &str) -> bool {
        let by_dn = EntryKey::by_dn(self.realm, &name.into());
        let inner = self.lock();
        match inner.keys_by_dn.get(&by_dn).and_then(|key| inner.entries.get(key)) {
            Some(tracked) => tracked.changed_at.is_some() || tracked.deleted,
            // A principal name, or a DN in the client's spelling: it may be any entry.
            None => inner.last_changed.is_some_and(|reported| reported.elapsed() < LAG),
        }
    }

    fn followed(&self) -> Option<Arc<str>> {
        self.lock().source.server.clone()
    }
}

impl TrackedEntries {
    /// The version in force of an entry that this server has just returned, where no bind follows: there is nothing that
    /// a server which lags could judge wrongly, so that the newest known version decides.
    ///
    /// # Errors
    /// The entry is deleted, or the server hides what the entry has.
    pub(crate) fn in_force(&self, shown: Entry, server: Option<&Arc<str>>) -> Result<Arc<Entry>, DirectoryError> {
        let server = server.cloned().unwrap_or_default();
        // Only a lookup knows whether an entry matches `allow_filter`.
        let in_group = shown.in_group;
        let known = match self.freshness(&shown, &server) {
            Freshness::CaughtUp => Arc::new(shown),
            Freshness::Behind(newest) => newest,
            Freshness::Hidden(_) => return Err(DirectoryError::Unavailable(UnavailableCause::Hidden { server })),
            Freshness::Deleted => return Err(DirectoryError::NoEntry),
        };
        let entry = match self.reconcile(&known) {
            Reconciled::AsReported => known,
            Reconciled::Replaced(entry) => entry,
            Reconciled::Deleted => return Err(DirectoryError::NoEntry),
            Reconciled::HeldElsewhere => {
                return Err(DirectoryError::Unavailable(UnavailableCause::HeldElsewhere));
            }
        };
        let is_known = entry.in_group == in_group;
        Ok(if is_known { entry } else { Arc::new(Entry { in_group, ..Entry::clone(&entry) }) })
    }
}

// What only `apply` may do.
impl TrackedEntries {
    /// Begins a refresh from this server; `own_times`: its timestamps are local.
    pub(in crate::tracking) fn begin_refresh(&self, server: &Arc<str>, own_times: bool) {
        let source = &mut self.lock().source;
        source.reporting = Some(Arc::clone(server));
        source.local_timestamps = own_times;
    }

    /// Changes are reported, for tests of logins.
    #[cfg(test)]
    pub(crate) fn report_for_tests(&self) {
        self.begin_refresh(&"ldap://one".into(), false);
    }

    /// The refresh is complete, and all further changes are reported.
    pub(in crate::tracking) fn mark_live(&self) {
        let source = &mut self.lock().source;
        source.server.clone_from(&source.reporting);
        source.is_live = true;
    }

    /// Changes are missed from now on.
    pub(in crate::tracking) fn mark_lost(&self) {
        self.lock().source.is_live = false;
    }

    /// How a version reported by the watch relates to the floor; `whole`: within a full refresh.
    #[must_use]
    pub(in crate::tracking) fn precedence(&self, key: &EntryKey, shown: &Entry, whole: bool) -> Precedence {
        let inner = &mut *self.lock();
        let source = &inner.source;
        let Some(tracked) = inner.entries.get_mut(key) else { return Precedence::Newest };
        let by_other = tracked.reported_by.is_some() && tracked.reported_by != source.reporting;
        let same_times = source.local_timestamps && by_other;
        let is_older = match age_of(shown, tracked.floor.as_deref(), same_times) {
            VersionAge::Older => true,
            VersionAge::Unknown => by_other && tracked.is_recent(),
            VersionAge::AsNew => tracked.deleted && by_other && !tracked.is_recreated(shown),
        };
        // Successive changes reported by one server take effect there, whatever the clocks say.
        let is_ordered = is_ordered(shown.version.revision.as_deref(), tracked.floor.as_deref());
        if is_older && (by_other || (!whole && is_ordered)) {
            let since = *tracked.older_since.get_or_insert_with(Instant::now);
            return if since.elapsed() < LAG { Precedence::Older } else { Precedence::Newest };
        }
        let is_set_back =
            whole && !by_other && age_of(shown, tracked.entry.version.revision.as_deref(), false) == VersionAge::Older;
        if is_set_back { Precedence::SetBack } else { Precedence::Newest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{EntryId, EntryNames, EntryVersion, Realm};

    const ONE: &str = "ldap://one";
    const TWO: &str = "ldap://two";

    fn named(id: Option<u8>, dn: Option<&str>) -> EntryNames {
        let id = id.and_then(|id| EntryId::from_bytes(&[id; 16]));
        EntryNames { realm: Realm::DEFAULT, id, dn: dn.map(Arc::from) }
    }

    fn entry(host: &str, version: &str) -> Arc<Entry> {
        let version = (!version.is_empty()).then(|| version.into());
        let version = EntryVersion { id: EntryId::from_bytes(&[1; 16]), revision: version, ..EntryVersion::default() };
        let hosts: &[&str] = if host.is_empty() { &[] } else { &[host] };
        Arc::new(Entry { version, ..Entry::for_tests("uid=a", hosts) })
    }

    fn csn(second: u32, writer: u32) -> String {
        format!("202611261400{second:02}.000001Z#000000#{writer:03x}#000000")
    }

    fn at(second: u32) -> String {
        format!("202611261400{second:02}Z")
    }

    /// The first server is followed and has shown that the entry has moved, in this version.
    fn moved(version: &str, own_times: bool) -> TrackedEntries {
        let entries = TrackedEntries::new(10, Duration::from_secs(300));
        entries.begin_refresh(&ONE.into(), own_times);
        entries.mark_live();
        entries.record_login(&entry("old", ""));
        report(&entries, "new", version);
        entries
    }

    fn report(entries: &TrackedEntries, host: &str, version: &str) {
        let key = entries.observe(&named(Some(1), None)).unwrap().0;
        entries.apply(&key, entry(host, version), None);
    }

    fn precedence(entries: &TrackedEntries, host: &str, version: &str, whole: bool) -> Precedence {
        let key = entries.observe(&named(Some(1), None)).unwrap().0;
        entries.precedence(&key, &entry(host, version), whole)
    }

    fn follow(entries: &TrackedEntries, server: &str) {
        entries.begin_refresh(&server.into(), false);
        entries.mark_live();
    }

    fn caught_up(entries: &TrackedEntries, version: &str, server: &str) -> bool {
        matches!(entries.freshness(&entry("x", version), server), Freshness::CaughtUp)
    }

    #[tokio::test(start_paused = true)]
    async fn versions_of_one_writer_are_ordered_regardless_of_time() {
        let entries = moved(&csn(5, 1), false);
        for server in [ONE, TWO] {
            assert!(!caught_up(&entries, &csn(4, 1), server) && !caught_up(&entries, &csn(4, 2), server));
            assert!(caught_up(&entries, &csn(5, 1), server) && caught_up(&entries, &csn(6, 1), server));
        }
        tokio::time::advance(LAG).await;
        assert!(!caught_up(&entries, &csn(4, 1), TWO));
        // A login is written down, which changes no value: that is no floor.
        let key = entries.observe(&named(Some(1), None)).unwrap().0;
        entries.refresh(&key, entry("new", &csn(9, 1)));
        assert!(caught_up(&entries, &csn(5, 1), TWO) && !caught_up(&entries, &csn(4, 1), TWO));
    }

    #[tokio::test(start_paused = true)]
    async fn followed_server_decides_for_a_minute_when_versions_are_unordered() {
        // Another writer, the same second, a later one, none at all; Active Directory's own times.
        let cases = [
            (csn(5, 1), csn(6, 2), false),
            (at(5), at(5), false),
            (at(5), at(9), false),
            (at(5), csn(7, 2), false),
            (at(5), String::new(), false),
            (at(5), at(1), true),
            (at(5), at(9), true),
        ];
        for (reported, shown, own_times) in cases {
            let entries = moved(&reported, own_times);
            assert!(caught_up(&entries, &shown, ONE) && !caught_up(&entries, &shown, TWO), "{reported} {shown}");
            // Also when it is lost.
            entries.mark_lost();
            assert!(caught_up(&entries, &shown, ONE) && !caught_up(&entries, &shown, TWO), "{reported} {shown}");
            tokio::time::advance(UNORDERED_PERIOD).await;
            assert!(caught_up(&entries, &shown, TWO), "{reported} {shown}");
        }
        let entries = moved(&at(5), false);
        tokio::time::advance(UNORDERED_PERIOD).await;
        assert!(!caught_up(&entries, &at(4), TWO), "older for good");
    }

    #[tokio::test(start_paused = true)]
    async fn version_seen_only_by_a_bind_is_no_floor() {
        let entries = TrackedEntries::new(10, Duration::from_secs(300));
        entries.record_login(&entry("new", &csn(5, 1)));
        assert!(caught_up(&entries, &csn(1, 1), TWO) && !entries.concerns("uid=a"));
        report(&entries, "new", &csn(5, 1));
        assert!(entries.concerns("uid=a"));
        // Another spelling, or a principal's name, may be of any entry.
        assert!(entries.concerns("uid=A") && entries.concerns("a@example.com"));
        tokio::time::advance(LAG).await;
        assert!(entries.concerns("uid=a") && !entries.concerns("uid=A"));
    }

    #[tokio::test(start_paused = true)]
    async fn floor_is_lowered_only_by_a_complete_refresh_of_the_same_server() {
        let entries = moved(&csn(5, 1), false);
        assert_eq!(precedence(&entries, "old", &csn(4, 1), false), Precedence::Older);
        assert_eq!(precedence(&entries, "old", &csn(4, 1), true), Precedence::SetBack);
        assert_eq!(precedence(&entries, "other", &csn(6, 1), true), Precedence::Newest);
        // Another server is followed instead, and lags.
        follow(&entries, TWO);
        for whole in [true, false] {
            assert_eq!(precedence(&entries, "old", &csn(4, 1), whole), Precedence::Older);
            assert_eq!(precedence(&entries, "old", &csn(6, 2), whole), Precedence::Older, "its writer may not know");
        }
        assert!(!caught_up(&entries, &csn(4, 1), TWO));
        // What the first one had alone is lost with it.
        tokio::time::advance(LAG).await;
        assert!(caught_up(&entries, &csn(4, 1), TWO));
        assert_eq!(precedence(&entries, "old", &csn(4, 1), false), Precedence::Newest);
        report(&entries, "old", &csn(4, 1));
        assert!(!caught_up(&entries, &csn(3, 1), TWO), "the floor is where it was set");
    }

    #[tokio::test(start_paused = true)]
    async fn change_from_the_followed_server_counts_although_its_clock_was_set_back() {
        // A clock that was set back, or two writers whose clocks differ: the change is reported nevertheless.
        for (reported, shown, own_times) in
            [(at(5), at(4), false), (at(5), at(4), true), (csn(5, 1), csn(4, 2), false), (csn(5, 1), at(4), false)]
        {
            let entries = moved(&reported, own_times);
            assert_eq!(precedence(&entries, "other", &shown, false), Precedence::Newest, "{reported} {shown}");
            report(&entries, "other", &shown);
            assert!(caught_up(&entries, &shown, ONE), "{reported} {shown}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deleted_entry_is_not_restored_by_a_lagging_server() {
        let entries = moved(&csn(5, 1), false);
        let key = entries.observe(&named(Some(1), None)).unwrap().0;
        entries.mark_deleted(&key);
        let gone = |version: &str| matches!(entries.freshness(&entry("new", version), TWO), Freshness::Deleted);
        assert!(gone(&csn(5, 1)) && gone(&csn(6, 2)) && !gone(&csn(6, 1)));
        follow(&entries, TWO);
        assert_eq!(precedence(&entries, "new", &csn(5, 1), true), Precedence::Older);
        tokio::time::advance(LAG).await;
        assert!(!gone(&csn(5, 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn mail_host_that_was_not_removed_counts_as_hidden() {
        let hidden = |entries: &TrackedEntries, version: &str| {
            matches!(entries.freshness(&entry("", version), ONE), Freshness::Hidden(_))
        };
        let entries = TrackedEntries::new(10, Duration::from_secs(300));
        entries.record_login(&entry("new", &csn(5, 1)));
        // The same version, or none is shown; a newer one may have taken it away.
        assert!(hidden(&entries, &csn(5, 1)) && hidden(&entries, "") && !hidden(&entries, &csn(6, 1)));
        follow(&entries, ONE);
        assert!(!hidden(&entries, &csn(6, 1)), "the watch has not shown this entry");
        report(&entries, "new", &csn(5, 1));
        assert!(hidden(&entries, &csn(6, 1)), "the watch would have shown it");
        entries.mark_lost();
        assert!(!hidden(&entries, &csn(6, 1)) && hidden(&entries, &csn(5, 1)));
        report(&entries, "", &csn(7, 1));
        assert!(!hidden(&entries, &csn(7, 1)), "taken away");
    }

    #[tokio::test(start_paused = true)]
    async fn lagging_replica_overrides_no_hold_during_the_brake() {
        let entries = TrackedEntries::new(10, Duration::from_secs(300));
        follow(&entries, ONE);
        entries.record_login(&entry("old", &csn(1, 1)));
        let key = entries.observe(&named(Some(1), None)).unwrap().0;
        let mut held = Entry::clone(&entry("old", &csn(5, 1)));
        held.version.held = true;
        entries.apply(&key, Arc::new(held), Some(super::super::DeferredChange::Entry(entry("new", &csn(5, 1)))));
        entries.brake(true);
        for version in [csn(1, 1), csn(4, 1)] {
            let super::super::Reconciled::Replaced(reconciled) = entries.reconcile(&entry("old", &version)) else {
                panic!()
            };
            assert!(reconciled.version.held && reconciled.mail_hosts == ["old"], "{reconciled:?}");
        }
    }
}
