//! The pages of the documentation: links lead somewhere, the index has every page, and the words that an administrator
//! is to search for are those of the program. `tests/documents` runs the commands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::kit::process::{read_text, run};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page, by its path from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let folders = ["", "docs", "docs/developer"].map(|folder| std::fs::read_dir(root().join(folder)).unwrap());
    let files = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    let pages = files.filter(|path| path.extension().is_some_and(|end| end == "md"));
    pages.map(|path| (path.strip_prefix(root()).unwrap().to_owned(), read_text(&path))).collect()
}

/// The text outside of fenced blocks.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// The anchors of a page, as GitHub makes them from headings, and explicit ones.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let text = prose(page);
    for heading in
        text.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')))
    {
        let slug: String = heading
            .to_lowercase()
            .chars()
            .filter(|one| one.is_alphanumeric() || matches!(one, ' ' | '-' | '_'))
            .map(|one| if one == ' ' { '-' } else { one })
            .collect();
        let mut name = slug.clone();
        for number in 1.. {
            if found.insert(name) {
                break;
            }
            name = format!("{slug}-{number}");
        }
    }
    found.extend(text.split("<a id=\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    found
}

/// The targets of links that lead within the source.
fn links(page: &str) -> Vec<String> {
    let text = prose(page);
    let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.filter(|target| !target.contains("://") && !target.contains(' ')).collect()
}

#[test]
fn links_lead_to_pages_and_headings() {
    let pages = pages();
    let mut broken = Vec::new();
    for (path, page) in &pages {
        for link in links(page) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if file.is_empty() { root().join(path) } else { root().join(path).with_file_name("").join(file) };
            let leads = match target.canonicalize() {
                Ok(target) if !anchor.is_empty() => anchors(&read_text(&target)).contains(anchor),
                Ok(_) => true,
                Err(_) => false,
            };
            if !leads {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(pages.len() > 20, "{}", pages.len());
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn index_and_readme_have_every_page_once() {
    let pages = pages();
    let names: BTreeSet<String> = pages
        .keys()
        .filter_map(|path| path.strip_prefix("docs").ok())
        .map(|path| path.display().to_string())
        .filter(|name| name != "README.md")
        .collect();
    let index = &pages[Path::new("docs/README.md")];
    let mut listed = links(index);
    listed.sort();
    assert_eq!(listed, names.iter().cloned().collect::<Vec<_>>(), "docs/README.md (left) and the folder (right)");
    let readme = &pages[Path::new("README.md")];
    let more = readme.split_once("## More").unwrap().1;
    let listed: BTreeSet<String> =
        links(more).iter().filter_map(|link| Some(link.strip_prefix("docs/")?.to_owned())).collect();
    assert_eq!(listed, names.into_iter().chain(["README.md".to_owned()]).collect(), "README's \"More\" and the folder");
}

fn sources() -> String {
    let (mut text, mut folders) = (String::new(), vec![root().join("src")]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                text.push_str(&read_text(&path));
            }
        }
    }
    // A text that is continued in the next line.
    text.split("\\\n").map(str::trim_start).collect()
}

#[test]
fn troubleshooting_has_the_words_of_the_program() {
    let (pages, sources) = (pages(), sources());
    let page = &pages[Path::new("docs/troubleshooting.md")];
    let table = page.split_once("## Why could alice").unwrap().0;
    let (mut words, mut unknown) = (0, Vec::new());
    let mut expect = |word: &str| {
        words += 1;
        if !sources.contains(word) {
            unknown.push(word.to_owned());
        }
    };
    for line in table.lines().filter(|line| line.starts_with('|')) {
        let mut is_code = false;
        for piece in line.split('`') {
            if is_code {
                let is_name =
                    piece.contains('_') && piece.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                // Metrics are composed of a prefix and a name; their page is compared with a running usher.
                if is_name && !piece.starts_with("usher_") {
                    expect(piece);
                }
            } else {
                piece.split('"').skip(1).step_by(2).for_each(&mut expect);
            }
            is_code = !is_code;
        }
    }
    assert!(words > 60, "{words}");
    assert!(unknown.is_empty(), "{unknown:#?}");
    let metrics = &pages[Path::new("docs/metrics.md")];
    let named = page.split('`').skip(1).step_by(2).filter(|name| name.starts_with("usher_"));
    let missing: Vec<&str> = named
        .map(|name| name.split('{').next().unwrap())
        .filter(|name| !metrics.contains(&format!("| `{name}` |")) && *name != "usher_pid")
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn troubleshooting_has_every_reply() {
    let source = read_text(&root().join("src/outcome/reply.rs"));
    let texts = source.split_once("Self::AuthenticationFailed => \"").unwrap().1.split_once("\n    }").unwrap().0;
    let texts = format!("\"{texts}");
    let mut texts: Vec<&str> = texts.split('"').skip(1).step_by(2).filter(|text| text.contains(' ')).collect();
    let page = read_text(&root().join("docs/troubleshooting.md"));
    let table = page.split_once("## What the mail program says").unwrap().1.split_once("\n## ").unwrap().0;
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(2);
    let mut shown: Vec<&str> = rows.map(|row| row.split(" | ").next().unwrap()).collect();
    texts.sort_unstable();
    shown.sort_unstable();
    assert_eq!(shown, texts, "docs/troubleshooting.md (left) and the replies (right)");
}

#[test]
fn commands_of_the_pages_are_run_or_listed() {
    // The table of `tests/documents` has no entry that no page has any more. It runs them as root, after the packages.
    let script = root().join("tests/documents").display().to_string();
    run("/usr/bin/python3", &[&script, "--list"], b"").succeeded();
}

/// The number in the first column of a table's row, with its unit.
fn figure(page: &str, row: &str) -> (f64, String) {
    let line = page.lines().find(|line| line.starts_with(&format!("| {row} |")));
    let line = line.unwrap_or_else(|| panic!("no row {row}"));
    let cell = line.split('|').nth(2).unwrap().trim();
    let (number, unit) = cell.split_once(' ').unwrap_or((cell, ""));
    (number.replace(',', "").parse().unwrap(), unit.to_owned())
}

#[test]
fn sizing_example_adds_up() {
    let page = read_text(&root().join("docs/capacity.md"));
    let of = |row: &str, unit: &str| {
        let (number, found) = figure(&page, row);
        assert_eq!(found, unit, "{row}");
        number
    };
    let (users, sessions, attempts) = (50_000.0, 60_000.0, 50_000.0 * 40.0);
    let process = of("an idle session, memory of the process", "KiB") * sessions / 1024.0;
    let cached = of("a cached user", "KiB") * users / 1024.0;
    let (own, kernel) = (of("usher itself", "MiB"), of("the same, memory of the kernel", "KiB") * sessions / 1024.0);
    let thousands = |number: f64| {
        let digits = format!("{number:.0}");
        let (head, tail) = digits.split_at(digits.len().saturating_sub(3));
        if head.is_empty() { tail.to_owned() } else { format!("{head},{tail}") }
    };
    let cached_login = of("a cached login, many at a time", "ms of a core");
    let login = of("a login that is not cached", "ms of a core");
    let line = of("a session in the log, its `login` and its `end` line", "bytes");
    let journal = of("the same in systemd's journal", "bytes");
    // The page adds up what it shows.
    let of_process = own + process.round() + cached.round();
    let whole = of_process + kernel.round();
    for said in [
        format!("({} MiB)", thousands(process)),
        format!("({} MiB)", thousands(cached)),
        format!("= {} MiB", thousands(of_process)),
        format!("= {} MiB", thousands(kernel)),
        format!("twice {} MiB = {:.1} GiB", thousands(whole), whole / 512.0),
        format!("60,000 x {cached_login:.1} ms = {:.0} s", sessions * cached_login / 1e3),
        format!("60,000 x {login:.1} ms = {:.0} s", sessions * login / 1e3),
        format!("x {line:.0} bytes = {:.1} GB, compressed {:.2} GB", attempts * line / 1e9, attempts * line / 6e9),
        format!("x {} bytes = {:.1} GB", thousands(journal), attempts * journal / 1e9),
    ] {
        assert!(page.contains(&said), "{said}");
    }
    assert!((figure(&page, "ports from one address to one address of a backend").0 - 28_232.0).abs() < 0.5);
}
