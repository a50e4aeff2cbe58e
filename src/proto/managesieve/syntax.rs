//! The elements of commands and replies (RFC 5804 section 4): atoms, and strings in two forms.
//!
//! Parses complete input, literals included. Strings are copied into wiping memory: they may be passwords.

use super::super::wire::{Literal, write_line};
use crate::base::secret::{Secret, SecretBuf};

/// The longest quoted string (RFC 5804 section 4, `quoted`).
const QUOTED: usize = 1024;

/// What is left of a command or an answer, consumed from the left; it ends with CRLF.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(whole: &'a [u8]) -> Self {
        Self { rest: whole }
    }

    /// An atom such as a command's name; may be empty.
    pub(super) fn atom(&mut self) -> &'a [u8] {
        let special = |byte: &u8| !byte.is_ascii_graphic() || matches!(byte, b'"' | b'(' | b')' | b'{' | b'}' | b'\\');
        let end = self.rest.iter().position(special).unwrap_or(self.rest.len());
        let (atom, rest) = self.rest.split_at(end);
        self.rest = rest;
        atom
    }

    /// Exactly these bytes.
    pub(super) fn expect(&mut self, bytes: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(bytes)?;
        Some(())
    }

    /// A string in either form, of any length that has arrived.
    pub(super) fn string(&mut self) -> Option<Secret> {
        if self.expect(b"\"").is_none() {
            return self.literal();
        }
        let mut string = SecretBuf::new();
        loop {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            let byte = match byte {
                b'"' => return Some(Secret::copy_of(string.as_slice())),
                b'\\' => {
                    let (escaped, rest) = self.rest.split_first()?;
                    self.rest = rest;
                    matches!(escaped, b'"' | b'\\').then_some(escaped)?
                }
                b'\r' => return None,
                byte => byte,
            };
            string.extend(&[*byte]);
        }
    }

    fn literal(&mut self) -> Option<Secret> {
        let end = self.rest.iter().position(|byte| *byte == b'\r')?;
        let (announcement, rest) = self.rest.split_at(end);
        let size = Literal::announced_by(announcement).filter(|_| announcement.first() == Some(&b'{'))?.size;
        // Nothing between the brace that opens it and its digits.
        let digits = announcement.get(1..announcement.len().checked_sub(1)?)?;
        digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'+').then_some(())?;
        let rest = rest.strip_prefix(b"\r\n")?;
        let (literal, rest) = rest.split_at_checked(size)?;
        self.rest = rest;
        Some(Secret::copy_of(literal))
    }

    /// One blank, and those beyond it that some clients send.
    pub(super) fn blanks(&mut self) -> Option<()> {
        self.expect(b" ")?;
        self.skip_blanks();
        Some(())
    }

    /// Any number of blanks.
    pub(super) fn skip_blanks(&mut self) {
        while self.expect(b" ").is_some() {}
    }

    /// The end, with or without blanks before it.
    pub(super) fn end(mut self) -> Option<()> {
        self.skip_blanks();
        (self.rest == b"\r\n").then_some(())
    }
}

/// Writes a string: quoted where that can carry it, else as a literal, whose announcement from a
/// client has a plus and from a server has none.
pub(super) fn write_string(out: &mut SecretBuf, string: &[u8], plus: &str) {
    let fits = string.len() <= QUOTED && !string.iter().any(|byte| matches!(byte, b'\r' | b'\n' | b'\0'));
    if !fits {
        write_line(out, &[format!("{{{}{plus}}}", string.len()).as_bytes()]);
        return out.extend(string);
    }
    out.extend(b"\"");
    for byte in string {
        if matches!(byte, b'"' | b'\\') {
            out.extend(b"\\");
        }
        out.extend(&[*byte]);
    }
    out.extend(b"\"");
}
