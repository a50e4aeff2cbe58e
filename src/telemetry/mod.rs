//! Metrics and the log.

pub mod log;
pub mod metrics;
