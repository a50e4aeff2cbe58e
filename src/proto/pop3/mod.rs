//! POP3 before login (RFC 1939): the dialogues with clients and with backends.
//!
//! [`front`](PROTOCOL) answers a client until it has logged in, [`back`](PROTOCOL) logs in to a mail server.
//! After the login the session only relays. Also RFC 2449 (CAPA), 2595 (STLS), 3206 (response codes) and 5034
//! (AUTH). No APOP: usher has no password to prove, and a backend's time stamp is never shown.

mod back;
mod front;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "internals"))]
pub mod trial;

use super::backend_login::BackendLogin;
use super::engine::Engine;
use super::{Back, BackSettings, ClientCommands, ClosingLine, ForwardMethod, Front, FrontSettings, Nginx, Protocol};

/// POP3's row of the protocol table.
pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "pop3",
    alpn: Some(b"pop3"),
    alpn_to_backends: true,
    implicit_port: 995,
    starttls_port: 110,
    forward_method: Some(ForwardMethod::Xclient),
    client: ClientCommands { before: "AUTH PLAIN ", after: "\r\n", logout: "QUIT\r\n" },
    closing_line: ClosingLine::Close,
    follows_moves: true,
    ehlo: false,
    usual: front::LATER,
    advertised: |name| front::LATER.iter().any(|later| later.eq_ignore_ascii_case(name)),
    front,
    back,
    nginx: Some(Nginx { name: "pop3", reply: front::nginx_reply }),
};

/// The longest command, without CRLF (RFC 2449 section 4).
const COMMAND: usize = 253;
/// The longest free text of a peer that is passed on: a response has at most 512 octets (RFC 2449 section 4).
const TEXT: usize = 400;

fn front(settings: FrontSettings<'_>) -> Box<dyn Front> {
    Box::new(Engine::new(front::Pop3::new(settings), settings))
}

fn back(settings: BackSettings) -> Box<dyn Back> {
    Box::new(BackendLogin::new(back::Pop3Back::default(), settings))
}
