//! The operations on the partitions of a map.

use std::sync::Arc;

use partitioned_buffer_engine::generation::Record;
use partitioned_buffer_engine::partition::TABLE_SHARDS;
use partitioned_buffer_engine::{Access, Closed, Generation, Heap, MapPartition, Stored, Version};

use crate::common::{hash, TestHeap, TestTerm};

/// An entry that a reader has read.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub key: i64,
    pub value: i64,
    pub version: i64,
    pub updates: u64,
    /// The partition's copies of key and value.
    pub copies: [TestTerm; 2],
}

pub type Buffer = super::Buffer<Generation<TestHeap>, TABLE_SHARDS, Delivery>;

pub type Lease = super::Lease<Generation<TestHeap>, Delivery>;

/// A buffer of so many partitions, with outcomes or without.
pub fn start(running: u32, has_outcomes: bool) -> Arc<Buffer> {
    let delivery = |Record { key, value, version, updates }: Record<TestTerm>| {
        let Version::Int(version) = version else { panic!("a small version") };
        Delivery {
            key: key.term.content().1,
            value: value.term.content().1,
            version,
            updates,
            copies: [key.term, value.term],
        }
    };
    Buffer::start(running, has_outcomes, delivery, |key| key)
}

impl Buffer {
    /// Does `operation` with a key and a value in the key's partition.
    fn operate_on<R>(
        &self,
        (key, value): (i64, i64),
        operation: impl Fn(&MapPartition<TestHeap>, Access, TestTerm, TestTerm) -> Result<R, Closed>,
    ) -> Result<R, Closed> {
        let mut caller = TestHeap::new();
        let (key_term, value) = (caller.boxed(key), caller.boxed(value));
        self.operate(key, |partition, among| operation(partition, among, key_term, value))
    }

    pub fn put(&self, key: i64, value: i64) -> Result<(), Closed> {
        self.put_as(|access| access, key, value).map(|_stored| ())
    }

    /// The same as another caller.
    pub fn put_as(&self, caller: fn(Access) -> Access, key: i64, value: i64) -> Result<Stored, Closed> {
        self.operate_on((key, value), |partition, among, key, value| {
            partition.put(caller(among), hash(&self.hasher, key), &key.parcel(), &value.parcel())
        })
    }

    pub fn put_new(&self, key: i64, value: i64) -> Result<Stored, Closed> {
        self.operate_on((key, value), |partition, among, key, value| {
            partition.put_new(among, hash(&self.hasher, key), &key.parcel(), &value.parcel())
        })
    }

    /// Puts a value that is its own version.
    pub fn put_newer(&self, key: i64, version: i64) -> Result<Stored, Closed> {
        self.put_newer_as(|access| access, key, version, version)
    }

    /// Puts a value with a version, as a plain caller or another one.
    pub fn put_newer_as(
        &self,
        caller: fn(Access) -> Access,
        key: i64,
        value: i64,
        version: i64,
    ) -> Result<Stored, Closed> {
        self.operate_on((key, value), |partition, among, key, value| {
            let (key_parcel, value) = (key.parcel(), value.parcel());
            let hash = hash(&self.hasher, key);
            partition.put_newer(caller(among), hash, &key_parcel, &value, Version::Int(version))
        })
    }

    pub fn get(&self, key: i64) -> Option<i64> {
        let get = |partition: &MapPartition<TestHeap>, among, key, _value| {
            partition.get(among, hash(&self.hasher, key), key, |value| value.term().content().1)
        };
        self.operate_on((key, 0), get).expect("the buffer runs")
    }

    pub fn delete(&self, key: i64) {
        let delete = |partition: &MapPartition<TestHeap>, among, key, _value| {
            partition.delete(among, hash(&self.hasher, key), key)
        };
        self.operate_on((key, 0), delete).expect("the buffer runs")
    }

    /// The delivered values of a key, in order.
    pub fn values(&self, key: i64) -> Vec<i64> {
        self.delivered().iter().filter(|delivery| delivery.key == key).map(|delivery| delivery.value).collect()
    }
}
