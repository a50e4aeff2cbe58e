//! The backend half: from a POP3 server's greeting to its answer to a login.
//!
//! Starts TLS where it must, requests its capabilities, logs in as the user (or as a service account for the
//! user). Nothing but STLS is sent before TLS, nothing learned before TLS is used after it, and only +OK is
//! success. A backend that violates the protocol's order is a fault.

use std::ops::ControlFlow;

use super::super::sasl::{fits_plain, write_plain};
use super::super::wire::{Invalid, LineBuffer, Scan, first_word, printable, write_line};
use super::super::{Back, BackFault, BackSettings, BackStep, BackTls, Origin, Welcome};
use super::{COMMAND, TEXT};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::BackendReply;

/// The longest line of a server, without CRLF. It may have 512 octets (RFC 2449 section 4), and some
/// greet at more length.
const LINE: usize = 2048;

/// The dialogue with one backend.
pub(super) struct Pop3Back {
    login: Vec<u8>,
    password: Secret,
    service: Option<Vec<u8>>,
    /// The client to forward; `None` once it was sent.
    forward: Option<Origin>,
    /// Whether the greeting offers XCLIENT. It is offered only there, so in the clear with STLS: an attacker
    /// who changes it can only make this login fail.
    takes_xclient: bool,
    /// STLS is required and not done yet.
    in_the_clear: bool,
    state: Pop3BackState,
    /// What has arrived of the current line.
    gathered: LineBuffer,
    /// The lines of CAPA's answer, in capitals.
    capabilities: Vec<Vec<u8>>,
    /// How many bytes the backend may still send.
    bytes_left: usize,
    /// Whether the login was written.
    login_written: bool,
}

/// The reply that is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pop3BackState {
    Greeting,
    /// The answer to STLS.
    StartTls,
    /// None: the session is starting TLS.
    Tls,
    /// None: TLS is established and usher sends the next command.
    Secured,
    /// The answer to XCLIENT.
    Xclient,
    /// The answer to CAPA.
    Capa,
    /// The rest of that answer.
    Capabilities,
    /// The answer to USER.
    Name,
    /// The continuation request for the message of PLAIN.
    Challenge,
    /// The answer to the login.
    Login,
    /// None: the dialogue is over.
    Over,
}

/// A line of the backend.
enum Pop3Reply<'a> {
    /// `+OK` and its text.
    Ok(&'a [u8]),
    /// `-ERR` and its text.
    Err(&'a [u8]),
    /// `+ ` and a challenge.
    Challenge,
}

impl Back for Pop3Back {
    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> BackStep {
        match self.advance(input, out) {
            Ok(step) => step,
            Err(fault) => {
                self.state = Pop3BackState::Over;
                BackStep::Fault(fault)
            }
        }
    }

    fn tls_started(&mut self) {
        self.in_the_clear = false;
        self.state = Pop3BackState::Secured;
    }

    fn login_written(&self) -> bool {
        self.login_written
    }

    fn capabilities(&self) -> Vec<String> {
        self.capabilities.iter().map(|listed| printable(listed, TEXT)).collect()
    }
}

impl Pop3Back {
    pub(super) fn new(settings: BackSettings) -> Self {
        Self {
            login: settings.login,
            password: settings.password,
            service: settings.service,
            forward: settings.forward,
            takes_xclient: false,
            in_the_clear: settings.tls == BackTls::StartTls,
            state: Pop3BackState::Greeting,
            gathered: LineBuffer::default(),
            capabilities: Vec::new(),
            bytes_left: settings.untagged_limit,
            login_written: false,
        }
    }

    fn advance(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Result<BackStep, BackFault> {
        if self.state == Pop3BackState::Secured {
            self.secured(out)?;
        }
        loop {
            match self.gathered.take_line(input, LINE) {
                Scan::Incomplete => return Ok(BackStep::NeedMore),
                Scan::Line => {}
                Scan::Spoiled(Invalid::TooLong) => return Err(BackFault::TooLarge),
                // A line whose end is ambiguous is a fault.
                Scan::Spoiled(Invalid::BareLf | Invalid::BareCr | Invalid::Nul) => {
                    return Err(BackFault::ProtocolViolation);
                }
            }
            let line = std::mem::take(&mut self.gathered);
            self.bytes_left = self.bytes_left.checked_sub(line.bytes().len()).ok_or(BackFault::TooLarge)?;
            if let ControlFlow::Break(step) = self.receive(line.line(), out)? {
                return Ok(step);
            }
        }
    }

    /// Handles one line.
    fn receive(&mut self, line: &[u8], out: &mut SecretBuf) -> Result<ControlFlow<BackStep>, BackFault> {
        if self.state == Pop3BackState::Capabilities {
            if line == b"." {
                self.log_in(out)?;
            } else {
                self.capabilities.push(line.to_ascii_uppercase());
            }
            return Ok(ControlFlow::Continue(()));
        }
        let answer = Pop3Reply::of(line).ok_or(BackFault::ProtocolViolation)?;
        match (self.state, answer) {
            // APOP's time stamp, if any, is ignored.
            (Pop3BackState::Greeting, Pop3Reply::Ok(text)) => {
                self.takes_xclient = text.split(|byte| *byte == b' ').any(|word| word == b"[XCLIENT]");
                if self.in_the_clear {
                    write_line(out, &[b"STLS"]);
                    self.state = Pop3BackState::StartTls;
                } else {
                    self.secured(out)?;
                }
            }
            (Pop3BackState::Greeting, Pop3Reply::Err(_)) => return Err(BackFault::Bye),
            (Pop3BackState::StartTls, Pop3Reply::Ok(_)) => {
                self.state = Pop3BackState::Tls;
                return Ok(ControlFlow::Break(BackStep::StartTls));
            }
            (Pop3BackState::StartTls, Pop3Reply::Err(_)) => return Err(BackFault::NoStartTls),
            (Pop3BackState::Xclient, Pop3Reply::Ok(_)) => self.ask(out),
            (Pop3BackState::Xclient, Pop3Reply::Err(_)) => return Err(BackFault::ForwardingRefused),
            (Pop3BackState::Capa, Pop3Reply::Ok(_)) => self.state = Pop3BackState::Capabilities,
            // It supports RFC 1939 only, which has USER.
            (Pop3BackState::Capa, Pop3Reply::Err(_)) => {
                self.capabilities.push(b"USER".to_vec());
                self.log_in(out)?;
            }
            (Pop3BackState::Name, Pop3Reply::Ok(_)) => {
                write_line(out, &[b"PASS ", self.password.expose()]);
                self.state = Pop3BackState::Login;
            }
            (Pop3BackState::Challenge, Pop3Reply::Challenge) => {
                self.write_message(out);
                out.extend(b"\r\n");
                self.state = Pop3BackState::Login;
            }
            (Pop3BackState::Login, Pop3Reply::Ok(text)) => {
                self.state = Pop3BackState::Over;
                let capabilities = Vec::new();
                let welcome = Welcome { untagged: Vec::new(), capabilities, text: text.to_vec() };
                return Ok(ControlFlow::Break(BackStep::Ready(welcome)));
            }
            (Pop3BackState::Name | Pop3BackState::Challenge | Pop3BackState::Login, Pop3Reply::Err(text)) => {
                self.state = Pop3BackState::Over;
                return Ok(ControlFlow::Break(BackStep::Refused(refusal(text))));
            }
            (
                Pop3BackState::Greeting
                | Pop3BackState::StartTls
                | Pop3BackState::Tls
                | Pop3BackState::Secured
                | Pop3BackState::Xclient
                | Pop3BackState::Capa
                | Pop3BackState::Capabilities
                | Pop3BackState::Name
                | Pop3BackState::Challenge
                | Pop3BackState::Login
                | Pop3BackState::Over,
                _,
            ) => return Err(BackFault::ProtocolViolation),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Once TLS is done where required: forwards the client's address if configured. Dovecot accepts these
    /// attributes from its `login_trusted_networks`, and an IPv6 address without a prefix.
    fn secured(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        let Some(Origin { client, session, .. }) = self.forward.take() else {
            self.ask(out);
            return Ok(());
        };
        if !self.takes_xclient {
            return Err(BackFault::ForwardingRefused);
        }
        let told = format!("XCLIENT ADDR={} PORT={} SESSION={session}", client.ip(), client.port());
        write_line(out, &[told.as_bytes()]);
        self.state = Pop3BackState::Xclient;
        Ok(())
    }

    /// Requests the backend's capabilities.
    fn ask(&mut self, out: &mut SecretBuf) {
        write_line(out, &[b"CAPA"]);
        self.state = Pop3BackState::Capa;
    }

    /// Sends the login, or what can be sent of it at once. PLAIN is preferred to USER, which knows no authzid;
    /// a login on behalf of another user never falls back to it.
    fn log_in(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        let parts = [self.login.as_slice(), self.service.as_deref().unwrap_or_default(), self.password.expose()];
        let plain = self.can("SASL", "PLAIN") && parts.into_iter().all(fits_plain);
        // A line end in a name or a password would begin another command.
        let fits =
            |part: &[u8]| "PASS ".len() + part.len() <= COMMAND && !part.contains(&b'\r') && !part.contains(&b'\n');
        let user = self.can("USER", "")
            && self.service.is_none()
            && parts.into_iter().all(|part| fits_plain(part) && fits(part));
        self.state = if plain {
            self.authenticate(out)
        } else if user {
            write_line(out, &[b"USER ", &self.login]);
            Pop3BackState::Name
        } else {
            return Err(BackFault::NoMechanism);
        };
        self.login_written = true;
        Ok(())
    }

    /// The message goes with the command if the line has the room (RFC 5034 section 4).
    fn authenticate(&self, out: &mut SecretBuf) -> Pop3BackState {
        let mut command = SecretBuf::new();
        command.extend(b"AUTH PLAIN ");
        self.write_message(&mut command);
        if command.len() > COMMAND {
            write_line(out, &[b"AUTH PLAIN"]);
            return Pop3BackState::Challenge;
        }
        write_line(out, &[command.as_slice()]);
        Pop3BackState::Login
    }

    fn write_message(&self, out: &mut SecretBuf) {
        match &self.service {
            Some(service) => write_plain(&self.login, service, &self.password, out),
            None => write_plain(b"", &self.login, &self.password, out),
        }
    }

    /// Whether a capability is listed, with this among its arguments if it is not empty.
    fn can(&self, capability: &str, argument: &str) -> bool {
        self.capabilities.iter().any(|listed| {
            let mut words = listed.split(|byte| *byte == b' ');
            words.next() == Some(capability.as_bytes())
                && (argument.is_empty() || words.any(|word| word == argument.as_bytes()))
        })
    }
}

impl<'a> Pop3Reply<'a> {
    /// `None` if the line's first word is not exactly one of the three.
    fn of(line: &'a [u8]) -> Option<Self> {
        match first_word(line) {
            (b"+OK", text) => Some(Self::Ok(text)),
            (b"-ERR", text) => Some(Self::Err(text)),
            (b"+", _) => Some(Self::Challenge),
            _ => None,
        }
    }
}

/// A refusal's code (RFC 2449 section 8) and its text.
fn refusal(text: &[u8]) -> BackendReply {
    let split = text.strip_prefix(b"[").and_then(|inside| {
        let end = inside.iter().position(|byte| *byte == b']')?;
        let text = inside.get(end + 1..)?;
        Some((inside.get(..end)?, text.strip_prefix(b" ").unwrap_or(text)))
    });
    let (code, text) = split.unwrap_or((b"", text));
    BackendReply {
        code: printable(code, TEXT),
        text: printable(text, TEXT),
        // Not IN-USE, which is about one mailbox.
        unavailable: code.eq_ignore_ascii_case(b"SYS/TEMP"),
    }
}
