//! A PEM file; the checks are `usher::internals::invariants::pem`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::pem(data));
