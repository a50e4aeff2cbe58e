//! The layers: a module uses only modules of lower layers, siblings have no circles, and a protocol touches no
//! socket.
//!
//! The tables are data. A change of the structure changes them here and in ARCHITECTURE.md, in one commit. Every
//! line of every file counts, unit tests included.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The top-level modules of each layer, lowest first. Modules of one layer do not use each other.
pub(crate) const LAYERS: [&[&str]; 20] = [
    &["base"],
    &["outcome"],
    &["proto"],
    &["config"],
    &["telemetry"],
    &["tls"],
    &["fleet", "token"],
    &["directory"],
    &["limits", "routing", "sessions"],
    &["backend", "cache", "trace"],
    &["tracking"],
    &["login"],
    &["config_files"],
    &["process"],
    &["frontend"],
    // A login that an administrator tries is one of a client.
    &["admin"],
    // The reports of `migrate` are tables of `diagnose`.
    &["diagnose"],
    &["migrate", "server"],
    &["demo"],
    &["cli", "internals", "invariants", "lib", "main"],
];

/// What the pure dialogues and syntaxes may not touch: sockets, files, clocks, the runtime.
const IMPURE: [&str; 7] = ["tokio", "std::net", "std::fs", "std::time", "std::thread", "Instant", "SystemTime"];

/// A module as its path below `src`, without `mod` and `.rs`: `directory/ldap/health`.
type Module = Vec<String>;

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|modules| modules.contains(&module));
    found.unwrap_or_else(|| panic!("{module} is in no layer: add it to LAYERS"))
}

/// Every source file, with its module.
fn sources() -> Vec<(Module, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&root).unwrap().with_extension("");
                let mut module: Module =
                    relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
                if module.last().is_some_and(|last| last == "mod") {
                    module.pop();
                }
                found.push((module, path));
            }
        }
    }
    found
}

/// A file's code without comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().flat_map(|line| [line.split("//").next().unwrap(), "\n"]).collect()
}

/// The paths that begin with this word in a text, with braces resolved: `crate::{a, b::{C, D}}` is `a`, `b::C`, `b::D`.
fn paths(code: &str, start: &str) -> Vec<Vec<String>> {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut found = Vec::new();
    for (at, _) in code.match_indices(start) {
        if !code[..at].ends_with(|letter: char| is_word(letter) || letter == ':') {
            tree(&code[at + start.len()..], &[], &mut found);
        }
    }
    found
}

/// Reads one tree of a path from the beginning of `text`; returns how long it is.
fn tree(text: &str, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let skipped = text.len() - text.trim_start().len();
    let rest = &text[skipped..];
    if let Some(list) = rest.strip_prefix('{') {
        let mut at = 0;
        while !list[at..].trim_start().starts_with('}') && at < list.len() {
            at += tree(&list[at..], prefix, found);
            let next = list[at..].find([',', '}']).map_or(list.len(), |next| at + next);
            at = if list[next..].starts_with(',') { next + 1 } else { next };
        }
        return skipped + 1 + at + list[at..].find('}').map_or(0, |end| end + 1);
    }
    let length = rest.find(|letter: char| !(letter.is_alphanumeric() || letter == '_')).unwrap_or(rest.len());
    let mut path = prefix.to_vec();
    if length > 0 && &rest[..length] != "self" {
        path.push(rest[..length].to_owned());
    }
    match rest[length..].strip_prefix("::") {
        Some(more) if length > 0 => skipped + length + 2 + tree(more, &path, found),
        _ => {
            found.push(path);
            skipped + length
        }
    }
}

/// What a file uses of the crate: absolute paths, from `crate::..` and `super::..`.
fn uses(module: &Module, code: &str) -> BTreeSet<Module> {
    let mut found: BTreeSet<Module> = paths(code, "crate::").into_iter().collect();
    for path in paths(code, "super::") {
        // Inside an inline module `super` is the file itself, which is a use of nothing.
        let ups = path.iter().take_while(|part| *part == "super").count() + 1;
        let base = &module[..module.len().saturating_sub(ups)];
        found.insert(base.iter().chain(&path[ups - 1..]).cloned().collect());
    }
    found
}

#[test]
fn modules_use_only_lower_layers() {
    let mut wrong = Vec::new();
    let sources = sources();
    for (module, path) in &sources {
        for used in paths(&code(path), "crate::") {
            let (Some(from), Some(to)) = (module.first(), used.first()) else { continue };
            let is_module = sources.iter().any(|(module, _)| module.first() == Some(to));
            if from != to && is_module && layer(to) >= layer(from) && layer(from) < LAYERS.len() - 1 {
                wrong.push(format!("{}: {from} uses {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn siblings_have_no_circles() {
    let sources = sources();
    let modules: BTreeSet<&Module> = sources.iter().map(|(module, _)| module).collect();
    // For each folder: which child uses which other child. Unit tests in files of their own are no children.
    let mut arrows: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (module, path) in &sources {
        if module.iter().any(|part| part == "tests") {
            continue;
        }
        for used in uses(module, &code(path)) {
            let Some(length) = (1..=used.len()).rev().find(|length| modules.contains(&used[..*length].to_vec())) else {
                continue;
            };
            let used = &used[..length];
            let common = std::iter::zip(module, used).take_while(|(one, other)| one == other).count();
            if let (Some(from), Some(to)) = (module.get(common), used.get(common)) {
                let folder = arrows.entry(module[..common].to_vec()).or_default();
                folder.entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    let mut wrong = Vec::new();
    // The top level has its layers.
    for (folder, arrows) in arrows.iter().filter(|(folder, _)| !folder.is_empty()) {
        for start in arrows.keys() {
            let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
            while let Some(module) = next.pop() {
                for used in arrows.get(module).into_iter().flatten() {
                    if used == start {
                        wrong.push(format!("{}: {start} uses {module}, which leads back to it", folder.join("/")));
                    }
                    if seen.insert(used) {
                        next.push(used);
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn protocols_are_pure() {
    let mut wrong = Vec::new();
    for (_, path) in sources().into_iter().filter(|(module, _)| module.first().is_some_and(|top| top == "proto")) {
        let code = code(&path);
        wrong.extend(
            IMPURE.iter().filter(|word| code.contains(*word)).map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_every_shape() {
    let code = "use crate::one::X;\nuse crate::{two, three::{self, Y, four::Z}, five};\nfn f() { crate::six::g() }\n";
    let found: Vec<String> = paths(code, "crate::").iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["one::X", "two", "three", "three::Y", "three::four::Z", "five", "six::g"]);
    let module = ["directory", "ldap", "health"].map(str::to_owned).to_vec();
    let found = uses(&module, "use super::pool::Pool;\nuse super::super::Login;\n");
    let found: Vec<String> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["directory::Login", "directory::ldap::pool::Pool"]);
}
