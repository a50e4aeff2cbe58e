//! The `throttle` section: how guessing is slowed, and what a network or a user may hold.

use std::time::Duration;

use super::model::{FailedLogins, Limit, LimitRule, Memory, Mode, PasswordSpraying, Throttle};
use super::raw::Section;
use super::section::networks;
use super::units::{DAY, HOUR, MINUTE, SECOND};
use crate::base::labels::Label as _;

/// The most that a count may be: the most that `limits.connections` may be.
const MOST: u64 = 1_000_000;

/// Reads the section.
pub(super) fn read(throttle: &Section<'_>) -> Option<Throttle> {
    let ipv4_prefix = throttle.integer("ipv4_prefix", 32, 8..=32);
    let ipv6_prefix = throttle.integer("ipv6_prefix", 64, 16..=128);
    let exempt = throttle.get("exempt").map_or(Some(Vec::new()), |node| networks(&node));
    let capacity = throttle.integer("capacity", 100_000, 1_000..=10_000_000);
    let forget_every = throttle.duration("forget_every", MINUTE, SECOND..=DAY);
    let known_network_ttl = throttle.duration("known_network_ttl", 30 * DAY, HOUR..=365 * DAY);
    // What hangs on a prefix alone begins as a dry run: only the operator knows which networks
    // stand for many people.
    let failed_logins_per_prefix = failed_logins(throttle, LimitRule::FailedLoginsPerPrefix, Mode::DryRun, 20, false);
    let failed_logins_per_user = failed_logins(throttle, LimitRule::FailedLoginsPerUser, Mode::Enforce, 5, true);
    let password_spraying = password_spraying(throttle);
    let connections_per_prefix = limit(throttle, LimitRule::ConnectionsPerPrefix, Mode::DryRun, 1_000);
    let handshakes = limit(throttle, LimitRule::Handshakes, Mode::Enforce, 10_000);
    let handshakes_per_prefix = limit(throttle, LimitRule::HandshakesPerPrefix, Mode::DryRun, 100);
    let sessions_per_user = limit(throttle, LimitRule::SessionsPerUser, Mode::Enforce, 60);
    let sessions_per_user_and_prefix = limit(throttle, LimitRule::SessionsPerUserAndPrefix, Mode::DryRun, 40);
    let logins_per_second = limit(throttle, LimitRule::LoginsPerSecond, Mode::Enforce, 1_000);
    Some(Throttle {
        ipv4_prefix: ipv4_prefix?,
        ipv6_prefix: ipv6_prefix?,
        exempt: exempt?,
        memory: Memory { capacity: capacity?, forget_every: forget_every?, known_network_ttl: known_network_ttl? },
        failed_logins_per_prefix: failed_logins_per_prefix?,
        failed_logins_per_user: failed_logins_per_user?,
        password_spraying: password_spraying?,
        connections_per_prefix: connections_per_prefix?,
        handshakes: handshakes?,
        handshakes_per_prefix: handshakes_per_prefix?,
        sessions_per_user: sessions_per_user?,
        sessions_per_user_and_prefix: sessions_per_user_and_prefix?,
        logins_per_second: logins_per_second?,
    })
}

fn mode(rule: &Section<'_>, default: Mode) -> Option<Mode> {
    let words: Vec<_> = Mode::ALL.iter().map(|mode| (mode.label(), *mode)).collect();
    rule.get("mode").map_or(Some(default), |node| node.word(&words))
}

fn failed_logins(
    throttle: &Section<'_>,
    rule: LimitRule,
    default: Mode,
    free_failures: u64,
    may_limit: bool,
) -> Option<FailedLogins> {
    let read = |rule: &Section<'_>| {
        let mode = mode(rule, default);
        let free_failures = rule.integer("free_failures", free_failures, 1..=1_000);
        let (first_delay, max_delay) = delays(rule);
        let limit = (may_limit && rule.get("limit").is_some()).then(|| rule.integer("limit", 3, 1..=1_000));
        let limit = match limit {
            Some(limit) => Some(limit?),
            None => None,
        };
        Some(FailedLogins {
            mode: mode?,
            free_failures: free_failures?,
            limit,
            first_delay: first_delay?,
            max_delay: max_delay?,
        })
    };
    throttle.section(rule.label(), read).flatten()
}

fn password_spraying(throttle: &Section<'_>) -> Option<PasswordSpraying> {
    let read = |rule: &Section<'_>| {
        let mode = mode(rule, Mode::DryRun);
        // 256 names are kept, and the delay has grown to its maximum at most six names above.
        let names_per_minute = rule.integer("names_per_minute", 30, 1..=240);
        let (first_delay, max_delay) = delays(rule);
        Some(PasswordSpraying {
            mode: mode?,
            names_per_minute: names_per_minute?,
            first_delay: first_delay?,
            max_delay: max_delay?,
        })
    };
    throttle.section(LimitRule::PasswordSpraying.label(), read).flatten()
}

/// The first delay of a rule, and the longest.
fn delays(rule: &Section<'_>) -> (Option<Duration>, Option<Duration>) {
    // Together with the directory's own time it has to fit into the ten seconds of an attempt.
    let max_delay = rule.duration("max_delay", 4 * SECOND, SECOND / 10..=5 * SECOND);
    // A shorter `max_delay` lowers this default, so that only one of them has to be set.
    let most = max_delay.and_then(|most| u64::try_from(most.as_millis()).ok()).unwrap_or(5 * SECOND);
    let first_delay = rule.duration("first_delay", 300.min(most), SECOND / 10..=5 * SECOND);
    if let (Some(first), Some(most)) = (first_delay, max_delay)
        && first > most
    {
        rule.problem("first_delay", "longer than `max_delay`, up to which it grows: shorten it");
    }
    (first_delay, max_delay)
}

fn limit(throttle: &Section<'_>, rule: LimitRule, default: Mode, most: u64) -> Option<Limit> {
    let read = |rule: &Section<'_>| {
        let mode = mode(rule, default);
        let limit = rule.integer("limit", most, 1..=MOST);
        Some(Limit { mode: mode?, limit: limit? })
    };
    throttle.section(rule.label(), read).flatten()
}
