//! Session ids, assigned at accept: in every log event, in the list, and in replies that a user may quote to
//! the administrator.
//!
//! An id is the time of the accept in microseconds and some random bits of the process, so that ids are unique
//! across restarts, the two processes of an upgrade, and machines whose logs are merged. Ids sort by time. An
//! id is not secret.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Crockford's base 32: no I, L, O or U, so that it survives being read out over the telephone. Its
/// order is that of ASCII.
const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// 64 bits, five a letter.
const LENGTH: usize = 13;
/// The bits of the process; the others hold microseconds until the year 2112.
const PROCESS_BITS: u32 = 12;

/// A session's id: 13 digits and capital letters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId([u8; LENGTH]);

impl SessionId {
    /// None sorts before it.
    pub(crate) const FIRST: Self = Self([b'0'; LENGTH]);
    /// None sorts behind it.
    pub(crate) const LAST: Self = Self([b'Z'; LENGTH]);

    fn new(number: u64) -> Self {
        // The mask keeps the index below 32.
        let letter = |shift: u32| LETTERS.get((number >> shift & 0x1f) as usize).copied().unwrap_or(b'0');
        let mut shift = LENGTH as u32 * 5;
        Self([(); LENGTH].map(|()| {
            shift -= 5;
            letter(shift)
        }))
    }

    /// As text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SessionId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters = text.as_bytes().try_into().map_err(|_| "a session id has 13 letters")?;
        if text.bytes().all(|letter| LETTERS.contains(&letter)) {
            Ok(Self(letters))
        } else {
            Err("a session id consists of digits and capital letters")
        }
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Makes ids: one a process.
#[derive(Debug)]
pub(crate) struct Ids {
    /// The time in the id that was given last.
    last: AtomicU64,
    process: u64,
}

impl Default for Ids {
    fn default() -> Self {
        // Seeded by the system for each process.
        Self { last: AtomicU64::new(0), process: RandomState::new().hash_one(()) >> (64 - PROCESS_BITS) }
    }
}

impl Ids {
    pub(crate) fn next(&self) -> SessionId {
        self.next_at(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    fn next_at(&self, now: Duration) -> SessionId {
        let now = u64::try_from(now.as_micros()).unwrap_or_default();
        // Two in one microsecond differ, and a clock that is set back brings no id again.
        let after = |last: u64| now.max(last + 1);
        let update = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last)));
        let (Ok(last) | Err(last)) = update;
        SessionId::new(after(last) << PROCESS_BITS | self.process)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_digits_and_capitals_and_sort_by_time() {
        let ids = Ids { last: AtomicU64::new(0), process: 0x7ab };
        let at = |seconds| ids.next_at(Duration::from_secs(seconds));
        let made = [at(1_795_000_000), at(1_795_000_000), at(1_795_000_001), at(1_700_000_000), at(1_800_000_000)];
        assert!(made.is_sorted_by(|one, next| one < next), "{made:?}");
        assert_eq!(made[0].as_str(), "6C25G2QSG01XB");
        assert_eq!(format!("{:>15}|", made[0]), "  6C25G2QSG01XB|");
        assert_eq!(serde_json::to_string(&made[0]).unwrap(), "\"6C25G2QSG01XB\"");
        assert_eq!(serde_json::from_str::<SessionId>("\"6C25G2QSG01XB\"").unwrap(), made[0]);
        for wrong in ["", "6C25G2QSG01X", "6C25G2QSG01XB1", "6c25g2qsg01xb", "6C25G2QSG01XU", "6C25G2QSG01Ä"] {
            assert!(wrong.parse::<SessionId>().is_err(), "{wrong}");
        }
        assert_eq!(SessionId::new(u64::MAX).as_str(), "FZZZZZZZZZZZZ");
    }

    #[test]
    fn concurrent_processes_give_different_ids() {
        let (old, new) = (Ids { last: AtomicU64::new(0), process: 1 }, Ids { last: AtomicU64::new(0), process: 2 });
        let now = Duration::from_secs(1_795_000_000);
        let all: BTreeSet<SessionId> = (0..100).flat_map(|_| [old.next_at(now), new.next_at(now)]).collect();
        assert_eq!(all.len(), 200);
        let tags: BTreeSet<u64> = (0..8).map(|_| Ids::default().process).collect();
        assert!(tags.len() > 1 && tags.iter().all(|tag| tag >> PROCESS_BITS == 0), "{tags:?}");
    }

    #[test]
    fn threads_never_get_the_same_id() {
        let ids = Ids::default();
        let of_one = || (0..2_000).map(|_| ids.next()).collect::<Vec<_>>();
        let all: BTreeSet<SessionId> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(of_one)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.len(), 8_000);
    }
}
