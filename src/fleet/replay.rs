//! What was seen already: each member numbers what it sends, and each number counts once.
//!
//! No clock is involved, so that whoever sets the store's cannot have anything accepted again. Messages may overtake
//! each other within a window; what is older than the window is refused (as RFC 6479 and RFC 4303 section 3.4.3 do).

use std::collections::HashMap;

use super::member::MemberId;

/// How far messages of one member may overtake each other.
const WINDOW: u64 = 128;
/// Members that are remembered, dead ones included: more than restart while a process lives.
const MOST: usize = 4_096;

/// The numbers of each member.
#[derive(Debug, Default)]
pub(super) struct Replays {
    seen: HashMap<MemberId, Window>,
    turn: u64,
}

#[derive(Debug)]
struct Window {
    highest: u64,
    /// Bit `n`: `highest - n` was seen.
    bits: u128,
    used: u64,
}

impl Replays {
    /// Whether this number of this member has not been seen; it has from now on.
    pub(super) fn is_new(&mut self, member: MemberId, number: u64) -> bool {
        self.turn += 1;
        if self.seen.len() >= MOST && !self.seen.contains_key(&member) {
            let idle = self.seen.iter().min_by_key(|(_, window)| window.used).map(|(member, _)| *member);
            idle.and_then(|member| self.seen.remove(&member));
        }
        let window = self.seen.entry(member).or_insert(Window { highest: 0, bits: 0, used: 0 });
        window.used = self.turn;
        if number > window.highest {
            let ahead = number - window.highest;
            window.bits = if ahead < WINDOW { window.bits << ahead } else { 0 };
            window.bits |= 1;
            window.highest = number;
            return true;
        }
        let behind = window.highest - number;
        if behind >= WINDOW || window.bits & (1 << behind) != 0 {
            return false;
        }
        window.bits |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_counts_once() {
        let (mut replays, member) = (Replays::default(), MemberId(1));
        let mut is_new = |number| replays.is_new(member, number);
        assert!(is_new(5) && !is_new(5) && is_new(4) && !is_new(4) && is_new(100) && !is_new(5) && is_new(6));
        assert!(is_new(300) && !is_new(100) && !is_new(172) && is_new(173) && !is_new(173) && !is_new(300));
        assert!(is_new(u64::MAX) && !is_new(u64::MAX) && !is_new(300) && is_new(u64::MAX - 127));
        assert!(replays.is_new(MemberId(2), 5), "each member counts for itself");
    }

    #[test]
    fn memory_is_bounded() {
        let mut replays = Replays::default();
        for member in 0..10_000 {
            assert!(replays.is_new(MemberId(member), 1));
            assert!(!replays.is_new(MemberId(member), 1));
        }
        assert_eq!(replays.seen.len(), MOST);
        assert!(!replays.is_new(MemberId(9_000), 1));
    }
}
