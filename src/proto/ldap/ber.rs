//! Reads and writes BER (X.690) element by element; all input from a directory is parsed here first.
//!
//! Definite lengths, one-byte tags and primitive strings only, as LDAP requires (RFC 4511 section 5.1). No
//! allocation, no recursion, no panic, whatever bytes arrive. Complete messages are checked in `frames.rs`.

/// The header of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ElementHeader {
    pub(crate) tag: u8,
    /// Bytes of the header itself.
    pub(crate) size: usize,
    /// Bytes of the content.
    pub(crate) content: usize,
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementHeaderError {
    /// More bytes are needed.
    Short,
    /// A long tag, an indefinite length, or one of more than four bytes.
    Malformed,
}

/// Reads the header of the element that these bytes begin with.
pub(crate) fn header(bytes: &[u8]) -> Result<ElementHeader, ElementHeaderError> {
    let (tag, rest) = bytes.split_first().ok_or(ElementHeaderError::Short)?;
    // 0x1f announces a multi-byte tag, which LDAP does not use.
    if tag & 0x1f == 0x1f {
        return Err(ElementHeaderError::Malformed);
    }
    let (first, rest) = rest.split_first().ok_or(ElementHeaderError::Short)?;
    let digits = usize::from(first & 0x7f);
    if first & 0x80 == 0 {
        return Ok(ElementHeader { tag: *tag, size: 2, content: digits });
    }
    if digits == 0 || digits > 4 {
        return Err(ElementHeaderError::Malformed);
    }
    let content = rest.get(..digits).ok_or(ElementHeaderError::Short)?;
    let content = content.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
    Ok(ElementHeader { tag: *tag, size: 2 + digits, content })
}

/// The first element: its tag, its content, and the bytes after it.
pub(crate) fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let header = header(bytes).ok()?;
    let (content, behind) = bytes.get(header.size..)?.split_at_checked(header.content)?;
    Some((header.tag, content, behind))
}

/// The content of the first element if it has this tag, and the bytes after it.
pub(crate) fn tagged(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(bytes)?;
    (found == tag).then_some((content, rest))
}

/// An integer of one to four bytes, its sign ignored. Longer ones are never truncated: the rest of `01 00 00 00
/// 00` would be 0, which is success.
pub(crate) fn number(content: &[u8]) -> Option<u32> {
    matches!(content.len(), 1..=4).then(|| content.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

/// The size of an element with this much content.
pub(crate) fn size_of(content: usize) -> usize {
    match content {
        0..0x80 => 2 + content,
        0x80..0x100 => 3 + content,
        0x100..0x1_0000 => 4 + content,
        _ => 6 + content,
    }
}

/// Writes the header of an element with this much content, in as few bytes as [`size_of`] counts.
pub(crate) fn put_header(tag: u8, content: usize, mut put: impl FnMut(&[u8])) {
    // usher writes nothing of 4 GiB.
    let length = u32::try_from(content).unwrap_or(u32::MAX);
    let [_, _, high, low] = length.to_be_bytes();
    match length {
        0..0x80 => put(&[tag, low]),
        0x80..0x100 => put(&[tag, 0x81, low]),
        0x100..0x1_0000 => put(&[tag, 0x82, high, low]),
        _ => {
            put(&[tag, 0x84]);
            put(&length.to_be_bytes());
        }
    }
}

/// An element with these parts as content.
pub(crate) fn wrapped(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(size_of(content));
    put_header(tag, content, |header| bytes.extend_from_slice(header));
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// A number as the content of an INTEGER or ENUMERATED: as few bytes as keep it positive.
pub(crate) fn digits(number: u32) -> Vec<u8> {
    let bytes = u64::from(number).to_be_bytes();
    let needless = bytes.iter().take(7).take_while(|byte| **byte == 0).count();
    let negative = bytes.get(needless).is_some_and(|byte| *byte >= 0x80);
    bytes.get(needless - usize::from(negative && needless > 0)..).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn element_is_split_into_content_and_rest() {
        assert_eq!(element(b"\x04\x02abc"), Some((4, &b"ab"[..], &b"c"[..])));
        assert_eq!(element(b"\x04\x81\x02abc"), Some((4, &b"ab"[..], &b"c"[..])));
        assert_eq!(tagged(b"\x04\x00", 4), Some((&b""[..], &b""[..])));
        assert_eq!(tagged(b"\x04\x00", 5), None);
    }

    #[test]
    fn truncated_or_indefinite_element_is_refused() {
        for bytes in [
            &b""[..],
            b"\x04",
            b"\x04\x02a",
            b"\x04\x80ab",
            b"\x04\x82\x01",
            b"\x04\x85\x00\x00\x00\x00\x01a",
            b"\x04\xff",
            b"\x04\x84\xff\xff\xff\xffa",
            b"\x1f\x01a",
        ] {
            assert_eq!(element(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn oversized_numbers_are_refused() {
        let cases: [(&[u8], Option<u32>); 6] = [
            (b"", None),
            (b"\x00", Some(0)),
            (b"\x10\x00", Some(4096)),
            (b"\x00\x00\x00\x31", Some(49)),
            (b"\x01\x00\x00\x00\x00", None),
            (b"\x00\x00\x00\x00\x00", None),
        ];
        for (content, expected) in cases {
            assert_eq!(number(content), expected, "{content:?}");
        }
        for (number, expected) in [
            (0, &b"\x00"[..]),
            (127, b"\x7f"),
            (128, b"\x00\x80"),
            (256, b"\x01\x00"),
            (u32::MAX, b"\x00\xff\xff\xff\xff"),
        ] {
            assert_eq!(digits(number), expected);
        }
    }

    proptest! {
        #[test]
        fn written_element_is_read_back(tag in any::<u8>(), length in 0_usize..70_000, rest in any::<[u8; 3]>()) {
            let tag = if tag & 0x1f == 0x1f { tag & 0xe0 } else { tag };
            let content = vec![7; length];
            let written = wrapped(tag, &[&content]);
            prop_assert_eq!(written.len(), size_of(length));
            let all = [&written[..], &rest].concat();
            prop_assert_eq!(element(&all), Some((tag, &content[..], &rest[..])));
            // Of an element that is not all there no part is taken for one.
            prop_assert_eq!(element(&written[..written.len() - 1]), None);
        }

        #[test]
        fn written_number_is_read_back(value in 0..=i32::MAX as u32) {
            prop_assert_eq!(number(&digits(value)), Some(value));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = (header(&bytes), element(&bytes), number(&bytes));
        }
    }
}
