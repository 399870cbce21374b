//! The kinds of buffers that absorb entries: maps and counters.

use partitioned_buffer_engine::partition::{AbsorbedSum, AbsorbedValue, Empty, TABLE_SHARDS};
use partitioned_buffer_engine::tally::LIMIT;
use partitioned_buffer_engine::{Access, Closed, CounterPartition, Hash, MapPartition, Version, Written};
use rustler::{Env, Term};

use crate::buffer::{CounterPartitions, MapPartitions};
use crate::run::Shared;
use crate::vm::argument::Argument;
use crate::vm::caller::{amount, elements, integer, version};
use crate::vm::environment::Environment;
use crate::vm::large::{parcel, parcel_with, weighed};
use crate::vm::small::{work_to_copy, work_to_hash, WORK_OF_PART};
use crate::vm::term::RawTerm;

/// The work of all entries of a call on a normal scheduler, in the unit of [`work_to_copy`]: four
/// thousand small binaries take it.
const MOST_WORK: usize = 4096 * WORK_OF_PART;

/// The work that the entries of a call may take.
pub(crate) struct Work(Option<usize>);

impl Work {
    /// As much as a call on a normal scheduler may do.
    pub(super) fn limited() -> Self {
        Work(Some(MOST_WORK))
    }

    /// Any work.
    pub(super) fn unlimited() -> Self {
        Work(None)
    }

    /// Does a part of the work, which is `None` for a term that may be large. Returns whether the
    /// term is small, or `None` if the work is too much.
    #[inline]
    fn spend(&mut self, work: Option<usize>) -> Option<bool> {
        if let Some(left) = &mut self.0 {
            *left = left.checked_sub(work?)?;
        }
        Some(work.is_some())
    }
}

/// A kind of buffer that absorbs entries.
pub(crate) trait Kind {
    /// An element of the expected shape.
    type Element: Copy;

    /// A prepared write of an element.
    type Write;

    /// How many shards, each with a lock, a partition has.
    const SHARDS: usize = TABLE_SHARDS;

    /// The state that the partitions of the buffer share.
    fn shared(&self) -> &Shared;

    /// Reads an element; `None` if it has another shape.
    fn decode(element: Term<'_>) -> Option<Self::Element>;

    /// Prepares a write: hashes the key, and copies large terms; `None` if that, or the write, is
    /// more work than the rest.
    fn prepare(&self, env: Env<'_>, element: Self::Element, work: &mut Work) -> Option<Self::Write>;

    /// The key of a write, and the shard in its partition.
    fn place(write: &Self::Write) -> (RawTerm, usize);

    /// Whether a shard of a partition that grants a write is empty.
    fn admits(&self, partition: u32, access: Access, shard: usize) -> Result<Empty, Closed>;

    /// Does writes to one shard of a partition, in order, with reserved room or without.
    fn write_all<'w>(
        &self,
        partition: u32,
        access: Access,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Written, Closed>
    where
        Self::Write: 'w;
}

/// The work for a key.
#[inline]
fn key_work(env: Env<'_>, key: Argument) -> Option<usize> {
    if key.is_immediate {
        Some(size_of::<usize>())
    } else {
        work_to_hash(env, key.term)
    }
}

impl Kind for CounterPartitions {
    /// Key, sum and count.
    type Element = (Argument, i128, u128);

    type Write = (Hash, AbsorbedSum<Environment>);

    fn shared(&self) -> &Shared {
        &self.shared
    }

    #[inline]
    fn decode(element: Term<'_>) -> Option<Self::Element> {
        let [key, sum, count] = elements(element)?;
        let count = u128::try_from(integer(count, LIMIT)?).ok()?;
        Some((key.into(), integer(sum, LIMIT)?, count))
    }

    #[inline]
    fn prepare(&self, env: Env<'_>, (key, sum, count): Self::Element, work: &mut Work) -> Option<Self::Write> {
        let is_small = work.spend(key_work(env, key))?;
        let is_wide = i64::try_from(sum).is_err() || i64::try_from(count).is_err();
        // Reading it took as long as some small terms.
        work.spend(Some(if is_wide { 4 * WORK_OF_PART } else { 0 }))?;
        let hash = self.hash(key.term);
        let key = if is_small { parcel(env, key) } else { weighed(env, key, Version::Int(0)).0 };
        Some((hash, AbsorbedSum { key, sum, count }))
    }

    #[inline]
    fn place((hash, entry): &Self::Write) -> (RawTerm, usize) {
        (entry.key.term(), CounterPartition::<Environment>::shard_of(*hash))
    }

    fn admits(&self, partition: u32, access: Access, shard: usize) -> Result<Empty, Closed> {
        self.partition(partition).admits(access, shard)
    }

    fn write_all<'w>(
        &self,
        partition: u32,
        access: Access,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Written, Closed> {
        self.partition(partition).absorb_all(access, shard, reserved, writes)
    }
}

impl Kind for MapPartitions {
    /// Key, value, version and updates.
    type Element = (Argument, Argument, Version<RawTerm>, u64);

    type Write = (Hash, AbsorbedValue<Environment>);

    fn shared(&self) -> &Shared {
        &self.shared
    }

    #[inline]
    fn decode(element: Term<'_>) -> Option<Self::Element> {
        let [key, value, number, updates] = elements(element)?;
        let updates = u64::try_from(amount(updates)?).ok()?;
        Some((key.into(), value.into(), version(number)?, updates))
    }

    #[inline]
    fn prepare(&self, env: Env<'_>, element: Self::Element, work: &mut Work) -> Option<Self::Write> {
        let (key, value, version, updates) = element;
        let is_small_key = work.spend(key_work(env, key))?;
        let is_small_value = work.spend(work_to_copy(env, value.term))?;
        // No function of the VM tells how long a version beyond 64 bits is.
        work.spend(matches!(version, Version::Int(_)).then_some(0))?;
        value.term.prefetch();
        let hash = self.hash(key.term);
        let key = if is_small_key { parcel(env, key) } else { weighed(env, key, Version::Int(0)).0 };
        let (value, version) =
            if is_small_value { parcel_with(env, value, version) } else { weighed(env, value, version) };
        Some((hash, AbsorbedValue { key, value, version, updates }))
    }

    #[inline]
    fn place((hash, entry): &Self::Write) -> (RawTerm, usize) {
        (entry.key.term(), MapPartition::<Environment>::shard_of(*hash))
    }

    fn admits(&self, partition: u32, access: Access, shard: usize) -> Result<Empty, Closed> {
        self.partition(partition).admits(access, shard)
    }

    fn write_all<'w>(
        &self,
        partition: u32,
        access: Access,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Written, Closed> {
        self.partition(partition).absorb_all(access, shard, reserved, writes)
    }
}
