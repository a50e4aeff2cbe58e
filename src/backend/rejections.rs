//! Which addresses of a backend have rejected a login not long ago.
//!
//! Dovecot delays its replies to the address of a rejected login, by 4 s, twice as long after each further one and up to
//! 15 s, until a login from there succeeds or some minutes have passed (its auth penalty). Where it takes usher for the client, the next users' logins meet that
//! delay as time-outs: their log lines name the rejection.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Dovecot's penalty has at most four steps and loses one in a minute.
const MEMORY: Duration = Duration::from_secs(5 * 60);
/// As many hosts as the addresses of four protocols can name.
const HOSTS: usize = 64;

/// The last rejection of each host: its ports share the delay, which belongs to its authentication service.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    hosts: Mutex<Vec<(IpAddr, Instant)>>,
}

impl Rejections {
    fn hosts(&self) -> MutexGuard<'_, Vec<(IpAddr, Instant)>> {
        // No holder leaves it half-changed, so a poisoned lock is harmless.
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a rejection now; where there are too many hosts, the oldest is forgotten.
    pub(super) fn record(&self, host: IpAddr) {
        let now = Instant::now();
        let mut hosts = self.hosts();
        hosts.retain(|(known, at)| *known != host && now - *at < MEMORY);
        if hosts.len() >= HOSTS {
            hosts.remove(0);
        }
        hosts.push((host, now));
    }

    /// Forgets a host: it accepted a login.
    pub(super) fn forget(&self, host: IpAddr) {
        self.hosts().retain(|(known, _)| *known != host);
    }

    /// How long ago the host has rejected a login, if that is recent.
    pub(super) fn last(&self, host: IpAddr) -> Option<Duration> {
        let hosts = self.hosts();
        let (_, at) = hosts.iter().find(|(known, _)| *known == host)?;
        Some(at.elapsed()).filter(|ago| *ago < MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;

    fn host(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0xc000_0200 + number).into()
    }

    #[tokio::test(start_paused = true)]
    async fn rejections_are_remembered_for_minutes_and_hosts_are_limited() {
        let rejections = Rejections::default();
        assert_eq!(rejections.last(host(1)), None);
        rejections.record(host(1));
        advance(Duration::from_secs(12)).await;
        assert_eq!((rejections.last(host(1)), rejections.last(host(2))), (Some(Duration::from_secs(12)), None));
        rejections.record(host(1));
        assert_eq!(rejections.last(host(1)), Some(Duration::ZERO), "the last one counts");
        rejections.forget(host(2));
        assert!(rejections.last(host(1)).is_some());
        rejections.forget(host(1));
        assert_eq!(rejections.last(host(1)), None);
        rejections.record(host(1));
        advance(MEMORY).await;
        assert_eq!(rejections.last(host(1)), None);
        for number in 0..1_000 {
            rejections.record(host(number));
        }
        assert_eq!(rejections.hosts().len(), HOSTS);
        assert!(rejections.last(host(999)).is_some() && rejections.last(host(0)).is_none());
    }
}
