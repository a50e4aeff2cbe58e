//! Inspection of a backend's addresses for `usher check --connect`: the steps of a login without a user.
//!
//! It uses the code of a login (`endpoint`), so the findings apply to logins. No password is sent except that
//! of the probe account, where probes log in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::endpoint::{Endpoint, send_header};
use super::error::{Awaited, BackendError};
pub(crate) use super::observed::Observations;
use super::{Backend, Service};
use crate::config::{Forward, Probe};
use crate::proto::proxy_header::{self, Header, Version};
use crate::proto::transcript::Transcript;
use crate::proto::{BackFault, Protocol};
use crate::tls::HandshakeFailure;

/// How long an inspection waits for a greeting: longer than any `timeout` may be, so that it finds out which would do.
const GREETING_WAIT: Duration = Duration::from_secs(12);

/// A backend's endpoint for one protocol, as inspected.
#[derive(Debug)]
pub(crate) struct ProtocolInspection {
    /// The protocol.
    pub protocol: &'static Protocol,
    /// Its addresses, or why there are none.
    pub addresses: Result<Vec<AddressInspection>, BackendError>,
}

/// One address.
#[derive(Debug)]
pub(crate) struct AddressInspection {
    /// The address.
    pub address: SocketAddr,
    /// What was observed.
    pub observed: Observations,
    /// Whether a login could have been sent (or was, as the probe's account); else why not.
    pub result: Result<(), BackendError>,
    /// How long it took.
    pub took: Duration,
    /// Where that may be a matter of the PROXY header: what came of the other way.
    pub other_header: OtherHeader,
}

/// What came of a connection with a PROXY header in place of none, or without the configured one.
#[derive(Debug)]
pub(crate) enum OtherHeader {
    /// It was not tried.
    NotTried,
    /// It fails, too.
    Fails,
    /// A login could have been sent.
    Works,
    /// The server answers in TLS, which has another fault.
    InTls(BackendError),
}

impl Backend {
    /// Inspects every address of every protocol in parallel.
    pub(crate) async fn inspect(&self) -> Vec<ProtocolInspection> {
        let mut endpoints: Vec<_> = self.endpoints.values().collect();
        endpoints.sort_by_key(|endpoint| endpoint.protocol.name);
        let inspect = endpoints.into_iter().map(|endpoint| async move {
            let late = |_| Err(endpoint.late(Awaited::Connection));
            let addresses = match timeout(self.timeout, endpoint.pool.resolve()).await.unwrap_or_else(late) {
                Ok(addresses) => {
                    let each = addresses.into_iter().map(|address| endpoint.inspect(address, self.service.as_ref()));
                    Ok(join_all(each).await)
                }
                Err(error) => Err(error),
            };
            ProtocolInspection { protocol: endpoint.protocol, addresses }
        });
        join_all(inspect).await
    }

    /// Whether an inspection logs in with the probe's account.
    #[must_use]
    pub(crate) fn probes_log_in(&self) -> bool {
        self.endpoints.values().any(|endpoint| matches!(endpoint.pool.settings.probe, Probe::Login(_)))
    }
}

impl Endpoint {
    /// Checks one address up to the point where a login would be sent.
    async fn inspect(self: &Arc<Self>, address: SocketAddr, service: Option<&Service>) -> AddressInspection {
        let (mut observed, began) = (Observations::default(), Instant::now());
        let result = self.inspected(address, service, &mut observed).await;
        let took = began.elapsed();
        let other_header = match &result {
            Err(error) if self.may_concern_header(error, &observed) => match self.try_other_header(address).await {
                Ok(()) => OtherHeader::Works,
                Err(error) if speaks_tls(&error) => OtherHeader::InTls(error),
                Err(_) => OtherHeader::Fails,
            },
            Ok(()) | Err(_) => OtherHeader::NotTried,
        };
        AddressInspection { address, observed, result, took, other_header }
    }

    async fn inspected(
        self: &Arc<Self>,
        address: SocketAddr,
        service: Option<&Service>,
        observed: &mut Observations,
    ) -> Result<(), BackendError> {
        let mut tcp = self.connect(address, Instant::now() + self.timeout).await.tcp?;
        observed.connected = tcp.local_addr().ok().map(|own| own.ip());
        let wait = self.timeout.max(GREETING_WAIT);
        let inspected = async {
            send_header(&mut tcp, &self.header(None)).await?;
            self.dialogue(address, tcp, service, Instant::now() + wait, Some(observed)).await
        };
        inspected.await.map(drop).map_err(|mut error| {
            if let BackendError::Timeout { timeout, .. } = &mut error {
                *timeout = wait;
            }
            error
        })
    }

    /// Whether a PROXY header that the server does not expect, or one that it misses, can be the cause: it reads a header
    /// as a part of the handshake or as commands, and without one it reads these as a header.
    fn may_concern_header(&self, error: &BackendError, observed: &Observations) -> bool {
        let sends = matches!(self.forward, Forward::Header(_));
        // A server that waits for a header says nothing.
        let silent = observed.greeting.is_none();
        match error {
            BackendError::Tls { reason } => {
                // With TLS in both directions it has read no header: it sends an alert, or speaks no TLS at all.
                let understood = matches!(reason.failure, HandshakeFailure::NotTls | HandshakeFailure::Alert);
                silent && !speaks_tls(error) && (sends || !understood)
            }
            BackendError::LostInTls { .. } => silent,
            BackendError::Broken { .. } | BackendError::Closed => sends || silent,
            BackendError::Timeout { awaited, .. } => match awaited {
                Awaited::Tls | Awaited::Greeting => true,
                Awaited::RestOfGreeting | Awaited::Reply => sends,
                Awaited::Connection | Awaited::Login => false,
            },
            BackendError::Fault(
                BackFault::Bye
                | BackFault::Bad
                | BackFault::ProtocolViolation
                | BackFault::NoStartTls
                | BackFault::NoMechanism
                | BackFault::TooLarge
                | BackFault::Injection,
            ) => sends,
            BackendError::Fault(BackFault::Preauth | BackFault::ForwardingRefused | BackFault::Referral)
            | BackendError::NotServed
            | BackendError::Resolve { .. }
            | BackendError::Loop { .. }
            | BackendError::Connect { .. }
            | BackendError::NoSource { .. }
            | BackendError::Source { .. }
            | BackendError::Down { .. }
            | BackendError::Refusing { .. }
            | BackendError::Full
            | BackendError::SlowStart
            | BackendError::NoServiceLogin
            | BackendError::TokenTooLong(_)
            | BackendError::Refused(_) => false,
        }
    }

    /// Connects once with a PROXY header in place of none, or without the configured one, up to a login without an account, which
    /// is not sent.
    async fn try_other_header(&self, address: SocketAddr) -> Result<(), BackendError> {
        let header = match self.forward {
            Forward::Header(_) => Vec::new(),
            Forward::Nothing | Forward::Dialogue => proxy_header::write(Version::V2, &Header::Local),
        };
        let deadline = Instant::now() + self.timeout;
        let mut tcp = self.connect(address, deadline).await.tcp?;
        send_header(&mut tcp, &header).await?;
        match self.begin(tcp, self.trial(None, None, None), deadline, &Transcript::default(), None).await {
            Ok(_) | Err(BackendError::Fault(BackFault::NoMechanism)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether the handshake failed by what the server has shown in it.
const fn speaks_tls(error: &BackendError) -> bool {
    let BackendError::Tls { reason } = error else { return false };
    match reason.failure {
        HandshakeFailure::Alert | HandshakeFailure::NotTls | HandshakeFailure::Other => false,
        HandshakeFailure::Certificate(_) | HandshakeFailure::Incompatible => true,
    }
}
