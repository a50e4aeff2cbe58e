//! The result codes of RFC 4511 and what they mean for a login: one table, with the name of each code.
//!
//! A code speaks of the request, of the entry that the request names, or of the server. Only what it says of the entry
//! is a verdict about a user; everything that may concern every user is undecided, so that an outage or a wrong setting
//! never reads as a wrong password. RFC 4511 appendix A.

/// The password is right, or the operation was successful.
pub(crate) const SUCCESS: u32 = 0;
/// More entries than requested, or than the server sends.
pub(crate) const SIZE_LIMIT: u32 = 4;
/// The server wants a bind that is protected against eavesdropping: with TLS, or SASL.
pub(crate) const STRONGER_AUTH_REQUIRED: u32 = 8;
/// The server wants TLS.
pub(crate) const CONFIDENTIALITY_REQUIRED: u32 = 13;
/// There is no entry with the DN of the request.
pub(crate) const NO_SUCH_OBJECT: u32 = 32;
/// The password is wrong.
pub(crate) const INVALID_CREDENTIALS: u32 = 49;
/// The server refuses the request, for a reason that only it knows.
pub(crate) const UNWILLING_TO_PERFORM: u32 = 53;
/// Anything else, perhaps concerning one entry only.
pub(crate) const OTHER: u32 = 80;

/// What the result of a user's bind means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BindMeaning {
    /// The password is right.
    Accepted,
    /// The password is wrong.
    WrongPassword,
    /// No entry has this DN, or none can have it. If the DN was made of the login name, there is no such user; if
    /// the directory has just returned it, its servers disagree, and nothing is decided.
    NoSuchName,
    /// The DN is that of an alias, which a bind does not follow (RFC 4511 section 4.2).
    Alias,
    /// The entry has no password that a simple bind can be compared with.
    NoPassword,
    /// The server is unable to reply.
    ServerFailed,
    /// Nothing about this user.
    Undecided,
}

/// What the result of a search for one entry, or of a read, means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SearchMeaning {
    /// The entries that were sent are all that match.
    Complete,
    /// There are more entries than were sent; a read of one DN names one entry, so that there it concerns that entry.
    More,
    /// As [`BindMeaning::NoSuchName`], for a read of a DN. A search below a base has no base then.
    NoSuchName,
    /// The server is unable to reply.
    ServerFailed,
    /// Nothing about this user.
    Undecided,
}

/// A result code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResultCode {
    pub(crate) code: u32,
    /// Its name in RFC 4511; empty if it is not listed there.
    pub(crate) name: &'static str,
    pub(crate) bind: BindMeaning,
    pub(crate) search: SearchMeaning,
}

const fn row(code: u32, name: &'static str, bind: BindMeaning, search: SearchMeaning) -> ResultCode {
    ResultCode { code, name, bind, search }
}

/// A code that decides nothing about a user.
const fn undecided(code: u32, name: &'static str) -> ResultCode {
    row(code, name, BindMeaning::Undecided, SearchMeaning::Undecided)
}

/// A code that speaks of the DN in the request.
const fn of_name(code: u32, name: &'static str) -> ResultCode {
    row(code, name, BindMeaning::NoSuchName, SearchMeaning::NoSuchName)
}

/// Every result code of RFC 4511, ascending, and those of its extensions that a bind or search may have.
pub(crate) const RESULTS: [ResultCode; 43] = [
    row(SUCCESS, "success", BindMeaning::Accepted, SearchMeaning::Complete),
    // About the connection or the request, which has the same form for all users.
    undecided(1, "operationsError"),
    undecided(2, "protocolError"),
    // About the load, or the limits of the service account.
    undecided(3, "timeLimitExceeded"),
    // A bind has no size.
    row(SIZE_LIMIT, "sizeLimitExceeded", BindMeaning::Undecided, SearchMeaning::More),
    undecided(5, "compareFalse"),
    undecided(6, "compareTrue"),
    // About the way of binding: it concerns every user, and the advice is TLS or a setting of the server.
    undecided(7, "authMethodNotSupported"),
    undecided(STRONGER_AUTH_REQUIRED, "strongerAuthRequired"),
    // The entry is on another server, which gets no password.
    undecided(10, "referral"),
    undecided(11, "adminLimitExceeded"),
    undecided(12, "unavailableCriticalExtension"),
    undecided(CONFIDENTIALITY_REQUIRED, "confidentialityRequired"),
    undecided(14, "saslBindInProgress"),
    // "The named entry does not contain the specified attribute": in a bind that is the password (RFC 4511 A.2).
    row(16, "noSuchAttribute", BindMeaning::NoPassword, SearchMeaning::Undecided),
    // The attribute type in the DN is not in the schema, for which other servers have 34. In a search it is the
    // filter's, which has the same attributes for every name.
    row(17, "undefinedAttributeType", BindMeaning::NoSuchName, SearchMeaning::Undecided),
    undecided(18, "inappropriateMatching"),
    // Account states on some servers, limits on others: `result_19` decides, or a control beside it.
    undecided(19, "constraintViolation"),
    undecided(20, "attributeOrValueExists"),
    // In a filter it may be a value that the operator has written.
    undecided(21, "invalidAttributeSyntax"),
    of_name(NO_SUCH_OBJECT, "noSuchObject"),
    row(33, "aliasProblem", BindMeaning::Alias, SearchMeaning::NoSuchName),
    of_name(34, "invalidDNSyntax"),
    row(36, "aliasDereferencingProblem", BindMeaning::Alias, SearchMeaning::NoSuchName),
    // The RFC means a bind without credentials, which is never sent. What servers mean by it is an entry without a
    // password, or one that may not bind with a simple one.
    row(48, "inappropriateAuthentication", BindMeaning::NoPassword, SearchMeaning::Undecided),
    row(INVALID_CREDENTIALS, "invalidCredentials", BindMeaning::WrongPassword, SearchMeaning::Undecided),
    // As 19.
    undecided(50, "insufficientAccessRights"),
    row(51, "busy", BindMeaning::ServerFailed, SearchMeaning::ServerFailed),
    row(52, "unavailable", BindMeaning::ServerFailed, SearchMeaning::ServerFailed),
    // As 19: a policy on some servers, on others a refusal of every simple bind.
    undecided(UNWILLING_TO_PERFORM, "unwillingToPerform"),
    undecided(54, "loopDetect"),
    // Of updates.
    undecided(64, "namingViolation"),
    undecided(65, "objectClassViolation"),
    undecided(66, "notAllowedOnNonLeaf"),
    undecided(67, "notAllowedOnRDN"),
    undecided(68, "entryAlreadyExists"),
    undecided(69, "objectClassModsProhibited"),
    undecided(71, "affectsMultipleDSAs"),
    row(OTHER, "other", BindMeaning::ServerFailed, SearchMeaning::ServerFailed),
    // RFC 3909, RFC 4370, RFC 4533.
    undecided(118, "canceled"),
    undecided(119, "noSuchOperation"),
    undecided(123, "authorizationDenied"),
    undecided(4096, "e-syncRefreshRequired"),
];

/// What is known of a code; an unlisted one decides nothing.
pub(crate) fn of(code: u32) -> ResultCode {
    RESULTS.iter().find(|row| row.code == code).copied().unwrap_or(undecided(code, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_ascending_and_named() {
        assert!(RESULTS.is_sorted_by(|one, next| one.code < next.code));
        assert!(RESULTS.iter().all(|row| !row.name.is_empty() && of(row.code) == *row));
        assert_eq!((of(9).name, of(9).bind, of(4_711).search), ("", BindMeaning::Undecided, SearchMeaning::Undecided));
        assert_eq!(of(8).name, "strongerAuthRequired");
    }

    #[test]
    fn each_code_has_one_meaning_for_a_bind_and_for_a_search() {
        for code in 0..=4_096 {
            let bind = match code {
                0 => BindMeaning::Accepted,
                49 => BindMeaning::WrongPassword,
                17 | 32 | 34 => BindMeaning::NoSuchName,
                33 | 36 => BindMeaning::Alias,
                16 | 48 => BindMeaning::NoPassword,
                51 | 52 | 80 => BindMeaning::ServerFailed,
                _ => BindMeaning::Undecided,
            };
            let search = match code {
                0 => SearchMeaning::Complete,
                4 => SearchMeaning::More,
                32 | 33 | 34 | 36 => SearchMeaning::NoSuchName,
                51 | 52 | 80 => SearchMeaning::ServerFailed,
                _ => SearchMeaning::Undecided,
            };
            assert_eq!((of(code).bind, of(code).search), (bind, search), "{code}");
        }
    }
}
