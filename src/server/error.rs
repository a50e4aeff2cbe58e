//! Why the process does not start, each with what to do about it.

use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::config::Problem;

/// Why usher did not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// The configuration has mistakes.
    #[error("the configuration has {} mistake(s)", .0.len())]
    Config(Vec<Problem>),
    /// An address cannot be bound.
    #[error("{key}: {what} cannot be bound: {source}{}", advice(.source))]
    Bind {
        /// The config key.
        key: String,
        /// The address or path.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The listeners of the process before this one do not arrive.
    #[error("the listeners cannot be taken over: {0}")]
    Inherit(io::Error),
    /// The system does not let usher hear signals.
    #[error("signals cannot be received: {0}")]
    Signals(io::Error),
}

/// What to do when an address cannot be bound.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => "; another process uses it: stop that process, or name another address or port",
        Some(Errno::ADDRNOTAVAIL) => "; it is not an address of this machine",
        Some(Errno::ACCESS) => "; ports below 1024 need CAP_NET_BIND_SERVICE, as deploy/usher.service gives",
        Some(Errno::AFNOSUPPORT) => "; this machine has no IPv6: write 0.0.0.0 instead of [::]",
        Some(_) | None => "",
    }
}
