//! A buffer of partitions beside a model of it: maps of what waits and of what was handed over. Long sequences of
//! operations, read from bytes, are done to both; what they answer and hold must be the same.
//!
//! The random test and the fuzz target share it: any bytes are a sequence of operations.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use partitioned_buffer_engine::entries::Record;
use partitioned_buffer_engine::partition::{Retired, Write};
use partitioned_buffer_engine::{Closed, Generation, HandOver, HandedOver, Hash, Hasher, Heap, MapPartition, Version};

/// What a reader holds.
type Frozen = Arc<Retired<Generation<TestHeap>>>;

use super::{hash, TestHeap, TestTerm, HEAVY};

/// Partitions there may be.
const PARTITIONS: usize = 3;

/// Versions around the limits of what is held without a heap; those beyond are boxed, as integers beyond 64 bits are.
const VERSIONS: [i64; 16] = [0, 1, 2, 3, 5, 8, -1, -2, -7, 40, 41, 60, 1_000, -40, -41, -900];

/// The greatest distance from 0 of a version that is held without a heap.
const SMALL_VERSION: i64 = 40;

/// Whether the key is boxed, and its content.
type Key = (bool, i64);

/// What is stored for a key: value, version, updates.
type Stored = (i64, i64, u64);

type Contents = HashMap<Key, Stored>;

/// A partition as it should be.
#[derive(Default)]
struct Model {
    routed_among: usize,
    active: Contents,
    /// Handed over and not claimed, oldest first.
    pending: VecDeque<Contents>,
}

/// See the module's documentation.
struct Buffer {
    hasher: Hasher,
    partitions: [MapPartition<TestHeap>; PARTITIONS],
    models: [Model; PARTITIONS],
    running: usize,
    /// How many keys there are.
    keys: i64,
    /// Values are numbered, so that none is taken for another.
    writes: i64,
    operations: usize,
    /// A reader that goes on reading what has been claimed to the end, with what it read first.
    reader: Option<(Frozen, usize, Contents)>,
}

/// Does the operations that `bytes` stand for to a buffer and its model. Panics where they differ; gives the number of
/// operations.
pub fn run(bytes: &[u8]) -> usize {
    let (&[size, seed], bytes) = bytes.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let hasher = Hasher::seeded(u64::from(seed));
    let mut buffer = Buffer {
        partitions: std::array::from_fn(|_| MapPartition::new(&hasher)),
        hasher,
        models: Default::default(),
        running: 0,
        keys: 1 << (size % 14),
        writes: 0,
        operations: 0,
        reader: None,
    };
    buffer.restart(1 + usize::from(size) / 14 % PARTITIONS);
    for &[operation, a, b] in bytes.as_chunks().0 {
        buffer.step(operation, a, b);
    }
    buffer.finish();
    buffer.operations
}

impl Buffer {
    fn step(&mut self, operation: u8, a: u8, b: u8) {
        let key = self.key(i64::from(a) | i64::from(b) << 8);
        let partition = usize::from(a) % PARTITIONS;
        match operation % 32 {
            0..=5 => self.put(key, false),
            6..=7 => self.put(key, true),
            8..=13 => self.put_newer(key, VERSIONS[(usize::from(operation / 32) + usize::from(b)) % VERSIONS.len()]),
            14..=16 => self.delete(key),
            17..=18 => self.get(key),
            // Many at once, which a short sequence of bytes would not reach otherwise.
            19 => self.neighbours(a, b).for_each(|key| self.put(key, operation / 32 == 0)),
            20 => self.neighbours(a, b).for_each(|key| self.put_newer(key, i64::from(operation))),
            21 => self.neighbours(a, b).filter(|key| key.1 % 5 != 0).for_each(|key| self.delete(key)),
            22 => (0..b).for_each(|_| self.put(key, false)),
            23 => self.write_all(&self.neighbours(a, b).collect::<Vec<_>>()),
            24..=25 => self.hand_over(partition, usize::from(b)),
            26..=27 => self.hand_over(partition, usize::MAX),
            28 => self.read_again(),
            29 => self.restart(1 + partition),
            30 => self.open_or_close(partition, b < 128),
            _ => self.check_sizes(),
        }
    }

    /// Key number `number`; a few contents are there boxed and not boxed, as different keys.
    fn key(&self, number: i64) -> Key {
        let content = number % self.keys;
        (content % 3 != 0 || number & 0x4000 != 0, content)
    }

    /// The keys from one on.
    fn neighbours(&self, a: u8, b: u8) -> impl Iterator<Item = Key> {
        let (first, count) = (i64::from(a) << 3, i64::from(b) * 2);
        let keys: Vec<Key> = (first..first + count).map(|number| self.key(number)).collect();
        keys.into_iter()
    }

    fn partition_of(&self, key: Key) -> usize {
        key.1 as usize % self.running
    }

    fn term(&self, caller: &mut TestHeap, (is_boxed, content): Key) -> (Hash, TestTerm) {
        let term = if is_boxed { caller.boxed(content) } else { TestTerm::Immediate(content) };
        (hash(&self.hasher, term), term)
    }

    /// The next value; heavy ones weigh as much as a large binary.
    fn value(&mut self, is_heavy: bool) -> i64 {
        self.writes += 1;
        self.writes + if is_heavy { HEAVY } else { 0 }
    }

    /// What must come of an operation that partition `number` is open for, or not.
    fn expected<R>(&self, number: usize, result: R) -> Result<R, Closed> {
        if self.models[number].routed_among == self.running {
            Ok(result)
        } else {
            Err(Closed)
        }
    }

    fn put(&mut self, key: Key, is_heavy: bool) {
        self.operations += 1;
        let mut caller = TestHeap::new();
        let value = self.value(is_heavy);
        let (number, (hash, term), boxed) = (self.partition_of(key), self.term(&mut caller, key), caller.term(value));
        let result = self.partitions[number].put(self.running as u32, hash, term, boxed);
        assert_eq!(result, self.expected(number, ()));
        if result.is_ok() {
            self.models[number].put(key, value);
        }
    }

    fn put_newer(&mut self, key: Key, version: i64) {
        self.operations += 1;
        let mut caller = TestHeap::new();
        let value = self.value(false);
        let (number, (hash, term), boxed) = (self.partition_of(key), self.term(&mut caller, key), caller.term(value));
        let of_term = version_of(&mut caller, version);
        let result = self.partitions[number].put_newer(self.running as u32, hash, term, boxed, of_term);
        assert_eq!(result, self.expected(number, ()));
        if result.is_ok() {
            self.models[number].put_newer(key, value, version);
        }
    }

    /// Writes the keys, every other one with a version, with each lock taken once.
    fn write_all(&mut self, keys: &[Key]) {
        let mut caller = TestHeap::new();
        let mut shards: HashMap<(usize, usize), Vec<_>> = HashMap::new();
        for &key in keys {
            self.operations += 1;
            let value = self.value(false);
            let (number, (hash, term), boxed) =
                (self.partition_of(key), self.term(&mut caller, key), caller.term(value));
            let shard = shards.entry((number, MapPartition::<TestHeap>::shard_of(hash))).or_default();
            let is_open = self.expected(number, ()).is_ok();
            if key.1 % 2 == 0 {
                shard.push((hash, Write::Put(term, boxed)));
                self.models[number].put_if(is_open, key, value);
            } else {
                let version = value % 100 - 50;
                shard.push((hash, Write::PutNewer(term, boxed, version_of(&mut caller, version))));
                if is_open {
                    self.models[number].put_newer(key, value, version);
                }
            }
        }
        for ((number, shard), writes) in shards {
            let result = self.partitions[number].write_all(self.running as u32, shard, writes.into_iter());
            assert_eq!(result, self.expected(number, ()));
        }
    }

    fn delete(&mut self, key: Key) {
        self.operations += 1;
        let mut caller = TestHeap::new();
        let (number, (hash, term)) = (self.partition_of(key), self.term(&mut caller, key));
        let result = self.partitions[number].delete(self.running as u32, hash, term);
        assert_eq!(result, self.expected(number, ()));
        if result.is_ok() {
            self.models[number].active.remove(&key);
        }
    }

    fn get(&mut self, key: Key) {
        self.operations += 1;
        let mut caller = TestHeap::new();
        let (number, (hash, term)) = (self.partition_of(key), self.term(&mut caller, key));
        let found = self.partitions[number].get(self.running as u32, hash, term, |value| value.content().1);
        let stored = self.models[number].active.get(&key).map(|stored| stored.0);
        assert_eq!(found, self.expected(number, stored));
    }

    /// Compares what a partition hands over with the model, and claims `count` places of it.
    fn hand_over(&mut self, number: usize, count: usize) {
        self.operations += 1;
        let model = &mut self.models[number];
        let handed_over = match self.partitions[number].hand_over() {
            None => {
                assert!(
                    model.pending.is_empty() && model.active.is_empty(),
                    "nothing is handed over, something is there"
                );
                return;
            }
            Some(HandedOver::Rest(hand_over)) => hand_over,
            Some(HandedOver::Fresh(hand_over)) => {
                assert!(model.pending.is_empty(), "what is left comes before what is new");
                model.pending.push_back(std::mem::take(&mut model.active));
                hand_over
            }
        };
        let (start, end) = (handed_over.position(), handed_over.end());
        let rest = &mut model.pending[0];
        let retired = handed_over.entries().expect("not all is claimed");
        assert_eq!(*rest, contents(&retired, start, end), "what is not claimed of a hand-over");
        self.reader = Some((retired.clone(), end, contents(&retired, 0, end)));

        let position = start.saturating_add(count).min(end);
        let claimed = contents(&retired, start, position);
        rest.retain(|key, _| !claimed.contains_key(key));
        self.claim(number, &handed_over, start, position);
    }

    fn claim(
        &mut self,
        number: usize,
        handed_over: &Arc<HandOver<Generation<TestHeap>>>,
        start: usize,
        position: usize,
    ) {
        assert!(self.partitions[number].claim(handed_over, start, position));
        // What is claimed cannot be claimed again, in whole or in part.
        if position > start {
            assert!(!self.partitions[number].claim(handed_over, start, position));
            assert!(!self.partitions[number].claim(handed_over, start, handed_over.end()));
        }
        assert_eq!(handed_over.position(), position);
        assert_eq!(handed_over.entries().is_none(), position == handed_over.end());
        if position == handed_over.end() {
            self.models[number].pending.pop_front();
        }
    }

    /// What a reader has got does not change, whatever has been written or freed since.
    fn read_again(&mut self) {
        self.operations += 1;
        if let Some((retired, end, first)) = &self.reader {
            assert_eq!(contents(retired, 0, *end), *first);
        }
    }

    /// As a supervisor that starts with this number of partitions.
    fn restart(&mut self, running: usize) {
        self.operations += 1;
        if running != self.running {
            let held: Vec<_> = (0..self.running)
                .map(|number| {
                    let model = std::mem::take(&mut self.models[number]);
                    let active = Some(model.active).filter(|active| !active.is_empty());
                    (self.partitions[number].evict(), model.pending.into_iter().chain(active).collect::<Vec<_>>())
                })
                .collect();
            for (number, (evicted, pending)) in (0..running).cycle().zip(held) {
                assert_eq!(evicted.len(), pending.len(), "hand-overs that are evicted");
                self.partitions[number].adopt(evicted);
                self.models[number].pending.extend(pending);
            }
            self.running = running;
        }
        (0..running).for_each(|number| self.open_or_close(number, true));
    }

    fn open_or_close(&mut self, number: usize, is_open: bool) {
        self.operations += 1;
        if is_open && number < self.running {
            self.partitions[number].open(self.running as u32);
            self.models[number].routed_among = self.running;
        } else {
            self.partitions[number].close();
            self.models[number].routed_among = 0;
        }
    }

    fn check_sizes(&mut self) {
        self.operations += 1;
        for number in 0..PARTITIONS {
            let expected = self.expected(number, self.models[number].active.len());
            assert_eq!(self.partitions[number].len(self.running as u32), expected);
        }
    }

    /// All that is left is handed over.
    fn finish(&mut self) {
        self.check_sizes();
        self.read_again();
        for number in 0..PARTITIONS {
            while !self.models[number].pending.is_empty() || !self.models[number].active.is_empty() {
                self.hand_over(number, usize::MAX);
            }
            self.hand_over(number, usize::MAX);
        }
        self.read_again();
    }
}

impl Model {
    fn put(&mut self, key: Key, value: i64) {
        self.active.insert(key, (value, 0, 0));
    }

    fn put_if(&mut self, is_open: bool, key: Key, value: i64) {
        if is_open {
            self.put(key, value);
        }
    }

    fn put_newer(&mut self, key: Key, value: i64, version: i64) {
        let stored = self.active.entry(key).or_insert((value, version, 0));
        if version > stored.1 {
            *stored = (value, version, stored.2 + 1);
        }
    }
}

fn version_of(caller: &mut TestHeap, version: i64) -> Version<TestTerm> {
    if version < -SMALL_VERSION {
        Version::Below(caller.boxed(version))
    } else if version > SMALL_VERSION {
        Version::Above(caller.boxed(version))
    } else {
        Version::Int(version)
    }
}

/// The entries between two positions; none may be there twice.
fn contents(retired: &Retired<Generation<TestHeap>>, start: usize, end: usize) -> Contents {
    let mut contents = Contents::new();
    for Record { key, value, version, updates } in (start..end).filter_map(|position| retired.record(position)) {
        let version = match version {
            Version::Int(version) => version,
            Version::Below(version) | Version::Above(version) => version.content().1,
        };
        let before = contents.insert(key.content(), (value.content().1, version, updates));
        assert_eq!(before, None, "a key comes once in a hand-over");
    }
    contents
}
