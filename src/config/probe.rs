//! What stands in place of a file when nothing is read but the reader itself: each reading notes what it expects.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde_json::Value as Json;

use super::join;
use super::units::Scale;

/// The name that the one key of a mapping has in a probe whose keys the operator names.
pub(super) const ANY_KEY: &str = "x";

/// What a reading expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Section,
    Entries,
    List { least: usize },
    OneOrMore,
    Text,
    Path,
    Flag,
    Words(Vec<String>),
    Integer(RangeInclusive<u64>),
    Quantity(&'static Scale, RangeInclusive<u64>),
}

/// What is known of the value at a path.
#[derive(Debug, Default)]
pub(super) struct Shape {
    pub(super) kinds: Vec<Kind>,
    /// The keys of a section.
    pub(super) keys: BTreeSet<&'static str>,
    /// Those that must be there, each with the hint about it.
    pub(super) required: BTreeMap<&'static str, String>,
    pub(super) default: Option<Json>,
}

/// In place of a file: what the readings of a pass find, and what they noted.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) absent: &'static [&'static str],
    /// Whether a value that may be a mapping or a text is a mapping.
    pub(super) has_mappings: bool,
    pub(super) shapes: RefCell<BTreeMap<String, Shape>>,
}

impl Probe {
    fn at(&self, path: &str, note: impl FnOnce(&mut Shape)) {
        note(self.shapes.borrow_mut().entry(path.to_owned()).or_default());
    }

    /// Notes that a value of this kind is expected.
    pub(super) fn expects(&self, path: &str, kind: Kind) {
        self.at(path, |shape| {
            if !shape.kinds.contains(&kind) {
                shape.kinds.push(kind);
            }
        });
    }

    /// Notes what an absent key means.
    pub(super) fn defaults(&self, path: &str, default: Json) {
        self.at(path, |shape| shape.default = Some(default));
    }

    /// Notes a key; whether it is there in this pass.
    pub(super) fn has(&self, section: &str, key: &'static str) -> bool {
        if self.absent.contains(&join(section, key).as_str()) {
            return false;
        }
        self.at(section, |shape| {
            shape.keys.insert(key);
        });
        true
    }

    /// Notes that a key must be there.
    pub(super) fn requires(&self, section: &str, key: &'static str, hint: &str) {
        self.at(section, |shape| drop(shape.required.insert(key, hint.to_owned())));
    }
}
