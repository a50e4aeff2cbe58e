//! A mail protocol: a row of names and ports, and two pure dialogues.
//!
//! The [`Front`] half talks to the client before login, the [`Back`] half logs in to a backend.
//! Both are machines without sockets, clock or runtime: bytes in, a [`Step`] or [`BackStep`] and
//! bytes out. So the same input whole or one byte at a time gives the same steps, and the
//! dialogues are tested, fuzzed and measured alone. Each half has one engine for all protocols (`engine`,
//! `backend_login`) over what is their own. A new protocol is a folder and a row in [`PROTOCOLS`].

mod backend_login;
mod bearer;
pub(crate) mod capabilities;
mod dialect;
mod engine;
pub(crate) mod imap;
mod login_way;
pub(crate) mod managesieve;
mod masking;
pub(crate) mod pop3;
mod problem;
pub(crate) mod proxy_header;
pub(crate) mod sasl;
#[cfg(test)]
mod script;
pub(crate) mod socketmap;
pub(crate) mod software;
pub(crate) mod submission;
#[cfg(test)]
mod tests;
pub(crate) mod transcript;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod trial;
pub(crate) mod watch;
pub(crate) mod wire;

use core::net::SocketAddr;
use core::time::Duration;
use std::fmt;
use std::sync::Arc;

use crate::base::credential::{CredentialSecret, TokenForm};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::{BackendReply, Refusal, Reply};
pub(crate) use bearer::TokenHints;
pub(crate) use sasl::MechanismSet;

/// A row of the protocol table.
pub struct Protocol {
    /// The config key and the metric label, such as `imap`.
    pub name: &'static str,
    /// The ALPN protocol id that clients offer; a list without it is refused.
    pub alpn: Option<&'static [u8]>,
    /// Whether backends are offered the id, too: those that IANA has registered. A server may refuse another.
    pub alpn_to_backends: bool,
    /// The port of implicit TLS (RFC 8314).
    pub implicit_port: u16,
    /// The port of STARTTLS.
    pub starttls_port: u16,
    /// How its dialogue can forward the client's address to a backend, if it can.
    pub forward_method: Option<ForwardMethod>,
    /// Whether clients introduce themselves by a name (EHLO).
    pub ehlo: bool,
    /// The capabilities assumed for a backend that was never reached.
    pub usual: &'static [&'static str],
    /// Whether a capability of this name may be advertised before the login: not usher's own, nor those that
    /// end with the login or cannot pass through a relay.
    pub advertised: fn(&str) -> bool,
    /// Starts the dialogue with a client.
    pub front: fn(FrontSettings<'_>) -> Box<dyn Front>,
    /// Starts the dialogue with a backend.
    pub back: fn(BackSettings) -> Box<dyn Back>,
    /// What a client says to log in and to leave.
    pub client: ClientCommands,
    /// How a relayed session is closed, except on shutdown.
    pub closing_line: ClosingLine,
    /// Whether a session ends when its user's mailbox moves. Sending mail does not depend on it.
    pub follows_moves: bool,
    /// Its row for nginx's mail proxy, if nginx supports it.
    pub nginx: Option<Nginx>,
}

impl fmt::Debug for Protocol {
    /// Its name: the digest of a configuration must not contain addresses of functions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The commands of a client that logs in with SASL PLAIN (RFC 4616) and leaves again.
#[derive(Debug, Clone, Copy)]
pub struct ClientCommands {
    /// Before the base64 of the message.
    pub before: &'static str,
    /// Behind it.
    pub after: &'static str,
    /// Ends a session.
    pub logout: &'static str,
}

/// A protocol of nginx's mail proxy (`auth_http`).
#[derive(Debug, Clone, Copy)]
pub struct Nginx {
    /// Its name in nginx.
    pub name: &'static str,
    /// A reply in the protocol's form; it contains the session id where that helps.
    pub reply: fn(&Reply, &str) -> NginxReply,
}

/// A reply in a protocol's form, without the prefix that nginx adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NginxReply {
    /// The reply code and the enhanced status code, where nginx has a separate header for them.
    pub code: Option<String>,
    /// The rest, a response code in brackets included.
    pub text: String,
}

/// How usher ends a relayed session, whose content it does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosingLine {
    /// A line to the client, if the backend's last line is complete and nothing is in transit. Otherwise
    /// the connection is closed without one.
    Line {
        /// What precedes the notice's text.
        prefix: &'static str,
        /// What follows it, CRLF included.
        suffix: &'static str,
    },
    /// The same with a line that a client takes for the reply to its next command (SMTP's 421, RFC 5321
    /// section 3.8): sent only while no command waits for its reply, so that it is never taken for the
    /// reply to the end of a message.
    Reply {
        /// What precedes the notice's text.
        prefix: &'static str,
        /// What follows it, CRLF included.
        suffix: &'static str,
    },
    /// The protocol has no such line: the connection is closed.
    Close,
}

/// The notice for a client whose session usher ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosingNotice {
    /// The mailbox is on another backend, or is being moved there.
    MailboxMoved,
    /// The password was changed.
    PasswordChanged,
    /// The account was disabled or deleted, or has expired.
    AccountUnavailable,
    /// The user may not be logged in from the client's network any more.
    NetworkNotAllowed,
    /// The backend is being taken out of service.
    Maintenance,
    /// An administrator ended this session.
    Administrator,
    /// usher is stopping, or another process has taken over.
    Shutdown,
    /// No byte has moved for the idle limit.
    Inactive,
}

impl ClosingNotice {
    /// The text, the same in every protocol.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::MailboxMoved => "Your mailbox has moved, please reconnect",
            Self::PasswordChanged => "Your password was changed, please log in again",
            Self::AccountUnavailable => "Your account is no longer available",
            Self::NetworkNotAllowed => "Your account is no longer available from your network",
            Self::Maintenance => "Mail server going down for maintenance, try again later",
            Self::Administrator => "Session ended by an administrator, please reconnect",
            Self::Shutdown => "Server shutting down, please reconnect",
            Self::Inactive => "Disconnected for inactivity",
        }
    }
}

/// How the client's address is forwarded in the dialogue, before the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardMethod {
    /// IMAP's ID (RFC 2971) with `x-originating-ip` and related fields.
    Id,
    /// The command XCLIENT of Postfix and Dovecot.
    Xclient,
}

/// Rows of one table: the name identifies them.
impl PartialEq for Protocol {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Protocol {}

/// Every protocol that usher speaks: the one registration.
pub(crate) static PROTOCOLS: &[Protocol] =
    &[imap::PROTOCOL, pop3::PROTOCOL, submission::PROTOCOL, managesieve::PROTOCOL];

/// Finds a protocol by its config name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Protocol> {
    PROTOCOLS.iter().find(|protocol| protocol.name == name)
}

/// The properties of a client's connection.
#[derive(Debug, Clone, Copy)]
pub struct FrontSettings<'a> {
    /// usher's own name, for greetings that have one.
    pub host: &'a str,
    /// The session id of the log: letters and digits.
    pub session: &'a str,
    /// The capabilities that all backends of this protocol have after the login, in the protocol's own form,
    /// such as `IDLE` or `SIZE 10240000`; `None` while unknown. The dialogue offers those that can be advertised
    /// before the login.
    pub capabilities: Option<&'a [String]>,
    /// Whether TLS is established already (implicit TLS).
    pub tls: bool,
    /// Whether STARTTLS may be offered while TLS is not established.
    pub starttls: bool,
    /// How many bad commands are answered before the connection is closed.
    pub bad_commands: u32,
    /// How clients may log in.
    pub sasl: SaslOffer<'a>,
}

/// How clients may log in.
#[derive(Debug, Clone, Copy)]
pub struct SaslOffer<'a> {
    /// The mechanisms that are offered under TLS.
    pub mechanisms: MechanismSet,
    /// What a client without a good token hears.
    pub hints: Option<&'a Arc<TokenHints>>,
}

#[cfg(any(test, feature = "internals"))]
impl SaslOffer<'_> {
    /// Passwords alone.
    pub const PASSWORDS: Self = Self { mechanisms: MechanismSet::PASSWORDS, hints: None };
}

/// How much output one step may collect before it returns [`Step::Flush`]: it bounds the memory for a client
/// that pipelines commands and does not read the replies.
const OUTPUT: usize = 8 * 1024;

/// A reply's text, of a backend's at most `most` bytes, and the session where that helps
/// ([`Reply::names_session`]).
fn reply_text(reply: &Reply, session: &str, most: usize) -> String {
    let text = if let Reply::BackendText(backend) = reply {
        wire::printable(backend.text.as_bytes(), most)
    } else {
        reply.text().to_owned()
    };
    if reply.names_session() && !session.is_empty() { format!("{text} (session {session})") } else { text }
}

/// The client's identification (IMAP ID), bounded and free of control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientId {
    /// The `name` field, or empty.
    pub name: String,
    /// The `version` field, or empty.
    pub version: String,
    /// The originating client (`x-originating-ip` and `-port`, 0 if absent). To be ignored unless the client is
    /// trusted.
    pub originating: Option<SocketAddr>,
}

/// The size of a message with this token in base64.
pub(crate) fn token_message_size(form: TokenForm, login: &[u8], token: &Secret) -> usize {
    let account = sasl::Account { login: login.to_vec(), password: token.clone(), token: Some(form), service: None };
    sasl::Mechanism::for_backend(&account, |_| true)
        .map(|mechanism| mechanism.initial_size(&account))
        .max()
        .unwrap_or(0)
}

/// The credentials that a client sent.
#[derive(Debug)]
pub struct Credentials {
    /// The authcid, byte for byte as typed; validated by the decision, not here.
    pub login: Vec<u8>,
    /// What proves it, byte for byte.
    pub secret: CredentialSecret,
    /// The SASL authzid; empty when none was given.
    pub authzid: Vec<u8>,
}

impl Credentials {
    /// A name and a password, as commands without SASL have them.
    fn password(login: Vec<u8>, password: Secret) -> Self {
        Self { login, secret: CredentialSecret::Password(password), authzid: Vec::new() }
    }
}

/// What the session has to do next for the client dialogue. Bytes put into `out` by the same call
/// are sent first, in every case.
#[derive(Debug)]
pub enum Step {
    /// Read more from the client, then call again.
    NeedMore,
    /// Call again once the output is sent: there is more input, but the replies so far reach the limit for one
    /// client (`OUTPUT`).
    Flush,
    /// Drop every byte already read in the clear, start TLS as a server, call
    /// [`Front::tls_started`].
    StartTls,
    /// Decide about these credentials, then call [`Front::accepted`] or [`Front::refused`].
    Attempt(Credentials),
    /// The dialogue is over; close the connection after sending.
    Quit(Quit),
}

/// Why the client dialogue ended without a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quit {
    /// The client sent LOGOUT or QUIT.
    Logout,
    /// Too many bad commands, or an input that cannot be resynchronized.
    ProtocolError,
}

/// The client half of a protocol, from the greeting until a login is accepted.
pub trait Front: Send + Sync {
    /// Writes the greeting.
    fn greet(&mut self, out: &mut SecretBuf);

    /// Consumes what it can of `input`, all of it before `NeedMore`; returns `Flush` as soon as `out` holds
    /// `OUTPUT` bytes, so that it never holds more than that and one answer. Input behind a login attempt
    /// stays in `input`: it goes to the backend after success and is parsed as commands after a
    /// refusal. Called again with the same input after any step but `NeedMore` and `Quit`.
    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Step;

    /// TLS is established: all earlier state is discarded (RFC 3501 section 6.2.1, RFC 2595
    /// section 4, RFC 3207 section 4.2).
    fn tls_started(&mut self);

    /// The client has shown a certificate that it may log in with: EXTERNAL is offered from now on. To be called behind
    /// the handshake, before the greeting or [`Front::tls_started`].
    fn certificate_verified(&mut self) {}

    /// Replies to the attempt, which is refused. The dialogue continues.
    fn refused(&mut self, reply: &Reply, out: &mut SecretBuf);

    /// Replies to the attempt with success and the backend's data. The dialogue is over.
    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf);

    /// The connection is about to be closed by usher: the protocol's closing line, if it has one.
    fn bye(&mut self, reply: &Reply, out: &mut SecretBuf);

    /// Records the dialogue from now on.
    fn transcribe(&mut self, _: transcript::Transcript) {}

    /// The client's identification, if it sent one.
    fn client_id(&self) -> Option<&ClientId>;

    /// The name by which the client has introduced itself, if that can be repeated.
    fn greeting(&self) -> Option<&ClientGreeting> {
        None
    }

    /// A login that the dialogue refused without an attempt, such as one in the clear: the reply is sent, the
    /// caller logs and counts it. One per call; to be called after each step.
    fn take_local_refusal(&mut self) -> Option<Refusal> {
        None
    }
}

/// A backend's reply to an accepted login.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Welcome {
    /// Complete untagged lines (with CRLF, literals included) before the final answer, in order.
    pub untagged: Vec<u8>,
    /// The capabilities after login, without what usher cannot carry; empty when unknown.
    pub capabilities: Vec<u8>,
    /// The text of the final answer behind its code, such as Cyrus' `User logged in SESSIONID=<>`.
    pub text: Vec<u8>,
}

/// The name by which a client of submission introduces itself (EHLO or HELO, RFC 5321 section 4.1.1.1): a claim
/// that is neither verified nor used by usher, and repeated to backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientGreeting {
    /// Printable ASCII without blanks, of 1 to 255 bytes.
    pub name: String,
    /// Whether it is said by EHLO.
    pub extended: bool,
}

impl ClientGreeting {
    /// The longest name (RFC 5321 section 4.5.3.1.2).
    const MAX: usize = 255;

    /// The name as a client has sent it; `None` if it cannot be repeated: too long, or with other bytes.
    #[must_use]
    pub(crate) fn parse(name: &[u8], extended: bool) -> Option<Self> {
        let sound = (1..=Self::MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
        sound.then(|| Self { name: name.iter().copied().map(char::from).collect(), extended })
    }
}

/// The client to forward to a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The client.
    pub client: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
    /// The session id of the log: letters and digits.
    pub session: String,
    /// How it introduces itself, if it does.
    pub greeting: Option<ClientGreeting>,
}

impl Origin {
    /// Dovecot's XCLIENT for POP3 and ManageSieve: fixed attributes, and an IPv6 address without a prefix.
    fn xclient(&self) -> String {
        let Self { client, session, .. } = self;
        format!("XCLIENT ADDR={} PORT={} SESSION={session}", client.ip(), client.port())
    }
}

/// How to log in to a backend.
#[derive(Debug, Clone)]
pub struct BackSettings {
    /// Whether TLS is established already (implicit TLS), must be started, or is not wanted.
    pub tls: BackTls,
    /// The user's name at the backend: authcid of a login with its own password, authzid of a
    /// login by a service account.
    pub login: Vec<u8>,
    /// The user's password or token, or the service account's password.
    pub password: Secret,
    /// How a token is sent; `None`: it is a password.
    pub token: Option<TokenForm>,
    /// The service account (authcid) for a proxy authorization; `None`: the user's own login.
    pub service: Option<Vec<u8>>,
    /// How many bytes of untagged lines a login may bring; more is a fault.
    pub untagged_limit: usize,
    /// The client to forward by the protocol's own method ([`Protocol::forward_method`]): under TLS, before the
    /// login.
    pub forward: Option<Origin>,
    /// usher's own name, for protocols in which clients send one.
    pub host: Arc<str>,
    /// Whether the message of a mechanism may go with the command: not to a backend that was seen to ignore it
    /// ([`Back::ignores_initial_response`]).
    pub initial_response: bool,
    /// The client's name, to be sent in place of usher's own once the connection is secured and the client's
    /// address is forwarded.
    pub ehlo: Option<ClientGreeting>,
}

/// TLS on the way to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackTls {
    /// Established before the greeting.
    Implicit,
    /// Must be started after the greeting; only that command is sent in the clear.
    StartTls,
    /// Cleartext, as the config says explicitly.
    Plaintext,
}

/// What has to be done next for the backend dialogue. Bytes put into `out` are sent first.
#[derive(Debug)]
pub enum BackStep {
    /// Read more from the backend, then call again.
    NeedMore,
    /// If any input is left unread it is an attack: give up. Else start TLS as a client and call
    /// [`Back::tls_started`].
    StartTls,
    /// Logged in. What is left in `input` belongs to the client, in order, after the answer.
    Ready(Welcome),
    /// The backend refused the login.
    Refused(BackendReply),
    /// The backend cannot be used.
    Fault(BackFault),
}

/// Why a backend cannot be used for this login; nothing of it says the password is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackFault {
    /// It refused the connection in its greeting, or closed it with BYE.
    #[error("backend sent BYE")]
    Bye,
    /// It greeted with PREAUTH (a known downgrade trick).
    #[error("backend greeted with PREAUTH")]
    Preauth,
    /// It does not offer STARTTLS although it must.
    #[error("backend does not offer STARTTLS")]
    NoStartTls,
    /// It sent bytes between the STARTTLS answer and the handshake.
    #[error("backend sent plaintext after its STARTTLS reply")]
    Injection,
    /// It lists LOGINDISABLED and offers no mechanism that usher can use.
    #[error("backend offers no usable mechanism")]
    NoMechanism,
    /// It does not accept the client's address: usher is not in its trusted networks.
    #[error("backend rejected the client's address; is usher in its trusted networks?")]
    ForwardingRefused,
    /// It replied BAD to a correct command.
    #[error("backend replied BAD")]
    Bad,
    /// It refers the user to another server.
    #[error("backend refers to another server")]
    Referral,
    /// Its lines are too long or too many.
    #[error("backend sent too much data")]
    TooLarge,
    /// Any other violation of the protocol.
    #[error("backend violated the protocol")]
    ProtocolViolation,
}

/// The backend half of a protocol, from its greeting to the answer of the login.
pub trait Back: Send {
    /// Consumes what it can of `input`, all of it before `NeedMore`. Called first with the empty
    /// input of a new connection, and again at once after `StartTls`.
    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> BackStep;

    /// TLS is established: all earlier input of the backend is discarded.
    fn tls_started(&mut self);

    /// Records the dialogue from now on.
    fn transcribe(&mut self, _: transcript::Transcript) {}

    /// Whether the login has been written to `out`, sent or not. Earlier faults concern the server; later ones
    /// may concern this user only.
    fn login_written(&self) -> bool;

    /// Whether a name was written that the client has chosen: a fault from then on may concern that name only.
    fn names_client(&self) -> bool {
        false
    }

    /// The backend's capabilities just before the login, as in [`FrontSettings::capabilities`]; empty before
    /// that, or if it lists none.
    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    /// How long the backend may be silent in its current state, if not until the deadline; then
    /// [`Back::request_after_silence`].
    fn patience(&self) -> Option<Duration> {
        None
    }

    /// The backend has been silent for that long: writes a request.
    fn request_after_silence(&mut self, _out: &mut SecretBuf) {}

    /// Whether the backend has shown that it does not read a message that goes with the command.
    fn ignores_initial_response(&self) -> bool {
        false
    }

    /// Whether it has shown that with an error, and nothing was sent since that it could refuse: if it closes now,
    /// the login may be sent over another connection.
    fn has_refused_nothing(&self) -> bool {
        false
    }

    /// The command to watch for in a session; for most servers none.
    fn watch(&self) -> Option<watch::CommandWatch> {
        None
    }
}
pub(crate) mod ldap;
