//! Distinguished names (RFC 4514) and attribute names (RFC 4512), as an administrator writes them.

use super::SyntaxError;

/// Checks a base DN; the empty one is the root of the tree (an Active Directory global catalog).
pub(crate) fn base_dn(text: &str) -> Result<String, SyntaxError> {
    if text.is_empty() || is_dn(text) { Ok(text.to_owned()) } else { Err(SyntaxError::NotADn) }
}

/// Checks a service account's name: a DN, or the `name@domain` that Active Directory also binds.
pub(crate) fn bind_name(text: &str) -> Result<String, SyntaxError> {
    let principal = |(name, domain): (&str, &str)| !name.is_empty() && !domain.is_empty() && !text.contains([',', '=']);
    // `EXAMPLE\usher`, as Active Directory takes it.
    let windows = |(domain, name): (&str, &str)| {
        !domain.is_empty() && !name.is_empty() && !name.contains('\\') && !text.contains([',', '=', '@'])
    };
    if is_dn(text) || text.split_once('@').is_some_and(principal) || text.split_once('\\').is_some_and(windows) {
        Ok(text.to_owned())
    } else {
        Err(SyntaxError::NotADn)
    }
}

/// `descr` of RFC 4512 section 1.4.
pub(crate) fn is_descr(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether a text has the shape of a DN: `type=value`, joined by `+` and `,`. Quoted values of
/// RFC 2253 are refused, as RFC 4514 does.
pub(crate) fn is_dn(text: &str) -> bool {
    split(text, b',').all(|rdn| split(rdn, b'+').all(is_type_and_value))
}

fn is_type_and_value(text: &str) -> bool {
    let Some((kind, value)) = text.split_once('=') else { return false };
    let kind = kind.trim_matches(' ');
    let numeric = |oid: &str| oid.split('.').all(|arc| !arc.is_empty() && arc.bytes().all(|b| b.is_ascii_digit()));
    (is_descr(kind) || (kind.contains('.') && numeric(kind))) && is_value(value.trim_start_matches(' '))
}

fn is_value(value: &str) -> bool {
    if let Some(hex) = value.strip_prefix('#') {
        return !hex.is_empty() && hex.len().is_multiple_of(2) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    let (mut rest, mut ends_blank) = (value.bytes(), false);
    while let Some(byte) = rest.next() {
        ends_blank = byte == b' ';
        let sound = match byte {
            b'\\' => match rest.next() {
                Some(b' ' | b'"' | b'#' | b'+' | b',' | b';' | b'<' | b'=' | b'>' | b'\\') => true,
                Some(high) => high.is_ascii_hexdigit() && rest.next().is_some_and(|low| low.is_ascii_hexdigit()),
                None => false,
            },
            b'"' | b';' | b'<' | b'>' | 0 => false,
            _ => true,
        };
        if !sound {
            return false;
        }
    }
    // A blank at the end is part of the value only if it is escaped (RFC 4514 section 2.4).
    !value.is_empty() && !ends_blank
}

/// Whether two texts name the same entry: attribute types and values are compared without case (`caseIgnoreMatch` is
/// the rule of nearly all naming attributes), escapes by what they mean, blanks as RFC 4518 section 2.6.1 says. Texts
/// that are no DNs name nothing.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    is_dn(one) && is_dn(other) && canonical(one) == canonical(other)
}

/// Whether a DN is that of the base, or of an entry below it; all are below the root, whose DN is empty.
pub(crate) fn is_within(dn: &str, base: &str) -> bool {
    base.is_empty() || is_dn(dn) && is_dn(base) && canonical(dn).ends_with(&canonical(base))
}

/// A type and a value of a DN, and whether the value is encoded.
type Pair = (String, (bool, Vec<u8>));

/// The parts of a DN, with what each means.
fn canonical(text: &str) -> Vec<Vec<Pair>> {
    let pair = |pair: &str| {
        let (kind, value) = pair.split_once('=').unwrap_or((pair, ""));
        (kind.trim_matches(' ').to_ascii_lowercase(), value_of(value.trim_start_matches(' ')))
    };
    let rdn = |rdn: &str| {
        let mut pairs: Vec<_> = split(rdn, b'+').map(pair).collect();
        pairs.sort_unstable();
        pairs
    };
    split(text, b',').map(rdn).collect()
}

/// What a value means, for a comparison.
fn value_of(value: &str) -> (bool, Vec<u8>) {
    // The BER encoding of a value (RFC 4514 section 2.4): equal to itself only.
    if value.starts_with('#') {
        return (true, value.to_ascii_lowercase().into_bytes());
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(value.len()), value.bytes().peekable());
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
        } else if let Some(next) = rest.next() {
            let pair = hex(next).zip(rest.peek().copied().and_then(hex));
            match pair {
                Some((high, low)) => {
                    rest.next();
                    bytes.push(high << 4 | low);
                }
                None => bytes.push(next),
            }
        }
    }
    let bytes = match String::from_utf8(bytes) {
        // Blanks at the ends and repeated ones do not count.
        Ok(text) => {
            let text = text.to_lowercase();
            text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").into_bytes()
        }
        Err(other) => other.into_bytes(),
    };
    (false, bytes)
}

/// Splits at a separator that is not escaped.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut escaped = false;
        let end = text.bytes().position(|byte| {
            let found = !escaped && byte == separator;
            escaped = !escaped && byte == b'\\';
            found
        });
        rest = end.and_then(|end| text.get(end + 1..));
        text.get(..end.unwrap_or(text.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_are_compared_by_what_they_name() {
        let same = [
            ("uid=admin,ou=people,dc=example,dc=com", "UID=Admin, OU=People,DC=example,dc=COM"),
            ("cn=Smith\\, John,o=x", "cn=smith\\2c John,o=x"),
            ("cn=John  Smith,o=x", "cn=john smith,o=x"),
            ("cn=a+uid=b,o=x", "uid=B+cn=A,o=x"),
            ("cn=J\\c3\\bcrgen,o=x", "cn=jürgen,o=x"),
        ];
        for (one, other) in same {
            assert!(is_same(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("cn=John Smith,o=x", "cn=JohnSmith,o=x"),
            ("uid=admin,ou=people,o=x", "uid=admin,o=x"),
            ("uid=admin\\,ou=people,o=x", "uid=admin,ou=people,o=x"),
            ("uid=a,o=x", "cn=a,o=x"),
            ("cn=\\#61,o=x", "cn=#61,o=x"),
            ("admin", "admin"),
            ("", ""),
        ] {
            assert!(!is_same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn entry_is_within_its_base() {
        for (dn, base) in [
            ("uid=admin,ou=people,dc=x", "OU=people, dc=X"),
            ("ou=people,dc=x", "ou=people,dc=x"),
            ("uid=admin,dc=x", ""),
        ] {
            assert!(is_within(dn, base), "{dn} {base}");
        }
        for (dn, base) in [
            ("uid=admin,ou=services,dc=x", "ou=people,dc=x"),
            ("dc=x", "ou=people,dc=x"),
            ("cn=a,xou=people,dc=x", "ou=people,dc=x"),
        ] {
            assert!(!is_within(dn, base), "{dn} {base}");
        }
    }

    #[test]
    fn dns_are_checked() {
        for text in [
            "dc=com",
            "uid=a,ou=people, dc=example,dc=com",
            "cn=Smith\\, John+uid=js,o=x",
            "2.5.4.3=x",
            "cn=\\e4\\c3",
            "cn=#0403,o=\\#x\\ ",
            "CN=Jürgen Groß,O=x",
        ] {
            assert_eq!(base_dn(text), Ok(text.into()), "{text}");
        }
        assert_eq!(base_dn(""), Ok(String::new()));
        for text in [
            "people",
            "ou=",
            "=x",
            "ou=a,,dc=b",
            "ou=a,",
            ",ou=a",
            "ou=a+",
            "o u=a",
            "2.=x",
            "cn=\"a\"",
            "cn=a;o=b",
            "cn=a\\",
            "cn=\\z",
            "cn=\\4",
            "cn=#4",
            "cn=a\\,o=b,c",
            "ou=a ,dc=b",
            "ou=a ",
        ] {
            assert_eq!(base_dn(text), Err(SyntaxError::NotADn), "{text}");
        }
        assert!(bind_name("usher@example.com").is_ok() && bind_name("cn=usher,dc=x").is_ok());
        assert!(bind_name("usher").is_err() && bind_name("@x").is_err() && bind_name("").is_err());
    }
}
