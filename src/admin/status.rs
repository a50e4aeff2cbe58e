//! The status page of the side port: a summary of the metrics for people.
//!
//! One page that needs nothing from elsewhere and works without its script, which only fetches it again.
//! It shows what the metrics know and names no user and no client. Nothing can be changed here.

mod history;
mod html;
mod latency;
mod outages;

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::overview::{self, Backend, Condition};
use super::rendering::RateLimitedText;
use crate::base::clock::unix_now;
use crate::base::labels::Label as _;
use crate::config;
use crate::directory::ResolvedName;
use crate::login::realms::RealmCore;
use crate::process::{Shared, Snapshot, Stage};
use crate::telemetry::labels::{ConnectionUse, SocketmapMap, SocketmapResult};
use crate::telemetry::metrics::Metrics;
use history::{History, PACE, SAMPLES, Sample};
use html::{Cell, Chart, Escaped, Mark, Table};
use outages::{Outage, Outages};

const STYLE: &str = include_str!("status/status.css");
const SCRIPT: &str = include_str!("status/status.js");
/// When a certificate's expiry is shown as a problem: two weeks ahead, as in `deploy/alerts.yaml`.
const EXPIRES_SOON: i64 = 14 * DAY;
const DAY: i64 = 86_400;

/// Exactly the style and the script above may act, and the page may be fetched again.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(digest(&SHA256, text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// What the page is made of.
pub(super) struct Status {
    shared: Arc<Shared>,
    started: Instant,
    history: Mutex<History>,
    outages: Outages,
}

impl Status {
    pub(super) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, started: Instant::now(), history: Mutex::default(), outages: Outages::default() })
    }

    /// Samples the counters periodically; never returns.
    pub(super) async fn keep(&self) {
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            drop(self.outages.now(&self.shared, &self.shared.snapshot.load()));
            let sample = Sample::take(&self.shared.metrics, self.shared.snapshot.load().backends.all());
            self.history.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        }
    }

    /// The page as of now.
    pub(super) fn measured(&self) -> String {
        let refresh = |metrics: &Metrics| super::refresh(&self.shared, metrics);
        self.shared.metrics.measure(refresh, |metrics| self.page(metrics))
    }

    /// The page as of now, after the gauges were set.
    fn page(&self, metrics: &Metrics) -> String {
        let snapshot = self.shared.snapshot.load();
        let now = Sample::take(metrics, snapshot.backends.all());
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let (lately, bars, latency) = (history.lately(&now), history.bars(&now), latency::charts(&history, &now));
        drop(history);
        let host = Escaped(&*snapshot.host);
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>usher on {host}</title>\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head>\n<body><main>\n"
        );
        let problems = self.problems(&snapshot);
        let (mark, stage) = self.stage();
        // The worst of what the page shows; while it does not serve, that.
        let worst = problems.first().filter(|_| mark == Mark::Good);
        let state = html::State(worst.map_or(mark, |worst| worst.mark), worst.map_or(stage, |worst| &worst.words));
        let (version, up) = (env!("CARGO_PKG_VERSION"), span(self.started.elapsed().as_secs()));
        let _ = writeln!(
            page,
            "<header><h1>usher on {host}</h1><p id=\"stage\">{state}</p></header>\n\
             <p class=\"quiet\">Version {version}, up for {up}. As of {} UTC.</p>",
            time_of_day(unix_now())
        );
        list(&problems, &mut page);
        let mut section = |title: &str, content: String| {
            let _ = writeln!(page, "<section><h2>{}</h2>{content}</section>", Escaped(title));
        };
        section("At a glance", tiles(&self.shared, metrics, &lately));
        section("Backends", backends(&self.shared, &lately));
        section("Directory servers", directory(&snapshot, metrics));
        section("Logins and refusals", charts(&bars));
        section("Time per phase of a login", latency);
        if snapshot.config.socketmap.is_some() {
            section("Postfix", postfix(metrics));
        }
        section("Limits", limits(&snapshot, metrics));
        section("Certificates", certificates(&snapshot, unix_now()));
        let _ = writeln!(
            page,
            "</main>\n<footer><span id=\"word\" role=\"status\">Reload the page to update it.</span> \
             <a href=\"/metrics\">All metrics</a></footer>\n<script>{SCRIPT}</script></body></html>"
        );
        page
    }

    fn stage(&self) -> (Mark, &'static str) {
        match *self.shared.stage.borrow() {
            Stage::Serving if self.shared.directory_answered.load(Ordering::Relaxed) => (Mark::Good, "serving"),
            Stage::Serving => (Mark::Attention, "waiting for the first reply of the directory"),
            Stage::Unready => (Mark::Attention, "serving; /ready replies 503"),
            Stage::Leaving => (Mark::Attention, "shutting down: still accepting"),
            Stage::Draining => (Mark::Attention, "shutting down: no new logins"),
        }
    }

    /// What is out of order: outages first, then what has no section of its own; the worst first.
    fn problems(&self, snapshot: &Snapshot) -> Vec<Outage> {
        let mut problems = self.outages.now(&self.shared, snapshot);
        problems.extend(self.concerns(snapshot));
        problems.sort_by_key(|problem| problem.mark != Mark::Bad);
        problems
    }

    /// Problems without a section of their own.
    fn concerns(&self, snapshot: &Snapshot) -> Vec<Outage> {
        let metrics = &self.shared.metrics;
        let directories = &snapshot.config.directories;
        let brake: i64 = directories.iter().map(|directory| metrics.brake(&directory.name)).sum();
        let is_lost = |directory: &config::Directory| {
            let connected = metrics.directory_watch_connected.with_label_values(&[&directory.name]).get();
            directory.is_followed() && connected == 0
        };
        let confirm = format!("the brake holds the changes of {brake} users until `usher confirm`");
        let names: Vec<_> = directories
            .iter()
            .filter(|one| is_lost(one) && one.is_one_of_several())
            .map(|one| one.name.as_str())
            .collect();
        let of = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        let lost = format!("LDAP change notification lost{of}; cached decisions may be as old as cache.ttl");
        let all = [
            (brake > 0, Mark::Bad, confirm.as_str()),
            (
                metrics.config_last_reload_successful.get() == 0,
                Mark::Bad,
                "the last reload failed; the previous configuration stays active",
            ),
            (
                metrics.certificate_last_reload_successful.get() == 0,
                Mark::Bad,
                "changed certificates, keys or password files are invalid; the previous ones stay active",
            ),
            (directories.iter().any(is_lost), Mark::Attention, lost.as_str()),
            (metrics.panics.get() > 0, Mark::Bad, "an internal error has occurred; please report it"),
            (metrics.log_dropped.get() > 0, Mark::Attention, "log lines were lost"),
        ];
        let own = all.iter().filter(|(is, ..)| *is);
        own.map(|(_, mark, words)| Outage { mark: *mark, words: (*words).to_owned(), advice: String::new() }).collect()
    }
}

/// The list at the head of the page.
fn list(problems: &[Outage], page: &mut String) {
    if problems.is_empty() {
        return;
    }
    page.push_str("<section><h2>Problems</h2><ul>");
    for Outage { mark, words, advice } in problems {
        let _ =
            write!(page, "<li>{} <span class=\"quiet\">{}</span></li>", html::State(*mark, words), Escaped(&**advice));
    }
    page.push_str("</ul></section>\n");
}

/// Answers with the page.
pub(super) async fn show(State(page): State<Arc<RateLimitedText>>) -> Response {
    let Some(page) = page.text().await else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, page).into_response()
}

fn tiles(shared: &Shared, metrics: &Metrics, lately: &history::Lately) -> String {
    let sessions = shared.registry.count() + shared.previous.sessions();
    let share =
        |share: Option<f64>| share.map_or_else(|| "–".to_owned(), |share| format!("{:.1}\u{a0}%", share * 100.0));
    let unavailable = |result: &str| {
        ["directory_unavailable", "deadline", "internal"].contains(&result) || result.starts_with("backend_")
    };
    let tiles = [
        ("Sessions", sessions.to_string()),
        ("Connections", metrics.connections.get().to_string()),
        ("Logins a minute", rate(lately.attempts_per_minute(|result| result == "ok"))),
        ("Refusals a minute", rate(lately.attempts_per_minute(|result| result != "ok"))),
        ("Temporary failures", share(lately.share(unavailable))),
        ("Cache hits", share(lately.cache_hits())),
    ];
    let mut text = "<dl class=\"tiles\">".to_owned();
    for (name, value) in tiles {
        let _ = write!(text, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    text += "</dl><p class=\"quiet\">Rates and shares of the last five minutes.";
    for process in shared.previous.all().iter() {
        let until = process.ends_at.map(|end| format!(" and closes them by {} UTC", time_of_day(end)));
        let (pid, sessions) = (process.pid, process.sessions);
        let _ = write!(
            text,
            " Process {pid}, from before an upgrade, has {sessions} of the sessions{}.",
            until.unwrap_or_default()
        );
    }
    let [held, locked, _] = shared.trackers.held_back().counts();
    let [.., limited] = shared.throttle.held_back.counts();
    if held + locked + limited > 0 {
        let _ = write!(
            text,
            " Held back now: {held} on hold, {locked} locked by the directory, {limited} users and networks by a limit \
             (<code>usher status</code> lists them)."
        );
    }
    text + "</p>"
}

fn backends(shared: &Shared, lately: &history::Lately) -> String {
    let row = |backend: &Backend| {
        let name = backend.state.name.as_str();
        let (mark, words) = standing(backend);
        let [good, bad] = lately.backend_per_minute(name).map_or([None, None], |rates| rates.map(Some));
        let sessions = backend.sessions.values().sum::<usize>() + shared.previous.sessions_at(name);
        let numbers = [sessions.to_string(), rate(good), rate(bad)].map(Cell::Number);
        (name.to_owned(), [Cell::State(mark, words)].into_iter().chain(numbers).collect())
    };
    Table {
        caption: "Mail servers; logins per minute",
        heads: &["Backend", "State", "Sessions", "Logins", "Failed"],
        rows: overview::backends(shared).iter().map(row).collect(),
    }
    .to_string()
}

/// The state of a backend: that of its worst protocol.
fn standing(backend: &Backend) -> (Mark, String) {
    let addresses = || backend.state.protocols.iter().flat_map(|one| &one.addresses);
    let lost: Vec<_> = addresses().filter_map(|address| address.down_seconds).collect();
    let since = lost.iter().max().map_or_else(String::new, |seconds| format!(" for {}", span(*seconds)));
    match backend.condition() {
        Condition::Draining => (Mark::Attention, "draining (administrator)".to_owned()),
        Condition::Down => (Mark::Bad, format!("down{since}")),
        Condition::PartlyDown => (Mark::Bad, format!("{} down{since}", backend.down().join(", "))),
        Condition::Refusing => {
            let (protocols, longest) = backend.refusing().unwrap_or_default();
            (Mark::Bad, format!("accepts no login ({}) for {}", protocols.join(", "), span(longest)))
        }
        Condition::Up if lost.is_empty() => (Mark::Good, "up".to_owned()),
        Condition::Up => (Mark::Attention, format!("{} of {} addresses down{since}", lost.len(), addresses().count())),
    }
}

fn directory(snapshot: &Snapshot, metrics: &Metrics) -> String {
    let row = |realm: &RealmCore, url: &str| {
        let labels = [realm.realm.name(), url];
        let is = |gauge: &prometheus::IntGaugeVec| gauge.with_label_values(&labels).get() != 0;
        let (mark, words) = match (is(&metrics.directory_up), is(&metrics.directory_service_bind_ok)) {
            (true, _) => (Mark::Good, "in use"),
            (false, false) => (Mark::Bad, "rejects the service account"),
            // The series is there only where a canary is looked for.
            (false, true) if realm.settings.canary.is_some() && !is(&metrics.directory_canary_ok) => {
                (Mark::Bad, "canary entry missing")
            }
            (false, true) => (Mark::Bad, "marked down"),
        };
        let connections =
            ConnectionUse::ALL.iter().map(|used| metrics.directory_connections.at_server(labels, *used).get());
        let numbers = [
            connections.sum::<i64>(),
            i64::try_from(metrics.directory_failovers.with_label_values(&labels).get()).unwrap_or(i64::MAX),
        ];
        let numbers = numbers.map(|number| number.to_string());
        let lag = realm
            .directory()
            .diagnose()
            .and_then(|diagnosis| diagnosis.lag(url))
            .map_or_else(|| "–".to_owned(), |lag| format!("{lag:.1}\u{a0}s"));
        let cells = numbers.into_iter().chain([lag]).map(Cell::Number);
        [Cell::State(mark, words.to_owned())].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let mut heads: &[&str] = &["Server", "State", "Connections", "Failovers", "Lag"];
    let (mut rows, mut ranks) = (Vec::new(), Vec::new());
    for realm in snapshot.realms.all() {
        let name = realm.setting(&snapshot.config.routing).shown.map_or_else(String::new, |name| format!("{name}: "));
        let listed = realm.directory().diagnose().map(|diagnosis| diagnosis.servers()).unwrap_or_default();
        for server in listed {
            rows.push((format!("{name}{}", server.url), row(realm, &server.url)));
            ranks.push(server.srv.as_ref().map(|srv| [srv.priority, srv.weight].map(|rank| rank.to_string())));
        }
        for known in realm.directory().resolved() {
            heads = &["Server", "State", "Connections", "Failovers", "Lag", "Priority", "Weight"];
            rows.push((format!("{name}{}", known.name), look_up(&known)));
            ranks.push(None);
        }
    }
    if heads.len() > 5 {
        for ((_, cells), ranks) in rows.iter_mut().zip(ranks) {
            cells.extend(ranks.unwrap_or_else(|| ["–", "–"].map(str::to_owned)).map(Cell::Number));
        }
    }
    Table {
        caption: "Current connections, requests since the start that failed over to another server, and replication \
                  lag",
        heads,
        rows,
    }
    .to_string()
}

/// A row about a name in DNS, but for its ranks.
fn look_up(known: &ResolvedName) -> Vec<Cell> {
    let (mark, words) = match &known.fault {
        Some(fault) if known.servers.as_ref().is_none_or(Vec::is_empty) => (Mark::Bad, fault.clone()),
        Some(fault) => (Mark::Attention, format!("{fault}; the last answer is used")),
        None => (Mark::Good, format!("{} listed", known.servers.as_ref().map_or(0, Vec::len))),
    };
    let nothing = std::iter::repeat_with(|| Cell::Number("–".to_owned())).take(3);
    [Cell::State(mark, words)].into_iter().chain(nothing).collect()
}

fn charts(bars: &[(&'static str, Vec<u64>)]) -> String {
    let counted = bars.iter().map(|(result, bars)| (*result, bars, bars.iter().sum::<u64>()));
    let (good, mut refused): (Vec<_>, Vec<_>) = counted.partition(|(result, ..)| *result == "ok");
    refused.retain(|(.., count)| *count > 0);
    refused.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
    let minutes = PACE.as_secs().saturating_mul(SAMPLES as u64) / 60;
    let nothing = if refused.is_empty() { " No refusals." } else { "" };
    let mut text = format!(
        "<p class=\"quiet\">The last {minutes} minutes, a bar for each {} seconds, now at the right.{nothing}</p>\
         <ul class=\"charts\">",
        PACE.as_secs()
    );
    for (result, bars, count) in good.into_iter().chain(refused) {
        let title = if result == "ok" { "logged in".to_owned() } else { result.replace('_', " ") };
        let most = bars.iter().max().copied().unwrap_or_default();
        let label = format!("{title}: {count} in {minutes} minutes, at most {most} in {} seconds", PACE.as_secs());
        let chart = Chart { label: &label, bars, front: &[], places: SAMPLES };
        let _ = write!(
            text,
            "<li><h3>{}: {count}</h3>{chart}<span class=\"quiet\">at most {most} in {} s</span></li>",
            Escaped(&title),
            PACE.as_secs()
        );
    }
    text + "</ul>"
}

fn limits(snapshot: &Snapshot, metrics: &Metrics) -> String {
    let config = &snapshot.config;
    let used = |used: i64, limit: u64| {
        let share = used as f64 / (limit.max(1)) as f64;
        let mark = if share > 0.9 {
            Mark::Bad
        } else if share > 0.7 {
            Mark::Attention
        } else {
            Mark::Good
        };
        let words = format!("{:.0}\u{a0}%", share * 100.0);
        vec![Cell::Number(used.to_string()), Cell::Number(limit.to_string()), Cell::State(mark, words)]
    };
    let handshakes = u64::from(config.throttle.handshakes.limit);
    let mut rows = vec![
        ("Connections".to_owned(), used(metrics.connections.get(), config.limits.connections as u64)),
        ("Handshakes in progress".to_owned(), used(metrics.handshakes.get(), handshakes)),
    ];
    for backend in snapshot.backends.all().iter().map(|backend| backend.status()) {
        let in_flight = i64::try_from(backend.logins_in_flight).unwrap_or(i64::MAX);
        rows.push((
            format!("Logins in progress at {}", backend.name),
            used(in_flight, backend.logins_in_flight_limit as u64),
        ));
    }
    if let Some(socketmap) = &config.socketmap {
        let connections = metrics.socketmap_connections.get();
        rows.push(("Connections of Postfix".to_owned(), used(connections, socketmap.max_connections as u64)));
    }
    // A cache may be full for good reasons.
    let capacity = [metrics.cache_entries.get().to_string(), config.cache.capacity.to_string()].map(Cell::Number);
    rows.push(("Users in the cache".to_owned(), capacity.into_iter().chain([Cell::Text(String::new())]).collect()));
    Table { caption: "Current use and limits", heads: &["What", "Now", "Limit", "Share"], rows }.to_string()
}

/// What Postfix was answered since the start.
fn postfix(metrics: &Metrics) -> String {
    let row = |map: SocketmapMap| {
        let answers =
            SocketmapResult::ALL.iter().map(|result| metrics.socketmap_requests.at(map.label(), *result).get());
        (map.label().to_owned(), answers.map(|number| Cell::Number(number.to_string())).collect())
    };
    let rows = vec![row(SocketmapMap::Transport), row(SocketmapMap::Recipient)];
    Table { caption: "Answers since the start", heads: &["Map", "Found", "Not found", "Deferred"], rows }.to_string()
}

fn certificates(snapshot: &Snapshot, now: u64) -> String {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let row = |served: &crate::tls::server::ServedCertificate| {
        let left = served.not_after.saturating_sub(now);
        let days = left.div_euclid(DAY);
        let (mark, words) = match left {
            ..0 => (Mark::Bad, "has expired".to_owned()),
            0..EXPIRES_SOON => (Mark::Attention, format!("{days} days left: renew it")),
            _ => (Mark::Good, format!("{days} days left")),
        };
        let names = served.names.join(", ");
        (names, vec![Cell::State(mark, words), Cell::Text(served.chain.display().to_string())])
    };
    Table {
        caption: "Presented to clients",
        heads: &["Names", "State", "File"],
        rows: snapshot.tls.certificates().iter().map(row).collect(),
    }
    .to_string()
}

/// A number of each minute.
fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "–".to_owned(),
        Some(rate) if rate == 0.0 || rate >= 10.0 => format!("{rate:.0}"),
        Some(rate) => format!("{rate:.1}"),
    }
}

/// A time in its two largest units.
fn span(seconds: u64) -> String {
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

fn time_of_day(unix: u64) -> String {
    let seconds = unix % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds % 3_600 / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_are_short() {
        let spans = [59, 60, 3_599, 3_660, 86_399, 90_000].map(span);
        assert_eq!(spans, ["59 s", "1 min", "59 min", "1 h 1 min", "23 h 59 min", "1 d 1 h"]);
        assert_eq!(time_of_day(1_795_715_738), "17:55:38");
        assert_eq!([None, Some(0.0), Some(0.25), Some(12.4)].map(rate), ["–", "0", "0.2", "12"]);
    }
}
