//! What the directory has shown of entries that matter, and what follows from a change.

pub mod apply;
pub mod brake;
pub mod compare;
pub mod store;
