//! Status responses and capability lists of a backend (RFC 9051 sections 7.1 and 7.2.2).
//!
//! Reads one line without its tag. What a client may see of a backend's capabilities is decided here.

use super::super::wire::first_word;

/// A status response behind its tag or `*` (RFC 9051 section 7.1).
#[derive(Debug)]
pub(super) struct ImapStatus<'a> {
    pub(super) word: ImapStatusKind,
    /// The response code without brackets; empty if absent.
    pub(super) code: &'a [u8],
    pub(super) text: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImapStatusKind {
    Ok,
    No,
    Bad,
    Bye,
    Preauth,
}

impl<'a> ImapStatus<'a> {
    /// `None` if the line's first word, up to a space or the end, is not exactly one of the five.
    pub(super) fn of(line: &'a [u8]) -> Option<Self> {
        let (word, rest) = first_word(line.strip_suffix(b"\r\n").unwrap_or(line));
        let words = [
            ("OK", ImapStatusKind::Ok),
            ("NO", ImapStatusKind::No),
            ("BAD", ImapStatusKind::Bad),
            ("BYE", ImapStatusKind::Bye),
            ("PREAUTH", ImapStatusKind::Preauth),
        ];
        let (_, word) = words.into_iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(word))?;
        let (code, text) = split_code(rest).unwrap_or((b"", rest));
        Some(Self { word, code, text })
    }

    pub(super) fn capabilities(&self) -> Option<&'a [u8]> {
        capability_line(self.code)
    }

    /// Codes that report a temporary failure of the server (RFC 5530).
    pub(super) fn is_about_the_server(&self) -> bool {
        ["UNAVAILABLE", "SERVERBUG", "INUSE"].iter().any(|code| self.code.eq_ignore_ascii_case(code.as_bytes()))
    }

    /// Whether a BAD can be about the form of the command: it has no code, or one about the client's command.
    pub(super) fn is_about_form(&self) -> bool {
        self.code.is_empty()
            || ["CLIENTBUG", "TOOBIG", "PARSE"].iter().any(|code| self.code.eq_ignore_ascii_case(code.as_bytes()))
    }

    pub(super) fn is_referral(&self) -> bool {
        first_word(self.code).0.eq_ignore_ascii_case(b"REFERRAL")
    }
}

/// Splits `[code] text`.
fn split_code(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inside = text.strip_prefix(b"[")?;
    let end = inside.iter().position(|byte| *byte == b']')?;
    let behind = inside.get(end + 1..)?;
    Some((inside.get(..end)?, behind.strip_prefix(b" ").unwrap_or(behind)))
}

/// The list in `CAPABILITY list`, a data line or a code.
pub(super) fn capability_line(line: &[u8]) -> Option<&[u8]> {
    let (word, list) = first_word(line.strip_suffix(b"\r\n").unwrap_or(line));
    word.eq_ignore_ascii_case(b"CAPABILITY").then_some(list)
}

/// A backend's capabilities as the client may see them: without what ends with the login or what a
/// relay cannot carry. COMPRESS stays: it is between client and backend, usher only relays it.
pub(super) fn for_client(listed: &[u8]) -> Vec<u8> {
    let hidden = |word: &[u8]| {
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        // Would leave the client before login at the backend, where usher cannot log it in again (RFC 8437).
        is("UNAUTHENTICATE")
            // Are about a state that is over; STARTTLS inside usher's TLS would break the session.
            || is("STARTTLS")
            || is("LOGINDISABLED")
            || word.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"AUTH="))
            // Would send the client to servers that it cannot reach (RFC 2221, RFC 2193).
            || is("LOGIN-REFERRALS")
            || is("MAILBOX-REFERRALS")
    };
    let words = listed.split(|byte| *byte == b' ');
    // Nothing but what a capability is made of, so that the list fits into the tagged OK's code.
    let sound = |word: &&[u8]| !word.is_empty() && word.iter().all(|byte| byte.is_ascii_graphic() && *byte != b']');
    words.filter(sound).filter(|word| !hidden(word)).collect::<Vec<_>>().join(&b' ')
}
