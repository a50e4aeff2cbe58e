//! How rows are written for terminals and for spreadsheets.

use std::fmt::{self, Write as _};

/// A value as it is, so that a filter can be copied from a terminal; what would move its cursor or is
/// invisible is escaped.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '"' | '\'' | '\\' => f.write_char(character),
            _ => write!(f, "{}", character.escape_debug()),
        })
    }
}

/// A row of CSV (RFC 4180, lines end with LF). A field that a spreadsheet would take for a formula gets an
/// apostrophe in front, which makes it text there: a login is somebody else's words.
#[derive(Debug, Clone, Copy)]
pub struct Csv<'a>(pub &'a [&'a str]);

impl fmt::Display for Csv<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, field) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_char(',')?;
            }
            let text = if field.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) { "'" } else { "" };
            if field.contains(['"', ',', '\n', '\r', ';']) || field.starts_with(' ') || field.ends_with(' ') {
                write!(f, "\"{text}{}\"", field.replace('"', "\"\""))?;
            } else {
                write!(f, "{text}{field}")?;
            }
        }
        f.write_char('\n')
    }
}

/// `1,234,567`.
#[must_use]
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_copied() {
        assert_eq!(Shown(r#"(uid=al\2a) "x" 'y'"#).to_string(), r#"(uid=al\2a) "x" 'y'"#);
        assert_eq!(Shown("a\r\n\x1b[2J\u{202e}").to_string(), r"a\r\n\u{1b}[2J\u{202e}");
    }

    #[test]
    fn a_row_is_quoted_where_it_must_be() {
        let row = |fields: &[&str]| Csv(fields).to_string();
        assert_eq!(row(&["alice", "uid=alice,dc=x", ""]), "alice,\"uid=alice,dc=x\",\n");
        assert_eq!(row(&["a\"b", "a\nb", " a", "a;b"]), "\"a\"\"b\",\"a\nb\",\" a\",\"a;b\"\n");
    }

    #[test]
    fn no_field_is_a_formula() {
        for (field, told) in [
            ("=1+1", "'=1+1"),
            ("+49", "'+49"),
            ("-x", "'-x"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("=HYPERLINK(\"x\",\"y\")", "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\""),
            ("\tx", "'\tx"),
            ("a=b", "a=b"),
        ] {
            assert_eq!(Csv(&[field]).to_string(), format!("{told}\n"));
        }
    }

    #[test]
    fn large_numbers_have_commas() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (50_000, "50,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }
}
