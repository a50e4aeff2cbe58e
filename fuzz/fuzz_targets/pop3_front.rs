//! What a client may send before login; the checks are
//! `usher::proto::pop3::trial::front`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::proto::pop3::trial::front(data));
