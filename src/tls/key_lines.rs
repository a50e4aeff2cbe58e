//! Secrets of several ushers from a file: one to eight lines of 48 random bytes in base64, oldest first.
//!
//! The last but one is used for what is new (the only one, if there is one), all are accepted: a new line is first
//! distributed and then used, in whatever order the machines get the file. Nothing is used as it stands: keys are
//! derived from a line (HKDF, RFC 5869), for each use its own.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{TlsError, certificate};
use crate::base::secret::PasswordFileError;

/// The most lines: with a new one each day and tickets of half a day, the rest is reserve.
const MOST: usize = 8;
/// What a line holds.
pub(crate) const SECRET: usize = 48;

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyLineError {
    /// It is not 48 bytes in base64.
    #[error("write 48 random bytes in base64, as `openssl rand -base64 48` prints them")]
    Malformed,
    /// A repeated key would never be renewed.
    #[error("it repeats line {first}: remove one")]
    Repeated {
        /// The first of the two.
        first: usize,
    },
    /// Another encoding, with which no line is base64.
    #[error("the file {0}")]
    Encoding(PasswordFileError),
    /// There are too many.
    #[error("more than {MOST} keys: remove the first ones, which are the oldest")]
    Surplus,
}

/// The secrets of a file, in their order.
pub(crate) struct KeyLines {
    secrets: Vec<Zeroizing<[u8; SECRET]>>,
}

impl KeyLines {
    /// Reads a file that only usher reads.
    ///
    /// # Errors
    /// Why it cannot be used: its mode, or its first line with a fault.
    pub(crate) fn read(path: &Path) -> Result<Self, TlsError> {
        let content = certificate::read_secret(path)?;
        if let Some(encoding) = PasswordFileError::of_encoding(&content) {
            let fault = KeyLineError::Encoding(encoding);
            return Err(TlsError::KeyLine { path: path.to_owned(), line: 1, fault });
        }
        let mut secrets: Vec<Zeroizing<[u8; SECRET]>> = Vec::with_capacity(MOST);
        let mut numbers = Vec::with_capacity(MOST);
        for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let (text, number) = (line.trim_ascii(), index + 1);
            if text.is_empty() {
                continue;
            }
            let refused = |fault| TlsError::KeyLine { path: path.to_owned(), line: number, fault };
            let mut secret = Zeroizing::new([0; SECRET]);
            if STANDARD.decode_slice(text, &mut *secret) != Ok(SECRET) {
                return Err(refused(KeyLineError::Malformed));
            }
            if let Some((_, first)) = std::iter::zip(&secrets, &numbers).find(|(known, _)| ***known == *secret) {
                return Err(refused(KeyLineError::Repeated { first: *first }));
            }
            if secrets.len() == MOST {
                return Err(refused(KeyLineError::Surplus));
            }
            secrets.push(secret);
            numbers.push(number);
        }
        if secrets.is_empty() {
            return Err(TlsError::NoKeyLine { path: path.to_owned() });
        }
        Ok(Self { secrets })
    }

    /// The secrets, in the order of the file.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &[u8; SECRET]> {
        self.secrets.iter().map(|secret| &**secret)
    }

    /// Which of them is used for what is new.
    #[must_use]
    pub(crate) fn current(&self) -> usize {
        self.secrets.len().saturating_sub(2)
    }
}

impl fmt::Debug for KeyLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyLines({})", self.secrets.len())
    }
}
