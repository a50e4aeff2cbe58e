//! Places for connections of an HTTP port, so that idle connections keep no others out.
//!
//! Every peer (a user of the control socket, an address at the side port) has a share of all places. No connection
//! waits for one: where a share is full, the newest takes the place of the peer's oldest connection that has
//! not sent its request yet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// In all.
    pub(super) all: usize,
    /// Of one peer.
    pub(super) share: usize,
    /// Of all that only a privileged peer may take.
    pub(super) reserved: usize,
}

#[derive(Debug)]
struct Taken<K> {
    number: u64,
    peer: K,
    privileged: bool,
    asked: Arc<AtomicBool>,
    end: CancellationToken,
}

#[derive(Debug)]
struct Held<K> {
    next: u64,
    taken: Vec<Taken<K>>,
}

/// All places and their owners, oldest first.
#[derive(Debug)]
pub(super) struct Places<K> {
    bounds: Bounds,
    held: Mutex<Held<K>>,
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place<K: Copy + Eq> {
    places: Arc<Places<K>>,
    number: u64,
    asked: Arc<AtomicBool>,
    end: CancellationToken,
}

impl<K: Copy + Eq> Places<K> {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, held: Mutex::new(Held { next: 0, taken: Vec::new() }) })
    }

    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        // No holder leaves it half-changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for this peer; `None` if all that it could get are of connections that have asked.
    pub(super) fn take(self: &Arc<Self>, peer: K, privileged: bool) -> Option<Place<K>> {
        let Bounds { all, share, reserved } = self.bounds;
        let mut held = self.lock();
        let own = held.taken.iter().filter(|one| one.peer == peer).count();
        if own >= share {
            held.give_way(|one| one.peer == peer)?;
        }
        let others = held.taken.iter().filter(|one| !one.privileged).count();
        if !privileged && others >= all.saturating_sub(reserved) {
            held.give_way(|one| !one.privileged)?;
        } else if held.taken.len() >= all {
            held.give_way(|_| true)?;
        }
        let (number, asked, end) = (held.next, Arc::<AtomicBool>::default(), CancellationToken::new());
        held.next += 1;
        held.taken.push(Taken { number, peer, privileged, asked: Arc::clone(&asked), end: end.clone() });
        Some(Place { places: Arc::clone(self), number, asked, end })
    }
}

impl<K> Held<K> {
    /// Ends the oldest of these connections that has not asked.
    fn give_way(&mut self, among: impl Fn(&Taken<K>) -> bool) -> Option<()> {
        let at = self.taken.iter().position(|one| among(one) && !one.asked.load(Ordering::Relaxed))?;
        self.taken.remove(at).end.cancel();
        Some(())
    }
}

impl<K: Copy + Eq> Place<K> {
    /// To be set once the request has arrived: the place cannot be taken away then.
    pub(super) fn asked(&self) -> Asked {
        Asked(Arc::clone(&self.asked))
    }

    /// Waits until another connection has the place.
    pub(super) async fn lost(&self) {
        self.end.cancelled().await;
    }
}

impl<K: Copy + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        self.places.lock().taken.retain(|one| one.number != self.number);
    }
}

/// Whether a connection's request has arrived.
#[derive(Debug, Clone)]
pub(super) struct Asked(Arc<AtomicBool>);

impl Asked {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const BOUNDS: Bounds = Bounds { all: 6, share: 3, reserved: 1 };

    fn is_lost(place: &Place<u32>) -> bool {
        place.lost().now_or_never().is_some()
    }

    #[test]
    fn full_share_evicts_its_oldest_idle_connection() {
        let places = Places::new(BOUNDS);
        let taken: Vec<_> = (0..3).map(|_| places.take(1, false).unwrap()).collect();
        let other = places.take(2, false).unwrap();
        taken[0].asked().set();
        let newest = places.take(1, false).unwrap();
        assert_eq!(taken.iter().map(is_lost).collect::<Vec<_>>(), [false, true, false]);
        taken[2].asked().set();
        newest.asked().set();
        assert!(places.take(1, false).is_none(), "all of its share have asked");
        drop(newest);
        assert!(places.take(1, false).is_some());
        assert!(!is_lost(&other));
    }

    #[test]
    fn slot_is_reserved_for_privileged_users() {
        let places = Places::new(BOUNDS);
        let asking = |peer| {
            let place = places.take(peer, false)?;
            place.asked().set();
            Some(place)
        };
        let taken: Vec<_> = [1, 1, 1, 2, 2].into_iter().map(|peer| asking(peer).unwrap()).collect();
        assert!(asking(3).is_none());
        let root = places.take(0, true).unwrap();
        let again = places.take(0, true).unwrap();
        assert!(is_lost(&root) && !is_lost(&again), "of all places none is left but its own");
        assert!(taken.iter().all(|place| !is_lost(place)));
        drop(taken);
        assert!(asking(3).is_some());
    }

    #[test]
    fn silent_connections_hold_no_more_than_the_bounds() {
        let places = Places::new(BOUNDS);
        let silent: Vec<_> = (0..1_000).map(|number| places.take(number % 7, false).unwrap()).collect();
        assert_eq!(places.lock().taken.len(), 5);
        assert_eq!(silent.iter().filter(|place| !is_lost(place)).count(), 5);
        drop(silent);
        assert!(places.lock().taken.is_empty());
    }
}
