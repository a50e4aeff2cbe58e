//! The LDIF that the demo's directory is loaded from; the checks are `usher::invariants::ldif`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::invariants::ldif(data));
