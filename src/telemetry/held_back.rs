//! Users and networks that are kept out for a time, and since when: users on hold or locked by the directory, users and networks whose attempts
//! a limit holds back. Listed for administrators; the log has a line at each beginning and end.
//!
//! Bounded, because most of it is caused from outside: entries, lines per minute (the rest is counted in one line). A limit has no
//! end of its own: it is over when nothing was held back for a minute.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::info;

use crate::base::clock::unix_now;
use crate::config::LimitRule;
use crate::telemetry::client_address::ListedClient;
use crate::telemetry::log::Bounded;

/// The most that are remembered.
const MOST: usize = 1_024;
/// The most that are listed.
const LISTED: usize = 30;
/// Beginnings that are logged one by one in [`WINDOW`]; of each reason.
const LINES: u32 = 20;
/// The time that one line about the rest covers.
const WINDOW: Duration = Duration::from_secs(60);
/// How long a limit counts as holding back after the last attempt.
const LIMIT_LASTS: Duration = Duration::from_secs(60);
/// The longest text of a name that is remembered.
const LONGEST: usize = 256;

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// `hold_attribute` of the entry.
    Hold,
    /// The directory, after wrong passwords.
    Locked,
    /// A limit.
    Limit(LimitRule),
}

impl Reason {
    fn label(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Locked => "locked",
            Self::Limit(rule) => rule.label(),
        }
    }
}

/// Who.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who<'a> {
    /// A user: the DN, or the login name for a limit.
    User(&'a str),
    /// A network.
    Network(ListedClient),
    /// Names that have led to no entry, all in one.
    UnknownNames,
}

/// What is known of a beginning.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Beginning<'a> {
    /// The directory's name, where there are several.
    pub directory: Option<&'static str>,
    /// The last modifier of the entry, and when.
    pub modified: (Option<&'a str>, Option<&'a str>),
    /// It is over if it is not reported again for this time; `None`: when it is reported.
    pub lasts: Option<Duration>,
}

impl Beginning<'_> {
    /// A limit has held back an attempt.
    #[must_use]
    pub(crate) const fn of_limit() -> Self {
        Self { directory: None, modified: (None, None), lasts: Some(LIMIT_LASTS) }
    }
}

/// One, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldBack {
    /// `hold`, `locked`, or the limit.
    pub reason: String,
    /// The directory, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The user's DN, or the login name for a limit; absent for a network, and for names without an entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<ListedClient>,
    /// The last modifier of the entry, with `hold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it began, Unix seconds.
    pub since: u64,
    /// When it ends unless it is seen again, Unix seconds; absent where only the directory knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// How often it was seen.
    pub seen: u64,
}

/// Some of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldBackList {
    /// The oldest ones.
    pub listed: Vec<HeldBack>,
    /// How many more there are.
    pub more: usize,
}

impl HeldBackList {
    /// Both: neither takes the other's place.
    #[must_use]
    pub(crate) fn with(mut self, other: Self) -> Self {
        self.listed.extend(other.listed);
        self.more += other.more;
        self
    }
}

/// The reason, the directory and the name.
type Key = (Reason, Option<&'static str>, Box<str>);

#[derive(Debug)]
struct Episode {
    shown: HeldBack,
    began: Instant,
    /// When it was last seen, and how long that counts.
    seen: Instant,
    lasts: Option<Duration>,
    /// The refresh of the directory that has last reported it.
    round: u64,
    is_logged: bool,
}

/// What is logged of a reason in one window.
#[derive(Debug)]
struct Lines {
    since: Instant,
    written: u32,
    begun: u64,
    ended: u64,
    not_listed: u64,
}

#[derive(Debug, Default)]
struct Inner {
    episodes: HashMap<Key, Episode>,
    lines: HashMap<Reason, Lines>,
    /// How often each directory has reported all of its entries.
    rounds: HashMap<Option<&'static str>, u64>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct HeldBackUsers {
    inner: Mutex<Inner>,
    count: AtomicUsize,
}

impl HeldBackUsers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is nothing: asked by every login.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// It begins, or goes on.
    pub(crate) fn begin(&self, reason: Reason, who: Who<'_>, with: Beginning<'_>) {
        let now = Instant::now();
        let mut inner = self.lock();
        let (key, round) = (key(reason, who, with.directory), inner.round(with.directory));
        if let Some(episode) = inner.episodes.get_mut(&key) {
            (episode.seen, episode.round, episode.lasts) = (now, round, with.lasts);
            episode.shown.seen += 1;
            return;
        }
        let lines = inner.lines(reason, now);
        lines.begun += 1;
        let is_logged = lines.written < LINES;
        lines.written += u32::from(is_logged);
        // What is over is removed by the next sweep, not by each of many attempts.
        let is_listed = inner.episodes.len() < MOST;
        let is_logged = is_logged && is_listed;
        let lines = inner.lines(reason, now);
        lines.begun -= u64::from(is_logged);
        lines.not_listed += u64::from(!is_listed);
        if is_listed {
            let (user, network) = match who {
                Who::User(name) => (Some(cut(name).to_owned()), None),
                Who::Network(network) => (None, Some(network)),
                Who::UnknownNames => (None, None),
            };
            let shown = HeldBack {
                reason: reason.label().to_owned(),
                directory: with.directory.map(str::to_owned),
                user,
                network,
                by: with.modified.0.map(|by| cut(by).to_owned()),
                since: unix_now(),
                until: None,
                seen: 1,
            };
            if is_logged {
                log_begin(reason, &shown, with.modified.1);
            }
            let episode = Episode { shown, began: now, seen: now, lasts: with.lasts, round, is_logged };
            inner.episodes.insert(key, episode);
        }
        self.count.store(inner.episodes.len(), Ordering::Relaxed);
    }

    /// As [`begin`](Self::begin), but one that has an end of its own keeps it.
    pub(crate) fn begin_unless_open(&self, reason: Reason, who: Who<'_>, with: Beginning<'_>) {
        if let Some(episode) = self.lock().episodes.get_mut(&key(reason, who, with.directory))
            && episode.lasts.is_none()
        {
            episode.shown.seen += 1;
            return;
        }
        self.begin(reason, who, with);
    }

    /// It has ended, as far as it had begun.
    pub(crate) fn end(&self, reason: Reason, who: Who<'_>, with: Beginning<'_>) {
        if self.is_empty() {
            return;
        }
        let mut inner = self.lock();
        if let Some(episode) = inner.episodes.remove(&key(reason, who, with.directory)) {
            inner.ended(reason, &episode, with.modified.0);
        }
        self.count.store(inner.episodes.len(), Ordering::Relaxed);
    }

    /// The holds of a directory end after this time from now on, unless they are seen again; `None`: when it says so.
    pub(crate) fn let_holds_expire(&self, directory: Option<&'static str>, lasts: Option<Duration>) {
        let now = Instant::now();
        for ((reason, of, _), episode) in &mut self.lock().episodes {
            if *reason == Reason::Hold && *of == directory {
                (episode.lasts, episode.seen) = (lasts, now);
            }
        }
    }

    /// A directory reports all of its entries from now on.
    pub(crate) fn begin_refresh(&self, directory: Option<&'static str>) {
        *self.lock().rounds.entry(directory).or_default() += 1;
    }

    /// It has: holds in it that were not reported have ended.
    pub(crate) fn end_refresh(&self, directory: Option<&'static str>) {
        let mut inner = self.lock();
        let round = inner.round(directory);
        inner.end_where(|(reason, of, _), episode| {
            *reason == Reason::Hold && *of == directory && episode.lasts.is_none() && episode.round != round
        });
        self.count.store(inner.episodes.len(), Ordering::Relaxed);
    }

    /// Ends what was not seen again, and logs how many had no line of their own. To be called often.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.expire(now);
        let over: Vec<_> =
            inner.lines.extract_if(|_, lines| now.saturating_duration_since(lines.since) >= WINDOW).collect();
        for (reason, Lines { begun, ended, not_listed, .. }) in over {
            if begun + ended + not_listed > 0 {
                info!(
                    reason = reason.label(),
                    begun, ended, not_listed, "more users or networks are held back, or no longer"
                );
            }
        }
        self.count.store(inner.episodes.len(), Ordering::Relaxed);
    }

    /// The oldest of them.
    #[must_use]
    pub(crate) fn list(&self) -> HeldBackList {
        let (now, inner) = (Instant::now(), self.lock());
        let mut listed: Vec<_> = inner.episodes.values().map(|episode| episode.listed(now)).collect();
        drop(inner);
        listed.sort_by(|one, other| (one.since, &one.user).cmp(&(other.since, &other.user)));
        let more = listed.len().saturating_sub(LISTED);
        listed.truncate(LISTED);
        HeldBackList { listed, more }
    }

    /// How many users are held, and locked, and how many users and networks a limit holds back.
    #[must_use]
    pub(crate) fn counts(&self) -> [usize; 3] {
        let inner = self.lock();
        let count = |is: fn(&Reason) -> bool| inner.episodes.keys().filter(|(reason, ..)| is(reason)).count();
        [
            count(|reason| *reason == Reason::Hold),
            count(|reason| *reason == Reason::Locked),
            count(|reason| matches!(reason, Reason::Limit(_))),
        ]
    }
}

impl Inner {
    fn round(&self, directory: Option<&'static str>) -> u64 {
        self.rounds.get(&directory).copied().unwrap_or_default()
    }

    fn lines(&mut self, reason: Reason, now: Instant) -> &mut Lines {
        let fresh = || Lines { since: now, written: 0, begun: 0, ended: 0, not_listed: 0 };
        self.lines.entry(reason).or_insert_with(fresh)
    }

    fn ended(&mut self, reason: Reason, episode: &Episode, by: Option<&str>) {
        if episode.is_logged {
            log_end(reason, &episode.shown, episode.began.elapsed(), by);
        } else {
            self.lines(reason, Instant::now()).ended += 1;
        }
    }

    fn end_where(&mut self, is_over: impl Fn(&Key, &Episode) -> bool) {
        let over: Vec<_> = self.episodes.extract_if(|key, episode| is_over(key, episode)).collect();
        for ((reason, ..), episode) in over {
            self.ended(reason, &episode, None);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.end_where(|_, episode| {
            episode.lasts.is_some_and(|lasts| now.saturating_duration_since(episode.seen) >= lasts)
        });
    }
}

impl Episode {
    fn listed(&self, now: Instant) -> HeldBack {
        let left = self.lasts.map(|lasts| lasts.saturating_sub(now.saturating_duration_since(self.seen)));
        HeldBack { until: left.map(|left| unix_now() + left.as_secs()), ..self.shown.clone() }
    }
}

fn key(reason: Reason, who: Who<'_>, directory: Option<&'static str>) -> Key {
    let name = match who {
        Who::User(name) => cut(name.trim()).to_lowercase(),
        // Whole, whatever is shown of it.
        Who::Network(network) => format!("[{:?}]", network.network()),
        Who::UnknownNames => String::new(),
    };
    (reason, directory, name.into())
}

/// At most [`LONGEST`] bytes of a name.
fn cut(name: &str) -> &str {
    let end = (0..=LONGEST.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name.get(..end.unwrap_or_default()).unwrap_or_default()
}

fn log_begin(reason: Reason, shown: &HeldBack, modified: Option<&str>) {
    let HeldBack { directory, user, network, by, .. } = shown;
    let directory = directory.as_deref();
    let user = user.as_deref().map(|user| tracing::field::display(Bounded(user.as_bytes())));
    let modified_by = by.as_deref().map(|by| tracing::field::display(Bounded(by.as_bytes())));
    let modified = modified.map(|at| tracing::field::display(Bounded(at.as_bytes())));
    match reason {
        Reason::Hold => info!(directory, dn = user, modified_by, modified, "user is held by the directory"),
        Reason::Locked => info!(directory, dn = user, "account is locked by the directory"),
        Reason::Limit(rule) => {
            let unknown_names = (user.is_none() && network.is_none()).then_some(true);
            let network = network.map(tracing::field::display);
            info!(rule = rule.label(), user, network, unknown_names, "logins are held back by a limit");
        }
    }
}

fn log_end(reason: Reason, shown: &HeldBack, lasted: Duration, by: Option<&str>) {
    let HeldBack { directory, user, network, seen, .. } = shown;
    let (directory, lasted_s) = (directory.as_deref(), lasted.as_secs());
    let user = user.as_deref().map(|user| tracing::field::display(Bounded(user.as_bytes())));
    match reason {
        Reason::Hold => {
            let modified_by = by.map(|by| tracing::field::display(Bounded(by.as_bytes())));
            info!(directory, dn = user, modified_by, lasted_s, "user is no longer held by the directory");
        }
        Reason::Locked => info!(directory, dn = user, lasted_s, "account is no longer locked by the directory"),
        Reason::Limit(rule) => {
            let unknown_names = (user.is_none() && network.is_none()).then_some(true);
            let network = network.map(tracing::field::display);
            let attempts = *seen;
            info!(
                rule = rule.label(),
                user, network, unknown_names, lasted_s, attempts, "logins are no longer held back by a limit"
            );
        }
    }
}
