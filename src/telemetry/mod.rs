//! Metrics and the log.

pub(crate) mod log;
pub(crate) mod metrics;
