//! Which listening socket serves which address of the configuration.
//!
//! One socket serves an address, except for the IPv6 wildcard, which may have one for each family: systemd opens
//! them apart with BindIPv6Only=ipv6-only, and usher does where `0.0.0.0` and `[::]` are both configured at a port.
//! A socket's IPV6_V6ONLY (ipv6(7)) is final once it is bound. What was handed over and is adopted by no listener
//! stays open in systemd, where its clients would connect and wait: that is a mistake, not a remainder.

use std::cmp::Reverse;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;

use super::StartError;
use crate::base::sys::sockets;
use crate::config::{Config, ListenerTls, Problem, SocketmapPlace};

/// What a listener serves.
pub(super) type ListenerKind = (&'static str, ListenerTls);

/// A socket that listens already: handed over, or open in this process.
#[derive(Debug)]
pub(super) struct OpenSocket {
    /// systemd's FileDescriptorName=, or the configured address that it served.
    pub(super) name: String,
    pub(super) socket: TcpListener,
}

impl OpenSocket {
    fn address(&self) -> Option<SocketAddr> {
        sockets::local_address(&self.socket)
    }
}

/// An address that needs a socket.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) key: String,
    pub(super) address: SocketAddr,
    /// The name of systemd's socket for it.
    pub(super) name: Option<&'a str>,
    /// What is served there; `None`: HTTP.
    pub(super) kind: Option<ListenerKind>,
    /// Whether an IPv6 wildcard stands for IPv4 too.
    pub(super) takes_ipv4: bool,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(config: &Config, key: &str, address: SocketAddr, name: Option<&'a str>) -> Self {
        Self { key: key.to_owned(), address, name, kind: None, takes_ipv4: takes_ipv4(config, address) }
    }
}

/// The sockets of one [`Wanted`].
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// None where an IPv6 wildcard's socket takes IPv4 for it.
    pub(super) sockets: Vec<TcpListener>,
    /// Chosen by name: they are all that is wanted, whatever their families.
    pub(super) by_name: bool,
}

/// The IPv4 wildcard at the port of this address.
pub(super) fn ipv4_wildcard(address: SocketAddr) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()))
}

pub(super) fn is_ipv6_wildcard(address: SocketAddr) -> bool {
    address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

/// Every address that usher listens on.
fn configured(config: &Config) -> impl Iterator<Item = (String, SocketAddr)> {
    let listeners = config.listeners.iter().enumerate();
    let listeners = listeners.map(|(index, listener)| (format!("listeners[{index}].address"), listener.address));
    let auth_http = config.auth_http.iter().map(|settings| ("auth_http.address".to_owned(), settings.address));
    let socketmap = config.socketmap.iter().filter_map(|settings| match &settings.place {
        SocketmapPlace::Address(address) => Some(("socketmap.address".to_owned(), *address)),
        SocketmapPlace::Unix(_) => None,
    });
    listeners.chain([("admin.address".to_owned(), config.admin.address)]).chain(auth_http).chain(socketmap)
}

/// Whether this is an IPv6 wildcard that stands for IPv4 too: no address of the configuration is the other one.
pub(super) fn takes_ipv4(config: &Config, address: SocketAddr) -> bool {
    let other = ipv4_wildcard(address);
    is_ipv6_wildcard(address) && (address.port() == 0 || configured(config).all(|(_, address)| address != other))
}

/// Distributes open sockets; those left in `pool` serve nothing that is wanted.
pub(super) fn assign(wanted: &[Wanted<'_>], pool: &mut Vec<OpenSocket>) -> Vec<Adopted> {
    // First those that have both name and address: another listener of the name may take any of its sockets.
    let mut all: Vec<Adopted> = wanted.iter().map(|wanted| best(wanted, pool, true)).collect();
    for (wanted, adopted) in wanted.iter().zip(&mut all).filter(|(_, adopted)| adopted.sockets.is_empty()) {
        *adopted = best(wanted, pool, false);
    }
    let mut left = Vec::new();
    for open in pool.drain(..) {
        match further(wanted, &all, &open).and_then(|index| all.get_mut(index)) {
            Some(adopted) => adopted.sockets.push(open.socket),
            None => left.push(open),
        }
    }
    *pool = left;
    all
}

/// The one with its name, wherever it listens; if several have it (a socket unit may open several) and if none
/// has it, the one that listens at its address, or served it in another process.
fn best(wanted: &Wanted<'_>, pool: &mut Vec<OpenSocket>, exactly: bool) -> Adopted {
    let configured = wanted.address.to_string();
    let fitness = |open: &OpenSocket| {
        let named = wanted.name == Some(&open.name);
        let (at, served) = (open.address() == Some(wanted.address), open.name == configured);
        (named && at || !exactly && (named || at || served)).then_some((named, at, served))
    };
    let fitting = pool.iter().enumerate().filter_map(|(index, open)| Some((fitness(open)?, index)));
    // Of those that fit alike, the one that systemd opened first.
    let Some(((named, _, served), found)) = fitting.max_by_key(|(fitness, index)| (*fitness, Reverse(*index))) else {
        return Adopted::default();
    };
    Adopted { sockets: vec![pool.remove(found).socket], by_name: wanted.name.is_some() && (named || served) }
}

/// The listener that uses a further socket: the second one of its address (ReusePort=), the IPv4 half of its
/// wildcard, or another socket of the name or the configured address that it alone has.
fn further(wanted: &[Wanted<'_>], adopted: &[Adopted], open: &OpenSocket) -> Option<usize> {
    let address = open.address()?;
    let is_half = |(wanted, adopted): (&Wanted<'_>, &Adopted)| {
        wanted.takes_ipv4 && !adopted.by_name && address == ipv4_wildcard(wanted.address)
    };
    let only = |fits: &dyn Fn(&Wanted<'_>) -> bool| {
        let mut fitting = wanted.iter().enumerate().filter(|(_, wanted)| fits(wanted)).map(|(index, _)| index);
        fitting.next().filter(|_| fitting.next().is_none())
    };
    let same = wanted.iter().position(|wanted| wanted.address == address);
    let half = || wanted.iter().zip(adopted).position(is_half);
    let named = || only(&|wanted: &Wanted<'_>| wanted.name == Some(&open.name));
    let served = || only(&|wanted: &Wanted<'_>| wanted.address.port() != 0 && wanted.address.to_string() == open.name);
    same.or_else(half).or_else(named).or_else(served)
}

/// The sockets that systemd opened at configured ports, or by configured names, and that no listener adopts.
pub(super) fn unclaimed(config: &Config, pool: &[OpenSocket]) -> Vec<Problem> {
    let problem = |open: &OpenSocket| {
        let address = open.address()?;
        let named = config.listeners.iter().position(|listener| listener.socket.as_deref() == Some(&*open.name));
        let named = named.map(|index| format!("listeners[{index}].socket"));
        let at_port = || configured(config).find(|(_, other)| other.port() == address.port()).map(|(key, _)| key);
        let key = named.or_else(at_port)?;
        let words = format!(
            "the service manager passed the socket {:?} listening at {address}, which no listener uses: its clients \
             would connect and wait without a reply; add a listener with `address: \"{address}\"`, or remove \
             ListenStream={address} from the socket unit",
            open.name
        );
        Some(config.problem(&key, words))
    };
    pool.iter().filter_map(problem).collect()
}

/// Binds what is missing. `open` has the ports where an IPv6 wildcard that is open already takes IPv4, with
/// what it serves.
pub(super) fn complete(
    config: &Config,
    wanted: &[Wanted<'_>],
    adopted: Vec<Adopted>,
    mut open: Vec<(u16, Option<ListenerKind>)>,
) -> Result<Vec<Adopted>, StartError> {
    for (wanted, adopted) in wanted.iter().zip(&adopted) {
        if is_ipv6_wildcard(wanted.address) && adopted.sockets.iter().any(sockets::takes_both) {
            open.push((wanted.address.port(), wanted.kind));
        }
    }
    let complete = |(wanted, mut adopted): (&Wanted<'_>, Adopted)| {
        let address = wanted.address;
        let shared = open.iter().find(|(port, _)| *port == address.port() && address == ipv4_wildcard(address));
        if let (true, Some((_, kind))) = (adopted.sockets.is_empty(), shared) {
            if kind.is_some() && *kind == wanted.kind {
                return Ok(adopted);
            }
            return Err(StartError::Config(vec![config.problem(&wanted.key, apart(address))]));
        }
        if let Some((address, only_v6)) = missing(wanted, &adopted.sockets, adopted.by_name) {
            let bound = sockets::listen(address, only_v6);
            adopted.sockets.push(bound.map_err(|source| StartError::Bind {
                key: wanted.key.clone(),
                what: address.to_string(),
                source,
            })?);
        }
        Ok(adopted)
    };
    wanted.iter().zip(adopted).map(complete).collect()
}

fn apart(address: SocketAddr) -> String {
    let port = address.port();
    format!(
        "the socket that was handed over for [::]:{port} takes IPv4 too, and another protocol, tls or service is \
         configured there: set BindIPv6Only=ipv6-only in the socket unit, beside ListenStream=[::]:{port} and \
         ListenStream=0.0.0.0:{port}; after `usher upgrade`, restart instead"
    )
}

/// What remains to be bound, and whether without IPv4.
fn missing(wanted: &Wanted<'_>, adopted: &[TcpListener], by_name: bool) -> Option<(SocketAddr, bool)> {
    let address = wanted.address;
    if adopted.is_empty() {
        return Some((address, is_ipv6_wildcard(address) && !wanted.takes_ipv4));
    }
    if by_name || !wanted.takes_ipv4 || adopted.iter().any(sockets::takes_both) {
        return None;
    }
    let has = |ipv6| adopted.iter().filter_map(sockets::local_address).any(|address| address.is_ipv6() == ipv6);
    match (has(true), has(false)) {
        (true, false) => Some((ipv4_wildcard(address), false)),
        (false, true) => Some((address, true)),
        (_, _) => None,
    }
}

/// A socket that is open once more, under the address that it serves.
///
/// # Errors
/// There is no descriptor left.
pub(super) fn duplicate(address: SocketAddr, socket: BorrowedFd<'_>) -> io::Result<OpenSocket> {
    Ok(OpenSocket { name: address.to_string(), socket: socket.try_clone_to_owned()?.into() })
}

#[cfg(test)]
mod tests;
