//! Which of this machine's addresses a connection to a backend comes from.
//!
//! Towards one address and port of a backend, each source has some 28,000 ports of its own: several of
//! them, in turn, make room for more sessions. Without any the system chooses.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;

use super::BackendError;
use crate::base::sys::sockets;

/// The addresses that connections come from.
#[derive(Debug)]
pub(super) struct Sources {
    /// Empty: as the system chooses.
    addresses: Vec<IpAddr>,
    turn: AtomicUsize,
}

impl Sources {
    pub(super) fn new(addresses: &[IpAddr]) -> Self {
        Self { addresses: addresses.to_vec(), turn: AtomicUsize::new(0) }
    }

    /// Whether a connection to this address has a source of its family.
    pub(super) fn reach(&self, address: &SocketAddr) -> bool {
        self.addresses.is_empty() || self.fitting(address).next().is_some()
    }

    fn fitting(&self, address: &SocketAddr) -> impl Iterator<Item = &IpAddr> {
        let v4 = address.is_ipv4();
        self.addresses.iter().filter(move |source| source.is_ipv4() == v4)
    }

    /// Connects from the next one in turn. The caller sets the deadline.
    pub(super) async fn connect(&self, address: SocketAddr) -> Result<TcpStream, BackendError> {
        let refused = |source| BackendError::Connect { address, source };
        if self.addresses.is_empty() {
            return sockets::towards(address, None).map_err(refused)?.connect(address).await.map_err(refused);
        }
        let fitting = self.fitting(&address).count().max(1);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % fitting;
        let from = *self.fitting(&address).nth(turn).ok_or(BackendError::NoSource { address })?;
        let socket = sockets::towards(address, Some(from)).map_err(|source| BackendError::Source { from, source })?;
        socket.connect(address).await.map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn sources(texts: &[&str]) -> Sources {
        let addresses: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Sources::new(&addresses)
    }

    #[tokio::test]
    async fn sources_of_a_family_are_used_in_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sources = sources(&["127.0.0.2", "::1", "127.0.0.3"]);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let _near = sources.connect(address).await.unwrap();
            seen.push(listener.accept().await.unwrap().1.ip().to_string());
        }
        assert_eq!(seen, ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]);
    }

    #[tokio::test]
    async fn source_of_another_machine_or_family_is_a_local_fault() {
        let address = "127.0.0.1:9".parse().unwrap();
        let error = sources(&["192.0.2.1"]).connect(address).await.unwrap_err();
        assert!(error.is_local_fault(), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("cannot connect from 192.0.2.1: Cannot assign requested address"), "{text}");
        let v6 = sources(&["::1"]);
        assert!(!v6.reach(&address) && sources(&[]).reach(&address));
        assert!(matches!(v6.connect(address).await, Err(BackendError::NoSource { .. })));
    }
}
