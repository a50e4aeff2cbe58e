//! Every test named in the documents exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 2] = ["docs/developer/promises.md", "docs/developer/threat-model.md"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The texts between backquotes, line by line.
fn quoted(text: &str) -> Vec<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The names of the functions below `#[test]` in a file.
fn tests_in(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != "#[test]");
    while let Some(line) = lines.next() {
        if line == "#[test]" {
            let declared = lines.by_ref().find_map(|line| line.strip_prefix("fn "));
            names.extend(declared.and_then(|rest| rest.split('(').next()).map(str::to_owned));
        }
    }
    names
}

/// A test name in the documents: `file::test`.
fn as_test(quoted: &str) -> Option<(&str, &str)> {
    let (file, test) = quoted.split_once("::")?;
    let is_name =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    // Types and functions of usher have the same form.
    (is_name(file) && is_name(test) && test != "test" && path(&format!("tests/it/{file}.rs")).exists())
        .then_some((file, test))
}

/// The modules named by `unit: a, b (`file`)`.
fn modules(text: &str) -> Vec<String> {
    let named = text.split("unit: ").skip(1).flat_map(|rest| {
        let end = rest.find([';', '|', '.', '\n']).unwrap_or(rest.len());
        rest[..end].split(',').map(|module| module.split('(').next().unwrap_or_default().trim().to_owned())
    });
    named
        .filter(|module| !module.is_empty() && module.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .collect()
}

#[test]
fn tests_named_in_documents_exist() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for document in DOCUMENTS {
        let text = read(document);
        for (file, test) in quoted(&text).into_iter().filter_map(as_test) {
            seen += 1;
            if !tests_in(&read(&format!("tests/it/{file}.rs"))).contains(test) {
                wrong.push(format!("{document}: `{file}::{test}` does not exist"));
            }
        }
        for quoted in quoted(&text) {
            let names_a_test = quoted.split_once("::").is_some_and(|(_, test)| test.contains('_'));
            let is_lower = quoted.bytes().all(|byte| !byte.is_ascii_uppercase() && byte != b'(');
            if names_a_test && is_lower && as_test(quoted).is_none() {
                wrong.push(format!("{document}: `{quoted}` names no file of tests/it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 150, "only {seen} names were found: has the form of the documents changed?");
}

#[test]
fn modules_with_unit_tests_named_in_documents_have_some() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for document in DOCUMENTS {
        for module in modules(&read(document)) {
            if module == "test" || module == "tests" || module == "module" {
                continue;
            }
            let places = [format!("src/{module}.rs"), format!("src/{module}"), format!("src/proto/{module}")];
            let has_tests = places.iter().map(|place| path(place)).any(|place| has_tests(&place));
            if !has_tests {
                wrong.push(format!("{document}: unit: {module} has no tests"));
            }
            seen.insert(module);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.len() > 10, "only {seen:?}");
}

/// Whether a file, or a file below a folder, has unit tests.
fn has_tests(place: &Path) -> bool {
    if place.is_dir() {
        return std::fs::read_dir(place).unwrap().flatten().any(|entry| has_tests(&entry.path()));
    }
    std::fs::read_to_string(place)
        .is_ok_and(|text| text.contains("#[test]") || text.contains("#[tokio::test") || text.contains("mod tests;"))
}

#[test]
fn names_are_parsed_as_written_in_documents() {
    assert_eq!(quoted("a `b` c `d::e_f`\n`g`"), ["b", "d::e_f", "g"]);
    assert_eq!(as_test("cli::no_such_test"), Some(("cli", "no_such_test")));
    assert_eq!((as_test("directory::Identity"), as_test("Refusal::reply"), as_test("nowhere::x")), (None, None, None));
    assert_eq!(modules("x; unit: tls, authn (`random`); fuzz\nunit: steer |"), ["tls", "authn", "steer"]);
    let text = "#[test]\nfn one() {\n}\n#[cfg(x)]\n#[test]\n#[cfg(y)]\nfn two() {\n}\nfn three() {}\n";
    assert_eq!(tests_in(text).into_iter().collect::<Vec<_>>(), ["one", "two"]);
}
