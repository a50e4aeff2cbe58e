//! The control socket: HTTP and JSON over a Unix socket that only its owner (and a configured
//! group) can open. Both halves are here: `server` and `routes` in the running process, and
//! `client`, which the commands use. What they say to each other is in `shapes` and documented in
//! docs/control.md.
//!
//! Arguments are in the query, never in a body. Every mistake has a message in the reply; every command
//! that changes something is logged with the caller's uid.

mod arguments;
mod caller;
mod client;
mod fleet;
mod lookup;
mod routes;
mod server;
mod shapes;
mod status;
mod trace;
mod trial;

use std::io;

pub(crate) use client::{ControlError, ask, ask_all, ask_predecessors, encode, follow, send};
pub(crate) use fleet::{Known, NodeReply};
pub(crate) use server::{obey, serve};
pub(crate) use shapes::{
    BackendSummary, Cached, Confirmed, DirectoryStatus, Dropped, ErrorReply, FleetStatus, Kicked, Leaving,
    ListenerStatus, Looked, MapReply, Outcome, PreviousStatus, Recent, Status,
};
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use crate::base::sys::socket_file::{self, SocketAccess, SocketFile};
use crate::config;

/// Binds the control socket.
///
/// # Errors
/// See [`socket_file::bind`].
pub(crate) fn bind(settings: &config::Control, successor: bool) -> io::Result<(UnixListener, SocketFile)> {
    let mode = if settings.group.is_some() { 0o660 } else { 0o600 };
    socket_file::bind(&settings.path, SocketAccess { group: settings.group.as_deref(), mode }, successor)
}

/// A request to the main loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Reload the configuration file.
    Reload {
        /// Also if a certificate in it has expired.
        force: bool,
    },
    /// Hand the listeners to a new process.
    Upgrade,
    /// Shut down, as SIGTERM does.
    Drain,
}

/// An order and the channel for its outcome: a message, or the problems.
pub(crate) type Request = (Order, oneshot::Sender<OrderResult>);

/// A message for the administrator, or the problems.
pub(crate) type OrderResult = Result<String, Vec<String>>;
