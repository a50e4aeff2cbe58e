//! Which of a backend's equal nodes serves a user (`balance: user_hash`), and what is done when one is back.
//!
//! A rendezvous hash: each node has a weight for each user, and the heaviest that is up serves. So every usher chooses
//! alike without state, and a node that goes or comes moves its own users only. A node is an IP address: the protocols
//! of a user meet on one node, whatever their ports.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use aws_lc_rs::digest;
use tokio::task::yield_now;

use super::Backend;
use crate::directory::{Entry, EntryKey};
use crate::proto::Protocol;
use crate::sessions::closer::Closer;
use crate::sessions::id::SessionId;
use crate::sessions::registry::Registry;

/// How many sessions are looked at between two pauses.
const BATCH: usize = 256;

/// What the choice of a node depends on.
#[derive(Debug)]
pub(crate) struct Affinity {
    user: u64,
    /// Where the user's sessions are, the latest first.
    sessions: Vec<SocketAddr>,
}

impl Affinity {
    fn new(user: &EntryKey, sessions: Vec<SocketAddr>) -> Self {
        Self { user: hash(&user.to_bytes()), sessions }
    }

    /// Puts the addresses in the order in which they are tried: first where the user has sessions, then by weight.
    pub(super) fn sort(&self, addresses: &mut [SocketAddr]) {
        addresses.sort_by_cached_key(|address| {
            let has_session = self.sessions.iter().position(|at| at == address);
            let shares_node =
                || self.sessions.iter().position(|at| at.ip().to_canonical() == address.ip().to_canonical());
            let place = has_session.or_else(shares_node).unwrap_or(usize::MAX);
            let by_weight = std::cmp::Reverse(weights(self.user, *address));
            (place, has_session.is_none(), by_weight)
        });
    }
}

/// The weights of an address for a user: of its node, and of its port among those of one IP address.
fn weights(user: u64, address: SocketAddr) -> (u64, u64) {
    let ip = match address.ip().to_canonical() {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    };
    (mix(user ^ ip), mix(user ^ mix(ip ^ u64::from(address.port()))))
}

/// The same in every process and version: another function would move every user.
fn hash(bytes: &[u8]) -> u64 {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// The finalizer of SplitMix64: every bit of the result depends on every bit of the value.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A change of an address where `on_return` is `close`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeChange {
    /// It is up again.
    Returned(SocketAddr),
    /// It is down again.
    Left(SocketAddr),
}

impl Backend {
    /// What the choice of an address for this user depends on; `None` where all users go to the first.
    #[must_use]
    pub(crate) fn affinity(&self, protocol: &Protocol, user: &Entry, sessions: &Registry) -> Option<Affinity> {
        let endpoint = self.endpoints.get(protocol.name)?;
        endpoint.pool.balance.is_by_user().then(|| {
            let user = user.key();
            Affinity::new(&user, sessions.addresses_of(&user, &self.name))
        })
    }

    /// Where addresses are up again: has the sessions ended that belong to them and are elsewhere.
    pub(crate) async fn rebalance(&self, sessions: &Registry, closer: &Closer) {
        for endpoint in self.endpoints.values() {
            for change in endpoint.pool.take_changes() {
                match change {
                    NodeChange::Left(address) => closer.keep_displaced(&self.name, address.ip()),
                    NodeChange::Returned(address) => {
                        let users = self.displaced(address, sessions).await;
                        closer.close_displaced(Arc::clone(&self.name), address.ip(), users);
                    }
                }
            }
        }
    }

    /// The sessions that belong to this address, in whatever protocol, and are at another one, by user: those of one
    /// user end together, or the first to come back would find the others and stay with them.
    async fn displaced(&self, returned: SocketAddr, sessions: &Registry) -> Vec<Vec<SessionId>> {
        let mut found: Vec<(EntryKey, SessionId)> = Vec::new();
        for (number, (session, basis)) in sessions.listed().enumerate() {
            if number % BATCH == BATCH - 1 {
                yield_now().await;
            }
            let Some(address) = session.address.filter(|_| session.backend == self.name) else { continue };
            let Some(endpoint) = self.endpoints.get(&*session.protocol) else { continue };
            let user = basis.entry.key();
            let home = endpoint.pool.home(&Affinity::new(&user, Vec::new()));
            if home.is_some_and(|home| home.ip() == returned.ip() && home != address) {
                found.push((user, session.id));
            }
        }
        found.sort();
        let users = found.chunk_by(|(one, _), (next, _)| one == next);
        users.map(|sessions| sessions.iter().map(|(_, id)| *id).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::directory::Realm;

    fn nodes(ips: impl IntoIterator<Item = u8>, port: u16) -> Vec<SocketAddr> {
        ips.into_iter().map(|last| SocketAddr::from(([192, 0, 2, last], port))).collect()
    }

    fn user(number: u32) -> EntryKey {
        EntryKey::by_dn(Realm::DEFAULT, &format!("uid=user{number},dc=example").into())
    }

    fn order(number: u32, sessions: &[SocketAddr], addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut sorted = addresses.to_vec();
        Affinity::new(&user(number), sessions.to_vec()).sort(&mut sorted);
        sorted
    }

    #[test]
    fn users_are_spread_evenly() {
        let all = nodes(1..=5, 993);
        let mut counts = BTreeMap::new();
        for number in 0..10_000 {
            *counts.entry(order(number, &[], &all)[0]).or_insert(0_u32) += 1;
        }
        // 2,000 each; the standard deviation is 40.
        assert!(counts.len() == 5 && counts.values().all(|count| (1_800..2_200).contains(count)), "{counts:?}");
        // The second choice is spread as well: one node's users do not all go to one other.
        let first = |number: &u32| order(*number, &[], &all)[0] == all[0];
        let second: BTreeSet<_> = (0..1_000).filter(first).map(|number| order(number, &[], &all)[1]).collect();
        assert_eq!(second.len(), 4);
    }

    #[test]
    fn node_that_goes_moves_its_own_users_only() {
        let (all, left) = (nodes(1..=5, 993), nodes(2..=5, 993));
        for number in 0..1_000 {
            let (before, after) = (order(number, &[], &all), order(number, &[], &left));
            let stays: Vec<_> = before.iter().copied().filter(|node| *node != all[0]).collect();
            assert_eq!(after, stays);
        }
    }

    #[test]
    fn choice_depends_on_the_user_and_the_nodes_alone() {
        let (all, mut reversed) = (nodes(1..=5, 993), nodes(1..=5, 993));
        reversed.reverse();
        let (pop3, mapped) = (nodes(1..=5, 995), |last: u8| format!("[::ffff:192.0.2.{last}]:993").parse().unwrap());
        let mapped: Vec<SocketAddr> = (1..=5).map(mapped).collect();
        for number in 0..100 {
            let chosen = order(number, &[], &all);
            assert_eq!(chosen, order(number, &[], &reversed));
            let ips = |chosen: &[SocketAddr]| chosen.iter().map(|at| at.ip().to_canonical()).collect::<Vec<_>>();
            assert_eq!(ips(&chosen), ips(&order(number, &[], &pop3)), "each protocol on the same node");
            assert_eq!(ips(&chosen), ips(&order(number, &[], &mapped)));
        }
        // The realm is part of the user, and the case of a DN is not.
        let weights =
            |realm, dn: &str| weights(Affinity::new(&EntryKey::by_dn(realm, &dn.into()), vec![]).user, all[0]);
        assert_ne!(weights(Realm::DEFAULT, "uid=a,dc=x"), weights(Realm::named("other-nodes"), "uid=a,dc=x"));
        assert_eq!(weights(Realm::DEFAULT, "uid=a,dc=x"), weights(Realm::DEFAULT, "UID=A, dc=x"));
    }

    #[test]
    fn function_is_the_same_in_every_version() {
        assert_eq!(hash(b""), 0xe3b0_c442_98fc_1c14);
        assert_eq!((mix(1), mix(u64::MAX)), (0x5692_161d_100b_05e5, 0xb4d0_55fc_f2cb_bd7b));
    }

    #[test]
    fn nodes_on_one_ip_address_are_told_apart_by_their_ports() {
        let all: Vec<_> = (1..=3).flat_map(|port| nodes([1], port)).collect();
        let firsts: BTreeSet<_> = (0..100).map(|number| order(number, &[], &all)[0]).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn user_with_sessions_stays_with_them() {
        let all = nodes(1..=5, 993);
        for number in 0..100 {
            let chosen = order(number, &[], &all);
            // The latest first, then those before it, then by weight.
            let sorted = order(number, &[chosen[3], chosen[1]], &all);
            assert_eq!(sorted, [3, 1, 0, 2, 4].map(|nth: usize| chosen[nth]));
            // A session of another protocol is on the same node.
            let pop3 = SocketAddr::new(chosen[4].ip(), 995);
            assert_eq!(order(number, &[pop3], &all)[0], chosen[4]);
            // A node that is down is not brought back by a session there.
            let left: Vec<_> = all.iter().copied().filter(|node| *node != chosen[3]).collect();
            assert_eq!(order(number, &[chosen[3]], &left)[0], chosen[0]);
        }
    }
}
