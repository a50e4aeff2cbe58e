//! A small IMAP server over TLS (RFC 3501) with one welcome mail, so that a newcomer sees where
//! the login landed: the server says its name in the greeting, at login and in the mail.
//!
//! It is for the demo only: one mailbox, one message, read-only, and every person of the directory
//! has an account. The dialogue is a machine without sockets, [`Dialogue::step`]; the message and
//! its parts are in `welcome.rs`. A bad peer ends its own connection.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::directory::Directory;
use super::welcome::{self, Message};
use super::{IDLE, WRITE};

/// The longest command, literals included.
const LIMIT: usize = 64 * 1024;
const BEFORE_LOGIN: &str = "IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR LITERAL+ ID";
const AFTER_LOGIN: &str = "IMAP4rev1 LITERAL+ ID IDLE NAMESPACE UNSELECT";

/// A mail server: its name, and where its people's passwords are.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    name: Arc<str>,
    directory: Directory,
    /// The only token that it accepts; a real server verifies the signature.
    token: Option<Arc<str>>,
}

impl Mailbox {
    /// A server of this name for all users of the directory.
    #[must_use]
    pub(crate) fn new(name: &str, directory: Directory) -> Self {
        Self { name: name.into(), directory, token: None }
    }

    /// The same, which accepts this token.
    pub(crate) fn accepting(self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self }
    }

    /// Serves IMAP over implicit TLS until the task is dropped.
    pub(crate) async fn serve(self, listener: TcpListener, acceptor: TlsAcceptor) {
        super::serve(listener, move |stream| converse(stream, acceptor.clone(), Dialogue::new(self.clone()))).await;
    }
}

/// One client, from its handshake until it says LOGOUT, falls silent or talks nonsense.
async fn converse(stream: TcpStream, acceptor: TlsAcceptor, mut dialogue: Dialogue) {
    let Ok(Ok(mut tls)) = timeout(WRITE, acceptor.accept(stream)).await else { return };
    let (mut input, mut output, mut block) = (Vec::new(), Vec::new(), [0; 4096]);
    dialogue.greet(&mut output);
    loop {
        let goes_on = dialogue.step(&mut input, &mut output);
        let sent = timeout(WRITE, async {
            tls.write_all(&output).await?;
            tls.flush().await
        });
        if !matches!(sent.await, Ok(Ok(()))) || !goes_on {
            break;
        }
        output.clear();
        match timeout(IDLE, tls.read(&mut block)).await {
            Ok(Ok(n)) if n > 0 => input.extend_from_slice(block.get(..n).unwrap_or_default()),
            _ => break,
        }
    }
    let _ = timeout(WRITE, tls.shutdown()).await;
}

/// What the next line from the client is.
#[derive(Debug)]
enum Phase {
    /// A command.
    Command,
    /// The SASL answer to AUTHENTICATE PLAIN.
    Sasl { tag: String },
    /// DONE.
    Idle { tag: String },
}

/// The conversation with one client: bytes in, bytes out.
#[derive(Debug)]
struct Dialogue {
    server: Mailbox,
    phase: Phase,
    message: Option<Message>,
    selected: bool,
    /// How far into the input literals have been asked for already.
    asked: usize,
}

impl Dialogue {
    fn new(server: Mailbox) -> Self {
        Self { server, phase: Phase::Command, message: None, selected: false, asked: 0 }
    }

    fn greet(&self, out: &mut Vec<u8>) {
        say(out, format_args!("* OK [CAPABILITY {BEFORE_LOGIN}] {} of the usher demo", self.server.name));
    }

    /// Answers every complete command in `input`; false ends the connection once `out` is sent.
    fn step(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> bool {
        loop {
            let literals = matches!(self.phase, Phase::Command);
            match frame(input, literals, self.asked) {
                Frame::Partial => return true,
                Frame::TooLong => {
                    say(out, format_args!("* BYE the demo reads no more than {LIMIT} bytes at once"));
                    return false;
                }
                Frame::Literal { at } => {
                    self.asked = at;
                    say(out, format_args!("+ go on"));
                }
                Frame::Complete { len } => {
                    self.asked = 0;
                    let whole: Vec<u8> = input.drain(..len).collect();
                    let line = whole.strip_suffix(b"\r\n").unwrap_or(&whole);
                    let goes_on = match std::mem::replace(&mut self.phase, Phase::Command) {
                        Phase::Command => self.command(line, out),
                        Phase::Sasl { tag } => self.plain(&tag, line, out),
                        Phase::Idle { tag } => done(&tag, line, out),
                    };
                    if !goes_on {
                        return false;
                    }
                }
            }
        }
    }

    fn command(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let words = words(line);
        let (Some(tag), Some(name)) = (words.first(), words.get(1)) else {
            say(out, format_args!("* BAD expected a tag and a command"));
            return true;
        };
        let mut name = name.to_ascii_uppercase();
        let mut arguments = words.get(2..).unwrap_or_default();
        let by_uid = name == "UID";
        if let (true, Some((command, rest))) = (by_uid, arguments.split_first()) {
            name = command.to_ascii_uppercase();
            arguments = rest;
        }
        let server = &*self.server.name;
        match (name.as_str(), arguments) {
            ("CAPABILITY", _) => {
                let list = if self.message.is_some() { AFTER_LOGIN } else { BEFORE_LOGIN };
                say(out, format_args!("* CAPABILITY {list}"));
            }
            ("NOOP", _) => {}
            ("ID", _) => say(out, format_args!("* ID (\"name\" \"usher demo\" \"server\" \"{server}\")")),
            ("LOGOUT", _) => {
                say(out, format_args!("* BYE {server} says goodbye"));
                say(out, format_args!("{tag} OK done"));
                return false;
            }
            ("LOGIN", [login, password]) if self.message.is_none() => return self.log_in(tag, login, password, out),
            ("AUTHENTICATE", [mechanism, initial @ ..])
                if self.message.is_none() && mechanism.eq_ignore_ascii_case("PLAIN") =>
            {
                if let Some(answer) = initial.first() {
                    return self.plain(tag, answer.as_bytes(), out);
                }
                self.phase = Phase::Sasl { tag: tag.clone() };
                // RFC 3501 section 7.5: the empty challenge is a plus and a space.
                say(out, format_args!("+ "));
                return true;
            }
            ("AUTHENTICATE", [mechanism, message])
                if self.message.is_none() && mechanism.eq_ignore_ascii_case("XOAUTH2") =>
            {
                let user = self.user_of_token(message);
                return self.logged_in(tag, user, out);
            }
            ("AUTHENTICATE", [_, ..]) if self.message.is_none() => {
                say(out, format_args!("{tag} NO only PLAIN is served"));
                return true;
            }
            _ => return self.mail_command(tag, &name, by_uid, arguments, out),
        }
        say(out, format_args!("{tag} OK done"));
        true
    }

    /// What needs a login.
    fn mail_command(&mut self, tag: &str, name: &str, by_uid: bool, arguments: &[String], out: &mut Vec<u8>) -> bool {
        let Some(message) = &self.message else {
            say(out, format_args!("{tag} BAD not before login, or not with these arguments"));
            return true;
        };
        let inbox = |mailbox: &String| mailbox.eq_ignore_ascii_case("INBOX");
        let result = match (name, arguments) {
            ("NAMESPACE", _) => {
                say(out, format_args!("* NAMESPACE ((\"\" \"/\")) NIL NIL"));
                "OK done"
            }
            ("LIST" | "LSUB", [.., pattern]) => {
                match pattern.as_str() {
                    "" => say(out, format_args!("* {name} (\\Noselect) \"/\" \"\"")),
                    any if any.contains(['*', '%']) || inbox(pattern) => {
                        say(out, format_args!("* {name} (\\HasNoChildren) \"/\" INBOX"));
                    }
                    _ => {}
                }
                "OK done"
            }
            ("STATUS", [mailbox, items @ ..]) if inbox(mailbox) => {
                say(out, format_args!("* STATUS INBOX ({})", welcome::status(items)));
                "OK done"
            }
            ("SELECT" | "EXAMINE", [mailbox, ..]) => {
                self.selected = inbox(mailbox);
                if self.selected {
                    say(out, format_args!("* 1 EXISTS\r\n* 0 RECENT\r\n* FLAGS (\\Seen)"));
                    say(out, format_args!("* OK [UNSEEN 1] one message\r\n* OK [PERMANENTFLAGS ()] none can be set"));
                    say(out, format_args!("* OK [UIDVALIDITY 1] valid\r\n* OK [UIDNEXT 2] next"));
                    "OK [READ-ONLY] done"
                } else {
                    "NO [NONEXISTENT] there is only INBOX"
                }
            }
            ("CHECK" | "ENABLE" | "SUBSCRIBE" | "UNSUBSCRIBE", _) => "OK done",
            ("CLOSE" | "UNSELECT", _) => {
                self.selected = false;
                "OK done"
            }
            ("IDLE", _) => {
                self.phase = Phase::Idle { tag: tag.to_owned() };
                say(out, format_args!("+ idling"));
                return true;
            }
            ("SEARCH", criteria) if self.selected => {
                let found = if welcome::found(criteria) { " 1" } else { "" };
                say(out, format_args!("* SEARCH{found}"));
                "OK done"
            }
            ("FETCH", [set, items @ ..]) if self.selected => match message.fetch(set, items, by_uid) {
                Some(answer) => {
                    out.extend_from_slice(&answer);
                    "OK done"
                }
                None => "BAD the demo cannot fetch this",
            },
            ("STORE" | "COPY" | "MOVE" | "EXPUNGE" | "APPEND" | "CREATE" | "DELETE" | "RENAME" | "STATUS", _) => {
                "NO [CANNOT] the demo's mailboxes can only be read"
            }
            _ => "BAD unknown here",
        };
        say(out, format_args!("{tag} {result}"));
        true
    }

    /// The answer to AUTHENTICATE PLAIN (RFC 4616): authzid NUL authcid NUL password, in base64.
    fn plain(&mut self, tag: &str, line: &[u8], out: &mut Vec<u8>) -> bool {
        let decoded = STANDARD.decode(line).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let parts: Vec<&str> = decoded.iter().flat_map(|text| text.split('\0')).collect();
        match parts.as_slice() {
            [authzid, authcid, password] if authzid.is_empty() || authzid == authcid => {
                self.log_in(tag, authcid, password, out)
            }
            _ => {
                say(out, format_args!("{tag} BAD cancelled, or no PLAIN response"));
                true
            }
        }
    }

    fn log_in(&mut self, tag: &str, login: &str, password: &str, out: &mut Vec<u8>) -> bool {
        let user = self.server.directory.verify(login, password);
        self.logged_in(tag, user, out)
    }

    /// The user of a message of XOAUTH2 in base64, if its token is accepted.
    fn user_of_token(&self, message: &str) -> Option<String> {
        let decoded = STANDARD.decode(message).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
        let (name, token) = decoded.strip_prefix("user=")?.split_once("\x01auth=Bearer ")?;
        let is_right = self.server.token.as_deref() == token.strip_suffix("\x01\x01");
        is_right.then(|| self.server.directory.known(name)).flatten()
    }

    fn logged_in(&mut self, tag: &str, user: Option<String>, out: &mut Vec<u8>) -> bool {
        let server = &*self.server.name;
        match user {
            Some(user) => {
                let message = Message::welcome(server, &user);
                let user = message.user();
                say(out, format_args!("{tag} OK [CAPABILITY {AFTER_LOGIN}] {user} logged in on {server}"));
                self.message = Some(message);
            }
            None => say(out, format_args!("{tag} NO [AUTHENTICATIONFAILED] {server} does not know this password")),
        }
        true
    }
}

fn done(tag: &str, line: &[u8], out: &mut Vec<u8>) -> bool {
    let result = if line.eq_ignore_ascii_case(b"DONE") { "OK done" } else { "BAD expected DONE" };
    say(out, format_args!("{tag} {result}"));
    true
}

/// Appends a line.
fn say(out: &mut Vec<u8>, line: std::fmt::Arguments<'_>) {
    out.extend_from_slice(line.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// How much of a command is there.
enum Frame {
    /// Not all of it.
    Partial,
    /// A synchronizing literal is announced; its first byte will be at `at`.
    Literal { at: usize },
    /// The first `len` bytes, with every literal and the last CRLF.
    Complete { len: usize },
    /// More than [`LIMIT`].
    TooLong,
}

/// Finds the end of the first command; `asked` says up to where literals have been asked for.
fn frame(input: &[u8], literals: bool, asked: usize) -> Frame {
    let mut start = 0_usize;
    loop {
        let rest = input.get(start..).unwrap_or_default();
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            return if input.len() > LIMIT { Frame::TooLong } else { Frame::Partial };
        };
        let behind = start + end + 2;
        let announced = rest.get(..end).filter(|_| literals).and_then(literal);
        let Some((size, synchronizing)) = announced else { return Frame::Complete { len: behind } };
        start = behind.saturating_add(size);
        if start > LIMIT {
            return Frame::TooLong;
        }
        if synchronizing && behind > asked {
            return Frame::Literal { at: behind };
        }
        if input.len() < start {
            return Frame::Partial;
        }
    }
}

/// The size of the literal that a line announces at its end, and whether the client waits.
fn literal(line: &[u8]) -> Option<(usize, bool)> {
    let inner = line.strip_suffix(b"}")?;
    let brace = inner.iter().rposition(|byte| *byte == b'{')?;
    let digits = inner.get(brace + 1..)?;
    let (digits, synchronizing) = digits.strip_suffix(b"+").map_or((digits, true), |digits| (digits, false));
    let size = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((size, synchronizing))
}

/// The words of a complete command: atoms (with `[...]` kept together), quoted strings and
/// literals. Parentheses are left out: no command here needs to know where a list begins.
fn words(line: &[u8]) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), line);
    while let Some((first, behind)) = rest.split_first() {
        let word;
        (word, rest) = match first {
            b' ' | b'(' | b')' => (None, behind),
            b'"' => quoted(behind),
            b'{' => literal_word(rest),
            _ => {
                let mut depth = 0_i32;
                let end = rest.iter().position(|byte| {
                    depth += i32::from(*byte == b'[') - i32::from(*byte == b']');
                    depth <= 0 && matches!(byte, b' ' | b'(' | b')')
                });
                let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
                (Some(word.to_vec()), behind)
            }
        };
        words.extend(word.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    }
    words
}

/// A quoted string behind its opening quote.
fn quoted(text: &[u8]) -> (Option<Vec<u8>>, &[u8]) {
    let (mut word, mut rest) = (Vec::new(), text);
    loop {
        rest = match rest {
            [b'"', behind @ ..] => return (Some(word), behind),
            [b'\\', byte, behind @ ..] | [byte, behind @ ..] => {
                word.push(*byte);
                behind
            }
            [] => return (Some(word), rest),
        };
    }
}

/// A literal with its announcement.
fn literal_word(text: &[u8]) -> (Option<Vec<u8>>, &[u8]) {
    let end = text.windows(2).position(|pair| pair == b"\r\n");
    let announced = end.and_then(|end| text.split_at_checked(end));
    match announced.and_then(|(line, behind)| Some((literal(line)?.0, behind.get(2..)?))) {
        Some((size, behind)) => {
            let (word, behind) = behind.split_at(size.min(behind.len()));
            (Some(word.to_vec()), behind)
        }
        // No literal after all: an atom that runs to the end of the line.
        None => (Some(text.to_vec()), &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ADMIN, LDIF, ldif};
    use super::*;

    fn dialogue() -> Dialogue {
        Dialogue::new(Mailbox::new("server3", Directory::new(ldif::parse(LDIF).unwrap(), ADMIN)))
    }

    /// Everything the server says to these bytes, given in pieces of `size`, and whether it goes on.
    fn hear(said: &str, size: usize) -> (String, bool) {
        let (mut dialogue, mut input, mut out) = (dialogue(), Vec::new(), Vec::new());
        for piece in said.as_bytes().chunks(size) {
            input.extend_from_slice(piece);
            if !dialogue.step(&mut input, &mut out) {
                return (String::from_utf8(out).unwrap(), false);
            }
        }
        (String::from_utf8(out).unwrap(), true)
    }

    /// The same answers whole and byte by byte; returns them.
    fn answers(said: &str) -> String {
        let whole = hear(said, said.len().max(1));
        assert_eq!(whole, hear(said, 1), "split input changes the answers to {said:?}");
        whole.0
    }

    #[test]
    fn logins_reach_the_named_server_by_every_mechanism() {
        let ok = format!("a OK [CAPABILITY {AFTER_LOGIN}] alice logged in on server3\r\n");
        for said in [
            "a LOGIN alice wonderland\r\n",
            "a login \"alice\" \"won\\derland\"\r\n",
            "a LOGIN {5+}\r\nalice {10+}\r\nwonderland\r\n",
            "a LOGIN alice@demo.example \"wonderland\"\r\n",
            "a AUTHENTICATE PLAIN AGFsaWNlAHdvbmRlcmxhbmQ=\r\n",
        ] {
            assert_eq!(answers(said), ok, "{said}");
        }
        assert_eq!(answers("a LOGIN {5}\r\nalice {10}\r\nwonderland\r\n"), format!("+ go on\r\n+ go on\r\n{ok}"));
        assert_eq!(answers("a AUTHENTICATE plain\r\nAGFsaWNlAHdvbmRlcmxhbmQ=\r\n"), format!("+ \r\n{ok}"));
    }

    #[test]
    fn refusals_leave_the_connection_usable() {
        let no = "a NO [AUTHENTICATIONFAILED] server3 does not know this password\r\n";
        assert_eq!(answers("a LOGIN alice wrong\r\nb NOOP\r\n"), format!("{no}b OK done\r\n"));
        assert_eq!(answers("a LOGIN \"\" {0}\r\n\r\n"), format!("+ go on\r\n{no}"));
        assert!(answers("a AUTHENTICATE PLAIN\r\n*\r\n").ends_with("a BAD cancelled, or no PLAIN response\r\n"));
        assert!(answers("a AUTHENTICATE PLAIN Ym9iAGFsaWNlAHdvbmRlcmxhbmQ=\r\n").starts_with("a BAD"), "authzid bob");
        assert!(answers("a AUTHENTICATE GSSAPI\r\n").starts_with("a NO"));
        assert!(answers("a SELECT INBOX\r\nb FETCH 1 BODY[]\r\n").starts_with("a BAD"));
        assert_eq!(answers("\r\n"), "* BAD expected a tag and a command\r\n");
    }

    #[test]
    fn new_user_reads_the_welcome_mail() {
        let said = answers(
            "a LOGIN alice wonderland\r\nb LIST \"\" *\r\nc STATUS INBOX (MESSAGES UNSEEN)\r\nd SELECT inbox\r\n\
             e UID SEARCH ALL\r\nf UID FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])\r\ng IDLE\r\nDONE\r\n\
             h SEARCH DELETED\r\ni FETCH 1 NONSENSE\r\nj APPEND INBOX {3+}\r\nabc\r\nk LOGOUT\r\n",
        );
        for needle in [
            "* LIST (\\HasNoChildren) \"/\" INBOX\r\n",
            "* STATUS INBOX (MESSAGES 1 UNSEEN 1)\r\n",
            "* 1 EXISTS\r\n",
            "* SEARCH 1\r\n",
            "Subject: Welcome to server3, alice\r\n",
            "+ idling\r\ng OK done\r\n",
            "* SEARCH\r\nh OK done\r\n",
            "i BAD",
            "j NO [CANNOT]",
            "* BYE server3 says goodbye\r\nk OK done\r\n",
        ] {
            assert!(said.contains(needle), "{needle:?} is missing in\n{said}");
        }
    }

    #[test]
    fn memory_use_is_bounded() {
        assert!(!hear("a LOGIN {99999999999999}\r\n", 7).1);
        assert!(!hear("a APPEND INBOX {70000}\r\n", 7).1);
        assert!(!hear(&"x".repeat(LIMIT + 4096), 4096).1);
        assert_eq!(
            answers("a LOGIN {999999999999999999999999}\r\n"),
            hear("a LOGIN {999999999999999999999999}\r\n", 9).0
        );
    }
}
