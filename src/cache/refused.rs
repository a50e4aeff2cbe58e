//! The wrong passwords of an entry, and which of them may be valid by now.
//!
//! A bind costs the owner one of the few failures that a lockout policy grants, so a refused password is bound
//! again only for a reason. A change of the password, or of its policy attributes, is one. A lock is not: the
//! locked user has the same password. But a lock may hide that a password is correct, as some servers return
//! invalidCredentials in both cases. The count of wrong passwords in the entry (pwdFailureTime, badPwdCount)
//! distinguishes them: with a count and without a lock, the server had checked the password. Successful logins
//! clear that count, a lock comes and goes: neither is a reason.

use std::time::Duration;

use tokio::time::Instant;

use crate::base::credential::AnswerDigest;
use crate::directory::EntryVersion;

/// How long a password that was certainly wrong is not bound again. Limited, because a server that delegates
/// passwords ({SASL}) refuses correct ones while the other is unreachable, and shows no change afterwards.
const SURE: Duration = Duration::from_secs(12 * 60 * 60);
/// Wrong passwords kept per entry.
const PER_ENTRY: usize = 8;

/// How certain it is that a password was wrong when it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    /// The entry was not seen since. With `again`, an earlier refusal coincided with a lock, too.
    New { again: bool },
    /// The entry is or was locked: the lock may have come just before the bind, or with it. One more bind after
    /// the lock decides.
    Locked,
    /// The entry was seen with a count of wrong passwords and without a lock.
    Sure,
}

#[derive(Clone)]
struct WrongPassword {
    digest: AnswerDigest,
    at: Instant,
    /// How long it counts as wrong while it is unknown whether the server checked it.
    life: Duration,
    certainty: Certainty,
}

/// The wrong passwords of an entry, and its version when the last one was refused.
#[derive(Clone, Default)]
pub(super) struct WrongPasswords {
    seen: EntryVersion,
    list: Vec<WrongPassword>,
}

impl WrongPasswords {
    /// Adds a password refused by a server that returned this version before the bind. `life` is how long it
    /// counts at first, and at most, if the entry exposes no count of wrong passwords.
    pub(super) fn add(
        &mut self,
        seen: &EntryVersion,
        digest: AnswerDigest,
        now: Instant,
        (first, most): (Duration, Duration),
    ) {
        self.note_entry(seen);
        self.seen = EntryVersion {
            has_policy_attributes: seen.has_policy_attributes || self.seen.has_policy_attributes,
            ..seen.clone()
        };
        let before = self.list.iter().find(|wrong| wrong.digest.matches(&digest));
        // It grows only if a password change would be visible.
        let grown = before.filter(|_| seen.shows_password_changes()).map(|wrong| wrong.life.saturating_mul(2));
        let life = grown.map_or(first, |grown| grown.min(most));
        let standing = match before.map(|wrong| wrong.certainty) {
            Some(Certainty::Sure) => Certainty::Sure,
            // The server reports locks of this entry, and did not report one now.
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

    /// Evaluates the entry as looked up. Returns whether anything changed.
    pub(super) fn note_entry(&mut self, version: &EntryVersion) -> bool {
        let aged = version.shows_password_age() || self.seen.shows_password_age();
        if version.password_differs(&self.seen) || (!aged && version.revision != self.seen.revision) {
            let is_changed = !self.list.is_empty();
            self.list.clear();
            return is_changed;
        }
        let mut is_changed = version.has_policy_attributes && !self.seen.has_policy_attributes;
        self.seen.has_policy_attributes |= version.has_policy_attributes;
        if !version.locked && version.failures.is_some() {
            for wrong in self.list.iter_mut().filter(|wrong| matches!(wrong.certainty, Certainty::New { .. })) {
                (wrong.certainty, is_changed) = (Certainty::Sure, true);
            }
        }
        self.lock_shown(version) || is_changed
    }

    /// Evaluates whether the entry is locked. Returns whether anything changed.
    pub(super) fn lock_shown(&mut self, version: &EntryVersion) -> bool {
        let mut is_changed = false;
        for wrong in self.list.iter_mut().filter(|_| version.locked) {
            if let Certainty::New { again } = wrong.certainty {
                // Twice within a moment of a bind: this password causes the lock.
                (wrong.certainty, is_changed) = (if again { Certainty::Sure } else { Certainty::Locked }, true);
            }
        }
        is_changed
    }

    /// Whether this password was refused within this time.
    pub(super) fn lately(&self, digest: &AnswerDigest, within: Duration) -> bool {
        self.any(digest, |wrong| wrong.at.elapsed() < within)
    }

    /// Whether this password still counts as wrong, given the entry's version.
    pub(super) fn counts(&self, version: &EntryVersion, digest: &AnswerDigest) -> bool {
        self.any(digest, |wrong| {
            let age = wrong.at.elapsed();
            match wrong.certainty {
                Certainty::New { .. } => age < wrong.life,
                Certainty::Locked => version.locked && age < SURE,
                Certainty::Sure => age < SURE,
            }
        })
    }

    /// Every digest is compared, so that timing does not reveal which one matched.
    fn any(&self, digest: &AnswerDigest, is: impl Fn(&WrongPassword) -> bool) -> bool {
        self.list.iter().fold(false, |any, wrong| any | (wrong.digest.matches(digest) && is(wrong)))
    }

    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// Forgets that this password was wrong.
    pub(super) fn drop(&mut self, digest: &AnswerDigest) {
        self.list.retain(|wrong| !wrong.digest.matches(digest));
    }
}

#[cfg(test)]
mod tests;
