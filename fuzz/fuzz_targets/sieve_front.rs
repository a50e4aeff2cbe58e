//! What a ManageSieve client may send before login; the checks are
//! `usher::proto::managesieve::trial::front`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::proto::managesieve::trial::front(data));
