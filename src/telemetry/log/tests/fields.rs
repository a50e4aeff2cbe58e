//! A line decodes to what was recorded, for any value.

use proptest::prelude::*;
use serde_json::Value;
use tracing::{info, info_span};

use super::{Bounded, Escaped, LogFormat, LogLevel, written};

/// Parses a text line, independent of the writer: the message, and each field with its value.
fn parse(line: &str) -> (String, Vec<(String, String)>) {
    let (_time, rest) = line.split_once(' ').unwrap();
    let rest = rest.trim_start().strip_prefix("INFO ").unwrap();
    let (message, mut rest) = if rest.starts_with('"') {
        quoted(rest)
    } else {
        let equals = rest.find('=').unwrap_or(rest.len());
        let end = if equals == rest.len() { equals } else { rest[..equals].rfind(' ').unwrap() };
        (rest[..end].to_owned(), &rest[end..])
    };
    let mut fields = Vec::new();
    while let Some(field) = rest.strip_prefix(' ') {
        let (name, value) = field.split_once('=').unwrap();
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name:?} in {line}");
        let (text, after) = if value.starts_with('"') {
            quoted(value)
        } else {
            let end = value.find(' ').unwrap_or(value.len());
            (value[..end].to_owned(), &value[end..])
        };
        assert!(!text.is_empty() || value.starts_with('"'), "{line}");
        fields.push((name.to_owned(), text));
        rest = after;
    }
    assert_eq!(rest, "", "{line}");
    (message, fields)
}

/// A quoted text without its quotes and escapes, and the rest of the line.
fn quoted(text: &str) -> (String, &str) {
    let mut plain = String::new();
    let mut characters = text.strip_prefix('"').unwrap().chars();
    loop {
        let character = characters.next().expect("a quoted text has an end");
        match character {
            '"' => return (plain, characters.as_str()),
            '\\' => plain.push(match characters.next().unwrap() {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                'u' => {
                    let (code, after) = characters.as_str().strip_prefix('{').unwrap().split_once('}').unwrap();
                    characters = after.chars();
                    char::from_u32(u32::from_str_radix(code, 16).unwrap()).unwrap()
                }
                plain => plain,
            }),
            _ => plain.push(character),
        }
    }
}

/// Writes one event with this value for each way of recording values, and reads it back.
fn comes_back(value: &str) {
    let expected = [
        ("shown", value.to_owned()),
        ("bare", value.to_owned()),
        ("debug", format!("{value:?}")),
        ("escaped", Escaped(value.as_bytes()).to_string()),
        ("bounded", Bounded(value.as_bytes()).to_string()),
        ("number", "7".to_owned()),
        ("last", "end".to_owned()),
    ];
    let event = |_: &super::Guard| {
        info!(
            shown = %value,
            bare = value,
            debug = ?value,
            escaped = %Escaped(value.as_bytes()),
            bounded = %Bounded(value.as_bytes()),
            number = 7_u64,
            last = %"end",
            "{value}"
        );
    };
    let lines = written(LogFormat::Text, LogLevel::Info, event);
    let [line] = &lines[..] else { panic!("{lines:?}") };
    let (message, fields) = parse(line);
    assert_eq!(message, value, "{line}");
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    assert_eq!(fields, expected, "{line}");
    assert!(line.chars().all(super::is_printable), "{line:?}");

    let lines = written(LogFormat::Json, LogLevel::Info, event);
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert!(line.chars().all(super::is_printable), "{line:?}");
    let mut object: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
    assert!(object.remove("timestamp").is_some());
    assert_eq!(object.remove("level").unwrap(), "INFO");
    assert_eq!(object.remove("message").unwrap(), value);
    assert_eq!(object.remove("number").unwrap(), 7);
    for (name, value) in expected.into_iter().filter(|(name, _)| *name != "number") {
        assert_eq!(object.remove(name).unwrap(), value.as_str(), "{name} in {line}");
    }
    assert!(object.is_empty(), "{object:?}");
}

#[test]
fn value_that_begins_with_a_quote_forges_no_field() {
    comes_back(r#""x" result="ok" client=203.0.113.9 login="boss""#);
    comes_back(r#""x\" result="ok"#);
    comes_back("\"");
    comes_back("\"\"");
}

#[test]
fn ambiguous_value_is_quoted() {
    for value in
        ["", " ", "a b", "a=b", "a\u{a0}b", "\u{feff}a", "\u{202e}", "a\nb", "\u{9b}31m", "}: login", "\\", "ü"]
    {
        comes_back(value);
    }
    let line = written(LogFormat::Text, LogLevel::Info, |_| {
        info!(login = %"a\u{202e}b", dn = %"uid=alice,dc=x", plain = %r"a\b", "login");
    });
    assert!(line[0].ends_with(r#"login login="a\u{202e}b" dn="uid=alice,dc=x" plain=a\b"#), "{line:?}");
}

#[test]
fn span_value_stays_in_its_field() {
    let lines = written(LogFormat::Text, LogLevel::Info, |_| {
        let _span = info_span!("session", client = %"x}: login result=ok").entered();
        info!("login");
    });
    assert!(lines[0].ends_with(r#"INFO session{client="x}: login result=ok"}: login"#), "{lines:?}");
}

/// Texts of characters that could mislead a parser, and of any others.
fn values() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "\"",
        "\\",
        "=",
        " ",
        "result=\"ok\"",
        " client=203.0.113.9",
        "}",
        "{",
        ": ",
        "\n",
        "\r",
        "\0",
        "\t",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{85}",
        "\u{9b}",
        "\u{a0}",
        "\u{ad}",
        "\u{300}",
        "\u{61c}",
        "\u{200b}",
        "\u{200f}",
        "\u{2028}",
        "\u{202e}",
        "\u{2066}",
        "\u{feff}",
        "\u{e0001}",
        "\u{10ffff}",
        "ü",
        "日本",
        "'",
        "x",
    ]);
    let piece = prop_oneof![pieces.prop_map(str::to_owned), any::<char>().prop_map(String::from)];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn value_round_trips_unchanged(value in values()) {
        comes_back(&value);
    }
}
