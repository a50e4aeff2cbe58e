//! A parser of text log lines, independent of usher's writer.

use serde_json::{Map, Value};

/// A text line as the object that the JSON format would have written, all values as strings; `None` if it
/// is not a log line.
pub(crate) fn parse(line: &str) -> Option<Value> {
    let (time, rest) = line.split_once(' ')?;
    if time.as_bytes().get(10) != Some(&b'T') || !time.ends_with('Z') {
        return None;
    }
    let (level, rest) = rest.trim_start().split_once(' ')?;
    let mut fields = Map::from_iter([("level".to_owned(), Value::from(level))]);
    let (message, mut rest) = if rest.starts_with('"') {
        quoted(rest)?
    } else {
        let end = rest.find('=').map_or(Some(rest.len()), |equals| rest[..equals].rfind(' '))?;
        (rest[..end].to_owned(), &rest[end..])
    };
    fields.insert("message".to_owned(), message.into());
    while !rest.is_empty() {
        let (name, value) = rest.strip_prefix(' ')?.split_once('=')?;
        let (text, after) = if value.starts_with('"') {
            quoted(value)?
        } else {
            let end = value.find(' ').unwrap_or(value.len());
            (value[..end].to_owned(), &value[end..])
        };
        let before = fields.insert(name.to_owned(), text.into());
        assert!(before.is_none(), "{name} stands twice in {line}");
        rest = after;
    }
    Some(Value::Object(fields))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut plain = String::new();
    let mut characters = text.strip_prefix('"')?.chars();
    loop {
        match characters.next()? {
            '"' => return Some((plain, characters.as_str())),
            '\\' => plain.push(match characters.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                'u' => {
                    let (code, after) = characters.as_str().strip_prefix('{')?.split_once('}')?;
                    characters = after.chars();
                    char::from_u32(u32::from_str_radix(code, 16).ok()?)?
                }
                other => other,
            }),
            other => plain.push(other),
        }
    }
}

/// The priority in front of a line for the journal, and the rest.
pub(crate) fn priority(line: String) -> (Option<u64>, String) {
    let priority = line.strip_prefix('<').and_then(|rest| rest.split_once('>')?.0.parse().ok());
    match priority {
        Some(priority) => (Some(priority), line.split_once('>').unwrap().1.to_owned()),
        None => (None, line),
    }
}
