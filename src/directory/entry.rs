//! Entries of a directory, and what distinguishes their versions.

use std::net::IpAddr;
use std::sync::Arc;

use super::fault::EntryFault;
use super::key::{EntryId, EntryKey, EntryName, EntryNames, Realm};
use super::networks::Networks;
use crate::base::credential::CertificateDigest;
use crate::outcome::AccountState;

/// The part of an entry that usher reads. It says nothing about a password: see [`Identity`](super::Identity).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The DN as the directory spells it.
    pub dn: Arc<str>,
    /// The values of `mail_host_attribute`.
    pub mail_hosts: Vec<String>,
    /// The values of `login_attribute`; empty when none is configured.
    pub logins: Vec<String>,
    /// The values of `allow_attribute`; empty when none is configured.
    pub allowed: Vec<String>,
    /// The certificates that it lists, as far as they are read; empty where no listener logs clients in by them.
    pub certificates: Vec<CertificateDigest>,
    /// The values of `grant_attribute`: users that may act for this mailbox; empty when none is configured.
    pub grants: Vec<String>,
    /// Whether it matches `allow_filter`; true when none is configured.
    pub in_group: bool,
    /// The networks that its user may log in from; `None`: everywhere, because the entry has no value or no
    /// `networks_attribute` is configured.
    pub networks: Option<Arc<Networks>>,
    /// Why it leads nowhere, whatever it says.
    pub fault: Option<Box<EntryFault>>,
    /// The version, compared to detect changes.
    pub version: EntryVersion,
}

impl Entry {
    /// Whether its user may log in from this address, canonical.
    #[must_use]
    pub fn permits(&self, client: IpAddr) -> bool {
        self.networks.as_ref().is_none_or(|networks| networks.permit(client))
    }

    /// The key of this entry.
    #[must_use]
    pub fn key(&self) -> EntryKey {
        self.version.key(&self.dn)
    }

    /// Whether it lists this certificate.
    #[must_use]
    pub fn lists(&self, certificate: CertificateDigest) -> bool {
        self.certificates.contains(&certificate)
    }

    /// Its names, as far as the server shows them.
    pub(crate) fn names(&self) -> EntryNames {
        EntryNames { realm: self.version.realm, id: self.version.id, dn: Some(Arc::clone(&self.dn)) }
    }

    /// Whether this version routes to another mail host or login than `other`.
    #[must_use]
    pub fn route_differs(&self, other: &Self) -> bool {
        self.mail_hosts != other.mail_hosts || self.logins != other.logins
    }

    /// This version with the route of another; disabled only if the other one is.
    #[must_use]
    pub fn with_route_of(&self, other: &Self) -> Self {
        Self {
            mail_hosts: other.mail_hosts.clone(),
            logins: other.logins.clone(),
            fault: other.fault.clone(),
            version: EntryVersion {
                disabled: other.version.disabled,
                expires: other.version.expires,
                ..self.version.clone()
            },
            ..self.clone()
        }
    }

    /// An entry of which only the DN is known.
    pub(crate) fn unread(realm: Realm, dn: Arc<str>) -> Self {
        let (mail_hosts, logins, allowed, certificates, grants) = Default::default();
        Self {
            dn,
            mail_hosts,
            logins,
            allowed,
            certificates,
            grants,
            in_group: true,
            networks: None,
            fault: None,
            version: EntryVersion { realm, ..EntryVersion::default() },
        }
    }

    /// This entry with these values of `networks_attribute`, for tests.
    #[cfg(test)]
    pub(crate) fn permitting(self, values: &[&str]) -> Self {
        let values: Vec<_> = values.iter().map(|value| value.as_bytes().to_vec()).collect();
        Self { networks: (!values.is_empty()).then(|| Networks::read(None, "nets", &values)), ..self }
    }

    /// An entry for tests.
    #[cfg(test)]
    pub(crate) fn for_tests(dn: &str, mail_hosts: &[&str]) -> Self {
        let mail_hosts = mail_hosts.iter().map(|host| (*host).to_owned()).collect();
        Self { mail_hosts, ..Self::unread(Realm::DEFAULT, dn.into()) }
    }
}

/// The attributes that distinguish one version of an entry from another, besides its route. Kept small, because
/// one is stored per user; values that are only compared are digests keyed with this process's key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EntryVersion {
    /// The directory of the entry.
    pub realm: Realm,
    /// The identifier that survives a rename.
    pub id: Option<EntryId>,
    /// The directory binds a DN that a template makes, and reads the entry afterwards: it is named by its DN
    /// before and after the bind, or what is counted before would not be found after it.
    pub named_by_dn: bool,
    /// entryCSN, or modifyTimestamp.
    pub revision: Option<Box<str>>,
    /// `hold_attribute` has a value.
    pub held: bool,
    /// Disabled by an administrator, according to `disabled_by`.
    pub disabled: bool,
    /// When the account expires, in Unix seconds: the earliest of the attributes listed in `disabled_by`.
    pub expires: Option<i64>,
    /// When the password was changed; `None` if the server does not expose it.
    pub password_changed: Option<u64>,
    /// Locked after failed binds, now or recently.
    pub locked: bool,
    /// Digest of the lockout attributes.
    pub lockout: u64,
    /// Digest of the password policy attributes: must-change flag and the policy's DN.
    pub password_policy: u64,
    /// Failed binds counted by the directory; `None` if the entry does not expose the count.
    pub failures: Option<u64>,
    /// The entry has attributes of the password policy draft, whose implementations also record password
    /// changes (draft-behera-ldap-password-policy-10 sections 5.3.2 to 5.3.4).
    pub has_policy_attributes: bool,
    /// Digest of other attributes that affect the decision.
    pub policy_digest: u64,
    /// Digest of attributes that successful and failed logins modify.
    pub login_activity: u64,
}

impl EntryVersion {
    /// The key of the entry with this DN.
    #[must_use]
    pub fn key(&self, dn: &Arc<str>) -> EntryKey {
        let name = match self.id {
            Some(id) if !self.named_by_dn => EntryName::Id(id),
            Some(_) | None => EntryName::Dn(Arc::clone(dn)),
        };
        EntryKey { realm: self.realm, name }
    }

    /// The state that prevents logins at this time, in Unix seconds; `None` if the account is usable.
    #[must_use]
    pub fn account_state(&self, now: u64) -> Option<AccountState> {
        let has_expired = |expires: i64| u64::try_from(expires).is_ok_and(|expires| expires <= now) || expires < 0;
        if self.disabled {
            return Some(AccountState::Disabled);
        }
        self.expires.is_some_and(has_expired).then_some(AccountState::AccountExpired)
    }

    /// Whether a password change would be visible.
    #[must_use]
    pub const fn shows_password_changes(&self) -> bool {
        self.password_changed.is_some() || self.revision.is_some()
    }

    /// Whether the password may have changed: its change time differs, or its policy attributes do.
    #[must_use]
    pub fn password_differs(&self, earlier: &Self) -> bool {
        (self.password_changed, self.password_policy) != (earlier.password_changed, earlier.password_policy)
    }

    /// Whether a password change would always update the change time. A server with the draft's policy writes
    /// it at the first change, so an entry without one has had none.
    #[must_use]
    pub const fn shows_password_age(&self) -> bool {
        self.password_changed.is_some() || self.has_policy_attributes
    }
}
