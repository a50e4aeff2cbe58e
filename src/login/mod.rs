//! The login core, whichever frontend is used: from a credential to a backend, and the events that report it.

pub(crate) mod acting;
pub(crate) mod attempt;
pub(crate) mod authn;
pub(crate) mod core;
pub(crate) mod delivery;
pub(crate) mod event;
pub(crate) mod explain;
pub(crate) mod history;
mod networks;
pub(crate) mod realms;
