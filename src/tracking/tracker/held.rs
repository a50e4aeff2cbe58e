//! The users that a directory holds or has locked: listed from what change notification reports of every user, and from
//! what logins meet where nothing is reported.

use std::time::Duration;

use crate::directory::Change;
use crate::telemetry::held_back::{Beginning, HeldBackUsers, Reason, Who};

/// A lock ends by time, which only the directory knows: it is listed for as long after it was last met.
pub(crate) const LOCK_LASTS: Duration = Duration::from_secs(60 * 60);
/// The same of a hold that a login has met, while changes are not reported.
pub(crate) const HOLD_LASTS: Duration = Duration::from_secs(10 * 60);

/// Notes what a change says of holds, and of the end of locks.
pub(super) fn note(held: &HeldBackUsers, change: &Change, directory: Option<&'static str>) {
    match change {
        Change::RefreshStarted(refresh) => {
            held.let_holds_expire(directory, None);
            if refresh.whole {
                held.begin_refresh(directory);
            }
        }
        // Perhaps for good: a reload may have turned the watch off.
        Change::Lost => held.let_holds_expire(directory, Some(HOLD_LASTS)),
        Change::Entry(reported) => {
            let entry = &reported.entry;
            let modified = (reported.modified_by.as_deref(), reported.modified.as_deref());
            let of = Beginning { directory, modified, lasts: None };
            if entry.version.held {
                held.begin(Reason::Hold, Who::User(&entry.dn), of);
            } else {
                held.end(Reason::Hold, Who::User(&entry.dn), of);
            }
            if !entry.version.locked {
                held.end(Reason::Locked, Who::User(&entry.dn), of);
            }
        }
        Change::Deleted { dn: Some(dn), .. } => over(held, dn, directory, None),
        // Of a whole refresh: what it did not report exists no longer.
        Change::RestDeleted => held.end_refresh(directory),
        Change::Present(_) | Change::Deleted { dn: None, .. } | Change::Complete | Change::UpToDate => {}
    }
}

/// A user is neither held nor locked any more.
pub(crate) fn over(held: &HeldBackUsers, dn: &str, directory: Option<&'static str>, by: Option<&str>) {
    let end = Beginning { directory, modified: (by, None), lasts: None };
    held.end(Reason::Hold, Who::User(dn), end);
    held.end(Reason::Locked, Who::User(dn), end);
}
