//! Stores that no thread writes any longer.
//!
//! They are freed in parts: [`Frozen::release`] gives the reclaimer entries that have their outcome,
//! and `drop` the rest. So each use of a term happens under the lock of its store: see [`Held`].
//! The reclaimer holds that lock for some microseconds at a time. It waits for readers, and keeps
//! none out meanwhile. So a thread may take it under the lock of a shard, and the other way round.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::parts::{Part, Rest};
use crate::ids::EntryId;
use crate::memory::reclaim::reclaim;
use crate::store::Store;
use crate::sync::{AtomicUsize, Ordering, ReadGuard, RwLock};

/// The stores of a partition's shards, one after the other, so that each entry has a *position*.
pub struct Frozen<S: Store> {
    /// One store for each shard. Only `drop` takes them out.
    pub(super) stores: Vec<RwLock<S>>,
    /// The position behind the last record of each store.
    pub(super) ends: Vec<usize>,
    /// The number of entries at the swap.
    len: usize,
    /// When the first entry was written.
    since: Option<Instant>,
    /// Whether some entries may have attempts.
    has_failed: bool,
    /// Whether some terms may be large.
    has_large: bool,
    /// Whether later writers see these entries: whether the partition had outcomes at the swap.
    is_seen: bool,
    /// The estimated bytes of the stores.
    bytes: Arc<Bytes>,
    /// The same at the swap.
    all_bytes: usize,
}

/// The estimated bytes of frozen stores, which fall as parts are freed.
pub(super) struct Bytes(AtomicUsize);

impl Bytes {
    /// The present number.
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Subtracts bytes that are free. All freed bytes of a flush come here once.
    pub(super) fn subtract(&self, freed: usize) {
        self.0.fetch_sub(freed, Ordering::Relaxed);
    }
}

/// An entry of frozen stores. While it is held, the reclaimer frees nothing in its store, so its
/// terms can be used.
pub struct Held<'f, S: Store> {
    /// The stores.
    frozen: &'f Frozen<S>,
    /// The store of the entry.
    store: ReadGuard<'f, S>,
    /// The shard.
    shard: usize,
    /// The entry's id in the store.
    id: EntryId,
}

impl<S: Store> Held<'_, S> {
    /// The store of the entry.
    pub(crate) fn store(&self) -> &S {
        &self.store
    }

    /// The shard.
    pub(crate) fn shard(&self) -> usize {
        self.shard
    }

    /// The entry's id in its store.
    pub(crate) fn id(&self) -> EntryId {
        self.id
    }

    /// The record; `None` for a deleted or freed entry.
    #[inline]
    pub fn record(&self) -> Option<S::Record> {
        self.store.record(self.id)
    }

    /// The attempts before the flush.
    #[inline]
    pub(crate) fn attempts(&self) -> u32 {
        if self.frozen.has_failed {
            self.store.attempts(self.id)
        } else {
            0
        }
    }

    /// Whether `waiting`, a later store of the shard, has an entry that replaces this one. A writer
    /// that did not see this entry may have stored a lower version.
    pub(crate) fn is_replaced_in(&self, waiting: &S) -> bool {
        if self.frozen.is_seen {
            waiting.supersedes(&self.store, self.id)
        } else {
            waiting.overrides(&self.store, self.id)
        }
    }

    /// Holds the entry at another position of the store; `false` if the position is not there.
    #[inline]
    pub(super) fn move_to(&mut self, position: usize) -> bool {
        let start = self.frozen.start(self.shard);
        let is_here = (start..self.frozen.ends[self.shard]).contains(&position);
        if is_here {
            self.id = (position - start) as EntryId;
        }
        is_here
    }
}

impl<S: Store> Frozen<S> {
    /// Puts stores one after the other.
    pub(crate) fn new(stores: Vec<S>, is_seen: bool) -> Self {
        let sum = |end: &mut usize, store: &S| {
            *end += store.end();
            Some(*end)
        };
        let all_bytes = stores.iter().map(Store::bytes).sum();
        Frozen {
            ends: stores.iter().scan(0, sum).collect(),
            len: stores.iter().map(Store::len).sum(),
            since: stores.iter().filter_map(Store::since).min(),
            has_failed: stores.iter().any(Store::has_failed),
            has_large: stores.iter().any(Store::has_large),
            is_seen,
            bytes: Arc::new(Bytes(AtomicUsize::new(all_bytes))),
            all_bytes,
            stores: stores.into_iter().map(RwLock::new).collect(),
        }
    }

    /// The number of entries at the swap.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// When the first entry was written.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The estimated bytes of the stores.
    pub(super) fn bytes(&self) -> &Arc<Bytes> {
        &self.bytes
    }

    /// The store of a shard, of which the reclaimer frees nothing as long as it is borrowed.
    pub(crate) fn store(&self, shard: usize) -> ReadGuard<'_, S> {
        self.stores[shard].read()
    }

    /// The position behind the last entry.
    pub(crate) fn end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether some terms may be large, so that copying even a few records may take long.
    pub fn has_large(&self) -> bool {
        self.has_large
    }

    /// The shard of the entry at a position, and its id in the shard's store.
    #[inline]
    pub(super) fn locate(&self, position: usize) -> Option<(usize, EntryId)> {
        let shard = self.ends.iter().position(|&end| position < end)?;
        Some((shard, EntryId::try_from(position - self.start(shard)).ok()?))
    }

    /// Holds the entry at a position; `None` behind the last one.
    #[inline]
    pub(crate) fn hold(&self, position: usize) -> Option<Held<'_, S>> {
        let (shard, id) = self.locate(position)?;
        Some(Held { frozen: self, store: self.store(shard), shard, id })
    }

    /// Holds the entry that `find` finds in the store of a shard.
    pub(crate) fn find(&self, shard: usize, find: impl FnOnce(&S) -> Option<EntryId>) -> Option<Held<'_, S>> {
        let store = self.store(shard);
        let id = find(&store)?;
        Some(Held { frozen: self, store, shard, id })
    }

    /// The generation of the entries; `None` without a journal.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.stores.first().and_then(|store| store.read().generation())
    }

    /// Whether later writers see these entries.
    pub(crate) fn is_seen(&self) -> bool {
        self.is_seen
    }

    /// The position of the first entry of a shard.
    pub(crate) fn start(&self, shard: usize) -> usize {
        if shard == 0 {
            0
        } else {
            self.ends[shard - 1]
        }
    }

    /// Calls `each` with the records of all entries that are neither deleted nor freed.
    pub fn each(&self, mut each: impl FnMut(S::Record)) {
        for position in 0..self.end() {
            let held = self.hold(position);
            held.as_ref().and_then(Held::record).into_iter().for_each(&mut each);
        }
    }

    /// Whether the entry at a position is neither deleted nor freed.
    pub(crate) fn has(&self, position: usize) -> bool {
        self.hold(position).is_some_and(|held| held.record().is_some())
    }

    /// The attempts of the entry at a position before the flush.
    pub(crate) fn attempts(&self, position: usize) -> u32 {
        self.hold(position).map_or(0, |held| held.attempts())
    }

    /// Lets the reclaimer free the entries at `positions`, except for those `kept`, in ascending
    /// order. Nobody needs the others.
    pub(super) fn release(self: &Arc<Self>, positions: Range<usize>, kept: Vec<usize>) {
        // The estimate for entries of equal size, whatever earlier parts still wait. A step subtracts
        // what it frees, the last one the rest.
        let bytes = self.all_bytes as u128 * positions.len() as u128 / self.end().max(1) as u128;
        reclaim(Part { frozen: Arc::downgrade(self), positions, kept }, bytes as usize);
    }
}

impl<S: Store> Drop for Frozen<S> {
    fn drop(&mut self) {
        let bytes = self.bytes.get();
        self.bytes.subtract(bytes);
        let stores = std::mem::take(&mut self.stores).into_iter().map(RwLock::into_inner).collect();
        reclaim(Rest(stores), bytes);
    }
}
