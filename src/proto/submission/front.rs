//! The client half: SMTP's commands before login, and the codes of its replies.

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::super::dialect::{Action, Channel, Dialect};
use super::super::problem::{Problem, TLS_REQUIRED};
use super::super::sasl::SaslError;
use super::super::wire::{LineBuffer, first_word, printable, write_line};
use super::super::{ClientGreeting, FrontSettings, NginxReply, Welcome, reply_text};
use super::extensions::is_for_clients;
use super::{COMMAND, TEXT, split_enhanced};
use crate::base::secret::SecretBuf;
use crate::outcome::{BackendReply, Reply};

/// The extensions assumed while no backend is known, because all current servers have them.
pub(super) const USUAL: &[&str] = &["PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"];

/// Commands of a mail transaction, which get another reply than unknown commands.
const TRANSACTION: &[&[u8]] = &[b"MAIL", b"RCPT", b"DATA", b"BDAT", b"BURL", b"ETRN", b"EXPN"];

/// The submission dialect and its state.
pub(super) struct Submission {
    /// usher's own name.
    host: String,
    /// The backends' capabilities that may be advertised.
    capabilities: Vec<String>,
    /// Whether the client has sent EHLO or HELO.
    greeted: bool,
    /// The name that it has sent, if that can be repeated.
    greeting: Option<ClientGreeting>,
}

impl Submission {
    pub(super) fn new(settings: FrontSettings<'_>) -> Self {
        let capabilities = match settings.capabilities {
            Some(listed) => listed
                .iter()
                .filter(|line| is_for_clients(line))
                .map(|listed| printable(listed.as_bytes(), TEXT))
                .collect(),
            None => USUAL.iter().map(ToString::to_string).collect(),
        };
        Self { host: settings.host.to_owned(), capabilities, greeted: false, greeting: None }
    }

    /// Notes the client's name: the first word, as of EHLO's arguments the rest means nothing.
    fn introduce(&mut self, arguments: &[u8], extended: bool) {
        self.greeted = true;
        self.greeting = ClientGreeting::parse(first_word(arguments).0, extended);
    }

    /// Lists the extensions, of which usher's own is the last.
    fn extensions(&self, channel: Channel, out: &mut SecretBuf) {
        let own = channel.tls || channel.can_start_tls();
        let mut lines = std::iter::once(&self.host).chain(&self.capabilities).peekable();
        while let Some(line) = lines.next() {
            let more = own || lines.peek().is_some();
            write_line(out, &[if more { b"250-" } else { b"250 " }, line.as_bytes()]);
        }
        if channel.tls {
            out.extend(b"250 AUTH");
            for name in channel.offered() {
                out.extend(b" ");
                out.extend(name.as_bytes());
            }
            write_line(out, &[]);
        } else if own {
            write_line(out, &[b"250 STARTTLS"]);
        }
    }
}

impl Dialect for Submission {
    const LINE: usize = COMMAND;

    fn greet(&self, _: Channel, out: &mut SecretBuf) {
        write_line(out, &[b"220 ", self.host.as_bytes(), b" ESMTP usher is ready"]);
    }

    fn is_authentication(command: &[u8]) -> bool {
        first_word(command).0.eq_ignore_ascii_case(b"AUTH")
    }

    fn command(&mut self, command: &LineBuffer, channel: Channel, out: &mut SecretBuf) -> Result<Action, Problem> {
        // RFC 5321 section 4.1.1: white space at the end is tolerated. So is more than one blank between words.
        let (verb, arguments) = first_word(command.line().trim_ascii_end());
        let arguments = arguments.trim_ascii_start();
        let alone = arguments.is_empty();
        // A desynchronized client may send a password in place of a command.
        let verb = Zeroizing::new(verb.to_ascii_uppercase());
        match (verb.as_slice(), alone) {
            (b"EHLO", false) => {
                self.introduce(arguments, true);
                self.extensions(channel, out);
            }
            (b"HELO", false) => {
                self.introduce(arguments, false);
                write_line(out, &[b"250 ", self.host.as_bytes()]);
            }
            (b"AUTH", false) if channel.tls && !self.greeted => return Err(Problem::EhloFirst),
            (b"AUTH", false) => return Action::auth(arguments, channel),
            (b"STARTTLS", true) if !channel.can_start_tls() => return Err(Problem::NoTls),
            (b"STARTTLS", true) => {
                write_line(out, &[b"220 2.0.0 Begin TLS now"]);
                return Ok(Action::StartTls);
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
                return Ok(Action::Quit);
            }
            (b"EHLO" | b"HELO" | b"AUTH" | b"STARTTLS" | b"RSET" | b"VRFY" | b"QUIT", _) => {
                return Err(Problem::Syntax);
            }
            // The data after the line belongs to the message, whatever the reply (RFC 3030 section 2): read as
            // commands it would allow smuggling.
            (b"BDAT", false) => {
                return Ok(Action::Discard(Problem::LoginFirst, chunk(arguments).ok_or(Problem::Syntax)?));
            }
            // RFC 6409 section 4.3.
            (verb, _) if TRANSACTION.contains(&verb) => return Err(Problem::LoginFirst),
            _ => return Err(Problem::Unknown),
        }
        Ok(Action::Done)
    }

    fn challenge(challenge: &str, out: &mut SecretBuf) {
        write_line(out, &[b"334 ", challenge.as_bytes()]);
    }

    /// The client must say EHLO again after TLS (RFC 3207 section 4.2).
    fn tls_started(&mut self) {
        self.greeted = false;
        self.greeting = None;
    }

    fn greeting(&self) -> Option<&ClientGreeting> {
        self.greeting.as_ref()
    }

    fn deny(&self, problem: Problem, out: &mut SecretBuf) {
        let code: &[u8] = match problem {
            Problem::TlsFirst => return self.refused(&TLS_REQUIRED, "", out),
            Problem::Unknown
            | Problem::Tag
            | Problem::LineTooLong
            | Problem::ArgumentTooLong
            | Problem::CommandTooLong
            | Problem::LiteralTooLarge
            | Problem::LineEnd
            | Problem::Nul => b"500 5.5.2 ",
            Problem::ResponseTooLong => b"500 5.5.6 ",
            Problem::Syntax => b"501 5.5.4 ",
            Problem::Response(SaslError::Cancelled) => b"501 5.7.0 ",
            Problem::Response(SaslError::NotBase64 | SaslError::Malformed) | Problem::NoString => b"501 5.5.2 ",
            Problem::UserFirst | Problem::EhloFirst | Problem::NoTls => b"503 5.5.1 ",
            Problem::Mechanism => b"504 5.5.4 ",
            Problem::LoginFirst => b"530 5.7.0 ",
            Problem::TooMuchData | Problem::TooMany | Problem::Http => b"421 4.7.0 ",
        };
        write_line(out, &[code, problem.text().as_bytes()]);
    }

    fn refused(&self, reply: &Reply, session: &str, out: &mut SecretBuf) {
        let reply = usable(reply);
        write_line(out, &[code(reply).as_bytes(), b" ", reply_text(reply, session, TEXT).as_bytes()]);
    }

    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf) {
        let text = printable(&welcome.text, TEXT);
        write_line(out, &[b"235 2.7.0 ", if text.is_empty() { "Logged in" } else { &text }.as_bytes()]);
    }

    /// RFC 5321 section 3.8 has one code for closing at any time.
    fn bye(&self, reply: &Reply, session: &str, out: &mut SecretBuf) {
        write_line(out, &[b"421 4.3.2 ", reply_text(usable(reply), session, TEXT).as_bytes()]);
    }
}

/// The size of BDAT's chunk, `size` or `size LAST`; one that no number can hold is `usize::MAX`.
fn chunk(arguments: &[u8]) -> Option<usize> {
    let (size, last) = first_word(arguments);
    let last = last.trim_ascii_start();
    let sound = !size.is_empty() && size.iter().all(u8::is_ascii_digit);
    if !sound || !(last.is_empty() || last.eq_ignore_ascii_case(b"LAST")) {
        return None;
    }
    Some(std::str::from_utf8(size).ok()?.parse().unwrap_or(usize::MAX))
}

/// A reply for nginx, which takes codes and text separately.
pub(super) fn nginx_reply(reply: &Reply, session: &str) -> NginxReply {
    let reply = usable(reply);
    NginxReply { code: Some(code(reply).into_owned()), text: reply_text(reply, session, TEXT) }
}

/// The reply, or another one for a backend's without a code of this protocol: its text says nothing then.
fn usable(reply: &Reply) -> &Reply {
    if let Reply::BackendText(backend) = reply
        && backend_code(backend).is_none()
    {
        return &Reply::Unavailable;
    }
    reply
}

/// The reply code and the enhanced code of a reply (RFC 4954 section 6).
fn code(reply: &Reply) -> Cow<'_, str> {
    Cow::Borrowed(match reply {
        Reply::AuthenticationFailed
        | Reply::TokenRefused(_)
        | Reply::AuthzidNotAllowed
        | Reply::NotPermitted
        | Reply::PasswordExpired
        | Reply::PasswordMustChange
        | Reply::AccountDisabled
        | Reply::AccountExpired
        | Reply::OutsideLogonHours
        | Reply::WrongWorkstation => "535 5.7.8",
        Reply::NoMailbox | Reply::ProtocolNotServed => "554 5.3.5",
        Reply::BackendText(backend) => return backend_code(backend).unwrap_or(Cow::Borrowed("454 4.7.0")),
        Reply::Unavailable
        | Reply::Maintenance
        | Reply::MailboxMoving
        | Reply::TimedOut
        | Reply::Kicked
        | Reply::ShuttingDown
        | Reply::Limit => "454 4.7.0",
        Reply::TlsRequired => "538 5.7.11",
        Reply::ServerBug => "451 4.3.0",
    })
}

/// The codes of a backend that refused a login which the directory had accepted; `None` without a code. The code
/// of a wrong password would make the client ask for a new one although its own is correct. Temporary failures
/// stay temporary.
fn backend_code(reply: &BackendReply) -> Option<Cow<'_, str>> {
    let (code, enhanced) = reply.code.split_once(' ').unwrap_or((&reply.code, ""));
    let [class @ (b'4' | b'5'), b'0'..=b'9', b'0'..=b'9'] = code.as_bytes() else { return None };
    let sound = split_enhanced(enhanced.as_bytes(), *class).is_some();
    Some(match sound {
        _ if code == "535" || sound && enhanced.ends_with(".7.8") => Cow::Borrowed("454 4.7.0"),
        true => Cow::Borrowed(&reply.code),
        false => Cow::Owned(format!("{code} {}.7.0", char::from(*class))),
    })
}
