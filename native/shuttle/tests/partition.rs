//! The partition of a map under thousands of schedules. Threads change at every lock and atomic, in
//! an order that a seed decides.
//!
//! `SHUTTLE_SEED` and `SHUTTLE_ITERATIONS` choose the schedules. A failure prints its schedule. To
//! run only this one again, set `SHUTTLE_SCHEDULE` to it, and give the name of the test. Atomics
//! are sequentially consistent here, whatever order the code asks for.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

mod buffer;

use std::collections::{HashMap, HashSet};

use buffer::map::{self, Buffer};
use buffer::{check, join, race, spawn};
use partitioned_buffer_engine::{Access, Closed};
use shuttle::sync::atomic::Ordering;

fn is_increasing(values: &[i64]) -> bool {
    values.windows(2).all(|pair| pair[0] < pair[1])
}

/// Writes versions 1, 2… to two keys in turn until one is refused. Returns the last accepted
/// version of each key.
fn write_versions(buffer: &Buffer, writer: i64, writes: i64) -> HashMap<i64, i64> {
    write_versions_as(buffer, |access| access, writer, writes)
}

/// The same as another caller.
fn write_versions_as(buffer: &Buffer, caller: fn(Access) -> Access, writer: i64, writes: i64) -> HashMap<i64, i64> {
    let keys = [writer * 10, writer * 10 + 1];
    (1..=writes)
        .map(|version| (keys[version as usize % 2], version))
        .take_while(|&(key, version)| buffer.put_newer_as(caller, key, version, version).is_ok())
        .collect()
}

/// Checks that one delivery counts each accepted write. An entry that is evicted takes none of an
/// older one's writes.
fn assert_counted(buffer: &Buffer, writes: u64, accepted: usize, delivered: &[map::Delivery]) {
    let is_counted = writes == accepted as u64 || buffer.has_evicted() && writes < accepted as u64;
    assert!(is_counted, "{writes} of {accepted} writes are counted: {delivered:?}");
}

/// Checks that one delivery counts each accepted write, and that they come in order. Each writer
/// must have its own keys.
fn assert_conserved(buffer: &Buffer, accepted: &[HashMap<i64, i64>]) {
    for newest in accepted {
        for (&key, &version) in newest {
            let delivered: Vec<_> = buffer.delivered().into_iter().filter(|delivery| delivery.key == key).collect();
            let versions: Vec<i64> = delivered.iter().map(|delivery| delivery.version).collect();
            assert!(is_increasing(&versions), "versions go up: {delivered:?}");
            assert_eq!(versions.last(), Some(&version), "the last accepted version comes last: {delivered:?}");
            let writes: u64 = delivered.iter().map(|delivery| 1 + delivery.updates).sum();
            assert_counted(buffer, writes, (version + 1) as usize / 2, &delivered);
        }
    }
    let keys: usize = accepted.iter().map(HashMap::len).sum();
    let delivered: HashSet<i64> = buffer.delivered().iter().map(|delivery| delivery.key).collect();
    assert_eq!(delivered.len(), keys, "only accepted writes are delivered");
}

#[test]
fn every_write_is_in_one_flush_or_superseded_by_a_newer_one() {
    check(|| {
        let buffer = map::start(1, false);
        let accepted =
            race(&buffer, |buffer, n| write_versions(buffer, n, 5), |buffer| buffer.deliver_times(3, usize::MAX));
        buffer.drain();
        assert!(accepted.iter().all(|newest| newest.values().max() == Some(&5)), "nothing is refused");
        assert_conserved(&buffer, &accepted);
    });
}

#[test]
fn no_write_comes_in_an_earlier_flush_than_the_write_before_it() {
    const KEYS: i64 = 4;
    check(|| {
        let buffer = map::start(1, false);
        // It writes all keys in order, round after round.
        let write = |buffer: &Buffer| {
            (1..=3).for_each(|round| (0..KEYS).for_each(|key| buffer.put(key, round).expect("the buffer runs")))
        };
        let writer = spawn(&buffer, write);
        let reader = spawn(&buffer, |buffer| buffer.deliver_times(3, usize::MAX));
        join(writer);
        join(reader);
        buffer.drain();
        let mut rounds = [0; KEYS as usize];
        for flush in buffer.batches() {
            flush.into_iter().for_each(|delivery| rounds[delivery.key as usize] = delivery.value);
            assert!(rounds.is_sorted_by(|earlier, later| earlier >= later), "a later write comes first: {rounds:?}");
        }
        assert_eq!(rounds, [3; KEYS as usize]);
    });
}

#[test]
fn the_next_reader_delivers_unclaimed_entries_and_nothing_twice() {
    check(|| {
        let buffer = map::start(1, false);
        let accepted = race(&buffer, |buffer, n| write_versions(buffer, n, 4), |buffer| buffer.deliver_times(4, 2));
        buffer.drain();
        assert_conserved(&buffer, &accepted);
    });
}

#[test]
fn two_concurrent_readers_never_claim_the_same_batch() {
    check(|| {
        let buffer = map::start(1, false);
        let writer = spawn(&buffer, |buffer| write_versions(buffer, 0, 4));
        let readers = [1, 2].map(|count| spawn(&buffer, move |buffer| buffer.deliver_times(3, count)));
        let accepted = join(writer);
        readers.into_iter().for_each(join);
        buffer.drain();
        buffer.sort();
        assert_conserved(&buffer, &[accepted]);
    });
}

#[test]
fn a_read_sees_the_last_write_of_its_thread_or_nothing_after_a_flush() {
    check(|| {
        let buffer = map::start(1, false);
        let writers: Vec<_> = (1..=2)
            .map(|key| {
                spawn(&buffer, move |buffer| {
                    let mut flushed = Vec::new();
                    for value in 1..=4 {
                        buffer.put(key, value).expect("the buffer runs");
                        match buffer.get(key) {
                            Some(read) => assert_eq!(read, value, "a read sees the last write"),
                            None => flushed.push(value),
                        }
                        if value == 2 {
                            buffer.delete(key);
                            assert_eq!(buffer.get(key), None, "a deleted entry is gone");
                        }
                    }
                    flushed
                })
            })
            .collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver_times(3, usize::MAX));
        let flushed: Vec<Vec<i64>> = writers.into_iter().map(join).collect();
        join(reader);
        buffer.drain();
        for (key, flushed) in (1..).zip(flushed) {
            let values = buffer.values(key);
            assert!(is_increasing(&values), "values come in order and once: {values:?}");
            assert_eq!(values.last(), Some(&4), "the last value is delivered");
            assert!(flushed.iter().all(|value| values.contains(value)), "{flushed:?} are in {values:?}");
        }
    });
}

#[test]
fn the_last_write_of_several_writers_of_one_key_is_delivered_last() {
    check(|| {
        let buffer = map::start(1, false);
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
        assert!(matches!(puts.last(), Some(13 | 23)), "the last put of a writer comes last: {puts:?}");
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
fn a_write_during_the_close_is_either_refused_or_evicted() {
    check(|| {
        let buffer = map::start(1, false);
        let writers: Vec<_> = (0..2).map(|n| spawn(&buffer, move |buffer| write_versions(buffer, n, 6))).collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver(buffer.first(), 1));
        let evicted = spawn(&buffer, |buffer| {
            buffer.running.store(0, Ordering::SeqCst);
            buffer.evict(0)
        });
        let accepted: Vec<_> = writers.into_iter().map(join).collect();
        let evicted = join(evicted);
        join(reader);
        buffer.take_in(&evicted, 1);
        while buffer.deliver(buffer.first(), usize::MAX) {}
        buffer.assert_law();
        assert_conserved(&buffer, &accepted);
        assert_eq!(buffer.put(1, 1), Err(Closed));
    });
}

#[test]
fn a_draining_partition_delivers_all_writes_of_processors() {
    check(|| {
        let buffer = map::start(1, false);
        let writer = spawn(&buffer, |buffer| write_versions(buffer, 0, 6));
        let processor = spawn(&buffer, |buffer| write_versions_as(buffer, Access::of_processor, 1, 6));
        let stop = spawn(&buffer, |buffer| {
            buffer.first().drain().expect("it is open");
            assert_eq!(buffer.put(100, 1), Err(Closed), "a write is refused from now on");
            assert_eq!(buffer.get(100), None, "a read is not");
            buffer.deliver(buffer.first(), usize::MAX);
            buffer.first().close();
        });
        let accepted = [join(writer), join(processor)];
        join(stop);
        buffer.drain();
        assert_conserved(&buffer, &accepted);
    });
}

#[test]
fn a_partition_that_is_closed_and_opened_again_keeps_all_accepted_writes() {
    check(|| {
        let buffer = map::start(1, false);
        let accepted = race(&buffer, |buffer, n| write_versions(buffer, n, 4), Buffer::close_and_open);
        buffer.drain();
        assert_conserved(&buffer, &accepted);
    });
}

/// Writes and delivers while the partition count changes.
fn restart<const BEFORE: u32, const AFTER: u32>() {
    let buffer = map::start(BEFORE, false);
    // A write between the two states is refused. The writers go on.
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
    buffer.assert_law();
    for (key, accepted) in (0..).zip(accepted) {
        let delivered: Vec<_> = buffer.delivered().into_iter().filter(|delivery| delivery.key == key).collect();
        let versions: Vec<i64> = delivered.iter().map(|delivery| delivery.version).collect();
        assert!(is_increasing(&versions), "versions go up: {delivered:?}");
        assert_eq!(versions.last(), accepted.last(), "the last accepted version comes last: {delivered:?}");
        let writes: u64 = delivered.iter().map(|delivery| 1 + delivery.updates).sum();
        assert_counted(&buffer, writes, accepted.len(), &delivered);
    }
}

#[test]
fn added_partitions_neither_lose_nor_double_a_write() {
    check(restart::<1, 2>);
}

#[test]
fn removed_partitions_neither_lose_nor_double_a_write() {
    check(restart::<2, 1>);
}
