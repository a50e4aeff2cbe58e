//! Submission before login (RFC 6409, SMTP of RFC 5321): the dialogues with clients and with backends.
//!
//! [`front`](PROTOCOL) answers a client until it has logged in, [`back`](PROTOCOL) logs in to a
//! submission server. After that nothing here reads or writes a byte: the session relays, so no mail
//! passes before a login. Also RFC 2034 (enhanced codes), 3207 (STARTTLS) and 4954 (AUTH).

mod back;
mod extensions;
mod front;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "internals"))]
pub mod trial;

use super::backend_login::BackendLogin;
use super::engine::Engine;
use super::{Back, BackSettings, ClientCommands, ClosingLine, ForwardMethod, Front, FrontSettings, Nginx, Protocol};

/// Submission's row of the protocol table.
pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "submission",
    // No id is registered. Delta Chat sends this one, and nginx's mail proxy takes it.
    alpn: Some(b"smtp"),
    alpn_to_backends: false,
    implicit_port: 465,
    starttls_port: 587,
    forward_method: Some(ForwardMethod::Xclient),
    client: ClientCommands { before: "EHLO localhost\r\nAUTH PLAIN ", after: "\r\n", logout: "QUIT\r\n" },
    closing_line: ClosingLine::Reply { prefix: "421 4.3.2 ", suffix: "\r\n" },
    // A close within a transaction leaves it open whether the message was sent, and the old server sends it
    // just as the new one does.
    follows_moves: false,
    ehlo: true,
    usual: front::USUAL,
    advertised: extensions::is_for_clients,
    front,
    back,
    nginx: Some(Nginx { name: "smtp", reply: front::nginx_reply }),
};

/// The longest command, without CRLF (RFC 5321 section 4.5.3.1.4).
const COMMAND: usize = 510;
/// The longest free text of a peer that is passed on: a reply's line has at most 512 octets (RFC 5321 section
/// 4.5.3.1.5).
const TEXT: usize = 400;

fn front(settings: FrontSettings<'_>) -> Box<dyn Front> {
    Box::new(Engine::new(front::Submission::new(settings), settings))
}

fn back(settings: BackSettings) -> Box<dyn Back> {
    let dialect = back::SubmissionBack::new(&settings);
    Box::new(BackendLogin::new(dialect, settings))
}

/// Splits the enhanced code (RFC 2034 section 4) off a reply's text, if it is of this class: `2`, `4`
/// or `5`.
fn split_enhanced(text: &[u8], class: u8) -> Option<(&[u8], &[u8])> {
    let (code, rest) = super::wire::first_word(text);
    let mut parts = code.split(|byte| *byte == b'.');
    let number = |part: Option<&[u8]>| {
        part.is_some_and(|part| (1..=3).contains(&part.len()) && part.iter().all(u8::is_ascii_digit))
    };
    let sound =
        parts.next() == Some(&[class]) && number(parts.next()) && number(parts.next()) && parts.next().is_none();
    sound.then_some((code, rest))
}
