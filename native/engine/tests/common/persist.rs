//! The terms of the tests in a log, and partitions that get them back.

use std::sync::Arc;

use partitioned_buffer_engine::journal::disk::Disk;
use partitioned_buffer_engine::journal::record::SavedVersion;
use partitioned_buffer_engine::journal::replay::{self, Content, Replayed};
use partitioned_buffer_engine::journal::{Blocks, Codec, Entries, Pass};
use partitioned_buffer_engine::saved::{Saved, SavedEntry};
use partitioned_buffer_engine::{
    CounterPartition, Generation, Hasher, Heap, Log, MapPartition, Note, Parcel, Partition, QueuePartition, Store,
    Stored, Tally, Version,
};

use super::{hash, to_version, TestHeap, TestTerm, HIDDEN, LARGE, ONE};

/// Encodes a term as its content, and some terms as many bytes.
pub struct TestCodec;

impl Codec<TestHeap> for TestCodec {
    fn encode(&mut self, term: TestTerm, out: &mut Vec<u8>) {
        let (is_boxed, content) = term.content();
        out.push(is_boxed.into());
        out.extend_from_slice(&content.to_le_bytes());
        out.resize(out.len() + padding(content), content as u8);
    }
}

/// The bytes behind a content.
fn padding(content: i64) -> usize {
    match content {
        _ if content >= LARGE => 3_000,
        _ if content % 389 == 300 => 140_000,
        _ if content % 13 == 7 => 700,
        _ => 0,
    }
}

/// The content of an encoded term. Panics if it was never encoded.
pub fn decoded(bytes: &[u8]) -> (bool, i64) {
    let content = i64::from_le_bytes(bytes[1..9].try_into().unwrap());
    assert!(bytes[0] < 2 && bytes.len() == 9 + padding(content), "an encoded term");
    assert!(bytes[9..].iter().all(|byte| *byte == content as u8));
    (bytes[0] == 1, content)
}

/// The term on this heap.
fn decode(heap: &mut TestHeap, bytes: &[u8]) -> TestTerm {
    match decoded(bytes) {
        (true, content) => heap.boxed(content),
        (false, content) => TestTerm::Immediate(content),
    }
}

/// A kind of partitions.
pub trait Kind<const SHARDS: usize>: Sized + 'static {
    type Store: Store<Term = TestTerm, Saved = SavedEntry<TestHeap>>;

    const KIND: replay::Kind;

    /// Writes what is known by a number under a key, and with a version if it is of a map.
    fn write(
        partition: &Partition<Self::Store, SHARDS>,
        hasher: &Hasher,
        key: i64,
        number: i64,
        version: Option<i64>,
    ) -> Stored;

    fn delete(partition: &Partition<Self::Store, SHARDS>, hasher: &Hasher, key: i64);
}

pub struct Maps;
pub struct Counters;
pub struct Queues;

impl Kind<4> for Maps {
    type Store = Generation<TestHeap>;

    const KIND: replay::Kind = replay::Kind::Map;

    fn write(
        partition: &MapPartition<TestHeap>,
        hasher: &Hasher,
        key: i64,
        number: i64,
        version: Option<i64>,
    ) -> Stored {
        let mut caller = TestHeap::new();
        let (key, value) = (caller.boxed(key), caller.term(number));
        let Some(version) = version else {
            return partition.put(ONE, hash(hasher, key), &key.parcel(), &value.parcel()).unwrap();
        };
        let version = to_version(&mut caller, version);
        let (value, version) = value.parcel_with(version);
        partition.put_newer(ONE, hash(hasher, key), &key.parcel(), &value, version).unwrap()
    }

    fn delete(partition: &MapPartition<TestHeap>, hasher: &Hasher, key: i64) {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        partition.delete(ONE, hash(hasher, key), key).unwrap();
    }
}

impl Kind<4> for Counters {
    type Store = Tally<TestHeap>;

    const KIND: replay::Kind = replay::Kind::Counter;

    fn write(
        partition: &CounterPartition<TestHeap>,
        hasher: &Hasher,
        key: i64,
        number: i64,
        _version: Option<i64>,
    ) -> Stored {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        partition.add(ONE, hash(hasher, key), &key.parcel(), number).unwrap()
    }

    fn delete(partition: &CounterPartition<TestHeap>, hasher: &Hasher, key: i64) {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        partition.delete(ONE, hash(hasher, key), key).unwrap();
    }
}

impl Kind<1> for Queues {
    type Store = Log<TestHeap>;

    const KIND: replay::Kind = replay::Kind::Queue;

    fn write(
        partition: &QueuePartition<TestHeap>,
        _hasher: &Hasher,
        _key: i64,
        number: i64,
        _version: Option<i64>,
    ) -> Stored {
        let mut caller = TestHeap::new();
        partition.push(ONE, &caller.term(number).parcel()).unwrap()
    }

    fn delete(_partition: &QueuePartition<TestHeap>, _hasher: &Hasher, _key: i64) {}
}

/// The partitions of a buffer with a journal.
pub struct Parts<K: Kind<SHARDS>, const SHARDS: usize>(pub Arc<Vec<Partition<K::Store, SHARDS>>>);

impl<K: Kind<SHARDS>, const SHARDS: usize> Clone for Parts<K, SHARDS> {
    fn clone(&self) -> Self {
        Parts(self.0.clone())
    }
}

impl<K: Kind<SHARDS>, const SHARDS: usize> Entries for Parts<K, SHARDS> {
    type Codec = TestCodec;

    fn pass<B: Blocks>(&self, partition: u32, pass: Pass<'_, B, TestCodec>) -> Result<usize, B::Failure> {
        pass.run(&self.0[partition as usize])
    }

    fn take_notes(&self, partition: u32) -> Vec<Note> {
        self.0[partition as usize].take_notes()
    }

    fn live_generation(&self, partition: u32) -> u64 {
        self.0[partition as usize].live_generation()
    }

    fn unsave(&self, partition: u32) {
        self.0[partition as usize].unsave();
    }

    fn unsaved(&self, partition: u32) -> usize {
        self.0[partition as usize].unsaved()
    }

    fn bytes(&self, partition: u32) -> usize {
        self.0[partition as usize].info().bytes
    }
}

/// All segments of a disk.
pub fn segments(disk: &impl Disk) -> Vec<(u64, Vec<u8>)> {
    let numbers = disk.segments().unwrap();
    numbers.into_iter().map(|(number, _bytes)| (number, disk.read(number).unwrap())).collect()
}

/// An entry of a journal, as a start of a buffer decodes it, and the key that chooses its place.
pub fn entry(caller: &mut TestHeap, kept: &replay::Saved) -> (TestTerm, SavedEntry<TestHeap>) {
    let (key, saved) = match kept.content {
        Content::Value { updates, version, key, value } => {
            let version = match version {
                SavedVersion::Int(version) => Version::Int(version),
                SavedVersion::Below(big) => Version::Below(decode(caller, big)),
                SavedVersion::Above(big) => Version::Above(decode(caller, big)),
            };
            let (key, value) = (decode(caller, key), decode(caller, value));
            (key, Saved::Value { key: Parcel::loose(key), value: Parcel::loose(value), version, updates })
        }
        Content::Sum { sum, count, key } => {
            let key = decode(caller, key);
            (key, Saved::Sum { key: Parcel::loose(key), sum, count, absorbs: false })
        }
        Content::Item { item } => {
            let item = decode(caller, item);
            (item, Saved::Item { item: Parcel::loose(item), origin: None })
        }
    };
    (key, SavedEntry { attempts: kept.attempts, saved })
}

/// Lets entries of a journal wait in partitions that have a journal and are closed, as a start of a
/// buffer does. `place` chooses the partition by the content of the key or item.
pub fn restore<S, const SHARDS: usize>(
    partitions: &[Partition<S, SHARDS>],
    hasher: &Hasher,
    replayed: &Replayed<'_>,
    max_attempts: Option<u32>,
    place: impl Fn(i64) -> usize,
) where
    S: Store<Term = TestTerm, Saved = SavedEntry<TestHeap>>,
{
    let is_exhausted = |kept: &&replay::Saved<'_>| max_attempts.is_some_and(|most| kept.attempts >= most);
    let (exhausted, waiting): (Vec<_>, Vec<_>) = replayed.entries.iter().partition(is_exhausted);
    for kept in waiting {
        let mut caller = TestHeap::new();
        let (key, entry) = entry(&mut caller, kept);
        partitions[place(key.content().1)].restore(hash(hasher, key), &entry);
    }
    let mut given_up = vec![Vec::new(); partitions.len()];
    for kept in replayed.given_up.iter().chain(exhausted) {
        let key = match kept.content {
            Content::Value { key, .. } | Content::Sum { key, .. } => decoded(key).1,
            Content::Item { item } => decoded(item).1,
        };
        given_up[place(key)].push(kept);
    }
    for (partition, all) in partitions.iter().zip(given_up).filter(|(_partition, all)| !all.is_empty()) {
        partition.restore_given_up(|restore| {
            for kept in all {
                let mut caller = TestHeap::new();
                let (key, entry) = entry(&mut caller, kept);
                restore(hash(hasher, key), &entry);
            }
        });
    }
}

/// The number of a value or item whose content has flags for its size.
pub fn number(content: i64) -> i64 {
    content & (LARGE - 1)
}

/// The flags.
pub const SIZES: [i64; 4] = [0, 0, LARGE, HIDDEN];
