//! The room of a partition: the bound of its buffer, and its threshold.

use super::access::Access;
use super::partition::{Partition, Written};
use super::shard::{Shard, ShardState};
use crate::store::Store;

impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// Finds room for a new entry, or memory for another value of an old one; `false` if the buffer
    /// is full. The partition has a bound.
    #[inline(never)]
    pub(super) fn find_room(&self, access: Access, is_new: bool) -> bool {
        access.has_room() || if is_new { self.bound.reserve(1) } else { self.bound.has_memory() }
    }

    /// Releases the room that the caller of a write reserved, unless an entry of a bounded partition
    /// has it.
    #[cold]
    pub(super) fn use_room(&self, state: &ShardState<S>, is_new: bool) {
        if !(state.is_bounded && is_new) {
            self.bound.release(1);
        }
    }

    /// Counts a write; `true` if enough entries wait.
    #[inline(never)]
    pub(super) fn count_write(&self, state: &mut ShardState<S>, is_new: bool) -> bool {
        self.count_bytes(state);
        is_new && self.threshold.add(1)
    }

    /// Counts the writes of a list, and its new entries, which do not take the shard's room.
    pub(super) fn count_all(&self, state: &mut ShardState<S>, done: usize, added: usize, reserved: bool) -> Written {
        if state.is_bounded && !reserved {
            // The bound is younger than the list.
            self.bound.add(added);
        }
        self.count_bytes(state);
        let used = if state.is_bounded && reserved { added } else { 0 };
        Written { done, used, is_enough: state.is_counted && self.threshold.add(added) }
    }

    /// Lets the bound count the present bytes of a shard.
    #[inline]
    pub(super) fn count_bytes(&self, state: &mut ShardState<S>) {
        if state.counts_bytes {
            let old = std::mem::replace(&mut state.bytes, state.waiting.bytes());
            self.bound.change_bytes(old, state.bytes);
        }
    }

    /// Lets the bound count the entries of the partition, or not, and their bytes as well.
    pub fn set_bounded(&self, is_bounded: bool) {
        // No entry moves from the flush to a shard, so entries only leave, or come to a shard.
        let _giving_back = self.giving_back.lock();
        let in_flight = self.in_flight.lock();
        if let Some(flush) = &*in_flight {
            flush.set_bound(is_bounded.then_some(&self.bound));
        }
        for shard in &self.shards {
            let mut state = shard.lock();
            if state.is_bounded != is_bounded {
                let waiting = state.waiting.len();
                if is_bounded {
                    self.bound.add(waiting);
                } else {
                    self.bound.release(waiting);
                }
                state.is_bounded = is_bounded;
                state.is_counted = is_bounded || self.threshold.is_set();
            }
            let counts_bytes = is_bounded && self.bound.counts_bytes();
            if counts_bytes != state.counts_bytes {
                state.counts_bytes = true;
                self.count_bytes(&mut state);
                if !counts_bytes {
                    self.bound.change_bytes(std::mem::take(&mut state.bytes), 0);
                }
                state.counts_bytes = counts_bytes;
            }
        }
    }

    /// Changes the threshold; `true` if enough entries wait already.
    pub fn set_threshold(&self, enough: Option<usize>) -> bool {
        let mut states = self.shards.each_ref().map(Shard::lock);
        let waiting = states.iter().map(|state| state.waiting.len()).sum();
        let is_enough = self.threshold.set(enough, waiting);
        for state in &mut states {
            state.is_counted = state.is_bounded || enough.is_some();
        }
        is_enough
    }
}
