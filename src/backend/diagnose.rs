//! Inspection of a backend's addresses for `usher check --connect`: the steps of a login without a user.
//!
//! It uses the code of a login (`endpoint`), so the findings apply to logins. No password is sent except that
//! of the probe account, where probes log in.

use std::net::SocketAddr;
use std::time::Instant;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Backend, BackendError};
use crate::config::Probe;
use crate::proto::Protocol;
use crate::tls::stream::{NegotiatedTls, Stream};

/// The longest greeting that is kept.
const GREETING: usize = 512;

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
    /// How long it took, in milliseconds.
    pub milliseconds: u128,
}

/// What was observed before the login.
#[derive(Debug, Default)]
pub(crate) struct Observations {
    /// TCP was connected.
    pub connected: bool,
    /// The server's first line, without CRLF.
    pub greeting: Option<Vec<u8>>,
    /// The negotiated TLS parameters.
    pub agreed: Option<NegotiatedTls>,
    /// The certificates that the server showed (DER), its own first.
    pub certificates: Vec<Vec<u8>>,
    /// Its last list of capabilities, mechanisms included.
    pub listed: Vec<String>,
    /// Whether clients' commands are watched in a session there ([`crate::proto::Back::watch`]).
    pub watched: bool,
}

impl Observations {
    /// Records input before the dialogue consumes it.
    pub(super) fn record(&mut self, stream: &Stream, input: &[u8]) {
        if self.agreed.is_none() {
            self.agreed = stream.agreed();
            self.certificates = stream.server_certificates().iter().map(|one| one.to_vec()).collect();
        }
        if self.greeting.is_none() && !input.is_empty() {
            let line = input.split(|byte| *byte == b'\n').next().unwrap_or(input);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            self.greeting = Some(line.get(..GREETING).unwrap_or(line).to_vec());
        }
    }
}

impl Backend {
    /// Inspects every address of every protocol in parallel, each within the backend's `timeout`.
    pub(crate) async fn inspect(&self) -> Vec<ProtocolInspection> {
        let mut endpoints: Vec<_> = self.endpoints.values().collect();
        endpoints.sort_by_key(|endpoint| endpoint.protocol.name);
        let inspect = endpoints.into_iter().map(|endpoint| async move {
            let late = |_| Err(BackendError::Timeout { timeout: self.timeout });
            let addresses = match timeout(self.timeout, endpoint.pool.resolve()).await.unwrap_or_else(late) {
                Ok(addresses) => {
                    let each = addresses.into_iter().map(|address| async move {
                        let (mut observed, began) = (Observations::default(), Instant::now());
                        let result = endpoint.inspect(address, self.service.as_ref(), &mut observed).await.map(drop);
                        AddressInspection { address, observed, result, milliseconds: began.elapsed().as_millis() }
                    });
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
