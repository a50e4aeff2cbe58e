//! The directory's servers, in order of preference, and which of them is worth asking.
//!
//! A server that failed is put aside, for a second at first and up to half a minute, so that one
//! dead server costs one login one time-out and not each login one (promise 19). When its time is
//! over it is asked in the background; no login is the guinea pig while another server answers.
//! With all of them aside, the one that failed longest ago is asked.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Question;
use super::server::{Failure, Server, Tuning, locked};
use super::{DirectoryError, Trouble};

/// A duration give or take a fifth, so that many connections do not end at once.
pub(super) fn jittered(duration: Duration) -> Duration {
    // Each RandomState has keys of its own: chance enough for this, without a dependency.
    let chance = u32::try_from(RandomState::new().hash_one(0) % 400).unwrap_or_default();
    duration.saturating_mul(800 + chance) / 1_000
}

/// A server that is put aside.
#[derive(Debug, Clone, Copy)]
struct Aside {
    failures: u32,
    at: Instant,
    until: Instant,
}

/// Whether a server is worth asking.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<Aside>>);

impl Health {
    /// It failed: aside, for longer each time.
    pub(super) fn failed(&self, tuning: &Tuning) {
        let mut aside = locked(&self.0);
        let now = Instant::now();
        let failures = match *aside {
            // Those who were under way when it failed report the same failure.
            Some(earlier) if now < earlier.until => earlier.failures,
            Some(earlier) => earlier.failures.saturating_add(1),
            None => 1,
        };
        let pause = tuning.aside.saturating_mul(1 << (failures - 1).min(16)).min(tuning.aside_max);
        *aside = Some(Aside { failures, at: now, until: now + jittered(pause) });
    }

    /// It answered; whether it had been aside.
    pub(super) fn well(&self) -> bool {
        locked(&self.0).take().is_some()
    }

    /// Whether it failed at or after this moment, and has not answered since.
    pub(super) fn failed_since(&self, moment: Instant) -> bool {
        locked(&self.0).is_some_and(|aside| aside.at >= moment)
    }

    /// When it failed, if it is aside; it stays so until it answers.
    fn aside_at(&self) -> Option<Instant> {
        locked(&self.0).map(|aside| aside.at)
    }

    /// Whether it is time to look after it. Says so once: the next look is due a pause later.
    fn is_due(&self, tuning: &Tuning) -> bool {
        let mut aside = locked(&self.0);
        let now = Instant::now();
        match aside.as_mut().filter(|aside| aside.until <= now) {
            Some(aside) => {
                aside.failures = aside.failures.saturating_add(1);
                aside.until = now + tuning.aside_max;
                true
            }
            None => false,
        }
    }
}

/// The servers.
#[derive(Debug)]
pub(super) struct Pool {
    servers: Vec<Arc<Server>>,
    tuning: Tuning,
}

impl Pool {
    /// Takes the servers in order of preference.
    pub(super) fn new(servers: Vec<Arc<Server>>, tuning: Tuning) -> Self {
        Self { servers, tuning }
    }

    /// All of them, in order of preference.
    pub(super) fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }

    /// The order in which to ask now; sends somebody to look after those whose pause is over.
    pub(super) fn tries(&self, deadline: Instant, probe: impl Fn() -> Question) -> Tries {
        let mut aside = Vec::new();
        let mut order = VecDeque::with_capacity(self.servers.len());
        for server in &self.servers {
            match server.health.aside_at() {
                None => order.push_back(server.clone()),
                Some(at) => aside.push((at, server)),
            }
        }
        aside.sort_by_key(|(at, _)| *at);
        for (_, server) in aside {
            if !order.is_empty() && server.health.is_due(&self.tuning) {
                tokio::spawn(server.clone().look_after(probe()));
            }
            order.push_back(server.clone());
        }
        Tries { order, deadline, spare: true, last: Trouble::Timeout }
    }
}

/// The servers that one question may still go to.
#[derive(Debug)]
pub(super) struct Tries {
    order: VecDeque<Arc<Server>>,
    deadline: Instant,
    /// Whether one more server may be asked after one that gave no verdict.
    spare: bool,
    last: Trouble,
}

impl Tries {
    /// The next server, or the last one's trouble.
    pub(super) fn next(&mut self) -> Result<Arc<Server>, DirectoryError> {
        let next = self.order.pop_front().filter(|_| Instant::now() < self.deadline);
        next.ok_or_else(|| DirectoryError::CannotTell(self.last.clone()))
    }

    /// Notes that a server gave no verdict; an error if no other may be asked.
    pub(super) fn note(&mut self, failure: Failure) -> Result<(), DirectoryError> {
        match failure {
            Failure::Unasked(trouble) => self.last = trouble,
            Failure::Unsure(trouble) if self.spare => {
                self.spare = false;
                self.last = trouble;
            }
            Failure::Unsure(trouble) | Failure::Answered(trouble) => return Err(DirectoryError::CannotTell(trouble)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_fails_is_put_aside_for_longer_each_time() {
        let tuning = Tuning::default();
        let health = Health::default();
        assert!(!health.well());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            health.failed(&tuning);
            let failed = Instant::now();
            // A second report within the pause does not make it longer in kind.
            health.failed(&tuning);
            assert!(health.failed_since(failed));
            while !health.is_due(&tuning) {
                tokio::time::advance(Duration::from_millis(100)).await;
            }
            pauses.push(failed.elapsed().as_secs_f64());
            assert!(!health.is_due(&tuning), "one look at a time");
            tokio::time::advance(tuning.aside_max).await;
        }
        assert!(pauses[0] < 1.4, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause < 36.5), "{pauses:?}");
        assert!(pauses[7] > 23.0, "{pauses:?}");
        assert!(health.well());
        assert!(health.aside_at().is_none());
    }

    #[test]
    fn jitter_is_a_fifth_at_most() {
        for _ in 0..1_000 {
            let second = jittered(Duration::from_secs(10));
            assert!(second >= Duration::from_secs(8) && second < Duration::from_secs(12));
        }
    }
}
