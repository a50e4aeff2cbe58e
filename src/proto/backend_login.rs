//! The backend half of every protocol: from a backend's greeting to its reply to a login.
//!
//! Reads replies with their literals and limits, and decides what comes next: capabilities where they are needed,
//! STARTTLS where it is required, the client's address, the login (as the user, or as a service account for the
//! user), in the next way while the backend has not understood its form. What the replies mean, and how the
//! commands look, is the [`BackDialect`]'s.
//!
//! Nothing learned before TLS is used after it, and a backend that violates the protocol's order is a fault.

use core::time::Duration;
use std::collections::VecDeque;

use super::login_way::{LoginWay, is_about_credentials, is_about_form};
use super::masking::EchoGuard;
use super::sasl::{Account, ClientExchange, Mechanism};
use super::transcript::{BackScribe, Transcript};
use super::watch::CommandWatch;
use super::wire::{Invalid, LineBuffer, Literal, Scan, write_line};
use super::{Back, BackFault, BackSettings, BackStep, BackTls, Origin, Welcome};
use crate::base::secret::SecretBuf;
use crate::outcome::BackendReply;

/// Instead of a text that repeats the password.
const WITHHELD: &str = "(text withheld: it repeats the password)";

/// The reply that is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Greeting,
    /// The capabilities.
    Capabilities,
    /// The reply to STARTTLS.
    StartTls,
    /// None: the session is starting TLS.
    Tls,
    /// None: TLS is established and usher sends the next command.
    Secured,
    /// The reply to the client's address.
    Forward,
    /// The reply to the login, or its continuation request.
    Login,
    /// The reply to the command after the accepted login.
    Afterwards,
    /// None: the dialogue is over.
    Over,
}

/// The command that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextCommand {
    StartTls,
    Forward,
    Login,
}

/// What a reply leads to.
#[derive(Debug)]
pub(super) enum Transition {
    /// More replies of this phase.
    Stay,
    /// The phase is over: to the next command.
    Proceed,
    /// STARTTLS is accepted.
    StartTls,
    /// The login is accepted, and one more command was written.
    Afterwards,
    /// The login is over.
    Ready(Welcome),
    /// The login is over, and this reply belongs to the client.
    ReadyBefore(Welcome),
    /// The login is refused.
    Refused(BackendReply),
    /// The backend has not understood the form of the login, which says nothing about the account.
    NotUnderstood,
}

/// A protocol's commands to a backend, and what its replies mean.
pub(super) trait BackDialect: Send {
    /// The longest line, without CRLF, where the backend may still send `left` bytes for the reply.
    fn line_limit(left: usize) -> usize;

    /// The literal at the end of the current line that belongs to the reply.
    fn literal(_: &LineBuffer) -> Option<Literal> {
        None
    }

    /// How much of the limit a reply takes, of `left` bytes.
    fn counted(reply: &LineBuffer, _left: usize) -> usize {
        reply.bytes().len()
    }

    /// Handles one complete reply; the phase's transition.
    fn receive(
        &mut self,
        phase: Phase,
        reply: &LineBuffer,
        login: &mut LoginContext,
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault>;

    /// Whether the capabilities are still needed before this command.
    fn needs_capabilities(&self, next: NextCommand) -> bool;

    /// Requests the capabilities, unless they come without a request.
    fn request_capabilities(&mut self, out: &mut SecretBuf);

    /// How long the backend may be silent before capabilities that come without a request are requested.
    fn patience(&self) -> Option<Duration> {
        None
    }

    /// Requests them after all.
    fn request_after_silence(&mut self, _out: &mut SecretBuf) {}

    /// Writes STARTTLS.
    fn start_tls(&mut self, out: &mut SecretBuf) -> Result<(), BackFault>;

    /// Forgets what was learned before TLS.
    fn tls_started(&mut self);

    /// Writes the client's address.
    fn forward(&mut self, origin: &Origin, out: &mut SecretBuf) -> Result<(), BackFault>;

    /// The ways to log in that the backend offers, in order. A message goes with its command only if
    /// `initial_response` is set.
    fn ways(&self, account: &Account, initial_response: bool) -> VecDeque<LoginWay>;

    /// Writes the login in this way, or what can be sent of it at once.
    fn log_in(&mut self, way: LoginWay, login: &mut LoginContext, out: &mut SecretBuf) -> Result<(), BackFault>;

    /// As [`Back::names_client`].
    fn names_client(&self) -> bool {
        false
    }

    /// As [`Back::capabilities`].
    fn capabilities(&self, login_written: bool) -> Vec<String>;

    /// As [`Back::watch`].
    fn watch(&self) -> Option<CommandWatch> {
        None
    }
}

/// What a login has and may use.
pub(super) struct LoginContext {
    /// What to log in with.
    pub(super) account: Account,
    /// The exchange of a mechanism, once the login is written in that way.
    exchange: Option<ClientExchange>,
    /// How many bytes the backend may still send.
    bytes_left: usize,
}

impl LoginContext {
    /// Takes bytes off the limit.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), BackFault> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(BackFault::TooLarge)?;
        Ok(())
    }

    /// Writes the command of a mechanism behind its verb, with the message in base64 where the way has it there;
    /// `false`: the way has no mechanism.
    pub(super) fn write_mechanism(&mut self, way: LoginWay, verb: &[u8], out: &mut SecretBuf) -> bool {
        match way {
            LoginWay::InitialResponse(mechanism) => {
                for part in [verb, b" ", mechanism.name.as_bytes(), b" "] {
                    out.extend(part);
                }
                self.begin_with_initial(mechanism, out);
                out.extend(b"\r\n");
            }
            LoginWay::Exchange(mechanism) => {
                self.begin(mechanism);
                write_line(out, &[verb, b" ", mechanism.name.as_bytes()]);
            }
            LoginWay::Command => return false,
        }
        true
    }

    /// Starts an exchange without an initial response.
    pub(super) const fn begin(&mut self, mechanism: &'static Mechanism) {
        self.exchange = Some(ClientExchange::new(mechanism));
    }

    /// Starts an exchange and writes its initial response, in base64.
    pub(super) fn begin_with_initial(&mut self, mechanism: &'static Mechanism, out: &mut SecretBuf) {
        self.exchange = Some(ClientExchange::with_initial(mechanism, &self.account, out));
    }

    /// Writes the response to a challenge, in base64.
    pub(super) fn respond(&mut self, challenge: &[u8], out: &mut SecretBuf) -> Result<(), BackFault> {
        let exchange = self.exchange.as_mut().ok_or(BackFault::ProtocolViolation)?;
        exchange.respond(challenge.trim_ascii(), &self.account, out).ok_or(BackFault::ProtocolViolation)
    }

    /// Whether an exchange needs another challenge: no reply can be its success.
    pub(super) fn awaits_challenge(&self) -> bool {
        self.exchange.is_some_and(|exchange| exchange.awaits_challenge())
    }

    /// Whether an exchange has begun and nothing of the account was sent in it: no reply can be about the password.
    pub(super) fn has_sent_nothing(&self) -> bool {
        self.exchange.is_some_and(|exchange| exchange.has_sent_nothing())
    }

    /// What a refusal means in a protocol that has one word for a wrong password and for a command that is not
    /// understood. It is about the form if it has no response code and either nothing of the account was sent in
    /// this exchange or its text is about the form.
    pub(super) fn refused(&self, reply: BackendReply) -> Result<Transition, BackFault> {
        // Dovecot lists USER without having PLAIN, and says so with [AUTH] after PASS.
        if reply.text.trim_end_matches('.').eq_ignore_ascii_case("Unsupported authentication mechanism") {
            return Ok(Transition::NotUnderstood);
        }
        let has_reported = self.exchange.is_some_and(|exchange| exchange.reported().is_some());
        if has_reported || !reply.code.is_empty() || !self.has_sent_nothing() && !is_about_form(&reply.text) {
            return Ok(Transition::Refused(reply));
        }
        if self.is_command_only() { Ok(Transition::NotUnderstood) } else { Err(BackFault::Bad) }
    }

    /// Whether a reply may be about the form of the command: no challenge was answered yet.
    pub(super) fn is_command_only(&self) -> bool {
        self.exchange.is_some_and(|exchange| exchange.is_command_only())
    }
}

/// The dialogue with one backend.
pub(super) struct BackendLogin<D> {
    dialect: D,
    login: LoginContext,
    /// The client to forward; `None` once it was sent.
    forward: Option<Origin>,
    /// STARTTLS is required and not done yet.
    in_the_clear: bool,
    phase: Phase,
    /// What has arrived of the current reply.
    buffer: LineBuffer,
    /// Bytes of a literal that are to come before its line goes on.
    missing: usize,
    login_written: bool,
    /// Whether a message may go with its command.
    initial_response: bool,
    /// The backend has not understood one that did.
    rejects_initial: bool,
    /// The way in use, and those that are left.
    way: Option<LoginWay>,
    ways: VecDeque<LoginWay>,
    /// Records the dialogue, if the session is traced.
    scribe: Option<Box<BackScribe>>,
}

impl<D: BackDialect> Back for BackendLogin<D> {
    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> BackStep {
        self.advance(input, out).unwrap_or_else(|fault| {
            self.phase = Phase::Over;
            BackStep::Fault(fault)
        })
    }

    fn tls_started(&mut self) {
        self.in_the_clear = false;
        self.phase = Phase::Secured;
        self.dialect.tls_started();
    }

    fn transcribe(&mut self, transcript: Transcript) {
        self.scribe = BackScribe::new(transcript);
    }

    fn login_written(&self) -> bool {
        self.login_written
    }

    fn patience(&self) -> Option<Duration> {
        let waits = self.phase == Phase::Capabilities && self.buffer.bytes().is_empty();
        self.dialect.patience().filter(|_| waits)
    }

    fn request_after_silence(&mut self, out: &mut SecretBuf) {
        let before = out.len();
        self.dialect.request_after_silence(out);
        self.record_command(out, before);
    }

    fn ignores_initial_response(&self) -> bool {
        self.rejects_initial || self.login.exchange.is_some_and(|exchange| exchange.was_repeated())
    }

    fn has_refused_nothing(&self) -> bool {
        self.rejects_initial && self.login.has_sent_nothing()
    }

    fn names_client(&self) -> bool {
        self.dialect.names_client()
    }

    fn capabilities(&self) -> Vec<String> {
        self.dialect.capabilities(self.login_written)
    }

    fn watch(&self) -> Option<CommandWatch> {
        self.dialect.watch()
    }
}

impl<D: BackDialect> BackendLogin<D> {
    pub(super) fn new(dialect: D, settings: BackSettings) -> Self {
        let BackSettings { tls, login, password, token, service, untagged_limit, forward, initial_response, .. } =
            settings;
        let account = Account { login, password, token, service };
        Self {
            dialect,
            login: LoginContext { account, exchange: None, bytes_left: untagged_limit },
            forward,
            in_the_clear: tls == BackTls::StartTls,
            phase: Phase::Greeting,
            buffer: LineBuffer::default(),
            missing: 0,
            login_written: false,
            initial_response,
            rejects_initial: false,
            way: None,
            ways: VecDeque::new(),
            scribe: None,
        }
    }

    fn advance(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Result<BackStep, BackFault> {
        if self.phase == Phase::Secured {
            self.proceed(out)?;
        }
        loop {
            let has_reply = self.has_reply(input);
            if has_reply != Ok(false) {
                self.record_reply();
            }
            if !has_reply? {
                return Ok(BackStep::NeedMore);
            }
            let reply = std::mem::take(&mut self.buffer);
            self.login.spend(D::counted(&reply, self.login.bytes_left))?;
            let before = out.len();
            let transition = self.dialect.receive(self.phase, &reply, &mut self.login, out)?;
            self.record_command(out, before);
            match transition {
                Transition::Stay => {}
                Transition::Proceed => self.proceed(out)?,
                Transition::Afterwards => self.phase = Phase::Afterwards,
                Transition::StartTls => {
                    self.phase = Phase::Tls;
                    return Ok(BackStep::StartTls);
                }
                Transition::Ready(welcome) => {
                    self.phase = Phase::Over;
                    return Ok(BackStep::Ready(welcome));
                }
                Transition::ReadyBefore(welcome) => {
                    self.phase = Phase::Over;
                    let behind = std::mem::take(input);
                    input.extend(reply.bytes());
                    input.extend(behind.as_slice());
                    return Ok(BackStep::Ready(welcome));
                }
                // Nothing was sent that could be wrong.
                Transition::Refused(reply) if self.login.has_sent_nothing() && is_about_credentials(&reply.code) => {
                    self.log_in(BackFault::Bad, out)?;
                }
                Transition::Refused(reply) => {
                    self.phase = Phase::Over;
                    let challenge = self.login.exchange.and_then(|exchange| exchange.reported());
                    let reply = BackendReply { challenge, ..self.without_secret(reply) };
                    return Ok(BackStep::Refused(reply));
                }
                Transition::NotUnderstood => {
                    self.rejects_initial |= matches!(self.way, Some(LoginWay::InitialResponse(_)));
                    self.log_in(BackFault::Bad, out)?;
                }
            }
        }
    }

    /// Moves bytes from `input` until a reply is complete, or returns that it is not.
    fn has_reply(&mut self, input: &mut SecretBuf) -> Result<bool, BackFault> {
        loop {
            if self.missing > 0 {
                self.missing = self.buffer.take_literal(input, self.missing);
                if self.missing > 0 {
                    return Ok(false);
                }
            }
            let before = self.buffer.bytes().len() - self.buffer.line().len();
            match self.buffer.take_line(input, D::line_limit(self.login.bytes_left.saturating_sub(before))) {
                Scan::Incomplete => return Ok(false),
                Scan::Line => {}
                Scan::Spoiled(Invalid::TooLong) => return Err(BackFault::TooLarge),
                // A line whose end is ambiguous must not reach a client.
                Scan::Spoiled(Invalid::BareLf | Invalid::BareCr | Invalid::Nul) => {
                    return Err(BackFault::ProtocolViolation);
                }
            }
            let Some(literal) = D::literal(&self.buffer) else { return Ok(true) };
            if self.buffer.bytes().len().saturating_add(literal.size) > self.login.bytes_left {
                return Err(BackFault::TooLarge);
            }
            self.missing = literal.size;
            // Starts the next line, for an empty literal as well.
            self.buffer.take_literal(&mut SecretBuf::new(), 0);
        }
    }

    /// Writes the next command: TLS first, then the client's address, then the login.
    fn proceed(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        let next = match (self.in_the_clear, &self.forward) {
            (true, _) => NextCommand::StartTls,
            (false, Some(_)) => NextCommand::Forward,
            (false, None) => NextCommand::Login,
        };
        let before = out.len();
        if self.dialect.needs_capabilities(next) {
            self.dialect.request_capabilities(out);
            self.phase = Phase::Capabilities;
        } else if self.in_the_clear {
            self.dialect.start_tls(out)?;
            self.phase = Phase::StartTls;
        } else if let Some(origin) = self.forward.take() {
            self.dialect.forward(&origin, out)?;
            self.phase = Phase::Forward;
        } else {
            self.ways = self.dialect.ways(&self.login.account, self.initial_response);
            return self.log_in(BackFault::NoMechanism, out);
        }
        self.record_command(out, before);
        Ok(())
    }

    /// Writes the login in the next way; `none_left` is the fault if no way is left.
    fn log_in(&mut self, none_left: BackFault, out: &mut SecretBuf) -> Result<(), BackFault> {
        let way = self.ways.pop_front().ok_or(none_left)?;
        self.way = Some(way);
        self.login.exchange = None;
        let before = out.len();
        self.dialect.log_in(way, &mut self.login, out)?;
        if let Some(scribe) = &self.scribe {
            scribe.login(written(out, before));
        }
        self.phase = Phase::Login;
        self.login_written = true;
        Ok(())
    }

    /// A refusal for the log and the client: some servers repeat the command that they have refused.
    fn without_secret(&self, reply: BackendReply) -> BackendReply {
        if EchoGuard::new(&self.login.account).finds_whole(reply.text.as_bytes()) {
            return BackendReply { text: WITHHELD.to_owned(), ..reply };
        }
        reply
    }

    /// Records what has arrived of a reply: all of it, or what makes it invalid.
    fn record_reply(&self) {
        if let Some(scribe) = &self.scribe {
            scribe.reply(self.buffer.bytes(), self.login_written.then_some(&self.login.account));
        }
    }

    /// Records what was written behind the first `before` bytes: a command, or from the login on a part of it.
    fn record_command(&self, out: &SecretBuf, before: usize) {
        if let Some(scribe) = &self.scribe {
            let written = written(out, before);
            if self.phase == Phase::Login { scribe.continuation(written) } else { scribe.command(written) }
        }
    }
}

/// What was written behind the first `before` bytes.
fn written(out: &SecretBuf, before: usize) -> &[u8] {
    out.as_slice().get(before..).unwrap_or_default()
}
