//! Search filters (RFC 4515), as an administrator writes them.

use super::SyntaxError;

/// Deeper filters are refused before the recursive parser sees them; real ones nest to 4 or 5.
const DEEPEST_FILTER: usize = 32;

/// Matches every entry.
pub(crate) const ANY_ENTRY: &str = "(objectClass=*)";

/// Checks a filter.
pub(crate) fn check(text: &str) -> Result<(), SyntaxError> {
    if nesting(text) > DEEPEST_FILTER {
        return Err(SyntaxError::TooDeep);
    }
    // The library also takes a bare `uid=x`, which RFC 4515 does not.
    if text.starts_with('(') && ldap3::parse_filter(text).is_ok() { Ok(()) } else { Err(SyntaxError::NotAFilter) }
}

/// Reads a filter that is the same for every user.
pub(crate) fn fixed(text: &str) -> Result<String, SyntaxError> {
    if text.contains(['{', '}']) {
        return Err(SyntaxError::Fixed);
    }
    check(text).map(|()| text.to_owned())
}

/// How deep the parentheses go.
fn nesting(text: &str) -> usize {
    let depth = text.bytes().scan(0_usize, |depth, byte| {
        match byte {
            b'(' => *depth += 1,
            b')' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    depth.max().unwrap_or(0)
}
