//! POP3's fuzz targets; the invariants for all protocols are in `proto/trial.rs`.

use super::PROTOCOL;
use crate::proto::trial;

/// A fuzz target: what a client sends.
pub fn front(data: &[u8]) {
    const LISTED: [&str; 9] = [
        "TOP",
        "UIDL",
        "RESP-CODES",
        "PIPELINING",
        "AUTH-RESP-CODE",
        "USER",
        "SASL PLAIN LOGIN OAUTHBEARER XOAUTH2",
        "STLS",
        ".",
    ];
    trial::front(&PROTOCOL, data, |line| {
        let begins = |start| line.starts_with(start);
        begins("+OK ")
            || begins("-ERR ")
            || begins("+ ")
            || line == "+\\x20"
            || LISTED.contains(&line)
            || ["PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"].contains(&line)
    });
}

/// A fuzz target: what a backend sends.
pub fn back(data: &[u8]) {
    trial::back(&PROTOCOL, data, |line| line == "STLS", b"+OK");
}
