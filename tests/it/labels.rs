//! Labels of metrics that the types do not close: the names of directory operations.
//!
//! Every series exists from the first scrape, so the set is repeated in the metrics, in a layer below the code that
//! counts. All other sets are enums (`src/telemetry/labels.rs`).

use std::collections::BTreeSet;
use std::path::Path;

/// The operations that the code of the directory counts.
const OPERATIONS: [&str; 5] = ["connect", "bind", "service_bind", "search", "read"];

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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/directory/ldap");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let code: BTreeSet<String> = files.flat_map(|file| words(&std::fs::read_to_string(file).unwrap())).collect();
    assert!(OPERATIONS.iter().all(|operation| code.contains(*operation)), "{code:?}");
    assert_eq!(declared, BTreeSet::from(OPERATIONS.map(str::to_owned)));
}
