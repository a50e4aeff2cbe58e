//! What the command engine asks of a protocol: what its commands mean, and the form of its replies.

use super::problem::Problem;
use super::sasl::{self, Exchange, ExchangeStep, FailedExchange, MechanismSet};
use super::wire::{LineBuffer, Literal, first_word};
use super::{ClientGreeting, ClientId, Credentials, Welcome};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::Reply;

/// The commands of a protocol, and the form of its replies.
pub(super) trait Dialect: Send + Sync {
    /// The longest line of a command, without CRLF, unless [`Dialect::longer_line`] says otherwise.
    const LINE: usize;
    /// The longest command with its literals.
    const COMMAND: usize = Self::LINE;
    /// The longest response of an exchange, without CRLF.
    const RESPONSE: usize = sasl::LINE;
    /// Whether a line may announce a literal. If not, the closing line replaces the reply to the last bad command:
    /// a line besides would be taken for the reply to the next one.
    const LITERALS: bool = false;
    /// Whether a client waits for a request before it sends a literal `{n}`. If not, the literal follows in any case.
    const SYNCHRONIZING: bool = true;
    /// Whether a response is a string, so that an HTTP request is never one. Base64 alone may begin with a method.
    const STRING_RESPONSES: bool = false;

    /// Writes the greeting.
    fn greet(&self, channel: Channel, out: &mut SecretBuf);

    /// Notes how the reply to this command begins. It may be invalid or incomplete.
    fn begin(&mut self, _: &[u8]) {}

    /// Whether the command, as far as it has arrived, is an authentication.
    fn is_authentication(_: &[u8]) -> bool {
        false
    }

    /// Where a line of this command, as far as it has arrived, may be longer than [`Dialect::LINE`]: the longest
    /// command with this line. An authentication can hold an initial response.
    fn longer_line(command: &[u8]) -> Option<usize> {
        Self::is_authentication(command).then_some(sasl::LINE)
    }

    /// Executes a command as far as it has arrived, a complete line of it, and writes its reply unless that comes
    /// later.
    fn command(&mut self, command: &LineBuffer, channel: Channel, out: &mut SecretBuf) -> Result<Action, Problem>;

    /// The response in a complete line of an exchange.
    fn response(_: &LineBuffer) -> Result<Response, Problem> {
        Ok(Response::Line)
    }

    /// Writes a challenge, in base64.
    fn challenge(challenge: &str, out: &mut SecretBuf);

    /// Requests a synchronizing literal.
    fn request_literal(_: &mut SecretBuf) {}

    /// Replies to a command that is not carried out.
    fn deny(&self, problem: Problem, out: &mut SecretBuf);

    /// Writes the closing line after a problem.
    fn close(&self, problem: Problem, out: &mut SecretBuf) {
        self.deny(problem, out);
    }

    /// Replies to a refused login, with the session where that helps.
    fn refused(&self, reply: &Reply, session: &str, out: &mut SecretBuf);

    /// Replies to an accepted login.
    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf);

    /// Writes the closing line.
    fn bye(&self, reply: &Reply, session: &str, out: &mut SecretBuf);

    /// Resets the state after STARTTLS.
    fn tls_started(&mut self);

    /// Writes what follows the handshake of STARTTLS without a command.
    fn secured(&self, _: Channel, _: &mut SecretBuf) {}

    /// The client's identification, if it sent one.
    fn client_id(&self) -> Option<&ClientId> {
        None
    }

    /// The name by which the client has introduced itself, if that can be repeated.
    fn greeting(&self) -> Option<&ClientGreeting> {
        None
    }
}

/// The security of the client's connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channel {
    /// TLS is established.
    pub(super) tls: bool,
    /// TLS may be started.
    pub(super) starttls: bool,
    /// What clients may log in with, under TLS.
    pub(super) mechanisms: MechanismSet,
}

impl Channel {
    /// Whether TLS can be started now.
    pub(super) const fn can_start_tls(self) -> bool {
        self.starttls && !self.tls
    }

    /// The names of the mechanisms that are offered now: none in the clear.
    pub(super) fn offered(self) -> impl Iterator<Item = &'static str> {
        if self.tls { self.mechanisms } else { MechanismSet::NONE }.names()
    }

    /// Whether a password may be sent by a command.
    pub(super) const fn takes_passwords(self) -> bool {
        self.mechanisms.meets(MechanismSet::PASSWORDS)
    }
}

/// The result of a command.
#[derive(Debug)]
pub(super) enum Action {
    /// It is answered.
    Done,
    /// It is answered, and TLS is to be started.
    StartTls,
    /// It is answered, and the client disconnects.
    Quit,
    /// An exchange has begun, or failed already.
    Authenticate(Result<ExchangeStep, FailedExchange>),
    /// A login with everything it needs.
    Attempt(Credentials),
    /// It is valid so far, and this literal of it has to follow.
    Literal(Literal),
    /// It is refused, and this many bytes after it are its data.
    Discard(Problem, usize),
}

impl Action {
    /// Begins an exchange.
    pub(super) fn authenticate(
        mechanism: &[u8],
        initial_response: Option<&[u8]>,
        channel: Channel,
    ) -> Result<Self, Problem> {
        let mechanism = channel.mechanisms.by_name(mechanism).ok_or(Problem::Mechanism)?;
        Ok(Self::Authenticate(Exchange::begin(mechanism, initial_response)))
    }

    /// Begins an exchange with the arguments of AUTH, as single lines have them (RFC 4954, RFC 5034). White space
    /// beyond the one blank between them is ignored.
    pub(super) fn auth(arguments: &[u8], channel: Channel) -> Result<Self, Problem> {
        // Before the arguments are parsed: they may contain a password.
        if !channel.tls {
            return Err(Problem::TlsFirst);
        }
        let (mechanism, response) = first_word(arguments.trim_ascii());
        let response = response.trim_ascii_start();
        if mechanism.is_empty() || response.contains(&b' ') {
            return Err(Problem::Syntax);
        }
        Self::authenticate(mechanism, (!response.is_empty()).then_some(response), channel)
    }
}

/// A response as a protocol writes it.
#[derive(Debug)]
pub(super) enum Response {
    /// The line itself.
    Line,
    /// This string in the line.
    Text(Secret),
    /// This literal has to follow.
    Literal(Literal),
}
