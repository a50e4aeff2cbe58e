//! Polling by modifyTimestamp, for servers without change notification: one search per interval for entries modified since
//! the last one. Such a result does not show deletions, so every tenth round reads all users; it starts with a new
//! connection, which may find a server with content synchronization. A change replicated late from another
//! provider carries an old timestamp, so each search reaches back some rounds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{SILENCE, WatchEnd, WatchLink, round_ends};
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::schema::{self, Shown};
use crate::directory::ldap::search::{self, Query, QueryOptions};
use crate::directory::{Change, ChangeHandler, EntryId, Refresh, ReportedEntry};
use crate::proto::ldap::result::SUCCESS;

/// Every this many rounds all users are read.
pub(super) const ROUNDS: u32 = 10;
/// How many rounds a search by modifyTimestamp reaches back.
const OVERLAP: usize = 4;

/// Polls for [`ROUNDS`] rounds, or until it fails.
pub(super) async fn watch(link: &WatchLink<'_>, interval: Duration, report: ChangeHandler<'_>) -> WatchEnd {
    let mut times = VecDeque::new();
    for round in 0..ROUNDS {
        if round > 0 {
            sleep(interval).await;
        }
        if let Err(end) = poll(link, &mut times, report).await {
            return end;
        }
    }
    sleep(interval).await;
    WatchEnd::Reconnect
}

/// One round. `times`: the latest modifyTimestamp as of each of the last rounds, oldest first.
async fn poll(link: &WatchLink<'_>, times: &mut VecDeque<String>, report: ChangeHandler<'_>) -> Result<(), WatchEnd> {
    let since = times.front().map(|time| format!("(&{}(modifyTimestamp>={time}))", link.filter));
    let server = Arc::clone(&link.server.url);
    report(Change::RefreshStarted(Refresh { server, whole: since.is_none(), local_timestamps: false }));
    let found = entries(link, since.as_ref().unwrap_or(&link.filter), report, drop).await?;
    if since.is_none() && found.are_named {
        report(Change::RestDeleted);
    }
    report(Change::Complete);
    if let Some(latest) = found.latest.or_else(|| times.back().cloned()) {
        times.push_back(latest);
        if times.len() > OVERLAP {
            times.pop_front();
        }
    }
    Ok(())
}

/// What a search has shown beside the entries.
pub(super) struct PolledEntries {
    /// The latest modifyTimestamp.
    latest: Option<String>,
    /// Whether each entry was reported: one that exceeds a limit and shows no id cannot be.
    pub(super) are_named: bool,
}

/// Reports every entry that matches; `seen` gets the ids.
pub(super) async fn entries(
    link: &WatchLink<'_>,
    filter: &str,
    report: ChangeHandler<'_>,
    mut seen: impl FnMut(EntryId),
) -> Result<PolledEntries, WatchEnd> {
    let options =
        QueryOptions { paged: true, silence: Some(SILENCE), ends: Some(round_ends()), ..QueryOptions::default() };
    let query = Query::below(&link.base, filter, link.attributes.names(), options);
    let (mut found, mut unfinished) = (PolledEntries { latest: None, are_named: true }, Vec::new());
    // What is known of an entry that exceeds a limit stays until the next lookup.
    let keep = |id: Option<EntryId>| {
        id.is_some_and(|id| {
            report(Change::Present(vec![id]));
            true
        })
    };
    let result = search::each(&link.connection, query, |entry| {
        let Shown { reported, rest, .. } =
            schema::read_entry(entry, &link.attributes).ok_or(ConnectionError::Malformed)?;
        reported.entry.version.id.into_iter().for_each(&mut seen);
        if reported.entry.fault.is_some() {
            found.are_named &= keep(reported.entry.version.id);
            return Ok(());
        }
        found.latest = found.latest.take().max(reported.modified.clone());
        match rest {
            None => report(Change::Entry(Box::new(reported))),
            Some(rest) => unfinished.push((reported, rest)),
        }
        Ok(())
    })
    .await?;
    // A part of an entry must not take precedence over what a login reads of it.
    for (reported, rest) in unfinished {
        let part = (reported.entry.clone(), rest);
        match search::completed(&link.connection, &link.attributes, part, round_ends()).await? {
            Some(entry) if entry.fault.is_none() => {
                report(Change::Entry(Box::new(ReportedEntry { entry, ..reported })));
            }
            Some(_) => found.are_named &= keep(reported.entry.version.id),
            // Gone since.
            None => {}
        }
    }
    // An incomplete result says nothing about missing entries.
    if result.code == SUCCESS { Ok(found) } else { Err(WatchEnd::Refused(result)) }
}
