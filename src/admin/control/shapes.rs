//! The JSON of the control socket's answers. Fields are added, never renamed; docs/control.md
//! has them for those who write scripts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::registry::Session;

/// Why a request was not answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct Problem {
    /// A sentence.
    pub error: String,
}

/// What an order came to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it was done: the new configuration is in force, the new process serves.
    pub done: bool,
    /// Why not: lines as `usher check` prints them.
    pub problems: Vec<String>,
}

/// What `usher confirm` did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Confirmed {
    /// How many changes had been held back.
    pub changes: usize,
}

/// What `usher kick` did, or would do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kicked {
    /// How many sessions are meant.
    pub count: usize,
    /// Over how long they are ended.
    pub over_seconds: f64,
    /// Whether this was only a question.
    pub dry_run: bool,
    /// Which they are; of a dry run only.
    pub sessions: Vec<Arc<Session>>,
}

/// A process that is leaving.
#[derive(Debug, Serialize, Deserialize)]
pub struct Leaving {
    /// Whether the process ends; else only `/ready` has changed.
    pub ends: bool,
    /// Whether `/ready` says so to balancers.
    pub ready: bool,
    /// How many sessions there are.
    pub sessions: usize,
    /// When the listeners are closed, from now.
    pub delay_seconds: u64,
    /// How long sessions are given after that.
    pub deadline_seconds: u64,
}

/// What is remembered of an entry. Never a password, nor what is made of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cached {
    /// The entry's DN, or what stands for it where only wrong passwords are known.
    pub dn: String,
    /// The names under which it was typed.
    pub names: Vec<String>,
    /// The entry's mailHost values; nothing without a decision.
    pub mail_host: Vec<String>,
    /// The backend that is: nothing if there is no decision, or it leads nowhere.
    pub backend: Option<String>,
    /// How many right passwords are known.
    pub right: usize,
    /// How many wrong ones.
    pub wrong: usize,
    /// How long ago a bind last proved a password.
    pub age_seconds: Option<u64>,
    /// How long that is used without another question (`cache.ttl`).
    pub left_seconds: Option<u64>,
    /// How long it would be used while no directory answers (`cache.stale`).
    pub stale_left_seconds: Option<u64>,
}

/// What was forgotten.
#[derive(Debug, Serialize, Deserialize)]
pub struct Dropped {
    /// How many entries.
    pub entries: usize,
    /// Their DNs; not told when everything was dropped.
    pub dns: Vec<String>,
}

/// What the running process knows of a user.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct User {
    /// `off`, `lost` or `following`.
    pub watch: String,
    /// Seconds since a bind proved a password of this user, if that is cached.
    pub cached_seconds: Option<u64>,
    /// Whether the directory holds the user, as far as is known.
    pub held: bool,
    /// The mailHost values in force, where the brake holds another back.
    pub kept_by_brake: Option<Vec<String>>,
    /// How many sessions there are.
    pub sessions: usize,
}
