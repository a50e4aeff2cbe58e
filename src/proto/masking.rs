//! What of a line is shown in a trace. A list of what is known to be harmless: verbs of the protocol, names of
//! mechanisms, arguments of a few commands that were carried out. All else is its number of bytes, so that a
//! password in a place where none belongs is not shown either.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::sasl::Account;
use super::wire::{Literal, first_word};

/// A protocol's words that may be shown.
struct Words {
    protocol: &'static str,
    /// Whether a tag stands before a command and its reply.
    tagged: bool,
    /// The verbs. Their arguments are never shown, except as follows.
    verbs: &'static [&'static str],
    /// The verb whose first argument is a mechanism.
    mechanism: &'static str,
    /// The words of a status.
    statuses: &'static [&'static str],
    /// The brackets of a response code.
    brackets: Option<(u8, u8)>,
}

/// The verbs and statuses of each protocol. Of a protocol without a row nothing is shown.
const WORDS: &[Words] = &[
    Words {
        protocol: "imap",
        tagged: true,
        verbs: &[
            "AUTHENTICATE",
            "CAPABILITY",
            "COMPRESS",
            "ENABLE",
            "ID",
            "IDLE",
            "LIST",
            "LOGIN",
            "LOGOUT",
            "LSUB",
            "NAMESPACE",
            "NOOP",
            "SELECT",
            "STARTTLS",
            "STATUS",
        ],
        mechanism: "AUTHENTICATE",
        statuses: &["OK", "NO", "BAD", "BYE", "PREAUTH"],
        brackets: Some((b'[', b']')),
    },
    Words {
        protocol: "pop3",
        tagged: false,
        verbs: &[
            "APOP", "AUTH", "CAPA", "LIST", "NOOP", "PASS", "QUIT", "RETR", "RSET", "STAT", "STLS", "UIDL", "USER",
            "UTF8", "XCLIENT",
        ],
        mechanism: "AUTH",
        statuses: &["+OK", "-ERR"],
        brackets: Some((b'[', b']')),
    },
    Words {
        protocol: "submission",
        tagged: false,
        verbs: &[
            "AUTH", "BDAT", "DATA", "EHLO", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "STARTTLS", "VRFY",
            "XCLIENT",
        ],
        mechanism: "AUTH",
        statuses: &[],
        brackets: None,
    },
    Words {
        protocol: "managesieve",
        tagged: false,
        verbs: &[
            "AUTHENTICATE",
            "CAPABILITY",
            "GETSCRIPT",
            "HAVESPACE",
            "LISTSCRIPTS",
            "LOGOUT",
            "NOOP",
            "PUTSCRIPT",
            "SETACTIVE",
            "STARTTLS",
            "UNAUTHENTICATE",
            "XCLIENT",
        ],
        mechanism: "AUTHENTICATE",
        statuses: &["OK", "NO", "BYE"],
        brackets: Some((b'(', b')')),
    },
];

/// Mechanisms that are registered, or in use.
const MECHANISMS: &[&str] = &[
    "ANONYMOUS",
    "CRAM-MD5",
    "DIGEST-MD5",
    "EXTERNAL",
    "GS2-KRB5",
    "GSS-SPNEGO",
    "GSSAPI",
    "LOGIN",
    "NTLM",
    "OAUTHBEARER",
    "PLAIN",
    "SCRAM-SHA-1",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-512",
    "XOAUTH2",
];

/// Response codes without an argument: RFC 5530, RFC 3206, RFC 2449, RFC 5804.
const CODES: &[&str] = &[
    "ALERT",
    "ALREADYEXISTS",
    "AUTH",
    "AUTHENTICATIONFAILED",
    "AUTHORIZATIONFAILED",
    "AUTH-TOO-WEAK",
    "CANNOT",
    "CLIENTBUG",
    "CONTACTADMIN",
    "CORRUPTION",
    "ENCRYPT-NEEDED",
    "EXPIRED",
    "IN-USE",
    "INUSE",
    "LIMIT",
    "LOGIN-DELAY",
    "NOPERM",
    "OVERQUOTA",
    "PRIVACYREQUIRED",
    "SERVERBUG",
    "SYS/PERM",
    "SYS/TEMP",
    "TRANSITION-NEEDED",
    "TRYLATER",
    "UNAVAILABLE",
];

/// Fields of ID whose values are shown: those of RFC 2971 that say nothing of a command line, and those that
/// proxies add.
const ID_FIELDS: &[&str] = &[
    "name",
    "version",
    "os",
    "os-version",
    "vendor",
    "support-url",
    "date",
    "x-originating-ip",
    "x-originating-port",
    "x-connected-ip",
    "x-connected-port",
    "x-session-id",
    "x-proxy-ttl",
];

/// Attributes of XCLIENT whose values are shown. LOGIN names a user, and FORWARD may hold anything.
const XCLIENT_ATTRIBUTES: &[&str] =
    &["NAME", "ADDR", "PORT", "PROTO", "HELO", "SESSION", "DESTADDR", "DESTPORT", "TTL", "TIMEOUT"];

/// Texts of common servers, and usher's own, that are shown whatever the password is: if one of them were hidden,
/// it would show that the password has a part of it.
const TEXTS: &[&str] = &[
    "Authentication failed.",
    "Authentication failed",
    "authentication failure",
    "Error: authentication failed:",
    "Invalid login or password",
    "Invalid user name or password",
    "LOGIN failed.",
    "Logged in",
    "Logged in.",
    "Login failed.",
    "Login failed: authentication failure",
    "Login incorrect",
    "Logon failure: unknown user name or bad password.",
    "Success (tls protection)",
    "User logged in",
];

/// The longest name of a client in EHLO that is shown (RFC 1035 section 2.3.4).
const HOST: usize = 255;
/// How many bytes in a row an echo has in common with a form of the secret, in any case.
const ECHO: usize = 4;
/// The same for a token, which is so long that any text would have four in common with it.
const ECHO_OF_TOKEN: usize = 12;

/// A command as it is shown.
pub(super) struct MaskedCommand {
    pub(super) line: String,
    pub(super) is_tag_shown: bool,
}

/// What stands for bytes that are not shown.
pub(super) fn bytes(count: usize) -> String {
    format!("<{count} byte{}>", if count == 1 { "" } else { "s" })
}

fn words(protocol: &str) -> Option<&'static Words> {
    WORDS.iter().find(|words| words.protocol == protocol)
}

/// The word of a list that this is, in any case.
fn known(list: &[&'static str], word: &[u8]) -> Option<&'static str> {
    list.iter().find(|known| known.as_bytes().eq_ignore_ascii_case(word)).copied()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command: its verb, and of its arguments what is known to be harmless. `is_carried_out`: the dialect has
/// understood it as a command without a secret.
pub(super) fn command(protocol: &str, line: &[u8], is_carried_out: bool) -> MaskedCommand {
    let hidden = || MaskedCommand { line: bytes(line.len()), is_tag_shown: false };
    let Some(words) = words(protocol) else { return hidden() };
    let (tag, rest) = if words.tagged { first_word(line) } else { (&b""[..], line) };
    let end = rest.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n')).unwrap_or(rest.len());
    let (verb, arguments) = rest.split_at(end);
    let Some(name) = known(words.verbs, verb) else { return hidden() };
    let is_tag_shown = words.tagged && is_plain_tag(tag);
    let tag = match (words.tagged, is_tag_shown) {
        (false, _) => String::new(),
        (true, true) => text(tag) + " ",
        (true, false) => "<tag> ".to_owned(),
    };
    let shown = match name {
        _ if arguments.is_empty() => String::new(),
        "ID" if is_carried_out => format!(" {}", id(arguments)),
        "EHLO" | "HELO" if is_carried_out => format!(" {}", host(arguments)),
        "XCLIENT" if is_carried_out => attributes(arguments),
        _ if name == words.mechanism => mechanism(arguments),
        _ => format!(" {}", masked_argument(arguments)),
    };
    MaskedCommand { line: format!("{tag}{}{shown}", text(verb)), is_tag_shown }
}

/// Bytes that usher wrote when a backend asked for them: the rest of a login.
pub(super) fn continuation(protocol: &str, line: &[u8]) -> String {
    // In IMAP it may be a literal, in which anything may stand. Elsewhere a password is base64, which has no blank,
    // or stands behind PASS.
    let (verb, _) = first_word(line);
    if protocol != "imap" && known(&["AUTH", "AUTHENTICATE", "PASS", "USER"], verb).is_some() && verb.len() < line.len()
    {
        return command(protocol, line, false).line;
    }
    bytes(line.len())
}

/// A line of usher's own: all of it but what repeats the client's input.
pub(super) fn own_reply(protocol: &str, line: &[u8], is_tag_shown: bool) -> String {
    // The string of NOOP comes back (RFC 5804 section 2.13).
    if protocol == "managesieve"
        && let Some(rest) = line.strip_prefix(b"OK (TAG ")
    {
        return format!("OK (TAG {}", bytes(rest.len()));
    }
    match reply_tag(protocol, line, is_tag_shown) {
        Some((tag, rest)) => format!("{tag}{}", text(rest)),
        None => bytes(line.len()),
    }
}

/// A line with text of a backend that may hold a secret: its status and its code.
pub(super) fn foreign_reply(protocol: &str, line: &[u8], is_tag_shown: bool) -> String {
    let Some(words) = words(protocol) else { return bytes(line.len()) };
    let Some((mut shown, mut rest)) = reply_tag(protocol, line, is_tag_shown) else { return bytes(line.len()) };
    let (word, behind) = first_word(rest);
    if let Some(status) = known(words.statuses, word) {
        (shown, rest) = (shown + status, behind);
    } else if let ("submission", Some((code, behind))) = (protocol, rest.split_at_checked(4))
        && is_reply_code(code)
    {
        (shown, rest) = (shown + &text(code.trim_ascii_end()), behind);
        let (enhanced, behind) = first_word(rest);
        if enhanced.len() <= 9
            && enhanced.contains(&b'.')
            && enhanced.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'.'))
        {
            (shown, rest) = (format!("{shown} {}", text(enhanced)), behind);
        }
    }
    let code = words.brackets.and_then(|(open, close)| {
        let inside = rest.strip_prefix(&[open])?;
        let end = inside.iter().position(|byte| *byte == close)?;
        let code = inside.get(..end)?;
        let name = match (known(CODES, code), code.strip_prefix(b"CAPABILITY ")) {
            (Some(name), _) => name.to_owned(),
            (None, Some(listed)) => format!("CAPABILITY {}", bytes(listed.len())),
            (None, None) => return None,
        };
        Some((format!(" {}{name}{}", char::from(open), char::from(close)), inside.get(end + 1..)?))
    });
    if let Some((code, behind)) = code {
        (shown, rest) = (shown + &code, behind.strip_prefix(b" ").unwrap_or(behind));
    }
    let rest = match rest {
        b"" => String::new(),
        rest if is_public(rest) => text(rest),
        rest => bytes(rest.len()),
    };
    let space = if shown.is_empty() || shown.ends_with(' ') || rest.is_empty() { "" } else { " " };
    format!("{shown}{space}{rest}")
}

/// Whether a text, quoted or not, is one of [`TEXTS`].
fn is_public(text: &[u8]) -> bool {
    let bare = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text);
    TEXTS.iter().any(|known| known.as_bytes() == bare)
}

fn is_reply_code(code: &[u8]) -> bool {
    matches!(code, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9', b' ' | b'-'])
}

/// The tag of a reply with the space behind it, and the rest; no tag where the protocol has none. `None`: a line that
/// is no reply.
fn reply_tag<'a>(protocol: &str, line: &'a [u8], is_tag_shown: bool) -> Option<(String, &'a [u8])> {
    if !words(protocol)?.tagged {
        return Some((String::new(), line));
    }
    let (tag, rest) = first_word(line);
    let is_shown = matches!(tag, b"*" | b"+") || is_tag_shown && is_plain_tag(tag);
    let is_reply = tag.len() < line.len() || tag == b"+";
    is_reply.then(|| (if is_shown { text(tag) } else { "<tag>".to_owned() } + " ", rest))
}

/// Whether a tag looks as programs write them: up to four letters, then digits, which dots may separate.
fn is_plain_tag(tag: &[u8]) -> bool {
    let letters = tag.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let digits = tag.get(letters..).unwrap_or_default();
    let is_number = digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') && digits.len() <= 8;
    is_number && letters <= if digits.is_empty() { 2 } else { 4 } && !tag.is_empty()
}

/// The mechanism, if it is one, and how many bytes stand behind it.
fn mechanism(arguments: &[u8]) -> String {
    let arguments = arguments.strip_prefix(b" ").unwrap_or(arguments);
    let (word, rest) = first_word(arguments);
    let bare = word.strip_prefix(b"\"").and_then(|word| word.strip_suffix(b"\"")).unwrap_or(word);
    let Some(name) = known(MECHANISMS, bare) else { return format!(" {}", bytes(arguments.len())) };
    let name = if bare.len() == word.len() { name.to_owned() } else { format!("\"{name}\"") };
    if word.len() == arguments.len() { format!(" {name}") } else { format!(" {name} {}", masked_argument(rest)) }
}

/// An argument behind its blank; blanks alone count.
fn masked_argument(argument: &[u8]) -> String {
    let without = argument.strip_prefix(b" ").filter(|rest| !rest.is_empty());
    bytes(without.unwrap_or(argument).len())
}

/// The name in EHLO, if it is one: a domain or an address, so not any word.
fn host(arguments: &[u8]) -> String {
    let name = arguments.trim_ascii();
    let is_name = name.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(byte));
    let is_host = name.contains(&b'.') || name.starts_with(b"[") || name.eq_ignore_ascii_case(b"localhost");
    if is_name && is_host && name.len() <= HOST { text(name) } else { masked_argument(arguments) }
}

/// The pairs of ID; all of it is masked unless it is a list of quoted strings and NIL.
fn id(arguments: &[u8]) -> String {
    id_pairs(arguments).unwrap_or_else(|| masked_argument(arguments))
}

fn id_pairs(arguments: &[u8]) -> Option<String> {
    let inside = arguments.trim_ascii();
    if inside.eq_ignore_ascii_case(b"NIL") {
        return Some("NIL".to_owned());
    }
    let mut rest = inside.strip_prefix(b"(")?.strip_suffix(b")")?.trim_ascii();
    let mut shown = Vec::new();
    while !rest.is_empty() {
        let (field, behind) = id_string(rest)?;
        let (value, behind) = id_string(behind.trim_ascii_start())?;
        rest = behind.trim_ascii_start();
        let field = known(ID_FIELDS, field?);
        let value = match (value, field) {
            (None, _) => "NIL".to_owned(),
            (Some(value), Some(_)) => format!("\"{}\"", text(value)),
            (Some(value), None) => bytes(value.len()),
        };
        shown.push(format!("{} {value}", field.map_or_else(|| "<field>".to_owned(), |field| format!("\"{field}\""))));
    }
    Some(format!("({})", shown.join(" ")))
}

/// A quoted string (`Some`) or NIL, and what follows.
fn id_string(text: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    if text.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"NIL")) {
        return Some((None, text.get(3..)?));
    }
    let inside = text.strip_prefix(b"\"")?;
    let mut is_escaped = false;
    let end = inside.iter().position(|byte| {
        let ends = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        ends
    })?;
    Some((Some(inside.get(..end)?), inside.get(end + 1..)?))
}

/// The attributes of XCLIENT.
fn attributes(arguments: &[u8]) -> String {
    let one = |argument: &[u8]| {
        let at = argument.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (argument.get(..at)?, argument.get(at + 1..)?);
        // ManageSieve has them as strings.
        let name = known(XCLIENT_ATTRIBUTES, name.strip_prefix(b"\"").unwrap_or(name))?;
        let value = value.strip_suffix(b"\"").unwrap_or(value);
        // The client has chosen it.
        Some(format!(" {name}={}", if name == "HELO" { host(value) } else { text(value) }))
    };
    let arguments = arguments.split(|byte| *byte == b' ').filter(|argument| !argument.is_empty());
    arguments.map(|argument| one(argument).unwrap_or_else(|| format!(" {}", bytes(argument.len())))).collect()
}

/// Finds what a backend repeats of the secret that it was sent.
pub(super) struct EchoGuard {
    /// The secret as it may appear, in lower case.
    forms: Vec<Zeroizing<Vec<u8>>>,
    /// How many bytes in a row are an echo.
    length: usize,
}

impl EchoGuard {
    pub(super) fn new(account: &Account) -> Self {
        let secret = account.password.expose();
        let without_backslash = secret.iter().copied().filter(|byte| *byte != b'\\').collect();
        let mut forms = vec![Zeroizing::new(secret.to_vec()), Zeroizing::new(without_backslash)];
        // Base64 of the secret alone, and behind whatever stands before it in a message.
        for before in 0..3 {
            let mut message = Zeroizing::new(vec![0; before]);
            message.extend_from_slice(secret);
            let mut encoded = Zeroizing::new(vec![0; message.len().div_ceil(3) * 4]);
            let length = STANDARD.encode_slice(&*message, &mut encoded).unwrap_or_default();
            encoded.truncate(length);
            // Characters that hold bits of the secret only.
            let start = (before * 8).div_ceil(6);
            forms.push(Zeroizing::new(encoded.get(start..).unwrap_or_default().to_vec()));
        }
        forms.push(Zeroizing::new(secret.iter().flat_map(|byte| hex(*byte)).collect()));
        for form in &mut forms {
            form.make_ascii_lowercase();
        }
        Self { forms, length: if account.token.is_some() { ECHO_OF_TOKEN } else { ECHO } }
    }

    /// Whether the text has some bytes in a row in common with the secret, whole or in part, as it is, quoted, in
    /// base64 or in hexadecimal digits.
    pub(super) fn finds_echo(&self, text: &[u8]) -> bool {
        self.finds(text, self.length)
    }

    /// Whether the text has the whole secret in one of these forms; one that is shorter than an echo may be part of any
    /// word.
    pub(super) fn finds_whole(&self, text: &[u8]) -> bool {
        let texts = Self::texts(text);
        let mut forms = self.forms.iter().filter(|form| form.len() >= ECHO);
        forms.any(|form| texts.iter().any(|text| text.windows(form.len()).any(|window| window == form.as_slice())))
    }

    /// Whether a part of this length is in the text, or the whole of a form that is shorter.
    fn finds(&self, text: &[u8], length: usize) -> bool {
        let texts = Self::texts(text);
        // Not one by one: a user chooses how long the password is.
        let parts: HashSet<&[u8]> = texts.iter().flat_map(|text| text.windows(length)).collect();
        let mut forms = self.forms.iter().filter(|form| !form.is_empty());
        forms.any(|form| match form.len() {
            short if short < length => {
                texts.iter().any(|text| text.windows(short).any(|window| window == form.as_slice()))
            }
            _ => form.windows(length).any(|part| parts.contains(part)),
        })
    }

    /// A text in lower case, also without escaped quotes and the line ends of a folded text.
    fn texts(text: &[u8]) -> [Zeroizing<Vec<u8>>; 2] {
        let bare = text.iter().filter(|byte| !matches!(byte, b'\\' | b'\r' | b'\n')).map(u8::to_ascii_lowercase);
        [Zeroizing::new(text.to_ascii_lowercase()), Zeroizing::new(bare.collect::<Vec<u8>>())]
    }
}

fn hex(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 0xf].map(|digit| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 })
}

/// As a client announces it: `{5}`, `{5+}`.
impl std::fmt::Display for Literal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{{}{}}}", self.size, if self.synchronizing { "" } else { "+" })
    }
}
