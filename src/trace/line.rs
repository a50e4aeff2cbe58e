//! What a trace says: one message a line, in JSON on the control socket. Fields are added, never renamed.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sessions::id::SessionId;

/// One line of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TraceLine {
    /// The session's id, as in the log.
    pub session: SessionId,
    /// Milliseconds since the session began.
    pub ms: f64,
    /// `client`, `backend`, `directory` or `usher`.
    pub leg: Cow<'static, str>,
    /// `in`: to usher, `out`: from usher, `note`: a sentence about what happened.
    pub direction: Cow<'static, str>,
    /// The line, masked and escaped.
    pub text: String,
}

/// The counts at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceSummary {
    /// Why it has ended.
    pub reason: String,
    /// Whether its time was over, and nothing ended it before.
    pub is_complete: bool,
    /// Sessions that matched.
    pub sessions: u64,
    /// Lines that were sent or lost.
    pub lines: u64,
    /// Lines that were lost, because the reader was too slow.
    pub lost: u64,
    /// Sessions that were not looked at, because too many began at the same time.
    pub skipped: u64,
}

/// A message of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TraceMessage {
    /// It has begun.
    Started {
        /// Which sessions.
        what: String,
        /// For how long.
        seconds: u64,
    },
    /// A line.
    Line(TraceLine),
    /// This number of lines is missing here.
    Lost(u64),
    /// It is over.
    Ended(TraceSummary),
}

/// For a terminal: time, session, from whom to whom, line.
impl fmt::Display for TraceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, ms, leg, direction, text } = self;
        let way = match (&**leg, &**direction) {
            (leg, "in") => format!("{leg} > usher"),
            (leg, "out") => format!("usher > {leg}"),
            (leg, _) => leg.to_owned(),
        };
        write!(f, "{ms:>9.1}  {session}  {way:<15}  {text}")
    }
}

impl fmt::Display for TraceSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, sessions, lines, lost, skipped, is_complete: _ } = self;
        let ending = |count: &u64| if *count == 1 { "" } else { "s" };
        write!(f, "trace ended: {reason}; {sessions} session{}, {lines} line{}", ending(sessions), ending(lines))?;
        if *lost > 0 {
            write!(f, ", {lost} of them lost")?;
        }
        if *skipped > 0 {
            write!(f, "; {skipped} sessions not looked at: too many at the same time")?;
        }
        Ok(())
    }
}
