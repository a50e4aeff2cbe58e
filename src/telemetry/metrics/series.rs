//! Series whose last label is one of a closed set: events are counted by a value of the set, never by a text.

use std::marker::PhantomData;

use prometheus::core::{MetricVec, MetricVecBuilder};
use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use crate::base::labels::Label;

/// Counters by a closed set.
pub(crate) type CounterSeries<L> = LabeledSeries<IntCounterVec, L>;
/// Gauges by a closed set.
pub(crate) type GaugeSeries<L> = LabeledSeries<IntGaugeVec, L>;
/// Histograms by a closed set.
pub(crate) type HistogramSeries<L> = LabeledSeries<HistogramVec, L>;

/// All series of a metric.
pub(crate) trait SeriesVec {
    /// One series.
    type Metric;

    /// The series with these labels.
    fn with(&self, labels: &[&str]) -> Self::Metric;

    /// Removes the series with these labels, if it exists.
    fn take_away(&self, labels: &[&str]);

    /// Removes every series.
    fn clear(&self);
}

impl<B: MetricVecBuilder> SeriesVec for MetricVec<B> {
    type Metric = B::M;

    fn with(&self, labels: &[&str]) -> B::M {
        self.with_label_values(labels)
    }

    fn take_away(&self, labels: &[&str]) {
        let _ = self.remove_label_values(labels);
    }

    fn clear(&self) {
        self.reset();
    }
}

/// A metric with at most two labels before that of the closed set.
#[derive(Debug)]
pub(crate) struct LabeledSeries<V, L> {
    series: V,
    label: PhantomData<fn(L)>,
}

impl<V: SeriesVec, L: Label> LabeledSeries<V, L> {
    pub(super) fn new(series: V) -> Self {
        Self { series, label: PhantomData }
    }

    /// The series with this label.
    pub(crate) fn of(&self, label: L) -> V::Metric {
        self.series.with(&[label.word()])
    }

    /// The series of this protocol, backend or server with this label.
    pub(crate) fn at(&self, name: &str, label: L) -> V::Metric {
        self.series.with(&[name, label.word()])
    }

    /// The series of this server of this directory with this label.
    pub(crate) fn at_server(&self, [directory, server]: [&str; 2], label: L) -> V::Metric {
        self.series.with(&[directory, server, label.word()])
    }

    /// Creates every series.
    pub(super) fn know(&self) {
        for label in L::ALL {
            self.of(*label);
        }
    }

    /// Creates every series of this protocol, backend or server.
    pub(super) fn know_of(&self, name: &str) {
        for label in L::ALL {
            self.at(name, *label);
        }
    }

    /// Removes the series of this server of this directory with this label, if it exists.
    pub(super) fn remove_server(&self, [directory, server]: [&str; 2], label: L) {
        self.series.take_away(&[directory, server, label.word()]);
    }

    /// Removes every series.
    pub(super) fn reset(&self) {
        self.series.clear();
    }
}
