//! Every number that usher shows. Names, labels and meanings are in `declare`, closed sets of labels in `labels`.
//!
//! All series exist from the first scrape: labels are protocol names, configured backend and
//! server names and closed sets of words, never a user, a DN or an address. A reload adds the
//! series of new names by [`Metrics::know`]; old ones stay, as Prometheus expects of counters.

mod declare;
mod series;
mod servers;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Metric as _;
use prometheus::proto::Bucket;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

pub(crate) use self::declare::PHASE_BUCKETS;
use self::series::{CounterSeries, GaugeSeries, HistogramSeries};
pub(crate) use self::servers::ServerSeries;
use super::labels::{
    AuthHttpResult, BackendResult, CloseReason, ConnectionUse, DecisionBasis, Direction, DirectoryChange,
    DirectoryOperation, FleetRejection, FleetResult, HandshakeResult, IntrospectionResult, LoginPhase, PasswordWarning,
    ProbeResult, ProxyHeaderResult, ReloadResult, SessionEnd, SocketmapClosed, SocketmapMap, SocketmapResult,
    ThrottleEffect, ThrottleRecord,
};
use crate::base::labels::Label as _;
use crate::base::tasks::Task;
use crate::config::{Config, LimitRule, Mode};
use crate::outcome::Refusal;
use crate::proto::PROTOCOLS;

/// The result codes of RFC 4511 that have their own label, and labels for missing replies.
pub(crate) const DIRECTORY_CODES: [&str; 23] = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "8",
    "10",
    "13",
    "16",
    "19",
    "32",
    "34",
    "48",
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

/// Every metric of usher.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    scraping: Mutex<()>,
    /// How often each directory server is in use.
    servers: Mutex<HashMap<[Arc<str>; 2], usize>>,
    /// Login attempts answered: `result` is `ok` or the refusal's label.
    pub(crate) logins: IntCounterVec,
    /// Seconds per phase of a login.
    pub(crate) login_phase: HistogramSeries<LoginPhase>,
    /// Decisions by who made them.
    pub(crate) decisions: CounterSeries<DecisionBasis>,
    /// Relayed sessions now.
    pub(crate) sessions: IntGaugeVec,
    /// Relayed sessions ended, by cause.
    pub(crate) sessions_ended: CounterSeries<SessionEnd>,
    /// Client connections now, before and after login.
    pub(crate) connections: IntGauge,
    /// Client connections allowed.
    pub(crate) connections_limit: IntGauge,
    /// Bytes that the kernel holds for TCP connections, the machine's others included.
    pub(crate) kernel_tcp_memory: IntGauge,
    /// From where on it refuses more.
    pub(crate) kernel_tcp_memory_limit: IntGauge,
    /// Those of them that are not logged in.
    pub(crate) connections_unauthenticated: IntGauge,
    /// Client connections closed at accept because the limit was met.
    pub(crate) connections_refused: IntCounter,
    /// Bytes relayed after login, by direction (`in` from clients, `out` to clients).
    pub(crate) relayed_bytes: CounterSeries<Direction>,
    /// Users with a cached decision.
    pub(crate) cache_entries: IntGauge,
    /// Connections that ended before a login, by cause.
    pub(crate) prelogin_ended: CounterSeries<CloseReason>,
    /// Directory operations by server, operation and result code.
    pub(crate) directory_operations: IntCounterVec,
    /// Seconds per directory operation, answered or not.
    pub(crate) directory_seconds: HistogramVec,
    /// 0 while a server is marked down.
    pub(crate) directory_up: IntGaugeVec,
    /// 0 if a server did not show the canary when it was asked last.
    pub(crate) directory_canary_ok: IntGaugeVec,
    /// How far a server is behind the newest write that another has shown.
    pub(crate) directory_lag: GaugeVec,
    /// Connections to a server by what they are there for.
    pub(crate) directory_connections: GaugeSeries<ConnectionUse>,
    /// Requests that failed over to another server because this one gave no result.
    pub(crate) directory_failovers: IntCounterVec,
    /// Whether the last look-up of SRV records gave a list.
    pub(crate) directory_srv_resolved: IntGaugeVec,
    /// 0 if the service account's last bind was refused.
    pub(crate) directory_service_bind_ok: IntGaugeVec,
    /// 1 while change notification is active.
    pub(crate) directory_watch_connected: IntGaugeVec,
    /// Up to when that is known, in Unix seconds.
    pub(crate) directory_watch_last_confirmed: GaugeVec,
    /// Users whose change is held back by the brake.
    pub(crate) directory_brake: IntGaugeVec,
    /// Changes of known users, by what has changed.
    pub(crate) directory_changes: CounterSeries<DirectoryChange>,
    /// Successful binds with a warning: {warning}.
    pub(crate) directory_password_warnings: CounterSeries<PasswordWarning>,
    /// Logins at backends by result.
    pub(crate) backend_logins: CounterSeries<BackendResult>,
    /// Logins in progress at backends.
    pub(crate) backend_logins_in_flight: IntGaugeVec,
    /// Whether a backend has an address to which logins go.
    pub(crate) backend_up: IntGaugeVec,
    pub(crate) backend_accepts_logins: IntGaugeVec,
    /// Active traces of administrators.
    pub(crate) traces: IntGauge,
    /// Whether each backend is out of service because an administrator says so.
    pub(crate) backend_draining: IntGaugeVec,
    /// A backend's addresses by the state of their breakers.
    pub(crate) backend_addresses: IntGaugeVec,
    /// Probes of backends' addresses by result.
    pub(crate) backend_probes: CounterSeries<ProbeResult>,
    /// TLS handshakes with backends, by whether they resumed a session.
    pub(crate) backend_handshakes: IntCounterVec,
    /// Capabilities that single backends have beyond what all have.
    pub(crate) backend_capabilities_missing: IntGaugeVec,
    /// Changes of what a backend can do.
    pub(crate) backend_capability_changes: IntCounterVec,
    /// PROXY headers in front of clients' connections by what came of them.
    pub(crate) proxy_headers: CounterSeries<ProxyHeaderResult>,
    /// Questions of nginx by what became of them.
    pub(crate) auth_http_requests: CounterSeries<AuthHttpResult>,
    /// Questions of Postfix by map and answer.
    pub(crate) socketmap_requests: CounterSeries<SocketmapResult>,
    /// How long an answer to Postfix took.
    pub(crate) socketmap_seconds: Histogram,
    /// Connections of Postfix.
    pub(crate) socketmap_connections: IntGauge,
    /// Connections of Postfix that usher has closed, by reason.
    pub(crate) socketmap_closed: CounterSeries<SocketmapClosed>,
    /// The usable keys of a token issuer.
    pub(crate) token_keys: IntGaugeVec,
    /// 0 if the last fetch of an issuer's keys failed.
    pub(crate) token_keys_last_fetch_successful: IntGaugeVec,
    /// Questions about tokens to their issuer, by result.
    pub(crate) introspections: CounterSeries<IntrospectionResult>,
    /// Whether the fleet's store is in use; no series without a fleet.
    pub(crate) fleet_up: IntGaugeVec,
    /// Users that the brake of any node of the fleet holds back.
    pub(crate) fleet_brake: IntGaugeVec,
    /// Living members of the fleet.
    pub(crate) fleet_members: IntGaugeVec,
    /// By how much this machine's clock is ahead of the store's.
    pub(crate) fleet_clock_skew: GaugeVec,
    /// Members whose configuration differs.
    pub(crate) fleet_config_mismatch: IntGaugeVec,
    /// What logins have asked of the fleet's store, by result.
    pub(crate) fleet_commands: CounterSeries<FleetResult>,
    /// How long the store took.
    pub(crate) fleet_command_seconds: Histogram,
    /// Writes that nothing waits for, and messages, that were dropped.
    pub(crate) fleet_writes_dropped: IntCounter,
    /// What the store holds or sends and no member has written so, by reason.
    pub(crate) fleet_rejected: CounterSeries<FleetRejection>,
    /// TLS handshakes with clients by result.
    pub(crate) tls_handshakes: CounterSeries<HandshakeResult>,
    /// TLS handshakes with clients in progress.
    pub(crate) handshakes: IntGauge,
    /// What a rule of the throttle delayed or refused, or would have.
    throttled: IntCounterVec,
    /// What the throttle remembers now.
    pub(crate) throttle_entries: GaugeSeries<ThrottleRecord>,
    /// When each served certificate ends, in Unix seconds.
    pub(crate) certificate_expiry: GaugeVec,
    /// When the first list of each file of revocation lists becomes invalid, in Unix seconds.
    pub(crate) crl_next_update: GaugeVec,
    /// Changed files of the config in force, by what became of them.
    pub(crate) certificate_reloads: CounterSeries<ReloadResult>,
    /// 0 while files have changed in a way that was refused.
    pub(crate) certificate_last_reload_successful: IntGauge,
    /// 1 if the last reload (or the start) was taken over.
    pub(crate) config_last_reload_successful: IntGauge,
    /// When the config in force was taken over, in Unix seconds.
    pub(crate) config_last_reload_success_timestamp: Gauge,
    /// Log lines lost because the output was stuck.
    pub(crate) log_dropped: IntCounter,
    /// Panics caught: each is a defect to report.
    pub(crate) panics: IntCounter,
    /// Tasks of the process that were started again after a panic.
    pub(crate) task_restarts: IntCounterVec,
}

impl Metrics {
    fn know_constants(&self) {
        for protocol in PROTOCOLS {
            self.logins.with_label_values(&[protocol.name, "ok"]);
            for result in Refusal::LABELS {
                self.logins.with_label_values(&[protocol.name, result]);
            }
            self.login_phase.know_of(protocol.name);
            self.prelogin_ended.know_of(protocol.name);
            self.backend_capabilities_missing.with_label_values(&[protocol.name]);
            self.proxy_headers.know_of(protocol.name);
            self.tls_handshakes.know_of(protocol.name);
            self.relayed_bytes.know_of(protocol.name);
        }
        self.decisions.know();
        self.sessions_ended.know();
        for rule in LimitRule::ALL {
            let effects =
                ThrottleEffect::ALL.iter().filter(|effect| rule.delays() || **effect == ThrottleEffect::Refused);
            for (effect, mode) in effects.flat_map(|effect| Mode::ALL.iter().map(move |mode| (effect, mode))) {
                self.throttled(*rule, *effect, *mode);
            }
        }
        self.throttle_entries.know();
        self.certificate_reloads.know();
        for task in Task::ALL {
            self.task_restarts.with_label_values(&[task.label()]);
        }
        self.auth_http_requests.know();
        for map in SocketmapMap::ALL {
            self.socketmap_requests.know_of(map.label());
        }
        self.socketmap_closed.know();
        self.introspections.know();
        self.fleet_commands.know();
        self.fleet_rejected.know();
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
            self.backend_logins.know_of(&backend.name);
            self.backend_probes.know_of(&backend.name);
            self.backend_logins_in_flight.with_label_values(&[backend.name.as_str()]);
            for endpoint in &backend.endpoints {
                self.sessions.with_label_values(&[endpoint.protocol.name, backend.name.as_str()]);
            }
        }
        for directory in &config.directories {
            let name = directory.name.as_str();
            self.directory_password_warnings.know_of(name);
            self.directory_changes.know_of(name);
            self.directory_watch_connected.with_label_values(&[name]);
            self.directory_watch_last_confirmed.with_label_values(&[name]);
            self.directory_brake.with_label_values(&[name]);
        }
        self.connections_limit.set(i64::try_from(config.limits.connections).unwrap_or(i64::MAX));
    }

    /// How many phases of logins took up to each bound of [`PHASE_BUCKETS`], and how many in all, since the start.
    #[must_use]
    pub(crate) fn phase_counts(&self, phase: LoginPhase) -> [u64; PHASE_BUCKETS.len() + 1] {
        let mut counts = [0; _];
        for protocol in PROTOCOLS {
            let histogram = self.login_phase.at(protocol.name, phase).metric();
            let histogram = histogram.get_histogram();
            let each = histogram.get_bucket().iter().map(Bucket::cumulative_count);
            let each = each.chain([histogram.get_sample_count()]);
            counts.iter_mut().zip(each).for_each(|(count, one): (&mut u64, u64)| *count += one);
        }
        counts
    }

    /// The series of what a throttle rule does, or would do.
    pub(crate) fn throttled(&self, rule: LimitRule, effect: ThrottleEffect, mode: Mode) -> IntCounter {
        self.throttled.with_label_values(&[rule.label(), effect.label(), mode.label()])
    }

    /// Counts a directory operation under a code of the closed set.
    pub(crate) fn directory_operation(&self, [directory, server]: [&str; 2], operation: DirectoryOperation, code: u32) {
        let mut word = String::with_capacity(4);
        let _ = write!(word, "{code}");
        let known = DIRECTORY_CODES.contains(&word.as_str());
        let label = if known { word.as_str() } else { "other" };
        self.directory_operations.with_label_values(&[directory, server, operation.label(), label]).inc();
    }

    /// How many users' changes the brake of a directory holds back.
    #[must_use]
    pub(crate) fn brake(&self, directory: &str) -> i64 {
        self.directory_brake.with_label_values(&[directory]).get()
    }

    /// Removes what is true of a directory only while it is configured.
    pub(crate) fn forget_directory(&self, name: &str) {
        // There is no such series if it was never followed.
        let _ = self.directory_watch_connected.remove_label_values(&[name]);
        let _ = self.directory_watch_last_confirmed.remove_label_values(&[name]);
        let _ = self.directory_brake.remove_label_values(&[name]);
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
        self.directory_srv_resolved.reset();
        self.backend_up.reset();
        self.backend_accepts_logins.reset();
        self.token_keys.reset();
        self.token_keys_last_fetch_successful.reset();
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
        metrics.directory_operation(["default", "ldap://x"], DirectoryOperation::Bind, 49);
        metrics.directory_operation(["default", "ldap://x"], DirectoryOperation::Bind, 4_711);
        let text = metrics.render();
        assert!(text.contains("code=\"49\",directory=\"default\",operation=\"bind\",server=\"ldap://x\"} 1"));
        assert!(text.contains("code=\"other\",directory=\"default\",operation=\"bind\",server=\"ldap://x\"} 1"));
        assert!(!text.contains("4711"));
    }
}
