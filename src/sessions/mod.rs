//! Sessions that are logged in: listed, found, relayed and ended.

pub(crate) mod closer;
pub(crate) mod filter;
pub(crate) mod id;
pub(crate) mod maintenance;
pub(crate) mod previous;
pub(crate) mod registry;
pub mod relay;
