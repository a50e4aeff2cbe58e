//! The `routing` section: the backends and the mailHost values that mean them.

use std::net::IpAddr;
use std::time::Duration;

use super::directories::AllFacts;
use super::model::{
    Address, AddressBalance, AuthHttpTarget, Backend, BackendService, Ehlo, Endpoint, Forward, Health, Listener,
    OnReturn, Probe, Routing, TokenLogin,
};
use super::names;
use super::raw::{Node, Section, Unique};
use super::section::{certificate, groups, pins, protocol_names};
use super::socketmap;
use super::tokens;
use super::units::{HOUR, MINUTE, SECOND};
use crate::proto::proxy_header::Version;
use crate::proto::{BackTls, ForwardMethod, PROTOCOLS, Protocol};

/// More addresses of one endpoint than any login could try in its time.
const ADDRESSES: usize = 16;

/// The maximum time of a reply, whatever happens behind usher.
pub(crate) const LONGEST_REPLY: Duration = Duration::from_secs(10);

/// What backends are checked against.
pub(super) struct Surroundings<'a> {
    /// Where usher itself listens.
    pub(super) listeners: &'a [Listener],
    /// The directory.
    pub(super) directory: &'a AllFacts,
}

/// What no two backends may share, and what one of them must have.
#[derive(Default)]
pub(super) struct Taken {
    names: Unique,
    hosts: Unique,
    /// The protocols that a backend names, also one with a mistake.
    pub(super) protocols: Vec<&'static Protocol>,
}

/// Reads the section.
pub(super) fn read(routing: &Section<'_>, surroundings: &Surroundings<'_>, taken: &mut Taken) -> Option<Routing> {
    let hint = "add `- {name: server3, hosts: [server3.example.com], imap: {address: \"server3.example.com:993\", \
                tls: implicit}}`";
    let folder = routing.get("backends_from").map(|node| node.path());
    let items = match (routing.get("backends"), folder) {
        // The folder's backends are among them.
        (Some(node), _) => node.list(),
        (None, Some(folder)) => {
            if folder.is_some() {
                routing.problem("backends_from", "no file there has a backend, and there is no `backends`: add one");
            }
            None
        }
        (None, None) => routing.required("backends", hint).and_then(|node| node.list()),
    };
    let mut read = |item: &Node<'_>| item.section(|section| backend(section, surroundings, taken)).flatten();
    let backends: Option<Vec<_>> = items.map(|items| items.iter().map(&mut read).collect());
    let default = routing.get("default").map(|node| (node.parsed(names::backend_name), node));
    if let (Some((Some(name), node)), Some(backends)) = (&default, &backends) {
        // A backend that could not be read may be the one that is meant.
        if backends.iter().all(|backend| backend.as_ref().is_some_and(|backend| backend.name != *name)) {
            let names: Vec<_> = backends.iter().flatten().map(|backend| backend.name.as_str()).collect();
            node.problem(format!("no backend has this name; there are: {}", names.join(", ")));
        }
    }
    Some(Routing { default: default.and_then(|(name, _)| name), backends: backends?.into_iter().flatten().collect() })
}

fn backend(backend: &Section<'_>, surroundings: &Surroundings<'_>, taken: &mut Taken) -> Option<Backend> {
    let name_node = backend.required("name", "write a short name such as server3: log and metrics show it");
    let name = name_node.as_ref().and_then(|node| node.parsed(names::backend_name));
    if let (Some(node), Some(name)) = (&name_node, &name) {
        taken.names.check(name, node);
    }
    let hosts = match (backend.get("hosts"), name_node) {
        (Some(node), _) => hosts(node.one_or_more().unwrap_or_default(), &mut taken.hosts),
        // The name doubles as the only mailHost value.
        (None, Some(node)) if name.is_some() => hosts(vec![node], &mut taken.hosts),
        (None, _) => Vec::new(),
    };
    let ca = backend.get("ca").map(|node| node.path());
    let client_certificate = backend.get("client_certificate").map(|node| certificate(&node));
    let pin_sha256 = pins(backend);
    if pin_sha256.is_some() && ca.is_some() {
        backend.warn("ca", "without effect: `pin_sha256` takes the place of the chain; remove one");
    }
    let groups = groups(backend);
    let service = backend.get("service").map(|node| node.section(account).flatten());
    if let (Some(_), Some(key)) = (&service, &surroundings.directory.without_login) {
        let message = format!(
            "needs `{key}.login_attribute`: the service account logs in as any name, so that with the name as typed, a \
             user that may write a mail alias could log in as any user"
        );
        backend.problem("service", message);
    }
    let token = token(backend);
    let impersonation_service = backend.get("impersonation_service").map(|node| node.section(account).flatten());
    let timeout = backend.duration("timeout", 4 * SECOND, SECOND / 10..=10 * SECOND);
    if let (Some(decision), Some(login)) = (surroundings.directory.timeout, timeout)
        && decision + login > LONGEST_REPLY
    {
        let message = "together with `directory.timeout` longer than 10s, the maximum time of a reply: shorten one \
                       of them";
        backend.problem("timeout", message);
    }
    let pass_refusals = backend.flag("pass_backend_refusals", true);
    let health = health(backend);
    let logins_in_flight = backend.integer("logins_in_flight", 200, 1..=100_000);
    let source = backend.get("source").map_or(Some(Vec::new()), |node| sources(&node));
    let delivery = backend.get("delivery").map(|node| socketmap::delivery(&node));
    let endpoints = endpoints(backend, surroundings.listeners, &mut taken.protocols);
    let source = source.filter(|source| {
        let unreached = endpoints.iter().find_map(|endpoint| unreached(endpoint, source));
        if let Some(address) = unreached {
            let family = if address.host.contains(':') { "IPv6" } else { "IPv4" };
            backend.problem("source", format!("no {family} address, and {address} has no other: add one"));
        }
        unreached.is_none()
    });
    Some(Backend {
        name: name?,
        hosts,
        ca: ca.flatten(),
        client_certificate: client_certificate.flatten(),
        pin_sha256: pin_sha256.unwrap_or_default(),
        groups: groups?,
        service: service.flatten(),
        token: token?,
        impersonation_service: impersonation_service.flatten(),
        source: source?,
        timeout: timeout?,
        pass_refusals: pass_refusals?,
        health: health?,
        logins_in_flight: logins_in_flight?,
        delivery: match delivery {
            Some(delivery) => Some(delivery?),
            None => None,
        },
        endpoints,
    })
}

/// How users with a token log in.
fn token(backend: &Section<'_>) -> Option<TokenLogin> {
    let is_forwarded =
        backend.get("token").map_or(Some(false), |node| node.word(&[("service", false), ("forward", true)]))?;
    let user_claim = backend.get("user_claim").map(|node| tokens::word(&node));
    if !is_forwarded {
        if user_claim.is_some() {
            backend
                .warn("user_claim", "without effect: the token is not forwarded; remove it, or write `token: forward`");
        }
        return Some(TokenLogin::Service);
    }
    Some(TokenLogin::Forward { user_claim: user_claim.map_or(Some(None), |claim| claim.map(Some))? })
}

fn hosts(items: Vec<Node<'_>>, taken: &mut Unique) -> Vec<String> {
    let host = |item: &Node<'_>| {
        let host = item.parsed(names::mail_host)?;
        taken.check(&host, item);
        Some(host)
    };
    items.iter().filter_map(host).collect()
}

/// Addresses of this machine to connect from.
fn sources(node: &Node<'_>) -> Option<Vec<IpAddr>> {
    let items = node.one_or_more()?;
    let mut unique = Unique::default();
    let mut source = |item: &Node<'_>| {
        let source = item.parsed(names::source)?;
        unique.check(&source.to_string(), item);
        Some(source)
    };
    let sources: Vec<_> = items.iter().filter_map(&mut source).collect();
    (sources.len() == items.len()).then_some(sources)
}

/// The first address, written as one, of a family that no source is of.
fn unreached<'a>(endpoint: &'a Endpoint, sources: &[IpAddr]) -> Option<&'a Address> {
    let reached = |ip: IpAddr| sources.is_empty() || sources.iter().any(|source| source.is_ipv4() == ip.is_ipv4());
    endpoint.addresses.iter().find(|address| address.host.parse().is_ok_and(|ip| !reached(ip)))
}

/// `{login, password_file}` of an account that is usher's own.
fn account(account: &Section<'_>) -> Option<BackendService> {
    let login = account.required("login", "write the name of the account at the backend");
    let login = login.and_then(|node| node.parsed(names::service_login));
    let password_file = account.required("password_file", "name the file with its password");
    let password_file = password_file.and_then(|node| node.path());
    Some(BackendService { login: login?, password_file: password_file? })
}

fn health(backend: &Section<'_>) -> Option<Health> {
    // `login` is the one kind that needs more than its word.
    let kinds =
        [("off", Some(&Probe::Off)), ("tcp", Some(&Probe::Tcp)), ("greeting", Some(&Probe::Greeting)), ("login", None)];
    let kind = backend.get("probe").map_or(Some(Some(&Probe::Greeting)), |node| node.word(&kinds));
    let probe = match (kind, backend.get("probe_account").map(|node| node.section(account).flatten())) {
        (None, _) => None,
        (Some(None), Some(account)) => account.map(Probe::Login),
        (Some(None), None) => {
            backend.problem("probe", "needs `probe_account`: the account that logs in, and the file with its password");
            None
        }
        (Some(Some(probe)), account) => {
            if account.is_some() {
                backend.warn("probe_account", "without effect: only `probe: login` logs in; remove one");
            }
            Some(probe.clone())
        }
    };
    if matches!(probe, Some(Probe::Off)) && backend.get("probe_interval").is_some() {
        backend.warn("probe_interval", "without effect: `probe` is off; remove one");
    }
    let probe_interval = backend.duration("probe_interval", 10 * SECOND, SECOND..=HOUR);
    let failures = backend.integer("failures", 3, 1..=100);
    let slow_start = backend.duration("slow_start", 10 * SECOND, 0..=10 * MINUTE);
    Some(Health { probe: probe?, probe_interval: probe_interval?, failures: failures?, slow_start: slow_start? })
}

/// One key for each protocol that usher speaks.
fn endpoints(backend: &Section<'_>, listeners: &[Listener], protocols: &mut Vec<&'static Protocol>) -> Vec<Endpoint> {
    let nodes = PROTOCOLS.iter().filter_map(|protocol| Some((protocol, backend.get(protocol.name)?)));
    let nodes: Vec<_> = nodes.collect();
    if nodes.is_empty() {
        backend.problem("", format!("serves no protocol: add {}, each with `address` and `tls`", protocol_names()));
    }
    protocols.extend(nodes.iter().map(|(protocol, _)| *protocol));
    let read = |(protocol, node): &(&'static Protocol, Node<'_>)| {
        node.section(|section| endpoint(protocol, section, listeners)).flatten()
    };
    nodes.iter().filter_map(read).collect()
}

fn endpoint(protocol: &'static Protocol, endpoint: &Section<'_>, listeners: &[Listener]) -> Option<Endpoint> {
    let node = endpoint.required("address", "write host and port, such as \"server3.example.com:993\"");
    let addresses = node.and_then(|node| addresses(&node, listeners));
    let words =
        [("implicit", BackTls::Implicit), ("starttls", BackTls::StartTls), ("plaintext-insecure", BackTls::Plaintext)];
    let tls = endpoint.required("tls", "write `implicit` or `starttls`").and_then(|node| node.word(&words));
    let server_name = endpoint.get("server_name").map(|node| node.parsed(names::host));
    let forward = forward(protocol, endpoint);
    let ehlo = ehlo(protocol, endpoint, forward);
    let balance = balance(endpoint);
    let auth_http = endpoint.section("auth_http", hop).flatten();
    if auth_http.is_some_and(|hop| hop != AuthHttpTarget::default()) && protocol.nginx.is_none() {
        endpoint.problem("auth_http", format!("nginx's mail proxy does not speak {}: remove it", protocol.name));
    }
    let (addresses, tls) = (addresses?, tls?);
    if tls == BackTls::Plaintext && !addresses.iter().all(|address| names::is_loopback(&address.host)) {
        endpoint.warn("tls", "passwords and mail cross the network to this backend in clear");
    }
    let (first, others) = addresses.split_first()?;
    if server_name.is_none() && others.iter().any(|other| !other.host.eq_ignore_ascii_case(&first.host)) {
        endpoint.problem("server_name", "missing: there are several hosts; write the name that all certificates have");
        return None;
    }
    let server_name = server_name.unwrap_or_else(|| Some(first.host.clone()))?;
    Some(Endpoint {
        protocol,
        addresses,
        balance: balance?,
        tls,
        server_name,
        forward: forward?,
        ehlo: ehlo?,
        auth_http: auth_http?,
    })
}

/// Which of the addresses serves whom.
fn balance(endpoint: &Section<'_>) -> Option<AddressBalance> {
    let is_by_user =
        endpoint.get("balance").map_or(Some(false), |node| node.word(&[("first", false), ("user_hash", true)]));
    let words = [("keep", OnReturn::Keep), ("close", OnReturn::Close)];
    let on_return = endpoint.get("on_return").map(|node| node.word(&words));
    match is_by_user? {
        true => on_return.unwrap_or(Some(OnReturn::Keep)).map(AddressBalance::UserHash),
        false => {
            if on_return.is_some() {
                endpoint
                    .warn("on_return", "without effect: only with `balance: user_hash` do users belong to an address");
            }
            Some(AddressBalance::First)
        }
    }
}

/// Where nginx is sent instead.
fn hop(hop: &Section<'_>) -> Option<AuthHttpTarget> {
    let address = hop.get("address").map(|node| node.parsed(names::ip_address));
    // Nothing is at port 0, which here means that the key is absent.
    let port = match hop.get("port") {
        Some(_) => hop.integer("port", 0, 1..=65_535).map(Some),
        None => Some(None),
    };
    Some(AuthHttpTarget { address: address.flatten(), port: port? })
}

/// How the client's address is forwarded to a backend; the protocol limits the choice.
fn forward(protocol: &Protocol, endpoint: &Section<'_>) -> Option<Forward> {
    let words = [
        ("none", (Forward::Nothing, None)),
        ("proxy_v1", (Forward::Header(Version::V1), None)),
        ("proxy_v2", (Forward::Header(Version::V2), None)),
        ("id", (Forward::Dialogue, Some(ForwardMethod::Id))),
        ("xclient", (Forward::Dialogue, Some(ForwardMethod::Xclient))),
    ];
    let Some(node) = endpoint.get("forward") else { return Some(Forward::Nothing) };
    let (forward, introduction) = node.word(&words)?;
    if introduction.is_some() && introduction != protocol.forward_method {
        let has = match protocol.forward_method {
            Some(ForwardMethod::Id) => "`id`, ",
            Some(ForwardMethod::Xclient) => "`xclient`, ",
            None => "",
        };
        node.problem(format!("{} has no such command: write {has}`proxy_v1`, `proxy_v2` or `none`", protocol.name));
        return None;
    }
    Some(forward)
}

/// Whose name EHLO has. XCLIENT announces the client, and its name is expected behind it.
fn ehlo(protocol: &Protocol, endpoint: &Section<'_>, forward: Option<Forward>) -> Option<Ehlo> {
    let Some(node) = endpoint.get("ehlo") else {
        let announced = protocol.ehlo && forward == Some(Forward::Dialogue);
        return Some(if announced { Ehlo::Client } else { Ehlo::Own });
    };
    if !protocol.ehlo {
        node.problem(format!("{} has no such command: remove it", protocol.name));
        return None;
    }
    node.word(&[("own", Ehlo::Own), ("client", Ehlo::Client)])
}

fn addresses(node: &Node<'_>, listeners: &[Listener]) -> Option<Vec<Address>> {
    let items = node.one_or_more()?;
    if items.len() > ADDRESSES {
        node.problem(format!("more than {ADDRESSES} addresses: no login has the time to try them all"));
    }
    let mut unique = Unique::default();
    let mut address = |item: &Node<'_>| {
        let (host, port) = item.parsed(names::host_port)?;
        if listeners.iter().any(|listener| is_own(listener, &host, port)) {
            item.problem("this is one of usher's own listeners: logins would loop");
        }
        let address = Address { host, port };
        unique.check(&address.to_string().to_ascii_lowercase(), item);
        Some(address)
    };
    // A mistake in one address leaves the others to be checked; it is recorded already.
    let addresses: Vec<_> = items.iter().filter_map(&mut address).collect();
    (addresses.len() == items.len()).then_some(addresses)
}

/// Whether an address leads back to a listener, as far as its spelling shows; the server checks
/// what the name resolves to.
fn is_own(listener: &Listener, host: &str, port: u16) -> bool {
    let own = listener.address.ip();
    let same = match host.parse::<IpAddr>() {
        Ok(ip) => ip == own || (own.is_unspecified() && (ip.is_unspecified() || ip.to_canonical().is_loopback())),
        Err(_) => names::is_loopback(host) && (own.is_loopback() || own.is_unspecified()),
    };
    port == listener.address.port() && same
}
