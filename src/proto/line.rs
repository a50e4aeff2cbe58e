//! The client half of the protocols whose commands are single lines: POP3 and submission.
//!
//! Reads lines, drives authentication exchanges (RFC 4954, RFC 5034), counts bad commands and discards what is
//! refused. Commands and replies are the [`Dialect`]'s. Never asks for a secret in the clear and never repeats
//! client input. When [`Step::NeedMore`] is returned the input is empty: one line is kept between calls.

use std::borrow::Cow;

use super::sasl::{self, Exchange, ExchangeStep, Mechanism, SaslError};
use super::wire::{Discard, Invalid, LineBuffer, Scan, first_word, is_http, write_line};
use super::{ClientId, Credentials, Front, FrontSettings, OUTPUT, Quit, Step, Welcome};
use crate::base::secret::SecretBuf;
use crate::outcome::{Refusal, Reply};

/// How much of one refused line is discarded before the connection is closed.
const MAX_DISCARDED: usize = 65_536;

/// The commands and replies of a line protocol. Replies are complete lines without CRLF.
pub(super) trait Dialect: Send + Sync {
    /// The longest command, without CRLF. AUTH may be longer: it can hold an initial response.
    const LINE: usize;
    /// The prefix of a challenge.
    const CHALLENGE: &str;

    /// Writes the greeting.
    fn greet(&self, out: &mut SecretBuf);

    /// Executes a command and writes its reply, unless that comes later.
    fn command<'a>(
        &mut self,
        command: &'a [u8],
        channel: Channel,
        out: &mut SecretBuf,
    ) -> Result<LineAction<'a>, LineProblem>;

    /// Resets the state, such as after STARTTLS.
    fn reset(&mut self);

    /// The reply to a command that cannot be executed.
    fn denial(problem: LineProblem) -> Cow<'static, str>;

    /// The reply to a refused login, with the session where that helps.
    fn refusal(reply: &Reply, session: &str) -> String;

    /// The reply to an accepted login.
    fn success(welcome: &Welcome) -> String;

    /// The closing line.
    fn closing_line(reply: &Reply, session: &str) -> String;
}

/// The security of the client's connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channel {
    /// TLS is established.
    pub(super) tls: bool,
    /// TLS may be started.
    pub(super) starttls: bool,
}

impl Channel {
    /// Whether TLS can be started now.
    pub(super) const fn can_start_tls(self) -> bool {
        self.starttls && !self.tls
    }
}

/// The result of a command.
#[derive(Debug)]
pub(super) enum LineAction<'a> {
    /// It is answered.
    Done,
    /// It is answered, and TLS is to be started.
    StartTls,
    /// It is answered, and the client disconnects.
    Quit,
    /// An exchange of this mechanism, with its initial response if there is one.
    Authenticate(Mechanism, Option<&'a [u8]>),
    /// A login with everything it needs.
    Attempt(Credentials),
    /// It is refused, and this many bytes after it are its data.
    Discard(LineProblem, usize),
}

impl<'a> LineAction<'a> {
    /// What the arguments of an AUTH lead to.
    pub(super) fn authenticate(arguments: &'a [u8], channel: Channel) -> Result<Self, LineProblem> {
        // Before the arguments are parsed: they may contain a password.
        if !channel.tls {
            return Err(LineProblem::TlsFirst);
        }
        let (mechanism, response) = first_word(arguments);
        let alone = mechanism.len() == arguments.len();
        if mechanism.is_empty() || (!alone && response.is_empty()) || response.contains(&b' ') {
            return Err(LineProblem::Syntax);
        }
        let mechanism = Mechanism::by_name(mechanism).ok_or(LineProblem::Mechanism)?;
        Ok(Self::Authenticate(mechanism, (!alone).then_some(response)))
    }
}

/// Why a command is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineProblem {
    /// No such command.
    Unknown,
    /// Its arguments are invalid.
    Syntax,
    /// It requires a login.
    LoginFirst,
    /// It requires another command before it (USER, EHLO).
    Order,
    /// A login in the clear.
    TlsFirst,
    /// STARTTLS is not available, or not again.
    NoTls,
    /// An unknown mechanism.
    Mechanism,
    /// A response that cannot be used.
    Response(SaslError),
    /// A command of more bytes than allowed.
    TooLong,
    /// A response of more bytes than allowed.
    ResponseTooLong,
    /// A CR or LF alone.
    LineEnd,
    /// A NUL.
    Nul,
    /// One bad command too many; the last reply.
    TooMany,
    /// More data after a refused command than may be discarded; the last reply.
    TooMuchData,
    /// A request of HTTP; the last answer.
    Http,
}

/// The dialogue with one client.
pub(super) struct LineFront<D> {
    dialect: D,
    session: Box<str>,
    channel: Channel,
    /// How many bad commands are still answered.
    bad_commands_left: u32,
    state: LineState,
    /// What has arrived of the current line.
    buffer: LineBuffer,
    /// Logins in the clear that were refused here and not yet reported to the session.
    local_refusals: u32,
}

#[derive(Debug, Default)]
enum LineState {
    /// In a command.
    #[default]
    Command,
    /// In a response of an authentication exchange.
    Response(Exchange),
    /// In the rest of a refused line, of which this much may be discarded.
    Refused(Discard, usize),
    /// In the data after a refused command, with this many bytes to come.
    Data(usize),
    /// The session is starting TLS.
    Tls,
    /// The session is deciding about a login, or has accepted it.
    Deciding,
    /// The closing line was sent.
    Over(Quit),
}

impl<D: Dialect> Front for LineFront<D> {
    fn greet(&mut self, out: &mut SecretBuf) {
        self.dialect.greet(out);
    }

    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Step {
        loop {
            let next = match std::mem::take(&mut self.state) {
                LineState::Command => self.read_command(input, out),
                LineState::Response(exchange) => self.read_response(exchange, input, out),
                LineState::Refused(line, budget) => self.discard_line(line, budget, input, out),
                LineState::Data(missing) => self.discard_data(missing, input),
                LineState::Tls => {
                    // Asked again before the handshake: what came in the clear stays unread.
                    input.clear();
                    self.wait_in(LineState::Tls, Step::StartTls)
                }
                LineState::Deciding => self.wait_in(LineState::Deciding, Step::NeedMore),
                LineState::Over(quit) => self.wait_in(LineState::Over(quit), Step::Quit(quit)),
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
        self.channel.tls = true;
        self.state = LineState::Command;
        self.buffer = LineBuffer::default();
        self.dialect.reset();
    }

    fn refused(&mut self, reply: &Reply, out: &mut SecretBuf) {
        write_line(out, &[D::refusal(reply, &self.session).as_bytes()]);
        self.state = LineState::Command;
    }

    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf) {
        write_line(out, &[D::success(welcome).as_bytes()]);
        self.state = LineState::Deciding;
    }

    fn bye(&mut self, reply: &Reply, out: &mut SecretBuf) {
        write_line(out, &[D::closing_line(reply, &self.session).as_bytes()]);
    }

    fn client_id(&self) -> Option<&ClientId> {
        None
    }

    fn take_local_refusal(&mut self) -> Option<Refusal> {
        self.local_refusals = self.local_refusals.checked_sub(1)?;
        Some(Refusal::TlsRequired)
    }
}

impl<D: Dialect> LineFront<D> {
    pub(super) fn new(dialect: D, settings: FrontSettings<'_>) -> Self {
        Self {
            dialect,
            session: settings.session.into(),
            channel: Channel { tls: settings.tls, starttls: settings.starttls },
            bad_commands_left: settings.bad_commands,
            state: LineState::Command,
            buffer: LineBuffer::default(),
            local_refusals: 0,
        }
    }

    /// How many bytes are kept between calls, besides what the dialect keeps.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.buffer.bytes().len()
    }

    fn read_command(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        let mut found = self.buffer.take_line(input, D::LINE);
        if found == Scan::Spoiled(Invalid::TooLong) && is_auth(self.buffer.bytes()) {
            found = self.buffer.take_line(input, sasl::LINE);
        }
        if found == Scan::Incomplete {
            return Some(Step::NeedMore);
        }
        let command = std::mem::take(&mut self.buffer);
        if is_http(command.bytes()) {
            return Some(self.close(LineProblem::Http, out));
        }
        if let Scan::Spoiled(why) = found {
            let too_long = if is_auth(command.bytes()) { LineProblem::ResponseTooLong } else { LineProblem::TooLong };
            return self.refuse_invalid(why, too_long, command.line(), out);
        }
        match self.dialect.command(command.line(), self.channel, out) {
            Ok(LineAction::Done) => None,
            Ok(LineAction::StartTls) => self.wait_in(LineState::Tls, Step::StartTls),
            Ok(LineAction::Quit) => self.wait_in(LineState::Over(Quit::Logout), Step::Quit(Quit::Logout)),
            Ok(LineAction::Attempt(credentials)) => self.attempt(credentials),
            Ok(LineAction::Discard(_, size)) if size > MAX_DISCARDED => Some(self.close(LineProblem::TooMuchData, out)),
            Ok(LineAction::Discard(problem, size)) => {
                let denied = self.deny(problem, out);
                if denied.is_none() {
                    self.state = LineState::Data(size);
                }
                denied
            }
            Ok(LineAction::Authenticate(mechanism, initial)) => {
                let exchange = Exchange::new(mechanism);
                let progress = match initial {
                    Some(response) => exchange.initial_response(response),
                    None => Ok(ExchangeStep::Continue(exchange)),
                };
                self.advance_exchange(progress, out)
            }
            Err(problem) => {
                self.local_refusals = self.local_refusals.saturating_add(u32::from(problem == LineProblem::TlsFirst));
                self.deny(problem, out)
            }
        }
    }

    fn read_response(&mut self, exchange: Exchange, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        let found = self.buffer.take_line(input, sasl::LINE);
        if found == Scan::Incomplete {
            return self.wait_in(LineState::Response(exchange), Step::NeedMore);
        }
        let response = std::mem::take(&mut self.buffer);
        match found {
            Scan::Spoiled(why) => self.refuse_invalid(why, LineProblem::ResponseTooLong, response.line(), out),
            Scan::Line | Scan::Incomplete => self.advance_exchange(exchange.respond(response.line()), out),
        }
    }

    fn advance_exchange(&mut self, progress: Result<ExchangeStep, SaslError>, out: &mut SecretBuf) -> Option<Step> {
        match progress {
            Ok(ExchangeStep::Done(credentials)) => self.attempt(credentials),
            Ok(ExchangeStep::Continue(exchange)) => {
                write_line(out, &[D::CHALLENGE.as_bytes(), exchange.challenge().as_bytes()]);
                self.state = LineState::Response(exchange);
                None
            }
            Err(error) => self.deny(LineProblem::Response(error), out),
        }
    }

    fn attempt(&mut self, credentials: Credentials) -> Option<Step> {
        self.wait_in(LineState::Deciding, Step::Attempt(credentials))
    }

    /// Refuses a line at its first invalid byte, because a client that ends lines with a bare LF never sends
    /// the end. What follows up to the CRLF is discarded.
    fn refuse_invalid(
        &mut self,
        why: Invalid,
        too_long: LineProblem,
        line: &[u8],
        out: &mut SecretBuf,
    ) -> Option<Step> {
        let problem = match why {
            Invalid::TooLong => too_long,
            Invalid::BareLf | Invalid::BareCr => LineProblem::LineEnd,
            Invalid::Nul => LineProblem::Nul,
        };
        let denied = self.deny(problem, out);
        if denied.is_none() {
            self.state = LineState::Refused(Discard::behind(line), MAX_DISCARDED);
        }
        denied
    }

    fn discard_line(
        &mut self,
        mut line: Discard,
        budget: usize,
        input: &mut SecretBuf,
        out: &mut SecretBuf,
    ) -> Option<Step> {
        let (passed, ended) = line.discard(input, budget);
        match budget - passed {
            _ if ended => None,
            0 => Some(self.close(LineProblem::TooMany, out)),
            left => self.wait_in(LineState::Refused(line, left), Step::NeedMore),
        }
    }

    fn discard_data(&mut self, missing: usize, input: &mut SecretBuf) -> Option<Step> {
        let taken = missing.min(input.len());
        input.consume(taken);
        match missing - taken {
            0 => None,
            left => self.wait_in(LineState::Data(left), Step::NeedMore),
        }
    }

    /// Replies to a bad command; closes the connection after the last one.
    fn deny(&mut self, problem: LineProblem, out: &mut SecretBuf) -> Option<Step> {
        self.bad_commands_left = self.bad_commands_left.saturating_sub(1);
        if self.bad_commands_left == 0 {
            return Some(self.close(LineProblem::TooMany, out));
        }
        write_line(out, &[D::denial(problem).as_bytes()]);
        None
    }

    fn close(&mut self, problem: LineProblem, out: &mut SecretBuf) -> Step {
        write_line(out, &[D::denial(problem).as_bytes()]);
        self.state = LineState::Over(Quit::ProtocolError);
        Step::Quit(Quit::ProtocolError)
    }

    fn wait_in(&mut self, state: LineState, step: Step) -> Option<Step> {
        self.state = state;
        Some(step)
    }
}

fn is_auth(command: &[u8]) -> bool {
    first_word(command).0.eq_ignore_ascii_case(b"AUTH")
}
