//! Many names refused to one network.

use super::*;
use crate::base::credential::{BearerToken, CredentialSecret, TokenForm};
use crate::base::secret::Secret;

const CAROL: &str = "uid=carol,dc=example";

impl Door {
    /// A throttle in which only the rule about names acts, above this many.
    fn spraying(names_per_minute: u32) -> Self {
        let mut door = Self::new();
        door.set(|rules| {
            rules.password_spraying.names_per_minute = names_per_minute;
            rules.failed_logins_per_prefix.free_failures = 1_000;
        });
        door
    }

    /// Tries one password for each of these names, one after another. Returns the delays in milliseconds.
    async fn spray(&self, from: &str, names: std::ops::Range<u32>) -> Vec<u128> {
        let mut delays = Vec::new();
        for n in names {
            let delay = self.wrong(from, &format!("user{n}"), "spring", None);
            delays.push(delay.as_millis());
            advance(delay).await;
        }
        delays
    }
}

#[tokio::test(start_paused = true)]
async fn names_above_the_limit_wait_longer_each_and_others_do_not() {
    let door = Door::spraying(3);
    assert_eq!(door.spray("192.0.2.1", 0..9).await, [0, 0, 0, 300, 600, 1_200, 2_400, 4_000, 4_000]);
    let by = door.guess("192.0.2.1", "another", "spring").unwrap().by;
    assert_eq!(by, Some(LimitRule::PasswordSpraying));
    assert_eq!(door.counted(LimitRule::PasswordSpraying, ThrottleEffect::Delayed, Mode::Enforce), 7);
    assert_eq!(door.wrong("192.0.2.2", "another", "spring", None), Duration::ZERO, "another network");
    advance(Duration::from_secs(61)).await;
    assert_eq!(door.spray("192.0.2.1", 20..24).await, [0, 0, 0, 300]);
}

#[tokio::test(start_paused = true)]
async fn steady_spraying_gets_little_more_than_the_limit_per_minute() {
    let door = Door::spraying(30);
    let began = Instant::now();
    let mut names = 0;
    while began.elapsed() < Duration::from_secs(600) {
        door.spray("192.0.2.1", names..names + 1).await;
        names += 1;
    }
    assert!((300..=380).contains(&names), "{names}");
}

#[tokio::test(start_paused = true)]
async fn concurrent_names_are_no_faster_than_sequential_ones() {
    let door = Door::spraying(3);
    let tried: Vec<_> = (0..200).filter_map(|n| door.guess("192.0.2.1", &format!("user{n}"), "spring").ok()).collect();
    let delays: Vec<_> = tried.iter().map(|pending| pending.delay).collect();
    assert_eq!(delays, [0, 0, 0, 300, 900, 2_100].map(ms));
    assert_eq!(door.counted(LimitRule::PasswordSpraying, ThrottleEffect::Refused, Mode::Enforce), 194);
    assert_eq!(door.guess("192.0.2.1", "bob", "x").unwrap_err(), Limited(LimitRule::PasswordSpraying));
    // What was refused is charged to no account.
    drop(tried);
    assert_eq!(door.guess("192.0.2.1", "user199", "x").unwrap().delay, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn user_with_an_earlier_login_from_the_network_never_waits_and_never_counts() {
    let door = Door::spraying(3);
    door.right("203.0.113.5", "alice", ALICE);
    door.right("203.0.113.5", "bob", BOB);
    door.spray("203.0.113.5", 0..9).await;
    assert_eq!(door.wrong("203.0.113.5", "alice", "a typo", Some(ALICE)), Duration::ZERO);
    assert_eq!(door.right("203.0.113.5", "alice", ALICE), Duration::ZERO);
    assert!(door.guess("203.0.113.5", "carol", "x").unwrap().delay >= ms(300), "carol was never here");
    // Elsewhere the mistakes of its users do not add up, so that the size of a network does not matter.
    let door = Door::spraying(3);
    for n in 0..50 {
        let (login, dn) = (format!("user{n}"), format!("uid=user{n},dc=example"));
        door.right("203.0.113.5", &login, &dn);
        assert_eq!(door.wrong("203.0.113.5", &login, "a typo", Some(&dn)), Duration::ZERO);
    }
    assert_eq!(door.spray("203.0.113.5", 100..104).await, [0, 0, 0, 300]);
}

#[tokio::test(start_paused = true)]
async fn device_that_repeats_an_old_password_is_one_name() {
    let door = Door::spraying(3);
    for _ in 0..100 {
        assert_eq!(door.wrong("192.0.2.1", "alice", "old password", Some(ALICE)), Duration::ZERO);
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(door.spray("192.0.2.1", 0..4).await, [0, 0, 0, 300], "a minute later a known wrong password is no name");
}

#[tokio::test(start_paused = true)]
async fn right_password_removes_its_name_and_no_other() {
    let door = Door::spraying(3);
    for (login, dn) in [("alice", ALICE), ("bob", BOB), ("carol", CAROL)] {
        door.wrong("192.0.2.1", login, "a typo", Some(dn));
        door.right("192.0.2.1", login, dn);
    }
    assert_eq!(door.spray("192.0.2.1", 0..3).await, [0; 3]);
    // A cached password, too; and an account of one's own buys no names.
    advance(door.wrong("192.0.2.1", "dan", "a typo", None)).await;
    door.throttle.cached_success(ip("192.0.2.1"), &Login::parse(b"dan").unwrap(), &key("uid=dan"));
    for _ in 0..9 {
        door.throttle.cached_success(ip("192.0.2.1"), &Login::parse(b"mallory").unwrap(), &key("uid=mallory"));
    }
    assert_eq!(door.spray("192.0.2.1", 10..13).await, [300, 600, 1_200]);
}

#[tokio::test(start_paused = true)]
async fn inconclusive_attempt_is_no_refused_name() {
    let door = Door::spraying(3);
    for n in 0..50 {
        // The directory was unavailable, or the client has left before the request.
        let mut pending = door.guess("192.0.2.1", &format!("user{n}"), "x").unwrap();
        let _ = pending.begin_lookup();
        pending.settle(AttemptOutcome::Inconclusive);
        drop(door.guess("192.0.2.1", &format!("other{n}"), "x").unwrap());
    }
    assert_eq!(door.spray("192.0.2.1", 0..3).await, [0; 3]);
    // A name that was refused before stays so.
    door.guess("192.0.2.1", "user0", "y").unwrap().settle(AttemptOutcome::Inconclusive);
    assert_eq!(door.spray("192.0.2.1", 5..6).await, [300]);
}

#[tokio::test(start_paused = true)]
async fn delays_of_several_rules_are_not_added() {
    let mut door = Door::spraying(3);
    door.set(|rules| rules.failed_logins_per_prefix.free_failures = 3);
    assert_eq!(door.spray("192.0.2.1", 0..9).await, [0, 0, 0, 300, 600, 1_200, 2_400, 4_000, 4_000]);
    assert_eq!(door.counted(LimitRule::PasswordSpraying, ThrottleEffect::Delayed, Mode::Enforce), 6);
    assert_eq!(door.counted(LimitRule::FailedLoginsPerPrefix, ThrottleEffect::Delayed, Mode::Enforce), 6);
}

#[tokio::test(start_paused = true)]
async fn names_of_entries_and_unknown_names_count_and_wait_alike() {
    for dn in [Some(ALICE), None] {
        let mut door = Door::spraying(3);
        door.set(|rules| rules.failed_logins_per_user.free_failures = 1_000);
        let mut delays = Vec::new();
        for n in 0..8 {
            // Other spellings of one entry are other names, as those of no entry are.
            let delay = door.wrong("192.0.2.1", &format!("alice+{n}"), &n.to_string(), dn);
            delays.push(delay);
            advance(delay).await;
        }
        assert_eq!(delays, [0, 0, 0, 300, 600, 1_200, 2_400, 4_000].map(ms), "{dn:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn dry_run_counts_and_delays_nobody_and_exempt_networks_do_not_count() {
    let mut door = Door::spraying(3);
    door.set(|rules| rules.password_spraying.mode = Mode::DryRun);
    assert_eq!(door.spray("192.0.2.1", 0..20).await, [0; 20]);
    assert_eq!(door.counted(LimitRule::PasswordSpraying, ThrottleEffect::Delayed, Mode::DryRun), 3);
    assert_eq!(door.counted(LimitRule::PasswordSpraying, ThrottleEffect::Refused, Mode::DryRun), 14);
    assert_eq!(door.spray("198.51.100.7", 0..20).await, [0; 20]);
    assert_eq!(door.counted(LimitRule::PasswordSpraying, ThrottleEffect::Refused, Mode::DryRun), 14);
}

#[tokio::test(start_paused = true)]
async fn cached_passwords_and_tokens_leave_no_name() {
    let door = Door::spraying(3);
    door.throttle.cached_success(ip("192.0.2.1"), &Login::parse(b"alice").unwrap(), &key(ALICE));
    for n in 0..50 {
        let token = BearerToken { token: Secret::copy_of(b"no token"), form: TokenForm::OAuthBearer };
        let login = Login::parse(format!("user{n}").as_bytes()).unwrap();
        let token = Credential::new(login, CredentialSecret::Token(token));
        let attempt = door.throttle.token_attempt(ip("192.0.2.1"), &token).now_or_never();
        attempt.unwrap().unwrap().settle(AttemptOutcome::Wrong);
    }
    door.throttle.ledger.load().local.run_pending();
    assert_eq!(door.throttle.entries()[4], 0);
}
