//! The backend half: submission's commands to a backend, and what its replies mean.
//!
//! Nothing but EHLO and STARTTLS is sent before TLS (RFC 3207 section 4.2), and only 235 is success.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::backend_login::{BackDialect, LoginContext, NextCommand, Phase, Transition};
use super::super::login_way::{LoginWay, login_ways};
use super::super::sasl::{Account, Mechanism};
use super::super::wire::{LineBuffer, printable, write_line};
use super::super::{BackFault, BackSettings, BackTls, ClientGreeting, Origin, Welcome};
use super::{COMMAND, TEXT, split_enhanced};
use crate::base::secret::SecretBuf;
use crate::outcome::BackendReply;

/// The longest value of an attribute of XCLIENT: Postfix refuses longer ones.
const VALUE: usize = 255;

/// The dialogue's state.
pub(super) struct SubmissionBack {
    /// usher's own name.
    host: Arc<str>,
    /// The client's name, if it is to be sent in place of usher's own.
    client: Option<String>,
    /// What comes before that: TLS, so that the name does not cross the network in clear, and the client's address.
    tls_first: bool,
    forward_first: bool,
    /// The client's name is in the EHLO whose reply is awaited.
    named: bool,
    /// That name was sent, in EHLO or to be forwarded.
    names_client: bool,
    /// The client without its name, to be forwarded if the backend does not accept it with the name.
    unnamed: Option<Origin>,
    /// The lines of the current reply, without their codes.
    lines: Vec<Vec<u8>>,
    /// The code of the current reply, when a line of it has come.
    code: Option<[u8; 3]>,
    /// The keywords of EHLO.
    keywords: Option<Vec<Vec<u8>>>,
    /// The keywords that were listed before that.
    listed: Vec<String>,
}

impl BackDialect for SubmissionBack {
    /// It may have 512 octets (RFC 5321 section 4.5.3.1.5), and some servers greet at more length.
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
        let Some(code) = self.gather(reply.line())? else { return Ok(Transition::Stay) };
        let mut lines = std::mem::take(&mut self.lines);
        let text = lines.first().map(Vec::as_slice).unwrap_or_default();
        match (phase, &code) {
            // A limit of this user (X.7: security or policy, RFC 3463 section 3.8): the connection ends, the server does not.
            (Phase::Login, b"421") if split_enhanced(text, b'4').is_some_and(|(code, _)| code.starts_with(b"4.7.")) => {
                Ok(Transition::Refused(refusal(*b"454", text)))
            }
            // It closes the connection, whatever the command (RFC 5321 section 3.8).
            (_, b"421") | (Phase::Greeting, [b'4' | b'5', ..]) => Err(BackFault::Bye),
            // EHLO is said after the greeting, and again after XCLIENT.
            (Phase::Greeting | Phase::Forward, b"220") => {
                self.keywords = None;
                Ok(Transition::Proceed)
            }
            (Phase::Capabilities, b"250") => {
                self.named = false;
                // The first line is a greeting.
                self.keywords = Some(lines.split_off(1.min(lines.len())));
                Ok(Transition::Proceed)
            }
            (Phase::StartTls, b"220") => Ok(Transition::StartTls),
            (Phase::StartTls, [b'4' | b'5', ..]) => Err(BackFault::NoStartTls),
            // A name that a client chooses must not look like a fault of the backend: it goes without.
            (Phase::Capabilities, [b'4' | b'5', ..]) if self.named => {
                (self.named, self.client) = (false, None);
                self.request_capabilities(out);
                Ok(Transition::Stay)
            }
            (Phase::Forward, [b'4' | b'5', ..]) => {
                let unnamed = self.unnamed.take().ok_or(BackFault::ForwardingRefused)?;
                self.forward(&unnamed, out)?;
                Ok(Transition::Stay)
            }
            (Phase::Login, b"334") => {
                login.respond(text, out)?;
                out.extend(b"\r\n");
                Ok(Transition::Stay)
            }
            // Before the last response it has not seen the whole login.
            (Phase::Login, b"235") if !login.awaits_challenge() => {
                let text = split_enhanced(text, b'2').map_or(text, |(_, text)| text).to_vec();
                Ok(Transition::Ready(Welcome { text, ..Welcome::default() }))
            }
            // It requires TLS or a stronger mechanism, for every user.
            (Phase::Login, b"530" | b"534" | b"538") => Err(BackFault::NoMechanism),
            // A syntax error, a parameter that it does not take, an unknown mechanism.
            (Phase::Login, b"500" | b"501" | b"502" | b"504") if login.is_command_only() && !is_refusal(text) => {
                Ok(Transition::NotUnderstood)
            }
            (Phase::Capabilities, [b'4' | b'5', ..]) | (Phase::Login, [b'5', b'0', _]) => Err(BackFault::Bad),
            (Phase::Login, [b'4' | b'5', ..]) => Ok(Transition::Refused(refusal(code, text))),
            _ => Err(BackFault::ProtocolViolation),
        }
    }

    fn needs_capabilities(&self, _: NextCommand) -> bool {
        self.keywords.is_none()
    }

    fn request_capabilities(&mut self, out: &mut SecretBuf) {
        let client = self.client.as_deref().filter(|_| !self.tls_first && !self.forward_first);
        self.named = client.is_some();
        self.names_client |= self.named;
        write_line(out, &[b"EHLO ", client.unwrap_or(&self.host).as_bytes()]);
    }

    fn start_tls(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        self.parameters("STARTTLS").ok_or(BackFault::NoStartTls)?;
        write_line(out, &[b"STARTTLS"]);
        Ok(())
    }

    fn tls_started(&mut self) {
        self.tls_first = false;
        self.keywords = None;
    }

    fn forward(&mut self, origin: &Origin, out: &mut SecretBuf) -> Result<(), BackFault> {
        let attributes = self.parameters("XCLIENT").ok_or(BackFault::ForwardingRefused)?;
        write_line(out, &[b"XCLIENT", xclient(origin, &attributes)?.as_bytes()]);
        self.forward_first = false;
        let named = origin.greeting.is_some() && attributes.iter().any(|taken| matches!(&**taken, "HELO" | "PROTO"));
        self.names_client |= named;
        self.unnamed = named.then(|| Origin { greeting: None, ..origin.clone() });
        Ok(())
    }

    /// The message goes with the command if the line has the room (RFC 4954 section 4).
    fn ways(&self, account: &Account, initial_response: bool) -> VecDeque<LoginWay> {
        let offered = self.parameters("AUTH").unwrap_or_default();
        let fits = |mechanism: &Mechanism| {
            let command = "AUTH  ".len() + mechanism.name.len() + mechanism.initial_size(account);
            initial_response && command <= COMMAND
        };
        login_ways(account, |name| offered.iter().any(|offered| offered == name), false, fits)
    }

    fn log_in(&mut self, way: LoginWay, login: &mut LoginContext, out: &mut SecretBuf) -> Result<(), BackFault> {
        // Submission has no command of its own.
        if !login.write_mechanism(way, b"AUTH", out) {
            return Err(BackFault::NoMechanism);
        }
        let keywords = self.keywords.iter().flatten();
        self.listed = keywords.map(|line| printable(line, TEXT)).collect();
        Ok(())
    }

    fn names_client(&self) -> bool {
        self.names_client
    }

    fn capabilities(&self, _: bool) -> Vec<String> {
        self.listed.clone()
    }
}

impl SubmissionBack {
    pub(super) fn new(settings: &BackSettings) -> Self {
        Self {
            host: Arc::clone(&settings.host),
            client: settings.ehlo.as_ref().map(|greeting| greeting.name.clone()),
            tls_first: settings.tls == BackTls::StartTls,
            forward_first: settings.forward.is_some(),
            named: false,
            names_client: false,
            unnamed: None,
            lines: Vec::new(),
            code: None,
            keywords: None,
            listed: Vec::new(),
        }
    }

    /// The parameters of a keyword that EHLO has listed.
    fn parameters(&self, keyword: &str) -> Option<Vec<String>> {
        listed(self.keywords.as_deref().unwrap_or_default(), keyword)
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
}

/// The parameters of a keyword in all lines that have it, in capitals, if it is listed. Servers list `AUTH` and the
/// old form `AUTH=` side by side, with different mechanisms.
fn listed(keywords: &[Vec<u8>], keyword: &str) -> Option<Vec<String>> {
    let words = keywords.iter().filter_map(|line| {
        let line = String::from_utf8_lossy(line).to_ascii_uppercase();
        let mut words = line.split([' ', '=']).filter(|word| !word.is_empty()).map(str::to_owned);
        (words.next().as_deref() == Some(keyword)).then(|| words.collect::<Vec<_>>())
    });
    words.reduce(|all, more| [all, more].concat())
}

/// Whether the enhanced code says that the credentials are wrong (RFC 4954 section 6), whatever stands before it.
fn is_refusal(text: &[u8]) -> bool {
    split_enhanced(text, b'5').is_some_and(|(code, _)| code == b"5.7.8")
}

/// The client in those attributes that the backend supports (Postfix's XCLIENT_README). Only the name that the
/// client has chosen needs xtext encoding.
fn xclient(origin: &Origin, taken: &[String]) -> Result<String, BackFault> {
    let Origin { client, local, session, greeting } = origin;
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
    let greeting = greeting.iter().flat_map(|ClientGreeting { name, extended }| {
        [("HELO", xtext(name)), ("PROTO", if *extended { "ESMTP" } else { "SMTP" }.to_owned())]
    });
    // No server takes a longer value.
    let all = known.into_iter().chain(greeting.filter(|(_, value)| value.len() <= VALUE));
    Ok(all.filter(|(name, _)| takes(name)).map(|(name, value)| format!(" {name}={value}")).collect())
}

/// Printable ASCII as xtext (RFC 3461 section 4).
fn xtext(text: &str) -> String {
    let one = |letter| match letter {
        '+' | '=' => format!("+{:02X}", u32::from(letter)),
        plain => plain.to_string(),
    };
    text.chars().map(one).collect()
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
    BackendReply { code, text: printable(text, TEXT), unavailable: class == b'4' && reply != "432", challenge: None }
}
