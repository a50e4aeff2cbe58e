//! Labels of metrics that the types do not close: the names of directory operations.
//!
//! Every series exists from the first scrape, so the set is repeated in the metrics, in a layer below the code that
//! counts. All other sets are enums (`src/telemetry/labels.rs`).

use std::collections::BTreeSet;
use std::path::Path;

/// Each directory operation, and the file that counts it.
const OPERATIONS: [(&str, &str); 5] = [
    ("connect", "directory/ldap/bind_pool.rs"),
    ("bind", "directory/ldap/bind_pool.rs"),
    ("service_bind", "directory/ldap/service_account.rs"),
    ("search", "directory/ldap/mod.rs"),
    ("read", "directory/ldap/mod.rs"),
];

fn source(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The quoted words that can be labels.
fn words(text: &str) -> BTreeSet<String> {
    let is_label = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    text.split('"').skip(1).step_by(2).filter(is_label).map(str::to_owned).collect()
}

#[test]
fn label_sets_match_the_code() {
    let metrics = source("telemetry/metrics/mod.rs");
    let (_, set) = metrics.split_once("const DIRECTORY_OPERATIONS: [&str;").expect("the set of operations");
    let declared = words(set.split_once('=').unwrap().1.split("];").next().unwrap());
    let counted = OPERATIONS.map(|(operation, file)| {
        assert!(words(&source(file)).contains(operation), "{operation} is not in {file}");
        operation.to_owned()
    });
    assert_eq!(declared, BTreeSet::from(counted));
}
