//! Metrics and the log.

pub(crate) mod client_address;
pub(crate) mod held_back;
pub(crate) mod labels;
pub(crate) mod log;
pub(crate) mod metrics;
