//! Labels that occur together: every combination has a series from the first scrape.

use crate::kit::{Config, Usher};

/// The values in the table of `docs/metrics.md` with this heading.
fn documented(heading: &str) -> Vec<&'static str> {
    let page = include_str!("../../docs/metrics.md");
    let (_, table) = page.split_once(&format!("#### {heading}")).unwrap_or_else(|| panic!("no heading {heading}"));
    let table = table.split("\n#").next().unwrap_or_default();
    let cells = table.lines().filter(|line| line.starts_with("| `")).filter_map(|row| row.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn directory_series_exist_for_every_operation_and_code() {
    let operations = documented("`operation` of `usher_directory_operations_total`");
    let codes = documented("`code` of `usher_directory_operations_total`");
    assert!(operations.len() == 5 && codes.contains(&"49"), "{operations:?} {codes:?}");
    let usher = Usher::start(Config::shared());
    let (_, body) = usher.http("/metrics");
    let has = |name: &str, labels: &[String]| {
        let series = |line: &str| line.starts_with(name) && labels.iter().all(|label| line.contains(label.as_str()));
        assert!(body.lines().any(series), "no series {name} with {labels:?}:\n{body}");
    };
    for operation in operations {
        let operation = format!("operation=\"{operation}\"");
        has("usher_directory_operation_seconds_count{", std::slice::from_ref(&operation));
        for code in &codes {
            has("usher_directory_operations_total{", &[operation.clone(), format!("code=\"{code}\"")]);
        }
    }
}
