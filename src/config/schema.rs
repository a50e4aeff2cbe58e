//! The JSON Schema of the file, from the reader that [`load`](super::load) uses.
//!
//! The reader runs on a [`Probe`] in place of a file: every key is there, and each reading notes what it expects. Thus the
//! schema has no list of keys of its own. Some readings exclude others: each pass leaves some keys out. What no single
//! value shows (one key needs another, the syntax of a filter) only the check of a file finds: the schema takes more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::probe::{ANY_KEY, Kind, Probe, Shape};
use super::raw::{Node, Report};
use super::{compile, join};

/// The keys that each pass leaves out, and whether what may be a mapping is one.
const PASSES: [(&[&str], bool); 4] = [
    (&["directories", "socketmap.address", "tokens[0].discovery"], false),
    (&["directories", "socketmap.path", "tokens[0].jwks"], true),
    (&["directory"], false),
    (&["directory"], true),
];

/// The schema (draft-07, which editors know best).
pub(crate) fn schema() -> Json {
    let mut shapes = BTreeMap::new();
    for (absent, has_mappings) in PASSES {
        let probe = Probe { absent, has_mappings, shapes: RefCell::new(shapes) };
        let (place, _) = super::document(Path::new("schema"), "");
        let report = Report::probing(Arc::new(place), probe);
        let nothing = serde_yaml::Value::Null;
        drop(Node::root(&report, &nothing).section(|root| compile::config(root, Path::new("schema").to_owned())));
        shapes = report.probe.map(|probe| probe.shapes.into_inner()).unwrap_or_default();
    }
    let mut schema = Map::new();
    schema.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
    schema.insert("title".into(), "The configuration of usher".into());
    let whole = Schema { shapes: &shapes };
    if let Json::Object(root) = whole.value("") {
        schema.extend(root);
    }
    // An empty file is a mistake.
    schema.insert("type".into(), "object".into());
    Json::Object(schema)
}

struct Schema<'a> {
    shapes: &'a BTreeMap<String, Shape>,
}

impl Schema<'_> {
    fn value(&self, path: &str) -> Json {
        let Some(shape) = self.shapes.get(path) else { return json!({}) };
        let mut value = any_of(shape.kinds.iter().map(|kind| self.kind(kind, shape, path)).collect());
        if let (Some(value), Some(default)) = (value.as_object_mut(), &shape.default) {
            value.insert("default".into(), default.clone());
        }
        value
    }

    fn kind(&self, kind: &Kind, shape: &Shape, path: &str) -> Json {
        let item = format!("{path}[0]");
        match kind {
            Kind::Section => self.section(shape, path),
            Kind::Entries => {
                json!({"type": "object", "minProperties": 1, "additionalProperties": self.value(&join(path, ANY_KEY))})
            }
            Kind::List { least } => json!({"type": "array", "minItems": least, "items": self.value(&item)}),
            Kind::OneOrMore => {
                let list = json!({"type": "array", "minItems": 1, "items": self.value(&item)});
                // Only a text may stand for a list of itself.
                let is_text = |kind: &&Kind| matches!(kind, Kind::Text | Kind::Path | Kind::Words(_));
                let kinds = self.shapes.get(&item).into_iter().flat_map(|shape| shape.kinds.iter().filter(is_text));
                let alone = kinds.map(|kind| {
                    if let Kind::Words(words) = kind {
                        return json!({"type": "string", "anyOf": [words_of(words)]});
                    }
                    json!({"type": "string"})
                });
                any_of(alone.chain([list]).collect())
            }
            Kind::Text => json!({"type": "string"}),
            Kind::Path => json!({"type": "string", "minLength": 1, "description": "A path; relative to this file"}),
            Kind::Flag => json!({"type": "boolean"}),
            Kind::Words(words) => words_of(words),
            Kind::Integer(range) => json!({"type": "integer", "minimum": range.start(), "maximum": range.end()}),
            Kind::Quantity(scale, range) => {
                let (least, most) = (scale.show(*range.start()), scale.show(*range.end()));
                json!({
                    "type": "string",
                    "pattern": format!("^[0-9]+({})$", scale.names().replace(", ", "|")),
                    "description": format!("{least} to {most}"),
                })
            }
        }
    }

    fn section(&self, shape: &Shape, path: &str) -> Json {
        let mut keys = Map::new();
        for key in &shape.keys {
            let own = join(path, key);
            // A key that no pass read is one that this section refuses.
            if self.shapes.get(&own).is_none_or(|shape| shape.kinds.is_empty()) {
                continue;
            }
            let mut value = self.value(&own);
            if let (Some(value), Some(hint)) = (value.as_object_mut(), shape.required.get(key)) {
                value.insert("description".into(), format!("Required: {hint}").into());
            }
            keys.insert((*key).into(), value);
        }
        let required: Vec<_> = shape.required.keys().collect();
        // Nothing behind the colon is an empty section.
        let kind = if required.is_empty() { json!(["object", "null"]) } else { json!("object") };
        json!({"type": kind, "properties": keys, "required": required, "additionalProperties": false})
    }
}

/// The one, or one of several.
fn any_of(mut alternatives: Vec<Json>) -> Json {
    if alternatives.len() > 1 {
        return json!({ "anyOf": alternatives });
    }
    alternatives.pop().unwrap_or_else(|| json!({}))
}

/// Words as editors suggest them, and as the reader takes them: in any case, and numbers without quotes.
fn words_of(words: &[String]) -> Json {
    let numbers = words.iter().filter_map(|word| serde_json::from_str(word).ok().filter(Json::is_number));
    let all: Vec<Json> = words.iter().map(|word| word.as_str().into()).chain(numbers).collect();
    let in_any_case = |letter: char| match letter {
        _ if letter.is_ascii_alphabetic() => {
            format!("[{}{}]", letter.to_ascii_uppercase(), letter.to_ascii_lowercase())
        }
        _ if letter.is_ascii_digit() || matches!(letter, '-' | '_') => letter.to_string(),
        _ => format!("\\{letter}"),
    };
    let patterns: Vec<String> = words.iter().map(|word| word.chars().map(in_any_case).collect()).collect();
    json!({"anyOf": [{"enum": all}, {"type": "string", "pattern": format!("^({})$", patterns.join("|"))}]})
}
