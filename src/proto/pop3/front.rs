//! The client half: POP3's commands before login, and the reply to every [`Refusal`].

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::super::line::{Channel, Dialect, LineAction, LineProblem};
use super::super::sasl::SaslError;
use super::super::wire::{first_word, printable, write_line};
use super::super::{Credentials, FrontSettings, NginxReply, Welcome, session_suffix};
use super::{COMMAND, TEXT};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::{AccountState, BackendReply, Refusal};

/// The capabilities that may be advertised before login; also those assumed while no backend is known, because
/// all current servers have them. Not UTF8 and LANG: their commands belong before the login (RFC 6856 section
/// 2), where a backend would never see them. Not EXPIRE and LOGIN-DELAY: they may differ for each user (RFC
/// 2449 section 6).
pub(super) const LATER: &[&str] = &["TOP", "UIDL", "RESP-CODES", "PIPELINING"];

/// Commands of later states; only the text of the reply distinguishes them from unknown commands.
const TRANSACTION: &[&[u8]] =
    &[b"STAT", b"LIST", b"RETR", b"DELE", b"NOOP", b"RSET", b"TOP", b"UIDL", b"UTF8", b"LANG"];

/// The reply to a login in the clear, the same from dialogue and session.
const TLS_FIRST: &str = "-ERR Start TLS before you log in";

/// The POP3 dialect and its state.
pub(super) struct Pop3 {
    /// The backends' capabilities that may be advertised.
    capabilities: Vec<String>,
    /// The name that was given by USER.
    name: Option<Vec<u8>>,
}

impl Pop3 {
    pub(super) fn new(settings: FrontSettings<'_>) -> Self {
        let told = |listed: &&String| LATER.iter().any(|known| known.eq_ignore_ascii_case(listed));
        let capabilities = match settings.capabilities {
            Some(listed) => listed.iter().filter(told).map(|listed| listed.to_ascii_uppercase()).collect(),
            None => LATER.iter().map(ToString::to_string).collect(),
        };
        Self { capabilities, name: None }
    }

    /// A list ends with a dot (RFC 1939 section 3).
    fn list(&self, channel: Channel, out: &mut SecretBuf) {
        write_line(out, &[b"+OK Capability list follows"]);
        self.capabilities.iter().for_each(|listed| write_line(out, &[listed.as_bytes()]));
        write_line(out, &[b"AUTH-RESP-CODE"]);
        if channel.tls {
            write_line(out, &[b"USER\r\nSASL PLAIN LOGIN"]);
        } else if channel.can_start_tls() {
            write_line(out, &[b"STLS"]);
        }
        write_line(out, &[b"."]);
    }
}

impl Dialect for Pop3 {
    const LINE: usize = COMMAND;
    const CHALLENGE: &str = "+ ";

    /// Without `<`, which would offer APOP (RFC 1939 section 7).
    fn greet(&self, out: &mut SecretBuf) {
        write_line(out, &[b"+OK usher is ready"]);
    }

    fn command<'a>(
        &mut self,
        command: &'a [u8],
        channel: Channel,
        out: &mut SecretBuf,
    ) -> Result<LineAction<'a>, LineProblem> {
        let (verb, arguments) = first_word(command);
        let alone = verb.len() == command.len();
        // A desynchronized client may send a password in place of a command.
        let verb = Zeroizing::new(verb.to_ascii_uppercase());
        match (verb.as_slice(), alone) {
            (b"CAPA", true) => self.list(channel, out),
            (b"USER", false) if !channel.tls => return Err(LineProblem::TlsFirst),
            (b"USER", false) => {
                // The same for every name: the reply must not reveal which users exist.
                self.name = Some(arguments.to_vec());
                write_line(out, &[b"+OK Send the password"]);
            }
            (b"PASS", false) => {
                // All that is behind the one space, as passwords may hold blanks (RFC 1939 section 7).
                let login = self.name.take().ok_or(LineProblem::Order)?;
                let password = Secret::copy_of(arguments);
                return Ok(LineAction::Attempt(Credentials { login, password, authzid: Vec::new() }));
            }
            // In no RFC, but some clients use it instead of CAPA.
            (b"AUTH", true) => {
                let mechanisms: &[u8] = if channel.tls { b"PLAIN\r\nLOGIN\r\n." } else { b"." };
                write_line(out, &[b"+OK Mechanism list follows\r\n", mechanisms]);
            }
            (b"AUTH", false) => return LineAction::authenticate(arguments, channel),
            (b"STLS", true) if !channel.can_start_tls() => return Err(LineProblem::NoTls),
            (b"STLS", true) => {
                write_line(out, &[b"+OK Begin TLS now"]);
                return Ok(LineAction::StartTls);
            }
            (b"QUIT", true) => {
                write_line(out, &[b"+OK Goodbye"]);
                return Ok(LineAction::Quit);
            }
            (b"CAPA" | b"USER" | b"PASS" | b"STLS" | b"QUIT", _) => return Err(LineProblem::Syntax),
            (verb, _) if TRANSACTION.contains(&verb) => return Err(LineProblem::LoginFirst),
            _ => return Err(LineProblem::Unknown),
        }
        Ok(LineAction::Done)
    }

    fn reset(&mut self) {
        self.name = None;
    }

    fn denial(problem: LineProblem) -> &'static str {
        match problem {
            LineProblem::Unknown => "-ERR Unknown command",
            LineProblem::Syntax => "-ERR Invalid arguments",
            LineProblem::LoginFirst => "-ERR Log in first",
            LineProblem::Order => "-ERR Send USER first",
            LineProblem::TlsFirst => TLS_FIRST,
            LineProblem::NoTls => "-ERR STARTTLS is not available",
            LineProblem::Mechanism => "-ERR Unsupported mechanism",
            LineProblem::Response(SaslError::Cancelled) => "-ERR Authentication cancelled",
            LineProblem::Response(SaslError::NotBase64) => "-ERR Invalid base64 data",
            LineProblem::Response(SaslError::Malformed) => "-ERR Invalid SASL response",
            LineProblem::TooLong | LineProblem::ResponseTooLong => "-ERR Line too long",
            LineProblem::LineEnd => "-ERR Line must end with CRLF",
            LineProblem::Nul => "-ERR NUL is not allowed",
            LineProblem::TooMuchData => "-ERR Too much data",
            LineProblem::TooMany => "-ERR Too many bad commands",
            LineProblem::Http => "-ERR This is a mail server",
        }
    }

    fn refusal(refusal: &Refusal) -> Cow<'static, str> {
        refusal_text(refusal)
    }

    fn success(welcome: &Welcome) -> String {
        let text = printable(&welcome.text, TEXT);
        format!("+OK {}", if text.is_empty() { "Logged in" } else { &text })
    }

    fn closing_line(why: &Refusal) -> String {
        refusal_text(why).into_owned()
    }
}

/// The reply to a refusal for nginx, which adds -ERR itself.
pub(super) fn nginx_reply(refusal: &Refusal, session: &str) -> NginxReply {
    let words = refusal_text(refusal);
    let text = words.strip_prefix("-ERR ").unwrap_or(&words);
    NginxReply { code: None, text: format!("{text}{}", session_suffix(refusal, session)) }
}

/// The reply that reveals nothing, also for a locked account (`Refusal::disclosed`).
const WRONG_CREDENTIALS: &str = "-ERR [AUTH] Name or password is wrong";

/// A refusal as a code of RFC 2449 or 3206 and a text. Refusals that must be indistinguishable have identical
/// replies; none repeats client input.
fn refusal_text(refusal: &Refusal) -> Cow<'static, str> {
    Cow::Borrowed(match refusal {
        Refusal::WrongPassword
        | Refusal::UnknownUser
        | Refusal::EmptyPassword
        | Refusal::InvalidUsername
        | Refusal::InvalidPassword => WRONG_CREDENTIALS,
        Refusal::AuthzidNotAllowed => "-ERR [SYS/PERM] Authorization as another user is not allowed",
        Refusal::NotAllowed => "-ERR [SYS/PERM] You may not use this service, please contact your administrator",
        Refusal::Account { state, .. } => match state {
            AccountState::PasswordExpired => "-ERR [SYS/PERM] Your password has expired, please change it",
            AccountState::PasswordMustChange => "-ERR [SYS/PERM] Your password must be changed first",
            AccountState::Locked => WRONG_CREDENTIALS,
            AccountState::Disabled => "-ERR [SYS/PERM] Your account is disabled, please contact your administrator",
            AccountState::AccountExpired => {
                "-ERR [SYS/PERM] Your account has expired, please contact your administrator"
            }
            AccountState::OutsideLogonHours => "-ERR [SYS/PERM] Login is not allowed at this time",
            AccountState::WrongWorkstation => "-ERR [SYS/PERM] Login is not allowed from this host",
        },
        Refusal::BackendRejected(Some(words)) => return Cow::Owned(backend_text(words)),
        Refusal::BackendRejected(None)
        | Refusal::DirectoryUnavailable
        | Refusal::SeveralEntries
        | Refusal::BackendUnreachable
        | Refusal::BackendTls
        | Refusal::BackendTimeout
        | Refusal::BackendFault
        | Refusal::BackendBusy => UNAVAILABLE,
        Refusal::BackendDraining => "-ERR [SYS/TEMP] Mail server is under maintenance, try again later",
        Refusal::NoMailHost | Refusal::SeveralMailHosts | Refusal::UnknownMailHost | Refusal::NoBackendLogin => {
            "-ERR [SYS/PERM] Your mailbox cannot be reached, please contact your administrator"
        }
        Refusal::ProtocolNotServed => {
            "-ERR [SYS/PERM] Your mailbox cannot be reached by POP3, please contact your administrator"
        }
        Refusal::TlsRequired => TLS_FIRST,
        Refusal::Limit => "-ERR [SYS/TEMP] Too many attempts or sessions, try again later",
        Refusal::Deadline => "-ERR [SYS/TEMP] Login timed out, try again",
        Refusal::Hold => "-ERR [SYS/TEMP] Your mailbox is being moved, try again in a moment",
        Refusal::Kicked => "-ERR [SYS/TEMP] Session ended by an administrator, please reconnect",
        Refusal::Draining => "-ERR [SYS/TEMP] The server is shutting down, try again",
        Refusal::Internal => "-ERR [SYS/TEMP] Internal error, try again later",
    })
}

const UNAVAILABLE: &str = "-ERR [SYS/TEMP] The mail service is not available, try again later";

/// What a backend said when it refused a login that the directory had accepted. Its missing or AUTH code would
/// make the client ask for a new password although its own is correct.
fn backend_text(words: &BackendReply) -> String {
    let code = printable(words.code.as_bytes(), TEXT);
    let text = printable(words.text.as_bytes(), TEXT);
    if text.trim().is_empty() {
        return UNAVAILABLE.to_owned();
    }
    let told = ["IN-USE", "LOGIN-DELAY", "SYS/TEMP", "SYS/PERM"].into_iter();
    let code = told.clone().find(|known| known.eq_ignore_ascii_case(&code)).unwrap_or("SYS/TEMP");
    format!("-ERR [{code}] {text}")
}
