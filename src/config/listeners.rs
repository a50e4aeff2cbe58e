//! The sections `listeners` and `capabilities`: where clients connect, and what is advertised there.

use ipnet::IpNet;

use super::model::{CertificateMatch, ClientAuth, ClientCertificates, ClientLogin, Listener, ListenerTls, Tls};
use super::raw::{Node, Section};
use super::section::{Addresses, networks, protocol_names};
use super::{names, tls};
use crate::proto::{MechanismSet, PROTOCOLS, Protocol};

/// The protocols as words for [`Node::word`].
fn protocols() -> Vec<(&'static str, &'static Protocol)> {
    PROTOCOLS.iter().map(|protocol| (protocol.name, protocol)).collect()
}

/// Reads the listeners. `tls` is what they have in common, if it is sound.
pub(super) fn read(root: &Section<'_>, tls: Option<&Tls>, addresses: &mut Addresses) -> Option<Vec<Listener>> {
    let hint = "add `- {protocol: imap, address: \"[::]:993\", tls: implicit}`";
    let items = root.required("listeners", hint)?.list()?;
    let listener = |item: &Node<'_>| item.section(|listener| self::listener(listener, tls, addresses)).flatten();
    // A mistake in one listener leaves the others to be checked; it is recorded already.
    Some(items.iter().filter_map(listener).collect())
}

fn listener(listener: &Section<'_>, common: Option<&Tls>, addresses: &mut Addresses) -> Option<Listener> {
    let protocol =
        listener.required("protocol", &format!("write {}", protocol_names())).and_then(|node| node.word(&protocols()));
    let address = listener.required("address", "write an IP address and a port, such as \"[::]:993\"");
    let address = address.and_then(|node| addresses.read(&node));
    let words = [("implicit", ListenerTls::Implicit), ("starttls", ListenerTls::StartTls)];
    let tls = listener.required("tls", "write `implicit` (TLS from the first byte) or `starttls`");
    let tls = tls.and_then(|node| node.word(&words));
    let proxies = proxies(listener);
    let clients = clients(listener, common);
    let client_login = client_login(listener, clients.as_ref(), common);
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
    let client_login = client_login?;
    external_is_whole(listener, mechanisms, client_login.is_some());
    Some(Listener {
        protocol,
        address,
        tls,
        mechanisms,
        proxies: proxies?,
        socket: socket.flatten(),
        clients: clients?,
        client_login,
    })
}

/// The mechanisms that clients may log in with.
fn mechanisms(node: &Node<'_>) -> Option<MechanismSet> {
    let items = node.one_or_more()?;
    let read = |item: &Node<'_>| {
        let set = MechanismSet::of(item.text()?);
        if set.is_none() {
            let known: Vec<_> = MechanismSet::ALL.names().collect();
            item.problem(format!("unknown mechanism: write some of {}", known.join(", ")));
        }
        set
    };
    let read: Vec<_> = items.iter().map(read).collect();
    let read: Option<Vec<_>> = read.into_iter().collect();
    Some(read?.into_iter().fold(MechanismSet::NONE, MechanismSet::or))
}

/// Requires that a list of mechanisms and `client_login` agree about EXTERNAL.
fn external_is_whole(listener: &Section<'_>, mechanisms: Option<MechanismSet>, has_login: bool) {
    let is_listed = mechanisms.map(|set| set.meets(MechanismSet::EXTERNAL));
    let (key, message) = match (is_listed, has_login) {
        (None, _) | (Some(true), true) | (Some(false), false) => return,
        (Some(true), false) => ("mechanisms", "EXTERNAL needs `client_login`: how a certificate leads to a user"),
        (Some(false), true) => ("client_login", "without effect: `mechanisms` does not list EXTERNAL"),
    };
    if let Some(node) = listener.get(key) {
        node.problem(message);
    }
}

/// The certificates of its clients: what it does not say itself, `tls` says.
fn clients(listener: &Section<'_>, common: Option<&Tls>) -> Option<ClientCertificates> {
    let own = listener.get("client_ca").map(|node| node.path());
    let common = common.map(Tls::clients);
    let common_ca = common.as_ref().and_then(|common| common.ca.clone());
    // A section `tls` with a mistake may have named one.
    let has_ca = own.is_some() || common_ca.is_some() || common.is_none();
    let crl = tls::crl(listener, has_ca);
    let auth = match (own.is_some(), listener.get("client_auth")) {
        (false, None) => common.as_ref().map_or(ClientAuth::Off, |common| common.auth),
        (false, Some(_)) if common_ca.is_some() || common.is_none() => {
            listener.get("client_auth").and_then(|node| node.word(tls::CLIENT_AUTH))?
        }
        (_, _) => tls::client_auth(listener, own.is_some())?,
    };
    let is_own = own.is_some();
    let ca = if is_own { own.flatten() } else { common_ca };
    // The lists of `tls` are those of its own CA.
    let common_crl = common.and_then(|common| common.crl).filter(|_| !is_own);
    Some(ClientCertificates { auth, ca, crl: crl.or(common_crl) })
}

/// How clients log in by certificate.
fn client_login(
    listener: &Section<'_>,
    clients: Option<&ClientCertificates>,
    common: Option<&Tls>,
) -> Option<Option<ClientLogin>> {
    let Some(node) = listener.get("client_login") else { return Some(None) };
    let login = |login: &Section<'_>| {
        let words = [("certificate", CertificateMatch::Certificate), ("san_email", CertificateMatch::SanEmail)];
        let hint = "write `certificate` (the user's entry lists the certificate) or `san_email` (the certificate has \
                    the user's address)";
        let matching = login.required("match", hint).and_then(|node| node.word(&words));
        let ignore_authzid = login.flag("ignore_authzid", false);
        // Whether there is such a directory is seen with the directories.
        let directory = login.get("directory").map(|node| node.text());
        let directory = match directory {
            Some(name) => Some(name?.into()),
            None => None,
        };
        Some(ClientLogin { matching: matching?, ignore_authzid: ignore_authzid?, directory })
    };
    let login = node.section(login).flatten()?;
    let asks = clients.is_none_or(|clients| clients.auth != ClientAuth::Off);
    if common.is_some() && !asks {
        node.problem("needs `client_ca`, here or in `tls`: clients are not asked for a certificate");
    }
    let own = listener.get("client_ca").and_then(|_| clients?.ca.as_ref());
    let shared = common.and_then(|common| common.client_ca.as_ref());
    if login.matching == CertificateMatch::SanEmail && clients.is_some() && (own.is_none() || own == shared) {
        node.problem(
            "`match: san_email` needs a `client_ca` of this listener that is not the one of `tls`: whoever that CA \
             gives a certificate logs in as the address in it",
        );
    }
    Some(Some(login))
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
    // A mistake in one leaves the others to be checked.
    let lists: Vec<_> = nodes.map(read).collect();
    lists.into_iter().collect()
}
