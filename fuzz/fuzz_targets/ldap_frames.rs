//! What a directory sends, cut into messages; the checks are `usher::internals::invariants::ldap_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::ldap_frames(data));
