//! Where each key stands in the file: key path to line.
//!
//! serde_yaml gives values without their places, so the text is read a second time as events with
//! marks. An alias is not expanded: what lies inside it is placed where the alias stands, which is
//! also where the mistake shows. Paths look like `tls.certificates[0].key`.

use std::collections::HashMap;
use std::fmt;

use saphyr_parser::{Event, Parser};

/// Longer paths are not indexed: no key of usher's is near it, and the index stays linear in the
/// size of the file whatever is written into it.
const LONGEST_PATH: usize = 256;

/// The lines of all keys and list items.
#[derive(Default)]
pub(super) struct Lines {
    lines: HashMap<String, u64>,
}

/// A key that was given twice in the same mapping.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Duplicate {
    /// Its path.
    pub(super) path: String,
    /// Where it stands the second time.
    pub(super) line: u64,
    /// Where it stands the first time.
    pub(super) first: u64,
}

/// A mapping or sequence that is being read; without a path if it is not indexed.
struct Frame {
    path: Option<String>,
    inside: Inside,
}

enum Inside {
    Sequence {
        next: usize,
    },
    /// `key` is the path of the value that comes next; `None`: a key comes next.
    Mapping {
        key: Option<Option<String>>,
    },
}

impl fmt::Debug for Lines {
    /// Short: a printed config should show the config.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lines({})", self.lines.len())
    }
}

impl Lines {
    /// Reads the places of everything up to the end or the first syntax error.
    pub(super) fn read(text: &str) -> (Self, Vec<Duplicate>) {
        let mut index = Self::default();
        let mut duplicates = Vec::new();
        let mut frames: Vec<Frame> = Vec::new();
        let mut parser = Parser::new_from_str(text);
        while let Some(Ok((event, span))) = parser.next_event() {
            let line = u64::try_from(span.start.line()).unwrap_or(u64::MAX);
            match event {
                Event::Scalar(scalar, ..) => {
                    if let Some(Frame { path, inside: Inside::Mapping { key: key @ None } }) = frames.last_mut() {
                        let path = path.as_deref().and_then(|parent| child(parent, &scalar));
                        if let Some(path) = &path {
                            duplicates.extend(index.note(path, line));
                        }
                        *key = Some(path);
                    } else {
                        index.enter(&mut frames, line);
                    }
                }
                // An alias as a key (`*a : x`) has no name to index; as a value it is a leaf.
                Event::Alias(_) => match frames.last_mut() {
                    Some(Frame { inside: Inside::Mapping { key: key @ None }, .. }) => *key = Some(None),
                    Some(_) | None => drop(index.enter(&mut frames, line)),
                },
                Event::SequenceStart(..) => {
                    let path = index.enter(&mut frames, line);
                    frames.push(Frame { path, inside: Inside::Sequence { next: 0 } });
                }
                Event::MappingStart(..) => {
                    let path = index.enter(&mut frames, line);
                    frames.push(Frame { path, inside: Inside::Mapping { key: None } });
                }
                Event::SequenceEnd | Event::MappingEnd => drop(frames.pop()),
                Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_)
                | Event::DocumentEnd => {}
            }
        }
        (index, duplicates)
    }

    /// The line of a key, or of the nearest thing around it that has one.
    pub(super) fn of(&self, path: &str) -> Option<u64> {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            let end = path.rfind(['.', '['])?;
            path = path.get(..end)?;
        }
    }

    fn note(&mut self, path: &str, line: u64) -> Option<Duplicate> {
        match self.lines.get(path) {
            Some(first) => Some(Duplicate { path: path.to_owned(), line, first: *first }),
            None => {
                self.lines.insert(path.to_owned(), line);
                None
            }
        }
    }

    /// A value begins: gives its path, and moves its parent on to what comes next.
    fn enter(&mut self, frames: &mut [Frame], line: u64) -> Option<String> {
        let Some(parent) = frames.last_mut() else { return Some(String::new()) };
        match &mut parent.inside {
            Inside::Sequence { next } => {
                let path = parent.path.as_deref().map(|parent| format!("{parent}[{next}]"));
                *next += 1;
                let path = path.filter(|path| path.len() <= LONGEST_PATH);
                if let Some(path) = &path {
                    self.lines.insert(path.clone(), line);
                }
                path
            }
            // A mapping or sequence as a key (`? [a]`) is nothing that usher reads.
            Inside::Mapping { key } => match key.take() {
                Some(path) => path,
                None => {
                    *key = Some(None);
                    None
                }
            },
        }
    }
}

/// The path of a key in the mapping at `parent`.
fn child(parent: &str, key: &str) -> Option<String> {
    if parent.len() + key.len() >= LONGEST_PATH {
        return None;
    }
    Some(super::join(parent, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_and_flow_style_are_located() {
        let text = "# a comment\n\
                    tls:\n  certificates:\n  - chain: a\n    key: b\n  -\n    chain: c\n\
                    cache: {ttl: 5m,\n  capacity: 1}\n\
                    list: [1,\n  {a: b}, [x,\n y]]\n";
        let (lines, duplicates) = Lines::read(text);
        for (path, line) in [
            ("tls", 2),
            ("tls.certificates", 3),
            ("tls.certificates[0]", 4),
            ("tls.certificates[0].chain", 4),
            ("tls.certificates[0].key", 5),
            ("tls.certificates[1].chain", 7),
            ("cache.ttl", 8),
            ("cache.capacity", 9),
            ("list[0]", 10),
            ("list[1].a", 11),
            ("list[2][0]", 11),
            ("list[2][1]", 12),
        ] {
            assert_eq!(lines.of(path), Some(line), "{path}");
        }
        assert_eq!(duplicates, []);
    }

    #[test]
    fn missing_key_is_located_at_its_parent() {
        let (lines, _) = Lines::read("a:\n  b:\n  - c: 1\n");
        assert_eq!(lines.of("a.b[0].missing"), Some(3));
        assert_eq!(lines.of("a.b[7].c.d"), Some(2));
        assert_eq!(lines.of("nowhere.at.all"), None);
    }

    #[test]
    fn alias_is_located_where_it_is_used() {
        let (lines, _) = Lines::read("a: &x {b: 1}\nc:\n  - *x\n  - d: *x\n");
        assert_eq!(lines.of("c[0].b"), Some(3));
        assert_eq!(lines.of("c[1].d.b"), Some(4));
    }

    #[test]
    fn duplicates_are_reported_with_both_lines() {
        let (_, duplicates) = Lines::read("a: 1\nb: {c: 1, c: 2}\na: 3\n");
        let at = |path: &str, line, first| Duplicate { path: path.into(), line, first };
        assert_eq!(duplicates, [at("b.c", 2, 2), at("a", 3, 1)]);
    }

    #[test]
    fn unusual_keys_are_skipped() {
        let (lines, _) = Lines::read("? [x, y]\n: z\n? {a: b}\n: {c: d}\n&k e: 1\n*k : 2\nlast: 1\n");
        assert_eq!(lines.of("last"), Some(7));
        assert_eq!(lines.of("c"), None);
    }

    #[test]
    fn index_size_is_bounded() {
        let deep = "[".repeat(100_000);
        assert!(Lines::read(&deep).0.lines.len() < LONGEST_PATH);
        let long = format!("{}:\n{}", "k".repeat(100_000), "  - x\n".repeat(10_000));
        assert_eq!(Lines::read(&long).0.lines.len(), 0);
    }
}
