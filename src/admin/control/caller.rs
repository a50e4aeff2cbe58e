//! The process at the other end of a connection to the control socket, as the kernel reports it: named in the
//! log of every command that changes something.

use std::sync::Arc;

use tokio::net::UnixStream;
use tracing::info;

/// The caller's credentials (SO_PEERCRED, unix(7)).
#[derive(Debug, Clone, Default)]
pub(super) struct Caller {
    pub(super) uid: Option<u32>,
    pub(super) pid: Option<i32>,
    /// The node of the fleet where the command was given; `None`: here.
    pub(super) node: Option<Arc<str>>,
}

impl Caller {
    pub(super) fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        Self { uid: credentials.map(|it| it.uid()), pid: credentials.and_then(|it| it.pid()), node: None }
    }
}

/// Logs an administrative command: `what` it applies to, and the number of affected items.
pub(super) fn audit(cmd: &str, caller: &Caller, what: &str, count: Option<usize>) {
    let Caller { uid, pid, node } = caller;
    info!(cmd, uid, pid, node = node.as_deref(), what, count, "admin command");
}
