//! usher: a mail front door whose control panel is the company's own directory.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic))]

pub mod authn;
pub mod cache;
pub mod config;
pub mod directory;
pub mod log;
pub mod metrics;
pub mod outcome;
pub mod proto;
pub mod registry;
pub mod relay;
pub mod route;
pub mod secret;
pub mod tls;
