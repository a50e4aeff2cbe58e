//! What one caller may: the rules of the throttle.

use std::time::Duration;

use ipnet::IpNet;

use crate::base::labels::labels;

/// How guessing is slowed, and what a network or a user may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    /// How many leading bits of an IPv4 address are one prefix.
    pub ipv4_prefix: u8,
    /// How many leading bits of an IPv6 address are one prefix.
    pub ipv6_prefix: u8,
    /// Networks to which no rule about prefixes or wrong passwords applies.
    pub exempt: Vec<IpNet>,
    /// What is remembered, how much and how long.
    pub memory: Memory,
    /// Wrong passwords from one prefix.
    pub failed_logins_per_prefix: FailedLogins,
    /// Wrong passwords for one user.
    pub failed_logins_per_user: FailedLogins,
    /// Names refused to one prefix.
    pub password_spraying: PasswordSpraying,
    /// Connections of one prefix, before and after login.
    pub connections_per_prefix: Limit,
    /// TLS handshakes under way in all.
    pub handshakes: Limit,
    /// TLS handshakes under way of one prefix.
    pub handshakes_per_prefix: Limit,
    /// Sessions of one user.
    pub sessions_per_user: Limit,
    /// Sessions of one user from one prefix.
    pub sessions_per_user_and_prefix: Limit,
    /// Right passwords per second in all.
    pub logins_per_second: Limit,
}

/// What the throttle remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// How many prefixes, and how many users.
    pub capacity: u64,
    /// One wrong password is forgotten each time this has passed.
    pub forget_every: Duration,
    /// How long a prefix is known as one from which a user has logged in.
    pub known_network_ttl: Duration,
}

labels! {
    /// Whether a rule acts or only counts.
    pub enum Mode {
        /// It acts.
        Enforce => "enforce",
        /// It counts what it would have done.
        DryRun => "dry_run",
    }
}

labels! {
    /// The rules of the throttle, each named after its key.
    pub(crate) enum LimitRule {
        /// Wrong passwords from one prefix.
        FailedLoginsPerPrefix => "failed_logins_per_prefix",
        /// Wrong passwords for one user.
        FailedLoginsPerUser => "failed_logins_per_user",
        /// Names refused to one prefix within a minute.
        PasswordSpraying => "password_spraying",
        /// Connections of one prefix.
        ConnectionsPerPrefix => "connections_per_prefix",
        /// TLS handshakes in progress in total.
        Handshakes => "handshakes",
        /// TLS handshakes in progress of one prefix.
        HandshakesPerPrefix => "handshakes_per_prefix",
        /// Sessions of one user.
        SessionsPerUser => "sessions_per_user",
        /// Sessions of one user from one prefix.
        SessionsPerUserAndPrefix => "sessions_per_user_and_prefix",
        /// Correct passwords per second.
        LoginsPerSecond => "logins_per_second",
    }
}

impl LimitRule {
    /// Whether it counts by the client's prefix alone.
    #[must_use]
    pub(crate) const fn is_of_prefix(self) -> bool {
        matches!(
            self,
            Self::FailedLoginsPerPrefix
                | Self::PasswordSpraying
                | Self::ConnectionsPerPrefix
                | Self::HandshakesPerPrefix
        )
    }

    /// Whether it counts by the user, alone or at a prefix.
    #[must_use]
    pub(crate) const fn is_of_user(self) -> bool {
        matches!(self, Self::FailedLoginsPerUser | Self::SessionsPerUser | Self::SessionsPerUserAndPrefix)
    }

    /// Whether it delays before it refuses.
    #[must_use]
    pub(crate) const fn delays(self) -> bool {
        matches!(self, Self::FailedLoginsPerPrefix | Self::FailedLoginsPerUser | Self::PasswordSpraying)
    }
}

/// A delay that grows with wrong passwords.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedLogins {
    /// Whether it acts.
    pub mode: Mode,
    /// Wrong passwords without a delay.
    pub free_failures: u32,
    /// Wrong passwords from unknown networks, beyond which no password is sent to the directory.
    pub limit: Option<u32>,
    /// How long the first one that is not free has to wait; each further one twice as long.
    pub first_delay: Duration,
    /// The longest delay; an attempt that would have to wait longer is refused.
    pub max_delay: Duration,
}

/// A delay that grows with the names refused to one prefix within a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordSpraying {
    /// Whether it acts.
    pub mode: Mode,
    /// Names without a delay.
    pub names_per_minute: u32,
    /// How long the first one above them has to wait; each further one twice as long.
    pub first_delay: Duration,
    /// The longest delay; an attempt that would have to wait longer is refused.
    pub max_delay: Duration,
}

/// A count that must not be exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Whether it acts.
    pub mode: Mode,
    /// The most that is allowed.
    pub limit: u32,
}
