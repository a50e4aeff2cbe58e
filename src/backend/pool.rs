//! A backend's addresses for one protocol, in order of preference, each with its breaker.
//!
//! The resolver is asked now and then and beside the logins, never by each of them; what it said
//! last stands until it says something else. Lines are logged when something changes, never for a
//! login.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::BackendError;
use super::health::{Breaker, BreakerState, ConnectAttempt, PATIENCE, RetryWindow, SPACING, SlowStart};
use super::resolve::{ResolveError, resolve};
use super::source::Sources;
use super::state::{AddressStatus, ProtocolStatus};
use crate::config::{self, Address, Probe};
use crate::log::Escaped;
use crate::metrics::Metrics;
use crate::proto::capabilities;
use crate::tasks::{self, Task};

/// How long an answer of the resolver is used. The system's resolver tells no time to live; this is
/// short enough for a move by DNS and long enough to keep it out of a busy login path.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// How soon the resolver is asked again when it knew nothing.
const RETRY: Duration = Duration::from_secs(1);
/// How often an address that failed is looked after.
const SUSPECT_INTERVAL: Duration = Duration::from_secs(1);

/// Addresses whose capabilities are kept at the most.
const LISTS: usize = 64;

/// What an attempt has shown of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// TLS and the greeting were as they should be.
    Greeting,
    /// A login was accepted as well.
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
    addresses: Mutex<AddressSet>,
    /// Told whenever somebody who waits should look again.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct AddressSet {
    entries: Vec<(SocketAddr, Breaker)>,
    resolver: Resolver,
    slow_start: SlowStart,
    /// Whether the account of the probes was refused last time.
    account_refused: bool,
    /// What each address said last that it can do, sorted out for clients.
    lists: HashMap<SocketAddr, Vec<String>>,
    /// How often that has changed.
    generation: u64,
}

/// How it stands with the resolver.
#[derive(Debug)]
struct Resolver {
    /// When to ask it next; `None`: never, there are no names.
    due: Option<Instant>,
    asking: bool,
    /// Why there is no address, as far as it has said so.
    failure: Option<ResolveError>,
}

impl Resolver {
    /// Nothing came of asking.
    fn retry_later(&mut self) {
        (self.asking, self.due) = (false, Some(Instant::now() + RETRY));
    }
}

/// What a login finds.
#[derive(Debug)]
pub(super) enum Selection {
    /// Addresses to try, in order.
    Usable(Vec<SocketAddr>),
    /// Nothing yet; look again at the next news, or then.
    Wait(Option<Instant>),
    /// Nothing.
    Unavailable(BackendError),
}

impl Pool {
    pub(super) fn new(
        backend: &Arc<str>,
        endpoint: &config::Endpoint,
        settings: &config::Backend,
        own: &Arc<[SocketAddr]>,
    ) -> Self {
        let literal = endpoint.addresses.iter().all(|address| address.host.parse::<IpAddr>().is_ok());
        let resolver = Resolver { due: (!literal).then(Instant::now), asking: false, failure: None };
        let mut roster = AddressSet {
            entries: Vec::new(),
            resolver,
            slow_start: SlowStart::new(settings.health.slow_start),
            account_refused: false,
            lists: HashMap::new(),
            generation: 0,
        };
        if literal {
            let found =
                endpoint.addresses.iter().filter_map(|at| Some(SocketAddr::new(at.host.parse().ok()?, at.port)));
            roster.set_addresses(found.collect());
        }
        Self {
            backend: Arc::clone(backend),
            protocol: endpoint.protocol.name,
            configured: endpoint.addresses.clone(),
            own: Arc::clone(own),
            sources: Sources::new(&settings.source),
            settings: settings.health.clone(),
            addresses: Mutex::new(roster),
            changed: watch::Sender::new(()),
        }
    }

    fn addresses(&self) -> MutexGuard<'_, AddressSet> {
        // No holder leaves it half-changed, so that a panic elsewhere means nothing.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be woken by whatever changes from now on.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Asks the resolver if it is time to, beside whoever calls.
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

    /// Asks the resolver now, and takes over what it says.
    pub(super) async fn resolve(&self) -> Result<Vec<SocketAddr>, BackendError> {
        let answer = resolve(&self.configured, &self.own, &self.sources).await;
        self.addresses().resolved(answer.clone());
        Ok(answer?)
    }

    /// Begins a look at each address that is down, for a login's sake: at once if it has no other.
    pub(super) fn begin_down_probes(self: &Arc<Self>) -> Vec<RunningProbe> {
        let pause = if self.addresses().usable() == 0 { SPACING } else { SUSPECT_INTERVAL };
        self.begin(|breaker| (!breaker.is_closed()).then_some(pause))
    }

    /// Begins a look at each address that has not been looked at for long enough.
    pub(super) fn begin_due_probes(self: &Arc<Self>) -> Vec<RunningProbe> {
        let interval = self.settings.probe_interval;
        self.begin(|breaker| Some(if breaker.is_healthy() { interval } else { interval.min(SUSPECT_INTERVAL) }))
    }

    /// Begins a look at this address, if nobody is looking.
    pub(super) fn begin_probe(self: &Arc<Self>, address: SocketAddr) -> Option<RunningProbe> {
        let mut roster = self.addresses();
        let now = Instant::now();
        roster.breaker(address)?.begin_probe(SPACING, now).then(|| RunningProbe::new(self, address, now))
    }

    fn begin(self: &Arc<Self>, pause: impl Fn(&Breaker) -> Option<Duration>) -> Vec<RunningProbe> {
        let now = Instant::now();
        let mut roster = self.addresses();
        let due = roster.entries.iter_mut().filter_map(|(address, breaker)| {
            breaker.begin_probe(pause(breaker)?, now).then(|| RunningProbe::new(self, *address, now))
        });
        due.collect()
    }

    /// What a login that arrived then finds now.
    pub(super) fn select(&self, arrived: Instant) -> Selection {
        let now = Instant::now();
        let give_up = arrived + PATIENCE;
        let roster = self.addresses();
        if roster.entries.is_empty() {
            return match &roster.resolver.failure {
                // Nobody knows yet whether the name leads anywhere: the login has its whole time.
                None => Selection::Wait(None),
                Some(_) if roster.resolver.asking && now < give_up => Selection::Wait(Some(give_up)),
                Some(failure) => Selection::Unavailable(failure.clone().into()),
            };
        }
        let usable: Vec<_> =
            roster.entries.iter().filter(|(_, breaker)| breaker.is_closed()).map(|(at, _)| *at).collect();
        if !usable.is_empty() {
            return Selection::Usable(usable);
        }
        let hopes = roster.entries.iter().filter_map(|(_, breaker)| breaker.retry_window(arrived));
        let until = hopes.map(|hope| match hope {
            RetryWindow::Bounded(until) => until.min(give_up),
            RetryWindow::Extended(until) => until,
        });
        match until.filter(|until| *until > now).min() {
            Some(until) => Selection::Wait(Some(until)),
            None => {
                let reason = roster.entries.iter().find_map(|(_, breaker)| breaker.reason());
                Selection::Unavailable(BackendError::Down { reason: reason.map_or_else(|| "".into(), Arc::clone) })
            }
        }
    }

    /// When a login may go after an outage; `None` if that is later than it may wait.
    pub(super) fn slot(&self, patience: Duration) -> Option<Instant> {
        self.addresses().slow_start.slot(patience, Instant::now())
    }

    /// An attempt met a fault, which is the server's unless this machine is to blame.
    pub(super) fn failed(&self, attempt: &ConnectAttempt, error: &BackendError) {
        if error.is_local_fault() {
            return;
        }
        let (now, address) = (Instant::now(), attempt.address);
        let mut roster = self.addresses();
        let Some(breaker) = roster.breaker(address) else { return };
        let reason = error.to_string();
        let opened = breaker.failed(attempt, self.settings.failures, &reason, now);
        if !opened {
            return;
        }
        // An address that nobody answers at may have moved.
        if let Some(due) = &mut roster.resolver.due {
            *due = now;
        }
        let usable = roster.usable();
        drop(roster);
        // It may quote what the peer's certificate says.
        let reason = Escaped(reason.as_bytes());
        warn!(backend = &*self.backend, protocol = self.protocol, %address, usable, %reason, "backend address marked down");
    }

    /// An attempt showed that the server is well, as far as this proof goes.
    pub(super) fn succeeded(&self, address: SocketAddr, proof: Evidence) {
        // Where probes log in, a greeting alone proves nothing.
        if proof == Evidence::Greeting && matches!(self.settings.probe, Probe::Login(_)) {
            return;
        }
        let now = Instant::now();
        let mut roster = self.addresses();
        let outage = roster.usable() == 0;
        let Some(down) = roster.breaker(address).and_then(|breaker| breaker.succeeded(now)) else { return };
        if outage {
            roster.slow_start.begin(now);
        }
        let usable = roster.usable();
        drop(roster);
        self.changed.send_replace(());
        let down_s = down.as_secs();
        info!(backend = &*self.backend, protocol = self.protocol, %address, usable, down_s, "backend address up again");
    }

    /// Whether the account of the probes was refused; told when it changes.
    pub(super) fn account_refused(&self, refused: bool) {
        let before = std::mem::replace(&mut self.addresses().account_refused, refused);
        match (before, refused) {
            (false, true) => {
                warn!(
                    backend = &*self.backend,
                    protocol = self.protocol,
                    "backend rejected the probe account; logins are not affected"
                );
            }
            (true, false) => {
                info!(backend = &*self.backend, protocol = self.protocol, "backend accepts the probe account again");
            }
            (false, false) | (true, true) => {}
        }
    }

    /// Keeps what an address says it can do. Returns whether it said something else before.
    pub(super) fn record_capabilities(&self, address: SocketAddr, listed: Vec<String>) -> bool {
        let mut roster = self.addresses();
        if roster.lists.get(&address) == Some(&listed) {
            return false;
        }
        // One address after the other may come and go by DNS.
        if roster.lists.len() >= LISTS {
            let kept: Vec<SocketAddr> = roster.entries.iter().map(|(at, _)| *at).collect();
            roster.lists.retain(|at, _| kept.contains(at));
        }
        roster.generation += 1;
        let before = roster.lists.insert(address, listed);
        drop(roster);
        if before.is_some() {
            info!(backend = &*self.backend, protocol = self.protocol, %address, "backend capabilities changed");
        }
        before.is_some()
    }

    /// How often what its addresses can do has changed.
    pub(super) fn generation(&self) -> u64 {
        self.addresses().generation
    }

    /// What all of its addresses can do, as far as they have said; through an outage, what they said
    /// last. `None` if nobody has ever been reached.
    pub(super) fn capabilities(&self) -> Option<Vec<String>> {
        let roster = self.addresses();
        let mut lists: Vec<&[String]> =
            roster.entries.iter().filter_map(|(at, _)| roster.lists.get(at)).map(Vec::as_slice).collect();
        // The name leads elsewhere now, or nowhere: the last that is known of it still stands.
        if lists.is_empty() {
            lists = roster.lists.values().map(Vec::as_slice).collect();
        }
        (!lists.is_empty()).then(|| capabilities::common(&lists))
    }

    /// How many addresses stand how.
    pub(super) fn count(&self, standing: BreakerState) -> usize {
        self.addresses().entries.iter().filter(|(_, breaker)| breaker.state() == standing).count()
    }

    /// Whether a login would be sent somewhere, as far as anybody knows.
    pub(super) fn is_up(&self) -> bool {
        self.addresses().is_up()
    }

    /// How it stands.
    pub(super) fn status(&self) -> ProtocolStatus {
        let capabilities = self.capabilities();
        let roster = self.addresses();
        let addresses = roster.entries.iter().map(|(address, breaker)| AddressStatus {
            address: *address,
            breaker: breaker.state().label().into(),
            reason: breaker.reason().map(ToString::to_string),
            down_seconds: breaker.since().map(|since| since.elapsed().as_secs()),
        });
        let unresolved = roster.resolver.failure.clone().map(|failure| BackendError::from(failure).to_string());
        ProtocolStatus {
            protocol: self.protocol.into(),
            up: roster.is_up(),
            unresolved,
            addresses: addresses.collect(),
            capabilities,
        }
    }
}

impl AddressSet {
    fn breaker(&mut self, address: SocketAddr) -> Option<&mut Breaker> {
        self.entries.iter_mut().find(|(at, _)| *at == address).map(|(_, breaker)| breaker)
    }

    fn usable(&self) -> usize {
        self.entries.iter().filter(|(_, breaker)| breaker.is_closed()).count()
    }

    fn is_up(&self) -> bool {
        // Nothing is known against a name that was not asked for yet.
        self.usable() > 0 || (self.entries.is_empty() && self.resolver.failure.is_none())
    }

    /// These are the addresses from now on; what is known of those that stay stays.
    fn set_addresses(&mut self, addresses: Vec<SocketAddr>) {
        let mut old = std::mem::take(&mut self.entries);
        for address in addresses {
            let known = old.iter().position(|(at, _)| *at == address).map(|at| old.swap_remove(at).1);
            self.entries.push((address, known.unwrap_or_default()));
        }
    }

    /// Takes over what the resolver said.
    fn resolved(&mut self, answer: Result<Vec<SocketAddr>, ResolveError>) {
        let life = if answer.is_err() { RETRY } else { RESOLVE_INTERVAL };
        self.resolver.failure = match answer {
            Ok(addresses) => {
                self.set_addresses(addresses);
                None
            }
            // A resolver that is away takes nothing back; a name that leads to usher itself does.
            Err(ResolveError::Name(_)) if !self.entries.is_empty() => None,
            Err(failure) => {
                self.entries.clear();
                Some(failure)
            }
        };
        self.resolver.asking = false;
        self.resolver.due = Some(Instant::now() + life);
    }
}

/// Somebody looks whether an address is well; over when dropped.
#[derive(Debug)]
pub(super) struct RunningProbe {
    pool: Arc<Pool>,
    pub(super) attempt: ConnectAttempt,
}

impl RunningProbe {
    fn new(pool: &Arc<Pool>, address: SocketAddr, began: Instant) -> Self {
        Self { pool: Arc::clone(pool), attempt: ConnectAttempt { address, began, connected: false } }
    }

    /// There is a connection, which may be what somebody hopes for.
    pub(super) fn connected(&mut self) {
        self.attempt.connected = true;
        if let Some(breaker) = self.pool.addresses().breaker(self.attempt.address) {
            breaker.probe_connected();
        }
        self.pool.changed.send_replace(());
    }

    /// Whether it is about the return of an address that is down.
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
    use std::io;

    use super::*;

    fn roster() -> AddressSet {
        let resolver = Resolver { due: None, asking: true, failure: None };
        let (account_refused, lists, lessons) = (false, HashMap::new(), 0);
        AddressSet {
            entries: Vec::new(),
            resolver,
            slow_start: SlowStart::new(Duration::ZERO),
            account_refused,
            lists,
            generation: lessons,
        }
    }

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
        let pool = Pool::new(&"server3".into(), &backend.endpoints[0], backend, &own);
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

    #[tokio::test(start_paused = true)]
    async fn address_state_survives_a_new_dns_reply() {
        let mut roster = roster();
        roster.resolved(Ok(at(&["192.0.2.1:993", "192.0.2.2:993"])));
        let address = at(&["192.0.2.1:993"])[0];
        let attempt = ConnectAttempt { address, began: Instant::now(), connected: false };
        assert!(roster.breaker(address).unwrap().failed(&attempt, 1, "refused", Instant::now()));
        roster.resolved(Ok(at(&["192.0.2.3:993", "192.0.2.1:993"])));
        let closed: Vec<_> = roster.entries.iter().map(|(at, breaker)| (at.to_string(), breaker.is_closed())).collect();
        assert_eq!(closed, [("192.0.2.3:993".to_owned(), true), ("192.0.2.1:993".to_owned(), false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn unreachable_resolver_removes_no_address_and_is_retried_soon() {
        let mut roster = roster();
        let away = || Err(ResolveError::Name(Arc::new(io::ErrorKind::TimedOut.into())));
        roster.resolved(away());
        assert!(roster.resolver.failure.is_some() && !roster.resolver.asking);
        roster.resolved(Ok(at(&["192.0.2.1:993"])));
        assert!(roster.resolver.failure.is_none());
        assert_eq!(roster.resolver.due, Some(Instant::now() + RESOLVE_INTERVAL));
        roster.resolved(away());
        assert_eq!((roster.usable(), roster.resolver.due), (1, Some(Instant::now() + RETRY)));
        // A name that leads back to usher is no outage of the resolver.
        roster.resolved(Err(ResolveError::Own(at(&["192.0.2.1:993"])[0])));
        assert!(roster.entries.is_empty() && roster.resolver.failure.is_some());
    }
}
