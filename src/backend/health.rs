//! The circuit breaker of a backend address, and slow start after an outage.
//!
//! Pure state: the time is an argument, nothing waits here. Only faults of the server (connect, TLS, greeting)
//! are reported to a [`Breaker`]; rejected logins never are, or one banned user would mark the backend down for
//! all users.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::labels::labels;

/// How long an address is recovering after it came up: during that time one fault marks it down again.
const RECOVERY: Duration = Duration::from_secs(10);
/// How long a login waits for a probe of an address that is down: together with the reply below the 50 ms in
/// which a known outage is reported.
pub(super) const PATIENCE: Duration = Duration::from_millis(30);
/// How long it waits once the address accepts connections again: it is recovering, and the first login should
/// succeed even if the greeting is slow.
const EXTENDED_WAIT: Duration = Duration::from_secs(2);
/// What a greeting may come later than it last did, before it is missed.
const GREETING_MARGIN: Duration = Duration::from_secs(1);
/// A greeting that comes later than this is reported, and one within half of it is reported as prompt again.
const LATE_GREETING: Duration = Duration::from_secs(1);
/// Pause between two probes of an address that is down, when a login waits: shorter than [`PATIENCE`], so that
/// the first login after the recovery succeeds.
pub(super) const SPACING: Duration = Duration::from_millis(20);
/// How many reasons of one outage are logged: they quote the server, which may have ever new ones.
const REASONS: usize = 8;
/// Logins per second at the beginning of slow start.
const INITIAL_RATE: f64 = 10.0;
/// How often the rate doubles during slow start: at its end it exceeds any server's capacity.
const DOUBLINGS: f64 = 10.0;

/// Whether the breaker lets logins through.
#[derive(Debug)]
enum Circuit {
    /// In use.
    Closed {
        /// Faults since the last success.
        strikes: u32,
    },
    /// Down: only probes connect.
    Open {
        since: Instant,
        reason: Arc<str>,
        /// Whether the last failed attempt had connected.
        connected: bool,
        /// The reasons of this outage that were logged, the last one behind.
        logged: Vec<Arc<str>>,
    },
}

/// What a fault of a server changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultEffect {
    /// Nothing that the log has not.
    None,
    /// It is down from now on.
    MarkedDown,
    /// It stays down, for a reason that was not logged in this outage.
    NewReason,
}

/// The last probe of an address.
#[derive(Debug, Clone, Copy)]
enum ProbeProgress {
    Never,
    Running { began: Instant, connected: bool },
    Over { began: Instant, ended: Instant },
}

/// How long a login may wait for an address that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryWindow {
    /// Until then, but no longer than [`PATIENCE`] after its arrival.
    Bounded(Instant),
    /// Until then.
    Extended(Instant),
}

/// An attempt to reach an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectAttempt {
    pub(super) address: SocketAddr,
    pub(super) began: Instant,
    /// Whether it connected.
    pub(super) connected: bool,
}

labels! {
    /// A breaker's state, for metrics and the status page.
    pub(super) enum BreakerState {
        /// In use.
        Closed => "closed",
        /// Down, and a probe is running.
        HalfOpen => "half_open",
        /// It is down.
        Open => "open",
    }
}

/// The breaker of one address.
#[derive(Debug)]
pub(super) struct Breaker {
    state: Circuit,
    /// When it last came up.
    returned: Option<Instant>,
    probe: ProbeProgress,
    /// How long after the connection it last greeted.
    greets_after: Option<Duration>,
    /// Whether that was reported as late.
    greets_late: bool,
}

/// A change in how soon a server greets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GreetingChange {
    /// It greets late, as servers do on purpose against spam.
    Late,
    /// It greets promptly again.
    Prompt,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: Circuit::Closed { strikes: 0 },
            returned: None,
            probe: ProbeProgress::Never,
            greets_after: None,
            greets_late: false,
        }
    }
}

impl Breaker {
    pub(super) fn state(&self) -> BreakerState {
        match (&self.state, self.probe) {
            (Circuit::Closed { .. }, _) => BreakerState::Closed,
            (Circuit::Open { .. }, ProbeProgress::Running { .. }) => BreakerState::HalfOpen,
            (Circuit::Open { .. }, ProbeProgress::Never | ProbeProgress::Over { .. }) => BreakerState::Open,
        }
    }

    /// Whether logins may go there.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, Circuit::Closed { .. })
    }

    /// Whether it has had no fault since the last success.
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

    /// Records a fault of the server. This opens the breaker after `failures` consecutive faults, or after one while
    /// the address is recovering.
    pub(super) fn failed(
        &mut self,
        attempt: &ConnectAttempt,
        failures: u32,
        reason: &str,
        now: Instant,
    ) -> FaultEffect {
        let &ConnectAttempt { began, connected, .. } = attempt;
        let strikes = match &mut self.state {
            Circuit::Closed { strikes } => strikes,
            Circuit::Open { reason: last, connected: last_connected, logged, .. } => {
                *last_connected = connected;
                if **last != *reason {
                    *last = reason.into();
                }
                if logged.len() >= REASONS || logged.iter().any(|known| **known == *reason) {
                    return FaultEffect::None;
                }
                logged.push(Arc::clone(last));
                return FaultEffect::NewReason;
            }
        };
        // An attempt begun before the recovery reports the past outage.
        if self.returned.is_some_and(|returned| began < returned) {
            return FaultEffect::None;
        }
        *strikes += 1;
        let on_trial = self.returned.is_some_and(|returned| now < returned + RECOVERY);
        if !on_trial && *strikes < failures {
            return FaultEffect::None;
        }
        let reason: Arc<str> = reason.into();
        let logged = vec![Arc::clone(&reason)];
        self.state = Circuit::Open { since: now, reason, connected, logged };
        FaultEffect::MarkedDown
    }

    /// Records a success. Returns the length of the outage if this closes the breaker.
    pub(super) fn succeeded(&mut self, now: Instant) -> Option<Duration> {
        let before = std::mem::replace(&mut self.state, Circuit::Closed { strikes: 0 });
        let Circuit::Open { since, .. } = before else { return None };
        self.returned = Some(now);
        Some(now - since)
    }

    /// Records how long after the connection it has greeted; returns a change worth reporting.
    pub(super) fn greeted(&mut self, after: Duration) -> Option<GreetingChange> {
        self.greets_after = Some(after);
        let before = self.greets_late;
        self.greets_late = if before { after >= LATE_GREETING / 2 } else { after > LATE_GREETING };
        match (before, self.greets_late) {
            (false, true) => Some(GreetingChange::Late),
            (true, false) => Some(GreetingChange::Prompt),
            (false, false) | (true, true) => None,
        }
    }

    /// How long after the connection it last greeted, if that is late.
    pub(super) fn late_greeting(&self) -> Option<Duration> {
        self.greets_after.filter(|_| self.greets_late)
    }

    /// Whether its greeting should have come by now, as far as it is known.
    pub(super) fn is_overdue(&self, waited: Duration) -> bool {
        self.late_greeting().is_none_or(|usual| waited > usual + GREETING_MARGIN)
    }

    /// Begins a probe if none is running and the last ended at least `pause` ago; returns whether it has begun.
    pub(super) fn begin_probe(&mut self, pause: Duration, now: Instant) -> bool {
        let free = match self.probe {
            ProbeProgress::Never => true,
            ProbeProgress::Running { .. } => false,
            ProbeProgress::Over { ended, .. } => ended + pause <= now,
        };
        if free {
            self.probe = ProbeProgress::Running { began: now, connected: false };
        }
        free
    }

    /// The probe has connected.
    pub(super) fn probe_connected(&mut self) {
        if let ProbeProgress::Running { connected, .. } = &mut self.probe {
            *connected = true;
        }
    }

    /// The probe has ended.
    pub(super) fn end_probe(&mut self, now: Instant) {
        if let ProbeProgress::Running { began, .. } = self.probe {
            self.probe = ProbeProgress::Over { began, ended: now };
        }
    }

    /// How long a login that arrived then, and has this time, may wait for this address, which is down; `None` if a
    /// probe begun after its arrival has failed.
    pub(super) fn retry_window(&self, arrived: Instant, timeout: Duration) -> Option<RetryWindow> {
        let progress = matches!(self.state, Circuit::Open { connected: false, .. });
        match self.probe {
            ProbeProgress::Never => Some(RetryWindow::Bounded(arrived)),
            ProbeProgress::Running { began, connected: true } if progress => {
                let usual = self.late_greeting().unwrap_or_default();
                // The login then waits for a greeting of its own.
                Some(match began + usual + usual <= arrived + timeout {
                    true => RetryWindow::Extended(began + EXTENDED_WAIT.max(usual + GREETING_MARGIN)),
                    false => RetryWindow::Bounded(began + PATIENCE),
                })
            }
            ProbeProgress::Running { began, .. } => Some(RetryWindow::Bounded(began + PATIENCE)),
            ProbeProgress::Over { began, ended } => (began < arrived).then(|| RetryWindow::Bounded(ended + SPACING)),
        }
    }
}

/// Limits the rate of logins after an outage, so that not all waiting clients log in at once.
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

    /// When a login may go; `None` if that is later than it may wait. The rate is divided by the number of ushers.
    pub(super) fn slot(&mut self, patience: Duration, ushers: u32, now: Instant) -> Option<Instant> {
        self.run.take_if(|course| now >= course.began + self.length);
        let Some(course) = &mut self.run else { return Some(now) };
        let slot = course.next.max(now);
        if slot - now > patience {
            return None;
        }
        let share = (slot - course.began).as_secs_f64() / self.length.as_secs_f64();
        let rate = INITIAL_RATE * (DOUBLINGS * share).exp2() / f64::from(ushers.max(1));
        course.next = slot + Duration::from_secs_f64(1.0 / rate);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const FAILURES: u32 = 3;
    const TIMEOUT: Duration = Duration::from_secs(8);

    fn attempt(connected: bool) -> ConnectAttempt {
        ConnectAttempt { address: "192.0.2.3:993".parse().unwrap(), began: Instant::now(), connected }
    }

    fn fault(breaker: &mut Breaker) -> bool {
        breaker.failed(&attempt(false), FAILURES, "refused", Instant::now()) == FaultEffect::MarkedDown
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
        assert!(!fault(&mut breaker), "reported once");
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
        assert_eq!(breaker.failed(&early, FAILURES, "timeout", Instant::now()), FaultEffect::None);
        assert!(breaker.is_healthy());
    }

    #[tokio::test(start_paused = true)]
    async fn new_reasons_of_an_outage_are_reported_once_each_and_bounded() {
        let mut breaker = open();
        let mut fails = |reason: &str| breaker.failed(&attempt(true), FAILURES, reason, Instant::now());
        assert_eq!(fails("refused"), FaultEffect::None);
        assert_eq!(fails("certificate expired"), FaultEffect::NewReason);
        // A server that does one and the other.
        for reason in ["refused", "certificate expired", "refused"] {
            assert_eq!(fails(reason), FaultEffect::None);
        }
        let new = (0..1_000).filter(|n| fails(&format!("unknown command {n}")) == FaultEffect::NewReason).count();
        assert_eq!(new, REASONS - 2);
        assert_eq!(breaker.reason().map(|reason| &**reason), Some("unknown command 999"), "the latest is shown");
        breaker.succeeded(Instant::now());
        while !fault(&mut breaker) {}
        let again = breaker.failed(&attempt(true), FAILURES, "certificate expired", Instant::now());
        assert_eq!(again, FaultEffect::NewReason, "of another outage");
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
        assert_eq!(breaker.retry_window(early, TIMEOUT), Some(RetryWindow::Bounded(early + PATIENCE)));
        advance(Duration::from_millis(5)).await;
        let arrived = Instant::now();
        breaker.end_probe(arrived);
        assert_eq!(breaker.retry_window(early, TIMEOUT), None, "its own probe has failed");
        assert_eq!(
            breaker.retry_window(arrived, TIMEOUT),
            Some(RetryWindow::Bounded(arrived + SPACING)),
            "that probe may have been too early"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn login_waits_longer_when_a_probe_makes_progress() {
        let mut breaker = open();
        let began = Instant::now();
        breaker.begin_probe(SPACING, began);
        breaker.probe_connected();
        assert_eq!(breaker.retry_window(began, TIMEOUT), Some(RetryWindow::Extended(began + EXTENDED_WAIT)));
        // It listens and does not greet: connecting is no progress from here on.
        breaker.failed(&attempt(true), FAILURES, "timeout", began);
        breaker.end_probe(began);
        assert_eq!(breaker.reason().map(|reason| &**reason), Some("timeout"));
        advance(SPACING).await;
        let began = Instant::now();
        breaker.begin_probe(SPACING, began);
        breaker.probe_connected();
        assert_eq!(breaker.retry_window(began, TIMEOUT), Some(RetryWindow::Bounded(began + PATIENCE)));
    }

    #[tokio::test(start_paused = true)]
    async fn late_greeting_is_reported_once_and_waited_for() {
        let seconds = Duration::from_secs;
        let mut breaker = Breaker::default();
        assert!(breaker.is_overdue(Duration::ZERO), "nothing is known: others go first");
        assert_eq!((breaker.greeted(Duration::from_millis(20)), breaker.late_greeting()), (None, None));
        assert_eq!(breaker.greeted(seconds(5)), Some(GreetingChange::Late));
        assert_eq!(breaker.greeted(Duration::from_millis(5_100)), None);
        assert_eq!(breaker.greeted(seconds(5)), None);
        assert!(!breaker.is_overdue(seconds(4)) && !breaker.is_overdue(seconds(6)) && breaker.is_overdue(seconds(7)));
        // After an outage the first login waits as long, if there is time for its own greeting behind that.
        while !fault(&mut breaker) {}
        let began = Instant::now();
        breaker.begin_probe(SPACING, began);
        breaker.probe_connected();
        assert_eq!(breaker.retry_window(began, TIMEOUT), Some(RetryWindow::Bounded(began + PATIENCE)));
        let arrived = began + seconds(2);
        assert_eq!(breaker.retry_window(arrived, TIMEOUT), Some(RetryWindow::Extended(began + seconds(6))));
        assert_eq!(breaker.greeted(Duration::from_millis(700)), None, "close to the limit is no change");
        assert_eq!(breaker.greeted(Duration::from_millis(400)), Some(GreetingChange::Prompt));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_doubles_ten_times_and_ends() {
        let mut slow_start = SlowStart::new(Duration::from_secs(10));
        let wait = Duration::from_secs(1);
        assert_eq!(slow_start.slot(wait, 1, Instant::now()), Some(Instant::now()), "no outage, no slow start");
        slow_start.begin(Instant::now());
        let began = Instant::now();
        // All logins arrive at once: count those admitted within the second that a login may wait.
        let mut slots = Vec::new();
        while let Some(slot) = slow_start.slot(wait, 1, Instant::now()) {
            slots.push(slot - began);
        }
        assert_eq!(slots.first(), Some(&Duration::ZERO), "the first goes at once");
        assert!((13..=16).contains(&slots.len()), "10 to 20 logins a second in the first second: {slots:?}");
        advance(Duration::from_secs(5)).await;
        let mut second = 0;
        while slow_start.slot(wait, 1, Instant::now()).is_some() {
            second += 1;
        }
        assert!((400..=500).contains(&second), "320 to 640 a second in the sixth second: {second}");
        advance(Duration::from_secs(5)).await;
        assert!((0..10_000).all(|_| slow_start.slot(Duration::ZERO, 1, Instant::now()).is_some()));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_is_shared() {
        let mut slow_start = SlowStart::new(Duration::from_secs(10));
        slow_start.begin(Instant::now());
        let mut slots = 0;
        while slow_start.slot(Duration::from_secs(1), 5, Instant::now()).is_some() {
            slots += 1;
        }
        assert!((3..=4).contains(&slots), "2 to 4 logins a second in the first second, of 10 to 20: {slots}");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_of_no_length_is_off() {
        let mut slow_start = SlowStart::new(Duration::ZERO);
        slow_start.begin(Instant::now());
        assert!((0..1_000).all(|_| slow_start.slot(Duration::ZERO, 1, Instant::now()).is_some()));
    }
}
