//! What comes to the auth_http listener; the checks are `usher::invariants::auth_http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::invariants::auth_http(data));
