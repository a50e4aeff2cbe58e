//! Monitoring: the metrics page, the alerts and their runbook, the dashboard, and a
//! real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::authority::Authority;
use crate::kit::exposition::Exposition;
use crate::kit::issuer::ScriptedIssuer;
use crate::kit::process::write_secret;
use crate::kit::process::{Running, Server, folder, free_port, read_text, run, wait_for_port};
use crate::kit::usher::fetch;
use crate::kit::{Config, Imap, Usher, password_of, wait_limit};

/// A shipped file.
fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn yaml(name: &str) -> Value {
    serde_yaml::from_str(&read_text(&shipped(name))).unwrap()
}

/// A configuration with one of everything that has its own series.
fn everything() -> Config {
    let mut config = Config::shared().set("/directory/canary", json!({"login": "alice", "mail_host": "server3"}));
    for row in ["pop3", "submission", "managesieve"] {
        // It has no probes and no logins.
        let endpoint = json!({"address": "127.0.0.1:9", "tls": "implicit", "server_name": "server3.example.com"});
        config.change(&format!("/routing/backends/0/{row}"), endpoint);
    }
    // No DNS server is there.
    let servers = json!([crate::kit::slapd().tls_url(), "srv:_ldap._tcp.example.com"]);
    config.change("/directory/servers", servers);
    config.change("/directory/resolver", "127.0.0.1:9");
    let authority = Authority::new("people");
    config.change("/tls/client_ca", authority.ca().display().to_string());
    config.change("/tls/crl", authority.revoke(&[], 2049).display().to_string());
    // No store is there.
    write_secret(&config.path("fleet.secret"), "A".repeat(64));
    config.change("/fleet", json!({"name": "mail", "store": "redis://127.0.0.1:9", "secret_file": "fleet.secret"}));
    ScriptedIssuer::start().configured(config)
}

/// What this one has no series or no value of: its directory shows no contextCSN, and its fleet has no store.
const WITHOUT_DATA: [&str; 2] = ["usher_directory_lag_seconds", "usher_directory_watch_last_confirmed"];

/// An usher and its first scrape.
fn first_scrape() -> (Usher, Exposition) {
    let usher = Usher::start(everything());
    let shown = Exposition::read(&usher.http("/metrics").1);
    (usher, shown)
}

/// The texts between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(Into::into).collect()
}

#[test]
fn metrics_page_documents_exactly_the_exported_metrics() {
    let (_usher, shown) = first_scrape();
    let page = read_text(&shipped("docs/metrics.md"));
    let mut described = BTreeMap::new(); // name -> type and labels
    let mut words: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new(); // metric and label -> values
    let mut subject = Vec::new();
    for line in page.lines() {
        if line.starts_with('#') {
            subject.clear();
            if let Some((label, metrics)) = line.strip_prefix("#### ").and_then(|title| title.split_once(" of ")) {
                let of_all = || {
                    shown
                        .0
                        .iter()
                        .filter(|(_, it)| it.labels.contains_key("protocol"))
                        .map(|(name, _)| name.clone())
                        .collect()
                };
                let metrics = if metrics == "all metrics" { of_all() } else { quoted(metrics) };
                subject = metrics.into_iter().map(|metric| (metric, quoted(label).concat())).collect();
            }
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<&str> = row.split(" | ").collect();
            if subject.is_empty() {
                let kind = cells[1].split(',').next().unwrap().to_owned();
                let labels: BTreeSet<String> = quoted(cells[2]).into_iter().collect();
                described.insert(cells[0].trim_matches('`').to_owned(), (kind, labels));
            }
            for place in &subject {
                words.entry(place.clone()).or_default().extend(quoted(&format!("`{}", cells[0])));
            }
        }
    }
    let mut reported = Vec::new();
    for (name, family) in &shown.0 {
        match described.remove(name) {
            None => reported.push(format!("{name} ({}) has no row", family.kind)),
            Some((kind, labels)) => {
                let exposed: BTreeSet<String> = family.labels.keys().cloned().collect();
                if (&kind, &labels) != (&family.kind, &exposed) {
                    reported.push(format!(
                        "{name} is a {} with labels {exposed:?}; its row says {kind}, {labels:?}",
                        family.kind
                    ));
                }
            }
        }
        for (label, exposed) in family.closed() {
            let listed = words.remove(&(name.clone(), label.clone())).unwrap_or_default();
            if listed != *exposed {
                let (more, less): (Vec<_>, Vec<_>) =
                    (exposed.difference(&listed).collect(), listed.difference(exposed).collect());
                reported.push(format!("`{label}` of `{name}`: not listed: {more:?}; listed and never there: {less:?}"));
            }
        }
    }
    reported.extend(described.keys().map(|name| format!("{name} has a row and is no metric")));
    reported.extend(
        words.keys().map(|(name, label)| format!("`{label}` of `{name}` is listed and there is no such label")),
    );
    assert!(
        reported.is_empty(),
        "docs/metrics.md differs from a running usher. A change that adds, renames or removes a metric, a label \
         or one of its label values changes that page in the same commit: a row for the metric (type, labels, meaning, what \
         to do when it moves), and a heading \"#### `label` of `metric`\" with a row for each value.\n{}",
        reported.join("\n")
    );
}

/// Each alert with its rule.
fn alerts() -> BTreeMap<String, Value> {
    let file = yaml("deploy/alerts.yaml");
    let groups = file["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap().clone());
    rules.map(|rule| (rule["alert"].as_str().unwrap().to_owned(), rule)).collect()
}

#[test]
fn alerts_query_existing_series_and_fire_only_when_expected() {
    let (_usher, shown) = first_scrape();
    let rules = alerts();
    for (name, rule) in &rules {
        assert_eq!(shown.missing(rule["expr"].as_str().unwrap()), [""; 0], "{name}");
    }
    let path = |name: &str| shipped(name).display().to_string();
    run("promtool", &["check", "rules", &path("deploy/alerts.yaml")], b"").succeeded();
    run("promtool", &["check", "config", &path("deploy/prometheus.yml")], b"").succeeded();
    run("promtool", &["test", "rules", &path("deploy/alerts.test.yaml")], b"").succeeded();
    // No rule is missing there.
    let file = yaml("deploy/alerts.test.yaml");
    let cases = file["tests"].as_array().unwrap().iter().flat_map(|test| test["alert_rule_test"].as_array().unwrap());
    let cases: BTreeSet<_> = cases
        .map(|case| (case["alertname"].as_str().unwrap(), !case["exp_alerts"].as_array().unwrap().is_empty()))
        .collect();
    for name in rules.keys() {
        for (fires, word) in [(true, "fires"), (false, "is quiet")] {
            assert!(cases.contains(&(name, fires)), "no case in deploy/alerts.test.yaml in which {name} {word}");
        }
    }
}

#[test]
fn alerts_link_to_their_runbook_rows() {
    let page = read_text(&shipped("docs/operations.md"));
    let rows = page.lines().filter_map(|line| line.strip_prefix("| <a id=\"")?.split_once("\"></a>"));
    let rows: BTreeMap<String, String> = rows
        .map(|(id, row)| {
            let mut cells = row.split(" | ");
            let (name, severity) = (cells.next().unwrap(), cells.next().unwrap());
            assert_eq!(cells.filter(|cell| cell.len() > 5).count(), 2, "{name}: what it means and what to do");
            (name.to_owned(), format!("{severity} docs/operations.md#{id}"))
        })
        .collect();
    let rules = alerts().into_iter().map(|(name, rule)| {
        let text = |pointer: &str| rule.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        assert!(!text("/annotations/summary").is_empty(), "{name}");
        assert!(text("/annotations/runbook").ends_with(&format!("#{}", name.to_lowercase())), "{name}");
        (name, format!("{} {}", text("/labels/severity"), text("/annotations/runbook")))
    });
    assert_eq!(rows, rules.collect(), "docs/operations.md (left) and deploy/alerts.yaml (right) name other alerts");
    // Every link leads to a row or to a section.
    let sections: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|title| title.to_lowercase().replace(' ', "-").replace(|letter| !is_of_an_anchor(letter), ""))
        .collect();
    let metrics = read_text(&shipped("docs/metrics.md"));
    for link in metrics.split("(operations.md#").skip(1) {
        let (anchor, _) = link.split_once(')').unwrap();
        let leads = rows.keys().any(|name| name.to_lowercase() == anchor) || sections.iter().any(|id| id == anchor);
        assert!(leads, "docs/metrics.md: neither an alert nor a section #{anchor}");
    }
}

/// The anchor of a heading, as repository hosts generate it.
fn is_of_an_anchor(letter: char) -> bool {
    letter.is_alphanumeric() || matches!(letter, '-' | '_')
}

/// Every query of the dashboard: of panels, annotations and variables, as they would be sent.
fn queries() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found
                    .extend(["expr", "definition"].iter().filter_map(|key| fields.get(*key)?.as_str()).map(Into::into));
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::from_str(&read_text(&shipped("deploy/grafana/usher.json"))).unwrap(), &mut found);
    found
}

#[test]
fn dashboard_queries_existing_series() {
    let (_usher, shown) = first_scrape();
    for query in queries() {
        assert_eq!(shown.missing(&query), [""; 0], "{query}");
    }
    let board: Value = serde_json::from_str(&read_text(&shipped("deploy/grafana/usher.json"))).unwrap();
    assert!(board["schemaVersion"].as_u64().unwrap() >= 39 && board["id"].is_null() && board["uid"] == "usher");
    let variables = board["templating"]["list"].as_array().unwrap();
    assert!(variables.iter().any(|it| it["name"] == "datasource" && it["type"] == "datasource"), "{variables:?}");
    let panels = board["panels"].as_array().unwrap();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels have one id: {panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        let free = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))).all(|place| places.insert(place));
        assert!(free, "it lies on another: {panel}");
        assert!(!panel["title"].as_str().unwrap().is_empty());
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
        }
    }
}

/// Each metric is shown, or the page says why not.
#[test]
fn every_metric_has_a_panel_or_a_reason() {
    let page = read_text(&shipped("docs/metrics.md"));
    let documented = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name));
    let metrics = documented.filter(|name| name.starts_with("usher_") || name.starts_with("process_"));
    let reasons = page.split("**The dashboard has a panel for each metric**").nth(1).unwrap();
    let reasons = quoted(reasons.split("\n\n").next().unwrap());
    let shown = queries().join(" ");
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let words: BTreeSet<&str> = shown.split(|letter| !is_word(letter)).collect();
    let (mut without, mut count) = (Vec::new(), 0);
    for name in metrics {
        count += 1;
        let has_panel = ["", "_bucket", "_count"].iter().any(|end| words.contains(format!("{name}{end}").as_str()));
        let has_reason = reasons.iter().any(|reason| reason == name);
        assert!(!(has_panel && has_reason), "{name} has a panel: docs/metrics.md says that it has none");
        if !has_panel && !has_reason {
            without.push(name);
        }
    }
    assert!(count > 70, "{count}");
    assert_eq!(without, [""; 0], "neither a panel in deploy/grafana/usher.json nor a reason in docs/metrics.md");
}

/// A real Prometheus with the shipped rules, which scrapes this usher.
struct Prometheus {
    _running: Running,
    port: u16,
}

impl Prometheus {
    fn start(usher: &Usher) -> Self {
        let (folder, port) = (folder("prometheus"), free_port());
        let path = |name: &str| folder.join(name).display().to_string();
        let shipped_config = read_text(&shipped("deploy/prometheus.yml"));
        let config = shipped_config.replace("127.0.0.1:9930", usher.side_port()).replace("15s", "1s");
        assert!(config.contains(usher.side_port()) && config.contains("scrape_interval: 1s"), "{config}");
        std::fs::write(path("prometheus.yml"), config).unwrap();
        std::fs::copy(shipped("deploy/alerts.yaml"), path("alerts.yaml")).unwrap();
        let options = [
            format!("--config.file={}", path("prometheus.yml")),
            format!("--storage.tsdb.path={}", path("data")),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let command = ["prometheus".to_owned()].into_iter().chain(options).collect();
        let log = Path::new(&path("log")).to_owned();
        let server = Server { command, environment: vec![], log: Some(log.clone()), end: "KILL" };
        let (running, _) = server.start();
        wait_for_port(port, &log);
        Self { _running: running, port }
    }

    /// Queries its API; returns `data` of the reply.
    fn ask(&self, path: &str) -> Value {
        let (status, body) = fetch(&format!("127.0.0.1:{}", self.port), &format!("/api/v1/{path}"));
        // While it starts it answers 503 with text.
        if status == 503 {
            return Value::Null;
        }
        let answer: Value =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {status} {error}: {body}"));
        assert_eq!(answer["status"], "success", "{path}: {body}");
        answer["data"].clone()
    }

    fn query(&self, query: &str) -> Value {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.ask(&format!("query?query={encoded}"))["result"].clone()
    }

    /// Queries until the reply matches.
    fn wait(&self, what: &str, ask: impl Fn(&Self) -> Value, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(40));
        loop {
            let answer = ask(self);
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{what}: never; the last answer was {answer}");
            // It scrapes once a second, without an event to wait for.
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn real_prometheus_scrapes_and_evaluates_every_dashboard_query() {
    let usher = Usher::start(everything());
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    usher.login("alice");
    let prometheus = Prometheus::start(&usher);
    let is_up = |data: &Value| data["activeTargets"][0]["health"] == "up";
    let targets = prometheus.wait("the target is up", |it| it.ask("targets"), is_up);
    assert_eq!(targets["activeTargets"][0]["labels"]["job"], "usher");
    let made = r#"usher_logins_total{job="usher",protocol="imap",result="ok"}"#;
    prometheus.wait("the login is counted", |it| it.query(made), |result| result[0]["value"][1] == "1");

    let groups = prometheus.ask("rules");
    let rules: Vec<&Value> =
        groups["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert_eq!(rules.len(), alerts().len());
    let evaluated = |data: &Value| {
        let groups = data["groups"].as_array().unwrap().iter();
        let mut rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
        rules.all(|rule| rule["health"] != "err")
    };
    prometheus.wait("no rule is in error", |it| it.ask("rules"), evaluated);

    for query in queries() {
        let fill = [("$__rate_interval", "1m"), ("$__interval", "1m"), ("$instance", ".*")];
        let query = fill.iter().fold(query, |query, (variable, value)| query.replace(variable, value));
        // Grafana's function `label_values`.
        if query.starts_with("label_values(") {
            continue;
        }
        prometheus.query(&query);
        // A panel that shows only what happens has data behind its filter.
        let unfiltered = query.trim_end_matches(" > 0");
        if !WITHOUT_DATA.iter().any(|metric| query.contains(metric)) {
            let has_data = |result: &Value| !result.as_array().is_none_or(Vec::is_empty);
            prometheus.wait(unfiltered, |it| it.query(unfiltered), has_data);
        }
    }
    assert_eq!(prometheus.query("usher_build_info")[0]["metric"]["version"], env!("CARGO_PKG_VERSION"));
}
