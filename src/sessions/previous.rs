//! The sessions that an upgrade has left with the processes before this one, as those report them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus::IntGaugeVec;

/// A process that has handed its listeners over and still has sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PreviousProcess {
    /// Its id.
    pub pid: u32,
    /// The number of its sessions.
    pub sessions: usize,
    /// When it closes the last of them, Unix seconds; absent if it does not say so.
    pub ends_at: Option<u64>,
    /// The sessions by protocol and backend.
    pub by_backend: BTreeMap<(String, String), i64>,
}

/// All of them; none unless there was an upgrade.
#[derive(Debug, Default)]
pub(crate) struct PreviousProcesses(ArcSwap<Vec<PreviousProcess>>);

impl PreviousProcesses {
    /// Those known last.
    #[must_use]
    pub(crate) fn all(&self) -> Arc<Vec<PreviousProcess>> {
        self.0.load_full()
    }

    /// The number of their sessions.
    #[must_use]
    pub(crate) fn sessions(&self) -> usize {
        self.0.load().iter().map(|process| process.sessions).sum()
    }

    /// The number of their sessions at a backend.
    #[must_use]
    pub(crate) fn sessions_at(&self, backend: &str) -> usize {
        let counts = |process: &PreviousProcess| {
            let at = process.by_backend.iter().filter(|((_, name), _)| name == backend);
            at.map(|(_, count)| usize::try_from(*count).unwrap_or_default()).sum::<usize>()
        };
        self.0.load().iter().map(counts).sum()
    }

    /// Takes what they report over, into the metric of sessions (protocol, backend), too: whoever reads it sees no gap.
    /// Called by one task.
    pub(crate) fn replace(&self, processes: Vec<PreviousProcess>, sessions: &IntGaugeVec) {
        let new = Arc::new(processes);
        let old = self.0.swap(Arc::clone(&new));
        let mut changes = BTreeMap::<_, i64>::new();
        for (processes, sign) in [(&new, 1), (&old, -1)] {
            for (at, count) in processes.iter().flat_map(|process| &process.by_backend) {
                *changes.entry(at).or_default() += sign * count;
            }
        }
        // One step for each series, so that no scrape reads the old and the new count together.
        for ((protocol, backend), change) in changes {
            sessions.with_label_values(&[protocol.as_str(), backend.as_str()]).add(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    #[test]
    fn sessions_of_the_processes_before_are_counted_until_they_are_gone() {
        let gauge = IntGaugeVec::new(Opts::new("sessions", "Sessions."), &["protocol", "backend"]).unwrap();
        let imap = gauge.with_label_values(&["imap", "server3"]);
        imap.set(2);
        let process = |pid, count: i64| PreviousProcess {
            pid,
            sessions: usize::try_from(count).unwrap(),
            ends_at: None,
            by_backend: [(("imap".to_owned(), "server3".to_owned()), count)].into(),
        };
        let previous = PreviousProcesses::default();
        previous.replace(vec![process(7, 5), process(8, 1)], &gauge);
        assert_eq!((imap.get(), previous.sessions(), previous.sessions_at("server3")), (8, 6, 6));
        imap.inc();
        previous.replace(vec![process(7, 4)], &gauge);
        assert_eq!((imap.get(), previous.sessions(), previous.sessions_at("server4")), (7, 4, 0));
        previous.replace(Vec::new(), &gauge);
        assert_eq!((imap.get(), previous.sessions()), (3, 0));
    }
}
