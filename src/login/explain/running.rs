//! What a login would meet now in the running process, without the user's password and without an effect on later logins.
//!
//! The order is that of an attempt: the cached decision, the directory, the entry, the hold, the route, the backend. A
//! password that is not cached is judged by the directory alone, so that nothing here says whether one is right.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::{Goal, Verdict};
use crate::base::clock::unix_now;
use crate::base::credential::Login;
use crate::cache::CacheRecord;
use crate::config::{self, Config, LimitRule};
use crate::directory::{Availability, DirectoryError, Entry, EntryKey, NameKind, UnavailableCause};
use crate::limits::{Forecast, Throttle};
use crate::login::authn::DecidedBy;
use crate::login::core::{LoginContext, LoginCore};
use crate::login::realms::{RealmCore, Realms};
use crate::outcome::Refusal;
use crate::tracking::{ChangeTrackers, TrackedEntry, WatchStatus};

/// How long directories may take in all: the nodes of a fleet have 5 seconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// The result of a login that begins now.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunningVerdict {
    /// The login name, as typed.
    pub login: String,
    /// The directory that has the user; absent if one is configured.
    pub directory: Option<String>,
    /// `cache`, `stale`, `directory`, or `usher` if no directory can have the name.
    pub by: String,
    /// The entry.
    pub dn: Option<String>,
    /// The values of `mail_host_attribute` in force.
    pub mail_host: Vec<String>,
    /// The backend, if there is a route.
    pub backend: Option<String>,
    /// Whether it is `routing.default`.
    pub by_default: bool,
    /// The name there.
    pub backend_login: Option<String>,
    /// The protocols that the entry may use.
    pub may_use: Vec<String>,
    /// Whether the entry matches `password_filter`; absent without a filter, or if it was not asked.
    pub may_use_password: Option<bool>,
    /// The networks that the entry permits; empty: all.
    pub networks: Vec<String>,
    /// The backend's protocols, of those that usher serves and the entry may use.
    pub protocols: Vec<ProtocolState>,
    /// Whether the backend is out of service (`usher backends drain`).
    pub drained: bool,
    /// Whether the directory holds the user.
    pub held: bool,
    /// The entry is locked after wrong passwords, now or until recently.
    pub locked: bool,
    /// `local`: a change of this user is held back here. `fleet`: at another node, and not known here.
    pub brake: Option<String>,
    /// Time since a bind last verified a password of this user, if that is cached.
    pub cached_seconds: Option<u64>,
    /// Remaining time in which such a login asks no directory (`cache.ttl`).
    pub left_seconds: Option<u64>,
    /// Remaining time in which it would succeed without a directory (`cache.stale`).
    pub stale_left_seconds: Option<u64>,
    /// The directory's servers: `available`, `recovering` or `unreachable`.
    pub servers: String,
    /// Change notification: `off`, `lost` or `following`.
    pub watch: String,
    /// The number of the user's sessions.
    pub sessions: usize,
    /// What usher's own limits on wrong passwords and sessions do with a login of this user now; absent if nothing.
    #[serde(default)]
    pub limited: Option<String>,
    /// What a client would read; absent if it is routed.
    #[serde(default)]
    pub reply: Option<String>,
    /// `routed`, or the reason of refusal as in the log and the metrics.
    pub result: String,
    /// The same in words.
    pub explanation: String,
}

/// A protocol at the backend.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProtocolState {
    /// Its name.
    pub protocol: String,
    /// Whether an address is in use.
    pub up: bool,
    /// Why not; quotes the server, so escape it where it is shown.
    pub reason: Option<String>,
}

impl RunningVerdict {
    /// Whether a login would reach its backend.
    #[must_use]
    pub(crate) fn is_routed(&self) -> bool {
        self.result == "routed"
    }

    /// Takes over a refusal.
    pub(crate) fn refuse(&mut self, refusal: &Refusal, words: impl Into<String>) {
        refusal.label().clone_into(&mut self.result);
        self.explanation = words.into();
        // States of the account, which alone may be hidden, are known of the entry.
        self.reply = Some(refusal.reply(false).text().to_owned());
    }

    /// A limit refuses the login, whatever else is the matter.
    fn limit(&mut self, refusal: &Refusal, rule: LimitRule, words: &str) {
        let rule = rule.label();
        self.limited = Some(format!("throttle.{rule}: refused"));
        let also = if self.is_routed() { String::new() } else { format!("; besides, {}", self.explanation) };
        self.refuse(refusal, format!("throttle.{rule}: {words}{also}"));
    }

    fn note_fleet_brake(&mut self, error: &DirectoryError) {
        if matches!(error, DirectoryError::Unavailable(UnavailableCause::HeldElsewhere)) {
            self.brake = Some("fleet".to_owned());
        }
    }

    fn take(&mut self, verdict: Verdict, reveal: bool) -> Option<Goal> {
        verdict.label().clone_into(&mut self.result);
        self.reply = verdict.reply(reveal).map(|reply| reply.text().to_owned());
        let Verdict { dn, mail_hosts, held, networks, may_use, goal, words } = verdict;
        (self.dn, self.mail_host, self.held, self.explanation) = (dn, mail_hosts, held, words);
        self.networks = networks.map(|networks| networks.list()).unwrap_or_default();
        self.may_use = may_use.into_iter().map(str::to_owned).collect();
        let goal = goal.ok()?;
        (self.backend, self.by_default) = (Some(goal.backend.clone()), goal.by_default);
        self.backend_login = Some(goal.login.clone());
        Some(goal)
    }
}

/// What a login with this name would meet, from this address if one is given.
pub(crate) async fn judge(context: LoginContext<'_>, typed: &str, client: Option<IpAddr>) -> RunningVerdict {
    let core = context.in_force.core();
    let mut shown = RunningVerdict { login: typed.to_owned(), ..RunningVerdict::default() };
    DecidedBy::Usher.label().clone_into(&mut shown.by);
    let Some(name) = &Login::parse(typed.as_bytes()) else {
        shown.take(Verdict::no_login(), false);
        return shown;
    };
    name.as_str().clone_into(&mut shown.login);
    let until = Instant::now() + PATIENCE;
    let (realm, cached) = match locate(&core.realms, (name, client), until).await {
        Ok(located) => located,
        Err(error) => {
            if core.realms.is_shared(name) {
                DecidedBy::Directory.label().clone_into(&mut shown.by);
            }
            shown.note_fleet_brake(&error);
            shown.take(Verdict::of_unlocated(&error), false);
            return shown;
        }
    };
    shown.directory = realm.realm.shown(&realm.settings).map(str::to_owned);
    watch(realm, context.tracking).clone_into(&mut shown.watch);
    if let Some(cached) = &cached {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
        (shown.cached_seconds, shown.left_seconds) = (seconds(cached.age), seconds(cached.left));
        shown.stale_left_seconds = seconds(cached.stale_left);
    }
    let (found, by) = decide(realm, (name, client), cached.as_ref(), until).await;
    by.label().clone_into(&mut shown.by);
    shown.servers = match realm.directory().availability() {
        Availability::Available => "available",
        Availability::Recovering => "recovering",
        Availability::Unreachable => "unreachable",
    }
    .to_owned();
    if let Err(error) = &found {
        shown.note_fleet_brake(error);
    }
    if let (Ok(entry), Some(filter), DecidedBy::Directory) = (&found, &realm.settings.password_filter, by) {
        let matches = timeout_at(until, realm.directory().matches(&entry.dn, filter)).await;
        shown.may_use_password = matches.ok().and_then(|(matches, _)| matches.ok());
    }
    let key = found.as_ref().ok().map(|entry| entry.key());
    // As `Authenticator::attempt`: guesses of others do not lock a user out of the networks of earlier logins.
    let is_owner = cached.as_ref().is_some_and(|cached| cached.stale_left.is_some())
        && client.zip(key.as_ref()).is_some_and(|(client, key)| context.limits.is_known_network(client, key));
    let is_owner = is_owner && found.as_ref().is_ok_and(|entry| entry.version.locked);
    let shown_by = if is_owner { DecidedBy::Stale } else { by };
    shown_by.label().clone_into(&mut shown.by);
    let goal = judge_entry(&mut shown, (&core.config, &realm.settings), (found, shown_by), name, client);
    let tracked = shown.dn.as_deref().and_then(|dn| realm.authn.entries().by_dn(realm.realm, &Arc::from(dn)));
    if let Some(tracked) = tracked.filter(TrackedEntry::is_kept_by_brake) {
        let kept = tracked.entry.mail_hosts.clone();
        (shown.brake, shown.mail_host) = (Some("local".to_owned()), kept);
    }
    if let Some(goal) = goal {
        judge_backend(&mut shown, context, &core, &goal);
    }
    if let Some(key) = key {
        judge_limits(&mut shown, context.limits, (name, client), &key, by);
    }
    shown
}

/// What the limits of this user do. A network's own limits are judged only where the client's address is given.
fn judge_limits(
    shown: &mut RunningVerdict,
    limits: &Throttle,
    (name, client): (&Login, Option<IpAddr>),
    key: &EntryKey,
    by: DecidedBy,
) {
    // A cached password that is right never waits.
    let guess = (by == DecidedBy::Directory).then(|| limits.forecast_attempt(client, name, key)).flatten();
    let has_exception = || client.is_none() && limits.has_known_network(key);
    match guess {
        Some(Forecast::Waits(rule, wait)) => {
            let (rule, seconds) = (rule.label(), wait.as_secs_f64());
            shown.limited =
                Some(format!("throttle.{rule}: a login waits {seconds:.1} s before the directory is asked"));
        }
        Some(Forecast::Refused(_) | Forecast::Withheld) if has_exception() => {
            let words = "refused after wrong passwords, but not from networks with an earlier login (--from ADDRESS)";
            shown.limited = Some(format!("throttle.{}: {words}", LimitRule::FailedLoginsPerUser.label()));
        }
        Some(Forecast::Refused(rule)) => {
            let words = "after wrong passwords a login is refused for a while, unless its password is cached";
            shown.limit(&Refusal::Limit, rule, words);
        }
        Some(Forecast::Withheld) => {
            let words = "after wrong passwords under other names of this user a password is reported as wrong and not \
                         sent to the directory, unless it is cached";
            shown.limit(&Refusal::Limit, LimitRule::FailedLoginsPerUser, words);
            // A client must not learn that this is another name of a user that is known.
            shown.reply = Some(Refusal::WrongPassword.reply(false).text().to_owned());
        }
        None => {}
    }
    if shown.is_routed()
        && let Some(rule) = limits.forecast_session(client, key)
    {
        shown.limit(&Refusal::Limit, rule, "the user has as many sessions as are allowed");
    }
}

/// The state of change notification.
pub(crate) fn watch(realm: &RealmCore, trackers: &ChangeTrackers) -> &'static str {
    match trackers.of(realm.realm).status() {
        _ if !realm.settings.is_followed() => "off",
        WatchStatus::Lost => "lost",
        WatchStatus::Following => "following",
    }
}

/// The directory that decides about the name, and what is cached there. As `Realms::recall` and `Realms::attempt`.
async fn locate<'a>(
    realms: &'a Realms,
    (name, client): (&Login, Option<IpAddr>),
    until: Instant,
) -> Result<(&'a RealmCore, Option<CacheRecord>), DirectoryError> {
    let cached = |realm: &RealmCore| realm.authn.cache().of_login(name);
    if realms.is_shared(name) {
        let mut known = realms
            .all()
            .iter()
            .filter(|realm| realms.may_have(realm, name) && recalled(realm, cached(realm).as_ref(), client).is_some());
        // Cached in two, it is searched again.
        if let (Some(realm), None) = (known.next(), known.next()) {
            return Ok((realm, cached(realm)));
        }
    }
    let located = timeout_at(until, realms.locate(name)).await.unwrap_or_else(|_| Err(late()));
    let error = match located {
        Ok(realm) => return Ok((realm, cached(realm))),
        Err(error) => error,
    };
    let is_outage = matches!(error, DirectoryError::Unavailable(_));
    let mut stale = realms.all().iter().filter(|realm| {
        is_outage
            && realm.directory().availability() != Availability::Available
            && realms.may_have(realm, name)
            && usable(cached(realm).as_ref(), |cached| cached.stale_left, client).is_some()
    });
    stale.next().map(|realm| (realm, cached(realm))).ok_or(error)
}

fn late() -> DirectoryError {
    DirectoryError::Unavailable(UnavailableCause::Timeout)
}

/// The cached entry, if a login from there would use it without a lookup.
fn usable(
    cached: Option<&CacheRecord>,
    left: impl Fn(&CacheRecord) -> Option<Duration>,
    client: Option<IpAddr>,
) -> Option<Arc<Entry>> {
    let cached = cached.filter(|cached| left(cached).is_some())?;
    let entry = cached.entry.as_ref()?;
    let is_open = entry.version.account_state(unix_now()).is_none();
    (is_open && client.is_none_or(|client| entry.permits(client))).then(|| Arc::clone(entry))
}

/// The cached entry that answers without a lookup.
fn recalled(
    realm: &RealmCore,
    cached: Option<&CacheRecord>,
    client: Option<IpAddr>,
) -> Option<(Arc<Entry>, DecidedBy)> {
    if let Some(entry) = usable(cached, |cached| cached.left, client) {
        return Some((entry, DecidedBy::Cache));
    }
    let is_unreachable = realm.directory().availability() == Availability::Unreachable;
    let stale = || usable(cached, |cached| cached.stale_left, client);
    is_unreachable.then(stale).flatten().map(|entry| (entry, DecidedBy::Stale))
}

/// The entry, and what a login would have it from. As `Authenticator::recall` and `Authenticator::decide`.
async fn decide(
    realm: &RealmCore,
    (name, client): (&Login, Option<IpAddr>),
    cached: Option<&CacheRecord>,
    until: Instant,
) -> (Result<Arc<Entry>, DirectoryError>, DecidedBy) {
    if let Some((entry, by)) = recalled(realm, cached, client) {
        return (Ok(entry), by);
    }
    let directory = realm.directory();
    let asked = async {
        let (found, trace) = directory.find(name, NameKind::Login).await;
        found.and_then(|entry| realm.authn.entries().in_force(entry, trace.server.as_ref()))
    };
    let found = timeout_at(until, asked).await.unwrap_or_else(|_| Err(late()));
    if matches!(found, Err(DirectoryError::Unavailable(_)))
        && let Some(entry) = usable(cached, |cached| cached.stale_left, client)
    {
        let settled = timeout_at(until, directory.settled_availability()).await;
        if settled.unwrap_or_else(|_| directory.availability()) != Availability::Available {
            return (Ok(entry), DecidedBy::Stale);
        }
    }
    (found, DecidedBy::Directory)
}

/// What the entry says; returns where it leads.
fn judge_entry(
    shown: &mut RunningVerdict,
    (config, directory): (&Config, &config::Directory),
    (found, by): (Result<Arc<Entry>, DirectoryError>, DecidedBy),
    name: &Login,
    client: Option<IpAddr>,
) -> Option<Goal> {
    let version = found.as_ref().ok().map(|entry| entry.version.clone()).unwrap_or_default();
    let found = found.map(|entry| Entry::clone(&entry));
    let verdict = Verdict::of(config, directory, found, name);
    let verdict = match client {
        Some(client) => verdict.for_client(client),
        None => verdict,
    };
    let goal = shown.take(verdict.for_account(&version, by == DecidedBy::Directory), directory.reveal_account_state);
    shown.locked = version.locked;
    let goal = goal?;
    if shown.may_use_password == Some(false) {
        shown.explanation.push_str("; with a password it is refused: the entry does not match password_filter");
    }
    match by {
        DecidedBy::Cache => shown.explanation.push_str(", with a cached password without a request to the directory"),
        DecidedBy::Stale if version.locked => {
            shown.explanation.push_str(", with a cached password only: wrong passwords have locked the entry");
        }
        DecidedBy::Stale => {
            shown.explanation.push_str(", with a cached password only: the directory is not available");
        }
        DecidedBy::Directory | DecidedBy::Negative | DecidedBy::Impersonation | DecidedBy::Usher => {}
    }
    Some(goal)
}

fn judge_backend(shown: &mut RunningVerdict, context: LoginContext<'_>, core: &LoginCore, goal: &Goal) {
    let Some(backend) = core.backends.get(&goal.backend) else { return };
    let config = &core.config;
    let is_served = |protocol: &str| {
        config.auth_http.is_some() || config.listeners.iter().any(|listener| listener.protocol.name == protocol)
    };
    let status = backend.status();
    let mut protocols = status.protocols;
    protocols.retain(|state| is_served(&state.protocol) && shown.may_use.iter().any(|name| *name == *state.protocol));
    shown.protocols = protocols
        .into_iter()
        .map(|state| {
            let refusing = state.refusing.map(|refusing| format!("it accepts no login ({})", refusing.reason));
            let up = state.up && refusing.is_none();
            let reason = state.addresses.into_iter().find_map(|address| address.reason).or(state.unresolved);
            let reason = reason.or(refusing).filter(|_| !up);
            ProtocolState { protocol: state.protocol.into_owned(), up, reason }
        })
        .collect();
    let name = &goal.backend;
    if context.maintenance.drained(name).is_some() {
        shown.drained = true;
        shown.refuse(
            &Refusal::BackendDraining,
            format!("{name} is out of service until `usher backends undrain {name}`"),
        );
        return;
    }
    if shown.protocols.is_empty() {
        let words = format!("{name} serves no protocol that the entry may use and usher listens for");
        shown.refuse(&Refusal::ProtocolNotServed, words);
        return;
    }
    let down = shown.protocols.iter().filter(|state| !state.up).map(|state| {
        let reason = state.reason.as_deref().unwrap_or("no address");
        format!("{} at {name} is down: {reason}", state.protocol)
    });
    let down = down.collect::<Vec<_>>().join("; ");
    if !down.is_empty() {
        shown.refuse(&Refusal::BackendUnreachable, down);
    }
}
