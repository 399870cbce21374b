//! The partitions of a counter, and models of them.

use std::collections::HashMap;

use partitioned_buffer_engine::partition::{AbsorbedSum, TABLE_SHARDS};
use partitioned_buffer_engine::tally::Counted;
use partitioned_buffer_engine::{CounterPartition, Hasher, Heap, Stored, Tally};

use super::keys::{many, Key, Keys};
use super::{Buffer, Model, PARTITIONS};
use crate::common::{content, TestHeap, TestTerm};

/// Amounts with which sums soon leave the range of 64 bits, and others.
const AMOUNTS: [i64; 12] = [1, 2, 0, -1, 7, 1_000, -50, i64::MAX, i64::MIN, i64::MAX - 1, i64::MIN + 1, 1 << 62];

/// Counts with which counts soon leave the range of 64 bits, and others.
const COUNTS: [u64; 6] = [0, 1, 1_000, (1 << 63) - 1, (1 << 63) - 2, 1 << 62];

/// What was added to a key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    sum: i128,
    count: u128,
}

/// The entries that wait, and how often each has failed.
type Waiting = HashMap<Key, (Sum, u32)>;

/// See the module's documentation.
struct Counter {
    buffer: Buffer<Tally<TestHeap>, TABLE_SHARDS, Waiting>,
    keys: Keys,
}

/// Does the operations of `bytes` to a counter and its model, and panics if they differ. Returns
/// the number of operations.
pub fn run(bytes: &[u8]) -> usize {
    let (&[size, seed], bytes) = bytes.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let hasher = Hasher::seeded(u64::from(seed));
    let running = 1 + usize::from(size) / 14 % PARTITIONS;
    super::run((seed % 2 == 1).then_some(seed.into()), || {
        let buffer = Buffer::start(&hasher, running, seed % 4 < 2);
        let mut counter = Counter { buffer, keys: Keys::new(hasher, 1 << (size % 14)) };
        bytes.chunks_exact(3).for_each(|step| counter.step(step[0], step[1], step[2]));
        counter.buffer.finish()
    })
}

impl Counter {
    fn step(&mut self, operation: u8, a: u8, b: u8) {
        let key = self.keys.key(i64::from(a) | i64::from(b) << 8);
        let amount = AMOUNTS[(usize::from(operation / 32) + usize::from(b)) % AMOUNTS.len()];
        match operation % 32 {
            0..=8 => self.add(key, amount),
            9 => self.add_counted(key, amount, COUNTS[usize::from(b) % COUNTS.len()]),
            10..=12 => self.delete(key),
            13..=16 => self.get(key),
            // Many additions, which a short sequence of bytes would not reach otherwise.
            17 => self.keys.neighbours(a, b).for_each(|key| self.add(key, amount)),
            18 => self.keys.neighbours(a, b).filter(|key| key.1 % 5 != 0).for_each(|key| self.delete(key)),
            19 => (0..many(a, b)).for_each(|_| self.add(key, amount)),
            20 => self.absorb_all(&self.keys.neighbours(a, b).collect::<Vec<_>>(), amount),
            21 => self.add_all(&self.keys.neighbours(a, b).collect::<Vec<_>>(), amount),
            _ => self.buffer.step(operation, a, b),
        }
    }

    fn partition_of(&self, key: Key) -> usize {
        super::partition_of(key, self.buffer.running)
    }

    fn add(&mut self, key: Key, amount: i64) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let (number, (hash, term)) = (self.partition_of(key), self.keys.term(&mut caller, key));
        let result = self.buffer.partitions[number].add(self.buffer.access(), hash, &term.parcel(), amount);
        assert_eq!(result, self.buffer.expected(number, Stored::Stored));
        if result.is_ok() {
            self.buffer.models[number].add(key, amount, 1);
        }
    }

    fn add_counted(&mut self, key: Key, amount: i64, count: u64) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let (number, (hash, term)) = (self.partition_of(key), self.keys.term(&mut caller, key));
        let access = self.buffer.access();
        let result = self.buffer.partitions[number].add_counted(access, hash, &term.parcel(), amount, count);
        assert_eq!(result, self.buffer.expected(number, Stored::Stored));
        if result.is_ok() {
            self.buffer.models[number].add(key, amount, count);
        }
    }

    /// Adds the same to each key, and takes each lock once.
    fn add_all(&mut self, keys: &[Key], amount: i64) {
        let mut caller = TestHeap::new();
        let mut shards: HashMap<(usize, usize), Vec<_>> = HashMap::new();
        for &key in keys {
            self.buffer.operations += 1;
            let (number, (hash, term)) = (self.partition_of(key), self.keys.term(&mut caller, key));
            let shard = CounterPartition::<TestHeap>::shard_of(hash);
            shards.entry((number, shard)).or_default().push((hash, (term.parcel(), amount)));
            if self.buffer.expected(number, ()).is_ok() {
                self.buffer.models[number].add(key, amount, 1);
            }
        }
        for ((number, shard), additions) in shards {
            let result = self.buffer.partitions[number].add_all(self.buffer.access(), shard, false, additions.iter());
            assert_eq!(result.map(|_written| ()), self.buffer.expected(number, ()));
        }
    }

    /// Absorbs the same sum for each key, often beyond 64 bits, and takes each lock once.
    fn absorb_all(&mut self, keys: &[Key], amount: i64) {
        let mut caller = TestHeap::new();
        let mut shards: HashMap<(usize, usize), Vec<_>> = HashMap::new();
        let (sum, count) = (i128::from(amount) << 32, u128::from(amount.unsigned_abs()) << 31);
        for &key in keys {
            self.buffer.operations += 1;
            let (number, (hash, term)) = (self.partition_of(key), self.keys.term(&mut caller, key));
            let shard = CounterPartition::<TestHeap>::shard_of(hash);
            shards.entry((number, shard)).or_default().push((hash, AbsorbedSum { key: term.parcel(), sum, count }));
            if self.buffer.expected(number, ()).is_ok() {
                self.buffer.models[number].absorb(key, Sum { sum, count });
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
        let found = self.buffer.partitions[number].sum(self.buffer.access(), hash, term);
        let sum = self.buffer.models[number].sum(key);
        assert_eq!(found, self.buffer.expected(number, sum));
    }
}

impl Sum {
    fn add(&mut self, other: Sum) {
        self.sum += other.sum;
        self.count += other.count;
    }
}

impl Model<Tally<TestHeap>, Waiting> {
    /// What waits and what is in flight.
    fn sum(&mut self, key: Key) -> Option<i128> {
        let waiting = self.waiting.get(&key).map(|(sum, _attempts)| sum.sum);
        self.find_in_flight(key)
            .map(|entry| entry.entry.1.sum)
            .into_iter()
            .chain(waiting)
            .reduce(|sum, other| sum + other)
    }

    fn add(&mut self, key: Key, amount: i64, count: u64) {
        self.absorb(key, Sum { sum: amount.into(), count: count.into() });
    }

    fn absorb(&mut self, key: Key, sum: Sum) {
        self.waiting.entry(key).or_default().0.add(sum);
    }

    fn delete(&mut self, key: Key) {
        self.waiting.remove(&key);
        if let Some(entry) = self.find_in_flight(key) {
            entry.is_deleted = true;
        }
    }
}

impl super::Waiting<Tally<TestHeap>> for Waiting {
    type Entry = (Key, Sum);

    fn entry(record: Counted<TestTerm>) -> (Key, Sum) {
        let Counted { key, sum, count } = record;
        (content(key), Sum { sum, count })
    }

    fn key((key, _sum): (Key, Sum)) -> Key {
        key
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn supersedes(&self, _entry: (Key, Sum)) -> bool {
        false
    }

    fn take_back(&mut self, (key, sum): (Key, Sum), attempts: u32) {
        let (waiting, times) = self.entry(key).or_default();
        waiting.add(sum);
        *times = attempts.max(*times);
    }

    fn entries(&self) -> Vec<((Key, Sum), u32)> {
        self.iter().map(|(&key, &(value, attempts))| ((key, value), attempts)).collect()
    }

    fn attempts(&self, entries: &[(Key, Sum)]) -> Vec<u32> {
        assert_eq!(entries.len(), self.len(), "each key comes once");
        let attempts = |(key, sum)| {
            let (expected, attempts) = self.get(key).expect("it waits");
            assert_eq!(sum, expected);
            *attempts
        };
        entries.iter().map(|(key, sum)| attempts((key, sum))).collect()
    }
}
