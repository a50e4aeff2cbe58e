//! Distinguished names (RFC 4514) and attribute names (RFC 4512), as an administrator writes them.

use super::SyntaxError;

/// Checks a base DN; the empty one is the root of the tree (an Active Directory global catalog).
pub(crate) fn base_dn(text: &str) -> Result<String, SyntaxError> {
    if text.is_empty() || is_dn(text) { Ok(text.to_owned()) } else { Err(SyntaxError::NotADn) }
}

/// Checks a service account's name: a DN, or the `name@domain` that Active Directory also binds.
pub(crate) fn bind_name(text: &str) -> Result<String, SyntaxError> {
    let principal = |(name, domain): (&str, &str)| !name.is_empty() && !domain.is_empty() && !text.contains([',', '=']);
    if is_dn(text) || text.split_once('@').is_some_and(principal) {
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
