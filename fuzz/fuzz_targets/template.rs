//! An operator's filter or DN template with a client's login name in it; the checks are `usher::internals::invariants::template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::template(data));
