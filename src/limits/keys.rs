//! Keys of the counts: hashes, so that no store holds a name, a DN or an address.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::base::credential::Login;
use crate::directory::{EntryKey, EntryName};

/// A hash of a prefix, a name, an entry or a pair of them.
pub(super) type HashedKey = u64;

/// The spelling of a name, without regard to case and outer blanks.
pub(super) fn spelling(login: &Login) -> String {
    login.as_str().trim().to_lowercase()
}

/// The secret of the hashes, which exists in this process only.
#[derive(Debug, Clone)]
pub(super) struct Keys(RandomState);

impl Keys {
    pub(super) fn new() -> Self {
        Self(RandomState::new())
    }

    /// The prefix of a client.
    pub(super) fn prefix(&self, prefix: IpNet) -> HashedKey {
        self.0.hash_one(prefix)
    }

    /// A proxy that has yet to send a PROXY header: it is counted apart from clients at its address.
    pub(super) fn proxy(&self, proxy: IpAddr) -> HashedKey {
        self.0.hash_one(("header", proxy))
    }

    /// The spelling of a name, without regard to case and outer blanks.
    pub(super) fn name(&self, login: &Login) -> HashedKey {
        self.0.hash_one(spelling(login))
    }

    /// An entry. The case and spacing of a DN may differ between a template and the directory.
    pub(super) fn entry(&self, EntryKey { realm, name }: &EntryKey) -> HashedKey {
        match name {
            EntryName::Id(id) => self.0.hash_one((realm, id)),
            EntryName::Dn(dn) => {
                self.0.hash_one((realm, dn.to_lowercase().split(',').map(str::trim).collect::<Vec<_>>()))
            }
        }
    }

    /// A user at a prefix.
    pub(super) fn user_at(&self, user: HashedKey, prefix: HashedKey) -> HashedKey {
        self.0.hash_one((user, prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Realm;

    #[test]
    fn spellings_of_one_name_and_of_one_dn_have_one_key() {
        let keys = Keys::new();
        let name = |text: &str| keys.name(&Login::parse(text.as_bytes()).unwrap());
        assert_eq!(name(" Alice "), name("alice"));
        assert_ne!(name("alice"), name("alice@example.com"));
        let entry = |dn: &str| keys.entry(&EntryKey::by_dn(Realm::DEFAULT, &dn.into()));
        assert_eq!(entry("uid=Alice, dc=example"), entry("UID=alice,DC=example"));
        assert_ne!(entry("uid=alice,dc=example"), entry("uid=alice,dc=example,dc=com"));
        // Another process has other keys.
        let login = Login::parse(b"alice").unwrap();
        assert_ne!(Keys::new().name(&login), Keys::new().name(&login));
    }
}
