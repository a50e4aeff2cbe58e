//! Rate limits: slow down password guessing, and bound the share of one network, one user and one second.
//!
//! It counts and decides; it neither waits nor uses sockets. All protocols share it, and it outlives a reload:
//! the limits are passed with each call, from the caller's snapshot. A client's address is that of its session,
//! so that a forwarded one counts where forwarding is trusted. Names, DNs, prefixes and passwords are stored as
//! keyed hashes only, under keys that exist in this process only.
//!
//! **Wrong passwords.** Only an attempt that requires a directory lookup is a guess: a correct cached password
//! never waits, and neither does a known wrong one. A guess is charged to its prefix and its user on arrival,
//! not on failure, so that a thousand concurrent guesses are no faster than sequential ones; whatever is not a
//! wrong password is refunded. It waits for the delay of its spelling; the entry, once it is found, decides
//! whether it is bound at all (`gate`). A user at a prefix known from an earlier login has a separate account
//! there: only failures for this user at this prefix delay it.

mod gate;
mod permits;
mod store;

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::time::Instant;
use tracing::warn;

use crate::base::credential::{Credential, Login};
use crate::base::labels::Label as _;
use crate::base::net;
use crate::config::{self, FailedLogins, Limit, LimitRule, Mode};
use crate::directory::{EntryKey, EntryName};
use crate::telemetry::labels::{ThrottleEffect, ThrottleRecord};
use crate::telemetry::log::Repeats;
use crate::telemetry::metrics::Metrics;
use gate::AttemptOrigin;
pub(crate) use gate::BindGate;
use permits::{CountGuard, HeldCounts};
use store::LimitMemory;

/// A hash of a prefix, a name, an entry or a pair of them.
type HashedKey = u64;

/// A limit refuses the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("throttle.{}: limit reached", .0.label())]
pub(crate) struct Limited(pub LimitRule);

/// The rate limits of the process.
pub(crate) struct Throttle {
    metrics: Arc<Metrics>,
    memory: ArcSwap<LimitMemory>,
    connections: Arc<HeldCounts>,
    unauthenticated: Arc<HeldCounts>,
    handshakes: Arc<HeldCounts>,
    sessions: Arc<HeldCounts>,
    sessions_by_prefix: Arc<HeldCounts>,
    /// When the next login is due at an even pace.
    pace: Mutex<Option<Instant>>,
    keys: RandomState,
    repeats: Repeats,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").field("memory", self.memory.load().settings()).finish_non_exhaustive()
    }
}

impl Throttle {
    /// Starts without any record.
    #[must_use]
    pub(crate) fn new(settings: &config::Throttle, metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            memory: ArcSwap::from_pointee(LimitMemory::new(&settings.memory)),
            connections: Arc::default(),
            unauthenticated: Arc::default(),
            handshakes: Arc::default(),
            sessions: Arc::default(),
            sessions_by_prefix: Arc::default(),
            pace: Mutex::default(),
            keys: RandomState::new(),
            repeats: Repeats::default(),
        }
    }

    /// Applies a new config. Records are kept unless their own limits have changed.
    pub(crate) fn apply(&self, settings: &config::Throttle) {
        if *self.memory.load().settings() != settings.memory {
            self.memory.store(Arc::new(LimitMemory::new(&settings.memory)));
        }
    }

    /// Sets the gauges of the records.
    pub(crate) fn measure(&self) {
        for (record, entries) in ThrottleRecord::ALL.iter().zip(self.memory.load().entries()) {
            let entries = i64::try_from(entries).unwrap_or(i64::MAX);
            self.metrics.throttle_entries.of(*record).set(entries);
        }
    }

    /// Counts a connection without a login of its own: an nginx auth request.
    ///
    /// # Errors
    /// Its prefix has too many.
    pub(crate) fn connection(&self, settings: &config::Throttle, client: IpAddr) -> Result<ConnectionPermit, Limited> {
        let held = self.connections.hold(self.prefix(settings, client));
        if !exempt(settings, client) {
            self.within(LimitRule::ConnectionsPerPrefix, settings.connections_per_prefix, held.count, client)?;
        }
        Ok(ConnectionPermit { _held: held, unauthenticated: None })
    }

    /// Counts a connection of a client that is not logged in. `crowded`: most slots for such connections are
    /// taken, and one prefix may have this many of them; the limit is enforced then whatever its mode.
    ///
    /// # Errors
    /// Its prefix has too many.
    pub(crate) fn unauthenticated(
        &self,
        settings: &config::Throttle,
        client: IpAddr,
        crowded: Option<u32>,
    ) -> Result<ConnectionPermit, Limited> {
        let prefix = self.prefix(settings, client);
        let (held, unauthenticated) = (self.connections.hold(prefix), self.unauthenticated.hold(prefix));
        if !exempt(settings, client) {
            let rule = acting(settings.connections_per_prefix, crowded.is_some());
            self.within(LimitRule::ConnectionsPerPrefix, rule, held.count, client)?;
            if let Some(limit) = crowded {
                self.within(LimitRule::ConnectionsPerPrefix, Limit { limit, ..rule }, unauthenticated.count, client)?;
            }
        }
        Ok(ConnectionPermit { _held: held, unauthenticated: Some(unauthenticated) })
    }

    /// Counts a TLS handshake. `crowded`: most slots for unauthenticated connections are taken; the limit per
    /// prefix is enforced then whatever its mode.
    ///
    /// # Errors
    /// There are too many, of its prefix or in total. A prefix with none in progress may always have one,
    /// within `limits.connections`: a single network cannot shut out the others.
    pub(crate) fn handshake(
        &self,
        settings: &config::Throttle,
        client: IpAddr,
        crowded: bool,
    ) -> Result<HandshakePermit, Limited> {
        let held = self.handshakes.hold(self.prefix(settings, client));
        if !exempt(settings, client) {
            let rule = acting(settings.handshakes_per_prefix, crowded);
            self.within(LimitRule::HandshakesPerPrefix, rule, held.count, client)?;
            if held.count > 1 {
                self.within(LimitRule::Handshakes, settings.handshakes, held.total, client)?;
            }
        }
        self.metrics.handshakes.inc();
        Ok(HandshakePermit { _held: held, metrics: Arc::clone(&self.metrics) })
    }

    /// Counts a connection that waits for its PROXY header. It is half-open like one in its handshake, but its
    /// prefix is that of a proxy, which may have many.
    ///
    /// # Errors
    /// There are too many half-open ones in total. A proxy with none waiting may always have one.
    pub(crate) fn proxy_header(
        &self,
        settings: &config::Throttle,
        proxy: IpAddr,
    ) -> Result<AwaitingProxyHeader, Limited> {
        let held = self.handshakes.hold(self.key(&("header", proxy)));
        if held.count > 1 {
            self.within(LimitRule::Handshakes, settings.handshakes, held.total, proxy)?;
        }
        Ok(AwaitingProxyHeader { _held: held })
    }

    /// Counts a session of a user that has shown a correct password.
    ///
    /// # Errors
    /// The user has too many, here or in total, or there are too many logins in this second.
    pub(crate) fn session(
        &self,
        settings: &config::Throttle,
        client: IpAddr,
        entry: &EntryKey,
    ) -> Result<SessionPermit, Limited> {
        let user = self.entry(entry);
        let all = self.sessions.hold(user);
        let here = self.sessions_by_prefix.hold(self.key(&(user, self.prefix(settings, client))));
        self.within(LimitRule::SessionsPerUser, settings.sessions_per_user, all.count, client)?;
        if !exempt(settings, client) {
            self.within(
                LimitRule::SessionsPerUserAndPrefix,
                settings.sessions_per_user_and_prefix,
                here.count,
                client,
            )?;
        }
        let Limit { mode, limit } = settings.logins_per_second;
        if !self.within_rate(limit) {
            self.limit_reached(LimitRule::LoginsPerSecond, mode, ThrottleEffect::Refused, client)?;
        }
        Ok(SessionPermit { _held: [all, here] })
    }

    /// Charges an attempt that requires a directory lookup, and computes its delay. The outcome is then
    /// reported to the [`PendingAttempt`].
    ///
    /// # Errors
    /// It would have to wait longer than `max_delay`.
    pub(crate) fn attempt(
        &self,
        settings: &config::Throttle,
        client: IpAddr,
        credential: &Credential,
    ) -> Result<PendingAttempt<'_>, Limited> {
        let origin = self.origin(settings, client, credential.login());
        let (now, password) = (Instant::now(), credential.digest().narrow());
        let (user_rule, prefix_rule) = (settings.failed_logins_per_user, settings.failed_logins_per_prefix);
        let (memory, prefix, known) = (Arc::clone(&origin.memory), origin.prefix, origin.known);
        let account = origin.account(&self.keys);
        let exempt = exempt(settings, client);
        let mut gate = BindGate::new(origin, exempt, user_rule, password, &self.keys);
        let mut pending = PendingAttempt { delay: Duration::ZERO, by: None, throttle: self, gate: None, asked: false };
        if exempt {
            pending.gate = Some(Arc::new(gate));
            return Ok(pending);
        }
        let (of_user, of_prefix) = (memory.user(account), memory.prefix(prefix));
        let mut user = of_user.lock();
        if let Some(at) = user.tried(password) {
            pending.delay = at.saturating_duration_since(now);
            gate.waited = !pending.delay.is_zero();
            pending.gate = Some(Arc::new(gate));
            return Ok(pending);
        }
        let every = memory.settings().forget_every;
        let user_delay = user.delay(now, every, &user_rule);
        if !known && user.is_at_limit(&user_rule) {
            self.limit_reached(LimitRule::FailedLoginsPerUser, user_rule.mode, ThrottleEffect::Refused, client)?;
        }
        let mut prefix = of_prefix.lock();
        let prefix_delay = if known { Duration::ZERO } else { prefix.delay(now, every, &prefix_rule) };
        for (rule, settings, delay) in [
            (LimitRule::FailedLoginsPerUser, &user_rule, user_delay),
            (LimitRule::FailedLoginsPerPrefix, &prefix_rule, prefix_delay),
        ] {
            let delay = self.wait(rule, settings, delay, client)?;
            if delay > pending.delay {
                (pending.delay, pending.by) = (delay, Some(rule));
            }
        }
        user.charge(now, user_delay, &user_rule);
        user.try_password(password, now + pending.delay);
        prefix.charge(now, prefix_delay, &prefix_rule);
        drop((user, prefix));
        gate.waited = !pending.delay.is_zero();
        gate.charged(of_user, of_prefix);
        pending.gate = Some(Arc::new(gate));
        Ok(pending)
    }

    /// Records a correct cached password: nothing was guessed, and the prefix is known from now on.
    pub(crate) fn cached_success(&self, settings: &config::Throttle, client: IpAddr, login: &Login, entry: &EntryKey) {
        let AttemptOrigin { memory, prefix, name, known, user } = self.origin(settings, client, login);
        let account = if known { self.key(&(user, prefix)) } else { name };
        self.succeeded(&memory, (account, prefix, name), entry);
    }

    /// Records a correct password of the user of this entry: failures are forgotten, and the prefix becomes
    /// known. At a prefix known before, failures from elsewhere stay.
    fn succeeded(
        &self,
        memory: &LimitMemory,
        (account, prefix, name): (HashedKey, HashedKey, HashedKey),
        entry: &EntryKey,
    ) {
        let user = self.entry(entry);
        memory.reset_user(account, prefix);
        if memory.is_known_prefix(user, prefix) {
            memory.reset_user(self.key(&(user, prefix)), prefix);
        } else {
            memory.forget_user(user);
        }
        memory.name(name, user);
        memory.add_known_prefix(user, prefix);
    }

    fn origin(&self, settings: &config::Throttle, client: IpAddr, login: &Login) -> AttemptOrigin {
        let memory = self.memory.load_full();
        let prefix = self.prefix(settings, client);
        let name = self.key(&login.as_str().trim().to_lowercase());
        let user = memory.entry(name);
        let known = memory.is_known_prefix(user, prefix);
        AttemptOrigin { memory, prefix, name, user, known }
    }

    /// Applies a limit to a delay.
    fn wait(
        &self,
        rule: LimitRule,
        settings: &FailedLogins,
        delay: Duration,
        client: IpAddr,
    ) -> Result<Duration, Limited> {
        if delay > settings.max_delay {
            self.limit_reached(rule, settings.mode, ThrottleEffect::Refused, client)?;
        } else if !delay.is_zero() {
            self.count(rule, settings.mode, ThrottleEffect::Delayed);
        }
        Ok(if settings.mode == Mode::Enforce { delay } else { Duration::ZERO })
    }

    fn within(&self, rule: LimitRule, limit: Limit, count: u32, client: IpAddr) -> Result<(), Limited> {
        if count > limit.limit { self.limit_reached(rule, limit.mode, ThrottleEffect::Refused, client) } else { Ok(()) }
    }

    /// A limit is reached: counted and logged in either mode, and refused if it is enforced.
    fn limit_reached(
        &self,
        rule: LimitRule,
        mode: Mode,
        effect: ThrottleEffect,
        client: IpAddr,
    ) -> Result<(), Limited> {
        self.count(rule, mode, effect);
        let (word, mode_word) = (rule.label(), mode.label());
        if let Some(suppressed) = self.repeats.allow(word, mode_word) {
            warn!(rule = word, mode = mode_word, %client, suppressed, "login rate limit reached");
        }
        match mode {
            Mode::Enforce => Err(Limited(rule)),
            Mode::DryRun => Ok(()),
        }
    }

    fn count(&self, rule: LimitRule, mode: Mode, effect: ThrottleEffect) {
        self.metrics.throttled(rule, effect, mode).inc();
    }

    /// Whether one more login stays within this rate. One second's worth may come at once.
    fn within_rate(&self, per_second: u32) -> bool {
        let now = Instant::now();
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let due = pace.map_or(now, |due| due.max(now)) + Duration::from_secs(1) / per_second.max(1);
        let kept = due.saturating_duration_since(now) <= Duration::from_secs(1);
        if kept {
            *pace = Some(due);
        }
        kept
    }

    fn prefix(&self, settings: &config::Throttle, client: IpAddr) -> HashedKey {
        let bits = if client.is_ipv4() { settings.ipv4_prefix } else { settings.ipv6_prefix };
        self.key(&net::network_of(client, bits))
    }

    fn entry(&self, entry: &EntryKey) -> HashedKey {
        entry_hash(&self.keys, entry)
    }

    fn key(&self, what: &impl Hash) -> HashedKey {
        self.keys.hash_one(what)
    }
}

fn exempt(settings: &config::Throttle, client: IpAddr) -> bool {
    settings.exempt.iter().any(|network| network.contains(&client))
}

/// The hash of an entry. The case and spacing of a DN may differ between a template and the directory.
fn entry_hash(keys: &RandomState, EntryKey { realm, name }: &EntryKey) -> HashedKey {
    match name {
        EntryName::Id(id) => keys.hash_one((realm, id)),
        EntryName::Dn(dn) => keys.hash_one((realm, dn.to_lowercase().split(',').map(str::trim).collect::<Vec<_>>())),
    }
}

/// The limit, enforced whatever its mode if `must`.
const fn acting(rule: Limit, must: bool) -> Limit {
    if must { Limit { mode: Mode::Enforce, ..rule } } else { rule }
}

/// An attempt that may proceed after a delay. Dropped before the directory is asked, it is refunded; after
/// that, it counts, because it may still be answered as wrong.
#[derive(Debug)]
#[must_use]
pub(crate) struct PendingAttempt<'a> {
    /// How long it has to wait.
    pub delay: Duration,
    /// The limit that requires the delay.
    pub by: Option<LimitRule>,
    throttle: &'a Throttle,
    gate: Option<Arc<BindGate>>,
    asked: bool,
}

impl PendingAttempt<'_> {
    /// The gate that the entry passes before the bind. The directory is asked from now on.
    pub(crate) fn begin_lookup(&mut self) -> Option<Arc<BindGate>> {
        self.asked = true;
        self.gate.clone()
    }

    /// The directory accepted the password.
    pub(crate) fn right(mut self, entry: &EntryKey) {
        if let Some(gate) = self.gate.take() {
            gate.refund();
            let account = if gate.known { self.throttle.key(&(gate.user, gate.prefix)) } else { gate.name };
            self.throttle.succeeded(&gate.memory, (account, gate.prefix, gate.name), entry);
        }
    }

    /// The directory refused the password or found no entry, or it was not asked because the entry's delay had
    /// not passed.
    pub(crate) fn wrong(mut self) {
        if let Some(gate) = self.gate.take() {
            gate.keep();
        }
    }

    /// It was not a wrong password, or the outcome is unknown.
    pub(crate) fn inconclusive(mut self) {
        if let Some(gate) = self.gate.take() {
            gate.refund();
        }
    }

    /// Counts and logs that the entry's delay had not passed, if so.
    pub(crate) fn log_if_over_limit(&self, client: IpAddr) {
        if let Some(gate) = self.gate.as_ref().filter(|gate| gate.was_over_limit()) {
            // The gate decides whether it is enforced.
            let _ = self.throttle.limit_reached(
                LimitRule::FailedLoginsPerUser,
                gate.rule.mode,
                ThrottleEffect::Refused,
                client,
            );
        }
    }
}

impl Drop for PendingAttempt<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            if self.asked { gate.keep() } else { gate.refund() }
        }
    }
}

/// A counted connection, until dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    _held: CountGuard,
    /// While its client is not logged in.
    unauthenticated: Option<CountGuard>,
}

impl ConnectionPermit {
    /// The client is logged in.
    pub(crate) fn logged_in(&mut self) {
        self.unauthenticated = None;
    }
}

/// A counted TLS handshake, until dropped.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    _held: CountGuard,
    metrics: Arc<Metrics>,
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.metrics.handshakes.dec();
    }
}

/// A counted wait for a PROXY header, until dropped.
#[derive(Debug)]
pub(crate) struct AwaitingProxyHeader {
    _held: CountGuard,
}

/// A counted session, until dropped.
#[derive(Debug)]
pub(crate) struct SessionPermit {
    _held: [CountGuard; 2],
}

#[cfg(test)]
mod tests;
