//! The addresses of a backend for one protocol, as last resolved, and when they are resolved again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::balance::NodeChange;
use super::health::{Breaker, SlowStart};
use super::resolve::ResolveError;

/// How long a result of the resolver is used. The system's resolver reports no TTL; this is short enough for a
/// move by DNS and long enough to keep it out of a busy login path.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// When a failed name resolution is retried.
const RETRY: Duration = Duration::from_secs(1);
/// The addresses with their breakers.
#[derive(Debug)]
pub(super) struct AddressSet {
    pub(super) entries: Vec<(SocketAddr, Breaker)>,
    pub(super) resolver: Resolver,
    pub(super) slow_start: SlowStart,
    /// Each address's last capabilities, filtered for clients.
    pub(super) lists: HashMap<SocketAddr, Vec<String>>,
    /// How often that has changed.
    pub(super) generation: u64,
    /// The changes that were not taken yet, at most one for each address.
    pub(super) changes: Vec<NodeChange>,
}

/// The state of name resolution.
#[derive(Debug)]
pub(super) struct Resolver {
    /// When to resolve next; `None`: never, there are no names.
    pub(super) due: Option<Instant>,
    pub(super) asking: bool,
    /// Why there is no address, if resolution has failed.
    pub(super) failure: Option<ResolveError>,
}

impl Resolver {
    /// Resolution has failed.
    pub(super) fn retry_later(&mut self) {
        (self.asking, self.due) = (false, Some(Instant::now() + RETRY));
    }
}

impl AddressSet {
    /// No address yet; the names are resolved at `due`, if there are any.
    pub(super) fn new(due: Option<Instant>, slow_start: SlowStart) -> Self {
        Self {
            entries: Vec::new(),
            resolver: Resolver { due, asking: false, failure: None },
            slow_start,
            lists: HashMap::new(),
            generation: 0,
            changes: Vec::new(),
        }
    }

    pub(super) fn breaker(&mut self, address: SocketAddr) -> Option<&mut Breaker> {
        self.entries.iter_mut().find(|(at, _)| *at == address).map(|(_, breaker)| breaker)
    }

    pub(super) fn usable(&self) -> usize {
        self.entries.iter().filter(|(_, breaker)| breaker.is_closed()).count()
    }

    pub(super) fn usable_addresses(&self) -> Vec<SocketAddr> {
        self.entries.iter().filter(|(_, breaker)| breaker.is_closed()).map(|(at, _)| *at).collect()
    }

    pub(super) fn is_up(&self) -> bool {
        // A name that was not resolved yet counts as up.
        self.usable() > 0 || (self.entries.is_empty() && self.resolver.failure.is_none())
    }

    /// Replaces the addresses; those that stay keep their state.
    pub(super) fn set_addresses(&mut self, addresses: Vec<SocketAddr>) {
        let mut old = std::mem::take(&mut self.entries);
        for address in addresses {
            let known = old.iter().position(|(at, _)| *at == address).map(|at| old.swap_remove(at).1);
            self.entries.push((address, known.unwrap_or_default()));
        }
    }

    /// Takes over a result of the resolver.
    pub(super) fn resolved(&mut self, answer: Result<Vec<SocketAddr>, ResolveError>) {
        let life = if answer.is_err() { RETRY } else { RESOLVE_INTERVAL };
        self.resolver.failure = match answer {
            Ok(addresses) => {
                self.set_addresses(addresses);
                None
            }
            // An unreachable resolver removes no address; a name that leads to usher itself removes all.
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::backend::health::{ConnectAttempt, FaultEffect};

    fn set() -> AddressSet {
        let mut set = AddressSet::new(None, SlowStart::new(Duration::ZERO));
        set.resolver.asking = true;
        set
    }

    fn at(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn address_state_survives_a_new_dns_reply() {
        let mut set = set();
        set.resolved(Ok(at(&["192.0.2.1:993", "192.0.2.2:993"])));
        let address = at(&["192.0.2.1:993"])[0];
        let attempt = ConnectAttempt { address, began: Instant::now(), connected: false };
        let effect = set.breaker(address).unwrap().failed(&attempt, 1, "refused", Instant::now());
        assert_eq!(effect, FaultEffect::MarkedDown);
        set.resolved(Ok(at(&["192.0.2.3:993", "192.0.2.1:993"])));
        let closed: Vec<_> = set.entries.iter().map(|(at, breaker)| (at.to_string(), breaker.is_closed())).collect();
        assert_eq!(closed, [("192.0.2.3:993".to_owned(), true), ("192.0.2.1:993".to_owned(), false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn unreachable_resolver_removes_no_address_and_is_retried_soon() {
        let mut set = set();
        let away = || Err(ResolveError::Name(Arc::new(io::ErrorKind::TimedOut.into())));
        set.resolved(away());
        assert!(set.resolver.failure.is_some() && !set.resolver.asking);
        set.resolved(Ok(at(&["192.0.2.1:993"])));
        assert!(set.resolver.failure.is_none());
        assert_eq!(set.resolver.due, Some(Instant::now() + RESOLVE_INTERVAL));
        set.resolved(away());
        assert_eq!((set.usable(), set.resolver.due), (1, Some(Instant::now() + RETRY)));
        // A name that leads back to usher is not an outage of the resolver.
        set.resolved(Err(ResolveError::Own(at(&["192.0.2.1:993"])[0])));
        assert!(set.entries.is_empty() && set.resolver.failure.is_some());
    }
}
