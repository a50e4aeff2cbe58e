//! The replication lag of a server, by contextCSN: OpenLDAP keeps in its suffix entry, for each provider, the
//! CSN of the last write received (not part of RFC 4533; slapd-config(5), slapo-syncprov(5)).
//!
//! Read with each probe of the server, if the watch is on and there are several servers. A server without
//! contextCSN is not asked again. For information only: `fresh` decides where to bind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::time::{Instant, timeout_at};

use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::endpoint::Endpoint;
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::schema::{self, Values};
use crate::directory::ldap::search::{self, Query};
use crate::directory::ldap::tuning::locked;

/// Providers of one directory; more are not read.
const MOST: usize = 64;
/// Bytes of a CSN.
const LONGEST: usize = 80;

/// The last contextCSN values of each server, by provider.
pub(crate) type ContextCsns = HashMap<Arc<str>, HashMap<String, String>>;

/// The replication lag of one server.
#[derive(Debug)]
pub(crate) struct ReplicationLag {
    base: String,
    seen: Arc<Mutex<ContextCsns>>,
    state: Mutex<LagState>,
}

#[derive(Debug)]
enum LagState {
    /// Not read yet.
    New,
    /// The server has no contextCSN.
    Unknown,
    /// The suffix above the base, and the lag in seconds.
    Known { suffix: String, seconds: f64 },
}

impl ReplicationLag {
    /// For a server of the directory with this base; `seen` is shared by all of its servers.
    pub(crate) fn new(base: String, seen: Arc<Mutex<ContextCsns>>) -> Self {
        Self { base, seen, state: Mutex::new(LagState::New) }
    }

    /// Seconds, if the server exposes them.
    pub(crate) fn seconds(&self) -> Option<f64> {
        match *locked(&self.state) {
            LagState::Known { seconds, .. } => Some(seconds),
            LagState::New | LagState::Unknown => None,
        }
    }

    /// Reads the server's contextCSN and compares it with those of the others.
    pub(crate) async fn measure(&self, endpoint: &Endpoint, connection: &Connection, deadline: Instant) {
        let known = match &*locked(&self.state) {
            LagState::New => None,
            LagState::Unknown => return,
            LagState::Known { suffix, .. } => Some(suffix.clone()),
        };
        let asked = async {
            let suffix = match known {
                Some(suffix) => Some(suffix),
                None => suffix_of(&read(connection, "", "namingContexts").await?, &self.base),
            };
            let Some(suffix) = suffix else { return Ok(None) };
            let shown = by_writer(&read(connection, &suffix, "contextCSN").await?);
            Ok::<_, ConnectionError>((!shown.is_empty()).then_some((suffix, shown)))
        };
        // The probe reports a server that does not answer.
        let Ok(Ok(found)) = timeout_at(deadline.min(Instant::now() + endpoint.patience), asked).await else { return };
        *locked(&self.state) = match found {
            None => LagState::Unknown,
            Some((suffix, shown)) => {
                let mut seen = locked(&self.seen);
                let seconds = behind(&shown, seen.values());
                seen.insert(Arc::clone(&endpoint.url), shown);
                LagState::Known { suffix, seconds }
            }
        };
    }
}

/// The values of one attribute of one entry.
async fn read(connection: &Connection, base: &str, attribute: &str) -> Result<Vec<Vec<u8>>, ConnectionError> {
    let mut found = None;
    search::each(connection, Query::read(base, vec![attribute]), |entry| {
        // A base search returns one entry; more are an error.
        if found.is_some() {
            return Err(ConnectionError::Malformed);
        }
        let (_, attributes) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
        let is_wanted = |(name, _): &Values| name.eq_ignore_ascii_case(attribute.as_bytes());
        let values = attributes.into_iter().filter(is_wanted).flat_map(|(_, values)| values);
        found = Some(values.take(MOST).collect());
        Ok(())
    })
    .await?;
    Ok(found.unwrap_or_default())
}

/// The naming context of this base.
fn suffix_of(contexts: &[Vec<u8>], base: &str) -> Option<String> {
    let plain = |dn: &str| dn.to_lowercase().replace(", ", ",");
    let base = plain(base);
    let contexts = contexts.iter().filter_map(|context| std::str::from_utf8(context).ok());
    let above = contexts.filter(|context| {
        let context = plain(context);
        !context.is_empty() && (base == context || base.ends_with(&format!(",{context}")))
    });
    above.max_by_key(|context| context.len()).map(str::to_owned)
}

/// CSNs by provider.
fn by_writer(values: &[Vec<u8>]) -> HashMap<String, String> {
    let csns = values.iter().filter(|value| value.len() <= LONGEST).filter_map(|value| std::str::from_utf8(value).ok());
    csns.filter_map(|csn| Some((csn.split('#').nth(2)?.to_owned(), csn.to_owned()))).collect()
}

/// Seconds between the newest write seen elsewhere and the newest of the same provider here.
fn behind<'a>(shown: &HashMap<String, String>, others: impl Iterator<Item = &'a HashMap<String, String>>) -> f64 {
    let mut most: f64 = 0.0;
    for (writer, newest) in others.flatten() {
        let Some(own) = shown.get(writer).filter(|own| *own < newest) else { continue };
        if let (Some(newest), Some(own)) = (seconds(newest), seconds(own)) {
            most = most.max(newest - own);
        }
    }
    most
}

/// The time of a CSN (`20261126140005.123456Z#...`) in seconds since a fixed day.
fn seconds(csn: &str) -> Option<f64> {
    let number = |range: std::ops::Range<usize>| csn.get(range)?.parse::<u32>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    // Days of a civil date; the year begins in March, so that a leap day is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let rest = f64::from(number(8..10)? * 3_600 + number(10..12)? * 60 + number(12..14)?);
    let fraction = csn.get(14..).and_then(|rest| rest.split('Z').next()?.parse::<f64>().ok()).unwrap_or_default();
    Some(f64::from(days) * 86_400.0 + rest + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(csns: &[&str]) -> HashMap<String, String> {
        by_writer(&csns.iter().map(|csn| csn.as_bytes().to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn lag_is_time_between_writes_of_one_writer() {
        let here = shown(&["20261231235959.500000Z#000000#001#000000", "20261126140005.000000Z#000000#002#000000"]);
        let lag = |csns: &[&str]| behind(&here, [shown(csns)].iter());
        assert_eq!(lag(&["20261231235959.500000Z#000000#001#000000"]), 0.0);
        assert_eq!(lag(&["20270101000001.000000Z#000000#001#000000"]), 1.5);
        assert_eq!(lag(&["20261126140000.000000Z#000000#001#000000"]), 0.0, "an older one is not ahead");
        assert_eq!(lag(&["20261126150005.000000Z#000000#002#000000"]), 3_600.0);
        assert_eq!(lag(&["20271126150005.000000Z#000000#003#000000"]), 0.0, "a provider without writes here");
        assert_eq!(lag(&["no#csn#001#x"]), 0.0, "no time");
        let leap = seconds("20280301000000.0Z").unwrap() - seconds("20280228000000.0Z").unwrap();
        assert_eq!(leap, 2.0 * 86_400.0);
        assert!(seconds("2028").is_none() && seconds("").is_none() && seconds("0000").is_none());
    }

    #[test]
    fn suffix_is_the_longest_context_above_the_base() {
        let contexts = ["dc=com", "dc=example,dc=com", "cn=x", "", "dc=le,dc=com"].map(|text| text.as_bytes().to_vec());
        let suffix = |base| suffix_of(&contexts, base);
        assert_eq!(suffix("ou=people, DC=Example,dc=com").as_deref(), Some("dc=example,dc=com"));
        assert_eq!(suffix("dc=example,dc=com").as_deref(), Some("dc=example,dc=com"));
        assert_eq!(suffix("o=elsewhere"), None);
    }
}
