//! Slots for the logins in progress at a backend: this process's share of `logins_in_flight`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::limits::Shares;

/// The slots. Their number follows the share: at once where it rises, and where it falls as logins end.
#[derive(Debug)]
pub(super) struct LoginSlots {
    limit: usize,
    shares: Shares,
    free: Semaphore,
    /// How many there are, taken or free.
    size: Mutex<usize>,
    taken: IntGauge,
}

impl LoginSlots {
    pub(super) fn new(limit: usize, shares: Shares, taken: IntGauge) -> Arc<Self> {
        Arc::new(Self { limit, shares, free: Semaphore::new(limit), size: Mutex::new(limit), taken })
    }

    /// How many logins may be in progress now.
    pub(super) fn limit(&self) -> usize {
        let limit = u32::try_from(self.limit).unwrap_or(u32::MAX);
        usize::try_from(self.shares.of(limit)).unwrap_or(usize::MAX)
    }

    /// How many are.
    pub(super) fn taken(&self) -> u64 {
        u64::try_from(self.taken.get()).unwrap_or(0)
    }

    /// Waits for a slot; `None` if none becomes free until then.
    pub(super) async fn acquire(&self, until: Instant) -> Option<Slot<'_>> {
        self.adjust();
        // The semaphore is never closed.
        Some(Slot { permit: Some(timeout_at(until, self.free.acquire()).await.ok()?.ok()?), slots: self })
    }

    fn size(&self) -> MutexGuard<'_, usize> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adjust(&self) {
        let (mut size, limit) = (self.size(), self.limit());
        if *size < limit {
            self.free.add_permits(limit - *size);
            *size = limit;
        } else if *size > limit {
            *size -= self.free.forget_permits(*size - limit);
        }
    }
}

/// A slot, released on drop.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    permit: Option<SemaphorePermit<'a>>,
    slots: &'a LoginSlots,
}

impl<'a> Slot<'a> {
    /// The login begins.
    pub(super) fn begin(self) -> LoginSlot<'a> {
        self.slots.taken.inc();
        LoginSlot(self)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let (mut size, limit) = (self.slots.size(), self.slots.limit());
        // Before it is released: a login that waits would get it at once.
        if *size > limit
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
            *size -= 1;
        }
    }
}

/// A login in progress.
#[derive(Debug)]
pub(super) struct LoginSlot<'a>(Slot<'a>);

impl Drop for LoginSlot<'_> {
    fn drop(&mut self) {
        self.0.slots.taken.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    async fn take(slots: &LoginSlots) -> Option<LoginSlot<'_>> {
        slots.acquire(Instant::now()).await.map(Slot::begin)
    }

    #[tokio::test(start_paused = true)]
    async fn slots_follow_the_share_while_logins_are_in_progress() {
        let (shares, gauge) = (Shares::default(), IntGauge::new("taken", "taken").unwrap());
        let slots = LoginSlots::new(4, shares.clone(), gauge);
        let mut held = Vec::new();
        while let Some(slot) = take(&slots).await {
            held.push(slot);
        }
        assert_eq!((held.len(), slots.taken()), (4, 4));
        // A second usher: what is in progress goes on, and its slots are not taken again.
        shares.divisor().store(2, Ordering::Relaxed);
        assert_eq!(slots.limit(), 2);
        held.truncate(2);
        assert!(take(&slots).await.is_none());
        held.truncate(1);
        held.extend(take(&slots).await);
        assert!(held.len() == 2 && take(&slots).await.is_none());
        // Alone again, with a login that waits.
        shares.divisor().store(1, Ordering::Relaxed);
        held.extend(take(&slots).await);
        held.extend(take(&slots).await);
        assert!(held.len() == 4 && take(&slots).await.is_none());
        // Free slots are given up at once, waiting logins get none of them.
        held.clear();
        shares.divisor().store(9, Ordering::Relaxed);
        let one = take(&slots).await;
        assert!(one.is_some() && take(&slots).await.is_none() && slots.taken() == 1);
    }
}
