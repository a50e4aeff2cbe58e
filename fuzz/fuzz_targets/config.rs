//! An operator's config file; the checks are `usher::internals::invariants::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::config(data));
