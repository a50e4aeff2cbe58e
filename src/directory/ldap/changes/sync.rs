//! Watches by content synchronization: refresh, then persist (RFC 4533 sections 3.2 to 3.5).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ldap3::ResultEntry;
use ldap3::asn1::StructureTag;
use ldap3::controls::{RawControl, RefreshMode, SyncRequest};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::message::{EntryState, SYNC_STATE, SyncInfo, SyncState};
use super::{SILENCE, WatchEnd, WatchLink, round_ends};
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::schema::{self, Shown};
use crate::directory::ldap::search::{Query, QueryOptions, Search};
use crate::directory::{Change, ChangeHandler, Refresh};

/// The result code of a search whose cookie is too old.
const SYNC_REFRESH_REQUIRED: u32 = 4096;
/// How long the connection may be silent before it is checked.
const WATCHDOG: Duration = Duration::from_secs(10);

/// Watches until the connection ends. `cookie` is the starting point, and then the current state.
pub(super) async fn watch(link: &WatchLink<'_>, cookie: &mut Option<Vec<u8>>, report: ChangeHandler<'_>) -> WatchEnd {
    match run(link, cookie, report).await {
        Ok(end) => end,
        Err(error) => WatchEnd::Connection(error),
    }
}

async fn run(
    link: &WatchLink<'_>,
    cookie: &mut Option<Vec<u8>>,
    report: ChangeHandler<'_>,
) -> Result<WatchEnd, ConnectionError> {
    let request = SyncRequest { mode: RefreshMode::RefreshAndPersist, cookie: cookie.clone(), reload_hint: false };
    // Critical: a server that does not support the control must not answer a plain search.
    let request = RawControl { crit: true, ..request.into() };
    let options = QueryOptions { control: Some(request), ..QueryOptions::default() };
    let query = Query::below(&link.base, &link.filter, link.attributes.names(), options);
    report(Change::RefreshStarted(Refresh {
        server: Arc::clone(&link.server.url),
        whole: cookie.is_none(),
        local_timestamps: false,
    }));
    let mut search = Search::start(&link.connection, query).await?;
    let mut progress =
        SyncProgress { refresh_ends: Some(round_ends()), whole: cookie.is_none(), cookie: cookie.clone() };
    let mut accepted = false;
    loop {
        let message = {
            let mut next = pin!(search.next_message());
            loop {
                let silent_until = Instant::now() + if progress.refresh_ends.is_some() { SILENCE } else { WATCHDOG };
                tokio::select! {
                    message = &mut next => break message?,
                    () = sleep_until(silent_until) => {
                        if progress.refresh_ends.is_some() {
                            return Err(ConnectionError::Timeout);
                        }
                        link.is_alive().await?;
                        report(Change::UpToDate);
                    }
                }
            }
        };
        let Some(message) = message else {
            let result = search.result().await;
            let is_refresh = result.code == SYNC_REFRESH_REQUIRED;
            return Ok(if is_refresh { WatchEnd::RefreshRequired } else { WatchEnd::Refused(result) });
        };
        // Not before: slapd lists the control for databases that refuse it, too.
        if !std::mem::replace(&mut accepted, true) {
            let (directory, server, resumed) = (link.server.endpoint.shown, &link.server.url, !progress.whole);
            info!(directory, %server, mode = "sync", resumed, "watching the directory for changes");
        }
        if progress.refresh_ends.is_some_and(|end| end < Instant::now()) {
            return Err(ConnectionError::Timeout);
        }
        progress.take(link, message, report)?;
        // During a refresh a newer cookie would cover changes that have not taken effect yet.
        if progress.refresh_ends.is_none() {
            cookie.clone_from(&progress.cookie);
        }
    }
}

/// The state of a synchronization.
struct SyncProgress {
    /// During a refresh: when it must be complete.
    refresh_ends: Option<Instant>,
    /// Whether all entries are reported, because there was no cookie.
    whole: bool,
    cookie: Option<Vec<u8>>,
}

impl SyncProgress {
    fn take(
        &mut self,
        link: &WatchLink<'_>,
        message: ResultEntry,
        report: ChangeHandler<'_>,
    ) -> Result<(), ConnectionError> {
        if message.is_ref() {
            return Ok(());
        }
        if message.is_intermediate() {
            let info = intermediate(message.0).ok_or(ConnectionError::Malformed)?;
            if let Some(info) = info {
                self.take_info(info, report);
            }
            return Ok(());
        }
        let control = message.1.iter().map(|control| &control.1).find(|control| control.ctype == SYNC_STATE);
        let value = control.and_then(|control| control.val.as_deref()).ok_or(ConnectionError::Malformed)?;
        let SyncState { state, id, cookie } = SyncState::parse(value).ok_or(ConnectionError::Malformed)?;
        match state {
            EntryState::Present => report(Change::Present(vec![id])),
            EntryState::Changed => {
                let Shown { reported: mut shown, rest, .. } =
                    schema::read_entry(message.0, &link.attributes).ok_or(ConnectionError::Malformed)?;
                if shown.entry.fault.is_some() || rest.is_some() {
                    // Exceeds a limit, or is a part: what is known of the entry stays until the next lookup.
                    report(Change::Present(vec![id]));
                } else {
                    shown.entry.version.id = Some(id);
                    report(Change::Entry(Box::new(shown)));
                }
            }
            EntryState::Deleted => {
                let (dn, _) = schema::parts(message.0).ok_or(ConnectionError::Malformed)?;
                report(Change::Deleted { id: Some(id), dn: (!dn.is_empty()).then(|| dn.into()) });
            }
        }
        self.advance(cookie);
        Ok(())
    }

    fn take_info(&mut self, info: SyncInfo, report: ChangeHandler<'_>) {
        match info {
            SyncInfo::Cookie(cookie) => self.advance(Some(cookie)),
            SyncInfo::Phase { present, cookie, done } => {
                if present || (done && self.whole) {
                    report(Change::RestDeleted);
                }
                self.advance(cookie);
                if done && self.refresh_ends.take().is_some() {
                    report(Change::Complete);
                }
            }
            SyncInfo::Ids { gone, cookie, ids } => {
                if gone {
                    ids.into_iter().for_each(|id| report(Change::Deleted { id: Some(id), dn: None }));
                } else {
                    report(Change::Present(ids));
                }
                self.advance(cookie);
            }
        }
    }

    fn advance(&mut self, cookie: Option<Vec<u8>>) {
        if cookie.is_some() {
            self.cookie = cookie;
        }
    }
}

#[expect(clippy::option_option, reason = "malformed, and of another kind")]
fn intermediate(message: StructureTag) -> Option<Option<SyncInfo>> {
    let (mut name, mut value) = (None, None);
    for part in message.expect_constructed()? {
        match part.id {
            0 => name = part.expect_primitive(),
            1 => value = part.expect_primitive(),
            _ => {}
        }
    }
    SyncInfo::parse(name.as_deref(), value.as_deref())
}
