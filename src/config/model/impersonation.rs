//! Users that act for another user's mailbox.

use ipnet::IpNet;

use crate::proto::Protocol;

/// Which users may act for another user's mailbox, besides those that the mailbox's entry names
/// (`directory.grant_attribute`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impersonation {
    /// The administrators; `None`: there are none.
    pub administrators: Option<Administrators>,
    /// What stands between the mailbox's name and that of the user who acts (`alice*admin`); `None`: only SASL's
    /// authzid names the mailbox.
    pub separator: Option<char>,
}

impl Impersonation {
    /// The usual separator, as in Dovecot.
    pub const SEPARATOR: char = '*';
}

impl Default for Impersonation {
    fn default() -> Self {
        Self { administrators: None, separator: Some(Self::SEPARATOR) }
    }
}

/// The users that may act for any mailbox, and under which conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Administrators {
    /// The directory that has their entries: a DN means another entry in each.
    pub directory: String,
    /// The directories whose mailboxes they may act for; `None`: their own alone.
    pub target_directories: Option<Vec<String>>,
    /// Their DNs.
    pub dns: Vec<String>,
    /// The filter that the entries of further ones match.
    pub filter: Option<String>,
    /// Where they act from: never empty.
    pub networks: Vec<IpNet>,
    /// What the entry of a mailbox has to match; `None`: any mailbox.
    pub target_filter: Option<String>,
    /// The protocols in which they act: never empty.
    pub protocols: Vec<&'static Protocol>,
    /// Whether they may act for mailboxes whose entries are disabled or have expired.
    pub include_disabled: bool,
}
