//! Durations and sizes as the operator writes them: a whole number and its unit, `30s` or `64KiB`.
//!
//! A bare number is a mistake: whether `timeout: 30` means seconds or milliseconds should never be
//! a guess.

/// A kind of quantity: its units, smallest first, each with its worth in the smallest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scale {
    noun: &'static str,
    example: &'static str,
    units: &'static [(&'static str, u64)],
}

/// A second, in the milliseconds that [`DURATION`] counts.
pub(super) const SECOND: u64 = 1_000;
/// A minute.
pub(super) const MINUTE: u64 = 60 * SECOND;
/// An hour.
pub(super) const HOUR: u64 = 60 * MINUTE;
/// A day.
pub(super) const DAY: u64 = 24 * HOUR;
/// 1024 bytes.
pub(super) const KIB: u64 = 1 << 10;
/// 1024 KiB.
pub(super) const MIB: u64 = 1 << 20;

/// Durations, in milliseconds.
pub(super) const DURATION: Scale = Scale {
    noun: "a duration",
    example: "30s",
    units: &[("ms", 1), ("s", SECOND), ("m", MINUTE), ("h", HOUR), ("d", DAY)],
};

/// Sizes, in bytes. Powers of two only: `KB` means different things to different people.
pub(super) const SIZE: Scale =
    Scale { noun: "a size", example: "64KiB", units: &[("B", 1), ("KiB", KIB), ("MiB", MIB), ("GiB", 1 << 30)] };

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnitError {
    /// A number alone.
    #[error("{noun} needs a unit: write it like {example} (units: {units})")]
    NoUnit {
        /// What was expected.
        noun: &'static str,
        /// How one looks.
        example: &'static str,
        /// The units there are.
        units: String,
    },
    /// No whole number in front, or a unit that does not exist.
    #[error("not {noun}: write a whole number and its unit without a blank, like {example} (units: {units})")]
    Malformed {
        /// What was expected.
        noun: &'static str,
        /// How one looks.
        example: &'static str,
        /// The units there are.
        units: String,
    },
}

impl Scale {
    /// Reads a quantity. One too large to count is given as `u64::MAX`: no range takes it.
    pub(super) fn parse(&self, text: &str) -> Result<u64, UnitError> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if unit.is_empty() && !number.is_empty() {
            return Err(self.no_unit());
        }
        let worth = self.units.iter().find(|(name, _)| *name == unit).map(|(_, worth)| *worth);
        let (Some(worth), false) = (worth, number.is_empty()) else {
            return Err(UnitError::Malformed { noun: self.noun, example: self.example, units: self.names() });
        };
        Ok(number.parse::<u64>().map_or(u64::MAX, |number| number.saturating_mul(worth)))
    }

    /// What is wrong with a bare number.
    pub(super) fn no_unit(&self) -> UnitError {
        UnitError::NoUnit { noun: self.noun, example: self.example, units: self.names() }
    }

    /// What was expected, such as `a duration`.
    pub(super) fn noun(&self) -> &'static str {
        self.noun
    }

    /// Writes a quantity in the largest unit that divides it.
    pub(super) fn show(&self, value: u64) -> String {
        let fits = |(_, worth): &&(&str, u64)| value >= *worth && value.is_multiple_of(*worth);
        match self.units.iter().rev().find(fits) {
            Some((name, worth)) => format!("{}{name}", value / worth),
            None => "0".into(),
        }
    }

    /// The units, smallest first, for a message.
    pub(super) fn names(&self) -> String {
        self.units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_whole_numbers_with_units() {
        for (text, milliseconds) in
            [("0s", 0), ("1500ms", 1_500), ("30s", 30_000), ("65m", 3_900_000), ("2h", 2 * HOUR), ("1d", DAY)]
        {
            assert_eq!(DURATION.parse(text), Ok(milliseconds), "{text}");
        }
        for (text, bytes) in [("512B", 512), ("64KiB", 65_536), ("1MiB", MIB), ("2GiB", 2 << 30)] {
            assert_eq!(SIZE.parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn bare_number_error_requests_a_unit() {
        let message = DURATION.parse("30").unwrap_err().to_string();
        assert_eq!(message, "a duration needs a unit: write it like 30s (units: ms, s, m, h, d)");
        assert!(matches!(SIZE.parse("0"), Err(UnitError::NoUnit { .. })));
    }

    #[test]
    fn other_texts_are_no_quantities() {
        for text in ["", "s", "-1s", "1.5s", "5 s", " 5s", "5S", "5sec", "1h30m", "5s ", "٣s", "64KB"] {
            assert!(matches!(DURATION.parse(text), Err(UnitError::Malformed { .. })), "{text:?}");
            assert!(matches!(SIZE.parse(text), Err(UnitError::Malformed { .. })), "{text:?}");
        }
    }

    #[test]
    fn oversized_number_exceeds_every_range() {
        assert_eq!(DURATION.parse("99999999999999999999999s"), Ok(u64::MAX));
        assert_eq!(DURATION.parse("18446744073709551615d"), Ok(u64::MAX));
    }

    #[test]
    fn quantities_are_shown_in_the_largest_exact_unit() {
        for (milliseconds, text) in [(0, "0"), (1_500, "1500ms"), (60_000, "1m"), (90_000, "90s"), (DAY, "1d")] {
            assert_eq!(DURATION.show(milliseconds), text);
        }
        assert_eq!(SIZE.show(65_536), "64KiB");
    }
}
