//! What the operator typed: a cursor over the parsed YAML that collects every mistake.
//!
//! A [`Section`] is a mapping; each key that is read becomes known, and other keys are reported
//! as unknown when the section has been read. A [`Node`] is a value with its path. Readings give
//! `None` after they recorded a [`Problem`], so that the caller goes on to the next key; a config
//! is built only if nothing was recorded. No value is ever repeated in a message: whatever stands
//! in the wrong place may be a password.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_yaml::{Mapping, Value};

use super::probe::{ANY_KEY, Kind, Probe};
use super::units::{DURATION, SIZE, Scale};
use super::{Place, Problem, join, renamed};

/// The value of every key of a probe.
static UNREAD: Value = Value::Null;

/// What has been found so far, and where the file is.
#[derive(Debug)]
pub(super) struct Report {
    /// Where the keys stand.
    pub(super) place: Arc<Place>,
    /// What relative paths are relative to.
    pub(super) directory: PathBuf,
    /// Mistakes.
    pub(super) problems: RefCell<Vec<Problem>>,
    /// What is allowed but suspicious.
    pub(super) warnings: RefCell<Vec<Problem>>,
    /// What stands in place of a file, if none is read.
    pub(super) probe: Option<Probe>,
}

impl Report {
    /// Of no file.
    pub(super) fn probing(place: Arc<Place>, probe: Probe) -> Self {
        let (problems, warnings) = (RefCell::default(), RefCell::default());
        Self { place, directory: PathBuf::new(), problems, warnings, probe: Some(probe) }
    }
}

/// A value in the file.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    report: &'a Report,
    path: String,
    value: &'a Value,
}

/// A mapping in the file, or an absent one: then every key is absent.
#[derive(Debug)]
pub(super) struct Section<'a> {
    report: &'a Report,
    path: String,
    entries: Option<&'a Mapping>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Node<'a> {
    /// The whole document.
    pub(super) fn root(report: &'a Report, value: &'a Value) -> Self {
        Self { report, path: String::new(), value }
    }

    /// Records a mistake in this value.
    pub(super) fn problem(&self, message: impl Into<String>) {
        self.report.problems.borrow_mut().push(self.report.place.problem(&self.path, message));
    }

    /// The path of this value.
    pub(super) fn key(&self) -> &str {
        &self.path
    }

    /// Notes what is expected here if no file is read; whether that is so.
    fn is_probe(&self, kind: impl FnOnce() -> Kind) -> bool {
        if let Some(probe) = &self.report.probe {
            probe.expects(&self.path, kind());
        }
        self.report.probe.is_some()
    }

    /// A text without control characters.
    pub(super) fn text(&self) -> Option<&'a str> {
        if self.is_probe(|| Kind::Text) {
            return Some(ANY_KEY);
        }
        let Value::String(text) = self.value else {
            let quotes = if self.value.is_number() || self.value.is_bool() { ": put it in quotes" } else { "" };
            self.mismatch(&format!("a text{quotes}"));
            return None;
        };
        if text.chars().any(char::is_control) {
            self.problem("contains a control character or a line break: write it in one line");
            return None;
        }
        if text.contains("${") {
            self.problem("variables are not expanded: write the value itself");
            return None;
        }
        Some(text)
    }

    /// Whether keys with values stand here.
    pub(super) fn is_mapping(&self) -> bool {
        match &self.report.probe {
            Some(probe) => probe.has_mappings,
            None => matches!(self.value, Value::Mapping(_)),
        }
    }

    /// A text that `parse` accepts.
    pub(super) fn parsed<T, E: std::fmt::Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        parse(self.text()?).map_err(|error| self.problem(error.to_string())).ok()
    }

    /// One of a closed set of words. A number counts as its spelling: `1.2` is as clear as `"1.2"`.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        if self.is_probe(|| Kind::Words(words.iter().map(|(word, _)| (*word).to_owned()).collect())) {
            return words.last().map(|(_, meaning)| *meaning);
        }
        let number = if let Value::Number(number) = self.value { Some(number.to_string()) } else { None };
        let text = match &number {
            Some(text) => text,
            None => self.text()?,
        };
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, meaning)| *meaning);
        if let (None, Some(new)) = (&found, renamed::word(&self.path, text)) {
            self.problem(format!("`{}` was renamed: write `{new}`", text.escape_debug()));
        } else if found.is_none() {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.problem(format!("write one of {}", words.join(", ")));
        }
        found
    }

    /// A path, made absolute against the directory of the config file.
    pub(super) fn path(&self) -> Option<PathBuf> {
        if self.is_probe(|| Kind::Path) {
            return Some(self.report.directory.join(ANY_KEY));
        }
        let text = self.text()?;
        if text.is_empty() {
            self.problem("the path is empty: write one or remove the key");
            return None;
        }
        if text.starts_with(['~', '$']) {
            self.problem("`~` and `$` are not expanded: write the whole path, or one relative to this file");
            return None;
        }
        Some(self.report.directory.join(text))
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Option<bool> {
        if self.is_probe(|| Kind::Flag) {
            return Some(false);
        }
        if let Value::Bool(flag) = self.value {
            return Some(*flag);
        }
        self.mismatch("`true` or `false`");
        None
    }

    /// The items of a list that has at least one.
    pub(super) fn list(&self) -> Option<Vec<Self>> {
        if self.is_probe(|| Kind::List { least: 1 }) {
            return Some(vec![self.probed_item()]);
        }
        let items = self.any_list()?;
        if items.is_empty() {
            self.problem("the list is empty: it needs at least one item");
            return None;
        }
        Some(items)
    }

    fn probed_item(&self) -> Self {
        Self { report: self.report, path: format!("{}[0]", self.path), value: self.value }
    }

    /// The items of a list.
    pub(super) fn any_list(&self) -> Option<Vec<Self>> {
        if self.is_probe(|| Kind::List { least: 0 }) {
            return Some(vec![self.probed_item()]);
        }
        let Value::Sequence(items) = self.value else {
            self.mismatch("a list (each item begins with `- `)");
            return None;
        };
        let item = |(at, value)| Self { report: self.report, path: format!("{}[{at}]", self.path), value };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// The items of a list, or a single text as a list of itself.
    pub(super) fn one_or_more(&self) -> Option<Vec<Self>> {
        if self.is_probe(|| Kind::OneOrMore) {
            return Some(vec![self.probed_item()]);
        }
        if self.value.is_string() {
            return Some(vec![Self { report: self.report, path: self.path.clone(), value: self.value }]);
        }
        self.list()
    }

    /// The keys of a mapping that the operator names, with their values.
    pub(super) fn entries(&self) -> Option<Vec<(&'a str, Self)>> {
        if self.is_probe(|| Kind::Entries) {
            let path = join(&self.path, ANY_KEY);
            return Some(vec![(ANY_KEY, Self { report: self.report, path, value: self.value })]);
        }
        let Some(entries) = self.value.as_mapping().filter(|entries| !entries.is_empty()) else {
            self.mismatch("keys with values (`key: value`)");
            return None;
        };
        let read = |(key, value): (&'a Value, &'a Value)| {
            let Some(key) = key.as_str() else {
                self.problem("a key must be text: put it in quotes");
                return None;
            };
            Some((key, Self { report: self.report, path: join(&self.path, key), value }))
        };
        let all: Vec<_> = entries.iter().map(read).collect();
        all.into_iter().collect()
    }

    /// A mapping. Nothing behind the colon is an empty one: all its keys may be commented out.
    pub(super) fn section<T>(&self, read: impl FnOnce(&Section<'a>) -> T) -> Option<T> {
        let entries = self.value.as_mapping().filter(|_| !matches!(self.value, Value::Tagged(_)));
        if !self.is_probe(|| Kind::Section) && entries.is_none() && !self.value.is_null() {
            self.mismatch("keys with values (`key: value`)");
            return None;
        }
        Some(Section::read(self.report, self.path.clone(), entries, read))
    }

    fn mismatch(&self, expected: &str) {
        let found = match self.value {
            Value::Null => {
                self.problem(format!("the value is missing: write {expected}, or remove the key"));
                return;
            }
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "keys with values",
            Value::Tagged(_) => "a value with a tag (`!`)",
        };
        self.problem(format!("found {found}, but expected {expected}"));
    }

    fn quantity(&self, scale: &Scale) -> Option<u64> {
        if self.value.is_number() {
            self.problem(scale.no_unit().to_string());
            return None;
        }
        if !self.value.is_string() {
            self.mismatch(scale.noun());
            return None;
        }
        self.parsed(|text| scale.parse(text))
    }

    fn integer(&self) -> Option<u64> {
        // A fraction or a negative number is no u64 either: the range in the message says so.
        if let Value::Number(number) = self.value {
            return Some(number.as_u64().unwrap_or(u64::MAX));
        }
        self.mismatch("a whole number without quotes");
        None
    }
}

impl<'a> Section<'a> {
    fn read<T>(report: &'a Report, path: String, entries: Option<&'a Mapping>, read: impl FnOnce(&Self) -> T) -> T {
        let section = Self { report, path, entries, known: RefCell::default() };
        let value = read(&section);
        section.report_unknown();
        value
    }

    /// The path of this section.
    pub(super) fn key(&self) -> &str {
        &self.path
    }

    /// Where the keys of this file stand.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.report.place
    }

    /// The value of a key, if the key is there.
    pub(super) fn get(&self, key: &'static str) -> Option<Node<'a>> {
        // A key may be looked at twice; the list of those that are allowed has it once.
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        let value = match &self.report.probe {
            Some(probe) => probe.has(&self.path, key).then_some(&UNREAD)?,
            None => self.entries?.get(key)?,
        };
        Some(Node { report: self.report, path: join(&self.path, key), value })
    }

    /// The value of a key that must be there; `hint` says what to write.
    pub(super) fn required(&self, key: &'static str, hint: &str) -> Option<Node<'a>> {
        let node = self.get(key);
        if let (Some(probe), Some(_)) = (&self.report.probe, &node) {
            probe.requires(&self.path, key, hint);
        }
        if node.is_none() {
            self.problem(key, format!("missing: {hint}"));
        }
        node
    }

    /// Records a mistake at a key of this section, or at the section itself if the key is empty.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) {
        self.report.problems.borrow_mut().push(self.report.place.problem(&join(&self.path, key), message));
    }

    /// Records something allowed but suspicious.
    pub(super) fn warn(&self, key: &str, message: impl Into<String>) {
        self.report.warnings.borrow_mut().push(self.report.place.problem(&join(&self.path, key), message));
    }

    /// A mapping; if the key is absent, every key in it is.
    pub(super) fn section<T>(&self, key: &'static str, read: impl FnOnce(&Section<'a>) -> T) -> Option<T> {
        match self.get(key) {
            Some(node) => node.section(read),
            None => Some(Section::read(self.report, join(&self.path, key), None, read)),
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &'static str, default: bool) -> Option<bool> {
        let Some(node) = self.get(key) else { return Some(default) };
        if let Some(probe) = &self.report.probe {
            probe.defaults(&node.path, default.into());
        }
        node.flag()
    }

    /// A duration, in milliseconds here as in [`units`](super::units).
    pub(super) fn duration(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> Option<Duration> {
        self.ranged(key, default, range, Some(&DURATION)).map(Duration::from_millis)
    }

    /// A size in bytes.
    pub(super) fn size<T>(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> Option<T>
    where
        T: TryFrom<u64>,
    {
        self.ranged(key, default, range, Some(&SIZE)).and_then(|size| size.try_into().ok())
    }

    /// A whole number.
    pub(super) fn integer<T>(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> Option<T>
    where
        T: TryFrom<u64>,
    {
        self.ranged(key, default, range, None).and_then(|number| number.try_into().ok())
    }

    /// A quantity of a scale, or a whole number.
    fn ranged(
        &self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        scale: Option<&'static Scale>,
    ) -> Option<u64> {
        // Whoever has looked for the key before has another meaning for its absence.
        let is_optional = self.known.borrow().contains(&key);
        let Some(node) = self.get(key) else { return Some(default) };
        let show = |value: u64| scale.map_or_else(|| value.to_string(), |scale| scale.show(value));
        if let Some(probe) = &self.report.probe {
            if !is_optional {
                probe.defaults(&node.path, if scale.is_some() { show(default).into() } else { default.into() });
            }
            probe.expects(
                &node.path,
                match scale {
                    Some(scale) => Kind::Quantity(scale, range),
                    None => Kind::Integer(range),
                },
            );
            return Some(default);
        }
        let value = match scale {
            Some(scale) => node.quantity(scale),
            None => node.integer(),
        }?;
        if !range.contains(&value) {
            let (least, most) = (show(*range.start()), show(*range.end()));
            node.problem(format!("out of range: write {least} to {most} (default {})", show(default)));
            return None;
        }
        Some(value)
    }

    /// Reports the keys that were not read.
    fn report_unknown(&self) {
        let known = self.known.borrow();
        for key in self.entries.into_iter().flat_map(Mapping::keys) {
            let key = match key {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => {
                    self.problem("", "a key must be text, such as `address`");
                    continue;
                }
            };
            if !known.contains(&key.as_str()) {
                let message = match renamed::key(&join(&self.path, &key)) {
                    Some(new) => format!("this key was renamed: write `{new}`"),
                    None => advice(&key, &known),
                };
                self.problem(&key, message);
            }
        }
    }
}

/// What to do about an unknown key.
fn advice(key: &str, known: &[&str]) -> String {
    let lower = key.to_ascii_lowercase();
    let distance = |known: &&str| strsim::damerau_levenshtein(&lower, known);
    let is_secret = ["password", "passwd", "secret", "bindpw"].iter().any(|word| lower.contains(word));
    // `secretfile` is a misspelt `secret_file`, `secret` is a secret in the wrong place.
    if is_secret && !known.iter().any(|known| known.ends_with("_file") && distance(known) <= 2) {
        let files =
            || known.iter().filter(|known| ["password_file", "secret_file"].iter().any(|end| known.ends_with(end)));
        let file =
            files().find(|known| known.contains(&*lower)).or_else(|| files().min_by_key(|known| distance(known)));
        let name = file.map(|key| format!(" with `{key}`")).unwrap_or_default();
        return format!("passwords are not allowed in the configuration: put it into a file and name the file{name}");
    }
    if key == "<<" {
        return "merge keys are not supported: write the keys out".into();
    }
    let near = known.iter().map(|known| (distance(known), *known)).min();
    let guess = match near {
        Some((distance, known)) if distance <= 1 + known.len() / 4 => format!("did you mean `{known}`? "),
        Some(_) | None => String::new(),
    };
    format!("unknown key: {guess}allowed here: {}", known.join(", "))
}

/// Remembers where each value was given first.
#[derive(Debug, Default)]
pub(super) struct Unique {
    first: HashMap<String, String>,
}

impl Unique {
    /// Records a mistake if the value was given before. `value` is shown: no secret comes here.
    pub(super) fn check(&mut self, value: &str, node: &Node<'_>) {
        if let Some(first) = self.first.get(value) {
            let first = node.report.place.other(first, &node.path);
            node.problem(format!("`{}` is already used by {first}: remove one", value.escape_debug()));
        } else {
            self.first.insert(value.to_owned(), node.path.clone());
        }
    }
}
