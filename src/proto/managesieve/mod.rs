//! ManageSieve before login (RFC 5804): the dialogues with clients and with backends.
//!
//! [`front`](PROTOCOL) answers a client until it has logged in, [`back`](PROTOCOL) logs in to a Sieve server.
//! After the login the session only relays.
//!
//! Both sides list their capabilities without being asked: with the greeting and once more under TLS (sections
//! 1.7 and 2.2), and not after a login that negotiated no security layer (section 2.1), which some servers do
//! nevertheless. Lists are not relayed: each side of usher has its own.

mod back;
mod front;
mod syntax;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "internals"))]
pub mod trial;

use super::backend_login::BackendLogin;
use super::engine::Engine;
use super::{Back, BackSettings, ClientCommands, ClosingLine, ForwardMethod, Front, FrontSettings, Protocol};

/// ManageSieve's row of the protocol table.
pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "managesieve",
    alpn: Some(b"managesieve"),
    alpn_to_backends: true,
    implicit_port: 4190,
    starttls_port: 4190,
    forward_method: Some(ForwardMethod::Xclient),
    // Without a command before it (RFC 5804 section 1.2).
    client: ClientCommands { before: "AUTHENTICATE \"PLAIN\" \"", after: "\"\r\n", logout: "LOGOUT\r\n" },
    closing_line: ClosingLine::Line { prefix: "BYE (TRYLATER) \"", suffix: "\"\r\n" },
    follows_moves: true,
    ehlo: false,
    usual: &["SIEVE", "VERSION 1.0"],
    advertised: |name| FOR_CLIENTS.iter().any(|known| known.eq_ignore_ascii_case(name)),
    front,
    back,
    nginx: None,
};

/// The backends' capabilities that clients may be offered (RFC 5804 section 1.7, EXTLISTS of RFC 6134). Not those
/// that usher reports itself, that hold only after the login (OWNER), that a relay cannot keep (LANGUAGE) or that are
/// meant for proxies (XCLIENT). UNAUTHENTICATE would let the client bypass usher's login: it ends the session
/// (`watch`).
const FOR_CLIENTS: &[&str] = &["SIEVE", "VERSION", "MAXREDIRECTS", "NOTIFY", "EXTLISTS", "RENAME", "NOOP"];

/// The longest free text of a peer that is passed on.
const TEXT: usize = 512;

fn front(settings: FrontSettings<'_>) -> Box<dyn Front> {
    Box::new(Engine::new(front::Sieve::new(settings), settings))
}

fn back(settings: BackSettings) -> Box<dyn Back> {
    Box::new(BackendLogin::new(back::SieveBack::default(), settings))
}
