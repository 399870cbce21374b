//! Passes of a journal while threads write: no term is read after it is freed, and in the end the log
//! holds what the memory holds.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::persist::{decoded, number, segments, Counters, Kind, Maps, Parts, Queues, TestCodec, SIZES};
use common::reading::{all_of, give_back, read_resumed};
use common::sim_disk::{Faults, Loss, SimDisk};
use common::{hash, set_lanes, Random, TestHeap, ONE};
use partitioned_buffer_engine::journal::log::{Log, Settings, Syncing};
use partitioned_buffer_engine::journal::replay::{replay, Content};
use partitioned_buffer_engine::journal::{Journal, Times};
use partitioned_buffer_engine::{
    Bound, CounterPartition, Flushed, GiveBack, Hasher, Heap, Limits, MapPartition, Partition, Store,
};

const KEYS: u64 = 150;

const WRITERS: u64 = 2;

const TIME: Duration = Duration::from_millis(700);

/// A buffer with one partition, and its journal.
struct Buffer<K: Kind<SHARDS>, const SHARDS: usize> {
    hasher: Hasher,
    disk: SimDisk,
    partitions: Parts<K, SHARDS>,
    journal: Journal<SimDisk, Parts<K, SHARDS>>,
}

impl<K: Kind<SHARDS>, const SHARDS: usize> Buffer<K, SHARDS> {
    fn start() -> Self {
        let (hasher, bound) = (Hasher::seeded(7), Arc::<Bound>::default());
        // With a bound on its bytes a flush is freed in parts.
        bound.set_limits(Limits { entries: None, bytes: Some(1 << 40) });
        let partition = Partition::with_bound(&hasher, &bound);
        partition.set_journaled(true);
        partition.set_outcomes(true);
        partition.set_order(false);
        partition.set_bounded(true);
        partition.open(1);
        let (partitions, disk) = (Parts(Arc::new(vec![partition])), SimDisk::default());
        let settings = Settings { segment_bytes: 200_000, max_bytes: 2_000_000, syncing: Syncing::Owner };
        let log = Log::new(disk.clone(), settings, 1, 1).unwrap();
        let times = Times { write: Duration::ZERO, sync: Some(Duration::ZERO) };
        let journal = Journal::new(log, partitions.clone(), TestCodec, 1, times);
        Buffer { hasher, disk, partitions, journal }
    }

    fn partition(&self) -> &Partition<K::Store, SHARDS> {
        &self.partitions.0[0]
    }

    /// What a killed VM leaves: the contents of keys with their values or sums, or of items.
    fn found(&self) -> Vec<(i64, i128)> {
        let disk = self.disk.crash(&mut Random(1), Loss::Nothing);
        let segments = segments(&disk);
        let replayed = replay(&segments, K::KIND);
        assert_eq!(replayed.damaged_records, 0);
        let found = replayed.entries.iter().map(|kept| match kept.content {
            Content::Value { key, value, .. } => (decoded(key).1, decoded(value).1.into()),
            Content::Sum { key, sum, .. } => (decoded(key).1, sum),
            Content::Item { item } => (number(decoded(item).1), 0),
        });
        found.collect()
    }

    /// Writes on some threads, while another one does passes, and another one processes batches: of each
    /// it fails with some entries. `sink` gets the records of the others.
    fn race(&self, write: impl Fn(&mut Random, u64) + Sync, sink: impl Fn(<K::Store as Store>::Record) + Sync) {
        let (is_over, passes) = (AtomicBool::new(false), AtomicUsize::new(0));
        let until = Instant::now() + TIME;
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let write = &write;
                    scope.spawn(move || {
                        set_lanes(Some(writer));
                        let mut random = Random(writer);
                        while Instant::now() < until {
                            (0..50).for_each(|_| write(&mut random, writer));
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    self.journal.write(|_report| {});
                    self.journal.sync(|_report| {});
                    passes.fetch_add(1, Ordering::SeqCst);
                }
            });
            scope.spawn(|| {
                let mut random = Random(99);
                while !is_over.load(Ordering::SeqCst) {
                    self.process(&mut random, &sink);
                    thread::sleep(Duration::from_millis(random.below(4)));
                }
            });
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            is_over.store(true, Ordering::SeqCst);
        });
        assert!(passes.load(Ordering::SeqCst) > 1, "passes went on meanwhile");
        self.journal.write(|_report| {});
        assert_eq!(self.journal.status().unwritten, 0);
    }

    fn process(&self, random: &mut Random, sink: &impl Fn(<K::Store as Store>::Record)) {
        let partition = self.partition();
        let Some(Flushed::Fresh(flush) | Flushed::Rest(flush)) = partition.flush() else { return };
        for reader in 1.. {
            let size = 1 + random.below(60) as usize;
            let Some(batch) = read_resumed(partition, &flush, reader, size, |record| record) else { return };
            assert!(flush.lease(reader, 0));
            partition.settle(&flush);
            if batch.is_empty() {
                return;
            }
            let failed: Vec<usize> = (0..batch.len()).filter(|_| random.below(3) == 0).collect();
            // Its terms stay until the batch has its outcome.
            let succeeded = batch.into_iter().enumerate().filter(|(number, _record)| !failed.contains(number));
            succeeded.for_each(|(_number, record)| sink(record));
            give_back(partition, &flush, GiveBack { failed: Some(&failed), count: 7, ..all_of(reader) });
        }
    }
}

/// A content of any size.
fn sized(random: &mut Random, content: i64) -> i64 {
    content | SIZES[random.below(4) as usize]
}

#[test]
fn values_of_all_sizes_are_read_without_the_lock() {
    let buffer = Buffer::<Maps, 4>::start();
    let write = |random: &mut Random, _writer: u64| {
        let key = random.below(KEYS) as i64;
        if random.below(6) == 0 {
            return Maps::delete(buffer.partition(), &buffer.hasher, key);
        }
        let content = random.below(1 << 30) as i64;
        let value = sized(random, content);
        Maps::write(buffer.partition(), &buffer.hasher, key, value, None);
    };
    buffer.race(write, |record| {
        common::content(record.value);
    });
    let get = |partition: &MapPartition<TestHeap>, key: i64| {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        partition.get(ONE, hash(&buffer.hasher, key), key, |value| value.term().content().1).unwrap()
    };
    let held: BTreeMap<i64, i128> =
        (0..KEYS as i64).filter_map(|key| Some((key, get(buffer.partition(), key)?.into()))).collect();
    let found = buffer.found();
    assert_eq!(found.len(), held.len());
    assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), held);
}

#[test]
fn the_sums_in_the_log_and_those_delivered_are_all_additions() {
    let buffer = Buffer::<Counters, 4>::start();
    let (added, sunk) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let write = |random: &mut Random, _writer: u64| {
        // Most additions are to the same keys.
        let most = 1 + random.below(KEYS);
        let key = random.below(most) as i64;
        Counters::write(buffer.partition(), &buffer.hasher, key, 1, None);
        added.fetch_add(1, Ordering::SeqCst);
    };
    buffer.race(write, |record| {
        sunk.fetch_add(record.sum as usize, Ordering::SeqCst);
    });
    let sum = |partition: &CounterPartition<TestHeap>, key: i64| {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        partition.sum(ONE, hash(&buffer.hasher, key), key).unwrap()
    };
    let found: BTreeMap<i64, i128> = buffer.found().into_iter().collect();
    let held: BTreeMap<i64, i128> =
        (0..KEYS as i64).filter_map(|key| Some((key, sum(buffer.partition(), key)?))).collect();
    assert_eq!(found, held);
    let left = found.values().sum::<i128>() as usize;
    assert_eq!(left + sunk.into_inner(), added.into_inner());
}

#[test]
fn each_item_is_in_the_log_or_was_delivered() {
    let buffer = Buffer::<Queues, 1>::start();
    let pushed = AtomicUsize::new(0);
    let sunk = parking_lot::Mutex::new(Vec::new());
    let write = |random: &mut Random, _writer: u64| {
        let item = pushed.fetch_add(1, Ordering::SeqCst) as i64;
        if random.below(20) == 0 {
            // The disk takes longer than the queue.
            thread::sleep(Duration::from_millis(1));
        }
        Queues::write(buffer.partition(), &buffer.hasher, 0, sized(random, item), None);
    };
    buffer.race(write, |record| sunk.lock().push(number(common::content(record).1)));
    let found = buffer.found().into_iter().map(|(item, _)| item);
    let mut all: Vec<i64> = found.chain(sunk.into_inner()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..pushed.into_inner() as i64).collect::<Vec<_>>());
}

#[test]
fn outcomes_get_through_on_a_full_disk() {
    let buffer = Buffer::<Queues, 1>::start();
    let push = |item: i64| {
        Queues::write(buffer.partition(), &buffer.hasher, 0, item, None);
    };
    (0..4).for_each(&push);
    buffer.journal.write(|_report| {});
    buffer.disk.set_faults(Faults { room: Some(buffer.disk.used()), ..Faults::default() });
    push(4);
    buffer.journal.write(|_report| {});
    assert!(buffer.journal.status().is_failing);
    let Some(Flushed::Fresh(flush)) = buffer.partition().flush() else { panic!("items wait") };
    let batch = read_resumed(buffer.partition(), &flush, 1, 3, common::queue::item).unwrap();
    assert!(batch == [0, 1, 2] && flush.lease(1, 0));
    flush.succeed(1);
    buffer.journal.write(|_report| {});
    assert!(buffer.journal.status().is_failing);
    assert_eq!(buffer.found(), [(3, 0)]);
}
