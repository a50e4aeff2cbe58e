//! The client half: from the greeting to an accepted login.
//!
//! Handles the commands allowed before login (RFC 5804 section 2), collects credentials and adds
//! ManageSieve's codes to replies. It never checks a name or a password, accepts no login in the clear, and repeats
//! no client input except NOOP's tag.
//!
//! A command is executed when it is complete, literals included; refused commands are consumed completely, so
//! that data is never read as a command. When [`Step::NeedMore`] is returned the input is empty: at most one
//! command of [`COMMAND`] bytes is kept between calls.

use super::super::capabilities::name;
use super::super::sasl::{Exchange, ExchangeStep, Mechanism, SaslError};
use super::super::wire::{Discard, Invalid, LineBuffer, Literal, is_http, printable};
use super::super::{ClientId, Credentials, Front, FrontSettings, OUTPUT, Quit, Step, Welcome, reply_text};
use super::syntax::{Cursor, MessageReader, MessageScan, write_string};
use super::{PROTOCOL, TEXT};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::{Refusal, Reply};

/// The longest command with its literals: AUTHENTICATE with a response as long as SASL's lines.
const COMMAND: usize = 16_384;
/// How much of one refused command is discarded before the connection is closed.
const MAX_DISCARDED: usize = 65_536;
/// The longest tag of a NOOP, which comes back as a quoted string.
const TAG: usize = 1024;

const SYNTAX: SieveDenial = SieveDenial("", "Invalid arguments");
const TOO_LONG: SieveDenial = SieveDenial("", "Command too long");

/// A response code (empty: none) and a text, said with NO or BYE.
#[derive(Debug, Clone, Copy)]
struct SieveDenial(&'static str, &'static str);

/// The dialogue with one client.
pub(super) struct SieveFront {
    session: Box<str>,
    /// The capabilities of all backends, without those that usher reports itself.
    capabilities: Vec<String>,
    tls: bool,
    starttls: bool,
    /// How many bad commands are still answered.
    bad_commands_left: u32,
    state: SieveFrontState,
    /// What has arrived of the current command or response.
    command: MessageReader,
    /// The exchange whose response is awaited instead of a command.
    exchange: Option<Exchange>,
    /// Logins in the clear that were refused here and not yet reported to the session.
    local_refusals: u32,
}

#[derive(Debug, Default)]
enum SieveFrontState {
    /// In a command or a response.
    #[default]
    Command,
    /// In what is left of a refused command.
    Refused(DiscardedCommand),
    /// The session is starting TLS.
    Tls,
    /// TLS is there: the client is waiting for the capabilities.
    Secured,
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
    answer: Option<SieveDenial>,
}

impl Front for SieveFront {
    fn greet(&mut self, out: &mut SecretBuf) {
        self.list(out);
        ok(out, b"usher is ready");
    }

    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Step {
        loop {
            let next = match std::mem::take(&mut self.state) {
                SieveFrontState::Command => self.read(input, out),
                SieveFrontState::Refused(discarded) => self.discard_command(discarded, input, out),
                SieveFrontState::Tls => {
                    // Asked again before the handshake: what came in the clear stays unread.
                    input.clear();
                    self.wait_in(SieveFrontState::Tls, Step::StartTls)
                }
                SieveFrontState::Secured => {
                    // Sent without a command, because the client has discarded the earlier list (RFC 5804
                    // section 2.2).
                    self.list(out);
                    ok(out, b"TLS is established");
                    None
                }
                SieveFrontState::Deciding => self.wait_in(SieveFrontState::Deciding, Step::NeedMore),
                SieveFrontState::Over(quit) => self.wait_in(SieveFrontState::Over(quit), Step::Quit(quit)),
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
        self.state = SieveFrontState::Secured;
        self.command = MessageReader::default();
        self.exchange = None;
    }

    fn refused(&mut self, reply: &Reply, out: &mut SecretBuf) {
        self.refuse("NO", reply, out);
        self.state = SieveFrontState::Command;
    }

    /// No capabilities follow: no security layer was negotiated (RFC 5804 section 2.1).
    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf) {
        let text = printable(&welcome.text, TEXT);
        ok(out, if text.is_empty() { "Logged in" } else { &text }.as_bytes());
        self.state = SieveFrontState::Deciding;
    }

    fn bye(&mut self, reply: &Reply, out: &mut SecretBuf) {
        self.refuse("BYE", reply, out);
    }

    fn client_id(&self) -> Option<&ClientId> {
        None
    }

    fn take_local_refusal(&mut self) -> Option<Refusal> {
        self.local_refusals = self.local_refusals.checked_sub(1)?;
        Some(Refusal::TlsRequired)
    }
}

impl SieveFront {
    pub(super) fn new(settings: FrontSettings<'_>) -> Self {
        let capabilities = match settings.capabilities {
            Some(listed) => listed.iter().filter(|one| (PROTOCOL.promised)(name(one))).cloned().collect(),
            None => PROTOCOL.usual.iter().map(ToString::to_string).collect(),
        };
        Self {
            session: settings.session.into(),
            capabilities,
            tls: settings.tls,
            starttls: settings.starttls,
            bad_commands_left: settings.bad_commands,
            state: SieveFrontState::Command,
            command: MessageReader::default(),
            exchange: None,
            local_refusals: 0,
        }
    }

    /// Writes the reply to a refused login.
    fn refuse(&self, word: &str, reply: &Reply, out: &mut SecretBuf) {
        answer(out, word, code(reply), reply_text(reply, &self.session, TEXT).as_bytes());
    }

    /// How many bytes are kept between calls.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.command.buffer.bytes().len()
    }

    /// Writes the capabilities, a line each, without the OK that ends them.
    fn list(&self, out: &mut SecretBuf) {
        let mut one = |name: &str, value: Option<&str>| {
            write_string(out, name.as_bytes(), "");
            if let Some(value) = value {
                out.extend(b" ");
                write_string(out, value.as_bytes(), "");
            }
            out.extend(b"\r\n");
        };
        one("IMPLEMENTATION", Some("usher"));
        // Empty as long as no login would be taken (RFC 5804 section 1.7).
        one("SASL", Some(if self.tls { "PLAIN LOGIN" } else { "" }));
        if self.starttls && !self.tls {
            one("STARTTLS", None);
        }
        for capability in &self.capabilities {
            match capability.split_once(' ') {
                Some((name, value)) => one(name, Some(value)),
                // Has to have a value, of which nothing may be left.
                None if capability.eq_ignore_ascii_case("SIEVE") => one(capability, Some("")),
                None => one(capability, None),
            }
        }
    }

    fn read(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        let gathered = self.command.take(input, COMMAND);
        let line = self.command.buffer.line();
        let size = self.command.buffer.bytes().len();
        match gathered {
            MessageScan::Incomplete => return Some(Step::NeedMore),
            MessageScan::Announced(literal)
                if !literal.synchronizing && size.saturating_add(literal.size) <= COMMAND =>
            {
                self.command.expect(literal);
                return None;
            }
            MessageScan::Announced(_) | MessageScan::Whole | MessageScan::Spoiled(_) => {}
        }
        if is_http(self.command.buffer.bytes()) {
            return Some(self.close("This is a mail server", out));
        }
        match gathered {
            MessageScan::Spoiled(why) => {
                let line = Discard::behind(line);
                self.refuse_invalid(why, line, out)
            }
            // A synchronizing literal, which this protocol does not have.
            MessageScan::Announced(literal) if literal.synchronizing => {
                self.deny(SieveDenial("", "Literals must be non-synchronizing ({n+})"), out)
            }
            MessageScan::Announced(literal) => {
                self.command = MessageReader::default();
                let answer = Some(TOO_LONG);
                self.discard_literal(
                    literal,
                    DiscardedCommand { line: Discard::default(), literal: 0, budget: MAX_DISCARDED, answer },
                    out,
                )
            }
            MessageScan::Incomplete | MessageScan::Whole => {
                let command = std::mem::take(&mut self.command).buffer;
                let done = match self.exchange.take() {
                    Some(exchange) => self.respond(exchange, &command, out),
                    None => self.execute(&command, out),
                };
                done.unwrap_or_else(|denial| self.deny(denial, out))
            }
        }
    }

    /// Executes a command.
    fn execute(&mut self, command: &LineBuffer, out: &mut SecretBuf) -> Result<Option<Step>, SieveDenial> {
        let mut arguments = Cursor::new(command.bytes());
        let verb = arguments.atom().to_ascii_uppercase();
        match verb.as_slice() {
            b"CAPABILITY" => {
                arguments.end().ok_or(SYNTAX)?;
                self.list(out);
                ok(out, b"Capability completed");
            }
            b"NOOP" => noop(arguments, out).ok_or(SYNTAX)?,
            b"LOGOUT" => {
                arguments.end().ok_or(SYNTAX)?;
                ok(out, b"Goodbye");
                return Ok(self.wait_in(SieveFrontState::Over(Quit::Logout), Step::Quit(Quit::Logout)));
            }
            b"STARTTLS" => {
                arguments.end().ok_or(SYNTAX)?;
                if self.tls || !self.starttls {
                    return Err(SieveDenial("", "STARTTLS is not available"));
                }
                ok(out, b"Begin TLS now");
                return Ok(self.wait_in(SieveFrontState::Tls, Step::StartTls));
            }
            b"AUTHENTICATE" if !self.tls => {
                self.local_refusals = self.local_refusals.saturating_add(1);
                return Err(SieveDenial(code(&Reply::TlsRequired), Reply::TlsRequired.text()));
            }
            b"AUTHENTICATE" => {
                let (mechanism, initial) = authenticate(arguments).ok_or(SYNTAX)?;
                let mechanism =
                    Mechanism::by_name(mechanism.expose()).ok_or(SieveDenial("", "Unsupported mechanism"))?;
                let exchange = Exchange::new(mechanism);
                let progress = match initial {
                    Some(response) => exchange.initial_response(response.expose()).map_err(unreadable)?,
                    None => ExchangeStep::Continue(exchange),
                };
                return Ok(self.advance_exchange(progress, out));
            }
            b"PUTSCRIPT" | b"LISTSCRIPTS" | b"SETACTIVE" | b"GETSCRIPT" | b"DELETESCRIPT" | b"RENAMESCRIPT"
            | b"CHECKSCRIPT" | b"HAVESPACE" | b"UNAUTHENTICATE" => return Err(SieveDenial("", "Log in first")),
            _ => return Err(SieveDenial("", "Unknown command")),
        }
        Ok(None)
    }

    /// Takes the response to a challenge; the string `*` cancels.
    fn respond(
        &mut self,
        exchange: Exchange,
        line: &LineBuffer,
        out: &mut SecretBuf,
    ) -> Result<Option<Step>, SieveDenial> {
        let mut line = Cursor::new(line.bytes());
        let response = line.string().filter(|_| line.end().is_some());
        let response = response.ok_or(SieveDenial("", "Response must be a string"))?;
        let progress = exchange.respond(response.expose()).map_err(unreadable)?;
        Ok(self.advance_exchange(progress, out))
    }

    fn advance_exchange(&mut self, progress: ExchangeStep, out: &mut SecretBuf) -> Option<Step> {
        match progress {
            ExchangeStep::Done(credentials) => self.attempt(credentials),
            ExchangeStep::Continue(exchange) => {
                write_string(out, exchange.challenge().as_bytes(), "");
                out.extend(b"\r\n");
                self.exchange = Some(exchange);
                None
            }
        }
    }

    fn attempt(&mut self, credentials: Credentials) -> Option<Step> {
        self.wait_in(SieveFrontState::Deciding, Step::Attempt(credentials))
    }

    /// Refuses a line at its first invalid byte, because a client that ends lines with a bare LF never sends
    /// the end. What follows up to the CRLF is discarded.
    fn refuse_invalid(&mut self, why: Invalid, line: Discard, out: &mut SecretBuf) -> Option<Step> {
        let denied = self.deny(
            match why {
                Invalid::TooLong => TOO_LONG,
                Invalid::BareLf | Invalid::BareCr => SieveDenial("", "Line must end with CRLF"),
                Invalid::Nul => SieveDenial("", "NUL is not allowed"),
            },
            out,
        );
        if denied.is_none() {
            self.state =
                SieveFrontState::Refused(DiscardedCommand { line, literal: 0, budget: MAX_DISCARDED, answer: None });
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
            return self.wait_in(SieveFrontState::Refused(discarded), Step::NeedMore);
        }
        let (passed, ended) = discarded.line.discard(input, discarded.budget);
        discarded.budget -= passed;
        match discarded.line.announced() {
            _ if !ended && discarded.budget == 0 => Some(self.close("Command too long", out)),
            _ if !ended => self.wait_in(SieveFrontState::Refused(discarded), Step::NeedMore),
            Some(literal) if !literal.synchronizing => self.discard_literal(literal, discarded, out),
            Some(_) | None => discarded.answer.and_then(|denial| self.deny(denial, out)),
        }
    }

    /// Discards a non-synchronizing literal, unless it is too large.
    fn discard_literal(&mut self, literal: Literal, discarded: DiscardedCommand, out: &mut SecretBuf) -> Option<Step> {
        let Some(budget) = discarded.budget.checked_sub(literal.size) else {
            return Some(self.close("Literal too large", out));
        };
        self.state = SieveFrontState::Refused(DiscardedCommand {
            line: Discard::default(),
            literal: literal.size,
            budget,
            ..discarded
        });
        None
    }

    /// Replies to a bad command; closes the connection after the last one. An exchange that it was part of is
    /// over.
    fn deny(&mut self, SieveDenial(code, text): SieveDenial, out: &mut SecretBuf) -> Option<Step> {
        self.command = MessageReader::default();
        self.exchange = None;
        answer(out, "NO", code, text.as_bytes());
        self.bad_commands_left = self.bad_commands_left.saturating_sub(1);
        (self.bad_commands_left == 0).then(|| self.close("Too many bad commands", out))
    }

    fn close(&mut self, text: &str, out: &mut SecretBuf) -> Step {
        answer(out, "BYE", "", text.as_bytes());
        self.state = SieveFrontState::Over(Quit::ProtocolError);
        Step::Quit(Quit::ProtocolError)
    }

    fn wait_in(&mut self, state: SieveFrontState, step: Step) -> Option<Step> {
        self.state = state;
        Some(step)
    }
}

/// AUTHENTICATE's arguments: the mechanism and, if there is one, the initial response.
fn authenticate(mut arguments: Cursor<'_>) -> Option<(Secret, Option<Secret>)> {
    arguments.expect(b" ")?;
    let mechanism = arguments.string()?;
    if arguments.end().is_some() {
        return Some((mechanism, None));
    }
    arguments.expect(b" ")?;
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
    arguments.expect(b" ")?;
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

/// An unreadable response is not a wrong password; only the text distinguishes it, because NO is the only
/// reply.
const fn unreadable(error: SaslError) -> SieveDenial {
    match error {
        SaslError::Cancelled => SieveDenial("", "Authentication cancelled"),
        SaslError::NotBase64 => SieveDenial("", "Invalid base64 data"),
        SaslError::Malformed => SieveDenial("", "Invalid SASL response"),
    }
}

/// The response code of a reply (RFC 5804 section 1.3), or none.
const fn code(reply: &Reply) -> &'static str {
    match reply {
        Reply::AuthenticationFailed
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
