//! What the store of a fleet holds, sends and answers; the checks are `usher::internals::invariants::fleet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::fleet(data));
