//! The backend half: from a backend's greeting to its answer to a login.
//!
//! Reads the capabilities that come with the greeting and again under TLS, logs in as the user (or as a
//! service account for the user), and sees to it that nothing of the login is left unread: a NOOP behind
//! it tells whether the backend lists its capabilities once more. Nothing but STARTTLS is sent before
//! TLS, nothing learned before TLS is used after it (RFC 5804 section 2.2), and nothing but the word OK
//! is success.

use super::super::sasl::{fits_plain, write_plain};
use super::super::watch::Watch;
use super::super::wire::{Spoiled, printable, write_line};
use super::super::{Back, BackFault, BackSettings, BackStep, BackTls, Welcome};
use super::TEXT;
use super::syntax::{Cursor, Gathered, Gatherer, write_string};
use crate::outcome::BackendWords;
use crate::secret::{Secret, SecretBuf};

/// Ends a login and keeps the connection (RFC 5804 section 2.14).
const UNAUTHENTICATE: &str = "UNAUTHENTICATE";

/// The dialogue with one backend.
pub(super) struct SieveBack {
    login: Vec<u8>,
    password: Secret,
    service: Option<Vec<u8>>,
    /// STARTTLS is wanted and has not been done.
    in_the_clear: bool,
    state: State,
    answer: Gatherer,
    /// What the backend can do, as far as it said so in the current phase: `NAME` or `NAME value`.
    capabilities: Vec<String>,
    /// How many bytes the backend may still send.
    left: usize,
    /// Whether the login was written.
    asked: bool,
}

/// What the backend is to say next.
#[derive(Debug)]
enum State {
    /// Its capabilities, unasked, with an OK at their end: as a greeting, or under TLS.
    List,
    /// The answer to STARTTLS.
    StartTls,
    /// Nothing: the session is starting TLS.
    Tls,
    /// The answer to the login.
    Login,
    /// The answer to the NOOP behind a login that was accepted with this text, or first a list with
    /// its OK (`listing`: in it).
    Afterwards { text: Vec<u8>, listing: bool },
    /// Nothing any more.
    Over,
}

/// One answer.
enum Answer {
    /// A string, or two: a capability.
    Strings(Secret, Option<Secret>),
    Status(Status),
}

struct Status {
    word: Word,
    /// The response code's name; empty when there is none.
    code: Vec<u8>,
    text: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Ok,
    No,
    Bye,
}

impl Back for SieveBack {
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
        self.capabilities.clear();
        self.state = State::List;
    }

    fn has_asked(&self) -> bool {
        self.asked
    }

    fn capabilities(&self) -> Vec<String> {
        if self.asked { self.capabilities.clone() } else { Vec::new() }
    }

    /// Cyrus has the command and does not list it before the login.
    fn watch(&self) -> Option<Watch> {
        let cyrus = |value: &str| value.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("CYRUS"));
        let takes = self.value(UNAUTHENTICATE).is_some() || self.value("IMPLEMENTATION").is_some_and(cyrus);
        takes.then(|| Watch::new(UNAUTHENTICATE, b"BYE \"UNAUTHENTICATE is not available here\"\r\n"))
    }
}

impl SieveBack {
    pub(super) fn new(settings: BackSettings) -> Self {
        Self {
            login: settings.login,
            password: settings.password,
            service: settings.service,
            in_the_clear: settings.tls == BackTls::StartTls,
            state: State::List,
            answer: Gatherer::default(),
            capabilities: Vec::new(),
            left: settings.untagged_limit,
            asked: false,
        }
    }

    fn advance(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Result<BackStep, BackFault> {
        loop {
            match self.answer.take(input, self.left) {
                Gathered::Part => return Ok(BackStep::NeedMore),
                Gathered::Whole => {}
                Gathered::Announced(literal) => {
                    if self.answer.gathered.bytes().len().saturating_add(literal.size) > self.left {
                        return Err(BackFault::TooMuch);
                    }
                    self.answer.expect(literal);
                    continue;
                }
                Gathered::Spoiled(Spoiled::TooLong) => return Err(BackFault::TooMuch),
                Gathered::Spoiled(Spoiled::BareLf | Spoiled::BareCr | Spoiled::Nul) => return Err(BackFault::Garbage),
            }
            let answer = std::mem::take(&mut self.answer).gathered;
            self.left = self.left.saturating_sub(answer.bytes().len());
            if let Some(step) = self.receive(Answer::of(answer.bytes()).ok_or(BackFault::Garbage)?, out)? {
                return Ok(step);
            }
        }
    }

    fn receive(&mut self, answer: Answer, out: &mut SecretBuf) -> Result<Option<BackStep>, BackFault> {
        let status = match answer {
            Answer::Strings(name, value) => return self.listed(&name, value.as_ref()).map(|()| None),
            Answer::Status(status) => status,
        };
        if status.code.eq_ignore_ascii_case(b"REFERRAL") && status.word != Word::Ok {
            // Its text names servers inside as well (RFC 5804 section 1.3).
            return Err(BackFault::Referral);
        }
        match (std::mem::replace(&mut self.state, State::Over), status.word) {
            (_, Word::Bye) => Err(BackFault::Bye),
            (State::List, Word::Ok) => self.proceed(out).map(|()| None),
            (State::StartTls, Word::Ok) => {
                self.state = State::Tls;
                Ok(Some(BackStep::StartTls))
            }
            (State::StartTls, Word::No) => Err(BackFault::NoStartTls),
            (State::Login, Word::Ok) => {
                write_line(out, &[b"NOOP"]);
                let referral = status.code.eq_ignore_ascii_case(b"REFERRAL");
                self.state =
                    State::Afterwards { text: if referral { Vec::new() } else { status.text }, listing: false };
                Ok(None)
            }
            (State::Login, Word::No) => Ok(Some(BackStep::Refused(BackendWords {
                code: printable(&status.code, TEXT),
                text: printable(&status.text, TEXT),
                unavailable: status.code.eq_ignore_ascii_case(b"TRYLATER"),
            }))),
            // The end of a list that came unasked; the answer to NOOP is still to come.
            (State::Afterwards { text, listing: true }, Word::Ok) => {
                self.state = State::Afterwards { text, listing: false };
                Ok(None)
            }
            // NOOP is answered. A server from before it was invented says NO, which is as good.
            (State::Afterwards { text, listing: false }, Word::Ok | Word::No) => {
                Ok(Some(BackStep::Ready(Welcome { text, ..Welcome::default() })))
            }
            (State::List | State::Afterwards { .. } | State::Tls | State::Over, _) => Err(BackFault::Garbage),
        }
    }

    /// A line of a list.
    fn listed(&mut self, name: &Secret, value: Option<&Secret>) -> Result<(), BackFault> {
        match &mut self.state {
            State::List => {
                // What does not print has no place in a list that clients may get.
                let shown = |string: &Secret| printable(string.expose(), usize::MAX);
                let value = value.map(shown).filter(|value| !value.is_empty());
                let value = value.map(|value| format!(" {value}")).unwrap_or_default();
                self.capabilities.push(shown(name).to_ascii_uppercase() + &value);
                Ok(())
            }
            State::Afterwards { listing, .. } => {
                *listing = true;
                // Of this list no more is of use.
                if name.expose().eq_ignore_ascii_case(UNAUTHENTICATE.as_bytes()) {
                    self.capabilities.push(UNAUTHENTICATE.to_owned());
                }
                Ok(())
            }
            State::StartTls | State::Tls | State::Login | State::Over => Err(BackFault::Garbage),
        }
    }

    /// Behind a list: TLS first, then the login.
    fn proceed(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        if self.in_the_clear {
            if self.value("STARTTLS").is_none() {
                return Err(BackFault::NoStartTls);
            }
            write_line(out, &[b"STARTTLS"]);
            self.state = State::StartTls;
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
        self.asked = true;
        self.state = State::Login;
        Ok(())
    }

    /// The value of a capability; empty where it has none.
    fn value(&self, name: &str) -> Option<&str> {
        let mut listed = self.capabilities.iter().map(|one| one.split_once(' ').unwrap_or((one, "")));
        listed.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl Answer {
    /// `None` if it is none of this protocol's.
    fn of(answer: &[u8]) -> Option<Self> {
        let mut rest = Cursor::new(answer);
        let words = [("OK", Word::Ok), ("NO", Word::No), ("BYE", Word::Bye)];
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
        let mut status = Status { word, code: Vec::new(), text: Vec::new() };
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
