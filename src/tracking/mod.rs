//! What the directory has shown of entries that matter, and what follows from a change.

pub(crate) mod apply;
pub(crate) mod brake;
pub(crate) mod compare;
pub mod store;
