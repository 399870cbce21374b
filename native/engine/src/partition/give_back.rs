//! Gives a failed batch back to its partition.

use std::sync::Arc;

use super::partition::Partition;
use crate::flush::{Flush, Frozen, GaveBack, GiveBack, Retry};
use crate::limits::totals::Ended;
use crate::store::{Store, TakenBack};

impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// The processor failed with entries of a reader's batch of this partition's flush. Does one
    /// step of giving the batch back. A failed entry is retried, unless it has `max_attempts`, or
    /// was replaced or deleted.
    pub fn give_back(&self, flush: &Arc<Flush<S>>, step: GiveBack<'_>) -> GaveBack {
        let _giving_back = self.giving_back.lock();
        flush.give_back(&step, |frozen, position, attempts| self.retry(flush, frozen, position, attempts))
    }

    /// Lets a failed entry wait again, unless it keeps its place in the flush.
    fn retry(&self, flush: &Flush<S>, frozen: &Frozen<S>, position: usize, attempts: u32) -> Retry {
        if flush.keeps_order() {
            return Retry::Stays;
        }
        let Some(held) = frozen.hold(position) else { return Retry::IsSuperseded };
        let mut state = self.shards[held.shard()].lock();
        // A delete takes the same lock, so an entry that it removed does not wait again.
        if flush.is_gone(position) {
            return Retry::IsSuperseded;
        }
        let taken_back = if frozen.is_seen() {
            state.waiting.take_back(held.store(), held.id(), attempts)
        } else if held.is_replaced_in(&state.waiting) {
            TakenBack::Superseded
        } else {
            state.waiting.take_in(held.store(), held.id(), attempts)
        };
        self.count_bytes(&mut state);
        if S::ADDS_UP {
            // Operations see it among the waiting entries from here on.
            flush.remove(position);
        }
        match taken_back {
            TakenBack::Added => Retry::Waits,
            TakenBack::Joined => Retry::Joins,
            TakenBack::Replaced => {
                self.outcomes.count(Ended { superseded: 1, ..Ended::default() });
                Retry::Joins
            }
            TakenBack::Superseded => {
                state.waiting.inherit_age(held.store());
                Retry::IsSuperseded
            }
        }
    }
}
