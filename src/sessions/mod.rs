//! Sessions that are logged in: listed, found, relayed and ended.

pub mod closer;
pub mod filter;
pub mod id;
pub mod maintenance;
pub mod registry;
pub mod relay;
