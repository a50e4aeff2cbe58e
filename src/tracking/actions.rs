//! What follows from a change, beside the values put in force: to be carried out in this order.

use std::sync::Arc;

use crate::directory::{Entry, EntryNames};
use crate::telemetry::labels::DirectoryChange;
use crate::tracking::compare::RouteTarget;
use crate::tracking::fleet::BrakeNews;

/// One consequence.
#[derive(Debug)]
pub(super) enum Action {
    /// The cache forgets the decision about an entry.
    Forget(Arc<Entry>),
    /// The cache forgets the wrong passwords of an entry: a change may have made one valid.
    ForgetWrong(Arc<Entry>),
    /// The cache is to know of a lock after wrong passwords, or of its end.
    NoteLock {
        /// The version before, by which the entry is cached.
        before: Arc<Entry>,
        /// The version with the lock.
        entry: Arc<Entry>,
    },
    /// The sessions of an entry are listed under another DN.
    Rename {
        /// Its names before.
        names: EntryNames,
        /// The new DN.
        dn: Arc<str>,
    },
    /// The sessions of an entry are compared with its newest version: those that it does not permit end.
    Compare {
        /// The newest version; the last one of a deleted entry.
        entry: Arc<Entry>,
        /// Whether the entry is deleted.
        deleted: bool,
    },
    /// Sessions that were to end for changes that the brake covers continue.
    KeepSessions,
    /// A change is counted.
    Count(DirectoryChange),
    /// The number of changes that the brake defers.
    Deferred(usize),
    /// Something for the other nodes of the fleet.
    Tell(BrakeNews),
    /// Changes are reported, or missed, from now on.
    Connected(bool),
    /// A line in the log.
    Report(Report),
}

/// What is logged.
#[derive(Debug)]
pub(super) enum Report {
    /// Change notification is active again.
    Active,
    /// The number of entries of which the directory returns older versions.
    SetBack(usize),
    /// The number of entries that have lost their mail host or networks without a modification.
    Hidden(usize),
    /// An entry was deleted.
    Deleted(Arc<str>),
    /// An account was locked after wrong passwords.
    Locked(Arc<str>),
    /// An entry was renamed.
    Renamed {
        /// Its DN before.
        old: Arc<str>,
        /// Its DN now.
        new: Arc<str>,
    },
    /// The audit line of a changed route.
    Route {
        /// The entry.
        dn: Arc<str>,
        /// The backend before and now.
        moved: (RouteTarget, RouteTarget),
        /// By whom, and when.
        by: Modifier,
        /// Whether the brake has reverted an earlier change.
        reverted: bool,
    },
    /// Too many users are affected at once.
    BrakeEngaged {
        /// The changes that are deferred.
        changes: usize,
        /// How many are allowed.
        limit: usize,
        /// The number of known users.
        users: usize,
        /// Users that a refresh lacks.
        missing: usize,
        /// Users that a refresh returns without a mail host.
        without_mail_host: usize,
    },
    /// Another node has found too many users affected.
    BrakeJoined {
        /// The changes that this node takes back.
        changes: usize,
    },
    /// The directory is back in its previous state.
    BrakeReleased,
}

/// The modifier of an entry, and the time.
#[derive(Debug, Default)]
pub(super) struct Modifier {
    /// The DN of the modifier.
    pub(super) name: Option<String>,
    /// The time, as the directory writes it.
    pub(super) at: Option<String>,
}
