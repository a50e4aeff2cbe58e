//! ManageSieve's fuzz targets; the invariants for all protocols are in `proto/trial.rs`.

use super::PROTOCOL;
use crate::proto::trial;

/// A fuzz target: what a client sends.
pub fn front(data: &[u8]) {
    trial::front(&PROTOCOL, data, |line| {
        // Answers, the lines of a list, and challenges.
        line.ends_with('"')
            && ["OK \"", "OK (TAG \"", "NO ", "BYE \"", "\""].iter().any(|start| line.starts_with(start))
            || line == "\"STARTTLS\""
    });
}

/// A fuzz target: what a backend sends.
pub fn back(data: &[u8]) {
    trial::back(&PROTOCOL, data, |line| line == "STARTTLS", b"OK");
}
