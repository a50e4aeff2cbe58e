//! Metrics and the log.

pub(crate) mod labels;
pub(crate) mod log;
pub(crate) mod metrics;
