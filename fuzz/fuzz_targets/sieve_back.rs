//! What a ManageSieve backend may send until a login is answered; the checks are
//! `usher::proto::managesieve::trial::back`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::proto::managesieve::trial::back(data));
