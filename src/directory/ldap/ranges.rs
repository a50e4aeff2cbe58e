//! Values that a server returns in pieces, as Active Directory does with more than 1,500 of an attribute
//! (`memberOf;range=0-1499`). The rest is read piece by piece, of the allow attribute only and within bounds.
//! [MS-ADTS] 3.1.1.3.1.3.3.

use crate::directory::fault::{MAX_ALLOWED, MAX_ALLOWED_BYTES};

/// Pieces that are read of one entry: Active Directory's smallest piece has 30 values, unless an administrator has
/// made it smaller still.
const MAX_PIECES: usize = 64;

/// The values that a piece has: from the first, counted from 0, to the last; `None`: to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    first: usize,
    pub(super) last: Option<usize>,
}

/// The range in an attribute description. One that cannot be parsed continues nothing.
pub(super) fn of(description: &[u8]) -> Option<Range> {
    let is_range = |option: &&[u8]| option.get(..6).is_some_and(|name| name.eq_ignore_ascii_case(b"range="));
    let option = description.split(|byte| *byte == b';').skip(1).find(is_range)?;
    let bounds = || {
        let (first, last) = std::str::from_utf8(option.get(6..)?).ok()?.split_once('-')?;
        let first = first.parse().ok()?;
        Some(Range { first, last: if last == "*" { None } else { Some(last.parse().ok()?) } })
    };
    Some(bounds().unwrap_or(Range { first: usize::MAX, last: Some(usize::MAX) }))
}

/// How much of an attribute has been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    values: usize,
    bytes: usize,
    pieces: usize,
}

impl Extent {
    pub(super) fn add(&mut self, values: &[Vec<u8>]) {
        self.values = self.values.saturating_add(values.len());
        self.bytes = values.iter().fold(self.bytes, |bytes, value| bytes.saturating_add(value.len()));
    }

    pub(super) const fn is_within(self) -> bool {
        self.values <= MAX_ALLOWED && self.bytes <= MAX_ALLOWED_BYTES && self.pieces < MAX_PIECES
    }
}

/// What is left of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(super) attribute: String,
    /// The attribute description that requests it.
    pub(super) description: String,
    next: usize,
    pub(super) extent: Extent,
}

/// A piece that does not continue where the last one ended.
#[derive(Debug)]
pub(super) struct OutOfOrder;

impl Rest {
    /// What is left after a piece with this many values.
    pub(super) fn after(
        attribute: &str,
        before: Option<&Self>,
        range: Range,
        values: usize,
        extent: Extent,
    ) -> Result<Option<Self>, OutOfOrder> {
        if range.first != before.map_or(0, |rest| rest.next) {
            return Err(OutOfOrder);
        }
        let Some(last) = range.last else { return Ok(None) };
        let next = last.checked_add(1).filter(|next| *next > range.first && values > 0).ok_or(OutOfOrder)?;
        let description = format!("{attribute};range={next}-*");
        let extent = Extent { pieces: extent.pieces + 1, ..extent };
        Ok(Some(Self { attribute: attribute.to_owned(), description, next, extent }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_an_option_of_the_attribute() {
        let range = |text: &str| of(text.as_bytes());
        assert_eq!(range("memberOf;range=0-1499"), Some(Range { first: 0, last: Some(1_499) }));
        assert_eq!(range("memberOf;x;RANGE=1500-*"), Some(Range { first: 1_500, last: None }));
        assert_eq!((range("memberOf"), range("memberOf;lang-de"), range("range=0-1")), (None, None, None));
        for broken in
            ["a;range=", "a;range=x-*", "a;range=0", "a;range=0-", "a;range=-1-*", "a;range=0-99999999999999999999"]
        {
            let range = range(broken).unwrap();
            assert!(Rest::after("a", None, range, 1, Extent::default()).is_err(), "{broken}");
        }
    }

    #[test]
    fn pieces_continue_where_the_last_one_ended() {
        let after = |before: Option<&Rest>, first, last, values| {
            Rest::after("a", before, Range { first, last }, values, Extent::default())
        };
        let rest = after(None, 0, Some(9), 10).unwrap().unwrap();
        assert_eq!(rest.description, "a;range=10-*");
        assert_eq!(after(Some(&rest), 10, None, 3).unwrap(), None);
        for (first, last, values) in [(0, Some(19), 10), (11, None, 3), (10, Some(9), 3), (10, Some(19), 0)] {
            assert!(after(Some(&rest), first, last, values).is_err(), "{first} {last:?} {values}");
        }
    }
}
