//! TLS with the client: the handshake under its deadline, and the certificate that the client shows in it.

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::Conversation;
use crate::proto::transcript::Leg;
use crate::telemetry::client_address::Client;
use crate::telemetry::labels::{CloseReason, HandshakeResult};
use crate::tls;
use crate::tls::stream::Stream;

impl Conversation {
    /// Performs the handshake. A client that may log in by certificate is offered EXTERNAL if it has shown one.
    pub(super) async fn start_tls(&mut self, tcp: TcpStream) -> Result<Stream, CloseReason> {
        let began = Instant::now();
        let throttle = &self.shared.throttle;
        let crowded = self.shared.per_network_limit(&self.snapshot.config.limits).is_some();
        let _under_way = throttle.handshake(self.info.client, crowded).map_err(|_| CloseReason::Limit)?;
        let deadline = self.deadline.min(began + self.snapshot.config.limits.handshake_timeout);
        let listener = self.snapshot.config.listener_now(&self.listener, self.over_ipv4).unwrap_or(&self.listener);
        // Only a listener that a reload has removed has rules that are not in force.
        let acceptor = self.snapshot.tls.acceptor(self.protocol, &listener.clients).ok_or(CloseReason::Handshake)?;
        let takes_certificates = listener.client_login.is_some();
        let ended = |result| self.shared.metrics.tls_handshakes.at(self.protocol.name, result).inc();
        let info = self.info;
        match timeout_at(deadline, acceptor.accept(tcp)).await {
            Ok(Ok(stream)) => {
                // A resumed session brings a certificate that was verified long ago. It is closed and not continued without
                // one, so that a client with a new certificate comes back with a full handshake.
                let is_wanted = takes_certificates || stream.resumed();
                let verified = is_wanted.then(|| acceptor.verify(&stream.client_chain())).flatten();
                if let Some(Err(fault)) = &verified {
                    ended(HandshakeResult::Failed);
                    let reason = fault.describe();
                    self.trace
                        .note(Leg::Client, || format!("session resumed with a certificate that is refused: {reason}"));
                    debug!(session = %info.session, client = %Client::Address(info.client), protocol = info.protocol, reason, "TLS session resumed with a refused certificate");
                    return Err(CloseReason::Handshake);
                }
                ended(if stream.resumed() { HandshakeResult::Resumed } else { HandshakeResult::Full });
                self.handshake = Some(began.elapsed());
                self.trace.note(Leg::Client, || stream.describe());
                if let Some(Ok(certificate)) = verified {
                    self.trace.note(Leg::Client, || certificate.to_string());
                    if takes_certificates {
                        self.certified = Some(stream.client_chain());
                        self.front.certificate_verified();
                    }
                }
                Ok(stream)
            }
            Ok(Err(error)) => {
                ended(HandshakeResult::Failed);
                let reason = tls::describe(&error);
                self.trace.note(Leg::Client, || format!("TLS handshake failed: {reason}"));
                debug!(session = %info.session, client = %Client::Address(info.client), protocol = info.protocol, reason, "TLS handshake failed");
                Err(CloseReason::Handshake)
            }
            Err(_) => {
                ended(HandshakeResult::Timeout);
                self.trace.note(Leg::Client, || "TLS handshake not finished in time".to_owned());
                Err(CloseReason::Handshake)
            }
        }
    }
}
