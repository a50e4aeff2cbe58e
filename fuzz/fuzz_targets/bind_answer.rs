//! What a directory says with the answer to a bind; the checks are `usher::internals::invariants::bind_answer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usher::internals::invariants::bind_answer(data));
