//! Several ushers with one store: what an operator sees of it, and that no login depends on it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::process::{free_port, write_secret};
use crate::kit::redis::Redis;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher, password_of, shared};

/// 48 bytes in base64.
fn line(byte: u8) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode([byte; 48]) + "\n"
}

/// A member at this URL.
pub(crate) fn member(url: &str, node: &str) -> Config {
    with_store(Config::shared(), url, node)
}

/// The same with a store.
pub(crate) fn with_store(config: Config, url: &str, node: &str) -> Config {
    write_secret(&config.path("fleet.secret"), line(1));
    config.set("/fleet", json!({"name": "mail", "node": node, "store": url, "secret_file": "fleet.secret"}))
}

pub(crate) fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

fn up(usher: &Usher, value: f64) {
    usher.wait_metric("usher_fleet_up", &[], value);
}

fn login(usher: &Usher) {
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
}

#[test]
fn three_ushers_see_each_other_and_one_that_ends() {
    let store = Redis::start();
    let ushers = ["mx1", "mx2", "mx3"].map(|node| Usher::start(member(&url(store.port), node)));
    for usher in &ushers {
        usher.wait_metric("usher_fleet_members", &[], 3.0);
        up(usher, 1.0);
        usher.wait_metric("usher_fleet_config_mismatch", &[], 0.0);
        assert!(usher.metric("usher_fleet_clock_skew_seconds", &[]).abs() < 1.0);
    }
    let [one, two, three] = ushers;
    login(&one);
    three.terminate();
    assert_eq!(three.exit_code(), 0);
    let left = Instant::now();
    for usher in [&one, &two] {
        usher.wait_metric("usher_fleet_members", &[], 2.0);
    }
    assert!(left.elapsed() < Duration::from_secs(9), "it has said goodbye: {:?}", left.elapsed());
    let other = Usher::start(member(&url(store.port), "mx4").set("/limits/failed_logins", 7));
    other.wait_metric("usher_fleet_config_mismatch", &[], 2.0);
    one.wait_metric("usher_fleet_config_mismatch", &[], 1.0);
}

#[test]
fn store_is_used_only_under_a_verified_certificate() {
    let pair = &shared().ldap;
    let store = Redis::with_tls(&pair.chain, &pair.key, &shared().certificates.ca());
    let url = format!("rediss://localhost:{}", store.tls_port.unwrap());
    let sound = member(&url, "mx1").set("/fleet/ca", json!(shared().certificates.ca()));
    let usher = Usher::start(sound.clone());
    up(&usher, 1.0);
    let wrong = Usher::start(sound.set("/fleet/ca", json!(shared().certificates.wrong_ca())));
    let line = wrong.wait_log("no connection to the fleet's store", |_| true);
    assert!(line["error"].as_str().unwrap().starts_with("TLS: "), "{line}");
    up(&wrong, 0.0);
    assert_eq!(wrong.http("/ready").0, 200);
    login(&wrong);
    assert_eq!(usher.metric("usher_fleet_members", &[]), 1.0);
}

#[test]
fn secret_file_is_watched_and_a_changed_section_needs_a_restart() {
    let store = Redis::start();
    let config = member(&url(store.port), "mx1").set("/tls/reload_interval", "1s");
    let mut usher = Usher::start(config);
    let other = Usher::start(member(&url(store.port), "mx2"));
    usher.wait_metric("usher_fleet_members", &[], 2.0);
    let file = usher.config.path("fleet.secret");
    write_secret(&file, line(1) + &line(2));
    usher.wait_log("reloaded: changed files", |_| true);
    other.wait_metric("usher_fleet_members", &[], 2.0);
    write_secret(&file, "none\n");
    let report = usher.wait_log("a changed file is invalid; its previous content stays active", |_| true);
    assert!(report["problem"].as_str().unwrap().contains("fleet.secret_file"), "{report}");
    up(&usher, 1.0);
    write_secret(&file, line(1));
    usher.config.change("/fleet/timeout", "30ms");
    usher.config.write();
    let said = usher.command(&["reload"]);
    assert!(said.code != 0 && said.stderr.contains("fleet: this needs a restart"), "{}", said.stderr);
}

#[test]
fn check_says_what_is_wrong_with_the_store() {
    let store = Redis::with_users(&["user usher on >right ~usher:mail:* &usher:mail:* +@all -time"]);
    store.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let config =
        member(&url(store.port), "mx1").set("/fleet/user", "usher").set("/fleet/password_file", "store.password");
    let check = |password: &str| {
        write_secret(&config.path("store.password"), password);
        config.write();
        let said = command(&config, &["check", "--connect"], b"");
        (said.code, format!("{}{}", said.stdout, said.stderr))
    };
    let (code, text) = check("right\n");
    assert_ne!(code, 0, "{text}");
    for words in ["missing: +time", "maxmemory-policy allkeys-lru", "set maxmemory-policy noeviction", "answers in"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let (code, text) = check("wrong\n");
    assert!(code != 0 && text.contains("the store refuses user or password") && !text.contains("wrong\n"), "{text}");
    // By default its members talk at another port, 10,000 higher, which may be taken.
    let bus = free_port().to_string();
    let cluster = Redis::with(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    let config = member(&url(cluster.port), "mx1");
    config.write();
    let said = command(&config, &["check", "--connect"], b"");
    assert!(
        said.code != 0 && said.stdout.contains("the store is a cluster, which is not supported"),
        "{}",
        said.stdout
    );
}
