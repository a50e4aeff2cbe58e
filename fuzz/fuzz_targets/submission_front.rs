//! What a client may send before login; the checks are
//! `usher::proto::submission::trial::front`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::proto::submission::trial::front(data));
