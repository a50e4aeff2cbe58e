//! Reading BER (X.690) piece by piece: the values of controls and intermediate responses.
//!
//! Definite lengths only, as LDAP demands (RFC 4511 section 5.1). Nothing is built, nothing recurses,
//! nothing panics, whatever bytes come.

/// The first element: its tag, its content, and what stands behind it.
pub(super) fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first & 0x7f);
    if first & 0x80 != 0 {
        let (digits, behind) = rest.split_at_checked(length)?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        rest = behind;
    }
    let (content, behind) = rest.split_at_checked(length)?;
    Some((*tag, content, behind))
}

/// The content of the first element if it has this tag, and what stands behind it.
pub(super) fn tagged(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(bytes)?;
    (found == tag).then_some((content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_its_content_and_the_rest() {
        assert_eq!(element(b"\x04\x02abc"), Some((4, &b"ab"[..], &b"c"[..])));
        assert_eq!(element(b"\x04\x81\x02abc"), Some((4, &b"ab"[..], &b"c"[..])));
        assert_eq!(tagged(b"\x04\x00", 4), Some((&b""[..], &b""[..])));
        assert_eq!(tagged(b"\x04\x00", 5), None);
    }

    #[test]
    fn what_is_cut_short_or_endless_is_none() {
        for bytes in [
            &b""[..],
            b"\x04",
            b"\x04\x02a",
            b"\x04\x80ab",
            b"\x04\x82\x01",
            b"\x04\x85\x00\x00\x00\x00\x01a",
            b"\x04\xff",
            b"\x04\x84\xff\xff\xff\xffa",
        ] {
            assert_eq!(element(bytes), None, "{bytes:?}");
        }
    }
}
