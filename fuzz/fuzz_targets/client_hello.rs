//! A TLS client's first bytes; the checks are `usher::internals::invariants::client_hello`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::client_hello(data));
