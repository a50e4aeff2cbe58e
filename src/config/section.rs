//! What several sections have in common: networks, certificates, protocols, addresses to listen on.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::model::{CertificateFiles, Group};
use super::names;
use super::raw::{Node, Section, Unique};
use crate::proto::PROTOCOLS;

/// The names of all protocols, for a message.
pub(super) fn protocol_names() -> String {
    PROTOCOLS.iter().map(|protocol| format!("`{}`", protocol.name)).collect::<Vec<_>>().join(", ")
}

/// A list of networks, or one.
pub(super) fn networks(node: &Node<'_>) -> Option<Vec<IpNet>> {
    let items = node.one_or_more()?;
    let networks: Vec<_> = items.iter().filter_map(|item| item.parsed(names::network)).collect();
    (networks.len() == items.len()).then_some(networks)
}

/// `{chain, key}`.
pub(super) fn certificate(node: &Node<'_>) -> Option<CertificateFiles> {
    let pair = |pair: &Section<'_>| {
        let chain = pair.required("chain", "name the PEM file with the certificate and its intermediates");
        let key = pair.required("key", "name the PEM file with the private key");
        let (chain, key) = (chain.and_then(|node| node.path()), key.and_then(|node| node.path()));
        Some(CertificateFiles { chain: chain?, key: key? })
    };
    node.section(pair).flatten()
}

/// `pin_sha256`: the public keys that take the place of chain and name.
pub(super) fn pins(section: &Section<'_>) -> Option<Vec<[u8; 32]>> {
    let pins = section.get("pin_sha256").and_then(|node| node.one_or_more())?;
    Some(pins.iter().filter_map(|node| node.parsed(names::pin)).collect())
}

/// `groups`: key exchange groups in order of preference; without it all of them.
pub(super) fn groups(section: &Section<'_>) -> Option<Vec<Group>> {
    match section.get("groups") {
        Some(node) => distinct(&node, |item| item.word(names::GROUPS).map(|group| (format!("{group:?}"), group))),
        // The rest are other names of what stands before them.
        None => Some(names::GROUPS.iter().take(4).map(|(_, group)| *group).collect()),
    }
}

/// A list without repetitions; `read` gives the name by which items are compared, and the item.
pub(super) fn distinct<T>(node: &Node<'_>, read: impl Fn(&Node<'_>) -> Option<(String, T)>) -> Option<Vec<T>> {
    let mut unique = Unique::default();
    let one = |item: Node<'_>| {
        let (name, value) = read(&item)?;
        unique.check(&name, &item);
        Some(value)
    };
    Some(node.one_or_more()?.into_iter().filter_map(one).collect())
}

/// The addresses usher listens on, so that no two of them collide.
#[derive(Default)]
pub(super) struct Addresses {
    taken: Vec<(SocketAddr, String)>,
}

impl Addresses {
    /// An address to listen on, reported if it is taken.
    pub(super) fn read(&mut self, node: &Node<'_>) -> Option<SocketAddr> {
        let address = node.parsed(names::socket_address)?;
        if let Some((other, first)) = self.taken.iter().find(|(other, _)| collide(*other, address)) {
            let hint = match (other.is_ipv4(), address.is_ipv4()) {
                (true, false) | (false, true) => " ([::] takes IPv4 too, unless 0.0.0.0 is configured at the port)",
                (_, _) => "",
            };
            node.problem(format!("this address and port are already used by {first}{hint}: change one"));
        }
        self.taken.push((address, node.key().to_owned()));
        Some(address)
    }
}

/// Whether the system refuses to listen on both. Port 0 is a new port each time, and an IPv6 wildcard takes
/// IPv4 too, unless the IPv4 wildcard is there for that.
#[must_use]
pub(crate) fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |wide: SocketAddr, narrow: SocketAddr| {
        let same_family = wide.is_ipv4() == narrow.is_ipv4();
        wide.ip().is_unspecified() && (same_family || wide.is_ipv6() && !narrow.ip().is_unspecified())
    };
    one.port() != 0
        && one.port() == other.port()
        && (one.ip() == other.ip() || covers(one, other) || covers(other, one))
}
