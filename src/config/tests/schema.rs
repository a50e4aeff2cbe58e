//! The schema has what the reader has.

use serde_json::Value as Json;

use super::super::schema::schema;
use super::example::every_section;

/// What the schema says of a key's value: every alternative.
fn at<'a>(schema: &'a Json, path: &str) -> Vec<&'a Json> {
    let flat = |value: &'a Json| match value["anyOf"].as_array() {
        Some(alternatives) => alternatives.iter().collect(),
        None => vec![value],
    };
    let path = path.replace('[', ".[");
    path.split('.').filter(|part| !part.is_empty()).fold(vec![schema], |values, part| {
        let values = values.into_iter().flat_map(|value| {
            let below = if part.starts_with('[') { value.get("items") } else { value["properties"].get(part) };
            below.or_else(|| value.get("additionalProperties").filter(|more| more.is_object()))
        });
        values.flat_map(flat).collect()
    })
}

#[test]
fn schema_has_the_keys_that_the_reader_takes() {
    let schema = schema();
    for problem in every_section() {
        let (section, _) = problem.key.rsplit_once('.').unwrap_or(("", &problem.key));
        let (_, keys) = problem.message.split_once("allowed here: ").unwrap();
        for key in keys.split(", ") {
            // A protocol without EHLO or nginx refuses these.
            let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
            let is_refused = ["imap.ehlo", "pop3.ehlo", "managesieve.ehlo"].iter().any(|end| path.ends_with(end));
            assert_eq!(at(&schema, &path).is_empty(), is_refused, "{path}");
        }
    }
}

#[test]
fn schema_has_kinds_ranges_words_and_defaults() {
    let schema = schema();
    let of = |path: &str| match at(&schema, path).as_slice() {
        [one] => (*one).clone(),
        several => serde_json::json!(several),
    };
    assert_eq!(schema["required"], serde_json::json!(["listeners"]));
    let ttl = of("cache.ttl");
    assert_eq!((&ttl["default"], &ttl["description"]), (&"5m".into(), &"100ms to 1d".into()));
    let failures = of("limits.failed_logins");
    assert_eq!((&failures["minimum"], &failures["maximum"], &failures["default"]), (&1.into(), &100.into(), &3.into()));
    assert_eq!(of("process.debug")["default"], false);
    // What is off without the key has no default.
    assert!(of("directory.brake").get("default").is_none() && of("directory.brake")["maximum"] == 1_000_000);
    let words = of("tls.min_version");
    assert!(words.to_string().contains("[\"1.2\",\"1.3\",1.2,1.3]"), "{words}");
    for path in ["directories[0].servers[0].url", "directory.servers[0]", "tokens[0].jwks", "tokens[0].discovery"] {
        assert!(!at(&schema, path).is_empty(), "{path}");
    }
    for path in ["socketmap.path", "socketmap.address", "windows_domains.EXAMPLE.filter", "capabilities.pop3[0]"] {
        assert!(!at(&schema, path).is_empty(), "{path}");
    }
}
