//! Entries of other nodes: what a partition makes of them, and the numbers of their streams.

mod common;

use std::sync::mpsc::channel;
use std::thread;

use common::counter::Counter;
use common::map::{Entry, Map};
use common::{hash, to_version, TestHeap, ONE};
use partitioned_buffer_engine::partition::{AbsorbedSum, AbsorbedValue};
use partitioned_buffer_engine::streams::Take;
use partitioned_buffer_engine::tally::LIMIT;
use partitioned_buffer_engine::{Closed, CounterPartition, Heap, MapPartition, Streams, Written};

/// Absorbs an entry, and returns whether its key is new.
fn absorb_sum(counter: &Counter, key: i64, sum: i128, count: u128) -> bool {
    let mut caller = TestHeap::new();
    let key = caller.boxed(key);
    let entry = (hash(&counter.hasher, key), AbsorbedSum { key: key.parcel(), sum, count });
    let shard = CounterPartition::<TestHeap>::shard_of(entry.0);
    counter.partition.absorb_all(ONE, shard, true, [entry].iter()).is_ok_and(|written| written.done == 1)
}

/// Absorbs an entry whose value is its version.
fn absorb_value(map: &Map, key: i64, number: i64, updates: u64) -> Result<Written, Closed> {
    let mut caller = TestHeap::new();
    let (key, value) = (caller.boxed(key), caller.boxed(number));
    let (value, version) = value.parcel_with(to_version(&mut caller, number));
    let entry = (hash(&map.hasher, key), AbsorbedValue { key: key.parcel(), value, version, updates });
    let shard = MapPartition::<TestHeap>::shard_of(entry.0);
    map.partition.absorb_all(ONE, shard, false, [entry].iter())
}

/// The entries of the next flush, in the order of their keys.
fn taken(map: &Map) -> Vec<Entry> {
    let (_flush, mut batch) = map.lease_all();
    batch.sort();
    batch
}

fn entry(key: i64, version: i64, updates: u64) -> Entry {
    Entry { key, value: version, version, updates }
}

#[test]
fn a_sum_and_its_count_are_added_as_one_write() {
    let counter = Counter::start();
    counter.add(1, 5);
    assert!(absorb_sum(&counter, 1, 1 << 100, 1 << 90));
    assert!(absorb_sum(&counter, 2, -(1 << 100), 0));
    counter.add(1, 1);
    let writes = counter.partition.info().writes;
    assert_eq!((writes.written, writes.coalesced), (4, 2));
    assert_eq!(counter.lease_all().1, [(1, (1 << 100) + 6, (1 << 90) + 2), (2, -(1 << 100), 0)]);
}

#[test]
fn a_sum_stays_at_its_limit() {
    let counter = Counter::start();
    for _ in 0..300 {
        absorb_sum(&counter, 1, LIMIT, LIMIT.unsigned_abs());
        absorb_sum(&counter, 2, -LIMIT, 1);
    }
    assert_eq!(counter.lease_all().1, [(1, LIMIT, LIMIT.unsigned_abs()), (2, -LIMIT, 300)]);
}

#[test]
fn a_sum_at_its_limit_joins_another_one() {
    let counter = Counter::start();
    absorb_sum(&counter, 1, LIMIT, LIMIT.unsigned_abs());
    let (flush, _batch) = counter.lease_all();
    absorb_sum(&counter, 1, LIMIT, LIMIT.unsigned_abs());
    assert_eq!(counter.sum(1), Some(2 * LIMIT), "in flight and waiting");
    assert_eq!(counter.partition.give_back(&flush, common::reading::all_of(1)).retried, 1);
    assert_eq!(counter.lease_all().1, [(1, LIMIT, LIMIT.unsigned_abs())]);
}

#[test]
fn a_value_brings_its_updates() {
    let map = Map::start();
    assert_eq!(absorb_value(&map, 1, 10, 3), Ok(Written { done: 1, used: 0, is_enough: false }));
    assert!(map.put_newer(1, 11, 11));
    assert!(absorb_value(&map, 1, 12, 5).is_ok());
    assert!(absorb_value(&map, 2, 1, 0).is_ok());
    assert_eq!(taken(&map), [entry(1, 12, 10), entry(2, 1, 0)]);
}

#[test]
fn the_updates_of_a_value_can_be_absorbed_again() {
    let map = Map::start();
    let most = i64::MAX as u64;
    for version in 1..4 {
        assert!(absorb_value(&map, 1, version, most).is_ok());
    }
    assert_eq!(taken(&map), [entry(1, 3, most)]);
}

#[test]
fn a_value_that_is_not_newer_is_stale() {
    let map = Map::start();
    // Versions from 40 on are terms.
    for (key, version, stale) in [(1, 5, 5), (2, 50, 49), (3, -50, -51), (4, 50, 5)] {
        assert!(absorb_value(&map, key, version, 1).is_ok());
        assert!(absorb_value(&map, key, stale, 7).is_ok());
    }
    assert_eq!(map.partition.info().writes.stale, 4);
    assert_eq!(taken(&map), [entry(1, 5, 1), entry(2, 50, 1), entry(3, -50, 1), entry(4, 50, 1)]);
    // Compared with the entries in flight.
    for (key, version) in [(1, 5), (2, 50), (3, -50), (4, 49)] {
        assert!(absorb_value(&map, key, version, 1).is_ok());
    }
    assert_eq!(map.partition.info().waiting, 0);
    assert!(absorb_value(&map, 1, 6, 2).is_ok());
    assert_eq!(map.partition.info().waiting, 1);
    assert_eq!(map.partition.info().writes.stale, 8);
}

#[test]
fn a_number_is_taken_once() {
    let streams = Streams::default();
    let take = |id, number| streams.take(id, number, false, || Ok::<_, ()>("written"));
    assert_eq!(take((1, 2), 7), Take::Done(Ok("written")));
    assert_eq!([take((1, 2), 7), take((1, 2), 6)], [Take::Duplicate, Take::Duplicate]);
    assert_eq!(take((1, 2), u64::MAX), Take::Done(Ok("written")));
    assert_eq!(take((2, 1), 1), Take::Done(Ok("written")));
    assert_eq!(streams.all(), [(1, 2, u64::MAX), (2, 1, 1)]);
}

#[test]
fn a_failed_write_takes_no_number_and_leaves_no_stream() {
    let streams = Streams::default();
    assert_eq!(streams.take((1, 2), 7, false, || Err::<(), _>("full")), Take::Done(Err("full")));
    assert_eq!(streams.all(), []);
    assert_eq!(streams.take((1, 2), 7, false, || Ok::<_, ()>(())), Take::Done(Ok(())));
    assert_eq!(streams.take((1, 2), 8, false, || Err::<(), _>("full")), Take::Done(Err("full")));
    assert_eq!(streams.all(), [(1, 2, 7)]);
}

#[test]
fn a_forgotten_stream_begins_again() {
    let streams = Streams::default();
    for id in [(1, 1), (1, 2), (2, 1)] {
        assert_eq!(streams.take(id, 5, false, || Ok::<_, ()>(())), Take::Done(Ok(())));
    }
    assert_eq!(streams.take((1, 1), 6, false, || Ok::<_, ()>(())), Take::Done(Ok(())));
    streams.forget(1, 5);
    streams.forget(3, 5);
    assert_eq!(streams.all(), [(1, 1, 6), (2, 1, 5)]);
    assert_eq!(streams.take((1, 2), 1, false, || Ok::<_, ()>(())), Take::Done(Ok(())));
}

#[test]
fn a_call_does_not_wait_for_a_stream_unless_it_may() {
    let streams = Streams::default();
    let (begun, awaits_begun) = channel();
    let (end, awaits_end) = channel();
    thread::scope(|scope| {
        let streams = &streams;
        let first = scope.spawn(move || {
            streams.take((1, 1), 1, false, || {
                begun.send(()).expect("the test waits");
                awaits_end.recv().map_err(drop)
            })
        });
        awaits_begun.recv().expect("the first call begins");
        assert_eq!(streams.take((1, 1), 1, false, || Ok::<_, ()>(())), Take::Busy);
        assert_eq!(streams.take((1, 2), 1, false, || Ok::<_, ()>(())), Take::Done(Ok(())));
        let second = scope.spawn(move || streams.take((1, 1), 1, true, || Ok::<_, ()>(())));
        end.send(()).expect("the first call waits");
        assert_eq!(first.join().expect("no call panics"), Take::Done(Ok(())));
        assert_eq!(second.join().expect("no call panics"), Take::Duplicate);
    });
}
