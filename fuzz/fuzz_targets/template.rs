//! An operator's filter or DN template with a client's login name in it; the checks are `usher::invariants::template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::invariants::template(data));
