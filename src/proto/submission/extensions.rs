//! The extensions that clients of submission may be offered, of those that all backends list.
//!
//! A backend is often a server for mail from other servers, too, and lists what is meant for them or for its own
//! kind: Exchange X-EXPS, XRDST or XSHADOW, Postfix ETRN, XFORWARD or XVERP. Through usher such a promise is false
//! or harmful, so only what this list has is advertised (RFC 6409 section 7, and later extensions). usher's own,
//! AUTH and STARTTLS, are not in it.

/// Extensions that a client of submission may use after the login, without another EHLO.
const FOR_CLIENTS: &[&str] = &[
    "HELP",                // RFC 5321
    "VRFY",                // RFC 5321
    "EXPN",                // RFC 5321
    "CHECKPOINT",          // RFC 1845
    "SIZE",                // RFC 1870
    "ENHANCEDSTATUSCODES", // RFC 2034
    "DELIVERBY",           // RFC 2852
    "PIPELINING",          // RFC 2920
    "BINARYMIME",          // RFC 3030
    "CHUNKING",            // RFC 3030
    "DSN",                 // RFC 3461
    "NO-SOLICITING",       // RFC 3865
    "MTRK",                // RFC 3885
    "BURL",                // RFC 4468
    "FUTURERELEASE",       // RFC 4865
    "8BITMIME",            // RFC 6152
    "SMTPUTF8",            // RFC 6531
    "MT-PRIORITY",         // RFC 6710
    "RRVS",                // RFC 7293
    "REQUIRETLS",          // RFC 8689
    "LIMITS",              // RFC 9422
];

/// Whether clients may be offered this extension, given by its keyword or by a whole line of EHLO's reply. Some old
/// servers write `=` before the parameters.
pub(super) fn is_for_clients(line: &str) -> bool {
    let keyword = line.split([' ', '=']).next().unwrap_or_default();
    FOR_CLIENTS.iter().any(|known| known.eq_ignore_ascii_case(keyword))
}
