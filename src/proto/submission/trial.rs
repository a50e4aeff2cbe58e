//! Submission's fuzz targets; the invariants for all protocols are in `proto/trial.rs`.

use super::PROTOCOL;
use crate::proto::trial;

/// A fuzz target: what a client sends.
pub fn front(data: &[u8]) {
    trial::front(&PROTOCOL, data, |line| {
        let code = line.get(..3).unwrap_or_default();
        let known = ["214", "220", "221", "235", "250", "252", "334", "421", "500", "501", "503", "504"];
        let refused = ["530", "535", "538"];
        matches!(line.as_bytes().get(3), Some(b' ' | b'-' | b'\\'))
            && (known.contains(&code) || refused.contains(&code))
    });
}

/// A fuzz target: what a backend sends.
pub fn back(data: &[u8]) {
    trial::back(&PROTOCOL, data, |line| line.starts_with("EHLO ") || line == "STARTTLS", b"235");
}
