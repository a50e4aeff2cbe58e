//! Messages between members: sealed, addressed, numbered and dated.
//!
//! A message is taken from a living member only, if it is addressed to this process, not older than 30 s by the
//! store's clock, and was not taken before. One of a member that no beat has shown yet waits for the next beat,
//! which it brings forward.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::clock::micros_of;
use super::member::{Member, MemberId, Members};
use super::replay::Replays;
use super::seal::{Purpose, SealError, Sealer};
use crate::telemetry::labels::FleetRejection;

/// The most bytes of a notice or a question.
pub(crate) const LARGEST_NOTICE: usize = 64 << 10;
/// The most bytes of an answer.
pub(crate) const LARGEST_ANSWER: usize = 1 << 20;
/// How old a message may be.
pub(super) const FRESH: Duration = Duration::from_secs(30);
/// How many messages wait for the next beat.
const HELD: usize = 64;
/// Questions that wait for answers at a time.
const ASKED: usize = 32;
/// The most bytes of all answers to a question.
const ALL_ANSWERS: usize = 64 << 20;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Marks have changed: a beat reads them.
    Poke,
    /// For all.
    Notice,
    /// It is answered.
    Question,
    /// To a question.
    Answer,
    /// The answer would be too large.
    TooLarge,
    /// The sender ends: it is not lost.
    Goodbye,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Poke, Self::Notice, Self::Question, Self::Answer, Self::TooLarge, Self::Goodbye];

    fn code(self) -> u8 {
        match self {
            Self::Poke => 0,
            Self::Notice => 1,
            Self::Question => 2,
            Self::Answer => 3,
            Self::TooLarge => 4,
            Self::Goodbye => 5,
        }
    }
}

/// A message of another member.
#[derive(Clone)]
pub(crate) struct Message {
    /// Who sent it.
    pub(crate) from: Member,
    /// What it says.
    pub(crate) body: Arc<[u8]>,
    /// Which question it is; `None`: a notice.
    pub(super) question: Option<u64>,
}

impl Message {
    /// Whether it has to be answered.
    #[must_use]
    pub(crate) fn is_question(&self) -> bool {
        self.question.is_some()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may name users.
        f.debug_struct("Message").field("from", &self.from.id).field("question", &self.question).finish_non_exhaustive()
    }
}

/// The answer of a member, or why there is no answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The member that was asked.
    pub(crate) member: Member,
    /// What it says.
    pub(crate) body: Result<Vec<u8>, NoAnswer>,
}

/// Why a member has given no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// None in time.
    #[error("no answer")]
    Silent,
    /// More than 1 MiB, or 64 MiB together with others.
    #[error("the answer is larger than 1 MiB")]
    TooLarge,
}

/// A message before it is sealed, and after it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) kind: Kind,
    pub(super) from: MemberId,
    /// Of all messages of this member.
    pub(super) number: u64,
    /// By the store's clock, in microseconds.
    pub(super) time: u64,
    /// Which question it is or answers.
    pub(super) question: u64,
    pub(super) addressed: Vec<MemberId>,
    pub(super) body: Vec<u8>,
}

impl Envelope {
    /// Seals it for a channel.
    pub(super) fn seal(&self, sealer: &Sealer, channel: &str) -> Option<Vec<u8>> {
        let mut text = Vec::with_capacity(35 + 8 * self.addressed.len() + self.body.len());
        text.push(self.kind.code());
        for number in [self.from.0, self.number, self.time, self.question] {
            text.extend(number.to_be_bytes());
        }
        text.extend(u16::try_from(self.addressed.len()).ok()?.to_be_bytes());
        self.addressed.iter().for_each(|member| text.extend(member.0.to_be_bytes()));
        text.extend(&self.body);
        sealer.seal(Purpose::Message, channel.as_bytes(), &text)
    }

    /// Opens what came by a channel.
    pub(super) fn open(sealer: &Sealer, channel: &[u8], sealed: &[u8]) -> Result<Self, SealError> {
        // Only a member of another version seals what is not understood.
        Self::decode(&sealer.open(Purpose::Message, channel, sealed)?).ok_or(SealError::Garbage)
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let (kind, text) = text.split_first()?;
        let kind = Kind::ALL.into_iter().find(|known| known.code() == *kind)?;
        let (numbers, text) = text.split_first_chunk::<32>()?;
        let (numbers, _) = numbers.as_chunks();
        let [from, number, time, question] = numbers else { return None };
        let (count, text) = text.split_first_chunk()?;
        let (ids, body) = text.split_at_checked(8 * usize::from(u16::from_be_bytes(*count)))?;
        let (ids, _) = ids.as_chunks();
        Some(Self {
            kind,
            from: MemberId(u64::from_be_bytes(*from)),
            number: u64::from_be_bytes(*number),
            time: u64::from_be_bytes(*time),
            question: u64::from_be_bytes(*question),
            addressed: ids.iter().map(|id| MemberId(u64::from_be_bytes(*id))).collect(),
            body: body.to_vec(),
        })
    }
}

impl From<SealError> for FleetRejection {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Garbage => Self::Garbage,
            SealError::UnknownLine => Self::UnknownSecret,
            SealError::Forged => Self::Forged,
        }
    }
}

/// What becomes of a message.
#[derive(Debug)]
pub(super) enum Judged {
    /// It is taken.
    Taken(Box<Envelope>, Member),
    /// It waits for a beat.
    Held,
    /// It is this process's own.
    Own,
    /// A member has ended in order.
    Left(MemberId),
    /// It is dropped.
    Rejected(FleetRejection),
}

/// What comes in.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<Incoming>);

#[derive(Debug, Default)]
struct Incoming {
    replays: Replays,
    held: Vec<Envelope>,
}

impl Inbox {
    /// Judges a message; `now` is the store's clock, `held` whether it has waited for a beat.
    pub(super) fn judge(&self, own: MemberId, members: &Members, now: u64, message: Envelope, held: bool) -> Judged {
        if message.from == own {
            return Judged::Own;
        }
        // A goodbye is for all, also for those that its sender did not know yet, or that know it no more: that it ended
        // in order is true for good.
        if message.kind == Kind::Goodbye {
            return Judged::Left(message.from);
        }
        if !message.addressed.contains(&own) {
            return Judged::Rejected(FleetRejection::NotAddressed);
        }
        if message.time.abs_diff(now) > micros_of(FRESH) {
            return Judged::Rejected(FleetRejection::Stale);
        }
        let mut incoming = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(member) = members.get(message.from) else {
            if held || incoming.held.len() >= HELD {
                return Judged::Rejected(FleetRejection::UnknownMember);
            }
            incoming.held.push(message);
            return Judged::Held;
        };
        if incoming.replays.is_new(message.from, message.number) {
            Judged::Taken(Box::new(message), member.clone())
        } else {
            Judged::Rejected(FleetRejection::Replayed)
        }
    }

    /// The messages that wait for a beat.
    pub(super) fn held(&self) -> Vec<Envelope> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).held)
    }
}

/// The answer of a member.
type Replied = (MemberId, Result<Vec<u8>, NoAnswer>);

/// Questions that wait for answers.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<HashMap<u64, mpsc::Sender<Replied>>>);

/// A question of this process, until it is dropped.
#[derive(Debug)]
pub(super) struct Question<'a> {
    asked: &'a Asked,
    pub(super) number: u64,
    answers: mpsc::Receiver<Replied>,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.asked.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

impl Asked {
    /// A new question; `None` if too many are open.
    pub(super) fn open(&self, number: u64, members: usize) -> Option<Question<'_>> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= ASKED || asked.contains_key(&number) {
            return None;
        }
        let (sender, answers) = mpsc::channel(members.max(1));
        asked.insert(number, sender);
        Some(Question { asked: self, number, answers })
    }

    /// Hands an answer to its question, if that still waits.
    pub(super) fn answer(&self, from: MemberId, question: u64, body: Result<Vec<u8>, NoAnswer>) {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = asked.get(&question) {
            // More than one answer of a member does not fit, and is not wanted.
            let _ = sender.try_send((from, body));
        }
    }
}

impl Question<'_> {
    /// Collects the answers of these members until all have come; what has come so far is in `answers`.
    pub(super) async fn collect(&mut self, answers: &mut [Answer]) {
        let (mut missing, mut bytes) = (answers.len(), 0);
        while missing > 0 {
            let Some((from, mut body)) = self.answers.recv().await else { return };
            let Some(answer) = answers.iter_mut().find(|answer| answer.member.id == from) else { continue };
            if !matches!(answer.body, Err(NoAnswer::Silent)) {
                continue;
            }
            bytes += body.as_ref().map_or(0, Vec::len);
            if bytes > ALL_ANSWERS {
                body = Err(NoAnswer::TooLarge);
            }
            answer.body = body;
            missing -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store answers a beat and forwards a message on two connections: either may come first. And who ends may not
    /// know yet whom the others know.
    #[test]
    fn goodbye_is_taken_whoever_its_sender_knew() {
        let (own, gone) = (MemberId(1), MemberId(2));
        let message = |kind, addressed| Envelope {
            kind,
            from: gone,
            number: 1,
            time: 1_000_000,
            question: 0,
            addressed,
            body: Vec::new(),
        };
        let inbox = Inbox::default();
        let judged =
            |kind, to: &[_]| inbox.judge(own, &Members::default(), 1_000_000, message(kind, to.to_vec()), true);
        assert!(matches!(judged(Kind::Goodbye, &[own]), Judged::Left(id) if id == gone));
        assert!(matches!(judged(Kind::Goodbye, &[]), Judged::Left(id) if id == gone));
        assert!(matches!(judged(Kind::Notice, &[own]), Judged::Rejected(FleetRejection::UnknownMember)));
        assert!(matches!(judged(Kind::Notice, &[]), Judged::Rejected(FleetRejection::NotAddressed)));
    }
}
