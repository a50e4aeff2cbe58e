//! What a client may send before login; the checks are
//! `usher::internals::invariants::pop3::front`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::pop3::front(data));
