//! The partitions of a map, and models of them.

use std::collections::HashMap;

use partitioned_buffer_engine::generation::Record;
use partitioned_buffer_engine::partition::{AbsorbedValue, Write, TABLE_SHARDS};
use partitioned_buffer_engine::{Generation, Hasher, Heap, MapPartition, Stored};

use super::keys::{many, Key, Keys};
use super::{Buffer, Model, PARTITIONS};
use crate::common::{content, to_version, version_number, TestHeap, TestTerm};

/// Versions around the limits beyond which they are boxed, as integers beyond 64 bits are in
/// Erlang.
const VERSIONS: [i64; 16] = [0, 1, 2, 3, 5, 8, -1, -2, -7, 40, 41, 60, 1_000, -40, -41, -900];

/// What is stored for a key.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Value {
    value: i64,
    version: i64,
    updates: u64,
}

/// The entries that wait, and how often each has failed.
type Waiting = HashMap<Key, (Value, u32)>;

/// See the module's documentation.
struct Map {
    buffer: Buffer<Generation<TestHeap>, TABLE_SHARDS, Waiting>,
    keys: Keys,
}

/// Does the operations of `bytes` to a map and its model, and panics if they differ. Returns the
/// number of operations.
pub fn run(bytes: &[u8]) -> usize {
    let (&[size, seed], bytes) = bytes.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let hasher = Hasher::seeded(u64::from(seed));
    let running = 1 + usize::from(size) / 14 % PARTITIONS;
    super::run((seed % 2 == 1).then_some(seed.into()), || {
        let mut map =
            Map { buffer: Buffer::start(&hasher, running, seed % 4 < 2), keys: Keys::new(hasher, 1 << (size % 14)) };
        bytes.chunks_exact(3).for_each(|step| map.step(step[0], step[1], step[2]));
        map.buffer.finish()
    })
}

impl Map {
    fn step(&mut self, operation: u8, a: u8, b: u8) {
        let key = self.keys.key(i64::from(a) | i64::from(b) << 8);
        match operation % 32 {
            0..=4 => self.put(key, false),
            5 => self.put_new(key, b % 8 == 0),
            6..=7 => self.put(key, true),
            8..=12 => self.put_newer(key, VERSIONS[(usize::from(operation / 32) + usize::from(b)) % VERSIONS.len()]),
            13..=14 => self.delete(key),
            15..=16 => self.get(key),
            // Many writes, which a short sequence of bytes would not reach otherwise.
            17 => self.keys.neighbours(a, b).for_each(|key| self.put(key, operation / 32 == 0)),
            18 => self.keys.neighbours(a, b).for_each(|key| self.put_newer(key, i64::from(operation))),
            19 => self.keys.neighbours(a, b).filter(|key| key.1 % 5 != 0).for_each(|key| self.delete(key)),
            20 => (0..many(a, b)).for_each(|_| self.put(key, false)),
            21 => self.write_all(&self.keys.neighbours(a, b).collect::<Vec<_>>()),
            22 if operation < 128 => self.absorb_all(&self.keys.neighbours(a, b).collect::<Vec<_>>(), b),
            _ => self.buffer.step(operation, a, b),
        }
    }

    fn partition_of(&self, key: Key) -> usize {
        super::partition_of(key, self.buffer.running)
    }

    fn put(&mut self, key: Key, is_large: bool) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let value = self.buffer.value(is_large);
        let (number, (hash, term), boxed) =
            (self.partition_of(key), self.keys.term(&mut caller, key), caller.term(value));
        let result = self.buffer.partitions[number].put(self.buffer.access(), hash, &term.parcel(), &boxed.parcel());
        assert_eq!(result, self.buffer.expected(number, Stored::Stored));
        if result.is_ok() {
            self.buffer.models[number].put(key, value);
        }
    }

    fn put_new(&mut self, key: Key, is_large: bool) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let value = self.buffer.value(is_large);
        let (number, (hash, term), boxed) =
            (self.partition_of(key), self.keys.term(&mut caller, key), caller.term(value));
        let result =
            self.buffer.partitions[number].put_new(self.buffer.access(), hash, &term.parcel(), &boxed.parcel());
        let is_open = self.buffer.expected(number, ());
        assert_eq!(result, is_open.map(|()| self.buffer.models[number].put_new(key, value)));
    }

    fn put_newer(&mut self, key: Key, version: i64) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let value = self.buffer.value(false);
        let (number, (hash, term), boxed) =
            (self.partition_of(key), self.keys.term(&mut caller, key), caller.term(value));
        let (parcel, of_term) = boxed.parcel_with(to_version(&mut caller, version));
        let key_parcel = term.parcel();
        let result =
            self.buffer.partitions[number].put_newer(self.buffer.access(), hash, &key_parcel, &parcel, of_term);
        let is_open = self.buffer.expected(number, ());
        assert_eq!(result, is_open.map(|()| self.buffer.models[number].put_newer(key, value, version)));
    }

    /// Writes the keys, every other one with a version, and takes each lock once.
    fn write_all(&mut self, keys: &[Key]) {
        let mut caller = TestHeap::new();
        let mut shards: HashMap<(usize, usize), Vec<_>> = HashMap::new();
        for &key in keys {
            self.buffer.operations += 1;
            let value = self.buffer.value(key.1 % 11 == 0);
            let (number, (hash, term), boxed) =
                (self.partition_of(key), self.keys.term(&mut caller, key), caller.term(value));
            let shard = shards.entry((number, MapPartition::<TestHeap>::shard_of(hash))).or_default();
            let is_open = self.buffer.expected(number, ()).is_ok();
            if key.1 % 2 == 0 {
                shard.push((hash, Write::Put(term.parcel(), boxed.parcel())));
                self.buffer.models[number].put_if(is_open, key, value);
            } else {
                let version = value % 100 - 50;
                let (parcel, of_term) = boxed.parcel_with(to_version(&mut caller, version));
                shard.push((hash, Write::PutNewer(term.parcel(), parcel, of_term)));
                if is_open {
                    self.buffer.models[number].put_newer(key, value, version);
                }
            }
        }
        for ((number, shard), writes) in shards {
            let result = self.buffer.partitions[number].write_all(self.buffer.access(), shard, false, writes.iter());
            assert_eq!(result.map(|_written| ()), self.buffer.expected(number, ()));
        }
    }

    /// Absorbs an entry for each key, and takes each lock once.
    fn absorb_all(&mut self, keys: &[Key], seed: u8) {
        let mut caller = TestHeap::new();
        let mut shards: HashMap<(usize, usize), Vec<_>> = HashMap::new();
        for &key in keys {
            self.buffer.operations += 1;
            let value = self.buffer.value(key.1 % 11 == 0);
            let (version, updates) = (value % 100 - 50, u64::from(seed) % 3);
            let (number, (hash, term), boxed) =
                (self.partition_of(key), self.keys.term(&mut caller, key), caller.term(value));
            let shard = shards.entry((number, MapPartition::<TestHeap>::shard_of(hash))).or_default();
            let (parcel, of_term) = boxed.parcel_with(to_version(&mut caller, version));
            shard.push((hash, AbsorbedValue { key: term.parcel(), value: parcel, version: of_term, updates }));
            if self.buffer.expected(number, ()).is_ok() {
                self.buffer.models[number].absorb(key, Value { value, version, updates });
            }
        }
        for ((number, shard), entries) in shards {
            let result = self.buffer.partitions[number].absorb_all(self.buffer.access(), shard, false, entries.iter());
            assert_eq!(result.map(|_written| ()), self.buffer.expected(number, ()));
        }
    }

    fn delete(&mut self, key: Key) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let (number, (hash, term)) = (self.partition_of(key), self.keys.term(&mut caller, key));
        let result = self.buffer.partitions[number].delete(self.buffer.access(), hash, term);
        assert_eq!(result, self.buffer.expected(number, ()));
        if result.is_ok() {
            self.buffer.models[number].delete(key);
        }
    }

    fn get(&mut self, key: Key) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let (number, (hash, term)) = (self.partition_of(key), self.keys.term(&mut caller, key));
        let found =
            self.buffer.partitions[number].get(self.buffer.access(), hash, term, |value| value.term().content().1);
        let seen = self.buffer.models[number].seen(key).map(|seen| seen.value);
        assert_eq!(found, self.buffer.expected(number, seen));
    }
}

impl Model<Generation<TestHeap>, Waiting> {
    /// What is there for a key: what waits hides what is in flight.
    fn seen(&mut self, key: Key) -> Option<Value> {
        let waiting = self.waiting.get(&key).map(|(value, _attempts)| *value);
        waiting.or_else(|| self.find_in_flight(key).map(|entry| entry.entry.1))
    }

    fn put(&mut self, key: Key, value: i64) {
        self.waiting.insert(key, (Value { value, version: 0, updates: 0 }, 0));
    }

    fn put_if(&mut self, is_open: bool, key: Key, value: i64) {
        if is_open {
            self.put(key, value);
        }
    }

    fn put_new(&mut self, key: Key, value: i64) -> Stored {
        if self.seen(key).is_some() {
            return Stored::Refused;
        }
        self.put(key, value);
        Stored::Stored
    }

    fn put_newer(&mut self, key: Key, value: i64, version: i64) -> Stored {
        if self.seen(key).is_some_and(|seen| version <= seen.version) {
            return Stored::Refused;
        }
        let updates = self.waiting.get(&key).map_or(0, |(replaced, _attempts)| replaced.updates + 1);
        self.waiting.insert(key, (Value { value, version, updates }, 0));
        Stored::Stored
    }

    fn absorb(&mut self, key: Key, absorbed: Value) {
        if self.seen(key).is_some_and(|seen| absorbed.version <= seen.version) {
            return;
        }
        let updates = self.waiting.get(&key).map_or(0, |(replaced, _attempts)| replaced.updates + 1);
        self.waiting.insert(key, (Value { updates: updates + absorbed.updates, ..absorbed }, 0));
    }

    fn delete(&mut self, key: Key) {
        self.waiting.remove(&key);
        if let Some(entry) = self.find_in_flight(key) {
            entry.is_deleted = true;
        }
    }
}

impl super::Waiting<Generation<TestHeap>> for Waiting {
    type Entry = (Key, Value);

    fn entry(record: Record<TestTerm>) -> (Key, Value) {
        let Record { key, value, version, updates } = record;
        (content(key), Value { value: content(value).1, version: version_number(version), updates })
    }

    fn key((key, _value): (Key, Value)) -> Key {
        key
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn supersedes(&self, (key, _value): (Key, Value)) -> bool {
        self.contains_key(&key)
    }

    fn overrides(&self, (key, value): (Key, Value)) -> bool {
        self.get(&key).is_some_and(|(waiting, _attempts)| waiting.version == 0 || waiting.version >= value.version)
    }

    fn take_back(&mut self, (key, value): (Key, Value), attempts: u32) {
        self.insert(key, (value, attempts));
    }

    fn entries(&self) -> Vec<((Key, Value), u32)> {
        self.iter().map(|(&key, &(value, attempts))| ((key, value), attempts)).collect()
    }

    fn attempts(&self, entries: &[(Key, Value)]) -> Vec<u32> {
        assert_eq!(entries.len(), self.len(), "each key comes once");
        let attempts = |(key, value)| {
            let (expected, attempts) = self.get(key).expect("it waits");
            assert_eq!(value, expected);
            *attempts
        };
        entries.iter().map(|(key, value)| attempts((key, value))).collect()
    }
}
