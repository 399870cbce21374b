//! The room of a partition: the bound of its buffer, and its threshold.

use super::access::Access;
use super::partition::{Partition, Written};
use super::shard::{Shard, ShardState};
use crate::store::Store;

impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// Takes room for a shard without any; `false` if the buffer is full.
    #[cold]
    pub(super) fn find_room(&self, state: &mut ShardState<S>, access: Access) -> bool {
        state.room = self.bound.take(access.is_waiter());
        state.room > 0
    }

    /// Counts a new entry; `true` if enough wait.
    #[inline(never)]
    pub(super) fn count_new(&self, state: &mut ShardState<S>) -> bool {
        if state.is_bounded {
            state.room -= 1;
        }
        self.threshold.add(1)
    }

    /// Counts new entries of a list, which do not take the shard's room.
    pub(super) fn count_all(&self, state: &ShardState<S>, added: usize, reserved: bool) -> Written {
        if state.is_bounded && !reserved {
            // The bound is younger than the list.
            self.bound.add(added);
        }
        let used = if state.is_bounded && reserved { added } else { 0 };
        Written { used, is_enough: state.is_counted && self.threshold.add(added) }
    }

    /// Lets the bound count the entries of the partition, or not.
    pub fn set_bounded(&self, is_bounded: bool) {
        // No entry moves from the flush to a shard, so entries only leave, or come to a shard.
        let _giving_back = self.giving_back.lock();
        let in_flight = self.in_flight.lock();
        if let Some(flush) = &*in_flight {
            flush.set_bound(is_bounded.then_some(&self.bound));
        }
        for shard in &self.shards {
            let mut state = shard.lock();
            if state.is_bounded == is_bounded {
                continue;
            }
            let waiting = state.waiting.len();
            if is_bounded {
                self.bound.add(waiting);
                state.room = 0;
            } else {
                self.bound.release(waiting + state.room);
                state.room = 1;
            }
            state.is_bounded = is_bounded;
            state.is_counted = is_bounded || self.threshold.is_set();
        }
    }

    /// Takes unused room from the shards.
    pub fn take_room(&self) {
        for shard in &self.shards {
            let mut state = shard.lock();
            if state.is_bounded {
                // With the lock: a writer that finds it gone from the shard must find it in the
                // bound.
                self.bound.release(std::mem::take(&mut state.room));
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
