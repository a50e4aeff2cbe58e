//! What an inspection sees of a server on the way to a login.

use std::net::IpAddr;
use std::time::Duration;

use crate::tls::stream::{NegotiatedTls, Stream};

/// The longest greeting that is kept.
const GREETING: usize = 512;

/// What was observed before the login.
#[derive(Debug, Default)]
pub(crate) struct Observations {
    /// TCP was connected, from this address of usher.
    pub connected: Option<IpAddr>,
    /// The server's first line, without CRLF.
    pub greeting: Option<Vec<u8>>,
    /// How long after the connection the greeting was complete.
    pub greeted_after: Option<Duration>,
    /// The negotiated TLS parameters.
    pub agreed: Option<NegotiatedTls>,
    /// The certificates that the server showed (DER), its own first.
    pub certificates: Vec<Vec<u8>>,
    /// Its last list of capabilities, mechanisms included.
    pub listed: Vec<String>,
    /// Whether clients' commands are watched in a session there ([`crate::proto::Back::watch`]).
    pub watched: bool,
    /// Its reply to the question for its name, where the protocol has one.
    pub identity: Vec<u8>,
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
