//! Reads LDIF content records (RFC 2849) into entries: comments, folded lines, base64 values and
//! attributes with several values.
//!
//! It never reads other files (`attr:< url`) and never applies changes (`changetype:`): both are
//! reported as errors, each with its line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// An entry as the file spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The DN.
    pub dn: String,
    /// Attributes in the order of their first value, each with its values in order.
    pub attributes: Vec<Attribute>,
}

/// An attribute with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribute {
    /// The name as first spelt.
    pub name: String,
    /// The values; never empty.
    pub values: Vec<Vec<u8>>,
}

impl Entry {
    /// The values of an attribute, whose name is compared without regard to case.
    #[must_use]
    pub(crate) fn values(&self, name: &str) -> &[Vec<u8>] {
        let found = self.attributes.iter().find(|attribute| attribute.name.eq_ignore_ascii_case(name));
        found.map(|attribute| attribute.values.as_slice()).unwrap_or_default()
    }

    /// Appends a value and keeps the spelling that the attribute already has.
    pub(crate) fn push(&mut self, name: &str, value: Vec<u8>) {
        match self.attributes.iter_mut().find(|attribute| attribute.name.eq_ignore_ascii_case(name)) {
            Some(attribute) => attribute.values.push(value),
            None => self.attributes.push(Attribute { name: name.to_owned(), values: vec![value] }),
        }
    }
}

/// Why a file is no LDIF that can be loaded. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LdifError {
    /// A line without `name:`.
    #[error("line {line}: expected `name: value`")]
    NoColon {
        /// The line.
        line: usize,
    },
    /// A record whose first line is no `dn:`.
    #[error("line {line}: a record must begin with `dn:`")]
    NoDn {
        /// The line.
        line: usize,
    },
    /// A `::` value that is no base64, or a DN that is no UTF-8 once decoded.
    #[error("line {line}: the base64 value cannot be read")]
    Base64 {
        /// The line.
        line: usize,
    },
    /// A value from a URL, or a change record.
    #[error("line {line}: URLs and change records are not supported")]
    Unsupported {
        /// The line.
        line: usize,
    },
}

/// Reads every record of an LDIF text.
///
/// # Errors
/// The first line that cannot be read.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry>, LdifError> {
    let mut entries = Vec::new();
    let mut open: Option<Entry> = None;
    for (line, content) in unfold(text) {
        if content.is_empty() {
            entries.extend(open.take());
            continue;
        }
        if content.starts_with('#') {
            continue;
        }
        let (name, value) = pair(line, &content)?;
        match &mut open {
            Some(_) if name.eq_ignore_ascii_case("changetype") => return Err(LdifError::Unsupported { line }),
            Some(entry) => entry.push(name, value),
            None if name.eq_ignore_ascii_case("dn") => {
                let dn = String::from_utf8(value).map_err(|_| LdifError::Base64 { line })?;
                open = Some(Entry { dn, attributes: Vec::new() });
            }
            None if name.eq_ignore_ascii_case("version") && entries.is_empty() => {}
            None => return Err(LdifError::NoDn { line }),
        }
    }
    entries.extend(open);
    Ok(entries)
}

/// Joins folded lines: one that begins with a space continues the one before it, a comment's too.
fn unfold(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match (line.strip_prefix(' '), lines.last_mut()) {
            (Some(rest), Some((_, folded))) if !folded.is_empty() => folded.push_str(rest),
            _ => lines.push((index + 1, line.to_owned())),
        }
    }
    lines
}

/// Splits `name: value` and `name:: base64`.
fn pair(line: usize, content: &str) -> Result<(&str, Vec<u8>), LdifError> {
    let (name, rest) = content.split_once(':').ok_or(LdifError::NoColon { line })?;
    if name.is_empty() {
        return Err(LdifError::NoColon { line });
    }
    if rest.starts_with('<') {
        return Err(LdifError::Unsupported { line });
    }
    let value = match rest.strip_prefix(':') {
        Some(encoded) => STANDARD.decode(encoded.trim()).map_err(|_| LdifError::Base64 { line })?,
        None => rest.trim_start_matches(' ').as_bytes().to_vec(),
    };
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(values: &[Vec<u8>]) -> Vec<&str> {
        values.iter().map(|value| std::str::from_utf8(value).unwrap()).collect()
    }

    #[test]
    fn comments_folding_base64_and_multiple_values_are_read() {
        let entries = parse(
            "# a comment\n  that goes on\nversion: 1\n\ndn: uid=a,dc=x\nmailHost: ser\n ver3\nmail: a@x\n# inside\nMAIL: b@x\n\
             cn:: w4dlbGlr\nempty:\n\n\ndn:: dWlkPWIsZGM9eA==\r\nuid: b: c\r\n",
        )
        .unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].dn, "uid=a,dc=x");
        assert_eq!(text(entries[0].values("MAILHOST")), ["server3"]);
        assert_eq!(text(entries[0].values("mail")), ["a@x", "b@x"]);
        assert_eq!(text(entries[0].values("cn")), ["Çelik"]);
        assert_eq!(text(entries[0].values("empty")), [""]);
        assert_eq!(entries[0].attributes[0].name, "mailHost", "the spelling of the file is kept");
        assert_eq!(entries[1].dn, "uid=b,dc=x");
        assert_eq!(text(entries[1].values("uid")), ["b: c"]);
        assert!(entries[1].values("absent").is_empty());
    }

    #[test]
    fn error_names_the_line() {
        assert_eq!(parse("\nmail: a\n"), Err(LdifError::NoDn { line: 2 }));
        assert_eq!(parse("dn: x\nmail\n"), Err(LdifError::NoColon { line: 2 }));
        assert_eq!(parse("dn: x\n: a\n"), Err(LdifError::NoColon { line: 2 }));
        assert_eq!(parse("dn: x\nmail:: ***\n"), Err(LdifError::Base64 { line: 2 }));
        assert_eq!(parse("dn:: /w==\n"), Err(LdifError::Base64 { line: 1 }));
        assert_eq!(parse("dn: x\njpegPhoto:< file:///etc/passwd\n"), Err(LdifError::Unsupported { line: 2 }));
        assert_eq!(parse("dn: x\nchangetype: delete\n"), Err(LdifError::Unsupported { line: 2 }));
    }

    #[test]
    fn demo_directory_contains_the_users_of_the_tour() {
        let entries = parse(super::super::LDIF).unwrap();
        let host = |uid: &str| {
            let entry = entries.iter().find(|entry| text(entry.values("uid")) == [uid]).unwrap();
            text(entry.values("mailHost"))
        };
        assert_eq!(host("alice"), ["server3"]);
        assert_eq!(host("bob"), ["server4"]);
        assert!(host("carol").is_empty());
    }
}
