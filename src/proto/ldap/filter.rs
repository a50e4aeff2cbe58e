//! Search filters (RFC 4515), as an administrator writes them.

use ldap3::asn1::{ASNTag as _, PL, StructureTag};

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

/// The attributes that a filter compares, each once, without options; none for what is no filter.
pub(crate) fn attributes(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    if check(text).is_ok()
        && let Ok(filter) = ldap3::parse_filter(text)
    {
        collect(filter.into_structure(), &mut names);
    }
    names
}

/// Adds the attributes of one item (RFC 4511 section 4.5.1.7). As deep as the parentheses.
fn collect(item: StructureTag, names: &mut Vec<String>) {
    let description = match (item.id, item.payload) {
        // and, or, not
        (0..=2, PL::C(items)) => return items.into_iter().for_each(|item| collect(item, names)),
        // extensibleMatch: its type stands beside the rule and the value
        (9, PL::C(parts)) => parts.into_iter().find(|part| part.id == 2),
        (_, PL::C(parts)) => parts.into_iter().next(),
        // present
        (id, payload @ PL::P(_)) => Some(StructureTag { id, payload, class: item.class }),
    };
    let Some(description) = description.and_then(StructureTag::expect_primitive) else { return };
    let name = description.split(|byte| *byte == b';').next().unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    if !name.is_empty() && !names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
        names.push(name.into_owned());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_a_filter_are_those_it_compares() {
        for (filter, names) in [
            ("(loginMethod=password)", &["loginMethod"][..]),
            ("(mail=*)", &["mail"]),
            ("(cn=a*b*c)", &["cn"]),
            ("(&(a=1)(|(b>=2)(!(c<=3)))(d~=x)(A=4))", &["a", "b", "c", "d"]),
            ("(description;lang-de=x)", &["description"]),
            ("(memberOf:1.2.840.113556.1.4.1941:=cn=mail,dc=x)", &["memberOf"]),
            ("(ou:dn:caseExactMatch:=x)", &["ou"]),
            ("(:caseExactMatch:=x)", &[]),
            ("(1.2.3.4=x)", &["1.2.3.4"]),
            ("uid=x", &[]),
            ("", &[]),
        ] {
            assert_eq!(attributes(filter), names, "{filter}");
        }
    }
}
