//! Identities: users that a directory has authenticated.
//!
//! An [`Identity`] is built from evidence and from nothing else, so no path through usher can relay a client that was not
//! authenticated (promise 1).

use std::sync::Arc;

use super::entry::Entry;
use crate::token::VerifiedToken;

/// The evidence that a directory accepted a bind of the user: success, and no account state that forbids a login.
#[derive(Debug)]
pub(super) struct AcceptedBind(());

impl AcceptedBind {
    /// Only for the place where a directory evaluates the answer to a bind.
    pub(super) const fn new() -> Self {
        Self(())
    }
}

/// What proves an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// The directory accepted a bind with the user's password.
    Bind,
    /// An issuer's token was verified, and its claim has found the entry.
    Token,
}

/// A user authenticated by the directory, with the kind of evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    entry: Arc<Entry>,
    evidence: Evidence,
}

impl Identity {
    /// The user of this entry, proven by a bind.
    pub(super) fn from_bind(AcceptedBind(()): AcceptedBind, entry: impl Into<Arc<Entry>>) -> Self {
        Self { entry: entry.into(), evidence: Evidence::Bind }
    }

    /// The user of the entry that the filter of a verified token has found ([`VerifiedToken::filter`]).
    pub(crate) fn from_token(_: &VerifiedToken, entry: impl Into<Arc<Entry>>) -> Self {
        Self { entry: entry.into(), evidence: Evidence::Token }
    }

    /// The entry, as read together with the bind.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The entry, to be kept.
    #[must_use]
    pub fn shared_entry(&self) -> Arc<Entry> {
        Arc::clone(&self.entry)
    }

    /// The same identity, with a newer version of its entry.
    #[must_use]
    pub fn with_entry(self, entry: Arc<Entry>) -> Self {
        // Only a separate group search sets `in_group`.
        let in_group = self.entry.in_group;
        if entry.in_group == in_group {
            Self { entry, ..self }
        } else {
            Self { entry: Entry { in_group, ..Entry::clone(&entry) }.into(), ..self }
        }
    }

    /// An identity for unit tests of modules that have no directory.
    #[cfg(test)]
    pub(crate) fn for_tests(dn: &str, mail_hosts: &[&str]) -> Self {
        Self::from_bind(AcceptedBind::new(), Entry::for_tests(dn, mail_hosts))
    }
}
