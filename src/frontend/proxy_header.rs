//! The PROXY header before a connection: read completely and not a byte beyond, only from proxies that the
//! listener trusts, under a deadline of its own.
//!
//! An invalid header closes the connection without a reply: no protocol has been spoken yet.

use std::io;

use ipnet::IpNet;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tracing::{debug, warn};

use crate::config::Config;
use crate::frontend::session::Accepted;
use crate::process::Shared;
use crate::proto::proxy_header::{self, Header, HeaderProgress, ProxyHeaderError};
use crate::telemetry::client_address::Client;
use crate::telemetry::labels::ProxyHeaderResult;

/// Why a connection is closed for its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeaderRejection {
    Untrusted,
    Fault(ProxyHeaderError),
    Timeout,
    /// The peer disconnected, such as a port check.
    ByPeer,
    Limit,
}

impl HeaderRejection {
    const fn result(self) -> ProxyHeaderResult {
        match self {
            Self::Untrusted => ProxyHeaderResult::Untrusted,
            Self::Fault(ProxyHeaderError::Missing) => ProxyHeaderResult::Missing,
            Self::Fault(ProxyHeaderError::Malformed) => ProxyHeaderResult::Malformed,
            Self::Fault(ProxyHeaderError::TooLong) => ProxyHeaderResult::TooLong,
            Self::Timeout => ProxyHeaderResult::Timeout,
            Self::ByPeer => ProxyHeaderResult::Closed,
            Self::Limit => ProxyHeaderResult::Limit,
        }
    }
}

impl From<ProxyHeaderError> for HeaderRejection {
    fn from(fault: ProxyHeaderError) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for HeaderRejection {
    fn from(_: io::Error) -> Self {
        Self::ByPeer
    }
}

/// Reads the header and sets the connection's addresses. `None`: the connection is to be closed, which is
/// logged and counted.
pub(crate) async fn receive(
    shared: &Shared,
    config: &Config,
    proxies: &[IpNet],
    accepted: &mut Accepted,
) -> Option<()> {
    let (proxy, protocol) = (accepted.client.ip(), accepted.listener.protocol.name);
    let count = |result| shared.metrics.proxy_headers.at(protocol, result).inc();
    let received = async {
        if !proxies.iter().any(|network| network.contains(&proxy)) {
            return Err(HeaderRejection::Untrusted);
        }
        let _half_open = shared.throttle.proxy_header(proxy).map_err(|_| HeaderRejection::Limit)?;
        // It counts towards the time before login, which may be shorter.
        let patience = config.limits.proxy_header_timeout.min(config.limits.prelogin_timeout);
        timeout_at(accepted.since + patience, take(&mut accepted.tcp)).await.unwrap_or(Err(HeaderRejection::Timeout))
    };
    match received.await {
        Ok(Header::Local) => count(ProxyHeaderResult::Local),
        Ok(Header::Client { client, local }) => {
            count(ProxyHeaderResult::Client);
            (accepted.client, accepted.local) = (client, local);
        }
        Err(closed) => {
            count(closed.result());
            let reason = closed.result().label();
            // One that is trusted for no header may be a client.
            let proxy = Client::of(proxy, !matches!(closed, HeaderRejection::Untrusted));
            if matches!(closed, HeaderRejection::ByPeer | HeaderRejection::Limit) {
                debug!(%proxy, protocol, reason, "closed before the PROXY header");
            } else if let Some(suppressed) = shared.repeats.allow("proxy header", reason) {
                warn!(%proxy, protocol, reason, suppressed, "connection closed: no valid PROXY header from a trusted proxy");
            }
            return None;
        }
    }
    Some(())
}

/// Reads the header off the connection.
async fn take(tcp: &mut TcpStream) -> Result<Header, HeaderRejection> {
    let mut bytes = Vec::new();
    loop {
        let more = match proxy_header::read(&bytes)? {
            HeaderProgress::Complete(header, _) => return Ok(header),
            HeaderProgress::Needs(more) => more,
        };
        // What follows belongs to TLS or the dialogue.
        if (&mut *tcp).take(more as u64).read_buf(&mut bytes).await? == 0 {
            return Err(HeaderRejection::ByPeer);
        }
    }
}
