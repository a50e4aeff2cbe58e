//! Known-answer scripts of IMAP (`proto/script.rs` says how to read them).

mod back;
mod front;
