//! Why a user may not act for a mailbox. For the log and for `usher explain`: a client hears none of it.

use crate::base::labels::labels;

labels! {
    /// Why a user may not act for a mailbox.
    pub enum ActingFault {
        /// No administrator, and the mailbox's entry does not name the user.
        NotPermitted => "not_permitted",
        /// An administrator, but the client's address is not in `impersonation.networks`.
        Network => "network",
        /// An administrator, but not in this protocol.
        Protocol => "protocol",
        /// The mailbox's entry does not match `impersonation.target_filter`.
        TargetFilter => "target_filter",
        /// The mailbox's entry is in a directory that is not in `impersonation.target_directories`.
        TargetDirectory => "target_directory",
        /// The directory has no such entry.
        UnknownTarget => "unknown_target",
        /// Several entries match the mailbox's name, or the one that does cannot be used.
        AmbiguousTarget => "ambiguous_target",
        /// The mailbox is an administrator's.
        Administrator => "administrator",
        /// The entry is the canary's, a service account's or a probe's.
        SystemAccount => "system_account",
        /// The mailbox's entry is disabled or has expired.
        Disabled => "disabled",
        /// The mailbox's backend has no account that could log in for its user.
        NoServiceLogin => "no_service_login",
    }
}

impl ActingFault {
    /// What is wrong, and where it is decided.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotPermitted => {
                "no administrator (impersonation.admins, admin_filter), and not named by the mailbox's entry"
            }
            Self::Network => "an administrator, but the client's address is not in impersonation.networks",
            Self::Protocol => "an administrator, but the protocol is not in impersonation.protocols",
            Self::TargetFilter => {
                "an administrator, but the mailbox's entry does not match impersonation.target_filter"
            }
            Self::TargetDirectory => {
                "an administrator, but the mailbox is in another directory (impersonation.target_directories)"
            }
            Self::UnknownTarget => "the directory has no entry for the mailbox's name",
            Self::AmbiguousTarget => "several entries match the mailbox's name, or the entry cannot be used",
            Self::Administrator => "the mailbox is an administrator's",
            Self::SystemAccount => "the entry is the canary's, a service account's or a probe's",
            Self::Disabled => "the mailbox's entry is disabled or has expired (impersonation.include_disabled)",
            Self::NoServiceLogin => "the mailbox's backend has neither impersonation_service nor service",
        }
    }
}
