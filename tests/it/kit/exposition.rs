//! The text of `/metrics` as data, and whether a Prometheus query matches it.

use std::collections::{BTreeMap, BTreeSet};

/// Labels whose values come from the configuration.
const OPEN: [&str; 8] = ["backend", "directory", "server", "name", "chain", "crl", "issuer", "version"];
/// Labels added by Prometheus.
const ADDED: [&str; 4] = ["job", "instance", "le", "alertname"];

/// An exported metric.
#[derive(Debug, Default)]
pub(crate) struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub(crate) kind: String,
    /// Each label with its values.
    pub(crate) labels: BTreeMap<String, BTreeSet<String>>,
}

impl Family {
    /// The labels with a closed set of values.
    pub(crate) fn closed(&self) -> impl Iterator<Item = (&String, &BTreeSet<String>)> {
        self.labels.iter().filter(|(label, _)| !OPEN.contains(&label.as_str()))
    }
}

/// The metrics of one scrape, by name.
#[derive(Debug)]
pub(crate) struct Exposition(pub(crate) BTreeMap<String, Family>);

impl Exposition {
    /// Parses a scrape.
    pub(crate) fn read(text: &str) -> Self {
        let mut shown = Self(BTreeMap::new());
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                shown.0.entry(name.into()).or_default().kind = kind.into();
            } else if !line.starts_with('#') {
                let (series, _) = line.rsplit_once(' ').expect("a series and its value");
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let name = shown.family(name).expect("a type before the series").0.clone();
                for (label, value) in
                    labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once("=\""))
                {
                    if label != "le" {
                        let values = shown.0.get_mut(&name).unwrap().labels.entry(label.into()).or_default();
                        values.insert(value.trim_end_matches('"').into());
                    }
                }
            }
        }
        shown
    }

    /// The metric to which series of this name belong.
    fn family(&self, series: &str) -> Option<(&String, &Family)> {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
        let histogram = histogram.and_then(|name| self.0.get_key_value(name)).filter(|(_, it)| it.kind == "histogram");
        histogram.or_else(|| self.0.get_key_value(series))
    }

    /// The metrics, labels and label values of a query that do not exist.
    pub(crate) fn missing(&self, query: &str) -> Vec<String> {
        let mut missing = Vec::new();
        let mut known: BTreeSet<&str> = ADDED.into();
        let mut grouped: Vec<&str> = Vec::new();
        let mut rest = query;
        while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '"') {
            rest = &rest[start..];
            if let Some(text) = rest.strip_prefix('"') {
                rest = text.split_once('"').map_or("", |(_, behind)| behind);
                continue;
            }
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (word, behind) = rest.split_at(end);
            rest = behind;
            if ["by", "without", "on", "ignoring"].contains(&word) {
                let (labels, behind) = behind.trim_start().trim_start_matches('(').split_once(')').unwrap_or_default();
                grouped.extend(labels.split(',').map(str::trim).filter(|label| !label.is_empty()));
                rest = behind;
            } else if word.starts_with("usher_") || word.starts_with("process_") {
                let Some((_, family)) = self.family(word) else {
                    missing.push(format!("no metric {word}"));
                    continue;
                };
                known.extend(family.labels.keys().map(String::as_str));
                if let Some((matchers, behind)) = behind.strip_prefix('{').and_then(|matchers| matchers.split_once('}'))
                {
                    rest = behind;
                    missing.extend(
                        matchers
                            .split("\",")
                            .filter_map(|matcher| family.lacks(matcher))
                            .map(|lack| format!("{word} {lack}")),
                    );
                }
            }
        }
        missing.extend(grouped.iter().filter(|label| !known.contains(*label)).map(|label| format!("no label {label}")));
        missing
    }
}

impl Family {
    /// What a matcher such as `result=~"ok|refused` names that this metric lacks.
    fn lacks(&self, matcher: &str) -> Option<String> {
        let (label, words) = matcher.split_once('"')?;
        let label = label.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        if ADDED.contains(&label) {
            return None;
        }
        let Some(values) = self.labels.get(label) else { return Some(format!("has no label {label}")) };
        let never = |word: &&str| !word.starts_with('$') && !values.contains(*word);
        let words = words.trim_end_matches('"');
        let word = words.split('|').find(never).filter(|_| !OPEN.contains(&label))?;
        Some(format!("never has {label}={word}"))
    }
}

#[test]
fn query_of_a_missing_series_is_detected() {
    let shown = Exposition::read(
        "# TYPE usher_logins_total counter\nusher_logins_total{protocol=\"imap\",result=\"ok\"} 3\n\
         # TYPE usher_phase_seconds histogram\nusher_phase_seconds_bucket{phase=\"tls\",le=\"1\"} 0\n",
    );
    for (query, missing) in [
        (r#"sum by (protocol) (rate(usher_logins_total{result="ok",protocol=~"$protocol"}[5m])) > 0"#, &[][..]),
        ("histogram_quantile(0.9, sum by (le, phase) (rate(usher_phase_seconds_bucket[5m])))", &[]),
        ("usher_login_total", &["no metric usher_login_total"]),
        (
            r#"usher_logins_total{result=~"ok|good",prot="imap"}"#,
            &["usher_logins_total never has result=good", "usher_logins_total has no label prot"],
        ),
        ("sum without (phase) (usher_logins_total)", &["no label phase"]),
        ("usher_phase_seconds_total", &["no metric usher_phase_seconds_total"]),
    ] {
        assert_eq!(shown.missing(query), missing, "{query}");
    }
}
