//! What a client may send before login; the checks are `usher::proto::imap::trial::front`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::proto::imap::trial::front(data));
