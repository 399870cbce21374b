//! The destination of the elements of a list: each kind of buffer has its own writes.

use partitioned_buffer_engine::partition::{Write, TABLE_SHARDS};
use partitioned_buffer_engine::{Closed, CounterPartition, Hash, Heap, MapPartition, Parcel, Version, Written};
use rustler::{Env, Term};

use super::shape::Shape;
use crate::buffer::{CounterPartitions, MapPartitions, QueuePartitions};
use crate::route::Route;
use crate::run::{News, NotRunning, Shared};
use crate::vm::argument::Argument;
use crate::vm::caller::{amount, elements, version};
use crate::vm::environment::Environment;
use crate::vm::large::{parcel, parcel_with};
use crate::vm::term::RawTerm;

/// The destination of the elements of a list.
pub(crate) trait Target {
    /// An element of the expected shape.
    type Element: Copy;

    /// A prepared write of an element.
    type Write;

    /// The shape of the list's elements.
    const SHAPE: Shape;

    /// How many shards, each with a lock, a partition has.
    const SHARDS: usize;

    /// The state that the partitions of the buffer share.
    fn shared(&self) -> &Shared;

    /// The route to the partition of an element.
    fn route(&self) -> Route;

    /// Reads an element; `None` if it has another shape.
    fn decode(element: Term<'_>) -> Option<Self::Element>;

    /// The term of an element to be hashed as a whole, if any.
    fn hashed(&self, element: Self::Element) -> Option<Argument>;

    /// Prepares a write: hashes the key, copies large terms, and lets the CPU load the terms that
    /// will be copied.
    fn prepare(&self, env: Env<'_>, element: Self::Element) -> Self::Write;

    /// Bytes of the large copies of a write.
    fn large_bytes(write: &Self::Write) -> usize;

    /// The term that chooses the partition of a write, and the shard in there.
    fn place(write: &Self::Write) -> (RawTerm, usize);

    /// Does the writes of one shard of a partition, in order, with reserved room or without.
    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Written, Closed>
    where
        Self::Write: 'w;

    /// The index of the lock that a write needs, among those of all partitions.
    #[inline]
    fn lock(&self, write: &Self::Write, partition_count: u32) -> Result<usize, NotRunning> {
        let (term, shard) = Self::place(write);
        Ok(self.route().partition(term, partition_count)? as usize * Self::SHARDS + shard)
    }

    /// Sends the partition of a lock the news that enough entries wait.
    #[cold]
    fn tell_enough(&self, env: Env<'_>, lock: usize) {
        self.shared().tell(env, News::Enough((lock / Self::SHARDS) as u32));
    }
}

/// Bytes of a large copy.
#[inline]
fn bytes_of(parcel: &Parcel<Environment>) -> usize {
    parcel.heap().map_or(0, Environment::large_bytes)
}

/// A map, to which entries are written, with versions if it is `VERSIONED`.
pub(crate) struct ToMap<'b, const VERSIONED: bool> {
    /// The map.
    pub(crate) map: &'b MapPartitions,
    /// The route to the partition of an entry.
    pub(crate) route: Route,
}

impl<const VERSIONED: bool> Target for ToMap<'_, VERSIONED> {
    /// Key, value and version.
    type Element = (Argument, Argument, Version<RawTerm>);

    type Write = (Hash, Write<Environment>);

    const SHAPE: Shape = if VERSIONED { Shape::Versioned } else { Shape::Pair };

    const SHARDS: usize = TABLE_SHARDS;

    fn shared(&self) -> &Shared {
        &self.map.shared
    }

    #[inline]
    fn route(&self) -> Route {
        self.route
    }

    #[inline(always)]
    fn decode(element: Term<'_>) -> Option<Self::Element> {
        if VERSIONED {
            let [key, value, number] = elements(element)?;
            Some((key.into(), value.into(), version(number)?))
        } else {
            let [key, value] = elements(element)?;
            Some((key.into(), value.into(), Version::Int(0)))
        }
    }

    #[inline(always)]
    fn hashed(&self, (key, _value, _version): Self::Element) -> Option<Argument> {
        Some(key)
    }

    #[inline(always)]
    fn prepare(&self, env: Env<'_>, (key, value, version): Self::Element) -> Self::Write {
        value.term.prefetch();
        let hash = self.map.hash(key.term);
        let key = parcel(env, key);
        if VERSIONED {
            let (value, version) = parcel_with(env, value, version);
            (hash, Write::PutNewer(key, value, version))
        } else {
            let value = parcel(env, value);
            (hash, Write::Put(key, value))
        }
    }

    #[inline]
    fn large_bytes((_hash, write): &Self::Write) -> usize {
        let (Write::Put(key, value) | Write::PutNewer(key, value, _)) = write;
        bytes_of(key) + bytes_of(value)
    }

    #[inline]
    fn place((hash, write): &Self::Write) -> (RawTerm, usize) {
        let (Write::Put(key, _) | Write::PutNewer(key, _, _)) = write;
        (key.term(), MapPartition::<Environment>::shard_of(*hash))
    }

    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Written, Closed> {
        self.map.partition(partition).write_all(self.route.access_to(partition_count), shard, reserved, writes)
    }
}

/// A counter, to which amounts are added.
pub(crate) struct ToCounter<'b> {
    /// The counter.
    pub(crate) counter: &'b CounterPartitions,
    /// The route to the partition of a key.
    pub(crate) route: Route,
}

impl Target for ToCounter<'_> {
    type Element = (Argument, i64);

    type Write = (Hash, (Parcel<Environment>, i64));

    const SHAPE: Shape = Shape::Amount;

    const SHARDS: usize = TABLE_SHARDS;

    fn shared(&self) -> &Shared {
        &self.counter.shared
    }

    #[inline]
    fn route(&self) -> Route {
        self.route
    }

    #[inline(always)]
    fn decode(element: Term<'_>) -> Option<Self::Element> {
        let [key, number] = elements(element)?;
        Some((key.into(), amount(number)?))
    }

    #[inline(always)]
    fn hashed(&self, (key, _amount): Self::Element) -> Option<Argument> {
        Some(key)
    }

    #[inline(always)]
    fn prepare(&self, env: Env<'_>, (key, amount): Self::Element) -> Self::Write {
        let hash = self.counter.hash(key.term);
        (hash, (parcel(env, key), amount))
    }

    #[inline]
    fn large_bytes((_hash, (key, _amount)): &Self::Write) -> usize {
        bytes_of(key)
    }

    #[inline]
    fn place((hash, (key, _amount)): &Self::Write) -> (RawTerm, usize) {
        (key.term(), CounterPartition::<Environment>::shard_of(*hash))
    }

    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Written, Closed> {
        self.counter.partition(partition).add_all(self.route.access_to(partition_count), shard, reserved, writes)
    }
}

/// A queue, to which every element is pushed.
pub(crate) struct ToQueue<'b> {
    /// The queue.
    pub(crate) queue: &'b QueuePartitions,
    /// The route to the partition of an item.
    pub(crate) route: Route,
    /// Whether the item itself chooses among several partitions.
    pub(crate) is_hashed: bool,
}

impl Target for ToQueue<'_> {
    type Element = Argument;

    type Write = Parcel<Environment>;

    const SHAPE: Shape = Shape::Item;

    const SHARDS: usize = 1;

    fn shared(&self) -> &Shared {
        &self.queue.shared
    }

    #[inline]
    fn route(&self) -> Route {
        self.route
    }

    #[inline(always)]
    fn decode(element: Term<'_>) -> Option<Argument> {
        Some(element.into())
    }

    #[inline(always)]
    fn hashed(&self, item: Argument) -> Option<Argument> {
        self.is_hashed.then_some(item)
    }

    #[inline(always)]
    fn prepare(&self, env: Env<'_>, item: Argument) -> Self::Write {
        item.term.prefetch();
        parcel(env, item)
    }

    #[inline]
    fn large_bytes(item: &Self::Write) -> usize {
        bytes_of(item)
    }

    #[inline]
    fn place(item: &Self::Write) -> (RawTerm, usize) {
        (item.term(), 0)
    }

    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        _shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Written, Closed> {
        self.queue.partition(partition).push_all(self.route.access_to(partition_count), reserved, writes)
    }
}
