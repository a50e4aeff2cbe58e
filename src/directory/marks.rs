//! What an entry shows of its lock and of its password's age: when these change, a password that was
//! refused before may be right by now.
//!
//! The attributes are operational and differ by server: OpenLDAP's password policy, 389-DS, Active
//! Directory. A value is compared and never understood, but for the one question whether it shows a
//! lock. What the service account may not read shows nothing, and then nothing is concluded.

/// A value is there while the account is locked after wrong passwords. OpenLDAP, Active Directory,
/// 389-DS.
const LOCKS: [&str; 3] = ["pwdAccountLockedTime", "lockoutTime", "accountUnlockTime"];
/// When the password was set, or when it ends.
const AGES: [&str; 3] = ["pwdChangedTime", "pwdLastSet", "passwordExpirationTime"];
/// Somebody else has set the password.
const RESET: &str = "pwdReset";
/// Any change of the entry. Of use where a server shows no age: without a password policy a wrong
/// password does not change the entry.
const CHANGES: [&str; 2] = ["modifyTimestamp", "entryCSN"];
/// Bytes of a value that are compared: more than any time takes.
const LONGEST: usize = 64;

/// Lockout and password attributes as one look-up of the entry showed them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks(Vec<(&'static str, String)>);

impl Marks {
    /// The attributes to ask for.
    pub fn attributes() -> impl Iterator<Item = &'static str> {
        LOCKS.into_iter().chain(AGES).chain([RESET]).chain(CHANGES)
    }

    /// Takes note of a value, if the attribute is one of these; the rest of several values is ignored.
    pub fn note(&mut self, attribute: &[u8], value: &[u8]) {
        let Some(name) = Self::attributes().find(|name| name.as_bytes().eq_ignore_ascii_case(attribute)) else {
            return;
        };
        if !self.0.iter().any(|(noted, _)| *noted == name) {
            let value = String::from_utf8_lossy(value.get(..LONGEST).unwrap_or(value)).into_owned();
            self.0.push((name, value));
            // In the order of their names, as servers answer in any.
            self.0.sort_unstable();
        }
    }

    /// Whether the account is locked, or was until lately: a locked account's right password may be
    /// refused like a wrong one.
    #[must_use]
    pub fn show_a_lock(&self) -> bool {
        // Active Directory writes 0 when it unlocks.
        self.0.iter().any(|(name, value)| LOCKS.contains(name) && value != "0")
    }

    /// Whether a change of the password would show.
    #[must_use]
    pub fn would_show_a_change(&self) -> bool {
        self.0.iter().any(|(name, _)| AGES.contains(name) || CHANGES.contains(name))
    }

    /// Whether something has changed that may make a refused password right. Where the password's age
    /// is shown, other changes of the entry mean nothing: each wrong password is one.
    #[must_use]
    pub fn differ(&self, earlier: &Self) -> bool {
        let aged = [self, earlier].iter().any(|marks| marks.0.iter().any(|(name, _)| AGES.contains(name)));
        let telling = |(name, _): &&(&str, String)| !(aged && CHANGES.contains(name));
        !self.0.iter().filter(telling).eq(earlier.0.iter().filter(telling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(shown: &[(&str, &str)]) -> Marks {
        let mut marks = Marks::default();
        shown.iter().for_each(|(name, value)| marks.note(name.as_bytes(), value.as_bytes()));
        marks
    }

    #[test]
    fn a_lock_shows() {
        for name in LOCKS {
            assert!(marks(&[(name, "20260101000000Z")]).show_a_lock(), "{name}");
        }
        assert!(!marks(&[("lockoutTime", "0"), ("pwdChangedTime", "20260101000000Z")]).show_a_lock());
        assert!(!marks(&[("cn", "x")]).show_a_lock());
    }

    #[test]
    fn a_change_of_lock_or_password_differs_and_nothing_else() {
        let aged = marks(&[("pwdChangedTime", "1"), ("entryCSN", "1")]);
        assert!(!marks(&[("entryCSN", "2"), ("PWDCHANGEDTIME", "1")]).differ(&aged), "a wrong guess");
        assert!(marks(&[("pwdChangedTime", "2"), ("entryCSN", "1")]).differ(&aged));
        assert!(marks(&[("pwdChangedTime", "1"), ("entryCSN", "1"), ("pwdReset", "TRUE")]).differ(&aged));
        assert!(marks(&[("pwdChangedTime", "1"), ("pwdAccountLockedTime", "1")]).differ(&aged));
        assert!(marks(&[("entryCSN", "1")]).differ(&aged), "it is not shown any more");
        let plain = marks(&[("modifyTimestamp", "1")]);
        assert!(marks(&[("modifyTimestamp", "2")]).differ(&plain));
        assert!(!plain.differ(&plain.clone()));
        assert!(aged.would_show_a_change() && plain.would_show_a_change());
        assert!(!marks(&[("pwdReset", "TRUE")]).would_show_a_change());
    }

    #[test]
    fn values_are_bounded_and_the_first_counts() {
        let mut long = Marks::default();
        long.note(b"lockoutTime", &[b'1'; 10_000]);
        long.note(b"lockoutTime", b"0");
        assert_eq!(long.0, [("lockoutTime", "1".repeat(LONGEST))]);
        assert!(!Marks::default().show_a_lock());
    }
}
