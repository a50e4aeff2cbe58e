//! What comes to the auth_http listener; the checks are `usher::trial::auth_http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::trial::auth_http(data));
