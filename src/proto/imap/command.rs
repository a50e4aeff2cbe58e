//! The grammar of the commands that a client may send before login (RFC 9051 section 9).
//!
//! Reads what has arrived of a command, from its tag on, each time a line of it is complete: it is complete,
//! invalid, or valid up to a literal that has not arrived. So a literal is only requested when everything
//! before it is valid. Names and passwords are copied only into wiping memory.

use core::net::{IpAddr, SocketAddr};

use zeroize::Zeroizing;

use super::super::ClientId;
use super::super::problem::Problem;
use super::super::wire::{Literal, printable};
use crate::base::secret::Secret;

/// The longest argument of LOGIN in any form; what LITERAL- allows a literal (RFC 7888 section 5).
const ARGUMENT: usize = 4096;
/// The limits of ID (RFC 2971 section 3.3).
const ID_PAIRS: usize = 30;
const ID_FIELD: usize = 30;
const ID_VALUE: usize = 1024;
/// How many bytes of a client's name and version are remembered.
const ID_KEPT: usize = 64;

/// Commands of later states; only the text of the reply distinguishes them from unknown commands.
const LATER: &[&str] = &[
    "APPEND",
    "CHECK",
    "CLOSE",
    "COMPRESS",
    "COPY",
    "CREATE",
    "DELETE",
    "DELETEACL",
    "EXAMINE",
    "EXPUNGE",
    "FETCH",
    "GETACL",
    "GETMETADATA",
    "GETQUOTA",
    "GETQUOTAROOT",
    "IDLE",
    "LIST",
    "LISTRIGHTS",
    "LSUB",
    "MOVE",
    "MYRIGHTS",
    "NAMESPACE",
    "NOTIFY",
    "RENAME",
    "SEARCH",
    "SELECT",
    "SETACL",
    "SETMETADATA",
    "SETQUOTA",
    "SORT",
    "STATUS",
    "STORE",
    "SUBSCRIBE",
    "THREAD",
    "UID",
    "UNAUTHENTICATE",
    "UNSELECT",
    "UNSUBSCRIBE",
];

/// Why a command cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandError {
    /// Valid so far; this literal has to follow.
    Incomplete(Literal),
    /// It is not carried out.
    Denied(Problem),
}

impl From<Problem> for CommandError {
    fn from(problem: Problem) -> Self {
        Self::Denied(problem)
    }
}

const SYNTAX: CommandError = CommandError::Denied(Problem::Syntax);
const TOO_BIG: CommandError = CommandError::Denied(Problem::ArgumentTooLong);

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Capability,
    Noop,
    Logout,
    StartTls,
    Login,
    Authenticate,
    Id,
    /// ENABLE, which has no effect before login.
    Enable,
    /// A command of a later state.
    Later,
    Unknown,
}

/// The tag, if the command starts with a whole one: any ASTRING-CHAR but `+`, of any length.
pub(super) fn tag(command: &[u8]) -> Option<&[u8]> {
    let end = command.iter().position(|byte| matches!(byte, b' ' | b'\r'))?;
    let tag = command.get(..end)?;
    (!tag.is_empty() && tag.iter().all(|byte| is_astring_char(*byte) && *byte != b'+')).then_some(tag)
}

/// The verb of a command, if it has a tag.
pub(super) fn verb_of(command: &[u8]) -> Option<Verb> {
    tag(command).map(|tag| verb(command, tag).0)
}

/// The verb behind the tag, and its arguments.
pub(super) fn verb<'a>(command: &'a [u8], tag: &[u8]) -> (Verb, ImapArguments<'a>) {
    let rest = command.get(tag.len()..).unwrap_or_default();
    let rest = rest.strip_prefix(b" ").unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, b' ' | b'\r')).unwrap_or(rest.len());
    let (word, rest) = rest.split_at(end);
    let known = [
        ("CAPABILITY", Verb::Capability),
        ("NOOP", Verb::Noop),
        ("LOGOUT", Verb::Logout),
        ("STARTTLS", Verb::StartTls),
        ("LOGIN", Verb::Login),
        ("AUTHENTICATE", Verb::Authenticate),
        ("ID", Verb::Id),
        ("ENABLE", Verb::Enable),
    ];
    let later = LATER.iter().map(|name| (*name, Verb::Later));
    let found = known.into_iter().chain(later).find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(word));
    (found.map_or(Verb::Unknown, |(_, verb)| verb), ImapArguments { rest })
}

/// The arguments of a command, consumed from the left. `rest` ends with the last line so far, so
/// that it is empty exactly behind the announcement of a literal that has not come.
pub(super) struct ImapArguments<'a> {
    rest: &'a [u8],
}

impl<'a> ImapArguments<'a> {
    /// No arguments at all.
    pub(super) fn none(mut self) -> Result<(), CommandError> {
        self.end()
    }

    /// LOGIN: name and password.
    pub(super) fn login(mut self) -> Result<(Secret, Secret), CommandError> {
        self.blanks()?;
        let login = self.login_argument()?;
        self.blanks()?;
        let password = self.login_argument()?;
        self.end()?;
        Ok((login, password))
    }

    /// ENABLE: at least one capability.
    pub(super) fn enable(mut self) -> Result<(), CommandError> {
        loop {
            self.blanks()?;
            self.atom()?;
            if self.end().is_ok() {
                return Ok(());
            }
        }
    }

    /// AUTHENTICATE: the mechanism's name and, if there is one, the initial response.
    pub(super) fn authenticate(mut self) -> Result<(&'a [u8], Option<&'a [u8]>), CommandError> {
        self.blanks()?;
        let mechanism = self.atom()?;
        if self.end().is_ok() {
            return Ok((mechanism, None));
        }
        self.blanks()?;
        let response = self.run_of(|byte| !matches!(byte, b' ' | b'\r'))?;
        self.end()?;
        Ok((mechanism, Some(response)))
    }

    /// ID: the client's name and version; `NIL` and `()` are empty.
    pub(super) fn id(mut self) -> Result<ClientId, CommandError> {
        let (mut id, mut ip, mut port) = (ClientId::default(), None, 0);
        // Nothing at all is no ID of RFC 2971, but Dovecot answers it.
        if self.end().is_ok() {
            return Ok(id);
        }
        self.blanks()?;
        if self.nil() {
            self.end()?;
            return Ok(id);
        }
        self.expect(b"(")?;
        let mut pairs = 0;
        loop {
            let apart = self.blanks().is_ok();
            if self.expect(b")").is_ok() {
                break;
            }
            if pairs > 0 && !apart {
                return Err(SYNTAX);
            }
            pairs += 1;
            if pairs > ID_PAIRS {
                return Err(TOO_BIG);
            }
            let field = self.string(ID_FIELD)?;
            self.blanks()?;
            let value = if self.nil() { Secret::new(Vec::new()) } else { self.string(ID_VALUE)? };
            let kept = printable(value.expose(), ID_KEPT);
            // Other fields are ignored. The originating address is not passed on: the session decides whether
            // this client is trusted to send it.
            match field.expose().to_ascii_lowercase().as_slice() {
                b"name" => id.name = kept,
                b"version" => id.version = kept,
                b"x-originating-ip" => ip = kept.parse::<IpAddr>().ok(),
                b"x-originating-port" => port = kept.parse().unwrap_or(0),
                _ => {}
            }
        }
        self.end()?;
        id.originating = ip.map(|ip| SocketAddr::new(ip.to_canonical(), port));
        Ok(id)
    }

    fn expect(&mut self, text: &[u8]) -> Result<(), CommandError> {
        self.rest = self.rest.strip_prefix(text).ok_or(SYNTAX)?;
        Ok(())
    }

    /// One blank, and those beyond it that some clients send: Dovecot ignores them too, and no tabs.
    fn blanks(&mut self) -> Result<(), CommandError> {
        self.expect(b" ")?;
        while self.expect(b" ").is_ok() {}
        Ok(())
    }

    /// The end of the line, with or without blanks before it.
    fn end(&mut self) -> Result<(), CommandError> {
        let end = self.rest.iter().position(|byte| *byte != b' ').unwrap_or_default();
        if self.rest.get(end..) == Some(b"\r\n") { Ok(()) } else { Err(SYNTAX) }
    }

    fn nil(&mut self) -> bool {
        let found = self.rest.get(..3).is_some_and(|word| word.eq_ignore_ascii_case(b"NIL"));
        if found {
            self.advance(3);
        }
        found
    }

    /// An argument of LOGIN, in any of the three forms of a string. An atom may hold `%`, `*` and `\`, as for Dovecot:
    /// Python's imaplib sends a name as typed, without quotes. None of them can end or begin anything here.
    fn login_argument(&mut self) -> Result<Secret, CommandError> {
        if matches!(self.rest.first(), Some(b'"' | b'{')) {
            return self.string(ARGUMENT);
        }
        let atom = self.run_of(|byte| is_astring_char(byte) || matches!(byte, b'%' | b'*' | b'\\'))?;
        if atom.len() > ARGUMENT { Err(TOO_BIG) } else { Ok(Secret::copy_of(atom)) }
    }

    fn string(&mut self, most: usize) -> Result<Secret, CommandError> {
        let string = match self.rest.first() {
            Some(b'"') => self.quoted()?,
            Some(b'{') => self.literal(most)?,
            _ => return Err(SYNTAX),
        };
        if string.expose().len() > most { Err(TOO_BIG) } else { Ok(string) }
    }

    /// Eight-bit bytes are taken as they are: RFC 9051 has UTF-8 here, and older clients Latin-1.
    fn quoted(&mut self) -> Result<Secret, CommandError> {
        let mut bytes = self.rest.iter().skip(1);
        // As large as it can get, so that no growth leaves a copy behind.
        let mut text = Zeroizing::new(Vec::with_capacity(self.rest.len()));
        loop {
            match bytes.next() {
                Some(b'"') => break,
                Some(b'\\') => match bytes.next() {
                    Some(escaped @ (b'"' | b'\\')) => text.push(*escaped),
                    _ => return Err(SYNTAX),
                },
                Some(b'\r' | b'\n') | None => return Err(SYNTAX),
                Some(byte) => text.push(*byte),
            }
        }
        let behind = bytes.len();
        self.advance(self.rest.len() - behind);
        Ok(Secret::copy_of(&text))
    }

    fn literal(&mut self, most: usize) -> Result<Secret, CommandError> {
        let end = self.rest.iter().position(|byte| *byte == b'\r').ok_or(SYNTAX)?;
        let marker = self.rest.get(..end).unwrap_or_default();
        // The announcement has to be all that is left of the line.
        let whole = marker.iter().rposition(|byte| *byte == b'{') == Some(0);
        let literal = Literal::announced_by(marker).filter(|_| whole).ok_or(SYNTAX)?;
        if literal.size > most {
            return Err(TOO_BIG);
        }
        self.advance(end);
        self.expect(b"\r\n")?;
        if self.rest.is_empty() {
            return Err(CommandError::Incomplete(literal));
        }
        let bytes = Secret::copy_of(self.rest.get(..literal.size).ok_or(SYNTAX)?);
        self.advance(literal.size);
        Ok(bytes)
    }

    fn atom(&mut self) -> Result<&'a [u8], CommandError> {
        self.run_of(|byte| is_astring_char(byte) && byte != b']')
    }

    /// One or more bytes of a kind.
    fn run_of(&mut self, kind: impl Fn(u8) -> bool) -> Result<&'a [u8], CommandError> {
        let end = self.rest.iter().position(|byte| !kind(*byte)).unwrap_or(self.rest.len());
        let (run, rest) = self.rest.split_at(end);
        self.rest = rest;
        if run.is_empty() { Err(SYNTAX) } else { Ok(run) }
    }

    fn advance(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }
}

/// ASTRING-CHAR: what an atom may hold, and `]`.
fn is_astring_char(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'(' | b')' | b'{' | b'%' | b'*' | b'"' | b'\\')
}
