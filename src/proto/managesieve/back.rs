//! The backend half: ManageSieve's commands to a backend, and what its replies mean.
//!
//! Consumes everything that belongs to the login: a NOOP after it shows whether the backend lists its capabilities
//! again. Nothing but STARTTLS is sent before TLS (RFC 5804 section 2.2), and only OK is success.

use super::super::backend_login::{BackDialect, LoginContext, NextCommand, Phase, Transition};
use super::super::sasl::{Account, ClientExchange, Mechanism};
use super::super::watch::CommandWatch;
use super::super::wire::{LineBuffer, Literal, printable, write_line};
use super::super::{BackFault, Origin, Welcome};
use super::TEXT;
use super::syntax::{Cursor, write_string};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::BackendReply;

/// Ends a login and keeps the connection (RFC 5804 section 2.14).
const UNAUTHENTICATE: &str = "UNAUTHENTICATE";

/// The dialogue's state.
#[derive(Default)]
pub(super) struct SieveBack {
    /// The capabilities of the current phase: `NAME` or `NAME value`.
    capabilities: Vec<String>,
    /// Whether that list is complete.
    is_complete: bool,
    /// The text of the reply to the login.
    text: Vec<u8>,
    /// Whether a list after the login has begun.
    listing: bool,
}

/// One answer.
enum SieveReply {
    /// A string, or two: a capability.
    Strings(Secret, Option<Secret>),
    Status(SieveStatus),
}

struct SieveStatus {
    word: SieveStatusKind,
    /// The response code's name; empty if absent.
    code: Vec<u8>,
    text: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SieveStatusKind {
    Ok,
    No,
    Bye,
}

impl BackDialect for SieveBack {
    /// A reply is limited by what the backend may still send.
    fn line_limit(left: usize) -> usize {
        left
    }

    fn literal(reply: &LineBuffer) -> Option<Literal> {
        Literal::announced_by(reply.line())
    }

    /// The limit of its lines has not counted the last CRLF.
    fn counted(reply: &LineBuffer, left: usize) -> usize {
        reply.bytes().len().min(left)
    }

    fn receive(
        &mut self,
        phase: Phase,
        reply: &LineBuffer,
        _: &mut LoginContext,
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault> {
        let status = match SieveReply::of(reply.bytes()).ok_or(BackFault::ProtocolViolation)? {
            SieveReply::Strings(name, value) => return self.listed(phase, &name, value.as_ref()),
            SieveReply::Status(status) => status,
        };
        let referral = status.code.eq_ignore_ascii_case(b"REFERRAL");
        if referral && status.word != SieveStatusKind::Ok {
            // Its text names servers inside as well (RFC 5804 section 1.3).
            return Err(BackFault::Referral);
        }
        match (phase, status.word) {
            (_, SieveStatusKind::Bye) => Err(BackFault::Bye),
            (Phase::Greeting | Phase::Capabilities, SieveStatusKind::Ok) => {
                self.is_complete = true;
                Ok(Transition::Proceed)
            }
            (Phase::Forward, SieveStatusKind::Ok) => Ok(Transition::Proceed),
            (Phase::Forward, SieveStatusKind::No) => Err(BackFault::ForwardingRefused),
            (Phase::StartTls, SieveStatusKind::Ok) => Ok(Transition::StartTls),
            (Phase::StartTls, SieveStatusKind::No) => Err(BackFault::NoStartTls),
            (Phase::Login, SieveStatusKind::Ok) => {
                write_line(out, &[b"NOOP"]);
                self.text = if referral { Vec::new() } else { status.text };
                Ok(Transition::Afterwards)
            }
            (Phase::Login, SieveStatusKind::No) => Ok(Transition::Refused(BackendReply {
                code: printable(&status.code, TEXT),
                text: printable(&status.text, TEXT),
                unavailable: status.code.eq_ignore_ascii_case(b"TRYLATER"),
            })),
            // The end of a list that came unasked; the answer to NOOP is still to come.
            (Phase::Afterwards, SieveStatusKind::Ok) if self.listing => {
                self.listing = false;
                Ok(Transition::Stay)
            }
            // NOOP is answered. A server that does not know it replies NO, which is equivalent.
            (Phase::Afterwards, SieveStatusKind::Ok | SieveStatusKind::No) if !self.listing => {
                Ok(Transition::Ready(Welcome { text: std::mem::take(&mut self.text), ..Welcome::default() }))
            }
            (
                Phase::Greeting | Phase::Capabilities | Phase::Tls | Phase::Secured | Phase::Afterwards | Phase::Over,
                SieveStatusKind::Ok | SieveStatusKind::No,
            ) => Err(BackFault::ProtocolViolation),
        }
    }

    fn needs_capabilities(&self, _: NextCommand) -> bool {
        !self.is_complete
    }

    /// They come unasked under TLS (RFC 5804 section 2.2).
    fn request_capabilities(&mut self, _: &mut SecretBuf) {}

    fn start_tls(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        self.value("STARTTLS").ok_or(BackFault::NoStartTls)?;
        write_line(out, &[b"STARTTLS"]);
        Ok(())
    }

    fn tls_started(&mut self) {
        self.capabilities.clear();
        self.is_complete = false;
    }

    /// Pigeonhole lists the command to its `login_trusted_networks` only, and takes its arguments as atoms: a quoted
    /// one is an error there.
    fn forward(&mut self, origin: &Origin, out: &mut SecretBuf) -> Result<(), BackFault> {
        self.value("XCLIENT").ok_or(BackFault::ForwardingRefused)?;
        write_line(out, &[origin.xclient().as_bytes()]);
        Ok(())
    }

    fn log_in(&mut self, account: &Account, out: &mut SecretBuf) -> Result<(), BackFault> {
        let offered = self.value("SASL").unwrap_or_default();
        let offers = |name: &str| offered.split(' ').any(|offered| offered.eq_ignore_ascii_case(name));
        let mechanism = Mechanism::for_backend(account, offers);
        let mechanism = mechanism.filter(|mechanism| mechanism.has_one_response()).ok_or(BackFault::NoMechanism)?;
        let mut message = SecretBuf::new();
        ClientExchange::new(mechanism).respond(account, &mut message).ok_or(BackFault::NoMechanism)?;
        out.extend(b"AUTHENTICATE ");
        write_string(out, mechanism.name.as_bytes(), "+");
        out.extend(b" ");
        write_string(out, message.as_slice(), "+");
        out.extend(b"\r\n");
        Ok(())
    }

    fn capabilities(&self, login_written: bool) -> Vec<String> {
        if login_written { self.capabilities.clone() } else { Vec::new() }
    }

    /// Cyrus has the command and does not list it before the login.
    fn watch(&self) -> Option<CommandWatch> {
        let cyrus = |value: &str| value.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("CYRUS"));
        let takes = self.value(UNAUTHENTICATE).is_some() || self.value("IMPLEMENTATION").is_some_and(cyrus);
        takes.then(|| CommandWatch::new(UNAUTHENTICATE, b"BYE \"UNAUTHENTICATE is not available here\"\r\n"))
    }
}

impl SieveBack {
    /// A line of a list.
    fn listed(&mut self, phase: Phase, name: &Secret, value: Option<&Secret>) -> Result<Transition, BackFault> {
        match phase {
            Phase::Greeting | Phase::Capabilities => {
                // Unprintable values are not passed on to clients.
                let shown = |string: &Secret| printable(string.expose(), usize::MAX);
                let value = value.map(shown).filter(|value| !value.is_empty());
                let value = value.map(|value| format!(" {value}")).unwrap_or_default();
                self.capabilities.push(shown(name).to_ascii_uppercase() + &value);
            }
            Phase::Afterwards => {
                self.listing = true;
                // The rest of this list is ignored.
                if name.expose().eq_ignore_ascii_case(UNAUTHENTICATE.as_bytes()) {
                    self.capabilities.push(UNAUTHENTICATE.to_owned());
                }
            }
            Phase::StartTls | Phase::Tls | Phase::Secured | Phase::Forward | Phase::Login | Phase::Over => {
                return Err(BackFault::ProtocolViolation);
            }
        }
        Ok(Transition::Stay)
    }

    /// The value of a capability; empty where it has none.
    fn value(&self, name: &str) -> Option<&str> {
        let mut listed = self.capabilities.iter().map(|one| one.split_once(' ').unwrap_or((one, "")));
        listed.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl SieveReply {
    /// `None` if it is not one of this protocol's.
    fn of(answer: &[u8]) -> Option<Self> {
        let mut rest = Cursor::new(answer);
        let words = [("OK", SieveStatusKind::Ok), ("NO", SieveStatusKind::No), ("BYE", SieveStatusKind::Bye)];
        let atom = rest.atom();
        if atom.is_empty() {
            let name = rest.string()?;
            let value = match rest.end() {
                Some(()) => None,
                None => Some(rest.expect(b" ").and_then(|()| rest.string())?),
            };
            rest.end()?;
            return Some(Self::Strings(name, value));
        }
        let (_, word) = words.into_iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(atom))?;
        let mut status = SieveStatus { word, code: Vec::new(), text: Vec::new() };
        if rest.end().is_some() {
            return Some(Self::Status(status));
        }
        rest.expect(b" ")?;
        if rest.expect(b"(").is_some() {
            status.code = rest.atom().to_vec();
            // What belongs to a code: strings, and atoms in codes that are yet to be invented.
            while rest.expect(b")").is_none() {
                rest.expect(b" ")?;
                if rest.string().is_none() && rest.atom().is_empty() {
                    return None;
                }
            }
            if rest.end().is_some() {
                return Some(Self::Status(status));
            }
            rest.expect(b" ")?;
        }
        status.text = rest.string()?.expose().to_vec();
        rest.end()?;
        Some(Self::Status(status))
    }
}
