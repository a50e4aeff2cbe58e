//! The client half: POP3's commands before login, and the codes of its replies.

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::super::line::{Channel, Dialect, LineAction, LineProblem};
use super::super::sasl::SaslError;
use super::super::wire::{first_word, printable, write_line};
use super::super::{Credentials, FrontSettings, NginxReply, Welcome, reply_text};
use super::{COMMAND, TEXT};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::Reply;

/// The capabilities that may be advertised before login; also those assumed while no backend is known, because
/// all current servers have them. Not UTF8 and LANG: their commands belong before the login (RFC 6856 section
/// 2), where a backend would never see them. Not EXPIRE and LOGIN-DELAY: they may differ for each user (RFC
/// 2449 section 6).
pub(super) const LATER: &[&str] = &["TOP", "UIDL", "RESP-CODES", "PIPELINING"];

/// Commands of later states; only the text of the reply distinguishes them from unknown commands.
const TRANSACTION: &[&[u8]] =
    &[b"STAT", b"LIST", b"RETR", b"DELE", b"NOOP", b"RSET", b"TOP", b"UIDL", b"UTF8", b"LANG"];

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

    fn denial(problem: LineProblem) -> Cow<'static, str> {
        Cow::Borrowed(match problem {
            LineProblem::Unknown => "-ERR Unknown command",
            LineProblem::Syntax => "-ERR Invalid arguments",
            LineProblem::LoginFirst => "-ERR Log in first",
            LineProblem::Order => "-ERR Send USER first",
            LineProblem::TlsFirst => return Cow::Owned(Self::refusal(&Reply::TlsRequired, "")),
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
        })
    }

    fn refusal(reply: &Reply, session: &str) -> String {
        format!("-ERR {}{}", code(reply), reply_text(reply, session, TEXT))
    }

    fn success(welcome: &Welcome) -> String {
        let text = printable(&welcome.text, TEXT);
        format!("+OK {}", if text.is_empty() { "Logged in" } else { &text })
    }

    fn closing_line(reply: &Reply, session: &str) -> String {
        Self::refusal(reply, session)
    }
}

/// A reply for nginx, which adds -ERR itself.
pub(super) fn nginx_reply(reply: &Reply, session: &str) -> NginxReply {
    NginxReply { code: None, text: format!("{}{}", code(reply), reply_text(reply, session, TEXT)) }
}

/// The response code of a reply (RFC 2449 section 8, RFC 3206), with the space behind it.
fn code(reply: &Reply) -> &'static str {
    match reply {
        Reply::AuthenticationFailed => "[AUTH] ",
        Reply::AuthzidNotAllowed
        | Reply::NotPermitted
        | Reply::PasswordExpired
        | Reply::PasswordMustChange
        | Reply::AccountDisabled
        | Reply::AccountExpired
        | Reply::OutsideLogonHours
        | Reply::WrongWorkstation
        | Reply::NoMailbox
        | Reply::ProtocolNotServed => "[SYS/PERM] ",
        // A missing code, or AUTH, would make the client ask for a new password although its own is correct.
        Reply::BackendText(backend) => {
            let mut kept = ["[IN-USE] ", "[LOGIN-DELAY] ", "[SYS/PERM] "].into_iter();
            let same = |kept: &&str| kept.trim_matches(['[', ']', ' ']).eq_ignore_ascii_case(&backend.code);
            kept.find(same).unwrap_or("[SYS/TEMP] ")
        }
        Reply::Unavailable
        | Reply::Maintenance
        | Reply::MailboxMoving
        | Reply::TimedOut
        | Reply::Kicked
        | Reply::ShuttingDown
        | Reply::Limit
        | Reply::ServerBug => "[SYS/TEMP] ",
        Reply::TlsRequired => "",
    }
}
