//! The backend half: IMAP's commands to a backend, and what its replies mean.
//!
//! Nothing but CAPABILITY and STARTTLS is sent before TLS (RFC 9051 section 6.2.1), and only usher's own tag
//! followed by OK is success.

use super::super::backend_login::{BackDialect, LoginContext, NextCommand, Phase, Transition};
use super::super::sasl::{Account, ClientExchange, Mechanism};
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
    /// The capabilities of the current phase: before TLS, before the login, after the login.
    capabilities: Option<Vec<u8>>,
    /// Its capabilities when the login was written.
    listed: Vec<String>,
    /// Untagged lines for the client.
    untagged: Vec<u8>,
    /// How many commands were sent: the number in the last one's tag.
    commands: u32,
    /// What is still to be sent of the login.
    pending: ImapPending,
    /// The text of the reply to the login.
    text: Vec<u8>,
}

/// The part of a login that awaits a continuation request.
#[derive(Debug, Clone, Copy, Default)]
enum ImapPending {
    #[default]
    Nothing,
    Response(ClientExchange),
    LoginName,
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
            return self.continue_login(phase, &login.account, out);
        }
        let line = reply.strip_prefix(self.tag().as_bytes()).and_then(|line| line.strip_prefix(b" "));
        self.tagged(phase, line.and_then(ImapStatus::of).ok_or(BackFault::ProtocolViolation)?, login, out)
    }

    fn needs_capabilities(&self, _: NextCommand) -> bool {
        self.capabilities.is_none()
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
        self.capabilities = None;
    }

    /// Sends the client's address in the fields that Dovecot takes from its `login_trusted_networks`.
    fn forward(&mut self, origin: &Origin, out: &mut SecretBuf) -> Result<(), BackFault> {
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
        Ok(())
    }

    /// A mechanism is preferred to the command LOGIN, which knows no authzid and may be disabled; a login on behalf
    /// of another user never falls back to it.
    fn log_in(&mut self, account: &Account, out: &mut SecretBuf) -> Result<(), BackFault> {
        if !account.has_no_nul() {
            return Err(BackFault::NoMechanism);
        }
        let mechanism = Mechanism::for_backend(account, |name| self.can_authenticate(name));
        if let Some(mechanism) = mechanism.filter(|mechanism| mechanism.has_one_response()) {
            self.authenticate(mechanism, account, out)?;
        } else if account.service.is_some() || self.can("LOGINDISABLED") {
            return Err(BackFault::NoMechanism);
        } else {
            self.begin(b"LOGIN ", out);
            let whole = self.write_argument(&account.login, out);
            self.pending = if whole { self.write_password(account, out) } else { ImapPending::LoginName };
        }
        // They change with the login (RFC 9051 section 6.2.3).
        let capabilities = self.capabilities.take().unwrap_or_default();
        let words = capabilities.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        self.listed = words.map(|word| printable(word, TEXT)).collect();
        // LITERAL+ implies LITERAL- (RFC 7888 section 4).
        if self.listed.iter().any(|word| word.eq_ignore_ascii_case("LITERAL+")) {
            self.listed.push("LITERAL-".to_owned());
        }
        Ok(())
    }

    fn capabilities(&self, _: bool) -> Vec<String> {
        self.listed.clone()
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
        if let Some(listed) = listed {
            self.capabilities = Some(listed.to_vec());
        }
        match (phase, status.map(|status| status.word)) {
            (Phase::Greeting, Some(ImapStatusKind::Ok)) => return Ok(Transition::Proceed),
            // A session that is logged in before TLS: the user's commands would go to an attacker on the path
            // (RFC 9051 section 11.1).
            (_, Some(ImapStatusKind::Preauth)) => return Err(BackFault::Preauth),
            (Phase::Greeting, _) => return Err(BackFault::ProtocolViolation),
            // Capabilities are not passed on here: the client gets them with the tagged OK.
            (Phase::Login | Phase::Afterwards, _) if !lists => {
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
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault> {
        match (phase, status.word) {
            // An OK without a list does not reply to CAPABILITY.
            (Phase::Capabilities, ImapStatusKind::Ok) if self.capabilities.is_none() => {
                Err(BackFault::ProtocolViolation)
            }
            (Phase::Capabilities | Phase::Forward, ImapStatusKind::Ok) => Ok(Transition::Proceed),
            (Phase::Forward, ImapStatusKind::No | ImapStatusKind::Bad) => Err(BackFault::ForwardingRefused),
            (Phase::StartTls, ImapStatusKind::Ok) => Ok(Transition::StartTls),
            (Phase::StartTls, ImapStatusKind::No) => Err(BackFault::NoStartTls),
            (Phase::Login, ImapStatusKind::Ok) => self.logged_in(&status, login, out),
            (Phase::Login, ImapStatusKind::No) if status.is_referral() => Err(BackFault::Referral),
            (Phase::Login, ImapStatusKind::No) => Ok(Transition::Refused(BackendReply {
                code: printable(status.code, TEXT),
                text: printable(status.text, TEXT),
                unavailable: status.is_about_the_server(),
            })),
            (Phase::Afterwards, ImapStatusKind::Ok) => Ok(self.ready()),
            (Phase::Capabilities | Phase::Afterwards, ImapStatusKind::No)
            | (Phase::Capabilities | Phase::StartTls | Phase::Login | Phase::Afterwards, ImapStatusKind::Bad) => {
                Err(BackFault::Bad)
            }
            (Phase::Greeting | Phase::Tls | Phase::Secured | Phase::Over, _)
            | (_, ImapStatusKind::Bye | ImapStatusKind::Preauth) => Err(BackFault::ProtocolViolation),
        }
    }

    /// The login is accepted; capabilities are requested unless the backend has listed them.
    fn logged_in(
        &mut self,
        status: &ImapStatus<'_>,
        login: &mut LoginContext,
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault> {
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
        self.text = if status.is_referral() { Vec::new() } else { status.text.to_vec() };
        if self.capabilities.is_some() {
            return Ok(self.ready());
        }
        self.send(&[b"CAPABILITY"], out);
        Ok(Transition::Afterwards)
    }

    fn ready(&mut self) -> Transition {
        Transition::Ready(Welcome {
            untagged: std::mem::take(&mut self.untagged),
            capabilities: for_client(self.capabilities.as_deref().unwrap_or_default()),
            text: std::mem::take(&mut self.text),
        })
    }

    /// Sends a login of one message, with the command where the backend takes it there.
    fn authenticate(
        &mut self,
        mechanism: &'static Mechanism,
        account: &Account,
        out: &mut SecretBuf,
    ) -> Result<(), BackFault> {
        let mut exchange = ClientExchange::new(mechanism);
        self.begin(b"AUTHENTICATE ", out);
        out.extend(mechanism.name.as_bytes());
        if self.can("SASL-IR") {
            out.extend(b" ");
            exchange.respond(account, out).ok_or(BackFault::NoMechanism)?;
        }
        out.extend(b"\r\n");
        self.pending = ImapPending::Response(exchange);
        Ok(())
    }

    /// The backend has requested the pending part.
    fn continue_login(
        &mut self,
        phase: Phase,
        account: &Account,
        out: &mut SecretBuf,
    ) -> Result<Transition, BackFault> {
        if phase != Phase::Login {
            return Err(BackFault::ProtocolViolation);
        }
        self.pending = match self.pending {
            ImapPending::Nothing => return Err(BackFault::ProtocolViolation),
            ImapPending::Response(mut exchange) => {
                exchange.respond(account, out).ok_or(BackFault::ProtocolViolation)?;
                out.extend(b"\r\n");
                ImapPending::Response(exchange)
            }
            ImapPending::LoginName => {
                out.extend(&account.login);
                self.write_password(account, out)
            }
            ImapPending::Password => {
                write_line(out, &[account.password.expose()]);
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
        let listed = self.capabilities.as_deref().unwrap_or_default();
        listed.split(|byte| *byte == b' ').any(|word| word.eq_ignore_ascii_case(capability.as_bytes()))
    }

    /// Whether the backend offers this mechanism.
    fn can_authenticate(&self, mechanism: &str) -> bool {
        let listed = self.capabilities.as_deref().unwrap_or_default();
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
