//! Resolution of a backend's configured addresses.
//!
//! An address that is one of usher's own listeners is refused here, whatever name led to it: a login would loop
//! until the descriptors are used up.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::lookup_host;

use super::BackendError;
use super::source::Sources;
use crate::base::sys;
use crate::config::Address;

/// The most addresses of one result, more than a login can try before its deadline.
const MOST: usize = 16;

/// Why there is no address.
#[derive(Debug, Clone)]
pub(super) enum ResolveError {
    /// The resolver's reason.
    Name(Arc<io::Error>),
    /// The address is one of usher's own listeners.
    Own(SocketAddr),
    /// No source address has the family of this one, or of any other.
    Family(SocketAddr),
}

impl From<ResolveError> for BackendError {
    fn from(unresolved: ResolveError) -> Self {
        match unresolved {
            ResolveError::Name(source) => Self::Resolve { source },
            ResolveError::Own(address) => Self::Loop { address },
            ResolveError::Family(address) => Self::NoSource { address },
        }
    }
}

/// Resolves all of them, in order, each address once. A name without an address is skipped while another has
/// one, and so is an address whose family no source has.
pub(super) async fn resolve(
    configured: &[Address],
    own: &[SocketAddr],
    sources: &Sources,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let mut answer = Vec::new();
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for Address { host, port } in configured {
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, *port)],
            Err(_) => match lookup_host((host.as_str(), *port)).await {
                Ok(found) => interleaved(found.collect()),
                Err(error) => {
                    failure = error;
                    continue;
                }
            },
        };
        for address in found {
            if !answer.contains(&address) {
                answer.push(address);
            }
        }
    }
    if let Some(address) = answer.iter().find(|address| sys::is_own(**address, own)) {
        return Err(ResolveError::Own(*address));
    }
    let first = answer.first().copied();
    answer.retain(|address| sources.reach(address));
    answer.truncate(MOST);
    match first {
        None => Err(ResolveError::Name(Arc::new(failure))),
        Some(first) if answer.is_empty() => Err(ResolveError::Family(first)),
        Some(_) => Ok(answer),
    }
}

/// The addresses of one name with alternating families, so that an unreachable family costs one attempt and not
/// all (RFC 8305 section 4).
fn interleaved(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return turns;
        }
        turns.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    fn any() -> Sources {
        Sources::new(&[])
    }

    #[test]
    fn address_families_alternate() {
        let found = ["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1", "1.0.0.2:1"].map(at).to_vec();
        let turns = ["[::1]:1", "1.0.0.1:1", "[::2]:1", "1.0.0.2:1", "[::3]:1"].map(at);
        assert_eq!(interleaved(found), turns);
        assert_eq!(interleaved(vec![]), []);
    }

    #[tokio::test]
    async fn configured_order_is_kept_without_duplicates() {
        let configured = [address("127.0.0.9", 1), address("127.0.0.2", 1), address("127.0.0.9", 1), address("::1", 2)];
        let answer = resolve(&configured, &[], &any()).await.unwrap();
        assert_eq!(answer, ["127.0.0.9:1", "127.0.0.2:1", "[::1]:2"].map(at));
    }

    #[tokio::test]
    async fn name_without_an_address_is_skipped_or_reported() {
        // RFC 6761 section 6.4: no resolver knows this.
        let nowhere = address("nowhere.invalid", 1);
        let answer = resolve(&[nowhere.clone(), address("127.0.0.9", 1)], &[], &any()).await.unwrap();
        assert_eq!(answer, [at("127.0.0.9:1")]);
        assert!(matches!(resolve(&[nowhere], &[], &any()).await, Err(ResolveError::Name(_))));
    }

    #[tokio::test]
    async fn own_address_is_no_backend() {
        let own = [at("127.0.0.9:993")];
        let resolved = resolve(&[address("127.0.0.1", 993), address("127.0.0.9", 993)], &own, &any()).await;
        assert!(matches!(resolved, Err(ResolveError::Own(address)) if address == at("127.0.0.9:993")));
    }
    #[tokio::test]
    async fn address_without_a_source_of_its_family_is_skipped_or_reported() {
        let (v4, v6) = (address("127.0.0.9", 1), address("::1", 1));
        let sources = Sources::new(&[at("127.0.0.2:0").ip()]);
        let answer = resolve(&[v6.clone(), v4], &[], &sources).await.unwrap();
        assert_eq!(answer, [at("127.0.0.9:1")]);
        let resolved = resolve(&[v6], &[], &sources).await;
        assert!(matches!(resolved, Err(ResolveError::Family(address)) if address == at("[::1]:1")));
    }
}
