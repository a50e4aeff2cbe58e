//! Memory that is wiped: passwords from the first byte read to the last byte sent.
//!
//! [`Secret`] is a finished password, [`SecretBuf`] a growing buffer that may hold one (a read
//! buffer before login, the bytes of a login command towards a backend). Neither prints its
//! content, and neither leaves a copy behind when it grows, is consumed or is dropped.
//! What libraries copy for themselves is wiped by the allocator when they free it (`sys/allocator`).

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

/// A password or another value that is wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over; they are wiped on drop, whatever capacity the vector had.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Copies the bytes; the caller stays responsible for the original.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self::new(bytes.to_vec())
    }

    /// A text without the one line end that an editor puts behind it.
    #[must_use]
    pub fn without_line_end(mut bytes: Vec<u8>) -> Self {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        Self::new(bytes)
    }

    /// What a password file holds: one line.
    ///
    /// # Errors
    /// It is no password, because no protocol could carry it (NUL, RFC 4616; UTF-8, RFC 4513 section 5.1.3), or
    /// not the one that was meant.
    pub fn from_file(bytes: Vec<u8>) -> Result<Self, PasswordFileError> {
        let encoding = PasswordFileError::of_encoding(&bytes);
        let secret = Self::without_line_end(bytes);
        let bytes = secret.expose();
        if let Some(encoding) = encoding {
            Err(encoding)
        } else if bytes.is_empty() {
            Err(PasswordFileError::Empty)
        } else if bytes.contains(&0) {
            Err(PasswordFileError::Binary)
        } else if std::str::from_utf8(bytes).is_err() {
            Err(PasswordFileError::NotUtf8)
        } else if bytes.contains(&b'\n') {
            Err(PasswordFileError::Lines)
        } else {
            Ok(secret)
        }
    }

    /// The bytes in clear. Review every call.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why the content of a password file is not used as a password; each says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordFileError {
    /// There is nothing in it.
    #[error("is empty; put the password into its first line")]
    Empty,
    /// UTF-16, with or without a byte order mark.
    #[error(
        "is UTF-16 text, as PowerShell's `>` and some editors write it: convert it with `iconv -f UTF-16 -t UTF-8`"
    )]
    Utf16,
    /// UTF-8 with a byte order mark.
    #[error(
        "begins with a byte order mark, which would be a part of the secret: save it as UTF-8 without it, as `tail -c +4` does"
    )]
    ByteOrderMark,
    /// NUL bytes.
    #[error("holds NUL bytes: it is no text file, put the password into its first line")]
    Binary,
    /// Another encoding.
    #[error("is not UTF-8: convert it, for example with `iconv -f ISO-8859-1 -t UTF-8`")]
    NotUtf8,
    /// More than one line.
    #[error("has more than one line, and line ends would be a part of the password: leave only its line")]
    Lines,
}

impl PasswordFileError {
    /// An encoding that text editors put in without being asked; `None`: neither of these.
    #[must_use]
    pub fn of_encoding(content: &[u8]) -> Option<Self> {
        let every_other_is_nul = |first: usize| content.iter().skip(first).step_by(2).all(|byte| *byte == 0);
        let is_utf16 =
            content.len() >= 4 && content.len().is_multiple_of(2) && (every_other_is_nul(0) || every_other_is_nul(1));
        if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") || is_utf16 {
            Some(Self::Utf16)
        } else {
            content.starts_with(b"\xef\xbb\xbf").then_some(Self::ByteOrderMark)
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The most room that an empty [`SecretBuf`] keeps: one read before the login.
const KEPT: usize = 4096;

/// A byte queue that wipes what leaves it: bytes are appended at the end and consumed from the
/// front. Once empty it keeps `KEPT` bytes of room at most, so that a burst costs memory only while it
/// lasts.
#[derive(Default)]
pub struct SecretBuf {
    bytes: Vec<u8>,
    start: usize,
}

impl SecretBuf {
    /// An empty buffer without an allocation.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), start: 0 }
    }

    /// An empty buffer that takes this many bytes without growing.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), start: 0 }
    }

    /// The room that there is without growing.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.bytes.capacity()
    }

    /// The bytes not yet consumed.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// How many bytes are not yet consumed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len().saturating_sub(self.start)
    }

    /// Whether every byte is consumed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes. When the buffer must grow, the old memory is wiped first.
    pub fn extend(&mut self, more: &[u8]) {
        self.reserve(more.len());
        self.bytes.extend_from_slice(more);
    }

    /// Consumes up to `n` bytes from the front and wipes them.
    pub fn consume(&mut self, n: usize) {
        let end = self.start.saturating_add(n).min(self.bytes.len());
        if let Some(gone) = self.bytes.get_mut(self.start..end) {
            gone.zeroize();
        }
        self.start = end;
        if self.is_empty() {
            self.bytes.clear();
            self.give_back();
        }
    }

    /// Consumes everything.
    pub fn clear(&mut self) {
        self.bytes.zeroize();
        self.give_back();
    }

    /// The room of an empty buffer, all of it wiped before, beyond what is kept.
    fn give_back(&mut self) {
        self.start = 0;
        if self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
    }

    /// Makes room for `more` bytes without leaving a copy of the old content in freed memory.
    fn reserve(&mut self, more: usize) {
        if self.bytes.capacity() - self.bytes.len() >= more {
            return;
        }
        let live = self.len();
        if self.start > 0 && self.bytes.capacity() - live >= more {
            self.bytes.copy_within(self.start.., 0);
            if let Some(tail) = self.bytes.get_mut(live..) {
                tail.zeroize();
            }
            self.bytes.truncate(live);
            self.start = 0;
            return;
        }
        let mut larger = Vec::with_capacity((live + more).next_power_of_two().max(256));
        larger.extend_from_slice(self.as_slice());
        self.bytes.zeroize();
        self.bytes = larger;
        self.start = 0;
    }
}

impl Drop for SecretBuf {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for SecretBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBuf({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_content() {
        let secret = Secret::copy_of(b"hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        let mut buf = SecretBuf::new();
        buf.extend(b"hunter2");
        assert_eq!(format!("{buf:?}"), "SecretBuf(7 bytes)");
    }

    #[test]
    fn password_file_is_one_line_of_text() {
        let read = |content: &[u8]| Secret::from_file(content.to_vec()).map(|secret| secret.expose().to_vec());
        for (content, password) in [
            (&b"secret"[..], &b"secret"[..]),
            (b"secret\n", b"secret"),
            (b"secret\r\n", b"secret"),
            (b" se cret \n", b" se cret "),
            ("p\u{e4}ssword\n".as_bytes(), "p\u{e4}ssword".as_bytes()),
        ] {
            assert_eq!(read(content).as_deref(), Ok(password));
        }
        let utf16 = |text: &str, order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
        for (content, error) in [
            (b"".to_vec(), PasswordFileError::Empty),
            (b"\n".to_vec(), PasswordFileError::Empty),
            (b"\r\n".to_vec(), PasswordFileError::Empty),
            (utf16("\u{feff}secret\r\n", u16::to_le_bytes), PasswordFileError::Utf16),
            (utf16("\u{feff}secret", u16::to_be_bytes), PasswordFileError::Utf16),
            (utf16("secret\n", u16::to_le_bytes), PasswordFileError::Utf16),
            (utf16("secret\n", u16::to_be_bytes), PasswordFileError::Utf16),
            (b"\xef\xbb\xbfsecret\n".to_vec(), PasswordFileError::ByteOrderMark),
            (b"sec\0ret".to_vec(), PasswordFileError::Binary),
            (b"p\xe4ssword".to_vec(), PasswordFileError::NotUtf8),
            (b"secret\n\n".to_vec(), PasswordFileError::Lines),
            (b"secret\nanother\n".to_vec(), PasswordFileError::Lines),
        ] {
            assert_eq!(read(&content), Err(error), "{content:?}");
        }
    }

    #[test]
    fn consumed_bytes_are_wiped_in_place() {
        let mut buf = SecretBuf::new();
        buf.extend(b"password rest");
        buf.consume(9);
        assert_eq!(buf.as_slice(), b"rest");
        assert!(buf.bytes[..9].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn growth_keeps_order_across_consumption() {
        let mut buf = SecretBuf::new();
        let mut expected = Vec::new();
        for round in 0..2_000_u32 {
            let piece = round.to_le_bytes();
            buf.extend(&piece);
            expected.extend_from_slice(&piece);
            if round % 3 == 0 {
                buf.consume(4);
                expected.drain(..4);
            }
        }
        assert_eq!(buf.as_slice(), expected);
        buf.clear();
        assert!(buf.is_empty());
    }

    #[test]
    fn burst_capacity_is_released() {
        let mut buf = SecretBuf::new();
        buf.extend(&[b'x'; KEPT]);
        buf.consume(KEPT);
        assert_eq!(buf.bytes.capacity(), KEPT, "what one read needs is kept");
        for empty in [|buf: &mut SecretBuf| buf.clear(), |buf: &mut SecretBuf| buf.consume(usize::MAX)] {
            buf.extend(&[b'x'; 100_000]);
            buf.consume(1);
            empty(&mut buf);
            assert_eq!(buf.bytes.capacity(), 0);
        }
    }
}
