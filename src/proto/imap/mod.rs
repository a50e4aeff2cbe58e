//! IMAP before login (RFC 3501 and 9051): the dialogues with clients and with backends.
//!
//! [`front`](PROTOCOL) answers a client until it has logged in, [`back`](PROTOCOL) logs in to a mail server.
//! After the login the session only relays. Also RFC 2971 (ID), 4959 (SASL-IR), 5530 (response codes) and 7888
//! (LITERAL-).

mod back;
mod command;
mod front;
mod status;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "internals"))]
pub mod trial;

use super::backend_login::BackendLogin;
use super::engine::Engine;
use super::{Back, BackSettings, ClientCommands, ClosingLine, ForwardMethod, Front, FrontSettings, Nginx, Protocol};

/// IMAP's row of the protocol table.
pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "imap",
    alpn: Some(b"imap"),
    alpn_to_backends: true,
    implicit_port: 993,
    starttls_port: 143,
    forward_method: Some(ForwardMethod::Id),
    // All that is listed before the login is what usher answers for itself, and a client reads the backend's
    // own list with its OK: no backend limits what clients of the others are offered.
    ehlo: false,
    usual: &[],
    advertised: |_| false,
    front,
    back,
    nginx: Some(Nginx { name: "imap", reply: front::nginx_reply }),
    // RFC 3501 section 7.1.5: a server may say BYE at any time, between two of its lines.
    client: ClientCommands { before: "a AUTHENTICATE PLAIN ", after: "\r\n", logout: "z LOGOUT\r\n" },
    closing_line: ClosingLine::Line { prefix: "* BYE ", suffix: "\r\n" },
    follows_moves: true,
};

/// The longest line, without CRLF, in either direction: clients keep to 8000 octets (RFC 2683
/// section 3.2.1.5), servers to 8192 (RFC 7162 section 4).
const LINE: usize = 8192;
/// The longest free text of a peer that is passed on.
const TEXT: usize = 512;

fn front(settings: FrontSettings<'_>) -> Box<dyn Front> {
    Box::new(Engine::new(front::Imap::default(), settings))
}

fn back(settings: BackSettings) -> Box<dyn Back> {
    Box::new(BackendLogin::new(back::ImapBack::default(), settings))
}
