//! The sections `listeners` and `capabilities`: where clients connect, and what is advertised there.

use ipnet::IpNet;

use super::model::{Listener, ListenerTls};
use super::names;
use super::raw::{Node, Section};
use super::section::{Addresses, networks, protocol_names};
use crate::proto::{MechanismSet, PROTOCOLS, Protocol};

/// The protocols as words for [`Node::word`].
fn protocols() -> Vec<(&'static str, &'static Protocol)> {
    PROTOCOLS.iter().map(|protocol| (protocol.name, protocol)).collect()
}

/// Reads the listeners.
pub(super) fn read(root: &Section<'_>, addresses: &mut Addresses) -> Option<Vec<Listener>> {
    let hint = "add `- {protocol: imap, address: \"[::]:993\", tls: implicit}`";
    let items = root.required("listeners", hint)?.list()?;
    let listener = |item: &Node<'_>| item.section(|listener| self::listener(listener, addresses)).flatten();
    // A mistake in one listener leaves the others to be checked; it is recorded already.
    Some(items.iter().filter_map(listener).collect())
}

fn listener(listener: &Section<'_>, addresses: &mut Addresses) -> Option<Listener> {
    let protocol =
        listener.required("protocol", &format!("write {}", protocol_names())).and_then(|node| node.word(&protocols()));
    let address = listener.required("address", "write an IP address and a port, such as \"[::]:993\"");
    let address = address.and_then(|node| addresses.read(&node));
    let words = [("implicit", ListenerTls::Implicit), ("starttls", ListenerTls::StartTls)];
    let tls = listener.required("tls", "write `implicit` (TLS from the first byte) or `starttls`");
    let tls = tls.and_then(|node| node.word(&words));
    let proxies = proxies(listener);
    let socket = listener.get("socket").map(|node| node.parsed(names::socket_name));
    let mechanisms = listener.get("mechanisms").map(|node| mechanisms(&node));
    let (protocol, address, tls) = (protocol?, address?, tls?);
    let other = match tls {
        ListenerTls::Implicit => protocol.starttls_port,
        ListenerTls::StartTls => protocol.implicit_port,
    };
    // A protocol may have one port for both.
    let usual = |port| port != other || protocol.implicit_port == protocol.starttls_port;
    if !usual(address.port()) {
        listener.warn("tls", format!("clients expect the other kind of TLS on port {}", address.port()));
    }
    let mechanisms = match mechanisms {
        Some(listed) => Some(listed?),
        None => None,
    };
    Some(Listener { protocol, address, tls, mechanisms, proxies: proxies?, socket: socket.flatten() })
}

/// The mechanisms that clients may log in with.
fn mechanisms(node: &Node<'_>) -> Option<MechanismSet> {
    let items = node.one_or_more()?;
    let read = |item: &Node<'_>| {
        let set = MechanismSet::of(item.text()?);
        if set.is_none() {
            let known: Vec<_> = MechanismSet::PASSWORDS.or(MechanismSet::TOKENS).names().collect();
            item.problem(format!("unknown mechanism: write some of {}", known.join(", ")));
        }
        set
    };
    let read: Vec<_> = items.iter().map(read).collect();
    let read: Option<Vec<_>> = read.into_iter().collect();
    Some(read?.into_iter().fold(MechanismSet::NONE, MechanismSet::or))
}

/// Who puts a PROXY header in front of every connection.
fn proxies(listener: &Section<'_>) -> Option<Option<Vec<IpNet>>> {
    let required =
        listener.get("proxy_header").map_or(Some(false), |node| node.word(&[("off", false), ("required", true)]));
    let trusted = listener.get("trusted").map(|node| networks(&node));
    if required == Some(false) {
        if trusted.is_some() {
            listener.warn("trusted", "without effect: `proxy_header` is off; remove one");
        }
        return Some(None);
    }
    if trusted.is_none() {
        listener.problem("trusted", "missing: list the networks of your proxies, whose headers are trusted");
    }
    if trusted.iter().flatten().flatten().any(|network| network.prefix_len() == 0) {
        listener.warn("trusted", "every address is trusted: any client can claim another client's address");
    }
    required.and(trusted?).map(Some)
}

/// What is advertised instead of the backends' own capabilities: one key for each protocol.
pub(super) fn capabilities(section: &Section<'_>) -> Option<Vec<(&'static Protocol, Vec<String>)>> {
    let nodes = PROTOCOLS.iter().filter_map(|protocol| Some((protocol, section.get(protocol.name)?)));
    let read = |(protocol, node): (&'static Protocol, Node<'_>)| {
        let items = node.list()?;
        let capability = |item: &Node<'_>| {
            let capability = item.parsed(names::capability)?;
            let name = crate::proto::capabilities::name(&capability);
            let advertised = (protocol.advertised)(name);
            if !advertised {
                item.problem(format!("cannot be advertised for {}: remove it", protocol.name));
            }
            advertised.then_some(capability)
        };
        let read: Vec<_> = items.iter().filter_map(capability).collect();
        if crate::proto::capabilities::bounded(read.iter().cloned()).len() < read.len() {
            node.problem(format!("the list is longer than {} bytes", crate::proto::capabilities::WHOLE));
        }
        (read.len() == items.len()).then_some((protocol, read))
    };
    nodes.map(read).collect()
}
