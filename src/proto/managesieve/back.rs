//! The backend half: from a backend's greeting to its answer to a login.
//!
//! Reads the capabilities that come with the greeting and again under TLS, logs in as the user (or as a service
//! account for the user), and consumes everything that belongs to the login: a NOOP after it shows whether the
//! backend lists its capabilities again. Nothing but STARTTLS is sent before TLS, nothing learned before TLS is
//! used after it (RFC 5804 section 2.2), and only OK is success.

use super::super::sasl::{fits_plain, write_plain};
use super::super::watch::CommandWatch;
use super::super::wire::{Invalid, printable, write_line};
use super::super::{Back, BackFault, BackSettings, BackStep, BackTls, Welcome};
use super::TEXT;
use super::syntax::{Cursor, MessageReader, MessageScan, write_string};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::BackendReply;

/// Ends a login and keeps the connection (RFC 5804 section 2.14).
const UNAUTHENTICATE: &str = "UNAUTHENTICATE";

/// The dialogue with one backend.
pub(super) struct SieveBack {
    login: Vec<u8>,
    password: Secret,
    service: Option<Vec<u8>>,
    /// STARTTLS is required and not done yet.
    in_the_clear: bool,
    state: SieveBackState,
    answer: MessageReader,
    /// The capabilities of the current phase: `NAME` or `NAME value`.
    capabilities: Vec<String>,
    /// How many bytes the backend may still send.
    left: usize,
    /// Whether the login was written.
    login_written: bool,
}

/// The reply that is awaited.
#[derive(Debug)]
enum SieveBackState {
    /// Its capabilities, ended by OK: as a greeting, or under TLS.
    List,
    /// The answer to STARTTLS.
    StartTls,
    /// None: the session is starting TLS.
    Tls,
    /// The answer to the login.
    Login,
    /// The answer to the NOOP behind a login that was accepted with this text, or first a list with
    /// its OK (`listing`: in it).
    Afterwards { text: Vec<u8>, listing: bool },
    /// None: the dialogue is over.
    Over,
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

impl Back for SieveBack {
    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> BackStep {
        match self.advance(input, out) {
            Ok(step) => step,
            Err(fault) => {
                self.state = SieveBackState::Over;
                BackStep::Fault(fault)
            }
        }
    }

    fn tls_started(&mut self) {
        self.in_the_clear = false;
        self.capabilities.clear();
        self.state = SieveBackState::List;
    }

    fn login_written(&self) -> bool {
        self.login_written
    }

    fn capabilities(&self) -> Vec<String> {
        if self.login_written { self.capabilities.clone() } else { Vec::new() }
    }

    /// Cyrus has the command and does not list it before the login.
    fn watch(&self) -> Option<CommandWatch> {
        let cyrus = |value: &str| value.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("CYRUS"));
        let takes = self.value(UNAUTHENTICATE).is_some() || self.value("IMPLEMENTATION").is_some_and(cyrus);
        takes.then(|| CommandWatch::new(UNAUTHENTICATE, b"BYE \"UNAUTHENTICATE is not available here\"\r\n"))
    }
}

impl SieveBack {
    pub(super) fn new(settings: BackSettings) -> Self {
        Self {
            login: settings.login,
            password: settings.password,
            service: settings.service,
            in_the_clear: settings.tls == BackTls::StartTls,
            state: SieveBackState::List,
            answer: MessageReader::default(),
            capabilities: Vec::new(),
            left: settings.untagged_limit,
            login_written: false,
        }
    }

    fn advance(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Result<BackStep, BackFault> {
        loop {
            match self.answer.take(input, self.left) {
                MessageScan::Incomplete => return Ok(BackStep::NeedMore),
                MessageScan::Whole => {}
                MessageScan::Announced(literal) => {
                    if self.answer.buffer.bytes().len().saturating_add(literal.size) > self.left {
                        return Err(BackFault::TooLarge);
                    }
                    self.answer.expect(literal);
                    continue;
                }
                MessageScan::Spoiled(Invalid::TooLong) => return Err(BackFault::TooLarge),
                MessageScan::Spoiled(Invalid::BareLf | Invalid::BareCr | Invalid::Nul) => {
                    return Err(BackFault::ProtocolViolation);
                }
            }
            let answer = std::mem::take(&mut self.answer).buffer;
            self.left = self.left.saturating_sub(answer.bytes().len());
            if let Some(step) =
                self.receive(SieveReply::of(answer.bytes()).ok_or(BackFault::ProtocolViolation)?, out)?
            {
                return Ok(step);
            }
        }
    }

    fn receive(&mut self, answer: SieveReply, out: &mut SecretBuf) -> Result<Option<BackStep>, BackFault> {
        let status = match answer {
            SieveReply::Strings(name, value) => return self.listed(&name, value.as_ref()).map(|()| None),
            SieveReply::Status(status) => status,
        };
        if status.code.eq_ignore_ascii_case(b"REFERRAL") && status.word != SieveStatusKind::Ok {
            // Its text names servers inside as well (RFC 5804 section 1.3).
            return Err(BackFault::Referral);
        }
        match (std::mem::replace(&mut self.state, SieveBackState::Over), status.word) {
            (_, SieveStatusKind::Bye) => Err(BackFault::Bye),
            (SieveBackState::List, SieveStatusKind::Ok) => self.proceed(out).map(|()| None),
            (SieveBackState::StartTls, SieveStatusKind::Ok) => {
                self.state = SieveBackState::Tls;
                Ok(Some(BackStep::StartTls))
            }
            (SieveBackState::StartTls, SieveStatusKind::No) => Err(BackFault::NoStartTls),
            (SieveBackState::Login, SieveStatusKind::Ok) => {
                write_line(out, &[b"NOOP"]);
                let referral = status.code.eq_ignore_ascii_case(b"REFERRAL");
                self.state = SieveBackState::Afterwards {
                    text: if referral { Vec::new() } else { status.text },
                    listing: false,
                };
                Ok(None)
            }
            (SieveBackState::Login, SieveStatusKind::No) => Ok(Some(BackStep::Refused(BackendReply {
                code: printable(&status.code, TEXT),
                text: printable(&status.text, TEXT),
                unavailable: status.code.eq_ignore_ascii_case(b"TRYLATER"),
            }))),
            // The end of a list that came unasked; the answer to NOOP is still to come.
            (SieveBackState::Afterwards { text, listing: true }, SieveStatusKind::Ok) => {
                self.state = SieveBackState::Afterwards { text, listing: false };
                Ok(None)
            }
            // NOOP is answered. A server that does not know it replies NO, which is equivalent.
            (SieveBackState::Afterwards { text, listing: false }, SieveStatusKind::Ok | SieveStatusKind::No) => {
                Ok(Some(BackStep::Ready(Welcome { text, ..Welcome::default() })))
            }
            (
                SieveBackState::List | SieveBackState::Afterwards { .. } | SieveBackState::Tls | SieveBackState::Over,
                _,
            ) => Err(BackFault::ProtocolViolation),
        }
    }

    /// A line of a list.
    fn listed(&mut self, name: &Secret, value: Option<&Secret>) -> Result<(), BackFault> {
        match &mut self.state {
            SieveBackState::List => {
                // Unprintable values are not passed on to clients.
                let shown = |string: &Secret| printable(string.expose(), usize::MAX);
                let value = value.map(shown).filter(|value| !value.is_empty());
                let value = value.map(|value| format!(" {value}")).unwrap_or_default();
                self.capabilities.push(shown(name).to_ascii_uppercase() + &value);
                Ok(())
            }
            SieveBackState::Afterwards { listing, .. } => {
                *listing = true;
                // The rest of this list is ignored.
                if name.expose().eq_ignore_ascii_case(UNAUTHENTICATE.as_bytes()) {
                    self.capabilities.push(UNAUTHENTICATE.to_owned());
                }
                Ok(())
            }
            SieveBackState::StartTls | SieveBackState::Tls | SieveBackState::Login | SieveBackState::Over => {
                Err(BackFault::ProtocolViolation)
            }
        }
    }

    /// Behind a list: TLS first, then the login.
    fn proceed(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        if self.in_the_clear {
            if self.value("STARTTLS").is_none() {
                return Err(BackFault::NoStartTls);
            }
            write_line(out, &[b"STARTTLS"]);
            self.state = SieveBackState::StartTls;
            return Ok(());
        }
        let parts = [self.login.as_slice(), self.service.as_deref().unwrap_or_default(), self.password.expose()];
        let mut mechanisms = self.value("SASL").unwrap_or_default().split(' ');
        if !parts.into_iter().all(fits_plain) || !mechanisms.any(|name| name.eq_ignore_ascii_case("PLAIN")) {
            return Err(BackFault::NoMechanism);
        }
        let mut message = SecretBuf::new();
        match &self.service {
            Some(service) => write_plain(&self.login, service, &self.password, &mut message),
            None => write_plain(b"", &self.login, &self.password, &mut message),
        }
        out.extend(b"AUTHENTICATE \"PLAIN\" ");
        write_string(out, message.as_slice(), "+");
        out.extend(b"\r\n");
        self.login_written = true;
        self.state = SieveBackState::Login;
        Ok(())
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
