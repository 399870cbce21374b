//! The parts of frozen stores that the reclaimer frees.
//!
//! A flush releases a part when it passes some positions, so that its memory comes back as it
//! progresses. The parts of a flush may be freed in any order.

use std::ops::Range;
use std::sync::Weak;

use super::frozen::Frozen;
use crate::memory::reclaim::Work;
use crate::store::Store;
use crate::sync::yield_now;

/// A flush is freed in this many parts at most, unless they are large.
const PARTS: usize = 16;

/// How many times as large the least part of a buffer without a bound is.
const LEAST_UNBOUNDED: usize = 128;

/// The most bytes of a part.
const MOST: usize = 8 * 1024 * 1024;

/// Ids in a step at most, so that the lock of the store is held for some microseconds.
const STEP: usize = 64;

/// The number of positions that a flush releases together: `end` is the number of all, and `bytes`
/// is their size. A small flush has no parts: waking the thread would cost more than its entries.
/// Without a bound a flush has only large parts, since freeing its entries one by one takes a sixth of
/// its time.
pub(super) fn part_of<S: Store>(end: usize, bytes: usize, is_bounded: bool) -> usize {
    let least = S::LEAST_PART * if is_bounded { 1 } else { LEAST_UNBOUNDED };
    let part = (bytes / PARTS).min(MOST).max(least);
    if part >= bytes {
        return usize::MAX;
    }
    (end as u128 * part as u128 / bytes as u128).max(1) as usize
}

/// Entries that nobody needs, of stores that are still in use.
pub(super) struct Part<S: Store> {
    /// The stores. They go as a whole, which is faster, when the flush ends.
    pub(super) frozen: Weak<Frozen<S>>,
    /// The positions of the entries.
    pub(super) positions: Range<usize>,
    /// Positions that are needed, in ascending order.
    pub(super) kept: Vec<usize>,
}

impl<S: Store> Work for Part<S> {
    fn step(&mut self) -> Option<usize> {
        let Part { frozen, positions, kept } = self;
        let frozen = frozen.upgrade()?;
        let (shard, first) = frozen.locate(positions.start).filter(|_| positions.start < positions.end)?;
        let start = frozen.start(shard);
        // Steps end where the chunks of a store do.
        let end = positions.end.min(frozen.ends[shard]).min(start + (first as usize / STEP + 1) * STEP);
        let next = kept.partition_point(|&position| position < positions.start);
        let keeps = |id: u32| kept[next..].binary_search(&(start + id as usize)).is_ok();
        let mut garbage = Vec::new();
        let mut store = frozen.stores[shard].write();
        if store.is_pinned() {
            drop(store);
            yield_now();
            return Some(0);
        }
        let before = store.bytes();
        store.release(first..(end - start) as u32, keeps, &mut garbage);
        let freed = before.saturating_sub(store.bytes());
        drop(store);
        drop(garbage);
        frozen.bytes().subtract(freed);
        positions.start = end;
        Some(freed)
    }

    fn holds_up(&self) -> bool {
        true
    }
}

/// Stores that nobody needs.
pub(super) struct Rest<S>(pub(super) Vec<S>);

impl<S: Store> Work for Rest<S> {
    fn step(&mut self) -> Option<usize> {
        let store = self.0.last_mut()?;
        if store.is_pinned() {
            yield_now();
            return Some(0);
        }
        let before = store.bytes();
        if !store.take_apart() {
            self.0.pop();
            return Some(before);
        }
        Some(before.saturating_sub(store.bytes()))
    }
}
