//! Whether a backend accepts logins at all, for one protocol.
//!
//! A server whose authentication is broken greets as ever and then refuses every user, or says nothing. One refused
//! login shows nothing of that, as it may be the user's: only users that usher has proven count, several of them, and
//! only while no login succeeds. So neither an attacker nor one broken mailbox can bring a backend into this state,
//! and the first accepted login ends it. Logins are sent there throughout; while the server is silent, few of them, so
//! that not everyone waits.
//!
//! Pure state: the time is an argument.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::BackendError;
use crate::directory::EntryKey;

/// How many users it takes.
const USERS: usize = 3;
/// Within this time.
const WINDOW: Duration = Duration::from_secs(60);
/// And how long no login may have succeeded: on a busy server those that fail stand between others.
const QUIET: Duration = Duration::from_secs(20);
/// How many users are remembered: the latest.
const REMEMBERED: usize = 64;
/// How many logins wait for a silent server at a time.
const TRIALS: usize = 4;
/// How long a user whose login a silent server has not answered is not sent there again.
const RETRY: Duration = Duration::from_secs(5);

/// How a login failed at a backend that was sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginFailure {
    /// The backend refused it, or closed the connection.
    Refused,
    /// No reply in time.
    Silent,
}

impl LoginFailure {
    /// Of an error after the login was sent.
    pub(super) const fn of(error: &BackendError) -> Self {
        if matches!(error, BackendError::Timeout { .. }) { Self::Silent } else { Self::Refused }
    }
}

/// Why no login is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusing {
    pub(super) since: Instant,
    /// What the server said, or how it was silent. It quotes the server.
    pub(super) reason: Arc<str>,
    /// Whether the probe account has shown it, and not users.
    pub(super) by_probe: bool,
    silent: bool,
}

/// What the refusal of the probe account means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeRefusal {
    /// It was known.
    Known,
    /// No login is accepted from now on.
    Begins,
    /// Users log in: it is the account.
    Account,
}

#[derive(Debug, Default)]
struct State {
    /// The last accepted login of a user.
    accepted: Option<Instant>,
    /// The users whose logins have failed since, each once, the latest last.
    failed: Vec<(EntryKey, Instant)>,
    refusing: Option<Refusing>,
    /// Logins that wait for a silent server.
    trials: usize,
    /// The probe account is refused although users log in.
    account_at_fault: bool,
}

/// Whether a backend accepts logins.
#[derive(Debug, Default)]
pub(super) struct Acceptance(Mutex<State>);

/// A login that may be sent; a trial, while the server is silent.
#[derive(Debug)]
pub(super) struct Admission<'a>(Option<&'a Acceptance>);

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(of) = self.0 {
            let mut state = of.state();
            state.trials = state.trials.saturating_sub(1);
        }
    }
}

impl Acceptance {
    fn state(&self) -> MutexGuard<'_, State> {
        // No holder leaves it half-changed, so a poisoned lock is harmless.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why no login is accepted, if none is.
    pub(super) fn refusing(&self) -> Option<Refusing> {
        self.state().refusing.clone()
    }

    /// Whether a login of this user may be sent.
    ///
    /// # Errors
    /// The server answers none, and enough logins wait for it.
    pub(super) fn admit(&self, user: &EntryKey, now: Instant) -> Result<Admission<'_>, Arc<str>> {
        let mut state = self.state();
        let Some(Refusing { silent: true, reason, .. }) = &state.refusing else { return Ok(Admission(None)) };
        let last = state.failed.iter().find(|(known, _)| known == user).map(|(_, at)| *at);
        // Users whose logins hang must not take the place of one whose login would show that the server is back.
        let is_free = match last {
            Some(at) => state.trials == 0 && at + RETRY <= now,
            None => state.trials < TRIALS,
        };
        if !is_free {
            return Err(Arc::clone(reason));
        }
        state.trials += 1;
        Ok(Admission(Some(self)))
    }

    /// Records a login that was accepted; returns how long none was, if that is over.
    pub(super) fn accepted(&self, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        state.accepted = Some(now);
        if state.failed.capacity() > 0 {
            state.failed = Vec::new();
        }
        let ended = state.refusing.take()?;
        state.account_at_fault |= ended.by_probe;
        Some(now - ended.since)
    }

    /// Records a login of a proven user that failed there; returns whether none is accepted from now on.
    pub(super) fn failed(&self, user: &EntryKey, how: LoginFailure, reason: &str, now: Instant) -> bool {
        let mut state = self.state();
        state.failed.retain(|(known, at)| known != user && now - *at < WINDOW);
        if state.failed.len() >= REMEMBERED {
            state.failed.remove(0);
        }
        state.failed.push((user.clone(), now));
        let silent = how == LoginFailure::Silent;
        if let Some(refusing) = &mut state.refusing {
            if !refusing.by_probe {
                refusing.silent = silent;
            }
            return false;
        }
        let quiet = state.accepted.is_none_or(|accepted| now - accepted >= QUIET);
        if !quiet || state.failed.len() < USERS {
            return false;
        }
        state.refusing = Some(Refusing { since: now, reason: reason.into(), by_probe: false, silent });
        true
    }

    /// Records that the probe account was refused.
    pub(super) fn probe_refused(&self, reason: &str, now: Instant) -> ProbeRefusal {
        let mut state = self.state();
        if state.refusing.is_some() || state.account_at_fault {
            return ProbeRefusal::Known;
        }
        if state.accepted.is_some_and(|accepted| now - accepted < WINDOW) {
            state.account_at_fault = true;
            return ProbeRefusal::Account;
        }
        state.refusing = Some(Refusing { since: now, reason: reason.into(), by_probe: true, silent: false });
        ProbeRefusal::Begins
    }

    /// Records that the probe account was accepted; returns how long no login was, if that is over. Its account may be
    /// in another database than the users': what they have shown, they end.
    pub(super) fn probe_accepted(&self, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        state.account_at_fault = false;
        let ended = state.refusing.take_if(|refusing| refusing.by_probe)?;
        Some(now - ended.since)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::directory::Realm;

    fn user(name: &str) -> EntryKey {
        EntryKey::by_dn(Realm::named("default"), &format!("uid={name},dc=x").as_str().into())
    }

    fn fails(acceptance: &Acceptance, name: &str, how: LoginFailure) -> bool {
        acceptance.failed(&user(name), how, "no", Instant::now())
    }

    fn silent() -> Acceptance {
        let acceptance = Acceptance::default();
        assert!(["a", "b", "c"].map(|name| fails(&acceptance, name, LoginFailure::Silent))[2]);
        acceptance
    }

    #[tokio::test(start_paused = true)]
    async fn several_users_are_needed_and_no_success() {
        let acceptance = Acceptance::default();
        for _ in 0..100 {
            assert!(!fails(&acceptance, "a", LoginFailure::Refused), "one user");
            assert!(!fails(&acceptance, "b", LoginFailure::Refused), "two users");
        }
        assert_eq!(acceptance.accepted(Instant::now()), None);
        for name in ["a", "b", "c", "d"] {
            assert!(!fails(&acceptance, name, LoginFailure::Refused), "just after a success");
        }
        advance(QUIET).await;
        assert!(fails(&acceptance, "a", LoginFailure::Refused));
        assert!(!fails(&acceptance, "e", LoginFailure::Refused), "reported once");
        advance(Duration::from_secs(7)).await;
        assert_eq!(acceptance.accepted(Instant::now()), Some(Duration::from_secs(7)));
        assert_eq!(acceptance.refusing(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_far_apart_are_no_outage_and_memory_is_bounded() {
        let acceptance = Acceptance::default();
        for name in 0..100 {
            assert!(!fails(&acceptance, &name.to_string(), LoginFailure::Refused));
            advance(WINDOW / 2).await;
        }
        for name in 0..1_000 {
            fails(&acceptance, &name.to_string(), LoginFailure::Refused);
        }
        assert_eq!(acceptance.state().failed.len(), REMEMBERED);
    }

    #[tokio::test(start_paused = true)]
    async fn few_logins_wait_for_a_silent_server_and_new_users_go_first() {
        let acceptance = silent();
        let now = Instant::now();
        assert!(acceptance.admit(&user("a"), now).is_err(), "has just waited");
        let waiting: Vec<_> = (0..TRIALS).map(|n| acceptance.admit(&user(&format!("new{n}")), now).unwrap()).collect();
        assert!(acceptance.admit(&user("other"), now).is_err());
        drop(waiting);
        advance(RETRY).await;
        let now = Instant::now();
        let trial = acceptance.admit(&user("a"), now).unwrap();
        assert!(acceptance.admit(&user("b"), now).is_err(), "one of those that have failed");
        let other = acceptance.admit(&user("other"), now).unwrap();
        acceptance.accepted(now);
        drop((trial, other));
        assert!(acceptance.admit(&user("b"), now).is_ok());
        assert_eq!(acceptance.state().trials, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_refuses_at_once_is_sent_every_login() {
        let acceptance = silent();
        fails(&acceptance, "d", LoginFailure::Refused);
        for name in ["a", "b", "c", "d"] {
            assert!(acceptance.admit(&user(name), Instant::now()).is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refused_probe_account_is_an_outage_unless_users_log_in() {
        let acceptance = Acceptance::default();
        assert_eq!(acceptance.probe_refused("no", Instant::now()), ProbeRefusal::Begins);
        assert_eq!(acceptance.probe_refused("no", Instant::now()), ProbeRefusal::Known);
        assert!(acceptance.probe_accepted(Instant::now()).is_some());
        // A user shows that it is the account, for as long as it is refused.
        assert_eq!(acceptance.probe_refused("no", Instant::now()), ProbeRefusal::Begins);
        assert!(acceptance.accepted(Instant::now()).is_some());
        advance(10 * WINDOW).await;
        assert_eq!(acceptance.probe_refused("no", Instant::now()), ProbeRefusal::Known);
        assert_eq!(acceptance.refusing(), None);
        assert!(acceptance.probe_accepted(Instant::now()).is_none());
        acceptance.accepted(Instant::now());
        assert_eq!(acceptance.probe_refused("no", Instant::now()), ProbeRefusal::Account);
    }

    #[tokio::test(start_paused = true)]
    async fn probe_account_does_not_end_what_users_have_shown() {
        let acceptance = silent();
        assert_eq!(acceptance.probe_accepted(Instant::now()), None);
        assert!(acceptance.refusing().is_some());
    }
}
