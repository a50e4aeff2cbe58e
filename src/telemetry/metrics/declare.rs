//! The declaration of every metric: name, help, labels, buckets.

use std::sync::Mutex;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::Metrics;
use super::series::LabeledSeries;

/// Seconds: from half a millisecond (a cached decision) to the ten seconds within which a client has a reply.
pub(crate) const PHASE_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Seconds: from a store in the same rack to the longest that a login may wait for one.
const STORE_BUCKETS: &[f64] = &[0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];

/// A metric that is declared wrongly is a defect that the first test meets.
fn declared<T>(metric: prometheus::Result<T>) -> T {
    metric.expect("metric names and labels are constants that a test registers")
}

impl Metrics {
    /// Declares every metric and creates every series that is known without a configuration.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(name, help);
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
            login_phase: LabeledSeries::new(register(
                &registry,
                declared(HistogramVec::new(
                    HistogramOpts::new("usher_login_phase_seconds", "Time per phase of a login.")
                        .buckets(PHASE_BUCKETS.to_vec()),
                    &["protocol", "phase"],
                )),
            )),
            decisions: LabeledSeries::new(counters(
                "usher_decisions_total",
                "Login decisions, by what they were based on.",
                &["by"],
            )),
            sessions: gauges("usher_sessions", "Relayed sessions now.", &["protocol", "backend"]),
            sessions_ended: LabeledSeries::new(counters(
                "usher_sessions_ended_total",
                "Relayed sessions ended, by cause.",
                &["cause"],
            )),
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
                "Client connections closed at accept because limits.connections or limits.unauthenticated was reached.",
            ),
            relayed_bytes: LabeledSeries::new(counters(
                "usher_relayed_bytes_total",
                "Bytes relayed after login; in: from clients, out: to clients.",
                &["protocol", "direction"],
            )),
            cache_entries: gauge(
                "usher_cache_entries",
                "Users with a cached decision, older ones included that cache.stale keeps for an outage.",
            ),
            prelogin_ended: LabeledSeries::new(counters(
                "usher_prelogin_connections_ended_total",
                "Client connections that ended before a login, by cause.",
                &["protocol", "cause"],
            )),
            directory_operations: counters(
                "usher_directory_operations_total",
                "Directory operations, by server, operation and LDAP result code.",
                &["directory", "server", "operation", "code"],
            ),
            directory_watch_connected: gauges(
                "usher_directory_watch_connected",
                "1 while change notification is active; 0 while it is lost or off.",
                &["directory"],
            ),
            directory_watch_last_confirmed: register(
                &registry,
                declared(GaugeVec::new(
                    opts(
                        "usher_directory_watch_last_confirmed_timestamp_seconds",
                        "Time up to which all changes of the directory were received, Unix time; 0 before the first.",
                    ),
                    &["directory"],
                )),
            ),
            directory_brake: gauges(
                "usher_directory_brake",
                "Users whose change waits for `usher confirm`, because too many were changed at once; 0: off.",
                &["directory"],
            ),
            directory_changes: LabeledSeries::new(counters(
                "usher_directory_changes_total",
                "Changes of tracked entries, by what has changed; one modification may count as several.",
                &["directory", "kind"],
            )),
            directory_seconds: register(
                &registry,
                declared(HistogramVec::new(
                    HistogramOpts::new(
                        "usher_directory_operation_seconds",
                        "Time per directory operation, answered or not.",
                    )
                    .buckets(PHASE_BUCKETS.to_vec()),
                    &["directory", "server", "operation"],
                )),
            ),
            directory_up: gauges(
                "usher_directory_up",
                "1 if the server replies, accepts the service account and returns the canary, else 0.",
                &["directory", "server"],
            ),
            directory_canary_ok: gauges(
                "usher_directory_canary_ok",
                "0 if the server did not return the canary at its last probe, else 1.",
                &["directory", "server"],
            ),
            directory_lag: register(
                &registry,
                declared(GaugeVec::new(
                    opts(
                        "usher_directory_lag_seconds",
                        "How far the server was behind the newest write that another has shown, by contextCSN, at \
                         its last probe.",
                    ),
                    &["directory", "server"],
                )),
            ),
            directory_connections: LabeledSeries::new(gauges(
                "usher_directory_connections",
                "Connections to the server: waiting for a bind, binding, or for searches.",
                &["directory", "server", "state"],
            )),
            directory_failovers: counters(
                "usher_directory_failovers_total",
                "Requests that failed over to another server because this one gave no result.",
                &["directory", "server"],
            ),
            directory_srv_resolved: gauges(
                "usher_directory_srv_resolved",
                "1 if the last look-up of the SRV records gave a list of servers, else 0.",
                &["directory", "name"],
            ),
            directory_service_bind_ok: gauges(
                "usher_directory_service_bind_ok",
                "0 if the service account's last bind was refused, else 1.",
                &["directory", "server"],
            ),
            directory_password_warnings: LabeledSeries::new(counters(
                "usher_directory_password_warnings_total",
                "Successful binds with a warning: a grace login with an expired password, or one that will expire.",
                &["directory", "warning"],
            )),
            backend_logins: LabeledSeries::new(counters(
                "usher_backend_logins_total",
                "Logins at backends after the directory accepted the user, by result; down, in_flight, slow_start, \
                 draining: not sent.",
                &["backend", "result"],
            )),
            backend_logins_in_flight: gauges(
                "usher_backend_logins_in_flight",
                "Logins in progress at backends.",
                &["backend"],
            ),
            backend_up: gauges(
                "usher_backend_up",
                "1 if logins go to the backend, 0 if all of its addresses are down or its name cannot be resolved.",
                &["backend", "protocol"],
            ),
            backend_accepts_logins: gauges(
                "usher_backend_accepts_logins",
                "1 unless the backend refuses every login, or answers none, although it is reachable: its authentication is broken.",
                &["backend", "protocol"],
            ),
            traces: gauge("usher_traces", "Traces that administrators follow now (`usher trace`)."),
            backend_draining: gauges(
                "usher_backend_draining",
                "1 while an administrator has taken the backend out of service (`usher backends drain`), else 0.",
                &["backend"],
            ),
            backend_addresses: gauges(
                "usher_backend_addresses",
                "Addresses of the backend now, by health.",
                &["backend", "protocol", "state"],
            ),
            backend_probes: LabeledSeries::new(counters(
                "usher_backend_probes_total",
                "Probes of the backend's addresses, by result.",
                &["backend", "result"],
            )),
            backend_handshakes: counters(
                "usher_backend_handshakes_total",
                "TLS handshakes with the backend, probes included, by whether they resumed an earlier session.",
                &["backend", "protocol", "resumed"],
            ),
            backend_capabilities_missing: gauges(
                "usher_backend_capabilities_missing",
                "Capabilities that only some backends have; they are not advertised.",
                &["protocol"],
            ),
            backend_capability_changes: counters(
                "usher_backend_capability_changes_total",
                "Times that an address of the backend was found with other capabilities than before.",
                &["backend", "protocol"],
            ),
            proxy_headers: LabeledSeries::new(counters(
                "usher_proxy_headers_total",
                "Connections to listeners with PROXY headers, by what they began with; all but client and local were \
                 closed.",
                &["protocol", "result"],
            )),
            auth_http_requests: LabeledSeries::new(counters(
                "usher_auth_http_requests_total",
                "Connections to the auth_http listener, by result; all but ok, refused and method got no reply for a \
                 client.",
                &["result"],
            )),
            socketmap_requests: LabeledSeries::new(counters(
                "usher_socketmap_requests_total",
                "Questions of Postfix, by map and answer; temp: Postfix tries again later.",
                &["map", "result"],
            )),
            socketmap_seconds: register(
                &registry,
                declared(Histogram::with_opts(
                    HistogramOpts::new("usher_socketmap_seconds", "How long the answer to a question of Postfix took.")
                        .buckets(PHASE_BUCKETS.to_vec()),
                )),
            ),
            socketmap_connections: gauge("usher_socketmap_connections", "Connections of Postfix."),
            socketmap_closed: LabeledSeries::new(counters(
                "usher_socketmap_closed_total",
                "Connections to the socketmap listener that usher closed, by reason.",
                &["reason"],
            )),
            token_keys: gauges(
                "usher_token_keys",
                "Keys of the token issuer that signatures are verified by; 0: none of its tokens is accepted.",
                &["issuer"],
            ),
            token_keys_last_fetch_successful: gauges(
                "usher_token_keys_last_fetch_successful",
                "0 if the last fetch of the token issuer's keys failed, and the ones before stay in use; else 1.",
                &["issuer"],
            ),
            introspections: LabeledSeries::new(counters(
                "usher_token_introspections_total",
                "Questions about opaque tokens to their issuer, by result; busy: not sent, because too many were in \
                 progress.",
                &["result"],
            )),
            fleet_up: gauges(
                "usher_fleet_up",
                "1 while the fleet's store is in use, 0 while limits are local because it is unavailable; absent without \
                 a fleet.",
                &[],
            ),
            fleet_brake: gauges(
                "usher_fleet_brake",
                "Users whose changes the brakes of the fleet hold back, at any node; absent without a fleet.",
                &[],
            ),
            fleet_members: gauges(
                "usher_fleet_members",
                "Processes of the fleet that live, as of the last beat; absent without a fleet.",
                &[],
            ),
            fleet_clock_skew: register(
                &registry,
                declared(GaugeVec::new(
                    opts(
                        "usher_fleet_clock_skew_seconds",
                        "By how much the clock of this machine is ahead of the store's; absent without a fleet.",
                    ),
                    &[],
                )),
            ),
            fleet_config_mismatch: gauges(
                "usher_fleet_config_mismatch",
                "Members of the fleet with this version of usher and another configuration; absent without a fleet.",
                &[],
            ),
            fleet_commands: LabeledSeries::new(counters(
                "usher_fleet_commands_total",
                "What logins asked of the fleet's store, by result; after all but ok the local limit applied.",
                &["result"],
            )),
            fleet_command_seconds: register(
                &registry,
                declared(Histogram::with_opts(
                    HistogramOpts::new(
                        "usher_fleet_command_seconds",
                        "How long the fleet's store took to answer a login.",
                    )
                    .buckets(STORE_BUCKETS.to_vec()),
                )),
            ),
            fleet_writes_dropped: counter(
                "usher_fleet_writes_dropped_total",
                "Writes and messages to the fleet's store that were dropped: it was unavailable, or too many waited.",
            ),
            fleet_rejected: LabeledSeries::new(counters(
                "usher_fleet_rejected_total",
                "Messages, marks and records in the fleet's store that were dropped, by reason.",
                &["reason"],
            )),
            tls_handshakes: LabeledSeries::new(counters(
                "usher_tls_handshakes_total",
                "TLS handshakes with clients, by result; resumed: without a certificate.",
                &["protocol", "result"],
            )),
            handshakes: gauge("usher_tls_handshakes_in_progress", "TLS handshakes with clients in progress."),
            throttled: counters(
                "usher_throttled_total",
                "What a rule of the throttle delayed or refused (mode enforce), or would have (mode dry_run).",
                &["rule", "effect", "mode"],
            ),
            throttle_entries: LabeledSeries::new(gauges(
                "usher_throttle_entries",
                "Records of the throttle now, by kind.",
                &["kind"],
            )),
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
            crl_next_update: register(
                &registry,
                declared(GaugeVec::new(
                    Opts::new(
                        "usher_crl_next_update_timestamp_seconds",
                        "When the first list of each file of revocation lists becomes invalid (nextUpdate), Unix time.",
                    ),
                    &["crl"],
                )),
            ),
            certificate_reloads: LabeledSeries::new(counters(
                "usher_certificate_reloads_total",
                "Times that certificates, keys (of tickets too), CAs or passwords of the config in force were found \
                 changed.",
                &["result"],
            )),
            certificate_last_reload_successful: gauge(
                "usher_certificate_last_reload_successful",
                "0 while a changed certificate, key, CA or password file is refused and its old content stays in \
                 force.",
            ),
            config_last_reload_successful: gauge(
                "usher_config_last_reload_successful",
                "1 if the last reload, or the start, succeeded; 0 if the previous configuration stayed active.",
            ),
            config_last_reload_success_timestamp: register(
                &registry,
                declared(Gauge::new(
                    "usher_config_last_reload_success_timestamp_seconds",
                    "When the active configuration was loaded, Unix time.",
                )),
            ),
            log_dropped: counter("usher_log_dropped_total", "Log lines lost because the log's output was stuck."),
            scraping: Mutex::default(),
            servers: Mutex::default(),
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
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> C {
    declared(registry.register(Box::new(metric.clone())));
    metric
}
