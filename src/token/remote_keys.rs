//! The keys of an issuer that are fetched: before they are needed, again from time to time, and at once for a key that
//! is not known, at most once a minute. What was fetched stays in use while the issuer cannot be reached.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::fetch::{Client, FetchError};
use super::keys::{KeySet, LARGEST_SET};
use super::strict;
use crate::base::labels::labels;
use crate::base::tasks::{self, Task};
use crate::config::{HttpUrl, KeySource};
use crate::telemetry::log::{Bounded, Repeats};
use crate::telemetry::metrics::Metrics;

/// How old keys become before they are fetched again: a key that its issuer has withdrawn counts so much longer.
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// The pause after a failure, doubled with each one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause while there are no keys at all, and no token can be verified.
const LONGEST_PAUSE_WITHOUT: Duration = Duration::from_secs(5);
/// The longest pause while there are keys.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often at most keys are fetched because a token names one that is not known, whatever else was fetched: the
/// first token after a rotation is verified at once, and names that are made up cost a request a minute.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(60);
/// The time of one fetch, discovery included.
const FETCH_TIME: Duration = Duration::from_secs(5);
/// The most of another issuer's name that is shown.
const SHOWN: usize = 200;

labels! {
    /// What became of a fetch for an unknown key.
    pub(super) enum Refreshed {
        /// The keys are new.
        Fetched => "fetched",
        /// The same by a fetch that had begun before, perhaps before the issuer had the key.
        Joined => "joined",
        /// They were fetched for an unknown key less than a minute ago.
        Recent => "recent",
        /// The issuer does not answer.
        Failed => "failed",
    }
}

/// The keys, and when they are fetched again: kept over a reload.
#[derive(Debug)]
pub(super) struct KeyState {
    keys: ArcSwapOption<KeySet>,
    schedule: Mutex<Schedule>,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
    repeats: Repeats,
}

#[derive(Debug)]
struct Schedule {
    due: Instant,
    fetching: bool,
    failures: u32,
    begun: Option<Instant>,
    /// When the last fetch for an unknown key has begun.
    refreshed: Option<Instant>,
}

impl Default for KeyState {
    fn default() -> Self {
        let schedule = Schedule { due: Instant::now(), fetching: false, failures: 0, begun: None, refreshed: None };
        Self {
            keys: ArcSwapOption::empty(),
            schedule: Mutex::new(schedule),
            ended: watch::Sender::new(0),
            repeats: Repeats::default(),
        }
    }
}

/// Where the keys are, and how to get there.
#[derive(Debug)]
pub(super) struct RemoteKeys {
    /// The exact value of `iss`.
    pub(super) issuer: String,
    /// Where the keys are; never a file.
    pub(super) source: KeySource,
    /// How to get there.
    pub(super) client: Client,
    /// The keys.
    pub(super) state: Arc<KeyState>,
}

impl KeyState {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        // Whole at every moment: fields are set one by one.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys, if they were ever fetched.
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    /// Changes with each fetch that has ended.
    #[cfg(test)]
    pub(super) fn ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// Whether the last fetch that has ended failed.
    pub(super) fn has_failed(&self) -> bool {
        self.schedule().failures > 0
    }
}

impl RemoteKeys {
    /// Starts a fetch if one is due.
    pub(super) fn run_due(self: &Arc<Self>, metrics: &Arc<Metrics>) {
        let now = Instant::now();
        if self.state.schedule().due <= now {
            self.begin(metrics, now);
        }
    }

    /// Starts a fetch unless one is running. It is its own task: a client that leaves aborts no other login.
    fn begin(self: &Arc<Self>, metrics: &Arc<Metrics>, now: Instant) {
        let mut schedule = self.state.schedule();
        if schedule.fetching {
            return;
        }
        (schedule.fetching, schedule.begun) = (true, Some(now));
        drop(schedule);
        let (remote, metrics) = (Arc::clone(self), Arc::clone(metrics));
        tokio::spawn(async move {
            let fetched = tasks::once(Task::TokenKeys, &metrics.task_restarts, remote.fetch_in_time()).await;
            remote.end(fetched.unwrap_or_else(|| Err(FetchError::Content("panicked".to_owned()))));
        });
    }

    fn end(&self, fetched: Result<KeySet, FetchError>) {
        let now = Instant::now();
        let Self { issuer, state, .. } = self;
        let had_keys = state.keys.load().is_some();
        let mut schedule = state.schedule();
        schedule.fetching = false;
        match fetched {
            Ok(keys) => {
                let is_news = !had_keys || schedule.failures > 0;
                (schedule.failures, schedule.due) = (0, now + REFRESH);
                drop(schedule);
                let (usable, skipped) = (keys.len(), keys.skipped.len());
                for reason in &keys.skipped {
                    debug!(issuer, reason = reason.label(), "key of a token issuer is not used");
                }
                state.keys.store(Some(Arc::new(keys)));
                if is_news {
                    info!(issuer, usable, skipped, "keys of token issuer fetched");
                }
            }
            Err(error) => {
                let longest = if had_keys { LONGEST_PAUSE } else { LONGEST_PAUSE_WITHOUT };
                let pause = FIRST_PAUSE.saturating_mul(1 << schedule.failures.min(16)).min(longest);
                (schedule.failures, schedule.due) = (schedule.failures.saturating_add(1), now + pause);
                drop(schedule);
                if let Some(suppressed) = state.repeats.allow("fetch", issuer) {
                    let reason = error.to_string();
                    let reason = Bounded(reason.as_bytes());
                    if had_keys {
                        warn!(issuer, %reason, suppressed, "keys of token issuer cannot be fetched; the last ones stay in use");
                    } else {
                        warn!(issuer, %reason, suppressed, "keys of token issuer cannot be fetched; its tokens are not accepted");
                    }
                }
            }
        }
        state.ended.send_modify(|ended| *ended += 1);
    }

    /// The keys, once a fetch in progress has ended; `None`: there are none.
    pub(super) async fn first_keys(self: &Arc<Self>, until: Instant) -> Option<Arc<KeySet>> {
        let mut ended = self.state.ended.subscribe();
        if let Some(keys) = self.state.keys() {
            return Some(keys);
        }
        // Before the first fetch has been started, or while it runs.
        let is_awaited = {
            let schedule = self.state.schedule();
            schedule.fetching || schedule.begun.is_none()
        };
        if is_awaited {
            let _ = timeout_at(until, ended.changed()).await;
        }
        self.state.keys()
    }

    /// Fetches the keys because one is not known, unless that was tried within a minute. A fetch that is running is
    /// joined.
    pub(super) async fn refresh(self: &Arc<Self>, metrics: &Arc<Metrics>, until: Instant) -> Refreshed {
        let mut ended = self.state.ended.subscribe();
        let now = Instant::now();
        let is_joined = {
            let mut schedule = self.state.schedule();
            let since = |last| now.saturating_duration_since(last);
            if !schedule.fetching {
                if schedule.refreshed.is_some_and(|last| since(last) < UNKNOWN_INTERVAL) {
                    return if schedule.failures > 0 { Refreshed::Failed } else { Refreshed::Recent };
                }
                schedule.refreshed = Some(now);
            }
            schedule.fetching
        };
        self.begin(metrics, now);
        if timeout_at(until, ended.changed()).await.is_err() || self.state.has_failed() {
            return Refreshed::Failed;
        }
        if is_joined { Refreshed::Joined } else { Refreshed::Fetched }
    }

    /// Fetches the keys within the time for it.
    pub(super) async fn fetch_in_time(&self) -> Result<KeySet, FetchError> {
        timeout(FETCH_TIME, self.fetch()).await.unwrap_or(Err(FetchError::Timeout))
    }

    /// Fetches the keys.
    pub(super) async fn fetch(&self) -> Result<KeySet, FetchError> {
        let discovered;
        let url = match &self.source {
            KeySource::Url(url) => url,
            KeySource::Discovery(url) => {
                discovered = self.discover(url).await?;
                &discovered
            }
            // Files are read with the configuration.
            KeySource::File(_) => return Err(FetchError::Content("in a file".to_owned())),
        };
        let text = self.client.get(url, LARGEST_SET).await?;
        KeySet::parse(&text).map_err(|error| FetchError::Content(error.to_string()))
    }

    /// The URL of the keys (OpenID Connect Discovery 1.0 section 4, RFC 8414 section 3).
    async fn discover(&self, document: &HttpUrl) -> Result<HttpUrl, FetchError> {
        let content = |text: &str| FetchError::Content(format!("the discovery document {text}"));
        let text = self.client.get(document, LARGEST_SET).await?;
        let found = strict::object(&text).ok_or_else(|| content("is no JSON object, or has a name twice"))?;
        let text = |name: &str| found.get(name).and_then(serde_json::Value::as_str);
        // Section 4.3: identical. Otherwise the keys may be those of whoever answers there.
        let issuer = text("issuer").ok_or_else(|| content("has no `issuer`"))?;
        if issuer != self.issuer {
            let shown: String = issuer.chars().take(SHOWN).collect();
            return Err(FetchError::AnotherIssuer(shown));
        }
        let keys = text("jwks_uri").ok_or_else(|| content("has no `jwks_uri`"))?;
        let keys =
            HttpUrl::parse(keys).map_err(|error| content(&format!("has a `jwks_uri` that is not used: {error}")))?;
        if document.encrypted && !keys.encrypted {
            return Err(content("has a `jwks_uri` without TLS"));
        }
        Ok(keys)
    }
}
