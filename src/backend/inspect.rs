//! An inspection of a backend's addresses, for `usher check --connect`: the way of a login without a user,
//! and what is seen on it.
//!
//! It is the same way (`endpoint`), so that what is found here is what a login would find. No password
//! is sent but that of the probe's account, where probes log in.

use std::net::SocketAddr;
use std::time::Instant;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Backend, BackendError};
use crate::config::Probe;
use crate::proto::Protocol;
use crate::tls::stream::{NegotiatedTls, Stream};

/// More of a greeting is not kept.
const GREETING: usize = 512;

/// Where a backend speaks one protocol, as it was found.
#[derive(Debug)]
pub struct ProtocolInspection {
    /// The protocol.
    pub protocol: &'static Protocol,
    /// Each of its addresses, or why there is none.
    pub addresses: Result<Vec<AddressInspection>, BackendError>,
}

/// One address.
#[derive(Debug)]
pub struct AddressInspection {
    /// The address.
    pub address: SocketAddr,
    /// How far it came and what it saw.
    pub observed: Observations,
    /// Whether a login could have been sent (or was, as the probe's account); else why not.
    pub result: Result<(), BackendError>,
    /// How long it took, in milliseconds.
    pub milliseconds: u128,
}

/// What was seen on the way to a login.
#[derive(Debug, Default)]
pub struct Observations {
    /// TCP was connected.
    pub connected: bool,
    /// The first line that the server said, without its end.
    pub greeting: Option<Vec<u8>>,
    /// What TLS agreed on.
    pub agreed: Option<NegotiatedTls>,
    /// The certificates that the server showed (DER), its own first.
    pub certificates: Vec<Vec<u8>>,
    /// What it said last that it can do, mechanisms included.
    pub listed: Vec<String>,
    /// Whether clients' commands are watched in a session there ([`crate::proto::Back::watch`]).
    pub watched: bool,
}

impl Observations {
    /// Notes what is there before the dialogue takes it.
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
    /// Looks at every address of every protocol now, all at the same time, each within the backend's
    /// `timeout`.
    pub async fn inspect(&self) -> Vec<ProtocolInspection> {
        let mut endpoints: Vec<_> = self.endpoints.values().collect();
        endpoints.sort_by_key(|endpoint| endpoint.protocol.name);
        let inspect = endpoints.into_iter().map(|endpoint| async move {
            let late = |_| Err(BackendError::Timeout { timeout: self.timeout });
            let addresses = match timeout(self.timeout, endpoint.pool.resolve()).await.unwrap_or_else(late) {
                Ok(addresses) => {
                    let each = addresses.into_iter().map(|address| async move {
                        let (mut sight, began) = (Observations::default(), Instant::now());
                        let result = endpoint.inspect(address, self.service.as_ref(), &mut sight).await.map(drop);
                        AddressInspection {
                            address,
                            observed: sight,
                            result,
                            milliseconds: began.elapsed().as_millis(),
                        }
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
    pub fn probes_log_in(&self) -> bool {
        self.endpoints.values().any(|endpoint| matches!(endpoint.pool.settings.probe, Probe::Login(_)))
    }
}
