//! The sections `cache`, `limits` and `drain`: what usher stores and bears.

use std::time::Duration;

use super::model::{Cache, Drain, Limits, OnUnavailable};
use super::raw::Section;
use super::units::{DAY, HOUR, KIB, MIB, MINUTE, SECOND};

/// Reads `cache`.
pub(super) fn cache(cache: &Section<'_>) -> Option<Cache> {
    let ttl = cache.duration("ttl", 5 * MINUTE, SECOND / 10..=DAY);
    let negative_ttl = cache.duration("negative_ttl", 30 * SECOND, SECOND / 10..=HOUR);
    let most = negative_ttl.and_then(|least| u64::try_from(least.as_millis()).ok()).unwrap_or_default();
    let negative_ttl_max = cache.duration("negative_ttl_max", (15 * MINUTE).max(most), SECOND / 10..=DAY);
    if let (Some(first), Some(most)) = (negative_ttl, negative_ttl_max)
        && first > most
    {
        cache.problem("negative_ttl_max", "shorter than `negative_ttl`, from which it grows: lengthen it");
    }
    // A longer `ttl` raises this default, so that only one of them has to be set.
    let least = ttl.and_then(|ttl| u64::try_from(ttl.as_millis()).ok()).unwrap_or(0);
    let stale = cache.duration("stale", HOUR.max(least), 0..=7 * DAY);
    if let (Some(stale), Some(ttl)) = (stale, ttl)
        && !stale.is_zero()
        && stale < ttl
    {
        cache
            .problem("stale", "shorter than `ttl`, within which decisions come from the cache anyway: 0s turns it off");
    }
    let capacity = cache.integer("capacity", 100_000, 1..=10_000_000);
    Some(Cache {
        ttl: ttl?,
        negative_ttl: negative_ttl?,
        negative_ttl_max: negative_ttl_max?,
        stale: stale?,
        capacity: capacity?,
    })
}

/// Reads `limits`.
pub(super) fn limits(limits: &Section<'_>) -> Option<Limits> {
    let connections = limits.integer("connections", 60_000, 1..=1_000_000);
    let half = connections.map_or(30_000, |connections: usize| (connections as u64 / 2).max(1));
    let unauthenticated = limits.integer("unauthenticated", half, 1..=1_000_000);
    let proxy_header_timeout = limits.duration("proxy_header_timeout", 5 * SECOND, SECOND / 10..=MINUTE);
    let handshake_timeout = limits.duration("handshake_timeout", 10 * SECOND, SECOND / 10..=5 * MINUTE);
    let login_timeout = limits.duration("login_timeout", 30 * SECOND, SECOND / 10..=10 * MINUTE);
    let prelogin_timeout = limits.duration("prelogin_timeout", MINUTE, SECOND / 10..=HOUR);
    let refusal_delay = limits.duration("refusal_delay", 2 * SECOND, 0..=5 * SECOND);
    let failed_logins = limits.integer("failed_logins", 3, 1..=100);
    let bad_commands = limits.integer("bad_commands", 10, 1..=1_000);
    let max_backend_greeting = limits.size("max_backend_greeting", 64 * KIB, KIB..=16 * MIB);
    let idle_timeout = limits.duration("idle_timeout", 65 * MINUTE, SECOND..=7 * DAY);
    let words = [("reply", OnUnavailable::Reply), ("reply_and_close", OnUnavailable::ReplyAndClose)];
    let on_unavailable = limits.get("on_unavailable").map_or(Some(OnUnavailable::Reply), |node| node.word(&words));
    if let (Some(all), Some(some)) = (connections, unauthenticated)
        && some > all
    {
        limits.warn("unauthenticated", "never reached: `connections` is lower and is reached first");
    }
    if let (Some(login), Some(conversation)) = (login_timeout, prelogin_timeout)
        && login > conversation
    {
        limits.warn("login_timeout", "never reached: `prelogin_timeout` is shorter and ends the connection first");
    }
    if idle_timeout.is_some_and(|idle| idle < Duration::from_secs(30 * 60)) {
        limits.warn("idle_timeout", "RFC 3501 section 5.4 requires at least 30m: idle clients will be disconnected");
    }
    Some(Limits {
        connections: connections?,
        unauthenticated: unauthenticated?,
        proxy_header_timeout: proxy_header_timeout?,
        handshake_timeout: handshake_timeout?,
        login_timeout: login_timeout?,
        prelogin_timeout: prelogin_timeout?,
        refusal_delay: refusal_delay?,
        failed_logins: failed_logins?,
        bad_commands: bad_commands?,
        max_backend_greeting: max_backend_greeting?,
        idle_timeout: idle_timeout?,
        on_unavailable: on_unavailable?,
    })
}

/// Reads `drain`.
pub(super) fn drain(drain: &Section<'_>) -> Option<Drain> {
    let delay = drain.duration("delay", 0, 0..=10 * MINUTE);
    let deadline = drain.duration("deadline", 30 * SECOND, 0..=DAY);
    let max_closes_per_second = drain.integer("max_closes_per_second", 100, 1..=100_000);
    let upgrade_deadline = drain.duration("upgrade_deadline", HOUR, 0..=7 * DAY);
    Some(Drain {
        delay: delay?,
        deadline: deadline?,
        max_closes_per_second: max_closes_per_second?,
        upgrade_deadline: upgrade_deadline?,
    })
}
