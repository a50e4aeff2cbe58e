//! A connection's first bytes, with a PROXY header or not; the checks are `usher::internals::invariants::proxy_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::proxy_header(data));
