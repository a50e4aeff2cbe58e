//! What a directory sends, cut into messages; the checks are `usher::invariants::ldap_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::invariants::ldap_frames(data));
