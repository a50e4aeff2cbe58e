//! The control socket: HTTP and JSON over a Unix socket that only its owner (and a configured
//! group) can open. Both halves are here: `socket`, `server` and `routes` in the running process, and
//! `client`, which the commands use. What they say to each other is in `shapes` and documented in
//! docs/control.md.
//!
//! Arguments are in the query, never in a body. Every mistake has a message in the reply; every command
//! that changes something is logged with the caller's uid.

mod arguments;
mod caller;
mod client;
mod fleet;
mod routes;
mod server;
mod shapes;
mod socket;
mod trace;

pub(crate) use client::{ControlError, ask, ask_all, encode, follow};
pub(crate) use fleet::{Known, NodeReply};
pub(crate) use server::{obey, serve};
pub(crate) use shapes::{
    Cached, Confirmed, DirectoryStatus, Dropped, ErrorReply, FleetStatus, Kicked, Leaving, Outcome, Status, User,
};
pub(crate) use socket::{SocketFile, bind};
use tokio::sync::oneshot;

/// A request to the main loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Reload the configuration file.
    Reload,
    /// Hand the listeners to a new process.
    Upgrade,
    /// Shut down, as SIGTERM does.
    Drain,
}

/// An order and the channel for its outcome: a message, or the problems.
pub(crate) type Request = (Order, oneshot::Sender<OrderResult>);

/// A message for the administrator, or the problems.
pub(crate) type OrderResult = Result<String, Vec<String>>;

/// Any name as a part of a path.
#[must_use]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    (0..text.len()).step_by(2).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_round_trips_through_a_path() {
        for name in ["alice", "a/b?c=%d", "jürgen\0", ""] {
            assert_eq!(unhex(&hex(name.as_bytes())).unwrap(), name.as_bytes());
        }
        assert_eq!(unhex("6"), None);
        assert_eq!(unhex("zz"), None);
    }
}
