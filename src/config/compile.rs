//! From what was typed to a [`Config`]: every section but the directory and the backends.
//!
//! Each function reads all keys of its section before it gives up, so that all mistakes are found
//! in one pass. Defaults and ranges stand here and in `config.example.yaml`; a test compares them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::SupportedCipherSuite;

use super::model::{
    Admin, AuthHttp, Cache, CertificateFiles, ClientAuth, Config, Control, Draft, Drain, Endpoint, Limits, Listener,
    ListenerTls, Log, LogFormat, LogLevel, OnUnavailable, Process, Routing, Tls, TlsVersion,
};
use super::raw::{Node, Section, Unique};
use super::routing::Surroundings;
use super::units::{DAY, HOUR, KIB, MIB, MINUTE, SECOND};
use super::{directory, names, routing, throttle};
use crate::base::net;
use crate::proto::{PROTOCOLS, Protocol};

/// Where the side port is unless the config says otherwise.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9930);

/// Compiles the whole file, as far as it is sound.
pub(super) fn config(root: &Section<'_>, file: PathBuf) -> (Option<Config>, Draft) {
    let mut addresses = Addresses::default();
    let hostname = root.get("hostname").map(|node| node.parsed(names::own_name));
    let listeners = listeners(root, &mut addresses);
    let capabilities = root.section("capabilities", capabilities).flatten();
    let trusted = root.get("trusted").map_or(Some(Vec::new()), |node| networks(&node));
    let tls = root.section("tls", tls).flatten();
    let directory = root.section("directory", directory::read);
    let (directory, facts) =
        directory.map_or((None, directory::Facts::default()), |draft| (draft.directory, draft.facts));
    let surroundings = Surroundings { listeners: listeners.as_deref().unwrap_or_default(), directory: &facts };
    let routing = root.section("routing", |routing| routing::read(routing, &surroundings)).flatten();
    if let (Some(listeners), Some(routing)) = (&listeners, &routing) {
        served(root, listeners, routing);
    }
    if let (Some(directory), Some(routing)) = (&directory, &routing)
        && routing.default.is_some()
        && directory.canary.is_none()
    {
        let message = "without `directory.canary` a server that hides or has lost the mail host sends everybody to the \
                       default: name an entry that every server must show";
        root.warn("routing.default", message);
    }
    let cache = root.section("cache", cache).flatten();
    let limits = root.section("limits", limits).flatten();
    let throttle = root.section("throttle", throttle::read).flatten();
    let drain = root.section("drain", drain).flatten();
    let admin = root.section("admin", |admin| self::admin(admin, &mut addresses)).flatten();
    let control = root.get("control").and_then(|control| control.section(self::control).flatten());
    let auth_http = root.get("auth_http");
    let auth_http =
        auth_http.and_then(|node| node.section(|section| self::auth_http(section, &mut addresses)).flatten());
    if let (Some(_), Some(routing)) = (&auth_http, &routing) {
        reachable(root, routing);
    }
    let process = root.section("process", process).flatten();
    let log = root.section("log", log).flatten();
    let place = Arc::clone(root.place());
    let draft = Draft {
        tls: tls.clone(),
        directory: directory.clone(),
        routing: routing.clone(),
        control: control.clone(),
        auth_http: auth_http.clone(),
        place: Arc::clone(&place),
    };
    let config = || {
        Some(Config {
            file,
            hostname: hostname.flatten(),
            listeners: listeners?,
            capabilities: capabilities?,
            tls: tls?,
            directory: directory?,
            trusted: trusted?,
            routing: routing?,
            cache: cache?,
            limits: limits?,
            throttle: throttle?,
            drain: drain?,
            admin: admin?,
            control,
            auth_http,
            process: process?,
            log: log?,
            warnings: Vec::new(),
            place,
        })
    };
    (config(), draft)
}

/// The protocols as words for [`Node::word`].
fn protocols() -> Vec<(&'static str, &'static Protocol)> {
    PROTOCOLS.iter().map(|protocol| (protocol.name, protocol)).collect()
}

fn listeners(root: &Section<'_>, addresses: &mut Addresses) -> Option<Vec<Listener>> {
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
    Some(Listener { protocol, address, tls, proxies: proxies?, socket: socket.flatten() })
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
        listener.problem("trusted", "missing: name the networks of your proxies, which alone may say who a client is");
    }
    if trusted.iter().flatten().flatten().any(|network| network.prefix_len() == 0) {
        listener.warn("trusted", "every address is trusted: any client can claim another client's address");
    }
    required.and(trusted?).map(Some)
}

/// A list of networks, or one.
pub(super) fn networks(node: &Node<'_>) -> Option<Vec<IpNet>> {
    let items = node.one_or_more()?;
    let networks: Vec<_> = items.iter().filter_map(|item| item.parsed(names::network)).collect();
    (networks.len() == items.len()).then_some(networks)
}

/// What clients are promised instead of what the backends say: one key for each protocol.
fn capabilities(section: &Section<'_>) -> Option<Vec<(&'static Protocol, Vec<String>)>> {
    let nodes = PROTOCOLS.iter().filter_map(|protocol| Some((protocol, section.get(protocol.name)?)));
    let read = |(protocol, node): (&'static Protocol, Node<'_>)| {
        let items = node.list()?;
        let capability = |item: &Node<'_>| {
            let capability = item.parsed(names::capability)?;
            let name = crate::proto::capabilities::name(&capability);
            let promised = (protocol.promised)(name);
            if !promised {
                item.problem(format!("usher does not promise this for {}: remove it", protocol.name));
            }
            promised.then_some(capability)
        };
        let read: Vec<_> = items.iter().filter_map(capability).collect();
        if crate::proto::capabilities::bounded(read.iter().cloned()).len() < read.len() {
            node.problem(format!("the list is longer than {} bytes", crate::proto::capabilities::WHOLE));
        }
        (read.len() == items.len()).then_some((protocol, read))
    };
    nodes.map(read).collect()
}

/// A listener whose protocol no backend serves is a door with nothing behind it.
fn served(root: &Section<'_>, listeners: &[Listener], routing: &Routing) {
    let endpoints = routing.backends.iter().flat_map(|backend| &backend.endpoints);
    for (index, listener) in listeners.iter().enumerate() {
        let name = listener.protocol.name;
        if endpoints.clone().all(|endpoint| endpoint.protocol != listener.protocol) {
            let message =
                format!("no backend serves it: add `{name}: {{address: .., tls: ..}}` to one, or remove this");
            root.problem(&format!("listeners[{index}].protocol"), message);
        }
    }
}

/// The addresses usher listens on, so that no two of them collide.
#[derive(Default)]
struct Addresses {
    taken: Vec<(SocketAddr, String)>,
}

impl Addresses {
    fn read(&mut self, node: &Node<'_>) -> Option<SocketAddr> {
        let address = node.parsed(names::socket_address)?;
        if let Some((_, first)) = self.taken.iter().find(|(other, _)| collide(*other, address)) {
            node.problem(format!("this address and port are taken already by {first}: change one"));
        }
        self.taken.push((address, node.key().to_owned()));
        Some(address)
    }
}

/// Whether the system refuses to listen on both. Port 0 is a new port each time, and an IPv6
/// wildcard takes IPv4 as well.
#[must_use]
pub(crate) fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |wide: SocketAddr, narrow: SocketAddr| {
        wide.ip().is_unspecified() && (wide.is_ipv6() || wide.is_ipv4() == narrow.is_ipv4())
    };
    one.port() != 0
        && one.port() == other.port()
        && (one.ip() == other.ip() || covers(one, other) || covers(other, one))
}

fn tls(tls: &Section<'_>) -> Option<Tls> {
    let hint = "add `- {chain: tls/fullchain.pem, key: tls/privkey.pem}`";
    let certificates = tls.required("certificates", hint).and_then(|node| node.list());
    let certificates = certificates.map(|items| items.iter().filter_map(certificate).collect());
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    let min_version = tls.get("min_version").map_or(Some(TlsVersion::V1_2), |node| node.word(&versions));
    let groups = match tls.get("groups") {
        Some(node) => distinct(&node, |item| item.word(names::GROUPS).map(|group| (format!("{group:?}"), group))),
        // The last two are other names of what stands before them.
        None => Some(names::GROUPS.iter().take(4).map(|(_, group)| *group).collect()),
    };
    let suites = tls.get("cipher_suites").map(|node| (cipher_suites(&node), node));
    if let (Some(TlsVersion::V1_3), Some((Some(suites), node))) = (min_version, &suites)
        && !suites.iter().any(|suite| matches!(suite, SupportedCipherSuite::Tls13(_)))
    {
        node.problem("only TLS 1.2 suites, but `min_version` is 1.3: no client could connect; add a TLS 1.3 suite");
    }
    let client_ca = tls.get("client_ca").map(|node| node.path());
    let client_auth = client_auth(tls, client_ca.is_some());
    let ticket_keys_file = tls.get("ticket_keys_file").map(|node| node.path());
    let reload_interval = tls.duration("reload_interval", MINUTE, SECOND..=DAY);
    Some(Tls {
        certificates: certificates?,
        min_version: min_version?,
        groups: groups?,
        cipher_suites: suites.map(|(suites, _)| suites.into_iter().flatten().map(names::suite_name).collect()),
        client_ca: client_ca.flatten(),
        client_auth: client_auth?,
        ticket_keys_file: ticket_keys_file.flatten(),
        reload_interval: reload_interval?,
    })
}

/// Whether clients are asked for a certificate: optional as soon as there is a CA for it.
fn client_auth(tls: &Section<'_>, has_ca: bool) -> Option<ClientAuth> {
    let Some(node) = tls.get("client_auth") else {
        return Some(if has_ca { ClientAuth::Optional } else { ClientAuth::Off });
    };
    let words = [("off", ClientAuth::Off), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];
    let client_auth = node.word(&words)?;
    match client_auth {
        ClientAuth::Off if has_ca => tls.warn("client_ca", "without effect: `client_auth` is off; remove one"),
        ClientAuth::Optional | ClientAuth::Required if !has_ca => {
            node.problem("needs `client_ca`: the CA that client certificates must come from");
        }
        ClientAuth::Off | ClientAuth::Optional | ClientAuth::Required => {}
    }
    Some(client_auth)
}

fn cipher_suites(node: &Node<'_>) -> Option<Vec<SupportedCipherSuite>> {
    let known = |name: &str| {
        names::cipher_suite(name).ok_or_else(|| format!("not a suite that usher speaks: {}", names::suite_names()))
    };
    distinct(node, |item| item.parsed(known).map(|suite| (names::suite_name(suite), suite)))
}

/// A list without repetitions; `read` gives the name by which items are compared, and the item.
fn distinct<T>(node: &Node<'_>, read: impl Fn(&Node<'_>) -> Option<(String, T)>) -> Option<Vec<T>> {
    let mut unique = Unique::default();
    let one = |item: Node<'_>| {
        let (name, value) = read(&item)?;
        unique.check(&name, &item);
        Some(value)
    };
    Some(node.one_or_more()?.into_iter().filter_map(one).collect())
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

fn cache(cache: &Section<'_>) -> Option<Cache> {
    let ttl = cache.duration("ttl", 5 * MINUTE, SECOND / 10..=DAY);
    let negative_ttl = cache.duration("negative_ttl", 30 * SECOND, SECOND / 10..=HOUR);
    let most = negative_ttl.and_then(|least| u64::try_from(least.as_millis()).ok()).unwrap_or_default();
    let negative_ttl_max = cache.duration("negative_ttl_max", (15 * MINUTE).max(most), SECOND / 10..=DAY);
    if let (Some(first), Some(most)) = (negative_ttl, negative_ttl_max)
        && first > most
    {
        cache.problem("negative_ttl_max", "shorter than `negative_ttl`, from which it grows: lengthen it");
    }
    // A longer `ttl` raises this default, so that only one of them has to be set.
    let least = ttl.and_then(|ttl| u64::try_from(ttl.as_millis()).ok()).unwrap_or(0);
    let stale = cache.duration("stale", HOUR.max(least), 0..=7 * DAY);
    if let (Some(stale), Some(ttl)) = (stale, ttl)
        && !stale.is_zero()
        && stale < ttl
    {
        cache.problem("stale", "shorter than `ttl`, within which the directory is not asked anyway: 0s turns it off");
    }
    let capacity = cache.integer("capacity", 100_000, 1..=10_000_000);
    Some(Cache {
        ttl: ttl?,
        negative_ttl: negative_ttl?,
        negative_ttl_max: negative_ttl_max?,
        stale: stale?,
        capacity: capacity?,
    })
}

fn limits(limits: &Section<'_>) -> Option<Limits> {
    let connections = limits.integer("connections", 60_000, 1..=1_000_000);
    let half = connections.map_or(30_000, |connections: usize| (connections as u64 / 2).max(1));
    let unauthenticated = limits.integer("unauthenticated", half, 1..=1_000_000);
    let proxy_header_timeout = limits.duration("proxy_header_timeout", 5 * SECOND, SECOND / 10..=MINUTE);
    let handshake_timeout = limits.duration("handshake_timeout", 10 * SECOND, SECOND / 10..=5 * MINUTE);
    let login_timeout = limits.duration("login_timeout", 30 * SECOND, SECOND / 10..=10 * MINUTE);
    let prelogin_timeout = limits.duration("prelogin_timeout", MINUTE, SECOND / 10..=HOUR);
    let refusal_delay = limits.duration("refusal_delay", 2 * SECOND, 0..=5 * SECOND);
    let failed_logins = limits.integer("failed_logins", 3, 1..=100);
    let bad_commands = limits.integer("bad_commands", 10, 1..=1_000);
    let max_backend_greeting = limits.size("max_backend_greeting", 64 * KIB, KIB..=16 * MIB);
    let idle_timeout = limits.duration("idle_timeout", 65 * MINUTE, SECOND..=7 * DAY);
    let words = [("reply", OnUnavailable::Reply), ("reply_and_close", OnUnavailable::ReplyAndClose)];
    let on_unavailable = limits.get("on_unavailable").map_or(Some(OnUnavailable::Reply), |node| node.word(&words));
    if let (Some(all), Some(some)) = (connections, unauthenticated)
        && some > all
    {
        limits.warn("unauthenticated", "never reached: `connections` is less and is met first");
    }
    if let (Some(login), Some(conversation)) = (login_timeout, prelogin_timeout)
        && login > conversation
    {
        limits.warn("login_timeout", "never reached: `prelogin_timeout` is shorter and ends the connection first");
    }
    if idle_timeout.is_some_and(|idle| idle < Duration::from_secs(30 * 60)) {
        limits.warn("idle_timeout", "RFC 3501 section 5.4 asks for at least 30m: clients that wait will be cut off");
    }
    Some(Limits {
        connections: connections?,
        unauthenticated: unauthenticated?,
        proxy_header_timeout: proxy_header_timeout?,
        handshake_timeout: handshake_timeout?,
        login_timeout: login_timeout?,
        prelogin_timeout: prelogin_timeout?,
        refusal_delay: refusal_delay?,
        failed_logins: failed_logins?,
        bad_commands: bad_commands?,
        max_backend_greeting: max_backend_greeting?,
        idle_timeout: idle_timeout?,
        on_unavailable: on_unavailable?,
    })
}

fn drain(drain: &Section<'_>) -> Option<Drain> {
    let delay = drain.duration("delay", 0, 0..=10 * MINUTE);
    let deadline = drain.duration("deadline", 30 * SECOND, 0..=DAY);
    let max_closes_per_second = drain.integer("max_closes_per_second", 100, 1..=100_000);
    let upgrade_deadline = drain.duration("upgrade_deadline", HOUR, 0..=7 * DAY);
    Some(Drain {
        delay: delay?,
        deadline: deadline?,
        max_closes_per_second: max_closes_per_second?,
        upgrade_deadline: upgrade_deadline?,
    })
}

fn admin(admin: &Section<'_>, addresses: &mut Addresses) -> Option<Admin> {
    let address = admin.get("address").map_or(Some(ADMIN), |node| addresses.read(&node));
    let hosts = admin
        .get("hosts")
        .map_or(Some(Vec::new()), |node| node.one_or_more()?.iter().map(|host| host.parsed(names::own_name)).collect());
    Some(Admin { address: address?, hosts: hosts? })
}

fn control(control: &Section<'_>) -> Option<Control> {
    let node = control.required("path", "write the path of the socket, such as /run/usher/control.sock");
    let path = node.as_ref().and_then(Node::path);
    if let (Some(node), Some(path)) = (&node, &path)
        && path.as_os_str().len() > names::SOCKET_PATH
    {
        node.problem(format!("longer than {} bytes, which Unix sockets do not allow", names::SOCKET_PATH));
    }
    let group = control.get("group").map(|node| node.parsed(names::unix_group));
    Some(Control { path: path?, group: group.flatten() })
}

fn auth_http(auth_http: &Section<'_>, addresses: &mut Addresses) -> Option<AuthHttp> {
    let address = auth_http.required("address", "write an IP address and a port, such as \"127.0.0.1:9940\"");
    let address = address.and_then(|node| addresses.read(&node));
    let allow = auth_http.required("allow", "name the addresses of your nginx, which sees every password");
    let allow = allow.and_then(|node| networks(&node));
    let key_file = auth_http.get("key_file").map(|node| node.path());
    if allow.iter().flatten().any(|network| network.prefix_len() == 0) {
        auth_http.warn("allow", "any host may send requests and claim any client address");
    } else if key_file.is_none() && allow.iter().flatten().any(net::has_loopback) {
        auth_http.warn(
            "allow",
            "any user of this machine may ask, and say which client it is for: set `key_file`, and show its \
             secret in nginx (`auth_http_header X-Auth-Key`)",
        );
    }
    if address.is_some_and(|address| !address.ip().to_canonical().is_loopback()) {
        auth_http.warn("address", "passwords cross the network from nginx to here in clear");
    }
    Some(AuthHttp { address: address?, allow: allow?, key_file: key_file.flatten() })
}

/// nginx speaks no TLS to backends: there must be somewhere that it can be sent.
fn reachable(root: &Section<'_>, routing: &Routing) {
    if !routing.backends.iter().flat_map(|backend| &backend.endpoints).any(Endpoint::takes_nginx) {
        root.warn(
            "auth_http",
            "nginx speaks no TLS to backends, and none has a port for it: give one `auth_http: {port: ..}`",
        );
    }
}

fn process(process: &Section<'_>) -> Option<Process> {
    let user = process.get("user").map(|node| node.parsed(names::unix_user));
    let group = process.get("group");
    if let (Some(node), None) = (&group, &user) {
        node.problem("needs `user`: the user to become");
    }
    let group = group.map(|node| node.parsed(names::unix_group));
    let debug = process.flag("debug", false)?;
    Some(Process { user: user.flatten(), group: group.flatten(), debug })
}

fn log(log: &Section<'_>) -> Option<Log> {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let format = log.get("format").map_or(Some(LogFormat::Text), |node| node.word(&formats));
    let level = log.get("level").map_or(Some(LogLevel::Info), |node| node.word(&levels));
    Some(Log { format: format?, level: level? })
}

/// The names of all protocols, for a message.
pub(super) fn protocol_names() -> String {
    PROTOCOLS.iter().map(|protocol| format!("`{}`", protocol.name)).collect::<Vec<_>>().join(", ")
}
