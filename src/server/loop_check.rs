//! Backends that lead back to usher: a login would loop.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::base::sys;
use crate::config::{Address, Config, Problem};

/// How long all names together may take: an unreachable resolver must hold up neither a start nor a
/// reload. A name that does not resolve by then is no mistake of the file; it is looked at again
/// whenever it is resolved to be dialled.
const PATIENCE: Duration = Duration::from_secs(2);

/// Backends whose address is one of usher's own listeners.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    find(config, PATIENCE, |address| {
        let found = (address.host.as_str(), address.port).to_socket_addrs();
        found.map(Iterator::collect).unwrap_or_default()
    })
}

fn find(
    config: &Config,
    patience: Duration,
    look_up: impl Fn(&Address) -> Vec<SocketAddr> + Send + 'static,
) -> Vec<Problem> {
    let own: Vec<SocketAddr> = config.listeners.iter().map(|listener| listener.address).collect();
    let mut lookups = Vec::new();
    for (index, backend) in config.routing.backends.iter().enumerate() {
        for endpoint in &backend.endpoints {
            let key = format!("routing.backends[{index}].{}.address", endpoint.protocol.name);
            lookups.extend(endpoint.addresses.iter().map(|address| (key.clone(), address.clone())));
        }
    }
    // What needs no resolver does not wait for it.
    lookups.sort_by_key(|(_, address)| address.host.parse::<IpAddr>().is_err());
    let (answer, answers) = mpsc::channel();
    let ask = move || {
        for (key, address) in lookups {
            let found = look_up(&address);
            if answer.send((key, found)).is_err() {
                return; // the receiver is gone
            }
        }
    };
    // Without a thread there is no answer, as without a resolver.
    let _ = thread::Builder::new().name("names".to_owned()).spawn(ask);
    let deadline = Instant::now() + patience;
    let mut problems: Vec<Problem> = Vec::new();
    while let Ok((key, found)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        let Some(address) = found.into_iter().find(|address| sys::is_own(*address, &own)) else { continue };
        if problems.iter().all(|problem| problem.key != key) {
            let words =
                format!("{address} is one of usher's own listeners: a login would loop; name the mail server itself");
            problems.push(config.problem(&key, words));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    #[test]
    fn silent_resolver_delays_nothing() {
        let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
routing:
  backends:
    - {name: server1, imap: {address: ['usher.example:993', 'again.usher.example:993'], tls: implicit, server_name: x.example}}
    - {name: server2, imap: {address: 'hangs.example:993', tls: implicit}}
    - {name: server3, imap: {address: 'never.asked.example:993', tls: implicit}}
    - {name: server4, imap: {address: '192.0.2.4:993', tls: implicit}}
";
        let config = config::parse(Path::new("/c.yaml"), text).unwrap();
        let (release, held) = mpsc::channel::<()>();
        let (ask, asked) = mpsc::channel();
        let look_up = move |address: &Address| {
            ask.send(address.host.clone()).unwrap();
            if address.host == "hangs.example" {
                let _ = held.recv();
            }
            vec![SocketAddr::from(([127, 0, 0, 1], if address.host.parse::<IpAddr>().is_ok() { 994 } else { 993 }))]
        };
        let problems = find(&config, Duration::from_millis(300), look_up);
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert!(
            problem.to_string().starts_with("/c.yaml:6: routing.backends[0].imap.address: 127.0.0.1:993"),
            "{problem}"
        );
        let order = ["192.0.2.4", "usher.example", "again.usher.example", "hangs.example"];
        assert_eq!(asked.try_iter().collect::<Vec<_>>(), order);
        drop(release);
    }
}
