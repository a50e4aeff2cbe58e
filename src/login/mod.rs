//! The login core, whichever frontend is used: from a credential to a backend, and the events that report it.

pub mod attempt;
pub mod authn;
pub mod core;
pub mod event;
pub mod explain;
