//! The partition under thousands of schedules: threads change at every lock and atomic, in an order that a seed decides.
//!
//! `SHUTTLE_SEED` and `SHUTTLE_ITERATIONS` choose what is run. A failure prints its schedule: with that in
//! `SHUTTLE_SCHEDULE`, and the test's name, just this one is run again. Atomics are sequentially consistent here, whatever
//! order the code asks for.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use common::{hash, TestHeap, TestTerm};
use partitioned_buffer_engine::{Closed, Generation, HandOver, HandedOver, Hasher, Heap, MapPartition, Version};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::sync::atomic::{AtomicU32, Ordering};
use shuttle::thread::{self, JoinHandle};
use shuttle::{Config, Runner};

/// How often a thread may be overtaken by one of lower priority in the schedules that are made by priority.
const PRIORITY_CHANGES: usize = 4;

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} cannot be read")))
}

/// Runs `body` under random schedules and under as many by random priorities.
fn check(body: fn()) {
    let mut config = Config::new();
    config.stack_size = 128 * 1024;
    config.silence_warnings = true;
    if let Some(schedule) = setting::<String>("SHUTTLE_SCHEDULE") {
        Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(body);
        return;
    }
    let seed = setting("SHUTTLE_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let iterations = setting("SHUTTLE_ITERATIONS").unwrap_or(1_000);
    println!("SHUTTLE_SEED={seed} SHUTTLE_ITERATIONS={iterations}");
    Runner::new(RandomScheduler::new_from_seed(seed, iterations), config.clone()).run(body);
    Runner::new(PctScheduler::new_from_seed(seed, PRIORITY_CHANGES, iterations), config).run(body);
}

/// What a reader has claimed: key, value, version, updates.
type Delivery = (i64, i64, i64, u64);

/// A buffer as the NIF library has it: partitions, and among how many of them keys are routed.
struct Buffer {
    hasher: Hasher,
    partitions: [MapPartition<TestHeap>; 2],
    running: AtomicU32,
    delivered: Mutex<Vec<Delivery>>,
}

impl Buffer {
    fn start(running: u32) -> Arc<Self> {
        let hasher = Hasher::seeded(0);
        let partitions = [MapPartition::new(&hasher), MapPartition::new(&hasher)];
        partitions.iter().take(running as usize).for_each(|partition| partition.open(running));
        Arc::new(Buffer { hasher, partitions, running: AtomicU32::new(running), delivered: Mutex::default() })
    }

    fn first(&self) -> &MapPartition<TestHeap> {
        &self.partitions[0]
    }

    /// Does `operation` with key and value, again if the number of partitions changes meanwhile.
    fn operate<R>(
        &self,
        (key, value): (i64, i64),
        operation: impl Fn(&MapPartition<TestHeap>, u32, TestTerm, TestTerm) -> Result<R, Closed>,
    ) -> Result<R, Closed> {
        let mut caller = TestHeap::new();
        let (key_term, value) = (caller.boxed(key), caller.boxed(value));
        loop {
            let among = self.running.load(Ordering::SeqCst);
            let number = key.checked_rem(i64::from(among)).ok_or(Closed)?;
            let result = operation(&self.partitions[number as usize], among, key_term, value);
            if result.is_ok() || self.running.load(Ordering::SeqCst) == among {
                return result;
            }
        }
    }

    fn put(&self, key: i64, value: i64) -> Result<(), Closed> {
        self.operate((key, value), |partition, among, key, value| {
            partition.put(among, hash(&self.hasher, key), key, value)
        })
    }

    fn put_newer(&self, key: i64, version: i64) -> Result<(), Closed> {
        self.operate((key, version), |partition, among, key, value| {
            partition.put_newer(among, hash(&self.hasher, key), key, value, Version::Int(version))
        })
    }

    fn get(&self, key: i64) -> Option<i64> {
        let get = |partition: &MapPartition<TestHeap>, among, key, _value| {
            partition.get(among, hash(&self.hasher, key), key, |value| value.content().1)
        };
        self.operate((key, 0), get).expect("the buffer runs")
    }

    fn delete(&self, key: i64) {
        let delete = |partition: &MapPartition<TestHeap>, among, key, _value| {
            partition.delete(among, hash(&self.hasher, key), key)
        };
        self.operate((key, 0), delete).expect("the buffer runs")
    }

    /// Reads and claims `count` places of what a partition hands over, as a reader that dies then. Says whether there was
    /// a hand-over.
    fn deliver(&self, partition: &MapPartition<TestHeap>, count: usize) -> bool {
        let Some(HandedOver::Rest(hand_over) | HandedOver::Fresh(hand_over)) = partition.hand_over() else {
            return false;
        };
        let start = hand_over.position();
        let end = start.saturating_add(count).min(hand_over.end());
        let entries = read(&hand_over, start, end);
        // Again at the end, as a reader does that finds nothing behind the last batch.
        if !partition.claim(&hand_over, start, end) {
            return true;
        }
        partition.claim(&hand_over, end, end);
        self.delivered.lock().expect("nobody panics with it").extend(entries);
        true
    }

    /// Delivers several times from the first partition.
    fn deliver_times(&self, times: usize, count: usize) {
        for _ in 0..times {
            self.deliver(self.first(), count);
        }
    }

    /// Delivers all that the running partitions have.
    fn drain(&self) {
        let running = self.running.load(Ordering::SeqCst) as usize;
        self.partitions[..running].iter().for_each(|partition| while self.deliver(partition, usize::MAX) {});
    }

    /// Starts with another number of partitions, as the NIF library does it.
    fn restart(&self, before: u32, running: u32) {
        self.running.store(0, Ordering::SeqCst);
        let held: Vec<_> = self.partitions[..before as usize].iter().map(MapPartition::evict).collect();
        for (number, evicted) in (0..running as usize).cycle().zip(held) {
            self.partitions[number].adopt(evicted);
        }
        self.partitions[..running as usize].iter().for_each(|partition| partition.open(running));
        self.running.store(running, Ordering::SeqCst);
    }

    fn delivered(&self) -> Vec<Delivery> {
        self.delivered.lock().expect("nobody panics with it").clone()
    }

    /// The values delivered for a key, in order.
    fn values(&self, key: i64) -> Vec<i64> {
        self.delivered().iter().filter(|delivery| delivery.0 == key).map(|delivery| delivery.1).collect()
    }
}

fn read(hand_over: &HandOver<Generation<TestHeap>>, start: usize, end: usize) -> Vec<Delivery> {
    let Some(retired) = hand_over.entries() else { return Vec::new() };
    let delivery = |position| {
        let record = retired.record(position)?;
        let Version::Int(version) = record.version else { panic!("a small version") };
        Some((record.key.content().1, record.value.content().1, version, record.updates))
    };
    (start..end).filter_map(delivery).collect()
}

fn spawn<R: Send + 'static>(buffer: &Arc<Buffer>, body: impl FnOnce(&Buffer) -> R + Send + 'static) -> JoinHandle<R> {
    let buffer = buffer.clone();
    thread::spawn(move || body(&buffer))
}

fn join<R>(thread: JoinHandle<R>) -> R {
    thread.join().expect("the thread has not panicked")
}

fn is_increasing(values: &[i64]) -> bool {
    values.windows(2).all(|pair| pair[0] < pair[1])
}

/// Writes versions 1, 2… to two keys in turn until one is refused; gives the last accepted by key.
fn write_versions(buffer: &Buffer, writer: i64, writes: i64) -> HashMap<i64, i64> {
    let keys = [writer * 10, writer * 10 + 1];
    (1..=writes)
        .map(|version| (keys[version as usize % 2], version))
        .take_while(|&(key, version)| buffer.put_newer(key, version).is_ok())
        .collect()
}

/// Of writers of which each has keys of its own: every accepted write is in the count of one delivery, in order.
fn assert_conserved(buffer: &Buffer, accepted: &[HashMap<i64, i64>]) {
    for newest in accepted {
        for (&key, &version) in newest {
            let delivered: Vec<_> = buffer.delivered().into_iter().filter(|delivery| delivery.0 == key).collect();
            let versions: Vec<i64> = delivered.iter().map(|delivery| delivery.2).collect();
            assert!(is_increasing(&versions), "versions go up: {delivered:?}");
            assert_eq!(versions.last(), Some(&version), "the last accepted version is delivered last: {delivered:?}");
            let writes: u64 = delivered.iter().map(|delivery| 1 + delivery.3).sum();
            assert_eq!(writes as i64, (version + 1) / 2, "each write is in one delivery: {delivered:?}");
        }
    }
    let keys: usize = accepted.iter().map(HashMap::len).sum();
    let delivered: std::collections::HashSet<i64> = buffer.delivered().iter().map(|delivery| delivery.0).collect();
    assert_eq!(delivered.len(), keys, "nothing is delivered that was not accepted");
}

#[test]
fn every_write_is_in_one_hand_over_or_superseded_by_a_newer_one() {
    check(|| {
        let buffer = Buffer::start(1);
        let writers: Vec<_> = (0..2).map(|n| spawn(&buffer, move |buffer| write_versions(buffer, n, 5))).collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver_times(3, usize::MAX));
        let accepted: Vec<_> = writers.into_iter().map(join).collect();
        join(reader);
        buffer.drain();
        assert!(accepted.iter().all(|newest| newest.values().max() == Some(&5)), "nothing is refused");
        assert_conserved(&buffer, &accepted);
    });
}

#[test]
fn what_a_dead_reader_has_not_claimed_is_delivered_by_the_next_and_nothing_twice() {
    check(|| {
        let buffer = Buffer::start(1);
        let writers: Vec<_> = (0..2).map(|n| spawn(&buffer, move |buffer| write_versions(buffer, n, 4))).collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver_times(4, 2));
        let accepted: Vec<_> = writers.into_iter().map(join).collect();
        join(reader);
        buffer.drain();
        assert_conserved(&buffer, &accepted);
    });
}

#[test]
fn a_read_sees_the_last_write_that_returned_or_nothing_once_that_is_handed_over() {
    check(|| {
        let buffer = Buffer::start(1);
        let writers: Vec<_> = (1..=2)
            .map(|key| {
                spawn(&buffer, move |buffer| {
                    let mut handed_over = Vec::new();
                    for value in 1..=4 {
                        buffer.put(key, value).expect("the buffer runs");
                        match buffer.get(key) {
                            Some(read) => assert_eq!(read, value, "a read sees the last write"),
                            None => handed_over.push(value),
                        }
                        if value == 2 {
                            buffer.delete(key);
                            assert_eq!(buffer.get(key), None, "a deleted entry is not there");
                        }
                    }
                    handed_over
                })
            })
            .collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver_times(3, usize::MAX));
        let handed_over: Vec<Vec<i64>> = writers.into_iter().map(join).collect();
        join(reader);
        buffer.drain();
        for (key, handed_over) in (1..).zip(handed_over) {
            let values = buffer.values(key);
            assert!(is_increasing(&values), "values come in order and once: {values:?}");
            assert_eq!(values.last(), Some(&4), "the last is delivered");
            assert!(handed_over.iter().all(|value| values.contains(value)), "{handed_over:?} are in {values:?}");
        }
    });
}

#[test]
fn of_writers_of_one_key_the_last_is_delivered_last() {
    check(|| {
        let buffer = Buffer::start(1);
        let writers: Vec<_> = (1..=2)
            .map(|writer| {
                spawn(&buffer, move |buffer| {
                    for count in 1..=3 {
                        buffer.put(7, writer * 10 + count).expect("the buffer runs");
                        buffer.put_newer(8, count * 10 + writer).expect("the buffer runs");
                    }
                })
            })
            .collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver_times(3, usize::MAX));
        writers.into_iter().for_each(join);
        join(reader);
        buffer.drain();
        let puts = buffer.values(7);
        assert!(matches!(puts.last(), Some(13 | 23)), "some writer's last put is delivered last: {puts:?}");
        for writer in 1..=2 {
            let own: Vec<i64> = puts.iter().copied().filter(|value| value / 10 == writer).collect();
            assert!(is_increasing(&own), "puts of a writer come in order and once: {puts:?}");
        }
        let mut versions = buffer.values(8);
        versions.sort_unstable();
        assert!(is_increasing(&versions), "no version comes twice: {versions:?}");
        assert_eq!(versions.last(), Some(&32), "the newest version is delivered");
    });
}

#[test]
fn after_the_close_a_write_is_refused_or_in_what_is_evicted() {
    check(|| {
        let buffer = Buffer::start(1);
        let writers: Vec<_> = (0..2).map(|n| spawn(&buffer, move |buffer| write_versions(buffer, n, 6))).collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver(buffer.first(), 1));
        let evicted = spawn(&buffer, |buffer| {
            buffer.running.store(0, Ordering::SeqCst);
            buffer.first().evict()
        });
        let accepted: Vec<_> = writers.into_iter().map(join).collect();
        let evicted = join(evicted);
        join(reader);
        for hand_over in evicted {
            let rest = read(&hand_over, hand_over.position(), hand_over.end());
            buffer.delivered.lock().expect("nobody panics with it").extend(rest);
        }
        assert_conserved(&buffer, &accepted);
        assert_eq!(buffer.put(1, 1), Err(Closed));
    });
}

#[test]
fn a_partition_that_was_closed_and_opened_again_has_all_it_took() {
    check(|| {
        let buffer = Buffer::start(1);
        let writers: Vec<_> = (0..2).map(|n| spawn(&buffer, move |buffer| write_versions(buffer, n, 4))).collect();
        let owner = spawn(&buffer, |buffer| {
            buffer.first().close();
            buffer.deliver(buffer.first(), 1);
            buffer.first().open(1);
        });
        let accepted: Vec<_> = writers.into_iter().map(join).collect();
        join(owner);
        buffer.drain();
        assert_conserved(&buffer, &accepted);
    });
}

/// Writes and delivers while the number of partitions changes.
fn restart<const BEFORE: u32, const AFTER: u32>() {
    let buffer = Buffer::start(BEFORE);
    // A write that comes between the two states is refused; the writers go on after it.
    let writers: Vec<_> = (0..2)
        .map(|key| {
            spawn(&buffer, move |buffer| {
                (1..=6).filter(|&version| buffer.put_newer(key, version).is_ok()).collect::<Vec<i64>>()
            })
        })
        .collect();
    let reader = spawn(&buffer, |buffer| {
        buffer.deliver(buffer.first(), 1);
        buffer.deliver(&buffer.partitions[BEFORE as usize - 1], usize::MAX)
    });
    let owner = spawn(&buffer, |buffer| buffer.restart(BEFORE, AFTER));
    let accepted: Vec<Vec<i64>> = writers.into_iter().map(join).collect();
    join(owner);
    join(reader);
    buffer.drain();
    for (key, accepted) in (0..).zip(accepted) {
        let delivered: Vec<_> = buffer.delivered().into_iter().filter(|delivery| delivery.0 == key).collect();
        let versions: Vec<i64> = delivered.iter().map(|delivery| delivery.2).collect();
        assert!(is_increasing(&versions), "versions go up: {delivered:?}");
        assert_eq!(versions.last(), accepted.last(), "the last accepted is delivered last: {delivered:?}");
        let writes: u64 = delivered.iter().map(|delivery| 1 + delivery.3).sum();
        assert_eq!(writes, accepted.len() as u64, "each write is in one delivery: {delivered:?}");
    }
}

#[test]
fn nothing_is_lost_or_doubled_when_partitions_are_added() {
    check(restart::<1, 2>);
}

#[test]
fn nothing_is_lost_or_doubled_when_partitions_are_taken_away() {
    check(restart::<2, 1>);
}
