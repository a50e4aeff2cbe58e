//! The client half: ManageSieve's commands before login (RFC 5804 section 2), and the form of its replies.
//!
//! A command is executed when it is complete, literals included. Never repeats client input except NOOP's tag.

use super::super::capabilities::name;
use super::super::dialect::{Action, Channel, Dialect, Response};
use super::super::problem::{Problem, TLS_REQUIRED};
use super::super::wire::{LineBuffer, Literal, printable, write_line};
use super::super::{FrontSettings, Welcome, reply_text};
use super::syntax::{Cursor, write_string};
use super::{PROTOCOL, TEXT};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::Reply;

/// The longest tag of a NOOP, which comes back as a quoted string.
const TAG: usize = 1024;

/// ManageSieve's commands.
pub(super) struct Sieve {
    /// The capabilities of all backends, without those that usher reports itself.
    capabilities: Vec<String>,
}

impl Dialect for Sieve {
    const LINE: usize = Self::COMMAND;
    /// AUTHENTICATE with a response as long as SASL's lines.
    const COMMAND: usize = 16_384;
    const RESPONSE: usize = Self::COMMAND;
    const LITERALS: bool = true;
    /// The protocol has no synchronizing literals from clients (RFC 5804 section 4). Some clients write `{n}`, the form
    /// of a server's, and wait for nothing; Dovecot reads it.
    const SYNCHRONIZING: bool = false;
    const STRING_RESPONSES: bool = true;

    fn greet(&self, channel: Channel, out: &mut SecretBuf) {
        self.list(channel, out);
        ok(out, b"usher is ready");
    }

    fn command(&mut self, command: &LineBuffer, channel: Channel, out: &mut SecretBuf) -> Result<Action, Problem> {
        if let Some(literal) = announced(command) {
            return Ok(Action::Literal(literal));
        }
        let mut arguments = Cursor::new(command.bytes());
        let verb = arguments.atom().to_ascii_uppercase();
        match verb.as_slice() {
            b"CAPABILITY" => {
                arguments.end().ok_or(Problem::Syntax)?;
                self.list(channel, out);
                ok(out, b"Capability completed");
            }
            b"NOOP" => noop(arguments, out).ok_or(Problem::Syntax)?,
            b"LOGOUT" => {
                arguments.end().ok_or(Problem::Syntax)?;
                ok(out, b"Goodbye");
                return Ok(Action::Quit);
            }
            b"STARTTLS" => {
                arguments.end().ok_or(Problem::Syntax)?;
                if !channel.can_start_tls() {
                    return Err(Problem::NoTls);
                }
                ok(out, b"Begin TLS now");
                return Ok(Action::StartTls);
            }
            b"AUTHENTICATE" if !channel.tls => return Err(Problem::TlsFirst),
            b"AUTHENTICATE" => {
                let (mechanism, initial) = authenticate(arguments).ok_or(Problem::Syntax)?;
                return Action::authenticate(mechanism.expose(), initial.as_ref().map(Secret::expose), channel);
            }
            b"PUTSCRIPT" | b"LISTSCRIPTS" | b"SETACTIVE" | b"GETSCRIPT" | b"DELETESCRIPT" | b"RENAMESCRIPT"
            | b"CHECKSCRIPT" | b"HAVESPACE" | b"UNAUTHENTICATE" => return Err(Problem::LoginFirst),
            _ => return Err(Problem::Unknown),
        }
        Ok(Action::Done)
    }

    /// A string; that of `*` cancels.
    fn response(line: &LineBuffer) -> Result<Response, Problem> {
        if let Some(literal) = announced(line) {
            return Ok(Response::Literal(literal));
        }
        let mut rest = Cursor::new(line.bytes());
        rest.skip_blanks();
        let text = rest.string().filter(|_| rest.end().is_some());
        text.map(Response::Text).ok_or(Problem::NoString)
    }

    fn challenge(challenge: &str, out: &mut SecretBuf) {
        write_string(out, challenge.as_bytes(), "");
        out.extend(b"\r\n");
    }

    /// Only the text distinguishes an unreadable response from a wrong password, because NO is the only reply.
    fn deny(&self, problem: Problem, out: &mut SecretBuf) {
        if problem == Problem::TlsFirst {
            return self.refused(&TLS_REQUIRED, "", out);
        }
        // What is limited is the command as a whole.
        let too_long = matches!(problem, Problem::LineTooLong | Problem::ResponseTooLong | Problem::ArgumentTooLong);
        let problem = if too_long { Problem::CommandTooLong } else { problem };
        answer(out, "NO", "", problem.text().as_bytes());
    }

    fn close(&self, problem: Problem, out: &mut SecretBuf) {
        answer(out, "BYE", "", problem.text().as_bytes());
    }

    fn refused(&self, reply: &Reply, session: &str, out: &mut SecretBuf) {
        answer(out, "NO", code(reply), reply_text(reply, session, TEXT).as_bytes());
    }

    /// No capabilities follow: no security layer was negotiated (RFC 5804 section 2.1).
    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf) {
        let text = printable(&welcome.text, TEXT);
        ok(out, if text.is_empty() { "Logged in" } else { &text }.as_bytes());
    }

    fn bye(&self, reply: &Reply, session: &str, out: &mut SecretBuf) {
        answer(out, "BYE", code(reply), reply_text(reply, session, TEXT).as_bytes());
    }

    fn tls_started(&mut self) {}

    /// Sent without a command, because the client has discarded the earlier list (RFC 5804 section 2.2).
    fn secured(&self, channel: Channel, out: &mut SecretBuf) {
        self.list(channel, out);
        ok(out, b"TLS is established");
    }
}

impl Sieve {
    pub(super) fn new(settings: FrontSettings<'_>) -> Self {
        let capabilities = match settings.capabilities {
            Some(listed) => listed.iter().filter(|one| (PROTOCOL.advertised)(name(one))).cloned().collect(),
            None => PROTOCOL.usual.iter().map(ToString::to_string).collect(),
        };
        Self { capabilities }
    }

    /// Writes the capabilities, a line each, without the OK that ends them.
    fn list(&self, channel: Channel, out: &mut SecretBuf) {
        let one = |out: &mut SecretBuf, name: &str, value: Option<&str>| {
            write_string(out, name.as_bytes(), "");
            if let Some(value) = value {
                out.extend(b" ");
                write_string(out, value.as_bytes(), "");
            }
            out.extend(b"\r\n");
        };
        one(out, "IMPLEMENTATION", Some("usher"));
        // Empty as long as no login would be taken (RFC 5804 section 1.7).
        out.extend(b"\"SASL\" \"");
        for (number, name) in channel.offered().enumerate() {
            out.extend(if number == 0 { b"" } else { b" " });
            out.extend(name.as_bytes());
        }
        write_line(out, &[b"\""]);
        if channel.can_start_tls() {
            one(out, "STARTTLS", None);
        }
        for capability in &self.capabilities {
            match capability.split_once(' ') {
                Some((name, value)) => one(out, name, Some(value)),
                // Has to have a value, of which nothing may be left.
                None if capability.eq_ignore_ascii_case("SIEVE") => one(out, capability, Some("")),
                None => one(out, capability, None),
            }
        }
    }
}

/// The literal that the current line announces.
fn announced(command: &LineBuffer) -> Option<Literal> {
    Literal::announced_by(command.line())
}

/// AUTHENTICATE's arguments: the mechanism and, if there is one, the initial response.
fn authenticate(mut arguments: Cursor<'_>) -> Option<(Secret, Option<Secret>)> {
    arguments.blanks()?;
    let mechanism = arguments.string()?;
    if arguments.end().is_some() {
        return Some((mechanism, None));
    }
    arguments.blanks()?;
    let response = arguments.string()?;
    arguments.end()?;
    Some((mechanism, Some(response)))
}

/// Answers NOOP, with the string by which the client finds its answer (RFC 5804 section 2.13).
fn noop(mut arguments: Cursor<'_>, out: &mut SecretBuf) -> Option<()> {
    if arguments.end().is_some() {
        ok(out, b"NOOP completed");
        return Some(());
    }
    arguments.blanks()?;
    let tag = arguments.string()?;
    arguments.end()?;
    let text = std::str::from_utf8(tag.expose()).ok()?;
    if tag.expose().len() > TAG || text.chars().any(char::is_control) {
        return None;
    }
    out.extend(b"OK (TAG ");
    write_string(out, tag.expose(), "");
    out.extend(b") \"NOOP completed\"\r\n");
    Some(())
}

fn ok(out: &mut SecretBuf, text: &[u8]) {
    answer(out, "OK", "", text);
}

/// Writes an answer: its word, its code if there is one, and its text.
fn answer(out: &mut SecretBuf, word: &str, code: &str, text: &[u8]) {
    out.extend(word.as_bytes());
    if !code.is_empty() {
        out.extend(b" (");
        out.extend(code.as_bytes());
        out.extend(b")");
    }
    out.extend(b" ");
    write_string(out, text, "");
    out.extend(b"\r\n");
}

/// The response code of a reply (RFC 5804 section 1.3), or none.
const fn code(reply: &Reply) -> &'static str {
    match reply {
        Reply::AuthenticationFailed
        | Reply::TokenRefused(_)
        | Reply::AuthzidNotAllowed
        | Reply::NotPermitted
        | Reply::PasswordExpired
        | Reply::PasswordMustChange
        | Reply::AccountDisabled
        | Reply::AccountExpired
        | Reply::OutsideLogonHours
        | Reply::WrongWorkstation
        | Reply::NoMailbox
        | Reply::ProtocolNotServed => "",
        // For temporary failures: the client keeps its password. A backend's codes are not passed on: without
        // this one the client asks for another password although its own is correct.
        Reply::BackendText(_)
        | Reply::Unavailable
        | Reply::Maintenance
        | Reply::MailboxMoving
        | Reply::TimedOut
        | Reply::Kicked
        | Reply::ShuttingDown
        | Reply::Limit
        | Reply::ServerBug => "TRYLATER",
        Reply::TlsRequired => "ENCRYPT-NEEDED",
    }
}
