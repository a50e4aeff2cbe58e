//! The client half of every protocol: commands from bytes, with lines, literals and limits.
//!
//! Reads commands, drives authentication exchanges (RFC 4422), counts bad commands and discards what is refused.
//! What commands mean, and the form of replies, is the [`Dialect`]'s. Never asks for a secret in the clear and
//! never repeats client input.
//!
//! Every command gets one reply and is consumed completely, valid or not, literals included, so that data is never
//! read as a command. When [`Step::NeedMore`] is returned the input is empty: at most one command of
//! [`Dialect::COMMAND`] bytes is kept between calls.

use std::sync::Arc;

use super::bearer::TokenHints;
use super::dialect::{Action, Channel, Dialect, Response};
use super::problem::Problem;
use super::sasl::{Exchange, ExchangeStep, FailedExchange, Mechanism, MechanismSet};
use super::transcript::{FrontScribe, Transcript};
use super::wire::{Discard, Invalid, LineBuffer, Literal, Scan, is_http};
use super::{ClientGreeting, ClientId, Credentials, Front, FrontSettings, OUTPUT, Quit, Step, Welcome};
use crate::base::secret::SecretBuf;
use crate::outcome::{Refusal, Reply, TokenChallenge};

/// How much of one refused command is discarded before the connection is closed.
const MAX_DISCARDED: usize = 65_536;

/// The dialogue with one client.
pub(super) struct Engine<D> {
    dialect: D,
    session: Box<str>,
    channel: Channel,
    /// How many bad commands are still answered.
    bad_commands_left: u32,
    state: State,
    /// What has arrived of the current command or response.
    buffer: LineBuffer,
    /// Bytes of a literal that are to come before its line goes on.
    missing: usize,
    /// Logins in the clear that were refused here and not yet reported to the session.
    local_refusals: u32,
    /// What a client without a good token hears.
    hints: Option<Arc<TokenHints>>,
    /// Records the dialogue, if the session is traced.
    scribe: Option<Box<FrontScribe>>,
}

#[derive(Debug, Default)]
enum State {
    /// In a command.
    #[default]
    Command,
    /// In a response of the client.
    Response(Awaited),
    /// In what is left of a refused command.
    Discarding(Discarded),
    /// The session is starting TLS.
    Tls,
    /// TLS is established.
    Secured,
    /// The session is deciding about a login, or has accepted it; the mechanism, if it reports refusals by a challenge.
    Deciding(Option<&'static Mechanism>),
    /// The closing line was sent.
    Over(Quit),
}

/// What a response belongs to.
#[derive(Debug)]
enum Awaited {
    /// An exchange.
    Exchange(Exchange),
    /// The challenge that reported a refusal: whatever it is, this answer follows.
    Refusal(Answer),
}

impl Awaited {
    /// The reply to a response that cannot be used.
    fn answer(self, problem: Problem) -> Answer {
        match self {
            Self::Exchange(_) => Answer::Problem(problem),
            Self::Refusal(answer) => answer,
        }
    }
}

/// A reply that may have to wait for a command's end.
#[derive(Debug)]
enum Answer {
    /// It is a bad command.
    Problem(Problem),
    /// It ends a refused login.
    Refusal(Reply),
}

/// What is left of a refused command on the wire.
#[derive(Debug)]
struct Discarded {
    /// The rest of the line behind the literal; `None`: nothing belongs to it but the bytes.
    line: Option<Discard>,
    /// Bytes of a literal, or of data, before the line goes on.
    literal: usize,
    /// How much more may be discarded.
    budget: usize,
    /// The reply, if it has to wait for the command's end.
    answer: Option<Answer>,
}

impl<D: Dialect> Front for Engine<D> {
    fn transcribe(&mut self, transcript: Transcript) {
        self.scribe = FrontScribe::new(transcript);
    }

    fn greet(&mut self, out: &mut SecretBuf) {
        let before = out.len();
        self.dialect.greet(self.channel, out);
        self.record_replies(out, before);
    }

    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Step {
        loop {
            let before = out.len();
            let next = match std::mem::take(&mut self.state) {
                State::Command => self.read_command(input, out),
                State::Response(awaited) => self.read_response(awaited, input, out),
                State::Discarding(discarded) => self.discard(discarded, input, out),
                State::Tls => {
                    // Asked again before the handshake: what came in the clear stays unread.
                    input.clear();
                    self.wait_in(State::Tls, Step::StartTls)
                }
                State::Secured => {
                    self.dialect.secured(self.channel, out);
                    None
                }
                State::Deciding(mechanism) => self.wait_in(State::Deciding(mechanism), Step::NeedMore),
                State::Over(quit) => self.wait_in(State::Over(quit), Step::Quit(quit)),
            };
            self.record_replies(out, before);
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
        self.state = State::Secured;
        self.buffer = LineBuffer::default();
        self.missing = 0;
        self.dialect.tls_started();
    }

    fn certificate_verified(&mut self) {
        self.channel.mechanisms = self.channel.mechanisms.or(MechanismSet::EXTERNAL);
    }

    fn refused(&mut self, reply: &Reply, out: &mut SecretBuf) {
        let before = out.len();
        let mechanism = if let State::Deciding(mechanism) = self.state { mechanism } else { None };
        let error = reply.token_challenge();
        if !self.report(mechanism.zip(error), || Answer::Refusal(reply.clone()), out) {
            self.dialect.refused(reply, &self.session, out);
            self.state = State::Command;
        }
        if let Some(scribe) = &mut self.scribe {
            scribe.expect(reply);
        }
        self.record_replies(out, before);
    }

    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf) {
        let before = out.len();
        self.dialect.accepted(welcome, out);
        self.state = State::Deciding(None);
        if let Some(scribe) = &mut self.scribe {
            scribe.expect_acceptance();
        }
        self.record_replies(out, before);
    }

    fn bye(&mut self, reply: &Reply, out: &mut SecretBuf) {
        let before = out.len();
        if let State::Response(Awaited::Refusal(answer)) = std::mem::take(&mut self.state) {
            match answer {
                Answer::Problem(problem) => self.dialect.deny(problem, out),
                Answer::Refusal(refusal) => self.dialect.refused(&refusal, &self.session, out),
            }
        }
        self.dialect.bye(reply, &self.session, out);
        if let Some(scribe) = &mut self.scribe {
            scribe.expect(reply);
        }
        self.record_replies(out, before);
    }

    fn client_id(&self) -> Option<&ClientId> {
        self.dialect.client_id()
    }

    fn greeting(&self) -> Option<&ClientGreeting> {
        self.dialect.greeting()
    }

    fn take_local_refusal(&mut self) -> Option<Refusal> {
        self.local_refusals = self.local_refusals.checked_sub(1)?;
        Some(Refusal::TlsRequired)
    }
}

impl<D: Dialect> Engine<D> {
    pub(super) fn new(dialect: D, settings: FrontSettings<'_>) -> Self {
        Self {
            dialect,
            session: settings.session.into(),
            channel: Channel { tls: settings.tls, starttls: settings.starttls, mechanisms: settings.sasl.mechanisms },
            bad_commands_left: settings.bad_commands,
            state: State::Command,
            buffer: LineBuffer::default(),
            missing: 0,
            local_refusals: 0,
            hints: settings.sasl.hints.cloned(),
            scribe: None,
        }
    }

    /// Records what was written for the client behind the first `before` bytes.
    fn record_replies(&mut self, out: &SecretBuf, before: usize) {
        if let Some(scribe) = &mut self.scribe {
            scribe.replies(out.as_slice().get(before..).unwrap_or_default());
        }
    }

    /// How many bytes are kept between calls, besides what the dialect keeps.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.buffer.bytes().len()
    }

    #[cfg(test)]
    pub(super) const fn dialect(&self) -> &D {
        &self.dialect
    }

    fn read_command(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        if !self.has_literal(input) {
            return Some(Step::NeedMore);
        }
        let before = self.before_line();
        let mut found = self.buffer.take_line(input, D::LINE.min(D::COMMAND.saturating_sub(before)));
        if found == Scan::Spoiled(Invalid::TooLong)
            && let Some(longest) = D::longer_line(self.buffer.bytes())
        {
            found = self.buffer.take_line(input, longest.saturating_sub(before));
        }
        if found == Scan::Incomplete {
            return Some(Step::NeedMore);
        }
        let command = std::mem::take(&mut self.buffer);
        if let Some(scribe) = &mut self.scribe
            && (found != Scan::Line || is_http(command.bytes()))
        {
            scribe.unreadable(&command);
        }
        if is_http(command.bytes()) {
            return Some(self.close(Problem::Http, out));
        }
        self.dialect.begin(command.bytes());
        if let Scan::Spoiled(why) = found {
            let response = D::is_authentication(command.bytes());
            let too_long = if response { Problem::ResponseTooLong } else { Problem::LineTooLong };
            return self.refuse_invalid(Answer::Problem(Problem::of_line(why, too_long)), command.line(), out);
        }
        let result = self.dialect.command(&command, self.channel, out);
        if let Some(scribe) = &mut self.scribe {
            scribe.command(&command, &result);
        }
        match result {
            Ok(Action::Done) => None,
            Ok(Action::StartTls) => self.wait_in(State::Tls, Step::StartTls),
            Ok(Action::Quit) => self.wait_in(State::Over(Quit::Logout), Step::Quit(Quit::Logout)),
            Ok(Action::Authenticate(begun)) => self.advance_exchange(begun, out),
            Ok(Action::Attempt(credentials)) => self.attempt(credentials, None),
            Ok(Action::Literal(literal)) => match self.expect(literal, command, D::COMMAND, out) {
                Ok(()) => None,
                Err(command) => self.refuse(Answer::Problem(Problem::ArgumentTooLong), command.line(), out),
            },
            Ok(Action::Discard(_, size)) if size > MAX_DISCARDED => Some(self.close(Problem::TooMuchData, out)),
            Ok(Action::Discard(problem, literal)) => {
                let denied = self.deny(problem, out);
                if denied.is_none() {
                    self.state = State::Discarding(Discarded { line: None, literal, budget: 0, answer: None });
                }
                denied
            }
            Err(problem) => {
                self.local_refusals = self.local_refusals.saturating_add(u32::from(problem == Problem::TlsFirst));
                self.refuse(Answer::Problem(problem), command.line(), out)
            }
        }
    }

    fn read_response(&mut self, awaited: Awaited, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        if !self.has_literal(input) {
            return self.wait_in(State::Response(awaited), Step::NeedMore);
        }
        let room = D::RESPONSE.saturating_sub(self.before_line());
        let why = match self.buffer.take_line(input, room) {
            Scan::Incomplete => return self.wait_in(State::Response(awaited), Step::NeedMore),
            Scan::Line => None,
            Scan::Spoiled(why) => Some(why),
        };
        let line = std::mem::take(&mut self.buffer);
        if let Some(scribe) = &mut self.scribe {
            scribe.response(&line);
        }
        if D::STRING_RESPONSES && matches!(awaited, Awaited::Exchange(_)) && is_http(line.bytes()) {
            return Some(self.close(Problem::Http, out));
        }
        if let Some(why) = why {
            let answer = awaited.answer(Problem::of_line(why, Problem::ResponseTooLong));
            return self.refuse_invalid(answer, line.line(), out);
        }
        let response = match (D::response(&line), awaited) {
            (Ok(Response::Literal(literal)), awaited) => {
                return match self.expect(literal, line, D::RESPONSE, out) {
                    Ok(()) => {
                        self.state = State::Response(awaited);
                        None
                    }
                    Err(line) => self.refuse(awaited.answer(Problem::ArgumentTooLong), line.line(), out),
                };
            }
            (Err(problem), awaited) => return self.refuse(awaited.answer(problem), line.line(), out),
            (Ok(_), Awaited::Refusal(answer)) => return self.answer(answer, out),
            // Base64 has no blanks: one at the end is no part of it.
            (Ok(Response::Line), Awaited::Exchange(exchange)) => exchange.respond(line.line().trim_ascii_end()),
            (Ok(Response::Text(text)), Awaited::Exchange(exchange)) => exchange.respond(text.expose()),
        };
        self.advance_exchange(response, out)
    }

    fn advance_exchange(
        &mut self,
        progress: Result<ExchangeStep, FailedExchange>,
        out: &mut SecretBuf,
    ) -> Option<Step> {
        match progress {
            Ok(ExchangeStep::Done(credentials, mechanism)) => {
                self.attempt(credentials, mechanism.reports_refusals().then_some(mechanism))
            }
            Ok(ExchangeStep::Continue(exchange)) => {
                D::challenge(exchange.challenge(), out);
                self.state = State::Response(Awaited::Exchange(exchange));
                None
            }
            Err(FailedExchange { error, reported_by }) => {
                let report = reported_by.map(|mechanism| (mechanism, TokenChallenge::InvalidRequest));
                if self.report(report, || Answer::Problem(Problem::Response(error)), out) {
                    return None;
                }
                self.deny(Problem::Response(error), out)
            }
        }
    }

    fn attempt(&mut self, credentials: Credentials, mechanism: Option<&'static Mechanism>) -> Option<Step> {
        self.wait_in(State::Deciding(mechanism), Step::Attempt(credentials))
    }

    /// Reports an error of a token by a challenge, whose response this answer follows. Returns whether it did.
    fn report(
        &mut self,
        error: Option<(&'static Mechanism, TokenChallenge)>,
        answer: impl FnOnce() -> Answer,
        out: &mut SecretBuf,
    ) -> bool {
        let hints = self.hints.clone().unwrap_or_default();
        let challenge = error.and_then(|(mechanism, error)| mechanism.refusal_challenge(error, &hints));
        let Some(challenge) = challenge else { return false };
        D::challenge(&challenge, out);
        self.state = State::Response(Awaited::Refusal(answer()));
        true
    }

    /// Whether no more bytes of a literal are to come.
    fn has_literal(&mut self, input: &mut SecretBuf) -> bool {
        if self.missing > 0 {
            self.missing = self.buffer.take_literal(input, self.missing);
        }
        self.missing == 0
    }

    /// How many bytes of the command stand before the current line.
    fn before_line(&self) -> usize {
        self.buffer.bytes().len() - self.buffer.line().len()
    }

    /// Goes on reading `message` behind a literal; gives it back if that would be more than `limit` bytes.
    fn expect(
        &mut self,
        literal: Literal,
        message: LineBuffer,
        limit: usize,
        out: &mut SecretBuf,
    ) -> Result<(), LineBuffer> {
        if message.bytes().len().saturating_add(literal.size) > limit {
            return Err(message);
        }
        if waits::<D>(&literal) {
            D::request_literal(out);
        }
        self.buffer = message;
        self.missing = literal.size;
        // Starts the next line, for an empty literal as well.
        self.buffer.take_literal(&mut SecretBuf::new(), 0);
        Ok(())
    }

    /// Refuses a command at the end of `line`. A synchronizing literal is answered with the refusal; a
    /// non-synchronizing one has to be read first (RFC 7888 section 4).
    fn refuse(&mut self, answer: Answer, line: &[u8], out: &mut SecretBuf) -> Option<Step> {
        match Literal::announced_by(line).filter(|literal| D::LITERALS && !waits::<D>(literal)) {
            Some(literal) => self.discard_literal(literal, MAX_DISCARDED, Some(answer), out),
            None => self.answer(answer, out),
        }
    }

    /// Refuses a line at its first invalid byte, because a client that ends lines with a bare LF never sends
    /// the end. What follows up to the CRLF is discarded.
    fn refuse_invalid(&mut self, answer: Answer, line: &[u8], out: &mut SecretBuf) -> Option<Step> {
        let denied = self.answer(answer, out);
        if denied.is_none() {
            let line = Some(Discard::behind(line));
            self.state = State::Discarding(Discarded { line, literal: 0, budget: MAX_DISCARDED, answer: None });
        }
        denied
    }

    fn discard(&mut self, mut discarded: Discarded, input: &mut SecretBuf, out: &mut SecretBuf) -> Option<Step> {
        let taken = discarded.literal.min(input.len());
        if let Some(scribe) = &mut self.scribe {
            scribe.discarded(taken);
        }
        input.consume(taken);
        discarded.literal -= taken;
        if discarded.literal > 0 {
            return self.wait_in(State::Discarding(discarded), Step::NeedMore);
        }
        let line = discarded.line.as_mut()?;
        let (passed, ended) = line.discard(input, discarded.budget);
        discarded.budget -= passed;
        if let Some(scribe) = &mut self.scribe {
            scribe.discarded(passed);
        }
        match line.announced().filter(|literal| D::LITERALS && !waits::<D>(literal)) {
            _ if !ended && discarded.budget == 0 => {
                Some(self.close(if D::LITERALS { Problem::CommandTooLong } else { Problem::TooMany }, out))
            }
            _ if !ended => self.wait_in(State::Discarding(discarded), Step::NeedMore),
            Some(literal) => self.discard_literal(literal, discarded.budget, discarded.answer, out),
            None => discarded.answer.and_then(|answer| self.answer(answer, out)),
        }
    }

    /// Discards a non-synchronizing literal, unless it is too large.
    fn discard_literal(
        &mut self,
        literal: Literal,
        budget: usize,
        answer: Option<Answer>,
        out: &mut SecretBuf,
    ) -> Option<Step> {
        let Some(budget) = budget.checked_sub(literal.size) else {
            return Some(self.close(Problem::LiteralTooLarge, out));
        };
        let line = Some(Discard::default());
        self.state = State::Discarding(Discarded { line, literal: literal.size, budget, answer });
        None
    }

    fn answer(&mut self, answer: Answer, out: &mut SecretBuf) -> Option<Step> {
        match answer {
            Answer::Problem(problem) => self.deny(problem, out),
            Answer::Refusal(reply) => {
                self.dialect.refused(&reply, &self.session, out);
                None
            }
        }
    }

    /// Replies to a bad command; closes the connection after the last one.
    fn deny(&mut self, problem: Problem, out: &mut SecretBuf) -> Option<Step> {
        self.bad_commands_left = self.bad_commands_left.saturating_sub(1);
        let last = self.bad_commands_left == 0;
        if !last || D::LITERALS {
            self.dialect.deny(problem, out);
        }
        last.then(|| self.close(Problem::TooMany, out))
    }

    fn close(&mut self, problem: Problem, out: &mut SecretBuf) -> Step {
        self.dialect.close(problem, out);
        self.state = State::Over(Quit::ProtocolError);
        Step::Quit(Quit::ProtocolError)
    }

    fn wait_in(&mut self, state: State, step: Step) -> Option<Step> {
        self.state = state;
        Some(step)
    }
}

/// Whether the client waits for a request before it sends this literal.
fn waits<D: Dialect>(literal: &Literal) -> bool {
    D::SYNCHRONIZING && literal.synchronizing
}
