//! Stores that no thread writes any longer.

use crate::ids::EntryId;
use crate::memory::reclaim::reclaim;
use crate::store::Store;

/// The stores of a partition's shards, one after the other, so that each entry has a *position*.
/// The reclaimer thread frees them.
pub struct Frozen<S: Store> {
    /// One store for each shard. Only `drop` takes them out.
    stores: Vec<S>,
    /// The position behind the last record of each store.
    ends: Vec<usize>,
    /// Whether some entries may have attempts.
    has_failed: bool,
    /// Whether later writers see these entries: whether the partition had outcomes at the swap.
    is_seen: bool,
}

impl<S: Store> Frozen<S> {
    /// Puts stores one after the other.
    pub(crate) fn new(stores: Vec<S>, is_seen: bool) -> Self {
        let sum = |end: &mut usize, store: &S| {
            *end += store.end();
            Some(*end)
        };
        let ends = stores.iter().scan(0, sum).collect();
        let has_failed = stores.iter().any(Store::has_failed);
        Frozen { stores, ends, has_failed, is_seen }
    }

    /// The store of each shard.
    pub(crate) fn stores(&self) -> &[S] {
        &self.stores
    }

    /// The position behind the last entry.
    pub(crate) fn end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether some terms may be large, so that copying even a few records may take long.
    pub fn has_large(&self) -> bool {
        self.stores.iter().any(Store::has_large)
    }

    /// The shard of the entry at a position, and its id in the shard's store.
    #[inline]
    pub(crate) fn locate(&self, position: usize) -> Option<(usize, EntryId)> {
        let shard = self.ends.iter().position(|&end| position < end)?;
        Some((shard, EntryId::try_from(position - self.start(shard)).ok()?))
    }

    /// Whether later writers see these entries.
    pub(crate) fn is_seen(&self) -> bool {
        self.is_seen
    }

    /// Whether `waiting`, a later store of a shard, has an entry that replaces this one. A writer that
    /// did not see this entry may have stored a lower version.
    pub(crate) fn is_replaced_in(&self, waiting: &S, shard: usize, id: EntryId) -> bool {
        let own = &self.stores[shard];
        if self.is_seen {
            waiting.supersedes(own, id)
        } else {
            waiting.overrides(own, id)
        }
    }

    /// The position of the first entry of a shard.
    pub(crate) fn start(&self, shard: usize) -> usize {
        if shard == 0 {
            0
        } else {
            self.ends[shard - 1]
        }
    }

    /// The record at a position; `None` for a deleted entry, or behind the last one.
    #[inline]
    pub fn record(&self, position: usize) -> Option<S::Record> {
        let (shard, id) = self.locate(position)?;
        self.stores[shard].record(id)
    }

    /// The attempts of the entry at a position before the flush.
    #[inline]
    pub(crate) fn attempts(&self, position: usize) -> u32 {
        if !self.has_failed {
            return 0;
        }
        self.locate(position).map_or(0, |(shard, id)| self.stores[shard].attempts(id))
    }
}

impl<S: Store> Drop for Frozen<S> {
    fn drop(&mut self) {
        reclaim(std::mem::take(&mut self.stores));
    }
}
