//! The floor: what has already been shown of entries, below which no server's answer may fall.
//!
//! A replica lags behind the server that is followed. What the watch has shown of an entry (disabled,
//! held, another password, another place) counts from then on, whichever server is asked. The directory
//! asks the [`Floor`] between the search and the bind, so that the password is bound at a server that
//! knows as much; one guess stays one answered bind. It is implemented above (`known`), because the
//! directory itself keeps nothing of entries.

use std::sync::Arc;

use super::Entry;

/// How an entry, as a server shows it, compares with the newest that was shown of it.
#[derive(Debug, Clone)]
pub enum Freshness {
    /// The server has caught up, or nothing newer is known.
    CaughtUp,
    /// The server lags behind, or nothing tells whether it does; this is the newest.
    Behind(Arc<Entry>),
    /// The server shows no mail host, and the entry has one: it hides it.
    Hidden(Arc<Entry>),
    /// The entry is gone; this server does not know it yet.
    Gone,
}

/// What has been shown of entries.
pub trait Floor: Send + Sync {
    /// How fresh the entry is that the server with this URL has just shown.
    fn freshness(&self, shown: &Entry, server: &str) -> Freshness;

    /// Whether an entry that is bound by this name (a DN, or a principal's name) may have changed, so
    /// that it has to be looked up before it is bound. May say yes without need.
    fn concerns(&self, name: &str) -> bool;

    /// The URL of the server that is followed, or was followed last.
    fn followed(&self) -> Option<Arc<str>>;
}

/// The floor where nothing has been shown: every answer counts.
#[derive(Debug, Clone, Copy)]
pub struct NoFloor;

impl Floor for NoFloor {
    fn freshness(&self, _: &Entry, _: &str) -> Freshness {
        Freshness::CaughtUp
    }

    fn concerns(&self, _: &str) -> bool {
        false
    }

    fn followed(&self) -> Option<Arc<str>> {
        None
    }
}
