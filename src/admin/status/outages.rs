//! The outages at the head of the page: since when, what they mean for users, and what to do.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::html::Mark;
use super::{DAY, EXPIRES_SOON, time_of_day};
use crate::admin::overview::{self, Backend, Condition};
use crate::base::clock::{date, unix_now};
use crate::directory::Availability;
use crate::login::realms::RealmCore;
use crate::process::{Shared, Snapshot};

/// Something that is out of order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outage {
    pub(super) mark: Mark,
    /// For the headline.
    pub(super) words: String,
    /// What to do.
    pub(super) advice: String,
}

/// When each outage was first seen, Unix seconds: the page is asked for at any time, and looked at every ten seconds.
#[derive(Debug, Default)]
pub(super) struct Outages(Mutex<BTreeMap<String, u64>>);

impl Outages {
    /// Those of now, the worst first.
    pub(super) fn now(&self, shared: &Shared, snapshot: &Snapshot) -> Vec<Outage> {
        let now = unix_now();
        let mut found: Vec<(String, u64, Outage)> = Vec::new();
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let since = |key: &str| before.get(key).copied().unwrap_or(now);
        for realm in snapshot.realms.all() {
            let key = format!("directory {}", realm.realm.name());
            let began = since(&key);
            found.extend(directory(realm, snapshot, began, now).map(|outage| (key, began, outage)));
        }
        for one in overview::backends(shared) {
            let key = format!("backend {}", one.state.name);
            let began = since_of(&one, now).unwrap_or_else(|| since(&key));
            found.extend(backend(&one, began, now).map(|outage| (key, began, outage)));
        }
        found.extend(certificate(snapshot, now).map(|outage| ("certificate".to_owned(), since("certificate"), outage)));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = found.iter().map(|(key, since, _)| (key.clone(), *since)).collect();
        drop(known);
        found.sort_by_key(|(_, since, outage)| (outage.mark != Mark::Bad, *since));
        found.into_iter().map(|(_, _, outage)| outage).collect()
    }
}

/// A time in minutes; with its day, if that may be another than today.
fn at(unix: u64, now: u64) -> String {
    let text = time_of_day(unix);
    let time = text.get(..5).unwrap_or(&text);
    let is_recent = now.saturating_sub(unix) < 12 * 60 * 60;
    let day = if is_recent { String::new() } else { format!("{} ", date(i64::try_from(unix).unwrap_or(i64::MAX))) };
    format!("{day}{time} UTC")
}

fn directory(realm: &RealmCore, snapshot: &Snapshot, since: u64, now: u64) -> Option<Outage> {
    let name = realm.setting(&snapshot.config.routing).shown.map_or_else(String::new, |name| format!(" {name}"));
    let began = at(since, now);
    let advice = "`usher check --connect` says why.";
    match realm.directory().availability() {
        Availability::Unreachable => {
            let cache = &snapshot.config.cache;
            let (cached, served) = match now.saturating_sub(since) < cache.stale.max(cache.ttl).as_secs() {
                true => (
                    ", serving cached users",
                    "Users are served from the cache for up to cache.stale; others are refused.",
                ),
                false => (", no cached user is left", "Every login that needs it is refused."),
            };
            let words = format!("LDAP{name} unreachable since {began}{cached}");
            Some(Outage { mark: Mark::Bad, words, advice: format!("{served} {advice}") })
        }
        Availability::Recovering => {
            let words = format!("LDAP{name} is recovering since {began}");
            Some(Outage { mark: Mark::Attention, words, advice: advice.to_owned() })
        }
        Availability::Available => None,
    }
}

/// Since when a backend is out of order, as far as it knows that itself.
fn since_of(backend: &Backend, now: u64) -> Option<u64> {
    let down = backend.state.protocols.iter().filter(|one| !one.up).flat_map(|one| &one.addresses);
    let seconds = down.filter_map(|address| address.down_seconds).max();
    let seconds = seconds.or_else(|| backend.refusing().map(|(_, seconds)| seconds));
    seconds.map(|seconds| now.saturating_sub(seconds))
}

fn backend(backend: &Backend, since: u64, now: u64) -> Option<Outage> {
    let name = &backend.state.name;
    let is_down = "Its users are refused until it is up. `usher backends` has the reason.";
    let (words, advice) = match backend.condition() {
        Condition::Draining | Condition::Up => return None,
        Condition::Down => (format!("{name} is down since {}", at(since, now)), is_down),
        Condition::PartlyDown => {
            (format!("{name} ({}) is down since {}", backend.down().join(", "), at(since, now)), is_down)
        }
        Condition::Refusing => (
            format!("{name} accepts no login since {}", at(since, now)),
            "Its authentication is out of order. `usher backends` has its last reply.",
        ),
    };
    Some(Outage { mark: Mark::Bad, words, advice: advice.to_owned() })
}

fn certificate(snapshot: &Snapshot, now: u64) -> Option<Outage> {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let first = snapshot.tls.certificates().iter().min_by_key(|served| served.not_after)?;
    let (left, chain) = (first.not_after.saturating_sub(now), first.chain.display());
    let outage =
        |mark, words| Outage { mark, words, advice: format!("Renew {chain}; it is used within tls.reload_interval.") };
    match left {
        ..0 => Some(outage(Mark::Bad, "a certificate has expired".to_owned())),
        0..EXPIRES_SOON => {
            Some(outage(Mark::Attention, format!("a certificate expires in {} days", left.div_euclid(DAY))))
        }
        _ => None,
    }
}
