//! The client half: IMAP's commands before login, and the form of its replies.
//!
//! Never repeats client input except the tag.

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::super::dialect::{Action, Channel, Dialect};
use super::super::problem::{Problem, TLS_REQUIRED};
use super::super::wire::{LineBuffer, first_word, printable, write_line};
use super::super::{ClientId, Credentials, NginxReply, Welcome, reply_text, sasl};
use super::command::{self, CommandError, Verb};
use super::{LINE, TEXT};
use crate::base::secret::SecretBuf;
use crate::outcome::{BackendReply, Reply};

/// The fixed capabilities, which are usher's own. SASL-IR saves a round trip; LITERAL- and not LITERAL+,
/// because the limits hold to that. ENABLE as Dovecot and Cyrus: some clients ask for it before they log in.
const CAPABILITIES: &[u8] = b"IMAP4rev1 SASL-IR LITERAL- ID ENABLE";

/// IMAP's commands and their state.
#[derive(Default)]
pub(super) struct Imap {
    /// The current command's tag; empty when it has none. In wiping memory, because a desynchronized client may
    /// send a password in place of a tag.
    tag: Zeroizing<Vec<u8>>,
    asked_capabilities: bool,
    id: Option<ClientId>,
}

impl Dialect for Imap {
    const LINE: usize = LINE;
    /// An ID with everything that RFC 2971 allows.
    const COMMAND: usize = 32_768;
    const LITERALS: bool = true;

    fn greet(&self, channel: Channel, out: &mut SecretBuf) {
        out.extend(b"* OK [CAPABILITY ");
        write_capabilities(channel, out);
        write_line(out, &[b"] usher is ready"]);
    }

    fn begin(&mut self, command: &[u8]) {
        self.tag = Zeroizing::new(command::tag(command).unwrap_or_default().to_vec());
    }

    fn is_authentication(command: &[u8]) -> bool {
        command::verb_of(command) == Some(Verb::Authenticate)
    }

    /// An ID of quoted strings is one line (RFC 2971 section 3.3).
    fn longer_line(command: &[u8]) -> Option<usize> {
        match command::verb_of(command)? {
            Verb::Authenticate => Some(sasl::LINE),
            Verb::Id => Some(Self::COMMAND),
            Verb::Capability
            | Verb::Noop
            | Verb::Logout
            | Verb::StartTls
            | Verb::Login
            | Verb::Enable
            | Verb::Later
            | Verb::Unknown => None,
        }
    }

    fn command(&mut self, command: &LineBuffer, channel: Channel, out: &mut SecretBuf) -> Result<Action, Problem> {
        match self.execute(command.bytes(), channel, out) {
            Ok(action) => Ok(action),
            Err(CommandError::Incomplete(literal)) => Ok(Action::Literal(literal)),
            Err(CommandError::Denied(problem)) => Err(problem),
        }
    }

    fn challenge(challenge: &str, out: &mut SecretBuf) {
        write_line(out, &[b"+ ", challenge.as_bytes()]);
    }

    fn request_literal(out: &mut SecretBuf) {
        write_line(out, &[b"+ Go ahead"]);
    }

    /// An unreadable response is a protocol error, not a wrong password: BAD (RFC 9051 section 6.2.2).
    fn deny(&self, problem: Problem, out: &mut SecretBuf) {
        match problem {
            Problem::TlsFirst => self.refused(&TLS_REQUIRED, "", out),
            Problem::Mechanism => self.answer(b"NO ", problem.text(), out),
            Problem::LineTooLong | Problem::ResponseTooLong | Problem::ArgumentTooLong => {
                self.answer(b"BAD [TOOBIG] ", problem.text(), out);
            }
            Problem::Unknown
            | Problem::Syntax
            | Problem::Tag
            | Problem::LoginFirst
            | Problem::UserFirst
            | Problem::EhloFirst
            | Problem::NoTls
            | Problem::Response(_)
            | Problem::NoString
            | Problem::LineEnd
            | Problem::Nul
            | Problem::CommandTooLong
            | Problem::LiteralTooLarge
            | Problem::TooMuchData
            | Problem::TooMany
            | Problem::Http => self.answer(b"BAD ", problem.text(), out),
        }
    }

    fn close(&self, problem: Problem, out: &mut SecretBuf) {
        let code: &[u8] = if problem == Problem::LiteralTooLarge { b"[TOOBIG] " } else { b"" };
        write_line(out, &[b"* BYE ", code, problem.text().as_bytes()]);
    }

    fn refused(&self, reply: &Reply, session: &str, out: &mut SecretBuf) {
        self.answer(b"NO ", &coded(reply, session), out);
    }

    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf) {
        let known = !welcome.capabilities.is_empty();
        out.extend(&welcome.untagged);
        // A client that asked before login may not look into the tagged OK's code.
        if self.asked_capabilities && known && !lists_capabilities(&welcome.untagged) {
            write_line(out, &[b"* CAPABILITY ", &welcome.capabilities]);
        }
        let text = printable(&welcome.text, TEXT);
        out.extend(&self.tag);
        out.extend(b" OK ");
        if known {
            out.extend(b"[CAPABILITY ");
            out.extend(&welcome.capabilities);
            out.extend(b"] ");
        }
        write_line(out, &[if text.is_empty() { "Logged in" } else { &text }.as_bytes()]);
    }

    fn bye(&self, reply: &Reply, session: &str, out: &mut SecretBuf) {
        write_line(out, &[b"* BYE ", coded(reply, session).as_bytes()]);
    }

    fn tls_started(&mut self) {
        *self = Self::default();
    }

    fn client_id(&self) -> Option<&ClientId> {
        self.id.as_ref()
    }
}

impl Imap {
    /// The length of the tag that is kept between calls.
    #[cfg(test)]
    pub(super) fn tag_length(&self) -> usize {
        self.tag.len()
    }

    /// Executes a command as far as it has arrived.
    fn execute(&mut self, command: &[u8], channel: Channel, out: &mut SecretBuf) -> Result<Action, CommandError> {
        if self.tag.is_empty() {
            return Err(Problem::Tag.into());
        }
        let (verb, arguments) = command::verb(command, &self.tag);
        match verb {
            Verb::Capability => {
                arguments.none()?;
                self.asked_capabilities = true;
                out.extend(b"* CAPABILITY ");
                write_capabilities(channel, out);
                write_line(out, &[]);
                self.answer(b"OK ", "Capability completed", out);
            }
            Verb::Noop => {
                arguments.none()?;
                self.answer(b"OK ", "NOOP completed", out);
            }
            Verb::Id => {
                let id = arguments.id()?;
                self.id = Some(id).filter(|id| *id != ClientId::default());
                write_line(out, &[b"* ID (\"name\" \"usher\")"]);
                self.answer(b"OK ", "ID completed", out);
            }
            // Only valid after login (RFC 5161 section 3.1). As Dovecot's, the reply lets a client go on that sends it
            // before a login with UTF-8 in quotes.
            Verb::Enable => {
                arguments.enable()?;
                write_line(out, &[b"* ENABLED"]);
                self.answer(b"OK ", "ENABLE is ignored before login", out);
            }
            Verb::Logout => {
                arguments.none()?;
                write_line(out, &[b"* BYE Goodbye"]);
                self.answer(b"OK ", "Logged out", out);
                return Ok(Action::Quit);
            }
            Verb::StartTls => {
                arguments.none()?;
                if !channel.can_start_tls() {
                    return Err(Problem::NoTls.into());
                }
                self.answer(b"OK ", "Begin TLS now", out);
                return Ok(Action::StartTls);
            }
            // Before any argument is looked at, so before a literal is asked for.
            Verb::Login | Verb::Authenticate if !channel.tls => return Err(Problem::TlsFirst.into()),
            Verb::Login if !channel.takes_passwords() => return Err(Problem::Mechanism.into()),
            Verb::Login => {
                let (login, password) = arguments.login()?;
                let login = login.expose().to_vec();
                return Ok(Action::Attempt(Credentials::password(login, password)));
            }
            Verb::Authenticate => {
                let (mechanism, initial) = arguments.authenticate()?;
                return Ok(Action::authenticate(mechanism, initial, channel)?);
            }
            Verb::Later => return Err(Problem::LoginFirst.into()),
            Verb::Unknown => return Err(Problem::Unknown.into()),
        }
        Ok(Action::Done)
    }

    fn answer(&self, status: &[u8], text: &str, out: &mut SecretBuf) {
        let tag: &[u8] = if self.tag.is_empty() { b"*" } else { &self.tag };
        write_line(out, &[tag, b" ", status, text.as_bytes()]);
    }
}

fn write_capabilities(channel: Channel, out: &mut SecretBuf) {
    out.extend(CAPABILITIES);
    if channel.tls {
        for name in channel.offered() {
            out.extend(b" AUTH=");
            out.extend(name.as_bytes());
        }
        if !channel.takes_passwords() {
            out.extend(b" LOGINDISABLED");
        }
        return;
    }
    out.extend(if channel.can_start_tls() { b" STARTTLS LOGINDISABLED" } else { b" LOGINDISABLED" });
}

/// Whether a complete `* CAPABILITY` line is among these.
fn lists_capabilities(untagged: &[u8]) -> bool {
    const START: &[u8] = b"* CAPABILITY ";
    untagged
        .split(|byte| *byte == b'\n')
        .any(|line| line.get(..START.len()).is_some_and(|start| start.eq_ignore_ascii_case(START)))
}

/// A reply for nginx, which adds tag and NO itself.
pub(super) fn nginx_reply(reply: &Reply, session: &str) -> NginxReply {
    NginxReply { code: None, text: coded(reply, session) }
}

/// A reply's code in brackets, and its text.
fn coded(reply: &Reply, session: &str) -> String {
    format!("[{}] {}", code(reply), reply_text(reply, session, TEXT))
}

/// The response code of a reply (RFC 5530).
fn code(reply: &Reply) -> Cow<'_, str> {
    Cow::Borrowed(match reply {
        Reply::AuthenticationFailed | Reply::TokenRefused(_) => "AUTHENTICATIONFAILED",
        Reply::AuthzidNotAllowed | Reply::NotPermitted | Reply::OutsideLogonHours | Reply::WrongWorkstation => {
            "AUTHORIZATIONFAILED"
        }
        Reply::PasswordExpired | Reply::PasswordMustChange => "EXPIRED",
        Reply::AccountDisabled | Reply::AccountExpired | Reply::NoMailbox | Reply::ProtocolNotServed => "CONTACTADMIN",
        Reply::BackendText(backend) => return backend_code(backend),
        Reply::Unavailable
        | Reply::Maintenance
        | Reply::MailboxMoving
        | Reply::TimedOut
        | Reply::Kicked
        | Reply::ShuttingDown => "UNAVAILABLE",
        Reply::Limit => "LIMIT",
        Reply::TlsRequired => "PRIVACYREQUIRED",
        Reply::ServerBug => "SERVERBUG",
    })
}

/// The code of a backend that refused a login which the directory had accepted. A missing code or
/// AUTHENTICATIONFAILED would make the client ask for a new password although its own is correct.
fn backend_code(reply: &BackendReply) -> Cow<'_, str> {
    let code = printable(reply.code.as_bytes(), TEXT);
    let kind = first_word(code.as_bytes()).0.to_ascii_uppercase();
    match kind.as_slice() {
        // Nothing about capabilities can be true before the client is logged in.
        b"" | b"AUTHENTICATIONFAILED" | b"CAPABILITY" => Cow::Borrowed("UNAVAILABLE"),
        _ if code.contains(']') => Cow::Borrowed("UNAVAILABLE"),
        _ => Cow::Owned(code),
    }
}
