//! Every number that usher shows, declared once: name, labels, buckets, meaning.
//!
//! All series exist from the first scrape: labels are protocol names, configured backend and
//! server names and closed sets of words, never a user, a DN or an address. A reload adds the
//! series of new names by [`Metrics::know`]; old ones stay, as Prometheus expects of counters.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::base::tasks::Task;
use crate::config::{Config, Mode};
use crate::outcome::Refusal;
use crate::proto::PROTOCOLS;

/// The one directory, as the label `directory` names it.
pub(crate) const DIRECTORY: &str = "default";

/// Seconds: from half a millisecond (a cached decision) to the ten seconds a client is promised.
const PHASE_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The phases of a login, in order.
pub(crate) const PHASES: [&str; 5] = ["tls", "search", "bind", "backend_connect", "backend_login"];
/// Who decided a login.
pub(crate) const DECIDED_BY: [&str; 5] = ["directory", "cache", "negative", "stale", "default"];
/// How a login at a backend ended; the last four were not sent there.
pub(crate) const BACKEND_RESULTS: [&str; 10] = [
    "ok",
    "refused",
    "backend_rejected",
    "unreachable",
    "tls",
    "timeout",
    "down",
    "in_flight",
    "slow_start",
    "draining",
];
/// What a probe of a backend's address found.
pub(crate) const PROBE_RESULTS: [&str; 5] = ["ok", "refused", "unreachable", "tls", "timeout"];
/// What a connection to a listener with PROXY headers began with.
pub(crate) const PROXY_HEADERS: [&str; 9] =
    ["client", "local", "untrusted", "missing", "malformed", "too_long", "timeout", "closed", "limit"];
/// What became of a question of nginx.
pub(crate) const AUTH_HTTP: [&str; 9] =
    ["ok", "refused", "method", "malformed", "key", "untrusted", "limit", "timeout", "closed"];
/// How a TLS handshake with a client ended.
pub(crate) const HANDSHAKE_RESULTS: [&str; 4] = ["full", "resumed", "failed", "timeout"];
/// What became of files that were found changed.
pub(crate) const CERTIFICATE_RELOADS: [&str; 2] = ["ok", "refused"];
/// Why a relayed session ended.
pub(crate) const END_CAUSES: [&str; 16] = [
    "client_closed",
    "backend_closed",
    "client_error",
    "backend_error",
    "idle",
    "forbidden_command",
    "drain",
    "moved",
    "disabled",
    "expired",
    "deleted",
    "password_changed",
    "hold",
    "kicked",
    "backend_drained",
    "panic",
];
/// Why a connection ended before a login.
pub(crate) const PRELOGIN_CAUSES: [&str; 10] = [
    "handshake",
    "limit",
    "client_closed",
    "logout",
    "protocol_error",
    "failed_logins",
    "deadline",
    "draining",
    "unavailable",
    "panic",
];
/// The throttle's rules that delay or refuse, by their config keys.
pub(crate) const DELAY_RULES: [&str; 2] = ["failed_logins_per_prefix", "failed_logins_per_user"];
/// The throttle's rules that refuse, by their config keys.
pub(crate) const LIMIT_RULES: [&str; 6] = [
    "connections_per_prefix",
    "handshakes",
    "handshakes_per_prefix",
    "sessions_per_user",
    "sessions_per_user_and_prefix",
    "logins_per_second",
];
/// What the throttle remembers.
pub(crate) const THROTTLE_MEMORY: [&str; 4] = ["prefixes", "users", "names", "known_networks"];
/// What may change of a user in the directory.
pub(crate) const DIRECTORY_CHANGES: [&str; 12] = [
    "move",
    "login",
    "enable",
    "disable",
    "hold",
    "release",
    "password",
    "lockout",
    "rename",
    "delete",
    "other",
    "unexplained",
];
/// Directory operations.
pub(crate) const DIRECTORY_OPERATIONS: [&str; 5] = ["connect", "search", "bind", "service_bind", "read"];
/// What a connection to a directory server is there for: a bind later, a bind now, searches.
pub(crate) const DIRECTORY_CONNECTIONS: [&str; 3] = ["idle", "busy", "search"];
/// The result codes of RFC 4511 that have their own label, and labels for missing replies.
pub(crate) const DIRECTORY_CODES: [&str; 17] = [
    "0",
    "1",
    "2",
    "3",
    "10",
    "19",
    "32",
    "49",
    "50",
    "51",
    "52",
    "53",
    "80",
    "other",
    "timeout",
    "connection",
    "malformed",
];

/// What a directory may say of a password that it accepts.
pub(crate) const PASSWORD_WARNINGS: [&str; 2] = ["grace", "expiring"];

/// Every metric of usher.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    scraping: Mutex<()>,
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
    /// Bytes that the kernel holds for TCP connections, the machine's others included.
    pub kernel_tcp_memory: IntGauge,
    /// From where on it refuses more.
    pub kernel_tcp_memory_limit: IntGauge,
    /// Those of them that are not logged in.
    pub connections_unauthenticated: IntGauge,
    /// Client connections closed at accept because the limit was met.
    pub connections_refused: IntCounter,
    /// Bytes relayed after login, by direction (`in` from clients, `out` to clients).
    pub relayed_bytes: IntCounterVec,
    /// Users with a cached decision.
    pub cache_entries: IntGauge,
    /// Connections that ended before a login, by cause.
    pub prelogin_ended: IntCounterVec,
    /// Directory operations by server, operation and result code.
    pub directory_operations: IntCounterVec,
    /// Seconds per directory operation, answered or not.
    pub directory_seconds: HistogramVec,
    /// 0 while a server is marked down.
    pub directory_up: IntGaugeVec,
    /// 0 if a server did not show the canary when it was asked last.
    pub directory_canary_ok: IntGaugeVec,
    /// How far a server is behind the newest write that another has shown.
    pub directory_lag: GaugeVec,
    /// Connections to a server by what they are there for.
    pub directory_connections: IntGaugeVec,
    /// Questions that went on to another server because this one gave no verdict.
    pub directory_failovers: IntCounterVec,
    /// 0 if the service account's last bind was refused.
    pub directory_service_bind_ok: IntGaugeVec,
    /// 1 while change notification is active.
    pub directory_watch_connected: IntGauge,
    /// Up to when that is known, in Unix seconds.
    pub directory_watch_last_confirmed: Gauge,
    /// Users whose change is held back by the brake.
    pub directory_brake: IntGauge,
    /// Changes of known users, by what has changed.
    pub directory_changes: IntCounterVec,
    /// Good binds with a warning: {warning}.
    pub directory_password_warnings: IntCounterVec,
    /// Logins at backends by result.
    pub backend_logins: IntCounterVec,
    /// Logins under way at backends.
    pub backend_logins_in_flight: IntGaugeVec,
    /// Whether a backend has an address to which logins go.
    pub backend_up: IntGaugeVec,
    /// Whether each backend is out of service because an administrator says so.
    pub backend_draining: IntGaugeVec,
    /// A backend's addresses by the state of their breakers.
    pub backend_addresses: IntGaugeVec,
    /// Probes of backends' addresses by result.
    pub backend_probes: IntCounterVec,
    /// TLS handshakes with backends, by whether they resumed a session.
    pub backend_handshakes: IntCounterVec,
    /// Capabilities that single backends have beyond what all have.
    pub backend_capabilities_missing: IntGaugeVec,
    /// Changes of what a backend can do.
    pub backend_capability_changes: IntCounterVec,
    /// PROXY headers in front of clients' connections by what came of them.
    pub proxy_headers: IntCounterVec,
    /// Questions of nginx by what became of them.
    pub auth_http_requests: IntCounterVec,
    /// TLS handshakes with clients by result.
    pub tls_handshakes: IntCounterVec,
    /// TLS handshakes with clients under way.
    pub handshakes: IntGauge,
    /// What a rule of the throttle delayed or refused, or would have.
    pub throttled: IntCounterVec,
    /// What the throttle remembers now.
    pub throttle_entries: IntGaugeVec,
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
    /// Tasks of the process that were started again after a panic.
    pub task_restarts: IntCounterVec,
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
        // Metrics of the directory have the label `directory`, so that queries need no change when there are several.
        let opts = |name: &str, help: &str| {
            let opts = Opts::new(name, help);
            if name.starts_with("usher_directory_") { opts.const_label("directory", DIRECTORY) } else { opts }
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, declared(IntCounterVec::new(opts(name, help), labels)))
        };
        let counter = |name: &str, help: &str| register(&registry, declared(IntCounter::with_opts(opts(name, help))));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, declared(IntGaugeVec::new(opts(name, help), labels)))
        };
        let gauge = |name: &str, help: &str| register(&registry, declared(IntGauge::with_opts(opts(name, help))));

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
            kernel_tcp_memory: gauge(
                "usher_kernel_tcp_memory_bytes",
                "Memory that the kernel holds for all TCP connections of the machine.",
            ),
            kernel_tcp_memory_limit: gauge(
                "usher_kernel_tcp_memory_limit_bytes",
                "Memory that the kernel may hold for TCP connections (net.ipv4.tcp_mem).",
            ),
            connections_unauthenticated: gauge(
                "usher_connections_unauthenticated",
                "Client connections that are not logged in.",
            ),
            connections_refused: counter(
                "usher_connections_refused_total",
                "Client connections closed at accept because limits.connections or limits.unauthenticated was met.",
            ),
            relayed_bytes: counters(
                "usher_relayed_bytes_total",
                "Bytes relayed after login; in: from clients, out: to clients.",
                &["protocol", "direction"],
            ),
            cache_entries: gauge(
                "usher_cache_entries",
                "Users with a cached decision, older ones included that cache.stale keeps for an outage.",
            ),
            prelogin_ended: counters(
                "usher_prelogin_connections_ended_total",
                "Client connections that ended before a login, by cause.",
                &["protocol", "cause"],
            ),
            directory_operations: counters(
                "usher_directory_operations_total",
                "Directory operations, by server, operation and LDAP result code.",
                &["server", "operation", "code"],
            ),
            directory_watch_connected: gauge(
                "usher_directory_watch_connected",
                "1 while the directory is followed; 0 while changes are missed, or if it is not to be followed.",
            ),
            directory_watch_last_confirmed: register(
                &registry,
                declared(Gauge::with_opts(opts(
                    "usher_directory_watch_last_confirmed_timestamp_seconds",
                    "Up to when every change of the directory is known, Unix time; 0 before the first time.",
                ))),
            ),
            directory_brake: gauge(
                "usher_directory_brake",
                "Users whose change waits for `usher confirm`, because too many were changed at once; 0: off.",
            ),
            directory_changes: counters(
                "usher_directory_changes_total",
                "Changes of users that usher has to do with, by what has changed; one edit may be several.",
                &["kind"],
            ),
            directory_seconds: register(
                &registry,
                declared(HistogramVec::new(
                    HistogramOpts::new(
                        "usher_directory_operation_seconds",
                        "Time per directory operation, answered or not.",
                    )
                    .const_label("directory", DIRECTORY)
                    .buckets(PHASE_BUCKETS.to_vec()),
                    &["server", "operation"],
                )),
            ),
            directory_up: gauges(
                "usher_directory_up",
                "1 if the server answers, accepts the service account and shows the canary, else 0.",
                &["server"],
            ),
            directory_canary_ok: gauges(
                "usher_directory_canary_ok",
                "0 if the server did not show the canary when it was asked last, else 1.",
                &["server"],
            ),
            directory_lag: register(
                &registry,
                declared(GaugeVec::new(
                    opts(
                        "usher_directory_lag_seconds",
                        "How far the server was behind the newest write that another has shown, by contextCSN, at its last probe.",
                    ),
                    &["server"],
                )),
            ),
            directory_connections: gauges(
                "usher_directory_connections",
                "Connections to the server: waiting for a bind, binding, or for searches.",
                &["server", "state"],
            ),
            directory_failovers: counters(
                "usher_directory_failovers_total",
                "Questions that went on to another server because this one gave no verdict.",
                &["server"],
            ),
            directory_service_bind_ok: gauges(
                "usher_directory_service_bind_ok",
                "0 if the service account's last bind was refused, else 1.",
                &["server"],
            ),
            directory_password_warnings: counters(
                "usher_directory_password_warnings_total",
                "Good binds with a warning: a grace login with an expired password, or one that will expire.",
                &["warning"],
            ),
            backend_logins: counters(
                "usher_backend_logins_total",
                "Logins at backends after the directory said yes, by result; down, in_flight, slow_start, draining: not sent.",
                &["backend", "result"],
            ),
            backend_logins_in_flight: gauges(
                "usher_backend_logins_in_flight",
                "Logins under way at backends.",
                &["backend"],
            ),
            backend_up: gauges(
                "usher_backend_up",
                "1 if logins go to the backend, 0 if all of its addresses are down or its name leads nowhere.",
                &["backend", "protocol"],
            ),
            backend_draining: gauges(
                "usher_backend_draining",
                "1 while an administrator has taken the backend out of service (`usher backends drain`), else 0.",
                &["backend"],
            ),
            backend_addresses: gauges(
                "usher_backend_addresses",
                "Addresses of the backend now, by the state of their breakers.",
                &["backend", "protocol", "state"],
            ),
            backend_probes: counters(
                "usher_backend_probes_total",
                "Looks at a backend's address without a user, by result.",
                &["backend", "result"],
            ),
            backend_handshakes: counters(
                "usher_backend_handshakes_total",
                "TLS handshakes with the backend, probes included, by whether they resumed an earlier session.",
                &["backend", "protocol", "resumed"],
            ),
            backend_capabilities_missing: gauges(
                "usher_backend_capabilities_missing",
                "Capabilities that single backends have beyond what all have; clients are not promised them.",
                &["protocol"],
            ),
            backend_capability_changes: counters(
                "usher_backend_capability_changes_total",
                "Times that an address of the backend was found with other capabilities than before.",
                &["backend", "protocol"],
            ),
            proxy_headers: counters(
                "usher_proxy_headers_total",
                "Connections to listeners with PROXY headers, by what they began with; all but client and local were closed.",
                &["protocol", "result"],
            ),
            auth_http_requests: counters(
                "usher_auth_http_requests_total",
                "Connections to the auth_http listener, by result; all but ok, refused and method got no reply for a client.",
                &["result"],
            ),
            tls_handshakes: counters(
                "usher_tls_handshakes_total",
                "TLS handshakes with clients, by result; resumed: without a certificate.",
                &["protocol", "result"],
            ),
            handshakes: gauge("usher_tls_handshakes_in_progress", "TLS handshakes with clients under way."),
            throttled: counters(
                "usher_throttled_total",
                "What a rule of the throttle delayed or refused (mode enforce), or would have (mode dry_run).",
                &["rule", "effect", "mode"],
            ),
            throttle_entries: gauges("usher_throttle_entries", "What the throttle remembers now, by kind.", &["kind"]),
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
                "Times that certificates, keys (of tickets too), CAs or passwords of the config in force were found changed.",
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
            scraping: Mutex::default(),
            panics: counter("usher_panics_total", "Panics caught; each ended one session at most and is a defect."),
            task_restarts: counters(
                "usher_task_restarts_total",
                "Times that a task of the whole process was started again after a panic, by task; each is a defect.",
                &["task"],
            ),
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
            for cause in PRELOGIN_CAUSES {
                self.prelogin_ended.with_label_values(&[protocol.name, cause]);
            }
            self.backend_capabilities_missing.with_label_values(&[protocol.name]);
            for result in PROXY_HEADERS {
                self.proxy_headers.with_label_values(&[protocol.name, result]);
            }
            for result in HANDSHAKE_RESULTS {
                self.tls_handshakes.with_label_values(&[protocol.name, result]);
            }
            for direction in ["in", "out"] {
                self.relayed_bytes.with_label_values(&[protocol.name, direction]);
            }
        }
        for by in DECIDED_BY {
            self.decisions.with_label_values(&[by]);
        }
        for warning in PASSWORD_WARNINGS {
            self.directory_password_warnings.with_label_values(&[warning]);
        }
        for kind in DIRECTORY_CHANGES {
            self.directory_changes.with_label_values(&[kind]);
        }
        for cause in END_CAUSES {
            self.sessions_ended.with_label_values(&[cause]);
        }
        for mode in [Mode::Enforce, Mode::DryRun] {
            for rule in DELAY_RULES {
                self.throttled.with_label_values(&[rule, "delayed", mode.label()]);
            }
            for rule in DELAY_RULES.iter().chain(&LIMIT_RULES) {
                self.throttled.with_label_values(&[*rule, "refused", mode.label()]);
            }
        }
        for kind in THROTTLE_MEMORY {
            self.throttle_entries.with_label_values(&[kind]);
        }
        for result in CERTIFICATE_RELOADS {
            self.certificate_reloads.with_label_values(&[result]);
        }
        for task in Task::ALL {
            self.task_restarts.with_label_values(&[task.label()]);
        }
        for result in AUTH_HTTP {
            self.auth_http_requests.with_label_values(&[result]);
        }
    }

    /// Creates the series of the names in this configuration.
    pub fn know(&self, config: &Config) {
        for backend in &config.routing.backends {
            for endpoint in &backend.endpoints {
                let (name, protocol) = (backend.name.as_str(), endpoint.protocol.name);
                self.backend_capability_changes.with_label_values(&[name, protocol]);
                for resumed in ["yes", "no"] {
                    self.backend_handshakes.with_label_values(&[name, protocol, resumed]);
                }
            }
            for result in BACKEND_RESULTS {
                self.backend_logins.with_label_values(&[backend.name.as_str(), result]);
            }
            for result in PROBE_RESULTS {
                self.backend_probes.with_label_values(&[backend.name.as_str(), result]);
            }
            self.backend_logins_in_flight.with_label_values(&[backend.name.as_str()]);
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
            for operation in DIRECTORY_OPERATIONS {
                self.directory_seconds.with_label_values(&[server.url.as_str(), operation]);
            }
            self.directory_failovers.with_label_values(&[server.url.as_str()]);
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

    /// The text that Prometheus scrapes, after `refresh` has set the gauges that are known when
    /// they are asked for.
    #[must_use]
    pub fn scrape(&self, refresh: impl FnOnce(&Self)) -> String {
        self.measure(refresh, Self::render)
    }

    /// Whatever `read` makes of the metrics after `refresh`, as for a scrape.
    pub fn measure<T>(&self, refresh: impl FnOnce(&Self), read: impl FnOnce(&Self) -> T) -> T {
        // One at a time: what is set anew must not be missing from another's text.
        let _turn = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        // What a reload took away is neither up nor down.
        self.directory_up.reset();
        self.directory_canary_ok.reset();
        self.directory_lag.reset();
        self.directory_connections.reset();
        self.backend_up.reset();
        self.backend_draining.reset();
        self.backend_addresses.reset();
        refresh(self);
        read(self)
    }

    /// The text of what is set.
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
            "usher_tls_handshakes_total{protocol=\"pop3\",result=\"full\"} 0",
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
    fn unknown_result_codes_share_one_series() {
        let metrics = Metrics::new();
        metrics.directory_operation("ldap://x", "bind", 49);
        metrics.directory_operation("ldap://x", "bind", 4_711);
        let text = metrics.render();
        assert!(text.contains("code=\"49\",directory=\"default\",operation=\"bind\",server=\"ldap://x\"} 1"));
        assert!(text.contains("code=\"other\",directory=\"default\",operation=\"bind\",server=\"ldap://x\"} 1"));
        assert!(!text.contains("4711"));
    }
}
