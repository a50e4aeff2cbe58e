//! The LDIF that the demo's directory is loaded from; the checks are `usher::internals::invariants::ldif`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::ldif(data));
