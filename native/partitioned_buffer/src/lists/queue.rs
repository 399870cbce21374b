//! Lists of a queue.

use partitioned_buffer_engine::{Closed, Heap, Parcel, Stored, Written};
use rustler::{Env, Term};

use super::target::Target;
use crate::buffer::QueuePartitions;
use crate::route::Route;
use crate::run::{NotRunning, Shared};
use crate::vm::argument::Argument;
use crate::vm::environment::Environment;
use crate::vm::large::parcel;
use crate::vm::term::RawTerm;

/// A queue, to which every element is pushed.
pub(crate) struct ToQueue<'b> {
    /// The queue.
    pub(crate) queue: &'b QueuePartitions,
    /// The route to the partition of an item.
    pub(crate) route: Route,
}

impl Target for ToQueue<'_> {
    type Element = RawTerm;

    type Write = Parcel<Environment>;

    const SHARDS: usize = 1;

    fn shared(&self) -> &Shared {
        &self.queue.shared
    }

    fn route(&self) -> Route {
        self.route
    }

    fn decode(&self, element: Term<'_>) -> Option<RawTerm> {
        Some(element.into())
    }

    fn prepare(&self, env: Env<'_>, item: RawTerm) -> Self::Write {
        item.prefetch();
        parcel(env, Argument::new(env, item))
    }

    fn large_bytes(item: &Self::Write) -> usize {
        item.heap().map_or(0, Environment::large_bytes)
    }

    fn place(item: &Self::Write) -> (RawTerm, usize) {
        (item.term(), 0)
    }

    fn write(&self, item: &Self::Write) -> Result<Stored, NotRunning> {
        self.queue.with_partition(self.route, item.term(), |partition, access| partition.push(access, item))
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
