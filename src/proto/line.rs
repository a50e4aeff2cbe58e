//! The client half of the protocols whose commands are single lines: POP3 and submission.
//!
//! Gathers lines, leads authentication exchanges (RFC 4954, RFC 5034), counts bad commands and passes
//! over what is refused. What a command means and every word of an answer is the [`Dialect`]'s. Never
//! asks for a secret in the clear and never repeats a byte of the client's. When [`Step::NeedMore`] is
//! returned the input is empty: what is kept between calls is one line.

use std::borrow::Cow;

use super::sasl::{self, Exchange, Mechanism, Progress, SaslError};
use super::wire::{Found, Gathering, Skip, Spoiled, first_word, is_http, write_line};
use super::{ClientId, Credentials, Front, FrontSettings, OUTPUT, Quit, Step, Welcome, reference};
use crate::outcome::Refusal;
use crate::secret::SecretBuf;

/// How much of one refused line is read and thrown away before the client is given up.
const SWALLOWED: usize = 65_536;

/// What a protocol of lines says and understands. Answers are whole lines without CRLF.
pub(super) trait Dialect: Send + Sync {
    /// The longest command, without CRLF. AUTH may be longer: it can hold an initial response.
    const LINE: usize;
    /// What stands before a challenge.
    const CHALLENGE: &str;

    /// Writes the greeting.
    fn greet(&self, out: &mut SecretBuf);

    /// Carries out a command and writes its answer, unless the answer is to come.
    fn obey<'a>(&mut self, command: &'a [u8], channel: Channel, out: &mut SecretBuf) -> Result<Act<'a>, Problem>;

    /// Everything that the client said is forgotten.
    fn forget(&mut self);

    /// The answer to what cannot be carried out.
    fn denial(problem: Problem) -> &'static str;

    /// The answer to an attempt that is refused. The session's id follows it where that helps.
    fn refusal(refusal: &Refusal) -> Cow<'static, str>;

    /// The answer to an attempt that is accepted.
    fn success(welcome: &Welcome) -> String;

    /// The parting line.
    fn farewell(why: &Refusal) -> String;
}

/// How the client is connected.
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

/// What a command leads to.
#[derive(Debug)]
pub(super) enum Act<'a> {
    /// It is answered.
    Done,
    /// It is answered, and TLS is to be started.
    StartTls,
    /// It is answered, and the client leaves.
    Quit,
    /// An exchange of this mechanism, with its initial response if there is one.
    Authenticate(Mechanism, Option<&'a [u8]>),
    /// A login with everything it needs.
    Attempt(Credentials),
    /// It is refused, and this many bytes behind it belong to it: they are no commands.
    Discard(Problem, usize),
}

impl<'a> Act<'a> {
    /// What the arguments of an AUTH lead to.
    pub(super) fn authenticate(arguments: &'a [u8], channel: Channel) -> Result<Self, Problem> {
        // Before the arguments are looked at: there may be a password among them.
        if !channel.tls {
            return Err(Problem::TlsFirst);
        }
        let (mechanism, response) = first_word(arguments);
        let alone = mechanism.len() == arguments.len();
        if mechanism.is_empty() || (!alone && response.is_empty()) || response.contains(&b' ') {
            return Err(Problem::Syntax);
        }
        let mechanism = Mechanism::by_name(mechanism).ok_or(Problem::Mechanism)?;
        Ok(Self::Authenticate(mechanism, (!alone).then_some(response)))
    }
}

/// Why a command is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    /// No such command.
    Unknown,
    /// Its arguments are not as it wants them.
    Syntax,
    /// It is for after the login.
    LoginFirst,
    /// It wants another command before it (USER, EHLO).
    Order,
    /// A login in the clear.
    TlsFirst,
    /// TLS cannot be started here, or not again.
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
    /// One bad command too many; the last answer.
    TooMany,
    /// More data behind a refused command than is read and thrown away; the last answer.
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
    state: State,
    /// What has arrived of the current line.
    gathered: Gathering,
    /// Logins in the clear, refused here and not yet told to the session.
    refused_unasked: u32,
}

#[derive(Debug, Default)]
enum State {
    /// In a command.
    #[default]
    Command,
    /// In a response of an authentication exchange.
    Response(Exchange),
    /// In what is left of a refused line, of which so much may be thrown away.
    Refused(Skip, usize),
    /// In the data behind a refused command, of which so many bytes are to come.
    Data(usize),
    /// The session is starting TLS.
    Tls,
    /// The session is deciding about a login, or has accepted it.
    Deciding,
    /// Said goodbye.
    Over(Quit),
}

impl<D: Dialect> Front for LineFront<D> {
    fn greet(&mut self, out: &mut SecretBuf) {
        self.dialect.greet(out);
    }

    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Step {
        loop {
            let next = match std::mem::take(&mut self.state) {
                State::Command => self.read_command(input, out),
                State::Response(exchange) => self.read_response(exchange, input, out),
                State::Refused(line, budget) => self.pass_over(line, budget, input, out),
                State::Data(missing) => self.discard(missing, input),
                State::Tls => {
                    // Asked again before the handshake: what came in the clear stays unread.
                    input.clear();
                    self.wait_in(State::Tls, Step::StartTls)
                }
                State::Deciding => self.wait_in(State::Deciding, Step::NeedMore),
                State::Over(quit) => self.wait_in(State::Over(quit), Step::Quit(quit)),
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
        self.state = State::Command;
        self.gathered = Gathering::default();
        self.dialect.forget();
    }

    fn refused(&mut self, refusal: &Refusal, out: &mut SecretBuf) {
        write_line(out, &[D::refusal(refusal).as_bytes(), reference(refusal, &self.session).as_bytes()]);
        self.state = State::Command;
    }

    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf) {
        write_line(out, &[D::success(welcome).as_bytes()]);
        self.state = State::Deciding;
    }

    fn bye(&mut self, why: &Refusal, out: &mut SecretBuf) {
        write_line(out, &[D::farewell(why).as_bytes(), reference(why, &self.session).as_bytes()]);
    }

    fn client_id(&self) -> Option<&ClientId> {
        None
    }

    fn refused_unasked(&mut self) -> Option<Refusal> {
        self.refused_unasked = self.refused_unasked.checked_sub(1)?;
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
            state: State::Command,
            gathered: Gathering::default(),
            refused_unasked: 0,
        }
    }

    /// How many bytes are kept between calls, besides what the dialect keeps.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.gathered.bytes().len()
    }

    fn read_command(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        let mut found = self.gathered.take_line(input, D::LINE);
        if found == Found::Spoiled(Spoiled::TooLong) && is_auth(self.gathered.bytes()) {
            found = self.gathered.take_line(input, sasl::LINE);
        }
        if found == Found::Part {
            return Some(Step::NeedMore);
        }
        let command = std::mem::take(&mut self.gathered);
        if is_http(command.bytes()) {
            return Some(self.give_up(Problem::Http, out));
        }
        if let Found::Spoiled(why) = found {
            let too_long = if is_auth(command.bytes()) { Problem::ResponseTooLong } else { Problem::TooLong };
            return self.refuse_spoiled(why, too_long, command.line(), out);
        }
        match self.dialect.obey(command.line(), self.channel, out) {
            Ok(Act::Done) => None,
            Ok(Act::StartTls) => self.wait_in(State::Tls, Step::StartTls),
            Ok(Act::Quit) => self.wait_in(State::Over(Quit::Logout), Step::Quit(Quit::Logout)),
            Ok(Act::Attempt(credentials)) => self.attempt(credentials),
            Ok(Act::Discard(_, size)) if size > SWALLOWED => Some(self.give_up(Problem::TooMuchData, out)),
            Ok(Act::Discard(problem, size)) => {
                let denied = self.deny(problem, out);
                if denied.is_none() {
                    self.state = State::Data(size);
                }
                denied
            }
            Ok(Act::Authenticate(mechanism, initial)) => {
                let exchange = Exchange::new(mechanism);
                let progress = match initial {
                    Some(response) => exchange.initial_response(response),
                    None => Ok(Progress::Goes(exchange)),
                };
                self.go_on(progress, out)
            }
            Err(problem) => {
                self.refused_unasked = self.refused_unasked.saturating_add(u32::from(problem == Problem::TlsFirst));
                self.deny(problem, out)
            }
        }
    }

    fn read_response(&mut self, exchange: Exchange, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        let found = self.gathered.take_line(input, sasl::LINE);
        if found == Found::Part {
            return self.wait_in(State::Response(exchange), Step::NeedMore);
        }
        let response = std::mem::take(&mut self.gathered);
        match found {
            Found::Spoiled(why) => self.refuse_spoiled(why, Problem::ResponseTooLong, response.line(), out),
            Found::Line | Found::Part => self.go_on(exchange.respond(response.line()), out),
        }
    }

    fn go_on(&mut self, progress: Result<Progress, SaslError>, out: &mut SecretBuf) -> Option<Step> {
        match progress {
            Ok(Progress::Done(credentials)) => self.attempt(credentials),
            Ok(Progress::Goes(exchange)) => {
                write_line(out, &[D::CHALLENGE.as_bytes(), exchange.challenge().as_bytes()]);
                self.state = State::Response(exchange);
                None
            }
            Err(error) => self.deny(Problem::Response(error), out),
        }
    }

    fn attempt(&mut self, credentials: Credentials) -> Option<Step> {
        self.wait_in(State::Deciding, Step::Attempt(credentials))
    }

    /// Refuses a line at the byte that spoils it, without waiting for an end that a client which
    /// ends its lines with LF alone never sends. What follows up to the CRLF is no command.
    fn refuse_spoiled(&mut self, why: Spoiled, too_long: Problem, line: &[u8], out: &mut SecretBuf) -> Option<Step> {
        let problem = match why {
            Spoiled::TooLong => too_long,
            Spoiled::BareLf | Spoiled::BareCr => Problem::LineEnd,
            Spoiled::Nul => Problem::Nul,
        };
        let denied = self.deny(problem, out);
        if denied.is_none() {
            self.state = State::Refused(Skip::behind(line), SWALLOWED);
        }
        denied
    }

    fn pass_over(&mut self, mut line: Skip, budget: usize, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        let (passed, ended) = line.pass(input, budget);
        match budget - passed {
            _ if ended => None,
            0 => Some(self.give_up(Problem::TooMany, out)),
            left => self.wait_in(State::Refused(line, left), Step::NeedMore),
        }
    }

    fn discard(&mut self, missing: usize, input: &mut SecretBuf) -> Option<Step> {
        let taken = missing.min(input.len());
        input.consume(taken);
        match missing - taken {
            0 => None,
            left => self.wait_in(State::Data(left), Step::NeedMore),
        }
    }

    /// Answers a bad command; the last one is told that it is.
    fn deny(&mut self, problem: Problem, out: &mut SecretBuf) -> Option<Step> {
        self.bad_commands_left = self.bad_commands_left.saturating_sub(1);
        if self.bad_commands_left == 0 {
            return Some(self.give_up(Problem::TooMany, out));
        }
        write_line(out, &[D::denial(problem).as_bytes()]);
        None
    }

    fn give_up(&mut self, problem: Problem, out: &mut SecretBuf) -> Step {
        write_line(out, &[D::denial(problem).as_bytes()]);
        self.state = State::Over(Quit::ProtocolError);
        Step::Quit(Quit::ProtocolError)
    }

    fn wait_in(&mut self, state: State, step: Step) -> Option<Step> {
        self.state = state;
        Some(step)
    }
}

fn is_auth(command: &[u8]) -> bool {
    first_word(command).0.eq_ignore_ascii_case(b"AUTH")
}
