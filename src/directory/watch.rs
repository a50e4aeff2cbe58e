//! Follows the directory, on a connection of its own, and tells what it sees as [`Change`]s.
//!
//! By content synchronization (RFC 4533) where a server has it, with the cookie across reconnects;
//! else by one search per interval. It keeps nothing per entry and acts on nothing: what a change
//! means is for who knows the users (`follow`). Each end of a connection is told ([`Change::Lost`]),
//! and so is the moment at which everything has been seen again ([`Change::Complete`]).

mod message;
mod poll;
mod sync;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::connection::{Connection, ConnectionError, Scope};
use super::pool::jittered;
use super::reading::{self, Attributes};
use super::server::Server;
use super::{EntryId, Ldap, ReportedEntry};
use crate::config::{Directory as Settings, Meaning, WatchMode};
use crate::log::Repeats;

/// Content synchronization, as the root DSE's supportedControl has it (RFC 4533 section 2.2).
const SYNC_REQUEST: &str = "1.3.6.1.4.1.4203.1.9.1.1";
/// Before the first new attempt; doubled at each failure.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a server may take for the next message of an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// How long all of a refresh, or of a poll's round, may take.
const ROUND: Duration = Duration::from_secs(10 * 60);

/// What was seen. Changes between [`Change::Began`] and [`Change::Complete`] belong together: they
/// count when they are complete, and not at all if the connection is lost before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Whatever may have been missed is about to be told.
    RefreshStarted(Refresh),
    /// An entry, as the server shows it: new, modified, renamed, or merely told again.
    Entry(Box<ReportedEntry>),
    /// These entries are there, and were not modified.
    Present(Vec<EntryId>),
    /// An entry is gone, or is no user any more.
    Deleted {
        /// Which.
        id: Option<EntryId>,
        /// Its last DN, where the server tells.
        dn: Option<Arc<str>>,
    },
    /// Whatever has not been told of since [`Change::Began`] is gone.
    RestDeleted,
    /// Everything up to now has been told.
    Complete,
    /// Nothing else has happened up to now.
    UpToDate,
    /// From here on changes are missed, until the next [`Change::Began`].
    Lost,
}

/// How what was missed is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// The URL of the server that tells.
    pub server: Arc<str>,
    /// Whether every entry is told of, changed or not.
    pub whole: bool,
    /// Whether the server's timestamps are its own, and mean nothing beside another's (Active Directory).
    pub local_timestamps: bool,
}

/// Who is told.
pub type ChangeHandler<'a> = &'a (dyn Fn(Change) + Send + Sync);

/// What a connection of the watch needs.
struct WatchLink<'a> {
    connection: Connection,
    server: &'a Server,
    base: String,
    filter: String,
    attributes: Attributes,
}

/// Why a connection's watch has ended.
#[derive(Debug, thiserror::Error)]
enum WatchEnd {
    /// The connection is of no more use.
    #[error("{0}")]
    Fault(#[from] ConnectionError),
    /// The server ended or refused the search.
    #[error("result {0}{hint}", hint = hint(*.0))]
    Refused(u32),
    /// The server wants to begin anew (RFC 4533 section 3.3.2).
    #[error("the server asks for a new beginning")]
    RefreshRequired,
    /// It is time to look again for a better way.
    #[error("a look around is due")]
    Reconnect,
    /// No server can be followed.
    #[error("{0}")]
    NoServer(String),
}

/// What an operator can do about a result.
const fn hint(code: u32) -> &'static str {
    match code {
        3 | 4 | 11 => ": the service account may not read all users; raise its limits (size, time, paged results)",
        12 => ": this database has no content synchronization",
        50 | 53 => ": the service account may not follow these entries",
        _ => "",
    }
}

/// Where the last connection stood.
struct SyncCookie {
    server: Arc<str>,
    bytes: Vec<u8>,
}

/// What outlives a connection.
#[derive(Default)]
struct WatchMemory {
    cookie: Option<SyncCookie>,
    /// Servers that offer content synchronization and then refuse it here.
    refusing: Vec<Arc<str>>,
}

impl Ldap {
    /// Follows the directory for ever and tells what is seen. Where it is not to be followed, nothing
    /// is told.
    pub async fn follow(&self, tell: ChangeHandler<'_>) {
        if !self.settings().is_followed() {
            return pending().await;
        }
        let (mut memory, mut failures, repeats) = (WatchMemory::default(), 0_u32, Repeats::default());
        loop {
            let live = AtomicBool::new(false);
            let end = {
                let telling = |change: Change| {
                    live.fetch_or(change == Change::Complete, Ordering::Relaxed);
                    tell(change);
                };
                self.follow_once(&mut memory, &telling).await
            };
            tell(Change::Lost);
            failures = if live.into_inner() { 0 } else { failures.saturating_add(1) };
            if matches!(end, WatchEnd::Reconnect | WatchEnd::RefreshRequired) && failures < 2 {
                continue;
            }
            if let Some(suppressed) = repeats.allow("follow", "") {
                warn!(reason = %end, suppressed, "the directory is not followed at the moment");
            }
            sleep(jittered(PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE))).await;
        }
    }

    /// Follows on the first server that can be followed, until that ends.
    async fn follow_once(&self, memory: &mut WatchMemory, tell: ChangeHandler<'_>) -> WatchEnd {
        let settings = self.settings();
        let mode = settings.watch.mode;
        let (mut spare, mut trouble) = (None, "no server can be reached".to_owned());
        for server in self.servers() {
            let connection = match server.open_as_service().await {
                Ok(connection) => connection,
                Err(error) => {
                    trouble = error.to_string();
                    continue;
                }
            };
            let root = match RootDse::read(&connection).await {
                Ok(root) => root,
                Err(fault) => {
                    trouble = format!("{}: {fault}", server.url);
                    continue;
                }
            };
            let link = WatchLink::new(connection, server, settings);
            if mode != WatchMode::Poll && root.syncs && !memory.refusing.contains(&server.url) {
                return follow_by_sync(&link, memory, mode, tell).await;
            }
            trouble = "no server offers content synchronization (RFC 4533)".to_owned();
            spare = spare.or(Some((link, root)));
        }
        match spare {
            Some((link, root)) if mode != WatchMode::Sync => {
                info!(server = %link.server.url, mode = "poll", "following the directory");
                poll::follow(&link, settings.watch.poll_interval, root.usn.is_some(), tell).await
            }
            Some(_) | None => WatchEnd::NoServer(trouble),
        }
    }
}

async fn follow_by_sync(
    link: &WatchLink<'_>,
    memory: &mut WatchMemory,
    mode: WatchMode,
    tell: ChangeHandler<'_>,
) -> WatchEnd {
    let url = &link.server.url;
    let known = memory.cookie.take().filter(|cookie| cookie.server == *url);
    info!(server = %url, mode = "sync", resumed = known.is_some(), "following the directory");
    let resumed = known.is_some();
    let mut bytes = known.map(|cookie| cookie.bytes);
    let end = sync::follow(link, &mut bytes, tell).await;
    match end {
        // A cookie that the server does not understand any more is of no use to another attempt.
        WatchEnd::RefreshRequired => {}
        // As a provider does that was restored from a backup: the cookie is newer than what it has. All
        // that is to be known is told anew.
        WatchEnd::Refused(code) if resumed => {
            info!(server = %url, code, "the server refuses the cookie: every entry is read anew");
            return WatchEnd::RefreshRequired;
        }
        WatchEnd::Refused(_) if mode == WatchMode::Auto => memory.refusing.push(Arc::clone(url)),
        WatchEnd::Refused(_) => {}
        WatchEnd::Fault(_) | WatchEnd::Reconnect | WatchEnd::NoServer(_) => {
            memory.cookie = bytes.map(|bytes| SyncCookie { server: Arc::clone(url), bytes });
        }
    }
    end
}

impl<'a> WatchLink<'a> {
    fn new(connection: Connection, server: &'a Server, settings: &Settings) -> Self {
        let mut attributes = settings.watched();
        attributes.push(("modifiersName".to_owned(), Meaning::Modifier));
        Self {
            connection,
            server,
            base: settings.users_base(),
            filter: settings.users_filter(),
            attributes: Attributes(attributes),
        }
    }

    /// Asks whether the connection lives: any answer is one.
    async fn is_alive(&self) -> Result<(), ConnectionError> {
        let patience = self.server.patience.max(Duration::from_secs(3));
        timeout(patience, self.connection.who_am_i()).await.map_err(|_| ConnectionError::Timeout)?
    }
}

/// What the root DSE (RFC 4512 section 5.1) tells about following.
#[derive(Debug, Default)]
pub(super) struct RootDse {
    /// Content synchronization is offered.
    pub(super) syncs: bool,
    /// Active Directory's highestCommittedUSN.
    usn: Option<u64>,
}

impl RootDse {
    pub(super) async fn read(connection: &Connection) -> Result<Self, ConnectionError> {
        let asked = async {
            let names = vec!["supportedControl", "highestCommittedUSN"];
            let mut ldap = connection.handle();
            let search = ldap.streaming_search("", Scope::Base, "(objectClass=*)", names);
            let mut answers = connection.contained(search).await?;
            let mut root = Self::default();
            while let Some(message) = connection.contained(answers.next()).await? {
                if message.is_ref() || message.is_intermediate() {
                    continue;
                }
                let (_, attributes) = reading::parts(message.0).ok_or(ConnectionError::Malformed)?;
                for (name, values) in &attributes {
                    if name.eq_ignore_ascii_case(b"supportedControl") {
                        root.syncs |= values.iter().any(|value| value == SYNC_REQUEST.as_bytes());
                    }
                    if name.eq_ignore_ascii_case(b"highestCommittedUSN") {
                        let number = values.first().and_then(|value| std::str::from_utf8(value).ok());
                        root.usn = number.and_then(|number| number.parse().ok());
                    }
                }
            }
            Ok(root)
        };
        timeout(SILENCE, asked).await.unwrap_or(Err(ConnectionError::Timeout))
    }
}

/// When a round that begins now must be over.
fn round_ends() -> Instant {
    Instant::now() + ROUND
}
