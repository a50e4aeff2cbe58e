//! What a ManageSieve client may send before login; the checks are
//! `usher::internals::invariants::managesieve::front`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::managesieve::front(data));
