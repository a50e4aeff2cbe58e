//! Limits: guessing is delayed, excess is refused with a clear reply, and other users are unaffected.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::{Config, Imap, PROMISED_SECOND, Usher, password_of};

/// Addresses in separate networks, as limits see them.
const HOME: [u8; 4] = [127, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 3];
const OFFICE: [u8; 4] = [127, 0, 0, 4];

/// Many attempts per connection, and a short cache: each attempt reaches the directory.
fn config() -> Config {
    let config = Config::shared().set("/limits/failed_logins", 100);
    config.set("/cache", json!({"ttl": "100ms", "negative_ttl": "100ms"}))
}

fn failed_logins(mode: &str, free_failures: u32) -> Value {
    json!({"mode": mode, "free_failures": free_failures, "first_delay": "100ms", "max_delay": "800ms"})
}

fn limit(limit: u32) -> Value {
    json!({"mode": "enforce", "limit": limit})
}

fn throttled(usher: &Usher, rule: &str, effect: &str, mode: &str) -> f64 {
    usher.metric("usher_throttled_total", &[("rule", rule), ("effect", effect), ("mode", mode)])
}

/// Waits until the cache has expired: the next login queries the directory.
fn expire_the_cache() {
    std::thread::sleep(Duration::from_millis(150)); // the lifetime of the cached entry
}

#[test]
fn guessing_delays_the_user_except_from_networks_with_earlier_logins() {
    let usher = Usher::start(config().set("/throttle/failed_logins_per_user", failed_logins("enforce", 2)));
    let alice = password_of("alice");
    Imap::tls_from(HOME, usher.imaps_port()).login("alice", &alice).ok();
    let mut guesser = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    for n in 0..5 {
        guesser.login("alice", &format!("guess {n}")).is("NO [AUTHENTICATIONFAILED]");
    }
    let events: Vec<Value> = (2..7).map(|n| usher.nth_login(n, "alice")).collect();
    let delays: Vec<_> = events.iter().map(|event| event["delay_ms"].as_f64()).collect();
    assert_eq!(delays, [None, None, Some(100.0), Some(200.0), Some(400.0)]);
    assert!(events[2..].iter().all(|event| event["limited_by"] == "failed_logins_per_user"), "{events:?}");
    assert_eq!(throttled(&usher, "failed_logins_per_user", "delayed", "enforce"), 3.0);

    // In a network with earlier logins the valid password is never delayed, cached or not.
    expire_the_cache();
    Imap::tls_from(HOME, usher.imaps_port()).login("alice", &alice).ok();
    let home = usher.nth_login(7, "alice");
    assert_eq!((home["by"].as_str(), home["delay_ms"].as_f64()), (Some("directory"), None), "{home}");
    // From elsewhere it is delayed like any attempt.
    expire_the_cache();
    Imap::tls_from(OFFICE, usher.imaps_port()).login("alice", &alice).ok();
    assert_eq!(usher.nth_login(8, "alice")["delay_ms"], 800.0);
    // Other users are not affected.
    guesser.login("bob", &password_of("bob")).ok();
    assert_eq!(usher.login("bob")["delay_ms"], Value::Null);
}

#[test]
fn many_connections_guess_no_faster_and_get_a_limit_reply() {
    let usher = Usher::start(config().set("/throttle/failed_logins_per_user", failed_logins("enforce", 1)));
    let mut guessers: Vec<Imap> = (0..12).map(|_| Imap::tls_from(ELSEWHERE, usher.imaps_port())).collect();
    for (n, guesser) in guessers.iter_mut().enumerate() {
        guesser.send(format!("a LOGIN alice guess{n}\r\n"));
    }
    let replies: Vec<String> = guessers.iter_mut().map(|guesser| guesser.reply("a").tagged).collect();
    let reported = |words: &str| replies.iter().filter(|reply| reply.starts_with(words)).count();
    // The first failure is free; the next wait 100, 300 and 700 ms; the others would wait too long.
    assert_eq!((reported("NO [AUTHENTICATIONFAILED]"), reported("NO [LIMIT]")), (4, 8), "{replies:?}");
    assert_eq!(throttled(&usher, "failed_logins_per_user", "refused", "enforce"), 8.0);
    assert_eq!(usher.metric("usher_logins_total", &[("result", "limit")]), 8.0);
    let refused = usher.wait_log("login", |line| line["result"] == "limit");
    assert_eq!(refused["limited_by"], "failed_logins_per_user", "{refused}");
    // The connection stays usable, refused or not.
    guessers[11].login("bob", &password_of("bob")).ok();
}

#[test]
fn other_spellings_of_a_name_share_its_limit() {
    let rule = json!({"mode": "enforce", "free_failures": 1, "first_delay": "4s", "max_delay": "4s"});
    let config = config().set("/throttle/failed_logins_per_user", rule).set("/directory/login_attribute", "uid");
    let usher = Usher::start(config);
    Imap::tls_from(ELSEWHERE, usher.imaps_port()).login("alice", "the free one").is("NO [AUTHENTICATIONFAILED]");
    // The password is not verified before the entry's delay has passed ..
    let mut imap = Imap::tls_from(HOME, usher.imaps_port());
    let reported = imap.login("a.liddell@example.com", &password_of("alice")).is("NO [AUTHENTICATIONFAILED]").tagged;
    assert_eq!(imap.login("alice@example.com", "wrong").tagged, reported);
    let refused = usher.nth_login(1, "a.liddell@example.com");
    assert_eq!((&refused["result"], &refused["limited_by"]), (&json!("limit"), &json!("failed_logins_per_user")));
    assert_eq!((&refused["by"], &refused["bind_ms"]), (&json!("usher"), &Value::Null), "{refused}");
    // .. and then it is, under another spelling too.
    std::thread::sleep(Duration::from_secs(4)); // the delay
    Imap::tls_from(HOME, usher.imaps_port()).login("a.liddell@example.com", &password_of("alice")).ok();
}

#[test]
fn repeated_wrong_password_delays_no_user() {
    let usher = Usher::start(config().set("/throttle/failed_logins_per_user", failed_logins("enforce", 2)));
    let mut phone = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    for _ in 0..6 {
        phone.login("alice", "last year's").is("NO [AUTHENTICATIONFAILED]");
        expire_the_cache();
    }
    phone.login("alice", &password_of("alice")).ok();
    assert_eq!(throttled(&usher, "failed_logins_per_user", "delayed", "enforce"), 0.0);
}

#[test]
fn right_cached_password_is_never_delayed() {
    let config = config().set("/throttle/failed_logins_per_user", failed_logins("enforce", 1));
    let usher = Usher::start(config.set("/cache", json!({"ttl": "5m"})));
    let mut guesser = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    for n in 0..5 {
        guesser.login("alice", &format!("guess {n}")).is("NO [AUTHENTICATIONFAILED]");
    }
    Imap::tls_from(OFFICE, usher.imaps_port()).login("alice", &password_of("alice")).ok();
    assert_eq!(usher.nth_login(6, "alice")["delay_ms"], 800.0, "not cached yet");
    for n in 0..4 {
        guesser.login("alice", &format!("more {n}")).is("NO");
    }
    for from in [HOME, OFFICE, ELSEWHERE] {
        let asked = Instant::now();
        Imap::tls_from(from, usher.imaps_port()).login("alice", &password_of("alice")).ok();
        assert!(asked.elapsed() < Duration::from_millis(700), "{:?}", asked.elapsed());
    }
    assert_eq!(usher.nth_login(11, "alice")["by"], "cache");
}

#[test]
fn network_is_delayed_for_every_name_except_in_a_dry_run() {
    for mode in ["dry_run", "enforce"] {
        let config = config().set("/throttle/failed_logins_per_prefix", failed_logins(mode, 2));
        let usher = Usher::start(config.set("/throttle/exempt", json!(["127.0.0.4"])));
        for from in [ELSEWHERE, OFFICE] {
            let mut guesser = Imap::tls_from(from, usher.imaps_port());
            for n in 0..4 {
                guesser.login(&format!("user{n}"), "spring").is("NO [AUTHENTICATIONFAILED]");
            }
        }
        assert_eq!(throttled(&usher, "failed_logins_per_prefix", "delayed", mode), 2.0, "the office is exempt");
        let slowed = usher.login("user3");
        assert_eq!(slowed["delay_ms"].as_f64(), (mode == "enforce").then_some(200.0), "{slowed}");
        let mut other = Imap::tls_from(HOME, usher.imaps_port());
        other.login("user9", "spring").is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(usher.login("user9")["delay_ms"], Value::Null);
    }
}

#[test]
fn spraying_names_is_delayed_except_for_users_known_there() {
    for mode in ["dry_run", "enforce"] {
        let rule = json!({"mode": mode, "names_per_minute": 3, "first_delay": "100ms", "max_delay": "800ms"});
        let config = config().set("/throttle/password_spraying", rule);
        let usher = Usher::start(config.set("/throttle/exempt", json!(["127.0.0.4"])));
        Imap::tls_from(ELSEWHERE, usher.imaps_port()).login("alice", &password_of("alice")).ok();
        for from in [ELSEWHERE, OFFICE] {
            let mut sprayer = Imap::tls_from(from, usher.imaps_port());
            // An existing name is one of them, and its reply and delay are those of the others.
            for name in ["user0", "bob", "user1", "user0", "user2", "user3"] {
                sprayer.login(name, &format!("spring of {name}")).is("NO [AUTHENTICATIONFAILED]");
            }
        }
        let delayed = |login: &str| {
            let event = usher.login(login);
            (event["limited_by"].as_str().map(str::to_owned), event["delay_ms"].as_f64())
        };
        let waits = |delay: f64| {
            let enforced = mode == "enforce";
            (enforced.then(|| "password_spraying".to_owned()), enforced.then_some(delay))
        };
        assert_eq!([delayed("bob"), delayed("user1")], [(None, None), (None, None)]);
        assert_eq!([delayed("user2"), delayed("user3")], [waits(100.0), waits(200.0)]);
        assert_eq!(throttled(&usher, "password_spraying", "delayed", mode), 2.0, "the office is exempt");
        let line = usher.wait_log("many names of one network refused within a minute", |_| true);
        assert_eq!((&line["client"], &line["mode"]), (&json!("127.0.0.3"), &json!(mode)), "{line}");
        // A user with an earlier login from there does not wait, with a typo or without, cached or not.
        expire_the_cache();
        let mut known = Imap::tls_from(ELSEWHERE, usher.imaps_port());
        known.login("alice", "a typo").is("NO [AUTHENTICATIONFAILED]");
        known.login("alice", &password_of("alice")).ok();
        let events = [usher.nth_login(2, "alice"), usher.nth_login(3, "alice")];
        assert!(events.iter().all(|event| event["delay_ms"].is_null()), "{events:?}");
    }
}

#[test]
fn connections_of_a_network_are_limited_without_a_reply() {
    let mut usher = Usher::start(config().set("/throttle/connections_per_prefix", limit(2)));
    let mut first = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    let second = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    assert_eq!(Imap::silent_from(ELSEWHERE, usher.imaps_port()).rest(), b"");
    assert_eq!(Imap::silent_from(ELSEWHERE, usher.imap_port()).rest(), b"", "all listeners together");
    assert_eq!(throttled(&usher, "connections_per_prefix", "refused", "enforce"), 2.0);
    assert_eq!(usher.metric("usher_prelogin_connections_ended_total", &[("cause", "limit")]), 2.0);
    let reported = usher.wait_log("login rate limit reached", |line| line["rule"] == "connections_per_prefix");
    assert_eq!(
        (reported["client"].as_str(), reported["mode"].as_str()),
        (Some("127.0.0.3"), Some("enforce")),
        "{reported}"
    );
    Imap::tls_from(HOME, usher.imaps_port()).login("bob", &password_of("bob")).ok();
    // An open session still counts, a closed one does not.
    first.login("alice", &password_of("alice")).ok();
    assert_eq!(Imap::silent_from(ELSEWHERE, usher.imaps_port()).rest(), b"");
    drop(second);
    usher.wait_metric("usher_connections", &[], 1.0);
    Imap::tls_from(ELSEWHERE, usher.imaps_port()).login("bob", &password_of("bob")).ok();
    // A reload raises the limit for new connections.
    usher.config.change("/throttle/connections_per_prefix", limit(9));
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    let more: Vec<Imap> = (0..4).map(|_| Imap::tls_from(ELSEWHERE, usher.imaps_port())).collect();
    drop((more, first));
}

#[test]
fn half_open_handshakes_are_limited_per_network_without_affecting_others() {
    let config = config().set("/throttle/handshakes_per_prefix", limit(3)).set("/throttle/handshakes", limit(5));
    let usher = Usher::start(config);
    let stuck: Vec<Imap> = (0..3).map(|_| Imap::silent_from(ELSEWHERE, usher.imaps_port())).collect();
    usher.wait_metric("usher_tls_handshakes_in_progress", &[], 3.0);
    assert_eq!(Imap::silent_from(ELSEWHERE, usher.imaps_port()).rest(), b"");
    assert_eq!(throttled(&usher, "handshakes_per_prefix", "refused", "enforce"), 1.0);
    let more: Vec<Imap> = (0..2).map(|_| Imap::silent_from(OFFICE, usher.imaps_port())).collect();
    usher.wait_metric("usher_tls_handshakes_in_progress", &[], 5.0);
    assert_eq!(Imap::silent_from(OFFICE, usher.imaps_port()).rest(), b"", "five are in progress");
    assert_eq!(throttled(&usher, "handshakes", "refused", "enforce"), 1.0);
    Imap::tls_from(HOME, usher.imaps_port()).login("alice", &password_of("alice")).ok();
    // STARTTLS handshakes count alike.
    let mut late = Imap::silent_from(ELSEWHERE, usher.imap_port());
    late.line();
    late.command("STARTTLS").ok();
    assert_eq!(late.rest(), b"");
    drop((stuck, more));
    usher.wait_metric("usher_tls_handshakes_in_progress", &[], 0.0);
    Imap::tls_from(ELSEWHERE, usher.imaps_port()).login("bob", &password_of("bob")).ok();
}

#[test]
fn sessions_of_a_user_are_limited_under_every_spelling() {
    let config = config()
        .set("/throttle/sessions_per_user", limit(3))
        .set("/throttle/sessions_per_user_and_prefix", limit(2))
        .set("/directory/login_attribute", "uid");
    let usher = Usher::start(config);
    let alice = password_of("alice");
    let sessions: Vec<Imap> = ["alice", "ALICE"]
        .map(|login| {
            let mut imap = Imap::tls_from(HOME, usher.imaps_port());
            imap.login(login, &alice).ok();
            imap
        })
        .into();
    let mut third = Imap::tls_from(HOME, usher.imaps_port());
    third.login("alice", &alice).is("NO [LIMIT]");
    assert_eq!(throttled(&usher, "sessions_per_user_and_prefix", "refused", "enforce"), 1.0);
    let mut office = Imap::tls_from(OFFICE, usher.imaps_port());
    office.login("alice", &alice).ok();
    let mut elsewhere = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    elsewhere.login("alice", &alice).is("NO [LIMIT]");
    assert_eq!(throttled(&usher, "sessions_per_user", "refused", "enforce"), 1.0);
    let refused = usher.wait_log("login", |line| line["limited_by"] == "sessions_per_user");
    assert_eq!((refused["result"].as_str(), refused["backend"].as_str()), (Some("limit"), None), "{refused}");
    third.login("bob", &password_of("bob")).ok();
    // When one session ends the next login succeeds, on the same connection.
    drop(sessions);
    usher.wait_metric("usher_sessions", &[("backend", "server3")], 1.0);
    elsewhere.login("alice", &alice).ok();
}

#[test]
fn login_rate_is_limited_and_guesses_do_not_consume_it() {
    let usher = Usher::start(config().set("/throttle/logins_per_second", limit(1)));
    let mut imap = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    for n in 0..3 {
        imap.login("alice", &format!("guess {n}")).is("NO [AUTHENTICATIONFAILED]");
    }
    let mut other = Imap::tls_from(HOME, usher.imaps_port());
    other.send(format!("a LOGIN alice {0}\r\nb LOGIN bob {1}\r\n", password_of("alice"), password_of("bob")));
    other.reply("a").ok();
    imap.login("bob", &password_of("bob")).is("NO [LIMIT]");
    assert_eq!(throttled(&usher, "logins_per_second", "refused", "enforce"), 1.0);
    std::thread::sleep(Duration::from_secs(1)); // the second of the limit
    imap.login("bob", &password_of("bob")).ok();
}

#[test]
fn valid_login_passes_a_guessing_flood() {
    let usher = Usher::start(Config::shared());
    let port = usher.imaps_port();
    Imap::tls_from(HOME, port).login("bob", &password_of("bob")).ok();
    let (end, ended) = (Instant::now() + Duration::from_secs(3), std::sync::atomic::AtomicU32::new(0));
    std::thread::scope(|scope| {
        for guesser in 0..10 {
            let ended = &ended;
            scope.spawn(move || {
                for n in 0.. {
                    if Instant::now() > end {
                        break;
                    }
                    let Ok(mut imap) = Imap::try_tls_from(ELSEWHERE, port) else { continue };
                    let _ = imap.try_send(format!("a LOGIN alice guess{guesser}-{n}\r\n"));
                    imap.line();
                    ended.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        while ended.load(std::sync::atomic::Ordering::Relaxed) < 10 {
            std::thread::sleep(Duration::from_millis(10));
        }
        for login in ["bob", "alice"] {
            // alice is the target of the guesses, and this is her first login.
            let limit = if login == "bob" { PROMISED_SECOND } else { Duration::from_secs(9) };
            let asked = Instant::now();
            let mut imap = Imap::tls_from(HOME, port);
            let reply = imap.login(login, &password_of(login)).tagged;
            assert!(asked.elapsed() < limit, "{login}: {:?}", asked.elapsed());
            assert!(reply.starts_with("OK") || login == "alice" && reply.starts_with("NO [LIMIT]"), "{reply}");
        }
        let asked = Instant::now();
        assert_eq!(usher.http("/live").0, 200);
        assert!(asked.elapsed() < PROMISED_SECOND, "the side port took {:?}", asked.elapsed());
    });
    assert!(throttled(&usher, "failed_logins_per_user", "refused", "enforce") > 0.0);
}
