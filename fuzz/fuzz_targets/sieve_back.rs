//! What a ManageSieve backend may send until a login is answered; the checks are
//! `usher::internals::invariants::managesieve::back`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::managesieve::back(data));
