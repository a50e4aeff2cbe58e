//! Change notification: what a directory reports about its entries.

use std::sync::Arc;

use super::BoxFuture;
use super::entry::Entry;
use super::key::EntryId;

/// An entry as a server returns it, with the attributes for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedEntry {
    /// The entry.
    pub entry: Entry,
    /// modifyTimestamp.
    pub modified: Option<String>,
    /// modifiersName.
    pub modified_by: Option<String>,
}

/// A reported change. Changes between [`Change::RefreshStarted`] and [`Change::Complete`] belong together: they
/// take effect when complete, and not at all if the connection is lost before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A refresh begins, which reports all that may have been missed.
    RefreshStarted(Refresh),
    /// An entry as the server returns it: new, modified, renamed, or only repeated.
    Entry(Box<ReportedEntry>),
    /// These entries exist and were not modified.
    Present(Vec<EntryId>),
    /// An entry was deleted, or no longer matches the user filter.
    Deleted {
        /// Which.
        id: Option<EntryId>,
        /// Its last DN, if the server reports it.
        dn: Option<Arc<str>>,
    },
    /// All entries not reported since [`Change::RefreshStarted`] are deleted.
    RestDeleted,
    /// The refresh is complete.
    Complete,
    /// The connection is alive, with no further changes so far.
    UpToDate,
    /// Changes are missed from now on, until the next [`Change::RefreshStarted`].
    Lost,
}

/// A refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// The URL of the watched server.
    pub server: Arc<str>,
    /// Whether every entry is reported, changed or not.
    pub whole: bool,
    /// Whether timestamps are local to the server and not comparable with another's (Active Directory).
    pub local_timestamps: bool,
}

/// Receives the changes.
pub(crate) type ChangeHandler<'a> = &'a (dyn Fn(Change) + Send + Sync);

/// A directory that reports changes.
pub trait ChangeSource: Send + Sync {
    /// Watches the directory and reports changes; never returns. Reports nothing if the watch is off.
    fn watch<'a>(&'a self, report: ChangeHandler<'a>) -> BoxFuture<'a, ()>;
}
