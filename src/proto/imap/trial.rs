//! IMAP's fuzz targets; the invariants for all protocols are in `proto/trial.rs`.

use super::PROTOCOL;
use crate::proto::trial;

/// A fuzz target: what a client sends.
pub fn front(data: &[u8]) {
    trial::front(&PROTOCOL, data, |line| {
        let mut words = line.split(' ');
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match first {
            "*" => matches!(second, "OK" | "BAD" | "BYE" | "CAPABILITY" | "ID"),
            // No tag has a plus: a continuation.
            _ if first.starts_with('+') => true,
            _ => !first.is_empty() && matches!(second, "OK" | "NO" | "BAD"),
        }
    });
}

/// A fuzz target: what a backend sends.
pub fn back(data: &[u8]) {
    let harmless = |line: &str| line.ends_with(" CAPABILITY") || line.ends_with(" STARTTLS");
    trial::back(&PROTOCOL, data, harmless, b" OK");
}
