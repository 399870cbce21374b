//! Entries of the same buffer on another node: a partition adds them to its own, each with its history.
//!
//! The caller writes a list as a whole. So it looks first whether all shards
//! [admit](Partition::admits) it, and keeps the partition from being closed until it is written.

use super::access::{Access, Closed};
use super::keyed::TABLE_SHARDS;
use super::map::is_stale;
use super::partition::{Partition, Written};
use super::{CounterPartition, MapPartition};
use crate::memory::parcel::Parcel;
use crate::store::hash::Hash;
use crate::store::map::Put;
use crate::store::table::{Contents, Table};
use crate::store::Store;
use crate::term::{Heap, Version};

/// An entry of another counter: key, sum and count.
pub struct AbsorbedSum<H: Heap> {
    /// The key.
    pub key: Parcel<H>,
    /// The sum.
    pub sum: i128,
    /// The count.
    pub count: u128,
}

/// An entry of another map.
pub struct AbsorbedValue<H: Heap> {
    /// The key.
    pub key: Parcel<H>,
    /// The value.
    pub value: Parcel<H>,
    /// The version.
    pub version: Version<H::Term>,
    /// The number of replacements before.
    pub updates: u64,
}

/// Whether nothing was written to a shard since its last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Empty(pub bool);

impl<H: Heap, C: Contents<H>> Partition<Table<H, C>, TABLE_SHARDS> {
    /// Whether a shard that grants a write of this access is empty: its first entry takes more time
    /// than others, for its memory.
    pub fn admits(&self, access: Access, shard: usize) -> Result<Empty, Closed> {
        self.shards[shard].lock_open(access).map(|state| Empty(state.waiting.end() == 0))
    }
}

impl<H: Heap> CounterPartition<H> {
    /// Adds the sums and counts of `entries`, which all belong to one shard, under one lock. The
    /// caller keeps the list short, and has room for it if it is `reserved`.
    pub fn absorb_all<'w>(
        &self,
        access: Access,
        shard: usize,
        reserved: bool,
        entries: impl Iterator<Item = &'w (Hash, AbsorbedSum<H>)> + Clone,
    ) -> Result<Written, Closed> {
        self.write_each(access, shard, reserved, entries, |state, hash, AbsorbedSum { key, sum, count }| {
            state.waiting.add_parts(hash, key, (*sum, *count), || true) == Some(true)
        })
    }
}

impl<H: Heap> MapPartition<H> {
    /// Stores `entries`, which all belong to one shard, in their order under one lock: each if its
    /// key is new or its version is greater. The caller keeps the list short, and has room for it if
    /// it is `reserved`.
    pub fn absorb_all<'w>(
        &self,
        access: Access,
        shard: usize,
        reserved: bool,
        entries: impl Iterator<Item = &'w (Hash, AbsorbedValue<H>)> + Clone,
    ) -> Result<Written, Closed> {
        self.write_each(access, shard, reserved, entries, |state, hash, entry| {
            let AbsorbedValue { key, value, version, updates } = entry;
            let in_flight = state.in_flight.as_ref();
            let is_stale = || is_stale(in_flight, hash, key.term, *version);
            state.waiting.absorb(hash, key, value, (*version, *updates), is_stale) == Put::New
        })
    }
}
