//! The client half: from the greeting to an accepted login.
//!
//! Handles the commands allowed before login, collects credentials and adds IMAP's codes to replies. It
//! never checks a name or a password, never asks for a secret in the clear, and never repeats client input
//! except the tag.
//!
//! Every command gets one tagged answer (RFC 9051 section 2.2.1) and is consumed completely, valid or not,
//! literals included, so that data is never read as a command. When [`Step::NeedMore`] is returned the input is
//! empty: at most one command of [`COMMAND`] bytes is kept between calls.

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::super::sasl::{self, Exchange, ExchangeStep, Mechanism, SaslError};
use super::super::wire::{Discard, Invalid, LineBuffer, Literal, Scan, first_word, is_http, printable, write_line};
use super::super::{ClientId, Credentials, Front, FrontSettings, NginxReply, OUTPUT, Quit, Step, Welcome, reply_text};
use super::command::{self, CommandError, ImapDenial, Verb};
use super::{LINE, TEXT};
use crate::base::secret::SecretBuf;
use crate::outcome::{BackendReply, Refusal, Reply};

/// The longest command with its literals: an ID with everything that RFC 2971 allows.
const COMMAND: usize = 32_768;
/// How much of one refused command is discarded before the connection is closed.
const MAX_DISCARDED: usize = 65_536;

/// The fixed capabilities, which are usher's own. SASL-IR saves a round trip; LITERAL- and not LITERAL+,
/// because the limits hold to that.
const CAPABILITIES: &str = "IMAP4rev1 SASL-IR LITERAL- ID";

/// The dialogue with one client.
pub(super) struct ImapFront {
    session: Box<str>,
    tls: bool,
    starttls: bool,
    /// How many bad commands are still answered.
    bad_commands_left: u32,
    state: ImapFrontState,
    /// What has arrived of the current command or response.
    buffer: LineBuffer,
    /// The current command's tag; empty when it has none. In wiping memory, because a desynchronized client may
    /// send a password in place of a tag.
    tag: Zeroizing<Vec<u8>>,
    asked_capabilities: bool,
    id: Option<ClientId>,
    /// Logins in the clear that were refused here and not yet reported to the session.
    local_refusals: u32,
}

#[derive(Debug, Default)]
enum ImapFrontState {
    /// In a line of a command.
    #[default]
    Command,
    /// In a literal of a command, with this many bytes to come.
    Literal(usize),
    /// In a response of an authentication exchange.
    Response(Exchange),
    /// In what is left of a refused command.
    Refused(DiscardedCommand),
    /// The session is starting TLS.
    Tls,
    /// The session is deciding about a login, or has accepted it.
    Deciding,
    /// The closing line was sent.
    Over(Quit),
}

/// What is left of a refused command on the wire.
#[derive(Debug)]
struct DiscardedCommand {
    line: Discard,
    /// Bytes of a literal before the line goes on.
    literal: usize,
    /// How much more may be discarded.
    budget: usize,
    /// The reply, if it has to wait for the command's end.
    answer: Option<ImapDenial>,
}

impl Front for ImapFront {
    fn greet(&mut self, out: &mut SecretBuf) {
        let capabilities = self.capabilities();
        write_line(out, &[b"* OK [CAPABILITY ", capabilities.as_bytes(), b"] usher is ready"]);
    }

    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Step {
        loop {
            let next = match std::mem::take(&mut self.state) {
                ImapFrontState::Command => self.read_command(input, out),
                ImapFrontState::Literal(missing) => self.read_literal(missing, input),
                ImapFrontState::Response(exchange) => self.read_response(exchange, input, out),
                ImapFrontState::Refused(discarded) => self.discard_command(discarded, input, out),
                ImapFrontState::Tls => {
                    // Asked again before the handshake: what came in the clear stays unread.
                    input.clear();
                    self.wait_in(ImapFrontState::Tls, Step::StartTls)
                }
                ImapFrontState::Deciding => self.wait_in(ImapFrontState::Deciding, Step::NeedMore),
                ImapFrontState::Over(quit) => self.wait_in(ImapFrontState::Over(quit), Step::Quit(quit)),
            };
            if let Some(step) = next {
                return step;
            }
            if out.len() >= OUTPUT {
                return Step::Flush;
            }
        }
    }

    /// The count of bad commands is the connection's and stays.
    fn tls_started(&mut self) {
        self.tls = true;
        self.state = ImapFrontState::Command;
        self.buffer = LineBuffer::default();
        self.tag = Zeroizing::default();
        self.asked_capabilities = false;
        self.id = None;
    }

    fn refused(&mut self, reply: &Reply, out: &mut SecretBuf) {
        self.answer(&format!("NO {}", coded(reply, &self.session)), out);
        self.state = ImapFrontState::Command;
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
        self.state = ImapFrontState::Deciding;
    }

    fn bye(&mut self, reply: &Reply, out: &mut SecretBuf) {
        write_line(out, &[b"* BYE ", coded(reply, &self.session).as_bytes()]);
    }

    fn client_id(&self) -> Option<&ClientId> {
        self.id.as_ref()
    }

    fn take_local_refusal(&mut self) -> Option<Refusal> {
        self.local_refusals = self.local_refusals.checked_sub(1)?;
        Some(Refusal::TlsRequired)
    }
}

impl ImapFront {
    pub(super) fn new(settings: FrontSettings<'_>) -> Self {
        Self {
            session: settings.session.into(),
            tls: settings.tls,
            starttls: settings.starttls,
            bad_commands_left: settings.bad_commands,
            state: ImapFrontState::Command,
            buffer: LineBuffer::default(),
            tag: Zeroizing::default(),
            asked_capabilities: false,
            id: None,
            local_refusals: 0,
        }
    }

    /// How many bytes are kept between calls.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.buffer.bytes().len() + self.tag.len()
    }

    fn capabilities(&self) -> String {
        let more = match (self.tls, self.starttls) {
            (true, _) => "AUTH=PLAIN AUTH=LOGIN",
            (false, true) => "STARTTLS LOGINDISABLED",
            (false, false) => "LOGINDISABLED",
        };
        format!("{CAPABILITIES} {more}")
    }

    fn read_command(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        let room = COMMAND.saturating_sub(self.buffer.bytes().len() - self.buffer.line().len());
        let mut found = self.buffer.take_line(input, LINE.min(room));
        if found == Scan::Spoiled(Invalid::TooLong) && command::is_authenticate(self.buffer.bytes()) {
            found = self.buffer.take_line(input, sasl::LINE);
        }
        if found == Scan::Incomplete {
            return Some(Step::NeedMore);
        }
        let command = std::mem::take(&mut self.buffer);
        if is_http(command.bytes()) {
            return Some(self.close("This is a mail server", out));
        }
        self.tag = Zeroizing::new(command::tag(command.bytes()).unwrap_or_default().to_vec());
        if let Scan::Spoiled(why) = found {
            return self.refuse_invalid(why, command.line(), out);
        }
        match self.execute(command.bytes(), out) {
            Ok(step) => step,
            Err(CommandError::Denied(denial)) => self.refuse(denial, command.line(), out),
            Err(CommandError::Incomplete(literal)) if command.bytes().len().saturating_add(literal.size) > COMMAND => {
                self.refuse(command::COMMAND_TOO_BIG, command.line(), out)
            }
            Err(CommandError::Incomplete(literal)) => {
                if literal.synchronizing {
                    write_line(out, &[b"+ Go ahead"]);
                }
                self.buffer = command;
                self.state = ImapFrontState::Literal(literal.size);
                None
            }
        }
    }

    fn read_literal(&mut self, missing: usize, input: &mut SecretBuf) -> Option<Step> {
        let missing = self.buffer.take_literal(input, missing);
        if missing == 0 {
            return None;
        }
        self.wait_in(ImapFrontState::Literal(missing), Step::NeedMore)
    }

    /// Executes a command as far as it has arrived.
    fn execute(&mut self, command: &[u8], out: &mut SecretBuf) -> Result<Option<Step>, CommandError> {
        if self.tag.is_empty() {
            return Err(ImapDenial::Bad("Missing or invalid tag").into());
        }
        let (verb, arguments) = command::verb(command, &self.tag);
        match verb {
            Verb::Capability => {
                arguments.none()?;
                self.asked_capabilities = true;
                write_line(out, &[b"* CAPABILITY ", self.capabilities().as_bytes()]);
                self.answer("OK Capability completed", out);
            }
            Verb::Noop => {
                arguments.none()?;
                self.answer("OK NOOP completed", out);
            }
            Verb::Id => {
                let id = arguments.id()?;
                self.id = Some(id).filter(|id| *id != ClientId::default());
                write_line(out, &[b"* ID (\"name\" \"usher\")"]);
                self.answer("OK ID completed", out);
            }
            Verb::Logout => {
                arguments.none()?;
                write_line(out, &[b"* BYE Goodbye"]);
                self.answer("OK Logged out", out);
                return Ok(self.wait_in(ImapFrontState::Over(Quit::Logout), Step::Quit(Quit::Logout)));
            }
            Verb::StartTls => {
                arguments.none()?;
                if self.tls || !self.starttls {
                    return Err(ImapDenial::Bad("STARTTLS is not available").into());
                }
                self.answer("OK Begin TLS now", out);
                return Ok(self.wait_in(ImapFrontState::Tls, Step::StartTls));
            }
            // Before any argument is looked at, so before a literal is asked for.
            Verb::Login | Verb::Authenticate if !self.tls => {
                self.local_refusals = self.local_refusals.saturating_add(1);
                return Err(ImapDenial::TlsFirst.into());
            }
            Verb::Login => {
                let (login, password) = arguments.login()?;
                let login = login.expose().to_vec();
                return Ok(self.attempt(Credentials { login, password, authzid: Vec::new() }));
            }
            Verb::Authenticate => {
                let (mechanism, initial) = arguments.authenticate()?;
                let mechanism = Mechanism::by_name(mechanism).ok_or(ImapDenial::No("Unsupported mechanism"))?;
                let exchange = Exchange::new(mechanism);
                let progress = match initial {
                    Some(response) => exchange.initial_response(response).map_err(unreadable)?,
                    None => ExchangeStep::Continue(exchange),
                };
                return Ok(self.advance_exchange(progress, out));
            }
            Verb::Later => return Err(ImapDenial::Bad("Log in first").into()),
            Verb::Unknown => return Err(ImapDenial::Bad("Unknown command").into()),
        }
        Ok(None)
    }

    fn read_response(&mut self, exchange: Exchange, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        match self.buffer.take_line(input, sasl::LINE) {
            Scan::Incomplete => self.wait_in(ImapFrontState::Response(exchange), Step::NeedMore),
            Scan::Line => {
                let response = std::mem::take(&mut self.buffer);
                match exchange.respond(response.line()) {
                    Ok(progress) => self.advance_exchange(progress, out),
                    Err(error) => self.deny(unreadable(error), out),
                }
            }
            Scan::Spoiled(why) => {
                let response = std::mem::take(&mut self.buffer);
                self.refuse_invalid(why, response.line(), out)
            }
        }
    }

    fn advance_exchange(&mut self, progress: ExchangeStep, out: &mut SecretBuf) -> Option<Step> {
        match progress {
            ExchangeStep::Done(credentials) => self.attempt(credentials),
            ExchangeStep::Continue(exchange) => {
                write_line(out, &[b"+ ", exchange.challenge().as_bytes()]);
                self.state = ImapFrontState::Response(exchange);
                None
            }
        }
    }

    fn attempt(&mut self, credentials: Credentials) -> Option<Step> {
        self.wait_in(ImapFrontState::Deciding, Step::Attempt(credentials))
    }

    /// Refuses a command at the end of `line`. A synchronizing literal is answered with the refusal; a
    /// non-synchronizing one has to be read first (RFC 7888 section 4).
    fn refuse(&mut self, denial: ImapDenial, line: &[u8], out: &mut SecretBuf) -> Option<Step> {
        match Literal::announced_by(line) {
            Some(literal) if !literal.synchronizing => {
                let discarded = DiscardedCommand {
                    line: Discard::default(),
                    literal: 0,
                    budget: MAX_DISCARDED,
                    answer: Some(denial),
                };
                self.discard_literal(literal, discarded, out)
            }
            Some(_) | None => self.deny(denial, out),
        }
    }

    /// Refuses a line at its first invalid byte, because a client that ends lines with a bare LF never sends
    /// the end. What follows up to the CRLF is discarded.
    fn refuse_invalid(&mut self, why: Invalid, line: &[u8], out: &mut SecretBuf) -> Option<Step> {
        let denied = self.deny(
            ImapDenial::Bad(match why {
                Invalid::TooLong => "[TOOBIG] Line too long",
                Invalid::BareLf | Invalid::BareCr => "Line must end with CRLF",
                Invalid::Nul => "NUL is not allowed",
            }),
            out,
        );
        if denied.is_none() {
            let line = Discard::behind(line);
            self.state =
                ImapFrontState::Refused(DiscardedCommand { line, literal: 0, budget: MAX_DISCARDED, answer: None });
        }
        denied
    }

    fn discard_command(
        &mut self,
        mut discarded: DiscardedCommand,
        input: &mut SecretBuf,
        out: &mut SecretBuf,
    ) -> Option<Step> {
        let taken = discarded.literal.min(input.len());
        input.consume(taken);
        discarded.literal -= taken;
        if discarded.literal > 0 {
            return self.wait_in(ImapFrontState::Refused(discarded), Step::NeedMore);
        }
        let (passed, ended) = discarded.line.discard(input, discarded.budget);
        discarded.budget -= passed;
        match discarded.line.announced() {
            _ if !ended && discarded.budget == 0 => Some(self.close("Command too long", out)),
            _ if !ended => self.wait_in(ImapFrontState::Refused(discarded), Step::NeedMore),
            Some(literal) if !literal.synchronizing => self.discard_literal(literal, discarded, out),
            Some(_) | None => discarded.answer.and_then(|denial| self.deny(denial, out)),
        }
    }

    /// Discards a non-synchronizing literal, unless it is too large.
    fn discard_literal(&mut self, literal: Literal, discarded: DiscardedCommand, out: &mut SecretBuf) -> Option<Step> {
        let Some(budget) = discarded.budget.checked_sub(literal.size) else {
            return Some(self.close("[TOOBIG] Literal too large", out));
        };
        self.state = ImapFrontState::Refused(DiscardedCommand {
            line: Discard::default(),
            literal: literal.size,
            budget,
            ..discarded
        });
        None
    }

    /// Replies to a bad command; closes the connection after the last one.
    fn deny(&mut self, denial: ImapDenial, out: &mut SecretBuf) -> Option<Step> {
        match denial {
            ImapDenial::Bad(text) => self.answer(&format!("BAD {text}"), out),
            ImapDenial::No(text) => self.answer(&format!("NO {text}"), out),
            ImapDenial::TlsFirst => self.answer(&format!("NO {}", coded(&Reply::TlsRequired, "")), out),
        }
        self.bad_commands_left = self.bad_commands_left.saturating_sub(1);
        (self.bad_commands_left == 0).then(|| self.close("Too many bad commands", out))
    }

    fn answer(&self, answer: &str, out: &mut SecretBuf) {
        let tag: &[u8] = if self.tag.is_empty() { b"*" } else { &self.tag };
        write_line(out, &[tag, b" ", answer.as_bytes()]);
    }

    fn close(&mut self, text: &str, out: &mut SecretBuf) -> Step {
        write_line(out, &[b"* BYE ", text.as_bytes()]);
        self.state = ImapFrontState::Over(Quit::ProtocolError);
        Step::Quit(Quit::ProtocolError)
    }

    fn wait_in(&mut self, state: ImapFrontState, step: Step) -> Option<Step> {
        self.state = state;
        Some(step)
    }
}

/// An unreadable response is a protocol error, not a wrong password: BAD (RFC 9051 section 6.2.2).
const fn unreadable(error: SaslError) -> ImapDenial {
    ImapDenial::Bad(match error {
        SaslError::Cancelled => "Authentication cancelled",
        SaslError::NotBase64 => "Invalid base64 data",
        SaslError::Malformed => "Invalid SASL response",
    })
}

/// Whether a complete `* CAPABILITY` line is among these.
fn lists_capabilities(untagged: &[u8]) -> bool {
    const START: &[u8] = b"* CAPABILITY ";
    untagged
        .split(|byte| *byte == b'\n')
        .any(|line| line.get(..START.len()).is_some_and(|start| start.eq_ignore_ascii_case(START)))
}

/// As [`Front::refused`], for nginx, which adds tag and NO itself.
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
        Reply::AuthenticationFailed => "AUTHENTICATIONFAILED",
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
