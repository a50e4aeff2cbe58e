//! A store with faults: logins are as fast as without a store, limits count locally, and each fault ends by itself.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::fleet::{url, with_store};
use crate::kit::process::write_secret;
use crate::kit::redis::{Redis, SlowWay};
use crate::kit::scripted::Scripted;
use crate::kit::{Config, Imap, Usher, password_of, slapd};

const HOME: [u8; 4] = [127, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 3];
/// 25 ms are promised.
const MORE: Duration = Duration::from_millis(75);
/// How many logins of each kind are timed.
const TIMES: usize = 5;

/// An usher with a store, and one without.
struct Trial {
    usher: Usher,
    plain: Usher,
    _server: Scripted,
    spellings: Cell<u32>,
}

impl Trial {
    fn start(store: &str, change: impl Fn(Config) -> Config) -> Self {
        let server = Scripted::accepting();
        let config = config(&server);
        let plain = Usher::start(config.clone());
        let usher = Usher::start(change(with_store(config, store, "mx1")));
        Self { usher, plain, _server: server, spellings: Cell::new(0) }
    }

    /// A spelling that no usher has met: its first login asks the directory.
    fn spelling(&self) -> String {
        let number = self.spellings.replace(self.spellings.get() + 1) + 1;
        assert!(number < 32, "all spellings are used");
        let spelled = "alice".char_indices().map(|(at, letter)| match number >> at & 1 {
            0 => letter,
            _ => letter.to_ascii_uppercase(),
        });
        spelled.collect()
    }

    /// Logins take no longer than those at an usher without a store, cached or not; the usher is ready.
    fn is_unaffected(&self) {
        let both = [&self.usher, &self.plain];
        for usher in both {
            log_in(usher, "alice");
        }
        for cached in [false, true] {
            let mut times = [(); 2].map(|()| Vec::new());
            for _ in 0..TIMES {
                let name = if cached { "alice".to_owned() } else { self.spelling() };
                for (usher, times) in both.iter().zip(&mut times) {
                    let before = by_directory(usher);
                    times.push(log_in(usher, &name));
                    assert_eq!(by_directory(usher) - before, f64::from(u8::from(!cached)), "{name}");
                }
            }
            let [here, without] = times.map(median);
            assert!(here < without + MORE, "cached: {cached}: {here:?}, and {without:?} without a store");
        }
        assert_eq!(self.usher.http("/ready").0, 200);
    }

    /// The store is in use, and nothing is reported.
    fn is_up(&self) {
        self.usher.wait_metric("usher_fleet_up", &[], 1.0);
        self.is_unaffected();
    }

    /// Logins go on without it. The metric is that of the alert.
    fn is_down(&self) {
        self.is_unaffected();
        self.usher.wait_metric("usher_fleet_up", &[], 0.0);
        self.is_unaffected();
    }
}

fn config(server: &Scripted) -> Config {
    let rule = json!({"mode": "enforce", "free_failures": 2, "first_delay": "100ms", "max_delay": "800ms"});
    Config::with_directory(slapd())
        .scripted(server)
        .set("/limits/failed_logins", 100)
        .set("/throttle/failed_logins_per_user", rule)
}

fn log_in(usher: &Usher, name: &str) -> Duration {
    let mut imap = Imap::tls_from(HOME, usher.imaps_port());
    let began = Instant::now();
    imap.login(name, &password_of("alice")).ok();
    began.elapsed()
}

fn by_directory(usher: &Usher) -> f64 {
    usher.metric("usher_decisions_total", &[("by", "directory")])
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn same(config: Config) -> Config {
    config
}

#[test]
fn stopped_store_delays_no_login_and_is_used_once_it_is_back() {
    let mut store = Redis::start();
    store.stop();
    // Start-up does not wait for it.
    let trial = Trial::start(&url(store.port), same);
    trial.is_down();
    store.start_again();
    trial.is_up();
    // Every script was loaded by then: a login sends none as a whole.
    let stats = store.command(&["INFO", "commandstats"]);
    let evalsha = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
    assert!(evalsha.contains("failed_calls=0") && !stats.contains("cmdstat_eval:"), "{stats}");
    store.stop();
    trial.is_down();
    trial.usher.wait_log("the fleet's store is unavailable; limits are local until it is back", |_| true);
    store.start_again();
    trial.usher.wait_metric("usher_fleet_up", &[], 1.0);
}

#[test]
fn frozen_store_delays_no_login() {
    let store = Redis::start();
    let trial = Trial::start(&url(store.port), same);
    trial.usher.wait_metric("usher_fleet_up", &[], 1.0);
    store.freeze();
    trial.is_down();
    store.thaw();
    trial.is_up();
}

#[test]
fn slow_store_delays_no_login() {
    let store = Redis::start();
    let way = SlowWay::to(store.port);
    let trial = Trial::start(&url(way.port), same);
    trial.usher.wait_metric("usher_fleet_up", &[], 1.0);
    // In time, just so.
    way.delay(Duration::from_millis(15));
    trial.is_unaffected();
    way.delay(Duration::from_millis(200));
    trial.is_down();
    way.delay(Duration::ZERO);
    trial.is_up();
}

#[test]
fn full_store_delays_no_login() {
    let store = Redis::start();
    let trial = Trial::start(&url(store.port), same);
    trial.usher.wait_metric("usher_fleet_up", &[], 1.0);
    store.command(&["CONFIG", "SET", "maxmemory", "1"]);
    trial.is_down();
    trial.usher.wait_log("the fleet's store is unavailable; limits are local until it is back", |line| {
        line["error"] == "the store's memory is full (maxmemory)"
    });
    store.command(&["CONFIG", "SET", "maxmemory", "0"]);
    trial.is_up();
}

#[test]
fn emptied_store_stays_in_use() {
    let store = Redis::start();
    let trial = Trial::start(&url(store.port), same);
    let other = Usher::start(with_store(trial.usher.config.clone(), &url(store.port), "mx2"));
    other.wait_metric("usher_fleet_members", &[], 2.0);
    trial.is_up();
    store.command(&["FLUSHALL"]);
    store.command(&["SCRIPT", "FLUSH"]);
    trial.is_unaffected();
    other.signal(Signal::KILL);
    // Whoever is there is counted from what was written since.
    trial.usher.wait_metric("usher_fleet_members", &[], 1.0);
    trial.is_up();
}

#[test]
fn store_that_refuses_the_password_delays_no_login() {
    let store = Redis::with_users(&["user usher on >right ~usher:mail:* &usher:mail:* +@all"]);
    let trial = Trial::start(&url(store.port), |config| {
        write_secret(&config.path("store.password"), "misplaced-secret\n");
        config.set("/fleet/user", "usher").set("/fleet/password_file", "store.password")
    });
    trial.is_down();
    let line = trial.usher.wait_log("no connection to the fleet's store", |_| true);
    assert_eq!(line["error"], "the store refuses user or password");
    store.command(&["ACL", "SETUSER", "usher", ">misplaced-secret"]);
    trial.is_up();
    // Its password is changed while it is in use.
    store.command(&["ACL", "SETUSER", "usher", "resetpass", ">right"]);
    store.command(&["CLIENT", "KILL", "USER", "usher"]);
    trial.is_down();
    store.command(&["ACL", "SETUSER", "usher", ">misplaced-secret"]);
    trial.usher.wait_metric("usher_fleet_up", &[], 1.0);
    assert!(!trial.usher.log_text().contains("misplaced-secret"));
}

#[test]
fn store_without_a_right_delays_no_login() {
    let store = Redis::with_users(&["user usher on >right ~usher:mail:* &usher:mail:* +@all"]);
    let trial = Trial::start(&url(store.port), |config| {
        write_secret(&config.path("store.password"), "right\n");
        config.set("/fleet/user", "usher").set("/fleet/password_file", "store.password")
    });
    trial.usher.wait_metric("usher_fleet_up", &[], 1.0);
    // What every beat needs, and what only the count of refused names does.
    for (rights, unknown) in [(["-eval", "-evalsha"], "one"), (["-zscore", "-zremrangebyrank"], "other")] {
        store.command(&[&["ACL", "SETUSER", "usher"], rights.as_slice()].concat());
        Imap::tls_from(ELSEWHERE, trial.usher.imaps_port()).login(unknown, "wrong").is("NO [AUTHENTICATIONFAILED]");
        trial.is_down();
        trial.usher.wait_log("the fleet's store is unavailable; limits are local until it is back", |line| {
            line["error"].as_str().is_some_and(|error| error.contains("lacks a right"))
        });
        store.command(&["ACL", "SETUSER", "usher", "+@all"]);
        trial.usher.wait_metric("usher_fleet_up", &[], 1.0);
        trial.is_up();
    }
}

#[test]
fn limits_count_locally_while_the_store_is_slow_or_full() {
    type Fault = fn(&Redis, &SlowWay, bool);
    let slow: Fault = |_, way, on| way.delay(Duration::from_millis(if on { 200 } else { 0 }));
    let full: Fault = |store, _, on| {
        store.command(&["CONFIG", "SET", "maxmemory", if on { "1" } else { "0" }]);
    };
    for fault in [slow, full] {
        let (store, server) = (Redis::start(), Scripted::accepting());
        let way = SlowWay::to(store.port);
        let limit = json!({"mode": "enforce", "limit": 2});
        let start = |node| {
            let config = config(&server).set("/throttle/sessions_per_user", limit.clone());
            Usher::start(with_store(config, &url(way.port), node))
        };
        let ushers = ["mx1", "mx2"].map(start);
        let guess = |usher: &Usher, nth: usize| {
            Imap::tls_from(ELSEWHERE, usher.imaps_port())
                .login("bob", &format!("{nth}"))
                .is("NO [AUTHENTICATIONFAILED]");
            usher.nth_login(nth, "bob")["delay_ms"].as_f64().unwrap_or(0.0)
        };
        for usher in &ushers {
            usher.wait_metric("usher_fleet_members", &[], 2.0);
            usher.wait_metric("usher_fleet_up", &[], 1.0);
        }
        assert_eq!((guess(&ushers[0], 1), guess(&ushers[0], 2)), (0.0, 0.0));
        fault(&store, &way, true);
        for usher in &ushers {
            usher.wait_metric("usher_fleet_up", &[], 0.0);
        }
        assert_eq!((guess(&ushers[0], 3), guess(&ushers[0], 4)), (100.0, 200.0), "it goes on from what it knows");
        assert_eq!([1, 2, 3].map(|nth| guess(&ushers[1], nth)), [0.0, 0.0, 100.0], "each counts alone");
        let mut sessions = Vec::new();
        for usher in &ushers {
            for expected in ["OK ", "OK ", "NO [LIMIT]"] {
                let mut imap = Imap::tls_from(HOME, usher.imaps_port());
                imap.login("alice", &password_of("alice")).is(expected);
                sessions.push(imap);
            }
        }
        fault(&store, &way, false);
        for usher in &ushers {
            usher.wait_metric("usher_fleet_up", &[], 1.0);
        }
    }
}
