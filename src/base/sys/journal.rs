//! Whether an output is the journal of systemd, which takes a priority in front of a line.

use std::os::fd::AsFd;

use rustix::fs::fstat;

/// The priority of a line in the journal, by its number (syslog(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

impl Priority {
    /// What stands in front of a line that has it (sd-daemon(3)); the journal stores the line without.
    #[must_use]
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Error => "<3>",
            Self::Warning => "<4>",
            Self::Info => "<6>",
            Self::Debug => "<7>",
        }
    }
}

/// Whether the journal reads this output. The variable alone says nothing: it is inherited by processes whose output
/// goes elsewhere (systemd.exec(5), `$JOURNAL_STREAM`).
#[must_use]
pub(crate) fn is_journal(output: impl AsFd) -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(output).is_ok_and(|found| names(&stream, found.st_dev, found.st_ino))
}

/// Whether `device:inode` names this file.
fn names(stream: &str, device: u64, inode: u64) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    stream.split_once(':').is_some_and(|(at, file)| number(at) == Some(device) && number(file) == Some(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_numbers_name_a_file() {
        assert!(names("8:1234", 8, 1_234));
        for other in ["", ":", "8", "8:", ":1234", "8:1235", "9:1234", "8:1234:", "8:1234 ", "0x8:1234", "1234:8"] {
            assert!(!names(other, 8, 1_234), "{other}");
        }
    }
}
