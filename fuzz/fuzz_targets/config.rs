//! An operator's config file; the checks are `usher::trial::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::trial::config(data));
