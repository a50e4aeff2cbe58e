//! PEM files as people have them: the blocks of a file, each with its line, or the line that is wrong.
//!
//! More is read than the strict form: a byte order mark, any line ends, indentation, and a block that begins
//! in the line in which the last one ends, because the file before it in a `cat` had no last line end. What
//! stands outside of blocks is a comment. But nothing that looks like a part of a block is left out: a file
//! would be loaded with fewer certificates than its author sees in it. RFC 7468 (PEM), RFC 1421 section 4.6
//! (headers of encrypted keys).

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// As lenient as OpenSSL about padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What stands between two markers.
pub(super) struct Block<'a> {
    /// Such as `CERTIFICATE`.
    pub label: &'a str,
    /// The line of the first marker, from 1.
    pub line: usize,
    /// DER; nothing if it is encrypted in the old form.
    pub content: Zeroizing<Vec<u8>>,
    /// Whether its headers say that it is encrypted.
    pub encrypted: bool,
}

/// A line that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PemError {
    /// Which one, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: PemFault,
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PemFault {
    #[error("the {label} that begins here has no end: copy the file again in full")]
    NoEnd { label: String },
    #[error("this ends a {label} that does not begin: copy the file again in full")]
    NoBegin { label: String },
    #[error("this ends a {label}, but the block begins as a {begun}: copy the file again in full")]
    OtherEnd { label: String, begun: String },
    #[error(
        "this is not quite a marker: it has five hyphens on each side, capital letters and a line of its own, as in \
         -----BEGIN CERTIFICATE-----"
    )]
    Marker,
    #[error("this is not base64: copy the file again in full")]
    Base64,
    #[error("a header, which only an encrypted key has: remove it")]
    Header,
    #[error("this is text in UTF-16: convert it with `iconv -f UTF-16 -t UTF-8 FILE > NEW`")]
    Utf16,
    /// A block that the file is not for.
    #[error("a {label} is no {wanted}{advice}")]
    Foreign { label: String, wanted: &'static str, advice: &'static str },
}

impl PemFault {
    pub(super) const fn at(self, line: usize) -> PemError {
        PemError { line, fault: self }
    }
}

/// The blocks of a file.
///
/// # Errors
/// The first line that is wrong.
pub(super) fn blocks(bytes: &[u8]) -> Result<Vec<Block<'_>>, PemError> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(PemFault::Utf16.at(1));
    }
    let (mut blocks, mut open) = (Vec::new(), None::<Open<'_>>);
    for (line, text) in lines(bytes) {
        let mut text = trimmed(text);
        loop {
            match Marker::read(text).map_err(|fault| fault.at(line))? {
                None => {
                    if let Some(open) = &mut open {
                        open.take(text).map_err(|fault| fault.at(line))?;
                    }
                    break;
                }
                Some(Marker { begins: true, label, rest }) => {
                    if let Some(Open { block, .. }) = open {
                        return Err(PemFault::NoEnd { label: block.label.to_owned() }.at(block.line));
                    }
                    if !rest.is_empty() {
                        return Err(PemFault::Marker.at(line));
                    }
                    open = Some(Open::new(label, line));
                    break;
                }
                Some(Marker { begins: false, label, rest }) => {
                    let begun = open.take().ok_or(PemFault::NoBegin { label: label.to_owned() }.at(line))?;
                    blocks.push(begun.close(label).map_err(|fault| fault.at(line))?);
                    text = trimmed(rest.as_bytes());
                    if text.is_empty() {
                        break;
                    }
                    if !text.starts_with(BEGIN.as_bytes()) {
                        return Err(PemFault::Marker.at(line));
                    }
                }
            }
        }
    }
    match open {
        Some(Open { block, .. }) => Err(PemFault::NoEnd { label: block.label.to_owned() }.at(block.line)),
        None => Ok(blocks),
    }
}

/// The lines with their numbers: ended by LF, CR LF, or the CR of old systems.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let numbered = (1..).zip(bytes.split(|byte| *byte == b'\n'));
    numbered.flat_map(|(number, line)| line.split(|byte| *byte == b'\r').map(move |part| (number, part)))
}

/// Without what cannot be seen at either end: blanks, byte order marks, the no-break spaces of web pages.
fn trimmed(mut text: &[u8]) -> &[u8] {
    const UNSEEN: [&[u8]; 4] = [b"\xef\xbb\xbf", b"\xc2\xa0", b"\xe2\x80\x8b", b"\x0c"];
    loop {
        let before = text.len();
        text = text.trim_ascii();
        for unseen in UNSEEN {
            text = text.strip_prefix(unseen).unwrap_or(text);
            text = text.strip_suffix(unseen).unwrap_or(text);
        }
        if text.len() == before {
            return text;
        }
    }
}

struct Marker<'a> {
    begins: bool,
    label: &'a str,
    /// What follows it in its line.
    rest: &'a str,
}

impl<'a> Marker<'a> {
    /// A line that is one, or begins with one.
    fn read(line: &'a [u8]) -> Result<Option<Self>, PemFault> {
        let Ok(text) = std::str::from_utf8(line) else { return Ok(None) };
        let (begins, rest) = match (text.strip_prefix(BEGIN), text.strip_prefix(END)) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) if is_like_one(text) => return Err(PemFault::Marker),
            (None, None) => return Ok(None),
        };
        let (label, rest) = rest.split_once(DASHES).ok_or(PemFault::Marker)?;
        let plain = |letter: u8| letter.is_ascii_uppercase() || letter.is_ascii_digit() || b" #./".contains(&letter);
        if label.is_empty() || label.len() > 64 || !label.bytes().all(plain) {
            return Err(PemFault::Marker);
        }
        Ok(Some(Self { begins, label, rest }))
    }
}

/// Whether a line is meant as a marker: too few hyphens, small letters, or dashes in place of hyphens.
fn is_like_one(text: &str) -> bool {
    let dash = |letter: char| matches!(letter, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}');
    if !text.starts_with(dash) {
        return false;
    }
    let text = text.trim_start_matches(dash).trim_start().to_ascii_uppercase();
    let of = ["CERTIFICATE", "PRIVATE KEY", "PKCS7", "X509"];
    (text.starts_with("BEGIN") || text.starts_with("END")) && of.iter().any(|label| text.contains(label))
}

/// A block whose end has not come.
struct Open<'a> {
    block: Block<'a>,
    base64: Zeroizing<Vec<u8>>,
}

impl<'a> Open<'a> {
    fn new(label: &'a str, line: usize) -> Self {
        let block = Block { label, line, content: Zeroizing::default(), encrypted: false };
        Self { block, base64: Zeroizing::default() }
    }

    /// Takes a line.
    fn take(&mut self, line: &[u8]) -> Result<(), PemFault> {
        if line.contains(&b':') {
            let encrypted = line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED");
            self.block.encrypted |= encrypted;
            return if self.block.encrypted { Ok(()) } else { Err(PemFault::Header) };
        }
        // A key needs 2 KiB, and grows into no second place.
        let more = if self.base64.is_empty() { 4096 } else { line.len() };
        self.base64.reserve(more);
        for byte in line.iter().filter(|byte| !byte.is_ascii_whitespace()) {
            if !byte.is_ascii_alphanumeric() && !b"+/=".contains(byte) {
                return Err(PemFault::Base64);
            }
            self.base64.push(*byte);
        }
        Ok(())
    }

    fn close(mut self, label: &str) -> Result<Block<'a>, PemFault> {
        if label != self.block.label {
            return Err(PemFault::OtherEnd { label: label.to_owned(), begun: self.block.label.to_owned() });
        }
        if !self.block.encrypted {
            let decoded = BASE64.decode(self.base64.as_slice()).map_err(|_| PemFault::Base64)?;
            self.block.content = Zeroizing::new(decoded);
        }
        Ok(self.block)
    }
}

/// A fuzz target: a PEM file. Either every line that begins a block has one, or an existing line is wrong, and
/// the message shows no control character.
#[cfg(any(test, feature = "internals"))]
pub fn invariants(data: &[u8]) {
    let begins = |line: &[u8]| {
        let line = trimmed(line);
        usize::from(line.starts_with(BEGIN.as_bytes()))
            + usize::from(
                line.starts_with(END.as_bytes()) && {
                    line.windows(BEGIN.len()).any(|window| window == BEGIN.as_bytes())
                },
            )
    };
    match blocks(data) {
        Ok(blocks) => {
            let begun: usize = lines(data).map(|(_, line)| begins(line)).sum();
            assert!(begun <= blocks.len(), "{begun} begin, {} are read", blocks.len());
            let last = blocks.iter().map(|block| block.line).max().unwrap_or(1);
            assert!(last <= data.split(|byte| *byte == b'\n').count(), "no line {last}");
            assert!(blocks.iter().all(|block| block.content.len() <= data.len()), "more than there is");
        }
        Err(PemError { line, fault }) => {
            assert!((1..=data.split(|byte| *byte == b'\n').count()).contains(&line), "no line {line}");
            assert!(!fault.to_string().contains(char::is_control), "a control character is shown");
        }
    }
}
