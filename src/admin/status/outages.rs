//! The outages at the head of the page: since when, what they mean for users, and what to do.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::html::Mark;
use super::{DAY, EXPIRES_SOON, time_of_day};
use crate::admin::overview::{self, Backend};
use crate::base::clock::unix_now;
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
            found.extend(directory(realm, snapshot, began).map(|outage| (key, began, outage)));
        }
        for one in overview::backends(shared) {
            let key = format!("backend {}", one.state.name);
            let began = down_since(&one, now).unwrap_or_else(|| since(&key));
            found.extend(backend(&one, began).map(|outage| (key, began, outage)));
        }
        found.extend(certificate(snapshot, now).map(|outage| ("certificate".to_owned(), since("certificate"), outage)));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = found.iter().map(|(key, since, _)| (key.clone(), *since)).collect();
        drop(known);
        found.sort_by_key(|(_, since, outage)| (outage.mark != Mark::Bad, *since));
        found.into_iter().map(|(_, _, outage)| outage).collect()
    }
}

/// The time of day, in minutes.
fn at(unix: u64) -> String {
    let text = time_of_day(unix);
    format!("{} UTC", text.get(..5).unwrap_or(&text))
}

fn directory(realm: &RealmCore, snapshot: &Snapshot, since: u64) -> Option<Outage> {
    let name = realm.setting(&snapshot.config.routing).shown.map_or_else(String::new, |name| format!(" {name}"));
    let diagnosis = realm.directory().diagnose();
    let servers = diagnosis.map(|diagnosis| diagnosis.servers().len()).unwrap_or_default();
    let advice = "usher check --connect says why".to_owned();
    match realm.directory().availability() {
        Availability::Unreachable => Some(Outage {
            mark: Mark::Bad,
            words: format!("LDAP{name} unreachable since {}, serving cached users", at(since)),
            advice: format!("Users are served for up to cache.stale; others are refused. `{advice}`."),
        }),
        Availability::Recovering => Some(Outage {
            mark: Mark::Attention,
            words: format!("LDAP{name} is recovering since {}", at(since)),
            advice: format!("`{advice}` of its {servers} servers."),
        }),
        Availability::Available => None,
    }
}

/// How long all of a backend's addresses of a protocol have been down.
fn down_since(backend: &Backend, now: u64) -> Option<u64> {
    let down = backend.state.protocols.iter().filter(|one| !one.up);
    let seconds = down.flat_map(|one| &one.addresses).filter_map(|address| address.down_seconds);
    seconds.max().map(|seconds| now.saturating_sub(seconds))
}

fn backend(backend: &Backend, since: u64) -> Option<Outage> {
    let name = &backend.state.name;
    let down: Vec<&str> = backend.state.protocols.iter().filter(|one| !one.up).map(|one| &*one.protocol).collect();
    if backend.draining.is_some() {
        return None;
    }
    let refusing = backend.state.protocols.iter().filter_map(|one| one.refusing.as_ref()).map(|one| one.seconds).max();
    if let (true, Some(seconds)) = (down.is_empty(), refusing) {
        return Some(Outage {
            mark: Mark::Bad,
            words: format!("{name} refuses every login since {}", at(unix_now().saturating_sub(seconds))),
            advice: "Its authentication is out of order. `usher backends` has its last reply.".to_owned(),
        });
    }
    if down.is_empty() {
        return None;
    }
    let what =
        if down.len() < backend.state.protocols.len() { format!(" ({})", down.join(", ")) } else { String::new() };
    Some(Outage {
        mark: Mark::Bad,
        words: format!("{name}{what} is down since {}", at(since)),
        advice: "Its users are refused until it is up. `usher backends` has the reason.".to_owned(),
    })
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
