//! The backend half: POP3's commands to a backend, and what its replies mean.
//!
//! Nothing but STLS is sent before TLS, and only +OK is success.

use std::collections::VecDeque;

use super::super::backend_login::{BackDialect, LoginContext, NextCommand, Phase, Transition};
use super::super::login_way::{LoginWay, login_ways};
use super::super::sasl::{Account, Mechanism};
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
    /// USER was sent, and PASS is still to be sent.
    password_pending: bool,
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

/// A line of the backend.
enum Pop3Reply<'a> {
    /// `+OK` and its text.
    Ok(&'a [u8]),
    /// `-ERR` and its text.
    Err(&'a [u8]),
    /// `+ ` and a challenge.
    Challenge(&'a [u8]),
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
        match (phase, reply) {
            // APOP's time stamp, if any, is ignored.
            (Phase::Greeting, Pop3Reply::Ok(text)) => {
                self.takes_xclient = text.split(|byte| *byte == b' ').any(|word| word == b"[XCLIENT]");
                Ok(Transition::Proceed)
            }
            (Phase::Greeting, Pop3Reply::Err(_)) => Err(BackFault::Bye),
            (Phase::StartTls, Pop3Reply::Ok(_)) => Ok(Transition::StartTls),
            (Phase::StartTls, Pop3Reply::Err(_)) => Err(BackFault::NoStartTls),
            (Phase::Forward, Pop3Reply::Ok(_)) => Ok(Transition::Proceed),
            (Phase::Forward, Pop3Reply::Err(_)) => Err(BackFault::ForwardingRefused),
            (Phase::Capabilities, Pop3Reply::Ok(_)) => {
                self.capa = Capa::Started;
                Ok(Transition::Stay)
            }
            // It supports RFC 1939 only, which has USER.
            (Phase::Capabilities, Pop3Reply::Err(_)) => {
                self.capabilities.push(b"USER".to_vec());
                self.capa = Capa::Complete;
                Ok(Transition::Proceed)
            }
            (Phase::Login, Pop3Reply::Ok(_)) if self.password_pending => {
                write_line(out, &[b"PASS ", login.account.password.expose()]);
                self.password_pending = false;
                Ok(Transition::Stay)
            }
            (Phase::Login, Pop3Reply::Challenge(challenge)) => respond(challenge, login, out),
            // Some servers send a challenge behind `+OK`: before the last response it cannot be success.
            (Phase::Login, Pop3Reply::Ok(challenge)) if login.awaits_challenge() => respond(challenge, login, out),
            (Phase::Login, Pop3Reply::Ok(text)) => {
                Ok(Transition::Ready(Welcome { text: text.to_vec(), ..Welcome::default() }))
            }
            (Phase::Login, Pop3Reply::Err(text)) => login.refused(refusal(text)),
            (
                Phase::Greeting
                | Phase::Capabilities
                | Phase::StartTls
                | Phase::Tls
                | Phase::Secured
                | Phase::Forward
                | Phase::Afterwards
                | Phase::Over,
                _,
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

    /// PLAIN is preferred to USER, which knows no authzid. The message goes with the command if the line has the
    /// room (RFC 5034 section 4).
    fn ways(&self, account: &Account, initial_response: bool) -> VecDeque<LoginWay> {
        let fits = |mechanism: &Mechanism| {
            let command = "AUTH  ".len() + mechanism.name.len() + mechanism.initial_size(account);
            initial_response && command <= COMMAND
        };
        // A line end in a name or a password would begin another command.
        let is_argument =
            |part: &[u8]| "PASS ".len() + part.len() <= COMMAND && !part.contains(&b'\r') && !part.contains(&b'\n');
        let user = self.can("USER", "") && account.has_no_nul() && account.parts().into_iter().all(is_argument);
        login_ways(account, |name| self.can("SASL", name), user, fits)
    }

    fn log_in(&mut self, way: LoginWay, login: &mut LoginContext, out: &mut SecretBuf) -> Result<(), BackFault> {
        self.password_pending = !login.write_mechanism(way, b"AUTH", out);
        if self.password_pending {
            write_line(out, &[b"USER ", &login.account.login]);
        }
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
            (b"+", challenge) => Some(Self::Challenge(challenge)),
            _ => None,
        }
    }
}

fn respond(challenge: &[u8], login: &mut LoginContext, out: &mut SecretBuf) -> Result<Transition, BackFault> {
    login.respond(challenge, out)?;
    out.extend(b"\r\n");
    Ok(Transition::Stay)
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
        challenge: None,
    }
}
