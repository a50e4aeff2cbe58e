//! usher: a mail front door whose control panel is the company's own directory.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic))]

pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod directory;
pub mod metrics;
pub mod outcome;
pub mod proto;
pub mod secret;
