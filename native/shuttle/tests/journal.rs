//! Passes of a journal under thousands of schedules: what was marked before a pass is in its blocks, and
//! terms stay in memory until they are encoded. `partition.rs` tells how to choose the schedules and
//! run one again.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

mod buffer;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use buffer::{check, counter, join, map, spawn, Buffer};
use common::persist::{decoded, TestCodec};
use common::{TestHeap, TestTerm, ONE};
use partitioned_buffer_engine::journal::block::{self, Place};
use partitioned_buffer_engine::journal::replay::{replay, Content, Kind, Saved};
use partitioned_buffer_engine::journal::{Blocks, Codec, Pass};
use partitioned_buffer_engine::saved::SavedEntry;
use partitioned_buffer_engine::{Heap, Limits, Log, Note, Partition, Resident, Store};
use shuttle::thread;

/// A log in memory, with the notes that are not written.
#[derive(Clone, Default)]
struct Memory {
    segment: Vec<u8>,
    blocks: u64,
    notes: Vec<Note>,
}

/// Appends blocks to a log.
struct Appender<'m>(&'m mut Vec<u8>, &'m mut u64);

impl Blocks for Appender<'_> {
    type Failure = Infallible;

    fn append(&mut self, partition: u32, _generation: u64, payload: Vec<u8>) -> Result<(), Infallible> {
        let place = Place { partition, epoch: 1, segment: 1, offset: self.0.len() as u64 };
        self.0.extend_from_slice(&block::head(place, &payload));
        self.0.extend_from_slice(&payload);
        *self.1 += 1;
        Ok(())
    }

    fn blocks(&self) -> u64 {
        *self.1
    }
}

/// Lets other threads run before it reads a term.
struct SlowCodec;

impl Codec<TestHeap> for SlowCodec {
    fn encode(&mut self, term: TestTerm, out: &mut Vec<u8>) {
        thread::yield_now();
        TestCodec.encode(term, out);
    }
}

/// An entry of a log: its key or item, its value or sum, its count, its attempts, and whether it was given
/// up.
type Found = (i64, i128, u128, u32, bool);

impl Memory {
    fn pass<S, const SHARDS: usize>(&mut self, partition: &Partition<S, SHARDS>)
    where
        S: Store<Saved = SavedEntry<TestHeap>>,
    {
        let Memory { segment, blocks, notes } = self;
        let mut appender = Appender(segment, blocks);
        let mut codec = SlowCodec;
        let pass = Pass::new(&mut appender, &mut codec, (0, 1), notes);
        let Ok(_records) = pass.run(partition);
    }

    /// What the log holds.
    fn found(&self, kind: Kind) -> Vec<Found> {
        let segments = [(1, self.segment.clone())];
        let replayed = replay(&segments, kind);
        assert_eq!((replayed.damaged_records, replayed.damaged.len()), (0, 0));
        let found = |kept: &Saved, is_given_up| {
            let (key, value, count) = match kept.content {
                Content::Value { key, value, .. } => (decoded(key).1, decoded(value).1.into(), 0),
                Content::Sum { key, sum, count } => (decoded(key).1, sum, count),
                Content::Item { item } => (decoded(item).1, 0, 0),
            };
            (key, value, count, kept.attempts, is_given_up)
        };
        let waiting = replayed.entries.iter().map(|kept| found(kept, false));
        waiting.chain(replayed.given_up.iter().map(|kept| found(kept, true))).collect()
    }

    /// Checks that the log, after a last pass, holds what the partition holds. A log that begins with a
    /// copy of all holds it for sure.
    fn assert_complete<S, const SHARDS: usize>(&mut self, partition: &Partition<S, SHARDS>, kind: Kind)
    where
        S: Store<Saved = SavedEntry<TestHeap>>,
    {
        self.pass(partition);
        assert_eq!(partition.unsaved(), 0);
        partition.unsave();
        let mut whole = Memory::default();
        whole.pass(partition);
        assert_eq!(self.found(kind), whole.found(kind));
    }
}

/// Gives a buffer a journal, and a bound, so that its flushes are freed in parts.
fn journaled<S: Store<Term = TestTerm>, const SHARDS: usize, D: Clone + std::fmt::Debug + PartialEq>(
    buffer: Arc<Buffer<S, SHARDS, D>>,
) -> Arc<Buffer<S, SHARDS, D>> {
    buffer.first().set_journaled(true);
    buffer.bound.set_limits(Limits { entries: Some(100), bytes: Some(1 << 40) });
    buffer.first().set_bounded(true);
    buffer
}

#[test]
fn values_of_two_writers_are_in_the_log_or_were_delivered() {
    check(|| {
        let buffer = journaled(map::start(1, true));
        let writers = [0, 1].map(|writer| {
            spawn(&buffer, move |buffer| {
                for value in 1..=3 {
                    // One of these is packed, and some are replaced where they are.
                    buffer.put(writer * 10, value + 3).expect("the buffer runs");
                    buffer.put(writer * 10 + value, value).expect("the buffer runs");
                }
                buffer.delete(writer * 10 + 2);
            })
        });
        let processor = spawn(&buffer, |buffer| {
            buffer.lease(2).into_iter().for_each(|lease| {
                buffer.fail(&lease, Some(&[0]));
            });
            buffer.lease(usize::MAX).into_iter().for_each(|lease| buffer.succeed(lease));
            buffer.lease(1).into_iter().for_each(|lease| {
                buffer.fail(&lease, None);
            });
        });
        let journal = spawn(&buffer, |buffer| {
            let mut log = Memory::default();
            for _ in 0..2 {
                let before = [0, 10].map(|key| buffer.get(key));
                log.pass(buffer.first());
                let found: BTreeMap<i64, i128> =
                    log.found(Kind::Map).into_iter().map(|(key, value, ..)| (key, value)).collect();
                for (key, before) in [0, 10].into_iter().zip(before) {
                    let Some(before) = before else { continue };
                    let sunk = buffer.sink().into_iter().filter(|entry| entry.key == key).map(|entry| entry.value);
                    let newest = found.get(&key).copied().max(sunk.max().map(i128::from));
                    assert!(newest >= Some(before.into()), "{key} was {before} before the pass, and is {newest:?}");
                }
            }
            log
        });
        writers.into_iter().for_each(join);
        join(processor);
        let mut log = join(journal);
        log.assert_complete(buffer.first(), Kind::Map);
        let there = |key: &i64| buffer.get(*key).map(|value| (*key, i128::from(value)));
        let held: Vec<_> = (0..20).filter_map(|key| there(&key)).collect();
        let mut found: Vec<_> = log.found(Kind::Map).into_iter().map(|(key, value, ..)| (key, value)).collect();
        found.sort_unstable();
        assert_eq!(found, held);
    });
}

#[test]
fn each_addition_is_in_the_log_once_or_was_delivered() {
    check(|| {
        let buffer = journaled(counter::start(1, true));
        let writers = [0, 1].map(|writer| {
            spawn(&buffer, move |buffer| {
                for bit in 0..4 {
                    buffer.add(1, 1 << (writer * 4 + bit));
                    buffer.add(2 + writer, 1);
                }
            })
        });
        let processor = spawn(&buffer, |buffer| {
            for _ in 0..2 {
                buffer.lease(usize::MAX).into_iter().for_each(|lease| {
                    buffer.fail(&lease, Some(&[0]));
                });
            }
        });
        let journal = spawn(&buffer, |buffer| {
            let mut log = Memory::default();
            for _ in 0..2 {
                // What was there before has been delivered since, or is in the log.
                let before = buffer.sum(1).unwrap_or(0);
                log.pass(buffer.first());
                let found: Vec<_> = log.found(Kind::Counter).into_iter().filter(|(key, ..)| *key == 1).collect();
                let found: i128 = found
                    .iter()
                    .map(|(_key, sum, count, ..)| {
                        assert_eq!(u128::from(sum.count_ones()), *count, "each addition is in {sum:#b} once");
                        *sum
                    })
                    .sum();
                let sunk = buffer.sunk(1).0;
                assert_eq!(before & !(found | sunk), 0, "{before:#b} is in {found:#b} and {sunk:#b}");
            }
            log
        });
        writers.into_iter().for_each(join);
        join(processor);
        let mut log = join(journal);
        log.assert_complete(buffer.first(), Kind::Counter);
        let sum = |key: i64| log.found(Kind::Counter).iter().filter(|found| found.0 == key).map(|found| found.1).sum();
        let left: [i128; 3] = [1, 2, 3].map(sum);
        assert_eq!(left, [1, 2, 3].map(|key| buffer.sum(key).unwrap_or(0)));
        assert_eq!(left[0] + buffer.sunk(1).0, (1 << 8) - 1, "each addition is there once");
    });
}

#[test]
fn items_are_in_the_log_once_while_some_come_back_and_others_are_pushed() {
    check(|| {
        let buffer: Arc<Buffer<Log<TestHeap>, 1, i64>> =
            Buffer::start(1, true, |item: Resident<TestTerm>| item.term.content().1, |item| item);
        let buffer = journaled(buffer);
        buffer.first().set_order(false);
        let push = |buffer: &Buffer<Log<TestHeap>, 1, i64>, item: i64| {
            let mut caller = TestHeap::new();
            buffer.first().push(ONE, &caller.boxed(item).parcel()).expect("the buffer runs");
        };
        let writers = [0, 1]
            .map(|writer| spawn(&buffer, move |buffer| (0..20).for_each(|number| push(buffer, writer * 100 + number))));
        let processor = spawn(&buffer, |buffer| {
            for _ in 0..2 {
                buffer.lease(6).into_iter().for_each(|lease| {
                    buffer.fail(&lease, Some(&[1, 2]));
                });
                buffer.lease(usize::MAX).into_iter().for_each(|lease| buffer.succeed(lease));
            }
        });
        let journal = spawn(&buffer, |buffer| {
            let mut log = Memory::default();
            for _ in 0..2 {
                log.pass(buffer.first());
                let mut found: Vec<i64> = log.found(Kind::Queue).into_iter().map(|(item, ..)| item).collect();
                let length = found.len();
                found.sort_unstable();
                found.dedup();
                assert_eq!(found.len(), length, "each item is there once");
            }
            log
        });
        writers.into_iter().for_each(join);
        join(processor);
        let mut log = join(journal);
        log.assert_complete(buffer.first(), Kind::Queue);
        let mut all: Vec<i64> =
            log.found(Kind::Queue).into_iter().map(|(item, ..)| item).chain(buffer.sink()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..20).chain(100..120).collect::<Vec<_>>(), "each item is there once, or was delivered once");
    });
}

#[test]
fn a_rewrite_has_all_of_a_flush_that_begins_meanwhile() {
    check(|| {
        let buffer = journaled(map::start(1, true));
        (0..6).for_each(|key| buffer.put(key, key).expect("the buffer runs"));
        let mut first = Memory::default();
        first.pass(buffer.first());
        let processor = spawn(&buffer, |buffer| {
            buffer.lease(2).into_iter().for_each(|lease| {
                buffer.fail(&lease, Some(&[0]));
            });
        });
        let journal = spawn(&buffer, |buffer| {
            // What the first log has goes with it.
            buffer.first().unsave();
            let mut log = Memory::default();
            log.pass(buffer.first());
            log
        });
        join(processor);
        let mut log = join(journal);
        log.assert_complete(buffer.first(), Kind::Map);
    });
}
