//! Whether an address is worth a login, and how fast logins come back after an outage.
//!
//! State and nothing else: moments come in, nothing waits here. Only what the server itself does
//! wrong is reported to a [`Breaker`] (connect, TLS, greeting): a user who is refused never is, or
//! one banned user would close the door for everybody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// How long an address that came back is on trial: one fault is enough to close it again.
const TRIAL: Duration = Duration::from_secs(10);
/// How long a login waits for an address that is down to show that it is back: with what the answer
/// itself takes, below the 50 ms in which a known outage is told.
pub(super) const PATIENCE: Duration = Duration::from_millis(30);
/// How long it waits once the address has connected where it did not before: it is coming back, and
/// the first login after that is to get in even if the greeting takes its time.
const CONFIDENCE: Duration = Duration::from_secs(2);
/// Between the end of one look at an address that is down and the next, for a login's sake: shorter
/// than [`PATIENCE`], so that the first login after its return finds it.
pub(super) const SPACING: Duration = Duration::from_millis(20);
/// Logins a second at the beginning of a ramp.
const SLOWEST: f64 = 10.0;
/// How often the rate doubles over a ramp: at its end it is beyond what any server takes.
const DOUBLINGS: f64 = 10.0;

/// What a breaker has been told of its address.
#[derive(Debug)]
enum State {
    /// Logins may go there.
    Closed {
        /// Faults since it was last well.
        strikes: u32,
    },
    /// Only looks go there.
    Open {
        since: Instant,
        reason: Arc<str>,
        /// Whether it connected when it last failed.
        connected: bool,
    },
}

/// The last look at an address.
#[derive(Debug, Clone, Copy)]
enum Look {
    Never,
    Running { began: Instant, connected: bool },
    Over { began: Instant, ended: Instant },
}

/// How long a login may wait for an address that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hope {
    /// Until then, as long as its own patience lasts.
    Faint(Instant),
    /// Until then.
    Firm(Instant),
}

/// An attempt to reach an address, and how far it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) address: SocketAddr,
    pub(super) began: Instant,
    /// Whether there was a connection.
    pub(super) connected: bool,
}

/// How a breaker stands, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Logins may go there.
    Closed,
    /// It is down, and somebody is looking whether it is back.
    HalfOpen,
    /// It is down.
    Open,
}

impl Standing {
    pub(super) const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// The metric label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// One address' breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// When it last came back.
    returned: Option<Instant>,
    look: Look,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { strikes: 0 }, returned: None, look: Look::Never }
    }
}

impl Breaker {
    pub(super) fn standing(&self) -> Standing {
        match (&self.state, self.look) {
            (State::Closed { .. }, _) => Standing::Closed,
            (State::Open { .. }, Look::Running { .. }) => Standing::HalfOpen,
            (State::Open { .. }, Look::Never | Look::Over { .. }) => Standing::Open,
        }
    }

    /// Whether logins may go there.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// Whether nothing speaks against it.
    pub(super) fn is_sound(&self) -> bool {
        matches!(self.state, State::Closed { strikes: 0 })
    }

    /// Why it is down, if it is.
    pub(super) fn reason(&self) -> Option<&Arc<str>> {
        match &self.state {
            State::Closed { .. } => None,
            State::Open { reason, .. } => Some(reason),
        }
    }

    /// Since when it is down, if it is.
    pub(super) fn since(&self) -> Option<Instant> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { since, .. } => Some(since),
        }
    }

    /// The server did something wrong in this attempt. Returns whether that opens the breaker, which
    /// takes `failures` faults in a row, or one while it is on trial.
    pub(super) fn fault(&mut self, attempt: &Attempt, failures: u32, reason: &str, now: Instant) -> bool {
        let &Attempt { began, connected, .. } = attempt;
        let strikes = match &mut self.state {
            State::Closed { strikes } => strikes,
            State::Open { since, .. } => {
                self.state = State::Open { since: *since, reason: reason.into(), connected };
                return false;
            }
        };
        // An attempt from before its return tells of the outage that is over.
        if self.returned.is_some_and(|returned| began < returned) {
            return false;
        }
        *strikes += 1;
        let on_trial = self.returned.is_some_and(|returned| now < returned + TRIAL);
        if !on_trial && *strikes < failures {
            return false;
        }
        self.state = State::Open { since: now, reason: reason.into(), connected };
        true
    }

    /// The server did everything right. Returns how long it was down if this closes the breaker.
    pub(super) fn well(&mut self, now: Instant) -> Option<Duration> {
        let before = std::mem::replace(&mut self.state, State::Closed { strikes: 0 });
        let State::Open { since, .. } = before else { return None };
        self.returned = Some(now);
        Some(now - since)
    }

    /// Whether a look may begin now: one at a time, and this long after the last. It has begun if so.
    pub(super) fn begin_look(&mut self, pause: Duration, now: Instant) -> bool {
        let free = match self.look {
            Look::Never => true,
            Look::Running { .. } => false,
            Look::Over { ended, .. } => ended + pause <= now,
        };
        if free {
            self.look = Look::Running { began: now, connected: false };
        }
        free
    }

    /// The look has a connection.
    pub(super) fn look_connected(&mut self) {
        if let Look::Running { connected, .. } = &mut self.look {
            *connected = true;
        }
    }

    /// The look is over.
    pub(super) fn end_look(&mut self, now: Instant) {
        if let Look::Running { began, .. } = self.look {
            self.look = Look::Over { began, ended: now };
        }
    }

    /// Until when a login that arrived then may hope that this address, which is down, shows itself;
    /// `None` if it looked and there was nobody.
    pub(super) fn hope(&self, arrived: Instant) -> Option<Hope> {
        let progress = matches!(self.state, State::Open { connected: false, .. });
        match self.look {
            Look::Never => Some(Hope::Faint(arrived)),
            Look::Running { began, connected: true } if progress => Some(Hope::Firm(began + CONFIDENCE)),
            Look::Running { began, .. } => Some(Hope::Faint(began + PATIENCE)),
            Look::Over { began, ended } => (began < arrived).then(|| Hope::Faint(ended + SPACING)),
        }
    }
}

/// Lets logins in by and by after an outage, so that everybody who waited does not come at once.
#[derive(Debug)]
pub(super) struct Ramp {
    length: Duration,
    course: Option<Course>,
}

#[derive(Debug)]
struct Course {
    began: Instant,
    /// When the next login may go.
    next: Instant,
}

impl Ramp {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, course: None }
    }

    /// An outage is over.
    pub(super) fn begin(&mut self, now: Instant) {
        self.course = Some(Course { began: now, next: now });
    }

    /// When a login may go; `None` if that is later than it may wait.
    pub(super) fn slot(&mut self, patience: Duration, now: Instant) -> Option<Instant> {
        self.course.take_if(|course| now >= course.began + self.length);
        let Some(course) = &mut self.course else { return Some(now) };
        let slot = course.next.max(now);
        if slot - now > patience {
            return None;
        }
        let share = (slot - course.began).as_secs_f64() / self.length.as_secs_f64();
        let rate = SLOWEST * (DOUBLINGS * share).exp2();
        course.next = slot + Duration::from_secs_f64(1.0 / rate);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const FAILURES: u32 = 3;

    fn attempt(connected: bool) -> Attempt {
        Attempt { address: "192.0.2.3:993".parse().unwrap(), began: Instant::now(), connected }
    }

    fn fault(breaker: &mut Breaker) -> bool {
        breaker.fault(&attempt(false), FAILURES, "refused", Instant::now())
    }

    fn open() -> Breaker {
        let mut breaker = Breaker::default();
        while !fault(&mut breaker) {}
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn consecutive_faults_mark_down_and_a_success_resets_them() {
        let mut breaker = Breaker::default();
        assert!(!fault(&mut breaker) && !fault(&mut breaker) && !breaker.is_sound());
        assert_eq!(breaker.well(Instant::now()), None);
        assert!(breaker.is_sound());
        assert!(!fault(&mut breaker) && !fault(&mut breaker));
        assert!(breaker.is_closed());
        assert!(fault(&mut breaker), "the third in a row");
        assert!(!fault(&mut breaker), "told once");
        assert_eq!((breaker.standing(), breaker.reason().map(|reason| &**reason)), (Standing::Open, Some("refused")));
    }

    #[tokio::test(start_paused = true)]
    async fn recovering_backend_is_marked_down_by_one_fault() {
        let mut breaker = open();
        advance(Duration::from_secs(7)).await;
        assert_eq!(breaker.well(Instant::now()), Some(Duration::from_secs(7)));
        advance(TRIAL - Duration::from_millis(1)).await;
        assert!(fault(&mut breaker));
        breaker.well(Instant::now());
        advance(TRIAL).await;
        assert!(!fault(&mut breaker) && !fault(&mut breaker) && fault(&mut breaker));
    }

    #[tokio::test(start_paused = true)]
    async fn results_begun_before_the_recovery_are_ignored() {
        let early = attempt(true);
        let mut breaker = open();
        advance(Duration::from_secs(1)).await;
        breaker.well(Instant::now());
        assert!(!breaker.fault(&early, FAILURES, "timeout", Instant::now()));
        assert!(breaker.is_sound());
    }

    #[tokio::test(start_paused = true)]
    async fn probes_are_single_and_spaced() {
        let mut breaker = open();
        assert!(breaker.begin_look(SPACING, Instant::now()));
        assert_eq!(breaker.standing(), Standing::HalfOpen);
        assert!(!breaker.begin_look(SPACING, Instant::now()));
        breaker.end_look(Instant::now());
        assert_eq!(breaker.standing(), Standing::Open);
        assert!(!breaker.begin_look(SPACING, Instant::now()));
        advance(SPACING).await;
        assert!(breaker.begin_look(SPACING, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn login_waits_for_a_probe_begun_after_its_arrival() {
        let mut breaker = open();
        let early = Instant::now();
        breaker.begin_look(SPACING, early);
        assert_eq!(breaker.hope(early), Some(Hope::Faint(early + PATIENCE)));
        advance(Duration::from_millis(5)).await;
        let arrived = Instant::now();
        breaker.end_look(arrived);
        assert_eq!(breaker.hope(early), None, "its own look saw nobody");
        assert_eq!(breaker.hope(arrived), Some(Hope::Faint(arrived + SPACING)), "that look may have come too early");
    }

    #[tokio::test(start_paused = true)]
    async fn login_waits_longer_when_a_probe_makes_progress() {
        let mut breaker = open();
        let began = Instant::now();
        breaker.begin_look(SPACING, began);
        breaker.look_connected();
        assert_eq!(breaker.hope(began), Some(Hope::Firm(began + CONFIDENCE)));
        // It listens and does not greet: from here on that is no news.
        breaker.fault(&attempt(true), FAILURES, "timeout", began);
        breaker.end_look(began);
        assert_eq!(breaker.reason().map(|reason| &**reason), Some("timeout"));
        advance(SPACING).await;
        let began = Instant::now();
        breaker.begin_look(SPACING, began);
        breaker.look_connected();
        assert_eq!(breaker.hope(began), Some(Hope::Faint(began + PATIENCE)));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_doubles_ten_times_and_ends() {
        let mut ramp = Ramp::new(Duration::from_secs(10));
        let wait = Duration::from_secs(1);
        assert_eq!(ramp.slot(wait, Instant::now()), Some(Instant::now()), "no outage, no ramp");
        ramp.begin(Instant::now());
        let began = Instant::now();
        // Everybody comes at once: who may go within the second that a login may wait?
        let mut slots = Vec::new();
        while let Some(slot) = ramp.slot(wait, Instant::now()) {
            slots.push(slot - began);
        }
        assert_eq!(slots.first(), Some(&Duration::ZERO), "the first goes at once");
        assert!((13..=16).contains(&slots.len()), "10 to 20 logins a second in the first second: {slots:?}");
        advance(Duration::from_secs(5)).await;
        let mut second = 0;
        while ramp.slot(wait, Instant::now()).is_some() {
            second += 1;
        }
        assert!((400..=500).contains(&second), "320 to 640 a second in the sixth second: {second}");
        advance(Duration::from_secs(5)).await;
        assert!((0..10_000).all(|_| ramp.slot(Duration::ZERO, Instant::now()).is_some()));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_of_no_length_is_off() {
        let mut ramp = Ramp::new(Duration::ZERO);
        ramp.begin(Instant::now());
        assert!((0..1_000).all(|_| ramp.slot(Duration::ZERO, Instant::now()).is_some()));
    }
}
