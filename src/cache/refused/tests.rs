//! When a refused password is bound again, on a paused clock.

use std::sync::Arc;

use super::*;
use crate::base::credential::Credential;
use crate::cache::Cache;
use crate::config;
use crate::directory::Entry;

const DN: &str = "uid=alice,dc=example";
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// A server with a password policy of the draft, reduced to failure counting.
struct Server {
    cache: Cache,
    version: EntryVersion,
    /// The times of failures within the window.
    failures: Vec<Instant>,
    locked: Option<Instant>,
    window: Duration,
    lock: Duration,
    /// Changes whenever the entry is written.
    writes: u64,
    binds: usize,
    locks: usize,
}

impl Server {
    fn new(window: Duration, lock: Duration) -> Self {
        let settings = config::Cache {
            ttl: 5 * MINUTE,
            negative_ttl: MINUTE / 2,
            negative_ttl_max: 15 * MINUTE,
            stale: HOUR,
            capacity: 100,
        };
        let version = EntryVersion { revision: Some("0".into()), ..EntryVersion::default() };
        Self {
            cache: Cache::new(&settings),
            version,
            failures: Vec::new(),
            locked: None,
            window,
            lock,
            writes: 0,
            binds: 0,
            locks: 0,
        }
    }

    fn written(&mut self) {
        self.writes += 1;
        self.version.revision = Some(self.writes.to_string().into());
        self.version.failures = (!self.failures.is_empty()).then_some(self.writes);
        self.version.login_activity = self.writes;
        self.version.locked = self.locked.is_some();
        self.version.lockout = self.locked.map_or(0, |_| self.writes);
        self.version.has_policy_attributes = self.version.failures.is_some() || self.version.locked;
    }

    /// A wrong bind, as slapd counts it. Returns whether a lock hid it.
    fn fails(&mut self) -> bool {
        self.binds += 1;
        if self.locked.is_some_and(|since| since.elapsed() < self.lock) {
            return true;
        }
        self.locked = None;
        let window = self.window;
        self.failures.retain(|at| at.elapsed() < window);
        self.failures.push(Instant::now());
        if self.failures.len() >= 5 {
            self.locked = Some(Instant::now());
            self.locks += 1;
        }
        self.written();
        false
    }

    /// A bind of the user with the valid password.
    fn succeeds(&mut self) {
        if self.locked.is_none_or(|since| since.elapsed() >= self.lock) {
            self.locked = None;
            self.failures.clear();
            self.written();
        }
    }

    fn entry(&self) -> Entry {
        Entry { version: self.version.clone(), ..Entry::for_tests(DN, &["server3"]) }
    }

    /// An attempt of a device with a wrong password. Returns whether it was bound.
    fn asks(&mut self, password: &str) -> bool {
        let credential = Credential::for_tests("alice", password);
        if matches!(self.cache.lookup(&credential), crate::cache::CacheAnswer::Wrong(_)) {
            return false;
        }
        let seen = self.entry();
        if self.cache.refused_before(&credential, &seen) {
            return false;
        }
        let since = self.cache.stamp();
        self.fails();
        // A server that does not report locks: its refusals are not cached while one is visible.
        if !seen.version.locked {
            self.cache.wrong(&credential, &Arc::from(DN), &seen.version, since);
        }
        true
    }
}

#[tokio::test(start_paused = true)]
async fn device_with_an_old_password_never_locks_for_any_window() {
    for window in [5 * MINUTE, 15 * MINUTE, HOUR] {
        for good_logins in [false, true] {
            let mut server = Server::new(window, 5 * MINUTE);
            for minute in 0..24 * 60 {
                server.asks("old");
                if good_logins && minute % 7 == 3 {
                    server.succeeds();
                }
                tokio::time::advance(MINUTE).await;
            }
            assert_eq!(server.locks, 0, "{window:?}, {} binds", server.binds);
            assert!(server.binds <= 4, "{} binds with good logins: {good_logins}", server.binds);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn temporary_lock_revives_no_old_password() {
    let mut server = Server::new(HOUR, 5 * MINUTE);
    server.asks("old");
    tokio::time::advance(MINUTE).await;
    assert!(!server.asks("old"), "seen with a failure and no lock");
    // An attacker locks the account through another service. After the lock, one failure would lock again.
    for _ in 0..4 {
        server.fails();
    }
    assert_eq!(server.locks, 1);
    for _ in 0..60 {
        assert!(!server.asks("old"));
        tokio::time::advance(MINUTE).await;
    }
    assert_eq!(server.locks, 1);
}

#[tokio::test(start_paused = true)]
async fn password_refused_during_a_lock_is_verified_once_more_without_prolonging_the_lock() {
    let mut server = Server::new(HOUR, 5 * MINUTE);
    for _ in 0..4 {
        server.fails();
    }
    assert!(server.asks("old"), "the fifth failure, which locks");
    let mut bound = 0;
    for minute in 0..3 * 60 {
        tokio::time::advance(MINUTE).await;
        bound += u32::from(server.asks("old"));
        // The user can log in again when the lock is over.
        if minute == 10 {
            server.succeeds();
        }
    }
    assert_eq!((bound, server.locks), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn password_change_or_twelve_hours_allow_another_bind() {
    let mut server = Server::new(HOUR, 5 * MINUTE);
    server.asks("next");
    tokio::time::advance(MINUTE).await;
    assert!(!server.asks("next"));
    server.version.password_changed = Some(1);
    assert!(server.asks("next"), "its age has changed");
    tokio::time::advance(MINUTE).await;
    assert!(!server.asks("next"));
    server.version.password_policy = 1;
    assert!(server.asks("next"), "it was reset");
    tokio::time::advance(MINUTE).await;
    assert!(!server.asks("next"));
    tokio::time::advance(SURE - 2 * MINUTE).await;
    assert!(!server.asks("next"));
    tokio::time::advance(MINUTE).await;
    assert!(server.asks("next"), "12 h");
    tokio::time::advance(11 * HOUR).await;
    assert!(!server.asks("next"), "and it is known to be the same for 24");
}

#[tokio::test(start_paused = true)]
async fn refused_password_is_verified_at_growing_intervals_without_failure_counters() {
    let mut server = Server::new(HOUR, 5 * MINUTE);
    let credential = Credential::for_tests("alice", "old");
    let mut bound = Vec::new();
    let seen = EntryVersion { password_changed: Some(1), ..EntryVersion::default() };
    let entry = Entry { version: seen.clone(), ..Entry::for_tests(DN, &["server3"]) };
    for half_minute in 0..120 {
        let known = matches!(server.cache.lookup(&credential), crate::cache::CacheAnswer::Wrong(_));
        if !known && !server.cache.refused_before(&credential, &entry) {
            bound.push(half_minute);
            server.cache.wrong(&credential, &Arc::from(DN), &seen, server.cache.stamp());
        }
        tokio::time::advance(MINUTE / 2).await;
    }
    assert_eq!(bound, [0, 1, 3, 7, 15, 31, 61, 91], "in half minutes, at most 15 min apart");
    // Without a policy any change of the entry may be a password change.
    server.version = EntryVersion { revision: Some("9".into()), ..EntryVersion::default() };
    assert!(server.asks("old"));
}
