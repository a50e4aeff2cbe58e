//! Writes changes as LDIF (RFC 2849), base64 wherever a value could be read as something else.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A change record that gives an attribute of an entry this one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replace<'a> {
    /// The entry.
    pub dn: &'a str,
    /// The attribute.
    pub attribute: &'a str,
    /// The value.
    pub value: &'a str,
}

impl fmt::Display for Replace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "dn", self.dn)?;
        writeln!(f, "changetype: modify\nreplace: {}", self.attribute)?;
        line(f, self.attribute, self.value)?;
        f.write_str("-\n\n")
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    f.write_str(name)?;
    if is_safe(value) { writeln!(f, ": {value}") } else { writeln!(f, ":: {}", STANDARD.encode(value)) }
}

/// SAFE-STRING of RFC 2849, and no blank at the end (its note 8).
fn is_safe(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii() && !matches!(byte, 0 | b'\n' | b'\r'))
        && !value.starts_with([' ', ':', '<'])
        && !value.ends_with(' ')
}

/// A comment: one line, whatever is in it.
#[must_use]
pub(crate) fn comment(text: &str) -> String {
    let mut line = String::from("# ");
    for character in text.chars() {
        // Writing to a String cannot fail.
        let _ = if character.is_control() {
            write!(line, "{}", character.escape_debug())
        } else {
            line.write_char(character)
        };
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_is_one_record() {
        let change = Replace { dn: "uid=alice,dc=x", attribute: "mailHost", value: "server4" };
        let text = "dn: uid=alice,dc=x\nchangetype: modify\nreplace: mailHost\nmailHost: server4\n-\n\n";
        assert_eq!(change.to_string(), text);
    }

    #[test]
    fn ambiguous_value_is_base64() {
        for (value, written) in [
            ("a b", ": a b"),
            ("", ": "),
            (" a", ":: IGE="),
            ("a ", ":: YSA="),
            (":a", ":: OmE="),
            ("<a", ":: PGE="),
            ("a\nb", ":: YQpi"),
            ("ü", ":: w7w="),
        ] {
            let change = Replace { dn: "o=x", attribute: "a", value };
            assert_eq!(change.to_string().lines().nth(3).unwrap(), format!("a{written}"), "{value:?}");
        }
        assert_eq!(comment("a\ndn: b"), "# a\\ndn: b\n");
    }
}
