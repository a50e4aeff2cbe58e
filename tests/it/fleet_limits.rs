//! Limits over three ushers with one store.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::redis::Redis;
use crate::kit::usher::Successor;
use crate::kit::{Config, Imap, Usher, password_of};

const HOME: [u8; 4] = [127, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 3];

/// An usher of the fleet `mail`.
fn usher(redis: &Redis, node: &str, change: impl Fn(Config) -> Config) -> Usher {
    let config = Config::shared().set("/limits/failed_logins", 100);
    config.file("fleet.secret", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3\n");
    let store = format!("redis://127.0.0.1:{}", redis.port);
    // A busy machine is no slow store.
    let fleet =
        json!({"name": "mail", "node": node, "store": store, "secret_file": "fleet.secret", "timeout": "500ms"});
    let usher = Usher::start(change(config.set("/fleet", fleet)));
    usher.wait_metric("usher_fleet_up", &[], 1.0);
    usher
}

fn three(redis: &Redis, change: impl Fn(Config) -> Config) -> Vec<Usher> {
    let ushers: Vec<_> = ["a", "b", "c"].map(|node| usher(redis, node, &change)).into();
    for usher in &ushers {
        usher.wait_metric("usher_fleet_members", &[], 3.0);
    }
    ushers
}

fn failed_logins(free_failures: u32) -> Value {
    json!({"mode": "enforce", "free_failures": free_failures, "first_delay": "100ms", "max_delay": "800ms"})
}

#[test]
fn guesses_over_three_ushers_are_delayed_as_at_one() {
    let redis = Redis::start();
    let ushers = three(&redis, |config| config.set("/throttle/failed_logins_per_user", failed_logins(2)));
    Imap::tls_from(HOME, ushers[0].imaps_port()).login("alice", &password_of("alice")).ok();
    let mut delays = Vec::new();
    for n in 0..7 {
        let at = &ushers[n % 3];
        let seen = at.logged().iter().filter(|line| line["message"] == "login" && line["login"] == "alice").count();
        Imap::tls_from(ELSEWHERE, at.imaps_port())
            .login("alice", &format!("guess {n}"))
            .is("NO [AUTHENTICATIONFAILED]");
        delays.push(at.nth_login(seen + 1, "alice")["delay_ms"].as_f64().unwrap_or(0.0));
    }
    assert_eq!(delays, [0.0, 0.0, 100.0, 200.0, 400.0, 800.0, 800.0]);
    // The network of the earlier login is known to an usher that has never seen it.
    Imap::tls_from(HOME, ushers[1].imaps_port()).login("alice", &password_of("alice")).ok();
    let home = ushers[1].wait_log("login", |line| line["login"] == "alice" && line["result"] == "ok");
    assert_eq!(home["delay_ms"], Value::Null, "{home}");
    assert!(!redis.content().contains("alice") && !redis.content().contains("127.0.0"));
}

fn log_in(usher: &Usher) -> (Imap, String) {
    let mut imap = Imap::tls_from(HOME, usher.imaps_port());
    let reply = imap.login("alice", &password_of("alice")).tagged;
    (imap, reply)
}

/// Logs in until the reply begins so: counts are written behind.
fn until(usher: &Usher, words: &str) -> Imap {
    let end = Instant::now() + Duration::from_secs(45);
    loop {
        let (imap, reply) = log_in(usher);
        if reply.starts_with(words) {
            return imap;
        }
        assert!(Instant::now() < end, "{reply}");
    }
}

fn at_most_three(config: Config) -> Config {
    config.set("/throttle/sessions_per_user", json!({"mode": "enforce", "limit": 3}))
}

#[test]
fn sessions_of_a_user_are_limited_over_three_ushers_and_end_with_their_process() {
    let redis = Redis::start();
    let mut ushers = three(&redis, at_most_three);
    let held: Vec<_> = ushers.iter().map(|usher| log_in(usher).0).collect();
    for usher in &ushers {
        until(usher, "NO [LIMIT]");
    }
    // The process is gone without a goodbye: its sessions end to count.
    let killed = ushers.remove(0);
    killed.signal(rustix::process::Signal::KILL);
    let gone = Instant::now();
    let _fourth = until(&ushers[0], "OK ");
    // 10 s are promised.
    assert!(gone.elapsed() < Duration::from_secs(30), "{:?}", gone.elapsed());
    drop(held);
}

#[test]
fn sessions_that_end_while_the_store_is_frozen_count_no_more() {
    let redis = Redis::start();
    let limit = json!({"mode": "enforce", "limit": 2});
    let ushers = three(&redis, |config| config.set("/throttle/sessions_per_user", limit.clone()));
    let held: Vec<_> = (0..2).map(|_| log_in(&ushers[0]).0).collect();
    until(&ushers[1], "NO [LIMIT]");
    redis.freeze();
    ushers[0].wait_metric("usher_fleet_up", &[], 0.0);
    drop(held);
    ushers[0].wait_metric("usher_sessions", &[], 0.0);
    redis.thaw();
    let _allowed = until(&ushers[1], "OK ");
}

#[test]
fn sessions_of_both_processes_of_an_upgrade_are_limited_together_with_those_of_others() {
    let redis = Redis::start();
    let ushers = three(&redis, |config| at_most_three(config).with_ports().0);
    let mut held = vec![log_in(&ushers[0]).0, log_in(&ushers[1]).0];
    ushers[0].command(&["upgrade"]).succeeded();
    let _successor = Successor::of(&ushers[0], 2);
    for usher in &ushers {
        usher.wait_metric("usher_fleet_members", &[], 4.0);
    }
    // One at the process from before the upgrade, one at its successor, one at another node.
    let (third, reply) = log_in(&ushers[0]);
    assert!(reply.starts_with("OK "), "{reply}");
    held.push(third);
    for usher in &ushers {
        until(usher, "NO [LIMIT]");
    }
    held[0].command("NOOP").ok();
    held.remove(0).command("LOGOUT").ok();
    assert_eq!(ushers[0].exit_code(), 0, "its last session has ended");
    let _again = until(&ushers[2], "OK ");
    for usher in &ushers {
        until(usher, "NO [LIMIT]");
    }
}

#[test]
fn store_that_is_gone_refuses_no_login() {
    let mut redis = Redis::start();
    let ushers = three(&redis, |config| config.set("/throttle/failed_logins_per_user", failed_logins(2)));
    redis.stop();
    for usher in &ushers {
        usher.wait_metric("usher_fleet_up", &[], 0.0);
        Imap::tls_from(HOME, usher.imaps_port()).login("alice", &password_of("alice")).ok();
        for n in 0..3 {
            Imap::tls_from(ELSEWHERE, usher.imaps_port()).login("bob", &format!("{n}")).is("NO [AUTHENTICATIONFAILED]");
        }
        assert_eq!(usher.nth_login(3, "bob")["delay_ms"], 100.0, "each counts alone");
    }
}
