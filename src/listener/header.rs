//! The PROXY header in front of a connection: taken whole and not a byte more, from proxies that the
//! listener trusts and from nobody else, under a deadline of its own.
//!
//! What is wrong with it closes the connection without a word: there is no protocol yet to say it in.

use std::io;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tracing::{debug, warn};

use crate::config::{Config, Network};
use crate::proto::proxy_header::{self, Fault, Header, Progress};
use crate::session::Accepted;
use crate::snapshot::Shared;

/// Why a connection has no header to be served by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    Untrusted,
    Fault(Fault),
    Timeout,
    /// The peer went away, as who only asks whether the port is open.
    ByPeer,
    Limit,
}

impl Closed {
    const fn label(self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted",
            Self::Fault(Fault::Missing) => "missing",
            Self::Fault(Fault::Malformed) => "malformed",
            Self::Fault(Fault::TooLong) => "too_long",
            Self::Timeout => "timeout",
            Self::ByPeer => "closed",
            Self::Limit => "limit",
        }
    }
}

impl From<Fault> for Closed {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for Closed {
    fn from(_: io::Error) -> Self {
        Self::ByPeer
    }
}

/// Takes the header, and gives the connection the addresses it names. `None`: the connection is to be
/// closed, which is told and counted.
pub(super) async fn receive(
    shared: &Shared,
    config: &Config,
    proxies: &[Network],
    accepted: &mut Accepted,
) -> Option<()> {
    let (proxy, protocol) = (accepted.client.ip(), accepted.protocol.name);
    let count = |result| shared.metrics.proxy_headers.with_label_values(&[protocol, result]).inc();
    let received = async {
        if !proxies.iter().any(|network| network.contains(proxy)) {
            return Err(Closed::Untrusted);
        }
        let _half_open = shared.throttle.header(&config.throttle, proxy).map_err(|_| Closed::Limit)?;
        // It is part of the conversation, which may be shorter.
        let patience = config.limits.proxy_header_timeout.min(config.limits.conversation_timeout);
        timeout_at(accepted.since + patience, take(&mut accepted.tcp)).await.unwrap_or(Err(Closed::Timeout))
    };
    match received.await {
        Ok(Header::Local) => count("local"),
        Ok(Header::Client { client, local }) => {
            count("client");
            (accepted.client, accepted.local) = (client, local);
        }
        Err(closed) => {
            let reason = closed.label();
            count(reason);
            if matches!(closed, Closed::ByPeer | Closed::Limit) {
                debug!(%proxy, protocol, reason, "closed before its PROXY header");
            } else if let Some(suppressed) = shared.repeats.allow("proxy header", reason) {
                warn!(%proxy, protocol, reason, suppressed, "connection closed: no PROXY header as the listener wants it");
            }
            return None;
        }
    }
    Some(())
}

/// Reads the header off the connection.
async fn take(tcp: &mut TcpStream) -> Result<Header, Closed> {
    let mut bytes = Vec::new();
    loop {
        let more = match proxy_header::read(&bytes)? {
            Progress::Complete(header, _) => return Ok(header),
            Progress::Needs(more) => more,
        };
        // What follows is TLS' or the dialogue's.
        if (&mut *tcp).take(more as u64).read_buf(&mut bytes).await? == 0 {
            return Err(Closed::ByPeer);
        }
    }
}
