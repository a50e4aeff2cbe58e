//! What comes to the socketmap listener; the checks are `usher::internals::invariants::socketmap`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::socketmap(data));
