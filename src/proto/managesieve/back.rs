//! The backend half: ManageSieve's commands to a backend, and what its replies mean.
//!
//! Consumes everything that belongs to the login: a NOOP after it shows whether the backend lists its capabilities
//! again. Nothing but STARTTLS is sent before TLS (RFC 5804 section 2.2), and only OK is success.

use core::time::Duration;
use std::collections::VecDeque;

use super::super::backend_login::{BackDialect, LoginContext, NextCommand, Phase, Transition};
use super::super::login_way::{LoginWay, login_ways};
use super::super::sasl::Account;
use super::super::watch::CommandWatch;
use super::super::wire::{LineBuffer, Literal, printable, write_line};
use super::super::{BackFault, Origin, Welcome};
use super::TEXT;
use super::syntax::{Cursor, write_string};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::BackendReply;

/// Ends a login and keeps the connection (RFC 5804 section 2.14).
const UNAUTHENTICATE: &str = "UNAUTHENTICATE";

/// How long a list that is to come unasked is waited for before it is requested: old timsieved sends none after
/// STARTTLS.
const SILENCE: Duration = Duration::from_millis(250);

/// The dialogue's state.
#[derive(Default)]
pub(super) struct SieveBack {
    /// The capabilities of the current phase: `NAME` or `NAME value`.
    capabilities: Vec<String>,
    /// Whether that list is complete.
    is_complete: bool,
    /// Whether it was requested after a silence: the list that was to come unasked may still come, too.
    requested: bool,
    /// The text of the reply to the login.
    text: Vec<u8>,
    /// Whether another list has begun, during the login or after it.
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
        login: &mut LoginContext,
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault> {
        let status = match SieveReply::of(reply.bytes()).ok_or(BackFault::ProtocolViolation)? {
            SieveReply::Strings(challenge, None) if phase == Phase::Login && !self.lists(&challenge) => {
                return respond(&challenge, login, out);
            }
            SieveReply::Strings(name, value) => return self.listed(phase, &name, value.as_ref()),
            SieveReply::Status(status) => status,
        };
        let referral = status.code.eq_ignore_ascii_case(b"REFERRAL");
        if referral && status.word != SieveStatusKind::Ok {
            // Its text names servers inside as well (RFC 5804 section 1.3).
            return Err(BackFault::Referral);
        }
        match (phase, status.word) {
            // The login was accepted: what the server says as it ends the session is for the client.
            (Phase::Afterwards, SieveStatusKind::Bye) if !self.listing => {
                Ok(Transition::ReadyBefore(Welcome { text: std::mem::take(&mut self.text), ..Welcome::default() }))
            }
            (_, SieveStatusKind::Bye) => Err(BackFault::Bye),
            (Phase::Greeting | Phase::Capabilities, SieveStatusKind::Ok) => {
                self.is_complete = true;
                Ok(Transition::Proceed)
            }
            // The end of the second list; the reply to the command is still to come.
            (Phase::Forward | Phase::Login, SieveStatusKind::Ok) if self.listing => {
                (self.listing, self.requested) = (false, false);
                Ok(Transition::Stay)
            }
            (Phase::Forward | Phase::Login, SieveStatusKind::No) if self.listing => Err(BackFault::ProtocolViolation),
            (Phase::Forward, SieveStatusKind::Ok) => Ok(Transition::Proceed),
            (Phase::Forward, SieveStatusKind::No) => Err(BackFault::ForwardingRefused),
            (Phase::StartTls, SieveStatusKind::Ok) => Ok(Transition::StartTls),
            (Phase::StartTls, SieveStatusKind::No) => Err(BackFault::NoStartTls),
            // It has not seen the whole login, so it cannot have logged in this user.
            (Phase::Login, SieveStatusKind::Ok) if login.awaits_challenge() => Err(BackFault::ProtocolViolation),
            (Phase::Login, SieveStatusKind::Ok) => {
                write_line(out, &[b"NOOP"]);
                self.text = if referral { Vec::new() } else { status.text };
                Ok(Transition::Afterwards)
            }
            (Phase::Login, SieveStatusKind::No) => login.refused(BackendReply {
                code: printable(&status.code, TEXT),
                text: printable(&status.text, TEXT),
                unavailable: status.code.eq_ignore_ascii_case(b"TRYLATER"),
                challenge: None,
            }),
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

    fn patience(&self) -> Option<Duration> {
        (!self.requested && self.capabilities.is_empty()).then_some(SILENCE)
    }

    fn request_after_silence(&mut self, out: &mut SecretBuf) {
        self.requested = true;
        write_line(out, &[b"CAPABILITY"]);
    }

    fn start_tls(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        if !self.has("STARTTLS") {
            return Err(BackFault::NoStartTls);
        }
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
        if !self.has("XCLIENT") {
            return Err(BackFault::ForwardingRefused);
        }
        write_line(out, &[origin.xclient().as_bytes()]);
        Ok(())
    }

    fn ways(&self, account: &Account, initial_response: bool) -> VecDeque<LoginWay> {
        let offers = |name: &str| {
            let mut offered = self.values("SASL").flat_map(|value| value.split(' '));
            offered.any(|offered| offered.eq_ignore_ascii_case(name))
        };
        login_ways(account, offers, false, |_| initial_response)
    }

    fn log_in(&mut self, way: LoginWay, login: &mut LoginContext, out: &mut SecretBuf) -> Result<(), BackFault> {
        let mechanism = match way {
            LoginWay::InitialResponse(mechanism) | LoginWay::Exchange(mechanism) => mechanism,
            // ManageSieve has no command of its own.
            LoginWay::Command => return Err(BackFault::NoMechanism),
        };
        out.extend(b"AUTHENTICATE ");
        write_string(out, mechanism.name.as_bytes(), "+");
        if let LoginWay::InitialResponse(_) = way {
            let mut message = SecretBuf::new();
            login.begin_with_initial(mechanism, &mut message);
            out.extend(b" ");
            write_string(out, message.as_slice(), "+");
        } else {
            login.begin(mechanism);
        }
        out.extend(b"\r\n");
        Ok(())
    }

    fn capabilities(&self, login_written: bool) -> Vec<String> {
        if login_written { self.capabilities.clone() } else { Vec::new() }
    }

    /// Cyrus has the command and does not list it before the login.
    fn watch(&self) -> Option<CommandWatch> {
        let cyrus = |value: &str| value.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("CYRUS"));
        let takes = self.has(UNAUTHENTICATE) || self.values("IMPLEMENTATION").any(cyrus);
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
            Phase::Forward | Phase::Login if self.lists(name) => self.listing = true,
            Phase::StartTls | Phase::Tls | Phase::Secured | Phase::Forward | Phase::Login | Phase::Over => {
                return Err(BackFault::ProtocolViolation);
            }
        }
        Ok(Transition::Stay)
    }

    /// Whether a line after the capabilities belongs to a list: the second of two, which begins as the first did.
    fn lists(&self, name: &Secret) -> bool {
        let first = self.capabilities.first().and_then(|first| first.split(' ').next());
        let begins = first.is_some_and(|first| name.expose().eq_ignore_ascii_case(first.as_bytes()));
        self.listing || self.requested && begins
    }

    fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// The values of a capability in all lines that have it; empty where one has none.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let listed = self.capabilities.iter().map(|one| one.split_once(' ').unwrap_or((one, "")));
        listed.filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

fn respond(challenge: &Secret, login: &mut LoginContext, out: &mut SecretBuf) -> Result<Transition, BackFault> {
    let mut response = SecretBuf::new();
    login.respond(challenge.expose(), &mut response)?;
    write_string(out, response.as_slice(), "+");
    out.extend(b"\r\n");
    Ok(Transition::Stay)
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
