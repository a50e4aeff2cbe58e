//! What a backend may send until a login is answered; the checks are
//! `usher::internals::invariants::submission::back`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::submission::back(data));
