//! Postfix's socketmap protocol (socketmap_table(5)): a question and an answer, each in a netstring.
//!
//! A question is `MAP KEY`. Netstrings are read strictly: a length without leading zeros, at most [`LONGEST`], then the
//! bytes, then a comma. Of a question that is longer than any address only the beginning is kept, so that a connection
//! costs some hundred bytes whatever it sends. Usher never answers PERM: Postfix tries again later whatever is wrong
//! here.

use std::mem;

use thiserror::Error;

/// The longest netstring (`DICT_SOCKMAP_DEF_MAX_REPLY`), without length and comma.
pub(crate) const LONGEST: usize = 100_000;
/// How much of a question is kept: a map's name, and more than the longest address.
const KEPT: usize = 1_024;
/// The longest reason behind TEMP: Postfix logs 200 bytes of it.
const REASON: usize = 200;

/// Why what a peer sends is no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum SocketmapError {
    /// The length is missing, has a leading zero, or is too large.
    #[error("not the length of a netstring of at most {LONGEST} bytes")]
    Length,
    /// No comma follows the bytes.
    #[error("no comma at the end of a netstring")]
    Comma,
    /// There is no space between a map and a key.
    #[error("no map and key in a netstring")]
    NoMap,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    bytes: Vec<u8>,
    /// Where the key begins.
    key: usize,
    is_cut: bool,
}

impl Question {
    fn read(bytes: Vec<u8>, is_cut: bool) -> Result<Self, SocketmapError> {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or(SocketmapError::NoMap)?;
        Ok(Self { bytes, key: space + 1, is_cut })
    }

    /// The name of the map.
    pub(crate) fn map(&self) -> &[u8] {
        self.bytes.get(..self.key.saturating_sub(1)).unwrap_or_default()
    }

    /// The key; `None`: longer than any address.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.bytes.get(self.key..).filter(|_| !self.is_cut)
    }
}

/// Where in a netstring the next byte is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// In the length; `None`: before its first digit.
    Length(Option<usize>),
    /// In the bytes; the number that is to come.
    Bytes { left: usize, whole: usize },
    /// At the comma.
    Comma { whole: usize },
}

/// Reads questions, in whatever pieces they come.
#[derive(Debug)]
pub(crate) struct QuestionReader {
    place: Place,
    kept: Vec<u8>,
}

impl QuestionReader {
    pub(crate) const fn new() -> Self {
        Self { place: Place::Length(None), kept: Vec::new() }
    }

    /// Whether a question has begun.
    pub(crate) fn is_within(&self) -> bool {
        self.place != Place::Length(None)
    }

    /// Takes bytes from the front of `input` up to the end of a question; `None`: more have to come.
    ///
    /// # Errors
    /// It is not a netstring. What follows cannot be read either.
    pub(crate) fn read(&mut self, input: &mut &[u8]) -> Result<Option<Question>, SocketmapError> {
        while let Some((first, rest)) = input.split_first() {
            match self.place {
                Place::Length(so_far) => {
                    *input = rest;
                    self.place = length(so_far, *first)?;
                }
                Place::Bytes { left, whole } => {
                    let (taken, rest) = input.split_at(left.min(input.len()));
                    let room = KEPT.saturating_sub(self.kept.len());
                    self.kept.extend(taken.iter().take(room));
                    *input = rest;
                    self.place = match left - taken.len() {
                        0 => Place::Comma { whole },
                        left => Place::Bytes { left, whole },
                    };
                }
                Place::Comma { whole } => {
                    if *first != b',' {
                        return Err(SocketmapError::Comma);
                    }
                    *input = rest;
                    self.place = Place::Length(None);
                    return Question::read(mem::take(&mut self.kept), whole > KEPT).map(Some);
                }
            }
        }
        Ok(None)
    }
}

/// The place behind this byte of a length.
fn length(so_far: Option<usize>, byte: u8) -> Result<Place, SocketmapError> {
    match (so_far, byte) {
        (Some(0), b':') => Ok(Place::Comma { whole: 0 }),
        (Some(whole), b':') => Ok(Place::Bytes { left: whole, whole }),
        // A leading zero.
        (Some(0), _) => Err(SocketmapError::Length),
        (so_far, b'0'..=b'9') => {
            let length = so_far.unwrap_or(0) * 10 + usize::from(byte - b'0');
            if length > LONGEST { Err(SocketmapError::Length) } else { Ok(Place::Length(Some(length))) }
        }
        (_, _) => Err(SocketmapError::Length),
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SocketmapAnswer {
    /// The value.
    Ok(String),
    /// The map has no such key.
    NotFound,
    /// Postfix has to try again later, for this reason.
    Temp(String),
}

impl SocketmapAnswer {
    /// Appends it in its netstring.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let (status, text) = match self {
            Self::Ok(value) => ("OK", value.as_str()),
            Self::NotFound => ("NOTFOUND", ""),
            Self::Temp(reason) => ("TEMP", reason.as_str()),
        };
        // Only a reason has texts that are not usher's: one line, printable.
        let text: String = match self {
            Self::Temp(_) => {
                text.chars().map(|letter| if is_plain(letter) { letter } else { '?' }).take(REASON).collect()
            }
            Self::Ok(_) | Self::NotFound => text.to_owned(),
        };
        let length = status.len() + 1 + text.len();
        out.extend_from_slice(format!("{length}:{status} {text},").as_bytes());
    }
}

fn is_plain(letter: char) -> bool {
    letter == ' ' || letter.is_ascii_graphic()
}

/// A fuzz target: what comes to the socketmap listener. Pieces make no difference, nothing is read behind a mistake, and
/// a question is no longer than what was sent.
#[cfg(any(test, feature = "internals"))]
#[allow(clippy::panic, reason = "a violated invariant is reported by a panic")]
pub fn invariants(data: &[u8]) {
    let all = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut reader, mut questions) = (QuestionReader::new(), Vec::new());
        for piece in pieces {
            let mut rest = piece;
            loop {
                match reader.read(&mut rest) {
                    Ok(Some(question)) => questions.push(question),
                    Ok(None) => break,
                    Err(error) => return (questions, Some(error)),
                }
            }
            assert!(rest.is_empty() && reader.kept.len() <= KEPT, "bytes are left, or too many are kept");
        }
        (questions, None)
    };
    let whole = all(&mut std::iter::once(data));
    assert_eq!(whole, all(&mut data.chunks(1)), "pieces make a difference");
    let length = |question: &Question| question.map().len() + question.key().map_or(0, <[u8]>::len);
    assert!(whole.0.iter().map(length).sum::<usize>() <= data.len(), "longer than what was sent");
    for answer in [SocketmapAnswer::Temp(String::from_utf8_lossy(data).into_owned()), SocketmapAnswer::NotFound] {
        let mut written = Vec::new();
        answer.write(&mut written);
        assert!(!written.contains(&b'\n') && written.len() <= REASON + 16, "an answer of more than one line");
        let (read, error) = all(&mut std::iter::once(written.as_slice()));
        assert!(error.is_none() && read.len() == 1, "the answer is no netstring: {written:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(String, Option<String>)>, SocketmapError> {
        let (mut reader, mut rest, mut found) = (QuestionReader::new(), bytes, Vec::new());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        while let Some(question) = reader.read(&mut rest)? {
            found.push((text(question.map()), question.key().map(text)));
        }
        Ok(found)
    }

    fn one(map: &str, key: &str) -> (String, Option<String>) {
        (map.to_owned(), Some(key.to_owned()))
    }

    #[test]
    fn questions_are_read_one_after_the_other() {
        let bytes = b"25:transport bob@example.com,11:transport *,10:recipient ,";
        let all = vec![one("transport", "bob@example.com"), one("transport", "*"), one("recipient", "")];
        assert_eq!(read(bytes), Ok(all));
        assert_eq!(read(b"15:transport a b@x,"), Ok(vec![one("transport", "a b@x")]), "only the first space counts");
        assert_eq!(read(b"25:transport bob@exam"), Ok(vec![]), "more has to come");
        assert_eq!(read(b"3:: ,,"), Ok(vec![one(":", ",")]));
    }

    #[test]
    fn netstrings_are_strict() {
        for (bytes, error) in [
            (&b"025:transport bob@example.com,"[..], SocketmapError::Length),
            (b"00:,", SocketmapError::Length),
            (b":,", SocketmapError::Length),
            (b"-1:,", SocketmapError::Length),
            (b"+1:a,", SocketmapError::Length),
            (b" 1:a,", SocketmapError::Length),
            (b"1 :a,", SocketmapError::Length),
            (b"0x1:a,", SocketmapError::Length),
            (b"100001:", SocketmapError::Length),
            (b"99999999999999999999999999999:", SocketmapError::Length),
            (b"GET / HTTP/1.1\r\n", SocketmapError::Length),
            (b"\x16\x03\x01", SocketmapError::Length),
            (b"\n", SocketmapError::Length),
            (b"25:transport bob@example.com\n", SocketmapError::Comma),
            (b"24:transport bob@example.com,", SocketmapError::Comma),
            (b"0:,", SocketmapError::NoMap),
            (b"9:transport,", SocketmapError::NoMap),
        ] {
            assert_eq!(read(bytes), Err(error), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn question_longer_than_any_address_is_read_and_not_kept() {
        let mut bytes = format!("{LONGEST}:transport ").into_bytes();
        bytes.resize(bytes.len() + LONGEST - "transport ".len(), b'x');
        bytes.extend(b",25:transport bob@example.com,");
        let all = vec![("transport".to_owned(), None), one("transport", "bob@example.com")];
        assert_eq!(read(&bytes), Ok(all));
    }

    #[test]
    fn answers_are_netstrings_of_one_line() {
        let written = |answer: SocketmapAnswer| {
            let mut out = Vec::new();
            answer.write(&mut out);
            String::from_utf8(out).unwrap()
        };
        let value = "lmtp:inet:server3.example.com:24".to_owned();
        assert_eq!(written(SocketmapAnswer::Ok(value)), "35:OK lmtp:inet:server3.example.com:24,");
        assert_eq!(written(SocketmapAnswer::NotFound), "9:NOTFOUND ,");
        assert_eq!(written(SocketmapAnswer::Temp("a\r\nb\u{e9}\0".to_owned())), "11:TEMP a??b??,");
        assert_eq!(written(SocketmapAnswer::Temp("x".repeat(1_000))).len(), "205:TEMP ".len() + 200 + 1);
    }
}
