//! Every number that usher shows, declared once: name, labels, buckets, meaning.
//!
//! All series exist from the first scrape: labels are protocol names, configured backend and
//! server names and closed sets of words, never a user, a DN or an address. A reload adds the
//! series of new names by [`Metrics::know`]; old ones stay, as Prometheus expects of counters.

use std::fmt::Write as _;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::config::Config;
use crate::outcome::Refusal;
use crate::proto::PROTOCOLS;

/// Seconds: from half a millisecond (a cached decision) to the ten seconds a client is promised.
const PHASE_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The phases of a login, in order.
pub const PHASES: [&str; 5] = ["tls", "search", "bind", "backend_connect", "backend_login"];
/// Who decided a login.
pub const DECIDED_BY: [&str; 5] = ["directory", "cache", "negative", "stale", "default"];
/// How a login at a backend ended.
pub const BACKEND_RESULTS: [&str; 6] = ["ok", "refused", "disagrees", "unreachable", "tls", "timeout"];
/// How a TLS handshake with a client ended.
pub const HANDSHAKE_RESULTS: [&str; 4] = ["full", "resumed", "failed", "timeout"];
/// What became of files that were found changed.
pub const CERTIFICATE_RELOADS: [&str; 2] = ["ok", "refused"];
/// Why a relayed session ended.
pub const END_CAUSES: [&str; 7] =
    ["client_closed", "backend_closed", "client_error", "backend_error", "idle", "drain", "panic"];
/// Why a connection ended before a login.
pub const CONVERSATION_CAUSES: [&str; 8] =
    ["handshake", "client_closed", "logout", "nonsense", "failed_logins", "deadline", "draining", "panic"];
/// Directory operations.
pub const DIRECTORY_OPERATIONS: [&str; 4] = ["connect", "search", "bind", "read"];
/// The result codes of RFC 4511 that are told apart, and words for what is no answer.
pub const DIRECTORY_CODES: [&str; 16] =
    ["0", "1", "2", "3", "10", "32", "49", "50", "51", "52", "53", "80", "other", "timeout", "connection", "malformed"];

/// Every metric of usher.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Login attempts answered: `result` is `ok` or the refusal's label.
    pub logins: IntCounterVec,
    /// Seconds per phase of a login.
    pub login_phase: HistogramVec,
    /// Decisions by who made them.
    pub decisions: IntCounterVec,
    /// Relayed sessions now.
    pub sessions: IntGaugeVec,
    /// Relayed sessions ended, by cause.
    pub sessions_ended: IntCounterVec,
    /// Client connections now, before and after login.
    pub connections: IntGauge,
    /// Client connections allowed.
    pub connections_limit: IntGauge,
    /// Client connections closed at accept because the limit was met.
    pub connections_refused: IntCounter,
    /// Bytes relayed after login, by direction (`in` from clients, `out` to clients).
    pub relayed_bytes: IntCounterVec,
    /// Users with a cached decision.
    pub cache_entries: IntGauge,
    /// Connections that ended before a login, by cause.
    pub conversations_ended: IntCounterVec,
    /// Directory operations by server, operation and result code.
    pub directory_operations: IntCounterVec,
    /// 0 if the service account's last bind was refused.
    pub directory_service_bind_ok: IntGaugeVec,
    /// Logins at backends by result.
    pub backend_logins: IntCounterVec,
    /// TLS handshakes with clients by result.
    pub tls_handshakes: IntCounterVec,
    /// When each served certificate ends, in Unix seconds.
    pub certificate_expiry: GaugeVec,
    /// Changed files of the config in force, by what became of them.
    pub certificate_reloads: IntCounterVec,
    /// 0 while files have changed in a way that was refused.
    pub certificate_last_reload_successful: IntGauge,
    /// 1 if the last reload (or the start) was taken over.
    pub config_last_reload_successful: IntGauge,
    /// When the config in force was taken over, in Unix seconds.
    pub config_last_reload_success_timestamp: Gauge,
    /// Log lines lost because the output was stuck.
    pub log_dropped: IntCounter,
    /// Panics caught: each is a defect to report.
    pub panics: IntCounter,
}

/// A metric that is declared wrongly is a defect that the first test meets.
fn declared<T>(metric: prometheus::Result<T>) -> T {
    metric.expect("metric names and labels are constants that a test registers")
}

impl Metrics {
    /// Declares every metric and creates every series that is known without a configuration.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, declared(IntCounterVec::new(Opts::new(name, help), labels)))
        };
        let counter = |name: &str, help: &str| register(&registry, declared(IntCounter::new(name, help)));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, declared(IntGaugeVec::new(Opts::new(name, help), labels)))
        };
        let gauge = |name: &str, help: &str| register(&registry, declared(IntGauge::new(name, help)));

        let build = gauges("usher_build_info", "Always 1; the version is a label.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            logins: counters(
                "usher_logins_total",
                "Login attempts answered, by result: ok or the reason of refusal.",
                &["protocol", "result"],
            ),
            login_phase: register(
                &registry,
                declared(HistogramVec::new(
                    HistogramOpts::new("usher_login_phase_seconds", "Time per phase of a login.")
                        .buckets(PHASE_BUCKETS.to_vec()),
                    &["protocol", "phase"],
                )),
            ),
            decisions: counters("usher_decisions_total", "Decisions, by who made them.", &["by"]),
            sessions: gauges("usher_sessions", "Relayed sessions now.", &["protocol", "backend"]),
            sessions_ended: counters("usher_sessions_ended_total", "Relayed sessions ended, by cause.", &["cause"]),
            connections: gauge("usher_connections", "Client connections now, before and after login."),
            connections_limit: gauge("usher_connections_limit", "Client connections allowed."),
            connections_refused: counter(
                "usher_connections_refused_total",
                "Client connections closed at accept because usher_connections_limit was met.",
            ),
            relayed_bytes: counters(
                "usher_relayed_bytes_total",
                "Bytes relayed after login; in: from clients, out: to clients.",
                &["protocol", "direction"],
            ),
            cache_entries: gauge("usher_cache_entries", "Users with a cached decision."),
            conversations_ended: counters(
                "usher_conversations_ended_total",
                "Client connections that ended before a login, by cause.",
                &["protocol", "cause"],
            ),
            directory_operations: counters(
                "usher_directory_operations_total",
                "Directory operations, by server, operation and LDAP result code.",
                &["server", "operation", "code"],
            ),
            directory_service_bind_ok: gauges(
                "usher_directory_service_bind_ok",
                "0 if the service account's last bind was refused, else 1.",
                &["server"],
            ),
            backend_logins: counters(
                "usher_backend_logins_total",
                "Logins at backends after the directory said yes, by result.",
                &["backend", "result"],
            ),
            tls_handshakes: counters("usher_tls_handshakes_total", "TLS handshakes with clients.", &["result"]),
            certificate_expiry: register(
                &registry,
                declared(GaugeVec::new(
                    Opts::new(
                        "usher_certificate_expiry_timestamp_seconds",
                        "When each served certificate ends, Unix time.",
                    ),
                    &["chain"],
                )),
            ),
            certificate_reloads: counters(
                "usher_certificate_reloads_total",
                "Times that certificates, keys, CAs or passwords of the config in force were found changed.",
                &["result"],
            ),
            certificate_last_reload_successful: gauge(
                "usher_certificate_last_reload_successful",
                "0 while a changed certificate, key, CA or password file is refused and its old content stays in force.",
            ),
            config_last_reload_successful: gauge(
                "usher_config_last_reload_successful",
                "1 if the last reload, or the start, was taken over; 0 if the old config stayed.",
            ),
            config_last_reload_success_timestamp: register(
                &registry,
                declared(Gauge::new(
                    "usher_config_last_reload_success_timestamp_seconds",
                    "When the config in force was taken over, Unix time.",
                )),
            ),
            log_dropped: counter("usher_log_dropped_total", "Log lines lost because the log's output was stuck."),
            panics: counter("usher_panics_total", "Panics caught; each ended one session at most and is a defect."),
            registry,
        };
        metrics.know_constants();
        #[cfg(target_os = "linux")]
        declared(metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self())));
        metrics
    }

    fn know_constants(&self) {
        for protocol in PROTOCOLS {
            self.logins.with_label_values(&[protocol.name, "ok"]);
            for result in Refusal::LABELS {
                self.logins.with_label_values(&[protocol.name, result]);
            }
            for phase in PHASES {
                self.login_phase.with_label_values(&[protocol.name, phase]);
            }
            for cause in CONVERSATION_CAUSES {
                self.conversations_ended.with_label_values(&[protocol.name, cause]);
            }
            for direction in ["in", "out"] {
                self.relayed_bytes.with_label_values(&[protocol.name, direction]);
            }
        }
        for by in DECIDED_BY {
            self.decisions.with_label_values(&[by]);
        }
        for cause in END_CAUSES {
            self.sessions_ended.with_label_values(&[cause]);
        }
        for result in CERTIFICATE_RELOADS {
            self.certificate_reloads.with_label_values(&[result]);
        }
        for result in HANDSHAKE_RESULTS {
            self.tls_handshakes.with_label_values(&[result]);
        }
    }

    /// Creates the series of the names in this configuration.
    pub fn know(&self, config: &Config) {
        for backend in &config.routing.backends {
            for result in BACKEND_RESULTS {
                self.backend_logins.with_label_values(&[backend.name.as_str(), result]);
            }
            for endpoint in &backend.endpoints {
                self.sessions.with_label_values(&[endpoint.protocol.name, backend.name.as_str()]);
            }
        }
        for server in &config.directory.servers {
            for operation in DIRECTORY_OPERATIONS {
                for code in DIRECTORY_CODES {
                    self.directory_operations.with_label_values(&[server.url.as_str(), operation, code]);
                }
            }
            // A standby that was never asked has refused nobody: an alert on 0 must not ring for it.
            self.directory_service_bind_ok.with_label_values(&[server.url.as_str()]).set(1);
        }
        self.connections_limit.set(i64::try_from(config.limits.connections).unwrap_or(i64::MAX));
    }

    /// Counts a directory operation under a code of the closed set.
    pub fn directory_operation(&self, server: &str, operation: &str, code: u32) {
        let mut word = String::with_capacity(4);
        let _ = write!(word, "{code}");
        let known = DIRECTORY_CODES.contains(&word.as_str());
        let label = if known { word.as_str() } else { "other" };
        self.directory_operations.with_label_values(&[server, operation, label]).inc();
    }

    /// The text that Prometheus scrapes.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // A failure to encode would be a metric without a name; what was encoded so far is served.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> C {
    declared(registry.register(Box::new(metric.clone())));
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_exists_before_the_first_event() {
        let text = Metrics::new().render();
        for needle in [
            "usher_logins_total{protocol=\"imap\",result=\"ok\"} 0",
            "usher_logins_total{protocol=\"imap\",result=\"wrong_password\"} 0",
            "usher_decisions_total{by=\"cache\"} 0",
            "usher_sessions_ended_total{cause=\"idle\"} 0",
            "usher_tls_handshakes_total{result=\"full\"} 0",
            "usher_login_phase_seconds_count{phase=\"bind\",protocol=\"imap\"} 0",
            "usher_relayed_bytes_total{direction=\"out\",protocol=\"imap\"} 0",
            "usher_certificate_reloads_total{result=\"refused\"} 0",
            "usher_panics_total 0",
            "usher_build_info{version=",
            "process_cpu_seconds_total",
        ] {
            assert!(text.contains(needle), "{needle} is missing in\n{text}");
        }
    }

    #[test]
    fn a_server_that_was_never_asked_rings_no_alert() {
        let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one', 'ldaps://two'], base: dc=x, filter: '(uid={login})'}
routing: {backends: [{name: server3, imap: {address: '192.0.2.3:993', tls: implicit}}]}
";
        let metrics = Metrics::new();
        metrics.know(&crate::config::parse(std::path::Path::new("/c.yaml"), text).unwrap());
        let text = metrics.render();
        assert!(text.contains("usher_directory_service_bind_ok{server=\"ldaps://two\"} 1"), "{text}");
    }

    #[test]
    fn unknown_result_codes_share_one_series() {
        let metrics = Metrics::new();
        metrics.directory_operation("ldap://x", "bind", 49);
        metrics.directory_operation("ldap://x", "bind", 4_711);
        let text = metrics.render();
        assert!(text.contains("code=\"49\",operation=\"bind\",server=\"ldap://x\"} 1"));
        assert!(text.contains("code=\"other\",operation=\"bind\",server=\"ldap://x\"} 1"));
        assert!(!text.contains("4711"));
    }
}
