//! How rows are written for terminals and for spreadsheets.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use crate::telemetry::log::{escape_json, is_printable};

/// A value as it is, so that a filter can be copied from a terminal; what would move its cursor or is
/// invisible is escaped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '"' | '\'' | '\\' => f.write_char(character),
            _ => write!(f, "{}", character.escape_debug()),
        })
    }
}

/// Several lines, each as [`Shown`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShownLines<'a>(pub &'a str);

impl fmt::Display for ShownLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, line) in self.0.split('\n').enumerate() {
            if at > 0 {
                f.write_char('\n')?;
            }
            write!(f, "{}", Shown(line))?;
        }
        Ok(())
    }
}

/// JSON text whose strings may hold any character: what a terminal would interpret or not show is written as
/// JSON escapes it, which changes nothing for who parses it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShownJson<'a>(pub &'a str);

impl fmt::Display for ShownJson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            // Between values; within a string it is escaped already.
            '\n' => f.write_char(character),
            _ if is_printable(character) => f.write_char(character),
            _ => escape_json(f, character),
        })
    }
}

/// What a spreadsheet begins a formula with, also in the full width of East Asian keyboards.
const FORMULA: [char; 8] = ['=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'];

/// A row of CSV (RFC 4180, lines end with LF). A field that a spreadsheet would take for a formula gets an
/// apostrophe in front, which makes it text there: a login name is untrusted text. What is invisible or
/// would move a terminal's cursor is escaped as in [`Shown`], so that a row is one line and nothing stands
/// unseen before a formula; accents that follow their letter stay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Csv<'a>(pub &'a [&'a str]);

impl fmt::Display for Csv<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, field) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_char(',')?;
            }
            let visible = visible(field);
            // What a spreadsheet may strip before it looks.
            let begin = field.trim_start_matches(|first: char| first.is_whitespace() || !is_printable(first));
            let text = if begin.starts_with(FORMULA) || field.starts_with(['\t', '\r', '\n']) { "'" } else { "" };
            if visible.contains(['"', ',', ';']) || visible.starts_with(' ') || visible.ends_with(' ') {
                write!(f, "\"{text}{}\"", visible.replace('"', "\"\""))?;
            } else {
                write!(f, "{text}{visible}")?;
            }
        }
        f.write_char('\n')
    }
}

/// A field with what is invisible escaped.
fn visible(field: &str) -> Cow<'_, str> {
    let is_plain = |character: char| {
        // Behind a letter only what has no shape of its own is escaped, and no accent.
        is_printable(character) || format!("x{character}").escape_debug().count() == 2
    };
    if field.chars().all(is_plain) {
        return Cow::Borrowed(field);
    }
    let mut visible = String::with_capacity(field.len() + 8);
    for character in field.chars() {
        if is_plain(character) {
            visible.push(character);
        } else {
            visible.extend(character.escape_debug());
        }
    }
    Cow::Owned(visible)
}

/// `1,234,567`.
#[must_use]
pub(crate) fn thousands(number: usize) -> String {
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
    fn displayed_text_can_be_copied() {
        assert_eq!(Shown(r#"(uid=al\2a) "x" 'y'"#).to_string(), r#"(uid=al\2a) "x" 'y'"#);
        assert_eq!(Shown("a\r\n\x1b[2J\u{202e}").to_string(), r"a\r\n\u{1b}[2J\u{202e}");
    }

    #[test]
    fn row_is_quoted_where_required() {
        let row = |fields: &[&str]| Csv(fields).to_string();
        assert_eq!(row(&["alice", "uid=alice,dc=x", ""]), "alice,\"uid=alice,dc=x\",\n");
        assert_eq!(row(&["a\"b", "a\nb", " a", "a;b"]), "\"a\"\"b\",a\\nb,\" a\",\"a;b\"\n");
    }

    #[test]
    fn row_contains_no_terminal_control_or_invisible_character() {
        let row = Csv(&["\u{1b}]0;x\u{7}", "a\0b", "\u{9b}31m", "\u{202e}txt", "u\u{308}ber", "\u{feff}"]).to_string();
        assert_eq!(row, "\"\\u{1b}]0;x\\u{7}\",a\\0b,\\u{9b}31m,\\u{202e}txt,u\u{308}ber,\\u{feff}\n");
        let every: String = (0..=u32::from(char::MAX)).filter_map(char::from_u32).collect();
        let row = Csv(&[every.as_str()]).to_string();
        assert_eq!(row.matches('\n').count(), 1);
        assert!(
            !row.trim_end().contains(|one: char| one.is_control() || "\u{202e}\u{200f}\u{feff}\u{a0}".contains(one))
        );
    }

    #[test]
    fn json_for_a_terminal_decodes_to_the_same_value() {
        let value = "\u{1b}[2J\u{7f}\u{9b}\u{202e}\u{e0001}\"\\ü\n";
        let text = serde_json::to_string_pretty(&[value]).unwrap();
        let shown = ShownJson(&text).to_string();
        assert!(shown.chars().all(|one| one == '\n' || is_printable(one)), "{shown}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [value]);
    }

    #[test]
    fn line_breaks_are_escaped() {
        assert_eq!(ShownLines("a\u{1b}\nb").to_string(), "a\\u{1b}\nb");
    }

    #[test]
    fn fields_are_never_formulas() {
        for (field, text) in [
            ("=1+1", "'=1+1"),
            ("+49", "'+49"),
            ("-x", "'-x"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("=HYPERLINK(\"x\",\"y\")", "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\""),
            ("\tx", "'\\tx"),
            ("\u{feff}=1+1", "'\\u{feff}=1+1"),
            ("\u{a0}=1+1", "'\\u{a0}=1+1"),
            ("\u{200b}\u{a0}@x", "'\\u{200b}\\u{a0}@x"),
            (" =1+1", "\"' =1+1\""),
            ("\u{0}=1+1", "'\\0=1+1"),
            ("\u{ff1d}1+1", "'\u{ff1d}1+1"),
            ("a=b", "a=b"),
        ] {
            assert_eq!(Csv(&[field]).to_string(), format!("{text}\n"));
        }
    }

    #[test]
    fn large_numbers_have_commas() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (50_000, "50,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }
}
