//! Scripts that the store runs, and what goes into them and comes out.
//!
//! All accounts are kept and all ends are judged inside a script, by the store's own clock. A script is sent by its
//! digest; where the store does not have it (NOSCRIPT: it was restarted), it is sent as a whole.

use std::fmt::Write as _;
use std::sync::OnceLock;

use aws_lc_rs::digest;

/// A script with its name for errors.
#[derive(Debug)]
pub(crate) struct FleetScript {
    name: &'static str,
    text: &'static str,
    digest: OnceLock<String>,
}

impl FleetScript {
    /// A script; its text is a file in `fleet/scripts`.
    #[must_use]
    pub(crate) const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, digest: OnceLock::new() }
    }

    /// Its name.
    #[must_use]
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// What the store runs.
    #[must_use]
    pub(crate) const fn text(&self) -> &'static str {
        self.text
    }

    /// SHA-1 in hexadecimal: how the store names it. Not for security.
    pub(crate) fn digest(&self) -> &str {
        self.digest.get_or_init(|| {
            let sum = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.text.as_bytes());
            let mut text = String::with_capacity(40);
            for byte in sum.as_ref() {
                let _ = write!(text, "{byte:02x}");
            }
            text
        })
    }
}

/// Scripts of several modules.
pub(crate) type Scripts = [&'static FleetScript];

/// The beat of a member.
pub(crate) static BEAT: FleetScript = FleetScript::new("beat", include_str!("scripts/beat.lua"));
/// Writes marks.
pub(crate) static MARK: FleetScript = FleetScript::new("mark", include_str!("scripts/mark.lua"));
/// A member ends.
pub(crate) static LEAVE: FleetScript = FleetScript::new("leave", include_str!("scripts/leave.lua"));

/// What brakes know of each other.
pub(crate) static BRAKE: FleetScript = FleetScript::new("brake", include_str!("scripts/brake.lua"));

/// Which rights the store's user has.
pub(crate) static RIGHTS: FleetScript = FleetScript::new("rights", include_str!("scripts/rights.lua"));

/// Who lives; for `usher check` alone.
pub(crate) static MEMBERS: FleetScript = FleetScript::new("members", include_str!("scripts/members.lua"));

/// The fleet's own scripts. Like those of others that use it, they are loaded when a connection is made, so that no login
/// has to send one as a whole.
pub(crate) static ALL: [&FleetScript; 5] = [&BEAT, &MARK, &LEAVE, &BRAKE, &RIGHTS];

/// An argument of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arg {
    /// A number.
    Int(i64),
    /// Bytes: a keyed id, a sealed text.
    Bytes(Vec<u8>),
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<u32> for Arg {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}

impl From<Vec<u8>> for Arg {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Arg {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

/// What a script returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// Nothing, or `false`.
    Nil,
    /// A whole number.
    Int(i64),
    /// A text.
    Bytes(Vec<u8>),
    /// A table.
    Array(Vec<Self>),
}

impl Value {
    /// The number; `None` if it is not one. A text of digits is one: numbers above 2^53 do not survive Lua.
    #[must_use]
    pub(crate) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bytes(text) => std::str::from_utf8(text).ok()?.parse().ok(),
            Self::Nil | Self::Array(_) => None,
        }
    }

    /// The bytes; `None` if it has none.
    #[must_use]
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Nil | Self::Int(_) | Self::Array(_) => None,
        }
    }

    /// The items of a table; none if it is no table.
    #[must_use]
    pub(crate) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            Self::Nil | Self::Int(_) | Self::Bytes(_) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_what_the_store_calls_the_script() {
        static SCRIPT: FleetScript = FleetScript::new("one", "return 1");
        assert_eq!(SCRIPT.digest(), "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }

    #[test]
    fn values_are_read_as_what_they_are() {
        assert_eq!(Value::Int(3).int(), Some(3));
        assert_eq!(Value::Bytes(b"1800000000000000".to_vec()).int(), Some(1_800_000_000_000_000));
        assert_eq!(Value::Bytes(b"x".to_vec()).int(), None);
        assert_eq!(Value::Array(vec![Value::Nil]).items().len(), 1);
        assert!(Value::Nil.items().is_empty() && Value::Int(1).bytes().is_none());
    }
}
