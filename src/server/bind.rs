//! Listening sockets: inherited or bound, each twice, so that a successor can get it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::net::TcpListener;
use tracing::info;

use super::StartError;
use super::listening::Listening;
use super::socketmap::{OpenedSocketmap, PostfixListening, open_unix};
use super::sockets::{
    Adopted, ListenerKind, OpenSocket, Wanted, assign, complete, duplicate, ipv4_wildcard, is_ipv6_wildcard,
    takes_ipv4, unclaimed,
};
use crate::base::sys;
use crate::config::{self, Config, ListenerTls, SocketmapPlace};
use crate::frontend::listener::{self, BoundListener};
use crate::frontend::socketmap::SocketmapListener;

/// Identifies a listener.
pub(super) type ListenerKey = (SocketAddr, &'static str, ListenerTls);

/// The sockets that a configuration needs and that were not open yet, each with its socket once more.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) listeners: Vec<OpenedListener>,
    pub(super) side_port: Vec<(TcpListener, OwnedFd)>,
    /// With its address as configured.
    pub(super) auth_http: Option<(SocketAddr, Vec<(TcpListener, OwnedFd)>)>,
    pub(super) socketmap: Option<OpenedSocketmap>,
}

/// The new sockets of one listener.
#[derive(Debug)]
pub(super) struct OpenedListener {
    pub(super) key: ListenerKey,
    pub(super) sockets: Vec<(BoundListener, OwnedFd)>,
    pub(super) by_name: bool,
}

pub(super) fn listener_key(config: &config::Listener) -> ListenerKey {
    (config.address, config.protocol.name, config.tls)
}

fn kind((_, protocol, tls): ListenerKey) -> ListenerKind {
    (protocol, tls)
}

/// Whether the first is the IPv6 wildcard at a port and the second the IPv4 wildcard there.
fn are_wildcards(one: SocketAddr, other: SocketAddr) -> bool {
    is_ipv6_wildcard(one) && one.port() != 0 && other == ipv4_wildcard(one)
}

/// Listeners that would have to take over the address of an open one. The two wildcards of a port do only if one
/// socket takes both families and could not serve both listeners.
pub(super) fn collisions<T>(
    config: &Config,
    present: &HashMap<ListenerKey, T>,
    takes_both: impl Fn(&T) -> bool,
) -> Vec<String> {
    let stays = |key: &ListenerKey| config.listeners.iter().any(|listener| listener_key(listener) == *key);
    let problem = |(index, listener): (usize, &config::Listener)| {
        let key = listener_key(listener);
        let collides = |(open, its): &(&ListenerKey, &T)| {
            if are_wildcards(open.0, key.0) {
                takes_both(its) && !(stays(open) && kind(**open) == kind(key))
            } else {
                !present.contains_key(&key) && config::collide(open.0, key.0)
            }
        };
        let ((open, ..), _) = present.iter().filter(collides).max_by_key(|(open, _)| open.0 == key.0)?;
        let (name, words) = if *open == key.0 {
            let words =
                "a listener's protocol or tls cannot change while it is open: restart, or put the old value back";
            ("tls", words.to_owned())
        } else {
            (
                "address",
                format!(
                    "usher already listens at {open}, which includes this address: restart, or put the old value back"
                ),
            )
        };
        Some(config.problem(&format!("listeners[{index}].{name}"), words).to_string())
    };
    config.listeners.iter().enumerate().filter_map(problem).collect()
}

/// An address of a listener.
fn wanted<'a>(config: &Config, index: usize, listener: &'a config::Listener) -> Wanted<'a> {
    let key = format!("listeners[{index}].address");
    let kind = Some((listener.protocol.name, listener.tls));
    Wanted { kind, ..Wanted::new(config, &key, listener.address, listener.socket.as_deref()) }
}

/// Adopts or binds everything that the configuration needs. A socket that systemd opened for it and that nothing
/// adopts is an error; an old process' is not, because the configuration may have changed.
pub(super) fn open_all(config: &Config, inherited: &mut Vec<OpenSocket>, upgrade: bool) -> Result<Opened, StartError> {
    let admin = config.admin.address;
    let listeners = config.listeners.iter().enumerate().map(|(index, listener)| wanted(config, index, listener));
    let mut all: Vec<Wanted<'_>> = listeners.collect();
    all.push(Wanted::new(config, "admin.address", admin, None));
    let auth_http = config.auth_http.as_ref().map(|settings| settings.address);
    all.extend(auth_http.map(|address| Wanted::new(config, "auth_http.address", address, None)));
    let socketmap = postfix_address(config);
    all.extend(socketmap.map(|address| Wanted::new(config, "socketmap.address", address, None)));
    let adopted = assign(&all, inherited);
    let unclaimed = if upgrade { Vec::new() } else { unclaimed(config, inherited) };
    if !unclaimed.is_empty() {
        return Err(StartError::Config(unclaimed));
    }
    let mut complete = complete(config, &all, adopted, Vec::new())?.into_iter();
    let mut opened = Opened::default();
    for (index, listener) in config.listeners.iter().enumerate() {
        opened.listeners.push(adopt(index, listener, complete.next().unwrap_or_default())?);
    }
    opened.side_port = adopt_http("admin.address", admin, "side port listening", complete.next().unwrap_or_default())?;
    opened.auth_http =
        auth_http.map(|address| adopt_auth_http(address, complete.next().unwrap_or_default())).transpose()?;
    opened.socketmap = open_socketmap(config, complete.next(), inherited, upgrade)?;
    Ok(opened)
}

/// The address of the listener for Postfix, unless it is a Unix socket.
fn postfix_address(config: &Config) -> Option<SocketAddr> {
    match config.socketmap.as_ref().map(|settings| &settings.place) {
        Some(SocketmapPlace::Address(address)) => Some(*address),
        Some(SocketmapPlace::Unix(_)) | None => None,
    }
}

/// The sockets for Postfix: those of its address, or a Unix socket.
fn open_socketmap(
    config: &Config,
    adopted: Option<Adopted>,
    inherited: &mut Vec<OpenSocket>,
    successor: bool,
) -> Result<Option<OpenedSocketmap>, StartError> {
    let Some(settings) = &config.socketmap else { return Ok(None) };
    match &settings.place {
        SocketmapPlace::Address(address) => {
            let key = "socketmap.address";
            let sockets = adopt_http(key, *address, "socketmap listening", adopted.unwrap_or_default())?;
            let sockets = sockets.into_iter().map(|(socket, twice)| (SocketmapListener::Tcp(socket), twice)).collect();
            Ok(Some(OpenedSocketmap { place: settings.place.clone(), sockets, file: None }))
        }
        SocketmapPlace::Unix(place) => open_unix(place, inherited, successor).map(Some),
    }
}

/// What a reload needs beside what is open. The sockets of listeners that it removes are there to be adopted: the
/// wildcard of one family becomes a part of the wildcard of both, and the other way round.
pub(super) fn open_new(
    config: &Config,
    present: &HashMap<ListenerKey, Listening>,
    auth_http: Option<&(SocketAddr, Listening)>,
    socketmap: Option<&PostfixListening>,
) -> Result<Opened, StartError> {
    let keys: Vec<ListenerKey> = config.listeners.iter().map(listener_key).collect();
    let address = config.auth_http.as_ref().map(|settings| settings.address);
    let present_http = auth_http.map(|(address, _)| *address);
    let gone = present.iter().filter(|(key, _)| !keys.contains(key)).map(|(key, listening)| (key.0, listening));
    let gone = gone.chain(auth_http.filter(|(present, _)| address != Some(*present)).map(|(at, its)| (*at, its)));
    let stays =
        |present: &&PostfixListening| config.socketmap.as_ref().is_some_and(|settings| settings.place == present.place);
    let gone = gone.chain(socketmap.filter(|one| !stays(one)).and_then(|one| Some((one.address()?, &one.listening))));
    // The IPv4 half of a wildcard is another listener's from now on.
    let halves = present.iter().filter(|(key, _)| is_ipv6_wildcard(key.0) && !takes_ipv4(config, key.0));
    let mut pool = Vec::new();
    for (address, listening) in gone.chain(halves.map(|(key, listening)| (ipv4_wildcard(key.0), listening))) {
        let fits = |socket: &BorrowedFd<'_>| sys::sockets::local_address(socket) == Some(address);
        for socket in listening.sockets().filter(|socket| address.port() != 0 && fits(socket)) {
            let open = duplicate(address, socket).map_err(|source| StartError::Bind {
                key: "listeners".to_owned(),
                what: address.to_string(),
                source,
            })?;
            pool.push(open);
        }
    }
    let mut all = Vec::new();
    let mut of = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let wanted = wanted(config, index, listener);
        let open = present.get(&listener_key(listener));
        let lacks_ipv4 = |open: &Listening| {
            wanted.takes_ipv4 && wanted.address.port() != 0 && !open.by_name && !open.takes_both() && !open.has_ipv4()
        };
        match open {
            None => all.push(wanted),
            Some(open) if lacks_ipv4(open) => {
                let half = Wanted { address: ipv4_wildcard(wanted.address), takes_ipv4: false, ..wanted };
                all.push(half);
            }
            Some(_) => continue,
        }
        of.push((index, listener));
    }
    let new_http = address.filter(|address| present_http != Some(*address));
    all.extend(new_http.map(|address| Wanted::new(config, "auth_http.address", address, None)));
    let has_new_socketmap = config.socketmap.is_some() && !socketmap.as_ref().is_some_and(stays);
    let new_address = postfix_address(config).filter(|_| has_new_socketmap);
    all.extend(new_address.map(|address| Wanted::new(config, "socketmap.address", address, None)));
    let adopted = assign(&all, &mut pool);
    let stay = present.iter().filter(|(key, open)| keys.contains(key) && is_ipv6_wildcard(key.0) && open.takes_both());
    let stay = stay.map(|(key, _)| (key.0.port(), Some(kind(*key)))).collect();
    let mut complete = complete(config, &all, adopted, stay)?.into_iter();
    let mut opened = Opened::default();
    for (index, listener) in of {
        opened.listeners.push(adopt(index, listener, complete.next().unwrap_or_default())?);
    }
    opened.auth_http =
        new_http.map(|address| adopt_auth_http(address, complete.next().unwrap_or_default())).transpose()?;
    if has_new_socketmap {
        // Its own socket may be at the same path, with other permissions.
        let replaces = socketmap.is_some_and(|present| matches!(present.place, SocketmapPlace::Unix(_)));
        opened.socketmap = open_socketmap(config, complete.next(), &mut Vec::new(), replaces)?;
    }
    Ok(opened)
}

fn adopt(index: usize, listener: &config::Listener, adopted: Adopted) -> Result<OpenedListener, StartError> {
    let both = |socket| {
        let bound = listener::adopt(listener, socket)?;
        let once_more = bound.duplicate()?;
        Ok((bound, once_more))
    };
    let sockets: Result<_, _> = adopted.sockets.into_iter().map(both).collect();
    let sockets = sockets.map_err(|source| StartError::Bind {
        key: format!("listeners[{index}].address"),
        what: listener.address.to_string(),
        source,
    })?;
    Ok(OpenedListener { key: listener_key(listener), sockets, by_name: adopted.by_name })
}

fn adopt_auth_http(
    address: SocketAddr,
    adopted: Adopted,
) -> Result<(SocketAddr, Vec<(TcpListener, OwnedFd)>), StartError> {
    Ok((address, adopt_http("auth_http.address", address, "auth_http listening", adopted)?))
}

/// The sockets of an HTTP port.
fn adopt_http(
    key: &str,
    address: SocketAddr,
    words: &str,
    adopted: Adopted,
) -> Result<Vec<(TcpListener, OwnedFd)>, StartError> {
    let both = |socket: std::net::TcpListener| {
        sys::sockets::require_listening(&socket)?;
        socket.set_nonblocking(true)?;
        info!(address = %socket.local_addr()?, "{words}");
        let once_more = socket.try_clone()?.into();
        Ok((TcpListener::from_std(socket)?, once_more))
    };
    let sockets: Result<_, _> = adopted.sockets.into_iter().map(both).collect();
    sockets.map_err(|source| StartError::Bind { key: key.to_owned(), what: address.to_string(), source })
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::base::tasks::Task;
    use crate::server::supervise::Supervisor;
    use crate::telemetry::metrics::Metrics;

    #[tokio::test]
    async fn closed_listener_refuses_connections_at_once() {
        let supervisor = Supervisor::new(&Arc::new(Metrics::new()));
        let mut listening = Listening::default();
        let sockets = ["127.0.0.1:0", "[::1]:0"].map(|address| {
            let address = address.parse().unwrap();
            let sockets = vec![sys::sockets::listen(address, false).unwrap()];
            let mut bound = adopt_http("x", address, "listening", Adopted { sockets, by_name: false }).unwrap();
            let (listener, socket) = bound.remove(0);
            let (address, listener) = (listener.local_addr().unwrap(), Arc::new(listener));
            let accepting = supervisor.keep_while(Task::AuthHttp, move || {
                let listener = Arc::clone(&listener);
                async move {
                    loop {
                        let _ = listener.accept().await;
                    }
                }
            });
            listening.add(accepting, socket);
            TcpStream::connect(address).unwrap();
            address
        });
        tokio::task::yield_now().await;
        listening.close().await;
        assert!(sockets.iter().all(|address| TcpStream::connect(address).is_err()));
    }

    #[tokio::test]
    async fn socket_for_datagrams_serves_no_http() {
        let datagrams = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let adopted = Adopted { sockets: vec![datagrams.into()], by_name: false };
        let refused = adopt_http("admin.address", "127.0.0.1:9100".parse().unwrap(), "listening", adopted).unwrap_err();
        assert!(refused.to_string().contains("does not listen"), "{refused}");
    }

    fn key(address: &str, tls: ListenerTls) -> ListenerKey {
        (address.parse().unwrap(), "imap", tls)
    }

    #[test]
    fn changed_listener_kind_is_distinguished_from_an_address_in_use() {
        let config = config::parse(Path::new("/c.yaml"), super::super::TEST_CONFIG).unwrap();
        let present = [key("127.0.0.1:993", ListenerTls::Implicit), key("127.0.0.1:143", ListenerTls::StartTls)];
        let present = present.into_iter().map(|key| (key, ())).collect();
        let [problem] = collisions(&config, &present, |()| false).try_into().unwrap();
        assert!(problem.starts_with("/c.yaml:3: listeners[1].tls: "), "{problem}");
        assert!(collisions::<()>(&config, &HashMap::new(), |()| false).is_empty());
        let wildcard = key("0.0.0.0:143", ListenerTls::Implicit);
        let [problem] = collisions(&config, &HashMap::from([(wildcard, ())]), |()| false).try_into().unwrap();
        assert!(
            problem.starts_with("/c.yaml:3: listeners[1].address: usher already listens at 0.0.0.0:143"),
            "{problem}"
        );
    }

    #[test]
    fn socket_of_both_families_stays_only_where_it_serves_both_wildcards() {
        let collisions_of = |text: &str, present: &[(&str, ListenerTls)], both: bool| {
            let text = super::super::TEST_CONFIG.replace("127.0.0.1:993", "0.0.0.0:993").replace("127.0.0.1:143", text);
            let config = config::parse(Path::new("/c.yaml"), &text).unwrap();
            let present = present.iter().map(|(address, tls)| (key(address, *tls), ())).collect();
            collisions(&config, &present, |()| both).len()
        };
        let [implicit, starttls] = [ListenerTls::Implicit, ListenerTls::StartTls];
        assert_eq!(collisions_of("[::]:993", &[("[::]:993", implicit)], true), 0, "it serves the new one too");
        assert_eq!(collisions_of("[::]:993", &[("[::]:993", starttls)], true), 2, "another kind of listener");
        assert_eq!(collisions_of("127.0.0.1:143", &[("[::]:993", implicit)], true), 1, "in place of it");
        let covered = [("[::]:993", implicit), ("0.0.0.0:993", implicit)];
        assert_eq!(collisions_of("127.0.0.1:143", &covered, true), 1, "the socket would close");
        assert_eq!(collisions_of("127.0.0.1:143", &covered, false), 0, "each has its own");
        assert_eq!(collisions_of("[::]:993", &[("0.0.0.0:993", implicit)], false), 0);
    }
}
