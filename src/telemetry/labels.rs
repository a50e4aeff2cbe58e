//! The closed sets under which metrics count: each an enum, so that no event is counted under another label, and
//! every series exists from the first scrape.
//!
//! Sets that a lower layer needs are declared there: tasks, throttle rules, modes.

use crate::base::labels::labels;

labels! {
    /// A phase of a login, in order.
    pub(crate) enum LoginPhase {
        /// The TLS handshake before it.
        Tls => "tls",
        /// The search for the entry.
        Search => "search",
        /// The bind.
        Bind => "bind",
        /// The connection to the backend.
        BackendConnect => "backend_connect",
        /// The login there.
        BackendLogin => "backend_login",
    }
}

labels! {
    /// An operation at a directory server.
    pub enum DirectoryOperation {
        /// The connection, with TLS.
        Connect => "connect",
        /// A search below the base.
        Search => "search",
        /// A user's bind.
        Bind => "bind",
        /// The service account's bind.
        ServiceBind => "service_bind",
        /// A search for one entry by its DN.
        Read => "read",
    }
}

labels! {
    /// What a decision was based on.
    pub(crate) enum DecisionBasis {
        /// A bind.
        Directory => "directory",
        /// A bind within `cache.ttl`.
        Cache => "cache",
        /// A cached wrong password.
        Negative => "negative",
        /// A bind within `cache.stale`.
        Stale => "stale",
        /// A user that acts for another one's mailbox.
        Impersonation => "impersonation",
        /// A route by `routing.default`.
        Default => "default",
    }
}

labels! {
    /// The result of a login at a backend. The last six were not sent there.
    pub(crate) enum BackendResult {
        /// The backend accepted it.
        Ok => "ok",
        /// The backend refused the password of a cached decision.
        Refused => "refused",
        /// The backend refused it after a bind.
        Rejected => "backend_rejected",
        /// No connection, or it ended.
        Unreachable => "unreachable",
        /// TLS failed.
        Tls => "tls",
        /// No answer in time.
        Timeout => "timeout",
        /// All addresses are marked down.
        Down => "down",
        /// It answers no login, and enough of them wait for it.
        Refusing => "refusing",
        /// `max_in_flight` is reached.
        InFlight => "in_flight",
        /// A recovering address has its share of logins.
        SlowStart => "slow_start",
        /// An administrator has taken the backend out of service.
        Draining => "draining",
        /// The user has a token that the backend cannot be sent.
        Unsent => "unsent",
    }
}

labels! {
    /// The result of a probe of a backend's address.
    pub(crate) enum ProbeResult {
        /// It serves.
        Ok => "ok",
        /// It refused the probe's account.
        Refused => "refused",
        /// No connection, or it ended.
        Unreachable => "unreachable",
        /// TLS failed.
        Tls => "tls",
        /// No answer in time.
        Timeout => "timeout",
    }
}

labels! {
    /// What a connection to a listener with PROXY headers began with.
    pub(crate) enum ProxyHeaderResult {
        /// The address of a client.
        Client => "client",
        /// A connection of the proxy itself.
        Local => "local",
        /// The peer is not in `trusted`.
        Untrusted => "untrusted",
        /// No header.
        Missing => "missing",
        /// A header that cannot be parsed.
        Malformed => "malformed",
        /// A header beyond the limit.
        TooLong => "too_long",
        /// No header in time.
        Timeout => "timeout",
        /// The peer closed.
        Closed => "closed",
        /// Too many connections wait for a header.
        Limit => "limit",
    }
}

labels! {
    /// The result of an auth request of nginx.
    pub(crate) enum AuthHttpResult {
        /// The client may log in.
        Ok => "ok",
        /// The client may not log in.
        Refused => "refused",
        /// The client used a mechanism other than a plain password.
        Method => "method",
        /// The request cannot be parsed.
        Malformed => "malformed",
        /// `X-Auth-Key` is wrong.
        Key => "key",
        /// The peer is not in `auth_http.allow`.
        Untrusted => "untrusted",
        /// `limits.connections` is reached.
        Limit => "limit",
        /// No request in time.
        Timeout => "timeout",
        /// The peer closed.
        Closed => "closed",
    }
}

labels! {
    /// A map that Postfix asks.
    pub(crate) enum SocketmapMap {
        /// Where mail for an address goes.
        Transport => "transport",
        /// Whether there is an address.
        Recipient => "recipient",
        /// Any other.
        Other => "other",
    }
}

labels! {
    /// The answer to a question of Postfix.
    pub(crate) enum SocketmapResult {
        /// A value.
        Ok => "ok",
        /// The map has no such key.
        NotFound => "not_found",
        /// Postfix has to try again later.
        Temp => "temp",
    }
}

labels! {
    /// Why a connection of Postfix was closed by usher.
    pub(crate) enum SocketmapClosed {
        /// The peer is not in `socketmap.allow`.
        Untrusted => "untrusted",
        /// `socketmap.max_connections` is reached.
        Limit => "limit",
        /// That is reached, and its address had the most: another address got the place.
        Share => "share",
        /// What it sent is no question.
        Malformed => "malformed",
        /// A question was not complete in time, or an answer not taken.
        Timeout => "timeout",
        /// It has asked nothing for a long time.
        Idle => "idle",
        /// usher stops, or the listener was removed.
        Stopped => "stopped",
    }
}

labels! {
    /// The result of asking an issuer about a token.
    pub(crate) enum IntrospectionResult {
        /// The token is valid, as far as its issuer says.
        Active => "active",
        /// It is not.
        Inactive => "inactive",
        /// No answer, or one that cannot be used.
        Unavailable => "unavailable",
        /// Not asked: too many requests are in progress.
        Busy => "busy",
    }
}

labels! {
    /// The result of a TLS handshake with a client.
    pub(crate) enum HandshakeResult {
        /// With a certificate.
        Full => "full",
        /// By a ticket.
        Resumed => "resumed",
        /// It failed.
        Failed => "failed",
        /// It was not complete in time.
        Timeout => "timeout",
    }
}

labels! {
    /// The result of a reload of changed files.
    pub(crate) enum ReloadResult {
        /// The new content is in use.
        Ok => "ok",
        /// The old content stays in use.
        Refused => "refused",
    }
}

labels! {
    /// Why a connection was closed before a login.
    pub(crate) enum CloseReason {
        /// The TLS handshake failed.
        Handshake => "handshake",
        /// A limit was reached.
        Limit => "limit",
        /// The client closed.
        ClientClosed => "client_closed",
        /// The client logged out.
        Logout => "logout",
        /// The client violated the protocol.
        ProtocolError => "protocol_error",
        /// Too many failed logins.
        FailedLogins => "failed_logins",
        /// The time before login is over.
        Deadline => "deadline",
        /// usher is stopping.
        Draining => "draining",
        /// `limits.on_unavailable` requires it.
        Unavailable => "unavailable",
        /// A panic.
        Panic => "panic",
    }
}

labels! {
    /// Why a relayed session ended.
    pub(crate) enum SessionEnd {
        /// Both sides closed in order: a logout.
        Closed => "closed",
        /// The client closed, and the backend did not in time.
        ClientClosed => "client_closed",
        /// The backend closed, and the client did not in time.
        BackendClosed => "backend_closed",
        /// The client's connection broke.
        ClientError => "client_error",
        /// The backend's connection broke.
        BackendError => "backend_error",
        /// No byte in either direction for the idle limit.
        Idle => "idle",
        /// The client sent a forbidden command.
        ForbiddenCommand => "forbidden_command",
        /// usher is stopping.
        Drain => "drain",
        /// The directory names another backend, or another name there.
        Moved => "moved",
        /// The account was disabled.
        Disabled => "disabled",
        /// The account has expired.
        Expired => "expired",
        /// The entry was deleted.
        Deleted => "deleted",
        /// The password was changed.
        PasswordChanged => "password_changed",
        /// The client is not in the networks that the user may log in from.
        Network => "network",
        /// The entry does not list the client's certificate any more.
        CertificateRemoved => "certificate_removed",
        /// The entry of the mailbox does not name the user who acts for it any more.
        GrantRevoked => "grant_revoked",
        /// The account is held.
        Hold => "hold",
        /// An administrator ended it.
        Kicked => "kicked",
        /// Its backend is being drained.
        BackendDrained => "backend_drained",
        /// The address of the backend that its user belongs to is up again.
        AddressReturned => "address_returned",
        /// A panic.
        Panic => "panic",
    }
}

labels! {
    /// What the throttle stores.
    pub(crate) enum ThrottleRecord {
        /// Failures of a prefix.
        Prefixes => "prefixes",
        /// Failures for a user.
        Users => "users",
        /// The entry of a name.
        Names => "names",
        /// The prefixes from which a user has logged in.
        KnownNetworks => "known_networks",
        /// The names refused to a prefix within a minute.
        RefusedNames => "refused_names",
    }
}

labels! {
    /// What the throttle did with an attempt, or would have done.
    pub(crate) enum ThrottleEffect {
        /// It waits.
        Delayed => "delayed",
        /// It is refused.
        Refused => "refused",
    }
}

labels! {
    /// What changed of an entry in the directory.
    pub(crate) enum DirectoryChange {
        /// The mail host.
        Move => "move",
        /// The name at the backend.
        Login => "login",
        /// The account can be used again.
        Enable => "enable",
        /// The account cannot be used any more.
        Disable => "disable",
        /// Logins wait.
        Hold => "hold",
        /// Logins continue.
        Release => "release",
        /// The password.
        Password => "password",
        /// A lock after wrong passwords.
        Lockout => "lockout",
        /// The networks that the user may log in from.
        Networks => "networks",
        /// The DN.
        Rename => "rename",
        /// The entry was deleted.
        Delete => "delete",
        /// Anything else.
        Other => "other",
        /// A version without a visible difference.
        Unexplained => "unexplained",
    }
}

labels! {
    /// The use of a connection to a directory server.
    pub(crate) enum ConnectionUse {
        /// It waits for a bind.
        Idle => "idle",
        /// A bind is in progress.
        Busy => "busy",
        /// It is for searches.
        Search => "search",
    }
}

labels! {
    /// A warning of the directory beside a successful bind.
    pub(crate) enum PasswordWarning {
        /// A grace login with an expired password.
        Grace => "grace",
        /// The password will expire.
        Expiring => "expiring",
    }
}

labels! {
    /// The direction of relayed bytes.
    pub(crate) enum Direction {
        /// From clients.
        In => "in",
        /// To clients.
        Out => "out",
    }
}

labels! {
    /// What came of asking the fleet's store.
    pub(crate) enum FleetResult {
        /// It answered in time.
        Ok => "ok",
        /// It did not answer in time.
        Late => "late",
        /// It answered with an error.
        Error => "error",
        /// It was not asked: it is unavailable, or too much waits for it.
        Unavailable => "unavailable",
    }
}

labels! {
    /// Why something from the fleet's store was dropped.
    pub(crate) enum FleetRejection {
        /// It has not the form of what a member writes.
        Garbage => "garbage",
        /// It was modified, or written for something else.
        Forged => "forged",
        /// It is sealed under a line that is not in the secret file.
        UnknownSecret => "unknown_secret",
        /// It was taken before.
        Replayed => "replayed",
        /// It is older than 30 seconds.
        Stale => "stale",
        /// Its sender does not live.
        UnknownMember => "unknown_member",
        /// It was sent before this process was known.
        NotAddressed => "not_addressed",
        /// It came faster than it could be used.
        Surplus => "surplus",
    }
}
