//! Polling, for servers without change notification: one search per interval for entries modified since the
//! last one. Such a result does not show deletions, so every tenth round reads all users; it starts with a new
//! connection, which may find a server with content synchronization.
//!
//! Active Directory numbers its changes (uSNChanged), separately on each domain controller: the numbers are not
//! reused on another connection. Elsewhere modifyTimestamp is used. A change replicated late from another
//! provider carries an old timestamp, so each search reaches back some rounds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{RootDse, SILENCE, WatchEnd, WatchLink, round_ends};
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::schema::{self, Shown};
use crate::directory::ldap::search::{self, Query, QueryOptions};
use crate::directory::{Change, ChangeHandler, Refresh, ReportedEntry};
use crate::proto::ldap::result::SUCCESS;

/// Every this many rounds all users are read.
const ROUNDS: u32 = 10;
/// How many rounds a search by modifyTimestamp reaches back.
const OVERLAP: usize = 4;

/// Polls for [`ROUNDS`] rounds, or until it fails.
pub(super) async fn watch(
    link: &WatchLink<'_>,
    interval: Duration,
    numbered: bool,
    report: ChangeHandler<'_>,
) -> WatchEnd {
    let mut since = Since { numbered, next_usn: None, times: VecDeque::new() };
    for round in 0..ROUNDS {
        if round > 0 {
            sleep(interval).await;
        }
        if let Err(end) = since.round(link, report).await {
            return end;
        }
    }
    sleep(interval).await;
    WatchEnd::Reconnect
}

/// The starting point of the next search.
struct Since {
    /// Whether the server numbers its changes.
    numbered: bool,
    next_usn: Option<u64>,
    /// The latest modifyTimestamp as of each of the last rounds, oldest first.
    times: VecDeque<String>,
}

impl Since {
    async fn round(&mut self, link: &WatchLink<'_>, report: ChangeHandler<'_>) -> Result<(), WatchEnd> {
        // Read first: an entry changed meanwhile has a higher number and is reported twice, not missed.
        let usn = if self.numbered { RootDse::read(&link.connection).await?.usn } else { None };
        // Reverted, as to a snapshot: nothing would be found beyond the old number.
        if usn.is_some_and(|usn| self.next_usn.is_some_and(|next| usn.saturating_add(1) < next)) {
            self.next_usn = None;
        }
        let since = if self.numbered {
            self.next_usn.map(|usn| format!("(uSNChanged>={usn})"))
        } else {
            self.times.front().map(|time| format!("(modifyTimestamp>={time})"))
        };
        let filter = match &since {
            Some(since) => format!("(&{}{since})", link.filter),
            None => link.filter.clone(),
        };
        let server = Arc::clone(&link.server.url);
        report(Change::RefreshStarted(Refresh { server, whole: since.is_none(), local_timestamps: self.numbered }));
        let latest = search(link, &filter, report).await?;
        if since.is_none() {
            report(Change::RestDeleted);
        }
        report(Change::Complete);
        self.next_usn = usn.map(|usn| usn.saturating_add(1));
        if let Some(latest) = latest.or_else(|| self.times.back().cloned()) {
            self.times.push_back(latest);
            if self.times.len() > OVERLAP {
                self.times.pop_front();
            }
        }
        Ok(())
    }
}

/// Reports every entry that matches; returns the latest modifyTimestamp among them.
async fn search(link: &WatchLink<'_>, filter: &str, report: ChangeHandler<'_>) -> Result<Option<String>, WatchEnd> {
    let options =
        QueryOptions { paged: true, silence: Some(SILENCE), ends: Some(round_ends()), ..QueryOptions::default() };
    let query = Query::below(&link.base, filter, link.attributes.names(), options);
    let (mut latest, mut unfinished): (Option<String>, _) = (None, Vec::new());
    let result = search::each(&link.connection, query, |entry| {
        let Shown { reported, rest } = schema::read_entry(entry, &link.attributes).ok_or(ConnectionError::Malformed)?;
        if reported.entry.fault.is_none() {
            latest = latest.take().max(reported.modified.clone());
            match rest {
                None => report(Change::Entry(Box::new(reported))),
                Some(rest) => unfinished.push((reported, rest)),
            }
        }
        Ok(())
    })
    .await?;
    // A part of an entry must not take precedence over what a login reads of it.
    for (reported, rest) in unfinished {
        let part = (reported.entry.clone(), rest);
        let entry = search::completed(&link.connection, &link.attributes, part, round_ends()).await?;
        if let Some(entry) = entry.filter(|entry| entry.fault.is_none()) {
            report(Change::Entry(Box::new(ReportedEntry { entry, ..reported })));
        }
    }
    // An incomplete result says nothing about missing entries.
    if result.code == SUCCESS { Ok(latest) } else { Err(WatchEnd::Refused(result)) }
}
