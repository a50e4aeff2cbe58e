//! The wrong passwords of an entry: which of them may be right by now?
//!
//! A bind costs the owner one of the few failures that a lock-out policy grants, so a password that was
//! refused is bound again for a reason only. A change of the password, or of what the policy says of it,
//! is one. A lock is none: who is locked out has the same password. But a lock may hide that a password
//! is right, as some servers answer invalidCredentials to both. What tells them apart is the count of
//! wrong passwords that the entry shows (pwdFailureTime, badPwdCount): where it shows one, and no lock,
//! the bind was looked at. Good logins clear that count, a lock comes and goes: neither is a reason.

use std::time::Duration;

use tokio::time::Instant;

use super::Digest;
use crate::directory::EntryVersion;

/// How long a password that was surely wrong is not bound again. Not for ever: a server that asks another
/// one for passwords ({SASL}) refuses right ones while that is away, and shows no change afterwards.
const SURE: Duration = Duration::from_secs(12 * 60 * 60);
/// Wrong passwords kept per entry.
const PER_ENTRY: usize = 8;

/// How sure it is that a password was wrong when it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    /// Nothing was seen of the entry since. With `again`, a lock came beside an earlier refusal, too.
    New { again: bool },
    /// The entry is locked, or was: the lock may have come just before the bind, or with it. One more
    /// bind when it is over will tell.
    Locked,
    /// The entry was seen with a count of wrong passwords and without a lock.
    Sure,
}

#[derive(Clone)]
struct WrongPassword {
    digest: Digest,
    at: Instant,
    /// How long it counts as wrong while nothing shows whether the bind was looked at.
    life: Duration,
    certainty: Certainty,
}

/// The wrong passwords of an entry, and what it showed when the last one was refused.
#[derive(Clone, Default)]
pub(super) struct WrongPasswords {
    seen: EntryVersion,
    list: Vec<WrongPassword>,
}

impl WrongPasswords {
    /// A password was refused by a server that showed these marks before the bind. `life` is how long it
    /// counts at first, and at most, where the entry shows no count of wrong passwords.
    pub(super) fn add(
        &mut self,
        seen: &EntryVersion,
        digest: Digest,
        now: Instant,
        (first, most): (Duration, Duration),
    ) {
        self.note_entry(seen);
        self.seen = EntryVersion {
            has_policy_attributes: seen.has_policy_attributes || self.seen.has_policy_attributes,
            ..seen.clone()
        };
        let before = self.list.iter().find(|wrong| wrong.digest.matches(&digest));
        // It grows only where a change of the password would show.
        let grown = before.filter(|_| seen.shows_password_changes()).map(|wrong| wrong.life.saturating_mul(2));
        let life = grown.map_or(first, |grown| grown.min(most));
        let standing = match before.map(|wrong| wrong.certainty) {
            Some(Certainty::Sure) => Certainty::Sure,
            // The server has said of this entry what it says of locked ones, and did not say it now.
            _ if seen.locked => Certainty::Sure,
            Some(Certainty::Locked | Certainty::New { again: true }) => Certainty::New { again: true },
            Some(Certainty::New { again: false }) | None => Certainty::New { again: false },
        };
        self.drop(&digest);
        if self.list.len() >= PER_ENTRY {
            self.list.remove(0);
        }
        self.list.push(WrongPassword { digest, at: now, life, certainty: standing });
    }

    /// The entry was looked up and shows this. Returns whether that is news.
    pub(super) fn note_entry(&mut self, marks: &EntryVersion) -> bool {
        let aged = marks.shows_password_age() || self.seen.shows_password_age();
        if marks.password_differs(&self.seen) || (!aged && marks.revision != self.seen.revision) {
            let is_news = !self.list.is_empty();
            self.list.clear();
            return is_news;
        }
        let mut is_news = marks.has_policy_attributes && !self.seen.has_policy_attributes;
        self.seen.has_policy_attributes |= marks.has_policy_attributes;
        if !marks.locked && marks.failures.is_some() {
            for wrong in self.list.iter_mut().filter(|wrong| matches!(wrong.certainty, Certainty::New { .. })) {
                (wrong.certainty, is_news) = (Certainty::Sure, true);
            }
        }
        self.lock_shown(marks) || is_news
    }

    /// The entry shows a lock, or none. Returns whether that is news.
    pub(super) fn lock_shown(&mut self, marks: &EntryVersion) -> bool {
        let mut is_news = false;
        for wrong in self.list.iter_mut().filter(|_| marks.locked) {
            if let Certainty::New { again } = wrong.certainty {
                // Twice within a moment of a bind: it is this password that locks.
                (wrong.certainty, is_news) = (if again { Certainty::Sure } else { Certainty::Locked }, true);
            }
        }
        is_news
    }

    /// Whether this password was refused within so long.
    pub(super) fn lately(&self, digest: &Digest, within: Duration) -> bool {
        self.any(digest, |wrong| wrong.at.elapsed() < within)
    }

    /// Whether this password still counts as wrong, now that the entry shows this.
    pub(super) fn counts(&self, marks: &EntryVersion, digest: &Digest) -> bool {
        self.any(digest, |wrong| {
            let age = wrong.at.elapsed();
            match wrong.certainty {
                Certainty::New { .. } => age < wrong.life,
                Certainty::Locked => marks.locked && age < SURE,
                Certainty::Sure => age < SURE,
            }
        })
    }

    /// Every digest is compared, so that the time tells nothing about which one it was.
    fn any(&self, digest: &Digest, is: impl Fn(&WrongPassword) -> bool) -> bool {
        self.list.iter().fold(false, |any, wrong| any | (wrong.digest.matches(digest) && is(wrong)))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// Forgets that this password was wrong.
    pub(super) fn drop(&mut self, digest: &Digest) {
        self.list.retain(|wrong| !wrong.digest.matches(digest));
    }
}

#[cfg(test)]
mod tests;
