//! Watches the directory on a separate connection and reports [`Change`]s.
//!
//! Uses content synchronization (RFC 4533) where a server supports it, with the server's cookie across reconnects;
//! otherwise searches at an interval. It stores nothing per entry and takes no action: `follow` decides what a
//! change means. Each loss of the connection is reported ([`Change::Lost`]), and so is the end of each refresh
//! ([`Change::Complete`]).

mod message;
mod poll;
mod sync;
#[cfg(test)]
mod tests;
mod usn;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use self::usn::UsnPosition;
use crate::base::clock::jittered;
use crate::config::{Directory as Settings, WatchMode};
use crate::directory::ldap::Ldap;
use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::lookup;
use crate::directory::ldap::schema::{self, Attributes};
use crate::directory::ldap::search::{self, Query, QueryOptions};
use crate::directory::ldap::server::Server;
use crate::directory::{BoxFuture, Change, ChangeHandler, ChangeSource, ServerResult};
use crate::proto::ldap::attributes::AttributeRole;
use crate::proto::ldap::dn::is_within;
use crate::telemetry::log::Repeats;

/// Content synchronization, as listed in the root DSE's supportedControl (RFC 4533 section 2.2).
const SYNC_REQUEST: &str = "1.3.6.1.4.1.4203.1.9.1.1";
/// Why `watch: sync` follows no server.
const NO_SYNC: &str = "no server supports content synchronization (RFC 4533): load syncprov (OpenLDAP) or the plug-in \
                       (389-DS); `watch: auto` polls without it";
/// Result codes of a server that cannot answer now (RFC 4511 appendix A.2).
const BUSY: u32 = 51;
const UNAVAILABLE: u32 = 52;
/// Before the first reconnect; doubled at each failure.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a server may take for the next message.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a refresh or a polling round may take.
const ROUND: Duration = Duration::from_secs(10 * 60);

/// A connection of the watch and its search.
struct WatchLink<'a> {
    connection: Connection,
    server: &'a Server,
    base: String,
    filter: String,
    attributes: Attributes,
}

/// Why the watch on a connection ended.
#[derive(Debug, thiserror::Error)]
enum WatchEnd {
    /// The connection failed.
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    /// The server ended or refused the search.
    #[error("{0}{hint}", hint = hint(.0.code))]
    Refused(ServerResult),
    /// The server requires a full refresh (RFC 4533 section 3.3.2).
    #[error("server requires a full refresh")]
    RefreshRequired,
    /// A new connection is due, which may find a server with content synchronization.
    #[error("reconnect is due")]
    Reconnect,
    /// No server can be watched.
    #[error("{0}")]
    NoServer(String),
}

/// A hint for the administrator about a result code.
const fn hint(code: u32) -> &'static str {
    match code {
        3 | 4 | 11 => ": the service account may not read all users; raise its limits (size, time, paged results)",
        12 => ": this database does not support content synchronization; on OpenLDAP, add `overlay syncprov` to it",
        50 | 53 => ": the service account may not watch these entries",
        _ => "",
    }
}

/// State kept across connections.
#[derive(Default)]
struct WatchMemory {
    /// Of each server in force that was followed: it resumes from there, whichever was followed meanwhile.
    cookies: BTreeMap<Arc<str>, Option<Vec<u8>>>,
    position: Option<UsnPosition>,
    /// Servers that advertise content synchronization but refuse it here.
    refusing: Vec<Arc<str>>,
}

impl WatchMemory {
    /// Where a server's synchronization stands; empty if it was not followed.
    fn cookie(&mut self, server: &Arc<str>) -> &mut Option<Vec<u8>> {
        self.cookies.entry(Arc::clone(server)).or_default()
    }
}

impl ChangeSource for Ldap {
    fn watch<'a>(&'a self, report: ChangeHandler<'a>) -> BoxFuture<'a, ()> {
        Box::pin(self.watch_changes(report))
    }
}

impl Ldap {
    fn shown(&self) -> Option<&'static str> {
        self.attributes().realm.shown(self.settings())
    }

    async fn watch_changes(&self, report: ChangeHandler<'_>) {
        if !self.settings().is_followed() {
            return pending().await;
        }
        let (mut memory, mut failures, repeats) = (WatchMemory::default(), 0_u32, Repeats::default());
        loop {
            let live = AtomicBool::new(false);
            let end = {
                let reporting = |change: Change| {
                    live.fetch_or(change == Change::Complete, Ordering::Relaxed);
                    report(change);
                };
                self.watch_once(&mut memory, &reporting).await
            };
            report(Change::Lost);
            failures = if live.into_inner() { 0 } else { failures.saturating_add(1) };
            if matches!(end, WatchEnd::Reconnect | WatchEnd::RefreshRequired) && failures < 2 {
                continue;
            }
            if let Some(suppressed) = repeats.allow("follow", "") {
                warn!(directory = self.shown(), reason = %end, suppressed, "LDAP change notification lost");
            }
            let pause = jittered(PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE));
            tokio::select! {
                () = sleep(pause) => {}
                // An outage was noticed by the attempts, and its end by a probe.
                () = self.recovery() => {}
            }
        }
    }

    /// Watches the first suitable server, until that ends.
    async fn watch_once(&self, memory: &mut WatchMemory, report: ChangeHandler<'_>) -> WatchEnd {
        let settings = self.settings();
        let mode = settings.watch.mode;
        let (mut spare, mut cause) = (None, "no server reachable".to_owned());
        let servers = self.servers();
        memory.cookies.retain(|known, _| servers.iter().any(|server| server.url == *known));
        for server in &servers {
            let connection = match server.service.open_as_service().await {
                Ok(connection) => connection,
                Err(error) => {
                    cause = error.to_string();
                    continue;
                }
            };
            let root = match RootDse::read(&connection).await {
                Ok(root) => root,
                Err(error) => {
                    cause = format!("{}: {error}", server.url);
                    continue;
                }
            };
            let link = WatchLink::new(connection, server, settings);
            if mode != WatchMode::Poll && root.syncs && !memory.refusing.contains(&server.url) {
                let left = server.endpoint.retired.cancelled();
                return tokio::select! {
                    end = watch_by_sync(&link, memory, mode, report) => end,
                    () = left => WatchEnd::Reconnect,
                };
            }
            cause = NO_SYNC.to_owned();
            spare = spare.or(Some((link, root)));
        }
        match spare {
            Some((link, root)) if mode != WatchMode::Sync => {
                let interval = settings.watch.poll_interval;
                let polled = async {
                    if root.usn.is_some() {
                        return usn::watch(&link, interval, &root, &mut memory.position, report).await;
                    }
                    info!(directory = self.shown(), server = %link.server.url, mode = "poll", "watching the directory for changes");
                    poll::watch(&link, interval, report).await
                };
                tokio::select! {
                    end = polled => end,
                    () = link.server.endpoint.retired.cancelled() => WatchEnd::Reconnect,
                }
            }
            Some(_) | None => WatchEnd::NoServer(cause),
        }
    }
}

async fn watch_by_sync(
    link: &WatchLink<'_>,
    memory: &mut WatchMemory,
    mode: WatchMode,
    report: ChangeHandler<'_>,
) -> WatchEnd {
    let url = &link.server.url;
    let directory = link.server.endpoint.shown;
    let cookie = memory.cookie(url);
    let resumed = cookie.is_some();
    // Kept up to date, so that nothing is read again however the watch ends.
    let end = sync::watch(link, cookie, report).await;
    match end {
        // A cookie that the server no longer accepts is discarded.
        WatchEnd::RefreshRequired => *cookie = None,
        // It is stopping or overloaded: that says nothing of the cookie, nor of content synchronization.
        WatchEnd::Refused(ServerResult { code: BUSY | UNAVAILABLE, .. }) => {}
        // As with a provider restored from a backup: the cookie is newer than its data. Everything is reported
        // again.
        WatchEnd::Refused(result) if resumed => {
            info!(directory, server = %url, code = result.code, %result, "server refused the sync cookie; reading all entries again");
            *cookie = None;
            return WatchEnd::RefreshRequired;
        }
        WatchEnd::Refused(_) => {
            *cookie = None;
            if mode == WatchMode::Auto {
                memory.refusing.push(Arc::clone(url));
            }
        }
        WatchEnd::Connection(_) | WatchEnd::Reconnect | WatchEnd::NoServer(_) => {}
    }
    end
}

impl<'a> WatchLink<'a> {
    fn new(connection: Connection, server: &'a Server, settings: &Settings) -> Self {
        let mut attributes = lookup::wanted(settings);
        attributes.roles.push(("modifiersName".to_owned(), AttributeRole::Modifier));
        Self {
            connection,
            server,
            base: lookup::users_base(&settings.find),
            filter: lookup::followed_filter(settings),
            attributes,
        }
    }

    /// Checks that the connection is alive: any reply will do.
    async fn is_alive(&self) -> Result<(), ConnectionError> {
        let patience = self.server.endpoint.patience.max(Duration::from_secs(3));
        timeout(patience, self.connection.who_am_i()).await.map_err(|_| ConnectionError::Timeout)?
    }
}

/// What the root DSE (RFC 4512 section 5.1) says about change notification.
#[derive(Debug, Default)]
pub(crate) struct RootDse {
    /// Content synchronization is offered.
    pub(crate) syncs: bool,
    /// Active Directory's highestCommittedUSN.
    pub(crate) usn: Option<u64>,
    /// Active Directory's dsServiceName: the DN of the controller's own settings.
    service: Option<String>,
    contexts: Vec<String>,
}

impl RootDse {
    pub(crate) async fn read(connection: &Connection) -> Result<Self, ConnectionError> {
        let mut root = Self::default();
        let options = QueryOptions { ends: Some(Instant::now() + SILENCE), ..QueryOptions::default() };
        let names = vec!["supportedControl", "highestCommittedUSN", "dsServiceName", "namingContexts"];
        let query = Query { options, ..Query::read("", names) };
        let text = |value: &Vec<u8>| std::str::from_utf8(value).ok().map(str::to_owned);
        search::each(connection, query, |entry| {
            let (_, attributes) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
            for (name, values) in &attributes {
                let mut texts = values.iter().filter_map(text);
                match name.to_ascii_lowercase().as_slice() {
                    b"supportedcontrol" => root.syncs |= texts.any(|value| value == SYNC_REQUEST),
                    b"highestcommittedusn" => root.usn = texts.next().and_then(|number| number.parse().ok()),
                    b"dsservicename" => root.service = texts.next(),
                    b"namingcontexts" => root.contexts = texts.collect(),
                    _ => {}
                }
            }
            Ok(())
        })
        .await?;
        Ok(root)
    }

    /// The naming context that holds a DN: the longest.
    fn context_of(&self, dn: &str) -> Option<&str> {
        let holds = |context: &&String| !context.is_empty() && is_within(dn, context);
        self.contexts.iter().filter(holds).max_by_key(|context| context.len()).map(String::as_str)
    }
}

/// When a refresh that begins now must be complete.
fn round_ends() -> Instant {
    Instant::now() + ROUND
}
