//! Whether the text of the file has changed since it was read.

use std::path::Path;

use aws_lc_rs::digest::{self, SHA256, SHA256_OUTPUT_LEN};

/// A hash of the text of a config file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TextDigest([u8; SHA256_OUTPUT_LEN]);

impl TextDigest {
    pub(super) fn of(text: &str) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest::digest(&SHA256, text.as_bytes()).as_ref());
        Self(bytes)
    }

    /// Of the file as it is now; `None` if it cannot be read.
    #[must_use]
    pub(crate) fn of_file(file: &Path) -> Option<Self> {
        super::read(file).ok().map(|text| Self::of(&text))
    }
}
