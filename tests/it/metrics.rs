//! The side port: metrics, what they never contain, and readiness.

use crate::kit::scripted::Scripted;
use crate::kit::slapd::Slapd;
use crate::kit::{Config, Imap, Usher, password_of};

#[test]
fn every_series_exists_from_the_first_scrape() {
    let usher = Usher::start(Config::shared());
    let (_, body) = usher.http("/metrics");
    for name in [
        "usher_logins_total",
        "usher_login_phase_seconds",
        "usher_decisions_total",
        "usher_sessions",
        "usher_sessions_ended_total",
        "usher_connections",
        "usher_connections_limit",
        "usher_connections_refused_total",
        "usher_kernel_tcp_memory_bytes",
        "usher_kernel_tcp_memory_limit_bytes",
        "usher_relayed_bytes_total",
        "usher_cache_entries",
        "usher_directory_operations_total",
        "usher_directory_service_bind_ok",
        "usher_backend_logins_total",
        "usher_backend_logins_in_flight",
        "usher_backend_up",
        "usher_backend_accepts_logins",
        "usher_backend_addresses",
        "usher_backend_probes_total",
        "usher_backend_capabilities_missing",
        "usher_backend_capability_changes_total",
        "usher_backend_handshakes_total",
        "usher_tls_handshakes_total",
        "usher_tls_handshakes_in_progress",
        "usher_throttled_total",
        "usher_throttle_entries",
        "usher_certificate_expiry_timestamp_seconds",
        "usher_config_last_reload_successful",
        "usher_log_dropped_total",
        "usher_panics_total",
        "usher_build_info",
        "process_cpu_seconds_total",
    ] {
        assert!(body.contains(&format!("# HELP {name} ")), "no help for {name}:\n{body}");
        let series = |line: &str| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} "));
        let histogram = |line: &str| line.starts_with(&format!("{name}_count"));
        assert!(body.lines().any(|line| series(line) || histogram(line)), "no series of {name}:\n{body}");
    }
    for by in ["directory", "cache", "negative", "stale", "default"] {
        assert_eq!(usher.metric("usher_decisions_total", &[("by", by)]), 0.0);
    }
    for backend in ["server3", "server4"] {
        for result in
            ["ok", "refused", "backend_rejected", "unreachable", "tls", "timeout", "down", "in_flight", "slow_start"]
        {
            assert_eq!(usher.metric("usher_backend_logins_total", &[("backend", backend), ("result", result)]), 0.0);
        }
    }
}

#[test]
fn each_phase_of_a_login_is_timed() {
    let usher = Usher::start(Config::shared());
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let event = usher.login("alice");
    for phase in ["tls", "search", "bind", "backend_connect", "backend_login"] {
        assert_eq!(usher.metric("usher_login_phase_seconds_count", &[("phase", phase)]), 1.0, "{phase}");
        assert!(event[format!("{phase}_ms")].is_number(), "{phase}: {event}");
    }
}

#[test]
fn metrics_contain_no_user_name() {
    let usher = Usher::start(Config::shared());
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    Imap::tls(usher.imaps_port()).login("mallory-typed-this", "wrong").is("NO");
    let (_, body) = usher.http("/metrics");
    for word in ["alice", "mallory", "ou=people"] {
        assert!(!body.contains(word), "{word} in\n{body}");
    }
}

#[test]
fn readiness_waits_for_the_first_directory_reply_only() {
    let mut slapd = Slapd::private();
    slapd.stop();
    let usher = Usher::start_unready(Config::with_directory(&slapd).scripted(&Scripted::accepting()));
    assert_eq!(usher.http("/live").0, 200);
    assert_eq!(usher.http("/ready").0, 503);
    slapd.start_again();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while usher.http("/ready").0 != 200 {
        assert!(std::time::Instant::now() < deadline, "never ready");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    slapd.stop();
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    assert_eq!(usher.http("/ready").0, 200, "an outage does not unready every node at once");
}

#[test]
fn side_port_serves_nothing_else() {
    let usher = Usher::start(Config::shared());
    assert_eq!(usher.http("/nothing-here").0, 404);
    assert!(usher.side_port().starts_with("127.0.0.1:"), "{}", usher.side_port());
}
