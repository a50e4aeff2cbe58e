//! The client half: SMTP's commands before login, and the reply to every [`Refusal`].

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::super::line::{Channel, Dialect, LineAction, LineProblem};
use super::super::sasl::SaslError;
use super::super::wire::{first_word, printable, write_line};
use super::super::{FrontSettings, NginxReply, Welcome, session_suffix};
use super::{COMMAND, TEXT, split_enhanced};
use crate::base::secret::SecretBuf;
use crate::outcome::{AccountState, BackendReply, Refusal};

/// The extensions assumed while no backend is known, because all current servers have them.
pub(super) const USUAL: &[&str] = &["PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"];

/// Extensions that are never advertised: usher's own, and those between servers. All others hold after the
/// login, when clients do not send EHLO again.
pub(super) const NOT_OFFERED: &[&str] = &["AUTH", "STARTTLS", "XCLIENT", "XFORWARD"];

/// Commands of a mail transaction, which get another reply than unknown commands.
const TRANSACTION: &[&[u8]] = &[b"MAIL", b"RCPT", b"DATA", b"BDAT", b"BURL", b"ETRN", b"EXPN"];

/// The reply to a login in the clear, the same from dialogue and session.
const TLS_FIRST: &str = "538 5.7.11 Start TLS before you log in";

/// The submission dialect and its state.
pub(super) struct Submission {
    /// usher's own name.
    host: String,
    /// The backends' capabilities that may be advertised.
    capabilities: Vec<String>,
    /// Whether the client has sent EHLO or HELO.
    greeted: bool,
}

impl Submission {
    pub(super) fn new(settings: FrontSettings<'_>) -> Self {
        let told = |listed: &&String| {
            let keyword = listed.split([' ', '=']).next().unwrap_or_default();
            !NOT_OFFERED.iter().any(|hidden| hidden.eq_ignore_ascii_case(keyword))
        };
        let capabilities = match settings.capabilities {
            Some(listed) => listed.iter().filter(told).map(|listed| printable(listed.as_bytes(), TEXT)).collect(),
            None => USUAL.iter().map(ToString::to_string).collect(),
        };
        Self { host: settings.host.to_owned(), capabilities, greeted: false }
    }

    fn extensions(&self, channel: Channel, out: &mut SecretBuf) {
        let own = match channel.tls {
            true => Some("AUTH PLAIN LOGIN"),
            false => channel.can_start_tls().then_some("STARTTLS"),
        };
        let mut lines = self.capabilities.iter().map(String::as_str).chain(own).peekable();
        let mut line = Some(self.host.as_str());
        while let Some(text) = line {
            line = lines.next();
            write_line(out, &[if line.is_some() { b"250-" } else { b"250 " }, text.as_bytes()]);
        }
    }
}

impl Dialect for Submission {
    const LINE: usize = COMMAND;
    const CHALLENGE: &str = "334 ";

    fn greet(&self, out: &mut SecretBuf) {
        write_line(out, &[b"220 ", self.host.as_bytes(), b" ESMTP usher is ready"]);
    }

    fn command<'a>(
        &mut self,
        command: &'a [u8],
        channel: Channel,
        out: &mut SecretBuf,
    ) -> Result<LineAction<'a>, LineProblem> {
        let (verb, arguments) = first_word(command);
        let alone = arguments.is_empty();
        // A desynchronized client may send a password in place of a command.
        let verb = Zeroizing::new(verb.to_ascii_uppercase());
        match (verb.as_slice(), alone) {
            (b"EHLO", false) => {
                self.greeted = true;
                self.extensions(channel, out);
            }
            (b"HELO", false) => {
                self.greeted = true;
                write_line(out, &[b"250 ", self.host.as_bytes()]);
            }
            (b"AUTH", false) if channel.tls && !self.greeted => return Err(LineProblem::Order),
            (b"AUTH", false) => return LineAction::authenticate(arguments, channel),
            (b"STARTTLS", true) if !channel.can_start_tls() => return Err(LineProblem::NoTls),
            (b"STARTTLS", true) => {
                write_line(out, &[b"220 2.0.0 Begin TLS now"]);
                return Ok(LineAction::StartTls);
            }
            (b"NOOP", _) => write_line(out, &[b"250 2.0.0 NOOP completed"]),
            (b"RSET", true) => write_line(out, &[b"250 2.0.0 Reset completed"]),
            (b"HELP", _) => write_line(out, &[b"214 2.0.0 Authenticate before sending mail"]),
            // RFC 5321 section 3.5.3: neither yes nor no.
            (b"VRFY", false) => {
                write_line(out, &[b"252 2.1.5 Cannot verify the user, but mail is accepted after login"])
            }
            (b"QUIT", true) => {
                write_line(out, &[b"221 2.0.0 Goodbye"]);
                return Ok(LineAction::Quit);
            }
            (b"EHLO" | b"HELO" | b"AUTH" | b"STARTTLS" | b"RSET" | b"VRFY" | b"QUIT", _) => {
                return Err(LineProblem::Syntax);
            }
            // The data after the line belongs to the message, whatever the reply (RFC 3030 section 2): read as
            // commands it would allow smuggling.
            (b"BDAT", false) => {
                return Ok(LineAction::Discard(LineProblem::LoginFirst, chunk(arguments).ok_or(LineProblem::Syntax)?));
            }
            // RFC 6409 section 4.3.
            (verb, _) if TRANSACTION.contains(&verb) => return Err(LineProblem::LoginFirst),
            _ => return Err(LineProblem::Unknown),
        }
        Ok(LineAction::Done)
    }

    /// The client must say EHLO again after TLS (RFC 3207 section 4.2).
    fn reset(&mut self) {
        self.greeted = false;
    }

    fn denial(problem: LineProblem) -> &'static str {
        match problem {
            LineProblem::Unknown => "500 5.5.2 Unknown command",
            LineProblem::Syntax => "501 5.5.4 Invalid arguments",
            LineProblem::LoginFirst => "530 5.7.0 Log in first",
            LineProblem::Order => "503 5.5.1 Say EHLO first",
            LineProblem::TlsFirst => TLS_FIRST,
            LineProblem::NoTls => "503 5.5.1 STARTTLS is not available",
            LineProblem::Mechanism => "504 5.5.4 Unsupported mechanism",
            LineProblem::Response(SaslError::Cancelled) => "501 5.7.0 Authentication cancelled",
            LineProblem::Response(SaslError::NotBase64) => "501 5.5.2 Invalid base64 data",
            LineProblem::Response(SaslError::Malformed) => "501 5.5.2 Invalid SASL response",
            LineProblem::TooLong => "500 5.5.2 Line too long",
            LineProblem::ResponseTooLong => "500 5.5.6 Line too long",
            LineProblem::LineEnd => "500 5.5.2 Line must end with CRLF",
            LineProblem::Nul => "500 5.5.2 NUL is not allowed",
            LineProblem::TooMuchData => "421 4.7.0 Log in before you send a message",
            LineProblem::TooMany => "421 4.7.0 Too many bad commands",
            LineProblem::Http => "421 4.7.0 This is a mail server",
        }
    }

    fn refusal(refusal: &Refusal) -> Cow<'static, str> {
        refusal_text(refusal)
    }

    fn success(welcome: &Welcome) -> String {
        let text = printable(&welcome.text, TEXT);
        format!("235 2.7.0 {}", if text.is_empty() { "Logged in" } else { &text })
    }

    /// RFC 5321 section 3.8 has one code for closing at any time.
    fn closing_line(why: &Refusal) -> String {
        let words = refusal_text(why);
        let text = words.splitn(3, ' ').nth(2).unwrap_or_default();
        format!("421 4.3.2 {text}")
    }
}

/// The size of BDAT's chunk, `size` or `size LAST`; one that no number can hold is `usize::MAX`.
fn chunk(arguments: &[u8]) -> Option<usize> {
    let (size, last) = first_word(arguments);
    let sound = !size.is_empty() && size.iter().all(u8::is_ascii_digit);
    if !sound || !(last.is_empty() || last.eq_ignore_ascii_case(b"LAST")) {
        return None;
    }
    Some(std::str::from_utf8(size).ok()?.parse().unwrap_or(usize::MAX))
}

/// The reply to a refusal for nginx, which takes codes and text separately.
pub(super) fn nginx_reply(refusal: &Refusal, session: &str) -> NginxReply {
    let words = refusal_text(refusal);
    let mut parts = words.splitn(3, ' ');
    let code = format!("{} {}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let text = format!("{}{}", parts.next().unwrap_or_default(), session_suffix(refusal, session));
    NginxReply { code: Some(code), text }
}

/// The reply that reveals nothing, also for a locked account (`Refusal::disclosed`).
const WRONG_CREDENTIALS: &str = "535 5.7.8 Name or password is wrong";

/// A refusal in the codes of RFC 4954 section 6 and a text. Refusals that must be indistinguishable have
/// identical replies; none repeats client input.
fn refusal_text(refusal: &Refusal) -> Cow<'static, str> {
    Cow::Borrowed(match refusal {
        Refusal::WrongPassword
        | Refusal::UnknownUser
        | Refusal::EmptyPassword
        | Refusal::InvalidUsername
        | Refusal::InvalidPassword => WRONG_CREDENTIALS,
        Refusal::AuthzidNotAllowed => "535 5.7.8 Authorization as another user is not allowed",
        Refusal::NotAllowed => "535 5.7.8 You may not use this service, please contact your administrator",
        Refusal::Account { state, .. } => match state {
            AccountState::PasswordExpired => "535 5.7.8 Your password has expired, please change it",
            AccountState::PasswordMustChange => "535 5.7.8 Your password must be changed first",
            AccountState::Locked => WRONG_CREDENTIALS,
            AccountState::Disabled => "535 5.7.8 Your account is disabled, please contact your administrator",
            AccountState::AccountExpired => "535 5.7.8 Your account has expired, please contact your administrator",
            AccountState::OutsideLogonHours => "535 5.7.8 Login is not allowed at this time",
            AccountState::WrongWorkstation => "535 5.7.8 Login is not allowed from this host",
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
        Refusal::BackendDraining => "454 4.7.0 Mail server is under maintenance, try again later",
        Refusal::NoMailHost | Refusal::SeveralMailHosts | Refusal::UnknownMailHost | Refusal::NoBackendLogin => {
            "554 5.3.5 Your mail server cannot be reached, please contact your administrator"
        }
        Refusal::ProtocolNotServed => {
            "554 5.3.5 Your mail server does not accept submissions, please contact your administrator"
        }
        Refusal::Hold => "454 4.7.0 Your mailbox is being moved, try again in a moment",
        Refusal::TlsRequired => TLS_FIRST,
        Refusal::Limit => "454 4.7.0 Too many attempts or sessions, try again later",
        Refusal::Deadline => "454 4.7.0 Login timed out, try again",
        Refusal::Kicked => "454 4.7.0 Session ended by an administrator, please reconnect",
        Refusal::Draining => "454 4.7.0 The server is shutting down, try again",
        Refusal::Internal => "451 4.3.0 Internal error, try again later",
    })
}

const UNAVAILABLE: &str = "454 4.7.0 The mail service is not available, try again later";

/// What a backend said when it refused a login that the directory had accepted. The code of a wrong password
/// would make the client ask for a new one although its own is correct. Temporary failures stay temporary.
fn backend_text(words: &BackendReply) -> String {
    let text = printable(words.text.as_bytes(), TEXT);
    let (reply, enhanced) = words.code.split_once(' ').unwrap_or((&words.code, ""));
    let class = match reply.as_bytes() {
        [class @ (b'4' | b'5'), b'0'..=b'9', b'0'..=b'9'] => *class,
        _ => return UNAVAILABLE.to_owned(),
    };
    let enhanced = split_enhanced(enhanced.as_bytes(), class).map_or("", |_| enhanced);
    match (text.trim().is_empty(), enhanced) {
        (true, _) => UNAVAILABLE.to_owned(),
        (false, _) if reply == "535" || enhanced.ends_with(".7.8") => format!("454 4.7.0 {text}"),
        (false, "") => format!("{reply} {}.7.0 {text}", char::from(class)),
        (false, _) => format!("{reply} {enhanced} {text}"),
    }
}
