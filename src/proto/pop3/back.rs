//! The backend half: from a POP3 server's greeting to its answer to a login.
//!
//! Starts TLS where it must, asks what the server can do, logs in as the user (or as a service account
//! for the user). Nothing but STLS is sent before TLS, nothing learned before TLS is used after it, and
//! nothing but +OK is success. A backend that keeps to another order than the protocol's is given up.

use std::ops::ControlFlow;

use super::super::sasl::{fits_plain, write_plain};
use super::super::wire::{Found, Gathering, Spoiled, first_word, printable, write_line};
use super::super::{Back, BackFault, BackSettings, BackStep, BackTls, Origin, Welcome};
use super::{COMMAND, TEXT};
use crate::outcome::BackendWords;
use crate::secret::{Secret, SecretBuf};

/// The longest line of a server, without CRLF. It may have 512 octets (RFC 2449 section 4), and some
/// greet at more length.
const LINE: usize = 2048;

/// The dialogue with one backend.
pub(super) struct Pop3Back {
    login: Vec<u8>,
    password: Secret,
    service: Option<Vec<u8>>,
    /// Who the client is, as long as the backend has not been told.
    forward: Option<Origin>,
    /// Whether the greeting offers to be told. Only there, so in the clear with STLS: whoever changes it
    /// there can make this login fail, and no more.
    takes_xclient: bool,
    /// STLS is wanted and has not been done.
    in_the_clear: bool,
    state: State,
    /// What has arrived of the current line.
    gathered: Gathering,
    /// The lines of CAPA's answer, in capitals.
    capabilities: Vec<Vec<u8>>,
    /// How many bytes the backend may still send.
    bytes_left: usize,
    /// Whether the login was written.
    asked: bool,
}

/// What the backend is to say next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    /// The answer to STLS.
    StartTls,
    /// Nothing: the session is starting TLS.
    Tls,
    /// Nothing: TLS is there, and usher's turn.
    Secured,
    /// The answer to XCLIENT.
    Xclient,
    /// The answer to CAPA.
    Capa,
    /// The rest of that answer.
    Capabilities,
    /// The answer to USER.
    Name,
    /// Leave to send the message of PLAIN.
    Challenge,
    /// The answer to the login.
    Login,
    /// Nothing any more.
    Over,
}

/// A line of the backend.
enum Answer<'a> {
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
                self.state = State::Over;
                BackStep::Fault(fault)
            }
        }
    }

    fn tls_started(&mut self) {
        self.in_the_clear = false;
        self.state = State::Secured;
    }

    fn has_asked(&self) -> bool {
        self.asked
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
            state: State::Greeting,
            gathered: Gathering::default(),
            capabilities: Vec::new(),
            bytes_left: settings.untagged_limit,
            asked: false,
        }
    }

    fn advance(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Result<BackStep, BackFault> {
        if self.state == State::Secured {
            self.secured(out)?;
        }
        loop {
            match self.gathered.take_line(input, LINE) {
                Found::Part => return Ok(BackStep::NeedMore),
                Found::Line => {}
                Found::Spoiled(Spoiled::TooLong) => return Err(BackFault::TooMuch),
                // A line that two readers may end at different places is not to be guessed at.
                Found::Spoiled(Spoiled::BareLf | Spoiled::BareCr | Spoiled::Nul) => return Err(BackFault::Garbage),
            }
            let line = std::mem::take(&mut self.gathered);
            self.bytes_left = self.bytes_left.checked_sub(line.bytes().len()).ok_or(BackFault::TooMuch)?;
            if let ControlFlow::Break(step) = self.receive(line.line(), out)? {
                return Ok(step);
            }
        }
    }

    /// Understands one line.
    fn receive(&mut self, line: &[u8], out: &mut SecretBuf) -> Result<ControlFlow<BackStep>, BackFault> {
        if self.state == State::Capabilities {
            if line == b"." {
                self.log_in(out)?;
            } else {
                self.capabilities.push(line.to_ascii_uppercase());
            }
            return Ok(ControlFlow::Continue(()));
        }
        let answer = Answer::of(line).ok_or(BackFault::Garbage)?;
        match (self.state, answer) {
            // The time stamp of APOP, if there is one, is for nobody.
            (State::Greeting, Answer::Ok(text)) => {
                self.takes_xclient = text.ends_with(b"[XCLIENT]");
                if self.in_the_clear {
                    write_line(out, &[b"STLS"]);
                    self.state = State::StartTls;
                } else {
                    self.secured(out)?;
                }
            }
            (State::Greeting, Answer::Err(_)) => return Err(BackFault::Bye),
            (State::StartTls, Answer::Ok(_)) => {
                self.state = State::Tls;
                return Ok(ControlFlow::Break(BackStep::StartTls));
            }
            (State::StartTls, Answer::Err(_)) => return Err(BackFault::NoStartTls),
            (State::Xclient, Answer::Ok(_)) => self.ask(out),
            (State::Xclient, Answer::Err(_)) => return Err(BackFault::NotTold),
            (State::Capa, Answer::Ok(_)) => self.state = State::Capabilities,
            // It knows nothing but RFC 1939, which has USER.
            (State::Capa, Answer::Err(_)) => {
                self.capabilities.push(b"USER".to_vec());
                self.log_in(out)?;
            }
            (State::Name, Answer::Ok(_)) => {
                write_line(out, &[b"PASS ", self.password.expose()]);
                self.state = State::Login;
            }
            (State::Challenge, Answer::Challenge) => {
                self.write_message(out);
                out.extend(b"\r\n");
                self.state = State::Login;
            }
            (State::Login, Answer::Ok(text)) => {
                self.state = State::Over;
                let capabilities = Vec::new();
                let welcome = Welcome { untagged: Vec::new(), capabilities, text: text.to_vec() };
                return Ok(ControlFlow::Break(BackStep::Ready(welcome)));
            }
            (State::Name | State::Challenge | State::Login, Answer::Err(text)) => {
                self.state = State::Over;
                return Ok(ControlFlow::Break(BackStep::Refused(refusal(text))));
            }
            (
                State::Greeting
                | State::StartTls
                | State::Tls
                | State::Secured
                | State::Xclient
                | State::Capa
                | State::Capabilities
                | State::Name
                | State::Challenge
                | State::Login
                | State::Over,
                _,
            ) => return Err(BackFault::Garbage),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// On a connection that is as secure as it gets: tells who the client is, if that is wanted. Dovecot
    /// takes these attributes from its `login_trusted_networks`, and an IPv6 address as it is.
    fn secured(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        let Some(Origin { client, session, .. }) = self.forward.take() else {
            self.ask(out);
            return Ok(());
        };
        if !self.takes_xclient {
            return Err(BackFault::NotTold);
        }
        let told = format!("XCLIENT ADDR={} PORT={} SESSION={session}", client.ip(), client.port());
        write_line(out, &[told.as_bytes()]);
        self.state = State::Xclient;
        Ok(())
    }

    /// Asks what the backend can do.
    fn ask(&mut self, out: &mut SecretBuf) {
        write_line(out, &[b"CAPA"]);
        self.state = State::Capa;
    }

    /// Sends the login, or what can be sent of it at once. PLAIN is preferred to USER, which knows no
    /// authzid; a login for somebody else is never weakened to it.
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
            State::Name
        } else {
            return Err(BackFault::NoMechanism);
        };
        self.asked = true;
        Ok(())
    }

    /// The message goes with the command if the line has the room (RFC 5034 section 4).
    fn authenticate(&self, out: &mut SecretBuf) -> State {
        let mut command = SecretBuf::new();
        command.extend(b"AUTH PLAIN ");
        self.write_message(&mut command);
        if command.len() > COMMAND {
            write_line(out, &[b"AUTH PLAIN"]);
            return State::Challenge;
        }
        write_line(out, &[command.as_slice()]);
        State::Login
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

impl<'a> Answer<'a> {
    /// `None` if the line's first word is exactly none of the three.
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
fn refusal(text: &[u8]) -> BackendWords {
    let split = text.strip_prefix(b"[").and_then(|inside| {
        let end = inside.iter().position(|byte| *byte == b']')?;
        let text = inside.get(end + 1..)?;
        Some((inside.get(..end)?, text.strip_prefix(b" ").unwrap_or(text)))
    });
    let (code, text) = split.unwrap_or((b"", text));
    BackendWords {
        code: printable(code, TEXT),
        text: printable(text, TEXT),
        // Not IN-USE, which is about one mailbox.
        unavailable: code.eq_ignore_ascii_case(b"SYS/TEMP"),
    }
}
