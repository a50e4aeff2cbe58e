//! The share of each client address in the connections of Postfix: at the limit a connection of the address with the
//! most is closed for one from another address, so that no host locks another out.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::net::network_of;

/// One host has a whole /64 of IPv6 addresses.
const HOST_BITS_V6: u8 = 64;
/// In place of a time: the connection's question is being looked up.
const BUSY: u64 = u64::MAX;

/// The open connections of one listener, at most `socketmap.max_connections` and those that are ending.
#[derive(Debug)]
pub(super) struct Connections {
    began: Instant,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: HashMap<u64, Arc<Connection>>,
}

#[derive(Debug)]
struct Connection {
    /// `None`: by the Unix socket, whose peers count as one.
    host: Option<IpNet>,
    /// Milliseconds after the start at which it began to wait for its peer, or [`BUSY`].
    waits_since: AtomicU64,
    displaced: CancellationToken,
}

/// A connection's place among them, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    id: u64,
    connection: Arc<Connection>,
}

impl Connections {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), open: Mutex::default() })
    }

    /// A place for a new connection.
    pub(super) fn enter(self: &Arc<Self>, peer: Option<IpAddr>) -> Place {
        let connection = Arc::new(Connection {
            host: peer.map(host),
            waits_since: AtomicU64::new(self.now()),
            displaced: CancellationToken::new(),
        });
        let id = self.with(|open| {
            let id = open.next;
            open.next = id.wrapping_add(1);
            open.all.insert(id, Arc::clone(&connection));
            id
        });
        Place { connections: Arc::clone(self), id, connection }
    }

    /// Closes the connection that has waited longest of the host with the most connections, if the peer's host has
    /// fewer, also with a new one. One whose question is being looked up is left alone.
    pub(super) fn displace_for(&self, peer: Option<IpAddr>) -> bool {
        let newcomer = peer.map(host);
        self.with(|open| {
            let mut counts: HashMap<Option<IpNet>, usize> = HashMap::new();
            for connection in open.all.values() {
                *counts.entry(connection.host).or_default() += 1;
            }
            let own = counts.get(&newcomer).copied().unwrap_or_default();
            let victim = open
                .all
                .iter()
                .map(|(id, it)| {
                    let count = counts.get(&it.host).copied().unwrap_or_default();
                    (count, it.waits_since.load(Ordering::Relaxed), *id)
                })
                .filter(|(count, since, _)| *count > own.saturating_add(1) && *since != BUSY)
                .max_by_key(|(count, since, _)| (*count, Reverse(*since)));
            let displaced = victim.and_then(|(_, _, id)| open.all.remove(&id));
            displaced.is_some_and(|connection| {
                connection.displaced.cancel();
                true
            })
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Open) -> T) -> T {
        work(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(BUSY - 1)
    }
}

/// What counts as one host.
fn host(peer: IpAddr) -> IpNet {
    match peer {
        IpAddr::V4(_) => peer.into(),
        IpAddr::V6(_) => network_of(peer, HOST_BITS_V6),
    }
}

impl Place {
    /// Ends when another host gets the place.
    pub(super) fn displaced(&self) -> impl Future<Output = ()> {
        self.connection.displaced.cancelled()
    }

    /// A question is being looked up.
    pub(super) fn looks_up(&self) {
        self.connection.waits_since.store(BUSY, Ordering::Relaxed);
    }

    /// The peer's turn.
    pub(super) fn waits(&self) {
        self.connection.waits_since.store(self.connections.now(), Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.with(|open| open.all.remove(&self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn is_displaced(place: &Place) -> bool {
        place.connection.displaced.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn longest_waiting_connection_of_the_greediest_host_is_displaced() {
        let connections = Connections::new();
        let mut places = Vec::new();
        for peer in ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.1"] {
            places.push(connections.enter(at(peer)));
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        places[0].looks_up();
        assert!(!connections.displace_for(at("192.0.2.1")), "not for the greediest itself");
        assert!(connections.displace_for(at("192.0.2.3")));
        let displaced: Vec<bool> = places.iter().map(is_displaced).collect();
        assert_eq!(displaced, [false, true, false, false, false]);
        places.push(connections.enter(at("192.0.2.3")));
        assert!(connections.displace_for(at("192.0.2.3")), "three against one");
        assert!(is_displaced(&places[3]));
        places.push(connections.enter(at("192.0.2.3")));
        assert!(!connections.displace_for(at("192.0.2.2")), "two each would only change places");
        places[0].waits();
        drop(places);
        assert_eq!(connections.with(|open| open.all.len()), 0);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_host() {
        let connections = Connections::new();
        let _places = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|peer| connections.enter(at(peer)));
        assert!(!connections.displace_for(at("2001:db8::4")));
        assert!(connections.displace_for(at("2001:db8:0:1::4")));
        assert!(connections.displace_for(None), "two against none");
    }
}
