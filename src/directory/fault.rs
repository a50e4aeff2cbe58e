//! Why an entry cannot be used, and how much of one is read.

use super::result::ServerResult;

/// Values of one attribute that are read; an entry with more is not used.
pub(super) const MAX_VALUES: usize = 64;
/// Bytes of one value: longer than any host or login name.
pub(super) const MAX_VALUE: usize = 1_024;
/// Values of the allow attribute that are read: only those that allow something are kept.
pub(super) const MAX_ALLOWED: usize = 5_000;
/// Bytes of all of them.
pub(super) const MAX_ALLOWED_BYTES: usize = 1 << 20;
/// Bytes of a DN.
pub(super) const MAX_DN: usize = 8 * 1_024;

/// Why an entry cannot be used although a server has returned it. It concerns this entry alone, and is no verdict on a
/// password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// An attribute with too many values: those that are left out could be the ones that count.
    #[error("{0} has more than {MAX_VALUES} values")]
    TooManyValues(Box<str>),
    /// An allow attribute of which not all is read: its user is not allowed, whatever was read.
    #[error("{0} has more than {MAX_ALLOWED} values or {MAX_ALLOWED_BYTES} bytes, or comes in too many pieces")]
    TooLarge(Box<str>),
    /// An attribute with a long value: cut short it would be another one.
    #[error("{0} has a value of more than {MAX_VALUE} bytes")]
    LongValue(Box<str>),
    /// A value of `networks_attribute` that is no address or network: what it was to allow is unknown.
    #[error("{attribute} has a value that is no address or network: {value:?}")]
    NoNetwork {
        /// The attribute.
        attribute: Box<str>,
        /// The beginning of the value.
        value: Box<str>,
    },
    /// The DN is too long to be kept, and is cut: it must not be bound.
    #[error("its DN has more than {MAX_DN} bytes")]
    LongDn,
    /// It is an alias (RFC 4512 section 2.6), which is not followed: neither a search nor content synchronization would
    /// report the entry behind it as this one.
    #[error("it is an alias{}, and aliases are not followed", of(.0.as_deref()))]
    Alias(Option<Box<str>>),
    /// The read of this one entry ended with this result.
    #[error("the read of the entry ended with {0}")]
    Ended(ServerResult),
}

/// ` of "DN"`, for a message.
fn of(target: Option<&str>) -> String {
    target.map_or_else(String::new, |target| format!(" of {target:?}"))
}
