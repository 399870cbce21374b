//! The operations on a partition of a counter.

use super::access::{Access, Closed};
use super::keyed::TABLE_SHARDS;
use super::partition::{Partition, Stored, Written};
use crate::memory::parcel::Parcel;
use crate::store::counter::Tally;
use crate::store::hash::Hash;
use crate::term::Heap;

/// A partition of a counter.
pub type CounterPartition<H> = Partition<Tally<H>, TABLE_SHARDS>;

impl<H: Heap> CounterPartition<H> {
    /// Adds `amount` to the sum of `key`.
    #[inline(always)]
    pub fn add(&self, access: Access, hash: Hash, key: &Parcel<H>, amount: i64) -> Result<Stored, Closed> {
        let mut state = self.lock_open(access, hash)?;
        let is_bounded = state.is_bounded;
        let is_new = state.waiting.add(hash, key, amount, || !is_bounded || self.find_room(access, true));
        Ok(self.written(state, access, is_new))
    }

    /// Adds `amount` to the sum of `key`, and `count` to its count.
    pub fn add_counted(
        &self,
        access: Access,
        hash: Hash,
        key: &Parcel<H>,
        amount: i64,
        count: u64,
    ) -> Result<Stored, Closed> {
        let mut state = self.lock_open(access, hash)?;
        let is_bounded = state.is_bounded;
        let has_room = || !is_bounded || self.find_room(access, true);
        let is_new = state.waiting.add_counted(hash, key, (amount, count), has_room);
        Ok(self.written(state, access, is_new))
    }

    /// Does `additions`, of amounts to keys that all belong to one shard, under one lock. The
    /// caller keeps the list short, and has room for it if it is `reserved`.
    pub fn add_all<'a>(
        &self,
        access: Access,
        shard: usize,
        reserved: bool,
        additions: impl Iterator<Item = &'a (Hash, (Parcel<H>, i64))> + Clone,
    ) -> Result<Written, Closed> {
        self.write_each(access, shard, reserved, additions, |state, hash, (key, amount)| {
            state.waiting.add(hash, key, *amount, || true) == Some(true)
        })
    }

    /// The sum of `key`, waiting and in flight; `None` without either.
    pub fn sum(&self, access: Access, hash: Hash, key: H::Term) -> Result<Option<i128>, Closed> {
        let state = self.shards[Self::shard_of(hash)].lock_readable(access)?;
        let waiting = state.waiting.find(hash, key).and_then(|id| state.waiting.sum(id));
        let in_flight = state.find_in_flight(hash, key).and_then(|found| found.held.store().sum(found.held.id()));
        Ok(in_flight.into_iter().chain(waiting).reduce(|sum, other| sum + other))
    }
}
