//! The layers: a module imports from layers below its own, and a protocol uses no socket.
//!
//! The table is data. Changing the layers means changing it here and in ARCHITECTURE.md, in one
//! commit.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The modules of each layer, lowest first.
const LAYERS: [&[&str]; 10] = [
    &["outcome", "secret"],
    &["clock", "config", "log", "metrics", "proto", "sys", "tasks"],
    &["throttle", "tls"],
    &["directory"],
    &["cache", "known", "registry", "route"],
    &["authn", "backend", "follow", "relay", "steer"],
    &["cutover", "files", "report", "snapshot"],
    &["inspect", "session"],
    &["admin", "auth_http", "listener"],
    &["cli", "demo", "lib", "main", "server", "trial"],
];

/// Allowed imports inside a layer: names and types, no behaviour.
const WITHIN_LAYER: [(&str, &str); 7] = [
    ("config", "proto"),
    ("config", "sys"),
    ("log", "config"),
    ("metrics", "config"),
    ("metrics", "proto"),
    ("metrics", "tasks"),
    ("snapshot", "files"),
];

/// What the pure dialogues may not use: sockets, files, clocks, the runtime.
const IMPURE: [&str; 7] = ["tokio", "std::net", "std::fs", "std::time", "std::thread", "Instant", "SystemTime"];

fn layer_of(module: &str) -> usize {
    let found = LAYERS.iter().position(|modules| modules.contains(&module));
    found.unwrap_or_else(|| panic!("{module} is in no layer: add it to the table"))
}

/// Every source file except tests, with its module.
fn sources() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            if name == "tests" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = path.strip_prefix(&root).unwrap().components().next().unwrap();
                found.push((Path::new(module.as_os_str()).file_stem().unwrap().to_string_lossy().into_owned(), path));
            }
        }
    }
    found
}

/// A file's code without comments, up to its unit tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let mut code = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            break;
        }
        code.push_str(line.split("//").next().unwrap());
        code.push('\n');
    }
    code
}

/// The modules that a file names by `crate::module` or `crate::{module, ..}`.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut modules = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            modules.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                letter if start && letter.is_alphabetic() => {
                    modules.insert(word(&list[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    modules
}

#[test]
fn modules_import_only_from_lower_layers() {
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        for other in imports(&code(&path)) {
            let neighbours = other == module || WITHIN_LAYER.contains(&(module.as_str(), other.as_str()));
            if !neighbours && layer_of(&other) >= layer_of(&module) && layer_of(&module) < LAYERS.len() - 1 {
                wrong.push(format!("{}: {module} imports {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn protocols_are_pure() {
    let mut wrong = Vec::new();
    for (_, path) in sources().into_iter().filter(|(module, _)| module == "proto") {
        let code = code(&path);
        wrong.extend(
            IMPURE.iter().filter(|word| code.contains(*word)).map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_every_shape() {
    let code = "use crate::one::X;\nuse crate::{two, three::{Y, Z}, four};\nfn f() { crate::five::g() }\n";
    let found: Vec<String> = imports(code).into_iter().collect();
    assert_eq!(found, ["five", "four", "one", "three", "two"]);
}
