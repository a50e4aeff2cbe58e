//! What a backend may send until a login is answered; the checks are
//! `usher::proto::submission::trial::back`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::proto::submission::trial::back(data));
