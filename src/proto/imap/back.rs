//! The backend half: from a backend's greeting to its answer to a login.
//!
//! Starts TLS where it must, reads the backend's capabilities, logs in as the user (or as a service account for
//! the user) and returns what the backend sent meanwhile. Nothing but CAPABILITY and STARTTLS is sent before
//! TLS, nothing learned before TLS is used after it (RFC 9051 section 6.2.1), and only usher's own tag followed
//! by OK is success. A backend that violates the protocol's order is a fault.

use super::super::sasl::{fits_plain, write_plain};
use super::super::wire::{Invalid, LineBuffer, Literal, Scan, first_word, printable, write_line};
use super::super::{Back, BackFault, BackSettings, BackStep, BackTls, Origin, Welcome};
use super::{LINE, TEXT};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::BackendReply;

/// The longest name or password that is sent as a quoted string: old servers have short lines.
const QUOTED: usize = 1024;
/// The longest non-synchronizing literal under LITERAL- (RFC 7888 section 5).
const LITERAL_MINUS: usize = 4096;

/// The dialogue with one backend.
pub(super) struct ImapBack {
    login: Vec<u8>,
    password: Secret,
    service: Option<Vec<u8>>,
    /// The client to forward; `None` once it was sent.
    forward: Option<Origin>,
    /// STARTTLS is required and not done yet.
    in_the_clear: bool,
    state: ImapBackState,
    /// What has arrived of the current answer.
    buffer: LineBuffer,
    /// Bytes of a literal that are to come before the answer's line goes on.
    literal: usize,
    /// The capabilities of the current phase: before TLS, before the login, after the login.
    capabilities: Option<Vec<u8>>,
    /// Its capabilities when the login was written.
    listed: Vec<String>,
    /// Untagged lines for the client.
    untagged: Vec<u8>,
    /// How many bytes of untagged lines the backend may still send.
    untagged_left: usize,
    /// How many commands were sent: the number in the last one's tag.
    commands: u32,
    /// Whether the login is among them.
    login_written: bool,
}

/// The reply that is awaited, besides untagged lines.
#[derive(Debug)]
enum ImapBackState {
    Greeting,
    /// The answer to a CAPABILITY before the login.
    Capability,
    /// The answer to STARTTLS.
    StartTls,
    /// None: the session is starting TLS.
    Tls,
    /// None: TLS is established and usher sends the next command.
    Secured,
    /// The answer to ID.
    Id,
    /// The reply to the login, or its continuation request.
    Login(ImapPending),
    /// The answer to a CAPABILITY after a login that was accepted with this text.
    Afterwards(Vec<u8>),
    /// None: the dialogue is over.
    Over,
}

/// The part of a login that awaits a continuation request.
#[derive(Debug, Clone, Copy)]
enum ImapPending {
    Nothing,
    PlainMessage,
    LoginName,
    Password,
}

impl Back for ImapBack {
    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> BackStep {
        match self.advance(input, out) {
            Ok(step) => step,
            Err(fault) => {
                self.state = ImapBackState::Over;
                BackStep::Fault(fault)
            }
        }
    }

    fn tls_started(&mut self) {
        self.in_the_clear = false;
        self.capabilities = None;
        self.state = ImapBackState::Secured;
    }

    fn login_written(&self) -> bool {
        self.login_written
    }

    fn capabilities(&self) -> Vec<String> {
        self.listed.clone()
    }
}

impl ImapBack {
    pub(super) fn new(settings: BackSettings) -> Self {
        Self {
            login: settings.login,
            password: settings.password,
            service: settings.service,
            forward: settings.forward,
            in_the_clear: settings.tls == BackTls::StartTls,
            state: ImapBackState::Greeting,
            buffer: LineBuffer::default(),
            literal: 0,
            capabilities: None,
            listed: Vec::new(),
            untagged: Vec::new(),
            untagged_left: settings.untagged_limit,
            commands: 0,
            login_written: false,
        }
    }

    fn advance(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Result<BackStep, BackFault> {
        if matches!(self.state, ImapBackState::Secured) {
            self.send(&[b"CAPABILITY"], out);
            self.state = ImapBackState::Capability;
        }
        loop {
            if self.literal > 0 {
                self.literal = self.buffer.take_literal(input, self.literal);
                if self.literal > 0 {
                    return Ok(BackStep::NeedMore);
                }
            }
            match self.buffer.take_line(input, LINE) {
                Scan::Incomplete => return Ok(BackStep::NeedMore),
                Scan::Line => {}
                Scan::Spoiled(Invalid::TooLong) => return Err(BackFault::TooLarge),
                // A line whose end is ambiguous must not reach a client.
                Scan::Spoiled(Invalid::BareLf | Invalid::BareCr | Invalid::Nul) => {
                    return Err(BackFault::ProtocolViolation);
                }
            }
            if self.is_cut_by_literal()? {
                continue;
            }
            let answer = std::mem::take(&mut self.buffer);
            if let Some(step) = self.receive(answer.bytes(), out)? {
                return Ok(step);
            }
        }
    }

    /// Whether the line just gathered ends in a literal that belongs to it. Only data has literals: the text of
    /// a status may end in `{5}` without announcing one.
    fn is_cut_by_literal(&mut self) -> Result<bool, BackFault> {
        let answer = self.buffer.bytes();
        let is_data = answer.strip_prefix(b"* ").is_some_and(|line| ImapStatus::of(line).is_none());
        let Some(literal) = Literal::announced_by(self.buffer.line()).filter(|_| is_data) else { return Ok(false) };
        if answer.len().saturating_add(literal.size) > self.untagged_left {
            return Err(BackFault::TooLarge);
        }
        self.literal = literal.size;
        // Starts the next line, for an empty literal as well.
        self.buffer.take_literal(&mut SecretBuf::new(), 0);
        Ok(true)
    }

    /// Handles one complete reply.
    fn receive(&mut self, answer: &[u8], out: &mut SecretBuf) -> Result<Option<BackStep>, BackFault> {
        let tag = self.tag();
        if let Some(line) = answer.strip_prefix(b"* ") {
            self.untagged_left = self.untagged_left.checked_sub(answer.len()).ok_or(BackFault::TooLarge)?;
            self.untagged(line, out)?;
            return Ok(None);
        }
        if answer.starts_with(b"+ ") || answer == b"+\r\n" {
            self.continue_login(out)?;
            return Ok(None);
        }
        let line = answer.strip_prefix(tag.as_bytes()).and_then(|line| line.strip_prefix(b" "));
        self.tagged(line.and_then(ImapStatus::of).ok_or(BackFault::ProtocolViolation)?, out)
    }

    fn untagged(&mut self, line: &[u8], out: &mut SecretBuf) -> Result<(), BackFault> {
        let status = ImapStatus::of(line);
        if let Some(ImapStatus { word: ImapStatusKind::Bye, .. }) = status {
            return Err(BackFault::Bye);
        }
        let listed = match &status {
            Some(status) => status.capabilities(),
            None => capability_line(line),
        };
        let lists = listed.is_some();
        if let Some(listed) = listed {
            self.capabilities = Some(listed.to_vec());
        }
        match (&self.state, status.map(|status| status.word)) {
            (ImapBackState::Greeting, Some(ImapStatusKind::Ok)) => self.proceed(out),
            // A session that is logged in before TLS: the user's commands would go to an attacker on the path
            // (RFC 9051 section 11.1).
            (_, Some(ImapStatusKind::Preauth)) => Err(BackFault::Preauth),
            (ImapBackState::Greeting, _) => Err(BackFault::ProtocolViolation),
            // Capabilities are not passed on here: the client gets them with the tagged OK.
            (ImapBackState::Login(_) | ImapBackState::Afterwards(_), _) if !lists => {
                self.untagged.extend_from_slice(b"* ");
                self.untagged.extend_from_slice(line);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tagged(&mut self, status: ImapStatus<'_>, out: &mut SecretBuf) -> Result<Option<BackStep>, BackFault> {
        match (std::mem::replace(&mut self.state, ImapBackState::Over), status.word) {
            (ImapBackState::Capability, ImapStatusKind::Ok) => {
                // An OK without a list does not reply to CAPABILITY.
                self.capabilities.as_ref().ok_or(BackFault::ProtocolViolation)?;
                self.proceed(out)?;
                Ok(None)
            }
            (ImapBackState::StartTls, ImapStatusKind::Ok) => {
                self.state = ImapBackState::Tls;
                Ok(Some(BackStep::StartTls))
            }
            (ImapBackState::StartTls, ImapStatusKind::No) => Err(BackFault::NoStartTls),
            (ImapBackState::Id, ImapStatusKind::Ok) => {
                self.proceed(out)?;
                Ok(None)
            }
            (ImapBackState::Id, ImapStatusKind::No | ImapStatusKind::Bad) => Err(BackFault::ForwardingRefused),
            (ImapBackState::Login(_), ImapStatusKind::Ok) => self.logged_in(&status, out),
            (ImapBackState::Login(_), ImapStatusKind::No) if status.is_referral() => Err(BackFault::Referral),
            (ImapBackState::Login(_), ImapStatusKind::No) => Ok(Some(BackStep::Refused(BackendReply {
                code: printable(status.code, TEXT),
                text: printable(status.text, TEXT),
                unavailable: status.is_about_the_server(),
            }))),
            (ImapBackState::Afterwards(text), ImapStatusKind::Ok) => Ok(Some(self.ready(text))),
            (ImapBackState::Capability | ImapBackState::Afterwards(_), ImapStatusKind::No)
            | (
                ImapBackState::Capability
                | ImapBackState::StartTls
                | ImapBackState::Login(_)
                | ImapBackState::Afterwards(_),
                ImapStatusKind::Bad,
            ) => Err(BackFault::Bad),
            (ImapBackState::Greeting | ImapBackState::Tls | ImapBackState::Secured | ImapBackState::Over, _)
            | (_, ImapStatusKind::Bye | ImapStatusKind::Preauth) => Err(BackFault::ProtocolViolation),
        }
    }

    /// After the greeting, and whenever capabilities have come: TLS first, then the login.
    fn proceed(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        if self.capabilities.is_none() {
            self.send(&[b"CAPABILITY"], out);
            self.state = ImapBackState::Capability;
        } else if self.in_the_clear {
            if !self.can("STARTTLS") {
                return Err(BackFault::NoStartTls);
            }
            self.send(&[b"STARTTLS"], out);
            self.state = ImapBackState::StartTls;
        } else if let Some(origin) = self.forward.take() {
            self.introduce(&origin, out);
            self.state = ImapBackState::Id;
        } else {
            let pending = self.log_in(out)?;
            self.login_written = true;
            self.state = ImapBackState::Login(pending);
            // They change with the login (RFC 9051 section 6.2.3).
            let capabilities = self.capabilities.take().unwrap_or_default();
            let words = capabilities.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
            self.listed = words.map(|word| printable(word, TEXT)).collect();
            // LITERAL+ implies LITERAL- (RFC 7888 section 4).
            if self.listed.iter().any(|word| word.eq_ignore_ascii_case("LITERAL+")) {
                self.listed.push("LITERAL-".to_owned());
            }
        }
        Ok(())
    }

    /// Sends the client's address in the fields that Dovecot takes from its `login_trusted_networks`.
    fn introduce(&mut self, origin: &Origin, out: &mut SecretBuf) {
        let Origin { client, local, session } = origin;
        let id = format!(
            "ID (\"name\" \"usher\" \"x-originating-ip\" \"{}\" \"x-originating-port\" \"{}\" \"x-connected-ip\" \"{}\" \
             \"x-connected-port\" \"{}\" \"x-session-id\" \"{session}\")",
            client.ip(),
            client.port(),
            local.ip(),
            local.port(),
        );
        self.send(&[id.as_bytes()], out);
    }

    /// Sends the login, or what can be sent of it at once. PLAIN is preferred to LOGIN, which knows no authzid
    /// and may be disabled; a login on behalf of another user never falls back to LOGIN.
    fn log_in(&mut self, out: &mut SecretBuf) -> Result<ImapPending, BackFault> {
        let parts = [self.login.as_slice(), self.service.as_deref().unwrap_or_default(), self.password.expose()];
        if !parts.into_iter().all(fits_plain) {
            return Err(BackFault::NoMechanism);
        }
        if self.can("AUTH=PLAIN") {
            if !self.can("SASL-IR") {
                self.send(&[b"AUTHENTICATE PLAIN"], out);
                return Ok(ImapPending::PlainMessage);
            }
            self.begin(b"AUTHENTICATE PLAIN ", out);
            self.write_plain_message(out);
            return Ok(ImapPending::Nothing);
        }
        if self.service.is_some() || self.can("LOGINDISABLED") {
            return Err(BackFault::NoMechanism);
        }
        self.begin(b"LOGIN ", out);
        Ok(if self.write_argument(&self.login, out) { self.write_password(out) } else { ImapPending::LoginName })
    }

    /// The backend has requested the pending part.
    fn continue_login(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        let ImapBackState::Login(pending) = self.state else { return Err(BackFault::ProtocolViolation) };
        self.state = ImapBackState::Login(match pending {
            ImapPending::Nothing => return Err(BackFault::ProtocolViolation),
            ImapPending::PlainMessage => {
                self.write_plain_message(out);
                ImapPending::Nothing
            }
            ImapPending::LoginName => {
                out.extend(&self.login);
                self.write_password(out)
            }
            ImapPending::Password => {
                write_line(out, &[self.password.expose()]);
                ImapPending::Nothing
            }
        });
        Ok(())
    }

    fn write_plain_message(&self, out: &mut SecretBuf) {
        match &self.service {
            Some(service) => write_plain(&self.login, service, &self.password, out),
            None => write_plain(b"", &self.login, &self.password, out),
        }
        out.extend(b"\r\n");
    }

    fn write_password(&self, out: &mut SecretBuf) -> ImapPending {
        out.extend(b" ");
        if !self.write_argument(self.password.expose(), out) {
            return ImapPending::Password;
        }
        out.extend(b"\r\n");
        ImapPending::Nothing
    }

    /// Writes a string in the plainest form that carries it. Returns whether that was possible, or only the
    /// announcement of a literal, whose bytes need a continuation request.
    fn write_argument(&self, argument: &[u8], out: &mut SecretBuf) -> bool {
        if argument.len() <= QUOTED && argument.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            out.extend(b"\"");
            for byte in argument {
                if matches!(byte, b'"' | b'\\') {
                    out.extend(b"\\");
                }
                out.extend(&[*byte]);
            }
            out.extend(b"\"");
            return true;
        }
        let unasked = self.can("LITERAL+") || (self.can("LITERAL-") && argument.len() <= LITERAL_MINUS);
        let plus = if unasked { "+" } else { "" };
        write_line(out, &[format!("{{{}{plus}}}", argument.len()).as_bytes()]);
        if unasked {
            out.extend(argument);
        }
        unasked
    }

    /// The login is accepted; capabilities are requested unless the backend has listed them.
    fn logged_in(&mut self, status: &ImapStatus<'_>, out: &mut SecretBuf) -> Result<Option<BackStep>, BackFault> {
        match status.capabilities() {
            Some(listed) => self.capabilities = Some(listed.to_vec()),
            // The client's tagged OK has room for one code, the capabilities. Another one (such as ALERT) is
            // sent before it; a referral is dropped with its text.
            None if status.is_referral() => {}
            None if !status.code.is_empty() => {
                let line = [b"* OK [", status.code, b"] ", status.text, b"\r\n"].concat();
                self.untagged_left = self.untagged_left.checked_sub(line.len()).ok_or(BackFault::TooLarge)?;
                self.untagged.extend(line);
            }
            None => {}
        }
        let text = if status.is_referral() { Vec::new() } else { status.text.to_vec() };
        if self.capabilities.is_some() {
            return Ok(Some(self.ready(text)));
        }
        self.send(&[b"CAPABILITY"], out);
        self.state = ImapBackState::Afterwards(text);
        Ok(None)
    }

    fn ready(&mut self, text: Vec<u8>) -> BackStep {
        let capabilities = for_client(self.capabilities.as_deref().unwrap_or_default());
        BackStep::Ready(Welcome { untagged: std::mem::take(&mut self.untagged), capabilities, text })
    }

    fn can(&self, capability: &str) -> bool {
        let listed = self.capabilities.as_deref().unwrap_or_default();
        listed.split(|byte| *byte == b' ').any(|word| word.eq_ignore_ascii_case(capability.as_bytes()))
    }

    fn tag(&self) -> String {
        format!("u{}", self.commands)
    }

    fn begin(&mut self, command: &[u8], out: &mut SecretBuf) {
        self.commands = self.commands.saturating_add(1);
        out.extend(self.tag().as_bytes());
        out.extend(b" ");
        out.extend(command);
    }

    fn send(&mut self, command: &[&[u8]], out: &mut SecretBuf) {
        self.begin(b"", out);
        write_line(out, command);
    }
}

/// A status response behind its tag or `*` (RFC 9051 section 7.1).
#[derive(Debug)]
struct ImapStatus<'a> {
    word: ImapStatusKind,
    /// The response code without brackets; empty if absent.
    code: &'a [u8],
    text: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ImapStatusKind {
    Ok,
    No,
    Bad,
    Bye,
    Preauth,
}

impl<'a> ImapStatus<'a> {
    /// `None` if the line's first word, up to a space or the end, is not exactly one of the five.
    fn of(line: &'a [u8]) -> Option<Self> {
        let (word, rest) = first_word(line.strip_suffix(b"\r\n").unwrap_or(line));
        let words = [
            ("OK", ImapStatusKind::Ok),
            ("NO", ImapStatusKind::No),
            ("BAD", ImapStatusKind::Bad),
            ("BYE", ImapStatusKind::Bye),
            ("PREAUTH", ImapStatusKind::Preauth),
        ];
        let (_, word) = words.into_iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(word))?;
        let (code, text) = split_code(rest).unwrap_or((b"", rest));
        Some(Self { word, code, text })
    }

    fn capabilities(&self) -> Option<&'a [u8]> {
        capability_line(self.code)
    }

    /// Codes that report a temporary failure of the server (RFC 5530).
    fn is_about_the_server(&self) -> bool {
        ["UNAVAILABLE", "SERVERBUG", "INUSE"].iter().any(|code| self.code.eq_ignore_ascii_case(code.as_bytes()))
    }

    fn is_referral(&self) -> bool {
        first_word(self.code).0.eq_ignore_ascii_case(b"REFERRAL")
    }
}

/// Splits `[code] text`.
fn split_code(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inside = text.strip_prefix(b"[")?;
    let end = inside.iter().position(|byte| *byte == b']')?;
    let behind = inside.get(end + 1..)?;
    Some((inside.get(..end)?, behind.strip_prefix(b" ").unwrap_or(behind)))
}

/// The list in `CAPABILITY list`, a data line or a code.
fn capability_line(line: &[u8]) -> Option<&[u8]> {
    let (word, list) = first_word(line.strip_suffix(b"\r\n").unwrap_or(line));
    word.eq_ignore_ascii_case(b"CAPABILITY").then_some(list)
}

/// A backend's capabilities as the client may see them: without what ends with the login or what a
/// relay cannot carry. COMPRESS stays: it is between client and backend, usher only relays it.
fn for_client(listed: &[u8]) -> Vec<u8> {
    let hidden = |word: &[u8]| {
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        // Would leave the client before login at the backend, where usher cannot log it in again (RFC 8437).
        is("UNAUTHENTICATE")
            // Are about a state that is over; STARTTLS inside usher's TLS would break the session.
            || is("STARTTLS")
            || is("LOGINDISABLED")
            || word.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"AUTH="))
            // Would send the client to servers that it cannot reach (RFC 2221, RFC 2193).
            || is("LOGIN-REFERRALS")
            || is("MAILBOX-REFERRALS")
    };
    let words = listed.split(|byte| *byte == b' ');
    // Nothing but what a capability is made of, so that the list fits into the tagged OK's code.
    let sound = |word: &&[u8]| !word.is_empty() && word.iter().all(|byte| byte.is_ascii_graphic() && *byte != b']');
    words.filter(sound).filter(|word| !hidden(word)).collect::<Vec<_>>().join(&b' ')
}
