//! (to be written)
use super::{Back, BackSettings, Front, FrontSettings, Protocol};
/// IMAP's row.
pub const PROTOCOL: Protocol =
    Protocol { name: "imap", alpn: Some(b"imap"), implicit_port: 993, starttls_port: 143, front, back };
fn front(_: FrontSettings) -> Box<dyn Front> {
    todo!()
}
fn back(_: BackSettings) -> Box<dyn Back> {
    todo!()
}
