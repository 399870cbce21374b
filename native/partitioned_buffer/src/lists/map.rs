//! Lists of a map.

use partitioned_buffer_engine::partition::{Write, TABLE_SHARDS};
use partitioned_buffer_engine::{Closed, Hash, Heap, MapPartition, Parcel, Stored, Written};
use rustler::{Env, Term};

use super::shape::{Entry, Shape};
use super::target::Target;
use crate::buffer::MapPartitions;
use crate::route::Route;
use crate::run::{NotRunning, Shared};
use crate::vm::argument::Argument;
use crate::vm::environment::Environment;
use crate::vm::large::{parcel, parcel_with};
use crate::vm::term::RawTerm;

/// A map, to which entries are written.
pub(crate) struct ToMap<'b> {
    /// The map.
    pub(crate) map: &'b MapPartitions,
    /// The route to the partition of an entry.
    pub(crate) route: Route,
    /// The shape of the list's elements.
    pub(crate) shape: Shape,
}

impl Target for ToMap<'_> {
    type Element = Entry;

    type Write = (Hash, Write<Environment>);

    const SHARDS: usize = TABLE_SHARDS;

    fn shared(&self) -> &Shared {
        &self.map.shared
    }

    fn route(&self) -> Route {
        self.route
    }

    fn decode(&self, element: Term<'_>) -> Option<Entry> {
        Entry::decode(self.shape, element)
    }

    #[inline]
    fn prepare(&self, env: Env<'_>, entry: Entry) -> Self::Write {
        let (Entry::Put(key, value) | Entry::PutNewer(key, value, _)) = entry;
        value.prefetch();
        let hash = self.map.hash(key);
        let [key, value] = [key, value].map(|term| Argument::new(env, term));
        match entry {
            Entry::Put(..) => (hash, Write::Put(parcel(env, key), parcel(env, value))),
            Entry::PutNewer(_key, _value, version) => {
                let (value, version) = parcel_with(env, value, version);
                (hash, Write::PutNewer(parcel(env, key), value, version))
            }
        }
    }

    #[inline]
    fn large_bytes((_hash, write): &Self::Write) -> usize {
        let (Write::Put(key, value) | Write::PutNewer(key, value, _)) = write;
        [key, value].into_iter().filter_map(Parcel::heap).map(Environment::large_bytes).sum()
    }

    #[inline]
    fn place((hash, write): &Self::Write) -> (RawTerm, usize) {
        let (Write::Put(key, _) | Write::PutNewer(key, _, _)) = write;
        (key.term(), MapPartition::<Environment>::shard_of(*hash))
    }

    fn write(&self, (hash, write): &Self::Write) -> Result<Stored, NotRunning> {
        let (Write::Put(key, _) | Write::PutNewer(key, _, _)) = write;
        self.map.with_partition(self.route, key.term(), |partition, access| match write {
            Write::Put(key, value) => partition.put(access, *hash, key, value),
            Write::PutNewer(key, value, version) => partition.put_newer(access, *hash, key, value, *version),
        })
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
