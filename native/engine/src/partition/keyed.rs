//! The common part of maps and counters: partitions with keys.

use super::access::{Access, Closed};
use super::partition::{Partition, Stored, Written};
use super::shard::{InFlight, ShardState};
use crate::flush::{Fate, Flush, Held};
use crate::memory::reclaim::help;
use crate::store::hash::Hash;
use crate::store::table::{Contents, Table};
use crate::store::Store;
use crate::sync::MutexGuard;
use crate::term::Heap;

/// Shards of a partition with keys, a power of two. More shards let writers meet more rarely, but
/// consecutive writes touch more places in memory: with eight a single writer is a fifth slower,
/// and two writers are not faster.
pub const TABLE_SHARDS: usize = 4;

/// A partition with keys.
type TablePartition<H, C> = Partition<Table<H, C>, TABLE_SHARDS>;

/// The state under the lock of a shard with keys.
pub(super) type TableState<H, C> = ShardState<Table<H, C>>;

/// An entry in flight.
pub(super) struct FoundInFlight<'s, H: Heap, C: Contents<H>> {
    /// Its flush.
    pub(super) flush: &'s Flush<Table<H, C>>,
    /// The entry.
    pub(super) held: Held<'s, Table<H, C>>,
    /// The entry's position in the flush.
    pub(super) position: usize,
}

impl<H: Heap, C: Contents<H>> InFlight<Table<H, C>> {
    /// The entry of `key`, unless it has an outcome or was deleted.
    #[cold]
    pub(super) fn find(&self, hash: Hash, key: H::Term) -> Option<FoundInFlight<'_, H, C>> {
        let shard = TablePartition::<H, C>::shard_of(hash);
        let held = self.frozen.find(shard, |table| table.find(hash, key))?;
        let position = self.frozen.start(shard) + held.id() as usize;
        self.flush.is_live(position).then_some(FoundInFlight { flush: &self.flush, held, position })
    }
}

impl<H: Heap, C: Contents<H>> TableState<H, C> {
    /// The entry of `key` in flight, unless it has an outcome or was deleted.
    #[inline]
    pub(super) fn find_in_flight(&self, hash: Hash, key: H::Term) -> Option<FoundInFlight<'_, H, C>> {
        self.in_flight.as_ref()?.find(hash, key)
    }
}

impl<H: Heap, C: Contents<H>> TablePartition<H, C> {
    /// Fails the build unless the lock, the fields that each write reads, and the head of the table
    /// fill a cache line.
    const HEAD_FILLS_A_LINE: () = {
        let before = size_of::<usize>() + std::mem::offset_of!(TableState<H, C>, waiting);
        assert!(size_of::<usize>() != 8 || before + Table::<H, C>::HEAD == 64, "the index begins a line");
    };

    /// The index of the shard for keys of this hash.
    #[inline]
    pub fn shard_of(hash: Hash) -> usize {
        hash.shard_bits() & (TABLE_SHARDS - 1)
    }

    /// The lock of the shard for keys of this hash, if it takes writes of this access.
    #[inline]
    pub(super) fn lock_open(&self, access: Access, hash: Hash) -> Result<MutexGuard<'_, TableState<H, C>>, Closed> {
        let () = Self::HEAD_FILLS_A_LINE;
        self.shards[Self::shard_of(hash)].lock_open(access)
    }

    /// Releases the lock, then frees abandoned heaps, and helps the reclaimer.
    #[inline]
    pub(super) fn unlock(mut state: MutexGuard<'_, TableState<H, C>>) {
        if state.waiting.has_garbage() {
            let garbage = state.waiting.take_garbage();
            drop(state);
            drop(garbage);
            help();
        }
    }

    /// Counts a write, and releases the lock. `None` is a write without room.
    #[inline(always)]
    pub(super) fn written(
        &self,
        mut state: MutexGuard<'_, TableState<H, C>>,
        access: Access,
        is_new: Option<bool>,
    ) -> Stored {
        let Some(is_new) = is_new else { return self.refused(state) };
        let is_enough = state.is_counted && self.count_write(&mut state, is_new);
        if access.has_room() {
            self.use_room(&state, is_new);
        }
        Self::unlock(state);
        if is_enough {
            Stored::Enough
        } else {
            Stored::Stored
        }
    }

    /// Releases the lock after a write without room, which may have made a copy. No flush frees a
    /// store without a first entry, so its memory would fill the buffer for ever.
    #[cold]
    fn refused(&self, mut state: MutexGuard<'_, TableState<H, C>>) -> Stored {
        let unused = (state.waiting.end() == 0).then(|| {
            let generation = state.waiting.generation();
            let unused = state.freeze();
            // The generation is that of all shards.
            state.waiting.set_journaled(generation);
            unused
        });
        self.count_bytes(&mut state);
        Self::unlock(state);
        drop(unused);
        Stored::Full
    }

    /// Does `write` for each of `writes`, which all belong to one shard, in their order under one
    /// lock. `write` returns whether the key is new. The caller keeps the list short, and has room
    /// for all of it if it is `reserved`.
    #[inline]
    pub(super) fn write_each<'w, W: 'w>(
        &self,
        access: Access,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w (Hash, W)> + Clone,
        mut write: impl FnMut(&mut TableState<H, C>, Hash, &'w W) -> bool,
    ) -> Result<Written, Closed> {
        let mut state = self.shards[shard].lock_open(access)?;
        writes.clone().for_each(|(hash, _)| state.waiting.prefetch(*hash));
        let (mut done, mut added) = (0, 0);
        for (hash, one) in writes {
            debug_assert_eq!(Self::shard_of(*hash), shard, "all writes belong to the shard");
            done += 1;
            added += usize::from(write(&mut state, *hash, one));
        }
        let written = self.count_all(&mut state, done, added, reserved);
        Self::unlock(state);
        Ok(written)
    }

    /// Removes the entry of `key`. The processor gets an entry in flight no longer.
    pub fn delete(&self, access: Access, hash: Hash, key: H::Term) -> Result<(), Closed> {
        let mut state = self.shards[Self::shard_of(hash)].lock_readable(access)?;
        let is_deleted = state.waiting.delete(hash, key);
        // A counter first moves the last additions to their entry, whatever the key.
        self.count_bytes(&mut state);
        if is_deleted && state.is_counted {
            self.threshold.remove();
            if state.is_bounded {
                self.bound.release(1);
            }
        }
        if let Some(FoundInFlight { flush, position, .. }) = state.find_in_flight(hash, key) {
            if flush.remove(position) {
                flush.note_one(position, Fate::Done);
            }
        }
        Self::unlock(state);
        Ok(())
    }
}
