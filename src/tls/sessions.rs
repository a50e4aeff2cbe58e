//! TLS sessions with servers, kept so that the next handshake can resume one.
//!
//! rustls keeps eight TLS 1.3 tickets of a server; a burst of logins uses them up at once and pays for
//! full handshakes from there on. Here are enough for the logins that may be under way at a backend,
//! the newest in front. Each ticket is given out once (RFC 8446 appendix C.4). A store belongs to one
//! `ClientConfig`: what was verified under one policy never resumes under another. Nothing is written
//! to disk.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// Tickets kept of one server: above the default of `logins_in_flight`. Each is about a kilobyte, and
/// what the server's certificates are.
const TICKETS: usize = 256;
/// Servers of one configuration. Their names are the config's, so that this is never met.
const SERVERS: usize = 64;
/// How long a ticket may lie about. Its own life, which rustls looks at, is mostly shorter; this takes
/// the secrets of a quiet server out of memory.
const LIFE: Duration = Duration::from_secs(24 * 3_600);

/// What is known of the servers of one configuration.
#[derive(Default)]
pub(super) struct Sessions {
    servers: Mutex<HashMap<ServerName<'static>, Known>>,
}

#[derive(Default)]
struct Known {
    /// The group it took last: asking for it first saves a round trip.
    group: Option<NamedGroup>,
    /// Of TLS 1.2, which may resume a session many times.
    tls12: Option<Tls12ClientSessionValue>,
    /// Of TLS 1.3, the newest in front, each with when it came.
    tickets: VecDeque<(Instant, Tls13ClientSessionValue)>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, Known>> {
        // No holder leaves it half-changed, so that a panic elsewhere means nothing.
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, server: ServerName<'static>, note: impl FnOnce(&mut Known)) {
        let mut servers = self.lock();
        if servers.len() < SERVERS || servers.contains_key(&server) {
            note(servers.entry(server).or_default());
        }
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.note(server, |known| known.group = Some(group));
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.lock().get(server)?.group
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.note(server, |known| known.tls12 = Some(session));
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
        let now = Instant::now();
        self.note(server, |known| {
            known.tickets.push_front((now, ticket));
            known.tickets.truncate(TICKETS);
            while known.tickets.back().is_some_and(|(came, _)| is_old(*came, now)) {
                known.tickets.pop_back();
            }
        });
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut servers = self.lock();
        let tickets = &mut servers.get_mut(server)?.tickets;
        let (came, ticket) = tickets.pop_front()?;
        if is_old(came, Instant::now()) {
            // All behind it are older.
            tickets.clear();
            return None;
        }
        Some(ticket)
    }
}

fn is_old(came: Instant, now: Instant) -> bool {
    now.saturating_duration_since(came) > LIFE
}

impl fmt::Debug for Sessions {
    /// How much there is; what is in it are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.lock();
        let tickets: usize = servers.values().map(|known| known.tickets.len()).sum();
        f.debug_struct("Sessions").field("servers", &servers.len()).field("tickets", &tickets).finish()
    }
}
