//! What slows guessing down, and what bounds the share of one network, one user and one second.
//!
//! It counts and answers; it waits for nobody and touches no socket. All protocols share it, and it
//! outlives a reload: what a rule allows comes with each question, from the snapshot that asks. A
//! client's address is the one that its session was given, so that a forwarded one counts where
//! forwarding is trusted. Names, DNs, prefixes and passwords are kept as keyed hashes alone, under
//! keys that die with the process.
//!
//! **Wrong passwords.** Only an attempt that the directory has to be asked about is a guess: a right
//! password that is cached never waits, and neither does one that is known to be wrong. A guess is
//! charged to its prefix and its user when it comes, not when it has failed, so that a thousand at
//! once are no faster than one after the other; whatever is no wrong password is refunded. It waits for
//! what its spelling has earned; the entry, once it is found, decides whether it is bound at all (`gate`).
//! A user at a prefix known from an earlier login has an account of his own there: he waits for nobody's
//! mistakes but those made in his name in that place.

mod gate;
mod held;
mod memory;

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use thiserror::Error;
use tokio::time::Instant;
use tracing::warn;

use crate::config::{self, FailedLogins, Limit, Mode, Network};
use crate::log::Repeats;
use crate::metrics::{Metrics, THROTTLE_MEMORY};
use crate::secret::Secret;
use gate::AttemptOrigin;
pub use gate::BindGate;
use held::{CountGuard, HeldCounts};
use memory::{LimitMemory, PasswordDigest};

/// A hash of a prefix, a name, an entry or a pair of them.
type HashedKey = u64;

/// The rules, each named after its key in the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Wrong passwords from one prefix.
    FailedLoginsPerPrefix,
    /// Wrong passwords for one user.
    FailedLoginsPerUser,
    /// Connections of one prefix.
    ConnectionsPerPrefix,
    /// TLS handshakes under way in all.
    Handshakes,
    /// TLS handshakes under way of one prefix.
    HandshakesPerPrefix,
    /// Sessions of one user.
    SessionsPerUser,
    /// Sessions of one user from one prefix.
    SessionsPerUserAndPrefix,
    /// Right passwords per second.
    LoginsPerSecond,
}

impl Rule {
    /// The config key, the metric label and the log word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::FailedLoginsPerPrefix => "failed_logins_per_prefix",
            Self::FailedLoginsPerUser => "failed_logins_per_user",
            Self::ConnectionsPerPrefix => "connections_per_prefix",
            Self::Handshakes => "handshakes",
            Self::HandshakesPerPrefix => "handshakes_per_prefix",
            Self::SessionsPerUser => "sessions_per_user",
            Self::SessionsPerUserAndPrefix => "sessions_per_user_and_prefix",
            Self::LoginsPerSecond => "logins_per_second",
        }
    }
}

/// A rule refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("throttle.{} is met", .0.label())]
pub struct Limited(pub Rule);

/// The throttle of the process.
pub struct Throttle {
    metrics: Arc<Metrics>,
    memory: ArcSwap<LimitMemory>,
    connections: Arc<HeldCounts>,
    unauthenticated: Arc<HeldCounts>,
    handshakes: Arc<HeldCounts>,
    sessions: Arc<HeldCounts>,
    sessions_by_prefix: Arc<HeldCounts>,
    /// When the login that comes next would come if all came at an even pace.
    pace: Mutex<Option<Instant>>,
    keys: RandomState,
    passwords: hmac::Key,
    repeats: Repeats,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").field("memory", self.memory.load().settings()).finish_non_exhaustive()
    }
}

impl Throttle {
    /// Remembers nobody.
    ///
    /// # Panics
    /// If the operating system has no random numbers: nothing may be decided then.
    #[must_use]
    pub fn new(settings: &config::Throttle, metrics: Arc<Metrics>) -> Self {
        let random = aws_lc_rs::rand::SystemRandom::new();
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
            passwords: hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the system has random numbers"),
            repeats: Repeats::default(),
        }
    }

    /// Takes over a new config. What is remembered goes on unless its own bounds have changed.
    pub fn apply(&self, settings: &config::Throttle) {
        if *self.memory.load().settings() != settings.memory {
            self.memory.store(Arc::new(LimitMemory::new(&settings.memory)));
        }
    }

    /// Sets the gauges of what is remembered.
    pub fn measure(&self) {
        for (kind, entries) in THROTTLE_MEMORY.into_iter().zip(self.memory.load().entries()) {
            let entries = i64::try_from(entries).unwrap_or(i64::MAX);
            self.metrics.throttle_entries.with_label_values(&[kind]).set(entries);
        }
    }

    /// A connection has come that logs nobody in by itself: a question of nginx.
    ///
    /// # Errors
    /// Its prefix has too many.
    pub fn connection(&self, settings: &config::Throttle, client: IpAddr) -> Result<ConnectionPermit, Limited> {
        let held = self.connections.hold(self.prefix(settings, client));
        if !exempt(settings, client) {
            self.within(Rule::ConnectionsPerPrefix, settings.connections_per_prefix, held.count, client)?;
        }
        Ok(ConnectionPermit { _held: held, unauthenticated: None })
    }

    /// A connection has come whose client is not logged in. `crowded`: most places of such connections
    /// are taken, and one prefix may have so many of them; the rule acts then whatever its mode.
    ///
    /// # Errors
    /// Its prefix has too many.
    pub fn unauthenticated(
        &self,
        settings: &config::Throttle,
        client: IpAddr,
        crowded: Option<u32>,
    ) -> Result<ConnectionPermit, Limited> {
        let prefix = self.prefix(settings, client);
        let (held, unauthenticated) = (self.connections.hold(prefix), self.unauthenticated.hold(prefix));
        if !exempt(settings, client) {
            let rule = acting(settings.connections_per_prefix, crowded.is_some());
            self.within(Rule::ConnectionsPerPrefix, rule, held.count, client)?;
            if let Some(limit) = crowded {
                self.within(Rule::ConnectionsPerPrefix, Limit { limit, ..rule }, unauthenticated.count, client)?;
            }
        }
        Ok(ConnectionPermit { _held: held, unauthenticated: Some(unauthenticated) })
    }

    /// A TLS handshake begins. `crowded`: most places of unauthenticated connections are taken; the rule
    /// about the prefix acts then whatever its mode.
    ///
    /// # Errors
    /// There are too many, of its prefix or in all. A prefix with none under way may always have
    /// one, within `limits.connections`: a single network cannot shut the others out.
    pub fn handshake(
        &self,
        settings: &config::Throttle,
        client: IpAddr,
        crowded: bool,
    ) -> Result<HandshakePermit, Limited> {
        let held = self.handshakes.hold(self.prefix(settings, client));
        if !exempt(settings, client) {
            let rule = acting(settings.handshakes_per_prefix, crowded);
            self.within(Rule::HandshakesPerPrefix, rule, held.count, client)?;
            if held.count > 1 {
                self.within(Rule::Handshakes, settings.handshakes, held.total, client)?;
            }
        }
        self.metrics.handshakes.inc();
        Ok(HandshakePermit { _held: held, metrics: Arc::clone(&self.metrics) })
    }

    /// A connection waits for its PROXY header. It is half-open as one in its handshake is, but its
    /// prefix is that of a proxy, who may have many.
    ///
    /// # Errors
    /// There are too many half-open ones in all. A proxy with none that waits may always have one.
    pub fn proxy_header(&self, settings: &config::Throttle, proxy: IpAddr) -> Result<AwaitingProxyHeader, Limited> {
        let held = self.handshakes.hold(self.key(&("header", proxy)));
        if held.count > 1 {
            self.within(Rule::Handshakes, settings.handshakes, held.total, proxy)?;
        }
        Ok(AwaitingProxyHeader { _held: held })
    }

    /// A user has shown a right password and is to have a session.
    ///
    /// # Errors
    /// He has too many, here or in all, or there are too many logins in this second.
    pub fn session(&self, settings: &config::Throttle, client: IpAddr, dn: &str) -> Result<SessionPermit, Limited> {
        let user = self.entry(dn);
        let all = self.sessions.hold(user);
        let here = self.sessions_by_prefix.hold(self.key(&(user, self.prefix(settings, client))));
        self.within(Rule::SessionsPerUser, settings.sessions_per_user, all.count, client)?;
        if !exempt(settings, client) {
            self.within(Rule::SessionsPerUserAndPrefix, settings.sessions_per_user_and_prefix, here.count, client)?;
        }
        let Limit { mode, limit } = settings.logins_per_second;
        if !self.within_rate(limit) {
            self.limit_reached(Rule::LoginsPerSecond, mode, "refused", client)?;
        }
        Ok(SessionPermit { _held: [all, here] })
    }

    /// An attempt that the directory has to be asked about: when it has its turn. What it came to
    /// is then told to the [`Turn`].
    ///
    /// # Errors
    /// It would have to wait longer than `max_delay`.
    pub fn attempt(
        &self,
        settings: &config::Throttle,
        client: IpAddr,
        login: &str,
        password: &Secret,
    ) -> Result<PendingAttempt<'_>, Limited> {
        let visit = self.origin(settings, client, login);
        let (now, password) = (Instant::now(), self.fingerprint(password));
        let (user_rule, prefix_rule) = (settings.failed_logins_per_user, settings.failed_logins_per_prefix);
        let (memory, prefix, known) = (Arc::clone(&visit.memory), visit.prefix, visit.known);
        let account = visit.account(&self.keys);
        let exempt = exempt(settings, client);
        let mut gate = BindGate::new(visit, exempt, user_rule, password, &self.keys);
        let mut turn = PendingAttempt { delay: Duration::ZERO, by: None, throttle: self, gate: None, asked: false };
        if exempt {
            turn.gate = Some(Arc::new(gate));
            return Ok(turn);
        }
        let (of_user, of_prefix) = (memory.user(account), memory.prefix(prefix));
        let mut user = of_user.lock();
        if let Some(at) = user.tried(password) {
            turn.delay = at.saturating_duration_since(now);
            gate.waited = !turn.delay.is_zero();
            turn.gate = Some(Arc::new(gate));
            return Ok(turn);
        }
        let every = memory.settings().forget_every;
        let user_delay = user.delay(now, every, &user_rule);
        if !known && user.is_at_limit(&user_rule) {
            self.limit_reached(Rule::FailedLoginsPerUser, user_rule.mode, "refused", client)?;
        }
        let mut prefix = of_prefix.lock();
        let prefix_delay = if known { Duration::ZERO } else { prefix.delay(now, every, &prefix_rule) };
        for (rule, settings, delay) in [
            (Rule::FailedLoginsPerUser, &user_rule, user_delay),
            (Rule::FailedLoginsPerPrefix, &prefix_rule, prefix_delay),
        ] {
            let delay = self.wait(rule, settings, delay, client)?;
            if delay > turn.delay {
                (turn.delay, turn.by) = (delay, Some(rule));
            }
        }
        user.charge(now, user_delay, &user_rule);
        user.try_password(password, now + turn.delay);
        prefix.charge(now, prefix_delay, &prefix_rule);
        drop((user, prefix));
        gate.waited = !turn.delay.is_zero();
        gate.charged(of_user, of_prefix);
        turn.gate = Some(Arc::new(gate));
        Ok(turn)
    }

    /// A right password that was cached: nothing was guessed, and the prefix is known from now on.
    pub fn cached_success(&self, settings: &config::Throttle, client: IpAddr, login: &str, dn: &str) {
        let AttemptOrigin { memory, prefix, name, known, user } = self.origin(settings, client, login);
        let account = if known { self.key(&(user, prefix)) } else { name };
        self.succeeded(&memory, (account, prefix, name), dn);
    }

    /// The user with this DN has shown a right password: what was counted is forgotten, and the network is
    /// known. At a network that was known before, what strangers elsewhere have earned stays.
    fn succeeded(&self, memory: &LimitMemory, (account, prefix, name): (HashedKey, HashedKey, HashedKey), dn: &str) {
        let user = self.entry(dn);
        memory.reset_user(account, prefix);
        if memory.knows(user, prefix) {
            memory.reset_user(self.key(&(user, prefix)), prefix);
        } else {
            memory.forget_user(user);
        }
        memory.name(name, user);
        memory.know(user, prefix);
    }

    fn origin(&self, settings: &config::Throttle, client: IpAddr, login: &str) -> AttemptOrigin {
        let memory = self.memory.load_full();
        let prefix = self.prefix(settings, client);
        let name = self.key(&login.trim().to_lowercase());
        let user = memory.entry(name);
        let known = memory.knows(user, prefix);
        AttemptOrigin { memory, prefix, name, user, known }
    }

    /// What a rule makes of a delay.
    fn wait(&self, rule: Rule, settings: &FailedLogins, delay: Duration, client: IpAddr) -> Result<Duration, Limited> {
        if delay > settings.max_delay {
            self.limit_reached(rule, settings.mode, "refused", client)?;
        } else if !delay.is_zero() {
            self.count(rule, settings.mode, "delayed");
        }
        Ok(if settings.mode == Mode::Enforce { delay } else { Duration::ZERO })
    }

    fn within(&self, rule: Rule, limit: Limit, count: u32, client: IpAddr) -> Result<(), Limited> {
        if count > limit.limit { self.limit_reached(rule, limit.mode, "refused", client) } else { Ok(()) }
    }

    /// A rule is met: counted and told in either mode, and refused if it acts.
    fn limit_reached(&self, rule: Rule, mode: Mode, effect: &str, client: IpAddr) -> Result<(), Limited> {
        self.count(rule, mode, effect);
        let (word, mode_word) = (rule.label(), mode.label());
        if let Some(suppressed) = self.repeats.allow(word, mode_word) {
            warn!(rule = word, mode = mode_word, %client, suppressed, "a rule of the throttle is met");
        }
        match mode {
            Mode::Enforce => Err(Limited(rule)),
            Mode::DryRun => Ok(()),
        }
    }

    fn count(&self, rule: Rule, mode: Mode, effect: &str) {
        self.metrics.throttled.with_label_values(&[rule.label(), effect, mode.label()]).inc();
    }

    /// Whether one more login keeps to so many per second. A second's worth may come at once.
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
        self.key(&Network::of(client, bits))
    }

    fn entry(&self, dn: &str) -> HashedKey {
        entry_key(&self.keys, dn)
    }

    fn key(&self, what: &impl Hash) -> HashedKey {
        self.keys.hash_one(what)
    }

    fn fingerprint(&self, password: &Secret) -> PasswordDigest {
        let tag = hmac::sign(&self.passwords, password.expose());
        tag.as_ref().iter().take(8).fold(0, |print, byte| print << 8 | u64::from(*byte))
    }
}

fn exempt(settings: &config::Throttle, client: IpAddr) -> bool {
    settings.exempt.iter().any(|network| network.contains(client))
}

/// An entry by its DN, in which a template may capitalize and space otherwise than the directory.
fn entry_key(keys: &RandomState, dn: &str) -> HashedKey {
    keys.hash_one(dn.to_lowercase().split(',').map(str::trim).collect::<Vec<_>>())
}

/// A rule that acts whatever its mode, if it must.
const fn acting(rule: Limit, must: bool) -> Limit {
    if must { Limit { mode: Mode::Enforce, ..rule } } else { rule }
}

/// An attempt that may go on after a delay. Dropped without a word before the directory is asked, it was
/// no wrong password; after that, it may still be answered "wrong", and counts.
#[derive(Debug)]
#[must_use]
pub struct PendingAttempt<'a> {
    /// How long it has to wait.
    pub delay: Duration,
    /// The rule that says so.
    pub by: Option<Rule>,
    throttle: &'a Throttle,
    gate: Option<Arc<BindGate>>,
    asked: bool,
}

impl PendingAttempt<'_> {
    /// What is asked about the entry before it is bound. The directory is asked from here on.
    pub fn begin_lookup(&mut self) -> Option<Arc<BindGate>> {
        self.asked = true;
        self.gate.clone()
    }

    /// The directory said yes.
    pub fn right(mut self, dn: &str) {
        if let Some(gate) = self.gate.take() {
            gate.refund();
            let account = if gate.known { self.throttle.key(&(gate.user, gate.prefix)) } else { gate.name };
            self.throttle.succeeded(&gate.memory, (account, gate.prefix, gate.name), dn);
        }
    }

    /// The directory said that the password is wrong, or that there is no such entry, or it was not asked
    /// because the entry's turn had not come.
    pub fn wrong(mut self) {
        if let Some(gate) = self.gate.take() {
            gate.keep();
        }
    }

    /// It was no wrong password, or nobody could tell.
    pub fn inconclusive(mut self) {
        if let Some(gate) = self.gate.take() {
            gate.refund();
        }
    }

    /// Counts and tells that the entry's turn had not come, if so.
    pub fn log_if_over_limit(&self, client: IpAddr) {
        if let Some(gate) = self.gate.as_ref().filter(|gate| gate.was_over_limit()) {
            // Whether it acts is for the gate.
            let _ = self.throttle.limit_reached(Rule::FailedLoginsPerUser, gate.rule.mode, "refused", client);
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

/// A connection that counts, until it is dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    _held: CountGuard,
    /// While its client is not logged in.
    unauthenticated: Option<CountGuard>,
}

impl ConnectionPermit {
    /// The client is logged in.
    pub fn logged_in(&mut self) {
        self.unauthenticated = None;
    }
}

/// A TLS handshake that counts, until it is dropped.
#[derive(Debug)]
pub struct HandshakePermit {
    _held: CountGuard,
    metrics: Arc<Metrics>,
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.metrics.handshakes.dec();
    }
}

/// A wait for a PROXY header that counts, until it is dropped.
#[derive(Debug)]
pub struct AwaitingProxyHeader {
    _held: CountGuard,
}

/// A session that counts, until it is dropped.
#[derive(Debug)]
pub struct SessionPermit {
    _held: [CountGuard; 2],
}

#[cfg(test)]
mod tests;
