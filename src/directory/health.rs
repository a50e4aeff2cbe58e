//! Whether a directory server is worth asking, as a small state machine without sockets.
//!
//! It learns from *questions*, which are operations for somebody who logs in, and from *looks*, which
//! ask for nobody and in the background. What is wrong with the server itself (no connection, bad
//! TLS, a reset, busy, unavailable) puts it aside at once. A question that meets its time-out, or
//! whose answer is odd, may be about one user's entry: a look decides, and while it does the other
//! servers are preferred. The same with a second user, and nothing answered in between, is about the
//! server, whatever a look finds.
//!
//! Aside, it is looked at again after a pause that grows. A good look is enough if a look had failed;
//! if a question had, one question of that kind must be answered first, and only one is sent there.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Trouble;
use super::pool::jittered;
use super::server::{Tuning, locked};

/// A server that fails again so soon after its return is put aside for longer than the last time.
const PROBATION: Duration = Duration::from_secs(60);
/// How often a server that is aside is looked at while no other is in use.
const LOOK_WHEN_AWAY: Duration = Duration::from_secs(1);
/// Two looks for the sake of waiting logins are at least this far apart.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Whose operation it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nobody's: a connection being made, the service account's bind, a look.
    Look,
    /// Somebody's.
    Question {
        /// The operation's metric label.
        operation: &'static str,
        /// A hash of what was asked for.
        who: u64,
    },
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// In use. `slow`: the last question without a good answer, if none of its kind was answered since.
    Well { slow: Option<(&'static str, u64)> },
    /// A question had no good answer, and nobody has looked yet.
    Suspected { slow: (&'static str, u64) },
    /// Out of use. `needs`: the kind of question that has to be answered before it is well.
    Aside { needs: Option<&'static str>, until: Instant },
    /// A look was good; one question may try.
    Returning { needs: &'static str, taken_until: Option<Instant> },
}

/// How a server stands, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// One question may try whether it is well again.
    OnTrial,
    /// In use.
    Good,
    /// In use where nothing better is.
    Doubtful,
    /// Not to be asked.
    Out,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// How often in a row it was put aside.
    failures: u32,
    failed_at: Option<Instant>,
    returned_at: Option<Instant>,
    /// Why it was put aside last.
    trouble: Trouble,
    looking: bool,
    looked_at: Option<Instant>,
}

/// The health of one server.
#[derive(Debug)]
pub(super) struct Health {
    inner: Mutex<Inner>,
    tuning: Tuning,
    /// Told of every change, to whoever waits for a server to come back.
    changed: watch::Sender<()>,
}

impl Health {
    /// Well until something else is known.
    pub(super) fn new(tuning: Tuning, changed: watch::Sender<()>) -> Self {
        let inner = Inner {
            state: State::Well { slow: None },
            failures: 0,
            failed_at: None,
            returned_at: None,
            trouble: Trouble::Timeout,
            looking: false,
            looked_at: None,
        };
        Self { inner: Mutex::new(inner), tuning, changed }
    }

    /// The server is at fault; whether it was in use until now.
    pub(super) fn broke(&self, cause: Cause, trouble: &Trouble) -> bool {
        let needs = match cause {
            Cause::Look => None,
            Cause::Question { operation, .. } => Some(operation),
        };
        self.change(|inner| inner.put_aside(needs, trouble, &self.tuning))
    }

    /// A question had no good answer, for reasons that may lie in what was asked; whether that puts
    /// aside a server that was in use.
    pub(super) fn faltered(&self, cause: Cause, trouble: &Trouble) -> bool {
        let Cause::Question { operation, who } = cause else { return self.broke(cause, trouble) };
        self.change(|inner| {
            inner.failed_at = Some(Instant::now());
            let is_other = |slow: (&str, u64)| slow.0 == operation && slow.1 != who;
            match inner.state {
                State::Well { slow: Some(slow) } | State::Suspected { slow } if is_other(slow) => {
                    inner.put_aside(Some(operation), trouble, &self.tuning)
                }
                State::Well { .. } => {
                    inner.state = State::Suspected { slow: (operation, who) };
                    false
                }
                State::Suspected { .. } => false,
                State::Aside { .. } | State::Returning { .. } => {
                    inner.put_aside(Some(operation), trouble, &self.tuning)
                }
            }
        })
    }

    /// A question that was sent at `asked` was answered; whether that brought the server back.
    pub(super) fn answered(&self, operation: &'static str, asked: Instant) -> bool {
        if matches!(locked(&self.inner).state, State::Well { slow: None }) {
            return false;
        }
        self.change(|inner| match inner.state {
            State::Well { slow: Some(slow) } | State::Suspected { slow } if slow.0 == operation => {
                inner.state = State::Well { slow: None };
                false
            }
            // An answer to what was asked before the fault tells about the time before it.
            State::Aside { needs: Some(needs), .. } | State::Returning { needs, .. }
                if needs == operation && inner.failed_at.is_none_or(|failed| failed <= asked) =>
            {
                inner.take_back();
                true
            }
            State::Well { .. } | State::Suspected { .. } | State::Aside { .. } | State::Returning { .. } => false,
        })
    }

    /// A look found it well; whether that brought the server back.
    pub(super) fn looked_well(&self) -> bool {
        self.change(|inner| {
            match inner.state {
                State::Aside { needs: None, .. } => {
                    inner.take_back();
                    return true;
                }
                State::Aside { needs: Some(needs), .. } => inner.state = State::Returning { needs, taken_until: None },
                State::Suspected { slow } => inner.state = State::Well { slow: Some(slow) },
                State::Well { .. } | State::Returning { .. } => {}
            }
            false
        })
    }

    /// Whether it failed at or after this moment.
    pub(super) fn failed_since(&self, moment: Instant) -> bool {
        locked(&self.inner).failed_at.is_some_and(|failed| failed >= moment)
    }

    /// How it stands, and since when it has failed if it has.
    pub(super) fn standing(&self) -> (Standing, Option<Instant>) {
        let inner = locked(&self.inner);
        let standing = match inner.state {
            State::Well { .. } => Standing::Good,
            State::Suspected { .. } => Standing::Doubtful,
            State::Returning { taken_until, .. } if is_over(taken_until) => Standing::OnTrial,
            State::Returning { .. } | State::Aside { .. } => Standing::Out,
        };
        (standing, inner.failed_at)
    }

    /// Whether it is well as far as is known: neither aside nor on its way back.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(locked(&self.inner).state, State::Well { .. } | State::Suspected { .. })
    }

    /// Whether a look is what it takes to know more.
    pub(super) fn is_suspected(&self) -> bool {
        matches!(locked(&self.inner).state, State::Suspected { .. })
    }

    /// Whether it answers: 0 in `usher_directory_up` only while it is aside.
    pub(super) fn is_up(&self) -> bool {
        !matches!(locked(&self.inner).state, State::Aside { .. })
    }

    /// Why it was put aside last.
    pub(super) fn trouble(&self) -> Trouble {
        locked(&self.inner).trouble.clone()
    }

    /// Whether a question may go there now; takes the one that is on trial.
    pub(super) fn enter(&self, trial: Duration) -> bool {
        let mut inner = locked(&self.inner);
        match &mut inner.state {
            State::Well { .. } | State::Suspected { .. } => true,
            State::Returning { taken_until, .. } if is_over(*taken_until) => {
                *taken_until = Some(Instant::now() + trial);
                true
            }
            State::Returning { .. } | State::Aside { .. } => false,
        }
    }

    /// Whether it is time for a look; if so it counts as begun. `away`: no server is in use;
    /// `awaited`: somebody waits to log in.
    pub(super) fn begin_look(&self, away: bool, awaited: bool) -> bool {
        let mut inner = locked(&self.inner);
        let now = Instant::now();
        let rested = |pause: Duration| inner.looked_at.is_none_or(|looked| now.duration_since(looked) >= pause);
        let due = match inner.state {
            State::Suspected { .. } => true,
            State::Aside { .. } if awaited => rested(LOOK_PAUSE),
            State::Aside { .. } if away && rested(LOOK_WHEN_AWAY) => true,
            State::Aside { until, .. } => until <= now,
            State::Well { .. } | State::Returning { .. } => rested(self.tuning.look),
        };
        if inner.looking || !due {
            return false;
        }
        inner.looking = true;
        true
    }

    /// The look that had begun is over.
    pub(super) fn end_look(&self) {
        self.change(|inner| {
            inner.looking = false;
            inner.looked_at = Some(Instant::now());
        });
    }

    /// Whether a look has ended since this moment.
    pub(super) fn was_looked_at(&self, since: Instant) -> bool {
        locked(&self.inner).looked_at.is_some_and(|looked| looked >= since)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let told = change(&mut locked(&self.inner));
        self.changed.send_replace(());
        told
    }
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_none_or(|until| until <= Instant::now())
}

impl Inner {
    /// Whether it was in use until now.
    fn put_aside(&mut self, needs: Option<&'static str>, trouble: &Trouble, tuning: &Tuning) -> bool {
        let was_in_use = matches!(self.state, State::Well { .. } | State::Suspected { .. });
        let now = Instant::now();
        self.failed_at = Some(now);
        self.trouble = trouble.clone();
        let needs = match self.state {
            // Those who were under way when it failed report the same failure.
            State::Aside { needs: earlier, until } if now < until => {
                self.state = State::Aside { needs: earlier.or(needs), until };
                return false;
            }
            State::Aside { needs: earlier, .. } => {
                self.failures = self.failures.saturating_add(1);
                earlier.or(needs)
            }
            State::Returning { needs: earlier, .. } => {
                self.failures = self.failures.saturating_add(1);
                Some(earlier)
            }
            State::Well { .. } | State::Suspected { .. } => {
                let is_early = self.returned_at.is_some_and(|back| now.duration_since(back) < PROBATION);
                self.failures = if is_early { self.failures.saturating_add(1) } else { 1 };
                needs
            }
        };
        let doubled = 1 << self.failures.saturating_sub(1).min(16);
        let pause = tuning.aside.saturating_mul(doubled).min(tuning.aside_max);
        self.state = State::Aside { needs, until: now + jittered(pause) };
        was_in_use
    }

    fn take_back(&mut self) {
        self.state = State::Well { slow: None };
        self.returned_at = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Cause = Cause::Question { operation: "bind", who: 1 };
    const BOB: Cause = Cause::Question { operation: "bind", who: 2 };
    const SECOND: Duration = Duration::from_secs(1);

    fn health() -> Health {
        Health::new(Tuning::default(), watch::Sender::new(()))
    }

    fn standing(health: &Health) -> Standing {
        health.standing().0
    }

    /// A look that finds nothing wrong.
    fn good_look(health: &Health) -> bool {
        let back = health.looked_well();
        health.end_look();
        back
    }

    #[tokio::test(start_paused = true)]
    async fn failing_server_is_marked_down_for_growing_times() {
        let health = health();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let failed = Instant::now();
            health.broke(Cause::Look, &Trouble::Timeout);
            health.broke(ALICE, &Trouble::Timeout);
            health.faltered(BOB, &Trouble::Timeout);
            assert!(health.failed_since(failed));
            assert_eq!((standing(&health), health.is_up(), health.enter(SECOND)), (Standing::Out, false, false));
            while !health.begin_look(false, false) {
                tokio::time::advance(Duration::from_millis(100)).await;
            }
            pauses.push(failed.elapsed().as_secs_f64());
            assert!(!health.begin_look(false, false), "one look at a time");
            health.end_look();
        }
        assert!(pauses[0] < 1.4, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause < 36.5), "{pauses:?}");
        assert!(pauses[7] > 23.0, "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_slow_user_is_no_slow_server_and_two_are() {
        let health = health();
        for _ in 0..5 {
            health.faltered(ALICE, &Trouble::Timeout);
            assert_eq!(standing(&health), Standing::Doubtful);
            assert!(health.begin_look(false, false), "a look decides, at once");
            assert!(!good_look(&health));
            assert_eq!(standing(&health), Standing::Good);
        }
        // Somebody else's good answer tells that it was alice alone.
        health.answered("bind", Instant::now());
        health.faltered(BOB, &Trouble::Timeout);
        assert_eq!(standing(&health), Standing::Doubtful);
        // A search that is answered says nothing about binds.
        health.answered("search", Instant::now());
        health.faltered(ALICE, &Trouble::Timeout);
        assert_eq!(standing(&health), Standing::Out);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_operation_must_succeed_for_recovery() {
        let health = health();
        health.broke(ALICE, &Trouble::Timeout);
        let before = Instant::now();
        tokio::time::advance(SECOND).await;
        assert!(!health.answered("search", Instant::now()));
        assert!(!good_look(&health), "a look binds nobody");
        assert!(!health.is_in_use() && health.is_up());
        assert_eq!(standing(&health), Standing::OnTrial);
        // One question tries, nobody else.
        assert!(health.enter(SECOND));
        assert_eq!((standing(&health), health.enter(SECOND)), (Standing::Out, false));
        health.faltered(BOB, &Trouble::Timeout);
        assert!(!health.is_up());
        assert!(!health.answered("bind", before), "an answer from before the fault");
        good_look(&health);
        assert!(health.enter(SECOND));
        // One that never came to its bind does not hold the place for ever.
        tokio::time::advance(SECOND).await;
        assert!(health.enter(SECOND));
        assert!(health.answered("bind", Instant::now()));
        assert!(health.is_in_use());
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_fails_after_recovery_keeps_its_backoff() {
        let health = health();
        let mut pause = Duration::ZERO;
        for _ in 0..5 {
            health.broke(Cause::Look, &Trouble::Timeout);
            let failed = Instant::now();
            while !health.begin_look(false, false) {
                tokio::time::advance(Duration::from_millis(50)).await;
            }
            assert!(good_look(&health));
            assert!(failed.elapsed() > pause, "{pause:?}");
            pause = failed.elapsed();
        }
        tokio::time::advance(PROBATION).await;
        health.broke(Cause::Look, &Trouble::Timeout);
        tokio::time::advance(SECOND * 2).await;
        assert!(health.begin_look(false, false));
    }

    #[tokio::test(start_paused = true)]
    async fn probes_are_sooner_when_fewer_servers_are_healthy() {
        let health = health();
        assert!(health.begin_look(false, false), "at the start");
        good_look(&health);
        assert!(!health.begin_look(false, false));
        tokio::time::advance(Tuning::default().look).await;
        assert!(health.begin_look(false, false));
        good_look(&health);
        for _ in 0..9 {
            health.broke(Cause::Look, &Trouble::Timeout);
            tokio::time::advance(Duration::from_secs(40)).await;
        }
        health.broke(Cause::Look, &Trouble::Timeout);
        health.end_look();
        tokio::time::advance(LOOK_PAUSE).await;
        assert!(!health.begin_look(false, false) && !health.begin_look(true, false));
        assert!(health.begin_look(false, true), "somebody waits");
        health.end_look();
        tokio::time::advance(SECOND).await;
        assert!(!health.begin_look(false, false));
        assert!(health.begin_look(true, false), "nobody else is there");
    }
}
