//! The backend half: POP3's commands to a backend, and what its replies mean.
//!
//! Nothing but STLS is sent before TLS, and only +OK is success.

use super::super::backend_login::{BackDialect, LoginContext, NextCommand, Phase, Transition};
use super::super::sasl::{Account, ClientExchange, Mechanism};
use super::super::wire::{LineBuffer, first_word, printable, write_line};
use super::super::{BackFault, Origin, Welcome};
use super::{COMMAND, TEXT};
use crate::base::secret::SecretBuf;
use crate::outcome::BackendReply;

/// The dialogue's state.
#[derive(Default)]
pub(super) struct Pop3Back {
    /// Whether the greeting offers XCLIENT. It is offered only there, so in the clear with STLS: an attacker
    /// who changes it can only make this login fail.
    takes_xclient: bool,
    /// The lines of CAPA's answer, in capitals.
    capabilities: Vec<Vec<u8>>,
    /// How much of that answer has come.
    capa: Capa,
    /// What is still to be sent of the login.
    pending: Pop3Pending,
}

/// How much of the answer to CAPA has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Capa {
    #[default]
    Nothing,
    /// Its first line.
    Started,
    /// All of it.
    Complete,
}

/// The part of a login that awaits a reply.
#[derive(Debug, Clone, Copy, Default)]
enum Pop3Pending {
    #[default]
    Nothing,
    /// The password, after the reply to USER.
    Password,
    /// A response, after the continuation request.
    Response(ClientExchange),
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

impl BackDialect for Pop3Back {
    /// It may have 512 octets (RFC 2449 section 4), and some servers greet at more length.
    fn line_limit(_: usize) -> usize {
        2048
    }

    fn receive(
        &mut self,
        phase: Phase,
        reply: &LineBuffer,
        login: &mut LoginContext,
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault> {
        let line = reply.line();
        if phase == Phase::Capabilities && self.capa == Capa::Started {
            if line == b"." {
                self.capa = Capa::Complete;
                return Ok(Transition::Proceed);
            }
            self.capabilities.push(line.to_ascii_uppercase());
            return Ok(Transition::Stay);
        }
        let reply = Pop3Reply::of(line).ok_or(BackFault::ProtocolViolation)?;
        match (phase, reply, self.pending) {
            // APOP's time stamp, if any, is ignored.
            (Phase::Greeting, Pop3Reply::Ok(text), _) => {
                self.takes_xclient = text.split(|byte| *byte == b' ').any(|word| word == b"[XCLIENT]");
                Ok(Transition::Proceed)
            }
            (Phase::Greeting, Pop3Reply::Err(_), _) => Err(BackFault::Bye),
            (Phase::StartTls, Pop3Reply::Ok(_), _) => Ok(Transition::StartTls),
            (Phase::StartTls, Pop3Reply::Err(_), _) => Err(BackFault::NoStartTls),
            (Phase::Forward, Pop3Reply::Ok(_), _) => Ok(Transition::Proceed),
            (Phase::Forward, Pop3Reply::Err(_), _) => Err(BackFault::ForwardingRefused),
            (Phase::Capabilities, Pop3Reply::Ok(_), _) => {
                self.capa = Capa::Started;
                Ok(Transition::Stay)
            }
            // It supports RFC 1939 only, which has USER.
            (Phase::Capabilities, Pop3Reply::Err(_), _) => {
                self.capabilities.push(b"USER".to_vec());
                self.capa = Capa::Complete;
                Ok(Transition::Proceed)
            }
            (Phase::Login, Pop3Reply::Ok(_), Pop3Pending::Password) => {
                write_line(out, &[b"PASS ", login.account.password.expose()]);
                self.pending = Pop3Pending::Nothing;
                Ok(Transition::Stay)
            }
            (Phase::Login, Pop3Reply::Challenge, Pop3Pending::Response(mut exchange)) => {
                exchange.respond(&login.account, out).ok_or(BackFault::ProtocolViolation)?;
                out.extend(b"\r\n");
                self.pending = Pop3Pending::Nothing;
                Ok(Transition::Stay)
            }
            (Phase::Login, Pop3Reply::Ok(text), Pop3Pending::Nothing) => {
                Ok(Transition::Ready(Welcome { text: text.to_vec(), ..Welcome::default() }))
            }
            (Phase::Login, Pop3Reply::Err(text), _) => Ok(Transition::Refused(refusal(text))),
            (
                Phase::Greeting
                | Phase::Capabilities
                | Phase::StartTls
                | Phase::Tls
                | Phase::Secured
                | Phase::Forward
                | Phase::Login
                | Phase::Afterwards
                | Phase::Over,
                ..,
            ) => Err(BackFault::ProtocolViolation),
        }
    }

    /// They are of use for the login alone: STLS is tried where it is required.
    fn needs_capabilities(&self, next: NextCommand) -> bool {
        next == NextCommand::Login && self.capa != Capa::Complete
    }

    fn request_capabilities(&mut self, out: &mut SecretBuf) {
        write_line(out, &[b"CAPA"]);
    }

    fn start_tls(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        write_line(out, &[b"STLS"]);
        Ok(())
    }

    /// Nothing was asked before TLS, and the greeting is not repeated.
    fn tls_started(&mut self) {}

    /// Dovecot offers the command to its `login_trusted_networks`.
    fn forward(&mut self, origin: &Origin, out: &mut SecretBuf) -> Result<(), BackFault> {
        if !self.takes_xclient {
            return Err(BackFault::ForwardingRefused);
        }
        write_line(out, &[origin.xclient().as_bytes()]);
        Ok(())
    }

    /// A mechanism is preferred to USER, which knows no authzid; a login on behalf of another user never falls
    /// back to it.
    fn log_in(&mut self, account: &Account, out: &mut SecretBuf) -> Result<(), BackFault> {
        let mechanism = Mechanism::for_backend(account, |name| self.can("SASL", name));
        if let Some(mechanism) = mechanism.filter(|mechanism| mechanism.has_one_response()) {
            self.pending = authenticate(mechanism, account, out)?;
            return Ok(());
        }
        // A line end in a name or a password would begin another command.
        let fits =
            |part: &[u8]| "PASS ".len() + part.len() <= COMMAND && !part.contains(&b'\r') && !part.contains(&b'\n');
        let user = self.can("USER", "") && account.service.is_none();
        if !user || !account.has_no_nul() || !account.parts().into_iter().all(fits) {
            return Err(BackFault::NoMechanism);
        }
        write_line(out, &[b"USER ", &account.login]);
        self.pending = Pop3Pending::Password;
        Ok(())
    }

    fn capabilities(&self, _: bool) -> Vec<String> {
        self.capabilities.iter().map(|listed| printable(listed, TEXT)).collect()
    }
}

impl Pop3Back {
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

/// Sends AUTH. The message goes with the command if the line has the room (RFC 5034 section 4).
fn authenticate(
    mechanism: &'static Mechanism,
    account: &Account,
    out: &mut SecretBuf,
) -> Result<Pop3Pending, BackFault> {
    let mut exchange = ClientExchange::new(mechanism);
    let mut command = SecretBuf::new();
    command.extend(b"AUTH ");
    command.extend(mechanism.name.as_bytes());
    command.extend(b" ");
    exchange.respond(account, &mut command).ok_or(BackFault::NoMechanism)?;
    if command.len() > COMMAND {
        write_line(out, &[b"AUTH ", mechanism.name.as_bytes()]);
        return Ok(Pop3Pending::Response(ClientExchange::new(mechanism)));
    }
    write_line(out, &[command.as_slice()]);
    Ok(Pop3Pending::Nothing)
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
