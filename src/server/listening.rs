//! Sockets that are accepted from, each with the socket once more, so that a successor can get it.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use futures_util::future::join_all;

use super::supervise::KeptTask;
use crate::base::sys;

/// How long closing a listener may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is accepted from until this is dropped.
#[derive(Default)]
pub(super) struct Listening {
    /// None where an IPv6 wildcard's socket takes IPv4 for it.
    sockets: Vec<AcceptingSocket>,
    /// They were chosen by name.
    pub(super) by_name: bool,
}

/// A socket in use: connections are accepted until this is dropped. The socket once more, for a successor.
struct AcceptingSocket {
    accepting: KeptTask,
    socket: OwnedFd,
}

impl Listening {
    pub(super) fn add(&mut self, accepting: KeptTask, socket: OwnedFd) {
        self.sockets.push(AcceptingSocket { accepting, socket });
    }

    /// Stops accepting. Unlike after a drop, connections are refused when this returns.
    pub(super) async fn close(self) {
        let close = |AcceptingSocket { accepting, socket }: AcceptingSocket| {
            drop(socket);
            accepting.end(CLOSE_TIMEOUT)
        };
        join_all(self.sockets.into_iter().map(close)).await;
    }

    /// Its sockets, for a successor.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|one| one.socket.as_fd())
    }

    /// Whether its socket is an IPv6 wildcard that takes IPv4.
    pub(super) fn takes_both(&self) -> bool {
        self.sockets.iter().any(|one| sys::sockets::takes_both(&one.socket))
    }

    pub(super) fn has_ipv4(&self) -> bool {
        self.sockets.iter().any(|one| sys::sockets::local_address(&one.socket).is_some_and(|at| at.is_ipv4()))
    }

    /// Takes out the socket at this address.
    pub(super) fn split(&mut self, address: SocketAddr) -> Self {
        let at = |one: &mut AcceptingSocket| sys::sockets::local_address(&one.socket) == Some(address);
        Self { sockets: self.sockets.extract_if(.., at).collect(), by_name: false }
    }
}
