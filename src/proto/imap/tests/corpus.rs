//! The fuzz corpora as plain tests: every file through the same checks as the fuzz targets.

use super::super::trial;

/// Runs a target on every file of its corpus, and on every beginning of it.
fn run(target: &str, check: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let data = std::fs::read(file.unwrap().path()).unwrap();
        (0..=data.len()).for_each(|end| check(&data[..end]));
        count += 1;
    }
    assert!(count >= 10, "the corpus of {target} is there");
}

#[test]
fn imap_front() {
    run("imap_front", trial::front);
}

#[test]
fn imap_back() {
    run("imap_back", trial::back);
}
