//! What comes to the auth_http listener; the checks are `usher::internals::invariants::auth_http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::auth_http(data));
