//! The JSON of the control socket's replies. Fields are added, never renamed; docs/control.md
//! documents them for scripts.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::sessions::registry::Session;
use crate::telemetry::held_back::HeldBackList;

/// The reply to a request that failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ErrorReply {
    /// The reason.
    pub error: String,
}

/// The outcome of a reload or an upgrade.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Whether it succeeded: the new configuration is active, the new process serves.
    pub done: bool,
    /// Why not: lines as `usher check` prints them.
    pub problems: Vec<String>,
    /// What was done, as a line of text; absent from 0.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The reply to `usher confirm`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Confirmed {
    /// The number of changes that the brake held.
    pub changes: usize,
}

/// The reply to `usher kick`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kicked {
    /// The number of sessions.
    pub count: usize,
    /// The time over which they are closed.
    pub over_seconds: f64,
    /// Whether nothing was closed.
    pub dry_run: bool,
    /// The sessions; only with `dry_run`.
    pub sessions: Vec<Arc<Session>>,
}

/// The reply to `usher drain`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Leaving {
    /// Whether the process shuts down; otherwise only `/ready` has changed.
    pub ends: bool,
    /// Whether `/ready` replies 200.
    pub ready: bool,
    /// The number of sessions.
    pub sessions: usize,
    /// Time until the listeners are closed.
    pub delay_seconds: u64,
    /// Time that sessions have after that.
    pub deadline_seconds: u64,
}

/// What is cached of an entry; never a password or its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cached {
    /// The entry's DN, or its placeholder where only wrong passwords are cached.
    pub dn: String,
    /// The name of its directory, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The login names that were used, and the claims of tokens.
    pub names: Vec<String>,
    /// The entry's mailHost values; empty without a decision.
    pub mail_host: Vec<String>,
    /// Its backend; absent without a decision or a route.
    pub backend: Option<String>,
    /// The number of cached correct passwords.
    pub right: usize,
    /// The number of cached wrong passwords.
    pub wrong: usize,
    /// The number of cached searches for the entry of a token.
    #[serde(default)]
    pub tokens: usize,
    /// The mail addresses that were looked up for Postfix.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Time since a bind last verified a password, or a search found the entry of a token or an address.
    pub age_seconds: Option<u64>,
    /// Remaining time without a directory request (`cache.ttl`).
    pub left_seconds: Option<u64>,
    /// Remaining time while the directory is unreachable (`cache.stale`).
    pub stale_left_seconds: Option<u64>,
}

/// The reply to `usher lookup`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Looked {
    /// The answer of the map `transport`.
    pub transport: MapReply,
    /// The answer of the map `recipient`.
    pub recipient: MapReply,
    /// The address that the entry was found by; absent without an entry.
    pub found_as: Option<String>,
    /// The entry's DN.
    pub dn: Option<String>,
    /// Its mailHost values.
    pub mail_host: Vec<String>,
    /// The backend of the transport.
    pub backend: Option<String>,
    /// Whether the directory holds the user.
    pub held: bool,
    /// Where the answer is from: `cache`, `directory`, `stale`, or `usher` if the directory was not asked.
    pub by: String,
    /// Why the directory does not say what the address means.
    pub cause: Option<String>,
}

/// The answer of one map.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MapReply {
    /// `ok`, `not_found` or `temp`.
    pub result: String,
    /// The value with `ok`.
    pub value: Option<String>,
    /// Why this answer.
    pub reason: String,
}

/// When a process last answered Postfix with a server for an entry.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recent {
    /// How long ago at the least; absent if it has not.
    pub age_seconds: Option<f64>,
    /// For how long it has remembered its answers; absent if Postfix does not ask it.
    pub remembered_seconds: Option<f64>,
}

/// The reply to `usher cache drop`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Dropped {
    /// The number of entries.
    pub entries: usize,
    /// Their DNs; empty if everything was dropped.
    pub dns: Vec<String>,
}

/// The reply to `usher status`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// usher's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// The digest of the configuration in force, without what differs between nodes.
    pub config: String,
    /// The configuration file.
    #[serde(default)]
    pub file: String,
    /// Whether the file has another text than the configuration in force.
    #[serde(default)]
    pub file_differs: bool,
    /// When the configuration in force was read, Unix seconds.
    #[serde(default)]
    pub reloaded_at: u64,
    /// Whether the last reload was refused.
    #[serde(default)]
    pub reload_refused: bool,
    /// Where clients connect.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    /// The mail servers.
    #[serde(default)]
    pub backends: Vec<BackendSummary>,
    /// Whether `/ready` replies 200.
    pub ready: bool,
    /// The number of sessions.
    pub sessions: usize,
    /// The processes before an upgrade that still have sessions.
    #[serde(default)]
    pub previous: Vec<PreviousStatus>,
    /// When this process closes its last session, Unix seconds, if an upgrade has replaced it.
    #[serde(default)]
    pub ends_at: Option<u64>,
    /// The number of changes that the brake holds.
    pub brake_holds: i64,
    /// Users and networks that are held back: by the directory, or by a limit.
    #[serde(default)]
    pub held_back: HeldBackList,
    /// When the first of its certificates ends, in Unix seconds.
    pub certificate_ends: Option<i64>,
    /// How each directory is.
    #[serde(default)]
    pub directories: Vec<DirectoryStatus>,
    /// Of the fleet; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetStatus>,
}

/// Where clients connect.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListenerStatus {
    /// The protocol's name.
    pub protocol: String,
    /// The address as configured.
    pub address: String,
    /// `implicit` or `starttls`.
    pub tls: String,
}

/// A mail server in a word.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BackendSummary {
    /// Its name.
    pub name: String,
    /// `up`, `partly_down` (some protocols), `down`, `refusing` (every login) or `draining`.
    pub state: String,
    /// The number of its sessions.
    pub sessions: usize,
    /// The same by protocol.
    #[serde(default)]
    pub by_protocol: BTreeMap<String, usize>,
}

/// A process before an upgrade.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PreviousStatus {
    /// Its id.
    pub pid: u32,
    /// The number of its sessions.
    pub sessions: usize,
    /// When it closes the last of them, Unix seconds.
    pub ends_at: Option<u64>,
}

/// How a directory is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DirectoryStatus {
    /// Its name.
    pub name: String,
    /// Whether a server is in use, or may be tried.
    pub up: bool,
    /// `off`, `lost` or `following`.
    pub watch: String,
    /// The number of changes that its brake holds.
    pub brake_holds: i64,
}

/// How a process sees the store of its fleet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FleetStatus {
    /// Whether it is in use.
    pub up: bool,
    /// By how much the clock of the machine is ahead of the store's, in seconds; absent before the first answer.
    pub clock_ahead_seconds: Option<f64>,
    /// How long the last answer took, in milliseconds; absent before the first answer.
    pub store_answers_after_ms: Option<f64>,
}
