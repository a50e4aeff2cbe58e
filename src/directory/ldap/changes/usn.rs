//! Polling of Active Directory, which numbers its changes (uSNChanged), separately on each domain controller.
//!
//! A search below the base shows what has changed, not what has left: an entry that is deleted, moved elsewhere or no
//! longer matches the user filter. So the ids of all changed objects of the naming context are read first, deleted ones
//! included; those among them that the search for users does not return have left. Deleted objects are shown only to an
//! account that may list the container Deleted Objects; without that all users are compared every tenth round, with it rarely.
//!
//! The numbers hold for one database, which its invocationId names: it changes when a controller is restored. DirSync would
//! need the same second search, because it returns attributes and not entries, and a right or a flag of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ldap3::controls::RawControl;
use tokio::time::{Instant, sleep};
use tracing::info;

use super::poll::{self, ROUNDS};
use super::{RootDse, SILENCE, WatchEnd, WatchLink, round_ends};
use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::query::Scope;
use crate::directory::ldap::schema;
use crate::directory::ldap::search::{self, Query, QueryOptions};
use crate::directory::{Change, ChangeHandler, EntryId, Refresh};
use crate::proto::ldap::result::SUCCESS;

/// Deleted objects are returned as well (MS-ADTS section 3.1.1.3.4.1.14).
const SHOW_DELETED: &str = "1.2.840.113556.1.4.417";
/// The container of deleted objects, by its well-known GUID (MS-ADTS section 6.1.1.4).
const DELETED_OBJECTS: &str = "18E2EA80684F11D2B9AA00C04F79F805";
/// How far a search reaches back: a change that took its number before others may be committed after them.
const OVERLAP: u64 = 50;
/// All users are read every this many rounds, whatever the container seems to show.
const ROUNDS_WITH_DELETED: u32 = 120;
/// Changed objects of a round; with more all users are read.
const MOST_CHANGED: usize = 100_000;

/// Up to where changes have been reported.
#[derive(Debug)]
pub(super) struct UsnPosition {
    server: Arc<str>,
    /// The database that the numbers belong to.
    invocation: Vec<u8>,
    next: u64,
    /// Rounds since all users were read.
    rounds: u32,
}

/// A poll in progress.
struct UsnPoll<'a> {
    link: &'a WatchLink<'a>,
    /// The naming context of the base.
    context: Option<String>,
    /// Whether deleted objects are shown.
    sees_deleted: bool,
    /// The next number, and the rounds since all users were read.
    next: Option<u64>,
    rounds: u32,
}

/// Polls for [`ROUNDS`] rounds, or until it fails. `position` is the starting point, and then the current one.
pub(super) async fn watch(
    link: &WatchLink<'_>,
    interval: Duration,
    root: &RootDse,
    position: &mut Option<UsnPosition>,
    report: ChangeHandler<'_>,
) -> WatchEnd {
    match run(link, interval, root, position, report).await {
        Ok(()) => WatchEnd::Reconnect,
        Err(end) => end,
    }
}

async fn run(
    link: &WatchLink<'_>,
    interval: Duration,
    root: &RootDse,
    position: &mut Option<UsnPosition>,
    report: ChangeHandler<'_>,
) -> Result<(), WatchEnd> {
    let url = &link.server.url;
    let invocation = match &root.service {
        Some(service) => invocation(link, service).await?,
        None => None,
    };
    let known = position.take().filter(|known| known.server == *url && invocation.as_ref() == Some(&known.invocation));
    let context = root.context_of(&link.base).map(str::to_owned);
    let sees_deleted = root.sees_deleted(&link.connection, &link.base).await?;
    let (resumed, directory) = (known.is_some(), link.server.endpoint.shown);
    info!(directory, server = %url, mode = "usn", resumed, sees_deleted, "watching the directory for changes");
    let (next, rounds) = known.map_or((None, 0), |known| (Some(known.next), known.rounds));
    let mut poll = UsnPoll { link, context, sees_deleted, next, rounds };
    for round in 0..ROUNDS {
        if round > 0 {
            sleep(interval).await;
        }
        let next = poll.round(report).await?;
        *position = invocation.clone().map(|invocation| UsnPosition {
            server: Arc::clone(url),
            invocation,
            next,
            rounds: poll.rounds,
        });
    }
    sleep(interval).await;
    Ok(())
}

impl UsnPoll<'_> {
    /// Reports what has changed; returns the next number.
    async fn round(&mut self, report: ChangeHandler<'_>) -> Result<u64, WatchEnd> {
        // Read first: an entry changed meanwhile has a higher number and is reported twice, not missed.
        let usn = RootDse::read(&self.link.connection).await?.usn.ok_or(ConnectionError::Malformed)?;
        // Reverted, as to a snapshot: nothing would be found beyond the old number.
        let since = self.next.filter(|next| usn.saturating_add(1) >= *next);
        let since = since.filter(|_| self.rounds < if self.sees_deleted { ROUNDS_WITH_DELETED } else { ROUNDS });
        let since = since.map(|next| next.saturating_sub(OVERLAP));
        // Before the users: whatever changes in between is among them.
        let changed = match (since, &self.context) {
            (Some(since), Some(context)) => self.changed(context, since).await?.map(|changed| (since, changed)),
            (Some(since), None) => Some((since, HashSet::new())),
            (None, _) => None,
        };
        let server = Arc::clone(&self.link.server.url);
        report(Change::RefreshStarted(Refresh { server, whole: changed.is_none(), local_timestamps: true }));
        match changed {
            Some((since, mut left)) => {
                let filter = format!("(&{}(uSNChanged>={since}))", self.link.filter);
                poll::entries(self.link, &filter, report, |id| _ = left.remove(&id)).await?;
                left.into_iter().for_each(|id| report(Change::Deleted { id: Some(id), dn: None }));
                self.rounds += 1;
            }
            None => {
                if poll::entries(self.link, &self.link.filter, report, drop).await?.are_named {
                    report(Change::RestDeleted);
                }
                self.rounds = 1;
            }
        }
        report(Change::Complete);
        let next = usn.saturating_add(1);
        self.next = Some(next);
        Ok(next)
    }

    /// The ids of all changed objects of the naming context; `None`: there are too many.
    async fn changed(&self, context: &str, since: u64) -> Result<Option<HashSet<EntryId>>, WatchEnd> {
        let filter = format!("(uSNChanged>={since})");
        let query = Query::below(context, &filter, vec!["objectGUID"], showing_deleted(true));
        let (mut changed, mut is_whole) = (HashSet::new(), true);
        let result = search::each(&self.link.connection, query, |entry| {
            let (_, attributes) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
            let id = attributes.iter().find(|(name, _)| name.eq_ignore_ascii_case(b"objectGUID"));
            if let Some(id) = id.and_then(|(_, values)| EntryId::from_bytes(values.first()?)) {
                is_whole &= changed.len() < MOST_CHANGED;
                if is_whole {
                    changed.insert(id);
                }
            }
            Ok(())
        })
        .await?;
        if result.code == SUCCESS { Ok(is_whole.then_some(changed)) } else { Err(WatchEnd::Refused(result)) }
    }
}

/// A search that also returns deleted objects.
fn showing_deleted(paged: bool) -> QueryOptions {
    // Not critical: a server without it returns the others.
    let control = RawControl { ctype: SHOW_DELETED.to_owned(), crit: false, val: None };
    QueryOptions {
        paged,
        control: Some(control),
        silence: Some(SILENCE),
        ends: Some(round_ends()),
        ..QueryOptions::default()
    }
}

/// The invocationId of the controller with these settings (nTDSDSA); `None` if it is not shown.
async fn invocation(link: &WatchLink<'_>, service: &str) -> Result<Option<Vec<u8>>, ConnectionError> {
    let options = QueryOptions { ends: Some(Instant::now() + SILENCE), ..QueryOptions::default() };
    let query = Query { options, ..Query::read(service, vec!["invocationId"]) };
    let mut invocation = None;
    search::each(&link.connection, query, |entry| {
        let (_, attributes) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
        let found = attributes.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(b"invocationId"));
        invocation = found.and_then(|(_, values)| values.into_iter().next()).filter(|id| id.len() == 16);
        Ok(())
    })
    .await?;
    Ok(invocation)
}

impl RootDse {
    /// Whether the account is shown a deleted object of the naming context that holds this DN. That it may read their
    /// container says nothing about what is in there.
    pub(crate) async fn sees_deleted(&self, connection: &Connection, dn: &str) -> Result<bool, ConnectionError> {
        let Some(context) = self.context_of(dn) else { return Ok(false) };
        let container = format!("<WKGUID={DELETED_OBJECTS},{context}>");
        let options = QueryOptions { size_limit: 1, ..showing_deleted(false) };
        let query = Query {
            base: &container,
            scope: Scope::OneLevel,
            filter: "(objectClass=*)",
            names: vec!["objectGUID"],
            options,
        };
        let mut is_shown = false;
        search::each(connection, query, |_| {
            is_shown = true;
            Ok(())
        })
        .await?;
        Ok(is_shown)
    }
}
