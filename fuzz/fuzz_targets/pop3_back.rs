//! What a backend may send until a login is answered; the checks are
//! `usher::proto::pop3::trial::back`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::proto::pop3::trial::back(data));
