//! Process-wide tasks that panic: each is restarted, counted and logged, and one that cannot be
//! restarted ends the process. An environment variable, ignored by release builds, triggers the panics.

use std::collections::BTreeSet;

use crate::kit::issuer::ScriptedIssuer;
use crate::kit::process::write_secret;
use crate::kit::redis::Redis;
use crate::kit::{Config, Imap, Usher, dovecot, password_of};

/// usher with tasks that panic this often.
fn panicking(config: Config, tasks: &[(&str, u32)]) -> Usher {
    let asked: Vec<String> = tasks.iter().map(|(task, times)| format!("{task}={times}")).collect();
    Usher::start_with(config, vec![("USHER_PANIC", asked.join(","))])
}

fn restarts(usher: &Usher, task: &str) -> f64 {
    usher.metric("usher_task_restarts_total", &[("task", task)])
}

/// All labels of the metric.
fn tasks(usher: &Usher) -> BTreeSet<String> {
    let series = usher.metrics().into_keys();
    let label =
        |name: String| Some(name.strip_prefix("usher_task_restarts_total{task=\"")?.split('"').next()?.to_owned());
    series.filter_map(label).collect()
}

/// Tasks that this test makes panic; the others do not run with this configuration.
const PANICKED: [&str; 23] = [
    "listener",
    "auth_http",
    "socketmap",
    "side_port",
    "control",
    "status_samples",
    "directory_await",
    "previous_sessions",
    "directory_watch",
    "session_closer",
    "backend_drain",
    "kick",
    "probes",
    "directory_probe",
    "backend_probe",
    "resolver",
    "token_keys",
    "fleet_brake",
    "fleet_link",
    "fleet_channel",
    "fleet_commands",
    "fleet_sessions",
    "fleet_writes",
];
/// A task that runs once there are unused connections.
const STARTED_BY_LOGIN: [&str; 1] = ["directory_sweep"];

#[test]
fn panicked_tasks_are_restarted_counted_and_logged_while_logins_succeed() {
    let (issuer, store) = (ScriptedIssuer::start(), Redis::start());
    let address = format!("redis://127.0.0.1:{}", store.port);
    let mut config = issuer
        .configured(Config::shared())
        .set("/directory/watch", "auto")
        .set("/fleet", serde_json::json!({"name": "mail", "store": address, "secret_file": "fleet.secret"}))
        .set("/auth_http", serde_json::json!({"address": "127.0.0.1:0", "allow": ["127.0.0.1"]}))
        .set("/socketmap", serde_json::json!({"address": "127.0.0.1:0", "domains": "example.com"}));
    write_secret(&config.path("fleet.secret"), "A".repeat(64));
    for backend in 0..2 {
        config.change(&format!("/routing/backends/{backend}/probe"), "greeting");
        config.change(&format!("/routing/backends/{backend}/delivery"), "lmtp:server.example.com");
    }
    // A name, for the resolver to look up.
    config.change("/routing/backends/0/imap/address", format!("localhost:{}", dovecot().imaps));
    let all: Vec<(&str, u32)> = PANICKED.iter().chain(&STARTED_BY_LOGIN).map(|task| (*task, 1)).collect();
    let usher = panicking(config, &all);
    for task in PANICKED {
        usher.wait_metric("usher_task_restarts_total", &[("task", task)], 1.0);
        let reported = |line: &serde_json::Value| line["task"] == task && line["level"] == "ERROR";
        let is_once = ["directory_probe", "backend_probe", "resolver", "token_keys"].contains(&task);
        let words = if is_once { "it runs again when it is due" } else { "restarting" };
        usher.wait_log(&format!("task panicked; {words}"), reported);
    }
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", &password_of("alice")).ok();
    usher.wait_metric("usher_directory_watch_connected", &[], 1.0);
    for task in STARTED_BY_LOGIN {
        usher.wait_metric("usher_task_restarts_total", &[("task", task)], 1.0);
    }
    assert_eq!(usher.http("/live").0, 200);
    assert_eq!(usher.http("/").0, 200);
    usher.command(&["sessions"]).succeeded();
    usher.command(&["backends", "drain", "server3", "--rate", "10"]).succeeded();
    // The restarted tasks close sessions.
    usher.wait_metric("usher_sessions", &[], 0.0);
    usher.command(&["backends", "undrain", "server3"]).succeeded();
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", &password_of("alice")).ok();
    usher.command(&["kick", "--user", "alice"]).succeeded();
    usher.wait_metric("usher_sessions", &[], 0.0);
    let killed: BTreeSet<String> = all.iter().map(|(task, _)| (*task).to_owned()).collect();
    assert_eq!(tasks(&usher), killed, "every task panics here");
    assert_eq!(restarts(&usher, "listener"), 1.0);
}

#[test]
fn failing_accept_loop_ends_the_process() {
    let usher = panicking(Config::shared(), &[("side_port", 1_000)]);
    usher.wait_log("task panicked repeatedly; giving up", |line| line["task"] == "side_port");
    assert_eq!(usher.exit_code(), 70);
}

#[test]
fn main_loop_panic_ends_the_process() {
    let usher = panicking(Config::shared(), &[("main", 1)]);
    assert_eq!(usher.exit_code(), 70);
    usher.wait_log("stopped", |_| true);
    assert!(!usher.config.path("control.sock").exists());
}
