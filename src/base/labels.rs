//! Closed sets of words that label metrics and log fields: an enum, its words and the list of all, declared in one
//! place by [`labels`].

/// An enum whose every value has one word, for metrics, log fields and configuration.
pub(crate) trait Label: Copy + 'static {
    /// Every value, in the order of declaration.
    const ALL: &'static [Self];

    /// The word.
    fn word(self) -> &'static str;
}

/// Declares an enum whose every variant has a word: `Variant => "word"`. Words that repeat, or are not lower-case
/// letters, digits and `_`, do not compile.
macro_rules! labels {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident => $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $visibility enum $name {
            $($(#[$doc])* $variant,)+
        }

        const _: () = assert!($crate::base::labels::are_sound(&[$($word),+]), "a label repeats or is malformed");

        impl $name {
            /// The word in metrics, log fields and the configuration.
            #[must_use]
            $visibility const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl $crate::base::labels::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn word(self) -> &'static str {
                self.label()
            }
        }
    };
}
pub(crate) use labels;

/// Whether each word occurs once and has only lower-case letters, digits and `_`. For [`labels`], at compile time.
#[allow(clippy::indexing_slicing, reason = "evaluated at compile time, where iterators are not available")]
pub(crate) const fn are_sound(words: &[&str]) -> bool {
    let mut at = 0;
    while at < words.len() {
        let word = words[at].as_bytes();
        let mut byte = 0;
        while byte < word.len() {
            if !(word[byte].is_ascii_lowercase() || word[byte].is_ascii_digit() || word[byte] == b'_') {
                return false;
            }
            byte += 1;
        }
        let mut earlier = 0;
        while earlier < at {
            if is_same(word, words[earlier].as_bytes()) {
                return false;
            }
            earlier += 1;
        }
        if word.is_empty() {
            return false;
        }
        at += 1;
    }
    true
}

#[allow(clippy::indexing_slicing, reason = "evaluated at compile time, where iterators are not available")]
const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    one.len() == other.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    labels! {
        /// Two.
        enum Pair {
            /// The first.
            First => "first",
            /// The second.
            Second => "second_1",
        }
    }

    #[test]
    fn labels_are_listed_in_order_of_declaration() {
        assert_eq!(Pair::ALL, [Pair::First, Pair::Second]);
        assert_eq!((Pair::First.label(), Pair::Second.word()), ("first", "second_1"));
    }

    #[test]
    fn repeated_and_malformed_labels_are_detected() {
        assert!(are_sound(&["one", "on", "one_2"]));
        for unsound in [&["one", "two", "one"][..], &["One"], &["a-b"], &[""]] {
            assert!(!are_sound(unsound), "{unsound:?}");
        }
    }
}
