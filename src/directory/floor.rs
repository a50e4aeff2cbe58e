//! The floor: the newest known version of each entry, below which no server's reply may fall.
//!
//! A replica lags behind the watched server. A reported change of an entry (disabled, held, another password,
//! another mail host) is in force from then on, whichever server is asked. The directory consults the [`Floor`]
//! between the search and the bind, so that the password is bound at a server that has caught up; one guess
//! stays one answered bind. It is implemented by `known`, because the directory itself stores nothing about
//! entries.

use std::sync::Arc;

use super::entry::Entry;

/// How an entry returned by a server compares with its newest known version.
#[derive(Debug, Clone)]
pub enum Freshness {
    /// The server has caught up, or nothing newer is known.
    CaughtUp,
    /// The server lags behind, or that is unknown; this is the newest version.
    Behind(Arc<Entry>),
    /// The server returns no mail host, or no networks, although the entry has them: it hides them.
    Hidden(Arc<Entry>),
    /// The entry was deleted; this server does not know it yet.
    Deleted,
}

/// The newest known versions of entries.
pub trait Floor: Send + Sync {
    /// How fresh the entry is that the server with this URL has just returned.
    fn freshness(&self, shown: &Entry, server: &str) -> Freshness;

    /// Whether an entry bound by this name (a DN, or a principal name) may have changed, so that it must be
    /// looked up before the bind. May return true without need.
    fn concerns(&self, name: &str) -> bool;

    /// The URL of the server that is watched, or was watched last.
    fn followed(&self) -> Option<Arc<str>>;
}

/// The floor without known versions: every reply is accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoFloor;

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
