//! The name of an entry wherever usher keeps something about it: in the cache, the limits, the tracked entries and
//! the sessions.
//!
//! An id survives a rename, and a DN that passes to another entry passes nothing on. The realm keeps two
//! directories apart in which the same DN occurs.

use std::sync::{Arc, PoisonError, RwLock};

use crate::config;

/// The identifier that survives a change of DN: entryUUID, nsUniqueId or objectGUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId([u8; 16]);

impl EntryId {
    /// Its bytes.
    pub(crate) const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The 16 bytes of an id.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The text of an id: 32 hexadecimal digits, with dashes anywhere.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut digits = text.iter().filter(|byte| **byte != b'-').map(|byte| char::from(*byte).to_digit(16));
        let mut id = [0; 16];
        for byte in &mut id {
            *byte = u8::try_from(digits.next()?? << 4 | digits.next()??).ok()?;
        }
        digits.next().is_none().then_some(Self(id))
    }
}

/// A directory among several, by a number that its name has for the life of the process: what is kept across a reload
/// never meets another directory. Outside the process a directory is known by its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Realm(u32);

/// The names that were ever configured, besides that of [`Realm::DEFAULT`].
static NAMES: RwLock<Vec<&str>> = RwLock::new(Vec::new());

impl Realm {
    /// The directory of a configuration with the short form.
    pub const DEFAULT: Self = Self(0);

    /// The directory with this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        if name == config::Directory::DEFAULT_NAME {
            return Self::DEFAULT;
        }
        let mut names = NAMES.write().unwrap_or_else(PoisonError::into_inner);
        let at = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            // Only an administrator makes new names.
            names.push(Box::leak(name.into()));
            names.len() - 1
        });
        Self(u32::try_from(at + 1).unwrap_or(u32::MAX))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let names = NAMES.read().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(self.0).unwrap_or(usize::MAX).checked_sub(1);
        at.and_then(|at| names.get(at).copied()).unwrap_or(config::Directory::DEFAULT_NAME)
    }

    /// Its name, if it is one of several.
    #[must_use]
    pub(crate) fn shown(self, settings: &config::Directory) -> Option<&'static str> {
        settings.is_one_of_several().then(|| self.name())
    }

    /// Another one.
    #[cfg(test)]
    pub(crate) fn for_tests(number: u8) -> Self {
        Self::named(&format!("realm{number}"))
    }
}

impl std::fmt::Debug for Realm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Realm({})", self.name())
    }
}

/// Identifies an entry among all directories.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryKey {
    /// Its directory.
    pub realm: Realm,
    /// Its name there.
    pub name: EntryName,
}

/// Identifies an entry within its directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryName {
    /// By the id, which survives a rename.
    Id(EntryId),
    /// By the DN as the directory spells it, where no id is known; before a bind by a template, the name that is
    /// bound.
    Dn(Arc<str>),
}

impl EntryKey {
    /// The key of an entry of which only the DN is known.
    #[must_use]
    pub fn by_dn(realm: Realm, dn: &Arc<str>) -> Self {
        Self { realm, name: EntryName::Dn(Arc::clone(dn)) }
    }

    /// Bytes that are the same wherever the entry is known by the same name: the case and spacing of a DN may differ
    /// between a template and the directory.
    #[must_use]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let realm = self.realm.name();
        // A name is shorter than 256 bytes: where it ends is never in doubt.
        let mut bytes = vec![u8::try_from(realm.len()).unwrap_or(u8::MAX)];
        bytes.extend(realm.bytes());
        match &self.name {
            EntryName::Id(id) => bytes.extend(id.0),
            EntryName::Dn(dn) => {
                for part in dn.to_lowercase().split(',') {
                    bytes.push(b',');
                    bytes.extend(part.trim().bytes());
                }
            }
        }
        bytes
    }

    /// Whether the entry is identified by its id.
    #[must_use]
    pub const fn has_id(&self) -> bool {
        matches!(self.name, EntryName::Id(_))
    }

    /// Whether it identifies an entry: a principal name that is bound (`user@domain`) is not a DN.
    #[must_use]
    pub fn identifies_entry(&self) -> bool {
        match &self.name {
            EntryName::Id(_) => true,
            EntryName::Dn(dn) => dn.contains('='),
        }
    }
}

/// The names by which a reply or a change refers to an entry: its id, its DN, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryNames {
    /// Its directory.
    pub realm: Realm,
    /// Its id, if the server shows one.
    pub id: Option<EntryId>,
    /// Its DN.
    pub dn: Option<Arc<str>>,
}

impl EntryNames {
    /// By its id.
    pub(crate) fn by_id(&self) -> Option<EntryKey> {
        self.id.map(|id| EntryKey { realm: self.realm, name: EntryName::Id(id) })
    }

    /// By its DN.
    pub(crate) fn by_dn(&self) -> Option<EntryKey> {
        self.dn.as_ref().map(|dn| EntryKey::by_dn(self.realm, dn))
    }

    /// By each name, the id first.
    pub(crate) fn keys(&self) -> impl Iterator<Item = EntryKey> {
        self.by_id().into_iter().chain(self.by_dn())
    }

    /// Whether these are known to be the names of another entry: another entry of a DN is another user.
    pub(crate) fn is_other(&self, other: &Self) -> bool {
        self.realm != other.realm || matches!((self.id, other.id), (Some(one), Some(other)) if one != other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{Entry, EntryVersion};

    fn entry(id: Option<u8>, dn: &str) -> Entry {
        let id = id.and_then(|id| EntryId::from_bytes(&[id; 16]));
        Entry { version: EntryVersion { id, ..EntryVersion::default() }, ..Entry::for_tests(dn, &[]) }
    }

    #[test]
    fn renamed_entry_keeps_its_key_and_passes_on_neither_key_nor_dn() {
        assert_eq!(entry(Some(1), "uid=a").key(), entry(Some(1), "uid=b").key());
        assert_ne!(entry(Some(1), "uid=a").key(), entry(Some(2), "uid=a").key());
        assert_ne!(entry(Some(1), "uid=a").key(), entry(None, "uid=a").key());
        assert_ne!(entry(None, "uid=a").key(), entry(None, "uid=b").key());
    }

    #[test]
    fn entry_bound_by_a_template_is_named_as_before_the_bind() {
        let bound = entry(None, "uid=a");
        let mut read = entry(Some(1), "uid=a");
        read.version.named_by_dn = true;
        assert_eq!(read.key(), bound.key());
    }

    #[test]
    fn entries_of_two_realms_never_share_a_key() {
        for id in [None, Some(1)] {
            let mut other = entry(id, "uid=a");
            other.version.realm = Realm::for_tests(1);
            assert_ne!(other.key(), entry(id, "uid=a").key());
        }
    }

    #[test]
    fn realm_is_the_same_for_the_same_name_and_another_for_another() {
        assert_eq!((Realm::named("default"), Realm::DEFAULT.name()), (Realm::DEFAULT, "default"));
        let (one, other) = (Realm::named("keys-one"), Realm::named("keys-other"));
        assert_eq!((one, other.name()), (Realm::named("keys-one"), "keys-other"));
        assert_ne!(one, other);
        // A name and a DN together are never those of another pair.
        let key = |realm, dn: &str| EntryKey::by_dn(realm, &dn.into()).to_bytes();
        assert_ne!(key(Realm::named("a"), "b,c"), key(Realm::named("a,b"), "c"));
    }

    #[test]
    fn principal_name_identifies_no_entry() {
        assert!(!entry(None, "alice@example.com").key().identifies_entry());
        assert!(entry(None, "uid=alice").key().identifies_entry());
        assert!(entry(Some(1), "alice@example.com").key().identifies_entry());
    }
}
