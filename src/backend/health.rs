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
const RECOVERY: Duration = Duration::from_secs(10);
/// How long a login waits for an address that is down to show that it is back: with what the answer
/// itself takes, below the 50 ms in which a known outage is told.
pub(super) const PATIENCE: Duration = Duration::from_millis(30);
/// How long it waits once the address has connected where it did not before: it is coming back, and
/// the first login after that is to get in even if the greeting takes its time.
const EXTENDED_WAIT: Duration = Duration::from_secs(2);
/// Between the end of one look at an address that is down and the next, for a login's sake: shorter
/// than [`PATIENCE`], so that the first login after its return finds it.
pub(super) const SPACING: Duration = Duration::from_millis(20);
/// Logins a second at the beginning of a slow start.
const INITIAL_RATE: f64 = 10.0;
/// How often the rate doubles over a slow start: at its end it is beyond what any server takes.
const DOUBLINGS: f64 = 10.0;

/// What a breaker has been told of its address.
#[derive(Debug)]
enum Circuit {
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
enum ProbeProgress {
    Never,
    Running { began: Instant, connected: bool },
    Over { began: Instant, ended: Instant },
}

/// How long a login may wait for an address that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryWindow {
    /// Until then, as long as its own patience lasts.
    Bounded(Instant),
    /// Until then.
    Extended(Instant),
}

/// An attempt to reach an address, and how far it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectAttempt {
    pub(super) address: SocketAddr,
    pub(super) began: Instant,
    /// Whether there was a connection.
    pub(super) connected: bool,
}

/// How a breaker stands, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BreakerState {
    /// Logins may go there.
    Closed,
    /// It is down, and somebody is looking whether it is back.
    HalfOpen,
    /// It is down.
    Open,
}

impl BreakerState {
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
    state: Circuit,
    /// When it last came back.
    returned: Option<Instant>,
    look: ProbeProgress,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: Circuit::Closed { strikes: 0 }, returned: None, look: ProbeProgress::Never }
    }
}

impl Breaker {
    pub(super) fn state(&self) -> BreakerState {
        match (&self.state, self.look) {
            (Circuit::Closed { .. }, _) => BreakerState::Closed,
            (Circuit::Open { .. }, ProbeProgress::Running { .. }) => BreakerState::HalfOpen,
            (Circuit::Open { .. }, ProbeProgress::Never | ProbeProgress::Over { .. }) => BreakerState::Open,
        }
    }

    /// Whether logins may go there.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, Circuit::Closed { .. })
    }

    /// Whether nothing speaks against it.
    pub(super) fn is_healthy(&self) -> bool {
        matches!(self.state, Circuit::Closed { strikes: 0 })
    }

    /// Why it is down, if it is.
    pub(super) fn reason(&self) -> Option<&Arc<str>> {
        match &self.state {
            Circuit::Closed { .. } => None,
            Circuit::Open { reason, .. } => Some(reason),
        }
    }

    /// Since when it is down, if it is.
    pub(super) fn since(&self) -> Option<Instant> {
        match self.state {
            Circuit::Closed { .. } => None,
            Circuit::Open { since, .. } => Some(since),
        }
    }

    /// The server did something wrong in this attempt. Returns whether that opens the breaker, which
    /// takes `failures` faults in a row, or one while it is on trial.
    pub(super) fn failed(&mut self, attempt: &ConnectAttempt, failures: u32, reason: &str, now: Instant) -> bool {
        let &ConnectAttempt { began, connected, .. } = attempt;
        let strikes = match &mut self.state {
            Circuit::Closed { strikes } => strikes,
            Circuit::Open { since, .. } => {
                self.state = Circuit::Open { since: *since, reason: reason.into(), connected };
                return false;
            }
        };
        // An attempt from before its return tells of the outage that is over.
        if self.returned.is_some_and(|returned| began < returned) {
            return false;
        }
        *strikes += 1;
        let on_trial = self.returned.is_some_and(|returned| now < returned + RECOVERY);
        if !on_trial && *strikes < failures {
            return false;
        }
        self.state = Circuit::Open { since: now, reason: reason.into(), connected };
        true
    }

    /// The server did everything right. Returns how long it was down if this closes the breaker.
    pub(super) fn succeeded(&mut self, now: Instant) -> Option<Duration> {
        let before = std::mem::replace(&mut self.state, Circuit::Closed { strikes: 0 });
        let Circuit::Open { since, .. } = before else { return None };
        self.returned = Some(now);
        Some(now - since)
    }

    /// Whether a look may begin now: one at a time, and this long after the last. It has begun if so.
    pub(super) fn begin_probe(&mut self, pause: Duration, now: Instant) -> bool {
        let free = match self.look {
            ProbeProgress::Never => true,
            ProbeProgress::Running { .. } => false,
            ProbeProgress::Over { ended, .. } => ended + pause <= now,
        };
        if free {
            self.look = ProbeProgress::Running { began: now, connected: false };
        }
        free
    }

    /// The look has a connection.
    pub(super) fn probe_connected(&mut self) {
        if let ProbeProgress::Running { connected, .. } = &mut self.look {
            *connected = true;
        }
    }

    /// The look is over.
    pub(super) fn end_probe(&mut self, now: Instant) {
        if let ProbeProgress::Running { began, .. } = self.look {
            self.look = ProbeProgress::Over { began, ended: now };
        }
    }

    /// Until when a login that arrived then may hope that this address, which is down, shows itself;
    /// `None` if it looked and there was nobody.
    pub(super) fn retry_window(&self, arrived: Instant) -> Option<RetryWindow> {
        let progress = matches!(self.state, Circuit::Open { connected: false, .. });
        match self.look {
            ProbeProgress::Never => Some(RetryWindow::Bounded(arrived)),
            ProbeProgress::Running { began, connected: true } if progress => {
                Some(RetryWindow::Extended(began + EXTENDED_WAIT))
            }
            ProbeProgress::Running { began, .. } => Some(RetryWindow::Bounded(began + PATIENCE)),
            ProbeProgress::Over { began, ended } => (began < arrived).then(|| RetryWindow::Bounded(ended + SPACING)),
        }
    }
}

/// Lets logins in by and by after an outage, so that everybody who waited does not come at once.
#[derive(Debug)]
pub(super) struct SlowStart {
    length: Duration,
    run: Option<SlowStartRun>,
}

#[derive(Debug)]
struct SlowStartRun {
    began: Instant,
    /// When the next login may go.
    next: Instant,
}

impl SlowStart {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, run: None }
    }

    /// An outage is over.
    pub(super) fn begin(&mut self, now: Instant) {
        self.run = Some(SlowStartRun { began: now, next: now });
    }

    /// When a login may go; `None` if that is later than it may wait.
    pub(super) fn slot(&mut self, patience: Duration, now: Instant) -> Option<Instant> {
        self.run.take_if(|course| now >= course.began + self.length);
        let Some(course) = &mut self.run else { return Some(now) };
        let slot = course.next.max(now);
        if slot - now > patience {
            return None;
        }
        let share = (slot - course.began).as_secs_f64() / self.length.as_secs_f64();
        let rate = INITIAL_RATE * (DOUBLINGS * share).exp2();
        course.next = slot + Duration::from_secs_f64(1.0 / rate);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const FAILURES: u32 = 3;

    fn attempt(connected: bool) -> ConnectAttempt {
        ConnectAttempt { address: "192.0.2.3:993".parse().unwrap(), began: Instant::now(), connected }
    }

    fn fault(breaker: &mut Breaker) -> bool {
        breaker.failed(&attempt(false), FAILURES, "refused", Instant::now())
    }

    fn open() -> Breaker {
        let mut breaker = Breaker::default();
        while !fault(&mut breaker) {}
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn consecutive_faults_mark_down_and_a_success_resets_them() {
        let mut breaker = Breaker::default();
        assert!(!fault(&mut breaker) && !fault(&mut breaker) && !breaker.is_healthy());
        assert_eq!(breaker.succeeded(Instant::now()), None);
        assert!(breaker.is_healthy());
        assert!(!fault(&mut breaker) && !fault(&mut breaker));
        assert!(breaker.is_closed());
        assert!(fault(&mut breaker), "the third in a row");
        assert!(!fault(&mut breaker), "told once");
        assert_eq!((breaker.state(), breaker.reason().map(|reason| &**reason)), (BreakerState::Open, Some("refused")));
    }

    #[tokio::test(start_paused = true)]
    async fn recovering_backend_is_marked_down_by_one_fault() {
        let mut breaker = open();
        advance(Duration::from_secs(7)).await;
        assert_eq!(breaker.succeeded(Instant::now()), Some(Duration::from_secs(7)));
        advance(RECOVERY - Duration::from_millis(1)).await;
        assert!(fault(&mut breaker));
        breaker.succeeded(Instant::now());
        advance(RECOVERY).await;
        assert!(!fault(&mut breaker) && !fault(&mut breaker) && fault(&mut breaker));
    }

    #[tokio::test(start_paused = true)]
    async fn results_begun_before_the_recovery_are_ignored() {
        let early = attempt(true);
        let mut breaker = open();
        advance(Duration::from_secs(1)).await;
        breaker.succeeded(Instant::now());
        assert!(!breaker.failed(&early, FAILURES, "timeout", Instant::now()));
        assert!(breaker.is_healthy());
    }

    #[tokio::test(start_paused = true)]
    async fn probes_are_single_and_spaced() {
        let mut breaker = open();
        assert!(breaker.begin_probe(SPACING, Instant::now()));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(!breaker.begin_probe(SPACING, Instant::now()));
        breaker.end_probe(Instant::now());
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.begin_probe(SPACING, Instant::now()));
        advance(SPACING).await;
        assert!(breaker.begin_probe(SPACING, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn login_waits_for_a_probe_begun_after_its_arrival() {
        let mut breaker = open();
        let early = Instant::now();
        breaker.begin_probe(SPACING, early);
        assert_eq!(breaker.retry_window(early), Some(RetryWindow::Bounded(early + PATIENCE)));
        advance(Duration::from_millis(5)).await;
        let arrived = Instant::now();
        breaker.end_probe(arrived);
        assert_eq!(breaker.retry_window(early), None, "its own look saw nobody");
        assert_eq!(
            breaker.retry_window(arrived),
            Some(RetryWindow::Bounded(arrived + SPACING)),
            "that look may have come too early"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn login_waits_longer_when_a_probe_makes_progress() {
        let mut breaker = open();
        let began = Instant::now();
        breaker.begin_probe(SPACING, began);
        breaker.probe_connected();
        assert_eq!(breaker.retry_window(began), Some(RetryWindow::Extended(began + EXTENDED_WAIT)));
        // It listens and does not greet: from here on that is no news.
        breaker.failed(&attempt(true), FAILURES, "timeout", began);
        breaker.end_probe(began);
        assert_eq!(breaker.reason().map(|reason| &**reason), Some("timeout"));
        advance(SPACING).await;
        let began = Instant::now();
        breaker.begin_probe(SPACING, began);
        breaker.probe_connected();
        assert_eq!(breaker.retry_window(began), Some(RetryWindow::Bounded(began + PATIENCE)));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_doubles_ten_times_and_ends() {
        let mut slow_start = SlowStart::new(Duration::from_secs(10));
        let wait = Duration::from_secs(1);
        assert_eq!(slow_start.slot(wait, Instant::now()), Some(Instant::now()), "no outage, no slow start");
        slow_start.begin(Instant::now());
        let began = Instant::now();
        // Everybody comes at once: who may go within the second that a login may wait?
        let mut slots = Vec::new();
        while let Some(slot) = slow_start.slot(wait, Instant::now()) {
            slots.push(slot - began);
        }
        assert_eq!(slots.first(), Some(&Duration::ZERO), "the first goes at once");
        assert!((13..=16).contains(&slots.len()), "10 to 20 logins a second in the first second: {slots:?}");
        advance(Duration::from_secs(5)).await;
        let mut second = 0;
        while slow_start.slot(wait, Instant::now()).is_some() {
            second += 1;
        }
        assert!((400..=500).contains(&second), "320 to 640 a second in the sixth second: {second}");
        advance(Duration::from_secs(5)).await;
        assert!((0..10_000).all(|_| slow_start.slot(Duration::ZERO, Instant::now()).is_some()));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_of_no_length_is_off() {
        let mut slow_start = SlowStart::new(Duration::ZERO);
        slow_start.begin(Instant::now());
        assert!((0..1_000).all(|_| slow_start.slot(Duration::ZERO, Instant::now()).is_some()));
    }
}
