//! The backend half: IMAP's commands to a backend, and what its replies mean.
//!
//! Nothing but CAPABILITY and STARTTLS is sent before TLS (RFC 9051 section 6.2.1), and only usher's own tag
//! followed by OK is success.

use std::collections::{HashSet, VecDeque};

use super::super::backend_login::{BackDialect, LoginContext, NextCommand, Phase, Transition};
use super::super::login_way::{LoginWay, login_ways};
use super::super::sasl::Account;
use super::super::wire::{LineBuffer, Literal, printable, write_line};
use super::super::{BackFault, Origin, Welcome};
use super::status::{ImapStatus, ImapStatusKind, capability_line, for_client};
use super::{LINE, TEXT};
use crate::base::secret::SecretBuf;
use crate::outcome::BackendReply;

/// The longest name or password that is sent as a quoted string: old servers have short lines.
const QUOTED: usize = 1024;
/// The longest non-synchronizing literal under LITERAL- (RFC 7888 section 5).
const LITERAL_MINUS: usize = 4096;

/// The dialogue's state.
#[derive(Default)]
pub(super) struct ImapBack {
    /// All capabilities that were listed since the greeting, or since TLS: some servers split the list.
    offered: Option<Vec<u8>>,
    /// Whether there were several lists, in which a capability may occur twice.
    is_merged: bool,
    /// The last list after that: the capabilities after the login.
    capabilities: Option<Vec<u8>>,
    /// Untagged lines for the client.
    untagged: Vec<u8>,
    /// How many commands were sent: the number in the last one's tag.
    commands: u32,
    /// What is still to be sent of the command LOGIN.
    pending: ImapPending,
}

/// The part of the command LOGIN that awaits a continuation request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ImapPending {
    #[default]
    Nothing,
    Name,
    Password,
}

impl BackDialect for ImapBack {
    fn line_limit(_: usize) -> usize {
        LINE
    }

    /// Only data has literals: the text of a status may end in `{5}` without announcing one.
    fn literal(reply: &LineBuffer) -> Option<Literal> {
        let is_data = reply.bytes().strip_prefix(b"* ").is_some_and(|line| ImapStatus::of(line).is_none());
        Literal::announced_by(reply.line()).filter(|_| is_data)
    }

    /// What is limited is untagged lines.
    fn counted(reply: &LineBuffer, _: usize) -> usize {
        if reply.bytes().starts_with(b"* ") { reply.bytes().len() } else { 0 }
    }

    fn receive(
        &mut self,
        phase: Phase,
        reply: &LineBuffer,
        login: &mut LoginContext,
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault> {
        let reply = reply.bytes();
        if let Some(line) = reply.strip_prefix(b"* ") {
            return self.untagged(phase, line);
        }
        if reply.starts_with(b"+ ") || reply == b"+\r\n" {
            return self.continue_login(phase, reply.get(1..).unwrap_or_default(), login, out);
        }
        let line = reply.strip_prefix(self.tag().as_bytes()).and_then(|line| line.strip_prefix(b" "));
        self.tagged(phase, line.and_then(ImapStatus::of).ok_or(BackFault::ProtocolViolation)?, login)
    }

    fn needs_capabilities(&self, _: NextCommand) -> bool {
        self.offered.is_none()
    }

    fn request_capabilities(&mut self, out: &mut SecretBuf) {
        self.send(&[b"CAPABILITY"], out);
    }

    fn start_tls(&mut self, out: &mut SecretBuf) -> Result<(), BackFault> {
        if !self.can("STARTTLS") {
            return Err(BackFault::NoStartTls);
        }
        self.send(&[b"STARTTLS"], out);
        Ok(())
    }

    fn tls_started(&mut self) {
        (self.offered, self.is_merged) = (None, false);
    }

    /// Sends the client's address in the fields that Dovecot takes from its `login_trusted_networks`.
    fn forward(&mut self, origin: &Origin, out: &mut SecretBuf) -> Result<(), BackFault> {
        let Origin { client, local, session, .. } = origin;
        let id = format!(
            "ID (\"name\" \"usher\" \"x-originating-ip\" \"{}\" \"x-originating-port\" \"{}\" \"x-connected-ip\" \"{}\" \
             \"x-connected-port\" \"{}\" \"x-session-id\" \"{session}\")",
            client.ip(),
            client.port(),
            local.ip(),
            local.port(),
        );
        self.send(&[id.as_bytes()], out);
        Ok(())
    }

    /// PLAIN is preferred to the command LOGIN, which knows no authzid and may be disabled. No login can carry a NUL;
    /// in PLAIN it would even shift the fields.
    fn ways(&self, account: &Account, initial_response: bool) -> VecDeque<LoginWay> {
        if !account.has_no_nul() {
            return VecDeque::new();
        }
        let initial_response = initial_response && self.can("SASL-IR");
        login_ways(account, |name| self.can_authenticate(name), !self.can("LOGINDISABLED"), |_| initial_response)
    }

    fn log_in(&mut self, way: LoginWay, login: &mut LoginContext, out: &mut SecretBuf) -> Result<(), BackFault> {
        self.pending = ImapPending::Nothing;
        self.begin(b"", out);
        if !login.write_mechanism(way, b"AUTHENTICATE", out) {
            out.extend(b"LOGIN ");
            let whole = self.write_argument(&login.account.login, out);
            self.pending = if whole { self.write_password(&login.account, out) } else { ImapPending::Name };
        }
        Ok(())
    }

    fn capabilities(&self, login_written: bool) -> Vec<String> {
        if !login_written {
            return Vec::new();
        }
        let words = self.offered.as_deref().unwrap_or_default().split(|byte| *byte == b' ');
        let mut listed: Vec<String> = words.filter(|word| !word.is_empty()).map(|word| printable(word, TEXT)).collect();
        if self.is_merged {
            let mut seen = HashSet::new();
            listed.retain(|word| seen.insert(word.to_ascii_uppercase()));
        }
        // LITERAL+ implies LITERAL- (RFC 7888 section 4).
        if listed.iter().any(|word| word.eq_ignore_ascii_case("LITERAL+")) {
            listed.push("LITERAL-".to_owned());
        }
        listed
    }
}

impl ImapBack {
    fn untagged(&mut self, phase: Phase, line: &[u8]) -> Result<Transition, BackFault> {
        let status = ImapStatus::of(line);
        if let Some(ImapStatus { word: ImapStatusKind::Bye, .. }) = status {
            return Err(BackFault::Bye);
        }
        let listed = match &status {
            Some(status) => status.capabilities(),
            None => capability_line(line),
        };
        let lists = listed.is_some();
        match listed {
            // They change with the login (RFC 9051 section 6.2.3).
            Some(listed) if phase == Phase::Login => self.capabilities = Some(listed.to_vec()),
            Some(listed) => match &mut self.offered {
                Some(offered) => {
                    offered.extend([b" ", listed].concat());
                    self.is_merged = true;
                }
                None => self.offered = Some(listed.to_vec()),
            },
            None => {}
        }
        match (phase, status.map(|status| status.word)) {
            (Phase::Greeting, Some(ImapStatusKind::Ok)) => return Ok(Transition::Proceed),
            // A session that is logged in before TLS: the user's commands would go to an attacker on the path
            // (RFC 9051 section 11.1).
            (_, Some(ImapStatusKind::Preauth)) => return Err(BackFault::Preauth),
            (Phase::Greeting, _) => return Err(BackFault::ProtocolViolation),
            // Capabilities are not passed on here: the client gets them with the tagged OK.
            (Phase::Login, _) if !lists => {
                self.untagged.extend_from_slice(b"* ");
                self.untagged.extend_from_slice(line);
            }
            _ => {}
        }
        Ok(Transition::Stay)
    }

    fn tagged(
        &mut self,
        phase: Phase,
        status: ImapStatus<'_>,
        login: &mut LoginContext,
    ) -> Result<Transition, BackFault> {
        match (phase, status.word) {
            // An OK without a list does not reply to CAPABILITY.
            (Phase::Capabilities, ImapStatusKind::Ok) if self.offered.is_none() => Err(BackFault::ProtocolViolation),
            (Phase::Capabilities | Phase::Forward, ImapStatusKind::Ok) => Ok(Transition::Proceed),
            (Phase::Forward, ImapStatusKind::No | ImapStatusKind::Bad) => Err(BackFault::ForwardingRefused),
            (Phase::StartTls, ImapStatusKind::Ok) => Ok(Transition::StartTls),
            (Phase::StartTls, ImapStatusKind::No) => Err(BackFault::NoStartTls),
            // It has not seen the whole login, so it cannot have logged in this user.
            (Phase::Login, ImapStatusKind::Ok) if login.awaits_challenge() || self.pending != ImapPending::Nothing => {
                Err(BackFault::ProtocolViolation)
            }
            (Phase::Login, ImapStatusKind::Ok) => self.logged_in(&status, login),
            (Phase::Login, ImapStatusKind::No) if status.is_referral() => Err(BackFault::Referral),
            // No credentials to reject: the mechanism is not available (RFC 9051 section 6.2.2).
            (Phase::Login, ImapStatusKind::No) if login.has_sent_nothing() && status.code.is_empty() => {
                Ok(Transition::NotUnderstood)
            }
            (Phase::Login, ImapStatusKind::No) => Ok(Transition::Refused(BackendReply {
                code: printable(status.code, TEXT),
                text: printable(status.text, TEXT),
                unavailable: status.is_about_the_server(),
                challenge: None,
            })),
            // It does not read the mechanism's message with the command, or does not know the mechanism.
            (Phase::Login, ImapStatusKind::Bad) if login.is_command_only() && status.is_about_form() => {
                Ok(Transition::NotUnderstood)
            }
            (Phase::Capabilities, ImapStatusKind::No)
            | (Phase::Capabilities | Phase::StartTls | Phase::Login, ImapStatusKind::Bad) => Err(BackFault::Bad),
            (Phase::Greeting | Phase::Tls | Phase::Secured | Phase::Afterwards | Phase::Over, _)
            | (_, ImapStatusKind::Bye | ImapStatusKind::Preauth) => Err(BackFault::ProtocolViolation),
        }
    }

    /// The login is accepted, whatever follows. Where the backend has listed no capabilities, the client gets none
    /// with its OK (RFC 9051 section 6.2.3) and may request them itself.
    fn logged_in(&mut self, status: &ImapStatus<'_>, login: &mut LoginContext) -> Result<Transition, BackFault> {
        match status.capabilities() {
            Some(listed) => self.capabilities = Some(listed.to_vec()),
            // The client's tagged OK has room for one code, the capabilities. Another one (such as ALERT) is
            // sent before it; a referral is dropped with its text.
            None if status.is_referral() => {}
            None if !status.code.is_empty() => {
                let line = [b"* OK [", status.code, b"] ", status.text, b"\r\n"].concat();
                login.spend(line.len())?;
                self.untagged.extend(line);
            }
            None => {}
        }
        Ok(Transition::Ready(Welcome {
            untagged: std::mem::take(&mut self.untagged),
            capabilities: for_client(self.capabilities.as_deref().unwrap_or_default()),
            text: if status.is_referral() { Vec::new() } else { status.text.to_vec() },
        }))
    }

    /// The backend has requested the pending part.
    fn continue_login(
        &mut self,
        phase: Phase,
        challenge: &[u8],
        login: &mut LoginContext,
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault> {
        if phase != Phase::Login {
            return Err(BackFault::ProtocolViolation);
        }
        self.pending = match self.pending {
            ImapPending::Nothing => {
                login.respond(challenge, out)?;
                out.extend(b"\r\n");
                ImapPending::Nothing
            }
            ImapPending::Name => {
                out.extend(&login.account.login);
                self.write_password(&login.account, out)
            }
            ImapPending::Password => {
                write_line(out, &[login.account.password.expose()]);
                ImapPending::Nothing
            }
        };
        Ok(Transition::Stay)
    }

    fn write_password(&self, account: &Account, out: &mut SecretBuf) -> ImapPending {
        out.extend(b" ");
        if !self.write_argument(account.password.expose(), out) {
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

    fn can(&self, capability: &str) -> bool {
        let listed = self.offered.as_deref().unwrap_or_default();
        listed.split(|byte| *byte == b' ').any(|word| word.eq_ignore_ascii_case(capability.as_bytes()))
    }

    /// Whether the backend offers this mechanism.
    fn can_authenticate(&self, mechanism: &str) -> bool {
        let listed = self.offered.as_deref().unwrap_or_default();
        let names = listed.split(|byte| *byte == b' ').filter_map(|word| word.split_at_checked(b"AUTH=".len()));
        let mut names = names.filter(|(auth, _)| auth.eq_ignore_ascii_case(b"AUTH="));
        names.any(|(_, name)| name.eq_ignore_ascii_case(mechanism.as_bytes()))
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
