//! Sockets of the system at free ports, handed over or missing in every way.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use super::*;
use crate::config;

/// A configuration with these listeners, of IMAP with implicit TLS, and these socket names.
fn listening(listeners: &[(SocketAddr, &str)]) -> Config {
    let one = |(address, name): &(SocketAddr, &str)| {
        let socket = if name.is_empty() { String::new() } else { format!(", socket: {name}") };
        format!("  - {{protocol: imap, address: '{address}', tls: implicit{socket}}}\n")
    };
    let listeners: String = listeners.iter().map(one).collect();
    let rest = super::super::TEST_CONFIG.split_once("tls: {cert").unwrap().1;
    let text = format!("listeners:\n{listeners}tls: {{cert{rest}admin: {{address: '127.0.0.1:0'}}\n");
    config::parse(Path::new("/c.yaml"), &text).unwrap()
}

fn wanted<'a>(config: &'a Config) -> Vec<Wanted<'a>> {
    let kind = Some(("imap", ListenerTls::Implicit));
    let one = |(index, listener): (usize, &'a config::Listener)| {
        let key = format!("listeners[{index}].address");
        Wanted { kind, ..Wanted::new(config, &key, listener.address, listener.socket.as_deref()) }
    };
    config.listeners.iter().enumerate().map(one).collect()
}

fn opened(name: &str, address: SocketAddr, only_v6: bool) -> OpenSocket {
    OpenSocket { name: name.to_owned(), socket: sockets::listen(address, only_v6).unwrap() }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The wildcard at a port that no other test gets, not even after it was closed.
fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 100).unwrap() * 20;
    let ports = std::iter::repeat_with(|| 30_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 2_500);
    let addresses = ports.map(|port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    addresses.into_iter().find(|address| sockets::listen(*address, false).is_ok()).unwrap()
}

/// Both wildcards of a port, each with a socket of its own.
fn apart() -> (SocketAddr, SocketAddr, Vec<OpenSocket>) {
    let address = free();
    let ipv6 = opened("usher.socket", address, true);
    let ipv4 = opened("usher.socket", ipv4_wildcard(address), false);
    (address, ipv4_wildcard(address), vec![ipv4, ipv6])
}

/// Where the sockets of each listener are, and whether one takes both families.
fn result(config: &Config, pool: &mut Vec<OpenSocket>) -> Result<Vec<Vec<(SocketAddr, bool)>>, String> {
    let wanted = wanted(config);
    let adopted = assign(&wanted, pool);
    let unclaimed = unclaimed(config, pool);
    if let Some(problem) = unclaimed.first() {
        return Err(problem.to_string());
    }
    let complete = complete(config, &wanted, adopted, Vec::new()).map_err(|error| match error {
        StartError::Config(problems) => problems[0].to_string(),
        StartError::Bind { .. } | StartError::Inherit(_) | StartError::Signals(_) => error.to_string(),
    })?;
    let shown = |socket: &TcpListener| (sockets::local_address(socket).unwrap(), sockets::takes_both(socket));
    Ok(complete.iter().map(|adopted| adopted.sockets.iter().map(shown).collect()).collect())
}

#[test]
fn wildcard_adopts_the_sockets_of_both_families() {
    let (ipv6, ipv4, mut pool) = apart();
    let sockets = result(&listening(&[(ipv6, "")]), &mut pool).unwrap();
    assert_eq!(sockets, [[(ipv6, false), (ipv4, false)]]);
    let (ipv6, ipv4, mut pool) = apart();
    let sockets = result(&listening(&[(ipv4, ""), (ipv6, "")]), &mut pool).unwrap();
    assert_eq!(sockets, [[(ipv4, false)], [(ipv6, false)]], "each its own");
    let (ipv6, ipv4, mut pool) = apart();
    let sockets = result(&listening(&[(at("127.0.0.1:1"), "usher.socket")]), &mut pool).unwrap();
    assert_eq!(sockets, [[(ipv4, false), (ipv6, false)]], "all of its name");
}

#[test]
fn missing_family_of_a_wildcard_is_bound() {
    for handed in [0, 1] {
        let (ipv6, ipv4, mut pool) = apart();
        pool.remove(1 - handed);
        let sockets = result(&listening(&[(ipv6, "")]), &mut pool).unwrap();
        let mut both = vec![(ipv6, false), (ipv4, false)];
        both.rotate_left(1 - handed);
        assert_eq!(sockets, [both]);
    }
    let (ipv6, _, mut pool) = apart();
    pool.remove(0);
    let sockets = result(&listening(&[(ipv6, "usher.socket")]), &mut pool).unwrap();
    assert_eq!(sockets, [[(ipv6, false)]], "a socket chosen by name is all that is wanted");
}

#[test]
fn wildcards_are_bound_apart_only_where_both_are_configured() {
    let ipv6 = free();
    let ipv4 = ipv4_wildcard(ipv6);
    assert_eq!(result(&listening(&[(ipv6, "")]), &mut Vec::new()).unwrap(), [[(ipv6, true)]]);
    let sockets = result(&listening(&[(ipv6, ""), (ipv4, "")]), &mut Vec::new()).unwrap();
    assert_eq!(sockets, [[(ipv6, false)], [(ipv4, false)]]);
    let ipv6 = free();
    let mut config = listening(&[(ipv6, "")]);
    config.admin.address = ipv4_wildcard(ipv6);
    let sockets = result(&config, &mut Vec::new()).unwrap();
    assert_eq!(sockets, [[(ipv6, false)]], "the side port has the other");
}

#[test]
fn socket_of_both_families_serves_two_listeners_of_one_kind() {
    let both = || vec![opened("usher.socket", free(), false)];
    let mut pool = both();
    let ipv6 = pool[0].address().unwrap();
    let sockets = result(&listening(&[(ipv4_wildcard(ipv6), ""), (ipv6, "")]), &mut pool).unwrap();
    assert_eq!(sockets, [vec![], vec![(ipv6, true)]]);
    let mut pool = both();
    let ipv6 = pool[0].address().unwrap();
    let mut config = listening(&[(ipv6, "")]);
    config.admin.address = ipv4_wildcard(ipv6);
    let mut all = wanted(&config);
    all.push(Wanted::new(&config, "admin.address", config.admin.address, None));
    let adopted = assign(&all, &mut pool);
    let Err(StartError::Config(problems)) = complete(&config, &all, adopted, Vec::new()) else {
        panic!("a mail port that the side port shares")
    };
    assert!(problems[0].to_string().contains("set BindIPv6Only=ipv6-only in the socket unit"), "{problems:?}");
}

#[test]
fn socket_without_a_listener_at_a_configured_port_is_an_error() {
    let one = opened("usher.socket", at("127.0.0.1:0"), false);
    let address = one.address().unwrap();
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], address.port()));
    let error = result(&listening(&[(elsewhere, "")]), &mut vec![one]).unwrap_err();
    let words = format!("add a listener with `address: \"{address}\"`, or remove ListenStream={address} from the");
    assert!(error.contains("listeners[0].address") && error.contains(&words), "{error}");
    let mut other = vec![opened("usher.socket", at("127.0.0.1:0"), false)];
    let free = listening(&[(at("127.0.0.1:0"), "")]);
    result(&free, &mut other).unwrap();
    assert_eq!(other.len(), 1, "at another port it is logged");
    // Two listeners of a name, and a third socket.
    let names = [(at("192.0.2.1:993"), "usher"), (at("192.0.2.2:993"), "usher")];
    let mut three = [(); 3].map(|()| opened("usher", at("127.0.0.1:0"), false)).into_iter().collect();
    let error = result(&listening(&names), &mut three).unwrap_err();
    assert!(error.contains("listeners[0].socket"), "{error}");
}

#[test]
fn socket_is_matched_by_name_before_address() {
    let pool = || -> (Vec<OpenSocket>, Vec<SocketAddr>) {
        let names = ["imaps", "usher", "usher", "imap"];
        let pool: Vec<_> = names.iter().map(|name| opened(name, at("127.0.0.1:0"), false)).collect();
        let addresses = pool.iter().filter_map(OpenSocket::address).collect();
        (pool, addresses)
    };
    let elsewhere = at("192.0.2.1:993");
    let take = |pool: &mut Vec<OpenSocket>, address, name| {
        let config = listening(&[(address, name)]);
        let adopted = best(&wanted(&config)[0], pool, false);
        adopted.sockets.first().and_then(sockets::local_address)
    };
    let (mut pool, at) = pool();
    assert_eq!(take(&mut pool, elsewhere, "other"), None);
    assert_eq!(take(&mut pool, at[3], "imaps"), Some(at[0]), "the name says more than the address");
    assert_eq!(take(&mut pool, at[3], "imaps"), Some(at[3]), "without one of its name, by its address");
    assert_eq!(take(&mut pool, at[2], "usher"), Some(at[2]), "of several of the name the one at the address");
    assert_eq!(take(&mut pool, elsewhere, "usher"), Some(at[1]));
}

#[test]
fn socket_at_the_address_of_a_listener_is_not_taken_for_another_of_the_name() {
    let (first, second) = (opened("usher", at("127.0.0.1:0"), false), opened("usher", at("127.0.0.1:0"), false));
    let [one, other] = [&first, &second].map(|open| open.address().unwrap());
    let config = listening(&[(at("192.0.2.1:993"), "usher"), (one, "usher")]);
    let sockets = result(&config, &mut vec![first, second]).unwrap();
    assert_eq!(sockets, [[(other, false)], [(one, false)]]);
}

#[test]
fn sockets_of_another_process_are_known_by_the_address_they_serve() {
    let (ipv6, ipv4, pool) = apart();
    let duplicates = |addresses: [SocketAddr; 2]| {
        let both = pool.iter().zip(addresses);
        both.map(|(open, serves)| duplicate(serves, open.socket.as_fd()).unwrap()).collect::<Vec<_>>()
    };
    let sockets = result(&listening(&[(ipv6, "")]), &mut duplicates([ipv6, ipv6])).unwrap();
    assert_eq!(sockets, [[(ipv6, false), (ipv4, false)]]);
    let sockets = result(&listening(&[(ipv6, ""), (ipv4, "")]), &mut duplicates([ipv6, ipv6])).unwrap();
    assert_eq!(sockets, [[(ipv6, false)], [(ipv4, false)]], "the configuration has changed meanwhile");
    let sockets = result(&listening(&[(ipv6, "")]), &mut duplicates([ipv4, ipv6])).unwrap();
    assert_eq!(sockets, [[(ipv6, false), (ipv4, false)]]);
    // Two sockets that one listener has by name, wherever they listen.
    let elsewhere = at("127.0.0.1:993");
    let sockets = result(&listening(&[(elsewhere, "imaps")]), &mut duplicates([elsewhere, elsewhere])).unwrap();
    assert_eq!(sockets, [[(ipv4, false), (ipv6, false)]]);
}
