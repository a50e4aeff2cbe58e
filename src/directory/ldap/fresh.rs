//! Ensures that an entry is bound at a server that has caught up with its reported changes.
//!
//! A search answered by a lagging replica is repeated elsewhere, at the watched server first. If no server has
//! caught up, usher waits briefly, as lag is mostly short, and then applies what the newest version decides: a
//! disabled account is refused, a held one is held. Otherwise the lookup fails. No password is sent to a server
//! that lags.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::directory::ldap::Ldap;
use crate::directory::ldap::query::{SearchRequest, SearchResult};
use crate::directory::ldap::selection::{DecisionTime, probe_if_due};
use crate::directory::ldap::server::Server;
use crate::directory::ldap::verdict;
use crate::directory::{DirectoryError, Entry, Floor, Freshness, Trace, UnavailableCause};
use crate::outcome::{AccountState, Proof};
use crate::proto::ldap::result::{NO_SUCH_OBJECT, SUCCESS};

/// Before the servers are asked again; doubled each time.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How to check whether a server has caught up with an entry.
#[derive(Clone, Copy)]
pub(crate) struct FreshnessCheck<'a> {
    pub(crate) query: &'a SearchRequest,
    pub(crate) floor: &'a dyn Floor,
}

impl Ldap {
    /// Where the name alone determines the bind DN: looks up an entry that may have changed. Returns the entry
    /// and a server that has caught up; `None` if the service account cannot see it.
    pub(crate) async fn find_before_bind(
        &self,
        check: FreshnessCheck<'_>,
        time: &mut DecisionTime,
        trace: &mut Trace,
    ) -> Result<Option<(Entry, Arc<Server>)>, DirectoryError> {
        let started = Instant::now();
        let (found, server) = self.ask(check.query, time, trace).await?;
        let shown = match found {
            SearchResult { code: SUCCESS, entries: 1, first: Some(entry), .. } => {
                Some((verdict::require_dn(entry, Proof::Missing, trace)?, server))
            }
            // A replica may lack an entry that is new, or was just renamed.
            SearchResult { code: SUCCESS | NO_SUCH_OBJECT, entries: 0, .. } => {
                self.shown_elsewhere(check, &server, time.deadline, trace).await
            }
            SearchResult { .. } => None,
        };
        let found = match shown {
            Some(shown) => self.caught_up(check, shown, time, trace).await.map(Some),
            None => Ok(None),
        };
        trace.search = Some(started.elapsed());
        found
    }

    /// An entry that `asked` does not return, as another server returns it; `None` if the watched server does
    /// not have it.
    async fn shown_elsewhere(
        &self,
        check: FreshnessCheck<'_>,
        asked: &Arc<Server>,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Option<(Entry, Arc<Server>)> {
        let followed = check.floor.followed();
        for server in self.followed_first(followed.as_ref()) {
            let is_followed = followed.as_ref() == Some(&server.url);
            let is_asked = Arc::ptr_eq(&server, asked);
            if !is_asked
                && server.enter()
                && let Some(found) = self.shown_by(&server, check.query, deadline, trace).await
            {
                match verdict::single_entry(found, trace) {
                    Ok(entry) => return Some((entry, server)),
                    Err(_) if is_followed => return None,
                    Err(_) => {}
                }
            }
            if is_asked && is_followed {
                return None;
            }
        }
        None
    }

    /// All servers, the watched one first.
    fn followed_first(&self, followed: Option<&Arc<str>>) -> impl Iterator<Item = Arc<Server>> + use<> {
        let servers = self.servers().into_iter();
        let (first, others): (Vec<_>, Vec<_>) = servers.partition(|server| followed == Some(&server.url));
        first.into_iter().chain(others)
    }

    /// The entry as returned by a server that has caught up, and that server; `entry` is the version that
    /// `server` has just returned.
    pub(crate) async fn caught_up(
        &self,
        check: FreshnessCheck<'_>,
        (entry, server): (Entry, Arc<Server>),
        time: &DecisionTime,
        trace: &mut Trace,
    ) -> Result<(Entry, Arc<Server>), DirectoryError> {
        let mut newest = match check.floor.freshness(&entry, &server.url) {
            Freshness::CaughtUp => return Ok((entry, server)),
            newest @ (Freshness::Behind(_) | Freshness::Hidden(_) | Freshness::Deleted) => newest,
        };
        debug!(directory = server.endpoint.shown, server = %server.url, "directory server lags behind a change; trying other servers");
        let mut pause = PAUSE;
        loop {
            let followed = check.floor.followed();
            let is_followed = |server: &Arc<Server>| followed.as_ref() == Some(&server.url);
            for server in self.followed_first(followed.as_ref()) {
                if !server.enter() {
                    // It is needed as soon as it recovers.
                    probe_if_due(&server, false, true);
                    continue;
                }
                let Some(found) = self.shown_by(&server, check.query, time.deadline, trace).await else { continue };
                match verdict::single_entry(found, trace) {
                    Ok(entry) => match check.floor.freshness(&entry, &server.url) {
                        Freshness::CaughtUp => return Ok((entry, server)),
                        newer @ (Freshness::Behind(_) | Freshness::Hidden(_) | Freshness::Deleted) => newest = newer,
                    },
                    // A replica may lack an entry that was just renamed.
                    Err(error) if is_followed(&server) => return Err(error),
                    Err(_) => {}
                }
            }
            refusal(&newest).map_or(Ok(()), Err)?;
            // The rest of the time must suffice for a bind.
            if Instant::now() + pause + server.endpoint.patience > time.deadline {
                return Err(not_caught_up(newest, &server.url));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether a server has caught up with the entry of this request.
    pub(crate) async fn has_caught_up(
        &self,
        server: &Arc<Server>,
        FreshnessCheck { query, floor }: FreshnessCheck<'_>,
        deadline: Instant,
        trace: &mut Trace,
    ) -> bool {
        let Some(found) = self.shown_by(server, query, deadline, trace).await else { return false };
        let entry = verdict::single_entry(found, trace);
        entry.is_ok_and(|entry| matches!(floor.freshness(&entry, &server.url), Freshness::CaughtUp))
    }

    /// The usable result of one server. A failure is recorded in its health.
    async fn shown_by(
        &self,
        server: &Arc<Server>,
        query: &SearchRequest,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Option<SearchResult> {
        let found = server.service.search(query, deadline, trace).await.ok()?;
        server.service.confirm(&found, deadline).await.ok()?;
        Some(found)
    }
}

/// The refusal that follows from the newest version, whichever server has it.
fn refusal(newest: &Freshness) -> Option<DirectoryError> {
    match newest {
        Freshness::Deleted => Some(DirectoryError::NoEntry),
        Freshness::Behind(entry) | Freshness::Hidden(entry) if entry.version.disabled => {
            Some(DirectoryError::Account { dn: entry.dn.clone(), state: AccountState::Disabled, proven: false })
        }
        Freshness::Behind(_) | Freshness::Hidden(_) | Freshness::CaughtUp => None,
    }
}

/// The result when no server has caught up.
pub(crate) fn not_caught_up(newest: Freshness, server: &Arc<str>) -> DirectoryError {
    if let Some(refusal) = refusal(&newest) {
        return refusal;
    }
    let server = Arc::clone(server);
    match newest {
        Freshness::Behind(entry) | Freshness::Hidden(entry) if entry.version.held => {
            DirectoryError::Held { dn: entry.dn.clone() }
        }
        Freshness::Hidden(_) => DirectoryError::Unavailable(UnavailableCause::Hidden { server }),
        Freshness::Behind(_) | Freshness::Deleted | Freshness::CaughtUp => {
            DirectoryError::Unavailable(UnavailableCause::Behind { server })
        }
    }
}
