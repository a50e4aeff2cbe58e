//! Digests of a configuration: of its text, which shows whether the file has changed since it was read, and of what the
//! ushers of a fleet should have in common.

use std::path::Path;

use aws_lc_rs::digest::{self, SHA256, SHA256_OUTPUT_LEN};

use super::model::{Config, Tls};
use super::parts::Sources;

/// A hash of the text of a config file, and of the files of `routing.backends_from`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TextDigest([u8; SHA256_OUTPUT_LEN]);

impl TextDigest {
    pub(super) fn of(text: &[u8]) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest::digest(&SHA256, text).as_ref());
        Self(bytes)
    }

    pub(super) const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Of the file and those that it includes, as they are now; `None` if it cannot be read.
    #[must_use]
    pub(crate) fn of_file(file: &Path) -> Option<Self> {
        super::read(file).ok().map(|text| Sources::of(text, file).digest())
    }
}

impl Config {
    /// A digest of everything that ushers of a fleet should have in common: without names and addresses of this
    /// machine, and without what files hold. It means something to the same version of usher only.
    #[must_use]
    pub(crate) fn fleet_digest(&self) -> u64 {
        let mut context = digest::Context::new(&SHA256);
        let Self { capabilities, tls, directories, tokens, impersonation, trusted, routing, .. } = self;
        let Self { cache, limits, throttle, .. } = self;
        let listeners: Vec<_> = self.listeners.iter().map(|listener| (listener.protocol.name, listener.tls)).collect();
        let fleet = self.fleet.as_ref().map(|fleet| (&fleet.name, fleet.timeout));
        let tls = Tls { certificates: Vec::new(), ..tls.clone() };
        let socketmap = self
            .socketmap
            .as_ref()
            .map(|settings| (&settings.domains, &settings.recipient_delimiter, settings.when_disabled));
        let text = format!(
            "{listeners:?}{capabilities:?}{tls:?}{directories:?}{tokens:?}{impersonation:?}{trusted:?}{routing:?}{cache:?}{limits:?}\
             {throttle:?}{fleet:?}{socketmap:?}"
        );
        // Relative paths are the same wherever the configuration is.
        let folder = self.file.parent().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
        let text = if folder.is_empty() { text } else { text.replace(&folder, "") };
        context.update(text.as_bytes());
        let sum = context.finish();
        sum.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
    }
}
