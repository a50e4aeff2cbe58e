//! How long the phases of logins took, minute by minute: from the buckets of the histogram that Prometheus reads.

use std::fmt::Write as _;

use super::history::{Counts, History, PACE, SAMPLES, Sample};
use super::html::{Chart, Escaped};
use crate::base::labels::Label as _;
use crate::telemetry::labels::LoginPhase;
use crate::telemetry::metrics::PHASE_BUCKETS;

/// The samples of one bar: a minute.
const SAMPLES_PER_BAR: usize = 6;
const BARS: usize = SAMPLES / SAMPLES_PER_BAR;
const MEDIAN: f64 = 0.5;
const SLOWEST: f64 = 0.99;

/// The value below which this share of what came between the two lies, in seconds, as histogram_quantile of Prometheus
/// estimates it: linear within a bucket, and the last bound for what is beyond it. `None` if nothing came.
fn quantile(before: &Counts, after: &Counts, share: f64) -> Option<f64> {
    let came: Vec<u64> = after.iter().zip(before).map(|(after, before)| after.saturating_sub(*before)).collect();
    let all = came.last().copied().filter(|all| *all > 0)?;
    let rank = all as f64 * share;
    let (mut below, mut lower) = (0, 0.0);
    for (count, bound) in came.iter().zip(PHASE_BUCKETS) {
        if *count as f64 >= rank {
            let inside = count.saturating_sub(below).max(1) as f64;
            return Some(lower + (bound - lower) * (rank - below as f64) / inside);
        }
        (below, lower) = (*count, bound);
    }
    Some(lower)
}

/// A duration with two digits.
fn shown(seconds: f64) -> String {
    let ms = seconds * 1_000.0;
    if ms < 10.0 {
        format!("{ms:.1}\u{a0}ms")
    } else if ms < 1_000.0 {
        format!("{ms:.0}\u{a0}ms")
    } else {
        format!("{seconds:.1}\u{a0}s")
    }
}

const fn title(phase: LoginPhase) -> &'static str {
    match phase {
        LoginPhase::Tls => "TLS handshake of the client",
        LoginPhase::Search => "directory: search",
        LoginPhase::Bind => "directory: bind",
        LoginPhase::BackendConnect => "backend: connection and TLS",
        LoginPhase::BackendLogin => "backend: login",
    }
}

/// A chart for each phase that logins of the last half hour had.
pub(super) fn charts(history: &History, now: &Sample) -> String {
    let minutes = PACE.as_secs() * SAMPLES as u64 / 60;
    let mut text = format!(
        "<p class=\"quiet\">The last {minutes} minutes, two bars for each minute, now at the right: the median (dark) and the \
         time within which 99\u{a0}% were done.</p><ul class=\"charts\">"
    );
    let moments = history.every(SAMPLES_PER_BAR, now);
    let mut is_empty = true;
    for (index, phase) in LoginPhase::ALL.iter().enumerate() {
        let counts: Vec<Counts> = moments.iter().map(|sample| sample.phase(index)).collect();
        let (Some(first), Some(last)) = (counts.first(), counts.last()) else { continue };
        let of_all = |share| quantile(first, last, share);
        let (Some(median), Some(slowest)) = (of_all(MEDIAN), of_all(SLOWEST)) else { continue };
        is_empty = false;
        let bars = |share| {
            let each = counts.windows(2).map(|pair| match pair {
                [before, after] => quantile(before, after, share).unwrap_or_default(),
                _ => 0.0,
            });
            each.map(|seconds| (seconds * 1e6) as u64).collect::<Vec<_>>()
        };
        let (medians, slow) = (bars(MEDIAN), bars(SLOWEST));
        let most = shown(slow.iter().max().copied().unwrap_or_default() as f64 / 1e6);
        let (title, median, slowest) = (title(*phase), shown(median), shown(slowest));
        let words = format!("median {median}, 99\u{a0}% within {slowest}");
        let label = format!("{title}: {words} in {minutes} minutes; 99\u{a0}% of the slowest minute within {most}");
        let chart = Chart { label: &label, bars: &slow, front: &medians, places: BARS };
        let _ = write!(
            text,
            "<li><h3>{}</h3>{chart}<span class=\"quiet\">{words}; at most {most}</span></li>",
            Escaped(title),
        );
    }
    if is_empty {
        text += "<li class=\"quiet\">No login.</li>";
    }
    text + "</ul>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let mut after = Counts::default();
        assert_eq!(quantile(&Counts::default(), &after, MEDIAN), None);
        // Ten between 5 and 10 ms, of which nothing is known but the bucket.
        after[4..].fill(10);
        assert_eq!(quantile(&Counts::default(), &after, MEDIAN), Some(0.0075));
        assert_eq!(quantile(&after, &after, MEDIAN), None);
        // Beyond the last bound.
        after[PHASE_BUCKETS.len()] = 100;
        assert_eq!(quantile(&Counts::default(), &after, SLOWEST), Some(10.0));
    }

    #[tokio::test(start_paused = true)]
    async fn each_minute_has_its_bars() {
        let (metrics, mut history) = (Metrics::new(), History::default());
        assert!(charts(&history, &Sample::take(&metrics, &[])).contains("No login."));
        for second in 0..12 {
            history.push(Sample::take(&metrics, &[]));
            // The second minute is slow.
            metrics.login_phase.at("imap", LoginPhase::Bind).observe(if second < 6 { 0.004 } else { 0.4 });
            tokio::time::advance(PACE).await;
        }
        let text = charts(&history, &Sample::take(&metrics, &[]));
        assert!(text.contains("<h3>directory: bind</h3>") && !text.contains("backend"), "{text}");
        assert!(text.contains("99\u{a0}% within 495\u{a0}ms; at most"), "{text}");
        // The slow minute is the highest bar, and the other one is seen beside it.
        assert!(text.contains("M29 100v-100h1v100z") && text.contains("M28 100v-4h1v4z"), "{text}");
    }
}
