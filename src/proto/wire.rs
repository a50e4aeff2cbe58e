//! Lines and literals: the framing that the line protocols share, in wiping memory.
//!
//! Only CRLF ends a line (RFC 9051 section 2.2, RFC 5321 section 2.3.8). A bare CR or LF and a NUL make it
//! invalid: accepted as a line end by one side and as data by the other, they allow command smuggling. Every
//! unit has a limit, what exceeds it is discarded, and the same bytes give the same result however they are
//! split. Nothing here knows any command.

use crate::base::secret::SecretBuf;

/// The result of scanning a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The input is used up, the line goes on.
    Incomplete,
    /// The line is complete, CRLF included.
    Line,
    /// The next byte of the input, which is left there, cannot belong to the line.
    Spoiled(Invalid),
}

/// Why a line is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It is longer than its limit.
    TooLong,
    /// An LF without CR before it.
    BareLf,
    /// A CR without LF behind it.
    BareCr,
    /// A NUL.
    Nul,
}

/// A command or an answer as it arrives: lines, and literals between them.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    bytes: SecretBuf,
    /// Where the current line starts in `bytes`.
    line: usize,
}

impl LineBuffer {
    /// Everything so far, CRLFs and literals included.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The current line without its CRLF.
    #[must_use]
    pub(crate) fn line(&self) -> &[u8] {
        let line = self.bytes().get(self.line..).unwrap_or_default();
        line.strip_suffix(b"\r\n").unwrap_or(line)
    }

    /// Moves bytes from `input` to the current line, up to its CRLF. `limit` bounds the line without its CRLF.
    /// After [`Invalid::TooLong`] it may be called again with a higher limit.
    pub(crate) fn take_line(&mut self, input: &mut SecretBuf, limit: usize) -> Scan {
        let line = self.bytes().get(self.line..).unwrap_or_default();
        let mut after_cr = line.last() == Some(&b'\r');
        let mut length = line.len() - usize::from(after_cr);
        let mut taken = 0;
        let mut found = Scan::Incomplete;
        for byte in input.as_slice() {
            match (after_cr, byte) {
                (true, b'\n') => found = Scan::Line,
                (true, _) => found = Scan::Spoiled(Invalid::BareCr),
                (false, b'\n') => found = Scan::Spoiled(Invalid::BareLf),
                (false, b'\0') => found = Scan::Spoiled(Invalid::Nul),
                (false, b'\r') => after_cr = true,
                (false, _) if length >= limit => found = Scan::Spoiled(Invalid::TooLong),
                (false, _) => length += 1,
            }
            taken += usize::from(!matches!(found, Scan::Spoiled(_)));
            if found != Scan::Incomplete {
                break;
            }
        }
        self.take(input, taken);
        found
    }

    /// Moves up to `missing` bytes of a literal from `input`, and returns how many are missing
    /// then. With the last one, the next line starts.
    pub(crate) fn take_literal(&mut self, input: &mut SecretBuf, missing: usize) -> usize {
        let taken = missing.min(input.len());
        self.take(input, taken);
        self.line = self.bytes.len();
        missing - taken
    }

    fn take(&mut self, input: &mut SecretBuf, count: usize) {
        self.bytes.extend(input.as_slice().get(..count).unwrap_or_default());
        input.consume(count);
    }
}

/// A literal as a line's end announces it: `{5}`, or `{5+}` (RFC 7888).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Literal {
    /// How many bytes follow the line; a number too large to hold is `usize::MAX`.
    pub size: usize,
    /// Whether the sender waits for a continuation before it sends them.
    pub synchronizing: bool,
}

impl Literal {
    /// The literal that this line (without CRLF) announces at its end, if it does.
    #[must_use]
    pub(crate) fn announced_by(line: &[u8]) -> Option<Self> {
        let mut marker = LiteralMarker::default();
        line.iter().for_each(|byte| marker.push(*byte));
        marker.literal()
    }
}

/// Watches a line go by for the announcement of a literal at its end, without keeping any of it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) enum LiteralMarker {
    #[default]
    Absent,
    /// Behind the brace, before any digit: `{}` announces nothing.
    Opened,
    Digits(usize),
    Plus(usize),
    Closed(Literal),
}

impl LiteralMarker {
    fn push(&mut self, byte: u8) {
        *self = match (*self, byte) {
            (_, b'{') => Self::Opened,
            (Self::Opened, b'0'..=b'9') => Self::Digits(usize::from(byte - b'0')),
            (Self::Digits(size), b'0'..=b'9') => {
                let larger = size.checked_mul(10).and_then(|ten| ten.checked_add(usize::from(byte - b'0')));
                Self::Digits(larger.unwrap_or(usize::MAX))
            }
            (Self::Digits(size), b'+') => Self::Plus(size),
            (Self::Digits(size), b'}') => Self::Closed(Literal { size, synchronizing: true }),
            (Self::Plus(size), b'}') => Self::Closed(Literal { size, synchronizing: false }),
            (Self::Absent | Self::Opened | Self::Digits(_) | Self::Plus(_) | Self::Closed(_), _) => Self::Absent,
        };
    }

    /// The state after one more byte.
    pub(super) fn behind(mut self, byte: u8) -> Self {
        self.push(byte);
        self
    }

    pub(super) const fn literal(self) -> Option<Literal> {
        if let Self::Closed(literal) = self { Some(literal) } else { None }
    }
}

/// Discards the rest of a line.
#[derive(Debug, Default)]
pub(crate) struct Discard {
    marker: LiteralMarker,
    after_cr: bool,
}

impl Discard {
    /// Starts behind what is already held of the line.
    #[must_use]
    pub(crate) fn behind(held: &[u8]) -> Self {
        let mut discard = Self::default();
        held.iter().for_each(|byte| {
            discard.push(*byte);
        });
        discard
    }

    /// Drops up to `most` bytes of `input`. Returns how many, and whether the last was the line's.
    pub(crate) fn discard(&mut self, input: &mut SecretBuf, most: usize) -> (usize, bool) {
        let mut passed = 0;
        let mut ended = false;
        for byte in input.as_slice().iter().take(most) {
            passed += 1;
            ended = self.push(*byte);
            if ended {
                break;
            }
        }
        input.consume(passed);
        (passed, ended)
    }

    /// The literal that the line announced; known when it has ended.
    #[must_use]
    pub(crate) const fn announced(&self) -> Option<Literal> {
        self.marker.literal()
    }

    /// Returns whether this byte ends the line. A CR counts only once it is known what follows.
    fn push(&mut self, byte: u8) -> bool {
        if self.after_cr {
            if byte == b'\n' {
                return true;
            }
            self.marker.push(b'\r');
        }
        self.after_cr = byte == b'\r';
        if !self.after_cr {
            self.marker.push(byte);
        }
        false
    }
}

/// The first word of `text`, up to a space, and what stands behind that space.
#[must_use]
pub(crate) fn first_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| *byte == b' ').unwrap_or(text.len());
    (text.get(..end).unwrap_or_default(), text.get(end + 1..).unwrap_or_default())
}

/// Whether a command is an HTTP request: a browser made to connect to a mail port (ALPACA).
#[must_use]
pub(crate) fn is_http(command: &[u8]) -> bool {
    const METHODS: [&[u8]; 10] =
        [b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"CONNECT", b"PRI"];
    let word = command.split(|byte| matches!(byte, b' ' | b'\r')).next();
    word.is_some_and(|word| METHODS.contains(&word))
}

/// Writes a line made of `parts`.
pub(crate) fn write_line(out: &mut SecretBuf, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend(part));
    out.extend(b"\r\n");
}

/// A peer's text made safe for a line or a log: printable ASCII, at most `most` bytes, anything else a `?`.
#[must_use]
pub(crate) fn printable(words: &[u8], most: usize) -> String {
    let harmless = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
    words.iter().take(most).map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buf(bytes: &[u8]) -> SecretBuf {
        let mut buf = SecretBuf::new();
        buf.extend(bytes);
        buf
    }

    /// Gathers one line with the limit 5, in pieces of `size` bytes; returns what is left as well.
    fn gather(bytes: &[u8], size: usize) -> (Scan, Vec<u8>, Vec<u8>) {
        let mut gathering = LineBuffer::default();
        let mut input = SecretBuf::new();
        let mut found = Scan::Incomplete;
        let mut pieces = bytes.chunks(size);
        while found == Scan::Incomplete {
            let Some(piece) = pieces.next() else { break };
            input.extend(piece);
            found = gathering.take_line(&mut input, 5);
        }
        let left = [input.as_slice(), &pieces.flatten().copied().collect::<Vec<_>>()].concat();
        (found, gathering.line().to_vec(), left)
    }

    #[test]
    fn only_crlf_ends_a_line() {
        let cases = [
            (&b"12345\r\nrest"[..], Scan::Line, &b"12345"[..], &b"rest"[..]),
            (&b"\r\n\r\n"[..], Scan::Line, &b""[..], &b"\r\n"[..]),
            (&b"123"[..], Scan::Incomplete, &b"123"[..], &b""[..]),
            (&b"12345\r"[..], Scan::Incomplete, &b"12345\r"[..], &b""[..]),
            (&b"123456\r\n"[..], Scan::Spoiled(Invalid::TooLong), &b"12345"[..], &b"6\r\n"[..]),
            (&b"1\n2\r\n"[..], Scan::Spoiled(Invalid::BareLf), &b"1"[..], &b"\n2\r\n"[..]),
            (&b"1\r2\r\n"[..], Scan::Spoiled(Invalid::BareCr), &b"1\r"[..], &b"2\r\n"[..]),
            (&b"1\r\r\n"[..], Scan::Spoiled(Invalid::BareCr), &b"1\r"[..], &b"\r\n"[..]),
            (&b"1\x002\r\n"[..], Scan::Spoiled(Invalid::Nul), &b"1"[..], &b"\x002\r\n"[..]),
        ];
        for (bytes, found, line, left) in cases {
            for size in 1..=bytes.len() {
                assert_eq!(
                    gather(bytes, size),
                    (found, line.to_vec(), left.to_vec()),
                    "{:?}/{size}",
                    bytes.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn cr_at_the_end_of_a_literal_is_not_part_of_the_next_line() {
        let mut gathering = LineBuffer::default();
        let mut input = buf(b"{3}\r\nab\r\nX\r\n");
        assert_eq!(gathering.take_line(&mut input, 9), Scan::Line);
        assert_eq!(gathering.take_literal(&mut input, 3), 0);
        assert_eq!(gathering.take_line(&mut input, 9), Scan::Spoiled(Invalid::BareLf));
    }

    #[test]
    fn literal_announcement_ends_the_line() {
        let some = |size, synchronizing| Some(Literal { size, synchronizing });
        let cases: [(&[u8], Option<Literal>); 13] = [
            (b"a LOGIN {5}", some(5, true)),
            (b"{0}", some(0, true)),
            (b"{007+}", some(7, false)),
            (b"{1{2+}", some(2, false)),
            (b"{18446744073709551615}", some(usize::MAX, true)),
            (b"{18446744073709551616}", some(usize::MAX, true)),
            (b"{99999999999999999999999999999999999999999999999+}", some(usize::MAX, false)),
            (b"{}", None),
            (b"{+}", None),
            (b"{5++}", None),
            (b"{-5}", None),
            (b"{5} ", None),
            (b"5}", None),
        ];
        for (line, literal) in cases {
            assert_eq!(Literal::announced_by(line), literal, "{}", line.escape_ascii());
            for held in 0..=line.len() {
                let mut discard = Discard::behind(&line[..held]);
                let mut input = buf(&[&line[held..], b"\r\nrest"].concat());
                assert!(discard.discard(&mut input, usize::MAX).1);
                assert_eq!(discard.announced(), literal);
                assert_eq!(input.as_slice(), b"rest");
            }
        }
    }

    #[test]
    fn discard_ends_at_crlf_only_and_within_its_budget() {
        let mut discard = Discard::behind(b"held\r");
        let mut input = buf(b"\r\0\n{1+}\r\rx\r\nrest");
        assert_eq!(discard.discard(&mut input, 3), (3, false));
        assert_eq!(discard.discard(&mut input, usize::MAX), (9, true));
        assert_eq!(discard.announced(), None);
        assert_eq!(input.as_slice(), b"rest");
    }

    #[test]
    fn text_is_made_printable() {
        assert_eq!(printable(b"a\r\nb\0\xc3\xa9]", 99), "a??b???]");
        assert_eq!(printable(b"12345", 3), "123");
    }
}
