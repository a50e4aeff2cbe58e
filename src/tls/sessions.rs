//! TLS sessions with servers, kept so that the next handshake can resume one.
//!
//! rustls keeps eight TLS 1.3 tickets of a server; a burst of logins uses them up at once and pays for
//! full handshakes from there on. Here are enough for the logins that may be under way at a backend,
//! the newest in front. Each ticket is given out once (RFC 8446 appendix C.4). A store belongs to one
//! `ClientConfig`: what was verified under one policy never resumes under another. Nothing is written
//! to disk.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, NamedGroup, SignatureScheme};

/// Tickets kept of one server: above the default of `logins_in_flight`.
const TICKETS: usize = 256;
/// The longest ticket that is kept. Its server chooses the length, up to 64 KiB (RFC 8446 section 4.6.1);
/// common servers take 200 bytes, and 2 KiB with a client's certificate in it.
const LONGEST: usize = 4 * 1024;
/// One in this many tickets of a server is measured, at random, and every ticket of a server that has sent a
/// longer one: a measurement costs a hundredth of a login.
const MEASURED: u64 = 8;
/// Bytes kept of one server: its tickets and the certificates that rustls copies beside each.
const BYTES: usize = TICKETS * LONGEST;
/// Servers of one configuration. Their names come from the config, so this limit is never reached.
const SERVERS: usize = 64;
/// How long a ticket is kept. Its own lifetime, which rustls checks, is mostly shorter; this removes the
/// secrets of an unused server from memory.
const LIFE: Duration = Duration::from_secs(24 * 3_600);

/// The stored sessions of the servers of one configuration.
#[derive(Default)]
pub(super) struct ClientSessions {
    servers: Mutex<HashMap<ServerName<'static>, ServerSessions>>,
}

#[derive(Default)]
struct ServerSessions {
    /// The group it selected last: offering it first saves a round trip.
    group: Option<NamedGroup>,
    /// Of TLS 1.2, which may resume a session many times.
    tls12: Option<Tls12ClientSessionValue>,
    /// Of TLS 1.3, the newest in front.
    tickets: VecDeque<StoredTicket>,
    /// The length of the tickets and of their certificates.
    bytes: usize,
    /// The longest ticket that was measured.
    longest: Option<usize>,
    /// A ticket was too long to be kept: none is kept unmeasured from there on.
    has_sent_longer: bool,
    /// The length of the certificates it has presented last.
    certificates: usize,
}

struct StoredTicket {
    came: Instant,
    bytes: usize,
    value: Tls13ClientSessionValue,
}

impl ServerSessions {
    fn is_to_be_measured(&self) -> bool {
        // Each RandomState has keys of its own: no server can predict which of its tickets are measured.
        let is_its_turn = || RandomState::new().hash_one(0).is_multiple_of(MEASURED);
        self.has_sent_longer || self.longest.is_none() || is_its_turn()
    }

    /// Records a ticket's length. If it is too long, unmeasured tickets are dropped with it.
    fn measured(&mut self, length: Option<usize>) {
        match length {
            Some(length) => self.longest = self.longest.max(Some(length)),
            None => {
                self.has_sent_longer = true;
                self.tickets.clear();
                self.bytes = 0;
            }
        }
    }

    fn keep(&mut self, ticket: StoredTicket) {
        self.bytes += ticket.bytes;
        self.tickets.push_front(ticket);
        let now = Instant::now();
        while self
            .tickets
            .back()
            .is_some_and(|oldest| self.tickets.len() > TICKETS || self.bytes > BYTES || is_old(oldest.came, now))
        {
            self.take(VecDeque::pop_back);
        }
    }

    fn take(
        &mut self,
        which: impl FnOnce(&mut VecDeque<StoredTicket>) -> Option<StoredTicket>,
    ) -> Option<StoredTicket> {
        let ticket = which(&mut self.tickets)?;
        self.bytes = self.bytes.saturating_sub(ticket.bytes);
        Some(ticket)
    }
}

impl ClientSessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, ServerSessions>> {
        // No holder leaves it half-changed, so a poisoned lock is harmless.
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, server: ServerName<'static>, note: impl FnOnce(&mut ServerSessions)) {
        let mut servers = self.lock();
        if servers.len() < SERVERS || servers.contains_key(&server) {
            note(servers.entry(server).or_default());
        }
    }
}

impl ClientSessionStore for ClientSessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.update(server, |known| known.group = Some(group));
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.lock().get(server)?.group
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        let bytes = ticket_length(&session);
        self.update(server, |known| known.tls12 = bytes.is_some().then_some(session));
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.lock().get(server)?.tls12.clone()
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        if let Some(known) = self.lock().get_mut(server) {
            known.tls12 = None;
        }
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        if self.lock().get(&server).is_none_or(ServerSessions::is_to_be_measured) {
            let length = ticket_length(&ticket);
            self.update(server.clone(), |known| known.measured(length));
            if length.is_none() {
                return;
            }
        }
        self.update(server, |known| {
            let bytes = known.longest.unwrap_or(LONGEST) + known.certificates;
            known.keep(StoredTicket { came: Instant::now(), bytes, value: ticket });
        });
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut servers = self.lock();
        let known = servers.get_mut(server)?;
        let ticket = known.take(VecDeque::pop_front)?;
        if is_old(ticket.came, Instant::now()) {
            // All others are older.
            known.tickets.clear();
            known.bytes = 0;
            return None;
        }
        Some(ticket.value)
    }
}

fn is_old(came: Instant, now: Instant) -> bool {
    now.saturating_duration_since(came) > LIFE
}

/// The length of a session's ticket; `None` if it is longer than one that is kept. rustls shows it nowhere
/// but in its `Debug`, in hexadecimal digits, with `epoch` behind it.
fn ticket_length(session: &impl fmt::Debug) -> Option<usize> {
    struct TicketLength {
        characters: usize,
        is_over: bool,
    }
    impl fmt::Write for TicketLength {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.is_over = text == "epoch";
            self.characters += text.len();
            // Stops the formatting: the rest would cost as much again.
            if self.is_over || self.characters > 2 * LONGEST { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut length = TicketLength { characters: 0, is_over: false };
    let _ = fmt::Write::write_fmt(&mut length, format_args!("{session:?}"));
    length.is_over.then_some(length.characters / 2)
}

/// A verifier that records the length of a server's certificates: rustls keeps a copy of them with each ticket.
#[derive(Debug)]
pub(super) struct ChainMeasuringVerifier {
    pub(super) verifier: Arc<dyn ServerCertVerifier>,
    pub(super) sessions: Arc<ClientSessions>,
}

impl ServerCertVerifier for ChainMeasuringVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let bytes = intermediates.iter().map(|one| one.len()).sum::<usize>() + end_entity.len();
        self.sessions.update(server_name.to_owned(), |known| known.certificates = bytes);
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl fmt::Debug for ClientSessions {
    /// Shows counts only; the content is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.lock();
        let tickets: usize = servers.values().map(|known| known.tickets.len()).sum();
        let bytes: usize = servers.values().map(|known| known.bytes).sum();
        let mut shown = f.debug_struct("Sessions");
        shown.field("servers", &servers.len()).field("tickets", &tickets).field("bytes", &bytes).finish()
    }
}
