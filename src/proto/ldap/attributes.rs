//! The attributes that usher reads, with their roles: what each value means, whichever server has it.

/// What the value of an attribute means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttributeRole {
    /// The mail host.
    MailHost,
    /// userPrincipalName, which must be the name that was bound with.
    Principal,
    /// The login name at the backend.
    Login,
    /// Users that may act for the mailbox: DNs or login names.
    Grant,
    /// Held while it has a value.
    Hold,
    /// The networks that the user may log in from.
    Networks,
    /// Changes with the password: pwdChangedTime, pwdLastSet.
    Password,
    /// Protocols that the user may use.
    Allow,
    /// The user's certificates, in DER.
    Certificate,
    /// Compared by `password_filter`, or by a filter that leads from a token to its entry.
    Compared,
    /// Present while the account is locked after wrong passwords.
    Lockout,
    /// pwdReset, set when an administrator has set the password; pwdPolicySubentry, the policy's DN.
    Policy,
    /// pwdFailureTime: wrong passwords, counted by a policy of the draft.
    Failures,
    /// Wrong passwords, counted by another server.
    FailureCount,
    /// pwdAccountLockedTime: a lockout, or an administrator's lock (draft-behera section 5.3.3).
    Locked,
    /// nsAccountLock: disabled when true.
    DisabledFlag,
    /// userAccountControl: disabled when bit 2 is set.
    UserAccountControl,
    /// accountExpires: the end in steps of 100 ns since 1601; 0 and the largest: never.
    Expires,
    /// shadowExpire: the end in days since 1970; never if it is not above 0.
    ExpiresDay,
    /// krbPrincipalExpiration: the end as a generalized time.
    ExpiresTime,
    /// Modified by successful and failed logins.
    LoginActivity,
    /// Stays the same when the DN changes: text of 32 hexadecimal digits.
    Id,
    /// The same, as 16 bytes.
    Guid,
    /// entryCSN, which orders versions of an entry.
    Csn,
    /// modifyTimestamp, which orders them by the second.
    Modified,
    /// modifiersName.
    Modifier,
    /// The entry is an alias of the one with this DN.
    Alias,
}

/// The attribute with a user's certificates (RFC 4523 section 4.1). Its option `binary` is left out of requests: servers
/// return the values under whichever description they have them.
pub(crate) const CERTIFICATES: &str = "userCertificate";
/// The attribute that every alias has, and no other entry (RFC 4512 section 2.6.2).
pub(crate) const ALIASED: &str = "aliasedObjectName";
/// Attributes with passwords or their hashes: never read, whatever a filter compares.
pub(crate) const SECRETS: [&str; 6] =
    ["userPassword", "authPassword", "unicodePwd", "sambaNTPassword", "sambaLMPassword", "krbPrincipalKey"];
/// The attributes that show whether a rejected password may be correct by now.
pub(crate) const PASSWORDS: [(&str, AttributeRole); 12] = [
    ("pwdChangedTime", AttributeRole::Password),
    ("pwdLastSet", AttributeRole::Password),
    ("passwordExpirationTime", AttributeRole::Password),
    ("lockoutTime", AttributeRole::Lockout),
    ("accountUnlockTime", AttributeRole::Lockout),
    ("pwdReset", AttributeRole::Policy),
    ("pwdPolicySubentry", AttributeRole::Policy),
    ("pwdFailureTime", AttributeRole::Failures),
    ("badPwdCount", AttributeRole::FailureCount),
    ("passwordRetryCount", AttributeRole::FailureCount),
    ("entryCSN", AttributeRole::Csn),
    ("modifyTimestamp", AttributeRole::Modified),
];
/// The attributes that identify an entry, read if the directory is watched.
pub(crate) const IDENTIFIERS: [(&str, AttributeRole); 3] =
    [("entryUUID", AttributeRole::Id), ("nsUniqueId", AttributeRole::Id), ("objectGUID", AttributeRole::Guid)];
/// The attributes that logins modify, besides those of [`PASSWORDS`]; read if the directory is watched.
pub(crate) const LOGIN_ACTIVITY: [&str; 5] =
    ["pwdLastSuccess", "authTimestamp", "badPasswordTime", "lastLogon", "logonCount"];
