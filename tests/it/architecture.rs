//! ARCHITECTURE.md says what is true of the code: paths exist, the layers are those of `layers`, and every limit and
//! every metric has its file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::layers::LAYERS;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn page() -> String {
    read("ARCHITECTURE.md")
}

/// The part under a heading, down to the next one of the same or a higher level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
    let level = heading.bytes().take_while(|byte| *byte == b'#').count();
    let ends = (2..=level).filter_map(|level| rest.find(&format!("\n{} ", "#".repeat(level))));
    &rest[..ends.min().unwrap_or(rest.len())]
}

/// The rows of a section's table, without its head.
fn rows(section: &str) -> Vec<Vec<String>> {
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect())
        .collect()
}

/// The text between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn paths_named_in_the_page_exist() {
    let (page, mut seen) = (page(), 0);
    let is_path = |text: &&str| {
        text.contains('/')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
            && (text.ends_with('/') || [".rs", ".md", ".yaml", ".toml"].iter().any(|end| text.ends_with(end)))
    };
    let missing: Vec<&str> = quoted(&page)
        .filter(is_path)
        .inspect(|_| seen += 1)
        .filter(|path| !root().join(path).exists() && !root().join("src").join(path).exists())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(seen > 50, "only {seen} paths were found: has the form of the page changed?");
}

#[test]
fn map_names_every_module_and_no_other() {
    let page = page();
    let map = section(&page, "## Map");
    let tree = map.split("```").nth(1).unwrap();
    let mut named = BTreeSet::new();
    for line in tree.lines().filter(|line| line.starts_with("  ") && !line.starts_with("    ")) {
        let words = line.split_whitespace().take_while(|word| word.ends_with(".rs") || word.ends_with('/'));
        named.extend(words.map(|word| word.trim_end_matches('/').trim_end_matches(".rs").to_owned()));
    }
    let files = std::fs::read_dir(root().join("src")).unwrap();
    let there: BTreeSet<String> = files
        .map(|entry| Path::new(&entry.unwrap().file_name()).file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(named, there);
}

#[test]
fn layers_of_the_page_are_those_of_the_test() {
    let page = page();
    let layers: Vec<BTreeSet<String>> = rows(section(&page, "### Layers"))
        .iter()
        .map(|row| quoted(&format!("`{}`", row[1])).map(str::to_owned).collect())
        .collect();
    let tested: Vec<BTreeSet<String>> =
        LAYERS.iter().map(|layer| layer.iter().map(|module| (*module).to_owned()).collect()).collect();
    assert_eq!(layers, tested);
}

/// Each row is a name, the file in which it takes effect, and the identifier there.
fn check(rows: &[Vec<String>]) -> Vec<String> {
    let is_wrong = |row: &&Vec<String>| !read(&row[1]).contains(&row[2]);
    rows.iter().filter(is_wrong).map(|row| format!("{}: {} has no {}", row[0], row[1], row[2])).collect()
}

#[test]
fn limits_of_the_page_are_those_of_the_configuration() {
    let page = page();
    let rows = rows(section(&page, "### Limits"));
    let (mut keys, mut current) = (BTreeSet::new(), "");
    let example = read("config.example.yaml");
    for line in example.lines() {
        if !line.is_empty() && !line.starts_with([' ', '#']) {
            current = line.split(':').next().unwrap();
        }
        let key = line.strip_prefix("  ").map(|line| line.strip_prefix("# ").unwrap_or(line));
        let name = key.and_then(|line| line.split_once(": ")).map(|(name, _)| name);
        let is_key =
            |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if let (true, Some(name)) = (["limits", "throttle"].contains(&current), name.filter(is_key)) {
            keys.insert(format!("{current}.{name}"));
        }
    }
    // A word before a colon in a comment's sentence is no key.
    let listed: BTreeSet<String> = rows.iter().map(|row| row[0].clone()).collect();
    let words: BTreeSet<&str> = ["throttle.delayed", "throttle.network"].into();
    let keys: BTreeSet<String> = keys.into_iter().filter(|key| !words.contains(key.as_str())).collect();
    assert_eq!(listed, keys);
    let wrong = check(&rows);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn metrics_of_the_page_are_those_of_the_manual() {
    let page = page();
    let rows = rows(section(&page, "### Metrics"));
    let listed: BTreeSet<String> = rows.iter().map(|row| row[0].clone()).collect();
    let manual = read("docs/metrics.md");
    let named = |line: &str| line.split('`').nth(1).map(|name| name.split('{').next().unwrap().to_owned());
    let documented: BTreeSet<String> =
        manual.lines().filter(|line| line.starts_with("| `usher_")).filter_map(named).collect();
    assert_eq!(listed, documented);
    let wrong = check(&rows);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
