//! The allocator: jemalloc, and what is given back to it is wiped.
//!
//! Libraries copy what they send and read: rustls, hyper, an encoder of LDAP. No type can wipe these copies,
//! whose addresses are unknown; but all of them are freed here. Blocks below `WIPED` bytes are filled with
//! zeros when they are freed, when they move, and behind their end when they shrink. All that a login touches
//! is smaller, but for rustls' buffer of a long record ([`wiping_all`]); larger blocks hold what relays carry. C code frees its memory elsewhere: aws-lc wipes its own
//! (OPENSSL_free).

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use tikv_jemalloc_sys::{MALLOCX_ALIGN, nallocx};
use tikv_jemallocator::Jemalloc;

/// Blocks of this size and above are not wiped, outside of [`wiping_all`].
const WIPED: usize = 16 * 1024;

thread_local! {
    // Without a destructor and without an allocation of its own: the allocator reads it.
    static WIPES_ALL: Cell<bool> = const { Cell::new(false) };
}

/// Wipes whatever `run` frees on this thread, large blocks included: where one is known to have held a secret.
pub(crate) fn wiping_all<T>(run: impl FnOnce() -> T) -> T {
    let before = WIPES_ALL.replace(true);
    let result = run();
    WIPES_ALL.set(before);
    result
}

#[inline]
fn is_wiped(size: usize) -> bool {
    size < WIPED || WIPES_ALL.get()
}

/// Jemalloc with wiping before each free.
#[derive(Debug, Clone, Copy, Default)]
pub struct WipingJemalloc;

/// Fills memory with zeros, also if nothing reads it any more.
#[inline]
#[allow(unsafe_code, reason = "memory that is about to be freed has no owner left to wipe it")]
unsafe fn wipe(start: *mut u8, length: usize) {
    // SAFETY: the caller owns `length` bytes from here on.
    unsafe { start.write_bytes(0, length) };
    // The compiler must assume that the zeros are read, or it removes the stores.
    std::hint::black_box(start);
}

/// The size that jemalloc takes for a block: two of one size are the same block.
#[inline]
#[allow(unsafe_code, reason = "jemalloc's own function")]
fn size_class(layout: Layout, size: usize) -> usize {
    // As tikv-jemallocator asks for it.
    let flags = if layout.align() <= 16 && layout.align() <= size { 0 } else { MALLOCX_ALIGN(layout.align()) };
    // SAFETY: it computes, for any size but 0, which no layout here has.
    unsafe { nallocx(size, flags) }
}

// SAFETY: all blocks are jemalloc's own, with its layouts; in between only memory is written that the caller
// gives back.
#[allow(unsafe_code, reason = "an allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for WipingJemalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { Jemalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { Jemalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block has `layout.size()` bytes, which are the caller's until the next line.
        unsafe {
            if is_wiped(layout.size()) {
                wipe(block, layout.size());
            }
            Jemalloc.dealloc(block, layout);
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let size = layout.size();
        if !is_wiped(size) {
            // SAFETY: as the caller promises.
            return unsafe { Jemalloc.realloc(block, layout, new_size) };
        }
        // SAFETY: the block has `size` bytes, the new one `new_size`, and the layout of that is sound by the
        // caller's promise.
        unsafe {
            if size_class(layout, size) == size_class(layout, new_size) {
                // It is large enough, and jemalloc finds it under either size. What is cut off would be
                // beyond the reach of the wiping at its end.
                if new_size < size {
                    wipe(block.add(new_size), size - new_size);
                }
                return block;
            }
            let moved = Jemalloc.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, size.min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "an allocator is called with raw blocks")]
mod tests {
    use super::*;

    const SECRET: u8 = 0xa5;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// How many bytes of this many from here on are what was written.
    fn left(block: *const u8, from: usize, to: usize) -> usize {
        // SAFETY: the pages of a small block that was just freed stay mapped: others share them.
        (from..to).filter(|at| unsafe { block.add(*at).read_volatile() } == SECRET).count()
    }

    #[test]
    fn freed_block_is_wiped_whatever_its_size_and_alignment() {
        for size in [1, 7, 8, 16, 17, 100, 255, 256, 1_000, 4_096, 5_000, 14_000] {
            for align in [1, 8, 16, 64] {
                // SAFETY: allocated, written and freed by one layout.
                unsafe {
                    let block = WipingJemalloc.alloc(layout(size, align));
                    block.write_bytes(SECRET, size);
                    WipingJemalloc.dealloc(block, layout(size, align));
                    assert_eq!(left(block, 0, size), 0, "{size} {align}");
                }
            }
        }
    }

    #[test]
    fn large_block_is_wiped_where_that_is_asked_for() {
        // Its own pages are given back sooner or later: what is checked is the part that stays when it shrinks in place.
        for (size, new_size) in [(16_384, 4_096), (32_768, 4_096), (32_768, 18_437)] {
            // SAFETY: allocated and freed by the layouts of the sizes that were asked for.
            unsafe {
                let block = WipingJemalloc.alloc(layout(size, 1));
                block.write_bytes(SECRET, size);
                let kept = wiping_all(|| WipingJemalloc.realloc(block, layout(size, 1), new_size));
                assert_eq!(left(kept, 0, new_size), new_size);
                assert_eq!(left(block, 0, size), if kept == block { new_size } else { 0 }, "{size} to {new_size}");
                wiping_all(|| WipingJemalloc.dealloc(kept, layout(new_size, 1)));
                assert_eq!(left(kept, 0, new_size), 0);
            }
        }
        assert!(!is_wiped(WIPED), "only there");
    }

    #[test]
    fn moved_block_is_wiped_and_keeps_its_content() {
        for (size, new_size) in
            [(10, 4_000), (4_000, 10), (1_024, 1_025), (14_000, 20_000), (8_192, 100_000), (100, 130)]
        {
            // SAFETY: allocated and freed by the layouts of the sizes that were asked for.
            unsafe {
                let block = WipingJemalloc.alloc(layout(size, 1));
                block.write_bytes(SECRET, size);
                let moved = WipingJemalloc.realloc(block, layout(size, 1), new_size);
                assert_ne!(block, moved);
                assert_eq!(left(moved, 0, size.min(new_size)), size.min(new_size));
                assert_eq!(left(block, 0, size), 0, "{size} to {new_size}");
                WipingJemalloc.dealloc(moved, layout(new_size, 1));
            }
        }
    }

    #[test]
    fn block_of_the_same_class_stays_and_loses_its_tail() {
        // SAFETY: allocated and freed by the layouts of the sizes that were asked for.
        unsafe {
            let block = WipingJemalloc.alloc(layout(1_000, 8));
            block.write_bytes(SECRET, 1_000);
            assert_eq!(WipingJemalloc.realloc(block, layout(1_000, 8), 1_024), block);
            assert_eq!(WipingJemalloc.realloc(block, layout(1_024, 8), 900), block);
            assert_eq!((left(block, 0, 900), left(block, 900, 1_000)), (900, 0));
            WipingJemalloc.dealloc(block, layout(900, 8));
            assert_eq!(left(block, 0, 1_000), 0);
        }
    }

    #[test]
    fn large_block_grows_and_shrinks_with_its_content() {
        // SAFETY: allocated and freed by the layouts of the sizes that were asked for.
        unsafe {
            let mut block = WipingJemalloc.alloc(layout(20_000, 1));
            block.write_bytes(SECRET, 20_000);
            for (from, to) in [(20_000, 2_000_000), (2_000_000, 30_000), (30_000, 10_000), (10_000, 17_000)] {
                block = WipingJemalloc.realloc(block, layout(from, 1), to);
                let kept = if from == 20_000 || from == 2_000_000 { 20_000 } else { 10_000 };
                assert_eq!(left(block, 0, kept), kept, "{from} to {to}");
            }
            WipingJemalloc.dealloc(block, layout(17_000, 1));
        }
    }
}
