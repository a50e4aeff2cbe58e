//! Rate limits: slow down password guessing, and bound the share of one network, one user and one second.
//!
//! It counts and decides; it neither waits nor uses sockets. All protocols share it, and it outlives a reload:
//! a reload compiles its rules anew. A client's address is that of its session,
//! so that a forwarded one counts where forwarding is trusted. Names, DNs, prefixes and passwords are stored as
//! keyed hashes only, under keys that exist in this process only.
//!
//! **Wrong passwords.** Only an attempt that requires a directory lookup is a guess: a correct cached password
//! never waits, and neither does a known wrong one. A guess is charged to its prefix and its user on arrival,
//! not on failure, so that a thousand concurrent guesses are no faster than sequential ones; whatever is not a
//! wrong password is refunded. It waits for the delay of its spelling; the entry, once it is found, decides
//! whether it is bound at all (`gate`). A user at a prefix known from an earlier login has a separate account
//! there: only failures for this user at this prefix delay it.
//!
//! **Password spraying.** Of the guesses of users that a prefix is not known for, the distinct names are counted
//! (`spraying`), and delay only such guesses.

mod attempts;
mod bucket;
mod fleet;
mod forecast;
mod gate;
mod keys;
mod known;
mod ledger;
mod lookups;
mod memory;
mod permits;
mod rules;
#[cfg(feature = "internals")]
mod sample;
mod sessions;
mod shared;
mod shares;
mod spraying;
mod store;

use std::net::IpAddr;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::base::credential::{Credential, Login};
use crate::base::labels::Label as _;
use crate::config::{self, Limit, LimitRule};
use crate::directory::EntryKey;
use crate::fleet::FleetScript;
use crate::telemetry::held_back::HeldBackUsers;
use crate::telemetry::labels::ThrottleRecord;
use crate::telemetry::log::Repeats;
use crate::telemetry::metrics::Metrics;
pub(crate) use attempts::{AttemptOutcome, PendingAttempt};
pub(crate) use fleet::FleetRunner;
pub(crate) use forecast::Forecast;
pub(crate) use gate::BindGate;
use keys::Keys;
use ledger::Ledger;
use lookups::LookupTimes;
use permits::HeldCounts;
pub(crate) use permits::{AwaitingProxyHeader, ConnectionPermit, HandshakePermit, SessionPermit};
pub(crate) use rules::Limited;
use rules::{Enforcement, Rules, acting};
#[cfg(feature = "internals")]
pub use sample::{SampleMember, SampleSession};
use sessions::SharedSessions;
use shared::ScriptRunner;
pub(crate) use shares::Shares;
use store::Subject;

/// What the limits run in the store of a fleet.
pub(crate) static SCRIPTS: [&FleetScript; 4] = [&shared::CHARGE, &shared::ENTRY, &shared::SETTLE, &sessions::SESSIONS];

/// The rate limits of the process.
pub(crate) struct Throttle {
    enforcement: Enforcement,
    /// The users and networks whose logins a limit holds back.
    pub(crate) held_back: Arc<HeldBackUsers>,
    ledger: ArcSwap<Ledger>,
    connections: Arc<HeldCounts>,
    unauthenticated: Arc<HeldCounts>,
    handshakes: Arc<HeldCounts>,
    sessions: Arc<HeldCounts>,
    sessions_by_prefix: Arc<HeldCounts>,
    /// The same sessions in a store that several processes share, if there is one.
    shared_sessions: OnceLock<Arc<SharedSessions>>,
    /// When the next login is due at an even pace.
    pace: Mutex<Option<Instant>>,
    /// By how many ushers `logins_per_second` is divided.
    shares: Shares,
    /// How long lookups of names and passwords have taken.
    pub(crate) lookups: LookupTimes,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").field("rules", &self.ledger.load().rules).finish_non_exhaustive()
    }
}

impl Throttle {
    /// Starts without any record. Limits of what the mail servers bear are divided by `shares`.
    #[must_use]
    pub(crate) fn new(settings: &config::Throttle, shares: Shares, metrics: Arc<Metrics>) -> Self {
        let held_back = Arc::<HeldBackUsers>::default();
        Self {
            enforcement: Enforcement {
                metrics,
                repeats: Repeats::default(),
                held_back: Arc::clone(&held_back),
                prefixes: [settings.ipv4_prefix, settings.ipv6_prefix].map(AtomicU8::new),
            },
            held_back,
            ledger: ArcSwap::from_pointee(Ledger::local(Rules::compile(settings), Keys::new())),
            connections: Arc::default(),
            unauthenticated: Arc::default(),
            handshakes: Arc::default(),
            sessions: Arc::default(),
            sessions_by_prefix: Arc::default(),
            shared_sessions: OnceLock::new(),
            pace: Mutex::default(),
            shares,
            lookups: LookupTimes::default(),
        }
    }

    /// Applies a new config. Records are kept unless their own limits have changed.
    pub(crate) fn apply(&self, settings: &config::Throttle) {
        let ledger = self.ledger.load().under(Rules::compile(settings));
        self.enforcement.count_by(&ledger.rules);
        self.ledger.store(Arc::new(ledger));
    }

    /// Sets the gauges of the records.
    pub(crate) fn measure(&self) {
        for (record, entries) in ThrottleRecord::ALL.iter().zip(self.entries()) {
            let entries = i64::try_from(entries).unwrap_or(i64::MAX);
            self.enforcement.metrics.throttle_entries.of(*record).set(entries);
        }
    }

    /// How many there are of each kind, in the order of [`ThrottleRecord`].
    fn entries(&self) -> [u64; 5] {
        let ledger = self.ledger.load();
        let ([prefixes, users, refused], [names, known]) = (ledger.local.entries(), ledger.users.entries());
        [prefixes, users, names, known, refused]
    }

    /// Whether a name has led to an entry in this process, whoever typed it.
    #[must_use]
    pub(crate) fn leads_to_entry(&self, login: &Login) -> bool {
        let ledger = self.ledger.load();
        let name = ledger.keys.name(login);
        ledger.users.entry(name).0 != name
    }

    /// Counts a connection without a login of its own: an nginx auth request.
    ///
    /// # Errors
    /// Its prefix has too many.
    pub(crate) fn connection(&self, client: IpAddr) -> Result<ConnectionPermit, Limited> {
        let ledger = self.ledger.load();
        let rules = &ledger.rules;
        let held = self.connections.hold(ledger.prefix(client));
        if !rules.is_exempt(client) {
            self.enforcement.within(
                LimitRule::ConnectionsPerPrefix,
                rules.connections_per_prefix,
                held.count,
                client,
            )?;
        }
        Ok(ConnectionPermit { _held: held, unauthenticated: None })
    }

    /// Counts a connection of a client that is not logged in. `crowded`: most slots for such connections are
    /// taken, and one prefix may have this many of them; the limit is enforced then whatever its mode.
    ///
    /// # Errors
    /// Its prefix has too many.
    pub(crate) fn unauthenticated(&self, client: IpAddr, crowded: Option<u32>) -> Result<ConnectionPermit, Limited> {
        let ledger = self.ledger.load();
        let rules = &ledger.rules;
        let prefix = ledger.prefix(client);
        let (held, unauthenticated) = (self.connections.hold(prefix), self.unauthenticated.hold(prefix));
        if !rules.is_exempt(client) {
            let rule = acting(rules.connections_per_prefix, crowded.is_some());
            self.enforcement.within(LimitRule::ConnectionsPerPrefix, rule, held.count, client)?;
            if let Some(limit) = crowded {
                self.enforcement.within(
                    LimitRule::ConnectionsPerPrefix,
                    Limit { limit, ..rule },
                    unauthenticated.count,
                    client,
                )?;
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
    pub(crate) fn handshake(&self, client: IpAddr, crowded: bool) -> Result<HandshakePermit, Limited> {
        let ledger = self.ledger.load();
        let rules = &ledger.rules;
        let held = self.handshakes.hold(ledger.prefix(client));
        if !rules.is_exempt(client) {
            let rule = acting(rules.handshakes_per_prefix, crowded);
            self.enforcement.within(LimitRule::HandshakesPerPrefix, rule, held.count, client)?;
            if held.count > 1 {
                self.enforcement.within(LimitRule::Handshakes, rules.handshakes, held.total, client)?;
            }
        }
        self.enforcement.metrics.handshakes.inc();
        Ok(HandshakePermit { _held: held, metrics: Arc::clone(&self.enforcement.metrics) })
    }

    /// Counts a connection that waits for its PROXY header. It is half-open like one in its handshake, but its
    /// prefix is that of a proxy, which may have many.
    ///
    /// # Errors
    /// There are too many half-open ones in total. A proxy with none waiting may always have one.
    pub(crate) fn proxy_header(&self, proxy: IpAddr) -> Result<AwaitingProxyHeader, Limited> {
        let ledger = self.ledger.load();
        let held = self.handshakes.hold(ledger.keys.proxy(proxy));
        if held.count > 1 {
            self.enforcement.within(LimitRule::Handshakes, ledger.rules.handshakes, held.total, proxy)?;
        }
        Ok(AwaitingProxyHeader { _held: held })
    }

    /// Counts a session of a user that has shown a correct password.
    ///
    /// # Errors
    /// The user has too many, here or in total, or there are too many logins in this second.
    pub(crate) fn session(&self, client: IpAddr, entry: &EntryKey) -> Result<SessionPermit, Limited> {
        let ledger = self.ledger.load();
        let rules = &ledger.rules;
        let user = ledger.keys.entry(entry);
        let all = self.sessions.hold(user);
        let here = self.sessions_by_prefix.hold(ledger.keys.user_at(user, ledger.prefix(client)));
        let shared = self.shared_sessions.get().map(|shared| shared.hold(user, entry));
        let elsewhere = shared.as_ref().map_or(0, |(_, elsewhere)| *elsewhere);
        let count = all.count.saturating_add(elsewhere);
        self.enforcement.within(LimitRule::SessionsPerUser, rules.sessions_per_user, count, client)?;
        if !rules.is_exempt(client) {
            self.enforcement.within(
                LimitRule::SessionsPerUserAndPrefix,
                rules.sessions_per_user_and_prefix,
                here.count,
                client,
            )?;
        }
        let Limit { mode, limit } = rules.logins_per_second;
        if !self.within_rate(self.shares.of(limit)) {
            self.enforcement.limit_reached(LimitRule::LoginsPerSecond, mode, client)?;
        }
        Ok(SessionPermit { _held: [all, here], _shared: shared.map(|(session, _)| session) })
    }

    /// Charges an attempt that requires a directory lookup, and computes its delay. The [`PendingAttempt`] is then
    /// settled by its outcome.
    ///
    /// # Errors
    /// It would have to wait longer than `max_delay`, or the user's limit is reached.
    pub(crate) async fn attempt(&self, client: IpAddr, credential: &Credential) -> Result<PendingAttempt<'_>, Limited> {
        PendingAttempt::begin(self.ledger.load_full(), &self.enforcement, client, credential).await
    }

    /// Charges a token to the client's prefix alone, and computes its delay. The [`PendingAttempt`] is then settled by
    /// its outcome.
    ///
    /// # Errors
    /// It would have to wait longer than `max_delay`.
    pub(crate) async fn token_attempt(
        &self,
        client: IpAddr,
        credential: &Credential,
    ) -> Result<PendingAttempt<'_>, Limited> {
        PendingAttempt::begin_token(self.ledger.load_full(), &self.enforcement, client, credential).await
    }

    /// Records a correct cached password: nothing was guessed, and the prefix is known from now on.
    pub(crate) fn cached_success(&self, client: IpAddr, login: &Login, entry: &EntryKey) {
        let ledger = self.ledger.load();
        let subject = Subject { login: Some(login.clone()), network: ledger.rules.prefix(client) };
        ledger.succeeded(ledger.origin(client, login), entry, &subject, None);
    }

    /// Counts wrong passwords and sessions in a store that several processes share, while it is there. To be called once.
    pub(crate) fn share(&self, runner: Arc<dyn ScriptRunner>) {
        let ledger = self.ledger.load();
        let _ = self.shared_sessions.set(SharedSessions::new(Arc::clone(&runner), ledger.rules.memory.capacity));
        self.ledger.store(Arc::new(ledger.under(Rules::clone(&ledger.rules)).shared(Some(runner))));
    }

    /// Writes the sessions again, over a minute: the store has lost them.
    pub(crate) async fn rewrite_sessions(&self) {
        if let Some(shared) = self.shared_sessions.get() {
            shared.rewrite(Duration::from_secs(60)).await;
        }
    }

    /// Repeats what the store may not have heard of sessions. To be called every few seconds.
    pub(crate) fn repeat_unanswered_sessions(&self) {
        if let Some(shared) = self.shared_sessions.get() {
            shared.repeat_unanswered();
        }
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
}

#[cfg(test)]
mod tests;
