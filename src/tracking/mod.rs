//! What the directory has shown of entries that matter, and what follows from a change.
//!
//! [`ChangeTracker`] takes the reported changes: `apply` determines what follows from each, without touching cache or
//! sessions, and `tracker` carries it out. `compare` alone decides what a change means for a session. Logins see
//! [`TrackedEntries`]. `fleet` has what the brakes of several nodes share.

mod actions;
mod apply;
mod brake;
mod compare;
mod fleet;
mod store;
mod tracker;

pub(crate) use fleet::{BrakeId, BrakeNews, BrakeStatus, FleetNames, HeldSet, KeptValues, id_of};
pub(crate) use store::Reconciled;
pub use store::TrackedEntries;
pub(crate) use store::TrackedEntry;
pub(crate) use tracker::held::{HOLD_LASTS, LOCK_LASTS, over as held_over};
pub(crate) use tracker::{ChangeTracker, ChangeTrackers, TrackingContext, WatchStatus};
