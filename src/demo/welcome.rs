//! The one message of a demo mailbox, and the parts of it that clients fetch (RFC 3501 section
//! 6.4.5): enough for curl, Thunderbird and mutt to show it.

/// When every message was sent, as in its header and as IMAP spells it.
const DATE: &str = "Thu, 1 Jan 2026 09:00:00 +0000";
const INTERNAL_DATE: &str = "01-Jan-2026 09:00:00 +0000";

/// Search keys that the message, unread and without flags, does not meet.
const NOT_FOUND: [&str; 9] = ["SEEN", "DELETED", "ANSWERED", "FLAGGED", "DRAFT", "KEYWORD", "NEW", "RECENT", "LARGER"];

/// A welcome mail.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    server: String,
    user: String,
    /// The header with its closing empty line.
    header: String,
    text: String,
}

impl Message {
    /// The mail that names this server to `user`. What is no plain letter, digit, dot, dash
    /// or underscore is left out of the name, so that it can stand in a header and in IMAP strings.
    pub(crate) fn welcome(server: &str, user: &str) -> Self {
        let plain = |letter: &char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
        let user: String = user.chars().filter(plain).collect();
        let header = format!(
            "Date: {DATE}\r\nFrom: {server} <postmaster@{server}.demo.example>\r\nTo: <{user}@demo.example>\r\n\
             Subject: Welcome to {server}, {user}\r\nMessage-ID: <welcome.{user}@{server}.demo.example>\r\n\
             MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
        );
        let text = format!(
            "This is {server}, one of the two mail servers of the usher demo.\r\n\r\n\
             You logged in at usher's address. usher asked the directory whether your\r\n\
             password is right and where your mail lives; your mailHost says {server},\r\n\
             so that is where this session went, over verified TLS.\r\n"
        );
        Self { server: server.to_owned(), user, header, text }
    }

    /// The header with its closing empty line.
    pub(crate) fn header(&self) -> &str {
        &self.header
    }

    /// All of it.
    pub(crate) fn whole(&self) -> String {
        format!("{}{}", self.header, self.text)
    }

    /// The user's name, free of anything special.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// The FETCH response for a sequence (or UID) set, empty if the set does not hold message 1;
    /// `None` if the set or an item cannot be understood.
    pub(crate) fn fetch(&self, set: &str, items: &[String], by_uid: bool) -> Option<Vec<u8>> {
        let mut names: Vec<String> = items.iter().map(|item| item.to_ascii_uppercase()).collect();
        let expanded = match names.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["FAST"] => "FLAGS INTERNALDATE RFC822.SIZE",
            ["ALL"] => "FLAGS INTERNALDATE RFC822.SIZE ENVELOPE",
            ["FULL"] => "FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODY",
            _ => "",
        };
        if !expanded.is_empty() {
            names = expanded.split(' ').map(str::to_owned).collect();
        }
        // RFC 3501 section 6.4.8: the answer to UID FETCH always has the UID.
        if by_uid && !names.iter().any(|name| name == "UID") {
            names.insert(0, "UID".to_owned());
        }
        let parts: Option<Vec<String>> = names.iter().map(|name| self.item(name)).collect();
        let (holds, parts) = (holds_one(set)?, parts.filter(|parts| !parts.is_empty())?);
        Some(if holds { format!("* 1 FETCH ({})\r\n", parts.join(" ")).into_bytes() } else { Vec::new() })
    }

    fn item(&self, name: &str) -> Option<String> {
        let (header, text) = (&self.header, &self.text);
        let lines = text.lines().count();
        let kind = format!("\"TEXT\" \"PLAIN\" (\"CHARSET\" \"US-ASCII\") NIL NIL \"7BIT\" {} {lines}", text.len());
        Some(match name {
            "UID" => "UID 1".to_owned(),
            "FLAGS" => "FLAGS ()".to_owned(),
            "INTERNALDATE" => format!("INTERNALDATE \"{INTERNAL_DATE}\""),
            "RFC822.SIZE" => format!("RFC822.SIZE {}", header.len() + text.len()),
            "ENVELOPE" => self.envelope(),
            "BODY" => format!("BODY ({kind})"),
            "BODYSTRUCTURE" => format!("BODYSTRUCTURE ({kind} NIL NIL NIL NIL)"),
            "RFC822" => as_literal(name, &format!("{header}{text}")),
            "RFC822.HEADER" => as_literal(name, header),
            "RFC822.TEXT" => as_literal(name, text),
            _ => return self.section(name),
        })
    }

    /// `BODY[section]<origin.size>` and `BODY.PEEK[...]`; there is no flag that a peek would spare.
    fn section(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix("BODY.PEEK[").or_else(|| name.strip_prefix("BODY["))?;
        let (section, partial) = rest.split_once(']')?;
        let content = match section {
            "" => format!("{}{}", self.header, self.text),
            "HEADER" => self.header.clone(),
            "TEXT" | "1" => self.text.clone(),
            _ => self.header_fields(section)?,
        };
        if partial.is_empty() {
            return Some(as_literal(&format!("BODY[{section}]"), &content));
        }
        let (origin, size) = partial.strip_prefix('<')?.strip_suffix('>')?.split_once('.')?;
        let (start, size): (usize, usize) = (origin.parse().ok()?, size.parse().ok()?);
        let (start, end) = (start.min(content.len()), start.saturating_add(size).min(content.len()));
        // The message is ASCII: every index is a character boundary.
        Some(as_literal(&format!("BODY[{section}]<{origin}>"), content.get(start..end)?))
    }

    /// `HEADER.FIELDS (names)` and `HEADER.FIELDS.NOT (names)`, with the empty line at the end.
    fn header_fields(&self, section: &str) -> Option<String> {
        let (kind, names) = section.split_once(" (")?;
        let keep = match kind {
            "HEADER.FIELDS" => true,
            "HEADER.FIELDS.NOT" => false,
            _ => return None,
        };
        let names: Vec<&str> = names.strip_suffix(')')?.split(' ').map(|name| name.trim_matches('"')).collect();
        let listed = |line: &str| {
            let field = line.split(':').next().unwrap_or_default();
            names.iter().any(|name| name.eq_ignore_ascii_case(field))
        };
        let fields = self.header.lines().filter(|line| !line.is_empty() && listed(line) == keep);
        Some(fields.map(|line| format!("{line}\r\n")).collect::<String>() + "\r\n")
    }

    fn envelope(&self) -> String {
        let Self { server, user, .. } = self;
        let from = format!("((\"{server}\" NIL \"postmaster\" \"{server}.demo.example\"))");
        format!(
            "ENVELOPE (\"{DATE}\" \"Welcome to {server}, {user}\" {from} {from} {from} \
             ((NIL NIL \"{user}\" \"demo.example\")) NIL NIL NIL \"<welcome.{user}@{server}.demo.example>\")"
        )
    }
}

fn as_literal(name: &str, content: &str) -> String {
    format!("{name} {{{}}}\r\n{content}", content.len())
}

/// The STATUS items (RFC 3501 section 6.3.10) that were asked for and are known.
pub(crate) fn status(items: &[String]) -> String {
    let known = |item: &String| {
        let name = item.to_ascii_uppercase();
        let value = match name.as_str() {
            "MESSAGES" | "UIDVALIDITY" | "UNSEEN" => 1,
            "UIDNEXT" => 2,
            "RECENT" => 0,
            _ => return None,
        };
        Some(format!("{name} {value}"))
    };
    items.iter().filter_map(known).collect::<Vec<_>>().join(" ")
}

/// Whether the message meets search criteria, as far as the demo looks at them: flags and sets.
pub(crate) fn found(criteria: &[String]) -> bool {
    let missed =
        |word: &String| NOT_FOUND.iter().any(|key| key.eq_ignore_ascii_case(word)) || holds_one(word) == Some(false);
    !criteria.iter().any(missed)
}

/// Whether a set such as `1:*,7` holds 1, which is also the highest number; `None` if it is no set.
fn holds_one(set: &str) -> Option<bool> {
    let number = |text: &str| if text == "*" { Some(1) } else { text.parse::<u32>().ok().filter(|n| *n > 0) };
    let mut holds = false;
    for range in set.split(',') {
        let (from, to) = range.split_once(':').unwrap_or((range, range));
        let (from, to) = (number(from)?, number(to)?);
        holds |= from.min(to) <= 1 && from.max(to) >= 1;
    }
    Some(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(set: &str, items: &[&str], by_uid: bool) -> Option<String> {
        let items: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
        let answer = Message::welcome("server3", "al\"ice").fetch(set, &items, by_uid)?;
        Some(String::from_utf8(answer).unwrap())
    }

    #[test]
    fn literals_announce_their_exact_size() {
        let answer = fetch("1", &["BODY[]"], false).unwrap();
        let (head, rest) = answer.split_once("}\r\n").unwrap();
        let size: usize = head.rsplit_once('{').unwrap().1.parse().unwrap();
        assert_eq!(rest.len(), size + ")\r\n".len());
        assert!(rest.starts_with("Date: ") && rest.contains("Subject: Welcome to server3, alice\r\n"));
        assert_eq!(fetch("1", &["rfc822.size"], false).unwrap(), format!("* 1 FETCH (RFC822.SIZE {size})\r\n"));
    }

    #[test]
    fn body_parts_and_partial_fetches_are_returned() {
        assert_eq!(
            fetch("*", &["body.peek[header.fields (subject X-None)]"], true).unwrap(),
            "* 1 FETCH (UID 1 BODY[HEADER.FIELDS (SUBJECT X-NONE)] {38}\r\nSubject: Welcome to server3, alice\r\n\r\n)\r\n"
        );
        assert_eq!(fetch("1", &["BODY[TEXT]<5.2>"], false).unwrap(), "* 1 FETCH (BODY[TEXT]<5> {2}\r\nis)\r\n");
        assert!(fetch("1", &["BODY[]<99999.5>"], false).unwrap().contains("{0}"));
        assert!(fetch("1", &["FULL"], false).unwrap().contains("ENVELOPE (\"Thu, 1 Jan"));
    }

    #[test]
    fn sets_without_the_message_and_invalid_sets_are_handled() {
        assert_eq!(fetch("2", &["FLAGS"], false).unwrap(), "");
        assert_eq!(fetch("7:*", &["FLAGS"], false).unwrap(), "* 1 FETCH (FLAGS ())\r\n");
        for (set, item) in [("x", "FLAGS"), ("0", "FLAGS"), ("1", "BODY[2.MIME]"), ("1", "BODY[]<1>"), ("1", "SPAM")] {
            assert_eq!(fetch(set, &[item], false), None, "{set} {item}");
        }
        assert_eq!(fetch("1", &[], false), None);
    }
}
