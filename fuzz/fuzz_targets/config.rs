//! An operator's config file; the checks are `usher::invariants::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::invariants::config(data));
