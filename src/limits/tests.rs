//! Each rule on a paused clock.

mod forecast;
mod shared;
mod spraying;

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use tokio::time::advance;

use super::store::Guess;
use super::*;
use crate::base::net;
use crate::config::{FailedLogins, Mode, PasswordSpraying};
use crate::directory::EntryName;
use crate::directory::{EntryId, Realm};
use crate::telemetry::labels::ThrottleEffect;

const BASE: Duration = Duration::from_millis(300);
const ALICE: &str = "uid=alice,dc=example";
const BOB: &str = "uid=bob,dc=example";

/// A throttle with these rules.
struct Door {
    throttle: Throttle,
    settings: config::Throttle,
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// The key of an entry of which only the DN is known.
fn key(dn: &str) -> EntryKey {
    EntryKey::by_dn(Realm::DEFAULT, &dn.into())
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

impl Door {
    /// Changes the rules, as a reload does.
    fn set(&mut self, change: impl FnOnce(&mut config::Throttle)) {
        change(&mut self.settings);
        self.throttle.apply(&self.settings);
    }

    fn new() -> Self {
        let failed_logins = |free_failures| FailedLogins {
            mode: Mode::Enforce,
            free_failures,
            limit: None,
            first_delay: BASE,
            max_delay: ms(4_000),
        };
        let limit = |limit| Limit { mode: Mode::Enforce, limit };
        let settings = config::Throttle {
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            exempt: vec![net::network_of(ip("198.51.100.0"), 24)],
            memory: config::Memory {
                capacity: 1_000,
                forget_every: Duration::from_secs(60),
                known_network_ttl: Duration::from_secs(86_400),
            },
            failed_logins_per_prefix: failed_logins(100),
            failed_logins_per_user: failed_logins(3),
            password_spraying: PasswordSpraying {
                mode: Mode::Enforce,
                names_per_minute: 200,
                first_delay: BASE,
                max_delay: ms(4_000),
            },
            connections_per_prefix: limit(2),
            handshakes: limit(4),
            handshakes_per_prefix: limit(3),
            sessions_per_user: limit(3),
            sessions_per_user_and_prefix: limit(2),
            logins_per_second: limit(1_000),
        };
        Self { throttle: Throttle::new(&settings, Shares::default(), Arc::new(Metrics::new())), settings }
    }

    fn guess(&self, from: &str, login: &str, password: &str) -> Result<PendingAttempt<'_>, Limited> {
        let attempt = self.throttle.attempt(ip(from), &Credential::for_tests(login, password)).now_or_never();
        attempt.expect("memory answers at once")
    }

    /// The delay of a wrong password; time does not advance.
    fn wrong(&self, from: &str, login: &str, password: &str, dn: Option<&str>) -> Duration {
        self.tried(from, login, password, dn).0
    }

    /// The delay of a wrong password, and whether its entry is bound; time does not advance.
    fn tried(&self, from: &str, login: &str, password: &str, dn: Option<&str>) -> (Duration, bool) {
        let mut pending = self.guess(from, login, password).unwrap();
        let gate = pending.begin_lookup().unwrap();
        let (delay, bound) = (pending.delay, dn.is_some_and(|dn| gate.may_bind(&key(dn))));
        pending.settle(AttemptOutcome::Wrong);
        (delay, bound)
    }

    /// Sequential wrong passwords for alice, until the next would have the maximum delay.
    async fn heat(&self, from: &str) {
        for n in 0..20 {
            let delay = self.wrong(from, "alice", &format!("guess {n}"), Some(ALICE));
            advance(delay).await;
        }
    }

    fn right(&self, from: &str, login: &str, dn: &str) -> Duration {
        let mut pending = self.guess(from, login, "right").unwrap();
        let (delay, gate) = (pending.delay, pending.begin_lookup().unwrap());
        assert!(gate.may_bind(&key(dn)), "{login} from {from}");
        pending.settle(AttemptOutcome::Right(key(dn)));
        delay
    }

    fn counted(&self, rule: LimitRule, effect: ThrottleEffect, mode: Mode) -> u64 {
        self.throttle.enforcement.metrics.throttled(rule, effect, mode).get()
    }

    fn connection(&self, from: &str) -> Result<ConnectionPermit, Limited> {
        self.throttle.unauthenticated(ip(from), None)
    }

    fn handshake(&self, from: &str) -> Result<HandshakePermit, Limited> {
        self.throttle.handshake(ip(from), false)
    }

    fn session(&self, from: &str, dn: &str) -> Result<SessionPermit, Limited> {
        self.throttle.session(ip(from), &key(dn))
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_passwords_for_a_user_double_the_delay() {
    let door = Door::new();
    let mut delays = Vec::new();
    for n in 0..9 {
        // From a new address each time, with changing spellings.
        let login = if n % 2 == 0 { "alice" } else { " Alice" };
        let delay = door.wrong(&format!("192.0.2.{n}"), login, &n.to_string(), Some(ALICE));
        delays.push(u64::try_from(delay.as_millis()).unwrap());
        advance(delay).await;
    }
    assert_eq!(delays, [0, 0, 0, 300, 600, 1_200, 2_400, 4_000, 4_000]);
    assert_eq!(door.counted(LimitRule::FailedLoginsPerUser, ThrottleEffect::Delayed, Mode::Enforce), 6);
    assert_eq!(door.wrong("192.0.2.1", "bob", "x", Some(BOB)), Duration::ZERO, "bob is another user");
}

#[tokio::test(start_paused = true)]
async fn limits_of_a_spelling_do_not_reveal_whether_it_matches_an_entry() {
    let door = Door::new();
    door.heat("192.0.2.1").await;
    // Each attempt under another spelling waits like one under an unknown name.
    for n in 0..12 {
        let password = format!("other guess {n}");
        let alias = door.guess("192.0.2.2", "alice@example.org", &password);
        let unknown = door.guess("192.0.2.3", "unknown@example.org", &password);
        let (mut alias, unknown) = (alias.unwrap(), unknown.unwrap());
        assert_eq!((alias.delay, alias.by), (unknown.delay, unknown.by), "attempt {n}");
        let delay = alias.delay;
        let _ = alias.begin_lookup().unwrap().may_bind(&key(ALICE));
        alias.settle(AttemptOutcome::Wrong);
        unknown.settle(AttemptOutcome::Wrong);
        advance(delay).await;
    }
}

#[tokio::test(start_paused = true)]
async fn spellings_give_no_additional_guesses() {
    let mut door = Door::new();
    door.set(|rules| rules.failed_logins_per_prefix.free_failures = 1_000);
    door.heat("192.0.2.1").await;
    door.wrong("192.0.2.1", "alice", "one more", Some(ALICE));
    let bound = |n: u32| door.tried("192.0.2.2", &format!("alice+{n}"), &format!("at once {n}"), Some(ALICE)).1;
    assert_eq!((0..120).filter(|n| bound(*n)).count(), 0, "the entry's pending has not come");
    // Sequentially they are as many as under one spelling: one each 4 s.
    let mut bound = 0;
    for n in 0..120 {
        advance(ms(1_000)).await;
        bound += u32::from(door.tried("192.0.2.2", &format!("alice-{n}"), &format!("{n}"), Some(ALICE)).1);
    }
    assert!((25..=31).contains(&bound), "{bound}");
    // From the start, too: the free failures belong to the entry.
    let free = (0..120).filter(|n| door.tried("192.0.2.2", &format!("bob+{n}"), &n.to_string(), Some(BOB)).1).count();
    assert_eq!(free, 3);
}

#[tokio::test(start_paused = true)]
async fn queued_guesses_are_evaluated() {
    let door = Door::new();
    for n in 0..60 {
        let (delay, bound) = door.tried("192.0.2.1", "alice", &n.to_string(), Some(ALICE));
        assert!(bound, "guess {n} has waited {delay:?}");
        advance(delay + ms(700)).await;
    }
    // Concurrent ones too, each after its delay.
    advance(Duration::from_secs(3_600)).await;
    let mut turns: Vec<PendingAttempt<'_>> =
        (0..100).filter_map(|n| door.guess("192.0.2.1", "alice", &format!("again {n}")).ok()).collect();
    let mut passed = Duration::ZERO;
    for pending in &mut turns {
        advance(pending.delay - passed).await;
        passed = pending.delay;
        assert!(pending.begin_lookup().unwrap().may_bind(&key(ALICE)), "after {passed:?}");
    }
    assert!(turns.len() > 4);
}

#[tokio::test(start_paused = true)]
async fn binds_beyond_the_limit_happen_only_for_networks_with_earlier_logins() {
    let mut door = Door::new();
    door.set(|rules| rules.failed_logins_per_user.limit = Some(4));
    door.right("203.0.113.5", "alice", ALICE);
    let guess = |n: u32, login: &str| -> Option<bool> {
        let mut pending = door.guess(&format!("192.0.2.{n}"), login, &format!("guess {n}")).ok()?;
        let bound = pending.begin_lookup().unwrap().may_bind(&key(ALICE));
        pending.settle(AttemptOutcome::Wrong);
        Some(bound)
    };
    let mut bound = 0;
    for n in 0..20 {
        bound += u32::from(guess(n, "alice") == Some(true));
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(bound, 4);
    assert_eq!(guess(21, "alice"), None, "the spelling reaches the limit, like an unknown name");
    assert_eq!(guess(22, "alice@example.com"), Some(false));
    // An unknown name has the same limit.
    let unknown = |n: u32| {
        door.guess("192.0.2.9", "unknown", &format!("guess {n}")).map(|pending| pending.settle(AttemptOutcome::Wrong))
    };
    assert_eq!((0..20).filter(|n| unknown(*n).is_ok()).count(), 4);
    // In a network with earlier logins she is accepted, even after a mistake or two, and a dry run refuses no login.
    assert_eq!(door.tried("203.0.113.5", "alice", "a typo", Some(ALICE)), (Duration::ZERO, true));
    assert_eq!(door.right("203.0.113.5", "alice", ALICE), Duration::ZERO);
    assert_eq!(guess(23, "alice"), None, "the lock-out elsewhere stays");
    door.set(|rules| rules.failed_logins_per_user.mode = Mode::DryRun);
    assert!(door.tried("192.0.2.24", "alice", "guess 24", Some(ALICE)).1);
    door.set(|rules| rules.failed_logins_per_user.mode = Mode::Enforce);
    advance(Duration::from_secs(2 * 61)).await;
    assert!(door.tried("192.0.2.25", "alice", "guess 25", Some(ALICE)).1, "one is forgotten each forget_every");
}

#[tokio::test(start_paused = true)]
async fn pending_attempt_counts() {
    let door = Door::new();
    for n in 0..3 {
        // The directory was queried, and the attempt timed out before the reply.
        let mut pending = door.guess("192.0.2.1", "alice", &n.to_string()).unwrap();
        assert!(pending.begin_lookup().unwrap().may_bind(&key(ALICE)));
        drop(pending);
    }
    assert_eq!(door.guess("192.0.2.1", "alice", "x").unwrap().delay, BASE);
    assert!(!door.tried("192.0.2.1", "a.liddell", "x", Some(ALICE)).1);
}

#[tokio::test(start_paused = true)]
async fn names_without_an_entry_are_delayed_like_those_with_one() {
    let door = Door::new();
    for (n, delay) in [0, 0, 0, 300, 600].into_iter().enumerate() {
        assert_eq!(door.wrong("192.0.2.1", "unknown", &n.to_string(), None), ms(delay));
        advance(ms(delay)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn prefix_is_delayed_for_every_name() {
    let mut door = Door::new();
    door.set(|rules| rules.failed_logins_per_prefix.free_failures = 3);
    for (n, delay) in [0, 0, 0, 300, 600].into_iter().enumerate() {
        let from = format!("2001:db8::{n}");
        assert_eq!(door.wrong(&from, &format!("user{n}"), "spring", None), ms(delay));
        advance(ms(delay)).await;
    }
    assert_eq!(door.wrong("2001:db8:0:1::1", "user9", "spring", None), Duration::ZERO, "the next /64");
    door.set(|rules| rules.ipv6_prefix = 32);
    assert_eq!(door.guess("2001:db8:9::1", "user10", "spring").unwrap().by, None, "longer prefixes are others");
}

#[tokio::test(start_paused = true)]
async fn concurrent_guesses_are_no_faster_than_sequential_ones() {
    let door = Door::new();
    let mut waiting = Vec::new();
    let mut refused = 0;
    for n in 0..100 {
        match door.guess(&format!("192.0.2.{n}"), "alice", &n.to_string()) {
            Ok(pending) => waiting.push(pending),
            Err(limited) => {
                assert_eq!(limited, Limited(LimitRule::FailedLoginsPerUser));
                refused += 1;
            }
        }
    }
    let delays: Vec<_> = waiting.iter().map(|pending| pending.delay).collect();
    assert_eq!(delays, [0, 0, 0, 300, 900, 2_100].map(ms));
    assert_eq!(refused, 94);
    assert_eq!(door.counted(LimitRule::FailedLoginsPerUser, ThrottleEffect::Refused, Mode::Enforce), 94);
}

#[tokio::test(start_paused = true)]
async fn repeated_wrong_password_does_not_grow_the_delay() {
    let door = Door::new();
    for _ in 0..100 {
        assert_eq!(door.wrong("192.0.2.1", "alice", "old password", Some(ALICE)), Duration::ZERO);
        advance(Duration::from_secs(40)).await;
    }
    // Under another spelling too, and counted once.
    assert!(door.tried("192.0.2.1", "alice@example.com", "old password", Some(ALICE)).1);
    assert_eq!(door.wrong("192.0.2.1", "alice", "1", Some(ALICE)), Duration::ZERO);
    assert_eq!(door.wrong("192.0.2.1", "alice", "2", Some(ALICE)), Duration::ZERO);
    assert_eq!(door.wrong("192.0.2.1", "alice", "3", Some(ALICE)), Duration::ZERO);
    assert_eq!(door.wrong("192.0.2.1", "alice", "4", Some(ALICE)), BASE);
}

#[tokio::test(start_paused = true)]
async fn delayed_password_is_not_accepted_by_a_concurrent_attempt() {
    let door = Door::new();
    door.heat("192.0.2.1").await;
    let first = door.guess("192.0.2.2", "alice", "guess").unwrap();
    let second = door.guess("192.0.2.3", "alice", "guess").unwrap();
    assert_eq!((first.delay, second.delay), (ms(4_000), ms(4_000)));
    advance(ms(1_000)).await;
    assert_eq!(door.guess("192.0.2.4", "alice", "guess").unwrap().delay, ms(3_000));
}

#[tokio::test(start_paused = true)]
async fn guessing_from_elsewhere_never_delays_a_network_with_earlier_logins() {
    let door = Door::new();
    assert_eq!(door.right("203.0.113.5", "alice", ALICE), Duration::ZERO);
    door.heat("192.0.2.1").await;
    assert_eq!(door.guess("192.0.2.9", "alice", "x").unwrap().delay, ms(4_000));
    assert_eq!(door.right("203.0.113.5", "alice", ALICE), Duration::ZERO);
    assert_eq!(door.right("203.0.113.5", "alice@example.com", ALICE), Duration::ZERO, "a spelling never seen");
    advance(Duration::from_secs(86_401)).await;
    door.heat("192.0.2.1").await;
    assert_eq!(door.guess("203.0.113.5", "alice", "x").unwrap().delay, ms(4_000), "known_network_ttl has passed");
}

#[tokio::test(start_paused = true)]
async fn other_clients_of_a_prefix_never_delay_its_users() {
    let mut door = Door::new();
    door.set(|rules| rules.failed_logins_per_prefix.free_failures = 1);
    assert_eq!(door.right("203.0.113.5", "alice", ALICE), Duration::ZERO);
    for n in 0..5 {
        let pending = door.guess("203.0.113.5", &format!("user{n}"), "x").unwrap();
        advance(pending.delay).await;
        pending.settle(AttemptOutcome::Wrong);
    }
    assert_eq!(door.right("203.0.113.5", "alice", ALICE), Duration::ZERO);
    assert!(door.guess("203.0.113.5", "bob", "x").unwrap().delay > ms(1_000), "bob was never here");
}

#[tokio::test(start_paused = true)]
async fn own_mistakes_count_in_networks_with_earlier_logins() {
    let door = Door::new();
    door.right("203.0.113.5", "alice", ALICE);
    door.heat("203.0.113.5").await;
    assert_eq!(door.guess("203.0.113.5", "alice", "x").unwrap().delay, ms(4_000));
    assert_eq!(door.guess("192.0.2.1", "alice", "x").unwrap().delay, Duration::ZERO, "an account of its own");
}

#[tokio::test(start_paused = true)]
async fn success_resets_the_delay() {
    let mut door = Door::new();
    door.set(|rules| rules.failed_logins_per_prefix.free_failures = 10);
    for n in 0..9 {
        let delay = door.wrong("192.0.2.1", "alice", &n.to_string(), Some(ALICE));
        advance(delay).await;
    }
    assert_eq!(door.right("192.0.2.1", "alice", ALICE), ms(4_000));
    assert_eq!(door.wrong("192.0.2.1", "alice", "x", Some(ALICE)), Duration::ZERO);
    // The failures of alice were refunded to the prefix, so that nine more are free.
    for n in 0..9 {
        assert_eq!(door.wrong("192.0.2.1", &format!("user{n}"), "x", None), Duration::ZERO);
    }
    assert_eq!(door.wrong("192.0.2.1", "user10", "x", None), BASE);
}

#[tokio::test(start_paused = true)]
async fn successful_login_of_one_account_gives_no_guesses_at_others() {
    let mut door = Door::new();
    door.set(|rules| rules.failed_logins_per_prefix.free_failures = 5);
    let mut slowed = Duration::ZERO;
    for n in 0..12 {
        let pending = door.guess("192.0.2.1", &format!("user{n}"), "spring").unwrap();
        slowed += pending.delay;
        advance(pending.delay).await;
        pending.settle(AttemptOutcome::Wrong);
        door.throttle.cached_success(ip("192.0.2.1"), &Login::parse(b"mallory").unwrap(), &key("uid=mallory"));
    }
    assert!(slowed > Duration::from_secs(10), "{slowed:?}");
}

#[tokio::test(start_paused = true)]
async fn attempt_without_a_wrong_password_is_refunded() {
    let door = Door::new();
    for n in 0..50 {
        // The directory was unavailable, or the attempt ended before the request.
        drop(door.guess("192.0.2.1", "alice", &n.to_string()).unwrap());
        let mut pending = door.guess("192.0.2.1", "alice", &n.to_string()).unwrap();
        assert!(pending.begin_lookup().unwrap().may_bind(&key(ALICE)));
        pending.settle(AttemptOutcome::Inconclusive);
    }
    for n in 0..3 {
        assert_eq!(door.wrong("192.0.2.1", "alice", &n.to_string(), Some(ALICE)), Duration::ZERO);
    }
    assert_eq!(door.wrong("192.0.2.1", "alice", "x", Some(ALICE)), BASE);
}

#[tokio::test(start_paused = true)]
async fn wrong_passwords_expire_one_by_one() {
    let door = Door::new();
    door.heat("192.0.2.1").await;
    advance(Duration::from_secs(60 * 14)).await;
    assert_eq!(door.wrong("192.0.2.1", "alice", "a", Some(ALICE)), ms(1_200));
    advance(Duration::from_secs(60 * 2)).await;
    assert_eq!(door.wrong("192.0.2.1", "alice", "b", Some(ALICE)), ms(600));
    advance(Duration::from_secs(60 * 60)).await;
    assert_eq!(door.wrong("192.0.2.1", "alice", "c", Some(ALICE)), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn dry_run_counts_and_delays_no_login() {
    let mut door = Door::new();
    door.set(|rules| rules.failed_logins_per_user.mode = Mode::DryRun);
    for n in 0..20 {
        let pending = door.guess("192.0.2.1", "alice", &n.to_string()).unwrap();
        assert_eq!((pending.delay, pending.by), (Duration::ZERO, None));
        pending.settle(AttemptOutcome::Wrong);
    }
    assert_eq!(door.counted(LimitRule::FailedLoginsPerUser, ThrottleEffect::Delayed, Mode::DryRun), 3);
    assert_eq!(door.counted(LimitRule::FailedLoginsPerUser, ThrottleEffect::Refused, Mode::DryRun), 14);
    door.set(|rules| rules.connections_per_prefix = Limit { mode: Mode::DryRun, limit: 1 });
    let _held = [door.connection("192.0.2.1").unwrap(), door.connection("192.0.2.1").unwrap()];
    assert_eq!(door.counted(LimitRule::ConnectionsPerPrefix, ThrottleEffect::Refused, Mode::DryRun), 1);
    assert_eq!(door.counted(LimitRule::ConnectionsPerPrefix, ThrottleEffect::Refused, Mode::Enforce), 0);
}

#[tokio::test(start_paused = true)]
async fn exempt_networks_are_neither_delayed_nor_charged() {
    let door = Door::new();
    for n in 0..50 {
        assert_eq!(door.wrong("198.51.100.7", "alice", &n.to_string(), Some(ALICE)), Duration::ZERO);
    }
    assert_eq!(door.wrong("192.0.2.1", "alice", "x", Some(ALICE)), Duration::ZERO);
    let connections: Vec<_> = (0..9).map(|_| door.connection("198.51.100.7").unwrap()).collect();
    let handshakes: Vec<_> = (0..9).map(|_| door.handshake("198.51.100.7").unwrap()).collect();
    drop((connections, handshakes));
    // A limit of a user holds for every network.
    let held: Vec<_> = (0..3).map(|_| door.session("198.51.100.7", ALICE).unwrap()).collect();
    assert_eq!(door.session("198.51.100.7", ALICE).unwrap_err(), Limited(LimitRule::SessionsPerUser));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_prefix_are_limited() {
    let door = Door::new();
    let held = [door.connection("192.0.2.1").unwrap(), door.connection("192.0.2.1").unwrap()];
    assert_eq!(door.connection("192.0.2.1").unwrap_err(), Limited(LimitRule::ConnectionsPerPrefix));
    let other = door.connection("192.0.2.2").unwrap();
    drop(held);
    drop(door.connection("192.0.2.1").unwrap());
    drop(other);
    assert!(
        door.throttle.connections.is_empty() && door.throttle.unauthenticated.is_empty(),
        "whoever left is not remembered"
    );
}

#[tokio::test(start_paused = true)]
async fn network_rules_are_enforced_in_any_mode_when_most_slots_are_used() {
    let mut door = Door::new();
    door.set(|rules| rules.connections_per_prefix = Limit { mode: Mode::DryRun, limit: 2 });
    door.set(|rules| rules.handshakes_per_prefix = Limit { mode: Mode::DryRun, limit: 1 });
    let newcomer = |from: &str, crowded| door.throttle.unauthenticated(ip(from), crowded);
    let mut held: Vec<_> = (0..4).map(|_| newcomer("192.0.2.1", None).unwrap()).collect();
    let limited = Limited(LimitRule::ConnectionsPerPrefix);
    assert_eq!(newcomer("192.0.2.1", Some(100)).unwrap_err(), limited);
    assert_eq!(door.counted(LimitRule::ConnectionsPerPrefix, ThrottleEffect::Refused, Mode::Enforce), 1);
    let _other = newcomer("192.0.2.2", Some(1)).unwrap();
    assert_eq!(newcomer("192.0.2.2", Some(1)).unwrap_err(), limited, "its share of the places is one");
    let _exempt: Vec<_> = (0..9).map(|_| newcomer("198.51.100.7", Some(1)).unwrap()).collect();
    // Sessions are no unauthenticated connections.
    held.truncate(1);
    held.iter_mut().for_each(ConnectionPermit::logged_in);
    let _again = newcomer("192.0.2.1", Some(1)).unwrap();
    let shake = |crowded| door.throttle.handshake(ip("192.0.2.1"), crowded);
    let _under_way = [shake(false).unwrap(), shake(false).unwrap()];
    assert_eq!(shake(true).unwrap_err(), Limited(LimitRule::HandshakesPerPrefix));
}

#[tokio::test(start_paused = true)]
async fn handshakes_are_limited_per_prefix_without_blocking_others() {
    let mut door = Door::new();
    let mut held: Vec<_> = (0..3).map(|_| door.handshake("192.0.2.1").unwrap()).collect();
    assert_eq!(door.handshake("192.0.2.1").unwrap_err(), Limited(LimitRule::HandshakesPerPrefix));
    door.set(|rules| rules.handshakes_per_prefix.limit = 100);
    held.push(door.handshake("192.0.2.1").unwrap());
    assert_eq!(door.handshake("192.0.2.1").unwrap_err(), Limited(LimitRule::Handshakes));
    assert_eq!(door.throttle.enforcement.metrics.handshakes.get(), 4);
    let other = door.handshake("192.0.2.2").unwrap();
    assert_eq!(door.handshake("192.0.2.2").unwrap_err(), Limited(LimitRule::Handshakes), "one, while all are taken");
    drop((held, other));
    assert_eq!(door.throttle.enforcement.metrics.handshakes.get(), 0);
    assert!(door.throttle.handshakes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn sessions_of_a_user_are_limited_in_total_and_per_prefix() {
    let door = Door::new();
    let here = [door.session("192.0.2.1", ALICE).unwrap(), door.session("192.0.2.1", ALICE).unwrap()];
    assert_eq!(door.session("192.0.2.1", ALICE).unwrap_err(), Limited(LimitRule::SessionsPerUserAndPrefix));
    let there = door.session("192.0.2.2", ALICE).unwrap();
    assert_eq!(door.session("192.0.2.3", ALICE).unwrap_err(), Limited(LimitRule::SessionsPerUser));
    drop(door.session("192.0.2.1", BOB).unwrap());
    drop(here);
    drop(door.session("192.0.2.3", ALICE).unwrap());
    drop(there);
    assert!(door.throttle.sessions.is_empty() && door.throttle.sessions_by_prefix.is_empty());
}

#[tokio::test(start_paused = true)]
async fn login_rate_allows_a_burst_and_limits_the_average() {
    let mut door = Door::new();
    door.set(|rules| rules.logins_per_second.limit = 10);
    let burst = (0..30).filter(|n| door.session("192.0.2.1", &format!("uid={n}")).is_ok()).count();
    assert_eq!(burst, 10);
    assert_eq!(door.session("192.0.2.1", ALICE).unwrap_err(), Limited(LimitRule::LoginsPerSecond));
    advance(ms(500)).await;
    let more = (0..30).filter(|n| door.session("192.0.2.1", &format!("uid={n}")).is_ok()).count();
    assert_eq!(more, 5);
}

#[tokio::test(start_paused = true)]
async fn login_rate_is_shared_and_limits_of_one_user_are_not() {
    let mut door = Door::new();
    door.set(|rules| rules.logins_per_second.limit = 10);
    door.throttle.shares.divisor().store(3, std::sync::atomic::Ordering::Relaxed);
    assert_eq!((0..30).filter(|n| door.session("192.0.2.1", &format!("uid={n}")).is_ok()).count(), 4);
    advance(Duration::from_secs(10)).await;
    let held: Vec<_> = (1..9).filter_map(|n| door.session(&format!("192.0.2.{n}"), ALICE).ok()).collect();
    assert_eq!(held.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn flood_of_names_and_networks_is_bounded_and_evicts_no_other() {
    let door = Door::new();
    door.right("203.0.113.5", "alice", ALICE);
    door.heat("192.0.2.1").await;
    let ledger = door.throttle.ledger.load();
    // A wrong password uses a key for its prefix and a key for its name; a million of them take most of a
    // minute without optimization.
    let guesses = if cfg!(debug_assertions) { 50_000 } else { 500_000 };
    for n in 0..guesses {
        let guess = Guess {
            account: n,
            prefix: n,
            password: Credential::for_tests("alice", "x").digest().narrow(),
            known: false,
            user_rule: door.settings.failed_logins_per_user,
            prefix_rule: door.settings.failed_logins_per_prefix,
            name: Some((n, door.settings.password_spraying)),
            subject: store::Subject { login: None, network: net::network_of(ip("192.0.2.1"), 32) },
            entry: None,
        };
        ledger.local.charge_now(&guess);
        if n % 5_000 == 0 {
            assert!(
                door.throttle.entries().into_iter().all(|entries| entries <= 1_100),
                "{:?}",
                door.throttle.entries()
            );
        }
    }
    ledger.local.run_pending();
    ledger.users.run_pending();
    door.throttle.measure();
    for (kind, entries) in ThrottleRecord::ALL.iter().zip(door.throttle.entries()) {
        assert!(entries <= 1_000, "{entries} {kind:?}");
        assert_eq!(door.throttle.enforcement.metrics.throttle_entries.of(*kind).get(), entries as i64);
    }
    assert_eq!(door.right("203.0.113.5", "alice", ALICE), Duration::ZERO, "alice is still known at home");
}

#[tokio::test(start_paused = true)]
async fn users_without_failures_use_no_memory() {
    let door = Door::new();
    let accounts = || {
        door.throttle.ledger.load().local.run_pending();
        door.throttle.entries()[1]
    };
    // First under an unknown name, then as a user with earlier logins there.
    for _ in 0..2 {
        door.right("203.0.113.5", "alice", ALICE);
        assert_eq!(accounts(), 0);
    }
    door.wrong("203.0.113.5", "alice", "a typo", Some(ALICE));
    assert_eq!(accounts(), 1);
    door.right("203.0.113.5", "alice", ALICE);
    assert_eq!(accounts(), 0);
    // A wrong password is charged to its spelling and to its entry.
    door.wrong("192.0.2.1", "ALICE@example.com", "a guess", Some(ALICE));
    assert_eq!(accounts(), 2);
    door.right("192.0.2.1", "ALICE@example.com", ALICE);
    assert_eq!(accounts(), 0);
}

#[tokio::test(start_paused = true)]
async fn known_networks_are_bounded_per_user() {
    let door = Door::new();
    door.right("203.0.113.5", "bob", BOB);
    for n in 0..1_000 {
        let client = format!("192.0.{}.{}", n / 250, n % 250);
        door.throttle.cached_success(ip(&client), &Login::parse(b"alice").unwrap(), &key(ALICE));
    }
    let is_known_prefix = |dn: &str, client: &str| {
        let ledger = door.throttle.ledger.load();
        ledger.users.is_known_prefix(ledger.keys.entry(&key(dn)), ledger.prefix(ip(client)))
    };
    assert!(!is_known_prefix(ALICE, "192.0.0.0"));
    assert!(is_known_prefix(ALICE, "192.0.3.249"));
    assert!(is_known_prefix(BOB, "203.0.113.5"), "one user's journeys cost another nothing");
}

#[tokio::test(start_paused = true)]
async fn renamed_user_stays_known_and_another_entry_with_its_dn_does_not() {
    let door = Door::new();
    let named = |number: u8| EntryKey {
        realm: Realm::DEFAULT,
        name: EntryName::Id(EntryId::from_bytes(&[number; 16]).unwrap()),
    };
    let login = Login::parse(b"alice").unwrap();
    door.throttle.cached_success(ip("203.0.113.5"), &login, &named(1));
    let is_known = |entry: &EntryKey| {
        let mut pending = door.guess("203.0.113.5", "alicia", "new name").unwrap();
        pending.begin_lookup().unwrap().is_known(entry)
    };
    assert!(is_known(&named(1)), "whatever its DN is now");
    assert!(!is_known(&named(2)) && !is_known(&key(ALICE)));
    let elsewhere = EntryKey { realm: Realm::for_tests(1), ..named(1) };
    assert!(!is_known(&elsewhere), "another directory");
}

#[tokio::test(start_paused = true)]
async fn reload_drops_only_counters_with_changed_bounds() {
    let mut door = Door::new();
    door.heat("192.0.2.1").await;
    door.set(|rules| rules.failed_logins_per_user.max_delay = ms(2_000));
    assert_eq!(door.guess("192.0.2.1", "alice", "x").unwrap().delay, ms(2_000));
    door.set(|rules| rules.memory.capacity = 2_000);
    assert_eq!(door.guess("192.0.2.1", "alice", "x").unwrap().delay, Duration::ZERO);
}

#[test]
fn limit_names_the_key_of_its_rule() {
    assert_eq!(Limited(LimitRule::Handshakes).to_string(), "throttle.handshakes: limit reached");
    let delaying: Vec<_> = LimitRule::ALL.iter().filter(|rule| rule.delays()).map(|rule| rule.label()).collect();
    assert_eq!(delaying, ["failed_logins_per_prefix", "failed_logins_per_user", "password_spraying"]);
}

#[tokio::test(start_paused = true)]
async fn attempt_in_progress_is_settled_where_it_was_charged() {
    let door = Door::new();
    let settings = config::Throttle {
        memory: config::Memory { capacity: 2_000, ..door.settings.memory.clone() },
        ..door.settings.clone()
    };
    let mut pending = door.guess("192.0.2.1", "alice", "x").unwrap();
    assert!(pending.begin_lookup().unwrap().may_bind(&key(ALICE)));
    let before = door.throttle.ledger.load_full();
    door.throttle.apply(&settings);
    pending.settle(AttemptOutcome::Right(key(ALICE)));
    assert!(before.users.is_known_prefix(before.keys.entry(&key(ALICE)), before.prefix(ip("192.0.2.1"))));
    let after = door.throttle.ledger.load();
    after.local.run_pending();
    after.users.run_pending();
    assert_eq!(door.throttle.entries(), [0; 5]);
}

/// Clients of one network come and go at once: never more than the limit are let in, and nothing of them stays counted.
#[test]
fn permits_of_many_threads_never_exceed_the_limit_and_none_is_lost() {
    const CLIENTS: usize = 3_000;
    let door = Door::new();
    let (inside, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let limit = 2;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..CLIENTS {
                    let connection = door.throttle.connection(ip("192.0.2.1"));
                    let session = door.throttle.session(ip("192.0.2.1"), &key(ALICE));
                    if connection.is_err() {
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                    // Both limits are two.
                    if connection.is_ok() && session.is_ok() {
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < limit);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                    // The permits end here, in either order.
                    drop((session, connection));
                }
            });
        }
    });
    assert!(refused.into_inner() > 0, "no two threads met");
    let throttle = &door.throttle;
    assert!(
        [&throttle.connections, &throttle.sessions, &throttle.sessions_by_prefix].iter().all(|held| held.is_empty())
    );
}
