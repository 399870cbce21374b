//! Lists of a counter.

use partitioned_buffer_engine::partition::TABLE_SHARDS;
use partitioned_buffer_engine::{Closed, CounterPartition, Hash, Heap, Parcel, Stored, Written};
use rustler::{Env, Term};

use super::shape::addition;
use super::target::Target;
use crate::buffer::CounterPartitions;
use crate::route::Route;
use crate::run::{NotRunning, Shared};
use crate::vm::argument::Argument;
use crate::vm::environment::Environment;
use crate::vm::large::parcel;
use crate::vm::term::RawTerm;

/// A counter, to which amounts are added.
pub(crate) struct ToCounter<'b> {
    /// The counter.
    pub(crate) counter: &'b CounterPartitions,
    /// The route to the partition of a key.
    pub(crate) route: Route,
}

impl Target for ToCounter<'_> {
    type Element = (RawTerm, i64);

    type Write = (Hash, (Parcel<Environment>, i64));

    const SHARDS: usize = TABLE_SHARDS;

    fn shared(&self) -> &Shared {
        &self.counter.shared
    }

    fn route(&self) -> Route {
        self.route
    }

    fn decode(&self, element: Term<'_>) -> Option<Self::Element> {
        addition(element)
    }

    #[inline]
    fn prepare(&self, env: Env<'_>, (key, amount): Self::Element) -> Self::Write {
        (self.counter.hash(key), (parcel(env, Argument::new(env, key)), amount))
    }

    fn large_bytes((_hash, (key, _amount)): &Self::Write) -> usize {
        key.heap().map_or(0, Environment::large_bytes)
    }

    #[inline]
    fn place((hash, (key, _amount)): &Self::Write) -> (RawTerm, usize) {
        (key.term(), CounterPartition::<Environment>::shard_of(*hash))
    }

    fn write(&self, (hash, (key, amount)): &Self::Write) -> Result<Stored, NotRunning> {
        self.counter
            .with_partition(self.route, key.term(), |partition, access| partition.add(access, *hash, key, *amount))
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
