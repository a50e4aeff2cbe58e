//! The client half: POP3's commands before login, and the codes of its replies.

use zeroize::Zeroizing;

use super::super::dialect::{Action, Channel, Dialect};
use super::super::problem::{Problem, TLS_REQUIRED};
use super::super::wire::{LineBuffer, first_word, printable, write_line};
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
            if channel.takes_passwords() {
                out.extend(b"USER\r\n");
            }
            out.extend(b"SASL");
            for name in channel.offered() {
                out.extend(b" ");
                out.extend(name.as_bytes());
            }
            write_line(out, &[]);
        } else if channel.can_start_tls() {
            write_line(out, &[b"STLS"]);
        }
        write_line(out, &[b"."]);
    }
}

impl Dialect for Pop3 {
    const LINE: usize = COMMAND;

    /// Without `<`, which would offer APOP (RFC 1939 section 7).
    fn greet(&self, _: Channel, out: &mut SecretBuf) {
        write_line(out, &[b"+OK usher is ready"]);
    }

    fn is_authentication(command: &[u8]) -> bool {
        first_word(command).0.eq_ignore_ascii_case(b"AUTH")
    }

    fn command(&mut self, command: &LineBuffer, channel: Channel, out: &mut SecretBuf) -> Result<Action, Problem> {
        let command = command.line();
        let (verb, rest) = first_word(command);
        // As Dovecot does, blanks are ignored but in a password.
        let arguments = rest.trim_ascii();
        let alone = arguments.is_empty();
        // A desynchronized client may send a password in place of a command.
        let verb = Zeroizing::new(verb.to_ascii_uppercase());
        match (verb.as_slice(), alone) {
            (b"CAPA", true) => self.list(channel, out),
            (b"USER" | b"PASS", _) if verb.len() == command.len() => return Err(Problem::Syntax),
            (b"USER", _) if !channel.tls => return Err(Problem::TlsFirst),
            (b"USER", _) if !channel.takes_passwords() => return Err(Problem::Mechanism),
            (b"USER", _) => {
                // The same for every name: the reply must not reveal which users exist.
                self.name = Some(arguments.to_vec());
                write_line(out, &[b"+OK Send the password"]);
            }
            (b"PASS", _) => {
                // All that is behind the one space, as passwords may hold blanks (RFC 1939 section 7).
                let login = self.name.take().ok_or(Problem::UserFirst)?;
                let password = Secret::copy_of(rest);
                return Ok(Action::Attempt(Credentials::password(login, password)));
            }
            // In no RFC, but some clients use it instead of CAPA.
            (b"AUTH", true) => {
                write_line(out, &[b"+OK Mechanism list follows"]);
                channel.offered().for_each(|name| write_line(out, &[name.as_bytes()]));
                write_line(out, &[b"."]);
            }
            (b"AUTH", false) => return Action::auth(arguments, channel),
            (b"STLS", true) if !channel.can_start_tls() => return Err(Problem::NoTls),
            (b"STLS", true) => {
                write_line(out, &[b"+OK Begin TLS now"]);
                return Ok(Action::StartTls);
            }
            (b"QUIT", true) => {
                write_line(out, &[b"+OK Goodbye"]);
                return Ok(Action::Quit);
            }
            (b"CAPA" | b"STLS" | b"QUIT", _) => return Err(Problem::Syntax),
            (verb, _) if TRANSACTION.contains(&verb) => return Err(Problem::LoginFirst),
            _ => return Err(Problem::Unknown),
        }
        Ok(Action::Done)
    }

    fn challenge(challenge: &str, out: &mut SecretBuf) {
        write_line(out, &[b"+ ", challenge.as_bytes()]);
    }

    fn tls_started(&mut self) {
        self.name = None;
    }

    fn deny(&self, problem: Problem, out: &mut SecretBuf) {
        if problem == Problem::TlsFirst {
            return self.refused(&TLS_REQUIRED, "", out);
        }
        write_line(out, &[b"-ERR ", problem.text().as_bytes()]);
    }

    fn refused(&self, reply: &Reply, session: &str, out: &mut SecretBuf) {
        write_line(out, &[b"-ERR ", code(reply).as_bytes(), reply_text(reply, session, TEXT).as_bytes()]);
    }

    fn accepted(&mut self, welcome: &Welcome, out: &mut SecretBuf) {
        let text = printable(&welcome.text, TEXT);
        write_line(out, &[b"+OK ", if text.is_empty() { "Logged in" } else { &text }.as_bytes()]);
    }

    fn bye(&self, reply: &Reply, session: &str, out: &mut SecretBuf) {
        self.refused(reply, session, out);
    }
}

/// A reply for nginx, which adds -ERR itself.
pub(super) fn nginx_reply(reply: &Reply, session: &str) -> NginxReply {
    NginxReply { code: None, text: format!("{}{}", code(reply), reply_text(reply, session, TEXT)) }
}

/// The response code of a reply (RFC 2449 section 8, RFC 3206), with the space behind it.
fn code(reply: &Reply) -> &'static str {
    match reply {
        Reply::AuthenticationFailed | Reply::TokenRefused(_) => "[AUTH] ",
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
