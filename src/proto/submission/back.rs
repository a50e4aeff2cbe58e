//! The backend half: from a submission server's greeting to its answer to a login.
//!
//! Says EHLO, starts TLS where it must and says EHLO again, logs in as the user (or as a service account for
//! the user). Nothing but EHLO and STARTTLS is sent before TLS, nothing learned before TLS is used after it
//! (RFC 3207 section 4.2), and only 235 is success. A backend that violates the protocol's order is a fault.

use std::sync::Arc;

use super::super::sasl::{fits_plain, write_base64, write_plain};
use super::super::wire::{Invalid, LineBuffer, Scan, printable, write_line};
use super::super::{Back, BackFault, BackSettings, BackStep, BackTls, Origin, Welcome};
use super::{COMMAND, TEXT, split_enhanced};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::BackendReply;

/// The longest line of a server, without CRLF. It may have 512 octets (RFC 5321 section 4.5.3.1.5), and
/// some greet at more length.
const LINE: usize = 2048;

/// The dialogue with one backend.
pub(super) struct SubmissionBack {
    login: Vec<u8>,
    password: Secret,
    service: Option<Vec<u8>>,
    /// The client to forward; `None` once it was sent.
    forward: Option<Origin>,
    /// usher's own name.
    host: Arc<str>,
    /// STARTTLS is required and not done yet.
    in_the_clear: bool,
    state: SubmissionBackState,
    /// What has arrived of the current line.
    buffer: LineBuffer,
    /// The lines of the current reply, without their codes.
    lines: Vec<Vec<u8>>,
    /// The code of the current reply, when a line of it has come.
    code: Option<[u8; 3]>,
    /// How many bytes the backend may still send.
    bytes_left: usize,
    /// Whether the login was written.
    login_written: bool,
    /// The keywords that it listed before that.
    listed: Vec<String>,
}

/// The reply that is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SubmissionBackState {
    Greeting,
    /// The answer to EHLO.
    Ehlo,
    /// The answer to STARTTLS.
    StartTls,
    /// None: the session is starting TLS.
    Tls,
    /// None: TLS is established and usher sends the next command.
    Secured,
    /// The answer to XCLIENT.
    Xclient,
    /// The reply to the login, or its continuation request.
    Login(SubmissionPending),
    /// None: the dialogue is over.
    Over,
}

/// The part of a login that awaits a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SubmissionPending {
    Nothing,
    PlainMessage,
    LoginName,
    Password,
}

impl Back for SubmissionBack {
    fn step(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> BackStep {
        match self.advance(input, out) {
            Ok(step) => step,
            Err(fault) => {
                self.state = SubmissionBackState::Over;
                BackStep::Fault(fault)
            }
        }
    }

    fn tls_started(&mut self) {
        self.in_the_clear = false;
        self.state = SubmissionBackState::Secured;
    }

    fn login_written(&self) -> bool {
        self.login_written
    }

    fn capabilities(&self) -> Vec<String> {
        self.listed.clone()
    }
}

impl SubmissionBack {
    pub(super) fn new(settings: BackSettings) -> Self {
        Self {
            login: settings.login,
            password: settings.password,
            service: settings.service,
            forward: settings.forward,
            host: settings.host,
            in_the_clear: settings.tls == BackTls::StartTls,
            state: SubmissionBackState::Greeting,
            buffer: LineBuffer::default(),
            lines: Vec::new(),
            code: None,
            bytes_left: settings.untagged_limit,
            login_written: false,
            listed: Vec::new(),
        }
    }

    fn advance(&mut self, input: &mut SecretBuf, out: &mut SecretBuf) -> Result<BackStep, BackFault> {
        if self.state == SubmissionBackState::Secured {
            self.introduce(out);
        }
        loop {
            match self.buffer.take_line(input, LINE) {
                Scan::Incomplete => return Ok(BackStep::NeedMore),
                Scan::Line => {}
                Scan::Spoiled(Invalid::TooLong) => return Err(BackFault::TooLarge),
                // A line whose end is ambiguous is a fault.
                Scan::Spoiled(Invalid::BareLf | Invalid::BareCr | Invalid::Nul) => {
                    return Err(BackFault::ProtocolViolation);
                }
            }
            let line = std::mem::take(&mut self.buffer);
            self.bytes_left = self.bytes_left.checked_sub(line.bytes().len()).ok_or(BackFault::TooLarge)?;
            if let Some(code) = self.gather(line.line())? {
                let lines = std::mem::take(&mut self.lines);
                if let Some(step) = self.receive(code, &lines, out)? {
                    return Ok(step);
                }
            }
        }
    }

    /// Adds a line to the reply; the code when it is complete (RFC 5321 section 4.2).
    fn gather(&mut self, line: &[u8]) -> Result<Option<[u8; 3]>, BackFault> {
        let (code, rest) = line.split_first_chunk::<3>().ok_or(BackFault::ProtocolViolation)?;
        let known = self.code.is_none_or(|known| known == *code);
        if !known || !matches!(code, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9']) {
            return Err(BackFault::ProtocolViolation);
        }
        let (goes_on, text) = match rest.split_first() {
            None => (false, rest),
            Some((b' ', text)) => (false, text),
            Some((b'-', text)) => (true, text),
            Some(_) => return Err(BackFault::ProtocolViolation),
        };
        self.lines.push(text.to_vec());
        self.code = goes_on.then_some(*code);
        Ok((!goes_on).then_some(*code))
    }

    /// Handles one complete reply.
    fn receive(
        &mut self,
        code: [u8; 3],
        lines: &[Vec<u8>],
        out: &mut SecretBuf,
    ) -> Result<Option<BackStep>, BackFault> {
        let text = lines.first().map(Vec::as_slice).unwrap_or_default();
        match (self.state, &code) {
            // It closes the connection, whatever the command (RFC 5321 section 3.8).
            (_, b"421") | (SubmissionBackState::Greeting, [b'4' | b'5', ..]) => return Err(BackFault::Bye),
            (SubmissionBackState::Greeting, b"220") | (SubmissionBackState::Xclient, b"220") => self.introduce(out),
            (SubmissionBackState::Ehlo, b"250") => self.proceed(lines.get(1..).unwrap_or_default(), out)?,
            (SubmissionBackState::StartTls, b"220") => {
                self.state = SubmissionBackState::Tls;
                return Ok(Some(BackStep::StartTls));
            }
            (SubmissionBackState::StartTls, [b'4' | b'5', ..]) => return Err(BackFault::NoStartTls),
            (SubmissionBackState::Xclient, [b'4' | b'5', ..]) => return Err(BackFault::ForwardingRefused),
            (SubmissionBackState::Login(pending), b"334") => self.continue_login(pending, out)?,
            (SubmissionBackState::Login(_), b"235") => {
                self.state = SubmissionBackState::Over;
                let text = split_enhanced(text, b'2').map_or(text, |(_, text)| text).to_vec();
                return Ok(Some(BackStep::Ready(Welcome { text, ..Welcome::default() })));
            }
            // It requires TLS or a stronger mechanism, for every user.
            (SubmissionBackState::Login(_), b"530" | b"534" | b"538") => return Err(BackFault::NoMechanism),
            (SubmissionBackState::Ehlo, [b'4' | b'5', ..]) | (SubmissionBackState::Login(_), [b'5', b'0', _]) => {
                return Err(BackFault::Bad);
            }
            (SubmissionBackState::Login(_), [b'4' | b'5', ..]) => {
                self.state = SubmissionBackState::Over;
                return Ok(Some(BackStep::Refused(refusal(code, text))));
            }
            _ => return Err(BackFault::ProtocolViolation),
        }
        Ok(None)
    }

    fn introduce(&mut self, out: &mut SecretBuf) {
        write_line(out, &[b"EHLO ", self.host.as_bytes()]);
        self.state = SubmissionBackState::Ehlo;
    }

    /// With the keywords of EHLO: TLS first, then the client's address, then the login.
    fn proceed(&mut self, keywords: &[Vec<u8>], out: &mut SecretBuf) -> Result<(), BackFault> {
        if self.in_the_clear {
            listed(keywords, "STARTTLS").ok_or(BackFault::NoStartTls)?;
            write_line(out, &[b"STARTTLS"]);
            self.state = SubmissionBackState::StartTls;
        } else if let Some(origin) = self.forward.take() {
            let attributes = listed(keywords, "XCLIENT").ok_or(BackFault::ForwardingRefused)?;
            write_line(out, &[b"XCLIENT", xclient(&origin, &attributes)?.as_bytes()]);
            self.state = SubmissionBackState::Xclient;
        } else {
            let mechanisms = listed(keywords, "AUTH").unwrap_or_default();
            let pending = self.log_in(&mechanisms, out)?;
            self.state = SubmissionBackState::Login(pending);
            self.login_written = true;
            self.listed = keywords.iter().map(|line| printable(line, TEXT)).collect();
        }
        Ok(())
    }

    /// Sends the login, or what can be sent of it at once. PLAIN is preferred to LOGIN, which knows no authzid;
    /// a login on behalf of another user never falls back to LOGIN.
    fn log_in(&self, mechanisms: &[String], out: &mut SecretBuf) -> Result<SubmissionPending, BackFault> {
        let offers = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
        let parts = [self.login.as_slice(), self.service.as_deref().unwrap_or_default(), self.password.expose()];
        if offers("PLAIN") && parts.into_iter().all(fits_plain) {
            let mut command = SecretBuf::new();
            command.extend(b"AUTH PLAIN ");
            self.write_message(&mut command);
            // The message goes with the command if the line has the room (RFC 4954 section 4).
            if command.len() <= COMMAND {
                write_line(out, &[command.as_slice()]);
                return Ok(SubmissionPending::Nothing);
            }
            write_line(out, &[b"AUTH PLAIN"]);
            return Ok(SubmissionPending::PlainMessage);
        }
        if offers("LOGIN") && self.service.is_none() {
            write_line(out, &[b"AUTH LOGIN"]);
            return Ok(SubmissionPending::LoginName);
        }
        Err(BackFault::NoMechanism)
    }

    /// The backend has requested the pending part.
    fn continue_login(&mut self, pending: SubmissionPending, out: &mut SecretBuf) -> Result<(), BackFault> {
        let next = match pending {
            SubmissionPending::Nothing => return Err(BackFault::ProtocolViolation),
            SubmissionPending::PlainMessage => {
                self.write_message(out);
                SubmissionPending::Nothing
            }
            SubmissionPending::LoginName => {
                write_base64(&self.login, out);
                SubmissionPending::Password
            }
            SubmissionPending::Password => {
                write_base64(self.password.expose(), out);
                SubmissionPending::Nothing
            }
        };
        out.extend(b"\r\n");
        self.state = SubmissionBackState::Login(next);
        Ok(())
    }

    fn write_message(&self, out: &mut SecretBuf) {
        match &self.service {
            Some(service) => write_plain(&self.login, service, &self.password, out),
            None => write_plain(b"", &self.login, &self.password, out),
        }
    }
}

/// The parameters of a keyword, in capitals, if it is listed. Some old servers write `AUTH=`.
fn listed(keywords: &[Vec<u8>], keyword: &str) -> Option<Vec<String>> {
    keywords.iter().find_map(|line| {
        let line = String::from_utf8_lossy(line).to_ascii_uppercase();
        let mut words = line.split([' ', '=']).map(str::to_owned);
        (words.next().as_deref() == Some(keyword)).then(|| words.collect())
    })
}

/// The client in those attributes that the backend supports (Postfix's XCLIENT_README). No value here needs
/// xtext encoding.
fn xclient(origin: &Origin, taken: &[String]) -> Result<String, BackFault> {
    let Origin { client, local, session } = origin;
    let address = |ip: core::net::IpAddr| if ip.is_ipv6() { format!("IPV6:{ip}") } else { ip.to_string() };
    let known = [
        // Otherwise Postfix would use the name of usher's own address.
        ("NAME", "[UNAVAILABLE]".to_owned()),
        ("ADDR", address(client.ip())),
        ("PORT", client.port().to_string()),
        ("SESSION", session.clone()),
        ("DESTADDR", address(local.ip())),
        ("DESTPORT", local.port().to_string()),
    ];
    let takes = |name: &str| taken.iter().any(|taken| taken == name);
    if !takes("ADDR") {
        return Err(BackFault::ForwardingRefused);
    }
    Ok(known.into_iter().filter(|(name, _)| takes(name)).map(|(name, value)| format!(" {name}={value}")).collect())
}

/// A refusal's codes and its text.
fn refusal(code: [u8; 3], text: &[u8]) -> BackendReply {
    let [class, ..] = code;
    let reply = printable(&code, 3);
    let (code, text) = match split_enhanced(text, class) {
        Some((enhanced, text)) => (format!("{reply} {}", printable(enhanced, TEXT)), text),
        None => (reply.clone(), text),
    };
    // 432 asks this user for a password transition.
    BackendReply { code, text: printable(text, TEXT), unavailable: class == b'4' && reply != "432" }
}
