//! A token, or an issuer's set of keys; the checks are `usher::internals::invariants::token`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::token(data));
