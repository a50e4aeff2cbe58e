//! A backend's addresses for one protocol, in order of preference, each with its breaker.
//!
//! Names are resolved in the background, never per login; the last result stays in use until the next one. Log
//! lines are written on changes, never per login.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::BackendError;
use super::acceptance::{Acceptance, LoginFailure, ProbeRefusal};
use super::address_set::AddressSet;
use super::balance::{Affinity, NodeChange};
use super::health::{
    Breaker, BreakerState, ConnectAttempt, FaultEffect, GreetingChange, PATIENCE, RetryWindow, SPACING, SlowStart,
};
use super::resolve::resolve;
use super::source::Sources;
use super::state::{AddressStatus, ProtocolStatus, RefusingStatus};
use crate::base::tasks::{self, Task};
use crate::config::{self, Address, AddressBalance, OnReturn, Probe};
use crate::directory::EntryKey;
use crate::limits::Shares;
use crate::proto::capabilities;
use crate::telemetry::log::Bounded;
use crate::telemetry::metrics::Metrics;

/// How often an address with a fault is probed.
const SUSPECT_INTERVAL: Duration = Duration::from_secs(1);

/// The most addresses whose capabilities are kept.
const LISTS: usize = 64;

/// What an attempt has proven about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// TLS and the greeting succeeded.
    Greeting,
    /// A login was accepted.
    Login,
}

/// The addresses.
#[derive(Debug)]
pub(super) struct Pool {
    /// The backend's name, for the log.
    pub(super) backend: Arc<str>,
    protocol: &'static str,
    configured: Vec<Address>,
    /// usher's listeners, to which no backend may lead.
    own: Arc<[SocketAddr]>,
    /// Where connections come from.
    pub(super) sources: Sources,
    pub(super) settings: config::Health,
    /// Which of the addresses serves whom.
    pub(super) balance: AddressBalance,
    addresses: Mutex<AddressSet>,
    /// By how many ushers the rate of slow start is divided.
    shares: Shares,
    /// Whether the server reads a login's message that goes with the command; no once it has shown otherwise.
    initial_responses: AtomicBool,
    /// Whether logins are accepted at all.
    pub(super) acceptance: Acceptance,
    /// Notifies waiting logins of a change.
    changed: watch::Sender<()>,
}

/// The result of selecting addresses for a login.
#[derive(Debug)]
pub(super) enum Selection {
    /// Addresses to try, in order.
    Usable(Vec<SocketAddr>),
    /// Nothing yet; select again at the next change, or at this time.
    Wait(Option<Instant>),
    /// Nothing usable.
    Unavailable(BackendError),
}

impl Pool {
    pub(super) fn new(
        backend: &Arc<str>,
        endpoint: &config::Endpoint,
        settings: &config::Backend,
        own: &Arc<[SocketAddr]>,
        shares: Shares,
    ) -> Self {
        let literal = endpoint.addresses.iter().all(|address| address.host.parse::<IpAddr>().is_ok());
        let due = (!literal).then(Instant::now);
        let mut set = AddressSet::new(due, SlowStart::new(settings.health.slow_start));
        if literal {
            let found =
                endpoint.addresses.iter().filter_map(|at| Some(SocketAddr::new(at.host.parse().ok()?, at.port)));
            set.set_addresses(found.collect());
        }
        Self {
            backend: Arc::clone(backend),
            protocol: endpoint.protocol.name,
            configured: endpoint.addresses.clone(),
            own: Arc::clone(own),
            sources: Sources::new(&settings.source),
            settings: settings.health.clone(),
            balance: endpoint.balance,
            addresses: Mutex::new(set),
            shares,
            initial_responses: AtomicBool::new(true),
            acceptance: Acceptance::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Whether logins have their message in the command.
    pub(super) fn takes_initial_responses(&self) -> bool {
        self.initial_responses.load(Ordering::Relaxed)
    }

    /// The server has not read one: from now on logins wait for its challenge.
    pub(super) fn initial_response_ignored(&self) {
        if self.initial_responses.swap(false, Ordering::Relaxed) {
            let (backend, protocol) = (&*self.backend, self.protocol);
            info!(backend, protocol, "backend does not read SASL initial responses; logins wait for its challenge");
        }
    }

    fn addresses(&self) -> MutexGuard<'_, AddressSet> {
        // No holder leaves it half-changed, so a poisoned lock is harmless.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives every change from now on.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Resolves the names in the background if that is due.
    pub(super) fn refresh(self: &Arc<Self>, metrics: &Arc<Metrics>) {
        let now = Instant::now();
        let resolver = &mut self.addresses().resolver;
        if resolver.asking || resolver.due.is_none_or(|due| due > now) {
            return;
        }
        resolver.asking = true;
        let (pool, metrics) = (Arc::clone(self), Arc::clone(metrics));
        tokio::spawn(async move {
            let asked = resolve(&pool.configured, &pool.own, &pool.sources);
            match tasks::once(Task::Resolver, &metrics.task_restarts, asked).await {
                Some(answer) => pool.addresses().resolved(answer),
                None => pool.addresses().resolver.retry_later(),
            }
            pool.changed.send_replace(());
        });
    }

    /// Resolves the names now and takes over the result.
    pub(super) async fn resolve(&self) -> Result<Vec<SocketAddr>, BackendError> {
        let answer = resolve(&self.configured, &self.own, &self.sources).await;
        self.addresses().resolved(answer.clone());
        Ok(answer?)
    }

    /// Begins a probe of each address that is down, for a waiting login: at once if there is no other address.
    pub(super) fn begin_down_probes(self: &Arc<Self>) -> Vec<RunningProbe> {
        let pause = if self.addresses().usable() == 0 { SPACING } else { SUSPECT_INTERVAL };
        self.begin(|breaker| (!breaker.is_closed()).then_some(pause))
    }

    /// Begins a probe of each address that is due.
    pub(super) fn begin_due_probes(self: &Arc<Self>) -> Vec<RunningProbe> {
        let interval = self.settings.probe_interval;
        self.begin(|breaker| Some(if breaker.is_healthy() { interval } else { interval.min(SUSPECT_INTERVAL) }))
    }

    /// Begins a probe of this address, unless one is running.
    pub(super) fn begin_probe(self: &Arc<Self>, address: SocketAddr) -> Option<RunningProbe> {
        let mut set = self.addresses();
        let now = Instant::now();
        set.breaker(address)?.begin_probe(SPACING, now).then(|| RunningProbe::new(self, address, now))
    }

    fn begin(self: &Arc<Self>, pause: impl Fn(&Breaker) -> Option<Duration>) -> Vec<RunningProbe> {
        let now = Instant::now();
        let mut set = self.addresses();
        let due = set.entries.iter_mut().filter_map(|(address, breaker)| {
            breaker.begin_probe(pause(breaker)?, now).then(|| RunningProbe::new(self, *address, now))
        });
        due.collect()
    }

    /// Selects addresses for a login that arrived at this time and has this long.
    pub(super) fn select(&self, arrived: Instant, timeout: Duration) -> Selection {
        let now = Instant::now();
        let give_up = arrived + PATIENCE;
        let set = self.addresses();
        if set.entries.is_empty() {
            return match &set.resolver.failure {
                // The name is not resolved yet: the login may wait until its deadline.
                None => Selection::Wait(None),
                Some(_) if set.resolver.asking && now < give_up => Selection::Wait(Some(give_up)),
                Some(failure) => Selection::Unavailable(failure.clone().into()),
            };
        }
        let usable = set.usable_addresses();
        if !usable.is_empty() {
            return Selection::Usable(usable);
        }
        let hopes = set.entries.iter().filter_map(|(_, breaker)| breaker.retry_window(arrived, timeout));
        let until = hopes.map(|hope| match hope {
            RetryWindow::Bounded(until) => until.min(give_up),
            RetryWindow::Extended(until) => until,
        });
        match until.filter(|until| *until > now).min() {
            Some(until) => Selection::Wait(Some(until)),
            None => {
                let reason = set.entries.iter().find_map(|(_, breaker)| breaker.reason());
                Selection::Unavailable(BackendError::Down { reason: reason.map_or_else(|| "".into(), Arc::clone) })
            }
        }
    }

    /// When a login may go after an outage; `None` if that is later than it may wait.
    pub(super) fn slot(&self, patience: Duration) -> Option<Instant> {
        self.addresses().slow_start.slot(patience, self.shares.count(), Instant::now())
    }

    /// Records a fault of the server; local faults are ignored.
    pub(super) fn failed(&self, attempt: &ConnectAttempt, error: &BackendError) {
        if error.is_local_fault() {
            return;
        }
        let (now, address) = (Instant::now(), attempt.address);
        let mut set = self.addresses();
        let Some(breaker) = set.breaker(address) else { return };
        let reason = error.to_string();
        match breaker.failed(attempt, self.settings.failures, &reason, now) {
            FaultEffect::None => return,
            FaultEffect::MarkedDown => {}
            FaultEffect::NewReason => {
                drop(set);
                let reason = Bounded(reason.as_bytes());
                warn!(backend = &*self.backend, protocol = self.protocol, %address, %reason, "backend address still down, for another reason");
                return;
            }
        }
        // The name of an unreachable address may have changed.
        if let Some(due) = &mut set.resolver.due {
            *due = now;
        }
        self.note_change(&mut set, NodeChange::Left(address));
        let usable = set.usable();
        drop(set);
        // It may quote what the peer's certificate says.
        let reason = Bounded(reason.as_bytes());
        warn!(backend = &*self.backend, protocol = self.protocol, %address, usable, %reason, "backend address marked down");
    }

    /// Records a success, as far as the evidence goes.
    pub(super) fn succeeded(&self, address: SocketAddr, proof: Evidence) {
        // Where probes log in, a greeting alone is no evidence of health.
        if proof == Evidence::Greeting && matches!(self.settings.probe, Probe::Login(_)) {
            return;
        }
        let now = Instant::now();
        let mut set = self.addresses();
        let outage = set.usable() == 0;
        let Some(down) = set.breaker(address).and_then(|breaker| breaker.succeeded(now)) else { return };
        if outage {
            set.slow_start.begin(now);
        }
        self.note_change(&mut set, NodeChange::Returned(address));
        let usable = set.usable();
        drop(set);
        self.changed.send_replace(());
        let down_s = down.as_secs();
        info!(backend = &*self.backend, protocol = self.protocol, %address, usable, down_s, "backend address up again");
    }

    /// Records how long after the connection an address has greeted; logs a change.
    pub(super) fn greeted(&self, address: SocketAddr, after: Duration) {
        let change = self.addresses().breaker(address).and_then(|breaker| breaker.greeted(after));
        let (backend, protocol, greets_after_ms) = (&*self.backend, self.protocol, milliseconds(after));
        match change {
            Some(GreetingChange::Late) => {
                warn!(backend, protocol, %address, greets_after_ms, "backend address greets late; every login waits for it");
            }
            Some(GreetingChange::Prompt) => {
                info!(backend, protocol, %address, greets_after_ms, "backend address greets promptly again");
            }
            None => {}
        }
    }

    /// Whether the greeting of a connected address should have come by now.
    pub(super) fn is_overdue(&self, attempt: &ConnectAttempt) -> bool {
        self.addresses().breaker(attempt.address).is_some_and(|breaker| breaker.is_overdue(attempt.began.elapsed()))
    }

    /// Records that a user's login was accepted.
    pub(super) fn login_accepted(&self) {
        self.accepts_again(self.acceptance.accepted(Instant::now()));
    }

    fn accepts_again(&self, refused_for: Option<Duration>) {
        if let Some(refused_s) = refused_for.map(|time| time.as_secs()) {
            info!(backend = &*self.backend, protocol = self.protocol, refused_s, "backend accepts logins again");
        }
    }

    /// Records that the login of a proven user has failed there.
    pub(super) fn login_failed(&self, user: &EntryKey, how: LoginFailure, reason: &str) {
        if self.acceptance.failed(user, how, reason, Instant::now()) {
            self.log_refusing("users", reason);
        }
    }

    fn log_refusing(&self, seen_by: &'static str, reason: &str) {
        let reason = Bounded(reason.as_bytes());
        warn!(backend = &*self.backend, protocol = self.protocol, seen_by, %reason, "backend accepts no login; its users get the reply of an outage");
    }

    /// Records that the probe account was rejected.
    pub(super) fn account_refused(&self, reason: &str) {
        match self.acceptance.probe_refused(reason, Instant::now()) {
            ProbeRefusal::Known => {}
            ProbeRefusal::Begins => self.log_refusing("probe", reason),
            ProbeRefusal::Account => {
                let (backend, protocol, reason) = (&*self.backend, self.protocol, Bounded(reason.as_bytes()));
                warn!(backend, protocol, %reason, "backend rejected the probe account, and users log in: check the account");
            }
        }
    }

    /// Records that the probe account was accepted.
    pub(super) fn account_accepted(&self) {
        self.accepts_again(self.acceptance.probe_accepted(Instant::now()));
    }

    /// Stores an address's capabilities. Returns whether they replaced different ones.
    pub(super) fn record_capabilities(&self, address: SocketAddr, listed: Vec<String>) -> bool {
        let mut set = self.addresses();
        if set.lists.get(&address) == Some(&listed) {
            return false;
        }
        // DNS may bring ever new addresses.
        if set.lists.len() >= LISTS {
            let kept: Vec<SocketAddr> = set.entries.iter().map(|(at, _)| *at).collect();
            set.lists.retain(|at, _| kept.contains(at));
        }
        set.generation += 1;
        let before = set.lists.insert(address, listed);
        drop(set);
        if before.is_some() {
            info!(backend = &*self.backend, protocol = self.protocol, %address, "backend capabilities changed");
        }
        before.is_some()
    }

    /// How often the capabilities of its addresses have changed.
    pub(super) fn generation(&self) -> u64 {
        self.addresses().generation
    }

    /// The capabilities that all of its addresses have in common; during an outage, the last ones. `None` if no
    /// address was ever reached.
    pub(super) fn capabilities(&self) -> Option<Vec<String>> {
        let set = self.addresses();
        let mut lists: Vec<&[String]> =
            set.entries.iter().filter_map(|(at, _)| set.lists.get(at)).map(Vec::as_slice).collect();
        // The name resolves to other addresses now, or to none: the last known capabilities stay in use.
        if lists.is_empty() {
            lists = set.lists.values().map(Vec::as_slice).collect();
        }
        (!lists.is_empty()).then(|| capabilities::common(&lists))
    }

    /// Notes a change for [`Pool::take_changes`], in place of an earlier one of the same address.
    fn note_change(&self, set: &mut AddressSet, change: NodeChange) {
        let (NodeChange::Returned(of) | NodeChange::Left(of)) = change;
        if self.balance == AddressBalance::UserHash(OnReturn::Close) {
            set.changes.retain(|(NodeChange::Returned(at) | NodeChange::Left(at))| *at != of);
            // DNS may bring ever new addresses.
            if set.changes.len() < LISTS {
                set.changes.push(change);
            }
        }
    }

    /// The changes since the last call.
    pub(super) fn take_changes(&self) -> Vec<NodeChange> {
        match self.balance {
            AddressBalance::UserHash(OnReturn::Close) => std::mem::take(&mut self.addresses().changes),
            AddressBalance::UserHash(OnReturn::Keep) | AddressBalance::First => Vec::new(),
        }
    }

    /// The address that a user without sessions belongs to, among those that are up.
    pub(super) fn home(&self, affinity: &Affinity) -> Option<SocketAddr> {
        let mut usable = self.addresses().usable_addresses();
        affinity.sort(&mut usable);
        usable.first().copied()
    }

    /// How many addresses have this state.
    pub(super) fn count(&self, standing: BreakerState) -> usize {
        self.addresses().entries.iter().filter(|(_, breaker)| breaker.state() == standing).count()
    }

    /// Whether a login would be sent to an address, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        self.addresses().is_up()
    }

    /// The current status.
    pub(super) fn status(&self) -> ProtocolStatus {
        let capabilities = self.capabilities();
        let set = self.addresses();
        let addresses = set.entries.iter().map(|(address, breaker)| AddressStatus {
            address: *address,
            breaker: breaker.state().label().into(),
            reason: breaker.reason().map(ToString::to_string),
            down_seconds: breaker.since().map(|since| since.elapsed().as_secs()),
            greets_after_ms: breaker.late_greeting().map(milliseconds),
        });
        let unresolved = set.resolver.failure.clone().map(|failure| BackendError::from(failure).to_string());
        ProtocolStatus {
            protocol: self.protocol.into(),
            up: set.is_up(),
            unresolved,
            refusing: self.acceptance.refusing().map(|refusing| RefusingStatus {
                seconds: refusing.since.elapsed().as_secs(),
                by_probe: refusing.by_probe,
                reason: refusing.reason.to_string(),
            }),
            addresses: addresses.collect(),
            capabilities,
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A running probe of an address; ends when dropped.
#[derive(Debug)]
pub(super) struct RunningProbe {
    pool: Arc<Pool>,
    pub(super) attempt: ConnectAttempt,
}

impl RunningProbe {
    fn new(pool: &Arc<Pool>, address: SocketAddr, began: Instant) -> Self {
        Self { pool: Arc::clone(pool), attempt: ConnectAttempt { address, began, connected: false } }
    }

    /// The probe has connected; waiting logins are notified.
    pub(super) fn connected(&mut self) {
        self.attempt.connected = true;
        if let Some(breaker) = self.pool.addresses().breaker(self.attempt.address) {
            breaker.probe_connected();
        }
        self.pool.changed.send_replace(());
    }

    /// Whether it probes an address that is down.
    pub(super) fn is_recovery(&self) -> bool {
        self.pool.addresses().breaker(self.attempt.address).is_none_or(|breaker| !breaker.is_closed())
    }
}

impl Drop for RunningProbe {
    fn drop(&mut self) {
        if let Some(breaker) = self.pool.addresses().breaker(self.attempt.address) {
            breaker.end_probe(Instant::now());
        }
        self.pool.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn local_shortage_is_no_fault_of_the_server() {
        let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
routing: {backends: [{name: server3, imap: {address: '192.0.2.3:993', tls: implicit}}]}
";
        let config = config::parse(std::path::Path::new("/c.yaml"), text).unwrap();
        let backend = &config.routing.backends[0];
        let own: Arc<[SocketAddr]> = Arc::from([]);
        let pool = Pool::new(&"server3".into(), &backend.endpoints[0], backend, &own, Shares::default());
        let address = at(&["192.0.2.3:993"])[0];
        let opened = |reason: rustix::io::Errno| {
            for _ in 0..10 {
                let attempt = ConnectAttempt { address, began: Instant::now(), connected: false };
                pool.failed(&attempt, &BackendError::Connect { address, source: reason.into() });
            }
            pool.count(BreakerState::Open)
        };
        assert_eq!(opened(rustix::io::Errno::MFILE), 0);
        assert_eq!(opened(rustix::io::Errno::ADDRNOTAVAIL), 0);
        assert!(pool.status().up);
        assert_eq!(opened(rustix::io::Errno::CONNREFUSED), 1);
        let state = pool.status();
        assert!(!state.up && state.capabilities.is_none());
        let [one] = state.addresses.as_slice() else { panic!("{state:?}") };
        assert_eq!((one.address, &*one.breaker), (address, "open"));
        assert!(one.reason.as_ref().unwrap().contains("Connection refused") && one.down_seconds.is_some(), "{one:?}");
    }
}
