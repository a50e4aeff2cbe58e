//! `usher schema`, by a validator that is not usher's: it takes every shipped configuration, and nothing that it refuses is
//! accepted by `usher check`.

use std::path::Path;

use serde_json::{Value, json};

use crate::container::made;
use crate::kit::Config;
use crate::kit::process::run;
use crate::kit::usher::BINARY;

/// Reads the schema and documents (YAML) from standard input; writes the first mistake of each, or null.
const VALIDATE: &str = "
import json, sys, yaml, jsonschema
class Core(yaml.SafeLoader):
    # YAML 1.2, as usher and editors read it: `off` is a text.
    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in rules if not tag.endswith(':bool') or letter in 'tTfF']
        for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
given = json.load(sys.stdin)
jsonschema.Draft7Validator.check_schema(given['schema'])
validator = jsonschema.Draft7Validator(given['schema'])
first = lambda text: next((error.message for error in validator.iter_errors(yaml.load(text, Core))), None)
print(json.dumps([first(text) for text in given['documents']]))
";

/// The first mistake of each document.
fn mistakes(documents: &[String]) -> Vec<Option<String>> {
    let schema = run(BINARY, &["schema"], b"").succeeded().stdout;
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let given = json!({"schema": schema, "documents": documents}).to_string();
    let python = made("python").join("bin/python3").display().to_string();
    let said = run(&python, &["-c", VALIDATE], given.as_bytes()).succeeded().stdout;
    serde_json::from_str(&said).unwrap()
}

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn shipped_configurations_are_valid() {
    let files = ["config.example.yaml", "deploy/behind-balancer.yaml", "deploy/kubernetes/config.yaml"];
    let mut documents: Vec<String> = files.iter().map(|name| shipped(name)).collect();
    let readme = shipped("README.md");
    let of_readme = readme.split("```yaml\n").skip(1).filter_map(|piece| piece.split("```").next());
    documents.extend(of_readme.filter(|piece| piece.starts_with("listeners:")).map(str::to_owned));
    let arguments = ["init", "--ldap", "ldaps://one", "--base", "dc=x", "--certificate", "c", "--key", "k"];
    let starter = run(BINARY, &[&arguments[..], &["--backend", "server3=one:993"]].concat(), b"").succeeded().stdout;
    assert!(starter.starts_with("# yaml-language-server: $schema=usher.schema.json\n"));
    documents.push(starter);
    assert!(documents.len() >= 5, "{}", documents.len());
    for (document, mistake) in documents.iter().zip(mistakes(&documents)) {
        assert_eq!(mistake, None, "{document}");
    }
}

#[test]
fn what_the_schema_refuses_is_a_mistake() {
    let config = Config::shared();
    let file = config.write();
    let sound = std::fs::read_to_string(&file).unwrap();
    let check = |text: &str| {
        let file = config.write_text(text).display().to_string();
        run(BINARY, &["check", "--config", &file], b"")
    };
    check(&sound).succeeded();
    let with = |pointer: &str, value: Value| {
        let mut changed: Value = serde_yaml::from_str(&sound).unwrap();
        let (section, key) = pointer.rsplit_once('/').unwrap();
        let section = changed.pointer_mut(section).unwrap_or_else(|| panic!("{pointer}"));
        section[key] = value;
        serde_yaml::to_string(&changed).unwrap()
    };
    // One of each kind: unknown key, quantity, range, number, flag, word, list, text, section, entries, a missing key.
    let wrong = [
        ("/unknown", json!(1)),
        ("/directory/timeout", json!("5 seconds")),
        ("/directory/timeout", json!(5)),
        ("/directory/max_message", json!("1MB")),
        ("/limits", json!({"failed_logins": 0})),
        ("/limits", json!({"failed_logins": "3"})),
        ("/limits", json!("few")),
        ("/directory/starttls", json!("yes")),
        ("/directory/balance", json!("random")),
        ("/directory/disabled_by", json!("nothing")),
        ("/directory/bind_dn", json!(1)),
        ("/directory/ca", json!("")),
        ("/directory/servers", json!([])),
        ("/directory/servers", json!([{"pin_sha256": "x"}])),
        ("/trusted", json!({"network": "192.0.2.0/24"})),
        ("/windows_domains", json!({})),
        ("/listeners", json!("imap")),
        ("/listeners", json!([])),
        ("/routing/backends/0/unknown", json!(1)),
        ("/routing/backends/0/imap", json!({"tls": "implicit"})),
    ];
    let documents: Vec<_> = wrong.iter().map(|(pointer, value)| with(pointer, value.clone())).collect();
    for (((pointer, value), document), mistake) in wrong.iter().zip(&documents).zip(mistakes(&documents)) {
        assert!(mistake.is_some(), "{pointer}: {value}");
        assert_eq!(check(document).code, 78, "{pointer}: {value}");
    }
    // Words in any case, and numbers for words: what check takes, the schema takes.
    let right = [("/directory/balance", json!("FIRST")), ("/tls/min_version", json!(1.2)), ("/limits", json!(null))];
    let documents: Vec<_> =
        right.iter().map(|(pointer, value)| with(pointer, value.clone())).chain([sound.clone()]).collect();
    for (document, mistake) in documents.iter().zip(mistakes(&documents)) {
        assert_eq!(mistake, None, "{document}");
        check(document).succeeded();
    }
}
