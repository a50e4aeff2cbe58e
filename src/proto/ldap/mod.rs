//! The pure syntax of LDAP: BER, DNs, filters, templates of both, the attributes that usher reads, and what results
//! mean, by their codes and by the texts of each vendor.
//!
//! The configuration checks its values by it, so that a wrong one is reported with its line; the directory builds its
//! requests with it. Parses and writes text and bytes, and knows no connection.

pub(crate) mod attributes;
pub(crate) mod ber;
pub(crate) mod dn;
pub(crate) mod filter;
pub(crate) mod naming;
pub(crate) mod result;
pub(crate) mod template;
pub(crate) mod vendor;

/// Why a text is no DN, no filter, or no template of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SyntaxError {
    #[error("unknown placeholder {{{}}}: there are {{login}}, {{local}} and {{domain}}", .0.escape_debug())]
    Unknown(String),
    #[error("a brace without its partner: a literal brace is written \\7b or \\7d")]
    Brace,
    #[error("a backslash may not stand before a placeholder")]
    Backslash,
    #[error("unknown placeholder {{{}}}: there is {{claim}}", .0.escape_debug())]
    UnknownInClaim(String),
    #[error("it names no user: put {{claim}} (the value of `login_claim`) into it")]
    NoClaim,
    #[error("it names no user: put {{login}} (the name as typed) or {{local}} (what is before the @) into it")]
    NoLogin,
    #[error("not a filter (RFC 4515): parentheses around every part, no blanks between, placeholders in values only")]
    NotAFilter,
    #[error("the filter nests too deep: 32 levels are the limit")]
    TooDeep,
    #[error("the same for every user: no placeholder and no brace; a literal brace is written \\7b or \\7d")]
    Fixed,
    #[error(
        "not a DN (RFC 4514) like uid={{local}},ou=people,dc=example,dc=com, placeholders in values only, nor a \
         principal name like {{login}}@ad.example.com"
    )]
    NotADnTemplate,
    #[error("not a DN (RFC 4514) like ou=people,dc=example,dc=com")]
    NotADn,
}
