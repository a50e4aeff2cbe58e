//! Identities: users that a directory has authenticated.
//!
//! An [`Identity`] is built from evidence and from nothing else, so no path through usher can relay a client that was not
//! authenticated (promise 1).

use std::sync::Arc;

use super::entry::Entry;
use crate::base::credential::{CertificateDigest, CertificateProof, ClientCertificate, Login};
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

/// The evidence that a verified client certificate is this user's.
#[derive(Debug)]
pub(super) struct AcceptedCertificate(Evidence);

impl AcceptedCertificate {
    /// Compares the certificate with the entry that its name has led to; `None` if it is not this user's.
    ///
    /// The certificate was verified by the frontend, under the rules of its listener, before it became a credential.
    pub(super) fn compare(certificate: &ClientCertificate, entry: &Entry) -> Option<Self> {
        match certificate.proof() {
            CertificateProof::Key => {
                let digest = certificate.digest();
                entry.lists(digest).then_some(Self(Evidence::ListedCertificate(digest)))
            }
            // The entry was found by the address in it, and by nothing else.
            CertificateProof::Address => Some(Self(Evidence::CertifiedAddress)),
        }
    }
}

/// What proves an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Evidence {
    /// The directory accepted a bind with the user's password.
    Bind,
    /// An issuer's token was verified, and its claim has found the entry.
    Token,
    /// The client has the key of a certificate that the entry lists.
    ListedCertificate(CertificateDigest),
    /// The client has the key of a certificate with the user's address, from an authority that vouches for it.
    CertifiedAddress,
    /// Another, authenticated user acts for this one.
    Acting(Arc<UserActing>),
}

/// By what right a user acts for a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Authority {
    /// As an administrator, by the configuration.
    Administrator,
    /// By this value of `grant_attribute` of the mailbox's entry.
    Grant(Arc<str>),
}

impl Authority {
    /// The word for it in the log.
    #[must_use]
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::Grant(_) => "grant",
        }
    }
}

/// A user who acts for another one's mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserActing {
    /// The name of the user who acts, as it was typed, or that of its entry after a login without one.
    pub name: Login,
    /// The entry of the user who acts.
    pub entry: Arc<Entry>,
    /// By what right.
    pub authority: Authority,
    /// The certificate that the entry has to list, if that has proven the user who acts.
    pub certificate: Option<CertificateDigest>,
}

/// What has proven an identity, to be kept beside a decision about its entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProvenBy(Evidence);

impl ProvenBy {
    /// Whether it was a password.
    pub(crate) fn is_password(&self) -> bool {
        self.0 == Evidence::Bind
    }
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

    /// The user of this entry, proven by a client certificate.
    pub(super) fn from_certificate(AcceptedCertificate(evidence): AcceptedCertificate, entry: Entry) -> Self {
        Self { entry: entry.into(), evidence }
    }

    /// The certificate that the entry has to list for as long as the user is logged in; `None` if the user is proven by
    /// other evidence.
    #[must_use]
    pub fn certificate(&self) -> Option<CertificateDigest> {
        match &self.evidence {
            Evidence::ListedCertificate(certificate) => Some(*certificate),
            Evidence::Bind | Evidence::Token | Evidence::CertifiedAddress | Evidence::Acting(_) => None,
        }
    }

    /// The user of this entry, for whom another user acts: that one is proven, and `login` has judged that it may. It
    /// acts itself for no other: what it acts for does not act.
    #[must_use]
    pub(crate) fn on_behalf(actor: &Self, name: Login, entry: Arc<Entry>, authority: Authority) -> Option<Self> {
        let acting = UserActing { name, entry: actor.shared_entry(), authority, certificate: actor.certificate() };
        actor.acting().is_none().then(|| Self { entry, evidence: Evidence::Acting(Arc::new(acting)) })
    }

    /// The user who acts for this one, if it does not log in itself.
    #[must_use]
    pub(crate) const fn acting(&self) -> Option<&Arc<UserActing>> {
        match &self.evidence {
            Evidence::Acting(acting) => Some(acting),
            Evidence::Bind | Evidence::Token | Evidence::ListedCertificate(_) | Evidence::CertifiedAddress => None,
        }
    }

    /// The entry of the user whose secret was accepted.
    #[must_use]
    pub(crate) fn proven_entry(&self) -> &Entry {
        self.acting().map_or(&self.entry, |acting| &acting.entry)
    }

    /// What has proven it.
    pub(crate) fn proven_by(&self) -> ProvenBy {
        ProvenBy(self.evidence.clone())
    }

    /// Whether this has proven it.
    pub(crate) fn is_proven_by(&self, ProvenBy(evidence): &ProvenBy) -> bool {
        self.evidence == *evidence
    }

    /// The same user, proven by what has proven an earlier version of this entry; `None` if this version does not bear
    /// it out.
    pub(crate) fn proven_again(&self, ProvenBy(evidence): &ProvenBy) -> Option<Self> {
        let again = Self { entry: Arc::clone(&self.entry), evidence: evidence.clone() };
        again.certificate().is_none_or(|certificate| again.entry.lists(certificate)).then_some(again)
    }

    /// The entry, as read together with the evidence.
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
