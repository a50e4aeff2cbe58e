//! Connection slots of an HTTP port, so that idle connections keep no others out.
//!
//! Every peer (a user of the control socket, an address at the side port) has a share of all slots. No connection
//! waits for one: where a share is full, the newest takes the slot of the peer's oldest connection that has
//! not sent its request yet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// How many slots there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotLimits {
    /// In all.
    pub(super) all: usize,
    /// Of one peer.
    pub(super) share: usize,
    /// Of all that only a privileged peer may take.
    pub(super) reserved: usize,
}

#[derive(Debug)]
struct SlotHolder<K> {
    number: u64,
    peer: K,
    privileged: bool,
    requested: Arc<AtomicBool>,
    end: CancellationToken,
}

#[derive(Debug)]
struct SlotTable<K> {
    next: u64,
    holders: Vec<SlotHolder<K>>,
}

/// All slots and their holders, oldest first.
#[derive(Debug)]
pub(super) struct ConnectionSlots<K> {
    bounds: SlotLimits,
    table: Mutex<SlotTable<K>>,
}

/// The slot of one connection, given back when dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot<K: Copy + Eq> {
    slots: Arc<ConnectionSlots<K>>,
    number: u64,
    requested: Arc<AtomicBool>,
    end: CancellationToken,
}

impl<K: Copy + Eq> ConnectionSlots<K> {
    pub(super) fn new(bounds: SlotLimits) -> Arc<Self> {
        Arc::new(Self { bounds, table: Mutex::new(SlotTable { next: 0, holders: Vec::new() }) })
    }

    fn lock(&self) -> MutexGuard<'_, SlotTable<K>> {
        // No holder leaves it half-changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for this peer; `None` if the requests of all connections that could be evicted have arrived.
    pub(super) fn take(self: &Arc<Self>, peer: K, privileged: bool) -> Option<ConnectionSlot<K>> {
        let SlotLimits { all, share, reserved } = self.bounds;
        let mut table = self.lock();
        let own = table.holders.iter().filter(|one| one.peer == peer).count();
        if own >= share {
            table.evict_idle(|one| one.peer == peer)?;
        }
        let others = table.holders.iter().filter(|one| !one.privileged).count();
        if !privileged && others >= all.saturating_sub(reserved) {
            table.evict_idle(|one| !one.privileged)?;
        } else if table.holders.len() >= all {
            table.evict_idle(|_| true)?;
        }
        let (number, requested, end) = (table.next, Arc::<AtomicBool>::default(), CancellationToken::new());
        table.next += 1;
        table.holders.push(SlotHolder {
            number,
            peer,
            privileged,
            requested: Arc::clone(&requested),
            end: end.clone(),
        });
        Some(ConnectionSlot { slots: Arc::clone(self), number, requested, end })
    }
}

impl<K> SlotTable<K> {
    /// Ends the oldest of these connections whose request has not arrived.
    fn evict_idle(&mut self, among: impl Fn(&SlotHolder<K>) -> bool) -> Option<()> {
        let at = self.holders.iter().position(|one| among(one) && !one.requested.load(Ordering::Relaxed))?;
        self.holders.remove(at).end.cancel();
        Some(())
    }
}

impl<K: Copy + Eq> ConnectionSlot<K> {
    /// To be set once the request has arrived: the connection is not evicted then.
    pub(super) fn request_flag(&self) -> RequestFlag {
        RequestFlag(Arc::clone(&self.requested))
    }

    /// Waits until another connection has the slot.
    pub(super) async fn evicted(&self) {
        self.end.cancelled().await;
    }
}

impl<K: Copy + Eq> Drop for ConnectionSlot<K> {
    fn drop(&mut self) {
        self.slots.lock().holders.retain(|one| one.number != self.number);
    }
}

/// Whether a connection's request has arrived.
#[derive(Debug, Clone)]
pub(super) struct RequestFlag(Arc<AtomicBool>);

impl RequestFlag {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const BOUNDS: SlotLimits = SlotLimits { all: 6, share: 3, reserved: 1 };

    fn is_evicted(slot: &ConnectionSlot<u32>) -> bool {
        slot.evicted().now_or_never().is_some()
    }

    #[test]
    fn full_share_evicts_its_oldest_idle_connection() {
        let slots = ConnectionSlots::new(BOUNDS);
        let holders: Vec<_> = (0..3).map(|_| slots.take(1, false).unwrap()).collect();
        let other = slots.take(2, false).unwrap();
        holders[0].request_flag().set();
        let newest = slots.take(1, false).unwrap();
        assert_eq!(holders.iter().map(is_evicted).collect::<Vec<_>>(), [false, true, false]);
        holders[2].request_flag().set();
        newest.request_flag().set();
        assert!(slots.take(1, false).is_none(), "the requests of its whole share have arrived");
        drop(newest);
        assert!(slots.take(1, false).is_some());
        assert!(!is_evicted(&other));
    }

    #[test]
    fn slot_is_reserved_for_privileged_users() {
        let slots = ConnectionSlots::new(BOUNDS);
        let requesting = |peer| {
            let slot = slots.take(peer, false)?;
            slot.request_flag().set();
            Some(slot)
        };
        let holders: Vec<_> = [1, 1, 1, 2, 2].into_iter().map(|peer| requesting(peer).unwrap()).collect();
        assert!(requesting(3).is_none());
        let root = slots.take(0, true).unwrap();
        let again = slots.take(0, true).unwrap();
        assert!(is_evicted(&root) && !is_evicted(&again), "every other slot is taken");
        assert!(holders.iter().all(|slot| !is_evicted(slot)));
        drop(holders);
        assert!(requesting(3).is_some());
    }

    #[test]
    fn silent_connections_hold_no_more_than_the_bounds() {
        let slots = ConnectionSlots::new(BOUNDS);
        let silent: Vec<_> = (0..1_000).map(|number| slots.take(number % 7, false).unwrap()).collect();
        assert_eq!(slots.lock().holders.len(), 5);
        assert_eq!(silent.iter().filter(|slot| !is_evicted(slot)).count(), 5);
        drop(silent);
        assert!(slots.lock().holders.is_empty());
    }
}
