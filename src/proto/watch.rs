//! The one command that a relay watches for: a verb that would end the login and keep the session.
//!
//! A relay does not parse its content, with this exception: where a server lets a client end its login and
//! begin another (UNAUTHENTICATE of RFC 5804 section 2.14), the client would bypass limits, log, allow rules
//! and kick. So the lines of such a session are scanned, byte by byte and without storing any, and the verb
//! ends the session.
//!
//! What the server takes for a command must never be taken for data here. A server that refuses a command reads
//! on at its next line, be that in a string or in a literal that it never asked for; timsieved continues even
//! after the character that it rejected, within the line. So every line counts, wherever it occurs, with any of
//! CR and LF as its end, if it begins with the verb or ends with it as a word. Within a literal, which may be a
//! script, only the end counts: a script that has such a line cannot be stored, and one that has the word
//! elsewhere passes.

use super::wire::LiteralMarker;

/// Watches a client's side of a session for one verb.
#[derive(Debug)]
pub struct CommandWatch {
    verb: &'static [u8],
    /// The line sent to a client whose session it ends.
    pub reply: &'static [u8],
    word: VerbMatch,
    /// Nothing but blanks stood before the word in its line.
    is_first: bool,
    /// What the line announces at its end.
    marker: LiteralMarker,
    /// The last byte was a CR.
    after_cr: bool,
    /// Bytes of a literal that are to come.
    literal: usize,
}

/// How much of the verb the current word matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VerbMatch {
    /// This many of its letters, after a character that is not a letter.
    Verb(usize),
    /// All of it, and blanks behind it.
    Ends,
    /// Another word.
    Other,
}

impl CommandWatch {
    /// Watches for this verb, in capital letters.
    #[must_use]
    pub const fn new(verb: &'static str, told: &'static [u8]) -> Self {
        let (word, marker) = (VerbMatch::Verb(0), LiteralMarker::Absent);
        Self { verb: verb.as_bytes(), reply: told, word, is_first: true, marker, after_cr: false, literal: 0 }
    }

    /// Whether `bytes`, which continue the previous ones, complete the verb. What was passed on before has no
    /// line end yet, so it is not a command yet.
    pub fn contains_verb(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|byte| self.push(*byte))
    }

    fn push(&mut self, byte: u8) -> bool {
        let in_literal = self.literal > 0;
        self.literal = self.literal.saturating_sub(1);
        let ends = matches!(byte, b'\r' | b'\n');
        let blank = matches!(byte, b' ' | b'\t');
        let is_whole = self.word == VerbMatch::Verb(self.verb.len());
        let is_command = self.is_first && !in_literal && !is_letter(byte);
        if self.word == VerbMatch::Ends && ends || is_whole && (ends || is_command) {
            return true;
        }
        if !in_literal {
            self.announcement(byte);
        }
        let matched = match self.word {
            VerbMatch::Verb(matched) => Some(matched),
            VerbMatch::Ends => Some(0),
            VerbMatch::Other => None,
        };
        let goes_on = matched.filter(|matched| self.verb.get(*matched) == Some(&byte.to_ascii_uppercase()));
        let keeps = blank && self.word == VerbMatch::Verb(0) || goes_on.is_some() && self.word != VerbMatch::Ends;
        self.word = match goes_on {
            Some(matched) => VerbMatch::Verb(matched + 1),
            None if blank && (is_whole || self.word == VerbMatch::Ends) => VerbMatch::Ends,
            None if byte.is_ascii_alphabetic() => VerbMatch::Other,
            None => VerbMatch::Verb(0),
        };
        self.is_first = ends || self.is_first && keeps;
        false
    }

    /// Looks for a literal at the end of a line of commands: `{5}` or `{5+}`, and CRLF.
    fn announcement(&mut self, byte: u8) {
        match byte {
            b'\n' if self.after_cr => {
                self.literal = self.marker.literal().map_or(0, |literal| literal.size);
                self.marker = LiteralMarker::Absent;
            }
            b'\r' => {}
            _ => {
                // A bare CR ends an announcement.
                let before = if self.after_cr { LiteralMarker::Absent } else { self.marker };
                self.marker = before.behind(byte);
            }
        }
        self.after_cr = byte == b'\r';
    }
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether it is said, in pieces of any size; with how many bytes it was found out.
    fn said(text: &[u8]) -> Option<usize> {
        let found = |size: usize| {
            let mut watch = CommandWatch::new("UNAUTHENTICATE", b"");
            let mut passed = 0;
            for piece in text.chunks(size) {
                if watch.contains_verb(piece) {
                    return Some(passed + size);
                }
                passed += piece.len();
            }
            None
        };
        let single = found(1);
        for size in 2..=text.len().max(2) {
            assert_eq!(found(size).is_some(), single.is_some(), "{} by {size}", text.escape_ascii());
        }
        single
    }

    #[test]
    fn unauthenticate_ends_a_session_wherever_a_command_can_start() {
        for text in [
            "UNAUTHENTICATE\r\n",
            "unauthenticate\n",
            "UnAuthenticate \t\r\n",
            "  UNAUTHENTICATE\r",
            "UNAUTHENTICATE now\r\n",
            "UNAUTHENTICATE\"x\"\r\n",
            "LISTSCRIPTS\r\nNOOP\r\nUNAUTHENTICATE\r\nAUTHENTICATE \"PLAIN\" \"AGJvYgBx\"\r\n",
            "PUTSCRIPT \"a\" {5+}\r\nhello\r\nUNAUTHENTICATE\r\n",
            "PUTSCRIPT \"a\" {5}\r\nhello\r\nUNAUTHENTICATE\r\n",
            "PUTSCRIPT \"a\" {0+}\r\n\r\nUNAUTHENTICATE\r\n",
            "PUTSCRIPT {1+}\r\na {7+}\r\nkeep;\r\n\r\nUNAUTHENTICATE\r\n",
            // Refused before the literal, and read on at the next line; or no literal at all.
            "NONSENSE {99+}\r\nUNAUTHENTICATE\r\n",
            "PUTSCRIPT \"a\" {99999999999999999999999+}\r\nUNAUTHENTICATE\r\n",
            "NOOP \"{99+}\r\nUNAUTHENTICATE\r\n",
            "NONSENSE \"\r\nUNAUTHENTICATE\r\n\"\r\n",
            "HAVESPACE \"a\" {2}\rUNAUTHENTICATE\r\n",
            // timsieved continues after what it rejects.
            "LISTSCRIPTS ;UNAUTHENTICATE\r\n",
            "GETSCRIPT \"a\"\u{1}unauthenticate\r\n",
            "HAVESPACE \"a\" 5UNAUTHENTICATE \r\n",
            "NONSENSE {99+}\r\n;UNAUTHENTICATE\r\n",
            "UNAUTHENTICATED UNAUTHENTICATE UNAUTHENTICATE\r\n",
            "PUTSCRIPT \"a\" {3+}\r\nabc\u{ff}UNAUTHENTICATE\n",
        ] {
            assert!(said(text.as_bytes()).is_some(), "{text:?}");
        }
        // Before its line ends: what went before was no command.
        assert_eq!(said(b"UNAUTHENTICATE\r\n"), Some("UNAUTHENTICATE\r".len()));
    }

    #[test]
    fn similar_text_passes() {
        for text in [
            "UNAUTHENTICATED\r\nUNAUTHENTICAT\r\nUNAUTHENTICATE-X\r\nXUNAUTHENTICATE\r\n",
            "PUTSCRIPT \"unauthenticate\" \"UNAUTHENTICATE\"\r\n",
            "NOOP \"UNAUTHENTICATE\"\r\nRENAMESCRIPT \"a\" UNAUTHENTICATE x\r\n",
            "PUTSCRIPT \"a\" {35+}\r\n# a comment\r\nUNAUTHENTICATE means x\r\nNOOP\r\n",
            "PUTSCRIPT \"a\" {20}\r\n# UNAUTHENTICATE.\r\n# \r\nNOOP\r\n",
            "UNAUTHENTICATE",
        ] {
            assert!(said(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn command_after_any_line_is_found(before in "[ -~]{0,40}(\r\n|\n|\r)", split in 0..60_usize) {
            let text = format!("{before}UNAUTHENTICATE\r\n");
            let mut watch = CommandWatch::new("UNAUTHENTICATE", b"");
            let (one, other) = text.as_bytes().split_at(split.min(text.len()));
            prop_assert!(watch.contains_verb(one) || watch.contains_verb(other));
        }

        #[test]
        fn verb_at_the_end_of_a_line_is_found_except_after_a_letter(
            before in prop::collection::vec(any::<u8>(), 0..40), between in "[^A-Za-z]",
        ) {
            let text = [&before, between.as_bytes(), b"UNAUTHENTICATE\r\n"].concat();
            prop_assert!(CommandWatch::new("UNAUTHENTICATE", b"").contains_verb(&text));
        }
    }
}
