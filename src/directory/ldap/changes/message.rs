//! The controls and messages of content synchronization (RFC 4533 sections 2.3 to 2.5); parsing never panics,
//! whatever bytes arrive.

use crate::directory::EntryId;
use crate::proto::ldap::ber::{element, tagged};

/// The control beside each entry.
pub(super) const SYNC_STATE: &str = "1.3.6.1.4.1.4203.1.9.1.2";
/// The intermediate response.
const SYNC_INFO: &[u8] = b"1.3.6.1.4.1.4203.1.9.1.4";

/// BER tags.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTET_STRING: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const BOOLEAN: u8 = 0x01;

/// The state of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryState {
    /// Exists, and was not modified.
    Present,
    /// New, or modified since the cookie.
    Changed,
    /// Deleted.
    Deleted,
}

/// The Sync State control's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyncState {
    pub(super) state: EntryState,
    pub(super) id: EntryId,
    pub(super) cookie: Option<Vec<u8>>,
}

impl SyncState {
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let (body, _) = tagged(value, SEQUENCE)?;
        let (state, rest) = tagged(body, ENUMERATED)?;
        let state = match state {
            [0] => EntryState::Present,
            [1 | 2] => EntryState::Changed,
            [3] => EntryState::Deleted,
            _ => return None,
        };
        let (id, rest) = tagged(rest, OCTET_STRING)?;
        Some(Self { state, id: EntryId::from_bytes(id)?, cookie: cookie(&mut &*rest) })
    }
}

/// The Sync Info message's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SyncInfo {
    /// A cookie alone.
    Cookie(Vec<u8>),
    /// A phase of the refresh is over.
    Phase {
        /// Whether it was the present phase: entries not reported in it are deleted.
        present: bool,
        cookie: Option<Vec<u8>>,
        /// Whether this ends the refresh.
        done: bool,
    },
    /// Entries that are deleted, or that exist unmodified.
    Ids { gone: bool, cookie: Option<Vec<u8>>, ids: Vec<EntryId> },
}

impl SyncInfo {
    /// Parses the name and value of an intermediate response; `Some(None)` if it has another name.
    #[expect(clippy::option_option, reason = "malformed, and of another kind")]
    pub(super) fn parse(name: Option<&[u8]>, value: Option<&[u8]>) -> Option<Option<Self>> {
        if name != Some(SYNC_INFO) {
            return Some(None);
        }
        let (tag, content, _) = element(value?)?;
        Some(Some(match tag {
            0x80 => Self::Cookie(content.to_vec()),
            0xa1 | 0xa2 => {
                let mut rest = content;
                let cookie = cookie(&mut rest);
                Self::Phase { present: tag == 0xa2, cookie, done: boolean(&mut rest, true) }
            }
            0xa3 => {
                let mut rest = content;
                let cookie = cookie(&mut rest);
                let gone = boolean(&mut rest, false);
                let (mut set, _) = tagged(rest, SET)?;
                let mut ids = Vec::new();
                while !set.is_empty() {
                    let (id, behind) = tagged(set, OCTET_STRING)?;
                    ids.push(EntryId::from_bytes(id)?);
                    set = behind;
                }
                Self::Ids { gone, cookie, ids }
            }
            _ => return None,
        }))
    }
}

/// An optional cookie at the start.
fn cookie(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let (cookie, rest) = tagged(bytes, OCTET_STRING)?;
    *bytes = rest;
    Some(cookie.to_vec())
}

/// A boolean at the start, or its default.
fn boolean(bytes: &mut &[u8], default: bool) -> bool {
    let Some((value, rest)) = tagged(bytes, BOOLEAN) else { return default };
    *bytes = rest;
    value.first().is_some_and(|value| *value != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(byte: u8) -> EntryId {
        EntryId::from_bytes(&[byte; 16]).unwrap()
    }

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&[OCTET_STRING, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
    }

    fn wrapped(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        [&[tag, u8::try_from(content.len()).unwrap()][..], &content].concat()
    }

    #[test]
    fn entry_state_control_is_read() {
        let value = |state, cookie: &[u8]| wrapped(SEQUENCE, &[&[ENUMERATED, 1, state][..], &string(&[7; 16]), cookie]);
        for (number, state) in
            [(0, EntryState::Present), (1, EntryState::Changed), (2, EntryState::Changed), (3, EntryState::Deleted)]
        {
            assert_eq!(SyncState::parse(&value(number, b"")), Some(SyncState { state, id: id(7), cookie: None }));
        }
        let cookie = SyncState::parse(&value(1, &string(b"c"))).unwrap().cookie;
        assert_eq!(cookie, Some(b"c".to_vec()));
        assert_eq!(SyncState::parse(&value(4, b"")), None);
    }

    #[test]
    fn sync_info_messages_are_read() {
        let parse = |value: &[u8]| SyncInfo::parse(Some(SYNC_INFO), Some(value)).flatten();
        assert_eq!(parse(b"\x80\x01c"), Some(SyncInfo::Cookie(b"c".to_vec())));
        assert_eq!(parse(b"\xa1\x00"), Some(SyncInfo::Phase { present: false, cookie: None, done: true }));
        let present = wrapped(0xa2, &[&string(b"c"), &[BOOLEAN, 1, 0]]);
        assert_eq!(parse(&present), Some(SyncInfo::Phase { present: true, cookie: Some(b"c".to_vec()), done: false }));
        let set = wrapped(SET, &[&string(&[1; 16]), &string(&[2; 16])]);
        let ids = wrapped(0xa3, &[&[BOOLEAN, 1, 0xff], &set]);
        assert_eq!(parse(&ids), Some(SyncInfo::Ids { gone: true, cookie: None, ids: vec![id(1), id(2)] }));
        let kept = wrapped(0xa3, &[&set]);
        assert_eq!(parse(&kept), Some(SyncInfo::Ids { gone: false, cookie: None, ids: vec![id(1), id(2)] }));
        assert_eq!(SyncInfo::parse(Some(b"1.2.3"), None), Some(None), "another name");
    }

    #[test]
    fn malformed_message_is_refused() {
        let parse = |value: &[u8]| SyncInfo::parse(Some(SYNC_INFO), Some(value));
        for value in [&b""[..], b"\xa4\x00", b"\xa3\x00", b"\xa3\x04\x31\x02\x04\x05", b"\xa3\x05\x31\x03\x04\x01x"] {
            assert_eq!(parse(value), None, "{value:?}");
        }
        assert_eq!(SyncInfo::parse(Some(SYNC_INFO), None), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = SyncState::parse(&bytes);
            let _ = SyncInfo::parse(Some(SYNC_INFO), Some(&bytes));
        }
    }
}
