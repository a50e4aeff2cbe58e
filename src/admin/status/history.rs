//! The last half hour in numbers: what the counters stood at, every ten seconds.
//!
//! Memory is fixed: a number of samples, each with a number per reason, and for the last minutes two per
//! backend. Nothing in it names a user.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::base::labels::Label as _;
use crate::outcome::Refusal;
use crate::proto::PROTOCOLS;
use crate::telemetry::labels::{BackendResult, DecisionBasis, LoginPhase};
use crate::telemetry::metrics::{Metrics, PHASE_BUCKETS};

/// How often the counters are looked at.
pub(super) const PACE: Duration = Duration::from_secs(10);
/// Half an hour of them.
pub(super) const SAMPLES: usize = 180;
/// Rates cover the last five minutes.
const RATE_SAMPLES: usize = 30;
/// `ok` and each refusal.
const RESULTS: usize = 1 + Refusal::LABELS.len();

/// The words of `usher_logins_total`, in the order of a sample.
pub(super) fn results() -> impl Iterator<Item = &'static str> {
    std::iter::once("ok").chain(Refusal::LABELS)
}

/// Cumulative counts of a histogram.
pub(super) type Counts = [u64; PHASE_BUCKETS.len() + 1];

/// The counters at a moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    at: Instant,
    results: [u64; RESULTS],
    decisions: [u64; DecisionBasis::ALL.len()],
    phases: [Counts; LoginPhase::ALL.len()],
    /// Of each backend: logins that succeeded there, and others.
    backends: Vec<(Arc<str>, [u64; 2])>,
}

impl Sample {
    /// Reads them.
    pub(super) fn take(metrics: &Metrics, backends: &[Arc<Backend>]) -> Self {
        let mut sample = Self {
            at: Instant::now(),
            results: [0; RESULTS],
            decisions: [0; _],
            phases: [[0; _]; _],
            backends: Vec::new(),
        };
        for (count, result) in sample.results.iter_mut().zip(results()) {
            let each = PROTOCOLS.iter().map(|row| metrics.logins.with_label_values(&[row.name, result]).get());
            *count = each.sum();
        }
        for (count, by) in sample.decisions.iter_mut().zip(DecisionBasis::ALL) {
            *count = metrics.decisions.of(*by).get();
        }
        for (counts, phase) in sample.phases.iter_mut().zip(LoginPhase::ALL) {
            *counts = metrics.phase_counts(*phase);
        }
        let logins = |name: &str, result| metrics.backend_logins.at(name, result).get();
        let counts = |name: &str| {
            let all = BackendResult::ALL.iter().map(|result| logins(name, *result)).sum::<u64>();
            let good = logins(name, BackendResult::Ok);
            [good, all.saturating_sub(good)]
        };
        sample.backends = backends.iter().map(|backend| (Arc::clone(&backend.name), counts(&backend.name))).collect();
        sample
    }

    /// How long a phase took, by its place.
    pub(super) fn phase(&self, index: usize) -> Counts {
        self.phases.get(index).copied().unwrap_or_default()
    }

    fn backend(&self, name: &str) -> Option<[u64; 2]> {
        self.backends.iter().find(|(known, _)| **known == *name).map(|(_, counts)| *counts)
    }
}

/// The samples, oldest first.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Sample>);

impl History {
    /// Adds the next one and forgets the oldest.
    pub(super) fn push(&mut self, sample: Sample) {
        self.0.push_back(sample);
        if self.0.len() > SAMPLES {
            self.0.pop_front();
        }
        // Backends may be many: no more of them is kept than is shown.
        if let Some(old) = self.0.len().checked_sub(RATE_SAMPLES + 1).and_then(|at| self.0.get_mut(at)) {
            old.backends = Vec::new();
        }
    }

    /// What has come in the last minutes up to `now`.
    pub(super) fn lately(&self, now: &Sample) -> Lately {
        let before = self.0.get(self.0.len().saturating_sub(RATE_SAMPLES)).cloned().unwrap_or_else(|| now.clone());
        Lately { before, now: now.clone() }
    }

    /// The first sample, each sample that is a multiple of `step` back from `now`, and `now`, the oldest first.
    pub(super) fn every<'a>(&'a self, step: usize, now: &'a Sample) -> Vec<&'a Sample> {
        let first = self.0.len() % step;
        let first = self.0.front().filter(|_| first != 0);
        let regular = self.0.iter().rev().skip(step - 1).step_by(step);
        let mut moments: Vec<_> = [now].into_iter().chain(regular).chain(first).collect();
        moments.reverse();
        moments
    }

    /// What came of each result in each interval up to `now`, the oldest first.
    pub(super) fn bars(&self, now: &Sample) -> Vec<(&'static str, Vec<u64>)> {
        let moments: Vec<&Sample> = self.0.iter().chain([now]).collect();
        let bars = |index: usize| {
            let count = |sample: &Sample| sample.results.get(index).copied().unwrap_or_default();
            let pairs = moments.windows(2).map(|pair| match pair {
                [before, after] => count(after).saturating_sub(count(before)),
                _ => 0,
            });
            pairs.collect()
        };
        results().enumerate().map(|(index, result)| (result, bars(index))).collect()
    }
}

/// Two samples, some minutes apart.
#[derive(Debug)]
pub(super) struct Lately {
    before: Sample,
    now: Sample,
}

impl Lately {
    /// A count as one of each minute; `None` until there are ten seconds to judge by.
    fn per_minute(&self, count: u64) -> Option<f64> {
        let seconds = self.now.at.duration_since(self.before.at).as_secs_f64();
        (seconds >= PACE.as_secs_f64()).then(|| count as f64 * 60.0 / seconds)
    }

    fn count(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        let counts = self.now.results.iter().zip(&self.before.results).zip(results());
        counts.filter(|(_, result)| wanted(result)).map(|((now, before), _)| now.saturating_sub(*before)).sum()
    }

    /// Attempts with such results in a minute.
    pub(super) fn attempts_per_minute(&self, wanted: impl Fn(&str) -> bool) -> Option<f64> {
        self.per_minute(self.count(wanted))
    }

    /// The share of attempts with such results; `None` if there was no attempt.
    pub(super) fn share(&self, wanted: impl Fn(&str) -> bool) -> Option<f64> {
        share(self.count(wanted), self.count(|_| true))
    }

    /// The share of decisions that cost no bind; `None` if there was none.
    pub(super) fn cache_hits(&self) -> Option<f64> {
        use DecisionBasis::{Cache, Directory, Negative, Stale};

        let counts = self.now.decisions.iter().zip(&self.before.decisions).zip(DecisionBasis::ALL);
        let sum = |wanted: &[DecisionBasis]| {
            let wanted = counts.clone().filter(|(_, by)| wanted.contains(by));
            wanted.map(|((now, before), _)| now.saturating_sub(*before)).sum::<u64>()
        };
        // `default` is counted besides another.
        let (cached, asked) = ([Cache, Negative, Stale], [Cache, Negative, Stale, Directory]);
        share(sum(&cached), sum(&asked))
    }

    /// A backend's logins in a minute: those that succeeded, and others.
    pub(super) fn backend_per_minute(&self, name: &str) -> Option<[f64; 2]> {
        let [good, bad] = self.now.backend(name)?;
        let [good_before, bad_before] = self.before.backend(name)?;
        let (good, bad) = (good.saturating_sub(good_before), bad.saturating_sub(bad_before));
        Some([self.per_minute(good)?, self.per_minute(bad)?])
    }
}

fn share(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(metrics: &Metrics, result: &str, count: u64) {
        metrics.logins.with_label_values(&["imap", result]).inc_by(count);
    }

    #[tokio::test(start_paused = true)]
    async fn history_is_limited_to_half_an_hour() {
        let (metrics, mut history) = (Metrics::new(), History::default());
        for _ in 0..SAMPLES + 5 {
            history.push(Sample::take(&metrics, &[]));
            logins(&metrics, "ok", 2);
            logins(&metrics, "wrong_password", 1);
            metrics.logins.with_label_values(&["pop3", "wrong_password"]).inc();
            tokio::time::advance(PACE).await;
        }
        let now = Sample::take(&metrics, &[]);
        assert_eq!(history.0.len(), SAMPLES);
        for (result, bars) in history.bars(&now) {
            let each = if ["ok", "wrong_password"].contains(&result) { 2 } else { 0 };
            assert_eq!(bars, [each; SAMPLES], "{result}");
        }
        let lately = history.lately(&now);
        assert_eq!(lately.attempts_per_minute(|result| result == "ok"), Some(12.0));
        assert_eq!(lately.share(|result| result != "ok"), Some(0.5));
        assert_eq!(lately.cache_hits(), None);
        for (by, count) in [(DecisionBasis::Cache, 3), (DecisionBasis::Directory, 1), (DecisionBasis::Default, 4)] {
            metrics.decisions.of(by).inc_by(count);
        }
        assert_eq!(history.lately(&Sample::take(&metrics, &[])).cache_hits(), Some(0.75));
    }

    #[tokio::test(start_paused = true)]
    async fn history_reports_nothing_before_two_samples() {
        let (metrics, mut history) = (Metrics::new(), History::default());
        let now = Sample::take(&metrics, &[]);
        assert_eq!(history.lately(&now).attempts_per_minute(|_| true), None);
        assert!(history.bars(&now).iter().all(|(_, bars)| bars.is_empty()));
        history.push(now);
        logins(&metrics, "ok", 1);
        tokio::time::advance(Duration::from_secs(20)).await;
        let now = Sample::take(&metrics, &[]);
        assert_eq!(history.lately(&now).attempts_per_minute(|_| true), Some(3.0));
    }
}
