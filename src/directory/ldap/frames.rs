//! Splits a directory's input into complete LDAP messages, checked and bounded, before anything else parses
//! them.
//!
//! Sans-IO: pieces go in as they arrive, messages come out (RFC 4511 section 4.1.1). A message that is too long
//! is refused by its header, so that no more is buffered than the limit allows. Excessive nesting, too many
//! elements, contradictory lengths and malformed result codes are refused too: a parser that trusts its input
//! can process the rest. The first violation is final: nothing after it is read.

use crate::directory::ServerResult;
use crate::proto::ldap::ber::{self, ElementHeaderError, number, tagged};

/// Bytes of a message before TLS: the answer to StartTLS takes a few dozen.
pub(crate) const BEFORE_TLS: usize = 4 * 1_024;
/// Capacity of an empty buffer that is kept for the next messages: that of one read.
const KEPT_CAPACITY: usize = 64 * 1_024;
/// How deep constructed elements may be nested; an entry needs five.
const DEPTH: usize = 20;
/// The limit in bytes for each element of a message: a parsed element takes more memory than its two bytes.
const BYTES_PER_ELEMENT: usize = 16;

/// BER tags.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const CONTROLS: u8 = 0xa0;
/// Where Active Directory puts the name of a notice of disconnection.
const MISPLACED_NAME: u8 = 0x8a;

/// The messages that a client receives in reply to usher's requests.
pub(crate) const BIND_RESPONSE: u8 = 0x61;
pub(crate) const SEARCH_ENTRY: u8 = 0x64;
pub(crate) const SEARCH_DONE: u8 = 0x65;
pub(crate) const SEARCH_REFERENCE: u8 = 0x73;
pub(crate) const EXTENDED_RESPONSE: u8 = 0x78;
pub(crate) const INTERMEDIATE_RESPONSE: u8 = 0x79;

/// Why a server's input is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// The lengths or tags do not form an LDAP message.
    #[error("not an LDAP message")]
    NoMessage,
    /// More bytes than allowed.
    #[error("longer than {0} bytes")]
    TooLong(usize),
    /// Excessive nesting.
    #[error("nested more than {DEPTH} levels deep")]
    TooDeep,
    /// More elements than allowed.
    #[error("too many elements")]
    TooMany,
    /// A required result is missing, or its code does not have one to four bytes.
    #[error("malformed result")]
    Outcome,
    /// Another type of reply, or another message ID, than requested.
    #[error("unsolicited reply")]
    Foreign,
    /// Data between the reply to StartTLS and TLS.
    #[error("data between the StartTLS reply and TLS")]
    BeforeTls,
}

/// A parsed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LdapMessage<'a> {
    pub(crate) id: u32,
    /// The operation's tag.
    pub(crate) tag: u8,
    /// The operation's content.
    pub(crate) body: &'a [u8],
    /// The content of the controls; empty if there are none.
    pub(crate) controls: &'a [u8],
}

/// The result in a message: code, matched DN and diagnostic message (RFC 4511 section 4.1.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LdapResult<'a> {
    pub(crate) code: u32,
    pub(crate) text: &'a str,
}

impl From<LdapResult<'_>> for ServerResult {
    fn from(result: LdapResult<'_>) -> Self {
        Self::new(result.code, result.text)
    }
}

/// The message reader of one connection.
#[derive(Debug)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    /// The end of the consumed bytes.
    start: usize,
    /// The end of the checked messages.
    whole: usize,
    most: usize,
    /// Whether a bind response is unexpected.
    no_binds: bool,
    /// Why nothing after `whole` is read.
    end: Option<StreamEnd>,
}

/// Why no more messages follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The server violated the protocol.
    Violation(Violation),
    /// A notice of disconnection (RFC 4511 section 4.4.1), and its result.
    Notice(ServerResult),
}

impl Frames {
    /// A reader for messages of up to `most` bytes.
    pub(crate) const fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, whole: 0, most, no_binds: false, end: None }
    }

    /// No bind is sent from now on.
    pub(crate) const fn expect_no_binds(&mut self) {
        self.no_binds = true;
    }

    /// Appends received bytes.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        if self.end.is_some() {
            return;
        }
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.whole -= self.start;
            self.start = 0;
        }
        self.reserve(piece.len());
        self.bytes.extend_from_slice(piece);
        self.scan();
    }

    /// Doubles the capacity, but not beyond the size of the message being received.
    fn reserve(&mut self, more: usize) {
        let length = self.bytes.len();
        if self.bytes.capacity() - length < more {
            let begun = self.bytes.get(self.whole..).and_then(|begun| ber::header(begun).ok());
            let needed =
                begun.map_or(more, |header| (self.whole + header.size + header.content).saturating_sub(length));
            self.bytes.reserve_exact(needed.min(length).max(more));
        }
    }

    /// Checks the messages that are complete.
    fn scan(&mut self) {
        while let Some(rest) = self.bytes.get(self.whole..).filter(|rest| !rest.is_empty()) {
            match first(rest, self.most) {
                Ok(Some((message, _))) if message.id == 0 => {
                    let end = notice(&message).map_or(StreamEnd::Violation(Violation::Foreign), StreamEnd::Notice);
                    return self.stop(end);
                }
                Ok(Some((message, _))) if self.no_binds && message.tag == BIND_RESPONSE => {
                    return self.stop(StreamEnd::Violation(Violation::Foreign));
                }
                Ok(Some((_, size))) => self.whole += size,
                Ok(None) => return,
                Err(violation) => return self.stop(StreamEnd::Violation(violation)),
            }
        }
    }

    fn stop(&mut self, end: StreamEnd) {
        self.end = Some(end);
        self.bytes.truncate(self.whole);
    }

    /// The complete messages that are not consumed.
    pub(crate) fn whole(&self) -> &[u8] {
        self.bytes.get(self.start..self.whole).unwrap_or_default()
    }

    /// The first of them, and its length.
    pub(crate) fn message(&self) -> Option<(LdapMessage<'_>, usize)> {
        let whole = self.whole();
        let (_, content, behind) = ber::element(whole)?;
        Some((LdapMessage::read(content)?, whole.len() - behind.len()))
    }

    /// Discards this many bytes of the complete messages.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.whole);
        if self.start == self.bytes.len() {
            self.bytes.clear();
            (self.start, self.whole) = (0, 0);
            // The capacity of one large message is not kept for the small ones that follow.
            self.bytes.shrink_to(KEPT_CAPACITY);
        }
    }

    /// Whether there are no unconsumed bytes.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.bytes.len() && self.end.is_none()
    }

    /// Why no more messages follow [`Self::whole`].
    pub(crate) fn end(&self) -> Option<StreamEnd> {
        self.end.clone()
    }

    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

/// The message at the start of these bytes and its length, once complete.
fn first(bytes: &[u8], most: usize) -> Result<Option<(LdapMessage<'_>, usize)>, Violation> {
    let header = match ber::header(bytes) {
        Ok(header) => header,
        Err(ElementHeaderError::Short) if bytes.first().is_none_or(|tag| *tag == SEQUENCE) => return Ok(None),
        Err(ElementHeaderError::Short | ElementHeaderError::Malformed) => return Err(Violation::NoMessage),
    };
    if header.tag != SEQUENCE {
        return Err(Violation::NoMessage);
    }
    let size = header.size.saturating_add(header.content);
    if size > most {
        return Err(Violation::TooLong(most));
    }
    let Some(frame) = bytes.get(..size) else { return Ok(None) };
    check(frame, most / BYTES_PER_ELEMENT)?;
    let content = frame.get(header.size..).unwrap_or_default();
    let message = LdapMessage::read(content).ok_or(Violation::NoMessage)?;
    if message.has_result() && message.outcome().is_none() {
        return Err(Violation::Outcome);
    }
    Ok(Some((message, size)))
}

/// Visits all elements of a message, without recursion: each must end within its parent.
fn check(frame: &[u8], most_elements: usize) -> Result<(), Violation> {
    // The ends of the enclosing elements.
    let mut ends = [0; DEPTH];
    let (mut depth, mut at, mut elements) = (0_usize, 0_usize, 0_usize);
    loop {
        // Leaves the elements that end here.
        while let Some(end) = depth.checked_sub(1).and_then(|top| ends.get(top))
            && *end == at
        {
            depth -= 1;
        }
        let around = match depth.checked_sub(1) {
            Some(top) => ends.get(top).copied().unwrap_or_default(),
            None if at == 0 => frame.len(),
            None => return Ok(()),
        };
        elements += 1;
        if elements > most_elements {
            return Err(Violation::TooMany);
        }
        // An element that exceeds its parent is malformed.
        let header = frame.get(at..around).and_then(|rest| ber::header(rest).ok()).ok_or(Violation::NoMessage)?;
        let (begin, end) = (at + header.size, at + header.size + header.content);
        if end > around {
            return Err(Violation::NoMessage);
        }
        if header.tag & 0x20 == 0 {
            at = end;
        } else {
            *ends.get_mut(depth).ok_or(Violation::TooDeep)? = end;
            (depth, at) = (depth + 1, begin);
        }
    }
}

impl<'a> LdapMessage<'a> {
    /// Splits the content of an LDAPMessage.
    fn read(content: &'a [u8]) -> Option<Self> {
        let (id, rest) = tagged(content, INTEGER)?;
        // maxInt is 2^31 - 1.
        let id = number(id).filter(|id| i32::try_from(*id).is_ok())?;
        let (tag, body, rest) = ber::element(rest)?;
        let known =
            [BIND_RESPONSE, SEARCH_ENTRY, SEARCH_DONE, SEARCH_REFERENCE, EXTENDED_RESPONSE, INTERMEDIATE_RESPONSE];
        if !known.contains(&tag) {
            return None;
        }
        let controls = match ber::element(rest) {
            None if rest.is_empty() => &[][..],
            Some((CONTROLS, controls, [])) => controls,
            Some((MISPLACED_NAME, _, [])) if id == 0 => &[][..],
            Some(_) | None => return None,
        };
        Some(Self { id, tag, body, controls })
    }

    /// Whether this type has a result code.
    const fn has_result(&self) -> bool {
        matches!(self.tag, BIND_RESPONSE | SEARCH_DONE | EXTENDED_RESPONSE)
    }

    /// The result at its start.
    pub(crate) fn outcome(&self) -> Option<LdapResult<'a>> {
        let (code, rest) = tagged(self.body, ENUMERATED)?;
        let (matched, rest) = tagged(rest, OCTET_STRING)?;
        let (text, _) = tagged(rest, OCTET_STRING)?;
        std::str::from_utf8(matched).ok()?;
        Some(LdapResult { code: number(code)?, text: std::str::from_utf8(text).ok()? })
    }

    /// The value of this control, empty if it has none; `None` without the control.
    pub(crate) fn control(&self, oid: &str) -> Option<&'a [u8]> {
        let mut rest = self.controls;
        while let Some((control, behind)) = tagged(rest, SEQUENCE) {
            rest = behind;
            let Some((name, mut value)) = tagged(control, OCTET_STRING) else { continue };
            if name != oid.as_bytes() {
                continue;
            }
            // Skips the criticality, which has no meaning in a reply.
            if let Some((_, behind)) = tagged(value, 0x01) {
                value = behind;
            }
            return Some(tagged(value, OCTET_STRING).map_or(&[][..], |(value, _)| value));
        }
        None
    }
}

/// The result of an unsolicited notification. The only defined one announces the end of the connection.
fn notice(message: &LdapMessage<'_>) -> Option<ServerResult> {
    let outcome = message.outcome().filter(|_| message.tag == EXTENDED_RESPONSE)?;
    Some(outcome.into())
}

/// The invariants of any input: two bytes of a limit, eight that choose the split, and the data. The split
/// makes no difference, no more is buffered than was received and the limit allows, and a parser that trusts
/// its input agrees on each message.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn invariants(data: &[u8]) {
    let Some((most, rest)) = data.split_first_chunk() else { return };
    let Some((cuts, bytes)) = rest.split_first_chunk::<8>() else { return };
    // An incomplete header is kept whatever the limit: six bytes at most.
    let most = usize::from(u16::from_be_bytes(*most)).max(6);
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut frames, mut messages) = (Frames::new(most), Vec::new());
        for piece in pieces {
            frames.push(piece);
            assert!(frames.bytes.len() <= most + piece.len(), "more is kept than one message");
            assert!(frames.bytes.capacity() <= 2 * (most + piece.len()) + KEPT_CAPACITY, "more is taken than is kept");
            while let Some((message, size)) = frames.message() {
                let whole = frames.whole().get(..size).unwrap_or_default();
                let parsed = ldap3::asn1::parse_tag(whole);
                let agrees = parsed.is_ok_and(|(rest, parsed)| rest.is_empty() && parsed.id == 16);
                assert!(agrees, "a parser sees no message, or another one: {whole:x?}");
                assert!(message.id > 0 && (!message.has_result() || message.outcome().is_some()), "{whole:x?}");
                messages.push(whole.to_vec());
                frames.consume(size);
            }
        }
        (messages, frames.end())
    };
    let (mut left, mut cuts) = (bytes, cuts.iter().cycle());
    let mut pieces = std::iter::from_fn(|| {
        let size = usize::from(*cuts.next()?).max(1).min(left.len());
        let (piece, rest) = left.split_at_checked(size).filter(|_| size > 0)?;
        left = rest;
        Some(piece)
    });
    let in_pieces = read(&mut pieces);
    assert_eq!(read(&mut std::iter::once(bytes)), in_pieces, "pieces make a difference");
}

#[cfg(test)]
mod tests;
